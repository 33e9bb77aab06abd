"""Finds the folder of a model or adapter that a config names: an embedded one, a local one, or one of the hub.

The hub is asked only when its local cache lacks a file.
"""

from __future__ import annotations

import re
from pathlib import Path

from online_dpo import embedded
from online_dpo.errors import ModelError, first_line
from online_dpo.models import model_files, tokenizer

HUB_ID = re.compile(r"[A-Za-z0-9][\w.-]*/[A-Za-z0-9][\w.-]*")

# No pickled weights; `*.py` because trust_remote_code reads a model's code from its own folder.
_DOWNLOAD = ["*.safetensors", "*.json", "*.jinja", "*.txt", "*.model", "*.tiktoken", "*.py"]
_DO_NOT_DOWNLOAD = ["*/*", "consolidated*"]  # second copies of the same weights in other layouts

_ANSWER_S = 10.0
"""Within so many seconds the hub must have answered its first question."""

ADAPTER_FILES = ("adapter_config.json", "adapter_model.safetensors")


def is_hub_id(path: str) -> bool:
    """Whether a path is to be looked for on the hub: neither embedded, nor a folder, nor written like one."""
    looks_local = path.startswith(("embedded:", ".", "~", "/")) or path.count("/") != 1
    return not looks_local and not Path(path).expanduser().is_dir()


def cached_config(repo_id: str) -> Path | None:
    """The config.json of a model in the hub's local cache, whatever else of it is there; the hub is not asked."""
    from huggingface_hub import try_to_load_from_cache

    found = try_to_load_from_cache(repo_id, "config.json")
    return Path(found) if isinstance(found, str) else None


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
    try:
        folder = embedded.path_of(path)
    except LookupError as error:
        raise ModelError(f"{field} is {path}; {error.args[0]}") from None
    if folder.is_dir():
        return folder.resolve()
    if folder.exists():
        raise ModelError(f"{field} is {path}, which is a file; give the folder of {kind}")
    if not HUB_ID.fullmatch(path):
        raise ModelError(
            f"{field} is {path}; there is no such folder: give the folder of {kind}, or a hub id of the form org/name"
        )
    return _download(path, field, kind, adapter)


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
        # `snapshot_download` asks the same first, but waits for an answer without end.
        huggingface_hub.model_info(repo_id, timeout=_ANSWER_S)
        return snapshot(local_files_only=False)
    # Errors of the hub, of HTTP and of the disk have no common base; the cause stays attached.
    except Exception as error:
        raise ModelError(
            f"{field} is {repo_id}; there is no such folder, and {kind} of that id could not be fetched from the hub "
            f"({first_line(error)}): give an existing folder, or connect, and check the id and your access to it"
        ) from error


def _is_complete(folder: Path, adapter: bool) -> bool:
    if adapter:
        return all((folder / name).is_file() for name in ADAPTER_FILES)
    is_sharded = (folder / model_files.INDEX).is_file()
    weights = model_files.shard_names(folder, f"the hub's cache is {folder}") if is_sharded else ["model.safetensors"]
    return tokenizer.has_vocabulary(folder) and all((folder / name).is_file() for name in ("config.json", *weights))
