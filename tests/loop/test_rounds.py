"""The loop over fakes: what happens in which order, and what becomes of every prompt."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_kit import FakeGenerator, FakeStages, FakeTask, Order, make_adapter, shuffled
from loop_runs import Run, comparable, records, tree

from online_dpo.errors import NoPairsError
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Completion, Verdict

GOLD = {"gold": {"type": "python", "target": "none:none"}}
NUM_HELDOUT = 2  # rows that only evaluations score

TAPE = """
run_started 0 num_rounds=2
round_started 0
stage 0 stage=evaluating policy_version=0
  push 0 base
  check_logps 4 policy
  probe 4
pushed 0 policy_version=0
  sample v0 h0,h1
  done: sample v0 h0,h1
  rescore 2 policy
  done: rescore
rescored 0 base=evaluation-initial/heldout/ shard=0
shard_sampled 0 base=evaluation-initial/heldout/ shard=0
judging_started 0 base=evaluation-initial/heldout/ shard=0 judge=reward
  judge reward v0 h0,h1
judging_started 0 base=evaluation-initial/heldout/ shard=0 judge=gold
  judge gold v0 h0,h1
  done: judge reward v0 h0,h1
shard_judged 0 base=evaluation-initial/heldout/ shard=0 judge=reward
  done: judge gold v0 h0,h1
shard_judged 0 base=evaluation-initial/heldout/ shard=0 judge=gold
  score 2 policy base
evaluated 0 set=heldout policy_version=0
stage 0 stage=sampling
  sample v0 p9,p6
  sample v0 p3,p1
  done: sample v0 p9,p6
shard_sampled 0 shard=0
judging_started 0 shard=0 judge=reward
  judge reward v0 p9,p6
  done: sample v0 p3,p1
shard_sampled 0 shard=1
judging_started 0 shard=1 judge=reward
  judge reward v0 p3,p1
  done: judge reward v0 p9,p6
shard_judged 0 shard=0 judge=reward
  done: judge reward v0 p3,p1
shard_judged 0 shard=1 judge=reward
paired 0 num_pairs=4
stage 0 stage=reference
  reference_logps 4 base
stage 0 stage=learning
  begin_round 0 from=0
  step 0 0
step 0 num_pairs=2.0 step=0
  checkpoint 0 1
  step 0 1
step 0 num_pairs=2.0 step=1
  checkpoint 0 2
stage 0 stage=evaluating policy_version=1
  push 1 v1
  check_logps 4 policy base
  probe 4
pushed 0 policy_version=1
  sample v1 h0,h1
  done: sample v1 h0,h1
  rescore 2 policy base
  done: rescore
rescored 0 base=evaluation/heldout/ shard=0
shard_sampled 0 base=evaluation/heldout/ shard=0
judging_started 0 base=evaluation/heldout/ shard=0 judge=reward
  judge reward v1 h0,h1
judging_started 0 base=evaluation/heldout/ shard=0 judge=gold
  judge gold v1 h0,h1
  done: judge reward v1 h0,h1
shard_judged 0 base=evaluation/heldout/ shard=0 judge=reward
  done: judge gold v1 h0,h1
shard_judged 0 base=evaluation/heldout/ shard=0 judge=gold
  score 2 policy base
evaluated 0 set=heldout policy_version=1
round_done 0 num_pairs=4 policy_version=1
round_committed 0
round_started 1
stage 1 stage=sampling
  sample v1 p2,p8
  sample v1 p7,p5
  done: sample v1 p2,p8
shard_sampled 1 shard=0
judging_started 1 shard=0 judge=reward
  judge reward v1 p2,p8
  done: sample v1 p7,p5
shard_sampled 1 shard=1
judging_started 1 shard=1 judge=reward
  judge reward v1 p7,p5
  done: judge reward v1 p2,p8
shard_judged 1 shard=0 judge=reward
  done: judge reward v1 p7,p5
shard_judged 1 shard=1 judge=reward
paired 1 num_pairs=4
stage 1 stage=reference
  reference_logps 4 v1
stage 1 stage=learning
  begin_round 1 from=0
  step 1 0
step 1 num_pairs=2.0 step=0
  checkpoint 1 1
  step 1 1
step 1 num_pairs=2.0 step=1
  checkpoint 1 2
stage 1 stage=evaluating policy_version=2
  push 2 v2
  check_logps 4 policy v1
  probe 4
pushed 1 policy_version=2
  sample v2 h0,h1
  done: sample v2 h0,h1
  rescore 2 policy v1
  done: rescore
rescored 1 base=evaluation/heldout/ shard=0
shard_sampled 1 base=evaluation/heldout/ shard=0
judging_started 1 base=evaluation/heldout/ shard=0 judge=reward
  judge reward v2 h0,h1
judging_started 1 base=evaluation/heldout/ shard=0 judge=gold
  judge gold v2 h0,h1
  done: judge reward v2 h0,h1
shard_judged 1 base=evaluation/heldout/ shard=0 judge=reward
  done: judge gold v2 h0,h1
shard_judged 1 base=evaluation/heldout/ shard=0 judge=gold
  score 2 policy v1 base
evaluated 1 set=heldout policy_version=2
round_done 1 num_pairs=4 policy_version=2
round_committed 1
run_done 2
"""


def test_two_rounds_event_by_event(tmp_path: Path) -> None:
    """Calls are indented. Would catch any change of order: a judge that waits for all shards, learning before the last
    verdict, a push too many or too late, a re-scoring left out, KL against a reference that was just refreshed."""
    run = Run.of(tmp_path, evaluation__judges=GOLD)
    assert run.go_on().tape == TAPE.strip("\n").split("\n")
    # Once more: the learner takes up its last state, and nothing is left to do.
    assert run.go_on().tape == ["  restore 1 2", "run_started 2 num_rounds=2", "run_done 2"]


def every_schedule() -> Iterator[Order]:
    """Orders that together take every choice there is at every `first_done`."""
    prefix: list[int] = []
    while True:
        taken: list[tuple[int, int]] = []

        def order(tasks: Sequence[FakeTask], prefix: list[int] = prefix, taken: Any = taken) -> int:
            choice = prefix[len(taken)] if len(taken) < len(prefix) else 0
            taken.append((choice, len(tasks)))
            return choice

        yield order
        while taken and taken[-1][0] + 1 == taken[-1][1]:
            taken.pop()
        if not taken:
            return
        prefix = [choice for choice, _ in taken]
        prefix[-1] += 1


@pytest.mark.parametrize(("engines", "num_schedules"), [(1, 10), (2, 20)])
def test_no_order_of_completion_changes_a_byte(engines: int, num_schedules: int, tmp_path: Path) -> None:
    """All orders of two shards. Would catch commits, pairs or means in order of arrival, and a shard that is held back
    for ever. With one engine the second shard waits for the first one's re-scoring, with two each has its own."""
    run = Run.of(tmp_path, run__rounds=1, evaluation={})
    run.go_on()
    expected, number = comparable(run.path), 0
    for number, order in enumerate(every_schedule(), start=1):
        generators = [FakeGenerator() for _ in range(engines)]
        other = run.at(tmp_path / f"{number}")
        other.go_on(FakeStages(run.config, order=order, generators=generators))
        assert comparable(other.path) == expected
    assert number == num_schedules


def test_random_orders_of_two_engines_give_one_run(tmp_path: Path) -> None:
    """The same over two rounds with evaluation; and in all of them learning waits for every verdict."""
    run = Run.of(tmp_path, generator__shard_prompts=1, evaluation__judges=GOLD)
    run.go_on()
    expected = comparable(run.path)
    for seed in range(6):
        other = run.at(tmp_path / f"{seed}")
        stages = FakeStages(run.config, order=shuffled(seed), generators=[FakeGenerator(), FakeGenerator()])
        tape = other.go_on(stages).tape
        assert comparable(other.path) == expected
        for index in (0, 1):
            judged = [i for i, line in enumerate(tape) if line.startswith(f"shard_judged {index} shard=")]
            assert len(judged) == 4 and max(judged) < tape.index(f"  begin_round {index} from=0")


INITIAL = make_adapter(0, (0.3, -0.2, 0.1, 0.5))

REFERENCES: list[tuple[dict[str, Any], Adapter | None, str, str]] = [
    # schedule, initial policy, members of each round's reference, content of each round's reference/
    ({"type": "fixed"}, None, "base | base | base | base", "absent | absent | absent | absent"),
    ({"type": "fixed"}, INITIAL, "initial | initial | initial | initial", "initial | initial | initial | initial"),
    ({"type": "every", "rounds": 1}, None, "base | v1 | v2 | v3", "v1 | v2 | v3 | v4"),
    ({"type": "every", "rounds": 2}, None, "base | base | v2 | v2", "absent | v2 | v2 | v4"),
    ({"type": "every", "rounds": 2}, INITIAL, "initial | initial | v2 | v2", "initial | v2 | v2 | v4"),
    ({"type": "ensemble", "last": 2}, None, "base | base v1 | v1 v2 | v2 v3", "absent | absent | absent | absent"),
    (
        {"type": "ensemble", "last": 3},
        INITIAL,
        "initial | initial v1 | initial v1 v2 | v1 v2 v3",
        "absent | absent | absent | absent",
    ),
    ({"type": "path", "path": "p"}, INITIAL, "given | given | given | given", "absent | absent | absent | absent"),
]


@pytest.mark.parametrize(("schedule", "initial", "used", "folders"), REFERENCES)
@pytest.mark.parametrize("processes", ["one process", "a process per round"])
def test_references(
    schedule: dict[str, Any],
    initial: Adapter | None,
    used: str,
    folders: str,
    processes: str,
    tmp_path: Path,
) -> None:
    """Would catch base weights where the run continues an adapter, a refresh off by a round, KL against the refreshed
    reference, and a reference made from the policy that a resumed learner happens to hold."""
    run = Run.of(tmp_path, run__rounds=4, reference=schedule)
    handed, compared = [], []
    for rounds in [4] if processes == "one process" else [1, 2, 3, 4]:
        part = Run.of(tmp_path, run__rounds=rounds, reference=schedule)
        stages = FakeStages(run.config, initial=initial)
        part.go_on(stages)
        handed += stages.learner.references
        compared += [under for num_rows, under in stages.learner.scored_under if num_rows == NUM_HELDOUT]
    with RunStore.read(run.path) as store:
        committed = [store.round(index) for index in range(4)]
        names = {None: "base"} if initial is None else {initial.digest: "initial"}
        names |= {Adapter.from_files(0, part.get_files("adapter")).digest: f"v{part.index + 1}" for part in committed}
        contents = [part.get_files("reference") if part.has("reference") else None for part in committed]

    def name(under: Any) -> str:
        if isinstance(under, str):
            return {"reference_model": "given", "policy": "policy"}[under]
        return names[None if under is None else under.digest]

    members = [group.split() for group in used.split(" | ")]
    assert [(version, list(map(name, reference))) for version, *reference in handed] == list(enumerate(members))
    # Each evaluation: the policy, what it was trained with, the initial policy, each once; one more at the very start.
    first = name(initial)
    assert [list(map(name, under)) for under in compared] == [
        list(dict.fromkeys(["policy", *group, first])) for group in [members[0], *members]
    ]
    assert ["absent" if files is None else name(Adapter.from_files(0, files)) for files in contents] == [
        *folders.split(" | ")
    ]
    summaries = [record for record in records(run.path) if record["kind"] == "round_done"]
    numbers = {"base": [0], "initial": [0], "given": []}
    assert [summary["reference_versions"] for summary in summaries] == [
        [
            number
            for member in group
            for number in numbers.get(member, [int(member[-1])] if member[-1].isdigit() else [])
        ]
        for group in members
    ]


def test_every_prompt_is_counted_once(tmp_path: Path) -> None:
    """Would catch a tie that becomes a pair, and a prompt that leaves without a reason."""
    run = Run.of(tmp_path, run__rounds=1, prompts__per_round=8, sampling__num_samples=2)
    run.go_on(FakeStages(run.config, judge=lambda text: float(len(text.split()))))
    with RunStore.read(run.path) as store:
        scores: dict[str, list[float]] = {}
        for name in store.round(0).names("verdicts/"):
            for verdict in store.round(0).get_records(name, Verdict):
                scores.setdefault(verdict.prompt_id, []).append(verdict.score or 0.0)
    expected = Counter("tie" if len(set(two)) == 1 else "paired" for two in scores.values())
    [summary] = [record for record in records(run.path) if record["kind"] == "round_done"]
    assert +Counter(summary["outcomes"]) == expected and expected.total() == summary["num_prompts"] == 8
    assert expected["tie"] > 0 and summary["num_pairs"] == expected["paired"] > 0


def test_a_judge_that_tells_nothing_apart_stops_the_round_with_its_counts(tmp_path: Path) -> None:
    """Would catch a training on no pairs, a message without counts, and work that is lost or done again."""
    run = Run.of(tmp_path)
    stages = FakeStages(run.config, judge=lambda text: 0.5)
    with pytest.raises(NoPairsError, match=r"^round 1 gave no pair from 4 prompts: tie 4; .* committed"):
        run.go_on(stages)
    assert not stages.tape.calls("reference_logps", "step")
    with RunStore.read(run.path) as store:
        committed = store.round(0)
        assert len(committed.names("completions/")) == len(committed.names("verdicts/")) == 2
        assert sum(len(committed.get_records(name, Completion)) for name in committed.names("completions/")) == 12
        assert not committed.has("pairs")
    before = {name: data for name, data in tree(run.path).items() if name != "metrics.jsonl"}
    again = FakeStages(run.config)  # a mended judge is not asked about what is judged already
    with pytest.raises(NoPairsError, match="tie 4"):
        run.go_on(again)
    assert not again.tape.calls("push", "sample", "judge", "score", "step")
    assert {name: data for name, data in tree(run.path).items() if name != "metrics.jsonl"} == before
