"""Named commits of one or several files: data first, then a checksum file, whose existence is the commit.

The checksum file of commit `learner/final` is `learner/final.sha256`, in the format of `sha256sum`: a person can
check a commit with `cd learner && sha256sum -c final.sha256`. Data without a checksum file is what a killed process
left behind; it counts as absent and the next attempt replaces it.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Mapping
from typing import NoReturn

from online_dpo.errors import CorruptionError
from online_dpo.store.files import Files

CHECKSUM = ".sha256"
_LINE = re.compile(r"([0-9a-f]{64})  ([^\n]+)\n")


def checksum_lines(digests: Mapping[str, str]) -> bytes:
    """`sha256sum`'s format: path -> hexadecimal digest, one line each, sorted by path."""
    return "".join(f"{digest}  {path}\n" for path, digest in sorted(digests.items())).encode()


def parse_checksum_lines(data: bytes) -> dict[str, str] | None:
    """The inverse of `checksum_lines`; None for anything that it would not write, byte for byte."""
    digests = {path: digest for digest, path in _LINE.findall(data.decode("utf-8", errors="replace"))}
    return digests if digests and checksum_lines(digests) == data else None


class Commits:
    """The commits beneath one folder of a run directory.

    Args:
        files: the run directory.
        folder: empty, or a key that ends with a slash; commit names are relative to it.
        remedy: what a user can do about damage here, as the end of a sentence.
    """

    def __init__(self, files: Files, folder: str, remedy: Callable[[], str]) -> None:
        self._files = files
        self._folder = folder
        self._remedy = remedy

    def has(self, name: str) -> bool:
        return self._files.exists(self._checksum_key(name))

    def names(self, prefix: str = "") -> list[str]:
        """Names that begin with `prefix`, sorted."""
        inside = prefix[: prefix.rfind("/") + 1]  # else every shard that is judged would list the whole round
        keys = [key.removeprefix(self._folder) for key in self._files.keys(self._folder + inside)]
        return [key.removesuffix(CHECKSUM) for key in keys if key.startswith(prefix) and key.endswith(CHECKSUM)]

    def put(self, name: str, contents: Mapping[str, bytes]) -> None:
        """Commit files; paths are relative to the folder of the checksum file.

        Raises:
            ValueError: the name is committed already.
        """
        if self.has(name):
            raise ValueError(f"{self._files.root / self._folder}{name} is committed already")
        parent = self._parent(name)
        for key in self._files.keys(f"{self._folder}{name}/"):
            if key.removeprefix(parent) not in contents:
                self._files.delete(key)  # of an attempt that was killed and wrote other files
        for path, data in sorted(contents.items()):
            self._files.put(parent + path, data)
        digests = {path: hashlib.sha256(data).hexdigest() for path, data in contents.items()}
        self._files.put(self._checksum_key(name), checksum_lines(digests))

    def get(self, name: str) -> dict[str, bytes]:
        """The files of a commit, each checked against its sha256.

        Raises:
            CorruptionError: a file is missing, altered or too many.
        """
        return {path: self._checked(name, path, digest) for path, digest in self._listed(name).items()}

    def paths(self, name: str) -> list[str]:
        """The files of a commit; nothing of them is read."""
        return sorted(self._listed(name))

    def get_file(self, name: str, path: str) -> bytes:
        """One file of a commit; the others may be damaged.

        Raises:
            CorruptionError: it is missing or altered, or the commit has no such file.
        """
        digest = self._listed(name).get(path)
        if digest is None:
            self.corrupt(self._checksum_key(name), f"does not list {path}")
        return self._checked(name, path, digest)

    def _checked(self, name: str, path: str, digest: str) -> bytes:
        key = self._parent(name) + path
        try:
            data = self._files.get(key)
        except FileNotFoundError:
            self.corrupt(key, "is missing")
        if hashlib.sha256(data).hexdigest() != digest:
            self.corrupt(key, "does not match the sha256 that was committed with it")
        return data

    def check(self, name: str) -> None:
        """The checks of `get`, without holding the files in memory."""
        for key, digest in self.digests(name).items():
            try:
                found = self._files.digest(key)
            except FileNotFoundError:
                self.corrupt(key, "is missing")
            if found != digest:
                self.corrupt(key, "does not match the sha256 that was committed with it")

    def digests(self, name: str) -> dict[str, str]:
        """Key (relative to the run directory) -> recorded sha256 of each file of a commit."""
        parent = self._parent(name)
        return {parent + path: digest for path, digest in self._listed(name).items()}

    def remove(self, name: str) -> None:
        """Undo a commit: the checksum file first, so that a kill on the way leaves it absent, never half there."""
        keys = self.digests(name)
        self._files.delete(self._checksum_key(name))
        for key in keys:
            self._files.delete(key)

    def remove_uncommitted(self, prefix: str = "") -> None:
        """Delete every file that belongs to no commit, under keys that begin with `prefix`."""
        committed = set()
        for name in self.names():
            committed |= {self._checksum_key(name), *self.digests(name)}
        for key in self._files.keys(self._folder):
            if key not in committed and key.startswith(self._folder + prefix):
                self._files.delete(key)

    def corrupt(self, key: str, problem: str) -> NoReturn:
        raise CorruptionError(f"{self._files.root / key} {problem}; {self._remedy()}")

    def _listed(self, name: str) -> dict[str, str]:
        checksum_key, parent = self._checksum_key(name), self._parent(name)
        try:
            listed = parse_checksum_lines(self._files.get(checksum_key))
        except FileNotFoundError:
            self.corrupt(checksum_key, "is missing")
        if listed is None:
            self.corrupt(checksum_key, "is damaged: it is not what sha256sum writes")
        for key in self._files.keys(f"{self._folder}{name}/"):
            if key.removeprefix(parent) not in listed:  # a checksum file that was cut at the end of a line
                self.corrupt(checksum_key, f"does not list {key.removeprefix(parent)}, which lies beside it")
        return listed

    def _checksum_key(self, name: str) -> str:
        return f"{self._folder}{name}{CHECKSUM}"

    def _parent(self, name: str) -> str:
        folder, slash, _ = f"{self._folder}{name}".rpartition("/")
        return folder + slash
