"""The figures of the model card, taken from the saved files as users load them."""

from __future__ import annotations

import json
import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer
from transformers import LlamaForCausalLM, LlamaForSequenceClassification

from online_dpo.embedded import resolve
from online_dpo.embedded.gold import GoldJudge
from tools.embedded.corpus import Review, token_snippets
from tools.embedded.ngram import KneserNey
from tools.embedded.reward_fit import reward_scores
from tools.embedded.training import BOS_ID, EOS_ID, MAX_POSITIONS, PAD_ID, VOCABULARY, heldout_nats

Figures = dict[str, float]

SNIPPET_TOKENS = 80
SAMPLE_TOKENS = 48


def bits_per_byte(nats: float, reviews: Sequence[Review]) -> float:
    """Total nats of the reviews as bits for each byte of their UTF-8 text."""
    return nats / math.log(2) / sum(len(review.text.encode()) for review in reviews)


def measure_language(train: Sequence[Review], heldout: Sequence[Review], out: Path) -> Figures:
    """Held-out bits per byte of the policy and of a 5-gram model over the same tokens, fitted to the same reviews.

    Both predict every token and the `<eos>` of each review, and neither sees another review.
    """
    tokenizer = Tokenizer.from_file(str(out / "policy" / "tokenizer.json"))
    policy = LlamaForCausalLM.from_pretrained(out / "policy", dtype=torch.float32).eval()

    def encoded(reviews: Sequence[Review]) -> list[list[int]]:
        return [[*tokenizer.encode(review.text, add_special_tokens=False).ids, EOS_ID] for review in reviews]

    baseline = KneserNey(encoded(train), order=5, vocabulary=VOCABULARY, bos=BOS_ID)
    documents = encoded(heldout)
    ngram = -sum(float(baseline.log_probs(ids).sum()) for ids in documents)
    nats = heldout_nats(policy, heldout, tokenizer, window=MAX_POSITIONS, autocast=False)
    num_tokens = sum(map(len, documents))
    return {
        "parameters": sum(p.numel() for p in policy.parameters()),
        "heldout_tokens": num_tokens,
        "heldout_bytes": sum(len(review.text.encode()) for review in heldout),
        "heldout_nats_per_token": nats / num_tokens,
        "bits_per_byte": bits_per_byte(nats, heldout),
        "bits_per_byte_5gram": bits_per_byte(ngram, heldout),
        "train_tokens": sum(map(len, encoded(train))),
    }


def accuracy(scores: Sequence[float], positive: Sequence[bool]) -> Figures:
    """How many scores have the label's sign."""
    right = sum((score > 0) == label for score, label in zip(scores, positive, strict=True))
    return {"right": right, "of": len(scores)}


def measure_judges(heldout: Sequence[Review], out: Path) -> dict[str, Figures]:
    """Accuracy of both judges on the same held-out snippets, and of the gold judge on whole held-out reviews."""
    tokenizer = Tokenizer.from_file(str(out / "reward" / "tokenizer.json"))
    reward = LlamaForSequenceClassification.from_pretrained(out / "reward", dtype=torch.float32).eval()
    gold = GoldJudge(out / "gold")
    texts, labels = token_snippets(heldout, tokenizer, tokens=SNIPPET_TOKENS, per_review=10, seed=0)
    whole = [review.text for review in heldout]
    return {
        "reward_snippets": accuracy(reward_scores(reward, tokenizer, texts), labels),
        "gold_snippets": accuracy(gold.score_batch([""] * len(texts), texts), labels),
        "gold_reviews": accuracy(gold.score_batch([""] * len(whole), whole), [r.positive for r in heldout]),
    }


def read_openings(name: str) -> list[str]:
    """The prompts of `openings/train` or `openings/heldout`."""
    lines = resolve(name).read_text(encoding="utf-8").splitlines()
    return [json.loads(line)["prompt"] for line in lines]


@torch.no_grad()
def sample(
    policy: LlamaForCausalLM, tokenizer: Tokenizer, prompts: Sequence[str], *, tokens: int, seed: int
) -> list[str]:
    """One completion of each prompt at temperature 1, nothing cut off the distribution."""
    torch.manual_seed(seed)
    completions: list[str] = []
    for at in range(0, len(prompts), 64):
        rows = [encoding.ids for encoding in tokenizer.encode_batch(list(prompts[at : at + 64]))]
        width = max(map(len, rows))
        ids = torch.tensor([[*[PAD_ID] * (width - len(row)), *row] for row in rows])
        mask = torch.tensor([[0] * (width - len(row)) + [1] * len(row) for row in rows])
        new = policy.generate(  # type: ignore[misc]  # transformers types `self` as a protocol
            input_ids=ids,
            attention_mask=mask,
            do_sample=True,
            temperature=1.0,
            top_k=0,
            top_p=1.0,
            max_new_tokens=tokens,
        )
        completions += tokenizer.decode_batch(new[:, width:].tolist(), skip_special_tokens=True)
    return completions


def measure_agreement(out: Path, *, count: int = 256, seed: int = 0) -> Figures:
    """Do the two judges agree on what the policy writes? Correlation, means and deviations of their scores.

    The reward model reads the opening and its completion, the gold judge the completion alone.
    """
    tokenizer = Tokenizer.from_file(str(out / "policy" / "tokenizer.json"))
    policy = LlamaForCausalLM.from_pretrained(out / "policy", dtype=torch.float32).eval()
    reward = LlamaForSequenceClassification.from_pretrained(out / "reward", dtype=torch.float32).eval()
    prompts = read_openings("openings/train")[:count]
    completions = sample(policy, tokenizer, prompts, tokens=SAMPLE_TOKENS, seed=seed)
    texts = [prompt + completion for prompt, completion in zip(prompts, completions, strict=True)]
    rewards = np.array(reward_scores(reward, tokenizer, texts))
    golds = np.array(GoldJudge(out / "gold").score_batch(prompts, completions))
    return {
        "samples": len(prompts),
        "correlation": float(np.corrcoef(rewards, golds)[0, 1]),
        "reward_mean": float(rewards.mean()),
        "reward_std": float(rewards.std()),
        "gold_mean": float(golds.mean()),
        "gold_std": float(golds.std()),
    }


def unselected_samples(out: Path, *, count: int = 10, seed: int = 0) -> list[dict[str, str]]:
    """Completions of evenly spaced held-out openings, as they came."""
    tokenizer = Tokenizer.from_file(str(out / "policy" / "tokenizer.json"))
    policy = LlamaForCausalLM.from_pretrained(out / "policy", dtype=torch.float32).eval()
    openings = read_openings("openings/heldout")
    prompts = openings[:: len(openings) // count][:count]
    completions = sample(policy, tokenizer, prompts, tokens=SAMPLE_TOKENS, seed=seed)
    return [{"prompt": p, "completion": c} for p, c in zip(prompts, completions, strict=True)]
