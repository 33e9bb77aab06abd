"""What all losses check."""

from __future__ import annotations

from torch import Tensor

from online_dpo.errors import ShapeError


def expect_same_shape(**tensors: Tensor) -> None:
    """Raise `ShapeError`, naming every tensor, unless all have one shape: broadcasting would hide a wrong pairing."""
    if len({tensor.shape for tensor in tensors.values()}) > 1:
        found = ", ".join(f"{name} is {list(tensor.shape)}" for name, tensor in tensors.items())
        raise ShapeError(f"{found}; they must hold one value per item each")
