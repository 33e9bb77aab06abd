"""Prompts: what becomes of a row, and which rows a round gets."""

from __future__ import annotations

import collections
import itertools
import json
from datetime import date
from decimal import Decimal
from pathlib import Path
from typing import Any

import pyarrow
import pytest
from prompt_kit import BOS, EOS, ids, make_tokenizer, write_rows
from pyarrow import parquet

from online_dpo.config.data import PromptSet
from online_dpo.data.prompts import Cursor, PromptSource
from online_dpo.errors import ConfigError, DataError

TOKENIZER = make_tokenizer()


def load(
    path: Path | str, *, tokenizer: Any = TOKENIZER, max_tokens: int = 64, seed: int = 0, **spec: Any
) -> PromptSource:
    template_kwargs = spec.pop("chat_template_kwargs", {})
    return PromptSource.load(
        PromptSet(source=str(path), **spec),
        field="prompts",
        tokenizer=tokenizer,
        max_tokens=max_tokens,
        chat_template_kwargs=template_kwargs,
        seed=seed,
    )


def texts(tmp_path: Path, *prompts: str) -> Path:
    return write_rows(tmp_path / "prompts.jsonl", [{"prompt": prompt} for prompt in prompts])


# ---- a row


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet", ".csv"])
def test_every_format_gives_the_same_prompts(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"topic": "sea", "prompt": 'one, "two"\nthree', "level": 7},
        {"topic": "", "prompt": "four", "level": -1},
    ]
    first, second = load(write_rows(tmp_path / f"rows{suffix}", rows)).head(2).prompts
    assert (first.prompt_id, second.prompt_id) == ("000000", "000001")
    assert (first.text, second.text) == ('one, "two"\nthree', "four")
    assert second.token_ids == (BOS, *ids("four"))
    assert first.messages is None
    # CSV has no types.
    levels = ["7", "-1"] if suffix == ".csv" else [7, -1]
    assert [dict(p.metadata) for p in (first, second)] == [
        {"topic": "sea", "level": levels[0]},
        {"topic": "", "level": levels[1]},
    ]


@pytest.mark.parametrize("suffix", [".jsonl", ".jsonl.gz", ".json", ".parquet"])
def test_chats_go_through_the_template_with_one_bos(tmp_path: Path, suffix: str) -> None:
    rows = [
        {"prompt": [{"role": "user", "content": "hi", "name": "Ann"}]},
        {
            "prompt": [
                {"role": "user", "content": "a"},
                {"role": "assistant", "content": "b"},
                {"role": "user", "content": "c"},
            ]
        },
    ]
    source = load(write_rows(tmp_path / f"chat{suffix}", rows))
    named, plain = source.head(2).prompts
    assert named.token_ids == (BOS, *ids("[user Ann]hi[assistant]"))
    assert plain.token_ids == (BOS, *ids("[user]a[assistant]b[user]c[assistant]"))
    # Parquet gives every message a null name.
    assert plain.content == rows[1]["prompt"]
    assert plain.text is None

    with_prefix = load(tmp_path / f"chat{suffix}", chat_template_kwargs={"prefix": "!"})
    assert with_prefix.head(1).prompts[0].token_ids == (BOS, *ids("![user Ann]hi[assistant]"))


@pytest.mark.parametrize(
    ("bos", "eos", "text", "expected"),
    [
        (True, False, "ab", (BOS, *ids("ab"))),
        (True, True, "ab", (BOS, *ids("ab"))),
        (False, True, "ab", ids("ab")),
        (False, False, "ab", ids("ab")),
        (True, True, "<s>ab", (BOS, *ids("ab"))),
        (False, False, "<s>ab", (BOS, *ids("ab"))),
        (True, False, "<s>", (BOS,)),
        # What the prompt itself says stays: only what the tokenizer appended goes.
        (True, True, "a</s>", (BOS, *ids("a"), EOS)),
    ],
)
def test_special_tokens_around_plain_text(
    tmp_path: Path, bos: bool, eos: bool, text: str, expected: tuple[int, ...]
) -> None:
    source = load(texts(tmp_path, text), tokenizer=make_tokenizer(bos=bos, eos=eos))
    assert source.head(1).prompts[0].token_ids == expected


@pytest.mark.parametrize(
    ("rows", "expected"),
    [
        ([{"id": 10, "prompt": "a"}, {"id": 11, "prompt": "b"}], ["10", "11"]),
        ([{"id": 10, "prompt_id": "x", "prompt": "a"}, {"id": 11, "prompt_id": "y", "prompt": "b"}], ["x", "y"]),
        ([{"id": 10, "prompt": "a"}, {"id": "10", "prompt": "b"}], ["000000", "000001"]),
        ([{"id": 10, "prompt": "a"}, {"prompt": "b"}], ["000000", "000001"]),
        ([{"id": 1.5, "prompt": "a"}, {"id": 2.5, "prompt": "b"}], ["000000", "000001"]),
    ],
)
def test_ids_are_the_sources_own_where_they_are_unique(
    tmp_path: Path, rows: list[dict[str, Any]], expected: list[str]
) -> None:
    prompts = load(write_rows(tmp_path / "rows.jsonl", rows)).head(2).prompts
    assert [prompt.prompt_id for prompt in prompts] == expected
    assert prompts[0].metadata["id"] == rows[0]["id"]


def test_metadata_is_json_whatever_the_column_held(tmp_path: Path) -> None:
    row = {
        "prompt": "a", "day": date(2024, 2, 29), "price": Decimal("1.50"), "nan": float("nan"), "raw": b"\x00\xff",
        "nested": {"scores": [0.5, None]}, "flag": True,
    }  # fmt: skip
    parquet.write_table(pyarrow.Table.from_pylist([row]), tmp_path / "rows.parquet")
    metadata = load(tmp_path / "rows.parquet").head(1).prompts[0].metadata
    assert json.loads(json.dumps(metadata, allow_nan=False)) == {
        "day": "2024-02-29", "price": "1.50", "nan": None, "raw": "AP8=", "nested": {"scores": [0.5, None]},
        "flag": True,
    }  # fmt: skip


def test_json_lines_are_read_under_either_suffix_with_bom_and_blank_lines(tmp_path: Path) -> None:
    for name in ("rows.json", "rows.jsonl"):
        (tmp_path / name).write_bytes('\ufeff{"prompt": "a\u2028b"}\r\n\r\n{"prompt": "c"}'.encode())
        assert [prompt.text for prompt in load(tmp_path / name).head(2).prompts] == ["a\u2028b", "c"]


# ---- a round


@pytest.mark.parametrize(("num_usable", "n"), [(u, n) for u in range(1, 8) for n in range(1, u + 1)])
def test_rounds_take_each_usable_prompt_once_an_epoch_and_never_twice(tmp_path: Path, num_usable: int, n: int) -> None:
    usable = [chr(ord("a") + i) for i in range(num_usable)]
    path = texts(tmp_path, *usable, "far too long", "", "also too long", "  ")
    source = load(path, max_tokens=4, seed=3)
    cursors, rounds, skipped = [Cursor()], [], collections.Counter[str]()
    while cursors[-1].epoch < 4:
        drawn = source.draw(cursors[-1], n)
        rounds.append([prompt.text or "" for prompt in drawn.prompts])
        cursors.append(drawn.cursor)
        skipped.update(drawn.passed_over)
    assert all(len(set(prompts)) == n for prompts in rounds)
    # Deferring moves a prompt within its epoch only, so that the sequence is one permutation after another.
    sequence = "".join(itertools.chain.from_iterable(rounds))
    for epoch in range(cursors[-1].epoch):
        assert sorted(sequence[epoch * num_usable :][:num_usable]) == usable
    assert all(8 <= skipped[reason] <= 10 for reason in ("too_long", "empty"))

    # Any stored cursor continues with the same rounds, in another process too.
    again = load(path, max_tokens=4, seed=3)
    for index, cursor in enumerate(cursors[:-1]):
        stored = Cursor.from_dict(json.loads(json.dumps(cursor.to_dict())))
        drawn = again.draw(stored, n)
        assert [prompt.text for prompt in drawn.prompts] == rounds[index]
        assert drawn.cursor == cursors[index + 1]


def test_every_epoch_is_shuffled_anew_from_the_seed(tmp_path: Path) -> None:
    path = texts(tmp_path, *"abcdefghij")

    def epochs(seed: int) -> list[str]:
        cursor, found = Cursor(), []
        for _ in range(3):
            drawn = load(path, seed=seed).draw(cursor, 10)
            cursor = drawn.cursor
            found.append("".join(prompt.text or "" for prompt in drawn.prompts))
        return found

    # Written down: another order on another machine or NumPy would break the resumption of existing runs.
    assert epochs(0) == ["jgdbcihfea", "fcbiajdghe", "fdiacgjhbe"]
    assert len({*epochs(0), *epochs(1)}) == 6


def test_too_few_usable_prompts_for_a_round(tmp_path: Path) -> None:
    path = texts(tmp_path, "a", "b", "far too long", "")
    with pytest.raises(DataError) as caught:
        load(path, max_tokens=4).draw(Cursor(), 3)
    assert str(caught.value) == (
        f"prompts.per_round is 3, but prompts.source is {path}, which has 2 usable prompts (1 are longer than "
        f"prompts.max_tokens, which is 4, and 1 are empty); lower prompts.per_round to 2 or add prompts"
    )
    # The same from the middle of an epoch, where both prompts come up again before the count is known.
    with pytest.raises(DataError, match="has 2 usable prompts"):
        load(path, max_tokens=4).draw(Cursor(0, 3), 3)


@pytest.mark.parametrize("drawn", [True, False])
def test_no_usable_prompt_at_all(tmp_path: Path, drawn: bool) -> None:
    def use(*prompts: str) -> str:
        source = load(texts(tmp_path, *prompts), max_tokens=4)
        with pytest.raises(DataError) as caught:
            source.draw(Cursor(), 1) if drawn else source.head(1)
        return str(caught.value)

    assert use("far too long", "too long", "") == (
        f"prompts.source is {tmp_path / 'prompts.jsonl'}, whose prompts are all longer than prompts.max_tokens, which "
        f"is 4; the shortest has 9 tokens: raise prompts.max_tokens"
    )
    assert "whose 2 prompts are all empty" in use("", " \n")


def test_a_cursor_of_another_source_is_refused(tmp_path: Path) -> None:
    for cursor in (Cursor(0, 9), Cursor(1, 2, (9,))):
        with pytest.raises(DataError, match="has 2 rows, but the run had already reached row 9 of it"):
            load(texts(tmp_path, "a", "b")).draw(cursor, 1)


def test_head_is_the_first_usable_prompts_of_the_file(tmp_path: Path) -> None:
    path = texts(tmp_path, "b", "far too long", "", "a", "c")
    source = PromptSource.load(
        PromptSet(source=str(path)),
        field="evaluation.sets.heldout",
        tokenizer=TOKENIZER,
        max_tokens=4,
        chat_template_kwargs={},
        seed=5,
    )
    head = source.head(2)
    assert [prompt.text for prompt in head.prompts] == ["b", "a"]
    assert head.passed_over == {"too_long": 1, "empty": 1}
    with pytest.raises(DataError, match=r"^evaluation.sets.heldout.count is 4, but .* has 3 usable prompts .* to 3 or"):
        source.head(4)


# ---- the tokenizer and the template


CHAT = [{"prompt": [{"role": "user", "content": "a"}]}]


def test_chats_need_a_template(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "chat.jsonl", CHAT)
    with pytest.raises(DataError, match=r"holds chat messages, but the tokenizer has no chat template; put one into"):
        load(path, tokenizer=make_tokenizer(template=None))
    given = {"chat_template": "{% for m in messages %}{{ m.content }}?{% endfor %}"}
    source = load(path, tokenizer=make_tokenizer(template=None), chat_template_kwargs=given)
    assert source.head(1).prompts[0].token_ids == ids("a?")


def test_a_template_that_refuses_a_chat_names_the_row(tmp_path: Path) -> None:
    rows = [*CHAT, {"prompt": [{"role": "tool", "content": "a"}]}]
    source = load(write_rows(tmp_path / "chat.jsonl", rows))
    with pytest.raises(DataError, match=r"the chat template refuses prompt of line 2 \(no tools here\)"):
        source.head(2)


def test_template_arguments_in_use_are_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"prompts.chat_template_kwargs sets add_generation_prompt, which is fixed"):
        load(write_rows(tmp_path / "chat.jsonl", CHAT), chat_template_kwargs={"add_generation_prompt": False})
