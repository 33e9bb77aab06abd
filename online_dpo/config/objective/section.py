"""The `objective` section: KTO, SFT, the sum of several objectives, and the union of all types.

Fields that no member of the union reads do not exist; a field of another member, and a combination that makes no
sense, is an error that says why.
"""

from __future__ import annotations

import typing
from typing import Annotated, Any, ClassVar, Literal, TypeAlias

from pydantic import Field, field_validator

from online_dpo.config.base import Section
from online_dpo.config.objective.beta import AdaptiveBeta, BetaSection
from online_dpo.config.objective.pairwise import AnyPairObjective, Objective, PairObjective

PAIRWISE = "kto trains on single completions, and this is about pairs: remove it, or choose a pairwise type"


class KTOObjective(Objective):
    """KTO: trains on single completions, each labelled desirable or not."""

    is_unpaired: ClassVar[bool] = True
    refusals: ClassVar[dict[str, str]] = {name: PAIRWISE for name in PairObjective.model_fields if name != "beta"}

    type: Literal["kto"]
    beta: BetaSection = 0.1
    """The strength of the pull towards the reference; a larger one holds the policy closer to it."""
    desirable_weight: float = Field(1.0, gt=0.0)
    """The weight of desirable completions."""
    undesirable_weight: float = Field(1.0, gt=0.0)
    """The weight of the others."""

    @property
    def betas(self) -> list[BetaSection]:
        return [self.beta]


class SFTObjective(Objective):
    """SFT: imitates demonstrations; the mean negative log-likelihood of their tokens, without reference and judge."""

    refusals: ClassVar[dict[str, str]] = dict.fromkeys(
        PairObjective.model_fields,
        "sft imitates demonstrations and compares nothing: remove it, or choose another type",
    )

    type: Literal["sft"]

    @property
    def needs_reference(self) -> bool:
        return False

    @property
    def betas(self) -> list[BetaSection]:
        return []


class Term(Section):
    """One objective of a sum."""

    weight: float = Field(1.0, gt=0.0)
    """What its loss is multiplied by."""
    objective: AnyPairObjective = Field(discriminator="type")
    """Any objective over pairs."""

    @field_validator("objective", mode="before")
    @classmethod
    def _pairs_only(cls, value: Any) -> Any:
        if isinstance(value, dict) and value.get("type") in ("kto", "sft", "sum"):
            why = {
                "kto": "trains on single completions and the other terms on pairs",
                "sft": "imitates demonstrations and the other terms compare answers (see nll_weight)",
                "sum": "is a sum already",
            }
            kind = value["type"]
            raise ValueError(f"is of type {kind}, which {why[kind]}; a term is a pairwise objective")
        return value

    @field_validator("objective")
    @classmethod
    def _the_sum_has_the_bonus(cls, value: Any) -> Any:
        if value.entropy_weight:
            raise ValueError(
                f"has entropy_weight {value.entropy_weight:g}, and the policy's entropy is no part of one term: set "
                f"objective.entropy_weight"
            )
        return value


class SumObjective(Objective):
    """The weighted sum of several objectives on the same pairs."""

    refusals: ClassVar[dict[str, str]] = dict.fromkeys(
        PairObjective.model_fields, "a sum has none of its own: set it in the terms it is meant for"
    )

    type: Literal["sum"]
    terms: list[Term] = Field(min_length=1)
    """The objectives and their weights."""

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


ObjectiveSection: TypeAlias = Annotated[
    AnyPairObjective | KTOObjective | SFTObjective | SumObjective, Field(discriminator="type")
]

MEMBERS: dict[str, type[Objective]] = {
    typing.get_args(member.model_fields["type"].annotation)[0]: member
    for member in (*typing.get_args(AnyPairObjective), KTOObjective, SFTObjective, SumObjective)
}
"""Every objective by the name that a config gives it."""
