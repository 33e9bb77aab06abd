"""Prompt files that cannot be used, each with the error that a user reads; and data sets of the hub."""

from __future__ import annotations

import gzip
import subprocess
import sys
from pathlib import Path
from typing import Any

import datasets
import huggingface_hub
import pyarrow
import pytest
from prompt_kit import make_tokenizer, write_rows
from pyarrow import parquet

from online_dpo.config.data import PromptSet
from online_dpo.config.preferences import PairsSection
from online_dpo.data.preference_files import SplitRow, load_preferences, split_row
from online_dpo.data.prompts import PromptSource, validate_source
from online_dpo.errors import DataError

TOKENIZER = make_tokenizer()
GOOD = '{"prompt": "a"}\n'


def load(spec: PromptSet) -> PromptSource:
    return PromptSource.load(spec, field="prompts", tokenizer=TOKENIZER, max_tokens=64, chat_template_kwargs={}, seed=0)


def parquet_bytes(tmp_path: Path) -> bytes:
    parquet.write_table(pyarrow.table({"prompt": ["a"] * 100}), tmp_path / "good.parquet")
    return (tmp_path / "good.parquet").read_bytes()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.jsonl", GOOD * 2 + '{"prompt": "b"\n', r"line 3 is malformed JSON \(.+, column 15\): correct or remove it"),
        ("x.jsonl", GOOD.encode() + b'{"prompt": "\xff"}\n', "line 2 is not UTF-8; byte 0xff would be"),
        ("x.jsonl", GOOD + "\n" + '{"prompt": "\\ud83d"}\n', r"line 3 is malformed JSON \(.+surrogates"),
        ("x.jsonl", GOOD + '{"prompt": "a", "score": NaN}\n', r"line 2 is malformed JSON \(NaN is not JSON\)"),
        ("x.jsonl", GOOD + '["a"]\n', "line 2 is a list, but each line is a JSON object"),
        ("x.jsonl", GOOD + '{"question": "a", "n": 1}\n', "line 2 has no column prompt, it has question, n: set"),
        ("x.jsonl", GOOD + '{"prompt": null}\n', "prompt of line 2 is null, but a prompt is text or a list of chat"),
        ("x.jsonl", GOOD + '{"prompt": 17}\n', "prompt of line 2 is int 17, but a prompt is text or a list of chat"),
        ("x.jsonl", '{"prompt": ["a"]}\n', "prompt of line 1 has the message 'a', but a message has a role and"),
        ("x.jsonl", '{"prompt": [{"role": "user"}]}\n', "prompt of line 1 has the message {'role': 'user'}, but"),
        ("x.jsonl", '{"prompt": [{"role": "user", "content": "a", "n": 1}]}\n', "and nothing that is not"),
        ("x.jsonl", '{"prompt": [{"role": "assistant", "content": "a"}]}\n', "line 1 ends with a message of the"),
        ("x.jsonl", "", "has no rows; give a source with at least one prompt"),
        ("x.jsonl.gz", gzip.compress(GOOD.encode() * 999, mtime=0)[:-9], r"gzip stream is damaged after line \d+"),
        ("x.jsonl.gz", GOOD, "gzip stream is damaged after line 0"),
        ("x.json", '[{"prompt": "a"},\n]', r"malformed JSON \(.*line 2 column 1"),
        ("x.json", '[{"prompt": "a"}, "b"]', "row 2 is text, but each is a JSON object"),
        ("x.json", "[]", "has no rows"),
        ("x.csv", "prompt,topic\na,b\nc\n", "line 3 has 1 cells and the header has 2: quote text"),
        ("x.csv", 'prompt,topic\n"a\nb",c\n"d"e,f\n', "the row at line 4 is malformed CSV"),
        ("x.csv", "prompt,prompt\na,b\n", r"header names a column twice \(prompt, prompt\)"),
        ("x.csv", b"prompt\n\xff\n", "line 2 is not UTF-8; byte 0xff would be"),
        ("x.csv", "prompt\n", "has no rows"),
        ("x.parquet", b"", "no intact parquet file"),
        ("x.parquet", "truncated", "no intact parquet file"),
        ("x.txt", "a\n", "whose format is not known; give a file that ends with .jsonl, .jsonl.gz, .json"),
    ],
)  # fmt: skip
def test_a_file_that_cannot_be_used(tmp_path: Path, name: str, content: str | bytes, expected: str) -> None:
    if content == "truncated":
        content = parquet_bytes(tmp_path)[:-20]
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(DataError, match=expected) as caught:
        load(PromptSet(source=str(path)))
    message = str(caught.value)
    assert message.startswith(f"prompts.source is {path}") and "\n" not in message


@pytest.mark.parametrize(
    ("spec", "expected"),
    [
        ({"source": "data/missing.jsonl"}, r"^prompts.source is data/missing.jsonl; there is no such file: give a"),
        ({"source": "~/missing/prompts"}, "there is no such file"),
        ({"source": "missing"}, "there is no such file"),
        ({"source": "embedded:openings/none"}, "nothing is embedded as 'openings/none'; the names are"),
        ({"source": "{tmp}"}, "is a folder; give one file"),
        ({"source": "{tmp}/x.csv", "split": "test"}, "^prompts.split is test, but .* only data sets of the hub have a"),
        ({"source": "{tmp}/x.csv", "subset": "main"}, "^prompts.subset is main, but .* remove prompts.subset"),
        ({"source": "{tmp}/x.csv", "field": "text"}, "line 2 has no column text, it has prompt: set prompts.field to"),
    ],
)
def test_a_source_that_cannot_be_used_fails_alike_when_validated(
    tmp_path: Path, spec: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", lambda *args, **kwargs: pytest.fail("asked the hub"))
    write_rows(tmp_path / "x.csv", [{"prompt": "a"}])
    section = PromptSet(**{key: value.replace("{tmp}", str(tmp_path)) for key, value in spec.items()})
    with pytest.raises(DataError, match=expected) as loaded:
        load(section)
    with pytest.raises(DataError) as validated:
        validate_source(section, "prompts")
    assert str(validated.value) == str(loaded.value)


def test_validation_reads_the_first_rows_only(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    path.write_text(GOOD * 8 + "{")
    validate_source(PromptSet(source=str(path)), "prompts")
    path.write_text(GOOD * 7 + "{")
    with pytest.raises(DataError, match=r"^evaluation.sets.heldout.source is .* line 8 is malformed JSON"):
        validate_source(PromptSet(source=str(path)), "evaluation.sets.heldout")
    path.write_text("\n")
    with pytest.raises(DataError, match="has no rows"):
        validate_source(PromptSet(source=str(path)), "prompts")


def test_validation_imports_nothing_heavy(tmp_path: Path) -> None:
    path = write_rows(tmp_path / "x.jsonl", [{"prompt": "a"}])
    code = (
        "import sys; from online_dpo.config.data import PromptSet\n"
        "from online_dpo.data.prompts import validate_source\n"
        f"for source in ({str(path)!r}, 'embedded:openings/train', 'org/name'):\n"
        "    validate_source(PromptSet(source=source), 'prompts')\n"
        "print(sorted({'torch', 'transformers', 'datasets', 'pyarrow', 'numpy'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- the hub


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> list[Any]:
    """A hub with one data set, `org/name`; the list has the arguments of each load."""
    calls: list[Any] = []
    rows = [{"id": i, "question": text, "level": i % 2} for i, text in enumerate(["one", "two", "three"])]

    def load_dataset(source: str, subset: str | None, *, split: str) -> datasets.Dataset:
        calls.append((source, subset, split))
        return datasets.Dataset.from_list(rows)

    def dataset_info(api: Any, source: str, *, timeout: float) -> None:
        if source != "org/name":
            raise ConnectionError("Name or service not known\nand more")

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", dataset_info)
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: False)
    return calls


def test_data_sets_of_the_hub(hub: list[Any]) -> None:
    source = load(PromptSet(source="org/name", subset="main", split="test", field="question"))
    assert hub == [("org/name", "main", "test")]
    prompts = source.head(3).prompts
    assert [(p.prompt_id, p.text, dict(p.metadata)) for p in prompts] == [
        ("0", "one", {"id": 0, "level": 0}),
        ("1", "two", {"id": 1, "level": 1}),
        ("2", "three", {"id": 2, "level": 0}),
    ]
    with pytest.raises(
        DataError, match=r"^prompts.source is org/name; .* no column prompt, it has id, question, level"
    ):
        load(PromptSet(source="org/name"))
    with pytest.raises(DataError, match="level of row 1 is int 0, but a prompt is text"):
        load(PromptSet(source="org/name", field="level"))


def test_pairs_of_the_hub(hub: list[Any]) -> None:
    """Would catch a look at columns that are not asked for, and a missing one that is taken for an empty one."""
    spec = PairsSection(source="org/name", prompt="question", chosen="question", rejected="id")
    with pytest.raises(DataError, match="id of row 1 is int 0, but an answer is text or a list of chat messages"):
        load_preferences(spec, field="pairs")
    with pytest.raises(
        DataError, match=r"the data set has no column answer, it has id, question, level: set pairs.cho"
    ):
        load_preferences(spec.model_copy(update={"chosen": "answer"}), field="pairs")
    table = load_preferences(spec.model_copy(update={"rejected": "question"}), field="pairs")
    preference = split_row(table.rows[1], spec.model_copy(update={"rejected": "question"}))
    assert isinstance(preference, SplitRow) and (preference.prompt, preference.answers) == ("two", ("two", "two"))


def test_an_unreachable_hub_fails_at_once(hub: list[Any]) -> None:
    with pytest.raises(DataError) as caught:
        load(PromptSet(source="org/other"))
    assert str(caught.value) == (
        "prompts.source is org/other (subset None, split train); there is no such file, and no such data set could be "
        "loaded from the hub (Name or service not known): check prompts.source, subset and split, set HF_HUB_OFFLINE=1 "
        "to use a cached copy, or give a local file"
    )
    assert hub == []


def test_offline_mode_goes_straight_to_the_cache(hub: list[Any], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(huggingface_hub, "is_offline_mode", lambda: True)
    load(PromptSet(source="org/other", field="question"))
    assert hub == [("org/other", None, "train")]
