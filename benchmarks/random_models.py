"""Models of random weights in a wanted shape, with tokenizer, pairs and learner; for the benchmarks beside it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from itertools import islice, product
from pathlib import Path
from string import ascii_letters, digits
from typing import Any

SPECIAL_TOKENS = ("<pad>", "<bos>", "<eos>")

SMALL = {
    "vocab_size": 1024, "hidden_size": 256, "intermediate_size": 704, "num_hidden_layers": 4,
    "num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
"""3.2 M parameters."""

QWEN2_HALF_BILLION = {
    "vocab_size": 151936, "hidden_size": 896, "intermediate_size": 4864, "num_hidden_layers": 24,
    "num_attention_heads": 14, "num_key_value_heads": 2, "max_position_embeddings": 2048,
}  # fmt: skip
"""The shape of Qwen2-0.5B: 494 M parameters."""


def shape(numbers: Sequence[int], *, vocab_size: int = 4096) -> dict[str, int]:
    """Hidden size, intermediate size, layers, heads and key-value heads, as fields of a Llama's config."""
    names = ("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads")
    return {"vocab_size": vocab_size, **dict(zip(names, numbers, strict=True))}


def save_llama(folder: Path | str, sizes: Mapping[str, int], *, dtype: str = "float32") -> None:
    """Write a Llama with tied embeddings and the weights of seed 0.

    Args:
        folder: of the model.
        sizes: fields of its config.
        dtype: float32 or bfloat16, of the weights as they are stored.
    """
    import torch
    from transformers import LlamaConfig, LlamaForCausalLM

    torch.manual_seed(0)
    config = LlamaConfig(**sizes, tie_word_embeddings=True, pad_token_id=0, bos_token_id=1, eos_token_id=2)
    LlamaForCausalLM(config).to(getattr(torch, dtype)).save_pretrained(folder)


def make_tokenizer(vocab_size: int) -> Any:
    """Byte pairs: bytes, then pairs of letters and digits, then three of them, until the vocabulary is full."""
    from tokenizers import Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    alphabet, letters = sorted(pre_tokenizers.ByteLevel.alphabet()), ascii_letters + digits
    pairs = list(product(letters, letters))
    triples = ((a + b, c) for (a, b), c in product(pairs, letters))
    merges = list(islice([*pairs, *triples], vocab_size - len(SPECIAL_TOKENS) - len(alphabet)))
    vocabulary = [*SPECIAL_TOKENS, *alphabet, *map("".join, merges)]
    bpe = Tokenizer(models.BPE({token: i for i, token in enumerate(vocabulary)}, merges))
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    pad, bos, eos = SPECIAL_TOKENS
    return PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token=pad, bos_token=bos, eos_token=eos)


def learner_on(folder: str, section: Any) -> Any:
    """A learner in float32 with a new adapter and the default objective.

    Args:
        folder: of the model.
        section: `learner` of a config.
    """
    from online_dpo.config.objective.pairwise import SigmoidObjective
    from online_dpo.learner.learner import Learner
    from online_dpo.learner.spec import LearnerSpec

    return Learner(
        LearnerSpec(
            model_folder=folder,
            model_name="random",
            dtype="float32",
            trust_remote_code=False,
            lora=None,
            adapter=None,
            learner=section,
            objective=SigmoidObjective(type="sigmoid"),
            seed=0,
            rounds=1,
            threads=None,
        )
    )


def random_pairs(count: int, *, vocab_size: int, length: int = 48, seed: int = 0) -> list[Any]:
    """Pairs of random tokens."""
    import torch

    from online_dpo.types import Completion, Pair, Prompt

    draw = torch.Generator().manual_seed(seed)

    def answer(prompt_id: str, index: int) -> Completion:
        ids = tuple(torch.randint(3, vocab_size, (length,), generator=draw).tolist())
        return Completion(
            prompt_id=prompt_id,
            sample_index=index,
            token_ids=ids,
            text="",
            finish_reason="length",
            sampler_logps=(0.0,) * length,
            policy_version=0,
            seed=0,
        )

    prompts = [Prompt(prompt_id=str(i), token_ids=(1, 3 + i, 4 + i, 5 + i), text="") for i in range(count)]
    return [
        Pair(prompt=p, chosen=answer(p.prompt_id, 0), rejected=answer(p.prompt_id, 1), margin=1.0, probability=0.7)
        for p in prompts
    ]
