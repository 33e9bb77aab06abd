"""Adapters served unmerged by a vLLM engine (DESIGN section 8); the other way, merging, is `online_dpo.merging`."""

from __future__ import annotations

import shutil
import tempfile
from pathlib import Path
from typing import Any

from online_dpo.errors import WeightMismatchError
from online_dpo.types import Adapter


class LoraSlots:
    """Adapters served unmerged: a new name, id and path for every load, the one before last removed.

    vLLM keys its prefix cache by name and path and its adapters by id; reusing any of them serves stale blocks or
    stale weights without an error.
    """

    def __init__(self, engine: Any) -> None:
        self._engine = engine
        self._folder = Path(
            tempfile.mkdtemp(prefix="online-dpo-", dir="/dev/shm" if Path("/dev/shm").is_dir() else None)
        )
        self._loaded: list[Any] = []
        self._count = 0

    def load(self, adapter: Adapter) -> str:
        """Load an adapter and make it `current`. No request may be running.

        Raises:
            WeightMismatchError: the engine did not take the adapter.
        """
        from vllm.lora.request import LoRARequest

        self._count += 1
        name = f"policy-{self._count}-{adapter.digest[:12]}"
        path = self._folder / name
        path.mkdir()
        for file, content in adapter.files().items():
            (path / file).write_bytes(content)
        request = LoRARequest(lora_name=name, lora_int_id=self._count, lora_path=str(path))
        # A request that names an adapter which is not there kills the engine: load first, use later.
        if not self._engine.add_lora(request):
            raise WeightMismatchError(f"vLLM did not load adapter {name}; see the generator's log")
        self._loaded.append(request)
        while len(self._loaded) > 1:
            old = self._loaded.pop(0)
            self._engine.remove_lora(old.lora_int_id)
            shutil.rmtree(old.lora_path)
        received = {file: (path / file).read_bytes() for file in adapter.files()}
        return Adapter.from_files(adapter.version, received).digest

    def clear(self) -> None:
        """Back to the base model."""
        while self._loaded:
            old = self._loaded.pop()
            self._engine.remove_lora(old.lora_int_id)
            shutil.rmtree(old.lora_path)

    @property
    def current(self) -> Any | None:
        """The `LoRARequest` to send with every prompt; None for the base model."""
        return self._loaded[-1] if self._loaded else None

    def close(self) -> None:
        shutil.rmtree(self._folder, ignore_errors=True)
