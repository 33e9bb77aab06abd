"""What the single files of a model's folder say: its JSON files and the headers of its safetensors files.

Each function takes `label`, the start of its errors: the config field and the folder, as in `model.path is models/x`.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections import defaultdict
from collections.abc import Iterable
from pathlib import Path
from typing import Any, Literal, TypeAlias

from online_dpo.errors import ModelError

INDEX = "model.safetensors.index.json"

Head: TypeAlias = Literal["language", "sequence", "token"]
"""What a model computes: the next token, labels of a whole text, or labels of each of its tokens."""

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
_TOKENIZER_FILES = ("tokenizer*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_MIB = 1 << 20
_EXPERT = re.compile(r"\.experts\.|\.block_sparse_moe\.(in|out)put_linear\.")  # the second is how Granite calls them
_VOCABULARY = re.compile(r"\.(embed_tokens|embed_in|embed_out|lm_head|tok_embeddings|word_embeddings|wte)\.[^.]+$")
_GIT_LFS = b"version https://git-lfs.github.com/spec/"


def refuse_pointers(folder: Path, label: str) -> None:
    """Refuse files in whose place Git-LFS put a pointer, because the repository was cloned without it.

    Raises:
        ModelError: there is one.
    """
    for file in sorted(file for file in folder.iterdir() if file.is_file()):
        with file.open("rb") as stream:
            if stream.read(len(_GIT_LFS)) == _GIT_LFS:
                raise ModelError(
                    f"{label}, whose {file.name} is a Git-LFS pointer and not the file itself; run `git lfs install` "
                    f"and `git lfs pull` in that folder, or download the model again"
                )


def read_json(file: Path, label: str) -> dict[str, Any]:
    """A JSON object from a file.

    Raises:
        ModelError: it cannot be read, or holds something else.
    """
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"{label}, whose {file.name} cannot be read ({error}); save it again") from None
    if not isinstance(content, dict):
        raise ModelError(f"{label}, whose {file.name} holds no JSON object; save it again")
    return content


def tensor_shapes(file: Path, label: str) -> dict[str, tuple[int, ...]]:
    """Tensor name -> shape of a safetensors file, from its header; the file's length is checked against it.

    Raises:
        ModelError: the file is truncated, empty or no safetensors file.
    """
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(str(file), framework="numpy") as tensors:
            names = list(tensors.keys())
            return {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    except (SafetensorError, OSError) as error:
        raise ModelError(
            f"{label}, whose {file.name} ({file.stat().st_size} bytes) is damaged ({error}); download or save it again"
        ) from None


def weight_files(folder: Path, label: str) -> tuple[Path, ...]:
    """The safetensors files that hold a model's weights, in name order, each with an intact header.

    Raises:
        ModelError: a file is missing or damaged, or there are only pickled weights.
    """
    names = ["model.safetensors"]
    if (folder / INDEX).is_file():
        names = shard_names(folder, label)
        if (folder / "model.safetensors").is_file() and names != ["model.safetensors"]:
            raise ModelError(
                f"{label}, which has both model.safetensors and {INDEX}; Transformers and vLLM would load different "
                f"weights: remove the one that is out of date"
            )
    missing = [name for name in names if not (folder / name).is_file()]
    if missing and any(folder.glob("*.bin")):
        raise ModelError(
            f"{label}, whose weights are *.bin; these are pickled, and nothing is ever unpickled here: convert them "
            f"once with AutoModelForCausalLM.from_pretrained(...).save_pretrained(...)"
        )
    if missing:
        raise ModelError(f"{label}, which has no weights file {missing[0]}; download the model or save it again")
    extra = sorted(file.name for file in folder.glob("*.safetensors") if file.name not in names)
    if extra and not (folder / INDEX).is_file():
        raise ModelError(
            f"{label}, which has {extra[0]} beside model.safetensors; vLLM would load both and Transformers only the "
            f"second: move {extra[0]} elsewhere"
        )
    files = tuple(folder / name for name in names)
    for file in files:
        tensor_shapes(file, label)
    return files


def of_expert(tensor: str) -> bool:
    """Whether a tensor holds matrices of one expert, or of all of them fused, of a mixture (not its router)."""
    return _EXPERT.search(f".{tensor}") is not None


def of_vocabulary(tensor: str) -> bool:
    """Whether a tensor's name is one that embeddings or heads of language models are known to have."""
    return _VOCABULARY.search(f".{tensor}") is not None


def weight_names(layers: Iterable[str], stored: Iterable[str]) -> dict[str, str]:
    """Layer -> the name of its weight in a model's files; a layer that is not there, or might be several, is left out.

    Files need not name a layer as transformers does: the hub's GPT-2 has `h.0.attn.c_attn` for
    `transformer.h.0.attn.c_attn`. So what stands before the stack of layers may differ where the rest tells the layer.

    Args:
        layers: as transformers names them.
        stored: names of all tensors in the files.
    """
    exact, tails = set(stored), defaultdict(list)
    for name in exact:
        tails[_stack_name(name)].append(name)
    found = {}
    for weight in (f"{layer}.weight" for layer in layers):
        names = [weight] if weight in exact else tails[_stack_name(weight)]
        if len(names) == 1:
            found[weight.removesuffix(".weight")] = names[0]
    return found


def _stack_name(name: str) -> str:
    """A tensor's name from its stack of layers on (`layers.0.mlp.up_proj.weight`), or all of it outside of a stack."""
    parts = name.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[max(numbers[0] - 1, 0) :]) if numbers else name


def shard_names(folder: Path, label: str) -> list[str]:
    """The files that a sharded model's index lists, in name order.

    Raises:
        ModelError: the index lists none.
    """
    weight_map = read_json(folder / INDEX, label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map or not all(isinstance(f, str) for f in weight_map.values()):
        raise ModelError(f"{label}, whose {INDEX} lists no weights; download the model or save it again")
    return sorted(set(weight_map.values()))


def context_length(config: dict[str, Any]) -> int | None:
    """Tokens that a model can attend to, as vLLM reads its config; None where the config does not say."""
    lengths = [config[key] for key in _CONTEXT_KEYS if isinstance(config.get(key), int)]
    if not lengths:
        return None
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    # The other kinds of scaling leave a length in the config that is already scaled.
    stretched = rope.get("rope_type", rope.get("type")) in ("linear", "dynamic")
    factor = rope.get("factor") if stretched else None
    return int(min(lengths) * factor) if isinstance(factor, int | float) and factor else min(lengths)


def rope_switch(config: dict[str, Any]) -> int | None:
    """The length in tokens beyond which a model takes its long factors of rotation (longrope), None without any.

    Args:
        config: the content of config.json.
    """
    rope = config.get("rope_parameters") or config.get("rope_scaling")
    rope = rope if isinstance(rope, dict) else {}
    if rope.get("rope_type", rope.get("type")) not in ("longrope", "su"):
        return None
    original = config.get("original_max_position_embeddings") or rope.get("original_max_position_embeddings")
    return original if isinstance(original, int) else None


def fingerprint(folder: Path, weights: tuple[Path, ...]) -> str:
    """A sha256 that is the same for the same model in any folder.

    Covers the configs and tokenizer files whole; of weights their names, sizes, first and last MiB: hashing all of a
    large model would take minutes, and one that was trained on differs at its ends.
    """
    small = {folder / name for name in ("config.json", "generation_config.json", INDEX)}
    small |= {file for pattern in (*VOCABULARY_FILES, *_TOKENIZER_FILES) for file in folder.glob(pattern)}
    digest = hashlib.sha256()
    for file in sorted(file for file in small if file.is_file()):
        digest.update(f"{file.name}\0{hashlib.sha256(file.read_bytes()).hexdigest()}\n".encode())
    for file in weights:
        size = file.stat().st_size
        with file.open("rb") as stream:
            start = stream.read(_MIB)
            stream.seek(max(size - _MIB, 0))
            ends = hashlib.sha256(start + stream.read(_MIB)).hexdigest()
        digest.update(f"{file.name}\0{size}\0{ends}\n".encode())
    return digest.hexdigest()
