"""A run that its own drift budget ended, as a user meets it: exit code, message, what `status` says, how to go on."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called, online_dpo, refused, write_inputs, write_run
from store_driver import tree

from online_dpo.commands.run import recorded_config, run
from online_dpo.config.control import WATCHED
from online_dpo.loop.control import Control, Measured

REASON = (
    "policy 2 is 31.25 nats per completion away from the initial policy, and drift.max_kl is 20: resume with a higher "
    "drift.max_kl, or with drift.action=warn"
)


@pytest.fixture
def ran(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of which two of three rounds are finished; the second left the budget."""
    sections: dict[str, Any] = {
        "evaluation": {"sets": {"heldout": {"source": "prompts.jsonl", "count": 2}}},
        "drift": {"max_kl": 20.0, "action": "stop"},
    }
    write_inputs(tmp_path, tiny_model, **sections)
    monkeypatch.chdir(tmp_path)
    figures = {name: [1.0, 1.0] for name in WATCHED}
    measured = Measured(policy_version=2, kl_initial=31.25, kl_reference=3.0, sets={"heldout": figures})
    write_run(Control(measured=measured))
    return tmp_path


def test_a_stopped_run_says_why_and_how_to_go_on(ran: Path) -> None:
    """Would catch a stop that looks like success or like a crash, engines that are started for nothing, and a run that
    cannot be continued after all."""
    before = tree(ran)
    done = online_dpo("resume", "runs/demo", cwd=ran)
    assert (done.code, done.out) == (3, "run directory: runs/demo\n")
    assert done.err == f"stopped: {REASON}\ncontinue with: online-dpo resume runs/demo KEY=VALUE\n"
    assert tree(ran) == before
    status = called("status", "runs/demo", cwd=ran)
    assert status.code == 0 and f"stopped: {REASON}" in status.out and "is unfinished" not in status.out
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # going on is seen by the search for a cluster that is not there
        address = f"cluster.address=127.0.0.1:{closed.getsockname()[1]}"
        for change in ("drift.max_kl=40", "drift.action=warn"):
            assert "no Ray cluster answers there" in called("resume", "runs/demo", change, address, cwd=ran).refusal
            back = called("resume", "runs/demo", "drift.max_kl=20", "drift.action=stop", cwd=ran)
            assert (back.code, back.err) == (3, done.err)
    assert "drift.action was" in refused("resume", "runs/demo", "drift.action=raise_beta", cwd=ran)


def test_python_is_told_as_well(ran: Path) -> None:
    result = run(recorded_config(Path("runs/demo")))
    assert result.stopped == REASON and len(result.rounds) == 2
