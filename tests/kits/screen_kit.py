"""A terminal small enough to read: what a program left on it, and whether its cursor shows."""

from __future__ import annotations

import re

_TOKEN = re.compile(r"\x1b\[(?P<number>[?\d;]*)(?P<verb>[A-Za-z])|(?P<other>[\s\S])")
_UNFINISHED = re.compile(r"\x1b(\[[?\d;]*)?\Z")


class Screen:
    """Understands what `rich` writes to move about; anything else that is no text is an error."""

    def __init__(self) -> None:
        self.lines = [""]
        self.row = self.column = 0
        self.is_cursor_shown = True
        self.has_colours = False
        self._rest = ""  # of what it was fed: the beginning of an escape sequence

    def feed(self, text: str) -> None:
        text = self._rest + text
        whole = _UNFINISHED.sub("", text)
        self._rest = text[len(whole) :]
        for token in _TOKEN.finditer(whole):
            if token["verb"]:
                self._move(token["verb"], token["number"])
            elif token["other"] == "\r":
                self.column = 0
            elif token["other"] == "\n":
                self.row += 1
                self.lines += [""] * (self.row + 1 - len(self.lines))
            else:
                assert token["other"].isprintable(), f"{token['other']!r} reached the terminal"
                line = self.lines[self.row].ljust(self.column)
                self.lines[self.row] = line[: self.column] + token["other"] + line[self.column + 1 :]
                self.column += 1

    def _move(self, verb: str, number: str) -> None:
        if (verb, number) in (("h", "?25"), ("l", "?25")):
            self.is_cursor_shown = verb == "h"
        elif verb == "A":
            self.row -= int(number or 1)
            assert self.row >= 0
        elif verb == "K":
            assert number == "2"
            self.lines[self.row] = ""
        elif verb == "m":
            self.has_colours = self.has_colours or any(code not in ("", "0", "1", "2") for code in number.split(";"))
        else:
            raise AssertionError(f"ESC [ {number} {verb} reached the terminal")

    @property
    def shown(self) -> list[str]:
        return [line.rstrip() for line in self.lines if line.strip()]
