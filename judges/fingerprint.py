"""What a judge's verdicts depend on besides the question, as one digest: the first part of a verdict cache's keys."""

from __future__ import annotations

import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any

from pydantic import BaseModel

from judges.spec import JudgeSpec
from judges.user.user_code import EMBEDDED, find_entry_point, is_entry_point, split_target
from online_dpo.config.judges.hosted import ClassifierJudge, PythonJudge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import OuterJudge
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import locate
from online_dpo.version import __version__

SAME_VERDICTS = frozenset({"batch_size", "batch_tokens", "threads"})
"""Fields besides the changeable ones that do not change what is said, beyond float error."""


def fingerprint(spec: JudgeSpec, *, version: str = "") -> str:
    """sha256 over a judge's section, its code or model files, those of judges inside it, and our version.

    What a package imports is not seen, nor what an endpoint's model name stands for: `version` is for that.
    """
    described = [__version__, version, _describe(spec)]
    return hashlib.sha256(json.dumps(described, sort_keys=True).encode()).hexdigest()


def _describe(spec: JudgeSpec) -> dict[str, Any]:
    section = spec.section
    left_out = _changeable(section) | dict.fromkeys((*SAME_VERDICTS, "view"), True)  # questions are as it shows them
    if isinstance(section, OuterJudge):
        left_out |= {place.split(".")[0]: True for place in section.inner}
    described = section.model_dump(mode="json", exclude=left_out)
    # Where a model or file lies does not matter, what is in it does.
    if isinstance(section, ClassifierJudge):
        del described["path"]
    elif spec.source is not None:
        described["target"] = split_target(section.target, spec.label)[1]
    return {
        "section": described,
        "content": _content(spec),
        "inner": {place: _describe(inner) for place, inner in spec.inner.items()},
    }


def _content(spec: JudgeSpec) -> str | None:
    """A digest of what the section names."""
    section = spec.section
    if isinstance(section, ClassifierJudge):
        field = f"{spec.field}.path"
        return inspect_model(locate(section.path, field=field), field=field, generates=False).fingerprint
    if isinstance(section, LlmJudge) and section.engine is not None:
        field = f"{spec.field}.engine.path"
        return inspect_model(locate(section.engine.path, field=field), field=field).fingerprint
    if not isinstance(section, PythonJudge):
        return None
    if spec.source is not None:
        return _sha256(spec.source.encode())
    if is_entry_point(section.target):
        place = find_entry_point(section.target, spec.label).module
    else:
        place, name = split_target(section.target, spec.label)
        place = EMBEDDED[name][0] if place == "embedded" else place
    found = importlib.util.find_spec(place)
    is_file = found is not None and found.origin is not None and Path(found.origin).is_file()
    return _sha256(Path(found.origin).read_bytes()) if found and found.origin and is_file else None


def _changeable(section: BaseModel) -> dict[str, Any]:
    """The fields that cannot change what is said, those of parts of the section too, as pydantic's `exclude`."""
    found: dict[str, Any] = {}
    for name, info in type(section).model_fields.items():
        part = getattr(section, name)
        if isinstance(info.json_schema_extra, dict) and info.json_schema_extra.get("changeable"):
            found[name] = True
        elif isinstance(part, BaseModel) and not isinstance(section, OuterJudge):
            found[name] = _changeable(part)
    return found


def _sha256(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
