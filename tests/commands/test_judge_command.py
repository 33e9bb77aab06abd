"""`online-dpo judge`: files, figures by hand and against scikit-learn, and VADER from a folder outside the project."""

from __future__ import annotations

import gzip
import json
import math
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called, online_dpo
from hypothesis import given, settings
from hypothesis import strategies as st
from sklearn.metrics import roc_auc_score

from online_dpo.commands.judge import Options, judge_file, show
from online_dpo.data.completion_files import JudgeRow, read_rows
from online_dpo.errors import ConfigError, DataError
from online_dpo.statistics.comparisons import (
    against_gold,
    agreement,
    auc,
    calibration_error,
    comparisons_of,
    describe,
    order_consistency,
)
from online_dpo.types import Verdict


def write(path: Path, *rows: Any) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def test_thoughts_are_not_judged_and_the_answer_is_shown(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(prompt, completion):\n    return len(completion)\n")
    section = {"type": "python", "target": f"{tmp_path}/mine.py:f"}
    view = {"strip": ["think"], "prefilled": True, "unclosed": -1}
    config = tmp_path / "c.yaml"
    judges = {"same": section, "whole": {**section, "view": {}}}
    config.write_text(json.dumps({"judge": {**section, "view": view}, "evaluation": {"judges": judges}}))
    texts = ["so long a thought</think> four", "a thought, and another", "no</think>"]
    rows = write(tmp_path / "rows.jsonl", {"prompt": "Say:", "completions": texts})
    found = judge_file(config, rows, [], Options())
    [prompt] = found["prompts"]
    assert prompt["completions"] == ["four", "", ""]
    assert {v["first"]: v["score"] for v in prompt["verdicts"]} == {0: 4.0, 1: -1.0, 2: 0.0}
    assert found["figures"]["counters"]["num_unclosed_completions"] == 1
    assert "    the thought has no end" in list(show(found, num_prompts=1))
    for name, scores in (
        ("same", {0: 4.0, 1: -1.0, 2: 0.0}),
        ("whole", {i: float(len(t)) for i, t in enumerate(texts)}),
    ):
        [prompt] = judge_file(config, rows, [], Options(judge=name))["prompts"]
        assert {v["first"]: v["score"] for v in prompt["verdicts"]} == scores


# --- rows -------------------------------------------------------------------------------------------------------------


def test_the_forms_of_a_row(tmp_path: Path) -> None:
    chat = [{"role": "user", "content": "hi"}]
    path = write(
        tmp_path / "rows.jsonl",
        {"prompt": "Say:", "completions": ["a", "b"], "best": 1, "topic": "x"},
        {"prompt": chat, "completions": ["c", "d", "e"], "best": [0.5, 0, 2]},
        {"completion": "alone", "best": 0},
    )
    rows = read_rows(path, gold="best")
    assert [row.prompt.content for row in rows] == ["Say:", chat, ""]
    assert [[c.text for c in row.completions] for row in rows] == [["a", "b"], ["c", "d", "e"], ["alone"]]
    assert [row.gold for row in rows] == [(0.0, 1.0), (0.5, 0.0, 2.0), (0.0,)]
    assert [dict(row.prompt.metadata) for row in rows] == [{"topic": "x"}, {}, {}], "the judge never sees the labels"
    assert len(read_rows(path, gold=None, limit=2)) == 2


def test_preference_pairs_come_in_an_order_that_does_not_tell(tmp_path: Path) -> None:
    path = tmp_path / "pairs.jsonl.gz"
    lines = (json.dumps({"prompt": "p", "chosen": "good", "rejected": "bad"}) + "\n" for _ in range(200))
    path.write_bytes(gzip.compress("".join(lines).encode()))
    rows = read_rows(path, gold="chosen")
    for row in rows:
        assert [c.text == "good" for c in row.completions] == [g == 1.0 for g in row.gold or ()]
        assert row.prompt.metadata == {}
    assert 70 < sum(row.completions[0].text == "good" for row in rows) < 130


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{", "line 2 is malformed JSON"),
        ("[1]", "line 2 is a list, but each line is a JSON object"),
        ('{"prompt": "p", "answer": "a"}', "line 2 has the columns prompt, answer; it needs completions"),
        ('{"completions": "a"}', "line 2 has completions that are no texts"),
        ('{"prompt": 3, "completions": ["a"], "best": 1}', "line 2 has a prompt that is neither text nor a list"),
        ('{"completions": ["a", "b"], "best": 2}', "line 2 has 2 in best and 2 completions; gold is a number for each"),
        ('{"completions": ["a", "b"], "best": [1, null]}', "line 2 has [1, null] in best"),
        ('{"completions": ["a", "b"]}', "line 2 has null in best"),
        ('{"completions": ["a", "b"], "best": [1, 1' + "0" * 400 + "]}", "line 2 has [1, 1000"),
    ],
)
def test_rows_that_are_refused(line: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "rows.jsonl"
    path.write_text('{"completions": ["a", "b"], "best": 0}\n' + line + "\n")
    with pytest.raises(DataError) as caught:
        read_rows(path, gold="best")
    assert message in str(caught.value)


# --- figures ----------------------------------------------------------------------------------------------------------


def rows_of(tmp_path: Path, *golds: Any) -> list[JudgeRow]:
    texts = ["bb", "a", "ccc"]
    rows = [{"completions": texts[: len(g)], "gold": g} for g in golds]
    return read_rows(write(tmp_path / "rows.jsonl", *rows), gold="gold")


def score(name: int, first: int, value: float) -> Verdict:
    return Verdict(prompt_id=str(name), first=first, score=value)


def duel(name: int, first: int, second: int, p: float) -> Verdict:
    return Verdict(prompt_id=str(name), first=first, second=second, probability=p)


def test_accuracy_and_calibration_by_hand(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [1, 0, 0], [0, 1], [1, 0], [0, 1], [1, 1])
    said = [
        *(score(1, i, s) for i, s in enumerate([2.0, 0.0, 2.0])),  # right at sigmoid(2), a tie; gold ties 1 and 2
        duel(2, 0, 1, 0.6),  # wrong
        duel(3, 0, 1, 0.9),  # right
        Verdict(prompt_id="4", first=0, second=1, reason="unclear"),
        duel(5, 0, 1, 1.0),  # the labels are equal: not a question
    ]
    found = against_gold(rows, said)
    counts = {k: v for k, v in found.items() if k.startswith("num_")}
    assert counts == {"num_known": 5, "num_right": 2, "num_wrong": 1, "num_tied": 1, "num_abstained": 1}
    assert found["accuracy"] == pytest.approx(2 / 3)
    # Bins of width 0.05: sigmoid(2) = 0.881 and 0.9 are in different ones.
    sure = 1 / (1 + math.exp(-2.0))
    assert found["ece"] == pytest.approx((abs(sure - 1) + abs(0.6 - 0) + abs(0.9 - 1)) / 3)


def test_calibration_error_averages_within_a_bin() -> None:
    assert calibration_error([(0.81, True), (0.84, False), (1.0, True), (0.96, True)]) == pytest.approx(
        (abs(0.81 + 0.84 - 1) + abs(1.96 - 2)) / 4
    )
    assert calibration_error([]) is None


def test_completions_alone_are_read_as_log_odds(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [1], [0], [0], [-1], [1])
    found = against_gold(rows, [score(1, 0, 1.0), score(2, 0, 2.0), score(3, 0, 0.0), score(4, 0, -3.0)])
    assert (found["num_right"], found["num_wrong"], found["num_tied"], found["num_abstained"]) == (2, 1, 1, 1)
    assert found["auc"] == pytest.approx(2 / 3)


@given(st.lists(st.tuples(st.integers(-3, 3).map(float), st.booleans()), min_size=1, max_size=30))
@settings(max_examples=100, deadline=None)
def test_auc_is_scikit_learn_s(labelled: list[tuple[float, bool]]) -> None:
    found = auc(labelled)
    if len({label for _, label in labelled}) < 2:
        assert found is None
    else:
        assert found == pytest.approx(roc_auc_score([y for _, y in labelled], [s for s, _ in labelled]))


def test_biases_ties_and_agreement_by_hand(tmp_path: Path) -> None:
    rows = rows_of(tmp_path, [1, 0, 0], [1, 0])
    said = [duel(1, 0, 1, 0.9), duel(1, 0, 2, 0.5), duel(1, 1, 2, 0.8), Verdict(prompt_id="2", first=0, reason="hm")]
    said.append(Verdict(prompt_id="2", first=1, reason="OSError", abstention="failed"))
    found = describe(rows, said)
    assert (found["num_comparisons"], found["num_decided"], found["num_tied"]) == (4, 2, 1)
    assert (found["num_abstained"], found["num_failed"]) == (2, 1)
    assert found["reasons"] == {"hm": 1, "failed: OSError": 1}
    assert (found["first_wins"], found["longer_wins"]) == (1.0, 0.5)  # "bb" beats "a", "a" beats "ccc"
    other = [duel(1, 0, 1, 0.1), duel(1, 0, 2, 0.5), duel(1, 1, 2, 0.7)]
    assert agreement(comparisons_of(rows, said), comparisons_of(rows, other)) == (2 / 3, 3)
    both = [duel(1, 0, 1, 0.9), duel(1, 1, 0, 0.6), duel(1, 0, 2, 0.9), duel(1, 2, 0, 0.3), duel(1, 1, 2, 0.5)]
    assert order_consistency(both) == (0.5, 2)


# --- the command ------------------------------------------------------------------------------------------------------

JUDGES = """
from judges import Abstain, StopJudging
class Once:
    calls = 0
    async def score(self, prompt, completion):
        Once.calls += 1
        if Once.calls > 6:
            raise StopJudging("the budget is spent")
        return 1.0
class First:
    def compare(self, prompt, a, b): return 0.9
def length(prompt, completion):
    return Abstain("empty") if not completion else float(len(completion))
"""


def test_the_report_names_a_judge_s_faults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "mine.py").write_text(JUDGES)
    rows = write(tmp_path / "rows.jsonl", *({"prompt": "p", "completions": ["a", "b" * n]} for n in range(2, 6)))
    judges = {"first": {"type": "python", "target": "mine.py:First"}}
    judges["both"] = {**judges["first"], "both_orders": True}
    judges["once"] = {"type": "python", "target": "mine.py:Once", "concurrency": 1}
    judges["long"] = {"type": "python", "target": "mine.py:length"}
    config = tmp_path / "judges.yaml"
    config.write_text(json.dumps({"evaluation": {"judges": judges}}))

    def figures(name: str, **options: Any) -> dict[str, Any]:
        report = judge_file(config, rows, [], Options(judge=name, **options))
        assert "counters: num_judge_calls" in "\n".join(show(report, num_prompts=1))
        return report["figures"]

    placed = figures("first", swap=True, repeat=True)
    assert (placed["first_wins"], placed["swap_agreement"], placed["repeat_agreement"]) == (1.0, (0.0, 4), (1.0, 4))
    both = figures("both", swap=True)
    assert (both["order_consistency"], both["num_tied"], both["swap_agreement"]) == ((0.0, 4), 4, (1.0, 4))
    long = figures("long", swap=True)
    assert (long["longer_wins"], long["swap_agreement"]) == (1.0, (1.0, 4))
    once = figures("once")  # two calls for the trial, four for the first two prompts
    assert (once["stopped"], once["num_verdicts"], once["num_failed"]) == ("the budget is spent", 4, 0)
    with pytest.raises(ConfigError, match="has no judge section"):
        judge_file(config, rows, [], Options())
    with pytest.raises(
        ConfigError, match=r"--judge gold is none of evaluation\.judges; they are: first, both, once, long"
    ):
        judge_file(config, rows, [], Options(judge="gold"))


VADER = """
from vaderSentiment.vaderSentiment import SentimentIntensityAnalyzer
analyzer = SentimentIntensityAnalyzer()
def score(prompt, completion):
    return analyzer.polarity_scores(completion)["compound"]
"""
KIND = ["A wonderful, moving film.", "I loved every minute of it!", "Great acting and a clever, happy end."]
UNKIND = ["A horrible waste of time.", "I hated it: boring and ugly.", "Awful, stupid, and badly acted."]


def test_vader_from_a_folder_outside_the_project(tmp_path: Path) -> None:
    (tmp_path / "vader.py").write_text(VADER)
    (tmp_path / "vader.yaml").write_text('judge: {type: python, target: "vader.py:score"}\n')
    pairs = ({"prompt": "The film:", "chosen": c, "rejected": r} for c in KIND for r in UNKIND)
    write(tmp_path / "pairs.jsonl", *pairs)
    done = online_dpo("judge", "vader.yaml", "pairs.jsonl", "--gold", "chosen", "--show", "1", cwd=tmp_path)
    assert done.code == 0, done
    assert "against gold: accuracy 100.0 % (9 right, 0 wrong, 0 ties, 0 abstained of 9)" in done.out
    report = called("judge", "vader.yaml", "pairs.jsonl", "--gold", "chosen", "--json", cwd=tmp_path)
    figures = json.loads(report.out)["figures"]
    assert (figures["gold"]["num_right"], figures["counters"]["num_judge_calls"]) == (9, 9)
    wrong = called("judge", "vader.yaml", "pairs.jsonl", "judge.target=vader.py:scor", cwd=tmp_path)
    assert wrong.refusal == "judge.target vader.py:scor: vader.py has nothing named scor; did you mean score?"
