"""Tokenizers and prompt files for tests."""

from __future__ import annotations

import csv
import gzip
import json
from pathlib import Path
from typing import Any

import pyarrow
from pyarrow import parquet
from tokenizers import Regex, Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Split
from tokenizers.processors import TemplateProcessing
from transformers import PreTrainedTokenizerFast

SPECIAL = ["<pad>", "<s>", "</s>"]
BOS, EOS = 1, 2
TEMPLATE = (
    "{{ bos_token }}{% if prefix is defined %}{{ prefix }}{% endif %}"
    "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('no tools here') }}{% endif %}"
    "[{{ m.role }}{% if m.name is defined %} {{ m.name }}{% endif %}]{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}[assistant]{% endif %}"
)


def make_tokenizer(*, bos: bool = True, eos: bool = False, template: str | None = TEMPLATE) -> PreTrainedTokenizerFast:
    """One token per printable ASCII character; adds BOS and EOS to plain text as told, as Llama and T5 do."""
    vocabulary = {token: index for index, token in enumerate([*SPECIAL, *map(chr, range(32, 127))])}
    bare = Tokenizer(WordLevel(vocabulary, unk_token=" "))
    bare.pre_tokenizer = Split(Regex("."), "isolated")
    around = f"{'<s> ' if bos else ''}$A{' </s>' if eos else ''}"
    bare.post_processor = TemplateProcessing(single=around, special_tokens=[("<s>", BOS), ("</s>", EOS)])
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>")
    tokenizer.chat_template = template
    return tokenizer


def ids(text: str) -> tuple[int, ...]:
    """The ids of text without special tokens, independent of the tokenizer."""
    return tuple(len(SPECIAL) + ord(character) - 32 for character in text)


def write_rows(path: Path, rows: list[dict[str, Any]]) -> Path:
    """Rows in the format of the path's suffix."""
    lines = "".join(json.dumps(row) + "\n" for row in rows)
    if path.name.endswith(".jsonl.gz"):
        path.write_bytes(gzip.compress(lines.encode()))
    elif path.suffix == ".jsonl":
        path.write_text(lines)
    elif path.suffix == ".json":
        path.write_text(json.dumps(rows, indent=1))
    elif path.suffix == ".parquet":
        parquet.write_table(pyarrow.Table.from_pylist(rows), path)
    else:
        with path.open("w", newline="") as stream:
            writer = csv.DictWriter(stream, fieldnames=list(rows[0]))
            writer.writeheader()
            writer.writerows(rows)
    return path
