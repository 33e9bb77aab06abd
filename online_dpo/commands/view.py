"""`online-dpo view`: the report of a run in the browser, kept up to date while the run goes on."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from online_dpo.commands.report import show_in_browser
from online_dpo.reports.page.live import LivePage
from online_dpo.reports.page.serving import serve
from online_dpo.serving import LOOPBACK, listen
from online_dpo.store.salvage import read_what_is_left


def view(run_dir: Path, *, port: int, open_it: bool, tell: Callable[[str], None]) -> None:
    """Serve a run's report on this machine until Ctrl-C.

    Args:
        run_dir: of the run; it may be under way, killed, resumed or finished meanwhile.
        port: to listen at; 0 = any free one.
        open_it: show it in the browser.
        tell: takes a line for people.

    Raises:
        RunDirectoryError: there is no run, or its settings are damaged.
        UserError: the port cannot be used.
    """
    store, _ = read_what_is_left(run_dir)
    store.close()
    listener = listen(LOOPBACK, port)
    address = f"http://{LOOPBACK}:{listener.getsockname()[1]}/"
    tell(f"report of {run_dir}: {address} (Ctrl-C ends it)")
    if open_it:
        show_in_browser(address)  # the socket listens already
    serve(LivePage(run_dir), listener)
