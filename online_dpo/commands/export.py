"""`online-dpo export`: a round's adapter in PEFT format, or base and adapter merged into one model."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from online_dpo.commands.run import recorded_config
from online_dpo.errors import RunDirectoryError, UserError
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import locate
from online_dpo.store.forking import describe_forks
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter


def export(run_dir: Path, out: Path, *, round_number: int | None, merge: bool) -> int:
    """Write the policy after a finished round to a new folder.

    Args:
        run_dir: of the run.
        out: must not exist, or be empty.
        round_number: counted from 1 as in `status`; None = the last finished one.
        merge: write a whole model (config, tokenizer, safetensors) rather than the adapter alone.

    Returns:
        The round that was exported.

    Raises:
        RunDirectoryError: no such round is finished.
        UserError: `out` is not empty.
    """
    config = recorded_config(run_dir)
    expect_new(out)
    with RunStore.read(run_dir) as store:
        finished = store.finished_rounds()
        if not finished:
            raise RunDirectoryError(
                f"{run_dir} has no finished round to export; continue it with `online-dpo resume {run_dir}`"
            )
        index = len(finished) - 1 if round_number is None else round_number - 1
        if index not in finished:
            raise RunDirectoryError(
                f"--round is {index + 1} and {run_dir} has {len(finished)} finished rounds; choose one from 1 to "
                f"{len(finished)}"
            )
        adapter = Adapter.from_files(index + 1, store.round(index).get_files("adapter"))
    with new_folder(out) as folder:
        if merge:
            _write_merged(locate(config.model.path, field="model.path"), adapter, folder, dtype=config.model.dtype)
        else:
            for name, content in adapter.files().items():
                (folder / name).write_bytes(content)
    return index + 1


def expect_new(out: Path, *, field: str = "OUT") -> None:
    """Refuse a folder that has something in it.

    Raises:
        UserError: it is a file, or not empty.
    """
    if out.exists() and not out.is_dir():
        raise UserError(f"{field} is {out}, which is a file; name a new folder")
    if out.exists() and any(out.iterdir()):
        raise UserError(f"{field} is {out}, which is not empty; name a new folder")


def origin(run_dir: Path) -> list[str]:
    """Where a forked run comes from; nothing of any other run."""
    with RunStore.read(run_dir) as store:
        return describe_forks(store.info)


@contextmanager
def new_folder(out: Path, *, field: str = "OUT") -> Iterator[Path]:
    """A folder to fill, which becomes `out` when all is written: on a full disk nothing is left behind.

    Raises:
        UserError: it cannot be written.
    """
    partial = out.with_name(f".partial-{out.name}")
    try:
        shutil.rmtree(partial, ignore_errors=True)  # what a killed process left
        partial.mkdir(parents=True)
        try:
            yield partial
            partial.replace(out)
        finally:
            shutil.rmtree(partial, ignore_errors=True)
    except OSError as error:
        raise UserError(
            f"{field} is {out}, which cannot be written ({error.strerror}); name a folder that can"
        ) from error


def _write_merged(base: Path, adapter: Adapter, out: Path, *, dtype: str) -> None:
    import json

    import torch
    from safetensors.torch import save_file

    from online_dpo.models.merging import merged_tensors

    inspect_model(base, field="model.path")
    for file in base.iterdir():
        if file.is_file() and not file.name.endswith((".safetensors", ".safetensors.index.json", ".md")):
            shutil.copy(file, out / file.name)
    wanted = getattr(torch, dtype)
    merged = merged_tensors(base, adapter, dtype=wanted)
    tensors = {name: tensor.to(wanted).contiguous() for name, tensor in merged}
    save_file(tensors, out / "model.safetensors", metadata={"format": "pt"})
    settings = json.loads((out / "config.json").read_text())
    settings["dtype"] = dtype
    settings.pop("torch_dtype", None)  # the older name of the same key
    (out / "config.json").write_text(json.dumps(settings, indent=2) + "\n")
