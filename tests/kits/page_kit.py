"""Pages as their readers get them: what a parser finds in the HTML, and runs that are made to be shown."""

from __future__ import annotations

import json
from collections.abc import Sequence
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

from loop_runs import Run

from online_dpo.reports.page.report import run_page
from online_dpo.store.salvage import read_what_is_left

GOLD = {"gold": {"type": "python", "target": "none:none"}}


class Page(HTMLParser):
    """A page, parsed.

    Attributes:
        data: the JSON values for the script.
        tables: id of the figure, or caption -> rows of cells.
        text: all that a person can read, without what the script adds.
        tags: every tag with its attributes.
    """

    def __init__(self, html: str) -> None:
        super().__init__()
        self.tables: dict[str, list[list[str]]] = {}
        self.tags: list[tuple[str, dict[str, str | None]]] = []
        self._inside: list[str] = []
        self._table, self._cells, self._texts = "", [""], [""]
        self._script = ""
        self.feed(html)
        self.data: Any = json.loads(self._script)
        self.text = " ".join("".join(self._texts).split())

    def handle_starttag(self, tag: str, attrs: Any) -> None:
        found = dict(attrs)
        self.tags.append((tag, found))
        if tag not in ("meta", "link", "input", "path", "rect", "circle"):
            self._inside.append(tag if found.get("type") != "application/json" else "data")
        if tag == "figure":
            self._table = found["id"] or ""
        if tag == "table":
            self.tables.setdefault(self._table, [])
        if tag == "tr":
            self.tables[self._table].append([])
        if tag in ("td", "th", "caption"):
            self._cells = [""]

    def handle_endtag(self, tag: str) -> None:
        if self._inside and tag not in ("meta", "link", "input", "path", "rect", "circle"):
            self._inside.pop()
        if tag == "caption":
            self.tables[self._cells[0]] = self.tables.pop(self._table)
            self._table = self._cells[0]
        if tag in ("td", "th"):
            self.tables[self._table][-1].append(self._cells[0])
        if tag == "table":
            self._table = ""

    def handle_data(self, data: str) -> None:
        where = self._inside[-1] if self._inside else ""
        if where == "data":
            self._script += data
        elif where not in ("script", "style"):
            self._texts.append(data)
            self._cells[0] += data


def page_of(path: Path) -> Page:
    """The report of a run directory."""
    store, damage = read_what_is_left(path)
    with store:
        return Page(run_page(store, damage))


def played(folder: Path, **sections: Any) -> Run:
    """A run of two rounds over fakes, with an independent judge."""
    run = Run.of(folder, **{"evaluation__judges": GOLD, **sections})
    run.go_on()
    return run


def column(rows: Sequence[Sequence[str]], name: str) -> list[str]:
    """Of a table whose first row is its header."""
    place = list(rows[0]).index(name)
    return [row[place] for row in rows[1:]]
