"""Adapters served unmerged by a vLLM engine (DESIGN section 8); merging them is `online_dpo.models.merging`."""

from __future__ import annotations

import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from online_dpo.errors import WeightMismatchError
from online_dpo.types import Adapter

_PREFIX = "online-dpo-"


class LoraSlots:
    """Adapters served unmerged: a new name, id and path for every load. No request runs while they change.

    vLLM keys its prefix cache by name and path and its adapters by id; reusing any of them serves stale blocks or
    stale weights without an error.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._folder = Path(tempfile.mkdtemp(prefix=f"{_PREFIX}{os.getpid()}-", dir=_sweep()))
        self._count = 0
        self.current: Any | None = None  # the `LoRARequest` to send with every prompt; None for the base model

    def load(self, adapter: Adapter) -> str:
        """Load an adapter and make it `current`. No request may be running.

        Returns:
            The digest of what the engine loaded, read back from its files.

        Raises:
            WeightMismatchError: the engine did not take the adapter.
        """
        from vllm.lora.request import LoRARequest

        self.clear()
        self._count += 1
        name = f"policy-{self._count}-{adapter.digest[:12]}"
        path = self._folder / f"{self._count}"
        path.mkdir()
        for file, content in adapter.files().items():
            (path / file).write_bytes(content)
        request = LoRARequest(lora_name=name, lora_int_id=self._count, lora_path=str(path))
        # A request that names an adapter which is not there kills the engine: load first, use later.
        if not self._engine.add_lora(request):
            raise WeightMismatchError(f"vLLM did not load adapter {name}; see the generator's log")
        self.current = request
        received = {file: (path / file).read_bytes() for file in adapter.files()}
        return Adapter.from_files(adapter.version, received).digest

    def clear(self) -> None:
        """Back to the base model."""
        if self.current is not None:
            self._engine.remove_lora(self.current.lora_int_id)
            shutil.rmtree(self._folder / f"{self._count}")
            self.current = None

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)


def _sweep() -> Path:
    """The folder for adapters, in memory where there is such a place, without what killed processes left in it."""
    shared = Path("/dev/shm")
    place = shared if shared.is_dir() else Path(tempfile.gettempdir())
    for left in place.glob(f"{_PREFIX}*"):
        pid = left.name.removeprefix(_PREFIX).split("-")[0]
        if pid.isdigit() and not Path(f"/proc/{pid}").exists():
            shutil.rmtree(left, ignore_errors=True)
    return place
