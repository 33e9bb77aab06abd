"""The `objective` section: which loss, with which parameters, composed with what. The formulas are in `docs/losses.md`.

Fields that no member of the union reads do not exist; a field of another member, and a combination that makes no
sense, is an error that says why.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Section
from online_dpo.config.beta import AdaptiveBeta, BetaSection, CosineBeta, LinearBeta

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NoiseRate = Annotated[float, Field(ge=0.0, lt=0.5)]


class Objective(Section):
    """What all members of the union have in common."""

    is_unpaired: ClassVar[bool] = False  # trains on `Labelled` instead of `Pair`
    refusals: ClassVar[dict[str, str]] = {}  # fields of other members -> why this one cannot have them

    @model_validator(mode="before")
    @classmethod
    def _explain_fields_of_others(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key in cls.model_fields:
                continue
            if key in cls.refusals:
                raise ValueError(f"has {key}, but {cls.refusals[key]}")
            owners = [name for name, member in MEMBERS.items() if key in member.model_fields]
            if owners:
                raise ValueError(
                    f"has {key}, which {data.get('type')} does not read; it belongs to {', '.join(owners)}: "
                    f"choose one of these types, or remove it"
                )
        return data

    @property
    def needs_reference(self) -> bool:
        """Whether the loss reads reference log-probs."""
        return True

    @property
    def betas(self) -> list[BetaSection]:
        """The beta of every term; only a sum has several."""
        raise NotImplementedError

    @property
    def depends_on_run_length(self) -> bool:
        """Whether a beta is stretched over the run, so that `run.rounds` cannot change on resume."""
        return any(isinstance(beta, LinearBeta | CosineBeta) for beta in self.betas)


class PairObjective(Objective):
    """A loss over pairs, and what composes with every one of them."""

    beta: BetaSection = 0.1  # strength of the pull towards the reference; larger holds the policy closer to it
    length_normalise: bool = False  # gains per token instead of per completion
    target_margin: float = Field(0.0, ge=0.0)  # by how much the chosen answer shall win; reward units: beta * nats
    nll_weight: float = Field(0.0, ge=0.0)  # of the supervised term: nats per token of the chosen answer
    pair_weights: Literal["given", "margin", "confidence"] = "given"  # beside each pair's own weight
    soft_labels: bool = False  # the judge's probability instead of its winner
    wpo: bool = False  # weigh pairs by how likely the policy is to sample them
    ld_alpha: Fraction | None = None  # what tokens beyond the shorter answer's length count; None = 1

    @property
    def betas(self) -> list[BetaSection]:
        return [self.beta]


class NoisyObjective(PairObjective):
    """A pairwise loss that takes a share of the labels to be wrong."""

    label_smoothing: NoiseRate = 0.1  # the share

    @field_validator("soft_labels")
    @classmethod
    def _one_source_of_doubt(cls, value: bool) -> bool:
        if value:
            raise ValueError(
                "is true beside a label_smoothing; labels are either wrong at one constant rate or as sure as the "
                "judge says: remove it, or choose type sigmoid"
            )
        return value


class SigmoidObjective(PairObjective):
    """DPO; other divergences than reverse KL make it f-DPO."""

    type: Literal["sigmoid"]
    divergence: Literal["reverse_kl", "forward_kl", "js", "alpha"] = "reverse_kl"
    alpha: float | None = Field(None, gt=0.0, lt=1.0)  # of the alpha-divergence; towards 0 reverse KL, 1 forward KL

    @model_validator(mode="after")
    def _alpha_is_read(self) -> SigmoidObjective:
        if (self.alpha is None) == (self.divergence == "alpha"):
            fix = "set alpha, between 0 and 1" if self.alpha is None else "remove alpha, or set divergence to alpha"
            raise ValueError(f"has divergence {self.divergence} and alpha {self.alpha}; {fix}")
        return self

    @model_validator(mode="after")
    def _ratios_are_of_completions(self) -> SigmoidObjective:
        if self.divergence != "reverse_kl" and self.length_normalise:
            raise ValueError(
                f"has divergence {self.divergence} and length_normalise; the divergence is a function of the ratio of "
                f"two probabilities, which a mean over tokens is not: remove one of them"
            )
        return self


class IPOObjective(PairObjective):
    """IPO; `length_normalise` is the form of TRL's trainer."""

    type: Literal["ipo"]


class HingeObjective(PairObjective):
    """SLiC's hinge on the gains, as RSO normalises it."""

    type: Literal["hinge"]


class CDPOObjective(NoisyObjective):
    """DPO with label smoothing."""

    type: Literal["cdpo"]


class RobustObjective(NoisyObjective):
    """DPO with an unbiased estimate of the loss under noisy labels."""

    type: Literal["robust"]


class SimPOObjective(PairObjective):
    """Mean log-probs instead of gains: no reference."""

    type: Literal["simpo"]
    beta: BetaSection = 2.0
    target_margin: float = Field(1.0, ge=0.0)
    length_normalise: Literal[True] = True  # is what SimPO is

    @property
    def needs_reference(self) -> bool:
        return False


class DPOPObjective(PairObjective):
    """DPO that also holds the chosen answer at least as likely as under the reference."""

    type: Literal["dpop"]
    penalty: float = Field(50.0, ge=0.0)  # lambda


class EXOObjective(PairObjective):
    """Reverse KL between the policy's and the judge's choice."""

    type: Literal["exo_pair"]
    label_smoothing: float = Field(1e-3, gt=0.0, lt=0.5)  # zero would make the loss infinite


class NCAObjective(PairObjective):
    """Noise contrastive alignment of pairs: absolute rewards, not only their gap."""

    type: Literal["nca_pair"]


class SPPOObjective(PairObjective):
    """Self-play preference optimisation with hard labels; its eta is 1 / beta."""

    type: Literal["sppo_hard"]


class APOZeroObjective(PairObjective):
    """Anchored: chosen up, rejected down; for answers better than the policy's own."""

    type: Literal["apo_zero"]


class APODownObjective(PairObjective):
    """Anchored: both down, rejected more; for answers worse than the policy's own."""

    type: Literal["apo_down"]


class AOTObjective(PairObjective):
    """Alignment by optimal transport: distributions of gains over the global batch, not single pairs."""

    type: Literal["aot"]
    unpaired: bool = False  # chosen gains against rejected gains, instead of gaps against the reference's gaps
    label_smoothing: NoiseRate = 0.0

    @model_validator(mode="after")
    def _sorting_leaves_no_pairs(self) -> AOTObjective:
        for field, value in (
            ("pair_weights", self.pair_weights != "given"),
            ("soft_labels", self.soft_labels),
            ("wpo", self.wpo),
        ):
            if value:
                raise ValueError(
                    f"has {field}, but aot compares sorted gains, so that no term of its loss belongs to one pair: "
                    f"remove it, or choose another type"
                )
        return self


class DiscoPOPObjective(PairObjective):
    """The log-ratio modulated loss."""

    type: Literal["discopop"]
    tau: float = Field(0.05, gt=0.0)


class BCOObjective(PairObjective):
    """Binary classifier optimisation: chosen against rejected, either side of a shift."""

    type: Literal["bco_pair"]
    shift: Literal["running_mean", "none"] = "running_mean"  # none is TRL's form


PAIRWISE = "kto trains on single completions, and this is about pairs: remove it, or choose a pairwise type"


class KTOObjective(Objective):
    """Unpaired: every completion is desirable or not."""

    is_unpaired: ClassVar[bool] = True
    refusals: ClassVar[dict[str, str]] = {name: PAIRWISE for name in PairObjective.model_fields if name != "beta"}

    type: Literal["kto"]
    beta: BetaSection = 0.1
    desirable_weight: float = Field(1.0, gt=0.0)
    undesirable_weight: float = Field(1.0, gt=0.0)

    @property
    def betas(self) -> list[BetaSection]:
        return [self.beta]


AnyPairObjective: TypeAlias = (
    SigmoidObjective
    | IPOObjective
    | HingeObjective
    | CDPOObjective
    | RobustObjective
    | SimPOObjective
    | DPOPObjective
    | EXOObjective
    | NCAObjective
    | SPPOObjective
    | APOZeroObjective
    | APODownObjective
    | AOTObjective
    | DiscoPOPObjective
    | BCOObjective
)


class Term(Section):
    """One objective of a sum."""

    weight: float = Field(1.0, gt=0.0)
    objective: AnyPairObjective = Field(discriminator="type")

    @field_validator("objective", mode="before")
    @classmethod
    def _pairs_only(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") in ("kto", "sum"):
            why = {"kto": "trains on single completions and the other terms on pairs", "sum": "is a sum already"}
            kind = value["type"]
            raise ValueError(f"is of type {kind}, which {why[kind]}; a term is a pairwise objective")
        return value


class SumObjective(Objective):
    """The weighted sum of several objectives on the same pairs."""

    refusals: ClassVar[dict[str, str]] = dict.fromkeys(
        PairObjective.model_fields, "a sum has none of its own: set it in the terms it is meant for"
    )

    type: Literal["sum"]
    terms: list[Term] = Field(min_length=1)

    @field_validator("terms")
    @classmethod
    def _no_controller(cls, value: list[Term]) -> list[Term]:
        if any(isinstance(term.objective.beta, AdaptiveBeta) for term in value):
            raise ValueError(
                "has a term whose beta is adaptive; one controller cannot follow several betas: give it a number or a "
                "schedule"
            )
        return value

    @property
    def needs_reference(self) -> bool:
        return any(term.objective.needs_reference for term in self.terms)

    @property
    def betas(self) -> list[BetaSection]:
        return [term.objective.beta for term in self.terms]


ObjectiveSection: TypeAlias = Annotated[AnyPairObjective | KTOObjective | SumObjective, Field(discriminator="type")]

MEMBERS: dict[str, type[Objective]] = {
    typing.get_args(member.model_fields["type"].annotation)[0]: member
    for member in (*typing.get_args(AnyPairObjective), KTOObjective, SumObjective)
}
"""Every objective by the name that a config gives it."""
