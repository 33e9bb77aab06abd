"""Markdown tables of finished runs of one config with different seeds: means by policy, and each seed's last interval.

python benchmarks/results_table.py RUN_DIR [RUN_DIR ...] [--set heldout] [--also entropy]
"""

from __future__ import annotations

import argparse
from pathlib import Path
from statistics import mean
from typing import Any

from online_dpo.commands.status import read_status

JUDGES = ("reward", "gold")
FIGURES = ("kl_initial", "length_mean", "distinct_2")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("run_dirs", type=Path, nargs="+")
    parser.add_argument("--set", default="heldout")
    parser.add_argument("--also", nargs="*", default=[], help="further figures of an evaluation, such as entropy")
    args = parser.parse_args()
    runs = [read_status(run_dir) for run_dir in args.run_dirs]

    def figures(run: dict[str, Any], version: int) -> dict[str, Any]:
        if version == 0:
            return next(dict(record) for record in run["initial"] if record["set"] == args.set)
        return dict(run["rounds"][version - 1]["evaluation"][args.set])

    def averages(version: int) -> list[float]:
        found = [figures(run, version) for run in runs]
        by_judge = [mean(one["judges"][judge]["mean"] for one in found) for judge in JUDGES]
        return by_judge + [mean(one[name] for one in found) for name in (*FIGURES, *args.also)]

    stages = list(dict.fromkeys(stage for run in runs for record in run["rounds"] for stage in record["seconds"]))
    print(
        f"Mean of {len(runs)} seeds, by policy version (0 = the initial policy); seconds of the round that made it.\n"
    )
    print(
        "| policy | reward | gold | KL to initial | length | distinct-2 | "
        + "".join(f"{name} | " for name in args.also)
        + " | ".join(f"{s} s" for s in stages)
        + " |"
    )
    print("|" + "---|" * (len(JUDGES) + len(FIGURES) + len(args.also) + 1 + len(stages)))
    for version in range(runs[0]["num_finished"] + 1):
        cells = [f"{value:.3f}" for value in averages(version)]
        for stage in stages:
            seconds = [run["rounds"][version - 1]["seconds"].get(stage, 0.0) for run in runs] if version else []
            cells.append(f"{mean(seconds):.1f}" if seconds else "")
        print(f"| {version} | " + " | ".join(cells) + " |")
    print("\nGain of the last policy over the initial one, with paired-bootstrap 95 % intervals over prompts.\n")
    print("| run | reward | gold | KL to initial |\n|---|---|---|---|")
    for run in runs:
        last = figures(run, run["num_finished"])
        gains = ["{:+.3f} [{:+.3f}, {:+.3f}]".format(*last["judges"][judge]["gain"]) for judge in JUDGES]
        print(f"| {Path(run['run_dir']).name} | {gains[0]} | {gains[1]} | {last['kl_initial']:.1f} |")


if __name__ == "__main__":
    main()
