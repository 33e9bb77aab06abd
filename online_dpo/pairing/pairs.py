"""Judged completions -> pairs. Every prompt ends as paired or under exactly one reason, and everything is counted.

Whatever a judge says, pairing sees one function: `preference(i, j)` of `online_dpo.pairing.opinions`. Which pairs of a
prompt are taken is settled in `online_dpo.pairing.strategies`.
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.pairing import PairingSection
from online_dpo.pairing.answers import UNCLOSED, read_answer
from online_dpo.pairing.opinions import Indices, Opinion
from online_dpo.pairing.strategies import DROPS, Choice, choose, information
from online_dpo.types import Completion, Pair, Prompt, Verdict, derive_seed, group_by_prompt

Truncated = Literal["keep", "drop", "penalise"]

DEFAULT_TRUNCATED_PENALTY = 1.0

OUTCOMES = (
    "paired",
    "too_few_completions",  # fewer than two were sampled
    "truncated",  # fewer than two left without those cut by the length limit (truncated: drop)
    "empty_completions",  # fewer than two left that have tokens
    "duplicates",  # fewer than two different ones
    "near_duplicates",  # all that are left are too alike
    "judge_failed",  # no two were judged, and the judge failed on some
    "abstained",  # no two were judged
    "tie",  # the judge strictly prefers none
    # From here on: the last pair that the strategy looks at was dropped by this filter.
    "length_ratio",
    "below_min_margin",
    "no_score",  # min_chosen_score, and the judge compared but did not score
    "below_min_chosen_score",
    "over_budget",  # others tell more (strategy uncertain)
    # Of the pair that was chosen, where there is an annotator:
    "annotator_failed",
    "annotator_abstained",
    "annotator_tie",
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """The pairs of a round and what became of everything else."""

    pairs: tuple[Pair, ...]  # in prompt order, then by sample indices
    outcomes: Mapping[str, int]  # every word of OUTCOMES, UNCLOSED with a view -> prompts; sums to the prompts drawn
    counts: Mapping[str, int]  # num_... of completions, of two-completion comparisons, and of pairs


def build_pairs(
    prompts: Sequence[Prompt],
    completions: Sequence[Completion],
    verdicts: Sequence[Verdict],
    *,
    rules: PairingSection,
    truncated: Truncated,
    truncated_penalty: float | None,
    seed: int,
    round_index: int,
    view: ViewSection | None = None,
) -> Pairing:
    """Make the pairs of one round. The order of completions and verdicts does not matter.

    Args:
        prompts: those drawn for the round; pairs come in their order.
        completions: of these prompts. Exact copies (by token ids) count once, under the lowest sample index.
        verdicts: about sample indices; every completion is in at least one.
        rules: strategy and filters; what each does is in docs/pairs.md.
        truncated: what to do with completions cut by the length limit.
        truncated_penalty: taken off a truncated side's margin where `truncated` is `penalise`; None = 1.
        seed: of the run; with round and prompt id it seeds the strategies that draw.
        round_index: of the round.
        view: what of a completion is the answer; None = all of it.

    Raises:
        ValueError: a prompt, sample or verdict occurs twice, a completion or verdict belongs to nothing else here, or a
            completion has no verdict.
    """
    check_input(prompts, completions, verdicts)
    groups = group_by_prompt(completions)
    said = by_prompt(verdicts)
    penalty = penalty_of(truncated, truncated_penalty)
    counts = count_completions(completions, verdicts)
    counts.update(dict.fromkeys(("num_comparisons", *DROPS), 0))
    choices: dict[str, Choice] = {}
    opinions: dict[str, Opinion] = {}
    for prompt in prompts:
        name = prompt.prompt_id
        answers, reason = _eligible(
            groups.get(name, []), rules, view, drop_truncated=truncated == "drop", counts=counts
        )
        if reason is not None:
            choices[name] = Choice(reason=reason)
            continue
        opinions[name] = opinion_on(answers, said.get(name, []), penalty, view)
        draw = random.Random(derive_seed(seed, "pairing", round_index, name))
        by_index = {c.sample_index: c for c in answers}
        choices[name] = choose(opinions[name], rules, by_index, draw, counts, view)
    if rules.budget is not None:
        _keep_most_informative(choices, opinions, rules.budget, counts)
    pairs = [
        _pair(prompt, {c.sample_index: c for c in groups[prompt.prompt_id]}, opinions[prompt.prompt_id], winner)
        for prompt in prompts
        for winner in choices[prompt.prompt_id].winners
    ]
    counts["num_pairs"] = len(pairs)
    names = OUTCOMES if view is None else (*OUTCOMES, UNCLOSED)
    outcomes = Counter(dict.fromkeys(names, 0))
    outcomes.update(choice.reason or "paired" for choice in choices.values())
    assert outcomes.keys() == set(names) and sum(outcomes.values()) == len(prompts), "a prompt was lost"
    return Pairing(pairs=tuple(pairs), outcomes=dict(outcomes), counts=dict(counts))


def penalty_of(truncated: Truncated, truncated_penalty: float | None) -> float:
    """What a truncated completion loses, score units or logits."""
    if truncated != "penalise":
        return 0.0
    return DEFAULT_TRUNCATED_PENALTY if truncated_penalty is None else truncated_penalty


def by_prompt(verdicts: Iterable[Verdict]) -> dict[str, list[Verdict]]:
    """Prompt id -> what was said about its completions."""
    said: dict[str, list[Verdict]] = {}
    for verdict in verdicts:
        said.setdefault(verdict.prompt_id, []).append(verdict)
    return said


def opinion_on(
    answers: Sequence[Completion], said: Sequence[Verdict], penalty: float, view: ViewSection | None = None
) -> Opinion:
    """What was said about a prompt's completions that may be trained on, truncated ones penalised."""
    penalties = {c.sample_index: penalty * (c.finish_reason == "length") for c in answers}
    loses = view is not None and view.unclosed == "worst"
    return Opinion(said, [c.sample_index for c in answers], penalties=penalties, unclosed_loses=loses)


def different(
    said: Sequence[Completion], by: Literal["tokens", "text"], view: ViewSection | None = None
) -> list[Completion]:
    """One of each, in sample order.

    Of equal token ids the lowest sample index stays. Of equal texts one that was not cut does, then the one whose
    token ids come first, so that it does not depend on the order in which they were sampled.
    """
    first_of: dict[tuple[int, ...], Completion] = {}
    for completion in said:
        first_of.setdefault(completion.token_ids, completion)
    found = list(first_of.values())
    if by == "text":
        best_of: dict[str, Completion] = {}
        for completion in sorted(found, key=lambda c: (c.finish_reason == "length", c.token_ids)):
            answer = read_answer(completion.text, view)
            # What was cut within a thought has no answer that could be another's.
            best_of.setdefault(answer.text if answer.is_closed else completion.text, completion)
        found = sorted(best_of.values(), key=lambda c: c.sample_index)
    return found


def _eligible(
    group: Sequence[Completion],
    rules: PairingSection,
    view: ViewSection | None,
    *,
    drop_truncated: bool,
    counts: Counter[str],
) -> tuple[list[Completion], str | None]:
    """The completions of a group in sample order that may be paired, and the reason where they are too few."""
    if len(group) < 2:
        return [], "too_few_completions"
    kept = [c for c in group if not (drop_truncated and c.finish_reason == "length")]
    said = [c for c in kept if c.token_ids]  # nothing could be learned from the others
    found = different(said, rules.duplicates, view)
    counts["num_duplicate_completions"] += len(said) - len(found)
    if len(kept) < 2:
        return [], "truncated"
    if len(said) < 2:
        return [], "empty_completions"
    if len(found) < 2:
        return [], "duplicates"
    return found, None


def _keep_most_informative(
    choices: dict[str, Choice], opinions: Mapping[str, Opinion], budget: int, counts: Counter[str]
) -> None:
    """Leave the pairs of so many prompts, those that tell most; equals in the order in which prompts were drawn."""
    found = [(name, choice.winners[0]) for name, choice in choices.items() if choice.winners]
    found.sort(key=lambda entry: information(opinions[entry[0]], entry[1]), reverse=True)  # stable
    for name, _ in found[budget:]:
        choices[name] = Choice(reason="over_budget")
        counts["num_comparisons_over_budget"] += 1


def _pair(prompt: Prompt, by_index: Mapping[int, Completion], opinion: Opinion, indices: Indices) -> Pair:
    chosen, rejected = indices
    preference = opinion.preference(chosen, rejected)
    assert preference is not None
    return Pair(
        prompt=prompt,
        chosen=by_index[chosen],
        rejected=by_index[rejected],
        margin=preference.margin,
        probability=preference.probability,
    )


def count_completions(completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> Counter[str]:
    """`num_...` of what was sampled and judged."""
    silent = [v for v in verdicts if v.reason is not None and v.second is None]
    return Counter(
        num_completions=len(completions),
        num_truncated_completions=sum(c.finish_reason == "length" for c in completions),
        num_empty_completions=sum(not c.token_ids for c in completions),
        num_duplicate_completions=0,
        num_failed_completions=len({(v.prompt_id, v.first) for v in silent if v.failed}),
        num_abstained_completions=len(
            {(v.prompt_id, v.first) for v in silent if not v.failed and v.abstention != "unclosed"}
        ),
    )


def check_input(prompts: Sequence[Prompt], completions: Sequence[Completion], verdicts: Sequence[Verdict]) -> None:
    """Raises ValueError where something is there twice, or belongs to nothing else."""

    def repeated(keys: Iterator[object]) -> list[object]:
        return [key for key, number in Counter(keys).items() if number > 1]

    if twice := repeated(p.prompt_id for p in prompts):
        raise ValueError(f"prompt {twice[0]} was drawn twice; its completions could not be told apart")
    if twice := repeated((c.prompt_id, c.sample_index) for c in completions):
        raise ValueError(f"completion {twice[0]} is there twice")
    if twice := repeated((v.prompt_id, v.first, v.second) for v in verdicts):
        raise ValueError(f"there are two verdicts on {twice[0]}")
    drawn = {p.prompt_id for p in prompts}
    sampled = {(c.prompt_id, c.sample_index) for c in completions}
    judged = {(v.prompt_id, i) for v in verdicts for i in (v.first, v.second) if i is not None}
    for found, among, message in (
        ({prompt_id for prompt_id, _ in sampled}, drawn, "a completion answers prompt {}, which was not drawn"),
        (judged, sampled, "a verdict is about completion {}, which was not sampled"),
        (sampled, judged, "completion {} has no verdict"),
    ):
        if strangers := found - among:
            raise ValueError(message.format(min(strangers)))
