"""The seconds from the command to the first sampled token, and which process spent what on them.

    python benchmarks/startup.py [--config configs/reviews.yaml] [--repeats 3] [KEY=VALUE ...]

Starts the command as a user does, with `sampling.max_tokens=1`, so that the first shard which the run commits holds
first tokens and nothing else, and interrupts the run then. Prints when each line of the command came and what every
process had spent, medians over the repeats; one start before them fills the page cache. Asserts nothing.
"""

from __future__ import annotations

import argparse
import os
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Mapping, Sequence
from pathlib import Path

import psutil
from one_table import note

FIRST = "first tokens committed"
LOOK_S = 0.05


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", default="configs/reviews.yaml")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("overrides", nargs="*", metavar="KEY=VALUE")
    args = parser.parse_args()
    start(args.config, args.overrides)
    starts = [start(args.config, args.overrides) for _ in range(args.repeats)]
    for title, measured in (("s from the command to", [s[0] for s in starts]), ("CPU s of", [s[1] for s in starts])):
        print(f"| {title} | |\n|---|---|")
        for name in measured[0]:
            print(f"| {name} | {statistics.median(m.get(name, 0.0) for m in measured):.1f} |")
        print()
    print(f"each start: {', '.join(f'{seen[FIRST]:.1f}' for seen, _ in starts)} s")
    floor = statistics.median(spent["all"] for _, spent in starts) / (os.cpu_count() or 1)
    first = statistics.median(seen[FIRST] for seen, _ in starts)
    note("start to first tokens", first, unit="s", beside="its CPU seconds over all cores", other=floor, aim="25 s")


def start(config: str, overrides: Sequence[str]) -> tuple[dict[str, float], dict[str, float]]:
    """One start: seconds until each line of the command and the first tokens, and CPU seconds by process."""
    with tempfile.TemporaryDirectory() as folder:
        settings = [f"run.dir={folder}", "run.name=startup", "sampling.max_tokens=1", *overrides]
        began = time.monotonic()
        command = [sys.executable, "-m", "online_dpo", "run", config, *settings]
        process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        seen: dict[str, float] = {}
        reader = threading.Thread(target=_read, args=(process, began, seen))
        reader.start()
        spent: dict[int, tuple[str, float]] = {}
        while not any(Path(folder).glob("startup/rounds/*/**/completions/shard-*.parquet")):
            if process.poll() is not None:
                sys.exit(f"the run ended with code {process.returncode}: {list(seen)}")
            _count(process.pid, spent)
            time.sleep(LOOK_S)
        seen[FIRST] = time.monotonic() - began
        _count(process.pid, spent)
        process.send_signal(signal.SIGINT)
        process.wait()
        reader.join()
    upto = {line: when for line, when in seen.items() if when <= seen[FIRST]}
    return upto, _by_name(spent.values())


def _read(process: subprocess.Popen[str], began: float, seen: dict[str, float]) -> None:
    assert process.stdout is not None
    for line in process.stdout:
        seen.setdefault(line.strip(), time.monotonic() - began)


def _count(root: int, spent: dict[int, tuple[str, float]]) -> None:
    """CPU seconds of a process and all that it started, kept for those that have ended since."""
    command = psutil.Process(root)
    for process in (command, *command.children(recursive=True)):
        try:
            times = process.cpu_times()
            spent[process.pid] = _name(process, root), times.user + times.system
        except psutil.Error:
            continue


def _name(process: psutil.Process, root: int) -> str:
    words = process.cmdline() or [process.name()]
    if process.pid == root:
        return "the command itself"
    if words[0].startswith("ray::"):
        return words[0].split("(")[0].split(".")[0]
    inner = next((word for word in words[1:] if word.endswith((".py", ".main"))), None)
    if inner is None and "-c" in words:
        return "a judge's own process"
    return Path(inner or words[0]).name


def _by_name(spent: Mapping[int, tuple[str, float]] | Sequence[tuple[str, float]]) -> dict[str, float]:
    found: dict[str, float] = {}
    for name, seconds in spent:
        found[name] = found.get(name, 0.0) + seconds
    ordered = dict(sorted(found.items(), key=lambda item: -item[1]))
    return {**ordered, "all": sum(ordered.values())}


if __name__ == "__main__":
    main()
