"""Starting a local Ray where the machine is busy."""

from __future__ import annotations

from typing import Any

import pytest
import ray

from actors.session import ray_session
from online_dpo.config.run import ClusterSection
from online_dpo.errors import UserError

SLOW = "The current node timed out during startup. This could happen because some of the raylet failed to startup."


@pytest.mark.parametrize(("errors", "num_attempts"), [([SLOW, SLOW], 3), ([SLOW] * 3, 3), (["no shared memory"], 1)])
def test_a_slow_start_is_tried_again_and_nothing_else(
    errors: list[str], num_attempts: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    attempts: list[Any] = []

    def init(**options: Any) -> None:
        attempts.append(options["address"])
        if len(attempts) <= len(errors):
            raise RuntimeError(errors[len(attempts) - 1])

    monkeypatch.setattr(ray, "init", init)
    monkeypatch.setattr(ray, "is_initialized", lambda: False)
    monkeypatch.setattr(ray, "shutdown", lambda: None)
    monkeypatch.setattr(ray, "cluster_resources", lambda: {"CPU": 4.0})
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    succeeded = False
    try:
        with ray_session(ClusterSection(), num_cpus_needed=2):
            succeeded = True
    except UserError as error:
        assert f"a local Ray could not be started (RuntimeError: {errors[-1]})" in str(error)
    assert (succeeded, attempts) == (len(errors) < num_attempts, ["local"] * num_attempts)
