"""Charts by domain: a line for each. Charts of several runs with the same key can be joined."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

from online_dpo.reports.page.charts import Chart, Point, Series
from online_dpo.reports.results import DomainResult, EvaluationResult, RoundResult

Rounds = Sequence[RoundResult]
Evaluated = Sequence[tuple[int, Mapping[str, EvaluationResult]]]
"""Policy version -> domain -> what was found."""


def domain_charts(rounds: Rounds, initial: Mapping[str, EvaluationResult]) -> Iterator[Chart]:
    """Of the rounds' own samples and of every evaluation set, where there are several domains.

    Args:
        rounds: the finished ones.
        initial: evaluation set -> the initial policy on it.
    """
    if len({domain for r in rounds for domain in r.domains}) > 1:
        yield _own(rounds, "reward", "Reward by domain", "score of the training judge", lambda d: d.reward)
        yield _own(rounds, "used", "Prompts used by domain", "share that gave something to train on", _share_used)
        yield _own(
            rounds, "length", "Length by domain", "tokens per completion", lambda d: d.sampling.length_mean
        )  # fmt: skip
    for name in dict.fromkeys([*initial, *(name for r in rounds for name in r.evaluation)]):
        versions = [(0, initial.get(name)), *((r.policy_version, r.evaluation.get(name)) for r in rounds)]
        evaluated = [(version, found.domains) for version, found in versions if found is not None]
        if len({domain for _, domains in evaluated for domain in domains}) > 1:
            yield from _of_set(name, evaluated)


def _own(rounds: Rounds, key: str, title: str, unit: str, read: Callable[[DomainResult], float | None]) -> Chart:
    domains = sorted({domain for r in rounds for domain in r.domains})
    points = {
        domain: [
            Point(r.policy_version, value)
            for r in rounds
            if domain in r.domains and (value := read(r.domains[domain])) is not None
        ]
        for domain in domains
    }
    return Chart(
        key=f"domains-{key}", title=title, unit=unit, note="Of the rounds' own samples.",
        series=[Series(name=domain, points=points[domain]) for domain in domains],
        within=(0.0, 1.0) if key == "used" else None,
    )  # fmt: skip


def _share_used(found: DomainResult) -> float | None:
    drawn, used = found.sampling.num_prompts, found.num_prompts_used
    return None if not drawn or used is None else used / drawn


def _of_set(name: str, evaluated: Evaluated) -> Iterator[Chart]:
    domains = sorted({domain for _, found in evaluated for domain in found})
    judges = dict.fromkeys(judge for _, found in evaluated for e in found.values() for judge in e.judges)
    for judge in judges:
        yield Chart(
            key=f"domains-{name}-judge-{judge}", title=f"{judge} on {name} by domain", unit="mean score",
            note="The bands are 95 % intervals of the gain over the initial policy.",
            series=[Series(name=domain, points=_scores(evaluated, domain, judge)) for domain in domains],
        )  # fmt: skip
    yield Chart(
        key=f"domains-{name}-kl", title=f"KL on {name} by domain", unit="nats per completion, to the initial policy",
        series=[
            Series(
                name=domain,
                points=[
                    Point(version, kl)
                    for version, found in evaluated
                    if domain in found and (kl := found[domain].kl_initial) is not None
                ],
            )
            for domain in domains
        ],
    )  # fmt: skip


def _scores(evaluated: Evaluated, domain: str, judge: str) -> list[Point]:
    points = []
    for version, found in evaluated:
        said = found[domain].judges.get(judge) if domain in found else None
        if said is not None and said.mean is not None:
            low, high = None, None
            if said.gain is not None:  # as far from the mean as the gain's interval is from the gain
                low, high = (said.mean + end - said.gain.value for end in (said.gain.low, said.gain.high))
            points.append(Point(version, said.mean, low, high))
    return points
