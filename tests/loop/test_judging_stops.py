"""A judge that stops in the middle of a shard: what it said is kept, and its continuation asks only for the rest."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from loop_kit import Tape
from loop_runs import Run, comparable
from pydantic import TypeAdapter
from stopping_kit import Stingy
from verdict_kit import answers, brief, shard_of

from actors.judge_host import JudgeHost
from judges.registry import make_spec
from online_dpo.config.judges.section import JudgeSection
from online_dpo.errors import JudgingStopped
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import counted_so_far

GOLD = {"gold": {"type": "python", "target": "none:none"}}


@pytest.mark.parametrize("questions", [1, 3])
def test_a_run_that_stops_and_goes_on_equals_one_that_never_stopped(questions: int, tmp_path: Path) -> None:
    whole = Run.of(tmp_path, "whole", evaluation__judges=GOLD)
    whole_stages = Stingy(whole.config)
    whole.go_on(whole_stages)
    stopping = whole.at(tmp_path / "stopping")
    said: Counter[tuple[str, str]] = Counter()
    stops = 0
    while True:
        stages = Stingy(whole.config, questions=questions, tape=Tape())
        try:
            stopping.go_on(stages)
            break
        except JudgingStopped as error:
            stops += 1
            assert str(error) in {f"round {r}: judge {j} is tired" for r in (1, 2) for j in ("reward", "gold")}
            assert stages.left == 0, "all that it could say was asked"
        finally:
            said += stages.said
        with RunStore.read(stopping.path) as store:
            counted = counted_so_far(store, ["reward", "gold"], ["heldout"])
        assert {j: c.get("num_judge_calls", 0) for j, c in counted.items()} == {
            j: sum(n for (judge, _), n in said.items() if judge == j) for j in ("reward", "gold")
        }
    total = sum(whole_stages.said.values())
    assert stops == (total - 1) // questions
    assert said == whole_stages.said, "nothing was asked twice, and nothing was left out"
    assert comparable(stopping.path) == comparable(whole.path)
    assert not list(stopping.path.rglob("parts*/*"))


TIRED = """
from judges import Limits, StopJudging, count
asked = []
class Tired:
    limits = Limits(questions_per_call=1, calls_in_flight=1, own_retries=True)
    def __init__(self, after=2):
        self.after = after
    async def judge(self, questions):
        count("num_paid", len(questions))
        [q] = questions
        asked.append(q.prompt_id)
        if len(set(asked)) > self.after:
            raise StopJudging("no more today")
        if q.completions[0] == "broken":
            raise OSError("broken")
        return [[q.score(i, float(len(text))) for i, text in enumerate(q.completions)]]
def brevity(prompt, completion):
    return -float(len(completion))
"""


def host_of(tmp_path: Path, section: dict[str, Any], **hosting: Any) -> JudgeHost:
    (tmp_path / "tired.py").write_text(TIRED)
    parsed: Any = TypeAdapter(JudgeSection).validate_python(section)
    return JudgeHost(make_spec(parsed, field="judge", base_dir=tmp_path), **hosting)


PLAIN = {"type": "python", "target": "tired.py:Tired"}
BRIEF = {"type": "python", "target": "tired.py:brevity"}
GIVEN = [*answers("p", "a", "bb"), *answers("q", "ccc", "d"), *answers("r", "e", "ff"), *answers("s", "g", "hh")]


@pytest.mark.parametrize(
    ("section", "scores"),
    [
        (PLAIN, (1.0, 2.0, 3.0, 1.0)),
        ({"type": "ensemble", "quorum": 1, "judges": {"tired": PLAIN, "brief": BRIEF}}, (0.0, 0.0, 0.0, 0.0)),
        ({"type": "process", "judge": {**PLAIN, "args": {"after": 4}}}, (1.0, 2.0, 3.0, 1.0)),
        ({"type": "cached", "judge": PLAIN, "path": "cache.sqlite"}, (1.0, 2.0, 3.0, 1.0)),
        ({"type": "length_penalty", "judge": PLAIN, "rate": 1.0}, (0.0, 1.0, 2.0, 0.0)),
        ({"type": "normalise", "judge": PLAIN, "scale": 2.0}, (0.5, 1.0, 1.5, 0.5)),
    ],
)
def test_what_was_not_asked_has_no_verdict_in_any_judge_made_of_others(
    section: dict[str, Any], scores: tuple[float, ...], tmp_path: Path
) -> None:
    judged = asyncio.run(host_of(tmp_path, section).judge_shard(shard_of("p", "q", "r", "s"), GIVEN))
    assert judged.stopped == "no more today"
    places = [("p", 0), ("p", 1), ("q", 0), ("q", 1)]
    assert brief(judged.verdicts) == [(*place, None, score) for place, score in zip(places, scores, strict=True)]
    assert judged.counters["num_judge_failures"] == 0
    assert judged.counters["num_paid"] >= 4, "what was counted before it stopped is not lost"
    if section["type"] == "cached":  # another run pays for the rest alone
        judged = asyncio.run(host_of(tmp_path, section).judge_shard(shard_of("p", "q", "r", "s"), GIVEN))
        assert judged.stopped is None and len(judged.verdicts) == 8
        assert (judged.counters["num_cache_hits"], judged.counters["num_paid"]) == (2, 2)


def test_a_judge_with_retries_of_its_own_is_called_once_and_without_a_limit_of_time(tmp_path: Path) -> None:
    host = host_of(tmp_path, {**PLAIN, "args": {"after": 9}, "retries": 5, "timeout_s": 1e-9})
    judged = asyncio.run(host.judge_shard(shard_of("p", "q"), [*answers("p", "broken", "a"), *answers("q", "b", "cc")]))
    failed = "failed: OSError: broken"
    assert [(v.score, v.explanation) for v in judged.verdicts] == [
        (None, failed),
        (None, failed),
        (1.0, None),
        (2.0, None),
    ]
    assert (judged.counters["num_judge_calls"], judged.counters["num_judge_retries"]) == (2, 0)
