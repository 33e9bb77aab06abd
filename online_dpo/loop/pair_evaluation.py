"""Held-out pairs: does the policy prefer what people preferred, and by how much more than the initial policy?

Held-out demonstrations: how likely are they to it?
"""

from __future__ import annotations

import math
from collections.abc import Generator, Mapping, Sequence
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.data.preferences import PairDraw
from online_dpo.learner.items import kind_of
from online_dpo.loop.stages import Event, Stages
from online_dpo.statistics.samples import mean, paired_bootstrap
from online_dpo.store.run_store import RunStore
from online_dpo.types import Demonstration, Pair, Row, derive_seed

INITIAL, UPDATED = "evaluation-pairs-initial/", "evaluation-pairs/"
"""Prefixes of the commits, in the first round's folder and in each round's."""


def evaluate_pairs(
    config: RunConfig,
    stages: Stages,
    store: RunStore,
    round_index: int,
    policy_version: int,
    *,
    sets: Mapping[str, PairDraw],
) -> Generator[Event, None, dict[str, Any]]:
    """Score the answers of every held-out pair or demonstration under the learner's policy; nothing is sampled.

    Args:
        config: of the run.
        stages: whose learner holds the policy.
        store: of the run.
        round_index: in whose folder the figures are committed.
        policy_version: of the learner's policy; 0 = the initial policy.
        sets: name -> held-out pairs.

    Returns (as the generator's value):
        set name -> figures, committed with every pair's log-probs as `<prefix><set>/summary`.
    """
    found: dict[str, Any] = {}
    committed = store.round(round_index)
    for name, held_out in sets.items():
        commit = f"{UPDATED if policy_version else INITIAL}{name}/summary"
        if not committed.has(commit):
            pairs = [item for item in held_out.items if isinstance(item, Pair)]
            shown = [item for item in held_out.items if isinstance(item, Demonstration)]
            rows = [Row.of(item.prompt, answer) for item in held_out.items for answer in kind_of(item).answers(item)]
            [scores] = stages.learner.score(rows, ["policy"])
            seed = derive_seed(config.run.seed, "bootstrap-pairs", name, policy_version)
            before = store.round(0).get_json(f"{INITIAL}{name}/summary") if policy_version else None
            if shown:
                now = {"trained_logps": [_trained(*both) for both in zip(shown, scores.token_logps, strict=True)]}
                found_now = describe_demonstrations(shown, now, before, seed=seed)
            else:
                logps = [sum(row) for row in scores.token_logps]
                now = {"chosen_logps": logps[::2], "rejected_logps": logps[1::2]}
                found_now = describe_preferences(pairs, now, before, seed=seed)
            committed.put_json(commit, {**_counts(held_out), **found_now, **now})
        found[name] = without_logps(committed.get_json(commit))
        data = {"set": name, "policy_version": policy_version, **found[name]}
        yield Event(kind="evaluated_pairs", round_index=round_index, data=data)
    return found


def describe_preferences(
    pairs: Sequence[Pair],
    now: Mapping[str, Sequence[float]],
    before: Mapping[str, Sequence[float]] | None,
    *,
    seed: int,
) -> dict[str, float | int | None]:
    """How often and how far the preferred answer is ahead.

    Args:
        pairs: `P` held-out pairs.
        now: `chosen_logps` and `rejected_logps`, `[P]` nats, summed over tokens, under the policy.
        before: the same under the initial policy; None when the policy is the initial one.
        seed: of the bootstrap over pairs.

    Returns:
        `accuracy`: share of pairs whose preferred answer is the more likely one; `accuracy_per_token`: the same of
        log-probs per token, which does not favour short answers; `shorter_accuracy`: share whose preferred answer is
        the shorter one (equally long ones count half), which is what knowing the lengths alone scores.

        Where `before` is given, also how much the first two rose since the initial policy (`..._gain`);
        `reward_accuracy`: share of pairs whose preferred answer has the larger log-ratio to the initial policy
        (arXiv:2305.18290: the implicit reward is beta times it); and `log_ratio_margin`: by how many nats, on average.
        `_low` and `_high` are paired-bootstrap 95 % intervals.
    """
    lengths = [(len(pair.chosen.token_ids), len(pair.rejected.token_ids)) for pair in pairs]
    right = _right(now, lengths)
    figures: dict[str, float | int | None] = {name: mean(list(values)) for name, values in right.items()}
    figures["shorter_accuracy"] = mean(
        [float(chosen < rejected) + 0.5 * (chosen == rejected) for chosen, rejected in lengths]
    )
    if before is None:
        return figures
    margins = [
        (c - c0) - (r - r0)
        for c, r, c0, r0 in zip(
            now["chosen_logps"],
            now["rejected_logps"],
            before["chosen_logps"],
            before["rejected_logps"],
            strict=True,
        )
    ]
    zeros = [0.0] * len(margins)
    was_right = _right(before, lengths)
    for name, (old, new) in {
        **{f"{name}_gain": (was_right[name], right[name]) for name in right},
        "reward_accuracy": (zeros, [float(margin > 0.0) for margin in margins]),
        "log_ratio_margin": (zeros, margins),
    }.items():
        interval = paired_bootstrap(_numbered(old), _numbered(new), seed=seed)
        assert interval is not None  # a set has at least one pair
        figures[name], figures[f"{name}_low"], figures[f"{name}_high"] = interval
    return figures


def describe_demonstrations(
    items: Sequence[Demonstration],
    now: Mapping[str, Sequence[float]],
    before: Mapping[str, Sequence[float]] | None,
    *,
    seed: int,
) -> dict[str, float | int | None]:
    """How likely held-out demonstrations are.

    Args:
        items: `N` demonstrations.
        now: `trained_logps`, `[N]` nats, summed over the trained tokens, under the policy.
        before: the same under the initial policy; None when the policy is the initial one.
        seed: of the bootstrap over demonstrations.

    Returns:
        `loss`: mean negative log-likelihood of a token, nats, every token the same; `perplexity`: its exponential;
        `num_tokens`. Where `before` is given, also `loss_change` since the initial policy, with `_low` and `_high` of
        a paired bootstrap over demonstrations, 95 %.
    """
    num_tokens = sum(item.num_trained for item in items)
    loss = -math.fsum(now["trained_logps"]) / num_tokens
    figures: dict[str, float | int | None] = {
        "loss": loss,
        "perplexity": math.exp(loss) if loss < 700.0 else None,  # beyond, it is no float
        "num_tokens": num_tokens,
    }
    if before is not None:
        scale = len(items) / num_tokens  # the mean over demonstrations is then the mean over tokens
        old, new = ([-scale * logp for logp in side["trained_logps"]] for side in (before, now))
        interval = paired_bootstrap(_numbered(old), _numbered(new), seed=seed)
        assert interval is not None  # a set has at least one demonstration
        figures["loss_change"], figures["loss_change_low"], figures["loss_change_high"] = interval
    return figures


def _trained(item: Demonstration, logps: Sequence[float]) -> float:
    return math.fsum(logp for logp, flag in zip(logps, item.trained, strict=True) if flag)


def without_logps(summary: Mapping[str, Any]) -> dict[str, Any]:
    """Log-probs of single pairs stay in the run directory; they are too many for a line of the log."""
    return {name: value for name, value in summary.items() if not name.endswith("_logps")}


def _right(logps: Mapping[str, Sequence[float]], lengths: Sequence[tuple[int, int]]) -> dict[str, list[float]]:
    both = list(zip(logps["chosen_logps"], logps["rejected_logps"], lengths, strict=True))
    return {
        "accuracy": [float(chosen > rejected) for chosen, rejected, _ in both],
        "accuracy_per_token": [float(chosen / n > rejected / m) for chosen, rejected, (n, m) in both],
    }


def _numbered(values: Sequence[float]) -> dict[str, float]:
    return {f"{index:06d}": value for index, value in enumerate(values)}


def _counts(held_out: PairDraw) -> dict[str, int]:
    dropped = {f"num_{name}": number for name, number in held_out.outcomes.items() if name != "kept"}
    name = "num_demonstrations" if isinstance(held_out.items[0], Demonstration) else "num_pairs"
    return {name: len(held_out.items), **dropped, **held_out.counts}
