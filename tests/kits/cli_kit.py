"""The command as a user runs it, of which a test reads exit code, output and what is left: as a process, or without."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from inprocess_kit import call_main
from store_driver import play_round, tree

from online_dpo.commands.preparing.inputs import inspect_inputs
from online_dpo.commands.preparing.provenance import run_info
from online_dpo.commands.run import portable_yaml
from online_dpo.config.loading import load_config
from online_dpo.loop.control import Control
from online_dpo.store.run_store import RunStore

TIMEOUT_S = 500.0
"""Only against hanging for ever: no test asks how fast a command is."""

PROGRAM = (sys.executable, "-m", "online_dpo.cli")

LIMITED_DISK = """
import errno, os, sys
from pathlib import Path
write, folder, size = os.write, Path(sys.argv[1]), int(sys.argv[2])
def limited(descriptor, data):
    inside = folder in Path(os.readlink(f"/proc/self/fd/{descriptor}")).parents
    if inside and sum(file.stat().st_size for file in folder.rglob("*")) + len(data) > size:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    return write(descriptor, data)
os.write, sys.argv = limited, ["online-dpo", *sys.argv[3:]]
from online_dpo.cli import main
main()
"""
"""The command on a disk that is full from a given number of bytes on, for users who may not mount one."""


@dataclass(frozen=True)
class Outcome:
    """What a command left on the screen."""

    code: int
    out: str
    err: str

    @property
    def refusal(self) -> str:
        """The message of a command that ended because of the user's mistake, and said so and no more."""
        assert self.code == 2, self
        assert "Traceback" not in self.out + self.err, self
        assert self.err.startswith("error: ") and self.err.endswith("\n"), self
        return self.err.removeprefix("error: ").rstrip("\n")


def online_dpo(*arguments: object, cwd: Path, program: Sequence[object] = PROGRAM) -> Outcome:
    """Run `online-dpo ARGUMENTS` in a folder, as a process of its own."""
    done = subprocess.run(
        list(map(str, [*program, *arguments])),
        cwd=cwd,
        env=_environment(),
        stdin=subprocess.DEVNULL,
        capture_output=True,
        text=True,
        timeout=TIMEOUT_S,
    )
    return Outcome(done.returncode, done.stdout, done.stderr)


def called(*arguments: object, cwd: Path) -> Outcome:
    """Run `online-dpo ARGUMENTS` in a folder, in this process: for whatever ends before Ray starts."""
    return Outcome(*call_main(list(map(str, arguments)), cwd=cwd, environment=_environment()))


def _environment() -> dict[str, str]:
    kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    return {**kept, "COLUMNS": "200"}  # so that no line is folded


def refused(*arguments: object, cwd: Path, run: Callable[..., Outcome] = called) -> str:
    """The message of a command that must be refused and must change no file in the folder.

    Args:
        arguments: of the command.
        cwd: the folder.
        run: `called`, or `online_dpo` where the command starts Ray before it is refused.
    """
    before = tree(cwd)
    message = run(*arguments, cwd=cwd).refusal
    assert tree(cwd) == before
    return message


def write_inputs(folder: Path, model: Path, **sections: Any) -> None:
    """A config and everything it names, for commands that are run in `folder`: rounds of four short prompts.

    Args:
        folder: gets `config.yaml`, `prompts.jsonl` and `judge.py`.
        model: the policy.
        sections: of the config; replace those of the same name.
    """
    (folder / "judge.py").write_text("def score(prompt, completion):\n    return len(completion)\n")
    rows = [{"prompt": f"film {number} was", "topic": f"topic {number}"} for number in range(8)]
    (folder / "prompts.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    config = {
        "run": {"name": "demo", "dir": "runs", "rounds": 3},
        "model": {"path": str(model)},
        "prompts": {"source": "prompts.jsonl", "per_round": 4, "max_tokens": 32},
        "sampling": {"num_samples": 2, "max_tokens": 8},
        "judge": {"type": "python", "target": "judge.py:score"},
        "learner": {"lora": {"r": 8, "alpha": 16}, "batch_pairs": 4},
        **sections,
    }
    (folder / "config.yaml").write_text(json.dumps(config, indent=1))  # JSON is YAML


def write_run(control: Control | None = None) -> None:
    """The run of the current folder's config, with two finished rounds and one under way, without its engines.

    Args:
        control: that the second round left behind.
    """
    config = load_config("config.yaml")
    inputs = inspect_inputs(config)
    yaml, info = portable_yaml(inputs.config), run_info(inputs)
    with pytest.MonkeyPatch.context() as patch, RunStore.create(config.run_dir, config_yaml=yaml, info=info) as store:
        patch.setattr(os, "fsync", lambda descriptor: None)  # nobody cuts the power while a test prepares itself
        for index in (0, 1):
            play_round(store.round(index), {})
            figures = {
                "policy_version": index + 1,
                "num_prompts": 4,
                "num_pairs": 4,
                "outcomes": {"paired": 4},
                "evaluation": {},
                "warnings": [],
            }
            store.append_metrics({"kind": "round_done", "round": index, **figures, "seconds": {}})
            state = {"control": (control or Control()).to_dict(), "metrics": store.metrics_position()}
            store.finish_round(index, state)
        store.prune_optimizer()
        play_round(store.round(2), {}, until="learner/step-000002")


class SmallDisk:
    """A disk of its own: a small tmpfs for root, as in CI; for others the same refusals, made by hand."""

    def __init__(self, path: Path, *, num_kib: int) -> None:
        self.path = path
        self.program: Sequence[object] = PROGRAM
        self._is_mounted = os.geteuid() == 0
        path.mkdir()
        if self._is_mounted:
            subprocess.run(["mount", "-t", "tmpfs", "-o", f"size={num_kib}k", "tmpfs", path], check=True)
        else:
            self.program = (sys.executable, "-c", LIMITED_DISK, path, num_kib * 1024)

    def enlarge(self) -> None:
        self._remount("size=8m")
        self.program = PROGRAM

    def make_read_only(self) -> None:
        self._remount("ro")
        if not self._is_mounted:
            self._allow(0o555)

    def close(self) -> None:
        if self._is_mounted:
            subprocess.run(["umount", self.path], check=True)
        else:
            self._allow(0o755)

    def _remount(self, option: str) -> None:
        if self._is_mounted:
            subprocess.run(["mount", "-o", f"remount,{option}", self.path], check=True)

    def _allow(self, mode: int) -> None:
        for file in [self.path, *self.path.rglob("*")]:
            file.chmod(mode if file.is_dir() else mode & 0o666)
