"""A judge before it is built, as it travels from the driver to the place where it will live."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_dpo.config.judges.hosted import ClassifierJudge, PythonJudge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.view import ViewSection


@dataclasses.dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """Small, picklable, and complete without the user's folder."""

    section: Any  # of `online_dpo.config.judges.JudgeSection`
    field: str  # where the section is in the config, such as `judge` or `evaluation.judges.gold`
    source: str | None = None  # content of the .py file that `target` names
    inner: Mapping[str, JudgeSpec] = dataclasses.field(default_factory=dict)  # by place in the section
    base_dir: str = "."  # what relative paths are relative to
    view: ViewSection | None = None  # what of a completion the judge sees; of the judge that is asked alone

    @property
    def label(self) -> str:
        """The judge in error messages."""
        match self.section:
            case ClassifierJudge():
                return f"{self.field}.path {self.section.path}"
            case PythonJudge():
                return f"{self.field}.target {self.section.target}"
            case LlmJudge(endpoint=None, engine=engine) if engine is not None:
                return f"{self.field}.engine.path {engine.path}"
            case LlmJudge(endpoint=endpoint) if endpoint is not None:
                return f"{self.field}.endpoint {endpoint.base_url}, model {endpoint.model}"
        return f"{self.field} ({self.section.type})"

    def resolve(self, path: str) -> Path:
        """A path of the config as a file of this machine."""
        return Path(self.base_dir) / Path(path).expanduser()
