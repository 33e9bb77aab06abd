"""What may change in a config when its run is continued."""

from __future__ import annotations

import json
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel

from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError


def changes(old: RunConfig, new: RunConfig) -> list[tuple[str, Any, Any, bool]]:
    """`(field, old value, new value, may change on resume)` of every difference."""
    before, after = dict(leaves(old)), dict(leaves(new))
    found = []
    for key in sorted({**before, **after}):
        if before.get(key, (None, False))[0] != after.get(key, (None, False))[0]:
            old_value, old_free = before.get(key, (None, True))
            new_value, new_free = after.get(key, (None, True))
            found.append((key, old_value, new_value, old_free and new_free))
    return found


def check_resumable(old: RunConfig, new: RunConfig) -> list[str]:
    """Refuse a continuation that would change the data.

    Returns:
        One line for each difference that is allowed.

    Raises:
        ConfigError: a field that shapes the data differs; the message has its old and new value.
    """
    allowed: list[str] = []
    refused: list[str] = []
    raises_beta = "raise_beta" in [getattr(config.drift, "action", None) for config in (old, new)]
    for key, before, after, free in changes(old, new):
        # The length of the run only matters to schedules that are stretched over it.
        if key == "run.rounds":
            free = new.learner.schedule == "constant" and not new.objective.depends_on_run_length
        # Another number of workers shares the threads out anew.
        if key == "learner.threads":
            free = old.learner.num_workers != new.learner.num_workers
        # A budget that only warns or stops does not change what is trained on.
        if key in ("drift.max_kl", "drift.action"):
            free = not raises_beta
        # Telling of prompts changes nothing; leaving them out does.
        if key == "prompts.contaminated":
            free = "drop" not in (before, after)
        line = f"{key} was {json.dumps(before)} and is now {json.dumps(after)}"
        (allowed if free else refused).append(line)
    if refused:
        raise ConfigError(
            "\n".join(refused)
            + "\nthese fields change the data; set them back, or start a new run with another run.name"
        )
    return allowed


def leaves(model: BaseModel, prefix: str = "") -> Iterator[tuple[str, tuple[Any, bool]]]:
    """`(dotted field, (value, changeable))` of every leaf."""
    for name, info in type(model).model_fields.items():
        value, key = getattr(model, name), f"{prefix}{name}"
        if isinstance(value, BaseModel):
            yield from leaves(value, f"{key}.")
        elif isinstance(value, dict) and any(isinstance(v, BaseModel) for v in value.values()):
            for entry, item in value.items():
                yield from leaves(item, f"{key}.{entry}.")
        elif isinstance(value, list) and any(isinstance(v, BaseModel) for v in value):
            for entry, item in enumerate(value):
                yield from leaves(item, f"{key}.{entry}.")
        else:
            extra = info.json_schema_extra
            yield key, (value, isinstance(extra, dict) and bool(extra.get("changeable")))
