"""Objectives in the loop that train on something else than pairs against a reference."""

from __future__ import annotations

from pathlib import Path

import pytest
from loop_kit import FakeStages
from loop_runs import Kill, Run, comparable, records

from online_dpo.pairing.unpairing import unpair
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Labelled, Pair


def test_kto_trains_on_both_answers_of_every_pair(tmp_path: Path) -> None:
    run = Run.of(tmp_path, objective={"type": "kto"})
    pairwise = Run.of(tmp_path, "pairwise")
    run.go_on()
    pairwise.go_on()
    with RunStore.read(run.path) as store, RunStore.read(pairwise.path) as other:
        items, pairs = store.round(0).get_records("labelled", Labelled), other.round(0).get_records("pairs", Pair)
        assert not store.round(0).has("pairs") and not other.round(0).has("labelled")
        sampled = [
            completion
            for name in store.round(0).names("completions/")
            for completion in store.round(0).get_records(name, Completion)
        ]
    expected = unpair(pairs)
    assert [(i.completion, i.desirable, i.kl_completion_ids) for i in items] == [
        (i.completion, i.desirable, i.kl_completion_ids) for i in expected
    ]
    # Of the first round both runs have the same samples, and the fakes' reference is the base model.
    references = [logps for pair in pairs for logps in (pair.chosen_ref_logps, pair.rejected_ref_logps)]
    assert [item.ref_logps for item in items] == pytest.approx(references)
    owner = {completion.token_ids: completion.prompt_id for completion in sampled}
    assert all(owner[item.kl_completion_ids] != item.prompt.prompt_id for item in items)
    assert all(item.kl_ref_logps is not None for item in items)
    summary = next(record for record in records(run.path) if record["kind"] == "round_done")
    assert (summary["num_desirable"], summary["num_undesirable"], summary["num_pairs"]) == (4, 4, 4)


def test_a_kto_run_that_is_killed_ends_like_one_that_was_not(tmp_path: Path) -> None:
    run = Run.of(tmp_path, objective={"type": "kto"})
    whole = run.go_on()
    for number in range(0, len(whole.events), 3):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        killed.go_on()
        assert comparable(killed.path) == comparable(run.path), f"killed before event {number}"


def test_simpo_asks_for_no_reference_log_probs(tmp_path: Path) -> None:
    run = Run.of(tmp_path, objective={"type": "simpo"}, reference={"type": "fixed"})
    stages = FakeStages(run.config)
    stages.learner.gap = lambda item: 0.5  # type: ignore[method-assign]  # the fake's own loss would read them
    run.go_on(stages)
    assert stages.learner.references == [(0,), (1,)]
    with RunStore.read(run.path) as store:
        pairs = store.round(0).get_records("pairs", Pair)
    assert pairs and all(pair.chosen_ref_logps is None for pair in pairs)
