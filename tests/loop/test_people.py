"""People as a judge in the loop: what they are asked, what a kill or a pause leaves, and what their votes become."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from loop_runs import Run, comparable, records
from people_kit import HUMAN, answer, likes

from online_dpo.loop.people.leaving import awaited
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits
from online_dpo.types import Pair


def until_done(run: Run, *, at_most: int = 9) -> list[int]:
    """Go on and let one person answer in turns; how many questions each turn had."""
    turns = []
    for _ in range(at_most):
        if run.go_on().events[-1].kind == "run_done":
            return turns
        turns.append(len(answer(run.path)))
    raise AssertionError("the run never ended")


def without_people(path: Path) -> dict[str, Any]:
    return {name: value for name, value in comparable(path).items() if not name.startswith("annotation/")}


def test_the_training_judge_asks_all_shards_leaves_and_goes_on(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge=HUMAN, evaluation={})
    left = run.go_on()
    assert [event.kind for event in left.events].count("judging_started") == 2 and left.events[-1].kind == "run_left"
    with RunStore.read(run.path) as store:
        assert len(awaited(store) or ()) == left.events[-1].data["num_questions"] == 12, "4 prompts, 3 of 3 pairs"
        assert store.round(0).names("verdicts/") == []
    assert run.go_on().tape.calls("sample", "judge") == [], "all is sampled, and nothing else is asked"
    assert len(answer(run.path)) == 12
    assert until_done(run) == [12]
    with RunStore.read(run.path) as store:
        store.verify()
        for index in (0, 1):
            for pair in store.round(index).get_records("pairs", Pair):
                assert likes(pair.chosen.text) > likes(pair.rejected.text)
            for shard in (0, 1):
                judged = ShardCommits(store.round(index)).verdicts(shard, Asked())
                said = {(v.prompt_id, v.first, v.second) for v in judged.verdicts}
                assert {(v.prompt_id, v.first, v.second) for v in judged.votes} == said and len(said) == 6
                assert all(vote.counts and vote.annotator.startswith("annotator-") for vote in judged.votes)
    summaries = [record for record in records(run.path) if record["kind"] == "round_done"]
    people = summaries[0]["judges"]["reward"]["people"]
    assert (people["num_questions"], people["num_votes"]) == (12, 12) and people["alpha"] is None
