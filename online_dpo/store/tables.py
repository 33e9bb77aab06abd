"""Records <-> parquet, in columns that other programs read without us.

`pairs.parquet` is a preference data set as `datasets` and TRL's `DPOTrainer` take it: `prompt`, `chosen` and
`rejected` are text, or lists of `{role, content}` messages for chat prompts; `chosen` and `rejected` hold the answer
alone. `labelled.parquet` is the same for `KTOTrainer`: `prompt`, `completion` and `label`, and `demonstrations.parquet`
for `SFTTrainer`: `prompt` and `completion`. The other columns carry what text cannot: the token ids that were sampled,
and where each answer came from.

The same records give the same bytes (with the same pyarrow), and reading gives equal records back: floats are
float64, seeds int64. Metadata is a column of JSON, since its keys differ from source to source.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, TypeAlias, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from online_dpo.errors import DataError
from online_dpo.store.schemas import (
    COMPLETION_COLUMNS,
    LABELLED_NUMBERS,
    PAIR_NUMBERS,
    SOURCE,
    VERDICT,
    VOTE,
    Record,
    schema_of,
)
from online_dpo.types import Completion, Demonstration, Labelled, Message, Pair, Prompt, Verdict, text_of_turns
from online_dpo.votes import CastVote

R = TypeVar("R", bound=Record)
Columns: TypeAlias = dict[str, Any]


def to_parquet(records: Sequence[Record]) -> bytes:
    """Records of one kind as a parquet file. No records at all give a file without columns.

    Raises:
        DataError: a message or metadata cannot be kept; names the prompt.
    """
    kinds = {type(record) for record in records}
    if len(kinds) > 1:
        raise ValueError(f"one table cannot hold {sorted(kind.__name__ for kind in kinds)}")
    rows = [_to_row(record) for record in records]
    table = pa.Table.from_pylist(rows, schema=schema_of(records) if records else pa.schema([]))
    out = pa.BufferOutputStream()
    # Spelled out because defaults move between releases of pyarrow, and with them the bytes of a resumed run.
    pq.write_table(table, out, version="2.6", data_page_version="1.0", compression="zstd", compression_level=3)
    return out.getvalue().to_pybytes()


def from_parquet(data: bytes, kind: type[R], *, limit: int | None = None) -> list[R]:
    """The inverse of `to_parquet`; with a limit, of the first rows alone."""
    # Neither pq.read_table nor a Python file: their threads may outlive the call and then hang or abort the
    # interpreter at exit (https://github.com/apache/arrow/issues/50482).
    table = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)[:limit]
    columns = [_values(column) for column in table.columns]
    rows = (dict(zip(table.column_names, values, strict=True)) for values in zip(*columns, strict=True))
    return [cast(R, _FROM_ROW[kind](row)) for row in rows]


def _values(column: pa.ChunkedArray) -> list[Any]:
    """As `to_pylist`, which takes several times as long for lists of numbers."""
    numbers = column.type.value_type if pa.types.is_list(column.type) else pa.null()
    if not (pa.types.is_integer(numbers) or pa.types.is_floating(numbers)):
        return cast(list[Any], column.to_pylist())
    found: list[Any] = []
    for chunk in column.chunks:
        if chunk.null_count or chunk.values.null_count:
            found += chunk.to_pylist()
            continue
        values, ends = chunk.flatten().to_numpy().tolist(), chunk.offsets.to_numpy()
        found += [values[start:end] for start, end in pairwise((ends - ends[0]).tolist())]
    return found


def _to_row(record: Record) -> Columns:
    match record:
        case Prompt():
            return {
                "prompt_id": record.prompt_id,
                "text": record.text,
                "messages": None if record.messages is None else _messages(record),
                "token_ids": record.token_ids,
                "metadata": _metadata(record),
            }
        case Completion():
            own = {name: getattr(record, name) for name in ("prompt_id", "text", "answer_tokens")}
            return {**own, **_completion_columns(record)}
        case Verdict():
            return {name: getattr(record, name) for name in VERDICT.names}
        case CastVote():
            ratings = json.dumps(dict(record.ratings), sort_keys=True, ensure_ascii=False)
            return {**{name: getattr(record, name) for name in VOTE.names}, "ratings": ratings}
        case Pair():
            return _pair_row(record)
        case Labelled():
            return _labelled_row(record)
        case Demonstration():
            return _demonstration_row(record)


def _pair_row(pair: Pair) -> Columns:
    return {
        **{name: getattr(pair, name) for name in PAIR_NUMBERS},
        **_prompt_columns(pair.prompt),
        **_answer_columns("chosen", pair.prompt, pair.chosen),
        **_answer_columns("rejected", pair.prompt, pair.rejected),
    }


def _labelled_row(item: Labelled) -> Columns:
    return {
        **{name: getattr(item, name) for name in LABELLED_NUMBERS},
        **_prompt_columns(item.prompt),
        **_answer_columns("completion", item.prompt, item.completion),
        "label": item.desirable,
        "kl_completion_ids": item.kl_completion_ids,
    }


def _demonstration_row(item: Demonstration) -> Columns:
    return {
        "trained": item.trained,
        **_prompt_columns(item.prompt),
        **_answer_columns("completion", item.prompt, item.completion),
        **({"completion": _checked(item.prompt, item.turns)} if item.turns else {}),
    }


def _prompt_columns(prompt: Prompt) -> Columns:
    return {
        "prompt": prompt.text if prompt.messages is None else _messages(prompt),
        "prompt_id": prompt.prompt_id,
        "prompt_token_ids": prompt.token_ids,
        "prompt_metadata": _metadata(prompt),
    }


def _answer_columns(name: str, prompt: Prompt, answer: Completion) -> Columns:
    content = answer.text if prompt.messages is None else [{"role": "assistant", "content": answer.text}]
    return {name: content, **{f"{name}_{column}": value for column, value in _completion_columns(answer).items()}}


def _completion_columns(completion: Completion) -> Columns:
    return {name: getattr(completion, name) for name in (*COMPLETION_COLUMNS, *SOURCE)}


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    return _checked(prompt, prompt.messages or ())


def _checked(prompt: Prompt, messages: Sequence[Message]) -> list[dict[str, str]]:
    for message in messages:
        if message.keys() != {"role", "content"}:
            raise DataError(
                f"prompt {prompt.prompt_id} has a message with the keys {', '.join(message)}; a message has role and "
                f"content: remove or rename the others in the prompt source"
            )
    return [dict(message) for message in messages]


def _metadata(prompt: Prompt) -> str:
    try:
        return json.dumps(dict(prompt.metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt {prompt.prompt_id} has metadata that JSON cannot hold ({error}); remove or convert the column"
        ) from None


def _prompt_from(row: Columns) -> Prompt:
    return Prompt(
        prompt_id=row["prompt_id"],
        token_ids=tuple(row["token_ids"]),
        text=row["text"],
        messages=None if row["messages"] is None else tuple(row["messages"]),
        metadata=json.loads(row["metadata"]),
    )


def _completion_from(row: Columns) -> Completion:
    logps = row["sampler_logps"]
    return Completion(
        **{**row, "token_ids": tuple(row["token_ids"]), "sampler_logps": None if logps is None else tuple(logps)}
    )


def _pair_from(row: Columns) -> Pair:
    numbers = {name: row[name] for name in PAIR_NUMBERS}
    return Pair(
        prompt=_prompt_of(row), chosen=_answer_from(row, "chosen"), rejected=_answer_from(row, "rejected"), **numbers
    )


def _labelled_from(row: Columns) -> Labelled:
    return Labelled(
        prompt=_prompt_of(row),
        completion=_answer_from(row, "completion"),
        desirable=row["label"],
        kl_completion_ids=tuple(row["kl_completion_ids"]),
        **{name: row[name] for name in LABELLED_NUMBERS},
    )


def _demonstration_from(row: Columns) -> Demonstration:
    turns = () if isinstance(row["completion"], str) else tuple(row["completion"])
    text = text_of_turns(turns) if turns else row["completion"]
    return Demonstration(
        prompt=_prompt_of(row),
        completion=_answer_from({**row, "completion": text}, "completion"),
        trained=tuple(row["trained"]),
        turns=turns,
    )


def _prompt_of(row: Columns) -> Prompt:
    """The prompt of a row of pairs, labelled answers or demonstrations."""
    chat = not isinstance(row["prompt"], str)
    return Prompt(
        prompt_id=row["prompt_id"],
        token_ids=tuple(row["prompt_token_ids"]),
        text=None if chat else row["prompt"],
        messages=tuple(row["prompt"]) if chat else None,
        metadata=json.loads(row["prompt_metadata"]),
    )


def _answer_from(row: Columns, name: str) -> Completion:
    text = row[name] if isinstance(row[name], str) else row[name][0]["content"]
    columns = {column: row.get(f"{name}_{column}") for column in (*COMPLETION_COLUMNS, *SOURCE)}
    return _completion_from({"prompt_id": row["prompt_id"], "text": text, **columns})


_FROM_ROW = {
    Prompt: _prompt_from,
    Completion: _completion_from,
    Verdict: lambda row: Verdict(**row),
    CastVote: lambda row: CastVote(**{**row, "ratings": json.loads(row["ratings"])}),
    Pair: _pair_from,
    Labelled: _labelled_from,
    Demonstration: _demonstration_from,
}
