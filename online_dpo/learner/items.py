"""Pairs and labelled answers as the learner handles them: their rows, and what a reference says about these."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TypeAlias, cast

from online_dpo.config.objective.section import ObjectiveSection
from online_dpo.errors import TrainingError
from online_dpo.types import Item, Items, Labelled, Pair, Row

RowLogps: TypeAlias = Sequence[Sequence[float]]
"""One row's token log-probs, `[T]` nats, under each of several references."""


def rows_of(item: Pair | Labelled) -> list[Row]:
    """What is scored of an item: chosen and rejected; or the completion and, where it has one, the mismatched one."""
    if isinstance(item, Pair):
        return [Row.of(item.prompt, item.chosen), Row.of(item.prompt, item.rejected)]
    rows = [Row.of(item.prompt, item.completion)]
    if item.kl_completion_ids:
        rows.append(Row(prompt_ids=item.prompt.token_ids, completion_ids=item.kl_completion_ids))
    return rows


def trained_rows(item: Pair | Labelled) -> list[Row]:
    """Those of `rows_of(item)` that the loss has a gradient for: all but the mismatched one."""
    return rows_of(item)[:2] if isinstance(item, Pair) else rows_of(item)[:1]


def with_reference(item: Item, logps: Sequence[RowLogps]) -> Item:
    """The item with its reference log-probs: the mean over several references of each one's sum over tokens.

    Args:
        item: a pair or a labelled answer.
        logps: of `rows_of(item)`, in that order.
    """
    if isinstance(item, Pair):
        chosen, rejected = logps
        shared = item.shared_length
        return replace(
            item,
            chosen_ref_logps=_mean_of_sums(chosen),
            rejected_ref_logps=_mean_of_sums(rejected),
            chosen_ref_tail_logps=_mean_of_sums(chosen, start=shared),
            rejected_ref_tail_logps=_mean_of_sums(rejected, start=shared),
        )
    mismatched = _mean_of_sums(logps[1]) if len(logps) > 1 else None
    return cast(Item, replace(item, ref_logps=_mean_of_sums(logps[0]), kl_ref_logps=mismatched))


def check_items(items: Items, objective: ObjectiveSection, round_index: int) -> None:
    """Raises TrainingError when items are not of the kind that an objective trains on, or lack reference log-probs."""
    kind = Labelled if objective.is_unpaired else Pair
    for item in items:
        if not isinstance(item, kind):
            raise TrainingError(
                f"round {round_index}: objective.type is {objective.type}, which does not train on a "
                f"{type(item).__name__}; see online_dpo.labelling"
            )
        if objective.needs_reference and lacks_reference(item):
            raise TrainingError(
                f"round {round_index}: an item of prompt {item.prompt.prompt_id} has no reference log-probs; call "
                f"reference_logps first"
            )


def lacks_reference(item: Pair | Labelled) -> bool:
    """Whether a log-prob under the reference is missing."""
    if isinstance(item, Pair):
        found = (
            item.chosen_ref_logps,
            item.rejected_ref_logps,
            item.chosen_ref_tail_logps,
            item.rejected_ref_tail_logps,
        )
        return None in found
    return item.ref_logps is None or (bool(item.kl_completion_ids) and item.kl_ref_logps is None)


def _mean_of_sums(row: RowLogps, start: int = 0) -> float:
    return math.fsum(math.fsum(logps[start:]) for logps in row) / len(row)
