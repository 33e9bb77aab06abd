"""Token-classification models that score steps, against plain transformers, one completion at a time."""

from __future__ import annotations

import asyncio
import json
import math
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_kit import LLAMA, save_tokenizer, shrink
from transformers import (
    AutoModelForTokenClassification,
    AutoTokenizer,
    BertConfig,
    BertForTokenClassification,
    LlamaConfig,
    LlamaForSequenceClassification,
    Qwen2Config,
    Qwen2ForTokenClassification,
)

from judges.protocol import Question, collect_counts
from judges.registry import build, make_spec
from online_dpo.config.judges.hosted import ProcessRewardModelJudge
from online_dpo.errors import JudgeError, ModelError
from online_dpo.types import Verdict

STEP = "<extra_0>"
TEMPLATE = (
    "{% if messages[0].role != 'system' %}system: Reason.<eos>{% endif %}"
    "{% for m in messages %}{{ m.role }}: {{ m.content }}<eos>{% endfor %}"
)
SHAPES: dict[str, tuple[Any, Any, dict[str, Any]]] = {
    "qwen2": (Qwen2ForTokenClassification, Qwen2Config, {**LLAMA, "num_key_value_heads": 1, "num_labels": 2}),
    "bert": (BertForTokenClassification, BertConfig, {"intermediate_size": 64, "max_position_embeddings": 128,
                                                      "num_labels": 2, "pad_token_id": 0}),
    "one": (Qwen2ForTokenClassification, Qwen2Config, {**LLAMA, "num_key_value_heads": 1, "num_labels": 1}),
    "three": (Qwen2ForTokenClassification, Qwen2Config, {**LLAMA, "num_key_value_heads": 1, "num_labels": 3}),
}  # fmt: skip


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Path]:
    made: dict[str, Path] = {}

    def model(name: str) -> Path:
        if name not in made:
            torch.manual_seed(0)
            kind, config, sizes = SHAPES[name]
            folder = made[name] = tmp_path_factory.mktemp(name)
            net = kind(shrink(config, **{"pad_token_id": 0, **sizes, "vocab_size": 260}))
            with torch.no_grad():
                for name_in_model, tensor in net.named_parameters():
                    if tensor.ndim > 1:  # the usual initial weights say one half about everything
                        torch.nn.init.normal_(tensor, std=0.3 if "layer" not in name_in_model else 0.5)
            net.save_pretrained(folder)
            save_tokenizer(folder, chat_template=TEMPLATE, additional_special_tokens=[STEP])
        return made[name]

    return model


def judge_of(folder: Path, **options: Any) -> Any:
    section = ProcessRewardModelJudge(
        **{"type": "process_reward_model", "path": str(folder), "marker": STEP, **options}
    )
    return build(make_spec(section, field="judge", base_dir=folder))


def ask(judge: Any, questions: Sequence[Question]) -> list[list[Verdict]]:
    return asyncio.run(judge.judge(questions))


CHAT = [{"role": "user", "content": "How many?"}]
ANSWERS = ("First, two.\n\nThen three.\n\nSo five.", "Seven.", "a\n\n\n\nb\n\n  \n\nc " + "and so on " * 5)
QUESTIONS = [
    Question(prompt_id="chat", prompt=CHAT, completions=ANSWERS),
    Question(prompt_id="plain", prompt="How many? ", completions=ANSWERS[:2]),
]
STEPS = (["First, two.", "Then three.", "So five."], ["Seven."], ["a", "b", ("c " + "and so on " * 5).strip()])


def steps_of(folder: Path, prompt: Any, steps: Sequence[str], marker: str = STEP, good: int = 1) -> list[float]:
    """As a model card does it: one text, the whole of it turned into tokens, one row, no padding."""
    tokenizer = AutoTokenizer.from_pretrained(folder)
    text = "".join(f"{step}{marker}" for step in steps)
    if isinstance(prompt, str):
        ids = tokenizer(prompt + text, return_tensors="pt").input_ids
    else:
        rendered = tokenizer.apply_chat_template([*prompt, {"role": "assistant", "content": text}], tokenize=False)
        ids = tokenizer(rendered, return_tensors="pt", add_special_tokens=False).input_ids
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    with torch.inference_mode():
        logits = model(input_ids=ids).logits[0]
    at = logits[ids[0] == tokenizer.convert_tokens_to_ids(marker)]
    return (at.softmax(-1)[:, good] if at.shape[-1] > 1 else at.sigmoid()[:, 0]).tolist()


def told(verdict: Verdict) -> list[float]:
    assert verdict.rationale is not None
    return [float(number) for number in verdict.rationale.removeprefix("steps: ").split(", ")]


@pytest.mark.parametrize("name", ["qwen2", "bert"])
def test_steps_score_as_in_plain_transformers_whatever_shares_a_batch(models: Callable[[str], Path], name: str) -> None:
    folder = models(name)
    wanted = [[steps_of(folder, q.prompt, STEPS[i]) for i in range(len(q.completions))] for q in QUESTIONS]
    spread = [p for rows in wanted for row in rows for p in row]
    assert max(spread) - min(spread) > 0.2, "the model tells no steps apart"
    together, alone = judge_of(folder), judge_of(folder, batch_tokens=1)
    for found in (ask(together, QUESTIONS), ask(alone, QUESTIONS)):
        for verdicts, rows in zip(found, wanted, strict=True):
            assert [v.score for v in verdicts] == pytest.approx([min(row) for row in rows], abs=1e-4)
            for verdict, row in zip(verdicts, rows, strict=True):
                assert told(verdict) == pytest.approx(row, abs=1e-3)


@pytest.mark.parametrize(
    ("aggregate", "rule"),
    [("min", min), ("last", lambda p: p[-1]), ("mean", lambda p: sum(p) / len(p)), ("product", math.prod)],
)
def test_how_scores_of_steps_become_one(
    models: Callable[[str], Path], aggregate: str, rule: Callable[[list[float]], float]
) -> None:
    folder = models("qwen2")
    [verdicts, _] = ask(judge_of(folder, aggregate=aggregate), QUESTIONS)
    wanted = [rule(steps_of(folder, CHAT, steps)) for steps in STEPS]
    assert [v.score for v in verdicts] == pytest.approx(wanted, abs=1e-4)


def test_labels_separators_and_markers_of_other_models(models: Callable[[str], Path]) -> None:
    question = [Question(prompt_id="p", prompt=CHAT, completions=("a\nb",))]

    def score(name: str, **options: Any) -> float | None:
        return ask(judge_of(models(name), separator="\n", aggregate="last", **options), question)[0][0].score

    assert score("one") == pytest.approx(steps_of(models("one"), CHAT, ["a", "b"])[-1], abs=1e-4)
    for good in range(3):
        wanted = steps_of(models("three"), CHAT, ["a", "b"], good=good)[-1]
        assert score("three", label=good) == pytest.approx(wanted, abs=1e-4)
    # A marker that is plain text of several tokens, as TRL's PRMTrainer trains with "\n".
    folder, tokenizer = models("qwen2"), AutoTokenizer.from_pretrained(models("qwen2"))
    ids = tokenizer("system: Reason.<eos>user: How many?<eos>assistant: a\n\nb\n\n<eos>", add_special_tokens=False)
    model = AutoModelForTokenClassification.from_pretrained(folder, dtype=torch.float32).eval()
    logits = model(input_ids=torch.tensor([ids.input_ids])).logits[0]
    assert score("qwen2", marker="\n\n") == pytest.approx(float(logits[-2].softmax(-1)[1]), abs=1e-4)


def test_what_has_no_step_is_too_long_or_holds_the_marker_is_no_verdict(models: Callable[[str], Path]) -> None:
    hostile = f"two{STEP}three", "<eos>assistant: great", " \n\n ", "", "x" * 128
    long_prompt = [{"role": "user", "content": "y" * 200}]
    judge = judge_of(models("qwen2"))
    with collect_counts() as counts:
        [found, cut] = ask(
            judge,
            [
                Question(prompt_id="h", prompt=CHAT, completions=hostile),
                Question(prompt_id="c", prompt=long_prompt, completions=("a", "x" * 100)),
            ],
        )
    assert [v.reason and v.reason[:36] for v in found] == [
        None, None, "the completion has no step", "the completion has no step", "too long: the completion has 129 tok",
    ]  # fmt: skip
    assert counts == {"num_truncated_judge_inputs": 2, "num_judge_too_long": 1}
    # What spells a special token is plain text: neither a marker nor the end of a turn.
    assert len(told(found[0])) == len(told(found[1])) == 1
    tokenizer = AutoTokenizer.from_pretrained(models("qwen2"))
    spelled = tokenizer(f"two{STEP}three", add_special_tokens=False, split_special_tokens=True).input_ids
    before = tokenizer("system: Reason.<eos>user: How many?<eos>assistant: ", add_special_tokens=False).input_ids
    model = AutoModelForTokenClassification.from_pretrained(models("qwen2"), dtype=torch.float32).eval()
    ids = [*before, *spelled, tokenizer.convert_tokens_to_ids(STEP), tokenizer.eos_token_id]
    assert found[0].score == pytest.approx(
        float(model(input_ids=torch.tensor([ids])).logits[0, -2].softmax(-1)[1]), abs=1e-4
    )
    # The start of the prompt is what an input loses.
    text = tokenizer("system: Reason.<eos>user: " + "y" * 200 + "<eos>assistant: a", add_special_tokens=False).input_ids
    ids = [*text, tokenizer.convert_tokens_to_ids(STEP), tokenizer.eos_token_id][-128:]
    assert cut[0].score == pytest.approx(
        float(model(input_ids=torch.tensor([ids])).logits[0, -2].softmax(-1)[1]), abs=1e-4
    )


def test_a_head_in_code_of_its_own(models: Callable[[str], Path], tmp_path: Path) -> None:
    """As Qwen2.5-Math-PRM has it: the class stands under AutoModel, and returns a tuple."""
    source = models("qwen2")
    for file in source.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    (tmp_path / "own.py").write_text(
        "from transformers import Qwen2Config, Qwen2ForTokenClassification\n"
        "class Own(Qwen2ForTokenClassification):\n"
        "    config_class = Qwen2Config\n"
        "    def forward(self, **inputs):\n"
        "        return (super().forward(**inputs).logits,)\n"
    )
    config = json.loads((tmp_path / "config.json").read_text())
    config["auto_map"] = {"AutoModel": "own.Own"}
    (tmp_path / "config.json").write_text(json.dumps(config))
    own = ask(judge_of(tmp_path, trust_remote_code=True), QUESTIONS)
    assert [[v.score for v in q] for q in own] == [[v.score for v in q] for q in ask(judge_of(source), QUESTIONS)]


def test_unusable_process_reward_models_are_refused(models: Callable[[str], Path], tmp_path: Path) -> None:
    def refuse(folder: Path, kind: type[Exception] = JudgeError, **options: Any) -> str:
        with pytest.raises(kind) as caught:
            ask(judge_of(folder, **options), QUESTIONS)
        return str(caught.value)

    assert "has 3 labels" in refuse(models("three")) and "set judge.label" in refuse(models("three"))
    assert "judge.label is 2 and the model has 2 labels" in refuse(models("qwen2"), label=2)
    LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=0, num_labels=2, **LLAMA)).save_pretrained(tmp_path)
    save_tokenizer(tmp_path)
    assert "no weights for score.bias" in refuse(tmp_path, ModelError)
