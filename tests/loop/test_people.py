"""People as a judge in the loop: what they are asked, what a kill or a pause leaves, and what their votes become."""

from __future__ import annotations

import re
import shutil
import time
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar

import pytest
from crashing_disk import EVERY, instants
from kill_kit import event_kinds
from loop_kit import FakeGenerator, FakeStages
from loop_runs import Kill, Run, comparable, records
from pairing_kit import completion
from people_kit import HUMAN, answer, better, likes, opened, sign_up

from online_dpo.annotation.store import FILE
from online_dpo.commands.status import read_status
from online_dpo.loop.people import asking
from online_dpo.loop.people.comparisons import compared, verdicts_of
from online_dpo.loop.people.leaving import MARK, awaited
from online_dpo.loop.stages import Event
from online_dpo.reports.listening import Listener
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits
from online_dpo.types import Completion, Pair

TWO_SETS = {
    "sets": {name: {"source": "heldout.jsonl", "count": count} for name, count in (("a", 2), ("b", 3))},
    "judges": {"people": HUMAN},
}
UNCERTAIN = {"strategy": "uncertain", "budget": 3, "annotator": HUMAN}


def until_done(run: Run, *, at_most: int = 9) -> list[int]:
    """Go on and let one person answer, in turns; how many questions each turn had."""
    turns = []
    for _ in range(at_most):
        if run.go_on().events[-1].kind == "run_done":
            return turns
        turns.append(len(answer(run.path)))
    raise AssertionError("the run never ended")


def told(path: Path) -> dict[str, Any]:
    """What is equal in two runs in which people said the same: who said it, and when, is not."""
    found = {}
    for name, content in comparable(path).items():
        if name.startswith("annotation/") or ".votes." in name:
            continue
        if name == "metrics.jsonl":
            content = [_without_people(record) for record in content]
        if re.fullmatch(r"rounds/\d+/.*(verdicts[^/]*/.*\.sha256|summary\.(json|sha256))", name):
            content = b""  # digests of votes, and their seconds
        found[name] = content
    return found


def _without_people(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {k: _without_people(v) for k, v in value.items() if k not in ("people", "first_wins", "first_wins_z")}
    return value


def summaries(run: Run) -> list[dict[str, Any]]:
    return [record for record in records(run.path) if record["kind"] == "round_done"]


def test_the_training_judge_asks_about_all_shards_leaves_and_goes_on(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge=HUMAN, evaluation={})
    left = run.go_on()
    assert [event.kind for event in left.events].count("judging_started") == 2 and left.events[-1].kind == "run_left"
    with RunStore.read(run.path) as store:
        assert len(awaited(store) or ()) == left.events[-1].data["num_questions"] == 12, "4 prompts, 3 of 3 pairs"
        assert store.round(0).names("verdicts/") == []
    assert run.go_on().tape.calls("sample", "judge") == [], "all is sampled, and no other judge is asked"
    first = answer(run.path)
    assert len(first) == 12
    assert until_done(run) == [12]
    asked = [question.question_id for question in first]
    with opened(run.path) as annotation, RunStore.read(run.path) as store:
        assert len(annotation.questions()) == len(annotation.votes()) == 24, "nobody is asked twice"
        store.verify()
        assert store.round(1).names(MARK) == []
        for index in (0, 1):
            for pair in store.round(index).get_records("pairs", Pair):
                assert likes(pair.chosen.text) > likes(pair.rejected.text)
            for shard in (0, 1):
                judged = ShardCommits(store.round(index)).verdicts(shard, Asked())
                said = {(v.prompt_id, v.first, v.second) for v in judged.verdicts}
                assert {(v.prompt_id, v.first, v.second) for v in judged.votes} == said and len(said) == 6
                assert all(vote.counts and vote.annotator.startswith("annotator-") for vote in judged.votes)
                assert index or {vote.question_id for vote in judged.votes} <= set(asked)
    people = summaries(run)[0]["judges"]["reward"]["people"]
    assert (people["num_questions"], people["num_votes"], people["alpha"]) == (12, 12, None)


def test_a_run_that_waits_goes_on_by_itself(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch votes that are looked at once, and an answered shard that waits for nothing."""
    monkeypatch.setattr(asking, "POLL_S", 0.001)
    run = Run.of(tmp_path, judge={**HUMAN, "wait": True}, evaluation={})

    class Answering(Listener):
        heard: ClassVar[list[int]] = []

        def hear(self, event: Event) -> None:
            if event.kind == "people_asked":
                self.heard.append(event.data["num_missing_votes"])
                answer(run.path, at_most=5)

    whole = run.go_on(listeners=[Answering()])
    assert whole.events[-1].kind == "run_done" and Answering.heard == [12, 7, 2] * 2
    leaving = Run.of(tmp_path, "leaving", judge=HUMAN, evaluation={})
    assert until_done(leaving) == [12, 12]
    assert _without_config(told(leaving.path)) == _without_config(told(run.path)), "waiting or leaving is all one"


def _without_config(files: dict[str, Any]) -> dict[str, Any]:
    return {name: content for name, content in files.items() if name.startswith(("rounds/", "metrics"))}


@EVERY
@pytest.mark.parametrize("role", ["judge", "annotator", "evaluation"])
def test_a_kill_at_any_event_loses_no_vote_and_asks_nothing_twice(every: bool, role: str, tmp_path: Path) -> None:
    sections: dict[str, Any] = {
        "judge": {"judge": HUMAN, "evaluation": {}},
        "annotator": {"pairing": UNCERTAIN, "evaluation": {}},
        "evaluation": {"evaluation": _here(tmp_path, TWO_SETS)},
    }[role]
    run = Run.of(tmp_path, run__rounds=1, **sections)
    processes: list[list[Event]] = []
    while not processes or processes[-1][-1].kind != "run_done":
        if processes:
            answer(run.path)
            shutil.copytree(run.path, tmp_path / f"before-{len(processes)}")
        processes.append(run.go_on().events)
    with opened(run.path) as annotation:
        asked = Counter(question.question_id for question in annotation.questions())
    expected, found = told(run.path), []
    for process, events in enumerate(processes):
        for number in instants(event_kinds(events), every=every):
            killed = run.at(tmp_path / f"killed-{process}-{number}")
            if process:
                shutil.copytree(tmp_path / f"before-{process}", killed.path)
            with pytest.raises(Kill):
                killed.go_on(kill_at=number)
            if (killed.path / FILE).exists():
                answer(killed.path, at_most=3)  # while the run is down
            until_done(killed)
            with opened(killed.path) as annotation:
                assert Counter(vote.question_id for vote in annotation.votes()) == asked
            found.append((process, number, told(killed.path) == expected))
    assert len(found) > 15 and [place for *place, is_same in found if not is_same] == []


def _here(folder: Path, section: dict[str, Any]) -> dict[str, Any]:
    sets = {name: {**found, "source": str(folder / found["source"])} for name, found in section["sets"].items()}
    return {**section, "sets": sets}


def test_evaluation_judges_compare_with_the_initial_policy_on_all_sets_at_once(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=1, evaluation=_here(tmp_path, TWO_SETS))
    left = run.go_on()
    assert left.events[-1].data == {"num_questions": 5, "num_missing_votes": 5}, (
        "both sets, and the initial policy none"
    )
    assert {q.purpose for q in answer(run.path)} == {"people"}
    assert until_done(run) == []
    [summary] = summaries(run)
    with RunStore.read(run.path) as store:
        for name, count in (("a", 2), ("b", 3)):
            new, old = (
                [c for part in parts for c in store.round(0).get_records(part, Completion)]
                for parts in (
                    store.round(0).names(f"{base}/{name}/completions/") for base in ("evaluation", "evaluation-initial")
                )
            )
            gaps = [likes(a.text) - likes(b.text) for a, b in zip(new, old, strict=True)]
            decided = [gap > 0 for gap in gaps if abs(gap) >= 0.05]
            figures = summary["evaluation"][name]["judges"]["people"]
            assert figures["win_rate"][0] == pytest.approx(sum(decided) / len(decided)) and len(gaps) == count
            assert figures["num_abstained"] == len(gaps) - len(decided), "ties abstain"
            assert figures["report"]["people"]["num_votes"] == count
            assert "people" not in store.round(0).get_json(f"evaluation-initial/{name}/summary")["judges"]
            assert len(store.round(0).names(f"evaluation/{name}/verdicts-people/")) == 1 + (count > 2)


def test_votes_behind_a_committed_verdict_stay_when_their_annotator_is_excluded(tmp_path: Path) -> None:
    """Would catch verdicts that change after they were trained on, and votes of the excluded that go on to count."""
    run = Run.of(tmp_path, judge={**HUMAN, "annotators": 2}, evaluation={})
    run.go_on()
    for name in ("Ada", "Bob"):
        answer(run.path, name)
    run.go_on()  # the first round is committed and the second asked
    with RunStore.read(run.path) as store:
        assert store.finished_rounds() == [0]
        before = [ShardCommits(store.round(0)).verdicts(shard, Asked()) for shard in (0, 1)]
    answer(run.path, "Ada")
    answer(run.path, "Bob", taste=lambda question: "first", at_most=5)
    bob = sign_up(run.path, "Bob")
    with opened(run.path) as annotation:
        annotation.exclude(bob, "answers at random", by="admin", now=time.time())
        assert annotation.progress(time.time(), round_index=1).num_missing == 12
    assert run.go_on().events[-1].data == {"num_questions": 12, "num_missing_votes": 12}
    answer(run.path, "Eve")
    assert run.go_on().events[-1].kind == "run_done"
    with RunStore.read(run.path) as store:
        assert [ShardCommits(store.round(0)).verdicts(shard, Asked()) for shard in (0, 1)] == before
        votes = [v for s in (0, 1) for v in ShardCommits(store.round(1)).verdicts(s, Asked()).votes]
    assert Counter((v.annotator == bob, v.status) for v in votes) == {(False, "counted"): 24, (True, "excluded"): 5}
    people = summaries(run)[1]["judges"]["reward"]["people"]
    assert people["excluded"] == [bob] and people["not_counted"] == {"excluded": 5} and people["alpha"] == 1.0


def test_people_who_disagree_abstain_and_are_counted(tmp_path: Path) -> None:
    run = Run.of(
        tmp_path, judge={**HUMAN, "annotators": 2}, evaluation={}, verdicts={"min_coverage": 0.0}, run__rounds=1
    )
    run.go_on()
    asked = answer(run.path, "Ada")
    answer(run.path, "Bob", taste=lambda q: better(q) if q.prompt_id == asked[0].prompt_id else mirrored(better(q)))
    run.go_on()
    [summary] = summaries(run)
    figures = summary["judges"]["reward"]
    assert sum(figures["reasons"].values()) == figures["num_abstained"] >= 6
    assert any(reason.startswith("disagreement: ") for reason in figures["reasons"])
    assert summary["num_pairs"] == 1


def mirrored(outcome: str) -> str:
    return {"first": "second", "second": "first"}.get(outcome, outcome)


def test_a_run_directory_that_is_moved_rewound_or_begun_anew_keeps_its_people(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge=HUMAN, evaluation={}, run__keep_optimizer="all")
    until_done(run)
    expected = told(run.path)
    moved = run.at(tmp_path / "moved")
    shutil.move(run.path, moved.path)
    RunStore.rewind(moved.path, num_kept=1)
    assert moved.go_on().events[-1].kind == "run_done", "the same questions have their answers already"
    assert {k: v for k, v in told(moved.path).items() if not k.startswith("set-aside/")} == expected
    RunStore.rewind(moved.path, num_kept=1)
    other = FakeStages(run.config, generators=[Other()])
    assert moved.go_on(other).events[-1].kind == "run_left", "another policy's answers are other questions"
    with opened(moved.path) as annotation:
        assert annotation.progress(time.time()).num_missing == 12
    assert moved.go_on().events[-1].kind != "run_done"
    with RunStore.open(moved.path) as store:
        store.verify()


class Other(FakeGenerator):
    """Samples other completions."""

    def sample(self, shard: Any, plan: Any) -> Any:
        return super().sample(shard, replace(plan, run_seed=9))


def test_questions_that_a_rewind_took_off_the_run_are_asked_no_more(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge=HUMAN, evaluation={}, run__keep_optimizer="all")
    run.go_on(FakeStages(run.config, generators=[Other()]))
    RunStore.rewind(run.path, num_kept=0)
    assert run.go_on().events[-1].data["num_missing_votes"] == 12
    with opened(run.path) as annotation:
        assert annotation.progress(time.time()).num_questions == 12
    with RunStore.read(run.path) as store:
        assert {question.question_id for question in answer(run.path)} == set(awaited(store) or ())
    RunStore.rewind(run.path, num_kept=0)
    run.go_on(FakeStages(run.config, generators=[Other()]))
    assert len(answer(run.path)) == 12, "what was withdrawn is asked again"


def test_fewer_people_may_be_asked_later(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge={**HUMAN, "annotators": 3}, evaluation={}, run__rounds=1)
    assert run.go_on().events[-1].data["num_missing_votes"] == 36
    answer(run.path, "Ada")
    answer(run.path, "Bob", at_most=5)
    two = Run.of(tmp_path, judge={**HUMAN, "annotators": 2}, evaluation={}, run__rounds=1)
    assert two.go_on().events[-1].data["num_missing_votes"] == 7
    answer(run.path, "Bob")
    assert two.go_on().events[-1].kind == "run_done"


def test_status_tells_how_far_people_are(tmp_path: Path) -> None:
    run = Run.of(tmp_path, judge={**HUMAN, "annotators": 2}, evaluation={})
    run.go_on()
    answer(run.path, "Ada", at_most=7)
    people = read_status(run.path)["people"]
    [ada] = people.pop("annotators")
    assert people == {
        "num_questions": 12, "num_settled": 0, "num_votes": 7, "num_missing_votes": 17, "num_at_work": 0,
        "num_people": 1, "num_stuck": 12, "paused": False, "awaited": True,
    }  # fmt: skip
    assert ada["num_votes"] == 7 and "Ada" not in str(ada)


@pytest.mark.parametrize(("num_texts", "limit"), [(4, 2), (4, 3), (4, 4), (5, 3), (5, 7), (6, 9), (3, None)])
def test_completions_are_compared_evenly(num_texts: int, limit: int | None) -> None:
    texts = [f"t{i}" for i in range(num_texts)]
    for prompt in range(20):
        places = compared(texts, limit, 0, f"p{prompt}")
        assert len(set(places)) == len(places) == (num_texts * (num_texts - 1) // 2 if limit is None else limit)
        times = Counter(i for pair in places for i in pair)
        assert set(times) == set(range(num_texts)) and max(times.values()) - min(times.values()) <= 1
    assert limit is None or len({tuple(compared(texts, limit, 0, f"p{p}")) for p in range(20)}) > 2


def test_equal_texts_are_ties_and_asked_about_once() -> None:
    found = [completion(i, text=text) for i, text in enumerate("abab")]
    assert compared([c.text for c in found], None, 0, "p") == [(0, 1)]
    said = {(v.first, v.second): v.probability for v in verdicts_of(found, {(0, 1): 0.75})}
    assert said == {(0, 1): 0.75, (0, 2): 0.5, (0, 3): 0.75, (1, 2): 0.25, (1, 3): 0.5, (2, 3): 0.75}
