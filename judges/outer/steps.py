"""The steps of a completion, between matches of the user's pattern. In a child process, as the pattern may hang."""

from __future__ import annotations

import re


class Steps:
    """Finds steps; those that are blank are none."""

    def __init__(self, *, split: str) -> None:
        """`split` matches what stands between two steps."""
        self._split = re.compile(split)

    def find(self, text: str) -> list[tuple[int, int]]:
        """Start and end of each step, in order."""
        found, start = [], 0
        ends = [(match.start(), match.end()) for match in self._split.finditer(text) if match.end() > match.start()]
        for stop, resume in [*ends, (len(text), len(text))]:
            if text[start:stop].strip():
                found.append((start, stop))
            start = resume
        return found
