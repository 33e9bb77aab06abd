"""Which charts a run has: its figures over the rounds. Charts of several runs with the same key can be joined."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from online_dpo.reports.page.charts import Chart, Point, Series
from online_dpo.reports.page.domain_charts import domain_charts
from online_dpo.reports.page.run_record import reports_of
from online_dpo.reports.results import Estimate, EvaluationResult, JudgeEvaluation, JudgeReport, RoundResult
from online_dpo.reports.yields import GAVE
from online_dpo.types import REWARD

Initial = Mapping[str, EvaluationResult]
Rounds = Sequence[RoundResult]

OWN = "the round's own samples"
_GAIN_BAND = "Mean score of fresh samples. The band is the 95 % interval of the gain over the initial policy."


def run_charts(rounds: Rounds, initial: Initial) -> list[Chart]:
    """Every chart of a run, in the order of a page; `charts.draw` leaves out what has no points.

    Args:
        rounds: the finished ones.
        initial: evaluation set -> the initial policy on it.
    """
    return [
        *_quality(rounds, initial),
        *domain_charts(rounds, initial),
        *_update(rounds),
        *_samples(rounds, initial),
        *_work(rounds),
    ]


def judge_charts(rounds: Rounds) -> list[Chart]:
    """About the judges themselves."""
    shares: dict[str, tuple[str, str, float | None, dict[str, Callable[[JudgeReport], float | None]]]] = {
        "agreement": (
            "Agreement", "share with the same winner; Krippendorff's alpha", None,
            {
                "asked in both orders": lambda j: j.order_consistency,
                "asked again": lambda j: j.repeat_agreement,
                "alpha of members or people": _alpha,
            },
        ),
        "bias": (
            "Position and length", "share of decided comparisons", 0.5,
            {"the first one wins": lambda j: j.first_wins, "the longer one wins": lambda j: j.longer_wins},
        ),
        "abstentions": ("Abstentions", "share of the verdicts", None, {"": lambda j: j.abstention_rate}),
    }  # fmt: skip
    names = dict.fromkeys(name for r in rounds for name, _ in reports_of(r))
    return [
        Chart(
            key=f"judges-{key}", title=title, unit=unit, level=level, within=(0.0, 1.0),
            series=[
                Series(name=f"{name}: {line}" if line else name, points=_points(rounds, _of_report(name, read)))
                for name in names
                for line, read in lines.items()
            ],
        )
        for key, (title, unit, level, lines) in shares.items()
    ]  # fmt: skip


def _of_report(name: str, read: Callable[[JudgeReport], float | None]) -> Callable[[RoundResult], float | None]:
    def value(result: RoundResult) -> float | None:
        report = dict(reports_of(result)).get(name)
        return None if report is None else read(report)

    return value


def _alpha(report: JudgeReport) -> float | None:
    """Of people, or else of the first ensemble that has one."""
    if report.people is not None:
        return report.people.get("alpha")
    alphas = (found.get("alpha", found.get("alpha_scores")) for found in report.ensembles.values())
    return next((alpha for alpha in alphas if alpha is not None), None)


def _quality(rounds: Rounds, initial: Initial) -> Iterator[Chart]:
    """What improved, and at what price."""
    judged = list(_judged(rounds, initial))
    reward = [(name, judge) for name, judge in judged if judge == REWARD]
    own = Series(name=OWN, points=_points(rounds, lambda r: r.judging.reward))
    yield Chart(
        key="reward", title="Reward", unit="score of the training judge", note=_GAIN_BAND,
        series=[*(_scores(rounds, initial, name, judge) for name, judge in reward), own],
    )  # fmt: skip
    for judge in dict.fromkeys(judge for _, judge in judged if judge != REWARD):
        sets = [name for name, other in judged if other == judge]
        yield Chart(
            key=f"judge-{judge}", title=f"Judge {judge}", unit="score", note=_GAIN_BAND,
            series=[_scores(rounds, initial, name, judge) for name in sets],
        )  # fmt: skip
    yield Chart(
        key="wins", title="Win rate", unit="share of prompts won against the initial policy", level=0.5,
        note="Equal scores are half a win. The line is one half; the bands are 95 % intervals.",
        series=[Series(name=f"{judge} on {name}", points=_wins(rounds, name, judge)) for name, judge in judged],
    )  # fmt: skip
    sets = _sets(rounds, initial)
    yield Chart(
        key="kl", title="KL", unit="nats per completion",
        series=[
            Series(name=f"to {what} policy, {name}" if what == "the initial" else f"to {what}, {name}", points=points)
            for name in sets
            for what, points in (
                ("the initial", _evaluated(rounds, initial, name, lambda e: e.kl_initial)),
                ("the reference", _evaluated(rounds, initial, name, lambda e: e.kl_reference)),
            )
        ],
    )  # fmt: skip
    yield Chart(
        key="frontier", title="Gain against KL", unit="gain over the initial policy", kind="path",
        x_name="KL to the initial policy",
        note="Each mark is a policy, from the initial one on; up and to the left is better.",
        series=[Series(name=f"{judge} on {name}", points=_frontier(rounds, name, judge)) for name, judge in judged],
    )  # fmt: skip
    held_out = {name: None for r in rounds for name in r.evaluation_pairs}
    yield Chart(
        key="preferences", title="Held-out preferences", unit="share of pairs that the policy has right", level=0.5,
        series=[
            Series(name=name, points=_points(rounds, _held_out(name, "accuracy"))) for name in held_out
        ],
    )  # fmt: skip
    yield Chart(
        key="demonstrations", title="Held-out demonstrations", unit="loss, nats per token",
        series=[
            Series(name=name, points=_points(rounds, _held_out(name, "loss"))) for name in held_out
        ],
    )  # fmt: skip


def _update(rounds: Rounds) -> Iterator[Chart]:
    """The optimizer's steps."""
    yield _trained("loss", "Loss", "per pair, mean over the round's steps", rounds, {"loss": lambda r: r.learning.loss})
    yield _trained(
        "margin", "Reward margin", "beta times the difference of the log-ratios", rounds,
        {"margin": lambda r: r.learning.reward_margin},
    )  # fmt: skip
    accuracy = _trained(
        "accuracy", "Reward accuracy", "share of pairs with a positive margin", rounds,
        {"accuracy": lambda r: r.learning.reward_accuracy}, level=0.5,
    )  # fmt: skip
    yield accuracy
    yield _trained(
        "log-ratios", "Log-ratios", "nats per completion, to the round's reference", rounds,
        {
            "chosen": lambda r: r.learning.chosen_log_ratio,
            "rejected": lambda r: r.learning.rejected_log_ratio,
        },
    )  # fmt: skip


def _samples(rounds: Rounds, initial: Initial) -> Iterator[Chart]:
    """What the answers look like."""
    sets = _sets(rounds, initial)
    own: dict[str, Callable[[RoundResult], float | None]] = {
        OWN: lambda r: r.sampling.length_mean,
        "their answers": lambda r: r.sampling.answer_length_mean,
        "chosen": lambda r: r.pairs.chosen_length_mean,
        "rejected": lambda r: r.pairs.rejected_length_mean,
    }
    yield Chart(
        key="length", title="Length", unit="tokens per completion",
        series=[
            *_of_sets(rounds, initial, sets, {"": lambda e: e.sampling.length_mean}),
            *(Series(name=name, points=_points(rounds, read)) for name, read in own.items()),
        ],
    )  # fmt: skip
    diversity: dict[str, Callable[[EvaluationResult], float | None]] = {
        "distinct-1": lambda e: e.sampling.distinct_1,
        "distinct-2": lambda e: e.sampling.distinct_2,
        "distinct-3": lambda e: e.sampling.distinct_3,
        "duplicates": lambda e: e.sampling.duplicate_rate,
    }
    yield Chart(
        key="diversity", title="Diversity", unit="share of different word sequences; of repeated answers",
        within=(0.0, 1.0),
        series=_of_sets(rounds, initial, sets, diversity)
        or [Series(name="distinct-2", points=_points(rounds, lambda r: r.sampling.distinct_2))],
    )  # fmt: skip
    yield Chart(
        key="self-bleu", title="Self-BLEU", unit="0 to 100; high where answers resemble each other",
        series=_of_sets(rounds, initial, sets, {"self-BLEU": lambda e: e.sampling.self_bleu}),
    )  # fmt: skip
    yield Chart(
        key="entropy", title="Entropy", unit="nats per token",
        series=_of_sets(rounds, initial, sets, {"entropy": lambda e: e.entropy}),
    )  # fmt: skip
    yield Chart(
        key="ended", title="Answers that end by themselves", unit="share; the others are cut at sampling.max_tokens",
        within=(0.0, 1.0),
        series=[
            *_of_sets(rounds, initial, sets, {"": lambda e: e.sampling.eos_rate}),
            Series(name=OWN, points=_points(rounds, lambda r: r.sampling.eos_rate)),
        ],
    )  # fmt: skip


def _work(rounds: Rounds) -> Iterator[Chart]:
    """What became of the prompts, and where the time went."""
    reasons = dict.fromkeys(name for r in rounds for name, number in r.pairs.outcomes.items() if number)
    ordered = [*(name for name in reasons if name in GAVE), *(name for name in reasons if name not in GAVE)]
    yield Chart(
        key="yield", title="What became of the prompts", unit="prompts", kind="bars",
        series=[
            Series(name=name.replace("_", " "), points=_points(rounds, lambda r, name=name: r.pairs.outcomes.get(name)))  # type: ignore[misc]
            for name in ordered
        ],
    )  # fmt: skip
    stages = dict.fromkeys(stage for r in rounds for stage in r.seconds)
    yield Chart(
        key="seconds", title="Seconds by stage", unit="seconds", kind="bars",
        note="Of the process that finished the round.",
        series=[
            Series(name=stage, points=_points(rounds, lambda r, stage=stage: r.seconds.get(stage)))  # type: ignore[misc]
            for stage in stages
        ],
    )  # fmt: skip


def _trained(
    key: str,
    title: str,
    unit: str,
    rounds: Rounds,
    lines: Mapping[str, Callable[[RoundResult], float | None]],
    level: float | None = None,
) -> Chart:
    series = [Series(name=name, points=_points(rounds, read)) for name, read in lines.items()]
    return Chart(key=key, title=title, unit=unit, series=series, level=level)


def _points(rounds: Rounds, read: Callable[[RoundResult], float | None]) -> list[Point]:
    found = ((r.policy_version, read(r)) for r in rounds)
    return [Point(x, value) for x, value in found if value is not None]


def _evaluated(
    rounds: Rounds, initial: Initial, name: str, read: Callable[[EvaluationResult], float | None]
) -> list[Point]:
    versions: Iterable[tuple[int, Mapping[str, EvaluationResult]]] = [
        (0, initial),
        *((r.policy_version, r.evaluation) for r in rounds),
    ]
    found = [(x, read(sets[name])) for x, sets in versions if name in sets]
    return [Point(x, value) for x, value in found if value is not None]


def _of_sets(
    rounds: Rounds,
    initial: Initial,
    sets: Sequence[str],
    lines: Mapping[str, Callable[[EvaluationResult], float | None]],
) -> list[Series]:
    """A line for each figure of each set; the name of the set only where there are several."""
    return [
        Series(
            name=(f"{line} on {name}" if line else name) if len(sets) > 1 or not line else line,
            points=_evaluated(rounds, initial, name, read),
        )
        for name in sets
        for line, read in lines.items()
    ]


def _scores(rounds: Rounds, initial: Initial, name: str, judge: str) -> Series:
    start = initial[name].judges[judge].mean if name in initial and judge in initial[name].judges else None
    points = [] if start is None else [Point(0, start, start, start)]
    for version, found in _said(rounds, name, judge):
        if found.mean is not None:
            low, high = (None, None)
            if found.gain is not None and start is not None:
                low, high = start + found.gain.low, start + found.gain.high
            points.append(Point(version, found.mean, low, high))
    return Series(name=name, points=points)


def _wins(rounds: Rounds, name: str, judge: str) -> list[Point]:
    return [Point(v, *_plain(found.win_rate)) for v, found in _said(rounds, name, judge) if found.win_rate is not None]


def _frontier(rounds: Rounds, name: str, judge: str) -> list[Point]:
    points = [
        Point(r.evaluation[name].kl_initial or 0.0, *_plain(gain))
        for r in rounds
        if name in r.evaluation and r.evaluation[name].kl_initial is not None
        if (found := r.evaluation[name].judges.get(judge)) is not None and (gain := found.gain) is not None
    ]
    return [Point(0.0, 0.0), *points] if points else []


def _said(rounds: Rounds, name: str, judge: str) -> Iterator[tuple[int, JudgeEvaluation]]:
    for r in rounds:
        if name in r.evaluation and judge in r.evaluation[name].judges:
            yield r.policy_version, r.evaluation[name].judges[judge]


def _plain(estimate: Estimate) -> tuple[float, float, float]:
    return estimate.value, estimate.low, estimate.high


def _held_out(name: str, figure: str) -> Callable[[RoundResult], float | None]:
    return lambda r: r.evaluation_pairs.get(name, {}).get(figure)


def _sets(rounds: Rounds, initial: Initial) -> list[str]:
    return list(dict.fromkeys([*initial, *(name for r in rounds for name in r.evaluation)]))


def _judged(rounds: Rounds, initial: Initial) -> Iterator[tuple[str, str]]:
    """Evaluation sets with their judges."""
    found = [initial, *(r.evaluation for r in rounds)]
    yield from dict.fromkeys((name, judge) for sets in found for name, e in sets.items() for judge in e.judges)
