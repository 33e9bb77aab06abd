"""Log-probabilities of completion tokens, without ever holding the logits of a whole batch.

The decoder runs without its head; only the hidden states that predict completion tokens go through the head, in
chunks, and each chunk's logits are gone before the next one's appear, in the backward pass too.

Shapes: `B` rows, `T` tokens of the padded batch, `N` completion tokens of all rows, `H` hidden size, `V` vocabulary.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple, TypeAlias

import torch
from peft import PeftModel
from torch import Tensor, nn
from torch.autograd.function import once_differentiable
from torch.nn.functional import linear

from online_dpo.errors import DataError, ModelError
from online_dpo.types import Row

HEAD_CHUNK_ELEMENTS = 2**22
"""Logits of a chunk (16 MiB in fp32): small enough to stay near the cache. With a large vocabulary that is few tokens,
and each chunk reads the head's whole weight: no fewer than `HEAD_CHUNK_TOKENS` are taken, or the product starves."""

HEAD_CHUNK_TOKENS = 128

Matrix: TypeAlias = Callable[[nn.Linear], tuple[Tensor, Tensor | None]]


@dataclass(frozen=True, slots=True)
class TokenBatch:
    """Rows as the model reads them. Padding may stand on either side; masks, not ids, say where it is."""

    input_ids: Tensor  # [B, T] int64
    attention_mask: Tensor  # [B, T] int64, 1 = a real token
    completion_mask: Tensor  # [B, T] bool, True at the completion's tokens

    @property
    def position_ids(self) -> Tensor:
        """`[B, T]` each token's place among its row's real tokens; 0 on left padding."""
        return (self.attention_mask.cumsum(dim=1) - 1).clamp(min=0)

    @property
    def lengths(self) -> list[int]:
        """`[B]` completion tokens of each row."""
        return self.completion_mask.sum(dim=1).tolist()

    def to(self, device: torch.device | str) -> TokenBatch:
        return TokenBatch(self.input_ids.to(device), self.attention_mask.to(device), self.completion_mask.to(device))


def batch_rows(rows: Sequence[Row], pad_id: int = 0) -> TokenBatch:
    """Pad rows on the right.

    Args:
        rows: `B` rows, each with at least one prompt token.
        pad_id: any id of the vocabulary, EOS included: padding is told by the masks and never attended to.

    Raises:
        DataError: a row's prompt has no tokens, so nothing predicts its first completion token.
    """
    width = max(len(row.prompt_ids) + len(row.completion_ids) for row in rows)
    input_ids = torch.full((len(rows), width), pad_id, dtype=torch.int64)
    attention_mask = torch.zeros((len(rows), width), dtype=torch.int64)
    completion_mask = torch.zeros((len(rows), width), dtype=torch.bool)
    for index, row in enumerate(rows):
        start, end = len(row.prompt_ids), len(row.prompt_ids) + len(row.completion_ids)
        if start == 0:
            raise DataError(
                "a prompt has no tokens and the model needs one to predict the first answer token from; "
                "use a tokenizer that adds a BOS token, or drop empty prompts"
            )
        input_ids[index, :end] = torch.tensor(row.prompt_ids + row.completion_ids)
        attention_mask[index, :end] = 1
        completion_mask[index, start:end] = True
    return TokenBatch(input_ids, attention_mask, completion_mask)


class LogpTensors(NamedTuple):
    """One tensor per row, each `[T of the row's completion]` nats, float32 (float64 for a float64 model)."""

    logps: tuple[Tensor, ...]
    collisions: tuple[Tensor, ...] | None  # log of the sum over the vocabulary of squared probabilities; no gradient
    entropies: tuple[Tensor, ...] | None = None  # of the distribution at each position; differentiable


def completion_token_logps(model: nn.Module, batch: TokenBatch, **asks: bool) -> LogpTensors:
    """Log-probs of every completion token at temperature 1, differentiable in the hidden states (not in the head).

    Args:
        model: a causal language model of transformers, or PEFT around one; its head must be frozen.
        batch: on the model's device.
        asks: for more, as `token_logps`.

    Returns:
        One tensor per row.

    Raises:
        ModelError: the head is not a frozen linear layer.
    """
    return token_logps(Head.of(model), padded_states(model, batch), **asks)


@torch.no_grad()
def completion_token_scores(model: nn.Module, batch: TokenBatch) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Log-probs and entropies of every completion position, without gradients, as `token_scores`."""
    return token_scores(Head.of(model), padded_states(model, batch))


@dataclass(frozen=True, slots=True)
class HiddenStates:
    """Hidden states from which completion tokens are predicted, row after row."""

    hidden: Tensor  # [N, H]
    targets: Tensor  # [N] int64: those tokens
    lengths: Sequence[int]  # [B] completion tokens of each row


def token_logps(
    head: Head, states: HiddenStates, *, with_collision: bool = False, with_entropy: bool = False
) -> LogpTensors:
    """Log-probs of every completion token, as `completion_token_logps`.

    Args:
        head: of the model.
        states: of the rows.
        with_collision: also give, at every position, the log-probability that two draws from the distribution there
            are the same token, which is the log of what a sampled token's probability is on average.
        with_entropy: also give the entropy of the distribution at every position, differentiable as the log-probs are.

    Raises:
        ModelError: the head is not frozen.
    """
    if head.weight.requires_grad and torch.is_grad_enabled():
        raise ModelError("the language-model head requires gradients, which are not computed; freeze it (LoRA only)")
    found = _ChunkedLogps.apply(states.hidden, states.targets, head, with_collision, with_entropy)
    logps, collisions, entropies = found
    lengths = list(states.lengths)
    return LogpTensors(
        logps=logps.split(lengths),
        collisions=collisions.split(lengths) if with_collision else None,
        entropies=entropies.split(lengths) if with_entropy else None,
    )


@torch.no_grad()
def token_scores(head: Head, states: HiddenStates) -> tuple[tuple[Tensor, ...], tuple[Tensor, ...]]:
    """Log-probs and entropies of every completion position, without gradients.

    Returns:
        `(token_logps, token_entropies)`, each `B` tensors as in `completion_token_logps`; nats. The entropy is that
        of the distribution from which the token at this position was drawn, at temperature 1.
    """
    logps, entropies = [], []
    for part, target in head.chunks(states.hidden, states.targets):
        logits, _ = head.logits(part)
        norm = logits.logsumexp(dim=-1)
        logps.append(logits.gather(-1, target[:, None])[:, 0] - norm)
        entropies.append(norm - ((logits - norm[:, None]).exp_() * logits).sum(dim=-1))
    lengths = list(states.lengths)
    return torch.cat(logps).split(lengths), torch.cat(entropies).split(lengths)


@dataclass(frozen=True, slots=True)
class Head:
    """What turns hidden states into logits: `cap * tanh(scale * linear(h) / cap)`, most models with scale 1, no cap."""

    weight: Tensor  # [V, H]; the product with it is taken in its dtype
    bias: Tensor | None  # [V]
    scale: float
    softcap: float | None

    @classmethod
    def of(cls, model: nn.Module, matrix: Matrix | None = None) -> Head:
        """Read a model's head.

        Args:
            model: a causal language model.
            matrix: weight and bias to compute with, from the linear layer; None = its own.

        Raises:
            ModelError: it is not a plain linear layer (LoRA on the head, a quantised head).
        """
        base = base_model(model)
        layer = base.get_output_embeddings()
        if not isinstance(layer, nn.Linear):
            raise ModelError(
                f"the head of {type(base).__name__} is {type(layer).__name__}; it must be a plain linear layer "
                f"without LoRA: train linear layers of the decoder only"
            )
        config = base.config.get_text_config()
        # Cohere multiplies by logit_scale, Granite divides by logits_scaling; `verify_head` finds any other way.
        scale = (getattr(config, "logit_scale", None) or 1.0) / (getattr(config, "logits_scaling", None) or 1.0)
        weight, bias = (layer.weight, layer.bias) if matrix is None else matrix(layer)
        return cls(weight=weight, bias=bias, scale=scale, softcap=getattr(config, "final_logit_softcapping", None))

    def logits(self, hidden: Tensor) -> tuple[Tensor, Tensor | None]:
        """`[C, H]` -> logits `[C, V]`, at least float32, and the slope of the cap (None without one)."""
        logits = linear(hidden.to(self.weight.dtype), self.weight, self.bias)
        logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
        if self.scale != 1.0:
            logits = logits * self.scale
        if self.softcap is None:
            return logits, None
        squashed = torch.tanh(logits / self.softcap)
        return self.softcap * squashed, 1.0 - squashed.square()

    def pull_back(self, slopes: Tensor, cap_slope: Tensor | None) -> Tensor:
        """Minus the gradient by hidden states `[C, H]`, from that by logits `[C, V]`, which is overwritten.

        Args:
            slopes: by logits.
            cap_slope: as `logits` gives it.
        """
        if cap_slope is not None:
            slopes *= cap_slope
        return (slopes.to(self.weight.dtype) @ self.weight).mul_(-self.scale)

    def chunks(self, hidden: Tensor, targets: Tensor) -> list[tuple[Tensor, Tensor]]:
        """Views of at most `HEAD_CHUNK_ELEMENTS / V` tokens, or `HEAD_CHUNK_TOKENS` if that is more."""
        size = max(HEAD_CHUNK_ELEMENTS // self.weight.shape[0], HEAD_CHUNK_TOKENS)
        return list(zip(hidden.split(size), targets.split(size), strict=True))


def base_model(model: nn.Module) -> Any:
    """The transformers model, PEFT's wrapper taken off (its LoRA layers stay inside)."""
    return model.get_base_model() if isinstance(model, PeftModel) else model


def final_hidden(model: nn.Module, **inputs: Tensor) -> Tensor:
    """Hidden states `[B, T, H]` after the final norm."""
    return base_model(model).get_decoder()(**inputs, use_cache=False).last_hidden_state


def padded_states(model: nn.Module, batch: TokenBatch) -> HiddenStates:
    """Run the decoder over padded rows."""
    inputs = {"input_ids": batch.input_ids}
    if not bool(batch.attention_mask[:, 0].all()):
        inputs |= {"attention_mask": batch.attention_mask, "position_ids": batch.position_ids}
    # With padding on the right only, causal attention never looks at it and default positions are right, so no mask
    # is passed: attention kernels are faster without one.
    hidden = final_hidden(model, **inputs)
    # The state at position t predicts the token at t + 1.
    wanted = batch.completion_mask[:, 1:]
    return HiddenStates(hidden[:, :-1][wanted], batch.input_ids[:, 1:][wanted], batch.lengths)


class _ChunkedLogps(torch.autograd.Function):
    """`log softmax(head(hidden))[target]` per token, and the entropy of that softmax where it is asked for, chunked.

    The head is frozen, so the only gradients are `d logp / d hidden = (onehot - softmax) W` and
    `d entropy / d hidden = -(p (log p + entropy)) W`, one `[H]` vector each per token whatever arrives from above. They
    are computed in the forward pass while the chunk's logits are at hand: as many matmuls as the plain computation,
    where recomputing the logits in the backward pass would take a third more.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, targets: Tensor, head: Head, with_collision: bool, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor]:
        found: dict[str, list[Tensor]] = {"logps": [], "collisions": [], "entropies": []}
        slopes: dict[str, list[Tensor]] = {"logps": [], "entropies": []}  # by hidden state
        with_slopes = ctx.needs_input_grad[0]
        for part, target in head.chunks(hidden, targets):
            logits, cap_slope = head.logits(part)
            table = logits.log_softmax(dim=-1)
            del logits  # at most two tensors of a chunk's size are alive at any time, besides the slope of a cap
            found["logps"].append(table.gather(-1, target[:, None])[:, 0])
            if with_entropy:
                probabilities = table.exp()
                table *= probabilities
                entropy = -table.sum(dim=-1)
                found["entropies"].append(entropy)
                if with_slopes:  # - d entropy / d logits = p log p + p entropy, in the same memory
                    table.addcmul_(probabilities, entropy[:, None])
                    slopes["entropies"].append(head.pull_back(table, cap_slope))
                table = probabilities
                del probabilities
            elif with_collision or with_slopes:
                table.exp_()
            if with_collision:
                found["collisions"].append(2.0 * torch.linalg.vector_norm(table, dim=-1).log())
            if with_slopes:
                # softmax - onehot, in the same memory
                table.scatter_add_(-1, target[:, None], table.new_full((len(target), 1), -1.0))
                slopes["logps"].append(head.pull_back(table, cap_slope))
            del table, cap_slope
        if with_slopes:
            ctx.save_for_backward(*(torch.cat(parts) for parts in slopes.values() if parts))
            ctx.dtype = hidden.dtype
        logps, collisions, entropies = (torch.cat(p) if p else hidden.new_empty(0) for p in found.values())
        ctx.mark_non_differentiable(collisions, *([] if with_entropy else [entropies]))
        return logps, collisions, entropies

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, upstream: Tensor, _: Tensor, of_entropies: Tensor) -> tuple[Tensor | None, ...]:
        slopes, *further = ctx.saved_tensors
        total = upstream[:, None] * slopes
        for more in further:
            total = total + of_entropies[:, None] * more
        return total.to(ctx.dtype), None, None, None, None
