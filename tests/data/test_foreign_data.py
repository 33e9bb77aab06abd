"""Data as other tools leave it: folders of `save_to_disk`, ShareGPT, other encodings, values Python has no word for."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import datasets
import numpy as np
import pyarrow
import pytest
from prompt_kit import make_tokenizer, write_rows
from pyarrow import feather, parquet

from online_dpo.commands.preparing.provenance import source_digests
from online_dpo.config.data import PromptSet
from online_dpo.config.loading import load_config
from online_dpo.config.preferences import PairsSection
from online_dpo.data.completion_files import read_rows
from online_dpo.data.preference_files import SplitRow, columns_in, load_preferences, peek_preferences, split_row
from online_dpo.data.prompts import PromptSource, validate_source
from online_dpo.errors import DataError

TOKENIZER = make_tokenizer()
ROWS = [{"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "n": i} for i in range(2500)]


def load(path: Path | str, **options: Any) -> PromptSource:
    spec = PromptSet(source=str(path), **options)
    validate_source(spec, "prompts")
    return PromptSource.load(spec, field="prompts", tokenizer=TOKENIZER, max_tokens=64, chat_template_kwargs={}, seed=0)


def refusal(path: Path, **options: Any) -> str:
    with pytest.raises(DataError) as caught:
        load(path, **options)
    assert "\n" not in str(caught.value) and len(str(caught.value)) < 800
    return str(caught.value)


def test_folders_and_files_of_arrow_hold_the_same_rows_as_json(tmp_path: Path) -> None:
    data = datasets.Dataset.from_list(ROWS)
    data.save_to_disk(tmp_path / "plain", num_shards=3)
    datasets.DatasetDict({"train": data, "test": data.select(range(5))}).save_to_disk(tmp_path / "splits")
    feather.write_feather(pyarrow.Table.from_pylist(ROWS), tmp_path / "random.arrow")
    [shard] = (tmp_path / "splits" / "test").glob("*.arrow")  # the streaming format
    expected = load(write_rows(tmp_path / "x.jsonl", ROWS)).head(2500).prompts
    for path in (tmp_path / "plain", tmp_path / "splits", tmp_path / "random.arrow"):
        assert load(path).head(2500).prompts == expected
        table = load_preferences(PairsSection(source=str(path)), field="pairs")
        assert (len(table.rows), table.rows[7], table.places[7]) == (2500, ROWS[7], "row 8")
        [first, *_] = read_rows(path, gold="chosen", limit=2)
        assert {c.text for c in first.completions} == {"good", "bad"} and first.prompt.text == "p0"
    for path, options in ((tmp_path / "splits", {"split": "test"}), (shard, {})):
        assert load(path, **options).head(5).prompts == expected[:5]
        assert len(load(path, **options)) == 5
    assert "prompts.split is dev, but prompts.source is" in refusal(tmp_path / "splits", split="dev")
    assert "has the splits test, train: set prompts.split" in refusal(tmp_path / "splits", split="dev")
    assert "which was saved without splits" in refusal(tmp_path / "plain", split="test")
    assert "only data sets of the hub have a subset" in refusal(tmp_path / "plain", subset="main")


def test_a_folder_s_content_is_recorded_and_its_damage_told(tmp_path: Path) -> None:
    folder = tmp_path / "d"
    datasets.Dataset.from_list(ROWS[:9]).save_to_disk(folder)
    config = load_config({"model": {"path": "x"}, "prompts": {"source": str(folder)}, "judge": JUDGE})
    before = source_digests(config)
    assert len(before["prompts.source"]) == 64
    [shard] = folder.glob("*.arrow")
    content = shard.read_bytes()
    shard.write_bytes(content.replace(b"p0", b"q0"))
    assert source_digests(config) != before
    shard.write_bytes(content[:200])
    assert "which is no intact Arrow file" in refusal(folder)
    shard.unlink()
    assert "which lacks its file data-00000-of-00001.arrow" in refusal(folder)
    (folder / "state.json").write_text("[" * 100_000)
    assert "whose state.json cannot be read" in refusal(folder)


JUDGE = {"type": "python", "target": "judge.py:score"}

# ---- ShareGPT

ASKED = [{"from": "system", "value": "be kind"}, {"from": "human", "value": "hi"}]
ANSWERED = [*ASKED, {"from": "gpt", "value": "hello"}]
CHAT = ({"role": "system", "content": "be kind"}, {"role": "user", "content": "hi"})


@pytest.mark.parametrize("column", ["conversations", "messages"])
@pytest.mark.parametrize("suffix", [".jsonl", ".parquet"])
@pytest.mark.parametrize("form", [ASKED, ANSWERED, [*CHAT, {"role": "assistant", "content": "hello"}]])
def test_conversations_are_prompts_up_to_their_last_answer(
    column: str, suffix: str, form: list[dict[str, str]], tmp_path: Path
) -> None:
    path = write_rows(tmp_path / f"x{suffix}", [{column: form, "topic": "t"}])
    [prompt] = load(path).head(1).prompts
    assert prompt.messages == CHAT and prompt.metadata == {"topic": "t"}
    assert prompt == load(path, field=column).head(1).prompts[0]
    if len(form) == 3:
        [row] = read_rows(path, gold=None)
        assert row.prompt.messages == CHAT and [c.text for c in row.completions] == ["hello"]


def test_sharegpt_preferences(tmp_path: Path) -> None:
    rows = [
        {"conversations": ASKED, "chosen": {"from": "gpt", "value": "yes"}, "rejected": {"from": "gpt", "value": "no"}}
    ]
    path = write_rows(tmp_path / "x.json", rows)
    spec = PairsSection(source=str(path))
    peek_preferences(spec, field="pairs")
    table = load_preferences(spec, field="pairs")
    found = split_row(table.rows[0], columns_in(spec, table.rows[0]))
    assert isinstance(found, SplitRow) and (found.prompt, found.answers) == (CHAT, ("yes", "no"))
    [row] = read_rows(path, gold="chosen")
    assert {c.text for c in row.completions} == {"yes", "no"}
    rows[0]["chosen"]["from"] = "human"
    write_rows(path, rows)
    with pytest.raises(DataError, match="chosen of row 1 is a message of the user, but an answer is the assistant's"):
        load_preferences(spec, field="pairs")


def test_a_column_is_chosen_once_for_all_rows(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a"}, {"messages": ASKED}])
    assert "line 2 has no column prompt, it has messages: set prompts.field" in refusal(path)
    both = write_rows(tmp_path / "y.jsonl", [{"messages": ASKED, "conversations": ASKED}])
    assert "line 1 has no column prompt, it has messages, conversations" in refusal(both)
    alone = write_rows(tmp_path / "z.jsonl", [{"messages": [{"role": "assistant", "content": "a"}]}])
    assert "messages of line 1 has nothing before the assistant's message" in refusal(alone)


# ---- encodings, and what nobody expects


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("x.jsonl", '{"prompt": "é"}\n'.encode("utf-16"), "which is UTF-16 text; convert it: iconv -f UTF-16 -t UTF-8"),
        ("x.csv", "prompt\na\n".encode("utf-16-le"), "which is UTF-16LE text; convert it"),
        ("x.json", '[{"prompt": "a"}]'.encode("utf-32"), "which is UTF-32 text"),
        ("x.jsonl", b'{"prompt": "a"}\n{"prompt": "\xe9"}\n', "line 2 is not UTF-8; byte 0xe9 would be 'é' in Latin-1"),
        ("x.json", b'[{"prompt": "a"},\n{"prompt": "\xe9"}]\n', "line 2 is not UTF-8; byte 0xe9 would be 'é' in Lat"),
        ("x.csv", b"prompt\na\n\x93b\x94\n", "line 3 is not UTF-8; byte 0x93 would be '“' in Windows-1252"),
        ("x.jsonl", b'{"prompt": ' + b"[" * 100_000, "line 1 is malformed JSON (it is nested too deeply)"),
        ("x.jsonl", b'{"prompt": "a", "x": ' + b"[" * 200 + b"]" * 200 + b"}", "it is nested more than 100 levels dee"),
        ("x.json", b"[" * 100_000, "malformed JSON (it is nested too deeply)"),
        ("x.jsonl", b'{"prompt": "a", "prompt": "b"}', "line 1 is malformed JSON (it has two values named prompt)"),
        ("x.arrow", b"ARROW1\0\0", "which is no intact Arrow file"),
    ],
)  # fmt: skip
def test_a_file_that_is_named_for_what_it_is(name: str, content: bytes, message: str, tmp_path: Path) -> None:
    (tmp_path / name).write_bytes(content)
    assert message in refusal(tmp_path / name)


def test_arrow_values_that_python_has_no_word_for(tmp_path: Path) -> None:
    """Would catch a traceback of a date in the year 0, or one column silently hiding another of the same name."""
    path = tmp_path / "x.parquet"
    far = pyarrow.array(np.array([0, -800_000, 5], dtype="datetime64[D]").astype("int32"), pyarrow.date32())
    parquet.write_table(pyarrow.table({"prompt": ["a", "b", "c"], "day": far}), path)
    assert "day of row 2 cannot be read (" in refusal(path)
    wrong = pyarrow.StringArray.from_buffers(
        1, pyarrow.py_buffer(np.array([0, 2], "int32")), pyarrow.py_buffer(b"\xff\xfe")
    )
    parquet.write_table(pyarrow.table({"prompt": ["a"], "text": wrong}), path)
    assert "text of row 1 cannot be read ('utf-8' codec" in refusal(path)
    twice = pyarrow.Table.from_arrays([pyarrow.array(["a"]), pyarrow.array(["b"])], names=["prompt", "prompt"])
    parquet.write_table(twice, path)
    assert "which has two columns named prompt; rename or remove one" in refusal(path)
    feather.write_feather(twice, tmp_path / "x.arrow")
    assert "which has two columns named prompt" in refusal(tmp_path / "x.arrow")


def test_a_source_that_is_no_file(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "x.jsonl")
    assert "no regular file but a pipe, device or socket" in refusal(tmp_path / "x.jsonl")
    with pytest.raises(DataError, match="no regular file"):
        read_rows(tmp_path / "x.jsonl", gold=None)
    with pytest.raises(DataError, match="has 5000 bytes, and a path"):
        read_rows(Path("x" * 5000), gold=None)
