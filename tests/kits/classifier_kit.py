"""Tiny sequence-classification models of real architectures."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import (
    PreTrainedTokenizerFast,
)

SPECIAL = ["<pad>", "<bos>", "<eos>"]


def save_tokenizer(folder: Path, **options: Any) -> None:
    """One token per byte, plus a BOS in front of plain text."""
    vocabulary = {c: i for i, c in enumerate([*SPECIAL, *sorted(pre_tokenizers.ByteLevel.alphabet())])}
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=[]))
    core.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    core.decoder = decoders.ByteLevel()
    core.post_processor = processors.TemplateProcessing(single="<bos> $A", special_tokens=[("<bos>", 1)])
    core.add_special_tokens(SPECIAL)
    names = {"bos_token": "<bos>", "eos_token": "<eos>", "pad_token": "<pad>", **options}
    PreTrainedTokenizerFast(tokenizer_object=core, **names).save_pretrained(folder)


def shrink(kind: Any, **options: Any) -> Any:
    sizes = {"vocab_size": 259, "hidden_size": 32, "num_hidden_layers": 2, "num_attention_heads": 2}
    return kind(bos_token_id=1, eos_token_id=2, **{**sizes, "pad_token_id": None, **options})


LLAMA = {"intermediate_size": 64, "max_position_embeddings": 128}
