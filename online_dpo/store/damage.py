"""Damaged files of finished rounds: what depends on each, and which the user has accepted.

A finished round keeps more than later rounds read: its answers, verdicts and pairs are a record for people. Damage to
these can be accepted: `accepted.json` then names the file, its recorded sha256 and the one that was found, and the run
goes on. Every other change of the same file is damage again.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo.store.commits import Commits
from online_dpo.store.files import Files

ACCEPTED = "accepted"
MISSING, ALTERED = "is missing", "does not match the sha256 that was committed with it"


@dataclass(frozen=True, slots=True, kw_only=True)
class Damage:
    """One damaged file of a finished round."""

    root: Path  # the run directory
    key: str  # the file, relative to it
    problem: str  # a verb phrase
    recorded: str  # sha256 that was committed
    found: str | None  # sha256 of what is there; None = nothing
    consequence: str  # what depends on it, a whole sentence without its full stop
    remedy: str  # what can be done about it besides accepting it
    is_acceptable: bool  # no later round reads it

    @property
    def sentence(self) -> str:
        """All of it, for an error message."""
        accept = f"; or accept it: `online-dpo verify {self.root} --accept {self.key}`" if self.is_acceptable else ""
        return f"{self.root / self.key} {self.problem}; {self.remedy}{accept}"


def is_read_later(path: str, index: int, num_rounds: int, reference_versions: Sequence[int]) -> bool:
    """Whether the rounds after the first `num_rounds` read a file of a finished round.

    They read no table of answers, verdicts or pairs. They read adapters, references and optimizer states of the last
    two rounds and the adapters that the reference consists of. Everything else, such as states, evaluation summaries
    and checksum files, counts as read.

    Args:
        path: of the file, relative to the round's folder.
        index: of the round.
        num_rounds: finished rounds.
        reference_versions: of the policies that the next round is measured against.
    """
    if path.endswith(".parquet"):
        return False
    if path.startswith(("adapter/", "reference/", "learner/")):
        return index >= num_rounds - 2 or index + 1 in reference_versions
    return True


def consequence(path: str, index: int, num_rounds: int, *, is_read: bool) -> str:
    """What depends on a file of a finished round, in a sentence without its full stop."""
    number = index + 1
    if path.endswith(".parquet"):
        return f"no later round reads it: the policies are as they were, and a record of round {number} is lost"
    if not is_read:
        return f"no later round reads it; an export or a rewind to just after round {number} would need it"
    if number == num_rounds:
        return f"round {number + 1} would begin with it"
    return f"rounds {number + 1} to {num_rounds} came after it, and the run reads it when it goes on"


def read_accepted(files: Files) -> Mapping[str, dict[str, str | None]]:
    """Key of a file -> `recorded` and `found`, the sha256 of what was committed and of what was accepted instead.

    Raises:
        CorruptionError: the record itself is damaged.
    """
    commits = _commits(files)
    if not commits.has(ACCEPTED):
        return {}
    accepted: dict[str, Any] = json.loads(commits.get(ACCEPTED)[f"{ACCEPTED}.json"])
    return accepted


def put_accepted(files: Files, damages: Sequence[Damage]) -> None:
    """Add to the record. A kill on the way leaves the damage unaccepted, so that it is found again."""
    _put(files, {**read_accepted(files), **{d.key: {"recorded": d.recorded, "found": d.found} for d in damages}})


def copy_accepted(files: Files, new: Files, wants: Callable[[str], bool]) -> None:
    """Write what a run accepted into another run directory, of the files that are wanted."""
    accepted = {key: digests for key, digests in read_accepted(files).items() if wants(key)}
    if accepted:
        _put(new, accepted)


def _put(files: Files, accepted: Mapping[str, Mapping[str, str | None]]) -> None:
    commits = _commits(files)
    if commits.has(ACCEPTED):
        commits.remove(ACCEPTED)
    data = (json.dumps(accepted, sort_keys=True, indent=1) + "\n").encode()
    commits.put(ACCEPTED, {f"{ACCEPTED}.json": data})


def _commits(files: Files) -> Commits:
    return Commits(files, "", lambda: f"restore it from a backup, or delete {ACCEPTED}.sha256 and accept anew")
