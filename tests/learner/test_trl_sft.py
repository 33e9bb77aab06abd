"""The same rows, base and LoRA weights through TRL's `SFTTrainer`: which tokens the loss is of, and three steps."""

from __future__ import annotations

import json
import random
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from learner_kit import EOS, VOCAB, make_spec, random_adapter, read_folder, save_tiny_llama
from peft import PeftModel
from safetensors.torch import load as parse_safetensors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import SFTConfig, SFTTrainer

from online_dpo.config.objective.section import SFTObjective
from online_dpo.config.preferences import PairsSection
from online_dpo.data.encoding import AnswerEncoder
from online_dpo.data.preferences import PairSource, TokenLimits
from online_dpo.learner.learner import Learner
from online_dpo.types import Demonstration

STEPS, LR, DECAY, CLIP = 3, 5e-3, 0.05, 0.6
SPEAKERS = {"user": "w3", "assistant": "w4"}
PLAIN = (
    "{% for m in messages %}{{ 'w3 ' if m.role == 'user' else 'w4 ' }}{{ m.content }} <eos> {% endfor %}"
    "{% if add_generation_prompt %}w4 {% endif %}"
)
MARKED = (
    "{% for m in messages %}{% if m.role == 'user' %}w3 {{ m.content }} <eos> {% else %}w4 "
    "{% generation %}{{ m.content }} <eos>{% endgeneration %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}w4 {% endif %}"
)


def word_tokenizer(template: str) -> PreTrainedTokenizerFast:
    words = {"<pad>": 0, "<bos>": 1, "<eos>": EOS, **{f"w{i}": i for i in range(3, VOCAB)}}
    bare = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    bare.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")
    tokenizer.chat_template = template
    return tokenizer


def rows_of_kind(kind: str) -> list[dict[str, Any]]:
    rng = random.Random(5)

    def words() -> str:
        return " ".join(f"w{rng.randrange(5, VOCAB)}" for _ in range(rng.randint(2, 9)))

    if kind == "text":
        return [{"prompt": words(), "completion": f" {words()}"} for _ in range(6)]
    if kind == "chat":
        return [
            {
                "prompt": [{"role": "user", "content": words()}],
                "completion": [{"role": "assistant", "content": words()}],
            }
            for _ in range(6)
        ]
    return [
        {"messages": [{"role": role, "content": words()} for _ in range(turns) for role in SPEAKERS]}
        for turns in (1, 2, 3, 2, 1)
    ]


def demonstrations(rows: list[dict[str, Any]], template: str, file: Path) -> list[Demonstration]:
    file.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = {} if "prompt" in rows[0] else {"prompt": None, "completion": "messages"}
    section = PairsSection(source=str(file), format="demonstrations", **columns)
    encoder = AnswerEncoder(word_tokenizer(template), {}, eos_token_ids=(EOS,), append_eos=True)
    limits = TokenLimits(max_prompt_tokens=99, max_completion_tokens=99)
    return list(PairSource.load(section, field="pairs", encoder=encoder, limits=limits, seed=0).head(None).items)


def trainer(rows: list[dict[str, Any]], base: str, start: Path, out: Path, **options: Any) -> SFTTrainer:
    model = AutoModelForCausalLM.from_pretrained(base)
    return SFTTrainer(
        model=PeftModel.from_pretrained(model, str(start), is_trainable=True),
        args=SFTConfig(
            output_dir=str(out),
            per_device_train_batch_size=len(rows),
            max_steps=STEPS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
            **options,
        ),
        train_dataset=Dataset.from_list(rows),
        processing_class=word_tokenizer(MARKED),
    )


@pytest.mark.parametrize("kind", ["text", "chat", "conversations"])
def test_tokens_losses_gradients_and_weights_are_trl_s(kind: str, tmp_path: Path) -> None:
    """Would catch a token that is trained on here and not there, a mean over demonstrations instead of tokens, and one
    over micro-batches (ours are smaller than the batch)."""
    base = save_tiny_llama(tmp_path / "base")
    adapter = random_adapter(base, tmp_path / "start", seed=3)
    rows = rows_of_kind(kind)
    options = {"assistant_only_loss": True} if kind == "conversations" else {}
    theirs = trainer(rows, base, tmp_path / "start", tmp_path / "out", **options)
    items = demonstrations(rows, MARKED, tmp_path / "rows.jsonl")
    assert items == demonstrations(rows, PLAIN, tmp_path / "rows.jsonl")  # found by prefixes, as if it were marked
    for item, row in zip(items, theirs.train_dataset, strict=True):
        ids = [*item.prompt.token_ids, *item.completion.token_ids]
        flags = [False] * len(item.prompt.token_ids) + list(item.trained)
        assert row["input_ids"] == ids
        assert row["labels"] == [token if flag else -100 for token, flag in zip(ids, flags, strict=True)]
    theirs.train()
    theirs.model.save_pretrained(str(tmp_path / "end"), selected_adapters=["default"])
    log = [entry for entry in theirs.state.log_history if "loss" in entry]

    section = {"lr": LR, "weight_decay": DECAY, "max_grad_norm": CLIP, "batch_pairs": len(items), "epochs": STEPS}
    learner = Learner(make_spec(base, adapter, micro_batch_tokens=60, objective=SFTObjective(type="sft"), **section))
    assert learner.begin_round(0, learner.reference_logps(items, [])) == STEPS
    steps = [learner.step(step) for step in range(STEPS)]
    for trl, own in zip(log, steps, strict=True):
        assert own["loss"] == pytest.approx(trl["loss"], rel=1e-4)
        assert own["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-4)
        assert "beta" not in own and own["num_tokens"] == sum(item.num_trained for item in items)
    assert steps[-1]["loss"] < 0.99 * steps[0]["loss"]
    adapters = (adapter, read_folder(tmp_path / "end"), learner.policy(1))
    before, trl_weights, own_weights = (parse_safetensors(found.weights) for found in adapters)
    gap = torch.cat([(own_weights[name] - trl_weights[name]).flatten() for name in own_weights])
    update = torch.cat([(trl_weights[name] - before[name]).flatten() for name in own_weights])
    assert update.abs().mean() > 1e-3 and gap.norm() < 1e-4 * update.norm()
