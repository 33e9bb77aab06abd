"""The same pairs, base and LoRA weights through TRL's `DPOTrainer`: one batch, three optimizer steps."""

from __future__ import annotations

import random
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from datasets import Dataset
from learner_kit import EOS, VOCAB, make_spec, random_adapter, read_folder, save_tiny_llama
from peft import PeftModel
from safetensors.torch import load as parse_safetensors
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast
from trl import DPOConfig, DPOTrainer

from online_dpo.learning import Learner
from online_dpo.types import Adapter, Completion, Pair, Prompt

STEPS, LR, BETA, DECAY, CLIP = 3, 5e-3, 0.1, 0.05, 0.6


def word_tokenizer() -> PreTrainedTokenizerFast:
    """One word per id, so that ids survive TRL's way through text."""
    words = {"<pad>": 0, "<bos>": 1, "<eos>": EOS, **{f"w{i}": i for i in range(3, VOCAB)}}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="<pad>"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", bos_token="<bos>", eos_token="<eos>")


def make_text_pairs(count: int) -> list[Pair]:
    """Completions that end in EOS: TRL appends it to any other."""
    rng = random.Random(5)

    def ids(low: int, high: int) -> tuple[int, ...]:
        return tuple(rng.randrange(3, VOCAB) for _ in range(rng.randint(low, high)))

    def text(tokens: tuple[int, ...]) -> str:
        return " ".join("<eos>" if token == EOS else f"w{token}" for token in tokens)

    def answer(prompt: Prompt, sample: int) -> Completion:
        tokens = (*ids(3, 14), EOS)
        return Completion(
            prompt_id=prompt.prompt_id,
            sample_index=sample,
            token_ids=tokens,
            text=" " + text(tokens),
            finish_reason="stop",
            sampler_logps=(0.0,) * len(tokens),
            policy_version=0,
            seed=0,
        )

    pairs = []
    for index in range(count):
        tokens = ids(1, 6)
        prompt = Prompt(prompt_id=f"p{index}", token_ids=tokens, text=text(tokens))
        pairs.append(
            Pair(prompt=prompt, chosen=answer(prompt, 0), rejected=answer(prompt, 1), margin=1.0, probability=0.7)
        )
    return pairs


def train_with_trl(base: str, adapter: Adapter, pairs: list[Pair], folder: Path) -> tuple[list[dict], Adapter]:
    """TRL's log of each step, and its adapter afterwards. The reference is the adapter it starts from."""
    (folder / "start").mkdir()
    for name, content in adapter.files().items():
        (folder / "start" / name).write_bytes(content)
    model = AutoModelForCausalLM.from_pretrained(base)
    trainer = DPOTrainer(
        model=PeftModel.from_pretrained(model, str(folder / "start"), is_trainable=True),
        args=DPOConfig(
            output_dir=str(folder / "out"),
            per_device_train_batch_size=len(pairs),
            max_steps=STEPS,
            learning_rate=LR,
            lr_scheduler_type="constant",
            weight_decay=DECAY,
            max_grad_norm=CLIP,
            beta=BETA,
            bf16=False,
            use_cpu=True,
            gradient_checkpointing=False,
            logging_steps=1,
            save_strategy="no",
            report_to="none",
            disable_tqdm=True,
        ),
        train_dataset=Dataset.from_list(
            [{"prompt": pair.prompt.text, "chosen": pair.chosen.text, "rejected": pair.rejected.text} for pair in pairs]
        ),
        processing_class=word_tokenizer(),
    )
    seen = [(row["prompt_ids"], row["chosen_ids"], row["rejected_ids"]) for row in trainer.train_dataset]
    assert seen == [
        (list(pair.prompt.token_ids), list(pair.chosen.token_ids), list(pair.rejected.token_ids)) for pair in pairs
    ], "TRL trains on other tokens than ours"
    trainer.train()
    trainer.model.save_pretrained(str(folder / "end"), selected_adapters=["default"])
    return [entry for entry in trainer.state.log_history if "loss" in entry], read_folder(folder / "end")


@pytest.fixture(scope="module")
def both(tmp_path_factory):
    folder = tmp_path_factory.mktemp("trl")
    base = save_tiny_llama(folder / "base")
    adapter = random_adapter(base, folder / "adapter", seed=3)
    pairs = make_text_pairs(6)
    theirs = train_with_trl(base, adapter, pairs, folder)

    spec = make_spec(
        base, adapter, lr=LR, weight_decay=DECAY, max_grad_norm=CLIP, batch_pairs=6, epochs=STEPS, micro_batch_tokens=90
    )
    learner = Learner(replace(spec, objective=spec.objective.model_copy(update={"beta": BETA})))
    count = learner.begin_round(0, learner.reference_logps(pairs, [adapter]))
    ours = [learner.step(step) for step in range(count)], learner.policy(1)
    return adapter, theirs, ours


def test_every_step_reports_the_same_loss_gradient_norm_and_log_probs(both):
    _, (theirs, _), (ours, _) = both
    assert len(theirs) == len(ours) == STEPS
    for trl, own in zip(theirs, ours, strict=True):
        assert own["loss"] == pytest.approx(trl["loss"], rel=1e-4, abs=1e-5)
        assert own["grad_norm"] == pytest.approx(trl["grad_norm"], rel=1e-4)
        assert own["chosen_logps"] == pytest.approx(trl["logps/chosen"], rel=1e-4)
        assert own["rejected_logps"] == pytest.approx(trl["logps/rejected"], rel=1e-4)
        assert own["implicit_margin"] == pytest.approx(trl["rewards/margins"], rel=1e-4, abs=1e-5)
    assert [own["clipped"] for own in ours] == [1.0, 1.0, 0.0]
    assert ours[-1]["loss"] < 0.9 * ours[0]["loss"]


def test_the_updated_adapters_are_the_same(both):
    """Measured: 7e-7 of the update's norm, 1.5e-7 at the worst weight."""
    start, (_, theirs), (_, ours) = both
    before, trl, own = (parse_safetensors(adapter.weights) for adapter in (start, theirs, ours))
    assert before.keys() == trl.keys() == own.keys()
    gap = torch.cat([(own[name] - trl[name]).flatten() for name in own])
    update = torch.cat([(trl[name] - before[name]).flatten() for name in own])
    assert update.abs().mean() > 1e-3
    assert gap.norm() < 1e-4 * update.norm()
    assert gap.abs().max() < 1e-5
