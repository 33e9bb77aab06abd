"""The config of what holds a policy back: its reference, the drift budget and the collapse alarm."""

from __future__ import annotations

import typing
from typing import TYPE_CHECKING, Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from online_dpo.config.base import Auto, Section, changeable
from online_dpo.config.objective import AdaptiveBeta

if TYPE_CHECKING:
    from online_dpo.config.run import RunConfig

Factor = Annotated[float, Field(gt=1.0)]


class Reference(Section):
    """What all references have in common."""

    why_no_sampler: ClassVar[str | None] = None  # why sampled log-probs can never be this reference's

    # Where the reference is the policy that sampled, `sampler` takes the generator's log-probs instead of a pass.
    logps: Literal["recompute", "sampler"] = "recompute"

    @model_validator(mode="after")
    def _sampler_can_be_the_reference(self) -> Reference:
        if self.logps == "sampler" and self.why_no_sampler is not None:
            raise ValueError(f"has logps sampler, but {self.why_no_sampler}; set logps to recompute, or type to every")
        return self


class FixedReference(Reference):
    """The initial policy, for the whole run."""

    why_no_sampler: ClassVar[str | None] = "a fixed reference is the sampling policy in the first round alone"

    type: Literal["fixed"]


class EveryReference(Reference):
    """The policy as it was after every `rounds`-th round."""

    type: Literal["every"]
    rounds: int = Field(1, ge=1)


class EnsembleReference(Reference):
    """The mean of the log-probs of the `last` policies, the sampling one included; fewer in the first rounds."""

    why_no_sampler: ClassVar[str | None] = "an ensemble is never the sampling policy alone after the first round"

    type: Literal["ensemble"]
    last: int = Field(ge=2)  # policies


class PathReference(Reference):
    """A given LoRA adapter of `model.path`, or another model with the same vocabulary, for the whole run."""

    why_no_sampler: ClassVar[str | None] = "a given reference is not the policy that samples"

    type: Literal["path"]
    path: str  # a folder or a hub id
    trust_remote_code: bool = False


ReferenceSection = Annotated[
    FixedReference | EveryReference | EnsembleReference | PathReference, Field(discriminator="type")
]


class DriftSection(Section):
    """A budget on the KL to the initial policy, looked at after every evaluation."""

    # Changeable on resume unless beta is raised: `warn` and `stop` do not change what is trained on.
    max_kl: float = Field(gt=0.0)  # nats per completion, KL(policy || initial policy) on the evaluation's samples
    action: Literal["warn", "raise_beta", "stop"] = "warn"
    factor: Factor | None = None  # raise_beta: multiplies beta after every round above the budget; None = 2
    max_factor: Factor | None = None  # raise_beta: the largest product of all factors; None = 64

    @model_validator(mode="after")
    def _factors_are_read(self) -> DriftSection:
        unread = [name for name in ("factor", "max_factor") if getattr(self, name) is not None]
        if unread and self.action != "raise_beta":
            raise ValueError(
                f"has {' and '.join(unread)}, but action is {self.action}; set action to raise_beta, or remove them"
            )
        return self


Watched = Literal[
    "distinct_1", "distinct_2", "distinct_3", "self_bleu", "duplicate_rate", "length_mean", "eos_rate", "entropy"
]


WATCHED: tuple[str, ...] = typing.get_args(Watched)
"""Figures of an evaluation set that an alarm may watch."""


class AlarmSection(Section):
    """Rings when a figure of an evaluation set leaves its band around the initial policy's, or on over-optimisation."""

    action: Literal["warn", "stop"] = changeable("warn")
    # Figure -> factor f: the band is from 1/f to f times the initial policy's value. What is not named is not watched.
    bands: dict[Watched, Factor] = changeable({"distinct_2": 1.25, "self_bleu": 2.0, "length_mean": 2.0})
    # The training judge's score rises while an evaluation judge's falls; auto = where both judge evaluation samples.
    over_optimisation: Auto | bool = changeable("auto")

    @model_validator(mode="after")
    def _something_is_watched(self) -> AlarmSection:
        if not self.bands and self.over_optimisation is not True:
            raise ValueError(
                "has empty bands; name a figure to watch, set over_optimisation to true, or remove the alarm section"
            )
        return self


def check_control(config: RunConfig) -> None:
    """Raise ValueError where the reference, the drift budget, the alarm and the other sections do not agree."""
    objective, drift = config.objective, config.drift
    is_adaptive = any(isinstance(beta, AdaptiveBeta) for beta in objective.betas)
    raises_beta = drift is not None and drift.action == "raise_beta"
    if not objective.needs_reference and not isinstance(config.reference, FixedReference):
        raise ValueError(
            f"reference.type is {config.reference.type} and objective.type is {objective.type}, which has no "
            f"reference to schedule: remove the reference section, or choose another objective"
        )
    if objective.is_unpaired and config.reference.logps == "sampler":
        raise ValueError(
            f"reference.logps is sampler and objective.type is {objective.type}, whose KL estimate needs answers to "
            f"other prompts, which were not sampled: set reference.logps to recompute"
        )
    if config.reference.logps == "sampler" and config.pairs is not None and config.pairs.is_whole_run:
        raise ValueError(
            "reference.logps is sampler and every round trains on pairs.source alone, which no policy of the run "
            "sampled: set reference.logps to recompute"
        )
    measured = {"objective.beta is adaptive": is_adaptive, "drift is set": drift, "alarm is set": config.alarm}
    for what, is_on in measured.items():
        if is_on and not config.evaluation.sets:
            raise ValueError(
                f"{what} and evaluation.sets is empty; KL and diversity are measured on fresh samples for an "
                f"evaluation set: add one, such as evaluation.sets.heldout.source"
            )
    if config.alarm is not None and config.alarm.over_optimisation is True:
        judges = {"judge": config.judge, "evaluation.judges": config.evaluation.judges}
        missing = [name for name, found in judges.items() if not found]
        if missing:
            raise ValueError(
                f"alarm.over_optimisation is true and {missing[0]} is missing; it compares the training judge with "
                f"those of the evaluation: add it, or set alarm.over_optimisation to auto"
            )
    if is_adaptive and raises_beta:
        raise ValueError(
            "drift.action is raise_beta and objective.beta is adaptive; only one of them can move beta: set "
            "drift.action to warn or stop, or objective.beta to a number or a schedule"
        )
    if (is_adaptive or raises_beta) and not objective.needs_reference:
        raise ValueError(
            f"{'objective.beta is adaptive' if is_adaptive else 'drift.action is raise_beta'} and objective.type is "
            f"{objective.type}, whose beta holds the policy to no reference: give beta a number or a schedule and "
            f"drift.action warn or stop, or choose another objective"
        )
