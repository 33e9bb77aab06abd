"""`beta`: a number, a schedule over the run, or a controller."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from online_dpo.config.base import Positive, Section


class LinearBeta(Section):
    """A line from `start` to `end` over the run, evaluated at every optimizer step."""

    type: Literal["linear"]
    start: Positive
    """Beta at the first step."""
    end: Positive
    """Beta at the end of the run."""


class CosineBeta(Section):
    """Half a cosine from `start` to `end` over the run: slow at both ends."""

    type: Literal["cosine"]
    start: Positive
    """Beta at the first step."""
    end: Positive
    """Beta at the end of the run."""


class AdaptiveBeta(Section):
    """Raised after rounds whose KL to the reference is above the target, and lowered after the others."""

    type: Literal["adaptive"]
    start: Positive
    """Beta in the first round."""
    target_kl: Positive
    """The KL to the reference that is aimed at, in nats per completion on the evaluation's samples."""
    gain: Positive = 0.5
    """After a round beta changes by this times the relative error of the KL."""
    max_change: float = Field(0.5, gt=0.0, lt=1.0)
    """The largest change of beta after one round, as a share of it."""
    min: Positive = 1e-3
    """The smallest beta."""
    max: Positive = 100.0
    """The largest beta."""

    @model_validator(mode="after")
    def _bounds_are_in_order(self) -> AdaptiveBeta:
        if not self.min <= self.start <= self.max:
            raise ValueError(f"has start {self.start} outside of min {self.min} to max {self.max}; move one of them")
        return self


def _kind_of_beta(value: Any) -> str:
    kind = value.get("type", "without a type") if isinstance(value, dict) else getattr(value, "type", "number")
    return str(kind)


BetaSection: TypeAlias = Annotated[
    Annotated[float, Field(gt=0.0), Tag("number")]
    | Annotated[LinearBeta, Tag("linear")]
    | Annotated[CosineBeta, Tag("cosine")]
    | Annotated[AdaptiveBeta, Tag("adaptive")],
    Discriminator(_kind_of_beta),
]
