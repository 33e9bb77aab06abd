"""Gold score against KL on the reviews task, for several betas, references and brakes: runs, a table and a plot.

    python benchmarks/review_openings.py REVIEWS.jsonl.gz openings
    python benchmarks/frontier.py openings [--out docs/plots/frontier.svg] [--rounds 8] [--only NAME ...]

Every variant is `configs/reviews.yaml` with a few overrides, run one after the other in runs/frontier-NAME; runs that
are finished already are only read. The plot needs matplotlib (extra `dev`).
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path
from typing import Any

from online_dpo.commands.status import read_status

FIXED, EVERY, ENSEMBLE = "{type: fixed}", "{type: every, rounds: 1}", "{type: ensemble, last: 3}"
FAST = {"learner.lr": "2.0e-3", "reference": EVERY}  # what DESIGN section 9 saw end in word salad

VARIANTS: dict[str, dict[str, str]] = {
    "fixed-beta-0.03": {"learner.lr": "1.0e-3", "reference": FIXED, "objective.beta": "0.03"},
    "fixed-beta-0.1": {"learner.lr": "1.0e-3", "reference": FIXED},
    "fixed-beta-0.3": {"learner.lr": "1.0e-3", "reference": FIXED, "objective.beta": "0.3"},
    "every-1-fast": FAST,
    "every-1-fast-budget-stop": {**FAST, "drift": "{max_kl: 15.0, action: stop}"},
    "every-1-fast-budget-raise": {**FAST, "drift": "{max_kl: 5.0, action: raise_beta, factor: 4.0}"},
    "every-1-fast-alarm-stop": {**FAST, "alarm": "{action: stop, bands: {distinct_2: 1.05, self_bleu: 1.3}}"},
    "every-1-fast-adaptive": {**FAST, "objective.beta": "{type: adaptive, start: 0.1, target_kl: 2.0}"},
    "ensemble-3-fast": {**FAST, "reference": ENSEMBLE},
}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("openings", type=Path)
    parser.add_argument("--out", type=Path, default=Path("docs/plots/frontier.svg"))
    parser.add_argument("--rounds", type=int, default=8)
    parser.add_argument("--only", nargs="*", choices=VARIANTS)
    args = parser.parse_args()
    curves = {}
    for name in args.only or VARIANTS:
        overrides = {
            "run.name": f"frontier-{name}",
            "run.rounds": str(args.rounds),
            "prompts.source": str(args.openings / "train.jsonl"),
            "evaluation.sets.heldout.source": str(args.openings / "heldout.jsonl"),
            "evaluation.sets.heldout.count": "100",
            **VARIANTS[name],
        }
        command = [sys.executable, "-m", "online_dpo.cli", "run", "configs/reviews.yaml"]
        done = subprocess.run([*command, *(f"{key}={value}" for key, value in overrides.items())])
        curves[name] = curve_of(Path("runs") / f"frontier-{name}")
        print(f"{name}: exit code {done.returncode}, {len(curves[name]) - 1} rounds", file=sys.stderr, flush=True)
    print_table(curves)
    plot(curves, args.out)


def curve_of(run_dir: Path) -> list[dict[str, Any]]:
    """The held-out figures of every policy, the initial one first."""
    status = read_status(run_dir)
    initial = next(dict(record) for record in status["initial"] if record["set"] == "heldout")
    return [initial, *(dict(record["evaluation"]["heldout"]) for record in status["rounds"])]


def print_table(curves: dict[str, list[dict[str, Any]]]) -> None:
    print("| variant | rounds | reward gain | gold gain | KL to initial | distinct-2 | self-BLEU | gold gain per nat |")
    print("|---|---|---|---|---|---|---|---|")
    for name, curve in curves.items():
        last = curve[-1]
        gains = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*last["judges"][judge]["gain"]) for judge in ("reward", "gold")]
        per_nat = last["judges"]["gold"]["gain"][0] / last["kl_initial"] if last["kl_initial"] else float("nan")
        print(
            f"| {name} | {len(curve) - 1} | {gains[0]} | {gains[1]} | {last['kl_initial']:.1f} | "
            f"{last['distinct_2']:.3f} | {last['self_bleu']:.1f} | {per_nat:.3f} |"
        )


def plot(curves: dict[str, list[dict[str, Any]]], out: Path) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams["svg.hashsalt"] = "online-dpo"  # the same figures give the same file
    from matplotlib import pyplot

    figure, axes = pyplot.subplots(figsize=(9, 5.5))
    for name, curve in curves.items():
        kls = [max(point["kl_initial"], 1e-3) for point in curve]
        axes.plot(
            kls,
            [point["judges"]["gold"]["mean"] for point in curve],
            marker="o",
            markersize=3,
            linewidth=1.2,
            label=name,
        )
    axes.set_xscale("symlog", linthresh=1.0)
    axes.set_xlabel("KL to the initial policy, nats per completion")
    axes.set_ylabel("gold score, log-odds")
    axes.grid(alpha=0.3)
    axes.legend(fontsize=8)
    out.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(out, metadata={"Date": None}, bbox_inches="tight")


if __name__ == "__main__":
    main()
