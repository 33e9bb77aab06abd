"""Thousands of damaged configs and data files: each loads, or is refused in a message; nothing else.

The large runs are marked `exhaustive`.
"""

from __future__ import annotations

import gzip
import json
import random
import time
from collections import Counter
from pathlib import Path
from typing import Any

import pyarrow
import pytest
import yaml
from config_kit import REWARD_MODEL
from mutations import ODD, mutated_bytes, mutated_value
from pyarrow import feather, ipc, parquet

from online_dpo.config.data import PromptSet
from online_dpo.config.loading import dump_config, load_config, load_reward_model
from online_dpo.config.preferences import PairsSection
from online_dpo.data.completion_files import read_rows
from online_dpo.data.preference_files import columns_in, load_preferences, split_row
from online_dpo.data.prompt_files import load_table
from online_dpo.errors import ConfigError, DataError, UserError

CONFIGS = sorted((Path(__file__).parents[2] / "configs").glob("*.yaml"))
SLOW_S = 10.0


def expect_message(error: UserError) -> None:
    message = str(error)
    assert message and len(message) < 6000 and len(message.splitlines()) <= 13, message
    message.encode()  # what cannot be printed would end in a traceback


def try_config(text: bytes, overrides: list[str], path: Path, *, of: str) -> str:
    """`of` is the name of the file that the text was: the config of a reward model is no config of a run."""
    load = load_reward_model if of == REWARD_MODEL.name else load_config
    path.write_bytes(text)
    try:
        config = load(path, overrides)
        path.write_text(dump_config(config))
        again = load(path)
        assert again == config or repr(again) == repr(config)  # NaN is not equal to itself
    except ConfigError as error:
        expect_message(error)
        return "refused"
    return "loaded"


def override(config: dict[str, Any], random_: random.Random) -> str:
    section = random_.choice([*config, "drift", "alarm", "verdicts", "pairs", "cluster", "x"])
    fields = list(config.get(section) or {}) if isinstance(config.get(section), dict) else []
    key = ".".join([section, *random_.choices([*fields, "type", "lr", "", "a[0]"], k=random_.randrange(3))])
    text = f"{key}={json.dumps(random_.choice(ODD)) if random_.random() < 0.7 else random_.choice(ODD)}"
    return mutated_bytes(text.encode(), random_).decode(errors="replace") if random_.random() < 0.3 else text


def fuzz_configs(number: int, path: Path, seed: int = 7) -> Counter[str]:
    random_, seen = random.Random(seed), Counter[str]()
    for index in range(number):
        file = random_.choice(CONFIGS)
        text = file.read_bytes()
        config = yaml.safe_load(text)
        overrides = [override(config, random_) for _ in range(random_.choice([0, 0, 1, 2]))]
        if random_.random() < 0.5:
            text = mutated_bytes(text, random_)
        else:
            changed = mutated_value(config, random_)
            try:
                text = yaml.safe_dump(changed, allow_unicode=True).encode()
            except (RecursionError, ValueError):
                continue
        started = time.perf_counter()
        try:
            seen[try_config(text, overrides, path, of=file.name)] += 1
        except Exception as error:
            raise AssertionError(f"config {index}: {text[:3000]!r} {overrides!r}") from error
        assert time.perf_counter() - started < SLOW_S, (index, text[:3000], overrides)
    return seen


def test_damaged_configs(tmp_path: Path) -> None:
    seen = fuzz_configs(250, tmp_path / "x.yaml")
    assert min(seen["loaded"], seen["refused"]) > 5


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_damaged_configs_in_large_numbers(tmp_path: Path) -> None:
    seen = fuzz_configs(20_000, tmp_path / "x.yaml")
    assert min(seen["loaded"], seen["refused"]) > 1_000


# ---- data

CHAT = [{"role": "user", "content": "hi"}, {"role": "assistant", "content": "hello"}]
SHAREGPT = [{"from": "human", "value": "hi"}, {"from": "gpt", "value": "hello"}]
ROWS: list[dict[str, Any]] = [
    {"prompt": f"p{i}", "chosen": "good", "rejected": "bad", "label": bool(i % 2), "n": i, "tags": ["a", "b"]}
    for i in range(4)
]
CHATS: list[dict[str, Any]] = [{"conversations": SHAREGPT, "chosen": CHAT, "rejected": CHAT, "n": 1.5}] * 3


def written(rows: list[Any], suffix: str, path: Path) -> bytes:
    """Rows in a format; rows that the format cannot hold are written as JSON lines."""
    lines = "".join(json.dumps(row) + "\n" for row in rows).encode()
    if suffix == ".json":
        return json.dumps(rows).encode()
    if suffix == ".jsonl.gz":
        return gzip.compress(lines, mtime=0)
    if suffix == ".csv":
        head = ",".join(map(str, ROWS[0]))
        return "\n".join([head, *('"p",good,bad,true,1,"x ""y"""' for _ in rows)]).encode()
    if suffix == ".jsonl":
        return lines
    try:
        table = pyarrow.Table.from_pylist(rows)
        if suffix == ".parquet":
            parquet.write_table(table, path)
        elif len(rows) % 2:
            feather.write_feather(table, path, compression="uncompressed")
        else:
            with ipc.new_stream(path, table.schema) as stream:
                stream.write_table(table)
    except (pyarrow.ArrowException, TypeError, AttributeError, OverflowError, ValueError):
        return lines
    return path.read_bytes()


def try_file(path: Path) -> str:
    prompts = PromptSet(source=str(path))
    pairs = PairsSection(source=str(path))
    labelled = PairsSection(source=str(path), format="labelled", completion="chosen")
    seen = set()
    for spec in (prompts, pairs, labelled):
        try:
            if isinstance(spec, PromptSet):
                load_table(spec, field="prompts")
            else:
                table = load_preferences(spec, field="pairs")
                for row in table.rows:
                    split_row(row, columns_in(spec, table.rows[0]))
            seen.add("loaded")
        except DataError as error:
            expect_message(error)
            seen.add("refused")
    for gold in (None, "chosen", "n"):
        try:
            read_rows(path, gold=gold)
        except DataError as error:
            expect_message(error)
    return "loaded" if "loaded" in seen else "refused"


def fuzz_files(number: int, folder: Path) -> Counter[str]:
    random_, seen = random.Random(11), Counter[str]()
    for index in range(number):
        suffix = random_.choice([".jsonl", ".jsonl.gz", ".json", ".csv", ".parquet", ".arrow", ".tsv", ".txt"])
        path = folder / f"x{suffix}"
        rows: Any = random_.choice([ROWS, CHATS])
        if random_.random() < 0.5:
            rows = mutated_value(rows, random_)
        try:
            content = written(rows, suffix, path) if isinstance(rows, list) else json.dumps(rows).encode()
        except (RecursionError, ValueError):
            continue
        if random_.random() < 0.6:
            content = mutated_bytes(content, random_)
        path.unlink(missing_ok=True)
        path.write_bytes(content)
        try:
            seen[try_file(path)] += 1
        except Exception as error:
            raise AssertionError(f"file {index} {suffix}: {content[:3000]!r}") from error
    return seen


def test_damaged_files(tmp_path: Path) -> None:
    seen = fuzz_files(250, tmp_path)
    assert min(seen["loaded"], seen["refused"]) > 20


@pytest.mark.exhaustive
@pytest.mark.timeout(7200)
def test_damaged_files_in_large_numbers(tmp_path: Path) -> None:
    seen = fuzz_files(10_000, tmp_path)
    assert min(seen["loaded"], seen["refused"]) > 1_000
