"""Where numbers go."""

from __future__ import annotations

from pathlib import Path

from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

import online_dpo
from online_dpo.config.run import LoggingSection
from online_dpo.loop.stages import Event
from online_dpo.reports.metrics import MetricsWriter, StageClock
from online_dpo.reports.trackers import make_trackers
from online_dpo.store.run_store import RunStore


def test_tensorboard_gets_every_number_at_its_step(tmp_path: Path) -> None:
    with RunStore.create(tmp_path / "run", config_yaml="", info={}) as store:
        for losses in ((0.7, 0.6), (0.5,)):  # the second writer is that of a continued run
            writer = MetricsWriter(store, make_trackers(LoggingSection(tensorboard=True), store.path))
            for loss in losses:
                writer.hear(Event(kind="step", round_index=0, data={"loss": loss}))
            writer.close()
        writer = MetricsWriter(store, make_trackers(LoggingSection(tensorboard=True), store.path))
        writer.hear(Event(kind="round_done", round_index=3, data={"evaluation": {"heldout": {"kl_initial": 1.5}}}))
        writer.close()
        assert [record.get("loss") for record in store.metrics()] == [0.7, 0.6, 0.5, None]
    scalars: dict[str, list[tuple[int, float]]] = {}
    for file in (tmp_path / "run" / "tensorboard").iterdir():
        board = EventAccumulator(str(file)).Reload()
        for tag in board.Tags()["scalars"]:
            scalars.setdefault(tag, []).extend((e.step, round(e.value, 6)) for e in board.Scalars(tag))
    assert sorted(scalars["step/loss"]) == [(0, 0.7), (1, 0.6), (2, 0.5)]
    assert scalars["round_done/evaluation/heldout/kl_initial"] == [(3, 1.5)]


def test_stage_seconds_add_up_to_the_round() -> None:
    now = iter([0.0, 1.0, 3.0, 7.0, 15.0])
    clock = StageClock(lambda: next(now))
    clock.hear(Event(kind="round_started", round_index=0))
    for stage in ("sampling", "learning"):
        clock.hear(Event(kind="stage", round_index=0, data={"stage": stage}))
    clock.hear(Event(kind="round_done", round_index=0))
    assert clock.seconds == {"preparing": 2.0, "sampling": 4.0, "learning": 8.0}


def test_public_names_resolve() -> None:
    assert {"load_config", "run"} <= set(online_dpo.__all__)
    for name in online_dpo.__all__:
        assert getattr(online_dpo, name) is not None
