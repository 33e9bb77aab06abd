"""Rows of a data set as preferences: their columns, what is refused, and the prompt where it has no column."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import takewhile
from typing import Any, TypeVar

from online_dpo.config.preferences import PairColumns
from online_dpo.data.prompt_files import check_messages, check_row, column_in, messages_of, prompt_of
from online_dpo.data.row_files import RowCheck, Table, label_of, peek, read_table
from online_dpo.data.row_formats import kind, shortened
from online_dpo.errors import DataError
from online_dpo.types import Message

DROPPED = ("no_common_prompt", "empty", "equal", "prompt_too_long", "truncated", "equal_when_truncated")
"""Why a row may give nothing to train on."""

AnyColumns = TypeVar("AnyColumns", bound=PairColumns)

_LABELS: Mapping[Any, bool] = {True: True, False: False, "true": True, "false": False, "1": True, "0": False}
"""What counts as a label; `True == 1`, so the numbers are among them. CSV knows nothing but text."""


@dataclass(frozen=True, slots=True, kw_only=True)
class SplitRow:
    """A row, split into a prompt and what answers it."""

    prompt: str | tuple[Message, ...]
    answers: tuple[str, ...]  # chosen and rejected; or the one that `desirable` is about, or that is demonstrated
    desirable: bool | None = None
    turns: tuple[Message, ...] = ()  # of a whole conversation: from its first answer to its last one


def load_preferences(spec: PairColumns, *, field: str) -> Table:
    """Read a whole source and check every row.

    Args:
        spec: names the source and its columns.
        field: the config section that `spec` is, such as `pairs`, for errors.

    Raises:
        DataError: the source cannot be read, is empty, or has a row that is no preference at all, or both chats and
            plain text.
    """
    table = read_table(spec, field=field, look=partial(_look, spec=spec, field=field), item=_item(spec))
    spec = columns_in(spec, table.rows[0])
    kinds = [isinstance(value, list) for value in table.column(columns_of(spec)[0])]
    if any(kinds) and not all(kinds):
        chat, plain = table.places[kinds.index(True)], table.places[kinds.index(False)]
        raise DataError(
            f"{table.label}; {chat} is a chat and {plain} is plain text: give a source for each, and a run to each"
        )
    return table


def peek_preferences(spec: PairColumns, *, field: str) -> None:
    """The checks of a source that need neither tokenizer nor network: a local file's first rows.

    Raises:
        DataError: as `load_preferences`.
    """
    peek(spec, field=field, look=partial(_look, spec=spec, field=field), item=_item(spec))


def columns_in(spec: AnyColumns, names: Iterable[str]) -> AnyColumns:
    """`spec` with the column of prompts that is read, given the columns that there are; see `column_in`."""
    return spec if spec.prompt is None else spec.model_copy(update={"prompt": column_in(spec.prompt, names)})


def columns_of(spec: PairColumns) -> list[str]:
    """The columns that are read; the first one tells chats from plain text."""
    columns = list(spec.columns.values())
    return columns if spec.prompt is None else [spec.prompt, *columns]


def split_row(row: Mapping[str, Any], spec: PairColumns) -> SplitRow | str:
    """Prompt and answers of a checked row, or the reason why it is none: `no_common_prompt`.

    Without a column of its own, the prompt is what the two answers share:

    - of chats, the messages that both begin with; one message of the assistant must be left of each;
    - of plain text, the words that both begin with, up to just before the last run of whitespace. When both answers
      begin with the same words, these count as a part of the prompt, since nothing tells them from it. In the
      difference between the two answers, their log-probs would cancel anyway.

    A labelled chat without a prompt column ends with the answer. A demonstrated one has its answers from the first of
    the assistant's messages on, and ends with the last one.
    """
    answers = [_chat(row[column]) for column in spec.columns.values()]
    desirable = None
    if spec.is_labelled:
        *answers, label = answers
        desirable = _label(label)
    if spec.prompt is not None:
        value = row[spec.prompt]
        prompt = value if isinstance(value, str) else prompt_of(value, spec.prompt)
        return SplitRow(prompt=prompt, answers=tuple(map(_text, answers)), desirable=desirable)
    if isinstance(answers[0], str):
        return _split_text(*answers)
    chats = [messages_of(answer) for answer in answers]
    if spec.format == "demonstrations":
        return _split_conversation(chats[0])
    if desirable is not None:
        length = len(chats[0]) - 1
    else:
        length = len(list(takewhile(lambda both: both[0] == both[1], zip(*chats, strict=False))))
        if chats[0] == chats[1]:
            length -= 1  # equal answers to one prompt, which is another reason
    ends = [chat[length:] for chat in chats]
    if length < 1 or any([message["role"] for message in end] != ["assistant"] for end in ends):
        return "no_common_prompt"
    return SplitRow(prompt=chats[0][:length], answers=tuple(end[0]["content"] for end in ends), desirable=desirable)


def _split_conversation(messages: tuple[Message, ...]) -> SplitRow | str:
    places = [index for index, message in enumerate(messages) if message["role"] == "assistant"]
    if not places or places[0] == 0:
        return "no_common_prompt"
    turns = messages[places[0] : places[-1] + 1]
    answers = tuple(messages[place]["content"] for place in places)
    return SplitRow(prompt=messages[: places[0]], answers=answers, turns=turns)


def _split_text(chosen: str, rejected: str) -> SplitRow | str:
    common = "".join(a for a, _ in takewhile(lambda both: both[0] == both[1], zip(chosen, rejected, strict=False)))
    last_word = common.split()[-1] if common.strip() else ""
    cut = len(common.removesuffix(last_word).rstrip())
    if not common[:cut].strip():
        return "no_common_prompt"
    return SplitRow(prompt=common[:cut], answers=(chosen[cut:], rejected[cut:]))


# ---- checks


def _look(names: Iterable[str], *, spec: PairColumns, field: str) -> tuple[Sequence[str], RowCheck]:
    spec = columns_in(spec, names)
    return columns_of(spec), partial(_check_preference, spec=spec, field=field, label=label_of(spec, field))


def _check_preference(place: str, row: Mapping[str, Any], *, spec: PairColumns, field: str, label: str) -> None:
    """Refuse a row that lacks a column, or whose columns hold something else than a preference.

    Raises:
        DataError: names the place, what was found there, and what to do.
    """
    _check_columns(place, row, spec=spec, field=field, label=label)
    row = {**row, **{column: _chat(row[column]) for column in spec.columns.values()}}
    if spec.prompt is not None:
        check_row(place, row, column=spec.prompt, setting=f"{field}.prompt", label=label)
    answers = {name: column for name, column in spec.columns.items() if name != "label"}
    for name, column in answers.items():
        if not isinstance(row[column], str | list):
            raise DataError(
                f"{label}; {column} of {place} is {kind(row[column])}, but an answer is text or a list of chat "
                f"messages: correct or remove the row, or set {field}.{name} to another column"
            )
        if isinstance(row[column], list):
            check_messages(row[column], place, column=column, label=label)
    if spec.prompt is None:
        _check_conversations(place, row, list(answers.values()), field=field, label=label)
    else:
        for column in answers.values():
            _check_answer(place, row[column], row[spec.prompt], column=column, field=field, label=label)
    flag = spec.columns.get("label")
    if flag is not None and _label(row[flag]) is None:
        raise DataError(
            f"{label}; {flag} of {place} is {kind(row[flag])}, but a label is true or false (or 1 or 0): "
            f"correct or remove the row, or set {field}.label to another column"
        )


def _check_columns(place: str, row: Mapping[str, Any], *, spec: PairColumns, field: str, label: str) -> None:
    prompt = {} if spec.prompt is None else {"prompt": spec.prompt}
    for option, column in {**prompt, **spec.columns}.items():
        if column not in row:
            hint = ", or to null where the answers are whole conversations" if option == "prompt" else ""
            raise DataError(
                f"{label}; {place} has no column {column}, it has {', '.join(row) or 'none at all'}: set "
                f"{field}.{option} to the column that holds the {option}{hint}"
            )


def _check_answer(place: str, value: Any, prompt: Any, *, column: str, field: str, label: str) -> None:
    if isinstance(value, str):
        return
    if isinstance(prompt, str):
        raise DataError(
            f"{label}; {column} of {place} is a list of chat messages and its prompt is text: write both as chats, or "
            f"set {field}.prompt to null if {column} holds the whole conversation"
        )
    if len(value) != 1 or messages_of(value)[0].keys() != {"role", "content"}:
        raise DataError(
            f"{label}; {column} of {place} has {len(value)} messages, but an answer is one message with role and "
            f"content: correct the row, or set {field}.prompt to null if {column} holds the whole conversation"
        )
    role = messages_of(value)[0]["role"]
    if role != "assistant":
        raise DataError(
            f"{label}; {column} of {place} is a message of the {role}, but an answer is the assistant's: "
            f"correct or remove the row"
        )


def _check_conversations(place: str, row: Mapping[str, Any], columns: Sequence[str], *, field: str, label: str) -> None:
    kinds = {type(row[column]) for column in columns}
    if len(kinds) > 1:
        raise DataError(
            f"{label}; of {place}, one of {' and '.join(columns)} is text and the other a list of chat messages: write "
            f"both in one way"
        )
    for column in columns:
        if isinstance(row[column], list) and row[column] and messages_of(row[column])[-1].keys() != {"role", "content"}:
            raise DataError(
                f"{label}; {column} of {place} ends with the message {shortened(row[column][-1])}, but an answer has a "
                f"role and a content and nothing else: correct or remove the row"
            )
    if len(columns) == 1 and kinds == {str}:
        raise DataError(
            f"{label}; {columns[0]} of {place} is text and {field}.prompt is null, so that nothing says where the "
            f"prompt ends: set {field}.prompt to a column, or write {columns[0]} as chat messages"
        )


def _chat(answer: Any) -> Any:
    """An answer that is one message alone, as ShareGPT's preferences have it, as a list of it."""
    return [answer] if isinstance(answer, dict) else answer


def _text(answer: str | list[dict[str, str]]) -> str:
    return answer if isinstance(answer, str) else messages_of(answer)[0]["content"]


def _label(value: Any) -> bool | None:
    if isinstance(value, str):
        value = value.strip().lower()
    return _LABELS.get(value) if isinstance(value, str | bool | int) else None


def _item(spec: PairColumns) -> str:
    return {"pairs": "pair", "labelled": "labelled answer", "demonstrations": "demonstration"}[spec.format]
