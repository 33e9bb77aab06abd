"""Steps whose values are not finite, as the loop sees them: counted, told, and the end of the run when there are too
many in a row."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import pytest
from loop_kit import FakeStages
from loop_runs import Run, comparable, records
from rich.console import Console

from online_dpo.errors import TrainingError
from online_dpo.reports.progress import Progress, describe_round
from online_dpo.store.run_store import RunStore


def stages_with_bad(run: Run, steps: set[tuple[int, int]]) -> FakeStages:
    """A learner that skips some steps, as the real one does; (round, step)."""
    stages = FakeStages(run.config)
    learner, take = stages.learner, stages.learner.step

    def step(number: int) -> dict[str, Any]:
        if (learner.round, number) not in steps:
            return take(number)
        assert number == learner.next_step
        learner.tape.call("step", learner.round, number)
        learner.next_step = number + 1
        return {"skipped": 1.0, "lr": 0.1, "beta": 0.2, "bad_value": "loss", "bad_ids": [f"p{number}", "q"]}

    learner.step = step  # type: ignore[method-assign]
    return stages


def summaries(run: Run) -> list[dict[str, Any]]:
    return [record for record in records(run.path) if record["kind"] == "round_done"]


def test_a_skipped_step_is_counted_and_averaged_by_nothing(tmp_path: Path) -> None:
    run, clean = (Run.of(tmp_path, name, run__rounds=1, learner__batch_pairs=1) for name in ("bad", "clean"))
    run.go_on(stages_with_bad(run, {(0, 1)}))
    clean.go_on()
    [summary], [expected] = summaries(run), summaries(clean)
    steps = [record for record in records(run.path) if record["kind"] == "step"]
    assert [record.get("skipped", 0.0) for record in steps] == [0.0, 1.0, 0.0, 0.0]
    assert steps[1]["bad_ids"] == ["p1", "q"] and steps[1]["bad_value"] == "loss"
    assert (summary["num_steps"], summary["num_skipped_steps"]) == (4, 1)
    assert (expected["num_steps"], expected["num_skipped_steps"]) == (4, 0)
    taken = [record for record in steps if "loss" in record]
    assert summary["loss"] == pytest.approx(sum(record["loss"] for record in taken) / 3)
    assert summary["num_trained_pairs"] == 3.0 and expected["num_trained_pairs"] == 4.0


def test_three_in_a_row_end_the_run_with_what_was_good_committed(tmp_path: Path) -> None:
    bad = {(1, 0), (1, 1), (1, 2)}
    run = Run.of(tmp_path, learner__batch_pairs=1, learner__checkpoint_steps=0)
    with pytest.raises(TrainingError, match=r"round 2, step 3 of 4: the loss was not finite for prompts p2, q, and 3 "):
        run.go_on(stages_with_bad(run, bad))
    with RunStore.read(run.path) as store:
        store.verify()
        assert store.round(1).names("learner/") == ["learner/step-000003"]
        files = store.round(1).get_files("learner/step-000003")
        assert files["adapter_model.safetensors"] == store.round(0).get_files("adapter")["adapter_model.safetensors"]
        assert json.loads(files["progress.json"])["tally"]["num_skipped_steps"] == 3
    # Whoever resumes goes on after them, and three more would be needed to stop again.
    stages = stages_with_bad(run, bad)
    run.go_on(stages)
    assert stages.tape.calls("step") == ["step 1 3"]
    assert summaries(run)[1]["num_skipped_steps"] == 3 and summaries(run)[1]["num_steps"] == 4


def test_two_in_a_row_then_a_good_one_do_not_end_it_and_a_kill_forgets_none(tmp_path: Path) -> None:
    options = {"run__rounds": 1, "learner__batch_pairs": 1, "learner__checkpoint_steps": 1}
    run = Run.of(tmp_path, prompts__per_round=6, **options)
    bad = {(0, 0), (0, 1), (0, 3), (0, 4)}
    whole = run.go_on(stages_with_bad(run, bad))
    assert summaries(run)[0]["num_skipped_steps"] == 4
    kill = [i for i, event in enumerate(whole.events) if event.kind == "step"][2]
    killed = run.at(tmp_path / "killed")
    with pytest.raises(BaseException):  # noqa: B017  (a kill is one)
        killed.go_on(stages_with_bad(run, bad), kill_at=kill)
    killed.go_on(stages_with_bad(run, bad))
    assert comparable(killed.path) == comparable(run.path)
    # The third one, after the continuation, still counts the two before it.
    worse = run.at(tmp_path / "worse")
    with pytest.raises(BaseException):  # noqa: B017
        worse.go_on(stages_with_bad(run, bad), kill_at=kill)
    with pytest.raises(TrainingError, match="step 3 of 6"):
        worse.go_on(stages_with_bad(run, {(0, 2)}))


def test_people_are_told_and_a_round_without_a_single_good_step_can_be_described(tmp_path: Path) -> None:
    out = io.StringIO()
    progress = Progress(Console(file=out, width=200))
    run = Run.of(tmp_path, run__rounds=1, prompts__per_round=2, learner__batch_pairs=1)
    for event in run.go_on(stages_with_bad(run, {(0, 0), (0, 1)})).events:
        progress.hear(event)
    assert "step 1 was skipped: its loss is not finite for prompts p0, q" in out.getvalue()
    [summary] = summaries(run)
    assert "loss" not in summary
    assert "2 steps skipped" in describe_round(summary)
