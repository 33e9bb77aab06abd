"""Does it pay to sample from the newest policy? Runs, tables and plots of docs/results.md, one study per command.

    python benchmarks/online_or_offline/study.py reviews --openings openings
    python benchmarks/online_or_offline/study.py arithmetic
    python benchmarks/online_or_offline/study.py losses --openings openings
    python benchmarks/online_or_offline/study.py strategies --openings openings

`reviews` and `arithmetic`: offline, every 5 rounds, every round, and rounds that overlap. `losses`: each loss offline
and with samples of every round. `strategies`: pair strategies and numbers of samples. Both are on the reviews task.
Within a study, all runs train on the same number of judged pairs in the same number of optimizer steps; the script
stops if they did not. The runs are those of `online-dpo run`; a study that was stopped goes on where it was.

The openings come from `python benchmarks/review_openings.py REVIEWS openings --per-review 12 2`. The arithmetic task
is made by the script itself: a model of random weights, and its SFT run.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from arithmetic import make_policy
from plan import ARITHMETIC, REVIEWS, Run, Task, losses, schedules, strategies
from playing import play
from reading import read_run
from tables import check_equal, markdown, plot, rows_of

STUDIES: dict[str, tuple[Task, Callable[[Task, Sequence[int]], Iterator[Run]], str]] = {
    "reviews": (REVIEWS, schedules, "kl"),
    "arithmetic": (ARITHMETIC, schedules, "kl"),
    "losses": (REVIEWS, losses, "kl"),
    "strategies": (REVIEWS, strategies, "seconds"),
}
"""Name -> the task, its runs, and what the plot's second panel goes over."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("study", choices=STUDIES)
    parser.add_argument("--runs", type=Path, default=Path("runs/online-or-offline"), help="folder of run directories")
    parser.add_argument("--openings", type=Path, default=Path("openings"))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--minutes", type=float, default=float("inf"), help="begin no run after so many")
    parser.add_argument("--out", type=Path, default=Path("docs/plots"), help="folder of the plot")
    args = parser.parse_args()
    task, plan, over = STUDIES[args.study]
    runs = list(plan(task, args.seeds))
    if task is REVIEWS:
        sources = {"prompts": args.openings / "train.jsonl", "heldout": args.openings / "heldout.jsonl"}
    else:
        sources = make_policy(args.runs / "arithmetic-task", args.runs)
    if left := play(runs, args.runs, overrides_of(sources), args.minutes):
        raise SystemExit(f"{left} runs are left; the same command goes on")
    found = {
        arm: [read_run(args.runs / run.name, task.sets, task.judges) for run in runs if run.arm == arm]
        for arm in dict.fromkeys(run.arm for run in runs)
    }
    check_equal(found)
    print(markdown(rows_of(task, found, {run.arm: run.beside for run in runs}, seconds=over == "seconds")))
    plot(task, found, args.out / f"online-or-offline-{args.study}.svg", over=over)


def overrides_of(sources: dict[str, Path]) -> dict[str, str]:
    """Where a task's files are, as fields of the config: the model, the prompts, the sets that are held out."""
    fields = {"model": "model.path", "prompts": "prompts.source"}
    return {fields.get(name, f"evaluation.sets.{name}.source"): str(path) for name, path in sources.items()}


if __name__ == "__main__":
    main()
