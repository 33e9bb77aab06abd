"""Which rounds are finished, and proof of it: a chain of manifests whose end is the pointer file `latest`.

A round's `manifest.json` has the sha256 of each of its files and of the manifest before it. `latest` has the sha256
of the last manifest, in the format of `sha256sum`, so `sha256sum -c latest` checks it. Both are written when
everything else of the round is durable: first the manifest, then `latest`; after a kill between the two, `recover`
completes it.
"""

from __future__ import annotations

import hashlib
import json
import re
import shlex
from collections.abc import Iterator
from typing import Any, NoReturn

from online_dpo.errors import CorruptionError
from online_dpo.store.commits import CHECKSUM, Commits, checksum_lines, parse_checksum_lines
from online_dpo.store.damage import ALTERED, MISSING, Damage, consequence, is_read_later, read_accepted
from online_dpo.store.files import Files

LATEST = "latest"
_MANIFEST_KEY = re.compile(r"rounds/(\d{5,})/manifest\.json")
_OPTIMIZER_STATE = re.compile(r"learner/(?:final|step-\d+)(?=/|\.sha256$)")
_SAMPLED_AHEAD = re.compile(r"(draw|prompts)\.|(completions|verdicts|repeats|parts|repeat-parts)/")
"""What a round has of the samples that it trains on; with `overlap: 1` the round before it has it made."""


def round_folder(index: int) -> str:
    return f"rounds/{index:05d}/"


def manifest_key(index: int) -> str:
    return f"{round_folder(index)}manifest.json"


def canonical_json(value: Any) -> bytes:
    """The one form in which JSON is committed: sorted keys, so equal values are equal bytes; no NaN or infinity."""
    return (json.dumps(value, sort_keys=True, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


class History:
    """The finished rounds of a run directory."""

    def __init__(self, files: Files) -> None:
        self._files = files

    def num_finished(self) -> int:
        """Finished rounds: those up to `latest`, and one more whose manifest is there but not yet in `latest`."""
        pointer = self._latest()
        after = 0 if pointer is None else pointer[0] + 1
        return after + self._files.exists(manifest_key(after))

    def commits(self, index: int) -> Commits:
        return Commits(self._files, round_folder(index), lambda: self.remedy(index))

    def seal(self, index: int) -> None:
        """Write a round's manifest, then `latest`: from here on the round is finished."""
        commits = self.commits(index)
        commits.remove_uncommitted()
        digests: dict[str, str] = {}
        for name in commits.names():
            checksum_key = f"{round_folder(index)}{name}{CHECKSUM}"
            digests |= {checksum_key: self._files.digest(checksum_key), **commits.digests(name)}
        manifest = canonical_json(
            {
                "round": index,
                "previous": self._files.digest(manifest_key(index - 1)) if index else None,
                "files": {key.removeprefix(round_folder(index)): digest for key, digest in digests.items()},
            }
        )
        self._files.put(manifest_key(index), manifest)
        self._point_to(index)

    def recover(self) -> None:
        """Complete a `seal` that was killed between the manifest and `latest`. `check_chain` goes before."""
        pointer = self._latest()
        num_finished = self.num_finished()
        if num_finished and (pointer is None or pointer[0] != num_finished - 1):
            self._point_to(num_finished - 1)

    def num_sealed(self) -> int:
        """Rounds from the first on that have a manifest, whatever `latest` says."""
        index = 0
        while self._files.exists(manifest_key(index)):
            index += 1
        return index

    def point_to_last(self, num_rounds: int) -> None:
        """Write `latest` for a run of so many finished rounds, or remove it where there are none."""
        if num_rounds:
            self._point_to(num_rounds - 1)
        else:
            self._files.delete(LATEST)

    def check_first(self, num_rounds: int) -> None:
        """Check the first rounds whole, by their manifests alone: what comes after them and `latest` may be damaged.

        Raises:
            CorruptionError: one of these rounds is damaged.
        """
        previous = None
        for index in range(num_rounds):
            if self._manifest(index)["previous"] != previous:
                self._corrupt(index, manifest_key(index), "does not continue the round before it")
            previous = self._files.digest(manifest_key(index))
            self._check_files(index, num_rounds=num_rounds)

    def lacks_optimizer(self, index: int) -> bool:
        """Whether the optimizer state of a finished round was not kept, so that no round can be played after it."""
        return any(
            self._removed(index, path) and not self._files.exists(round_folder(index) + path)
            for path in self._manifest(index)["files"]
        )

    def check_chain(self) -> None:
        """Check `latest`, every manifest and the round folders against each other; no other file is read.

        Raises:
            CorruptionError: they cannot have come from one run, whenever it was killed.
        """
        pointer = self._latest()
        after = 0 if pointer is None else pointer[0] + 1
        if max(self.on_disk(), default=0) > after + 1 or not self._is_sampled_ahead(after + 1):
            self._corrupt_latest("is missing" if pointer is None else "is older than the rounds that lie beside it")
        expected = None if pointer is None else pointer[1]
        if self._files.exists(manifest_key(after)) and self._manifest(after)["previous"] != expected:
            self._corrupt(after, manifest_key(after), "does not continue the round before it")
        for index in reversed(range(after)):
            manifest = self._manifest(index)
            if self._files.digest(manifest_key(index)) != expected:
                if index == after - 1:
                    self._corrupt_latest(f"does not match {manifest_key(index)}")
                self._corrupt(index, manifest_key(index), "does not match the manifest of the round after it")
            expected = manifest["previous"]
        if after and expected is not None:
            self._corrupt(0, manifest_key(0), "names a round before the first")

    def check_round(self, index: int) -> None:
        """Check every file of a round against its sha256.

        The optimizer state of a round before the last finished one may have been removed (`run.keep_optimizer`):
        once its checksum file is gone, so may be its files. Nothing else may be absent.
        """
        last = self.num_finished() - 1
        if index > last:
            commits = self.commits(index)
            for name in commits.names():
                commits.check(name)
            return
        self._check_files(index, num_rounds=last + 1)

    def damages(self, num_rounds: int) -> Iterator[Damage]:
        """Every damaged file of the first rounds that is not accepted, in the order of the rounds."""
        for index in range(num_rounds):
            yield from self._damages_of(index, num_rounds)

    def _check_files(self, index: int, *, num_rounds: int) -> None:
        for damage in self._damages_of(index, num_rounds):
            raise CorruptionError(damage.sentence)

    def _damages_of(self, index: int, num_rounds: int) -> Iterator[Damage]:
        accepted = read_accepted(self._files)
        for path, digest in self._manifest(index)["files"].items():
            key = round_folder(index) + path
            if index < num_rounds - 1 and self._removed(index, path) and not self._files.exists(key):
                continue
            found = self._files.digest(key) if self._files.exists(key) else None
            if found == digest:
                continue
            is_read = is_read_later(path, index, num_rounds, self._reference_versions(num_rounds))
            if not is_read and accepted.get(key) == {"recorded": digest, "found": found}:
                continue
            yield Damage(
                root=self._files.root,
                key=key,
                problem=MISSING if found is None else ALTERED,
                recorded=digest,
                found=found,
                consequence=consequence(path, index, num_rounds, is_read=is_read),
                remedy=self.remedy(index),
                is_acceptable=not is_read,
            )

    def copies(self, damage: Damage, num_rounds: int) -> list[str]:
        """Keys of whole files that are, by what was recorded, the same as a damaged one."""
        listed = [
            (round_folder(index) + path, digest)
            for index in range(num_rounds)
            for path, digest in self._manifest(index)["files"].items()
        ]
        return [
            key
            for key, digest in listed
            if digest == damage.recorded and self._files.exists(key) and self._files.digest(key) == digest
        ]

    def _reference_versions(self, num_rounds: int) -> list[int]:
        """The policies that the round after the first `num_rounds` is measured against; none where that is damaged."""
        try:
            state = json.loads(self._files.get(f"{round_folder(num_rounds - 1)}state.json"))
            return [int(version) for version in state.get("reference_versions", ())]
        except (FileNotFoundError, ValueError, AttributeError, TypeError):
            return []

    def remedy(self, index: int) -> str:
        """What a user can do about damage in a round, as the end of a sentence."""
        try:
            lacks_optimizer = index > 0 and self.lacks_optimizer(index - 1)
        except CorruptionError as earlier:  # its message has the remedy for both: nothing after it can be kept
            return f"restore it from a backup; the round before it is damaged as well: {earlier}"
        if lacks_optimizer:
            adapter = self._files.root / round_folder(index - 1) / "adapter"
            return (
                f"restore it from a backup, or start a new run that continues the policy before it, with model.adapter="
                f"{adapter} (the optimizer state of that round was not kept)"
            )
        return f"restore it from a backup, or repeat the run from round {index + 1} on: {self._rewind(index + 1)}"

    def _removed(self, index: int, path: str) -> bool:
        """Whether a file of a round belongs to optimizer state whose commit was undone."""
        match = _OPTIMIZER_STATE.match(path)
        return match is not None and not self._files.exists(f"{round_folder(index)}{match.group()}{CHECKSUM}")

    def _latest(self) -> tuple[int, str] | None:
        """Round and sha256 of the manifest that `latest` names; None before the first round is finished."""
        try:
            listed = parse_checksum_lines(self._files.get(LATEST)) or {}
        except FileNotFoundError:
            return None
        match = _MANIFEST_KEY.fullmatch(next(iter(listed), ""))
        if len(listed) != 1 or match is None or match.group() != manifest_key(int(match.group(1))):
            self._corrupt_latest("is damaged: it does not name a round's manifest and its sha256")
        return int(match.group(1)), listed[match.group()]

    def _manifest(self, index: int) -> dict[str, Any]:
        key = manifest_key(index)
        try:
            data = self._files.get(key)
        except FileNotFoundError:
            self._corrupt(index, key, "is missing")
        try:
            manifest = json.loads(data)
            sound = set(manifest) == {"files", "previous", "round"} and canonical_json(manifest) == data
        except (ValueError, TypeError):
            sound = False
        if not sound or manifest["round"] != index:
            self._corrupt(index, key, "is damaged: it is not the manifest of its round")
        return manifest

    def _point_to(self, index: int) -> None:
        data = self._files.get(manifest_key(index))
        self._files.put(LATEST, checksum_lines({manifest_key(index): hashlib.sha256(data).hexdigest()}))

    def _is_sampled_ahead(self, index: int) -> bool:
        """Whether all that lies in a round's folder may be there before the round begins, as nothing is."""
        folder = round_folder(index)
        return all(_SAMPLED_AHEAD.match(key.removeprefix(folder)) for key in self._files.keys(folder))

    def on_disk(self) -> list[int]:
        """Rounds that have any file, finished or not."""
        matches = (re.match(r"rounds/(\d{5,})/", key) for key in self._files.keys("rounds/"))
        return sorted({int(match.group(1)) for match in matches if match})

    def _corrupt(self, index: int, key: str, problem: str) -> NoReturn:
        raise CorruptionError(f"{self._files.root / key} {problem}; {self.remedy(index)}")

    def _corrupt_latest(self, problem: str) -> NoReturn:
        num_sealed = self.num_sealed()
        is_behind = max(self.on_disk(), default=0) > num_sealed  # rounds after one that has lost its manifest
        raise CorruptionError(
            f"{self._files.root / LATEST} {problem}; restore it from a backup, or write it again: "
            f"{self._rewind(num_sealed + 1 if is_behind else None)}"
        )

    def _rewind(self, number: int | None) -> str:
        root = shlex.quote(str(self._files.root))
        command = f"online-dpo rewind {root}" + ("" if number is None else f" --round {number}")
        return f"`{command}`, then `online-dpo resume {root}`"
