"""What the studies play: each run as a config and overrides, with equal pairs and optimizer steps inside a study."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

UNITS = 10
"""Parts that the prompts of every run are counted in: the rounds of a run that samples anew for each of them."""

SCHEDULES = {"offline": (1, 0), "every 5 rounds": (2, 0), "every round": (10, 0), "overlap": (10, 1)}
"""Name -> the number of rounds that the units are played in, and `overlap`."""

LOSSES: dict[str, dict[str, str]] = {
    "sigmoid": {},
    "sigmoid, wpo": {"objective.wpo": "true"},
    "ipo": {"objective": "{type: ipo, beta: 0.1}"},
    "hinge": {"objective": "{type: hinge, beta: 0.1}"},
    "simpo": {"objective": "{type: simpo}"},
    # An unpaired objective counts single answers: both of every pair, so twice as many make a step of as many pairs.
    "kto": {"objective": "{type: kto, beta: 0.1}", "learner.batch_pairs": "32"},
}
"""Name -> what differs from the task's config."""

STRATEGIES = {
    "best_vs_worst of 4": ("best_vs_worst", 4),
    "best_vs_worst of 2": ("best_vs_worst", 2),
    "best_vs_worst of 8": ("best_vs_worst", 8),
    "best_vs_second of 4": ("best_vs_second", 4),
    "random of 4": ("random", 4),
    "min_margin of 4": ("min_margin", 4),
}
"""Name -> the pair strategy, and the samples of a prompt."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Task:
    """A config that the studies change, cut into units."""

    name: str
    config: str  # below the repository
    unit_prompts: int
    unit_pairs: int  # what a unit gives where nothing is lost
    judges: tuple[str, ...]  # whose scores are reported, the training judge first
    sets: tuple[str, ...]  # of held-out prompts, that of the same kind as the training prompts first
    overrides: Mapping[str, str]


ONE_THREAD = {"generator.threads": "1", "learner.threads": "1"}  # faster on a machine that does other work too

REVIEWS = Task(
    name="reviews",
    config="configs/reviews.yaml",
    unit_prompts=64,
    unit_pairs=64,
    judges=("reward", "gold"),
    sets=("heldout",),
    overrides={
        "reference": "{type: fixed}",
        "evaluation.sets.heldout.count": "200",
        "sampling.max_tokens": "32",
        "learner.lr": "1e-3",
        **ONE_THREAD,
        "judge.threads": "1",
    },
)
ARITHMETIC = Task(
    name="arithmetic",
    config="configs/arithmetic.yaml",
    unit_prompts=128,
    unit_pairs=48,
    judges=("reward",),
    sets=("heldout", "no_carry"),
    overrides=ONE_THREAD,
)
TASKS = {task.name: task for task in (REVIEWS, ARITHMETIC)}
BATCH_PAIRS = 16  # of both configs


@dataclass(frozen=True, slots=True, kw_only=True)
class Run:
    """One run of a study."""

    arm: str  # what is compared
    task: Task
    seed: int
    overrides: Mapping[str, str]
    beside: str  # the arm that it is compared with
    alias: str | None = None  # the arm of another study whose run this is

    @property
    def name(self) -> str:
        """Of the run directory."""
        words = f"{self.task.name} {self.alias or self.arm} {self.seed}".replace(",", "")
        return words.replace(" ", "-").replace("_", "-")


def schedule_overrides(task: Task, schedule: str) -> dict[str, str]:
    """A schedule as fields of the config: the same prompts in the same order, in more rounds or fewer."""
    rounds, overlap = SCHEDULES[schedule]
    units = UNITS // rounds
    fields = {
        "run.rounds": str(rounds),
        "prompts.per_round": str(task.unit_prompts * units),
        "overlap": str(overlap),
        "evaluation.every": str(max(1, rounds // 2)),
    }
    if task.unit_pairs < task.unit_prompts:
        fields["pairing.budget"] = str(task.unit_pairs * units)
    return fields


def schedules(task: Task, seeds: Sequence[int]) -> Iterator[Run]:
    """Offline, every 5 rounds, every round, overlap."""
    for seed in seeds:
        for arm in SCHEDULES:
            fields = {**task.overrides, **schedule_overrides(task, arm), "run.seed": str(seed)}
            yield Run(arm=arm, task=task, seed=seed, overrides=fields, beside="offline")


def losses(task: Task, seeds: Sequence[int]) -> Iterator[Run]:
    """Every loss offline and with samples of every round; `sigmoid` is that of the schedules."""
    for seed in seeds:
        for loss, own in LOSSES.items():
            for schedule in ("offline", "every round"):
                fields = {**task.overrides, **schedule_overrides(task, schedule), **own, "run.seed": str(seed)}
                alias = schedule if loss == "sigmoid" else None
                arm, beside = f"{loss}, {schedule}", f"{loss}, offline"
                yield Run(arm=arm, task=task, seed=seed, overrides=fields, beside=beside, alias=alias)


def strategies(task: Task, seeds: Sequence[int]) -> Iterator[Run]:
    """Pair strategies and numbers of samples, sampled anew in every round; the first is that of the schedules."""
    for seed in seeds:
        for name, (strategy, samples) in STRATEGIES.items():
            alias = "every round" if name == "best_vs_worst of 4" else None
            own = {"pairing.strategy": strategy, "sampling.num_samples": str(samples)}
            fields = {**task.overrides, **schedule_overrides(task, "every round"), **own, "run.seed": str(seed)}
            beside = "best_vs_worst of 4"
            yield Run(arm=name, task=task, seed=seed, overrides=fields, beside=beside, alias=alias)


def planned(fields: Mapping[str, str], task: Task) -> dict[str, int]:
    """What a run will judge and train on where no prompt is without a pair."""
    rounds, prompts = int(fields["run.rounds"]), int(fields["prompts.per_round"])
    pairs = int(fields.get("pairing.budget", prompts))
    per_step = BATCH_PAIRS
    return {
        "prompts": rounds * prompts,
        "pairs": rounds * pairs,
        "steps": rounds * -(-pairs // per_step),
    }
