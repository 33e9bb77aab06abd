"""Finding the code of a `python` judge: in a file's text that travelled here, a package, or an entry point."""

from __future__ import annotations

import difflib
import importlib
import importlib.metadata
import importlib.util
import itertools
import linecache
import symtable
import sys
import tokenize
import traceback
from pathlib import Path
from types import ModuleType

from online_dpo.errors import JudgeError

GROUP = "online_dpo.judges"
"""The entry-point group under which installed packages offer judges by name."""

EMBEDDED = {"gold": ("online_dpo.embedded.gold", "GoldJudge")}
FORMS = "path/to/file.py:name, package.module:name, embedded:gold or the name of an installed entry point"
_BINDS_UNSEEN = ("import *", "globals()", "vars()", "exec(", "setattr(", "__getattr__", "global ")
"""What a file may bind names with that its top level does not show."""

_serial = itertools.count()


def entry_points() -> dict[str, importlib.metadata.EntryPoint]:
    """Installed judges by name; nothing of theirs is imported."""
    return {point.name: point for point in importlib.metadata.entry_points(group=GROUP)}


def read_source(target: str, *, label: str, base_dir: Path) -> str | None:
    """The text of the file that a target names, checked for syntax; None where it names no file.

    Args:
        target: the config's.
        label: the judge in error messages.
        base_dir: what a relative file path is relative to.

    Raises:
        JudgeError: the target is malformed, its file is missing, no Python or has nothing of that name, or no such
            package or entry point is installed.
    """
    if is_entry_point(target):
        find_entry_point(target, label)
        return None
    place, name = split_target(target, label)
    if place == "embedded":
        _find_embedded(name, label)
        return None
    if not _is_file(place):
        package = place.split(".")[0]  # to look for what is inside would import it
        if not (package.isidentifier() and _is_importable(package)):
            raise JudgeError(
                f"{label}: there is no package or module {package}; install it on every node, or give a file by its "
                f"path, such as {place.replace('.', '/')}.py:{name}"
            )
        return None
    path = base_dir / place
    if not path.is_file():
        raise JudgeError(f"{label}: the file {path} does not exist; give the path of a Python file and :{name}")
    try:
        with tokenize.open(path) as file:  # honours an encoding declaration
            source = file.read()
        compile(source, place, "exec")
    except (SyntaxError, ValueError, OSError) as error:
        raise JudgeError(f"{label}: {_where_it_broke(error, place)}; fix the file") from None
    if not any(word in source for word in _BINDS_UNSEEN):
        symbols = symtable.symtable(source, place, "exec").get_symbols()
        if not any(s.get_name() == name and (s.is_assigned() or s.is_imported()) for s in symbols):
            known = [s.get_name() for s in symbols if s.is_namespace() and not s.get_name().startswith("_")]
            raise _nothing_named(name, place, known, label)
    return source


def load_target(target: str, source: str | None, *, label: str) -> object:
    """The function, class or object that a target names.

    Raises:
        JudgeError: its code does not import, or has nothing of that name.
    """
    if is_entry_point(target):
        point = find_entry_point(target, label)
        place, name = point.module, point.attr
    else:
        place, name = split_target(target, label)
    if place == "embedded":
        place, name = _find_embedded(name, label)
    module = _import_module(place, name, label) if source is None else _import_source(source, place, label)
    found: object = module
    for part in name.split("."):  # an entry point may name a method of a class
        if not hasattr(found, part):
            known = [n for n, value in vars(module).items() if callable(value) and not n.startswith("_")]
            raise _nothing_named(name, place, known, label)
        found = getattr(found, part)
    return found


def is_entry_point(target: str) -> bool:
    """Whether a target has the form of a name alone."""
    return ":" not in target and not _is_file(target)


def find_entry_point(name: str, label: str) -> importlib.metadata.EntryPoint:
    """An installed judge.

    Raises:
        JudgeError: there is none of that name.
    """
    points = entry_points()
    if name not in points:
        close = difflib.get_close_matches(name, points, n=1)
        known = f"did you mean {close[0]}?" if close else f"installed are: {', '.join(sorted(points)) or 'none'};"
        raise JudgeError(f"{label} is no installed judge (entry-point group {GROUP}); {known} a target is {FORMS}")
    return points[name]


def split_target(target: str, label: str) -> tuple[str, str]:
    """`place:name` in two parts.

    Raises:
        JudgeError: it is not of that form.
    """
    place, colon, name = target.rpartition(":")
    if not (colon and place and name.isidentifier()):
        raise JudgeError(f"{label} names no function or class; write {FORMS}")
    return place, name


def _is_importable(package: str) -> bool:
    try:
        return importlib.util.find_spec(package) is not None
    except ValueError:  # a module without a spec, such as __main__ here
        return False


def _find_embedded(name: str, label: str) -> tuple[str, str]:
    if name not in EMBEDDED:
        raise JudgeError(f"{label} is not embedded; the embedded judges are {', '.join(sorted(EMBEDDED))}")
    return EMBEDDED[name]


def _nothing_named(name: str, place: str, known: list[str], label: str) -> JudgeError:
    close = difflib.get_close_matches(name, known, n=1, cutoff=0.4)
    has = f"it has {', '.join(known) or 'no function or class at all'}"
    return JudgeError(f"{label}: {place} has nothing named {name}; {f'did you mean {close[0]}?' if close else has}")


def _import_source(source: str, place: str, label: str) -> ModuleType:
    """Run the file's source as a module of its own name, so that no other module or folder can be mistaken for it."""
    module = ModuleType(f"online_dpo_user_judge_{next(_serial)}")
    module.__file__ = place
    lines = source.splitlines(keepends=True)
    # Tracebacks then show the lines, also where the file does not exist; no modification time = never re-read.
    linecache.cache[place] = (len(source), None, lines, place)
    sys.modules[module.__name__] = module  # dataclasses and pickle look their module up
    try:
        exec(compile(source, place, "exec"), module.__dict__)
    except (Exception, SystemExit) as error:
        del sys.modules[module.__name__]
        hint = "fix the file"
        if isinstance(error, ImportError):
            hint = "a judge's file travels to the workers alone, so it may import installed packages only"
        raise JudgeError(f"{label}: {_where_it_broke(error, place)}; {hint}") from error
    return module


def _import_module(place: str, name: str, label: str) -> ModuleType:
    try:
        return importlib.import_module(place)
    except (Exception, SystemExit) as error:
        file = f"{place.replace('.', '/')}.py"
        hint = f"fix it, or install what it needs on every node; a file is given by its path, such as {file}:{name}"
        raise JudgeError(f"{label}: {_where_it_broke(error, place)}; {hint}") from error


def _where_it_broke(error: BaseException, place: str) -> str:
    """`place does not import (line 3): ModuleNotFoundError: ...`; the line is the innermost one of that file."""
    if isinstance(error, SyntaxError):
        line, message = error.lineno, error.msg
    else:
        frames = [f for f in traceback.extract_tb(error.__traceback__) if f.filename == place]
        line, message = (frames[-1].lineno if frames else None), str(error)
    at = "" if line is None else f" (line {line})"
    return f"{place} does not import{at}: {type(error).__name__}: {message}"


def _is_file(place: str) -> bool:
    return place.endswith(".py") or "/" in place
