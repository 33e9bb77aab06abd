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
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar, cast

import pyarrow as pa
import pyarrow.parquet as pq

from online_dpo.errors import DataError
from online_dpo.types import AnyItem, Completion, Demonstration, Labelled, Message, Pair, Prompt, Verdict, text_of_turns
from online_dpo.votes import CastVote

Record: TypeAlias = Prompt | Completion | Verdict | AnyItem | CastVote
R = TypeVar("R", bound=Record)
Columns: TypeAlias = dict[str, Any]

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
_VIEWED_COMPLETION = _COMPLETION.append(pa.field("answer_tokens", pa.int32()))  # where judge.view is set
_VERDICT = _schema(
    {
        "prompt_id": pa.string(),
        "first": pa.int32(),
        "second": pa.int32(),
        "score": pa.float64(),
        "probability": pa.float64(),
        "reason": pa.string(),
        "abstention": pa.string(),  # its kind; null = an opinion
        "uncertainty": pa.float64(),  # in the unit of score or probability; null = one opinion only
        "rationale": pa.string(),  # what the judge wrote for its opinion
    },
    nullable=("second", "score", "probability", "reason", "abstention", "uncertainty", "rationale"),
)
_VOTE = _schema(
    {
        **dict.fromkeys(("prompt_id", "question_id", "vote_id", "annotator", "outcome", "status"), pa.string()),
        **{"first": pa.int32(), "second": pa.int32(), "swapped": pa.bool_()},
        **{"seconds": pa.float64(), "at": pa.float64()},
        "ratings": pa.string(),  # JSON
        "comment": pa.string(),
    }
)
# How a completion was sampled; null all together in an answer from a data set, and nowhere else.
_PROVENANCE = ("finish_reason", "sampler_logps", "policy_version", "seed")
# Margin and probability: null = from a data set. Reference log-probs: nats, of the completion; null = not computed.
_PAIR_LOGPS = ("chosen_ref_logps", "rejected_ref_logps", "chosen_ref_tail_logps", "rejected_ref_tail_logps")
_PAIR_NUMBERS = ("margin", "probability", "weight", *_PAIR_LOGPS)
_LABELLED_LOGPS = ("ref_logps", "kl_ref_logps")
_LABELLED_NUMBERS = ("weight", *_LABELLED_LOGPS)
_OF_PROMPT = {"prompt_id": pa.string(), "prompt_token_ids": _TOKENS, "prompt_metadata": pa.string()}  # JSON


def _pair_schema(chat: bool) -> pa.Schema:
    content = _MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "chosen": content,
            "rejected": content,
            **dict.fromkeys(_PAIR_NUMBERS, pa.float64()),
            **_OF_PROMPT,
            **{f"chosen_{name}": kind for name, kind in _COMPLETION_COLUMNS.items()},
            **{f"rejected_{name}": kind for name, kind in _COMPLETION_COLUMNS.items()},
        },
        nullable=(
            *(name for name in _PAIR_NUMBERS if name != "weight"),
            *(f"{side}_{name}" for side in ("chosen", "rejected") for name in _PROVENANCE),
        ),
    )


def _labelled_schema(chat: bool) -> pa.Schema:
    content = _MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "completion": content,
            "label": pa.bool_(),
            **dict.fromkeys(_LABELLED_NUMBERS, pa.float64()),
            **_OF_PROMPT,
            **{f"completion_{name}": kind for name, kind in _COMPLETION_COLUMNS.items()},
            "kl_completion_ids": _TOKENS,
        },
        nullable=(*_LABELLED_LOGPS, *(f"completion_{name}" for name in _PROVENANCE)),
    )


def _demonstration_schema(chat: bool) -> pa.Schema:
    content = _MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "completion": content,
            "trained": pa.list_(pa.bool_()),  # one per token of the completion: whether the loss is of it
            **_OF_PROMPT,
            **{f"completion_{name}": kind for name, kind in _COMPLETION_COLUMNS.items()},
        },
        nullable=tuple(f"completion_{name}" for name in _PROVENANCE),
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


def from_parquet(data: bytes, kind: type[R], *, limit: int | None = None) -> list[R]:
    """The inverse of `to_parquet`; with a limit, of the first rows alone."""
    # Neither pq.read_table nor a Python file: their threads may outlive the call and then hang or abort the
    # interpreter at exit (https://github.com/apache/arrow/issues/50482).
    rows: list[Columns] = pq.ParquetFile(pa.BufferReader(data)).read(use_threads=False)[:limit].to_pylist()
    return [cast(R, _FROM_ROW[kind](row)) for row in rows]


def _schema_of(records: Sequence[Record]) -> pa.Schema:
    match records[0]:
        case Prompt():
            return _PROMPT
        case Completion():
            viewed = any(getattr(record, "answer_tokens", None) is not None for record in records)
            return _VIEWED_COMPLETION if viewed else _COMPLETION
        case Verdict():
            return _VERDICT
        case CastVote():
            return _VOTE
        case Pair() | Labelled() | Demonstration():
            chat = {record.prompt.messages is not None for record in records if isinstance(record, AnyItem)}
            if len(chat) > 1:
                raise ValueError("one table of what is trained on cannot hold both plain and chat prompts")
            schemas = {Pair: _pair_schema, Labelled: _labelled_schema, Demonstration: _demonstration_schema}
            return schemas[type(records[0])](chat.pop())


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
            return {name: getattr(record, name) for name in _VIEWED_COMPLETION.names}
        case Verdict():
            return {name: getattr(record, name) for name in _VERDICT.names}
        case CastVote():
            ratings = json.dumps(dict(record.ratings), sort_keys=True, ensure_ascii=False)
            return {**{name: getattr(record, name) for name in _VOTE.names}, "ratings": ratings}
        case Pair():
            return _pair_row(record)
        case Labelled():
            return _labelled_row(record)
        case Demonstration():
            return _demonstration_row(record)


def _pair_row(pair: Pair) -> Columns:
    return {
        **{name: getattr(pair, name) for name in _PAIR_NUMBERS},
        **_prompt_columns(pair.prompt),
        **_answer_columns("chosen", pair.prompt, pair.chosen),
        **_answer_columns("rejected", pair.prompt, pair.rejected),
    }


def _labelled_row(item: Labelled) -> Columns:
    return {
        **{name: getattr(item, name) for name in _LABELLED_NUMBERS},
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
    return {name: getattr(completion, name) for name in _COMPLETION_COLUMNS}


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
    numbers = {name: row[name] for name in _PAIR_NUMBERS}
    return Pair(
        prompt=_prompt_of(row), chosen=_answer_from(row, "chosen"), rejected=_answer_from(row, "rejected"), **numbers
    )


def _labelled_from(row: Columns) -> Labelled:
    return Labelled(
        prompt=_prompt_of(row),
        completion=_answer_from(row, "completion"),
        desirable=row["label"],
        kl_completion_ids=tuple(row["kl_completion_ids"]),
        **{name: row[name] for name in _LABELLED_NUMBERS},
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
    columns = {column: row[f"{name}_{column}"] for column in _COMPLETION_COLUMNS}
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
