"""How the embedded policy is trained. Only `build` imports this."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from tools.embedded.corpus import Review, openings

logger = logging.getLogger(__name__)

PAD, BOS, EOS = "<pad>", "<bos>", "<eos>"
# The trainer numbers the special tokens first, in the order they are given in.
PAD_ID, BOS_ID, EOS_ID = 0, 1, 2
VOCABULARY = 4096
MAX_POSITIONS = 512
IGNORED = -100


def train_tokenizer(texts: Sequence[str]) -> Tokenizer:
    """Fit a byte-level BPE whose post-processor prepends `<bos>`: callers must not add a second one."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=[PAD, BOS, EOS],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{BOS} $A",
        pair=f"{BOS} $A {BOS} $B:1",
        special_tokens=[(BOS, BOS_ID)],
    )
    return tokenizer


def save_tokenizer(tokenizer: Tokenizer, folder: Path, *, padding_side: str) -> None:
    """Write the tokenizer's files beside a model, so that the folder stands alone."""
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        pad_token=PAD,
        bos_token=BOS,
        eos_token=EOS,
        padding_side=padding_side,
        model_max_length=MAX_POSITIONS,
        clean_up_tokenization_spaces=False,
    ).save_pretrained(folder)


def new_policy(tokenizer: Tokenizer, *, layers: int = 4) -> LlamaForCausalLM:
    """A randomly initialised Llama of about 4 M parameters."""
    return LlamaForCausalLM(
        LlamaConfig(
            vocab_size=tokenizer.get_vocab_size(),
            hidden_size=256,
            intermediate_size=704,
            num_hidden_layers=layers,
            num_attention_heads=4,
            num_key_value_heads=2,
            head_dim=64,
            max_position_embeddings=MAX_POSITIONS,
            tie_word_embeddings=True,
            pad_token_id=PAD_ID,
            bos_token_id=BOS_ID,
            eos_token_id=EOS_ID,
        )
    )


def language_batches(
    reviews: Sequence[Review], tokenizer: Tokenizer, *, tokens: int, lengths: Sequence[int], seed: int
) -> Iterator[Tensor]:
    """Yield `[tokens / length, length]` rows for ever; the row length cycles through `lengths`.

    A row is `<bos>` and a review from one of its sentences on. Where the review ends, `<eos>` follows and the next
    document begins, so endings are learnt; where the row ends first, the document stays unfinished.
    """
    starts = openings(reviews, seed=seed)

    def row(length: int) -> list[int]:
        ids: list[int] = []
        while len(ids) < length:
            review, at = next(starts)
            # A token has about 4 characters here, so that 8 for each fill the row.
            text = reviews[review].text[at : at + 8 * length]
            ids += [BOS_ID, *tokenizer.encode(text, add_special_tokens=False).ids]
            if at + 8 * length >= len(reviews[review].text):
                ids.append(EOS_ID)
        return ids[:length]

    while True:
        for length in lengths:
            yield torch.tensor([row(length) for _ in range(tokens // length)])


def next_token_loss(model: LlamaForCausalLM, ids: Tensor) -> Tensor:
    """Mean cross entropy in nats; a `<bos>` is never a target, because nothing should ever generate one."""
    hidden = model.model(input_ids=ids).last_hidden_state[:, :-1]
    targets = ids[:, 1:].masked_fill(ids[:, 1:] == BOS_ID, IGNORED)
    logits = model.lm_head(hidden).float()
    return F.cross_entropy(logits.flatten(0, 1), targets.flatten(), ignore_index=IGNORED)


class ResidualDropout:
    """Drops channels of what each block adds to the residual stream; Llama has no dropout there of its own.

    One mask serves a whole row: on a CPU, drawing a mask for every token would cost a tenth of the step.
    """

    def __init__(self, model: nn.Module) -> None:
        self.rate = 0.0
        blocks = ("o_proj", "down_proj", "embed_tokens")
        modules = [module for name, module in model.named_modules() if name.endswith(blocks)]
        self._handles = [module.register_forward_hook(self._drop) for module in modules]

    def _drop(self, module: nn.Module, _: object, out: Tensor) -> Tensor:
        if not module.training or self.rate == 0.0:
            return out
        return out * F.dropout(torch.ones(out.shape[0], 1, out.shape[-1], dtype=out.dtype), self.rate)

    def remove(self) -> None:
        """Take the hooks off the model again."""
        for handle in self._handles:
            handle.remove()


def optimisers_for(model: LlamaForCausalLM, *, matrix_lr: float, lr: float) -> list[torch.optim.Optimizer]:
    """Muon for the blocks' matrices, AdamW for the (tied) embedding and the norms.

    AdamW alone needs about twice the tokens here, and the minutes are what is short.
    """
    matrices = [p for name, p in model.named_parameters() if p.ndim == 2 and "embed_tokens" not in name]
    others = [p for name, p in model.named_parameters() if p.ndim != 2 or "embed_tokens" in name]
    return [
        torch.optim.Muon(matrices, lr=matrix_lr, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"),
        torch.optim.AdamW(others, lr=lr, weight_decay=0.0, betas=(0.9, 0.98), fused=True),
    ]


def cosine(progress: float, *, warmup: float = 0.03, floor: float = 0.02) -> float:
    """The learning rate's factor at `progress` in [0, 1]: linear warm-up, then a cosine to `floor`."""
    if progress < warmup:
        return max(progress / warmup, 0.01)
    return floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * min(1.0, (progress - warmup) / (1 - warmup))))


@torch.no_grad()
def heldout_nats(
    model: LlamaForCausalLM,
    reviews: Sequence[Review],
    tokenizer: Tokenizer,
    *,
    window: int = 256,
    autocast: bool = True,
) -> float:
    """Total nats of `reviews`, `<eos>` included, each token scored once with at least half a window behind it.

    Every window starts with `<bos>`, as every row of the training did. The first window of a review is scored
    whole, later ones in their second half.
    """
    half = window // 2
    rows: list[tuple[list[int], int]] = []
    for review in reviews:
        ids = [*tokenizer.encode(review.text, add_special_tokens=False).ids, EOS_ID]
        rows.append(([BOS_ID, *ids[: window - 1]], 1))
        for begin in range(window - 1, len(ids), half):
            context = ids[begin - half + 1 : begin]
            rows.append(([BOS_ID, *context, *ids[begin : begin + half]], 1 + len(context)))
    rows.sort(key=lambda row: len(row[0]))
    was_training = model.training
    model.eval()
    total = 0.0
    for at in range(0, len(rows), 32):
        chunk = rows[at : at + 32]
        width = max(len(ids) for ids, _ in chunk)
        batch = torch.tensor([[*ids, *[PAD_ID] * (width - len(ids))] for ids, _ in chunk])
        targets = torch.full_like(batch, IGNORED)
        for i, (ids, first) in enumerate(chunk):
            targets[i, first : len(ids)] = torch.tensor(ids[first:])
        with torch.autocast("cpu", torch.bfloat16, enabled=autocast):
            logits = model(input_ids=batch).logits[:, :-1].float()
        total += F.cross_entropy(
            logits.flatten(0, 1), targets[:, 1:].flatten(), ignore_index=IGNORED, reduction="sum"
        ).item()
    model.train(was_training)
    return total


def train_policy(
    train: Sequence[Review],
    heldout: Sequence[Review],
    tokenizer: Tokenizer,
    *,
    minutes: float,
    steps: int,
    seed: int,
    batch_tokens: int = 4096,
    evaluate_every: int = 250,
    checkpoint: Path | None = None,
    resume_at: int = 0,
) -> tuple[LlamaForCausalLM, dict[str, float]]:
    """Train until `steps` or `minutes` are up and return the weights with the lowest held-out loss.

    The learning rate follows whichever of the two is further on, so it always comes down to its end.

    Args:
        train: reviews to learn from.
        heldout: reviews that only choose the checkpoint and measure it.
        minutes: bound on the wall clock, of this call alone.
        steps: number of updates, those before `resume_at` included.
        checkpoint: a folder that receives the best weights so far.
        resume_at: continue from the weights in `checkpoint`, which had this many updates; the optimisers start anew.

    Returns:
        The model in float32 and its figures: `steps`, `tokens`, `minutes`, `heldout_nats`.
    """
    torch.manual_seed(seed + resume_at)
    model = new_policy(tokenizer)
    if resume_at and checkpoint is not None:
        model = LlamaForCausalLM.from_pretrained(checkpoint, dtype=torch.float32)
    dropout = ResidualDropout(model)
    optimisers = optimisers_for(model, matrix_lr=5e-3, lr=3e-3)
    groups = [(group, group["lr"]) for optimiser in optimisers for group in optimiser.param_groups]
    lengths = (256, 256, 256, 512)
    batches = language_batches(train, tokenizer, tokens=batch_tokens, lengths=lengths, seed=seed + resume_at)
    best = _Best(checkpoint)
    began, step, progress = time.monotonic(), resume_at, 0.0
    model.train()
    while progress < 1:
        elapsed = time.monotonic() - began
        by_clock = resume_at / steps + (1 - resume_at / steps) * elapsed / (60 * minutes)
        progress = min(1.0, max((step + 1) / steps, by_clock))
        # Under-fitting comes first and over-fitting later: dropout only slows the first passes down.
        dropout.rate = 0.0 if progress < 0.5 else 0.1
        # New optimisers know nothing of the gradients' size yet, so their first steps are short ones.
        warming = min(1.0, (step - resume_at + 1) / 30)
        for group, lr in groups:
            group["lr"] = lr * cosine(progress) * warming
        loss = _update(model, optimisers, next(batches))
        step += 1
        if step % 50 == 0:
            logger.info("step %d  %.0f s  loss %.3f  progress %.3f", step, elapsed, loss, progress)
        if step % evaluate_every == 0 or progress >= 1:
            nats = heldout_nats(model, heldout, tokenizer)
            logger.info("step %d  held-out nats %.0f", step, nats)
            best.offer(model, nats)
    model.load_state_dict(best.state)
    dropout.remove()
    minutes_spent = (time.monotonic() - began) / 60
    figures = {"steps": step, "tokens": step * batch_tokens, "minutes": minutes_spent, "heldout_nats": best.nats}
    return model.eval(), figures


class _Best:
    """The weights with the lowest held-out loss so far, in memory and, if wanted, in a folder."""

    def __init__(self, folder: Path | None) -> None:
        self.nats = math.inf
        self.state: dict[str, Tensor] = {}
        self._folder = folder

    def offer(self, model: LlamaForCausalLM, nats: float) -> None:
        """Keep the model's weights if they are better."""
        if nats >= self.nats:
            return
        self.nats, self.state = nats, {name: value.clone() for name, value in model.state_dict().items()}
        if self._folder is not None:
            model.save_pretrained(self._folder)


def _update(model: LlamaForCausalLM, optimisers: Sequence[torch.optim.Optimizer], ids: Tensor) -> float:
    """One step of every optimiser on one batch; returns the loss in nats per token."""
    with torch.autocast("cpu", torch.bfloat16):
        loss = next_token_loss(model, ids)
    for optimiser in optimisers:
        optimiser.zero_grad(set_to_none=True)
    loss.backward()
    nn.utils.clip_grad_norm_(model.parameters(), 1.0)
    for optimiser in optimisers:
        optimiser.step()
    return loss.item()
