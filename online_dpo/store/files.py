"""Bytes under keys in one folder: the only place that knows how a local disk makes a write atomic and durable.

Nothing above this module says rename, fsync or temporary file. A store on object storage would replace `Files` (an
object's put is atomic by itself) and `FolderLock`, and nothing else.
"""

from __future__ import annotations

import errno
import fcntl
import hashlib
import os
import socket
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import IO

from online_dpo.errors import RunDirectoryError

TEMPORARY = ".partial-"
_FULL = (errno.ENOSPC, errno.EDQUOT)
_REFUSED = (errno.EROFS, errno.EACCES, errno.EPERM)


class Files:
    """Files beneath `root`, named by slash-separated keys.

    Args:
        root: the folder; it and its parents are made by the first put.
        writable: False for a reader beside the process that writes.
    """

    def __init__(self, root: Path, *, writable: bool) -> None:
        self.root = root
        self.writable = writable

    def exists(self, key: str) -> bool:
        return (self.root / key).is_file()

    def get(self, key: str) -> bytes:
        """The content of a file; FileNotFoundError where there is none."""
        with explained(self.root, key):
            return (self.root / key).read_bytes()

    def digest(self, key: str) -> str:
        """sha256 of a file in hexadecimal, read in pieces; FileNotFoundError where there is none."""
        with explained(self.root, key), (self.root / key).open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()

    def keys(self, folder: str) -> list[str]:
        """Every key beneath `folder` (which ends with a slash), sorted; temporary files are not there yet."""
        before_keys = str(self.root / "x")[:-1]
        with explained(self.root, folder):
            return sorted(
                f"{parent}/{name}".removeprefix(before_keys)
                for parent, _, names in os.walk(self.root / folder, onerror=_unless_gone)
                for name in names
                if not _temporary(name)
            )

    def put(self, key: str, data: bytes) -> None:
        """Set a file's content. At every instant, a power cut included, the file is as before or wholly new."""
        target = self._for_writing(key)
        temporary = target.with_name(TEMPORARY + target.name)
        with explained(self.root, key):
            _make_folder(target.parent)
            try:
                _write(temporary, data, os.O_TRUNC)
                temporary.replace(target)
            except OSError:
                # On a full disk the half-written file would take the space that other files need. Failing to
                # remove it must not hide why the write failed; the next open removes it.
                with suppress(OSError):
                    temporary.unlink()
                raise
            _sync(target.parent)

    def append(self, key: str, data: bytes) -> None:
        """Add to the end of a file. It survives this process at once, and a power cut after `sync`."""
        target = self._for_writing(key)
        with explained(self.root, key):
            _write(target, data, os.O_APPEND, sync=False)

    def sync(self, key: str) -> None:
        """Make what was appended or cut durable."""
        target = self._for_writing(key)
        with explained(self.root, key):
            _sync(target)
            _sync(target.parent)

    def truncate(self, key: str, num_bytes: int) -> None:
        """Cut a file to its first bytes; like what is appended, durable after `sync`."""
        target = self._for_writing(key)
        with explained(self.root, key):
            os.truncate(target, num_bytes)

    def delete(self, key: str) -> None:
        """Remove a file durably, and the folders that it leaves empty. No error where there is none."""
        target = self._for_writing(key)
        with explained(self.root, key):
            if target.exists():
                target.unlink()
                _sync(target.parent)
            self._drop_empty(target.parent)

    def move(self, folder: str, target: str) -> None:
        """Move a folder with all that is in it, durably, in one instant; the target must not exist."""
        source, new = self._for_writing(folder), self._for_writing(target)
        with explained(self.root, folder):
            _make_folder(new.parent)
            source.replace(new)
            _sync(new.parent)
            _sync(source.parent)
            self._drop_empty(source.parent)

    def remove_temporaries(self) -> None:
        """Remove what a killed process left: half-written files and empty folders. Only under the writer's lock."""
        for parent, folders, names in list(os.walk(self.root)):
            for name in filter(_temporary, names):
                with explained(self.root, name):
                    Path(parent, name).unlink()
            if not folders:
                with explained(self.root, parent):
                    self._drop_empty(Path(parent))

    def _drop_empty(self, folder: Path) -> None:
        while folder != self.root and folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
            folder = folder.parent

    def _for_writing(self, key: str) -> Path:
        if not self.writable:
            raise ValueError(f"{self.root / key} cannot be written: the run directory is open for reading, or closed")
        return self.root / key


class FolderLock:
    """The right to write in a folder, held by one process at a time and released by its death.

    Raises:
        RunDirectoryError: another process holds it; the message names that process.
    """

    def __init__(self, folder: Path) -> None:
        with explained(folder, "lock"):
            _make_folder(folder)
            self._file: IO[str] = Path(folder, "lock").open("a+", encoding="utf-8")  # noqa: SIM115, open while held
        try:
            with explained(folder, "lock"):
                fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                self._file.truncate(0)
                self._file.write(f"process {os.getpid()} on {socket.gethostname()}\n")
                self._file.flush()
        except BlockingIOError:
            self._file.seek(0)
            holder = self._file.read().strip() or "another process"
            self._file.close()
            raise RunDirectoryError(
                f"{folder} is in use by {holder}; wait until it ends or stop it, or choose another run.name"
            ) from None
        except BaseException:
            self._file.close()
            raise

    def release(self) -> None:
        """Give the folder back; safe to repeat."""
        if not self._file.closed:
            # Children that were forked hold the same open file: closing ours alone would keep it locked.
            fcntl.flock(self._file, fcntl.LOCK_UN)
            self._file.close()


def is_in_use(folder: Path) -> bool:
    """Whether a process of this machine holds the folder's lock; asked without touching the lock."""
    try:
        inode = (folder / "lock").stat().st_ino
        locks = Path("/proc/locks").read_text()
    except OSError:
        return False
    return any(line.split()[1] == "FLOCK" and line.split()[5].endswith(f":{inode}") for line in locks.splitlines())


def expect_writable(root: Path) -> None:
    """Ask, without trying, whether a folder could be written, or be made where there is none.

    Raises:
        RunDirectoryError: the disk is read-only, the right is missing, or a file is in the way.
    """
    nearest = next(folder for folder in (root, *root.parents) if folder.exists())
    code = 0
    if not nearest.is_dir():
        code = errno.ENOTDIR
    elif os.statvfs(nearest).f_flag & os.ST_RDONLY:
        code = errno.EROFS
    elif not os.access(nearest, os.W_OK | os.X_OK):
        code = errno.EACCES
    elif os.statvfs(nearest).f_blocks == 0:  # such as /proc, whose rights say nothing
        try:
            Path(tempfile.mkdtemp(dir=nearest)).rmdir()
        except OSError as error:
            code = error.errno or errno.EPERM
    if code:
        with explained(root, ""):
            raise OSError(code, os.strerror(code), str(nearest))


@contextmanager
def explained(root: Path, key: str) -> Iterator[None]:
    """Turn what a disk refuses into a RunDirectoryError with its remedy; other OSErrors pass as they are."""
    try:
        yield
    except OSError as error:
        if error.errno in _FULL:
            raise RunDirectoryError(
                f"{root / key} cannot be written: {error.strerror}; what was committed before is kept: free some "
                f"space, then continue with `online-dpo resume {root}`"
            ) from error
        if error.errno in _REFUSED:
            raise RunDirectoryError(
                f"{root / key} cannot be used: {error.strerror}; give this user the right to read and write {root}, "
                f"or set run.dir to another folder"
            ) from error
        if error.errno == errno.ENOENT and not root.exists():
            raise RunDirectoryError(
                f"{root} cannot be made: the system lets no folder be made in {root.parent} ({error.strerror}); set "
                f"run.dir to another folder"
            ) from error
        if error.errno in (errno.ENOTDIR, errno.EEXIST):
            raise RunDirectoryError(
                f"{root / key} cannot be used: {error.filename} is a file where a folder must be; move it away, or "
                f"set run.dir or run.name to another folder"
            ) from error
        raise


def _unless_gone(error: OSError) -> None:
    """A folder that nothing was put into yet, or that the writer removed under a reader, has no files."""
    if not isinstance(error, FileNotFoundError):
        raise error


def _temporary(name: str) -> bool:
    return name.startswith(TEMPORARY)


def _write(path: Path, data: bytes, flag: int, *, sync: bool = True) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | flag, 0o666)
    try:
        rest = memoryview(data)
        while rest:
            rest = rest[os.write(descriptor, rest) :]
        if sync:
            os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _sync(path: Path) -> None:
    """fsync a file, or a folder: the latter makes the names in it durable."""
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _make_folder(folder: Path) -> None:
    if folder.is_dir():
        return
    _make_folder(folder.parent)
    folder.mkdir()
    _sync(folder.parent)
