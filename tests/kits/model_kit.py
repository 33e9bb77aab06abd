"""Tiny model and adapter folders for tests, as Transformers and PEFT write them, and ways to change them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from peft import LoraConfig, get_peft_model
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

VOCABULARY = {"<pad>": 0, "<s>": 1, "</s>": 2, "<unk>": 3, "hello": 4, "world": 5}


def write_folders(root: Path) -> None:
    """`model`, the same weights in `sharded`, and `adapter`, rank 2 on three of its layers."""
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=32,
        hidden_size=16,
        intermediate_size=24,
        num_hidden_layers=2,
        num_attention_heads=2,
        max_position_embeddings=128,
        eos_token_id=[2, 7],
        pad_token_id=0,
        bos_token_id=1,
    )
    model = LlamaForCausalLM(config)
    model.generation_config.eos_token_id = [9, 2]
    bare = Tokenizer(WordLevel(VOCABULARY, unk_token="<unk>"))
    bare.pre_tokenizer = Whitespace()
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bare, pad_token="<pad>", bos_token="<s>", eos_token="</s>", unk_token="<unk>"
    )
    for name, shard in (("model", "1GB"), ("sharded", "8KB")):
        model.save_pretrained(root / name, max_shard_size=shard)
        tokenizer.save_pretrained(root / name)
    lora = LoraConfig(r=2, lora_alpha=4, target_modules=["v_proj", "down_proj", "q_proj"], task_type="CAUSAL_LM")
    get_peft_model(model, lora, autocast_adapter_dtype=False).save_pretrained(root / "adapter")


def change_json(file: Path, **changes: Any) -> None:
    """Set keys of a JSON file; None removes one."""
    content = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in content.items() if value is not None}))
