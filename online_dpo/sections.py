"""What every section of the config is built on."""

from __future__ import annotations

from typing import Any

from pydantic import BaseModel, ConfigDict, Field


class Section(BaseModel):
    """Base of every part: strict about keys, immutable once validated."""

    model_config = ConfigDict(extra="forbid", frozen=True, protected_namespaces=())


def changeable(default: Any, **constraints: Any) -> Any:
    """A field that may differ on resume, because it cannot change what is trained on."""
    return Field(default, json_schema_extra={"changeable": True}, **constraints)
