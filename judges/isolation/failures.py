"""What can go wrong with a call of a child process, besides a `TimeoutError`."""

from __future__ import annotations


class RaisedInChild(Exception):
    """An exception of the code in the child.

    Attributes:
        kind: the name of the exception's type.
        where: file and line of the innermost frame; may be empty.
    """

    def __init__(self, kind: str, text: str, where: str = "", trace: str = "") -> None:
        super().__init__(text)
        self.kind, self.where = kind, where
        if trace:
            self.add_note(f"In the judge's process:\n{trace}")


class ProcessEnded(Exception):
    """The child died of the one call that was under way."""

    where = ""


class Interrupted(Exception):
    """The child died of one of several calls, and nobody can say which: each may be asked again, alone."""


def kind_of(error: BaseException) -> str:
    """The name of an exception's type, also of one that a child raised."""
    return error.kind if isinstance(error, RaisedInChild) else type(error).__name__
