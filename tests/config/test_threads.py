"""Thread counts of the learner's workers: shared out, recorded, and shared out anew where their number changes."""

from __future__ import annotations

import pytest
from config_kit import BASE

from online_dpo.config import threads
from online_dpo.config.loading import load_config
from online_dpo.config.resuming import check_resumable
from online_dpo.config.threads import keep_recorded_threads, resolve_threads
from online_dpo.errors import ConfigError


def test_workers_share_the_cores_and_a_run_goes_on_with_more_or_fewer(monkeypatch: pytest.MonkeyPatch) -> None:
    """Would catch workers that use more threads together than there are cores, and a resume that is refused for it."""
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: set(range(7)))

    def config(**learner: object):  # type: ignore[no-untyped-def]
        return load_config({**BASE, "learner": learner})

    recorded = {n: resolve_threads(config(num_workers=n)) for n in (1, 2, 16)}
    assert {n: found.learner.threads for n, found in recorded.items()} == {1: 7, 2: 3, 16: 1}
    assert resolve_threads(config(num_workers=2, threads=5)).learner.threads == 5
    monkeypatch.setattr(threads.os, "sched_getaffinity", lambda _: {0})  # another machine
    for old, new, expected in ((1, 1, 7), (2, 2, 3), (1, 2, 3), (2, 1, 6), (1, 16, 1)):
        kept = resolve_threads(keep_recorded_threads(config(num_workers=new), recorded[old]))
        assert kept.learner.threads == expected, (old, new)
        lines = check_resumable(recorded[old], kept)
        assert (f"learner.num_workers was {old} and is now {new}" in lines) == (old != new)
    with pytest.raises(ConfigError, match=r"learner\.threads was 7 and is now 5"):
        check_resumable(recorded[1], config(threads=5))
