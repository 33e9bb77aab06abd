"""What a round draws: prompts to sample, and its share of a data set of preferences. Drawn once, and committed."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import Cursor, MixtureCursor, read_cursor
from online_dpo.data.mixtures import AnyPrompts
from online_dpo.data.preferences import PairSource
from online_dpo.data.prompts import REASONS
from online_dpo.errors import ConfigError, DataError
from online_dpo.learner.items import kind_of
from online_dpo.loop.items import name_of_items
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Items, Prompt, SamplingPlan

PAIRS_DRAW = "pairs-draw"


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnPrompts:
    """The prompts that a round samples."""

    prompts: Sequence[Prompt]
    cursor: Cursor | MixtureCursor  # where the next round's prompts begin
    figures: Mapping[str, Any]  # `num_prompts`, and those that were passed over by reason; of a mixture, its sources'


@dataclass(frozen=True, slots=True, kw_only=True)
class DrawnItems:
    """What a round takes from the data set of preferences."""

    items: Items  # empty also where the round's items are committed already
    cursor: Cursor  # where the next round's share begins
    figures: Mapping[str, int]  # `num_offline_...`: rows by what became of them


def samples(config: RunConfig, index: int) -> bool:
    """Whether a round samples and judges completions to train on."""
    pairs = config.pairs
    return pairs is None or not (pairs.is_whole_run or index < (pairs.warm_start_rounds or 0))


def sampled_version(config: RunConfig, index: int) -> int:
    """The version of the policy that samples a round: by this schedule and never by timing.

    With `overlap: 1` a round is sampled while the learner works on the one before it, by the policy that this one began
    with. The first two rounds are both sampled by the initial policy.
    """
    return max(index - config.overlap, 0)


def training_plan(config: RunConfig, index: int) -> SamplingPlan:
    """How a round samples."""
    return SamplingPlan(
        purpose="training",
        round_index=index,
        num_samples=config.sampling.num_samples,
        temperature=config.sampling.temperature,
        top_p=config.sampling.top_p,
        max_tokens=config.sampling.max_tokens,
        stop=tuple(config.sampling.stop),
        run_seed=config.run.seed,
    )


def draw_prompts(
    config: RunConfig, source: AnyPrompts, store: RoundStore, cursor: Cursor | MixtureCursor
) -> DrawnPrompts:
    """A round's prompts, drawn once and committed with where the next round's begin."""
    if not store.has("prompts"):
        assert config.prompts is not None
        draw = source.draw(cursor, config.prompts.per_round)
        if not store.has("draw"):
            of_sources = {"sources": draw.sources} if draw.sources else {}
            store.put_json("draw", {"cursor": draw.cursor.to_dict(), **draw.passed_over, **of_sources})
        store.put_records("prompts", draw.prompts)
    prompts, drawn = store.get_records("prompts", Prompt), store.get_json("draw")
    figures = {f"num_prompts_{reason}": drawn[reason] for reason in REASONS if reason in drawn}
    of_sources = {"prompt_sources": drawn["sources"]} if "sources" in drawn else {}
    return DrawnPrompts(
        prompts=prompts,
        cursor=read_cursor(drawn["cursor"]),
        figures={"num_prompts": len(prompts), **figures, **of_sources},
    )


def draw_items(
    config: RunConfig, source: PairSource | None, store: RoundStore, cursor: Cursor, sampled: Items
) -> DrawnItems:
    """A round's share of the data set, drawn once and committed with where the next round's begins.

    Args:
        config: of the run.
        source: None in a run without `pairs`.
        store: of the round.
        cursor: where the share begins.
        sampled: what the round has of its own.

    Raises:
        DataError: there are not enough usable rows, or the source is another one than when the share was drawn.
    """
    if source is None:
        return DrawnItems(items=(), cursor=cursor, figures={})
    if store.has(PAIRS_DRAW) and store.has(name_of_items(config)):
        return _committed(store, ())
    wanted = num_wanted(config, store.index, num_answers(sampled))
    draw = source.draw(cursor, wanted, asked_by=asked_by(config))
    figures = {"rows": sum(draw.outcomes.values()), **draw.outcomes, **draw.counts}
    drawn = {
        "cursor": draw.cursor.to_dict(),
        "figures": {f"num_offline_{name.removeprefix('num_')}": number for name, number in figures.items()},
    }
    if not store.has(PAIRS_DRAW):
        store.put_json(PAIRS_DRAW, drawn)
    elif store.get_json(PAIRS_DRAW) != drawn:
        raise DataError(
            f"pairs.source is {config.pairs.source if config.pairs else None}, which gives other rows than when round "
            f"{store.index + 1} began; put it back as it was, or start a new run with another run.name"
        )
    return _committed(store, draw.items)


def num_answers(items: Items) -> int:
    """Answers that are trained on: two of a pair."""
    return sum(len(kind_of(item).answers(item)) for item in items)


def num_wanted(config: RunConfig, index: int, num_sampled: int) -> int | None:
    """Rows of the data set that a round takes; None = the rest of an epoch.

    In a mixed round they make up `pairs.fraction` of all answers, rounded to the nearest number.

    Args:
        config: of the run.
        index: of the round.
        num_sampled: answers that the round has of its own.
    """
    pairs = config.pairs
    assert pairs is not None
    if not samples(config, index):
        return pairs.per_round
    if pairs.fraction is None:
        return 0
    num_rows = num_sampled if pairs.is_labelled else num_sampled / 2
    return math.floor(pairs.fraction / (1.0 - pairs.fraction) * num_rows + 0.5)


def most_wanted(config: RunConfig) -> int | None:
    """The most rows that any round can take; None = an epoch's, whatever it has."""
    pairs, prompts = config.pairs, config.prompts
    assert pairs is not None
    wanted = [] if pairs.fraction is not None and pairs.warm_start_rounds is None else [pairs.per_round]
    if pairs.fraction is not None and prompts is not None:
        wanted.append(num_wanted(config, config.run.rounds, prompts.per_round * _most_answers(config)))
    numbers = [number for number in wanted if number is not None]
    return max(numbers) if numbers else None


def _most_answers(config: RunConfig) -> int:
    """The most answers to one prompt that a round can train on, each as often as it is in a pair."""
    k, rules = config.most_completions(), config.pairing
    if rules.labels is not None:
        return k
    if rules.strategy != "all_pairs":
        return 2
    return 2 * min(k * (k - 1) // 2, rules.max_pairs_per_prompt or k * k)


def asked_by(config: RunConfig) -> str:
    """The field that settles how many rows a round takes at most, with its value."""
    pairs = config.pairs
    assert pairs is not None
    if pairs.fraction is not None and (pairs.per_round is None or pairs.per_round < (most_wanted(config) or 0)):
        return f"pairs.fraction is {pairs.fraction}"
    return f"pairs.per_round is {pairs.per_round}"


def first_written(config: RunConfig, source: PairSource) -> Prompt:
    """The first prompt of the data set that is drawn, having seen that there are enough rows for every round.

    Raises:
        ConfigError: no round would take any row.
        DataError: too few rows are usable.
    """
    wanted = most_wanted(config)
    if wanted == 0 and config.pairs is not None:
        raise ConfigError(
            f"pairs.fraction is {config.pairs.fraction}, which is less than half a row of a round: raise it, or "
            f"prompts.per_round, or remove pairs"
        )
    draw = source.head(1) if wanted is None else source.draw(Cursor(), wanted, asked_by=asked_by(config))
    return draw.items[0].prompt


def check_one_form(config: RunConfig, prompts: Sequence[Prompt], written: Prompt) -> None:
    """Raises DataError when a round would mix chats and plain text, which one table of pairs cannot hold."""
    if config.pairs is None or config.pairs.fraction is None or not prompts:
        return
    forms = ["chats" if prompt.messages is not None else "plain text" for prompt in (prompts[0], written)]
    if forms[0] != forms[1]:
        raise DataError(
            f"the prompts are {forms[0]} and pairs.source holds {forms[1]}, and pairs.fraction mixes them in one "
            f"round: write both in one way, or set pairs.warm_start_rounds instead"
        )


def _committed(store: RoundStore, items: Items) -> DrawnItems:
    drawn = store.get_json(PAIRS_DRAW)
    return DrawnItems(items=items, cursor=Cursor.from_dict(drawn["cursor"]), figures=drawn["figures"])
