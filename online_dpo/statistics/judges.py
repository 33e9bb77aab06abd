"""What a round tells about each of its judges, and what of it deserves a warning.

Everything follows from what is committed: verdicts, repeated verdicts and counters. Shares of comparisons look at the
preferences that pairing sees. Comparisons of one prompt are not independent, so what is tested is tested over prompts.
"""

from __future__ import annotations

import math
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.statistics.agreement import describe_ensembles, without_statistics
from online_dpo.statistics.comparisons import Duels, by_prompt, duels_between, order_consistency, share_of, side_of
from online_dpo.types import (
    CONFLICT,
    FIRST_PLACE,
    RANKINGS,
    SECOND_PLACE,
    Completion,
    Verdict,
    derive_seed,
    group_by_prompt,
)

MAX_REASONS, REASON_WIDTH = 8, 80
OTHER = "other reasons"

LARGE, MIN_Z = 0.1, 3.0
"""A liking is told where its share is further from one half than `LARGE`, and `MIN_Z` or more from chance.

z is the sum over prompts of (wins - losses) over the root of the sum of its squares. Without a liking the sign of each
prompt's difference is a coin's, so |z| > 3 comes in 0.3 % of rounds with many prompts, and in at most
2 exp(-9/2) = 2.2 % of those with few (Hoeffding 1963): no least number of prompts is needed.
"""

STEADY, MIN_ASKED_TWICE = 0.8, 20
"""A judge wavers if fewer than this share of at least so many comparisons asked twice have the same outcome."""

SILENT = 0.5
"""Share of abstentions above which a warning says so."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Liking:
    """How often something that should not matter wins."""

    share: float | None  # of the decided comparisons; None without any
    z: float  # distance from one half, in standard deviations; the unit that varies is the prompt
    num_comparisons: int
    num_prompts: int

    @classmethod
    def of(cls, wins: Mapping[str, Sequence[bool]]) -> Liking:
        """Prompt id -> of each decided comparison, whether it won."""
        won = [outcome for found in wins.values() for outcome in found]
        surplus = [2 * sum(found) - len(found) for found in wins.values()]
        spread = math.sqrt(sum(value**2 for value in surplus))
        return cls(
            share=share_of(won),
            z=sum(surplus) / spread if spread else 0.0,
            num_comparisons=len(won),
            num_prompts=sum(bool(found) for found in wins.values()),
        )


def report(
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    counters: Mapping[str, int | float],
    repeats: Sequence[Verdict] = (),
) -> dict[str, Any]:
    """Figures of one judge in one round, or on one evaluation set.

    Args:
        completions: those that it was asked about.
        verdicts: all of them.
        counters: of its host and its own.
        repeats: what it said when it was asked again about some of the prompts.
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
    if any(len(group) > 1 for group in group_by_prompt(completions).values()):
        figures |= _of_comparisons(completions, verdicts, counters)
    if repeats:
        figures["repeat_agreement"], figures["num_repeated"] = repeat_agreement(completions, verdicts, repeats)
    ensembles = describe_ensembles(counters)
    return {**figures, **({"ensembles": ensembles} if ensembles else {}), "counters": without_statistics(counters)}


def warnings(judge: str, figures: Mapping[str, Any]) -> Iterator[str]:
    """Sentences about what `report` found that a person should know.

    Args:
        judge: its name, such as `reward`.
        figures: of its report.
    """
    if (figures["abstention_rate"] or 0.0) > SILENT:
        reasons = ", ".join(f"{number} x {reason}" for reason, number in figures["reasons"].items())
        yield f"judge {judge} abstains from {_percent(figures['abstention_rate'])} of its verdicts: {reasons}"
    consistency, num_orders = figures.get("order_consistency"), figures.get("num_asked_both_ways", 0)
    if is_large(figures, "first_wins"):
        place = "first" if figures["first_wins"] > 0.5 else "second"
        share = max(figures["first_wins"], 1.0 - figures["first_wins"])
        remedy = (
            "it was asked in both orders, which keeps this out of the pairs"
            if num_orders
            else "this is in the pairs: ask it in both orders (both_orders), where it can be"
        )
        yield (
            f"judge {judge} likes the {place} place: what is shown {place} wins {_percent(share)} of "
            f"{figures['num_presented']} comparisons (z {figures['first_wins_z']:+.1f}); {remedy}"
        )
    if is_large(figures, "longer_wins"):
        length = "longer" if figures["longer_wins"] > 0.5 else "shorter"
        share = max(figures["longer_wins"], 1.0 - figures["longer_wins"])
        yield (
            f"judge {judge} likes the {length} completion: it wins {_percent(share)} of {figures['num_unequal']} "
            f"comparisons (z {figures['longer_wins_z']:+.1f}); unless that is what it should reward, take another "
            f"judge or put a length_penalty around it"
        )
    asked_twice = {
        "in both orders": (consistency, num_orders),
        "again": (figures.get("repeat_agreement"), figures.get("num_repeated", 0)),
    }
    for how, (share, number) in asked_twice.items():
        if share is not None and share < STEADY and number >= MIN_ASKED_TWICE:
            yield f"judge {judge} wavers: asked {how} it says the same of {_percent(share)} of {number} comparisons"


def judge_warnings(summary: Mapping[str, Any]) -> Iterator[str]:
    """Of all judges in a round's summary."""
    for judge, figures in summary.get("judges", {}).items():
        yield from warnings(judge, figures)
    for name, evaluation in summary["evaluation"].items():
        for judge, figures in evaluation.get("judges", {}).items():
            yield from (f"{warning} (on {name})" for warning in warnings(judge, figures["report"]))


def is_large(figures: Mapping[str, Any], name: str) -> bool:
    """Whether a liking is both large and more than chance."""
    share = figures.get(name)
    return share is not None and abs(share - 0.5) > LARGE and abs(figures[f"{name}_z"]) >= MIN_Z


def labelled_prompts(duels: Duels) -> set[str]:
    """Prompts of which the judge told apart, or called equal, at least two completions."""
    return {name for (name, _, _), preference in duels.items() if preference is not None}


def group_reasons(silent: Sequence[Verdict]) -> dict[str, int]:
    """Kinds of reasons -> abstentions, the commonest first; numbers and names of prompts are left out of a reason."""
    found = Counter(kind_of(str(verdict.reason)) for verdict in silent)
    ordered = sorted(found.items(), key=lambda item: (-item[1], item[0]))
    kept = dict(ordered if len(ordered) <= MAX_REASONS else ordered[: MAX_REASONS - 1])
    rest = len(silent) - sum(kept.values())
    return {**kept, **({OTHER: rest} if rest else {})}


def kind_of(reason: str) -> str:
    if reason.startswith(CONFLICT):
        return CONFLICT
    text = re.sub(r"\bprompt \S+", "prompt ...", " ".join(reason.split()))
    text = re.sub(r"\d+(\.\d+)?", "N", text)
    return text if len(text) <= REASON_WIDTH else f"{text[: REASON_WIDTH - 3]}..."


def placements(verdicts: Sequence[Verdict]) -> dict[str, list[bool]]:
    """Prompt id -> of each comparison as it was presented, whether the first place won; those with a winner only.

    A judge that prefers one place in both orders and therefore abstains has still said which place.
    """
    found: dict[str, list[bool]] = {}
    for verdict in verdicts:
        won: bool | None = None
        if verdict.reason in (FIRST_PLACE, SECOND_PLACE):
            won = verdict.reason == FIRST_PLACE
        elif verdict.probability is not None and verdict.probability != 0.5:
            won = verdict.probability > 0.5
        if won is not None:
            found.setdefault(verdict.prompt_id, []).append(won)
    return found


def repeat_agreement(
    completions: Sequence[Completion], verdicts: Sequence[Verdict], repeats: Sequence[Verdict]
) -> tuple[float | None, int]:
    """Of what was answered both times: the share with the same outcome, and how many there are.

    The outcome is the winner of a comparison, or a tie; for completions without company it is the score.
    """
    again = by_prompt(repeats)
    asked = [completion for completion in completions if completion.prompt_id in again]
    first, second = duels_between(asked, verdicts), duels_between(asked, repeats)
    same = [side_of(first[key]) == side_of(second[key]) for key in first if None not in (first[key], second[key])]
    alone = {name for name, group in group_by_prompt(asked).items() if len(group) == 1}
    scores = {v.prompt_id: v.score for v in verdicts if v.score is not None and v.prompt_id in alone}
    for verdict in repeats:
        if verdict.score is not None and verdict.prompt_id in scores:
            same.append(math.isclose(verdict.score, scores[verdict.prompt_id], rel_tol=1e-6, abs_tol=1e-9))
    return share_of(same), len(same)


def asked_again(share: float, prompt_ids: Sequence[str], seed: int, round_index: int, judge: str) -> frozenset[str]:
    """The prompts that a judge is asked about a second time: each by a chance of its own."""
    return frozenset(
        name for name in prompt_ids if derive_seed(seed, "again", judge, round_index, name) < share * 2.0**63
    )


def _of_comparisons(
    completions: Sequence[Completion], verdicts: Sequence[Verdict], counters: Mapping[str, int | float]
) -> dict[str, Any]:
    duels = duels_between(completions, verdicts)
    lengths = {(c.prompt_id, c.sample_index): len(c.text) for c in completions}
    sides = {key: side_of(preference) for key, preference in duels.items()}
    longer: dict[str, list[bool]] = {}
    earlier: dict[str, list[bool]] = {}
    for (name, i, j), side in sides.items():
        difference = lengths[name, i] - lengths[name, j]
        if side:
            earlier.setdefault(name, []).append(side > 0)
        if side and difference:
            longer.setdefault(name, []).append((side > 0) == (difference > 0))
    consistency, num_both_ways = order_consistency(verdicts)
    figures: dict[str, Any] = {
        "num_labelled": len(labelled_prompts(duels)),
        "num_comparisons": len(duels),
        "num_decided": sum(side != 0 for side in sides.values()),
        "num_tied": sum(preference is not None and not sides[key] for key, preference in duels.items()),
        "num_unequal": sum(map(len, longer.values())),  # decided, and one is longer
        **_figures("longer_wins", Liking.of(longer)),
    }
    # A judge that scores each completion by itself has seen no order.
    compares = any(verdict.second is not None for verdict in verdicts)
    if compares or counters.get(RANKINGS):
        liking = Liking.of(placements(verdicts) if compares else earlier)
        figures |= {"num_presented": liking.num_comparisons, **_figures("first_wins", liking)}
    if num_both_ways:
        figures |= {"order_consistency": consistency, "num_asked_both_ways": num_both_ways}
    return figures


def _figures(name: str, liking: Liking) -> dict[str, float | None]:
    return {name: liking.share, f"{name}_z": liking.z}


def _percent(share: float) -> str:
    return f"{100 * share:.0f} %"
