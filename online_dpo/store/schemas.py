"""The columns of every table, by kind of record; `tables` fills them.

Columns about candidates are there where a table holds any, so that a run without them has the same bytes as ever.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

import pyarrow as pa

from online_dpo.types import AnyItem, Completion, Demonstration, Labelled, Pair, Prompt, Verdict
from online_dpo.votes import CastVote

Record: TypeAlias = Prompt | Completion | Verdict | AnyItem | CastVote

MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string(), False), pa.field("content", pa.string(), False)]))
TOKENS = pa.list_(pa.int32())
LOGPS = pa.list_(pa.float64())


def _schema(columns: Mapping[str, pa.DataType], nullable: Sequence[str] = ()) -> pa.Schema:
    return pa.schema([pa.field(name, kind, name in nullable) for name, kind in columns.items()])


PROMPT = _schema(
    {
        "prompt_id": pa.string(),
        "text": pa.string(),  # exactly one of text and messages
        "messages": MESSAGES,
        "token_ids": TOKENS,
        "metadata": pa.string(),  # JSON
    },
    nullable=("text", "messages"),
)
COMPLETION_COLUMNS = {
    "sample_index": pa.int32(),
    "token_ids": TOKENS,
    "finish_reason": pa.string(),
    "sampler_logps": LOGPS,  # nats, one per token
    "policy_version": pa.int32(),
    "seed": pa.int64(),
}
SOURCE = {"source": pa.string()}  # the writer of a candidate; the column is there where a table holds any
COMPLETION = _schema({"prompt_id": pa.string(), "text": pa.string(), **COMPLETION_COLUMNS})
CANDIDATE = _schema(
    {"prompt_id": pa.string(), "text": pa.string(), **COMPLETION_COLUMNS, **SOURCE},
    nullable=("sampler_logps", "policy_version", "seed", "source"),
)
ANSWER_TOKENS = pa.field("answer_tokens", pa.int32())  # the column is there where `judge.view` is set
VERDICT = _schema(
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
VOTE = _schema(
    {
        **dict.fromkeys(("prompt_id", "question_id", "vote_id", "annotator", "outcome", "status"), pa.string()),
        **{"first": pa.int32(), "second": pa.int32(), "swapped": pa.bool_()},
        **{"seconds": pa.float64(), "at": pa.float64()},
        "ratings": pa.string(),  # JSON
        "comment": pa.string(),
    }
)
# How a completion was sampled; null all together in an answer from a data set, and all but the finish reason in a
# candidate.
PROVENANCE = ("finish_reason", "sampler_logps", "policy_version", "seed")
# Margin and probability: null = from a data set. Reference log-probs: nats, summed over the completion; null = not
# computed.
PAIR_LOGPS = ("chosen_ref_logps", "rejected_ref_logps", "chosen_ref_tail_logps", "rejected_ref_tail_logps")
PAIR_NUMBERS = ("margin", "probability", "weight", *PAIR_LOGPS)
LABELLED_LOGPS = ("ref_logps", "kl_ref_logps")
LABELLED_NUMBERS = ("weight", *LABELLED_LOGPS)
OF_PROMPT = {"prompt_id": pa.string(), "prompt_token_ids": TOKENS, "prompt_metadata": pa.string()}  # JSON


def _pair_schema(chat: bool, answer: Mapping[str, pa.DataType]) -> pa.Schema:
    content = MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "chosen": content,
            "rejected": content,
            **dict.fromkeys(PAIR_NUMBERS, pa.float64()),
            **OF_PROMPT,
            **{f"chosen_{name}": kind for name, kind in answer.items()},
            **{f"rejected_{name}": kind for name, kind in answer.items()},
        },
        nullable=(
            *(name for name in PAIR_NUMBERS if name != "weight"),
            *(f"{side}_{name}" for side in ("chosen", "rejected") for name in (*PROVENANCE, *SOURCE)),
        ),
    )


def _labelled_schema(chat: bool, answer: Mapping[str, pa.DataType]) -> pa.Schema:
    content = MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "completion": content,
            "label": pa.bool_(),
            **dict.fromkeys(LABELLED_NUMBERS, pa.float64()),
            **OF_PROMPT,
            **{f"completion_{name}": kind for name, kind in answer.items()},
            "kl_completion_ids": TOKENS,
        },
        nullable=(*LABELLED_LOGPS, *(f"completion_{name}" for name in (*PROVENANCE, *SOURCE))),
    )


def _demonstration_schema(chat: bool, answer: Mapping[str, pa.DataType]) -> pa.Schema:
    content = MESSAGES if chat else pa.string()
    return _schema(
        {
            "prompt": content,
            "completion": content,
            "trained": pa.list_(pa.bool_()),  # one per token of the completion: whether the loss is of it
            **OF_PROMPT,
            **{f"completion_{name}": kind for name, kind in answer.items()},
        },
        nullable=tuple(f"completion_{name}" for name in PROVENANCE),
    )


def schema_of(records: Sequence[Record]) -> pa.Schema:
    match records[0]:
        case Prompt():
            return PROMPT
        case Completion():
            schema = CANDIDATE if _has_candidates(records) else COMPLETION
            is_viewed = any(getattr(record, "answer_tokens", None) is not None for record in records)
            return schema.append(ANSWER_TOKENS) if is_viewed else schema
        case Verdict():
            return VERDICT
        case CastVote():
            return VOTE
        case Pair() | Labelled() | Demonstration():
            chat = {record.prompt.messages is not None for record in records if isinstance(record, AnyItem)}
            if len(chat) > 1:
                raise ValueError("one table of what is trained on cannot hold both plain and chat prompts")
            schemas = {Pair: _pair_schema, Labelled: _labelled_schema, Demonstration: _demonstration_schema}
            answer = {**COMPLETION_COLUMNS, **(SOURCE if _has_candidates(records) else {})}
            return schemas[type(records[0])](chat.pop(), answer)


def _has_candidates(records: Sequence[Record]) -> bool:
    """Whether a completion of the table is a candidate."""
    for record in records:
        answers: tuple[Completion, ...] = ()
        if isinstance(record, Pair):
            answers = (record.chosen, record.rejected)
        elif isinstance(record, Labelled):
            answers = (record.completion,)
        elif isinstance(record, Completion):
            answers = (record,)
        if any(answer.source is not None for answer in answers):
            return True
    return False
