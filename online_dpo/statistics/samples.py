"""Numbers about samples: KL, entropy, length, diversity, scores. Completion tokens only (DESIGN invariant 8)."""

from __future__ import annotations

import math
import random
from collections import defaultdict
from collections.abc import Mapping, Sequence
from itertools import chain, count

from online_dpo.config.judges.view import ViewSection
from online_dpo.pairing.answers import num_answer_tokens, read_answer
from online_dpo.types import Completion, Demonstration, Items, Labelled, Pair, TokenLogpRows, Verdict

NUM_BLEU_TEXTS = 32
"""Texts that self-BLEU compares, each with all others: 0.1 s for answers of 50 words, and four times that for twice as
many texts."""


def sampler_logps(completions: Sequence[Completion]) -> list[Sequence[float]]:
    """Each completion's log-probs as its sampler gave them.

    Raises:
        ValueError: a completion is from a data set; nothing sampled it.
    """
    found: list[Sequence[float]] = []
    for completion in completions:
        if completion.sampler_logps is None:
            raise ValueError(f"completion {completion.prompt_id}/{completion.sample_index} was not sampled in this run")
        found.append(completion.sampler_logps)
    return found


def kl_per_completion(policy: Sequence[float], other: Sequence[float]) -> tuple[float, float]:
    """Two estimates of KL(policy || other) from one sampled completion, nats per completion.

    Args:
        policy: `[T]` log-probs of the sampled tokens under the policy that sampled them, at temperature 1.
        other: `[T]` the same tokens under the other policy.

    Returns:
        `(sum of exp(-d) - 1 + d, sum of d)` with `d = policy - other` per token: the first has low variance and is
        never negative (k3 and k1 of Schulman, "Approximating KL divergence", 2020).
    """
    differences = [p - q for p, q in zip(policy, other, strict=True)]
    return sum(math.expm1(-d) + d for d in differences), sum(differences)


def mean_token_logps(members: Sequence[TokenLogpRows]) -> list[list[float]]:
    """The mean over several policies of each token's log-prob, `[T]` per row, nats."""
    return [[sum(token) / len(token) for token in zip(*rows, strict=True)] for rows in zip(*members, strict=True)]


def mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None


def distinct(texts: Sequence[str], orders: Sequence[int]) -> list[float | None]:
    """For each order n, the share of different n-grams of words among all n-grams of all texts (arXiv:1510.03055)."""
    import numpy as np

    split = [text.split() for text in texts]
    numbers: dict[str, int] = defaultdict(count().__next__)  # of each word, by first sight
    words = np.fromiter(map(numbers.__getitem__, chain.from_iterable(split)), np.int64)
    lengths = np.array([len(text) for text in split], np.int64)
    left = np.repeat(np.cumsum(lengths), lengths) - np.arange(len(words))  # words from each one to the end of its text
    shares = []
    for order in orders:
        grams = words[left >= order]
        for place in range(1, order):
            if len(grams) and int(grams.max() + 1) * len(numbers) > np.iinfo(np.int64).max:
                grams = np.unique(grams, return_inverse=True)[1]
            grams = grams * len(numbers) + words[np.flatnonzero(left >= order) + place]
        grams.sort()  # np.unique of integers hashes in NumPy 2.3, and takes a hundred times as long
        shares.append(int(1 + np.count_nonzero(np.diff(grams))) / len(grams) if len(grams) else None)
    return shares


def self_bleu(texts: Sequence[str]) -> float | None:
    """Mean BLEU of a text against all others, 0 to 100; higher = less diverse (arXiv:1802.01886).

    Sentence BLEU-4 as sacrebleu computes it (its own tokeniser and smoothing). Of more than `NUM_BLEU_TEXTS` texts a
    subset is taken, by position and always the same, so that two sets of samples for the same prompts compare.

    Returns:
        None for fewer than two texts.
    """
    if len(texts) < 2:
        return None
    from sacrebleu.metrics.bleu import BLEU  # not before it is needed: `status` needs none of it

    chosen = random.Random(0).sample(range(len(texts)), min(NUM_BLEU_TEXTS, len(texts)))
    some = [texts[index] for index in sorted(chosen)]
    bleu = BLEU(effective_order=True)  # sentences may be shorter than four words
    return mean([bleu.sentence_score(text, some[:i] + some[i + 1 :]).score for i, text in enumerate(some)])


def describe_completions(
    completions: Sequence[Completion], view: ViewSection | None = None
) -> dict[str, float | int | None]:
    """Length, truncation and diversity of a set of samples; what looks at words looks at those of the answers.

    Args:
        completions: all of them sampled.
        view: what of a completion is the answer; with one there are figures about answers and thoughts besides.
    """
    answers = [read_answer(completion.text, view) for completion in completions]
    num, texts = len(completions), [answer.text for answer in answers]
    of_answers = {
        "answer_length_mean": mean([num_answer_tokens(c) for c in completions]),  # tokens, as length_mean
        "unclosed_rate": mean([float(not answer.is_closed) for answer in answers]),
    }
    return {
        **({} if view is None else of_answers),
        "num_completions": num,
        "length_mean": mean([len(c.token_ids) for c in completions]),  # tokens, a sampled EOS included
        "eos_rate": mean([float(c.finish_reason == "stop") for c in completions]),
        **dict(zip(("distinct_1", "distinct_2", "distinct_3"), distinct(texts, (1, 2, 3)), strict=True)),
        "self_bleu": self_bleu(texts),
        # The share that repeats another sample of the set, whatever the prompt.
        "duplicate_rate": 1.0 - len({c.token_ids for c in completions}) / num if num else None,
        "sampler_logp_mean": mean([logp for logps in sampler_logps(completions) for logp in logps]),
    }


def scores_by_prompt(verdicts: Sequence[Verdict]) -> dict[str, float]:
    """Prompt id -> mean score of its completions; prompts whose verdicts are no scores are left out."""
    found: dict[str, list[float]] = {}
    for verdict in verdicts:
        if verdict.score is not None:
            found.setdefault(verdict.prompt_id, []).append(verdict.score)
    return {prompt_id: sum(values) / len(values) for prompt_id, values in found.items()}


def paired_bootstrap(
    before: Mapping[str, float],
    after: Mapping[str, float],
    *,
    seed: int,
    num_resamples: int = 2000,
    coverage: float = 0.95,
) -> tuple[float, float, float] | None:
    """Mean gain over the prompts that both sides scored, and its percentile interval, of 95 % unless told.

    The unit that is resampled is the prompt (Efron & Tibshirani 1993, chapter 13).

    Returns:
        `(gain, low, high)`, or None without a common prompt.
    """
    import numpy as np

    common = sorted(before.keys() & after.keys())
    if not common:
        return None
    gains = np.array([after[key] - before[key] for key in common])
    draws = np.random.default_rng(seed).integers(0, len(gains), size=(num_resamples, len(gains)))
    tail = (1.0 - coverage) / 2.0
    low, high = np.quantile(gains[draws].mean(axis=1), [tail, 1.0 - tail])
    return float(gains.mean()), float(low), float(high)


def win_rate(
    before: Mapping[str, float], after: Mapping[str, float], *, seed: int
) -> tuple[float, float, float] | None:
    """Share of the prompts that both sides scored on which `after` scores higher, equal scores being half a win.

    Returns:
        `(share, low, high)` with the 95 % interval of the paired bootstrap, or None without a common prompt.
    """
    common = before.keys() & after.keys()
    wins = {key: float(after[key] > before[key]) + 0.5 * float(after[key] == before[key]) for key in common}
    return paired_bootstrap(dict.fromkeys(common, 0.0), wins, seed=seed)


def describe_items(items: Items) -> dict[str, float | int | None]:
    """What the learner is about to train on; of labelled answers, chosen are the desirable ones."""
    pairs = [item for item in items if isinstance(item, Pair)]
    labelled = [item for item in items if isinstance(item, Labelled)]
    shown = [item for item in items if isinstance(item, Demonstration)]
    if shown:
        lengths = [len(item.completion.token_ids) for item in shown]
        return {"num_demonstrations": len(shown), "demonstration_length_mean": mean(lengths)}
    chosen = [pair.chosen for pair in pairs] + [item.completion for item in labelled if item.desirable]
    rejected = [pair.rejected for pair in pairs] + [item.completion for item in labelled if not item.desirable]
    counts = {"num_pairs": len(pairs)} if pairs else {"num_desirable": len(chosen), "num_undesirable": len(rejected)}
    return {
        **counts,
        "margin_mean": mean([pair.margin for pair in pairs if pair.margin is not None]),
        "chosen_length_mean": mean([len(answer.token_ids) for answer in chosen]),
        "rejected_length_mean": mean([len(answer.token_ids) for answer in rejected]),
    }
