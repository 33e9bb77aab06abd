"""Scores -> labelled answers, without pairs: above a threshold, or among the round's highest and lowest."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.pairing import LabelsSection, PairingSection, ThresholdLabels
from online_dpo.pairing.answers import UNCLOSED
from online_dpo.pairing.pairs import (
    Truncated,
    by_prompt,
    check_input,
    count_completions,
    different,
    opinion_on,
    penalty_of,
)
from online_dpo.types import Completion, Labelled, Prompt, Verdict, group_by_prompt

LABELLED = ("desirable", "undesirable")

COMPLETION_OUTCOMES = (
    *LABELLED,
    "undecided",  # at the threshold, or between the quantiles
    "no_score",  # the judge only compared it
    "judge_failed",
    "abstained",
    "duplicate",
    "empty",
    "truncated",  # where such completions are dropped
)
"""What becomes of a completion. Those of a prompt without a label give it its outcome: the first that is here."""

PROMPT_OUTCOMES = (
    "labelled",
    "too_few_completions",  # none was sampled
    "truncated",  # all were cut by the length limit (truncated: drop)
    "empty_completions",
    "judge_failed",  # none was scored, and the judge failed on some
    "abstained",  # none was scored
    "no_score",  # the judge compared, and did not score
    "undecided",  # every score is at the threshold, or between the quantiles
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Labelling:
    """The labelled answers of a round and what became of everything else."""

    items: tuple[Labelled, ...]  # in prompt order, then by sample indices; not mismatched yet
    outcomes: Mapping[str, int]  # every word of PROMPT_OUTCOMES -> prompts; sums to the prompts drawn
    labels: Mapping[str, int]  # every word of COMPLETION_OUTCOMES -> completions; sums to the completions
    counts: Mapping[str, int]  # num_... of completions


@dataclass(frozen=True, slots=True)
class Bounds:
    """Scores above `high` are desirable, those below `low` are not."""

    low: float
    high: float

    @classmethod
    def of(cls, labels: LabelsSection, scores: Sequence[float]) -> Bounds:
        """Settle the bounds of a round.

        Of quantiles they are the first score on either side that is not taken. Where it equals the last that is, none
        of the equal ones is taken: a label must not depend on the order of equals.

        Args:
            labels: threshold or quantiles.
            scores: of every completion that may be labelled.
        """
        if isinstance(labels, ThresholdLabels):
            return cls(labels.value, labels.value)
        taken, ordered = math.floor(labels.share * len(scores) + 1e-9), sorted(scores)
        if not taken:
            return cls(-math.inf, math.inf)
        return cls(ordered[taken], ordered[-taken - 1])

    def label(self, score: float) -> str:
        return "desirable" if score > self.high else "undesirable" if score < self.low else "undecided"


def label_by_score(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    *,
    rules: PairingSection,
    truncated: Truncated,
    truncated_penalty: float | None,
    view: ViewSection | None = None,
) -> Labelling:
    """Label the completions of one round. The order of completions and verdicts does not matter.

    Args:
        prompts: those drawn for the round; labelled answers come in their order.
        completions: of these prompts.
        verdicts: about sample indices; every completion is in at least one.
        rules: its `labels` are set.
        truncated: what to do with completions cut by the length limit.
        truncated_penalty: taken off a truncated completion's score where `truncated` is `penalise`; None = 1.
        view: what of a completion is the answer; with one, UNCLOSED is a further outcome.

    Raises:
        ValueError: as `online_dpo.pairing.pairs.build_pairs`.
    """
    assert rules.labels is not None
    check_input(prompts, completions, verdicts)
    groups, said = group_by_prompt(completions), by_prompt(verdicts)
    penalty = penalty_of(truncated, truncated_penalty)
    labels: dict[tuple[str, int], str] = {}
    scores: dict[tuple[str, int], float] = {}
    for name, group in groups.items():
        found, left_out = _answers(group, rules, view, drop_truncated=truncated == "drop")
        opinion = opinion_on(found, said.get(name, []), penalty)
        for completion in found:
            score, key = opinion.score(completion.sample_index), (name, completion.sample_index)
            if score is None:
                labels[key] = _silence(said.get(name, []), completion.sample_index)
            else:
                scores[key] = score
        labels |= {(name, index): label for index, label in left_out.items()}
    bounds = Bounds.of(rules.labels, list(scores.values()))
    labels |= {key: bounds.label(score) for key, score in scores.items()}
    items = [
        Labelled(prompt=prompt, completion=completion, desirable=label == "desirable")
        for prompt in prompts
        for completion in groups.get(prompt.prompt_id, [])
        if (label := labels[prompt.prompt_id, completion.sample_index]) in LABELLED
    ]
    further = () if view is None else (UNCLOSED,)
    outcomes = Counter(dict.fromkeys((*PROMPT_OUTCOMES, *further), 0))
    outcomes.update(
        _outcome({labels[p.prompt_id, c.sample_index] for c in groups.get(p.prompt_id, [])}) for p in prompts
    )
    counted = Counter(dict.fromkeys((*COMPLETION_OUTCOMES, *further), 0))
    counted.update(labels.values())
    counts = count_completions(completions, verdicts)
    counts["num_duplicate_completions"] = counted["duplicate"]
    return Labelling(items=tuple(items), outcomes=dict(outcomes), labels=dict(counted), counts=dict(counts))


def _answers(
    group: Sequence[Completion], rules: PairingSection, view: ViewSection | None, *, drop_truncated: bool
) -> tuple[list[Completion], dict[int, str]]:
    """The completions of a prompt that may be labelled, and sample index -> why not of the others."""
    kept = [c for c in group if not (drop_truncated and c.finish_reason == "length")]
    spoken = [c for c in kept if c.token_ids]
    found = different(spoken, rules.duplicates, view)
    left_out = {c.sample_index: "truncated" for c in group}
    left_out |= {c.sample_index: "empty" for c in kept} | {c.sample_index: "duplicate" for c in spoken}
    for completion in found:
        del left_out[completion.sample_index]
    return found, left_out


def _silence(said: Sequence[Verdict], index: int) -> str:
    """Why a completion has no score."""
    alone = [verdict for verdict in said if verdict.second is None and verdict.first == index]
    if not alone:
        return "no_score"
    if alone[0].abstention == "unclosed":
        return UNCLOSED
    return "judge_failed" if alone[0].failed else "abstained"


def _outcome(labels: set[str]) -> str:
    if not labels:
        return "too_few_completions"
    if labels & set(LABELLED):
        return "labelled"
    first = next(label for label in (*COMPLETION_OUTCOMES, UNCLOSED) if label in labels)
    return "empty_completions" if first == "empty" else first
