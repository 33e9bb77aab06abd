"""`online-dpo report`: a run as a page for browsers, also while the run goes on. Imports nothing heavy."""

from __future__ import annotations

import sys
import webbrowser
from pathlib import Path

from online_dpo.errors import RunDirectoryError, UserError
from online_dpo.reports.page.report import run_page
from online_dpo.reports.page.writing import REPORT, put_page
from online_dpo.store.salvage import read_what_is_left


def report(run_dir: Path, *, out: Path | None, open_it: bool) -> Path:
    """Write a run's report.

    Args:
        run_dir: of the run; it may be under way, or damaged.
        out: the file; None = in the run directory, where the run itself writes it.
        open_it: show it in the browser.

    Returns:
        The file.

    Raises:
        RunDirectoryError: there is no run, or its settings are damaged.
        UserError: the file cannot be written.
    """
    target = run_dir / REPORT if out is None else out
    if out is not None:
        expect_file(out)
    store, damage = read_what_is_left(run_dir)
    with store:
        html = run_page(store, damage)
    write_page(target, html, open_it=open_it)
    return target


def expect_file(out: Path) -> None:
    """Refuse a place where no file can be, before anything is read for it."""
    if out.is_dir():
        raise UserError(f"--out is {out}, which is a folder; give a file, such as {out / 'report.html'}")
    if not out.parent.is_dir():
        raise UserError(f"--out is {out}, and there is no folder {out.parent}; make it first, or give another file")


def write_page(out: Path, html: str, *, open_it: bool) -> None:
    """Write a page, and show it in the browser where that is asked for.

    Raises:
        UserError: the file cannot be written.
    """
    try:
        put_page(out, html)
    except (OSError, RunDirectoryError) as error:
        why = error.__cause__ if isinstance(error, RunDirectoryError) and error.__cause__ is not None else error
        raise UserError(f"{out} cannot be written ({why}); give another file with --out") from error
    if open_it:
        show_in_browser(out.resolve().as_uri())


def show_in_browser(address: str) -> None:
    """Open a page; a line says so where no browser can be started, as on a machine without a screen."""
    if not webbrowser.open(address):
        print(f"no browser could be started here; open {address} in one", file=sys.stderr)
