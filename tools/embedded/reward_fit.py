"""How the embedded reward model is trained: a sentiment classifier on the policy's own first layers."""

from __future__ import annotations

import logging
import random
import time
from collections.abc import Iterator, Sequence

import torch
from tokenizers import Tokenizer
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import LlamaConfig, LlamaForCausalLM, LlamaForSequenceClassification

from tools.embedded.corpus import Review, random_snippet
from tools.embedded.training import PAD_ID, ResidualDropout, cosine

logger = logging.getLogger(__name__)

SNIPPET_TOKENS = (24, 120)


def reward_from_policy(policy: LlamaForCausalLM, *, layers: int) -> LlamaForSequenceClassification:
    """A classifier with one logit on top of the policy's embedding and first `layers` blocks."""
    shared = {name: value for name, value in policy.config.to_dict().items() if name not in ("id2label", "label2id")}
    reward = LlamaForSequenceClassification(LlamaConfig(**{**shared, "num_hidden_layers": layers, "num_labels": 1}))
    known = reward.state_dict()
    reward.load_state_dict({n: v for n, v in policy.state_dict().items() if n in known}, strict=False)
    nn.init.zeros_(reward.score.weight)
    return reward


def pad_right(rows: Sequence[Sequence[int]]) -> tuple[Tensor, Tensor]:
    """`[B, T]` token ids padded on the right, and their attention mask."""
    width = max(len(row) for row in rows)
    ids = torch.tensor([[*row, *[PAD_ID] * (width - len(row))] for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows])
    return ids, mask


def snippet_batches(
    reviews: Sequence[Review], tokenizer: Tokenizer, *, rows: int, seed: int
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Yield ids, mask and labels of `rows` snippets for ever, as many positive as negative ones.

    The rows of a batch are cut to one common random length, so that there is no padding to compute.
    """
    rng = random.Random(seed)
    sides = [[r for r in reviews if r.positive is wanted] for wanted in (True, False)]
    while True:
        length = rng.randint(*SNIPPET_TOKENS)
        chosen = [rng.choice(sides[i % 2]) for i in range(rows)]
        texts = [random_snippet(review, rng, words=(length, length)) for review in chosen]
        ids, mask = pad_right([encoding.ids[: length + 1] for encoding in tokenizer.encode_batch(texts)])
        yield ids, mask, torch.tensor([float(review.positive) for review in chosen])


def train_reward(
    policy: LlamaForCausalLM,
    reviews: Sequence[Review],
    tokenizer: Tokenizer,
    *,
    minutes: float,
    steps: int,
    seed: int,
    layers: int = 2,
    lr: float = 3e-4,
    rows: int = 64,
    dropout: float = 0.2,
    smoothing: float = 0.1,
) -> tuple[LlamaForSequenceClassification, dict[str, float]]:
    """Fit the sentiment of whole reviews to snippets of them, until `steps` or `minutes` are up.

    A snippet inherits its review's label, which is often wrong for it: smoothed labels and dropout keep the logit
    from following single snippets, so that it changes gradually with the words.

    Returns:
        The model in float32, and its figures: `steps`, `snippets`, `minutes`, `train_loss`.
    """
    torch.manual_seed(seed)
    reward = reward_from_policy(policy, layers=layers).train()
    residual = ResidualDropout(reward)
    residual.rate = dropout
    optimiser = torch.optim.AdamW(reward.parameters(), lr=lr, weight_decay=0.1, betas=(0.9, 0.98), fused=True)
    batches = snippet_batches(reviews, tokenizer, rows=rows, seed=seed)
    began, step, progress, running = time.monotonic(), 0, 0.0, 0.69
    while progress < 1:
        elapsed = time.monotonic() - began
        progress = min(1.0, max((step + 1) / steps, elapsed / (60 * minutes)))
        for group in optimiser.param_groups:
            group["lr"] = lr * cosine(progress)
        ids, mask, labels = next(batches)
        with torch.autocast("cpu", torch.bfloat16):
            logits = reward(input_ids=ids, attention_mask=mask).logits[:, 0].float()
        loss = F.binary_cross_entropy_with_logits(logits, labels * (1 - smoothing) + smoothing / 2)
        optimiser.zero_grad(set_to_none=True)
        loss.backward()
        nn.utils.clip_grad_norm_(reward.parameters(), 1.0)
        optimiser.step()
        step += 1
        running += 0.02 * (loss.item() - running)
        if step % 50 == 0:
            logger.info("step %d  %.0f s  loss %.3f  progress %.3f", step, elapsed, running, progress)
    residual.remove()
    minutes_spent = (time.monotonic() - began) / 60
    figures = {"steps": step, "snippets": step * rows, "minutes": minutes_spent, "train_loss": running}
    return reward.eval(), figures


@torch.no_grad()
def reward_scores(model: LlamaForSequenceClassification, tokenizer: Tokenizer, texts: Sequence[str]) -> list[float]:
    """The raw logit of each text, in float32."""
    scores: list[float] = []
    for at in range(0, len(texts), 64):
        ids, mask = pad_right([encoding.ids for encoding in tokenizer.encode_batch(list(texts[at : at + 64]))])
        scores += model(input_ids=ids, attention_mask=mask).logits[:, 0].float().tolist()
    return scores
