"""What the single files of a model's folder say: its JSON files and the headers of its safetensors files.

Each function takes `label`, the start of its errors: the config field and the folder, as in `model.path is models/x`.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from online_dpo.errors import ModelError

INDEX = "model.safetensors.index.json"

VOCABULARY_FILES = ("tokenizer.json", "tokenizer.model", "vocab.json", "vocab.txt", "spiece.model", "*.tiktoken")
_TOKENIZER_FILES = ("tokenizer*", "merges.txt", "special_tokens_map.json", "added_tokens.json", "chat_template*")
_CONTEXT_KEYS = ("max_position_embeddings", "n_positions", "max_seq_len", "seq_length", "max_sequence_length")
_MIB = 1 << 20


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
    files = tuple(folder / name for name in names)
    for file in files:
        tensor_shapes(file, label)
    return files


def shard_names(folder: Path, label: str) -> list[str]:
    """The files that a sharded model's index lists, in name order.

    Raises:
        ModelError: the index lists none.
    """
    weight_map = read_json(folder / INDEX, label).get("weight_map")
    if not isinstance(weight_map, dict) or not weight_map:
        raise ModelError(f"{label}, whose {INDEX} lists no weights; download the model or save it again")
    return sorted(set(weight_map.values()))


def context_length(config: dict[str, Any]) -> int | None:
    """Tokens that a model can attend to, as vLLM reads its config; None where the config does not say."""
    lengths = [config[key] for key in _CONTEXT_KEYS if isinstance(config.get(key), int)]
    if not lengths:
        return None
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    # The other kinds of scaling leave a length in the config that is already scaled.
    stretched = rope.get("rope_type", rope.get("type")) in ("linear", "dynamic")
    return int(min(lengths) * (rope.get("factor") or 1.0)) if stretched else min(lengths)


def has_vocabulary(folder: Path) -> bool:
    """Whether a tokenizer can be built from this folder at all."""
    return any(True for pattern in VOCABULARY_FILES for _ in folder.glob(pattern))


def vocabulary_digest(folder: Path) -> str:
    """A sha256 of the vocabulary files."""
    files = sorted({file for pattern in VOCABULARY_FILES for file in folder.glob(pattern)})
    return hashlib.sha256(b"".join(hashlib.sha256(file.read_bytes()).digest() for file in files)).hexdigest()


def special_token_ids(folder: Path, label: str, *, vocab_size: int | None, generates: bool) -> dict[str, int]:
    """The ids of the tokenizer's `eos_token` and `pad_token`, read from its files.

    Args:
        folder: of the model.
        label: the start of errors.
        vocab_size: rows of the model's embedding, which ids must be below.
        generates: False where a missing EOS token does no harm; it is then left out.

    Raises:
        ModelError: there is no tokenizer, or it lacks one of the tokens.
    """
    if not has_vocabulary(folder):
        raise ModelError(
            f"{label}, which has no tokenizer files; put the model's tokenizer there (tokenizer.json and "
            f"tokenizer_config.json, as the tokenizer's save_pretrained writes them)"
        )
    tokens: dict[str, str] = {}
    # The later file wins in Transformers, too.
    for file in (folder / "special_tokens_map.json", folder / "tokenizer_config.json"):
        for key, token in (read_json(file, label) if file.is_file() else {}).items():
            content = token.get("content") if isinstance(token, dict) else token
            if isinstance(content, str):
                tokens[key] = content
    found: dict[str, int] = {}
    for key in ("eos_token", "pad_token"):
        if key in tokens:
            found[key] = _checked_id(folder, label, key, tokens[key], vocab_size)
        elif key == "pad_token":
            example = f", for example to the EOS token {tokens['eos_token']!r}" if "eos_token" in tokens else ""
            raise ModelError(
                f"{label}, whose tokenizer has no pad token; set pad_token in tokenizer_config.json{example} "
                f"(padding is masked, so any token of the vocabulary will do)"
            )
        elif generates:
            raise ModelError(
                f"{label}, whose tokenizer has no EOS token, so that no answer could end; set eos_token in "
                f"tokenizer_config.json to the token that ends an answer"
            )
    return found


def _checked_id(folder: Path, label: str, key: str, content: str, vocab_size: int | None) -> int:
    token_id = vocabulary(folder, label)[0].get(content)
    if token_id is None or (vocab_size is not None and token_id >= vocab_size):
        where = (
            "its vocabulary files" if token_id is None else f"the model's vocabulary of {vocab_size} (id {token_id})"
        )
        raise ModelError(
            f"{label}, whose {key} {content!r} is not in {where}; correct it in tokenizer_config.json, or save the "
            f"tokenizer that belongs to the model again with save_pretrained"
        )
    return token_id


def vocabulary(folder: Path, label: str) -> tuple[dict[str, int], bool]:
    """Token -> id, from whichever files name them, and whether these are all tokens: sentencepiece's own are not read.

    Raises:
        ModelError: a file cannot be read.
    """
    if (folder / "tokenizer.json").is_file():
        fast = read_json(folder / "tokenizer.json", label)
        tokens = fast.get("model", {}).get("vocab", {})
        if isinstance(tokens, list):  # Unigram models: [piece, score] in the order of ids
            tokens = {piece: index for index, (piece, _) in enumerate(tokens)}
        return {**tokens, **{token["content"]: token["id"] for token in fast.get("added_tokens", [])}}, True
    found: dict[str, int] = {}
    for file in (folder / "vocab.json", folder / "added_tokens.json"):
        found |= {token: int(index) for token, index in (read_json(file, label) if file.is_file() else {}).items()}
    if (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder / "tokenizer_config.json", label).get("added_tokens_decoder", {})
        found |= {token["content"]: int(index) for index, token in decoder.items() if "content" in token}
    return found, (folder / "vocab.json").is_file()


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
