"""Stochastic rounding of merged weights, and how far any rounding takes a policy; for the benchmarks beside it."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from online_dpo.models.merging import merged_tensors


def round_stochastically(exact: Any, seed: int) -> Any:
    """bfloat16 of float32, up or down by chance, so that its expectation is the float32 number."""
    import torch

    bits = torch.randint(0, 1 << 16, exact.shape, dtype=torch.int32, generator=torch.Generator().manual_seed(seed))
    return ((exact.view(torch.int32) + bits) & -(1 << 16)).view(torch.float32).bfloat16()


def merged_stochastically(folder: Path, adapter: Any, *, dtype: Any, share: Any = None) -> Iterator[tuple[str, Any]]:
    """`merged_tensors` with stochastic rounding, seeded by the adapter's bytes."""
    import torch

    exact = merged_tensors(folder, adapter, dtype=torch.float32)
    stored = merged_tensors(folder, None, dtype=dtype)
    for index, ((name, total), (_, base)) in enumerate(zip(exact, stored, strict=True)):
        if total.dtype == base.dtype:
            yield name, base
            continue
        held = round_stochastically(total, int(adapter.digest[:8], 16) + index)
        if share is not None:
            share.add(held.float() - base.float(), total - base.float())
        yield name, held


def kl_of_roundings(model: Any, folder: Path, adapter: Any, rows: Sequence[Any]) -> dict[str, float]:
    """KL(policy || what rounding makes of it), nats per token, and `update`, which is KL(policy || base).

    The mean over the rows' completion tokens of the KL over the whole vocabulary, everything computed in float32.

    Args:
        model: of the folder, in float32; its weights are overwritten.
        folder: of the base model, stored in bfloat16.
        adapter: the policy's.
        rows: whose completion tokens count.
    """
    import torch

    def logps(tensors: Iterator[tuple[str, Any]]) -> Any:
        model.load_state_dict({name: tensor.float() for name, tensor in tensors}, strict=False)
        found = []
        for row in rows:
            logits = model(torch.tensor([[*row.prompt_ids, *row.completion_ids]])).logits[0]
            found.append(logits[len(row.prompt_ids) - 1 : -1].log_softmax(-1))
        return torch.cat(found)

    with torch.inference_mode():
        policy = logps(merged_tensors(folder, adapter, dtype=torch.float32)).double()
        others = {
            "update": merged_tensors(folder, None, dtype=torch.bfloat16),
            "nearest": merged_tensors(folder, adapter, dtype=torch.bfloat16),
            "stochastic": merged_stochastically(folder, adapter, dtype=torch.bfloat16),
        }
        return {
            name: (policy.exp() * (policy - logps(tensors))).sum(-1).mean().item() for name, tensors in others.items()
        }
