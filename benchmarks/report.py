"""How long the report of a large run takes to write and to open.

    python benchmarks/report.py [--rounds 50] [--prompts 500] [--samples 4] [--words 60]

Makes a run directory of that size, writes its report from nothing, after a new round, and by a process that continues
the run, then opens it in Chromium: until the page is ready, and until a search over all rounds is answered. Prints a
table; asserts nothing.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

sys.path[:0] = [str(Path(__file__).parents[1] / name) for name in ("", "tests/kits")]

from browser_kit import FLAGS, chromium_path  # noqa: E402
from shown_runs import Size, write_run  # noqa: E402

from online_dpo.reports.page.writing import REPORT, ReportWriter  # noqa: E402
from online_dpo.reports.result_reading import read_rounds  # noqa: E402
from online_dpo.store.run_store import RunStore  # noqa: E402


def seconds(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began


def opened(file: Path) -> dict[str, float]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=chromium_path(), args=[*FLAGS, "--no-sandbox"])
        page = browser.new_page()
        ready = seconds(lambda: page.goto(file.as_uri()))  # with its script, which draws the first answers

        def search() -> None:
            page.locator("#answers-controls").get_by_label("Round").select_option("all")
            page.locator("#answers-controls").get_by_label("Search").fill("no such words")
            page.locator("#answers-cards .empty").wait_for()

        found = {"until the page is ready": ready, "a search over all rounds": seconds(search)}
        browser.close()
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("rounds", 50), ("prompts", 500), ("samples", 4), ("words", 60)):
        parser.add_argument(f"--{name}", type=int, default=default)
    size = Size(held_out=100, **vars(parser.parse_args()))
    with tempfile.TemporaryDirectory() as folder:
        run_dir = Path(folder) / "run"
        write_run(run_dir, size)
        with RunStore.open(run_dir) as store:
            last = read_rounds(store.metrics())[-1]
            found = {}
            writer = ReportWriter(store, print)
            found["written from nothing"] = seconds(lambda: writer.round_done(last))
            (run_dir / f"report/rounds/{size.rounds - 1:05d}.json").unlink()
            writer = ReportWriter(store, print)
            found["after a new round, by a process that continues the run"] = seconds(lambda: writer.round_done(last))
            found["again, with nothing new"] = seconds(lambda: writer.round_done(last))
        file = run_dir / REPORT
        found |= opened(file)
        print(f"| {size.rounds * size.prompts * size.samples} completions, {file.stat().st_size / 1e6:.1f} MB | s |")
        print("|---|---|")
        for name, value in found.items():
            print(f"| {name} | {value:.2f} |")


if __name__ == "__main__":
    main()
