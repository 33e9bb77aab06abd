"""What a round tells about each of its judges.

Everything follows from what is committed: verdicts, repeated verdicts, counters and the agreement of members. Shares of
comparisons look at the preferences that pairing sees.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.member_agreement import MemberAgreement
from online_dpo.statistics.agreement import describe_ensembles
from online_dpo.statistics.comparisons import (
    Comparisons,
    by_prompt,
    comparisons_between,
    order_consistency,
    share_of,
    side_of,
    wins_by_prompt,
)
from online_dpo.types import NUM_RANKINGS, Completion, Verdict, group_by_prompt

MAX_REASONS, REASON_WIDTH = 8, 80
OTHER = "other reasons"
ORDERS_DISAGREE = "orders disagree"


@dataclass(frozen=True, slots=True, kw_only=True)
class Bias:
    """How often something wins that should not matter, such as the first place or the longer completion.

    z is the sum over prompts of (wins - losses) over the root of the sum of its squares. Comparisons of one prompt are
    not independent, so the prompt is the unit that varies: without a bias the sign of each prompt's difference is a
    coin's.
    """

    share: float | None  # of the decided comparisons; None without any
    z: float  # distance from one half, in standard deviations
    num_comparisons: int
    num_prompts: int

    @classmethod
    def of(cls, wins: Mapping[str, Sequence[bool]]) -> Bias:
        """Measure it.

        Args:
            wins: prompt id -> of each decided comparison, whether it won.
        """
        won = [outcome for found in wins.values() for outcome in found]
        surplus = [2 * sum(found) - len(found) for found in wins.values()]
        spread = math.sqrt(sum(value**2 for value in surplus))
        return cls(
            share=share_of(won),
            z=sum(surplus) / spread if spread else 0.0,
            num_comparisons=len(won),
            num_prompts=sum(bool(found) for found in wins.values()),
        )

    def figures(self, name: str) -> dict[str, float | None]:
        """The share and z, as a report has them."""
        return {name: self.share, f"{name}_z": self.z}


def report(
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    counters: Mapping[str, int | float],
    repeats: Sequence[Verdict] = (),
    agreement: Mapping[str, MemberAgreement] | None = None,
) -> dict[str, Any]:
    """Figures of one judge in one round, or on one evaluation set.

    Args:
        completions: those that it was asked about.
        verdicts: all of them.
        counters: of its host and its own.
        repeats: what it said when it was asked again about some of the prompts.
        agreement: of the members of the ensembles in it, by their fields in the config.
    """
    silent = [verdict for verdict in verdicts if verdict.reason is not None]
    figures: dict[str, Any] = {
        "num_prompts": len({completion.prompt_id for completion in completions}),
        "num_verdicts": len(verdicts),
        "num_abstained": len(silent),
        "num_failed": sum(verdict.failed for verdict in silent),
        "abstention_rate": len(silent) / len(verdicts) if verdicts else None,
        "reasons": group_reasons(silent),
    }
    if scores := {verdict.score for verdict in verdicts if verdict.score is not None}:
        figures["num_distinct_scores"] = len(scores)
    if any(len(group) > 1 for group in group_by_prompt(completions).values()):
        figures |= _of_comparisons(completions, verdicts, counters)
    if repeats:
        figures["repeat_agreement"], figures["num_repeated"] = repeat_agreement(completions, verdicts, repeats)
    ensembles = describe_ensembles(agreement or {})
    return {**figures, **({"ensembles": ensembles} if ensembles else {}), "counters": dict(counters)}


def covered_prompts(comparisons: Comparisons) -> set[str]:
    """The prompts of which the judge compared at least two completions, a tie included."""
    return {name for (name, _, _), preference in comparisons.items() if preference is not None}


def group_reasons(silent: Sequence[Verdict]) -> dict[str, int]:
    """Reason -> number of abstentions, the commonest first; numbers and prompt ids are left out of a reason."""
    found = Counter(
        ORDERS_DISAGREE if verdict.abstention in ("first_place", "second_place") else kind_of(str(verdict.explanation))
        for verdict in silent
    )
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ordered if len(ordered) <= MAX_REASONS else ordered[: MAX_REASONS - 1])
    rest = len(silent) - sum(kept.values())
    return {**kept, **({OTHER: rest} if rest else {})}


def kind_of(reason: str) -> str:
    """A reason without what differs from prompt to prompt, shortened."""
    text = re.sub(r"\bprompt \S+", "prompt ...", " ".join(reason.split()))
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    return text if len(text) <= REASON_WIDTH else f"{text[: REASON_WIDTH - 3]}..."


def placements(verdicts: Sequence[Verdict]) -> dict[str, list[bool]]:
    """Prompt id -> of each comparison as it was presented, whether the first place won; only those with a winner.

    A judge that abstains because it prefers one place in both orders has still said which place.
    """
    found: dict[str, list[bool]] = {}
    for verdict in verdicts:
        won: bool | None = None
        if verdict.abstention in ("first_place", "second_place"):
            won = verdict.abstention == "first_place"
        elif verdict.probability is not None and verdict.probability != 0.5:
            won = verdict.probability > 0.5
        if won is not None:
            found.setdefault(verdict.prompt_id, []).append(won)
    return found


def repeat_agreement(
    completions: Sequence[Completion], verdicts: Sequence[Verdict], repeats: Sequence[Verdict]
) -> tuple[float | None, int]:
    """Of what was answered both times: the share with the same outcome, and how many there are.

    The outcome is the winner of a comparison, or a tie; for a completion that is alone in its prompt, the score.
    """
    again = by_prompt(repeats)
    asked = [completion for completion in completions if completion.prompt_id in again]
    first, second = comparisons_between(asked, verdicts), comparisons_between(asked, repeats)
    same = [side_of(first[key]) == side_of(second[key]) for key in first if None not in (first[key], second[key])]
    alone = {name for name, group in group_by_prompt(asked).items() if len(group) == 1}
    scores = {v.prompt_id: v.score for v in verdicts if v.score is not None and v.prompt_id in alone}
    for verdict in repeats:
        if verdict.score is not None and verdict.prompt_id in scores:
            same.append(math.isclose(verdict.score, scores[verdict.prompt_id], rel_tol=1e-6, abs_tol=1e-9))
    return share_of(same), len(same)


def _of_comparisons(
    completions: Sequence[Completion], verdicts: Sequence[Verdict], counters: Mapping[str, int | float]
) -> dict[str, Any]:
    comparisons = comparisons_between(completions, verdicts)
    earlier, longer = wins_by_prompt(completions, comparisons)
    num_decided = sum(map(len, earlier.values()))
    length_bias = Bias.of(longer)
    consistency, num_both_ways = order_consistency(verdicts)
    figures: dict[str, Any] = {
        "num_covered": len(covered_prompts(comparisons)),
        "num_comparisons": len(comparisons),
        "num_decided": num_decided,
        "num_tied": sum(preference is not None for preference in comparisons.values()) - num_decided,
        "num_unequal": length_bias.num_comparisons,  # decided, and one is longer
        **length_bias.figures("longer_wins"),
    }
    # A judge that scores each completion by itself has seen no order.
    compares = any(verdict.second is not None for verdict in verdicts)
    if compares or counters.get(NUM_RANKINGS):
        place_bias = Bias.of(placements(verdicts) if compares else earlier)
        figures |= {"num_presented": place_bias.num_comparisons, **place_bias.figures("first_wins")}
    if num_both_ways:
        figures |= {"order_consistency": consistency, "num_asked_both_ways": num_both_ways}
    return figures
