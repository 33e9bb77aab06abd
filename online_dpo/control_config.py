"""The config of what holds a policy back: its reference."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field

from online_dpo.config_base import Section


class FixedReference(Section):
    """The initial policy, for the whole run."""

    type: Literal["fixed"]


class EveryReference(Section):
    """The policy as it was after every `rounds`-th round."""

    type: Literal["every"]
    rounds: int = Field(1, ge=1)


ReferenceSection = Annotated[FixedReference | EveryReference, Field(discriminator="type")]
