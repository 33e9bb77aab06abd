"""A model's tokenizer: what its files say about special tokens and the vocabulary, and the tokenizer itself.

`label` is the start of errors: the config field and the folder, as in `model.path is models/x`.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_dpo.errors import ModelError, first_line
from online_dpo.models.model_files import VOCABULARY_FILES, read_json


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


def control_tokens(tokenizer: Any) -> list[str]:
    """All special tokens of a vocabulary."""
    added = {token.content for token in getattr(tokenizer, "added_tokens_decoder", {}).values() if token.special}
    return sorted({*getattr(tokenizer, "all_special_tokens", ()), *added})


def control_ids(tokenizer: Any) -> set[int]:
    """The ids of all special tokens, but not of the one for what a vocabulary lacks: any text may hold that."""
    tokens = control_tokens(tokenizer)
    return set(tokenizer.convert_tokens_to_ids(tokens)) - {tokenizer.unk_token_id} if tokens else set()


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


def check_ids(tokens: Mapping[str, int], label: str, *, vocab_size: int | None) -> None:
    """Refuse a tokenizer that knows tokens for which the model has no embedding.

    Args:
        tokens: token -> id.
        label: the start of errors.
        vocab_size: rows of the model's embedding; None = unknown.

    Raises:
        ModelError: there is such a token.
    """
    beyond = [] if vocab_size is None else [(i, token) for token, i in tokens.items() if i >= vocab_size]
    if beyond:
        index, token = max(beyond)
        raise ModelError(
            f"{label}, whose tokenizer gives the token {token!r} the id {index}, but whose embedding has {vocab_size} "
            f"rows ({len(beyond)} ids are beyond them); put the tokenizer there that belongs to the model, or resize "
            f"the model once with resize_token_embeddings and save it"
        )


def vocabulary(folder: Path, label: str) -> tuple[dict[str, int], bool]:
    """Token -> id, from whichever files name them, and whether these are all tokens: sentencepiece's own are not read.

    Raises:
        ModelError: a file cannot be read, or holds something else.
    """
    try:
        tokens, is_complete = _vocabulary(folder, label)
        is_malformed = not all(isinstance(token, str) and type(index) is int for token, index in tokens.items())
    except ModelError:
        raise
    except (TypeError, ValueError, AttributeError, KeyError):  # whatever the JSON holds where tokens should be
        is_malformed = True
    if is_malformed:
        raise ModelError(
            f"{label}, whose tokenizer files hold something else where tokens and their ids should be; save the "
            f"tokenizer again with save_pretrained"
        )
    return tokens, is_complete


def _vocabulary(folder: Path, label: str) -> tuple[dict[str, int], bool]:
    if (folder / "tokenizer.json").is_file():
        fast = read_json(folder / "tokenizer.json", label)
        tokens = fast.get("model", {}).get("vocab", {})
        if isinstance(tokens, list):  # Unigram models: [piece, score] in the order of ids
            tokens = {piece: index for index, (piece, _) in enumerate(tokens)}
        return {**tokens, **{token["content"]: token["id"] for token in fast.get("added_tokens") or []}}, True
    found: dict[str, int] = {}
    for file in (folder / "vocab.json", folder / "added_tokens.json"):
        found |= {token: int(index) for token, index in (read_json(file, label) if file.is_file() else {}).items()}
    if (folder / "tokenizer_config.json").is_file():
        decoder = read_json(folder / "tokenizer_config.json", label).get("added_tokens_decoder", {})
        found |= {token["content"]: int(index) for index, token in decoder.items() if "content" in token}
    return found, (folder / "vocab.json").is_file()


def load_tokenizer(folder: Path, *, trust_remote_code: bool = False) -> Any:
    """The Transformers tokenizer of a model's folder. Imports torch.

    Raises:
        ModelError: Transformers cannot load it.
    """
    from transformers import AutoTokenizer

    try:
        return AutoTokenizer.from_pretrained(str(folder), trust_remote_code=trust_remote_code)
    # Broken files and remote code raise anything; the cause stays attached.
    except Exception as error:
        raise ModelError(
            f"the tokenizer in {folder} cannot be loaded ({first_line(error)}); save it again with save_pretrained, "
            f"or set trust_remote_code to true beside its path if it comes with code that you trust"
        ) from error
