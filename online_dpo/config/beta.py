"""`beta`: a number, a schedule over the run, or a controller."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Discriminator, Field, Tag, model_validator

from online_dpo.config.base import Section

Positive = Annotated[float, Field(gt=0.0)]


class LinearBeta(Section):
    """From `start` to `end` over the run, evaluated at every optimizer step."""

    type: Literal["linear"]
    start: Positive
    end: Positive


class CosineBeta(Section):
    """The same along half a cosine: slow at both ends."""

    type: Literal["cosine"]
    start: Positive
    end: Positive


class AdaptiveBeta(Section):
    """Raised after rounds whose KL to the reference is above the target and lowered after the others."""

    type: Literal["adaptive"]
    start: Positive
    target_kl: Positive  # nats per completion, on the evaluation's samples
    gain: Positive = 0.5  # beta changes by `gain` times the relative error of the KL ...
    max_change: float = Field(0.5, gt=0.0, lt=1.0)  # ... which is cut to this share of beta per round
    min: Positive = 1e-3
    max: Positive = 100.0

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
