"""`online-dpo verify`: reads every committed file of a run and says what is damaged."""

from __future__ import annotations

import os
import shlex
from collections.abc import Iterator, Sequence
from pathlib import Path

from online_dpo.errors import CorruptionError
from online_dpo.reports.metrics import check_metrics
from online_dpo.store.damage import Damage
from online_dpo.store.run_format import SFT
from online_dpo.store.run_store import RunStore


def verify(run_dir: Path, accept: Sequence[str]) -> Iterator[str]:
    """Check a run directory whole, also while the run goes on.

    Args:
        run_dir: of the run.
        accept: damaged files, relative to `run_dir` or to the working directory, with which the run shall go on.

    Returns:
        Lines about what was found.

    Raises:
        CorruptionError: something is damaged; its message is the last line.
        RunDirectoryError: there is no run, or what is to be accepted cannot be.
    """
    if accept:
        with RunStore.open(run_dir) as store:
            store.accept([_key(run_dir, name) for name in accept])
    with RunStore.read(run_dir) as store:
        for key in store.accepted():
            yield f"accepted: {run_dir / key}"
        damages = store.damages()
        for damage in damages:
            yield from _describe(store, damage)
        if damages:
            files = "1 file is" if len(damages) == 1 else f"{len(damages)} files are"
            raise CorruptionError(f"{files} damaged in {run_dir}; each is named above with a way on")
        store.verify()  # also the round under way
        check_metrics(store)
        finished = len(store.finished_rounds())
        yield f"{run_dir}: all is whole, {finished} finished rounds and what is committed of the next one"
    if RunStore.exists(run_dir / SFT):
        yield from verify(run_dir / SFT, ())


def _describe(store: RunStore, damage: Damage) -> Iterator[str]:
    yield f"{damage.root / damage.key} {damage.problem}"
    yield f"  what depends on it: {damage.consequence}"
    copies = [key for key in store.copies(damage) if key != damage.key]
    if copies:
        source, target = (shlex.quote(str(damage.root / key)) for key in (copies[0], damage.key))
        yield f"  cheapest way on: copy the same bytes from elsewhere in the run: `cp {source} {target}`"
    elif damage.is_acceptable:
        command = f"online-dpo verify {shlex.quote(str(damage.root))} --accept {shlex.quote(damage.key)}"
        yield f"  cheapest way on: accept it with `{command}`, or restore it from a backup"
    else:
        yield f"  cheapest way on: {damage.remedy}"


def _key(run_dir: Path, name: str) -> str:
    """The file relative to the run directory."""
    path = Path(name)
    inside = run_dir.resolve()
    if path.resolve().is_relative_to(inside):
        return path.resolve().relative_to(inside).as_posix()
    return Path(os.path.normpath(name)).as_posix()
