"""What an evaluation means for the rounds that follow: the adaptive beta, the drift budget, the alarm.

Pure functions of the config and of what was measured. `Control` is all that they remember; it is committed with every
round, so a resumed run decides as the uninterrupted one would have.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from online_dpo.config.control import WATCHED, AlarmSection, DriftSection
from online_dpo.config.objective.beta import AdaptiveBeta
from online_dpo.config.run import RunConfig
from online_dpo.statistics.overoptimisation import Best, best_after, is_over_optimised

FACTOR, MAX_FACTOR = 2.0, 64.0
"""Of `drift.action: raise_beta`, unless the config says otherwise."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What control looks at of the evaluation of one policy."""

    policy_version: int
    kl_initial: float  # nats per completion, of all sets' samples together; KL(policy || initial policy)
    kl_reference: float | None  # the same to the reference that the round was trained with; None without one
    sets: Mapping[str, Mapping[str, Sequence[float | None]]]  # set -> figure -> [the initial policy's, this one's]
    # Set -> evaluation judge -> what it and the training judge gained since its best policy; see `overoptimisation`.
    since_best: Mapping[str, Mapping[str, Mapping[str, Any]]] = field(default_factory=dict)


@dataclass(frozen=True, slots=True, kw_only=True)
class Control:
    """What control carries from round to round."""

    beta_factor: float = 1.0  # multiplies every beta of the next round
    measured: Measured | None = None  # by the newest evaluation that counts
    best: Best = field(default_factory=dict)  # where each evaluation judge's score was highest

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Control:
        measured = values["measured"]
        return cls(
            beta_factor=values["beta_factor"],
            measured=None if measured is None else Measured(**measured),
            best=values.get("best", {}),  # runs that are older than it have none
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Finding:
    """A budget or band that was left."""

    message: str
    remedy: str | None = None  # how a run that it stops can go on; None = it does not stop the run


def measure(
    policy_version: int,
    evaluations: Mapping[str, Mapping[str, Any]],
    initial: Mapping[str, Mapping[str, Any]],
    since_best: Mapping[str, Mapping[str, Mapping[str, Any]]] | None = None,
) -> Measured:
    """The figures that control looks at.

    Args:
        policy_version: of the policy that was evaluated.
        evaluations: set name -> figures; at least one set.
        initial: set name -> the same figures of the initial policy.
        since_best: from `overoptimisation.compare_with_best`.
    """
    has_reference = all("kl_reference" in found for found in evaluations.values())
    return Measured(
        policy_version=policy_version,
        kl_initial=_over_sets(evaluations, "kl_initial"),
        kl_reference=_over_sets(evaluations, "kl_reference") if has_reference else None,
        sets={
            name: {figure: [initial[name][figure], found[figure]] for figure in WATCHED}
            for name, found in evaluations.items()
        },
        since_best=since_best or {},
    )


def advance(config: RunConfig, control: Control, measured: Measured) -> Control:
    """The next round's control."""
    return Control(
        beta_factor=_next_factor(config, control.beta_factor, measured),
        measured=measured,
        best=best_after(measured.since_best, control.best, version=measured.policy_version),
    )


def findings(config: RunConfig, measured: Measured | None) -> list[Finding]:
    """Everything that is out of bounds, under the config as it is now: bounds may be changed on resume."""
    if measured is None:
        return []
    found = [] if config.drift is None else _drift_findings(config.drift, measured)
    if config.alarm is not None:
        found += _alarm_findings(config.alarm, measured) + _over_optimisation_findings(config.alarm, measured)
    return found


def stop_reason(config: RunConfig, control: Control) -> str | None:
    """Why no further round may be played, and what to change to go on; None = nothing is in the way."""
    stops = [finding for finding in findings(config, control.measured) if finding.remedy is not None]
    return "; ".join(f"{finding.message}: {finding.remedy}" for finding in stops) or None


def _next_factor(config: RunConfig, factor: float, measured: Measured) -> float:
    """By which the next round's beta is multiplied, given this round's.

    Adaptive: `beta * (1 + clip(gain * (KL / target - 1), -max_change, max_change))`, between `min` and `max`: the
    proportional controller of arXiv:1909.08593, section 2.2, acting once per round, with the KL to the reference.
    Drift: a factor per round above the budget; it is not taken back, since the KL to the initial policy hardly shrinks.
    """
    beta, drift = _adaptive_beta(config), config.drift
    if beta is not None and measured.kl_reference is not None:
        change = beta.gain * (measured.kl_reference / beta.target_kl - 1.0)
        new = beta.start * factor * (1.0 + min(max(change, -beta.max_change), beta.max_change))
        return min(max(new, beta.min), beta.max) / beta.start
    if drift is not None and drift.action == "raise_beta" and measured.kl_initial > drift.max_kl:
        return min(factor * (drift.factor or FACTOR), drift.max_factor or MAX_FACTOR)
    return factor


def _drift_findings(drift: DriftSection, measured: Measured) -> list[Finding]:
    if measured.kl_initial <= drift.max_kl:
        return []
    remedy = "resume with a higher drift.max_kl, or with drift.action=warn" if drift.action == "stop" else None
    return [
        Finding(
            message=(
                f"policy {measured.policy_version} is {measured.kl_initial:.4g} nats per completion away from the "
                f"initial policy, and drift.max_kl is {drift.max_kl:g}"
            ),
            remedy=remedy,
        )
    ]


def _alarm_findings(alarm: AlarmSection, measured: Measured) -> list[Finding]:
    found = []
    for name, figures in measured.sets.items():
        for figure, factor in alarm.bands.items():
            start, now = figures[figure]
            if start is None or (now is not None and start / factor <= now <= start * factor):
                continue
            shown = "not measurable" if now is None else f"{now:.3g}"
            found.append(
                Finding(
                    message=(
                        f"{figure} of policy {measured.policy_version} on {name} is {shown}, and alarm.bands allows "
                        f"{start / factor:.3g} to {start * factor:.3g} ({start:.3g} at the start)"
                    ),
                    remedy=(
                        f"resume with a wider alarm.bands.{figure}, or with alarm.action=warn"
                        if alarm.action == "stop"
                        else None
                    ),
                )
            )
    return found


def _over_optimisation_findings(alarm: AlarmSection, measured: Measured) -> list[Finding]:
    if alarm.over_optimisation is False:
        return []
    remedy = None
    if alarm.action == "stop":
        remedy = "resume with alarm.over_optimisation=false, or with alarm.action=warn"
    return [
        Finding(
            message=(
                f"policy {measured.policy_version} is over-optimised on {name}: since policy {found['since']}, where "
                f"{judge} was highest, {judge} fell by {_interval(found['gain'], -1)} and the training judge's score "
                f"rose by {_interval(found['training'], 1)}"
            ),
            remedy=remedy,
        )
        for name, judges in measured.since_best.items()
        for judge, found in judges.items()
        if is_over_optimised(found)
    ]


def _interval(estimate: Sequence[float], sign: int) -> str:
    value, low, high = (sign * number for number in estimate)
    return f"{value:.3g} [{min(low, high):.3g}, {max(low, high):.3g}]"


def _adaptive_beta(config: RunConfig) -> AdaptiveBeta | None:
    return next((beta for beta in config.objective.betas if isinstance(beta, AdaptiveBeta)), None)


def _over_sets(evaluations: Mapping[str, Mapping[str, Any]], name: str) -> float:
    """The mean over the completions of all sets."""
    total = sum(found["num_completions"] for found in evaluations.values())
    return sum(found[name] * found["num_completions"] for found in evaluations.values()) / total
