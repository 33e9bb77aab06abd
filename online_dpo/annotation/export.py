"""Preferences and votes as files for other programs: a row for each, as JSON lines or parquet.

A preference row has the columns `prompt`, `chosen` and `rejected` as TRL and `datasets` take them, text or chat
messages, and in further columns the votes that it rests on, with pseudonyms.
"""

from __future__ import annotations

import json
import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypeAlias

import pyarrow as pa
import pyarrow.parquet as pq

from online_dpo.annotation.consensus import Consensus, find_consensus
from online_dpo.annotation.records import Question, Snapshot, Vote
from online_dpo.annotation.tables.database import AnnotationStoreError

Format: TypeAlias = Literal["jsonl", "parquet"]
Row: TypeAlias = dict[str, Any]

_MESSAGES = pa.list_(pa.struct([pa.field("role", pa.string()), pa.field("content", pa.string())]))
_RATINGS = pa.list_(pa.struct([pa.field("criterion", pa.string()), pa.field("rating", pa.int32())]))
_VOTE = {
    "annotator": pa.string(),
    "outcome": pa.string(),
    "seconds": pa.float64(),
    "at": pa.string(),
    "comment": pa.string(),
    "ratings": _RATINGS,
}
_IDS = {"question_id": pa.string(), "judge": pa.string(), "round_index": pa.int32(), "prompt_id": pa.string()}
_PREFERENCE = {
    "probability": pa.float64(),
    "support": pa.float64(),
    "num_votes": pa.int32(),
    **{f"num_{label}": pa.int32() for label in ("chosen", "rejected", "tie", "both_bad")},
    **_IDS,
    "chosen_index": pa.int32(),
    "rejected_index": pa.int32(),
    "votes": pa.list_(pa.struct([pa.field(name, kind) for name, kind in _VOTE.items()])),
}
_VOTE_ROW = {
    "vote_id": pa.string(),
    **_IDS,
    "first_index": pa.int32(),
    "second_index": pa.int32(),
    "first": pa.string(),
    "second": pa.string(),
    "kind": pa.string(),
    "status": pa.string(),
    "shown_first": pa.string(),
    "repeat_of": pa.string(),
    "gold_answer": pa.string(),
    **_VOTE,
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Export:
    """What is written, and what became of each question."""

    files: Mapping[str, bytes]  # name -> content
    num_preferences: int
    num_votes: int
    left_out: Mapping[str, int]  # questions that make no preference, by reason; with the preferences all questions


def make_export(snapshot: Snapshot, format: Format) -> Export:
    """Preferences of the settled questions by the consensus of the rules, and all votes.

    `preferences` has a row for each question that has a winner, and `votes` one for each vote in any status, those on
    hidden questions included. Where some prompts are chats and others text, which one file cannot hold, each kind has
    files of its own (`preferences-chat`, `preferences-text`).

    Args:
        snapshot: of a store.
        format: of all files.
    """
    preferences, left_out = preference_rows(snapshot)
    votes = [_vote_row(snapshot, vote) for vote in snapshot.votes]
    files = {
        **_files("preferences", preferences, _PREFERENCE, ("chosen", "rejected"), format),
        **_files("votes", votes, _VOTE_ROW, (), format),
    }
    return Export(files=files, num_preferences=len(preferences), num_votes=len(votes), left_out=left_out)


def preference_rows(snapshot: Snapshot) -> tuple[list[Row], dict[str, int]]:
    """The settled questions that have a winner by the consensus of the rules; why how many others make no preference.

    Args:
        snapshot: of a store.
    """
    rules, counted = snapshot.rules, snapshot.counted()
    settled = {name: votes for name, votes in counted.items() if name not in snapshot.unsettled}
    found = find_consensus(
        settled, method=rules.consensus, min_agreement=rules.min_agreement, disagreement=rules.disagreement,
        evidence=snapshot.votes, known=snapshot.gold,
    )  # fmt: skip
    preferences, left_out = [], Counter[str]()
    for name in counted:
        if name in snapshot.unsettled:
            left_out["unsettled"] += 1
        elif (reason := _no_winner(found[name])) is not None:
            left_out[reason] += 1
        else:
            preferences.append(_preference_row(snapshot.questions[name], found[name], counted[name]))
    return preferences, dict(left_out)


def write_export(export: Export, folder: Path) -> None:
    """Write the files into a folder, each at once; files of the same names are replaced.

    Raises:
        AnnotationStoreError: they cannot be written.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, content in export.files.items():
            temporary = folder / f".{name}.{os.getpid()}"
            temporary.write_bytes(content)
            temporary.replace(folder / name)
    except OSError as error:
        raise AnnotationStoreError(f"{folder} cannot be written to: {error.strerror}; give another folder") from error


def _no_winner(consensus: Consensus) -> str | None:
    """Why a question makes no preference."""
    if consensus.reason is not None:
        return consensus.reason.partition(":")[0]
    assert consensus.probability is not None
    return "tie" if abs(consensus.probability - 0.5) < 1e-9 else None


def _preference_row(question: Question, consensus: Consensus, votes: Sequence[Vote]) -> Row:
    assert consensus.probability is not None
    first_wins = consensus.probability > 0.5
    names = {"first": "chosen", "second": "rejected"} if first_wins else {"first": "rejected", "second": "chosen"}
    counts = Counter(names.get(vote.outcome, vote.outcome) for vote in votes)
    texts = {names["first"]: question.first_text, names["second"]: question.second_text}
    places = {names["first"]: question.first, names["second"]: question.second}
    is_chat = not isinstance(question.prompt, str)
    return {
        "prompt": question.prompt,
        **{
            name: [{"role": "assistant", "content": texts[name]}] if is_chat else texts[name]
            for name in ("chosen", "rejected")
        },
        "probability": consensus.probability if first_wins else 1.0 - consensus.probability,
        "support": consensus.support,
        "num_votes": len(votes),
        **{f"num_{label}": counts[label] for label in ("chosen", "rejected", "tie", "both_bad")},
        **_ids(question),
        "chosen_index": places["chosen"],
        "rejected_index": places["rejected"],
        "votes": [
            {**_said(vote, turned=not first_wins), "outcome": names.get(vote.outcome, vote.outcome)} for vote in votes
        ],
    }


def _vote_row(snapshot: Snapshot, vote: Vote) -> Row:
    question = snapshot.questions[vote.question_id]
    return {
        "prompt": question.prompt,
        "vote_id": vote.vote_id,
        **_ids(question),
        "first_index": question.first,
        "second_index": question.second,
        "first": question.first_text,
        "second": question.second_text,
        "kind": vote.kind,
        "status": vote.status,
        "shown_first": "second" if vote.swapped else "first",
        "repeat_of": vote.repeat_of,
        "gold_answer": snapshot.gold.get(vote.question_id),
        **_said(vote, turned=False),
    }


def _said(vote: Vote, *, turned: bool) -> Row:
    """What somebody said; ratings are above 0 for the first answer, or for the second where they are `turned`."""
    return {
        "annotator": vote.annotator,
        "outcome": vote.outcome,
        "seconds": vote.seconds,
        "at": datetime.fromtimestamp(vote.at, UTC).isoformat(timespec="seconds"),
        "comment": vote.comment,
        "ratings": [
            {"criterion": name, "rating": -value if turned else value} for name, value in sorted(vote.ratings.items())
        ],
    }


def _ids(question: Question) -> Row:
    return {
        "question_id": question.question_id,
        "judge": question.purpose,
        "round_index": question.round_index,
        "prompt_id": question.prompt_id,
    }


def _files(
    name: str, rows: Sequence[Row], columns: Mapping[str, pa.DataType], contents: Sequence[str], format: Format
) -> dict[str, bytes]:
    """The files of these rows: one, or one for chats and one for text."""
    kinds = {False: [row for row in rows if isinstance(row["prompt"], str)]}
    kinds[True] = [row for row in rows if not isinstance(row["prompt"], str)]
    both = bool(kinds[False] and kinds[True])
    files = {}
    for is_chat, found in kinds.items():
        if found or (not rows and not is_chat):
            content = _MESSAGES if is_chat else pa.string()
            schema = {"prompt": content, **dict.fromkeys(contents, content), **columns}
            suffix = ("-chat" if is_chat else "-text") if both else ""
            files[f"{name}{suffix}.{format}"] = _encode(found, schema, format)
    return files


def _encode(rows: Sequence[Row], columns: Mapping[str, pa.DataType], format: Format) -> bytes:
    if format == "jsonl":
        return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in rows).encode(errors="surrogatepass")
    table = pa.Table.from_pylist(list(rows), schema=pa.schema(list(columns.items())))
    out = pa.BufferOutputStream()
    pq.write_table(table, out, compression="zstd")
    return bytes(out.getvalue().to_pybytes())
