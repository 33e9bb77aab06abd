"""The config of what holds a policy back: its reference, the drift budget and the collapse alarm."""

from __future__ import annotations

import typing
from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from online_dpo.config.base import Auto, Place, Section, changeable

Factor = Annotated[float, Field(gt=1.0)]


class ReferenceFields(Section):
    """What all references have in common."""

    why_no_sampler: ClassVar[str | None] = None
    """Why the log-probs that the generator reports can never be those of this reference."""

    logps: Literal["recompute", "sampler"] = "recompute"
    """Where reference log-probs come from. recompute: the learner computes them. sampler: the generator reported them,
    in rounds whose reference is the policy that sampled."""

    @model_validator(mode="after")
    def _sampler_can_be_the_reference(self) -> ReferenceFields:
        if self.logps == "sampler" and self.why_no_sampler is not None:
            raise ValueError(f"has logps sampler, but {self.why_no_sampler}; set logps to recompute, or type to every")
        return self


class FixedReference(ReferenceFields):
    """The initial policy, for the whole run."""

    why_no_sampler: ClassVar[str | None] = "a fixed reference is the sampling policy in the first round alone"

    type: Literal["fixed"]


class EveryReference(ReferenceFields):
    """The policy as it was after every `rounds`-th round."""

    type: Literal["every"]
    rounds: int = Field(1, ge=1)
    """Rounds from one refresh of the reference to the next."""


class EnsembleReference(ReferenceFields):
    """The mean of the log-probs of the `last` policies, the sampling one included; fewer in the first rounds."""

    why_no_sampler: ClassVar[str | None] = "an ensemble is never the sampling policy alone after the first round"

    type: Literal["ensemble"]
    last: int = Field(ge=2)
    """The number of policies."""


class PathReference(ReferenceFields):
    """A given LoRA adapter of `model.path`, or another model with the same vocabulary, for the whole run."""

    why_no_sampler: ClassVar[str | None] = "a given reference is not the policy that samples"

    type: Literal["path"]
    path: Place
    """A folder or a hub id, of an adapter of any rank or of a whole model."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


ReferenceSection = Annotated[
    FixedReference | EveryReference | EnsembleReference | PathReference, Field(discriminator="type")
]


class DriftSection(Section):
    """A budget on the KL to the initial policy, looked at after every evaluation."""

    # Changeable on resume unless beta is raised: `warn` and `stop` do not change what is trained on.
    max_kl: float = Field(gt=0.0)
    """The budget in nats per completion: KL(policy || initial policy) on the evaluation's samples."""
    action: Literal["warn", "raise_beta", "stop"] = "warn"
    """What happens above the budget: a warning, a larger beta in all following rounds, or the end of the run."""
    factor: Factor | None = None
    """What raise_beta multiplies beta by after every round above the budget. null means 2."""
    max_factor: Factor | None = None
    """The largest product of all factors that raise_beta may reach. null means 64."""

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
    """What happens when the alarm rings: a warning, or the end of the run."""
    bands: dict[Watched, Factor] = changeable({"distinct_2": 1.25, "self_bleu": 2.0, "length_mean": 2.0})
    """The figures that are watched. A factor f sets the band from 1/f to f times the figure of the initial policy."""
    over_optimisation: Auto | bool = changeable("auto")
    """Whether the alarm also rings when the training judge's score rises while an evaluation judge's falls. auto: where
    both judge evaluation samples."""

    @model_validator(mode="after")
    def _something_is_watched(self) -> AlarmSection:
        if not self.bands and self.over_optimisation is not True:
            raise ValueError(
                "has empty bands; name a figure to watch, set over_optimisation to true, or remove the alarm section"
            )
        return self
