"""Prompts in a data set: which column holds them, and what is no prompt."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from functools import partial
from typing import Any, Protocol

from online_dpo.data.row_files import RowCheck, Source, Table, label_of, peek, read_table
from online_dpo.data.row_formats import kind, shortened
from online_dpo.errors import DataError
from online_dpo.types import Message


class Spec(Source, Protocol):
    """What every data set of prompts in the config has."""

    @property
    def field(self) -> str: ...
    @property
    def domain_field(self) -> str | None: ...


CONVERSATIONS = ("conversations", "messages")
"""Columns of whole conversations, as ShareGPT and others name them; used where the default column is missing."""

ROLES = {"human": "user", "gpt": "assistant", "chatgpt": "assistant", "bing": "assistant", "bard": "assistant"}
"""ShareGPT's names of roles; others are kept."""


def column_in(column: str, names: Iterable[str]) -> str:
    """The column that is read: the one the config names, or where the default `prompt` is missing the conversations.

    Args:
        column: that the config names.
        names: the columns that there are.
    """
    found = [name for name in CONVERSATIONS if name in names]
    return found[0] if column == "prompt" and "prompt" not in names and len(found) == 1 else column


def load_table(spec: Spec, *, field: str) -> Table:
    """Read a whole source and check the prompt's column in every row.

    Args:
        spec: names the source and the column.
        field: the config section that `spec` is, such as `prompts`, for errors.

    Raises:
        DataError: the source cannot be read, is empty, or has a row without a usable prompt.
    """
    return read_table(spec, field=field, look=partial(_look, spec=spec, field=field), item="prompt")


def validate_source(spec: Spec, field: str) -> None:
    """The checks of a source that need neither tokenizer nor network: a local file's first rows.

    Args:
        spec: names the source and the column.
        field: the config section that `spec` is, such as `evaluation.sets.heldout`, for errors.

    Raises:
        DataError: the file is missing, unreadable, empty or without the prompt's column. Of a hub id only its form
            is checked.
    """
    peek(spec, field=field, look=partial(_look, spec=spec, field=field), item="prompt")


def _look(names: Iterable[str], *, spec: Spec, field: str) -> tuple[Sequence[str], RowCheck]:
    column, label = column_in(spec.field, names), label_of(spec, field)
    check = partial(check_row, column=column, setting=f"{field}.field", label=label)
    domain = spec.domain_field
    if domain is None:
        return [column], check

    def check_both(place: str, row: Mapping[str, Any]) -> None:
        check(place, row)
        check_domain(place, row, column=domain, setting=f"{field}.domain_field", label=label)

    return [column, domain], check_both


def check_domain(place: str, row: Mapping[str, Any], *, column: str, setting: str, label: str) -> None:
    """Refuse a row without a domain.

    Raises:
        DataError: names the place, what was found there, and what to do.
    """
    if column not in row:
        raise DataError(
            f"{label}; {place} has no column {column}, it has {', '.join(row)}: set {setting} to the column that holds "
            f"the prompts' domains"
        )
    value = row[column]
    if not isinstance(value, str | int) or not str(value).strip():
        what = "blank" if isinstance(value, str) else kind(value)
        raise DataError(
            f"{label}; {column} of {place} is {what}, but a domain is text or a whole number: correct or remove the "
            f"row, or set {setting} to another column"
        )


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
    messages = prompt_of(value, column)
    if value and not messages:
        raise DataError(
            f"{label}; {column} of {place} has nothing before the assistant's message: correct or remove the row"
        )
    if messages and messages[-1]["role"] == "assistant":
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
        fields = _renamed(message) if isinstance(message, dict) else {}
        extra = [v for k, v in fields.items() if k not in ("role", "content") and v is not None]
        if not all(isinstance(part, str) for part in (fields.get("role"), fields.get("content"), *extra)):
            raise DataError(
                f"{label}; {column} of {place} has the message {shortened(message)}, but a message has a role and a "
                f"content that are text, and nothing that is not: correct or remove the row"
            )


def messages_of(value: Sequence[Mapping[str, Any]]) -> tuple[Message, ...]:
    """Checked chat messages, without the empty keys that parquet gives to every message when one has them."""
    return tuple({key: text for key, text in _renamed(message).items() if text is not None} for message in value)


def prompt_of(value: Sequence[Mapping[str, Any]], column: str) -> tuple[Message, ...]:
    """The checked messages that are to be answered: of a whole conversation, all before its last answer."""
    messages = messages_of(value)
    is_answered = column in CONVERSATIONS and bool(messages) and messages[-1]["role"] == "assistant"
    return messages[:-1] if is_answered else messages


def _renamed(message: Mapping[str, Any]) -> Mapping[str, Any]:
    """A message with role and content, also where it has ShareGPT's `from` and `value`."""
    if message.get("from") is None or message.get("value") is None or message.get("role") is not None:
        return message
    rest = {key: item for key, item in message.items() if key not in ("from", "value", "role", "content", "weight")}
    author = message["from"]
    role = ROLES.get(author, author) if isinstance(author, str) else author
    return {"role": role, "content": message["value"], **rest}
