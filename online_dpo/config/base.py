"""What every part of the config is built from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, ConfigDict, Field

from online_dpo.text_files import unusable_path


def _expect_path(value: str) -> str:
    why = unusable_path(value)
    if why is not None:
        raise ValueError(f"{why}; correct it")
    return value


Name = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")]
Place = Annotated[str, AfterValidator(_expect_path)]
"""A path, or what may be one: a hub id, an embedded name, a judge's target."""
FolderName = Annotated[str, Field(pattern=r"^[^./\x00-\x1f\x7f][^/\x00-\x1f\x7f]*$")]  # not hidden, not nested
Auto = Literal["auto"]
Count = Annotated[int, Field(ge=1)]
Positive = Annotated[float, Field(gt=0.0)]
NumGpus = Annotated[float, Field(ge=0.0)]


def changeable(default: Any, **constraints: Any) -> Any:
    """A field that may differ on resume, because it cannot change what is trained on."""
    return Field(default, json_schema_extra={"changeable": True}, **constraints)


class Section(BaseModel):
    """The base of every part: unknown keys are errors, a validated section cannot be changed, numbers are finite.

    The string below a field is its description in `online-dpo config`, in the JSON schema and in the docs.
    """

    model_config = ConfigDict(
        extra="forbid",
        frozen=True,
        protected_namespaces=(),
        allow_inf_nan=False,
        use_attribute_docstrings=True,
    )
