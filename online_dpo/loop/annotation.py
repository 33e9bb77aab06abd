"""Asks the annotator about the two answers of each selected pair alone, so that its calls go where pairs are.

What it says is committed shard by shard like the training judge's; a continued run asks it only for the rest.
"""

from __future__ import annotations

from collections.abc import Generator, Sequence
from dataclasses import dataclass

from online_dpo.config.judges.view import ViewSection
from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.run import RunConfig
from online_dpo.loop.calls import Calls
from online_dpo.loop.rollouts import Rollouts, judge_given
from online_dpo.loop.stages import Event
from online_dpo.loop.verdicts import Said
from online_dpo.pairing.annotation import Settled, after_annotation, in_sample_order, settle
from online_dpo.pairing.pairs import penalty_of
from online_dpo.pairing.selection import Selected
from online_dpo.store.round_store import RoundStore
from online_dpo.types import Completion, Pair

SELECTED = "selected"
"""The commit of what the annotator is asked about."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Annotated:
    """A round's pairs as the annotator leaves them."""

    selected: Selected
    settled: Settled
    answers: tuple[Completion, ...]  # that it was asked about
    view: ViewSection | None  # of them
    said: Said

    @property
    def figures(self) -> dict[str, int]:
        """How often it agreed with the training judge, and how often not."""
        return {f"num_{name}": self.settled.counts[name] for name in ("upheld", "overturned")}


def annotate(
    config: RunConfig, calls: Calls, store: RoundStore, selected: Selected
) -> Generator[Event, None, Annotated]:
    """Have the annotator settle a round's pairs, of which each prompt has at most one.

    Returns (as the generator's value): `Annotated`, with every pair counted.

    Raises:
        JudgingStopped: the annotator may or can go on no more; all that it said is committed.
    """
    pairs = [item for item in selected.items if isinstance(item, Pair)]
    rollouts = Rollouts(store, [pair.prompt for pair in pairs], config.generator.shard_prompts)
    _commit_selection(store, rollouts, pairs)
    answers = {pair.prompt.prompt_id: in_sample_order(pair) for pair in pairs}
    said = yield from judge_given(calls, rollouts, answers, ANNOTATOR)
    penalty = penalty_of(config.sampling.truncated, config.sampling.truncated_penalty)
    assert config.pairing.annotator is not None
    view = config.view_of(config.pairing.annotator)
    settled = settle(pairs, said.verdicts, penalty, view)
    return Annotated(
        selected=after_annotation(selected, settled),
        settled=settled,
        answers=tuple(answer for found in answers.values() for answer in found),
        view=view,
        said=said,
    )


def _commit_selection(store: RoundStore, rollouts: Rollouts, pairs: Sequence[Pair]) -> None:
    """Once. Where the training judge was asked again since, what was said about another selection is forgotten."""
    found = {"pairs": [[p.prompt.prompt_id, *(c.sample_index for c in in_sample_order(p))] for p in pairs]}
    if store.has(SELECTED):
        if store.get_json(SELECTED) == found:
            return
        rollouts.commits.remove_verdicts(ANNOTATOR)
        store.remove(SELECTED)
    store.put_json(SELECTED, found)
