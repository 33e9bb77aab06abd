"""The parts of the site that are made from the code: tables of every config field and of every command.

`conf.py` writes them before a build, into `docs/_generated/`, which is not committed. A page takes one in by

    ```{include} _generated/cli.md
    ```
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
TARGET = HERE / "_generated"


def cli_reference() -> str:
    """Every command with its arguments and options, as typer knows them."""
    return "\n".join(line for name, command in commands().items() for line in _describe(name, command))


def commands() -> dict[str, Any]:
    """Name -> click command, of everything that `online-dpo` can do."""
    import typer

    from online_dpo.cli import app

    group: Any = typer.main.get_command(app)
    return dict(group.commands)


def config_reference() -> str:
    """Every field of every section, as `online-dpo config --markdown` prints it."""
    from online_dpo.commands.config import markdown_reference

    return markdown_reference()


def reward_model_reference() -> str:
    """Every field of the config of `online-dpo reward-model`."""
    from online_dpo.commands.config import markdown_reference
    from online_dpo.config.reward_model.section import RewardModelConfig

    return markdown_reference(RewardModelConfig)


def event_reference() -> str:
    """Every kind of event, when it comes, and its data."""
    from online_dpo.reports.listening import EVENTS

    rows = ["| kind | when | data |", "|---|---|---|"]
    for kind, about in EVENTS.items():
        data = [f"{'further' if name == '...' else _code(name)} {said}".strip() for name, said in about.data.items()]
        rows.append(f"| {_code(kind)} | {about.when} | {'; '.join(data) or 'none'} |")
    return "\n".join(rows) + "\n"


PARTS: dict[str, Callable[[], str]] = {
    "cli.md": cli_reference,
    "config.md": config_reference,
    "events.md": event_reference,
    "reward-model.md": reward_model_reference,
}
"""File in `_generated/` -> what makes it."""


def write_all() -> None:
    """Write every part whose content changed, so that a second build does no work twice."""
    TARGET.mkdir(exist_ok=True)
    for name, make in PARTS.items():
        path, text = TARGET / name, make()
        if not path.exists() or path.read_text() != text:
            path.write_text(text)


def _describe(name: str, command: Any) -> Iterator[str]:
    arguments = [p for p in command.params if not p.opts[0].startswith("-")]
    options = [p for p in command.params if p.opts[0].startswith("-")]
    places = [_place(argument) for argument in arguments]
    usage = " ".join(["online-dpo", name, *places, *(["[OPTIONS]"] if options else [])])
    yield from (f"## {name}", "", str(command.help), "", "```text", usage, "```", "")
    rows = [(_code(place), argument.help) for place, argument in zip(places, arguments, strict=True)]
    rows += [(_option(option), _with_default(option)) for option in options]
    if rows:
        yield from ("| | |", "|---|---|")
        yield from (f"| {left} | {(right or '').replace('|', chr(92) + '|')} |" for left, right in rows)
        yield ""


def _place(argument: Any) -> str:
    place = f"{argument.metavar}{'...' if argument.nargs == -1 else ''}"
    return place if argument.required else f"[{place}]"


def _option(option: Any) -> str:
    value = "" if isinstance(option.default, bool) else f" {option.metavar or option.name.upper()}"
    return ", ".join(_code(f"{spelling}{value}") for spelling in option.opts)


def _with_default(option: Any) -> str:
    is_shown = option.default is not None and not isinstance(option.default, bool)
    return f"{option.help} Default: {option.default}." if is_shown else str(option.help)


def _code(text: str) -> str:
    return f"`{text}`"
