"""How rows go through the learner's model: laid out, in which precision, keeping what for the backward pass.

Training and reference passes share one way of computing (layout, precision), so that a policy equal to its reference
has a log-ratio of zero. Scores, which checks and KL estimates compare with other computations, are in the model's own
precision.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from peft import PeftModel
from peft.tuners.lora import LoraLayer
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint
from transformers.modeling_layers import GradientCheckpointingLayer

from online_dpo.config.learner import LearnerSection
from online_dpo.errors import ModelError, first_line
from online_dpo.learner.grouping import pack_by_tokens, same_prompt
from online_dpo.learner.kernels import attention
from online_dpo.learner.kernels.lora_products import Products
from online_dpo.learner.kernels.packing import MIN_SHARED_TOKENS, PackedBatch, pack_rows, packed_tokens
from online_dpo.learner.logprobs import (
    Head,
    HiddenStates,
    LogpTensors,
    base_model,
    batch_rows,
    padded_states,
    token_logps,
    token_scores,
)
from online_dpo.types import Row

MIN_PACKED_WEIGHTS = 3_000_000_000
"""From how many weights on packed rows pay on a GPU. On an H100, 8 pairs with prompts of 256 tokens and answers of 128
took 0.65 of the time of padded rows at 8 B, and 1.1 times as long at 0.5 B; nothing in between was measured."""


class Forward:
    """A model, and how rows go through it.

    Args:
        model: from `adapter_slots.attach`, on its device.
        section: of the config.

    Raises:
        ModelError: the section asks for what this model cannot do.
    """

    def __init__(self, model: PeftModel, section: LearnerSection) -> None:
        self._model, self._section = model, section
        self._decoder = base_model(model).get_decoder()
        self._device = next(model.parameters()).device
        self.notices: list[str] = []  # one line each about what could not be had
        self._packs, low = False, _low_precision(section, self._device)
        self._products = Products(self._decoder, low, compiled=section.compile)
        self._dropouts = [module.lora_dropout for module in model.modules() if isinstance(module, LoraLayer)]
        self._checkpointed: list[Any] = []
        weights, is_quantised = _size(base_model(model))
        if uses_own_kernels(self._device.type, section, weights=weights, is_quantised=is_quantised):
            self._adopt_own_kernels()
        if section.activation_checkpointing:
            self._checkpointed = self._wrap_layers()
        if section.compile:
            self._compile()

    @property
    def vocab_size(self) -> int:
        """`V`."""
        return int(self._decoder.config.vocab_size)

    @property
    def trained(self) -> list[Tensor]:
        """The parameters that get gradients."""
        return [parameter for parameter in self._model.parameters() if parameter.requires_grad]

    @property
    def min_shared(self) -> int | None:
        """Prompts of at least so many tokens are shared by their completions; None = never."""
        if not self._packs or self._section.layout == "separate":
            return None
        return 1 if self._section.layout == "shared" else MIN_SHARED_TOKENS

    def token_logps(self, rows: Sequence[Row], *, training: bool, **asks: bool) -> LogpTensors:
        """Log-probs of every completion token, as training needs them; differentiable where gradients are on.

        Args:
            rows: in any order; rows of the same prompt are found and may share it.
            training: with LoRA's dropout. The base's own dropout stays off: the reference was scored without it.
            asks: for more, as `logprobs.token_logps`.
        """
        with self._numerics(dropout=training):
            return token_logps(self._head(), self._states(rows), **asks)

    @torch.no_grad()
    def scores(self, rows: Sequence[Row]) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
        """Log-probs and entropies of every completion position in the model's own precision, as `token_scores`."""
        return token_scores(self._head(), self._states(rows))

    def groups(self, items: Sequence[Sequence[Row]]) -> list[list[int]]:
        """Indices of the items (such as the two rows of a pair) that go through the model together."""
        budget = self._section.micro_batch_tokens
        longest = [max(len(row.prompt_ids) + len(row.completion_ids) for row in item) for item in items]
        if self._packs:
            tokens = [packed_tokens(item, min_shared=self.min_shared) for item in items]
            return pack_by_tokens(longest, tokens, budget=budget)
        tokens = [len(item) * length for item, length in zip(items, longest, strict=True)]
        return pack_by_tokens(longest, tokens, budget=budget, padded=True)

    def row_groups(self, rows: Sequence[Row]) -> list[list[int]]:
        """Indices of rows that go through the model together; rows of one prompt stay together if they can share it."""
        members = same_prompt(rows) if self._packs else [[index] for index in range(len(rows))]
        groups = self.groups([[rows[index] for index in indices] for indices in members])
        return [[index for item in group for index in members[item]] for group in groups]

    def _states(self, rows: Sequence[Row]) -> HiddenStates:
        if not self._packs:
            batch = batch_rows(rows).to(self._device)
            # Attention of transformers wants queries, keys and values in one dtype, and rotation makes float32 of two.
            with torch.autocast(self._device.type, torch.bfloat16, enabled=self._products.is_low):
                return padded_states(self._model, batch)
        return packed_states(self._decoder, pack_rows(rows, min_shared=self.min_shared).to(self._device))

    def _head(self) -> Head:
        return Head.of(self._model, self._products.matrix)

    @contextmanager
    def _numerics(self, *, dropout: bool) -> Iterator[None]:
        with self._products.lowered():
            self._set_training(dropout)
            try:
                yield
            finally:
                self._set_training(False)

    def _set_training(self, on: bool) -> None:
        for dropout in self._dropouts:
            dropout.train(on)
        for layer in self._checkpointed:
            layer.training = on  # of the layer alone, not of what is inside: it switches recomputation on

    def _adopt_own_kernels(self) -> None:
        """Packed rows, and products of our own; where they fail, all is computed as transformers and PEFT do."""
        config = self._decoder.config
        before, reason = config._attn_implementation, _adopt_packing(self._model, self._device)
        self._packs = reason is None
        if self._packs or self._device.type == "cpu":  # padded rows go through our products on CPU
            self._products.adopt()
        if reason is None and (self._device.type != "cpu" or self._section.layout == "shared"):
            try:  # kernels for the backward pass are made when it first runs
                _run_both_ways(self)
            except Exception as error:  # whatever a compiler, or a GPU that it does not know, comes up with
                reason = f"its packed rows have no backward pass here ({type(error).__name__}: {first_line(error)})"
                self._products.leave()
                self._packs, config._attn_implementation = False, before
        if reason is not None:
            self.notices.append(f"the learner pads its rows and repeats prompts: {reason}")

    def _compile(self) -> None:
        """Compile what lies between the matrix products of every layer: norms, rotations, activations, sums."""
        layers = [module for module in self._decoder.modules() if isinstance(module, GradientCheckpointingLayer)]
        attention.leave_uncompiled()
        for layer in layers:
            layer.compile(dynamic=True)
        try:
            _run_both_ways(self)
        except Exception as error:  # whatever the compiler or a missing one comes up with
            for layer in layers:
                layer._compiled_call_impl = None
            self.notices.append(f"the learner runs uncompiled: {type(error).__name__}: {first_line(error)}")

    def _wrap_layers(self) -> list[Any]:
        """Let every decoder layer keep its input only and compute the rest again in the backward pass."""
        layers: list[Any] = [
            module for module in self._decoder.modules() if isinstance(module, GradientCheckpointingLayer)
        ]
        if not layers:
            raise ModelError(
                f"learner.activation_checkpointing is true and {type(self._decoder).__name__} has no layers that can "
                f"be computed again; set it to false"
            )

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            # The backward pass comes when the forward pass's precision and dropout have been put back.
            return nullcontext(), self._numerics(dropout=True)

        for layer in layers:
            layer.gradient_checkpointing = True
            layer._gradient_checkpointing_func = partial(checkpoint, use_reentrant=False, context_fn=contexts)
        return layers


def uses_own_kernels(device_type: str, section: LearnerSection, *, weights: int, is_quantised: bool) -> bool:
    """Whether rows are packed under attention of our own, with products of our own, if the model lets them.

    On a GPU `auto` takes them for large models, where they save more than they cost; otherwise what transformers and
    PEFT do (padded rows, SDPA, PEFT's layers under `torch.autocast`). Whole runs on quantised weights never used them.

    Args:
        device_type: torch's.
        section: of the config.
        weights: of the model, a number of elements.
        is_quantised: the model's weights have fewer than 16 bits.
    """
    if device_type == "cpu":
        return True
    pays = weights >= MIN_PACKED_WEIGHTS and not is_quantised
    return section.layout == "shared" or (section.layout == "auto" and pays)


def _size(model: nn.Module) -> tuple[int, bool]:
    """How many weights a model has, and whether they are quantised."""
    return sum(parameter.numel() for parameter in model.parameters()), getattr(model, "hf_quantizer", None) is not None


def _run_both_ways(forward: Forward) -> None:
    """A pass over a few rows without gradients, as a reference's, and one as a step's; no gradient is kept.

    The rows fill several of FlexAttention's blocks of 128 tokens, since a mask of one block gets a kernel of its own.
    """
    rows = _probe_rows(forward.vocab_size, times=8)
    with torch.no_grad():
        forward.token_logps(rows, training=False)
    if forward.trained:
        logps = torch.cat(forward.token_logps(rows, training=False).logps)
        torch.autograd.grad(logps.sum(), forward.trained, allow_unused=True)


def _adopt_packing(model: PeftModel, device: torch.device) -> str | None:
    """Switch a model's attention to packed rows, and see that its log-probs stay what they were.

    Returns:
        None, or why its rows must be padded; the model is then as it was.
    """
    decoder = base_model(model).get_decoder()
    config = decoder.config
    kinds = sorted(set(getattr(config, "layer_types", None) or ()) - {"full_attention"})
    if kinds or (getattr(config, "sliding_window", None) and getattr(config, "use_sliding_window", True)):
        return f"{type(decoder).__name__} has layers of {', '.join(kinds) or 'sliding_attention'}"
    rows = _probe_rows(config.vocab_size)
    head, before = Head.of(model), config._attn_implementation
    with torch.no_grad():
        alone = [token_logps(head, padded_states(model, batch_rows([row]).to(device))).logps[0] for row in rows]
        config._attn_implementation = attention.PACKED
        try:
            found = token_logps(head, packed_states(decoder, pack_rows(rows, min_shared=1).to(device)))
        except Exception as error:  # whatever a model of another making comes up with
            reason = f"{type(decoder).__name__} takes no packed rows ({first_line(error)})"
        else:
            # Relative to the spread of the log-probs, as in `verify_head`; nan is a mismatch too.
            spread = torch.cat(alone).max() - torch.cat(alone).min()
            distance = ((torch.cat(found.logps) - torch.cat(alone)).abs().max() / spread).item()
            if distance <= (0.05 if head.weight.dtype == torch.bfloat16 else 1e-4):
                return None
            reason = f"{type(decoder).__name__} gives packed rows other log-probs (relative difference {distance:.2g})"
    config._attn_implementation = before
    return reason


def _probe_rows(vocab_size: int, *, times: int = 1) -> list[Row]:
    """Two prompts with two completions each, of different lengths, in mixed order: `times` 40 tokens."""
    tokens = [1 + i * 7919 % (vocab_size - 1) for i in range(40 * times)]
    parts = [tuple(tokens[times * start : times * stop]) for start, stop in pairwise((0, 5, 12, 19, 23, 31, 40))]
    first, second, *answers = parts
    return [Row(prompt_ids=p, completion_ids=c) for p, c in zip((first, second, first, second), answers, strict=True)]


def packed_states(decoder: Any, batch: PackedBatch) -> HiddenStates:
    """Run a decoder whose attention is `attention.PACKED` over packed rows."""
    inputs = {"input_ids": batch.input_ids, "position_ids": batch.position_ids, "packing": batch}
    hidden = decoder(**inputs, use_cache=False).last_hidden_state
    return HiddenStates(hidden[0].index_select(0, batch.predicting), batch.targets, batch.lengths)


def _low_precision(section: LearnerSection, device: torch.device) -> torch.dtype | None:
    if section.autocast == "bfloat16" or (section.autocast == "auto" and device.type == "cuda"):
        return torch.bfloat16
    return None
