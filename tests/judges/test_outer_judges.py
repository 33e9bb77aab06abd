"""Judges made of judges: ensembles, steps, wrappers; by hand, under missing opinions, and in any order."""

from __future__ import annotations

import asyncio
import itertools
import math
from pathlib import Path
from typing import Any

import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from judge_kit import ask, brief, caller_of, python, question

from actors.resources import cpus_needed
from judges.outer.ensemble import Ensemble
from judges.protocol import Question
from judges.trial import try_judges
from online_dpo.commands.preparing.provenance import source_files
from online_dpo.config.judges.section import EnsembleJudge, hosted_judges
from online_dpo.config.loading import load_config, load_judges
from online_dpo.config.threads import keep_recorded_threads, resolve_threads
from online_dpo.errors import ConfigError, JudgeError
from online_dpo.pairing.opinions import Opinion
from online_dpo.types import Verdict

SOURCE = """
from judges import Abstain
TABLE = {"x": (1.0, 4.0, 2.0), "y": (2.0, 2.0, 2.0), "z": (6.0, None, 2.0)}
def at(column):
    def score(prompt, completion):
        value = TABLE[completion][column]
        return Abstain(f"no {column} for {completion}") if value is None else value
    return score
a, b, c = at(0), at(1), at(2)
def boom(prompt, completion):
    raise OSError("down")
class Longer:
    def compare(self, prompt, a, b):
        return 0.9 if len(a) > len(b) else 0.2
class Asked:
    async def judge(self, questions):
        return [[q.score(i, float(len(c))) for i, c in enumerate(q.completions)] for q in questions]
calls = 0
def flaky(prompt, completion):
    global calls
    calls += 1
    if calls == 1:
        raise ConnectionError("busy")
    return 3.0
def odds(prompt, completion):
    return 1.0 / len(completion)
def steps(prompt, completion):
    if "bad" in completion:
        raise OSError("down")
    return Abstain("unclear") if "hm" in completion else float(len(completion))
"""
THREE = {"a": python("a"), "b": python("b"), "c": python("c")}
ROOT2 = math.sqrt(2.0)


def ensemble(**more: Any) -> dict[str, Any]:
    return {"type": "ensemble", "judges": THREE, **more}


@pytest.mark.parametrize(
    ("options", "x", "y"),
    [
        # x: 1, 4, 2 has mean 7/3 and variance 14/9; y: all 2.
        ({}, (7 / 3, math.sqrt(14) / 3), (2.0, 0.0)),
        ({"aggregate": "min"}, (1.0, math.sqrt(14) / 3), (2.0, 0.0)),
        ({"aggregate": "pessimistic", "k": 2.0}, (7 / 3 - 2 * math.sqrt(14) / 3, math.sqrt(14) / 3), (2.0, 0.0)),
        # (2 * 1 + 1 * 4 + 1 * 2) / 4 = 2; variance (2 * 1 + 4 + 0) / 4
        ({"aggregate": "weighted", "weights": {"a": 2, "b": 1, "c": 1}}, (2.0, math.sqrt(1.5)), (2.0, 0.0)),
    ],
)
def test_scores_by_hand(options: dict[str, Any], x: Any, y: Any, tmp_path: Path) -> None:
    (said,), counts = ask(caller_of(tmp_path, ensemble(**options), SOURCE), question("x", "y"))
    found = [(v.score, v.uncertainty) for v in said]
    assert found[0] == pytest.approx(x) and found[1] == pytest.approx(y)
    # a prefers y, b prefers x, c ties: no two of the three agree.
    assert (counts["num_member_comparisons"], counts["num_member_agreements"]) == (3, 0)
    assert counts["num_judge_calls"] == 3


def test_scores_of_a_prompt_are_made_by_the_same_judges(tmp_path: Path) -> None:
    """b is silent about z. Averaging z without it would compare 4 = (6 + 2) / 2 with sums that have b in them."""
    (said,), _ = ask(caller_of(tmp_path, ensemble(quorum=2), SOURCE), question("x", "y", "z"))
    assert brief(said) == [1.5, 2.0, 4.0], "two judges are enough: b is left out of the whole prompt"
    (said,), _ = ask(caller_of(tmp_path, ensemble(quorum=3), SOURCE), question("x", "y", "z"))
    assert brief(said)[:2] == pytest.approx([7 / 3, 2.0])
    assert brief(said)[2] == "2 of 3 judges have an opinion, the quorum is 3 (b: no 1 for z)"


def test_a_judge_that_is_down_is_missing_and_below_the_quorum_it_is_a_failure(tmp_path: Path) -> None:
    judges = {"a": python("a"), "down": python("boom", retries=1), "off": python("boom", retries=0)}
    (said,), counts = ask(caller_of(tmp_path, ensemble(judges=judges, quorum=1), SOURCE), question("x", "y"))
    assert brief(said) == [1.0, 2.0]
    assert counts["num_member_failures"] == 2
    assert (counts["num_judge_calls"], counts["num_judge_retries"]) == (1 + 2 + 1, 1), "each by its own rules"
    (said,), _ = ask(caller_of(tmp_path, ensemble(judges=judges), SOURCE), question("x", "y"))
    assert all(v.failed for v in said)
    assert brief(said)[0] == (
        "failed: 1 of 3 judges have an opinion, the quorum is 2 (down: OSError: down; off: OSError: down)"
    )


def test_one_judge_s_passing_fault_asks_only_that_judge_again(tmp_path: Path) -> None:
    judges = {"a": python("a"), "f": python("flaky", retries=2)}
    (said,), counts = ask(caller_of(tmp_path, ensemble(judges=judges), SOURCE), question("x"))
    assert brief(said) == [2.0]
    assert (counts["num_judge_calls"], counts["num_judge_retries"]) == (3, 1)


@pytest.mark.parametrize(
    ("aggregate", "p", "spread"),
    [
        # a says sigmoid(1 - 2), b sigmoid(4 - 2), Longer("x", "yy") 0.2.
        ("mean", (1 / (1 + math.e) + 1 / (1 + math.exp(-2)) + 0.2) / 3, None),
        ("majority", 1 / 3, ROOT2 / 3),
        ("min", 0.5, None),  # they disagree, so none is cautious
    ],
)
def test_judges_that_score_and_compare_meet_in_preferences(
    aggregate: str, p: float, spread: float | None, tmp_path: Path
) -> None:
    judges = {"a": python("a"), "b": python("b"), "l": python("Longer")}
    source = SOURCE.replace('"y": (', '"yy": (')
    (said,), _ = ask(caller_of(tmp_path, ensemble(judges=judges, aggregate=aggregate), source), question("x", "yy"))
    assert [(v.first, v.second) for v in said] == [(0, 1)]
    assert said[0].probability == pytest.approx(p)
    assert spread is None or said[0].uncertainty == pytest.approx(spread)


@given(
    table=st.lists(
        st.lists(st.sampled_from([-2.0, 0.0, 0.5, 3.0, None]), min_size=3, max_size=3), min_size=3, max_size=3
    ),
    pairwise=st.booleans(),
    aggregate=st.sampled_from(["mean", "majority", "min", "pessimistic"]),
)
@example([(-2.0, -2.0, None), (0.0, -2.0, 3.0), (3.0, -2.0, 0.0)], True, "mean")  # opposite opinions, 1e-16 apart
@settings(max_examples=150, deadline=None)
def test_the_order_of_completions_never_changes_who_is_chosen(
    table: list[tuple[float | None, ...]], pairwise: bool, aggregate: Any
) -> None:
    """`table[judge][completion]`; each judge says the same of a completion wherever it stands."""

    class Member:
        def __init__(self, scores: tuple[float | None, ...]) -> None:
            self.scores = scores

        async def ask(self, questions: list[Question], measured: Any) -> list[list[Verdict]]:
            return [self.answer(q) for q in questions]

        def answer(self, q: Question) -> list[Verdict]:
            values = [self.scores[int(text)] for text in q.completions]
            if not pairwise:
                return [q.abstain(i, "?") if v is None else q.score(i, v) for i, v in enumerate(values)]
            return [
                q.abstain(i, "?", second=j)
                if (a := values[i]) is None or (b := values[j]) is None
                else q.compare(i, j, 1 / (1 + math.exp(b - a)))
                for i, j in itertools.combinations(range(3), 2)
            ]

    judges = {name: {"type": "python", "target": "m:f"} for name in "abc"}
    section = EnsembleJudge(type="ensemble", judges=judges, aggregate=aggregate)
    judge = Ensemble(section, {name: Member(row) for name, row in zip("abc", table, strict=True)}, field="judge")  # type: ignore[misc]

    def preferences(order: tuple[str, ...]) -> dict[tuple[str, str], Any]:
        (said,) = asyncio.run(judge.judge([question(*order)]))
        opinion = Opinion(said, range(3))
        found = {}
        for i, j in itertools.permutations(range(3), 2):
            p = opinion.preference(i, j)
            found[order[i], order[j]] = None if p is None else (p.is_strict, p.reversed().is_strict)
        return found

    assert preferences(("0", "1", "2")) == preferences(("2", "0", "1"))


# --- steps ------------------------------------------------------------------------------------------------------------


def process(**more: Any) -> dict[str, Any]:
    return {"type": "process", "judge": python("steps"), "split": r"\n", **more}


@pytest.mark.parametrize(
    ("options", "value"),
    [
        ({"aggregate": "min", "sees": "step"}, 1.0),
        ({"aggregate": "mean", "sees": "step"}, 2.0),
        ({"aggregate": "last", "sees": "step"}, 3.0),
        ({"aggregate": "min"}, 2.0),  # prefixes "aa", "aa\nb", "aa\nb\n\nccc"
        ({"aggregate": "mean"}, (2 + 4 + 9) / 3),
        ({"aggregate": "last"}, 9.0),
        ({"aggregate": "product", "sees": "step", "judge": python("odds")}, 1 / 6),
    ],
)
def test_steps_by_hand(options: dict[str, Any], value: float, tmp_path: Path) -> None:
    caller = caller_of(tmp_path, process(**options), SOURCE)
    said, _ = ask(caller, question("aa\nb\n\nccc", "\n \n"), question("dd", name="q"))
    assert brief(said[0]) == [pytest.approx(value), "the completion has no step"]
    assert brief(said[1]) == [0.5 if "judge" in options else 2.0]


def test_a_step_that_is_not_scored_leaves_its_completion_without_a_score(tmp_path: Path) -> None:
    caller = caller_of(tmp_path, process(sees="step", judge=python("steps", retries=0)), SOURCE)
    (said,), _ = ask(caller, question("one\nhm", "one\nbad", "one"))
    assert brief(said) == ["step 2: unclear", "failed: step 1: OSError: down", 3.0]
    assert [v.failed for v in said] == [False, True, False]
    (said,), _ = ask(caller_of(tmp_path, process(judge=python("Longer"))), question("one\ntwo"))
    assert said[0].failed and "judge.judge compares completions" in brief(said)[0]


def test_a_pattern_between_steps_that_hangs_costs_one_completion(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("judges.outer.process.TIMEOUT_S", 0.3)
    monkeypatch.setattr("judges.isolation.process.GRACE_S", 0.1)
    caller = caller_of(tmp_path, process(split=r"((?:\d+,?)+) dollars"), SOURCE)
    (said,), _ = ask(caller, question("aa", "1" * 40, "bbb"))
    late = "failed: judge.split found no steps: TimeoutError: not done within 0.3 s"
    assert brief(said) == [2.0, late, 3.0]


# --- wrappers ---------------------------------------------------------------------------------------------------------


def test_length_penalties_by_hand(tmp_path: Path) -> None:
    penalty = {"type": "length_penalty", "rate": 0.5, "free": 1}
    (said,), _ = ask(caller_of(tmp_path, {**penalty, "judge": python("Asked")}, SOURCE), question("a b c", "dd"))
    assert brief(said) == [5 - 0.5 * 2, 2.0]
    (said,), _ = ask(caller_of(tmp_path, {**penalty, "judge": python("Longer")}), question("a b c", "dd"))
    assert brief(said) == [pytest.approx(1 / (1 + math.exp(-(math.log(9) - 1.0))))]
    letters = {**penalty, "unit": "characters", "judge": python("Asked")}
    assert brief(ask(caller_of(tmp_path, letters), question("a b c"))[0][0]) == [5 - 0.5 * 4]


@pytest.mark.parametrize(
    ("options", "values"),
    [
        ({"shift": 2.0, "scale": 4.0}, [-0.25, 0.0, 0.25]),
        ({"clip": [1.5, 2.5]}, [1.5, 2.0, 2.5]),
        ({"shift": 2.0, "clip": [-0.5, 10.0]}, [-0.5, 0.0, 1.0]),
        ({"method": "z_score"}, [-math.sqrt(1.5), 0.0, math.sqrt(1.5)]),
        ({"method": "rank"}, [0.0, 0.5, 1.0]),
    ],
)
def test_normalising_by_hand(options: dict[str, Any], values: list[float], tmp_path: Path) -> None:
    judge = {"type": "normalise", "judge": python("Asked"), **options}
    caller = caller_of(tmp_path, judge, SOURCE)
    alone, _ = ask(caller, question("a", "bb", "ccc"))
    assert brief(alone[0]) == pytest.approx(values)
    beside, _ = ask(caller, question("x" * 50, "y" * 90, name="q"), question("a", "bb", "ccc"))
    assert brief(beside[1]) == brief(alone[0]), "what else is judged does not matter"
    if "method" in options:
        assert len(set(brief(ask(caller, question("aaa", "bbb", "ccc"))[0][0]))) == 1


def test_uncertainty_is_scaled_with_its_score(tmp_path: Path) -> None:
    judge = {"type": "normalise", "judge": ensemble(), "scale": 2.0}
    (said,), _ = ask(caller_of(tmp_path, judge, SOURCE), question("x"))
    assert (said[0].score, said[0].uncertainty) == pytest.approx((7 / 6, math.sqrt(14) / 6))


# --- config, trial, resources -----------------------------------------------------------------------------------------

NESTED = {"type": "ensemble", "judges": {"one": python("a"), "two": {"type": "cached", "judge": python("b")}}}


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"judges": {"one": python("a", tone=1), "two": python("b")}}, "judge.judges.one.tone is not a known key"),
        (
            {"judges": {"one": python("a"), "two": {"type": "cached", "judge": {"type": "pyton"}}}},
            "judge.judges.two.judge.type is pyton; it must be one of reward_model, python,",
        ),
        ({"judges": {"one": python("a")}}, "judge judges has 1 judge; an ensemble has at least 2"),
        ({"quorum": 3}, "judge quorum is 3 and there are 2 judges"),
        ({"aggregate": "weighted"}, "judge weights is missing and aggregate is weighted"),
        ({"aggregate": "weighted", "weights": {"one": 1}}, "judge weights names one and judges one, two"),
        ({"k": 1.0}, "judge k is 1.0 and aggregate is mean"),
        ({"num_cpus": 1}, "judge.num_cpus is not a known key"),
    ],
)
def test_errors_name_the_path_of_the_field(change: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load_judges({"judge": {**NESTED, **change}})
    assert str(caught.value).startswith(message)


@pytest.mark.parametrize(
    ("judge", "message"),
    [
        (ensemble(judges={**THREE, "d": python("nothing")}), "judge.judges.d.target mine.py:nothing: mine.py has"),
        (ensemble(judges={**THREE, "d": python("boom")}), "judge.judges.d.target mine.py:boom was tried on two canned"),
        ({"type": "cached", "judge": python("boom")}, "judge.judge.target mine.py:boom was tried"),
        (
            {"type": "normalise", "judge": python("Longer")},
            "judge (normalise) was tried on two canned completions and ",
        ),
        (
            process(judge=python("Longer")),
            "judge (process) was tried on two canned completions and failed: step 1: JudgeError: returned no verdict",
        ),
        (
            process(judge=python("Asked"), aggregate="product"),
            "judge (process) was tried on two canned completions and ",
        ),
    ],
)
def test_the_trial_names_the_judge_that_is_wrong(judge: dict[str, Any], message: str, tmp_path: Path) -> None:
    source = SOURCE.replace("TABLE[completion]", "TABLE.get(completion, (1.0, 1.0, 1.0))")
    with pytest.raises(JudgeError) as caught:
        asyncio.run(try_judges(caller_of(tmp_path, judge, source), chat=False))
    assert str(caught.value).startswith(message)


def test_reservations_add_up_and_threads_are_recorded_for_each(tmp_path: Path) -> None:
    judge = {
        "type": "ensemble",
        "judges": {
            "one": python("a", num_cpus=0.5, num_gpus=0.25, timeout_s=5.0),
            "two": {"type": "cached", "judge": python("b", num_cpus=2, threads=3, timeout_s=7.0)},
        },
    }
    whole = {"model": {"path": "embedded:policy"}, "prompts": {"source": "embedded:openings/train"}, "judge": judge}
    config = load_config(whole)
    assert config.judge is not None and config.judge.type == "ensemble"
    assert (config.judge.num_cpus, config.judge.num_gpus, config.judge.timeout_s) == (2.5, 0.25, 12.0)
    assert cpus_needed(config) == 2 + 2.5
    settled = resolve_threads(config)
    threads = {field: section.threads for field, section in hosted_judges(settled.judge, "judge")}
    assert threads["judge.judges.two.judge"] == 3 and isinstance(threads["judge.judges.one"], int)
    assert settled.judge.threads == max(threads.values())
    assert keep_recorded_threads(config, settled).judge == settled.judge
    assert source_files(config)["judge.judges.two.judge.target"] == "mine.py"
