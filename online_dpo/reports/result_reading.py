"""Lines of `metrics.jsonl` -> typed results. Every figure ends in a field of its name, or in an `extra`."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import fields, replace
from typing import Any, TypeVar

from online_dpo.reports.results import (
    DomainResult,
    Estimate,
    EvaluationResult,
    JudgeEvaluation,
    JudgeReport,
    JudgingResult,
    LearningResult,
    PairsResult,
    PushResult,
    RoundResult,
    SamplingResult,
)
from online_dpo.types import REWARD

Record = TypeVar("Record")


def read_rounds(records: Iterable[Mapping[str, Any]]) -> tuple[RoundResult, ...]:
    """The finished rounds of the lines of `metrics.jsonl`."""
    checks: dict[int, list[Mapping[str, Any]]] = {}
    found = []
    for record in records:
        if record["kind"] in ("pushed", "rescored"):
            checks.setdefault(record["round"], []).append(record)
        elif record["kind"] == "round_done":
            found.append(read_round(record, checks.get(record["round"], ())))
    return tuple(found)


def read_initial(records: Iterable[Mapping[str, Any]]) -> dict[str, EvaluationResult]:
    """Evaluation set -> the initial policy on it, of the lines of `metrics.jsonl`."""
    place = ("kind", "round", "time", "set", "policy_version")
    return {
        record["set"]: _evaluation({key: value for key, value in record.items() if key not in place})
        for record in records
        if record["kind"] == "evaluated" and record["policy_version"] == 0
    }


def read_round(record: Mapping[str, Any], checks: Iterable[Mapping[str, Any]] = ()) -> RoundResult:
    """One round.

    Args:
        record: its line of the kind `round_done`.
        checks: its lines of the kinds `pushed` and `rescored`.
    """
    left = {key: value for key, value in record.items() if key != "kind"}
    judges = {name: _report(found) for name, found in left.pop("judges", {}).items()}
    # What the training judge counted stands in the line itself, too.
    counters = judges[REWARD].counters if REWARD in judges else {}
    left = {key: value for key, value in left.items() if key not in counters}
    sampling = _take(SamplingResult, left)
    judging = _take(JudgingResult, left, judges=judges)
    pairs = _take(PairsResult, left)
    counts = {key: left.pop(key) for key in list(left) if "comparisons" in key or key.startswith("num_offline_")}
    return _take(
        RoundResult,
        left,
        reference_versions=tuple(left.pop("reference_versions", ())),
        warnings=tuple(left.pop("warnings", ())),
        sampling=sampling,
        judging=judging,
        pairs=replace(pairs, counts=counts),
        domains={name: _domain(found) for name, found in left.pop("domains", {}).items()},
        learning=_take(LearningResult, left),
        evaluation={name: _evaluation(found) for name, found in left.pop("evaluation", {}).items()},
        push=_push(checks),
    )


def _push(checks: Iterable[Mapping[str, Any]]) -> PushResult:
    worst: dict[str, Any] = {}
    for check in checks:
        what = "probe" if check["kind"] == "pushed" else "sampled"
        if worst.get(f"{what}_gap") is None or check[f"{what}_gap"] > worst[f"{what}_gap"]:
            worst |= check
    return _take(PushResult, worst)


def _evaluation(record: Mapping[str, Any]) -> EvaluationResult:
    left = dict(record)
    judges = {name: _judged(found) for name, found in left.pop("judges", {}).items()}
    domains = {name: _evaluation(found) for name, found in left.pop("domains", {}).items()}
    return _take(EvaluationResult, left, judges=judges, sampling=_take(SamplingResult, left), domains=domains)


def _domain(record: Mapping[str, Any]) -> DomainResult:
    left = dict(record)
    return _take(DomainResult, left, sampling=_take(SamplingResult, left))


def _judged(record: Mapping[str, Any]) -> JudgeEvaluation:
    left = dict(record)
    estimates = {
        name: None if (found := left.pop(name, None)) is None else Estimate(*found) for name in ("gain", "win_rate")
    }
    return _take(JudgeEvaluation, left, report=_report(left.pop("report", {})), **estimates)


def _report(record: Mapping[str, Any]) -> JudgeReport:
    return _take(JudgeReport, dict(record))


def _take(kind: type[Record], left: dict[str, Any], **built: Any) -> Record:
    """Take a record's fields out of `left`; all that remains is its `extra`, if it has one."""
    names = [entry.name for entry in fields(kind) if entry.name not in built]  # type: ignore[arg-type]
    found = {name: left.pop(name) for name in names if name in left and name != "extra"}
    extra = {"extra": dict(left)} if "extra" in names else {}
    return kind(**found, **built, **extra)
