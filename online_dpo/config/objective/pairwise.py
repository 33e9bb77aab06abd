"""The objectives over pairs: which loss, with which parameters, composed with what; `docs/losses.md` has the formulas.

Fields that no member of the union reads do not exist; a field of another member, and a combination that makes no
sense, is an error that says why.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Section
from online_dpo.config.objective.beta import BetaSection, CosineBeta, LinearBeta

Fraction = Annotated[float, Field(ge=0.0, le=1.0)]
NoiseRate = Annotated[float, Field(ge=0.0, lt=0.5)]


class Objective(Section):
    """What all objectives have in common."""

    is_unpaired: ClassVar[bool] = False
    """Whether it trains on labelled answers (`Labelled`) instead of pairs (`Pair`)."""
    refusals: ClassVar[dict[str, str]] = {}
    """Why this objective cannot have certain fields of others, by field."""

    entropy_weight: float = Field(0.0, ge=0.0)
    """The weight of the policy's entropy on the answers it trains on, nats per token, which is taken off the loss."""

    @model_validator(mode="before")
    @classmethod
    def _explain_fields_of_others(cls, data: Any) -> Any:
        for key in data if isinstance(data, dict) else ():
            if key in cls.model_fields:
                continue
            if key in cls.refusals:
                raise ValueError(f"has {key}, but {cls.refusals[key]}")
            if owners := _types_with(key, Objective):
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


def _types_with(field: str, base: type[Section]) -> list[str]:
    """The types of objective that have a field of this name."""
    found: list[str] = []
    for member in base.__subclasses__():
        if {"type", field} <= member.model_fields.keys():
            found += typing.get_args(member.model_fields["type"].annotation)
        found += _types_with(field, member)
    return found


class PairObjective(Objective):
    """A loss over pairs, and the options that compose with every one of them."""

    beta: BetaSection = 0.1
    """The strength of the pull towards the reference; a larger one holds the policy closer to it."""
    length_normalise: bool = False
    """Whether log-ratios are means over a completion's tokens instead of sums."""
    target_margin: float = Field(0.0, ge=0.0)
    """By how much the chosen answer's reward shall win, in reward units (beta times nats)."""
    nll_weight: float = Field(0.0, ge=0.0)
    """The weight of a supervised term, the chosen answer's negative log-likelihood in nats per token."""
    pair_weights: Literal["given", "margin", "confidence"] = "given"
    """What multiplies the loss of a pair: its own weight alone, or also the judge's margin or confidence."""
    soft_labels: bool = False
    """Whether the loss takes the judge's probability of winning instead of its winner."""
    wpo: bool = False
    """Whether pairs are weighted by how likely the policy is to sample them (WPO)."""
    ld_alpha: Fraction | None = None
    """How much tokens beyond the length of the shorter answer count (LD-DPO). null means 1."""

    @property
    def betas(self) -> list[BetaSection]:
        return [self.beta]


class NoisyObjective(PairObjective):
    """A loss over pairs that assumes that a share of the pairs is ordered the wrong way round."""

    label_smoothing: NoiseRate = 0.1
    """The share of pairs that is assumed to be ordered the wrong way round."""

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
    """The divergence from the reference that the policy is held by."""
    alpha: float | None = Field(None, gt=0.0, lt=1.0)
    """For `divergence: alpha`: towards 0 it is the reverse KL, towards 1 the forward KL. null otherwise."""

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
    """SLiC's hinge on log-ratios, as RSO normalises it."""

    type: Literal["hinge"]


class CDPOObjective(NoisyObjective):
    """DPO with label smoothing."""

    type: Literal["cdpo"]


class RobustObjective(NoisyObjective):
    """DPO with an unbiased estimate of the loss under noisy labels."""

    type: Literal["robust"]


class SimPOObjective(PairObjective):
    """SimPO: mean log-probs instead of log-ratios, so that there is no reference."""

    type: Literal["simpo"]
    beta: BetaSection = 2.0
    """The scale of the mean log-probs; there is no reference to hold the policy to."""
    target_margin: float = Field(1.0, ge=0.0)
    """By how much the chosen answer's reward shall win (SimPO's gamma)."""
    length_normalise: Literal[True] = True
    """Always true: SimPO is defined on means over tokens."""

    @property
    def needs_reference(self) -> bool:
        return False


class DPOPObjective(PairObjective):
    """DPO that also holds the chosen answer at least as likely as under the reference."""

    type: Literal["dpop"]
    penalty: float = Field(50.0, ge=0.0)
    """The weight of the term that keeps the chosen answer as likely (the paper's lambda)."""


class EXOObjective(PairObjective):
    """EXO: the reverse KL between the policy's and the judge's choice in a pair."""

    type: Literal["exo_pair"]
    label_smoothing: float = Field(1e-3, gt=0.0, lt=0.5)
    """The probability that the judge chose wrongly; 0 would make the loss infinite."""


class NCAObjective(PairObjective):
    """Noise contrastive alignment of pairs: absolute rewards, not only their gap."""

    type: Literal["nca_pair"]


class SPPOObjective(PairObjective):
    """Self-play preference optimisation with hard labels; its eta is 1 / beta."""

    type: Literal["sppo_hard"]


class APOZeroObjective(PairObjective):
    """Anchored preference optimisation that raises the chosen answer and lowers the rejected one.

    For chosen answers that are better than the policy's own.
    """

    type: Literal["apo_zero"]


class APODownObjective(PairObjective):
    """Anchored preference optimisation that lowers both answers, the rejected one more.

    For chosen answers that are worse than the policy's own.
    """

    type: Literal["apo_down"]


class AOTObjective(PairObjective):
    """Alignment by optimal transport: compares distributions of log-ratios over the global batch, not single pairs."""

    type: Literal["aot"]
    unpaired: bool = False
    """Whether sorted log-ratios of chosen answers are compared with those of rejected ones. false compares the policy's
    gaps between chosen and rejected with the reference's."""
    label_smoothing: NoiseRate = 0.0
    """The share of comparisons that are assumed to be the wrong way round."""

    @model_validator(mode="after")
    def _sorting_leaves_no_pairs(self) -> AOTObjective:
        for field, value in (
            ("pair_weights", self.pair_weights != "given"),
            ("soft_labels", self.soft_labels),
            ("wpo", self.wpo),
        ):
            if value:
                raise ValueError(
                    f"has {field}, but aot compares sorted log-ratios, so that no term of its loss belongs to one "
                    f"pair: remove it, or choose another type"
                )
        return self


class DiscoPOPObjective(PairObjective):
    """DiscoPOP: the loss that is modulated by the log-ratio."""

    type: Literal["discopop"]
    tau: float = Field(0.05, gt=0.0)
    """The temperature of the modulation."""


class BCOObjective(PairObjective):
    """Binary classifier optimisation: chosen rewards above a shift, rejected ones below it."""

    type: Literal["bco_pair"]
    shift: Literal["running_mean", "none"] = "running_mean"
    """The shift: the running mean of all rewards, or none, which is TRL's form."""


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
