"""The Python API as a stranger meets it: the documented example, quick imports, types, a function as a judge."""

from __future__ import annotations

import functools
import math
import statistics as stats
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from mypy import api as mypy

import online_dpo
from judges.user.user_code import load_target, read_source
from judges.user.writing import write_judge
from online_dpo.errors import JudgeError
from online_dpo.store.run_store import RunStore

EXAMPLE = Path(__file__).parents[2] / "docs" / "example.py"
OUTSIDE = 3


def test_the_documented_example_runs(tiny_model: Path, tmp_path: Path) -> None:
    """Two rounds, their results, the adapter in PEFT, and a third round, as a script in an empty folder."""
    command = [sys.executable, str(EXAMPLE), str(tiny_model)]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    with RunStore.read(tmp_path / "runs" / "example") as store:
        assert store.finished_rounds() == [0, 1, 2]
        lines = store.metrics()
    ended = [line for line in lines if line["kind"] == "round_done"]
    for line in ended:
        mean = line["evaluation"]["heldout"]["judges"]["reward"]["mean"]
        assert f"round {line['round']}: {line['num_pairs']} pairs, held-out reward {mean}\n" in done.stdout
    value, low, high = ended[1]["evaluation"]["heldout"]["judges"]["reward"]["gain"]
    assert f"round 1: gain Estimate(value={value}, low={low}, high={high})" in done.stdout
    num_steps = sum(line["kind"] == "step" and line["round"] < 2 for line in lines)
    assert f"{num_steps} steps, the first with a loss of 0.6931" in done.stdout
    assert "parameters with the adapter of runs/example/rounds/00001/adapter\n" in done.stdout
    assert f"3 rounds, reward {ended[2]['reward']}\n" in done.stdout
    report = (tmp_path / "runs" / "example" / "report" / "report.html").read_text()
    assert "After round 3 of 3, " in report, "the run writes it after every round"


@pytest.mark.exhaustive
def test_the_example_is_typed(tmp_path: Path) -> None:
    """mypy --strict takes the documented example, and knows the types: it refuses a wrong name."""
    source = EXAMPLE.read_text()
    wrong = source.replace("round_result.learning.reward_accuracy", "round_result.learning.accuracy")
    assert wrong != source
    (tmp_path / "right.py").write_text(source)
    (tmp_path / "wrong.py").write_text(wrong)
    shared = ["--strict", "--follow-imports=silent", f"--cache-dir={tmp_path / 'cache'}"]
    out, _, code = mypy.run([*shared, str(tmp_path / "right.py")])
    assert code == 0, out
    out, _, code = mypy.run([*shared, str(tmp_path / "wrong.py")])
    assert code == 1 and '"LearningResult" has no attribute "accuracy"' in out


def test_importing_every_public_name_loads_nothing_heavy() -> None:
    heavy = ("torch", "transformers", "ray", "vllm", "peft", "pandas", "pyarrow", "actors")
    code = f"""
import sys, online_dpo
before = {{"pydantic", "omegaconf", *{heavy!r}}} & sys.modules.keys()
assert before == set(), before
assert set(online_dpo.__all__) < set(dir(online_dpo))
for name in online_dpo.__all__: getattr(online_dpo, name)
print(sorted(set({heavy!r}) & sys.modules.keys()))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout == "[]\n", done
    assert all(getattr(online_dpo, name).__doc__ for name in online_dpo.__all__)


def plain(prompt: str, completion: str, weight: float = 2.0) -> float:
    return weight * math.sqrt(stats.fmean([len(text) for text in (prompt, completion)]))


def fibonacci(prompt: str, completion: str) -> float:
    return 1.0 if len(prompt) < 2 else fibonacci(prompt[1:], completion) + fibonacci(prompt[2:], completion)


@pytest.mark.parametrize(("function", "expected"), [(plain, 2 * math.sqrt(4.5)), (fibonacci, 8.0)])
def test_a_function_is_a_judge_in_a_file(
    function: Callable[..., Any], expected: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    target = write_judge(function, "judges/mine.py")
    assert target == f"judges/mine.py:{function.__name__}"
    before = Path("judges/mine.py").stat().st_mtime_ns
    assert (
        write_judge(function, Path("judges/mine.py")) == target and Path("judges/mine.py").stat().st_mtime_ns == before
    )
    loaded: Any = load_target(target, read_source(target, label="x", base_dir=tmp_path), label="x")
    assert loaded("12345", "1234") == expected
    assert function("12345", "1234") == expected


def uses_a_constant(prompt: str, completion: str) -> float:
    return max(float(len(text) + OUTSIDE) for text in (prompt, completion))


def makes_a_closure(bonus: float) -> Callable[[str, str], float]:
    def score(prompt: str, completion: str) -> float:
        return bonus

    return score


REFUSED: dict[str, tuple[Any, str]] = {
    "a constant, in a generator": (uses_a_constant, "uses OUTSIDE from outside itself"),
    "a closure": (makes_a_closure(1.0), "the function score uses bonus from outside itself"),
    "a lambda": (lambda prompt, completion: 1.0, "<lambda> is no function that was written with def"),
    "a partial": (functools.partial(plain, weight=1.0), "partial is no function that was written with def"),
    "a built-in": (len, "len is no function that was written with def"),
    "no source": (eval("exec('def f(p, c): return 1') or f"), "the source of the function f is not known"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_cannot_live_in_a_file_of_its_own_is_refused(case: str, tmp_path: Path) -> None:
    function, message = REFUSED[case]
    with pytest.raises(JudgeError, match=message):
        write_judge(function, tmp_path / "mine.py")
    assert not (tmp_path / "mine.py").exists()
