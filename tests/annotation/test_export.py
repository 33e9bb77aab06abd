"""What people said, as files that others read."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from annotation_kit import PLAIN, T0, gold, invite

from online_dpo.annotation.export import Export, Format, make_export, write_export
from online_dpo.annotation.records import Choice, Question, Rules
from online_dpo.annotation.store import AnnotationStore
from online_dpo.config.preferences import PairsSection
from online_dpo.data.preference_files import load_preferences, split_row

CHAT = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Hello?"}]
NAMES = ("wins", "loses", "tie", "both bad", "open")


def questions(prompt: Any) -> dict[str, Question]:
    return {
        name: Question(
            purpose="reward", round_index=1, prompt_id=name, prompt=prompt, first=2, second=3,
            first_text=f"first of {name} é", second_text=f"second of {name}",
        )
        for name in NAMES
    }  # fmt: skip


def answered(path: Path, prompts: list[Any]) -> AnnotationStore:
    """`wins` has a better first answer by two of three, `loses` a better second one; `open` has one vote of three."""
    said = {
        "wins": "first first second",
        "loses": "second second second",
        "tie": "tie tie first",
        "both bad": "both_bad " * 3,
    }
    store = AnnotationStore.create(path, Rules(**{**PLAIN, "criteria": ("helpful",)}), T0)  # type: ignore[arg-type]
    for prompt in prompts:
        store.add_questions(list(questions(prompt).values()), T0)
    people = invite(store, 3)
    for number, person in enumerate(people):
        held = []
        while (assignment := store.next_assignment(person, T0)) is not None:
            name = assignment.question.prompt_id
            if name == "open" and number > 0:
                choice: Choice = "skip"
            else:
                outcome = said.get(name, "first first first").split()[number]
                sides = ("second", "first") if assignment.swapped else ("first", "second")
                choice = ("left", "right")[sides.index(outcome)] if outcome in sides else outcome  # type: ignore[assignment]
            ratings = {"helpful": 1} if choice == "left" else {}
            store.vote(assignment.assignment_id, person, choice, ratings=ratings, comment="so", now=T0 + 2)
            held.append(name)
        assert len(held) == len(prompts) * len(NAMES)
    return store


def rows_of(export: Export, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in export.files[name].decode().splitlines()]


@pytest.mark.parametrize("format", ["jsonl", "parquet"])
@pytest.mark.parametrize("prompt", ["Say it.", CHAT])
def test_our_own_pairs_and_datasets_read_what_was_exported(tmp_path: Path, prompt: Any, format: Format) -> None:
    export = make_export(answered(tmp_path / "a.sqlite", [prompt]).snapshot(), format)
    assert (export.num_preferences, export.num_votes) == (2, 15)
    assert export.left_out == {"tie": 1, "both bad": 1, "unsettled": 1}
    write_export(export, tmp_path / "out")
    assert {file.name for file in (tmp_path / "out").iterdir()} == {f"preferences.{format}", f"votes.{format}"}
    file = tmp_path / "out" / f"preferences.{format}"

    expected = {"wins": ("first of wins é", "second of wins"), "loses": ("second of loses", "first of loses é")}
    spec = PairsSection(source=str(file))
    table = load_preferences(spec, field="pairs")
    split = [split_row(row, spec) for row in table.rows]
    assert {s.answers for s in split if not isinstance(s, str)} == set(expected.values())
    assert all(
        s.prompt == (prompt if isinstance(prompt, str) else tuple(prompt)) for s in split if not isinstance(s, str)
    )

    datasets = pytest.importorskip("datasets")
    kind = "json" if format == "jsonl" else "parquet"
    loaded = datasets.load_dataset(kind, data_files=str(file), split="train", cache_dir=str(tmp_path / "cache"))
    for row in loaded:
        texts = [
            row[side] if isinstance(row[side], str) else row[side][0]["content"] for side in ("chosen", "rejected")
        ]
        assert tuple(texts) == expected[row["prompt_id"]] and row["prompt"] == prompt
        assert len(row["votes"]) == row["num_votes"] == 3
    votes = datasets.load_dataset(
        kind, data_files=str(tmp_path / "out" / f"votes.{format}"), split="train", cache_dir=str(tmp_path / "cache")
    )
    assert Counter(votes["status"]) == {"counted": 13, "skipped": 2}


def test_a_preference_says_what_it_rests_on(tmp_path: Path) -> None:
    store = answered(tmp_path / "a.sqlite", ["Say it."])
    store.add_gold([gold(1)], T0)
    rows = {row["prompt_id"]: row for row in rows_of(make_export(store.snapshot(), "jsonl"), "preferences.jsonl")}
    wins, loses = rows["wins"], rows["loses"]
    assert wins["probability"] == pytest.approx(2 / 3) == wins["support"]
    assert (wins["num_chosen"], wins["num_rejected"], wins["chosen_index"], wins["rejected_index"]) == (2, 1, 2, 3)
    assert (loses["probability"], loses["num_chosen"], loses["chosen_index"], loses["rejected_index"]) == (1.0, 3, 3, 2)
    assert [vote["outcome"] for vote in wins["votes"]] == ["chosen", "chosen", "rejected"]
    pseudonyms = [f.annotator.annotator for f in store.annotators()]
    assert [vote["annotator"] for vote in loses["votes"]] == pseudonyms
    assert wins["votes"][0]["at"] == "2027-01-15T08:00:02+00:00" and wins["round_index"] == 1
    # Nobody's name is in it, and ratings turn with the answers: whoever rated the left answer above chose it.
    export = make_export(store.snapshot(), "jsonl")
    assert all(b"Person" not in content for content in export.files.values())
    for row in rows.values():
        for vote in row["votes"]:
            assert all((r["rating"] > 0) == (vote["outcome"] == "chosen") for r in vote["ratings"])
    by_id = {vote.vote_id: vote for vote in store.votes()}
    for row in rows_of(export, "votes.jsonl"):
        assert (row["outcome"], row["annotator"]) == (by_id[row["vote_id"]].outcome, by_id[row["vote_id"]].annotator)


def test_chats_and_text_are_in_files_of_their_own_and_nothing_is_two_empty_files(tmp_path: Path) -> None:
    export = make_export(answered(tmp_path / "a.sqlite", ["Say it.", CHAT]).snapshot(), "parquet")
    assert sorted(export.files) == [
        "preferences-chat.parquet", "preferences-text.parquet", "votes-chat.parquet", "votes-text.parquet"
    ]  # fmt: skip
    assert export.num_preferences == 4 and sum(export.left_out.values()) + 4 == 10
    empty = make_export(AnnotationStore.create(tmp_path / "b.sqlite", Rules(), T0).snapshot(), "jsonl")
    assert empty.files == {"preferences.jsonl": b"", "votes.jsonl": b""}
