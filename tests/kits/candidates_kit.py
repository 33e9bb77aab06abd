"""Runs whose candidates come from a column, the policy itself, and a server on this machine."""

from __future__ import annotations

import asyncio
import json
from hashlib import sha256
from pathlib import Path
from typing import Any

from judge_servers import Answer, Server, completion
from loop_kit import FakeStages
from loop_runs import Run

from actors.writer_host import WriterHost
from online_dpo.commands.preparing.writers import writer_specs
from online_dpo.store.candidates import candidates_counted
from online_dpo.store.run_store import RunStore

COLUMN = {"type": "column", "column": "answer"}
OWN = {"type": "revise", "name": "own"}


def asks(server: Server, kind: str, **fields: Any) -> dict[str, Any]:
    """The section of a writer that asks the server."""
    endpoint = {"base_url": server.base_url, "model": "m", "max_wait_s": 0.05}
    return {"type": kind, "endpoint": endpoint, "timeout_s": 5.0, "retries": 1, **fields}


def short_word(body: dict[str, Any], _: int) -> Answer:
    """Four letters or fewer that depend on everything that was asked."""
    digest = sha256(json.dumps(body["messages"]).encode()).hexdigest()
    return Answer(completion(f"t{digest[: 1 + int(digest[0], 16) % 3]}", usage=(30, 4)))


def run_with(folder: Path, *candidates: dict[str, Any], name: str = "run", **overrides: Any) -> Run:
    """As `Run.of`, with an answer for every prompt, of which p5 has none."""
    rows = [{"prompt": f"train {i}", "id": f"p{i}", "answer": None if i == 5 else f"a{i}"} for i in range(10)]
    (folder / "with-answers.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    given = {"prompts__source": str(folder / "with-answers.jsonl"), "candidates": list(candidates), **overrides}
    return Run.of(folder, name, **given)


def stages_of(run: Run, **options: Any) -> FakeStages:
    """With a host for every writer, whose budgets go on from what is committed."""
    specs, counted = writer_specs(run.config), {}
    if RunStore.exists(run.path):
        with RunStore.read(run.path) as store:
            counted = candidates_counted(store, list(specs))
    hosts = {
        source: WriterHost(spec, counted=counted.get(f"candidates/{source}"), sleep=no_wait)
        for source, spec in specs.items()
    }
    return FakeStages(run.config, writers=hosts, **options)


async def no_wait(_: float) -> None:
    await asyncio.sleep(0)
