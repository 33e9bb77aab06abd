"""What every export writes: a new folder, a policy in it, and the model that an adapter is for."""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from online_dpo.errors import RunDirectoryError, UserError
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import HUB_ID, locate
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter


def expect_new(out: Path, *, field: str = "OUT") -> None:
    """Refuse a place where something lies already.

    Raises:
        UserError: `out` is a file, or a folder that is not empty.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{field} is {out}, which is a file; name a new folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{field} is {out}, which is not empty; name a new folder")


@contextmanager
def new_folder(out: Path, *, field: str = "OUT") -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all is written: on a full disk nothing is left behind.

    Raises:
        UserError: it cannot be written.
    """
    whole = out.resolve()  # `.` has no name
    partial = whole.with_name(f".partial-{whole.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.replace(whole)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{field} is {out}, which cannot be written ({error.strerror or error}); name a folder that can"
        ) from error


def chosen_round(store: RunStore, run_dir: Path, number: int | None) -> int:
    """The index of a finished round.

    Args:
        store: of the run.
        run_dir: as the user gave it.
        number: counted from 1; None = the last one.

    Raises:
        RunDirectoryError: no such round is finished.
    """
    finished = store.finished_rounds()
    if not finished:
        raise RunDirectoryError(
            f"{run_dir} has no finished round to export; continue it with `online-dpo resume {run_dir}`"
        )
    index = len(finished) - 1 if number is None else number - 1
    if index not in finished:
        raise RunDirectoryError(
            f"--round is {index + 1} and {run_dir} has {len(finished)} finished rounds; choose one from 1 to "
            f"{len(finished)}"
        )
    return index


def write_adapter(adapter: Adapter, folder: Path) -> None:
    """As PEFT writes it."""
    for name, content in adapter.files().items():
        (folder / name).write_bytes(content)


def write_merged(base: Path, adapter: Adapter, folder: Path, *, dtype: str) -> None:
    """A whole model with an adapter merged into it: in float32, rounded once.

    Args:
        base: the folder of the model that the adapter is for.
        adapter: its weights.
        folder: gets config, tokenizer and weights.
        dtype: of the weights.
    """
    import torch
    from safetensors.torch import save_file

    from online_dpo.models.merging import merged_tensors

    inspect_model(base, field="model.path")
    copy_model(base, folder, weights=False)
    wanted = getattr(torch, dtype)
    merged = merged_tensors(base, adapter, dtype=wanted)
    tensors = {name: tensor.to(wanted).contiguous() for name, tensor in merged}
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((folder / "config.json").read_text())
    settings["dtype"] = dtype
    settings.pop("torch_dtype", None)  # the older name of the same key
    (folder / "config.json").write_text(json.dumps(settings, indent=2) + "\n")


def copy_model(model: Path, folder: Path, *, weights: bool = True) -> None:
    """Copy a model's files, without what is written about it.

    Args:
        model: its folder.
        folder: gets the files.
        weights: copy its safetensors, too.
    """
    folder.mkdir(exist_ok=True)
    left_out = (".md",) if weights else (".safetensors", ".safetensors.index.json", ".md")
    for file in model.iterdir():
        if file.is_file() and not file.name.endswith(left_out):
            shutil.copy(file, folder / file.name)


def base_name(path: str, folder: Path) -> str:
    """What a script calls the base model: its hub id, or the copy that is made of its folder.

    Args:
        path: `model.path`.
        folder: gets the copy, as `base/`.
    """
    if HUB_ID.fullmatch(path) and not Path(path).exists():
        return path
    copy_model(locate(path, field="model.path"), folder / "base")
    return "base"


def license_of(path: str) -> str | None:
    """The licence that a model's own card names; None where it is not known on this machine.

    Args:
        path: `model.path`.
    """
    from huggingface_hub import metadata_load, try_to_load_from_cache

    card: object = Path(path).expanduser() / "README.md"
    if HUB_ID.fullmatch(path) and not Path(path).exists():
        card = try_to_load_from_cache(path, "README.md")
    try:
        found = metadata_load(card) if isinstance(card, str | Path) and Path(card).is_file() else None
    except (ValueError, OSError):  # its metadata is no YAML, or it is no text
        return None
    value = (found or {}).get("license")
    return value if isinstance(value, str) else None
