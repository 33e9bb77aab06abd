"""The answers of a round as a page shows them: every prompt with its completions, verdicts and pairs, as JSON values.

A card is one prompt. Its keys are short because a page holds thousands of them:

    id prompt, o = what became of it, na = completions sampled, nv = verdicts
    a: answers   i sample, t text, x characters left out, n tokens, f finish reason, v policy version, g log-prob,
                 q seed, h shard, w writer of a candidate; with a view also m tokens of the answer, th thoughts, ct
                 characters of them left out, un = the thought has no end
    p: pairs     c chosen, r rejected (samples), m margin, b probability, w weight, cr/rr log-ratios, su surprise
    l: labels    i sample, d desirable, r log-ratio
    s: verdicts  j judge, a first, b second, s score, p probability, k kind of an abstention, y why, u uncertainty
    w: votes     j judge, n pseudonym of a person, a first, b second, o what for, k status, t seconds, y comment
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.run import RunConfig
from online_dpo.errors import CorruptionError, UserError
from online_dpo.pairing.annotation import settle
from online_dpo.pairing.answers import num_answer_tokens, read_answer
from online_dpo.pairing.pairs import by_prompt, penalty_of
from online_dpo.pairing.selection import select
from online_dpo.store.round_store import RoundStore
from online_dpo.store.shards import Asked, ShardCommits
from online_dpo.types import (
    REWARD,
    AnyItem,
    Completion,
    Demonstration,
    Judged,
    Labelled,
    Pair,
    Prompt,
    Verdict,
    group_by_prompt,
)
from online_dpo.votes import CastVote

MAX_CHARACTERS = 6_000
"""Longer texts are cut on a page, and the page says by how much."""
MAX_ANSWERS, MAX_VERDICTS = 8, 32
"""Of one card; those of its pairs come first."""

DATA_SET, UNKNOWN = "from a data set", "unknown"
"""Outcomes of a prompt that pairing does not know: nothing was sampled for it, or its files are damaged."""

Card = dict[str, Any]


@dataclass(slots=True, kw_only=True)
class RoundAnswers:
    """What a round committed of its answers, as far as it can be read."""

    index: int
    prompts: Mapping[str, Prompt] = field(default_factory=dict)
    completions: Mapping[str, Sequence[Completion]] = field(default_factory=dict)  # of each prompt
    shards: Mapping[str, int] = field(default_factory=dict)  # prompt -> its shard
    said: Mapping[str, Mapping[str, Sequence[Verdict]]] = field(default_factory=dict)  # judge -> prompt -> verdicts
    votes: Sequence[tuple[str, CastVote]] = ()  # judge, and what a person said where people are the judge
    items: Mapping[str, Sequence[AnyItem]] = field(default_factory=dict)  # of each prompt
    problems: list[str] = field(default_factory=list)


def read_answers(part: RoundStore) -> RoundAnswers:
    """Read a round's answers; a damaged file is a sentence in `problems`, and its content is left out."""
    problems: list[str] = []
    commits = ShardCommits(part)
    completions: list[Completion] = []
    shards: dict[str, int] = {}
    for index in _shards(part, "completions/"):
        found = _read(problems, commits.completions, index) or []
        completions += found
        shards |= dict.fromkeys((completion.prompt_id for completion in found), index)
    said: dict[str, dict[str, list[Verdict]]] = {}
    votes: list[tuple[str, CastVote]] = []
    for judge in (REWARD, ANNOTATOR):
        asked = Asked(judge=judge)
        found = [_read(problems, commits.verdicts, index, asked) for index in _shards(part, f"{asked.verdicts}/")]
        judgements: list[Judged] = [judged for judged in found if judged is not None]
        if judgements:
            said[judge] = by_prompt(verdict for judged in judgements for verdict in judged.verdicts)
            votes += [(judge, vote) for judged in judgements for vote in judged.votes]
    items: dict[str, list[AnyItem]] = {}
    for name, kind in (("pairs", Pair), ("labelled", Labelled), ("demonstrations", Demonstration)):
        for item in (_read(problems, part.get_records, name, kind) or []) if part.has(name) else []:
            items.setdefault(item.prompt.prompt_id, []).append(item)
    prompts = {item.prompt.prompt_id: item.prompt for group in items.values() for item in group}
    if part.has("prompts"):
        drawn = _read(problems, part.get_records, "prompts", Prompt) or []
        prompts = {**{prompt.prompt_id: prompt for prompt in drawn}, **prompts}
    return RoundAnswers(
        index=part.index,
        prompts=prompts,
        completions=group_by_prompt(completions),
        shards=shards,
        said=said,
        votes=votes,
        items=items,
        problems=[f"round {part.index + 1}, {problem}" for problem in problems],
    )


def card_of(answers: RoundAnswers, prompt_id: str, outcome: str, view: ViewSection | None = None) -> Card:
    """One prompt of a round, with what was answered, said and made of it; thoughts stand beside the answers."""
    items = answers.items.get(prompt_id, ())
    pairs = [item for item in items if isinstance(item, Pair)]
    labels = [item for item in items if isinstance(item, Labelled)]
    chosen = {c.sample_index: c for pair in pairs for c in (pair.chosen, pair.rejected)}
    chosen |= {item.completion.sample_index: _completion(item) for item in items if not isinstance(item, Pair)}
    sampled = {c.sample_index: c for c in answers.completions.get(prompt_id, ())}
    shown = list({**chosen, **sampled}.values())
    shown.sort(key=lambda c: (c.sample_index not in chosen, c.sample_index))
    indices = {c.sample_index for c in shown[:MAX_ANSWERS]}
    said = [(judge, v) for judge, found in answers.said.items() for v in found.get(prompt_id, ())]
    about_shown = [(j, v) for j, v in said if v.first in indices and (v.second is None or v.second in indices)]
    # What was said about the pairs stands first.
    about_shown.sort(key=lambda entry: {entry[1].first, entry[1].second} - {None} > chosen.keys())
    votes = [(judge, vote) for judge, vote in answers.votes if vote.prompt_id == prompt_id]
    shard = answers.shards.get(prompt_id)
    return {
        "id": prompt_id,
        "prompt": content_of(answers.prompts.get(prompt_id)),
        "o": outcome,
        "na": len(sampled) or len(chosen),
        "nv": len(said),
        "a": [_answer(c, shard, view) for c in sorted(shown[:MAX_ANSWERS], key=lambda c: c.sample_index)],
        **({"p": [_pair(pair) for pair in pairs]} if pairs else {}),
        **({"l": [_label(item) for item in labels]} if labels else {}),
        "s": [_verdict(judge, verdict) for judge, verdict in about_shown[:MAX_VERDICTS]],
        **({"w": [_vote(judge, vote) for judge, vote in votes[:MAX_VERDICTS]]} if votes else {}),
    }


def _completion(item: Labelled | Demonstration) -> Completion:
    """What was trained on; several messages are shown with who says each."""
    turns = item.turns if isinstance(item, Demonstration) else ()
    if len(turns) < 2:
        return item.completion
    return replace(item.completion, text="\n\n".join(f"{turn['role']}: {turn['content']}" for turn in turns))


def outcome_of(config: RunConfig | None, answers: RoundAnswers, prompt_id: str) -> str:
    """What became of a prompt, in the words of the round's summary."""
    items = answers.items.get(prompt_id, ())
    sampled = answers.completions.get(prompt_id, ())
    if items:
        if not sampled and not answers.said:
            return DATA_SET
        return "paired" if isinstance(items[0], Pair) else "labelled"
    if config is None or answers.problems or prompt_id not in answers.prompts:
        return UNKNOWN
    if config.pairing.labels is not None:
        return "not labelled"
    return _why_no_pair(config, answers, prompt_id, sampled)


def _why_no_pair(config: RunConfig, answers: RoundAnswers, prompt_id: str, sampled: Sequence[Completion]) -> str:
    """As the round found it: pairing is a function of what is committed."""
    prompt, said = answers.prompts[prompt_id], answers.said.get(REWARD, {}).get(prompt_id, ())
    try:
        selected = select(config, [prompt], sampled, said, answers.index)
    except (UserError, ValueError):
        return UNKNOWN  # such as the verdicts of a round under way
    if not selected.items:
        return next(name for name, number in selected.outcomes.items() if number)
    annotated = answers.said.get(ANNOTATOR, {}).get(prompt_id)
    annotator = config.pairing.annotator
    if annotated is None or annotator is None:
        return "over_budget"
    pairs = [item for item in selected.items if isinstance(item, Pair)]
    penalty = penalty_of(config.sampling.truncated, config.sampling.truncated_penalty)
    counts = settle(pairs, annotated, penalty, config.view_of(annotator)).counts
    names = {"judge_failed": "annotator_failed", "abstained": "annotator_abstained", "tie": "annotator_tie"}
    return next((name for count, name in names.items() if counts[count]), UNKNOWN)


def content_of(prompt: Prompt | None) -> Any:
    """A prompt as JSON: text, a list of `[role, text]`, or None where it is not known."""
    if prompt is None:
        return None
    if prompt.messages is None:
        return cut(prompt.text or "")[0]
    return [[str(message.get("role", "")), cut(str(message.get("content", "")))[0]] for message in prompt.messages]


def cut(text: str) -> tuple[str, int]:
    """A text that fits a page, and how many characters were left out."""
    return text[:MAX_CHARACTERS], max(0, len(text) - MAX_CHARACTERS)


def text_of(completion: Completion, view: ViewSection | None) -> dict[str, Any]:
    """The keys of a completion's text, which a card and a held-out answer share."""
    answer = read_answer(completion.text, view)
    text, left_out = cut(answer.text)
    found = {"t": text, **({"x": left_out} if left_out else {}), "n": len(completion.token_ids)}
    if view is None:
        return found
    edges = [0, *(edge for span in answer.kept for edge in span), len(completion.text)]
    between = zip(edges[::2], edges[1::2], strict=True)
    thoughts, cut_off = cut("\n".join(completion.text[start:end] for start, end in between if start < end))
    return {
        **found,
        "m": num_answer_tokens(completion),
        **({"th": thoughts} if thoughts else {}),
        **({"ct": cut_off} if cut_off else {}),
        **({} if answer.is_closed else {"un": True}),
    }


def _answer(completion: Completion, shard: int | None, view: ViewSection | None) -> dict[str, Any]:
    found = {"i": completion.sample_index, **text_of(completion, view)}
    if completion.source is not None:
        found |= {"w": completion.source, "f": completion.finish_reason, "h": shard}
    if completion.sampler_logps is None:
        return found
    return found | {
        "f": completion.finish_reason,
        "v": completion.policy_version,
        "g": _rounded(sum(completion.sampler_logps)),
        "q": str(completion.seed),  # 63 bits, more than a browser's numbers hold
        "h": shard,
    }


def _pair(pair: Pair) -> dict[str, Any]:
    ratios = [_log_ratio(pair.chosen, pair.chosen_ref_logps), _log_ratio(pair.rejected, pair.rejected_ref_logps)]
    return {
        "c": pair.chosen.sample_index,
        "r": pair.rejected.sample_index,
        "m": _rounded(pair.margin),
        "b": _rounded(pair.probability),
        "w": _rounded(pair.weight),
        "cr": ratios[0],
        "rr": ratios[1],
        "su": surprise(pair),
    }


def surprise(pair: Pair) -> float | None:
    """By how much the rejected answer was likelier than the chosen one, nats per token.

    Under the policy that sampled them; where one of them is no sample, under the reference.
    """
    both = pair.chosen.is_sampled and pair.rejected.is_sampled  # two policies cannot be compared
    chosen = _mean_logp(pair.chosen, pair.chosen_ref_logps, both)
    rejected = _mean_logp(pair.rejected, pair.rejected_ref_logps, both)
    return None if chosen is None or rejected is None else _rounded(rejected - chosen)


def _mean_logp(completion: Completion, reference: float | None, is_sampled: bool) -> float | None:
    total = sum(completion.sampler_logps) if is_sampled and completion.sampler_logps is not None else reference
    return None if total is None else total / max(1, len(completion.token_ids))


def _label(item: Labelled) -> dict[str, Any]:
    return {
        "i": item.completion.sample_index,
        "d": item.desirable,
        "r": _log_ratio(item.completion, item.ref_logps),
    }


def _log_ratio(completion: Completion, reference: float | None) -> float | None:
    """Of the policy that sampled to the round's reference, nats; None where one of the two is not known."""
    if completion.sampler_logps is None or reference is None:
        return None
    return _rounded(sum(completion.sampler_logps) - reference)


def _verdict(judge: str, verdict: Verdict) -> dict[str, Any]:
    why = verdict.rationale if verdict.reason is None else verdict.reason
    values = {
        "j": judge,
        "a": verdict.first,
        "b": verdict.second,
        "s": _rounded(verdict.score),
        "p": _rounded(verdict.probability),
        "k": verdict.abstention,
        "y": None if why is None else cut(why)[0],
        "u": _rounded(verdict.uncertainty),
    }
    return {key: value for key, value in values.items() if value is not None}


def _vote(judge: str, vote: CastVote) -> dict[str, Any]:
    return {
        "j": judge,
        "n": vote.annotator,
        "a": vote.first,
        "b": vote.second,
        "o": vote.outcome,
        "k": vote.status,
        "t": _rounded(vote.seconds),
        "y": cut(vote.comment)[0],
    }


def _rounded(value: float | None) -> float | None:
    return None if value is None else float(f"{value:.5g}")


def _shards(part: RoundStore, folder: str) -> list[int]:
    return [int(name.rpartition("-")[2]) for name in part.names(f"{folder}shard-")]


def _read(problems: list[str], read: Callable[..., Any], *arguments: Any) -> Any:
    try:
        return read(*arguments)
    except CorruptionError as error:
        what = next((str(argument) for argument in arguments if isinstance(argument, str)), f"shard {arguments[0]}")
        problems.append(f"{what} is left out: {error}")
        return None
