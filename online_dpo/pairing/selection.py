"""What a round trains on of its own: pairs, or answers labelled by their scores, with everything counted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.config.pairing import explain_no_scores
from online_dpo.config.run import RunConfig
from online_dpo.errors import NoPairsError
from online_dpo.pairing.opinions import scores_nothing
from online_dpo.pairing.pairs import build_pairs
from online_dpo.pairing.score_labels import label_by_score
from online_dpo.statistics.agreement import without_statistics
from online_dpo.types import Completion, Items, Prompt, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """A round's own items, and the figures of its summary that tell where the rest is."""

    items: Items
    figures: Mapping[str, Any]


def select(
    config: RunConfig,
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    round_index: int,
) -> Selection:
    """Pair or label a round's completions.

    Raises:
        NoPairsError: the config reads scores, and the judge gave comparisons only.
    """
    rules, sampling = config.pairing, config.sampling
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
        )
        return Selection(
            items=found.items, figures={"outcomes": dict(found.outcomes), "labels": dict(found.fates), **found.counts}
        )
    pairing = build_pairs(
        prompts,
        completions,
        verdicts,
        rules=rules,
        truncated=sampling.truncated,
        truncated_penalty=sampling.truncated_penalty,
        seed=config.run.seed,
        round_index=round_index,
    )
    return Selection(items=pairing.pairs, figures={"outcomes": dict(pairing.outcomes), **pairing.counts})


def settled(
    found: Selection, pairs: Items, counts: Mapping[str, int], counters: Mapping[str, int | float]
) -> Selection:
    """The selection as the annotator leaves it.

    Args:
        found: what the training judge selected.
        pairs: of these, what the annotator prefers.
        counts: what became of all pairs, as `online_dpo.loop.annotation.settle` has it.
        counters: of the annotator's host.
    """
    unlabelled = counts["abstained"] + counts["judge_failed"]
    outcomes = {
        **found.figures["outcomes"],
        "paired": len(pairs),
        "annotator_failed": counts["judge_failed"],
        "annotator_abstained": counts["abstained"],
        "annotator_tie": counts["tie"],
    }
    figures = {
        **found.figures,
        "outcomes": outcomes,
        "num_comparisons_without_label": unlabelled,
        "num_comparisons_tied_by_annotator": counts["tie"],
        "num_pairs": len(pairs),
        "annotator": {
            "num_upheld": counts["upheld"],
            "num_overturned": counts["overturned"],
            **without_statistics(counters),
        },
    }
    return Selection(items=pairs, figures=figures)


def check_not_empty(found: Selection, round_index: int, num_prompts: int) -> None:
    """Raises NoPairsError where a round has nothing of its own to train on."""
    if found.items:
        return
    reasons = ", ".join(f"{name} {value}" for name, value in found.figures["outcomes"].items() if value)
    nothing = "label" if "labels" in found.figures else "pair"
    raise NoPairsError(
        f"round {round_index + 1} gave no {nothing} from {num_prompts} prompts: {reasons}; what was sampled and judged "
        f"is committed in rounds/{round_index:05d} and stays so: look at it, then start a new run, under another "
        f"run.name, with a judge that tells these completions apart"
    )
