"""`online-dpo compare`: several runs on one page for browsers, also while they go on. Imports nothing heavy."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from online_dpo.commands.report import expect_file, write_page
from online_dpo.reports.comparing.report import comparison_page
from online_dpo.reports.comparing.runs import read_runs


def compare(run_dirs: Sequence[Path], *, out: Path, open_it: bool) -> Path:
    """Write the comparison of runs.

    Args:
        run_dirs: of the runs, 2 to 12; they may be under way, or damaged.
        out: the file.
        open_it: show it in the browser.

    Returns:
        The file.

    Raises:
        RunDirectoryError: one of the folders holds no run, or its settings are damaged.
        UserError: there are too few or too many runs, one is given twice, or the file cannot be written.
    """
    expect_file(out)
    write_page(out, comparison_page(read_runs(run_dirs)), open_it=open_it)
    return out
