"""Matrix products of frozen linear layers and their LoRA, with as few passes over memory as there can be.

PEFT adds `B(A(x)) * scale` to a layer's output by three more passes over that output, and autograd keeps what they
need; for small models that costs as much as the product itself. Here the low-rank product accumulates into the
output, forward and backward, and only the input and `A x` are kept. Nothing is computed for frozen weights.

Under a lower precision (`learner.autocast`) the products alone are taken in it, on copies of the frozen weights that
are made once; what lies between them stays as it is.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from peft.tuners.lora import Linear as LoraLinear
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear


class Products:
    """Replaces how the linear layers of a decoder compute. Their parameters, and PEFT's, stay where they are.

    Args:
        decoder: holds the layers; linear layers without LoRA inside count as well.
        low: precision of products while `lowered` is on; None = as stored, always.
        compiled: the decoder will be compiled; these products stay as they are.
    """

    def __init__(self, decoder: nn.Module, low: torch.dtype | None, *, compiled: bool = False) -> None:
        self._low = low
        self.is_low = False  # whether products are taken in the low precision now
        self._copies: dict[nn.Module, tuple[Tensor, Tensor | None]] = {}
        self._last_cast: tuple[Tensor, Tensor] | None = None
        self._decoder, self._compiled = decoder, compiled
        self._adopted: list[nn.Module] = []

    def adopt(self) -> None:
        """Put them in the place of the layers' own."""
        keep: Any = torch.compiler.disable if self._compiled else lambda function: function
        parts: set[nn.Module] = set()  # of LoRA layers; those of another kind than plain linear are left to PEFT
        for module in self._decoder.modules():
            if isinstance(module, LoraLayer):
                parts.update(module.modules())
            if type(module) is LoraLinear and type(module.base_layer) is nn.Linear:
                module.forward = keep(partial(self._lora_linear, module))  # type: ignore[method-assign]
                self._adopted.append(module)
        for module in self._decoder.modules():
            if self._low is not None and type(module) is nn.Linear and module not in parts:
                module.forward = keep(partial(self._frozen_linear, module))  # type: ignore[method-assign]
                self._adopted.append(module)

    def leave(self) -> None:
        """Give the layers their own way of computing back."""
        for module in self._adopted:
            del module.forward
        self._adopted.clear()

    @contextmanager
    def lowered(self) -> Iterator[None]:
        """Products are taken in the low precision in here, if there is one."""
        before, self.is_low = self.is_low, self._low is not None
        try:
            yield
        finally:
            self.is_low = before
            self._last_cast = None

    def matrix(self, layer: nn.Linear) -> tuple[Tensor, Tensor | None]:
        """Weight and bias to compute with now."""
        if not self.is_low or layer.weight.dtype == self._low:
            return layer.weight, layer.bias
        if layer not in self._copies:
            bias = None if layer.bias is None else layer.bias.detach().to(self._low)
            self._copies[layer] = (layer.weight.detach().to(self._low), bias)
        return self._copies[layer]

    def cast(self, x: Tensor) -> Tensor:
        """The input in the precision of the products. Layers that share an input share its cast."""
        if not self.is_low or x.dtype == self._low:
            return x
        if self._last_cast is None or self._last_cast[0] is not x:
            self._last_cast = (x, x.to(self._low))
        return self._last_cast[1]

    def _frozen_linear(self, layer: nn.Linear, x: Tensor) -> Tensor:
        return linear(self.cast(x), *self.matrix(layer))

    def _lora_linear(self, layer: Any, x: Tensor) -> Tensor:
        x = self.cast(x)
        weight, bias = self.matrix(layer.base_layer)
        names = [] if layer.disable_adapters else [name for name in layer.active_adapters if name in layer.lora_A]
        if not names:
            return linear(x, weight, bias)
        (name,) = names
        a, b, scale = layer.lora_A[name].weight, layer.lora_B[name].weight, layer.scaling[name]
        dropout = layer.lora_dropout[name]
        if dropout.training and not isinstance(dropout, nn.Identity):
            low = linear(linear(dropout(x), a.to(x.dtype)), b.to(x.dtype))
            return linear(x, weight, bias) + low * scale
        return _LoraProduct.apply(x, a, b, weight, bias, scale)


class _LoraProduct(torch.autograd.Function):
    """`W x + bias + scale * B (A x)` for a frozen W (arXiv:2106.09685, eq. 3).

    Shapes: `x` `[..., in]`, `A` `[r, in]`, `B` `[out, r]`, `W` `[out, in]`. Products are in the dtype of `x` and `W`;
    `A`, `B` and their gradients keep their own.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, a: Tensor, b: Tensor, weight: Tensor, bias: Tensor | None, scale: float) -> Tensor:
        flat = x.reshape(-1, x.shape[-1])
        narrow_a, narrow_b = a.to(x.dtype), (b * scale).to(x.dtype)
        inner = flat @ narrow_a.t()
        output = linear(flat, weight, bias).addmm_(inner, narrow_b.t())
        ctx.save_for_backward(flat, inner, narrow_a, narrow_b, weight)
        ctx.scale, ctx.shape, ctx.dtypes = scale, x.shape, (a.dtype, b.dtype)
        return output.view(*x.shape[:-1], -1)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor) -> tuple[Tensor | None, ...]:
        flat, inner, narrow_a, narrow_b, weight = ctx.saved_tensors
        upstream = upstream.reshape(-1, upstream.shape[-1])
        into_inner = upstream @ narrow_b
        grad_x = grad_a = grad_b = None
        if ctx.needs_input_grad[0]:  # the first layers' input is the frozen embedding: no gradient goes there
            grad_x = (upstream @ weight).addmm_(into_inner, narrow_a).view(ctx.shape)
        if ctx.needs_input_grad[1]:
            grad_a = (into_inner.t() @ flat).to(ctx.dtypes[0])
        if ctx.needs_input_grad[2]:
            grad_b = (upstream.t() @ inner).to(ctx.dtypes[1]) * ctx.scale
        return grad_x, grad_a, grad_b, None, None, None
