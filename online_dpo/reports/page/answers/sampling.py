"""Which answers of a round a page shows: a sample of its prompts, since a round may have thousands.

The sample has the extremes of the whole round, some prompts of every outcome, and others that are drawn by a hash of
their ids, so that it is the same whenever it is drawn. Its order is that of importance: a page that has less room
shows its beginning.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.run import RunConfig
from online_dpo.reports.page.answers.cards import Card, RoundAnswers, card_of, outcome_of, read_answers, surprise
from online_dpo.reports.page.answers.held_out import held_out
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Pair

MAX_PROMPTS, MAX_BYTES = 60, 240_000
"""Of a round's sample."""
NUM_EXTREMES = 3
"""Prompts of each extreme, and of each outcome, that are in a sample first."""


def sample_round(config: RunConfig | None, part: RoundStore) -> dict[str, Any]:
    """The answers of a finished round that a page shows, as JSON values.

    Returns:
        `round` (from 0), `cards` (see `cards`) in the order of their importance, `num_prompts` and
        `num_completions` of the whole round, `outcomes` (what became of a prompt -> prompts), `held_out` (see
        `held_out`) and `problems`, sentences about what could not be read.
    """
    answers = read_answers(part)
    prompt_ids = list(dict.fromkeys([*answers.prompts, *answers.completions, *answers.items]))
    outcomes = {prompt_id: outcome_of(config, answers, prompt_id) for prompt_id in prompt_ids}
    view = None if config is None else config.view
    cards = list(_fitting(_cards(answers, outcomes, view)))
    sets, problems = held_out(part, view)
    return {
        "round": part.index,
        "cards": cards,
        "num_prompts": len(prompt_ids),
        "num_completions": sum(map(len, answers.completions.values())),
        "outcomes": {name: list(outcomes.values()).count(name) for name in dict.fromkeys(outcomes.values())},
        "held_out": sets,
        "problems": [*answers.problems, *problems],
    }


def hash_order(ids: Iterable[str]) -> list[str]:
    """The same arbitrary order of the same ids, always."""
    return sorted(ids, key=lambda name: hashlib.sha256(name.encode(errors="surrogatepass")).digest())


def num_bytes(value: Any) -> int:
    """About how much of a page JSON values take."""
    return len(json.dumps(value, ensure_ascii=False).encode(errors="replace"))


def _cards(answers: RoundAnswers, outcomes: dict[str, str], view: ViewSection | None) -> Iterator[Card]:
    for prompt_id in _by_importance(answers, outcomes)[:MAX_PROMPTS]:
        yield card_of(answers, prompt_id, outcomes[prompt_id], view)


def _by_importance(answers: RoundAnswers, outcomes: dict[str, str]) -> list[str]:
    arbitrary = hash_order(outcomes)
    of_outcome = [
        [name for name in arbitrary if outcomes[name] == outcome] for outcome in sorted(set(outcomes.values()))
    ]
    firsts = [ranked[:NUM_EXTREMES] for ranked in (*_extremes(answers, arbitrary), *of_outcome)]
    in_turns = [ranked[i] for i in range(NUM_EXTREMES) for ranked in firsts if i < len(ranked)]
    return list(dict.fromkeys([*in_turns, *arbitrary]))


def _extremes(answers: RoundAnswers, prompt_ids: Sequence[str]) -> Iterator[list[str]]:
    """Prompts by largest margin, most surprising pair, shortest and longest answer."""
    pairs = {
        name: found
        for name in prompt_ids
        if (found := [item for item in answers.items.get(name, ()) if isinstance(item, Pair)])
    }
    lengths = {
        name: [len(c.token_ids) for c in answers.completions.get(name, ())]
        or [len(c.token_ids) for pair in pairs.get(name, ()) for c in (pair.chosen, pair.rejected)]
        for name in prompt_ids
    }
    lengths = {name: found for name, found in lengths.items() if found}
    yield _ranked(pairs, lambda name: max(pair.margin or 0.0 for pair in pairs[name]))
    yield _ranked(pairs, lambda name: max(surprise(pair) or 0.0 for pair in pairs[name]))
    yield _ranked(lengths, lambda name: -min(lengths[name]))
    yield _ranked(lengths, lambda name: max(lengths[name]))


def _ranked(prompt_ids: Iterable[str], value: Callable[[str], float]) -> list[str]:
    return sorted(prompt_ids, key=value, reverse=True)


def _fitting(cards: Iterable[Card]) -> Iterator[Card]:
    """As many as there is room for, at least one."""
    room = MAX_BYTES
    for number, card in enumerate(cards):
        room -= num_bytes(card)
        if room < 0 and number:
            return
        yield card
