"""Prompts in a data set: which column holds them, and what is no prompt."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any, Protocol

from online_dpo.data.row_files import Source, Table, label_of, peek, read_table
from online_dpo.data.row_formats import kind, shortened
from online_dpo.errors import DataError
from online_dpo.types import Message


class Spec(Source, Protocol):
    """What `config.PromptsSection` and `config.EvaluationSet` have in common."""

    @property
    def field(self) -> str: ...


def load_table(spec: Spec, *, field: str) -> Table:
    """Read a whole source and check the prompt's column in every row.

    Args:
        spec: names the source and the column.
        field: the config section that `spec` is, such as `prompts`, for errors.

    Raises:
        DataError: the source cannot be read, is empty, or has a row without a usable prompt.
    """
    check = partial(check_row, column=spec.field, setting=f"{field}.field", label=label_of(spec, field))
    return read_table(spec, field=field, columns=[spec.field], check=check, item="prompt")


def validate_source(spec: Spec, field: str) -> None:
    """The checks of a source that need neither tokenizer nor network: a local file's first rows.

    Args:
        spec: names the source and the column.
        field: the config section that `spec` is, such as `evaluation.sets.heldout`, for errors.

    Raises:
        DataError: the file is missing, unreadable, empty or without the prompt's column. Of a hub id only its form
            is checked.
    """
    check = partial(check_row, column=spec.field, setting=f"{field}.field", label=label_of(spec, field))
    peek(spec, field=field, check=check, item="prompt")


def check_row(place: str, row: Mapping[str, Any], *, column: str, setting: str, label: str) -> None:
    """Refuse a row whose prompt is missing or neither text nor chat messages.

    Args:
        place: of the row.
        row: of the source.
        column: that holds the prompt.
        setting: the field of the config that names the column.
        label: the start of errors.

    Raises:
        DataError: names the place, what was found there, and what to do.
    """
    if column not in row:
        raise DataError(
            f"{label}; {place} has no column {column}, it has {', '.join(row) or 'none at all'}: set {setting} to "
            f"the column that holds the prompts"
        )
    value = row[column]
    if isinstance(value, str):
        return
    if not isinstance(value, list):
        raise DataError(
            f"{label}; {column} of {place} is {kind(value)}, but a prompt is text or a list of chat messages: correct "
            f"or remove the row, or set {setting} to another column"
        )
    check_messages(value, place, column=column, label=label)
    if value and value[-1]["role"] == "assistant":
        raise DataError(
            f"{label}; {column} of {place} ends with a message of the assistant, which leaves nothing to answer: end "
            f"it with the user's message, and keep the answer in another column if a judge needs it"
        )


def check_messages(value: list[Any], place: str, *, column: str, label: str) -> None:
    """Refuse what is no list of chat messages.

    Raises:
        DataError: a message has no role or content, or something that is not text.
    """
    for message in value:
        fields = message if isinstance(message, dict) else {}
        extra = [v for k, v in fields.items() if k not in ("role", "content") and v is not None]
        if not all(isinstance(part, str) for part in (fields.get("role"), fields.get("content"), *extra)):
            raise DataError(
                f"{label}; {column} of {place} has the message {shortened(message)}, but a message has a role and a "
                f"content that are text, and nothing that is not: correct or remove the row"
            )


def messages_of(value: list[dict[str, str | None]]) -> tuple[Message, ...]:
    """Checked chat messages, without the empty keys that parquet gives to every message when one has them."""
    return tuple({key: text for key, text in message.items() if text is not None} for message in value)
