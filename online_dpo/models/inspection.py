"""Model and adapter folders, looked at without loading weights.

Everything a run must know about a model before an engine starts is read from JSON files and safetensors headers, so
that `online-dpo validate` needs neither torch nor transformers. Nothing is ever unpickled.
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo import embedded
from online_dpo.config.learner import LORA_RANKS
from online_dpo.errors import ModelError
from online_dpo.models import files as model_files
from online_dpo.types import Adapter

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# No pickled weights; `*.py` because trust_remote_code reads a model's code from its own folder.
_DOWNLOAD = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
_DO_NOT_DOWNLOAD = ["*/*", "consolidated*"]  # second copies of the same weights in other layouts

_ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")
_BEYOND_PLAIN_LORA = (
    "use_dora", "lora_bias", "modules_to_save", "rank_pattern", "alpha_pattern", "trainable_token_indices",
    "target_parameters", "layer_replication", "alora_invocation_tokens", "use_qalora", "use_bdlora", "arrow_config",
    "kasa_config", "velora_config", "monteclora_config",
)  # fmt: skip
"""PEFT options with which the update is no longer one `alpha / r * B A` per layer that engine and push agree on."""

_BASE_PRESERVING_INITS = (True, False, "gaussian", "eva", "orthogonal", "mica")
"""With the others (PiSSA, OLoRA, CorDA, LoftQ, LoRA-GA) an adapter belongs to base weights changed at its creation."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelInfo:
    """What a model's folder says about it."""

    folder: Path
    eos_token_ids: tuple[int, ...]  # sorted set: the tokenizer's, config.json's and generation_config.json's
    max_model_len: int | None  # tokens; None = the config does not say
    vocab_size: int | None  # V, rows of the embedding; None = the config does not say
    model_type: str | None
    architectures: tuple[str, ...]
    fingerprint: str  # sha256, the same for the same files in any folder
    weight_files: tuple[Path, ...]  # safetensors, in name order
    quantised: bool


def locate(path: str, *, field: str, adapter: bool = False) -> Path:
    """The absolute folder of a model or adapter that a config names.

    Args:
        path: `embedded:NAME`, a folder, or a hub id `org/name`, which is taken from the local cache where it is
            complete and downloaded otherwise.
        field: the config field that holds `path`, for errors.
        adapter: whether a PEFT adapter is wanted rather than a model.

    Raises:
        ModelError: there is no such folder, and it cannot be downloaded.
    """
    kind = "an adapter" if adapter else "a model"
    if path.startswith("embedded:"):
        try:
            folder = embedded.resolve(path.removeprefix("embedded:"))
        except LookupError as error:
            raise ModelError(f"{field} is {path}; {error.args[0]}") from None
    else:
        folder = Path(path).expanduser()
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"{field} is {path}, which is a file; give the folder of {kind}")
    if not HUB_ID.fullmatch(path):
        raise ModelError(
            f"{field} is {path}; there is no such folder: give the folder of {kind}, or a hub id of the form org/name"
        )
    return _download(path, field, kind, adapter)


def inspect_model(folder: Path, *, field: str, generates: bool = True) -> ModelInfo:
    """Read what a model's folder says about it, and check that it is whole.

    Args:
        folder: from `locate`.
        field: the config field that named it, for errors.
        generates: whether text is sampled from it; a classifier's tokenizer need not have an EOS token.

    Raises:
        ModelError: a file is missing or damaged, weights are not safetensors, or the tokenizer lacks a token.
    """
    label = f"{field} is {folder}"
    if not (folder / "config.json").is_file():
        hint = (
            "it is a LoRA adapter: set model.adapter to it and model.path to its base model"
            if (folder / "adapter_config.json").is_file()
            else "give a folder that save_pretrained wrote"
        )
        raise ModelError(f"{label}, which has no config.json; {hint}")
    config = model_files.read_json(folder / "config.json", label)
    nested = config.get("text_config")
    # Multimodal configs keep the language model's numbers one level down.
    flat = {**nested, **config} if isinstance(nested, dict) else config
    vocab_size = flat.get("vocab_size") if isinstance(flat.get("vocab_size"), int) else None
    weights = model_files.weight_files(folder, label)
    tokens = model_files.special_token_ids(folder, label, vocab_size=vocab_size, generates=generates)
    eos_token_ids = {tokens["eos_token"]} if "eos_token" in tokens else set()
    generation_file = folder / "generation_config.json"
    generation = model_files.read_json(generation_file, label) if generation_file.is_file() else {}
    for value in (flat.get("eos_token_id"), generation.get("eos_token_id")):
        eos_token_ids |= set(value if isinstance(value, list) else [] if value is None else [value])
    return ModelInfo(
        folder=folder,
        eos_token_ids=tuple(sorted(eos_token_ids)),
        max_model_len=model_files.context_length(flat),
        vocab_size=vocab_size,
        model_type=config.get("model_type"),
        architectures=tuple(config.get("architectures") or ()),
        fingerprint=model_files.fingerprint(folder, weights),
        weight_files=weights,
        quantised=flat.get("quantization_config") is not None,
    )


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
            f"the tokenizer in {folder} cannot be loaded ({_first_line(error)}); save it again with save_pretrained, "
            f"or set trust_remote_code to true beside its path if it comes with code that you trust"
        ) from error


def read_adapter(path: str, *, base: ModelInfo | None, field: str = "model.adapter") -> Adapter:
    """A LoRA adapter that a run continues, as version 0.

    Its config travels with sorted targets and without a machine's path to the base model, so that the same adapter has
    the same digest wherever it lies.

    Args:
        path: `embedded:NAME`, a PEFT folder or a hub id.
        base: the model it is for; tensor names and shapes are compared unless it is None or quantised.
        field: the config field that holds `path`, for errors.

    Raises:
        ModelError: not a plain LoRA on linear layers in safetensors, or made for another model.
    """
    label = f"{field} is {path}"
    folder = locate(path, field=field, adapter=True)
    for name in _ADAPTER_FILES:
        if not (folder / name).is_file():
            pickled = name.endswith(".safetensors") and (folder / "adapter_model.bin").is_file()
            hint = (
                "adapter_model.bin is pickled, and nothing is ever unpickled here: load it with PEFT and save it again"
                if pickled
                else "give a folder that PEFT's save_pretrained wrote"
            )
            raise ModelError(f"{label}, which has no {name}; {hint}")
    config = model_files.read_json(folder / "adapter_config.json", label)
    check_plain_lora(config, label)
    modules = _lora_modules(model_files.tensor_shapes(folder / "adapter_model.safetensors", label), config["r"], label)
    if base is not None and not base.quantised:
        _check_base(modules, base, label)
    if isinstance(config.get("target_modules"), list):
        config["target_modules"] = sorted(config["target_modules"])
    if not HUB_ID.fullmatch(str(config.get("base_model_name_or_path"))):
        config["base_model_name_or_path"] = None
    return Adapter(
        version=0,
        weights=(folder / "adapter_model.safetensors").read_bytes(),
        config=json.dumps(config, indent=2, sort_keys=True).encode(),
    )


def check_plain_lora(config: dict[str, Any], label: str) -> None:
    """Refuse a PEFT config that the generators could not be given faithfully.

    Args:
        config: the content of adapter_config.json.
        label: the start of errors, such as `model.adapter is adapters/sft`.

    Raises:
        ModelError: it is not plain LoRA, or its rank is one that vLLM does not take.
    """
    remedy = "merge it into the model (PEFT's merge_and_unload, then save_pretrained) and start a new LoRA on that"
    if config.get("peft_type") != "LORA":
        raise ModelError(f"{label}, whose peft_type is {config.get('peft_type')}; only LoRA can be pushed: {remedy}")
    beyond = [name for name in _BEYOND_PLAIN_LORA if config.get(name)]
    beyond += ["bias"] if config.get("bias", "none") not in (None, "none") else []
    beyond += [] if config.get("init_lora_weights", True) in _BASE_PRESERVING_INITS else ["init_lora_weights"]
    if beyond:
        found = ", ".join(f"{name}: {json.dumps(config[name])}" for name in beyond)
        raise ModelError(f"{label}, which has {found}; only plain LoRA can be pushed to the generators: {remedy}")
    rank = config.get("r")
    if not isinstance(rank, int) or not 1 <= rank <= max(LORA_RANKS):
        raise ModelError(f"{label}, whose rank r is {rank}; vLLM takes 1 to {max(LORA_RANKS)}: {remedy}")


def _lora_modules(
    shapes: dict[str, tuple[int, ...]], rank: int, label: str
) -> dict[str, tuple[tuple[int, ...], tuple[int, ...]]]:
    """Layer name -> shapes of its A `[r, in]` and B `[out, r]`."""
    sides: dict[str, dict[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        module, _, part = name.removeprefix("base_model.model.").rpartition(".lora_")
        # Pushed copies of embeddings and heads go stale: the engine ties or packs them (DESIGN section 8).
        if part not in ("A.weight", "B.weight") or len(shape) != 2 or module.split(".")[-1] == "lm_head":
            raise ModelError(
                f"{label}, which has the tensor {name}; only LoRA of linear layers other than lm_head can be pushed to "
                f"the generators: merge it into the model and start a new LoRA on that"
            )
        sides.setdefault(module, {})[part[0]] = shape
    for module, found in sides.items():
        if found.keys() != {"A", "B"} or found["A"][0] != rank or found["B"][1] != rank:
            raise ModelError(
                f"{label}, whose matrices of {module} have shapes {found}, which is no LoRA of rank {rank}; save the "
                f"adapter again with PEFT's save_pretrained"
            )
    if not sides:
        raise ModelError(f"{label}, which has no weights; give an adapter that was trained, or set model.adapter: null")
    return {module: (found["A"], found["B"]) for module, found in sides.items()}


def _check_base(modules: dict[str, tuple[tuple[int, ...], tuple[int, ...]]], base: ModelInfo, label: str) -> None:
    known: dict[str, set[tuple[int, ...]]] = {}
    for file in base.weight_files:
        for name, shape in model_files.tensor_shapes(file, label).items():
            known.setdefault(_tail(name.removesuffix(".weight")), set()).add(tuple(sorted(shape)))
    for module, (a, b) in modules.items():
        found = known.get(_tail(module), set())
        # Sorted, since GPT-2's Conv1D keeps its weight transposed.
        if tuple(sorted((b[0], a[1]))) not in found:
            actual = "the model has no such layer" if not found else f"the model's is {sorted(found)[0]}"
            raise ModelError(
                f"{label}, whose layer {module} maps {a[1]} to {b[0]} features, but {actual}; give the adapter's own "
                f"base model as model.path, which is {base.folder.name}"
            )


def _tail(module: str) -> str:
    """A layer's name from its stack on (`layers.0.mlp.up_proj`): checkpoints differ in what they put before that."""
    parts = module.split(".")
    numbers = [i for i, part in enumerate(parts) if part.isdigit()]
    return ".".join(parts[max(numbers[0] - 1, 0) :]) if numbers else parts[-1]


def _download(repo_id: str, field: str, kind: str, adapter: bool) -> Path:
    import huggingface_hub
    from huggingface_hub.errors import LocalEntryNotFoundError

    def snapshot(*, local_files_only: bool) -> Path:
        folder = huggingface_hub.snapshot_download(
            repo_id, allow_patterns=_DOWNLOAD, ignore_patterns=_DO_NOT_DOWNLOAD, local_files_only=local_files_only
        )
        return Path(folder)

    try:
        cached = snapshot(local_files_only=True)
    except LocalEntryNotFoundError:
        cached = None
    # Another program may have cached the tokenizer alone, or have been stopped between two shards.
    if cached is not None and _is_complete(cached, adapter):
        return cached
    try:
        return snapshot(local_files_only=False)
    # Errors of the hub, of HTTP and of the disk have no common base; the cause stays attached.
    except Exception as error:
        raise ModelError(
            f"{field} is {repo_id}; there is no such folder, and {kind} of that id could not be fetched from the hub "
            f"({_first_line(error)}): give an existing folder, or connect, and check the id and your access to it"
        ) from error


def _is_complete(folder: Path, adapter: bool) -> bool:
    if adapter:
        return all((folder / name).is_file() for name in _ADAPTER_FILES)
    is_sharded = (folder / model_files.INDEX).is_file()
    weights = model_files.shard_names(folder, f"the hub's cache is {folder}") if is_sharded else ["model.safetensors"]
    return model_files.has_vocabulary(folder) and all((folder / name).is_file() for name in ("config.json", *weights))


def _first_line(error: Exception) -> str:
    return next(iter(str(error).strip().splitlines()), "") or type(error).__name__
