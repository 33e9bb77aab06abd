"""Ends what a run leaves behind: started as a script of its own beside a local Ray, it outlives the run's process.

It waits until the run's process closes a pipe, which the system does for whoever is killed, and then ends all that
belongs to the run's Ray, stopped or not: processes with a mark in their environment, and those that write into Ray's
session folder (some of Ray's overwrite their environment by a title). It needs nothing but the standard library.
"""

import os
import signal
import sys
import time
from pathlib import Path

GRACE_S = 5.0
"""How long Ray, whose own processes notice the end too, has to end in its own way."""

PATIENCE_S = 25.0


def left_behind(mark: bytes, session: str) -> list[int]:
    """Ids of processes with the mark, or that write into the session's folder."""
    folders = (folder for folder in Path("/proc").iterdir() if folder.name.isdigit())
    own = str(os.getpid())
    return [int(f.name) for f in folders if f.name != own and (_has_mark(f, mark) or _writes_into(f, session))]


def _has_mark(process: Path, mark: bytes) -> bool:
    try:
        return mark in (process / "environ").read_bytes().split(b"\0")
    except OSError:  # another user's, or gone
        return False


def _writes_into(process: Path, session: str) -> bool:
    try:
        for file in (process / "fd").iterdir():
            if session and str(file.readlink()).startswith(f"{session}/"):
                flags = int((process / "fdinfo" / file.name).read_text().split("flags:")[1].split()[0], 8)
                if flags & os.O_ACCMODE != os.O_RDONLY:  # somebody may be reading a log
                    return True
    except OSError:
        return False
    return False


def main() -> None:
    """Read the session's folder from standard input until that ends; the mark is `sys.argv[1]`.

    A run's process that says that it closed lives on, perhaps with children of its own, and still writes Ray's log of
    its own part; Ray has then ended the others.
    """
    lines, mark = sys.stdin.read().splitlines(), sys.argv[1].encode()
    session = lines[0] if len(lines) == 1 else ""
    began = time.monotonic()
    while (left := left_behind(mark, session)) and time.monotonic() - began < PATIENCE_S:
        if time.monotonic() - began > GRACE_S:
            for pid in left:
                try:
                    os.kill(pid, signal.SIGKILL)
                except ProcessLookupError:
                    continue
        time.sleep(0.5)


if __name__ == "__main__":
    main()
