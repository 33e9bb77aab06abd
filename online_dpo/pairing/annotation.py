"""What an annotator makes of the selected pairs: it is asked about the two answers, and its preference decides."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from online_dpo.config.judges.view import ViewSection
from online_dpo.pairing.pairs import by_prompt, opinion_on
from online_dpo.pairing.selection import Selected
from online_dpo.types import Completion, Pair, Verdict


@dataclass(frozen=True, slots=True, kw_only=True)
class Settled:
    """The pairs as the annotator has them, and what became of all that it was asked about."""

    pairs: tuple[Pair, ...]  # those in which it strictly prefers one answer, with its margin and probability
    counts: Mapping[str, int]  # upheld, overturned, tie, abstained, judge_failed; they sum to the pairs


def settle(
    pairs: Sequence[Pair], verdicts: Sequence[Verdict], penalty: float, view: ViewSection | None = None
) -> Settled:
    """Let the annotator's verdicts decide who is chosen.

    Args:
        pairs: at most one of each prompt.
        verdicts: of the annotator, about their completions.
        penalty: taken off a truncated side's margin.
        view: of the annotator.
    """
    said = by_prompt(verdicts)
    found: list[Pair] = []
    counts = Counter(dict.fromkeys(("upheld", "overturned", "tie", "abstained", "judge_failed"), 0))
    for pair in pairs:
        opinion = opinion_on(in_sample_order(pair), said.get(pair.prompt.prompt_id, []), penalty, view)
        preference = opinion.preference(pair.chosen.sample_index, pair.rejected.sample_index)
        if preference is None:
            counts["judge_failed" if opinion.has_failures else "abstained"] += 1
        elif preference.is_strict:
            counts["upheld"] += 1
            found.append(replace(pair, margin=preference.margin, probability=preference.probability))
        elif (other := preference.reversed()).is_strict:
            counts["overturned"] += 1
            swapped = {"chosen": pair.rejected, "rejected": pair.chosen}
            found.append(replace(pair, margin=other.margin, probability=other.probability, **swapped))  # type: ignore[arg-type]
        else:
            counts["tie"] += 1
    return Settled(pairs=tuple(found), counts=counts)


def after_annotation(selected: Selected, settled: Settled) -> Selected:
    """What the training judge selected, as the annotator leaves it: every pair that is gone is counted."""
    counts = settled.counts
    outcomes = {
        **selected.outcomes,
        "paired": len(settled.pairs),
        "annotator_failed": counts["judge_failed"],
        "annotator_abstained": counts["abstained"],
        "annotator_tie": counts["tie"],
    }
    further = {
        "num_comparisons_without_label": counts["abstained"] + counts["judge_failed"],
        "num_comparisons_tied_by_annotator": counts["tie"],
        "num_pairs": len(settled.pairs),
    }
    return replace(selected, items=settled.pairs, outcomes=outcomes, counts={**selected.counts, **further})


def in_sample_order(pair: Pair) -> list[Completion]:
    """Its answers in an order that does not tell which is chosen."""
    return sorted((pair.chosen, pair.rejected), key=lambda answer: answer.sample_index)
