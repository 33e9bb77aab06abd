"""Base weights plus a LoRA adapter: inside a running vLLM engine, and in a file for export.

`MergeExtension` is mixed into every vLLM worker by `worker_extension_cls`. It lives here and not in `actors` because
vLLM's own worker processes import it by name, and importing `online_dpo` is what makes names like `actors` safe.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from online_dpo.errors import ModelError
from online_dpo.models.model_files import of_expert, of_vocabulary, tensor_shapes, weight_files, weight_names
from online_dpo.types import Adapter

_PREFIX, _A, _B = "base_model.model.", ".lora_A.weight", ".lora_B.weight"

_CHUNK = 1 << 17
"""Elements of a weight that a CPU merges at once: few enough for a core's cache, which makes it four times as fast."""

_GPU_CHUNK = 1 << 24
"""Elements that a GPU merges at once: enough to keep it busy, and 64 MiB in float32."""

_MAX_SPLIT_RANK = 64
"""Up to which rank six products in bfloat16 were faster than one in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Received:
    """What an engine got from a push."""

    digest: str | None
    """Of the adapter, as it arrived; None where the base model was pushed."""
    applied: float | None = None
    """The share of the update that the engine's weights hold: the projection of what they changed by on it. Rounding
    takes the rest. None where nothing was merged."""


class Share:
    """Adds up how much of an update is left after rounding, over a part of each weight that it changes."""

    def __init__(self) -> None:
        self._held = self._wanted = 0.0

    def add(self, held: Any, wanted: Any) -> None:
        """Two tensors of one shape, float32: what a weight was changed by, and what it was to be changed by."""
        wanted = wanted.flatten()
        self._held += wanted.dot(held.flatten()).item()
        self._wanted += wanted.dot(wanted).item()

    def value(self) -> float | None:
        """`<held, wanted> / <wanted, wanted>`; None for an update of nothing."""
        return self._held / self._wanted if self._wanted > 0.0 else None


class MergeExtension:
    """Computes `W0 + scale * B A` from the pristine base weights inside a vLLM worker and loads the result."""

    model_runner: Any  # vLLM's worker has it; this class is mixed in

    def load_merged(self, folder: str, weights: bytes | None, config: bytes | None, with_vocabulary: bool) -> Received:
        """Load base weights plus adapter; without an adapter, the base weights alone.

        vLLM's layer-wise reload leaves the parts of a packed weight that it was not given (q and v of a qkv) as
        uninitialised memory, without an error, and layers of which nothing is given as they are. So all is given but
        for what no adapter changes and no layer packs with anything else: experts, which vLLM 0.32 on CPU would make
        into others, off by nats, and embedding and head, which are a quarter of a small model.

        Args:
            folder: of the base model.
            weights: of the adapter.
            config: of the adapter.
            with_vocabulary: load embedding and head too, because they may not be as they were loaded.

        Raises:
            ModelError: the adapter has a layer that the base weights lack.
        """
        import torch

        adapter = None if weights is None or config is None else Adapter(version=0, weights=weights, config=config)
        # Non-finite or stale memory must never survive a reload that stops half-way: the caller treats any exception
        # as the end of this engine.
        share = Share()
        with torch.inference_mode():
            dtype, device = self.model_runner.model_config.dtype, self.model_runner.device
            tensors = merged_tensors(Path(folder), adapter, dtype=dtype, device=device, share=share)
            given = (
                (name, tensor)
                for name, tensor in tensors
                if not of_expert(name) and (with_vocabulary or not of_vocabulary(name))
            )
            self.model_runner.reload_weights(weights_iterator=given)
        return Received(digest=None if adapter is None else adapter.digest, applied=share.value())


def merged_tensors(
    folder: Path, adapter: Adapter | None, *, dtype: Any, device: Any = "cpu", share: Share | None = None
) -> Iterator[tuple[str, Any]]:
    """Name and content of every tensor of a base model's files, the adapter's update added where it has one.

    The sum is taken in float32 whatever the files hold, and rounded once, to the nearest.

    Args:
        folder: of the base model.
        adapter: None gives the base model itself.
        dtype: torch's, of the merged tensors; the others come as they are stored.
        device: torch's, on which weights are merged and then lie; the others lie on the CPU.
        share: is told of the first `_CHUNK` elements of every merged weight; all would take as long as merging.

    Raises:
        ModelError: the adapter has a layer that the files lack; nothing was given out.
    """
    files = weight_files(folder, f"the base model is {folder}")
    deltas = {} if adapter is None else lora_deltas(adapter)
    stored = [name for file in files for name in tensor_shapes(file, f"the base model is {folder}")]
    names = weight_names(deltas, stored)
    if missing := sorted(deltas.keys() - names.keys()):
        raise ModelError(f"the adapter has layers that {folder} lacks: {', '.join(missing[:3])}")
    placed = {names[layer]: (a.to(device), b.to(device), scale) for layer, (a, b, scale) in deltas.items()}
    return _added(files, placed, dtype, share)


def _added(
    files: Sequence[Path], deltas: Mapping[str, tuple[Any, Any, float]], dtype: Any, share: Share | None
) -> Iterator[tuple[str, Any]]:
    from safetensors import safe_open

    for file in files:
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - safe_open is not a mapping
                weight = tensors.get_tensor(name)
                yield name, _merged(weight, *deltas[name], dtype, share) if name in deltas else weight


def _merged(weight: Any, a: Any, b: Any, scale: float, dtype: Any, share: Share | None) -> Any:
    """`weight + scale * b @ a`."""
    import torch

    weight, a, b = weight.to(a.device), a.float(), b.float()
    on_cpu = weight.device.type == "cpu"
    is_low = weight.dtype == dtype == torch.bfloat16
    if on_cpu and is_low and len(a) <= _MAX_SPLIT_RANK and torch.cpu._is_avx512_bf16_supported():
        merged = _merged_by_parts(weight, a * scale, b)
    else:
        merged = weight.new_empty(weight.shape, dtype=dtype)
        num_rows = max(1, (_CHUNK if on_cpu else _GPU_CHUNK) // weight.shape[1])
        for start in range(0, len(weight), num_rows):
            rows = slice(start, start + num_rows)
            merged[rows] = (b[rows] @ a).mul_(scale).add_(weight[rows])  # in float32: what is added to is
    if share is not None:
        num_rows = max(1, _CHUNK // weight.shape[1])
        # Without an adapter the engine would hold the rounded base.
        held = merged[:num_rows].float() - weight[:num_rows].to(dtype).float()
        share.add(held, (b[:num_rows] @ a).mul_(scale))
    return merged


def _merged_by_parts(weight: Any, a: Any, b: Any) -> Any:
    """`weight + b @ a` for a weight in bfloat16, by one product of bfloat16 that sums in float32 and rounds once.

    Both factors are sums of three numbers in bfloat16, which hold 24 bits together, and of the nine products the six
    that count are taken (arXiv:1904.06376). So the error is that of float32, in a third of the time or less.
    """
    import torch

    def parts(matrix: Any) -> list[Any]:
        found = []
        for _ in range(3):
            found.append(matrix.bfloat16())
            matrix = matrix - found[-1].float()
        return found

    (a0, a1, a2), (b0, b1, b2) = parts(a), parts(b)
    return torch.addmm(weight, torch.cat([b0, b0, b1, b0, b2, b1], 1), torch.cat([a0, a1, a0, a2, a0, a1]))


def lora_deltas(adapter: Adapter) -> dict[str, tuple[Any, Any, float]]:
    """Layer name -> (`A` [r, in], `B` [out, r], scale); the update is `scale * B A` (arXiv:2106.09685)."""
    from safetensors.torch import load

    config, tensors = json.loads(adapter.config), load(adapter.weights)
    scale = config["lora_alpha"] / (math.sqrt(config["r"]) if config.get("use_rslora") else config["r"])
    deltas = {}
    for tensor in sorted(tensors):
        if tensor.endswith(_A):
            a, b = tensors[tensor], tensors[tensor.removesuffix(_A) + _B]
            layer = tensor.removesuffix(_A).removeprefix(_PREFIX)
            # Conv1D layers (GPT-2) store W transposed, and so must be their update.
            deltas[layer] = (b.T, a.T, scale) if config.get("fan_in_fan_out") else (a, b, scale)
    if 2 * len(deltas) != len(tensors):
        raise ModelError(f"the adapter holds {len(tensors)} tensors, of which {2 * len(deltas)} are LoRA matrices")
    return deltas
