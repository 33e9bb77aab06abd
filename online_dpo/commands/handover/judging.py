"""A run's judge for use elsewhere: its section of the config, with the files that it needs beside it."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

from online_dpo.commands.handover.folders import copy_model
from online_dpo.config.base import Section
from online_dpo.config.judges.hosted import ClassifierJudge, PythonJudge
from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import CachedJudge, OuterJudge, replace_hosted
from online_dpo.config.loading import to_yaml
from online_dpo.errors import UserError

KEY_VARIABLE = "JUDGE_API_KEY"
"""The environment variable that stands for a file with a key."""
CACHE = ".cache/online-dpo/verdicts.sqlite"


def write_judge_config(section: Any, folder: Path) -> list[str]:
    """Write `judge.yaml`, with paths relative to the folder, and what they name into `judge/`.

    Args:
        section: of the training judge; None = the run has none.
        folder: gets the files.

    Returns:
        Lines about what cannot come along.

    Raises:
        UserError: there is no judge that a trainer could ask.
    """
    if section is None:
        raise UserError("the run has no judge, and a trainer needs a reward; export the policy alone, without --for")
    if isinstance(section, HumanJudge):
        raise UserError(
            "judge.type is human, and a trainer cannot ask people; train a model on their votes with "
            "`online-dpo reward-model`, or export the policy alone, without --for"
        )
    notes: list[str] = []

    def change(field: str, hosted: Any) -> Any:
        return _portable(hosted, field, folder, notes)

    portable = _with_own_cache(replace_hosted(section, change))
    text = to_yaml({"judge": portable.model_dump(mode="json", exclude_defaults=True)})
    (folder / "judge.yaml").write_text(text)
    return notes


def _portable(section: Section, field: str, folder: Path, notes: list[str]) -> Any:
    place = Path("judge", *field.split(".")[1:])
    if isinstance(section, PythonJudge):
        notes += [
            f"{field}.args.{name} is {value}, a path of this machine; see to it where the judge will run"
            for name, value in section.args.items()
            if isinstance(value, str) and Path(value).is_absolute()
        ]
        file, _, name = section.target.rpartition(":")
        if not file.endswith(".py") and "/" not in file:
            return section
        target = place / Path(file).name
        (folder / place).mkdir(parents=True, exist_ok=True)
        shutil.copy(Path(file).expanduser(), folder / target)
        return section.model_copy(update={"target": f"{target.as_posix()}:{name}"})
    if isinstance(section, ClassifierJudge):
        return section.model_copy(update={"path": _model(section.path, place / "model", folder)})
    if isinstance(section, LlmJudge) and section.engine is not None:
        path = _model(section.engine.path, place / "model", folder)
        return section.model_copy(update={"engine": section.engine.model_copy(update={"path": path})})
    if isinstance(section, LlmJudge) and section.endpoint is not None and section.endpoint.api_key_file is not None:
        notes.append(f"the key of {field}.endpoint was in a file; put it into the variable {KEY_VARIABLE}")
        endpoint = section.endpoint.model_copy(update={"api_key_file": None, "api_key_env": KEY_VARIABLE})
        return section.model_copy(update={"endpoint": endpoint})
    return section


def _model(path: str, place: Path, folder: Path) -> str:
    """What names a model in the folder: itself if it is of the hub or embedded, else its copy."""
    source = Path(path).expanduser()
    if not source.is_dir():
        return path
    (folder / place).parent.mkdir(parents=True, exist_ok=True)
    copy_model(source, folder / place)
    return place.as_posix()


def _with_own_cache(section: Any) -> Any:
    """With no cache outside of the folder."""
    if not isinstance(section, OuterJudge):
        return section
    changed: dict[str, Any] = {}
    if isinstance(section, CachedJudge) and Path(section.path).expanduser().is_absolute():
        changed["path"] = CACHE
    for place, inner in section.inner.items():
        name, _, key = place.partition(".")
        if key:
            changed.setdefault(name, {})[key] = _with_own_cache(inner)
        else:
            changed[name] = _with_own_cache(inner)
    return section.model_copy(update=changed)
