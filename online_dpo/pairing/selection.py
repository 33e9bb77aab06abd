"""What a round trains on of its own: pairs, or answers labelled by their scores, with everything counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from online_dpo.config.pairing import explain_no_scores
from online_dpo.config.run import RunConfig
from online_dpo.errors import NoPairsError
from online_dpo.pairing.assumptions import as_assumed, assume, count_assumed
from online_dpo.pairing.opinions import scores_nothing
from online_dpo.pairing.pairs import build_pairs
from online_dpo.pairing.score_labels import label_by_score
from online_dpo.types import Completion, Items, Prompt, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Selected:
    """A round's own items, and where the rest is."""

    items: Items
    outcomes: Mapping[str, int]  # what became of each prompt; sums to the prompts drawn
    counts: Mapping[str, int]  # `num_...` of completions, comparisons and items
    labels: Mapping[str, int] | None = None  # what became of each completion; None where pairs were made

    @property
    def figures(self) -> dict[str, Any]:
        """For the round's summary."""
        labels = {} if self.labels is None else {"labels": dict(self.labels)}
        return {"outcomes": dict(self.outcomes), **labels, **self.counts}


def select(
    config: RunConfig,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    round_index: int,
) -> Selected:
    """Pair or label a round's completions.

    Raises:
        NoPairsError: the config reads scores, and the judge gave comparisons only.
    """
    rules, sampling, view, better = config.pairing, config.sampling, config.view, config.assumed_better
    if rules.score_reader is not None and scores_nothing(verdicts):
        raise NoPairsError(
            f"round {round_index + 1}: {explain_no_scores(rules, 'the judge')}, and start a new run under another "
            f"run.name"
        )
    if rules.labels is not None:
        found = label_by_score(
            prompts,
            completions,
            verdicts,
            rules=rules,
            truncated=sampling.truncated,
            truncated_penalty=sampling.truncated_penalty,
            view=view,
        )
        return Selected(items=found.items, outcomes=found.outcomes, counts=found.counts, labels=found.labels)
    pairing = build_pairs(
        prompts,
        completions,
        [*verdicts, *assume(completions, verdicts, better)] if better else verdicts,
        rules=rules,
        truncated=sampling.truncated,
        truncated_penalty=sampling.truncated_penalty,
        seed=config.run.seed,
        round_index=round_index,
        view=view,
    )
    selected = Selected(items=pairing.pairs, outcomes=pairing.outcomes, counts=pairing.counts)
    if not better:
        return selected
    counts = {**selected.counts, **count_assumed(completions, pairing.pairs, better)}
    return replace(selected, items=tuple(as_assumed(pair, better) for pair in pairing.pairs), counts=counts)


def check_not_empty(selected: Selected, round_index: int, num_prompts: int, warnings: Sequence[str] = ()) -> None:
    """See whether a round has anything of its own to train on.

    Args:
        selected: its items.
        round_index: its number, from 0.
        num_prompts: how many it drew.
        warnings: about its judges, which may say why there is nothing.

    Raises:
        NoPairsError: it has nothing.
    """
    if selected.items:
        return
    reasons = ", ".join(f"{name} {value}" for name, value in selected.outcomes.items() if value)
    nothing = "pair" if selected.labels is None else "label"
    why = f" ({'; '.join(warnings)})" if warnings else ""
    raise NoPairsError(
        f"round {round_index + 1} gave no {nothing} from {num_prompts} prompts: {reasons}{why}; what was sampled and "
        f"judged is committed in rounds/{round_index:05d} and stays so: look at it, then start a new run, under "
        f"another run.name, with a judge that tells these completions apart"
    )
