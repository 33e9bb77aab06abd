"""User code beyond the basics: validated arguments, both orders, installed judges; heads of many labels."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from classifier_kit import LLAMA, save_tokenizer, shrink
from judge_kit import ask, brief, caller_of, python, question
from transformers import LlamaConfig, LlamaForSequenceClassification

from judges.reward.reward_model import RewardModel
from online_dpo.errors import JudgeError

ARGS = """
from pydantic import BaseModel, Field
class Tone(BaseModel):
    name: str
    weight: float = Field(1.0, gt=0)
class Named:
    Args = Tone
    def __init__(self, args): self.args = args
    def score(self, prompt, completion): return self.args.weight * (self.args.name in completion)
class Whole(Tone):
    def score(self, prompt, completion): return self.weight * (self.name in completion)
class Compare:
    def compare(self, prompt, a, b): return {"xy": 0.9, "yx": 0.7}[a + b]
"""


@pytest.mark.parametrize("name", ["Named", "Whole"])
def test_arguments_are_validated_where_a_model_says_how(name: str, tmp_path: Path) -> None:
    caller = caller_of(tmp_path, python(name, args={"name": "kind", "weight": "2.5"}), ARGS)
    assert brief(ask(caller, question("kind", "rude"))[0][0]) == [2.5, 0.0], "text became a number"
    for args, message in [
        ({"name": "kind", "weight": "much"}, 'judge.args.weight is "much"; it must be a valid number'),
        ({"name": "kind", "weight": -1}, "judge.args.weight is -1; it must be greater than 0"),
        ({"weight": 1}, f"judge.args lacks name, which judge.target mine.py:{name} needs"),
        ({"name": "kind", "wait": 1}, f"judge.args.wait is not an argument of judge.target mine.py:{name}; did you me"),
    ]:
        with pytest.raises(JudgeError) as caught:
            caller_of(tmp_path, python(name, args=args))
        assert str(caught.value).startswith(message)


def test_both_orders_are_asked_and_refused_where_there_are_none(tmp_path: Path) -> None:
    (said,), _ = ask(caller_of(tmp_path, python("Compare", both_orders=True), ARGS), question("x", "y"))
    assert [(v.first, v.second, v.probability) for v in said] == [(0, 1, 0.9), (1, 0, 0.7)]
    with pytest.raises(JudgeError, match=r"^judge\.both_orders is true and .* mine\.py:Named has no compare"):
        caller_of(tmp_path, python("Named", both_orders=True, args={"name": "kind"}))


def install(folder: Path) -> None:
    """A package as an installer leaves it, with an entry point."""
    info = folder / "kindness-1.2.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text("Metadata-Version: 2.1\nName: kindness\nVersion: 1.2\nSummary: Kind words count\n")
    (info / "entry_points.txt").write_text("[online_dpo.judges]\nkind = kindness_judge:score\n")
    (folder / "kindness_judge.py").write_text("print('imported')\ndef score(prompt, completion): return 7\n")


def test_installed_judges_are_listed_without_importing_them(tmp_path: Path) -> None:
    install(tmp_path / "site")
    program = """
import sys
sys.argv = ["online-dpo", "judges"]
from online_dpo.cli import main
try:
    main()
finally:
    print([name for name in ("torch", "ray", "vllm", "transformers", "kindness_judge") if name in sys.modules])
"""
    done = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {str(tmp_path / 'site')!r})\n{program}"],
        capture_output=True,
        text=True,
        timeout=120,
    )
    lines = done.stdout.splitlines()
    assert lines[-1] == "[]", done.stderr
    assert "target: kind           kindness_judge:score, kindness 1.2: Kind words count" in lines
    assert any(line.startswith("type: ensemble ") for line in lines)
    assert "imported" not in lines


def test_an_installed_judge_is_a_target_by_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    install(tmp_path / "site")
    monkeypatch.syspath_prepend(str(tmp_path / "site"))
    assert brief(ask(caller_of(tmp_path, {"type": "python", "target": "kind"}), question("x"))[0][0]) == [7.0]
    with pytest.raises(JudgeError, match=r"^judge\.target kin is no installed judge .*; did you mean kind\?"):
        caller_of(tmp_path, {"type": "python", "target": "kin"})


@pytest.fixture(scope="module")
def three_heads(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("three")
    torch.manual_seed(0)
    LlamaForSequenceClassification(shrink(LlamaConfig, pad_token_id=0, num_labels=3, **LLAMA)).save_pretrained(folder)
    save_tokenizer(folder)
    return folder


def test_one_head_of_many_or_a_weighted_sum(three_heads: Path) -> None:
    asked = question(" yes", " no, not at all")

    def scores(output: Any) -> list[float]:
        return brief(asyncio.run(RewardModel(str(three_heads), output=output).judge([asked]))[0])

    heads = torch.tensor([scores(i) for i in range(3)])
    model = LlamaForSequenceClassification.from_pretrained(three_heads).eval()
    tokenizer = RewardModel(str(three_heads), output=0)._tokenizer
    ids = torch.tensor([tokenizer(f"{asked.prompt}{asked.completions[1]}").input_ids])
    with torch.inference_mode():
        assert heads[:, 1].tolist() == pytest.approx(model(input_ids=ids).logits[0].tolist(), abs=2e-4)
    assert scores([0.5, 0.0, -2.0]) == pytest.approx((0.5 * heads[0] - 2.0 * heads[2]).tolist(), abs=1e-4)


@pytest.mark.parametrize(
    ("output", "message"),
    [
        (None, "has 3 labels (0 LABEL_0, 1 LABEL_1, 2 LABEL_2); set judge.output to the position of one"),
        (3, "judge.output is 3 and the model has 3 labels"),
        ([1.0, 2.0], "judge.output has 2 weights and the model has 3 labels"),
        ([0.0, 0.0, 0.0], "give one for each, not all 0"),
    ],
)
def test_an_output_that_does_not_fit(output: Any, message: str, three_heads: Path) -> None:
    with pytest.raises(JudgeError) as caught:
        RewardModel(str(three_heads), output=output)
    assert message in str(caught.value)
