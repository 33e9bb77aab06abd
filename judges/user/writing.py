"""A function of a script or a notebook -> a file that a `python` judge can name."""

from __future__ import annotations

import builtins
import dis
import inspect
import textwrap
from collections.abc import Callable
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

from online_dpo.errors import JudgeError


def write_judge(function: Callable[..., Any], path: str | Path) -> str:
    """Write a function into a file of its own, so that a config can name it and a resume finds it again.

    The judge runs in another process, which has the file and nothing of the script or notebook that the function
    comes from. Modules that it uses are imported there; a file with the same content is left as it is.

    Args:
        function: `score(prompt, completion)`, written with `def`, that uses modules, its arguments and no other names
            from outside.
        path: of the file, such as `judges/length.py`. It is overwritten.

    Returns:
        What a config takes as the `target` of a `python` judge.

    Raises:
        JudgeError: it is no such function.
    """
    name = getattr(function, "__name__", type(function).__name__)
    other = f"write it into a file yourself and name it there: target: {path}:{name}"
    if not isinstance(function, FunctionType) or not name.isidentifier():
        raise JudgeError(f"{name} is no function that was written with def; {other}")
    try:
        source = textwrap.dedent(inspect.getsource(function))
    except (OSError, TypeError):
        raise JudgeError(f"the source of the function {name} is not known; {other}") from None
    outside = {n: function.__globals__.get(n) for n in _global_names(function.__code__) if not hasattr(builtins, n)}
    imports = [
        f"import {value.__name__} as {alias}" for alias, value in outside.items() if isinstance(value, ModuleType)
    ]
    missing = {n for n, value in outside.items() if not isinstance(value, ModuleType) and value is not function}
    missing.update(function.__code__.co_freevars)
    if missing:
        raise JudgeError(
            f"the function {name} uses {', '.join(sorted(missing))} from outside itself, and runs in a process that "
            f"has only the function; move that into it, or {other}"
        )
    text = "\n".join(["from __future__ import annotations", "", *sorted(imports), "", "", source])
    path = Path(path)
    if not path.is_file() or path.read_text(encoding="utf-8") != text:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    return f"{path}:{name}"


def _global_names(code: CodeType) -> set[str]:
    """What a function, and the functions and comprehensions in it, look up outside themselves."""
    found = {str(step.argval) for step in dis.get_instructions(code) if step.opname == "LOAD_GLOBAL"}
    return found.union(*(_global_names(inner) for inner in code.co_consts if isinstance(inner, CodeType)))
