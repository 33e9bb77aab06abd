"""Whole runs of the loop over fakes, in a real run directory: begin, kill, go on, compare."""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import pytest
from loop_kit import EOS, VOCAB, FakeStages, Tape

from online_dpo.commands.preparing.inputs import Materials, load_job
from online_dpo.commands.run import play
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.run import RunConfig
from online_dpo.loop.stages import Event
from online_dpo.models.inspection import ModelInfo
from online_dpo.reports import listening
from online_dpo.store.run_store import RunStore


class PlainTokenizer:
    """One token per letter; nothing special is added."""

    bos_token = eos_token = chat_template = None
    bos_token_id = None
    eos_token_id = EOS

    def __call__(self, text: str, **_: Any) -> dict[str, list[int]]:
        return {"input_ids": [3 + ord(letter) % (VOCAB - 3) for letter in text]}

    def __len__(self) -> int:
        return VOCAB


class Kill(BaseException):
    """The process is gone: no handler of the code under test may run for it."""


@dataclass
class Listener(listening.Listener):
    """Writes events on a tape; kills the process when it hears event `kill_at`, counted from 0."""

    tape: Tape
    kill_at: int | None = None
    events: list[Event] = field(default_factory=list)
    warned: list[str] = field(default_factory=list)  # about trackers

    def note(self, line: str) -> None:
        assert line.startswith("warning: tracker"), "the loop has nothing to say to people but events"
        self.warned.append(line)

    def hear(self, event: Event) -> None:
        if len(self.events) == self.kill_at:
            raise Kill
        self.events.append(event)
        self.tape.append(describe(event))


def describe(event: Event) -> str:
    keys = ("num_rounds", "stage", "base", "shard", "judge", "num_pairs", "step", "set", "policy_version")
    shown = [f"{key}={event.data[key]}" for key in keys if event.data.get(key, "") != ""]
    return " ".join([event.kind, str(event.round_index), *shown])


@dataclass(frozen=True)
class Run:
    """A run directory and the config to begin or continue it with."""

    config: RunConfig
    path: Path

    @classmethod
    def of(cls, folder: Path, name: str = "run", **overrides: Any) -> Run:
        """2 rounds of 2 shards of 2 prompts, 1 evaluation set; `section__field=value` or `section=...` changes it."""
        for file, kind in (("train", "p"), ("heldout", "h")):
            rows = [{"prompt": f"{file} {i}", "id": f"{kind}{i}"} for i in range(10)]
            (folder / f"{file}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
        config: dict[str, Any] = {
            "run": {"dir": str(folder), "rounds": 2},
            "model": {"path": "none"},
            "prompts": {"source": str(folder / "train.jsonl"), "per_round": 4},
            "sampling": {"num_samples": 3, "max_tokens": 5},
            "generator": {"shard_prompts": 2},
            "judge": {"type": "python", "target": "none:none"},
            "evaluation": {"sets": {"heldout": {"source": str(folder / "heldout.jsonl"), "count": 2}}},
            "reference": {"type": "every", "rounds": 1},
            "learner": {"batch_pairs": 2, "checkpoint_steps": 1},
        }
        for key, value in overrides.items():
            section, _, name_in_section = key.partition("__")
            config[section] = {**config[section], name_in_section: value} if name_in_section else value
        return cls(load_config(config), folder / name)

    @cached_property
    def settings(self) -> str:
        return dump_config(self.config)

    def at(self, path: Path) -> Run:
        """The same config in another folder, where its run may be under way already."""
        run = Run(self.config, path)
        run.__dict__["settings"] = self.settings
        return run

    def go_on(
        self,
        stages: FakeStages | None = None,
        *,
        kill_at: int | None = None,
        listeners: Sequence[listening.Listener] = (),
    ) -> Listener:
        """One process: begin or continue until all rounds are finished, something fails, or the kill."""
        stages = stages or FakeStages(self.config)
        listener = Listener(stages.tape, kill_at)
        with pytest.MonkeyPatch.context() as patch, self._store() as store:
            patch.setattr(os, "fsync", lambda descriptor: None)  # a killed process loses nothing that it wrote
            store.verify()
            store.amend(config_yaml=self.settings)
            play(make_materials(self.config), stages, store, [listener, *listeners])
        return listener

    def _store(self) -> RunStore:
        if RunStore.exists(self.path):
            return RunStore.open(self.path)
        return RunStore.create(self.path, config_yaml=self.settings, info={})


def make_materials(config: RunConfig) -> Materials:
    model = ModelInfo(
        folder=Path("none"),
        eos_token_ids=(EOS,),
        max_model_len=None,
        vocab_size=VOCAB,
        model_type=None,
        architectures=(),
        fingerprint="none",
        weight_files=(),
        quantised=False,
    )
    job, first = load_job(config, model, PlainTokenizer())
    return Materials(
        config=config, model=model, adapter=None, reference=None, models=(), judges={}, job=job, first=first
    )


def tree(path: Path) -> dict[str, bytes]:
    """Relative path -> content of every file but the lock."""
    files = (file for file in sorted(path.rglob("*")) if file.is_file() and file.name != "lock")
    return {file.relative_to(path).as_posix(): file.read_bytes() for file in files}


CHECKS = ("pushed", "rescored")
"""Records of what a process checked when it took over: a resumed run has more of them."""

_TIMED = re.compile(r"rounds/\d+/(state\.json|learner/[^/]+/progress\.json)")
_DERIVED = re.compile(r"latest|rounds/\d+/(state\.sha256|learner/[^/]+\.sha256|manifest\.json)")


def comparable(path: Path) -> dict[str, Any]:
    """What must be equal in two runs of one config, however often they were killed.

    Clock readings are left out, and with them the positions in `metrics.jsonl` and what is hashed from these. Of
    checksum files and manifests the listed paths remain; whether the sums are right is for `RunStore.verify`.
    """
    found: dict[str, Any] = dict(tree(path))
    for name, content in found.items():
        if name == "metrics.jsonl":
            found[name] = records(path)
        elif _TIMED.fullmatch(name):
            found[name] = {key: value for key, value in json.loads(content).items() if key != "metrics"}
        elif _DERIVED.fullmatch(name):
            found[name] = re.sub(rb"[0-9a-f]{64}", b"", content)
    return found


def records(path: Path, *, without: Sequence[str] = CHECKS) -> list[dict[str, Any]]:
    """The records of `metrics.jsonl` without clock readings."""
    lines = map(json.loads, (path / "metrics.jsonl").read_text().splitlines())
    return [
        {key: value for key, value in line.items() if key not in ("time", "seconds", "latency_s")}
        for line in lines
        if line["kind"] not in without
    ]
