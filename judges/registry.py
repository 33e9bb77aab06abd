"""Config section -> judge, in two steps, so that a user's file travels from the driver to the workers.

`make_spec` runs in the driver and takes the file's source text along; `build` runs where the judge will live.
"""

from __future__ import annotations

import difflib
import importlib
import itertools
import linecache
import sys
import tokenize
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

from judges.protocol import Judge
from judges.python_judge import adapt
from online_dpo.errors import JudgeError
from online_dpo.judge_config import PythonJudge, RewardModelJudge

EMBEDDED = {"gold": ("online_dpo.embedded.gold", "GoldJudge")}
_serial = itertools.count()


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeSpec:
    """A judge before it is built: small, picklable, complete without the user's folder."""

    section: RewardModelJudge | PythonJudge
    field: str  # where the section is in the config, such as `judge` or `evaluation.judges.gold`
    source: str | None = None  # content of the .py file that `target` names

    @property
    def label(self) -> str:
        """The judge in error messages."""
        if isinstance(self.section, RewardModelJudge):
            return f"{self.field}.path {self.section.path}"
        return f"{self.field}.target {self.section.target}"


def make_spec(section: RewardModelJudge | PythonJudge, *, field: str, base_dir: Path) -> JudgeSpec:
    """Check what can be checked without running anything, and read the judge's file.

    Args:
        section: the judge's part of the config.
        field: the name of that part.
        base_dir: what a relative file path is relative to.

    Raises:
        JudgeError: the target names no function or class, or its file is missing or no Python.
    """
    if isinstance(section, RewardModelJudge):
        return JudgeSpec(section=section, field=field)
    label = f"{field}.target {section.target}"
    place, name = _split(section.target, label)
    if place == "embedded" or not _is_file(place):
        return JudgeSpec(section=section, field=field)
    path = base_dir / place
    if not path.is_file():
        raise JudgeError(f"{label}: the file {path} does not exist; give the path of a Python file and :{name}")
    try:
        with tokenize.open(path) as file:  # honours an encoding declaration
            source = file.read()
        compile(source, place, "exec")
    except (SyntaxError, ValueError, OSError) as error:
        raise JudgeError(f"{label}: {_where_it_broke(error, place)}; mend the file") from None
    return JudgeSpec(section=section, field=field, source=source)


def build(spec: JudgeSpec) -> Judge:
    """Build the judge where it will live.

    Raises:
        JudgeError: its code does not import, lacks the function or class, does not take the config's `args`; or its
            model cannot be used.
        ModelError: its model's folder is missing or incomplete.
    """
    builder: Callable[[Any, JudgeSpec], Judge] = _BUILDERS[type(spec.section)]
    return builder(spec.section, spec)


def _build_reward_model(section: RewardModelJudge, spec: JudgeSpec) -> Judge:
    from judges.reward_model import RewardModel  # torch and transformers

    return RewardModel(
        section.path,
        field=spec.field,
        dtype=section.dtype,
        max_tokens=section.max_tokens,
        batch_tokens=section.batch_tokens,
        trust_remote_code=section.trust_remote_code,
        on_gpu=section.num_gpus > 0,
    )


def _build_python(section: PythonJudge, spec: JudgeSpec) -> Judge:
    place, name = _split(section.target, spec.label)
    if place == "embedded":
        if name not in EMBEDDED:
            raise JudgeError(f"{spec.label} is not embedded; the embedded judges are {', '.join(sorted(EMBEDDED))}")
        place, name = EMBEDDED[name]
    module = _import_source(spec, place) if spec.source is not None else _import_module(place, name, spec)
    try:
        target = getattr(module, name)
    except AttributeError:
        known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
        close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
        hint = f"did you mean {close[0]}?" if close else f"it has {', '.join(known) or 'no function or class at all'}"
        raise JudgeError(f"{spec.label}: {place} has nothing named {name}; {hint}") from None
    return adapt(target, section.args, field=spec.field, name=section.target)


_BUILDERS: dict[type, Callable[[Any, JudgeSpec], Judge]] = {
    RewardModelJudge: _build_reward_model,
    PythonJudge: _build_python,
}


def _import_source(spec: JudgeSpec, place: str) -> ModuleType:
    """Run the file's source as a module of its own name, so that no other module or folder can be mistaken for it."""
    assert spec.source is not None
    module = ModuleType(f"online_dpo_user_judge_{next(_serial)}")
    module.__file__ = place
    lines = spec.source.splitlines(keepends=True)
    # Tracebacks then show the lines, also where the file does not exist; no modification time = never re-read.
    linecache.cache[place] = (len(spec.source), None, lines, place)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        exec(compile(spec.source, place, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        hint = "mend the file"
        if isinstance(error, ImportError):
            hint = "a judge's file travels to the workers alone, so it may import installed packages only"
        raise JudgeError(f"{spec.label}: {_where_it_broke(error, place)}; {hint}") from error
    return module


def _import_module(place: str, name: str, spec: JudgeSpec) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        file = f"{place.replace('.', '/')}.py"
        hint = f"mend it, or install what it needs on every node; a file is given by its path, such as {file}:{name}"
        raise JudgeError(f"{spec.label}: {_where_it_broke(error, place)}; {hint}") from error


def _where_it_broke(error: BaseException, place: str) -> str:
    """`place does not import (line 3): ModuleNotFoundError: ...`; the line is the innermost one of that file."""
    if isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == place]
        line, message = (frames[-1].lineno if frames else None), str(error)
    at = "" if line is None else f" (line {line})"
    return f"{place} does not import{at}: {type(error).__name__}: {message}"


def _split(target: str, label: str) -> tuple[str, str]:
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise JudgeError(
            f"{label} names no function or class; write path/to/file.py:name, package.module:name or embedded:gold"
        )
    return place, name


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place
