"""Records <-> parquet, in columns that other programs read without us.

`pairs.parquet` is a preference data set as `datasets` and TRL's `DPOTrainer` take it: `prompt`, `chosen` and
`rejected` are text, or lists of `{role, content}` messages for chat prompts; `chosen` and `rejected` hold the answer
alone. The other columns carry what text cannot: the token ids that were sampled, and where each answer came from.

The same records give the same bytes (with the same pyarrow), and reading gives equal records back: floats are
float64, seeds int64. Metadata is a column of JSON, since its keys differ from source to source.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from online_dpo.errors import DataError
from online_dpo.types import Completion, Pair, Prompt, Verdict

Record: TypeAlias = Prompt | Completion | Verdict | Pair
R = TypeVar("R", bound=Record)
Row: TypeAlias = dict[str, Any]

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)]))
_TOKENS = pa.list_(pa.int32())
_LOGPS = pa.list_(pa.float64())


def _schema(columns: Mapping[str, pa.DataType], nullable: Sequence[str] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, name in nullable) for name, kind in columns.items()])


_PROMPT = _schema(
    {
        "prompt_id": pa.string(),
        "text": pa.string(),  # exactly one of text and messages
        "messages": _MESSAGES,
        "token_ids": _TOKENS,
        "metadata": pa.string(),  # JSON
    },
    nullable=("text", "messages"),
)
_COMPLETION_COLUMNS = {
    "sample_index": pa.int32(),
    "token_ids": _TOKENS,
    "finish_reason": pa.string(),
    "sampler_logps": _LOGPS,  # nats, one per token
    "policy_version": pa.int32(),
    "seed": pa.int64(),
}
_COMPLETION = _schema({"prompt_id": pa.string(), "text": pa.string(), **_COMPLETION_COLUMNS})
_VERDICT = _schema(
    {
        "prompt_id": pa.string(),
        "first": pa.int32(),
        "second": pa.int32(),
        "score": pa.float64(),
        "probability": pa.float64(),
        "reason": pa.string(),
    },
    nullable=("second", "score", "probability", "reason"),
)
# How a completion was sampled; null all together in a pair from a data set, and nowhere else.
_PROVENANCE = ("finish_reason", "sampler_logps", "policy_version", "seed")
# Margin and probability: null = from a data set. Reference log-probs: nats, summed over the completion; null = not
# computed.
_PAIR_NUMBERS = ("margin", "probability", "weight", "chosen_ref_logps", "rejected_ref_logps")


def _pair_schema(chat: bool) -> pa.Schema:
    content = _MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "chosen": content,
            "rejected": content,
            **dict.fromkeys(_PAIR_NUMBERS, pa.float64()),
            "prompt_id": pa.string(),
            "prompt_token_ids": _TOKENS,
            "prompt_metadata": pa.string(),  # JSON
            **{f"chosen_{name}": kind for name, kind in _COMPLETION_COLUMNS.items()},
            **{f"rejected_{name}": kind for name, kind in _COMPLETION_COLUMNS.items()},
        },
        nullable=(
            *(name for name in _PAIR_NUMBERS if name != "weight"),
            *(f"{side}_{name}" for side in ("chosen", "rejected") for name in _PROVENANCE),
        ),
    )


def to_parquet(records: Sequence[Record]) -> bytes:
    """Records of one kind as a parquet file. No records at all give a file without columns.

    Raises:
        DataError: a message or metadata cannot be kept; names the prompt.
    """
    kinds = {type(record) for record in records}
    if len(kinds) > 1:
        raise ValueError(f"one table cannot hold {sorted(kind.__name__ for kind in kinds)}")
    rows = [_to_row(record) for record in records]
    table = pa.Table.from_pylist(rows, schema=_schema_of(records) if records else pa.schema([]))
    out = pa.BufferOutputStream()
    # Spelled out because defaults move between releases of pyarrow, and with them the bytes of a resumed run.
    pq.write_table(table, out, version="2.6", data_page_version="1.0", compression="zstd", compression_level=3)
    return out.getvalue().to_pybytes()


def from_parquet(data: bytes, kind: type[R]) -> list[R]:
    """The inverse of `to_parquet`."""
    # Neither pq.read_table nor a Python file: their threads may outlive the call and then hang or abort the
    # interpreter at exit (https://github.com/apache/arrow/issues/50482).
    rows: list[Row] = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False).to_pylist()
    return [cast(R, _FROM_ROW[kind](row)) for row in rows]


def _schema_of(records: Sequence[Record]) -> pa.Schema:
    match records[0]:
        case Prompt():
            return _PROMPT
        case Completion():
            return _COMPLETION
        case Verdict():
            return _VERDICT
        case Pair():
            chat = {record.prompt.messages is not None for record in records if isinstance(record, Pair)}
            if len(chat) > 1:
                raise ValueError("one table of pairs cannot hold both plain and chat prompts")
            return _pair_schema(chat.pop())


def _to_row(record: Record) -> Row:
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
            return {"prompt_id": record.prompt_id, "text": record.text, **_completion_columns(record)}
        case Verdict():
            return {name: getattr(record, name) for name in _VERDICT.names}
        case Pair():
            return _pair_row(record)


def _pair_row(pair: Pair) -> Row:
    prompt = pair.prompt
    row = {
        "prompt": prompt.text if prompt.messages is None else _messages(prompt),
        **{name: getattr(pair, name) for name in _PAIR_NUMBERS},
        "prompt_id": prompt.prompt_id,
        "prompt_token_ids": prompt.token_ids,
        "prompt_metadata": _metadata(prompt),
    }
    for side, answer in (("chosen", pair.chosen), ("rejected", pair.rejected)):
        row[side] = answer.text if prompt.messages is None else [{"role": "assistant", "content": answer.text}]
        row |= {f"{side}_{name}": value for name, value in _completion_columns(answer).items()}
    return row


def _completion_columns(completion: Completion) -> Row:
    return {name: getattr(completion, name) for name in _COMPLETION_COLUMNS}


def _messages(prompt: Prompt) -> list[dict[str, str]]:
    for message in prompt.messages or ():
        if message.keys() != {"role", "content"}:
            raise DataError(
                f"prompt {prompt.prompt_id} has a message with the keys {', '.join(message)}; a message has role and "
                f"content: remove or rename the others in the prompt source"
            )
    return [dict(message) for message in prompt.messages or ()]


def _metadata(prompt: Prompt) -> str:
    try:
        return json.dumps(dict(prompt.metadata), ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise DataError(
            f"prompt {prompt.prompt_id} has metadata that JSON cannot hold ({error}); remove or convert the column"
        ) from None


def _prompt_from(row: Row) -> Prompt:
    return Prompt(
        prompt_id=row["prompt_id"],
        token_ids=tuple(row["token_ids"]),
        text=row["text"],
        messages=None if row["messages"] is None else tuple(row["messages"]),
        metadata=json.loads(row["metadata"]),
    )


def _completion_from(row: Row) -> Completion:
    logps = row["sampler_logps"]
    return Completion(
        **{**row, "token_ids": tuple(row["token_ids"]), "sampler_logps": None if logps is None else tuple(logps)}
    )


def _pair_from(row: Row) -> Pair:
    chat = not isinstance(row["prompt"], str)
    prompt = Prompt(
        prompt_id=row["prompt_id"],
        token_ids=tuple(row["prompt_token_ids"]),
        text=None if chat else row["prompt"],
        messages=tuple(row["prompt"]) if chat else None,
        metadata=json.loads(row["prompt_metadata"]),
    )

    def answer(side: str) -> Completion:
        text = row[side][0]["content"] if chat else row[side]
        columns = {name: row[f"{side}_{name}"] for name in _COMPLETION_COLUMNS}
        return _completion_from({"prompt_id": row["prompt_id"], "text": text, **columns})

    numbers = {name: row[name] for name in _PAIR_NUMBERS}
    return Pair(prompt=prompt, chosen=answer("chosen"), rejected=answer("rejected"), **numbers)


_FROM_ROW = {Prompt: _prompt_from, Completion: _completion_from, Verdict: lambda row: Verdict(**row), Pair: _pair_from}
