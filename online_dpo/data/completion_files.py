"""Prompts and completions from a file, for judging alone: rows of JSON, one a line."""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo.data.prompt_files import check_messages, column_in, messages_of, prompt_of
from online_dpo.data.row_files import local_file
from online_dpo.data.row_formats import kind, numbered_rows
from online_dpo.errors import DataError
from online_dpo.text_files import shown
from online_dpo.types import Completion, Prompt, derive_seed

COMPLETIONS = ("completions", "completion", "chosen", "rejected")


@dataclass(frozen=True, slots=True, kw_only=True)
class JudgeRow:
    """A prompt, its completions, and what is known about them."""

    prompt: Prompt
    completions: tuple[Completion, ...]
    gold: tuple[float, ...] | None  # for each completion, higher is better


def read_rows(path: Path, *, gold: str | None, limit: int | None = None) -> list[JudgeRow]:
    """Read a file of any format that a data set may have, or a folder that `save_to_disk` wrote.

    A row has `prompt` (text or messages; empty where it is missing), and `completions` (a list of texts), `completion`
    (one text), or `chosen` and `rejected`, which are put in an order that does not tell. Everything else is metadata.

    Args:
        path: of the file.
        gold: the column of known labels: a number for each completion, or the position of the best one. `chosen` says
            that `chosen` is better than `rejected`.
        limit: read so many rows at most.

    Raises:
        DataError: the file or a row is not of this form; names the line.
    """
    rows: list[JudgeRow] = []
    for position, row in _rows(path):
        if limit is not None and len(rows) == limit:
            break
        place, number = f"{path}, {position}", int(position.split()[-1])
        texts, chosen = _texts(row, place, number)
        known = None
        if gold == "chosen":
            if chosen is None:
                raise DataError(f"{place} has no chosen and rejected; name the column of labels by --gold")
            known = tuple(float(i == chosen) for i in range(2))
        elif gold is not None:
            known = _gold(row, gold, len(texts), place)
        metadata = {key: value for key, value in row.items() if key not in ("prompt", *COMPLETIONS) and key != gold}
        name = str(number)
        prompt = Prompt(prompt_id=name, token_ids=(), metadata=metadata, **_content(row.get("prompt", ""), place))
        rows.append(JudgeRow(prompt=prompt, completions=answers(name, texts), gold=known))
    if not rows:
        raise DataError(f"{path} has no rows; give a file with a prompt and its completions on each line")
    return rows


def _rows(path: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Every row with its place; a whole conversation is a prompt and the completion that it ends with."""
    label = f"the file is {path}"
    for place, row in numbered_rows(local_file(path, label), label):
        column = column_in("prompt", row)
        if column != "prompt":
            value = row[column]
            if not isinstance(value, list):
                raise DataError(
                    f"{label}; {column} of {place} is {kind(value)}, but a conversation is a list of messages"
                )
            check_messages(value, place, column=column, label=label)
            messages, prompt = messages_of(value), prompt_of(value, column)
            answer = {} if messages == prompt else {"completion": messages[-1]["content"]}
            rest = {name: item for name, item in row.items() if name != column}
            row = {"prompt": list(prompt), **({} if set(COMPLETIONS) & rest.keys() else answer), **rest}
        yield place, row


def _texts(row: Mapping[str, Any], place: str, number: int) -> tuple[list[str], int | None]:
    """The completions, and the position of `chosen` where the row has that."""
    if "completions" in row:
        texts, chosen = row["completions"], None
    elif "completion" in row:
        texts, chosen = [row["completion"]], None
    elif "chosen" in row and "rejected" in row:
        chosen = derive_seed(0, "chosen", number) & 1
        texts = [row["rejected"], row["chosen"]] if chosen else [row["chosen"], row["rejected"]]
    else:
        raise DataError(
            f"{place} has the columns {', '.join(row) or 'none'}; it needs completions (a list of texts), completion, "
            f"or chosen and rejected"
        )
    texts = [_answer(text) for text in texts] if isinstance(texts, list) else texts
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) for text in texts):
        raise DataError(f"{place} has completions that are no texts; write a list of strings")
    return texts, chosen


def _answer(value: Any) -> Any:
    """The text of an answer that is a message, or a list of one."""
    message = value[0] if isinstance(value, list) and len(value) == 1 else value
    is_message = isinstance(message, dict) and {"role", "content"} <= (found := messages_of([message])[0]).keys()
    return found["content"] if is_message else value


def _content(value: Any, place: str) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    messages = messages_of(value) if isinstance(value, list) and all(isinstance(m, dict) for m in value) else None
    if messages is None or not all({"role", "content"} <= message.keys() for message in messages):
        raise DataError(f"{place} has a prompt that is neither text nor a list of messages with role and content")
    return {"messages": messages}


def _gold(row: Mapping[str, Any], column: str, number: int, place: str) -> tuple[float, ...]:
    value = row.get(column)
    if isinstance(value, int) and not isinstance(value, bool) and number > 1 and 0 <= value < number:
        return tuple(float(i == value) for i in range(number))
    values = value if isinstance(value, list) else [value]
    try:
        labels = [float(v) for v in values if isinstance(v, (int, float)) and math.isfinite(v)]
    except OverflowError:  # an integer of hundreds of digits
        labels = []
    if not len(labels) == len(values) == number:
        raise DataError(
            f"{place} has {shown(json.dumps(value, default=str))} in {column} and {number} completions; gold is a "
            f"number for each of them, or the position of the best"
        )
    return tuple(labels)


def answers(name: str, texts: Sequence[str]) -> tuple[Completion, ...]:
    """Texts as completions of the prompt `name`; they have no tokens, since nothing is trained on them."""
    return tuple(
        Completion(
            prompt_id=name,
            sample_index=i,
            token_ids=(),
            text=text,
            finish_reason=None,
            sampler_logps=None,
            policy_version=None,
            seed=None,
        )
        for i, text in enumerate(texts)
    )
