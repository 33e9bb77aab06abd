"""A second judge that settles the selected pairs: what it is asked, what becomes of them, and what a kill leaves."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from loop_kit import FakeStages, by_text
from loop_runs import Kill, Run, comparable, records
from pairing_kit import FAILED, comparisons, completion, pair_up, scores
from stopping_kit import Stingy

from actors.resources import cpus_needed
from online_dpo.commands.preparing.inputs import judge_name, judge_sections
from online_dpo.commands.preparing.provenance import source_files
from online_dpo.config.loading import load_config
from online_dpo.config.threads import keep_recorded_threads, resolve_threads
from online_dpo.errors import JudgingStopped
from online_dpo.pairing.annotation import settle
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import counted_so_far
from online_dpo.types import Completion, Judged, Pair, Verdict

PAIRING = {
    "strategy": "uncertain",
    "budget": 3,
    "annotator": {"type": "python", "target": "none:none"},
}


def selected() -> Pair:
    """1 over 0, by a margin of 2."""
    [pair] = pair_up([completion(0, cut=True), completion(1)], scores(0.0, 2.0)).pairs
    return pair


@pytest.mark.parametrize(
    ("verdicts", "penalty", "outcome", "chosen", "margin"),
    [
        (scores(0.0, 3.0), 0.0, "upheld", 1, 3.0),
        (scores(4.0, 3.0), 0.0, "overturned", 0, 1.0),
        (scores(4.0, 3.0), 0.5, "overturned", 0, 0.5),  # the truncated one pays here, too
        (scores(4.0, 3.0), 2.0, "upheld", 1, 1.0),
        (comparisons({(0, 1): 0.75}), 0.0, "overturned", 0, 1.0986122886681098),  # ln 3
        (comparisons({(0, 1): 0.75, (1, 0): 0.75}), 0.0, "tie", None, None),
        (scores(4.0, "?"), 0.0, "abstained", None, None),
        (scores(4.0, FAILED), 0.0, "judge_failed", None, None),
    ],
)
def test_what_the_annotator_makes_of_a_pair(
    verdicts: list[Verdict], penalty: float, outcome: str, chosen: int | None, margin: float | None
) -> None:
    settled = settle([selected()], verdicts, penalty)
    assert +Counter(settled.counts) == Counter({outcome: 1})
    assert [(p.chosen.sample_index, p.margin) for p in settled.pairs] == (
        [] if chosen is None else [(chosen, pytest.approx(margin))]
    )
    assert all(p.probability is not None and p.probability > 0.5 for p in settled.pairs)


class Labelled(FakeStages):
    """Writes down which texts its annotator is shown."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.shown: list[tuple[str, ...]] = []

    def _judged(self, judge: str, completions: Sequence[Completion]) -> Judged:
        if judge == "annotator":
            names = dict.fromkeys(c.prompt_id for c in completions)
            self.shown += [tuple(c.text for c in completions if c.prompt_id == name) for name in names]
        return super()._judged(judge, completions)


def summaries(run: Run) -> list[dict[str, Any]]:
    return [record for record in records(run.path) if record["kind"] == "round_done"]


def test_the_annotator_sees_the_selected_pairs_alone_and_settles_them(tmp_path: Path) -> None:
    """Would catch one that is asked about all completions, and one whose preference is ignored."""
    run = Run.of(tmp_path, pairing=PAIRING, evaluation={})
    stages = Labelled(run.config)
    run.go_on(stages)
    with RunStore.read(run.path) as store:
        found = [store.round(i).get_records("pairs", Pair) for i in (0, 1)]
        selections = [store.round(i).get_json("selected")["pairs"] for i in (0, 1)]
        sampled = {
            (i, c.prompt_id, c.sample_index): c
            for i in (0, 1)
            for name in store.round(i).names("completions/")
            for c in store.round(i).get_records(name, Completion)
        }
    assert [len(selection) for selection in selections] == [3, 3]
    assert stages.shown == [
        (sampled[i, name, a].text, sampled[i, name, b].text) for i in (0, 1) for name, a, b in selections[i]
    ]
    overturned = 0
    for pairs, selection, summary in zip(found, selections, summaries(run), strict=True):
        assert [[p.prompt.prompt_id, *sorted((p.chosen.sample_index, p.rejected.sample_index))] for p in pairs] == (
            selection
        )
        for pair in pairs:
            wins, loses = (by_text(f"annotator {answer.text}") for answer in (pair.chosen, pair.rejected))
            assert pair.margin == pytest.approx(wins - loses) and wins > loses
            overturned += by_text(pair.chosen.text) < by_text(pair.rejected.text)
        told = summary["annotator"]
        assert told["num_judge_calls"] == 2 and told["num_upheld"] + told["num_overturned"] == 3
        assert {k: v for k, v in summary["outcomes"].items() if v} == {"paired": 3, "over_budget": 1}
    assert overturned == sum(summary["annotator"]["num_overturned"] for summary in summaries(run)) > 0


class Undecided(FakeStages):
    """Its annotator gives the first pair of a shard a tie and abstains from the others."""

    def _judged(self, judge: str, completions: Sequence[Completion]) -> Judged:
        judged = super()._judged(judge, completions)
        if judge != "annotator":
            return judged
        first = completions[0].prompt_id
        verdicts = [
            Verdict(
                prompt_id=c.prompt_id,
                first=c.sample_index,
                **({"score": 1.0} if c.prompt_id == first else {"reason": "?"}),
            )
            for c in completions
        ]
        return Judged(verdicts=tuple(verdicts), counters=judged.counters)


def test_what_the_annotator_does_not_settle_is_counted(tmp_path: Path) -> None:
    run = Run.of(tmp_path, pairing=PAIRING, evaluation={})
    with pytest.raises(
        ValueError, match=r"gave no pair from 4 prompts: over_budget 1, annotator_abstained 1, annotator_tie 2"
    ):
        run.go_on(Undecided(run.config))


def test_a_killed_run_asks_the_annotator_nothing_twice_and_ends_like_one_that_was_not(tmp_path: Path) -> None:
    run = Run.of(tmp_path, pairing=PAIRING, evaluation={})
    whole = run.go_on()
    asked = Counter(whole.tape.calls("judge"))
    assert sum(" annotator " in call for call in asked) == 4 and max(asked.values()) == 1
    for number in range(len(whole.events)):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with RunStore.read(killed.path) as store:
            rounds = [store.round(i) for i in range(min(len(store.finished_rounds()) + 1, 2))]
            committed = sum(len(part.names(f"verdicts{judge}/")) for part in rounds for judge in ("", "-annotator"))
        stages = FakeStages(run.config)
        killed.go_on(stages)
        assert len(stages.tape.calls("judge")) == sum(asked.values()) - committed
        assert not Counter(stages.tape.calls("judge")) - asked
        assert comparable(killed.path) == comparable(run.path), f"killed before event {number}"


@pytest.mark.parametrize("questions", [1, 3])
def test_an_annotator_that_stops_is_asked_only_for_the_rest(questions: int, tmp_path: Path) -> None:
    whole = Run.of(tmp_path, "whole", pairing=PAIRING, evaluation={})
    whole_stages = Stingy(whole.config)
    whole.go_on(whole_stages)
    stopping = whole.at(tmp_path / "stopping")
    said: Counter[tuple[str, str]] = Counter()
    stopped = Counter[str]()
    while sum(stopped.values()) < 30:  # questions: 14
        stages = Stingy(whole.config, questions=questions)
        try:
            stopping.go_on(stages)
            break
        except JudgingStopped as error:
            stopped[str(error).split()[3]] += 1
        finally:
            said += stages.said
        with RunStore.read(stopping.path) as store:
            counted = counted_so_far(store, ["reward", "annotator"], ["heldout"])
        assert {judge: found.get("num_judge_calls", 0) for judge, found in counted.items()} == {
            judge: sum(n for (name, _), n in said.items() if name == judge) for judge in ("reward", "annotator")
        }
    assert stopped["annotator"] >= 1
    assert said == whole_stages.said, "nothing was asked twice, and nothing was left out"
    assert comparable(stopping.path) == comparable(whole.path)


def test_verdicts_on_another_selection_are_not_taken_for_this_one(tmp_path: Path) -> None:
    """The training judge may be asked again between two processes; then other pairs lie in the shard."""
    run = Run.of(tmp_path, pairing=PAIRING, evaluation={}, run__rounds=1)
    whole = run.go_on()
    kinds = [(event.kind, event.data.get("judge")) for event in whole.events]
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(
            FakeStages(run.config, judge=lambda text: by_text(f"x{text}")), kill_at=kinds.index(("paired", None))
        )
    with RunStore.open(killed.path) as store:
        first = store.round(0)
        assert len(first.names("verdicts-annotator/")) == 2
        for name in first.names("verdicts/"):
            first.remove(name)
    killed.go_on()
    assert comparable(killed.path) == comparable(run.path)


def test_an_annotator_is_a_judge_like_the_others(tmp_path: Path) -> None:
    """Found, hosted, pinned to its threads, and its file noticed when it changes."""
    (tmp_path / "dear.py").write_text("def score(prompt, completion):\n    return 1.0\n")
    config = load_config(
        {
            "model": {"path": "m"},
            "prompts": {"source": "prompts.jsonl"},
            "judge": {"type": "python", "target": "cheap.py:score"},
            "pairing": {"annotator": {"type": "python", "target": "dear.py:score", "num_cpus": 3.0}},
        }
    )
    assert {judge_name(field) for field in judge_sections(config)} == {"reward", "annotator"}
    assert source_files(config)["pairing.annotator.target"] == "dear.py"
    without = load_config({**config.model_dump(), "pairing": {}})
    assert cpus_needed(config) - cpus_needed(without) == 3.0
    resolved = resolve_threads(config)
    assert isinstance(resolved.pairing.annotator.threads, int)
    pinned = resolved.pairing.annotator.model_copy(update={"threads": 77})
    recorded = resolved.model_copy(update={"pairing": resolved.pairing.model_copy(update={"annotator": pinned})})
    assert keep_recorded_threads(config, recorded).pairing.annotator.threads == 77
