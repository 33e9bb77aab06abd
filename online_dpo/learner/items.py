"""The kinds of items that a round trains on: pairs, labelled answers, and demonstrations.

Everything that differs from kind to kind and needs no tensors is here, so that the loop can import it cheaply. A new
kind of item is a record in `online_dpo.types`, a class here that `kind_of_items` returns for its objectives, a class in
`learner.batches`, and a schema in `store.schemas`.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar, Generic, TypeAlias, TypeVar

from online_dpo.config.objective.section import ObjectiveSection, SFTObjective
from online_dpo.errors import TrainingError
from online_dpo.pairing.unpairing import unpair
from online_dpo.types import AnyItem, Completion, Demonstration, Items, Labelled, Pair, Row

LogpsByReference: TypeAlias = Sequence[Sequence[float]]
"""One row's token log-probs, `[T]` nats, under each of several references."""

T = TypeVar("T", Pair, Labelled, Demonstration)


class ItemKind(ABC, Generic[T]):
    """What the learner and the loop know about one kind of item. Has no state."""

    record: type[T]
    commit_name: ClassVar[str]  # of the commit that holds a round's items

    @abstractmethod
    def of_round(self, items: Sequence[AnyItem]) -> list[T]:
        """The items of this kind that a round trains on, made from whatever was collected for it."""

    @abstractmethod
    def answers(self, item: T) -> tuple[Completion, ...]:
        """The completions that are trained on."""

    @abstractmethod
    def with_reference(self, item: T, logps: Sequence[LogpsByReference]) -> T:
        """The item with its reference log-probs: the mean over several references of each one's sum over tokens.

        Args:
            item: any.
            logps: of `scored_rows(item)`, in that order.
        """

    @abstractmethod
    def lacks_reference(self, item: T) -> bool:
        """Whether a log-prob under the reference is missing."""

    def num_trained_tokens(self, item: T) -> int:
        """Tokens that the loss is of."""
        return sum(len(answer.token_ids) for answer in self.answers(item))

    def trained_rows(self, item: T) -> list[Row]:
        """The rows that the loss has a gradient for, one for each of `answers(item)`."""
        return [Row.of(item.prompt, answer) for answer in self.answers(item)]

    def untrained_rows(self, item: T) -> list[tuple[Row, float | None]]:
        """Rows whose log-ratio the objective needs before a step, without gradient, with their reference log-probs."""
        return []

    def scored_rows(self, item: T) -> list[Row]:
        """What is scored under a reference: the trained rows, then the untrained ones."""
        return [*self.trained_rows(item), *(row for row, _ in self.untrained_rows(item))]


class PairKind(ItemKind[Pair]):
    """Pairs; the rows of each are those of chosen and rejected."""

    record = Pair
    commit_name = "pairs"

    def of_round(self, items: Sequence[AnyItem]) -> list[Pair]:
        return [item for item in items if isinstance(item, Pair)]

    def answers(self, item: Pair) -> tuple[Completion, ...]:
        return item.chosen, item.rejected

    def with_reference(self, item: Pair, logps: Sequence[LogpsByReference]) -> Pair:
        chosen, rejected = logps
        shared = item.shared_length
        return replace(
            item,
            chosen_ref_logps=_mean_of_sums(chosen),
            rejected_ref_logps=_mean_of_sums(rejected),
            chosen_ref_tail_logps=_mean_of_sums(chosen, start=shared),
            rejected_ref_tail_logps=_mean_of_sums(rejected, start=shared),
        )

    def lacks_reference(self, item: Pair) -> bool:
        sums = item.chosen_ref_logps, item.rejected_ref_logps
        return None in (*sums, item.chosen_ref_tail_logps, item.rejected_ref_tail_logps)


class LabelledKind(ItemKind[Labelled]):
    """Labelled answers; where one has a mismatched completion, that is its untrained row."""

    record = Labelled
    commit_name = "labelled"

    def of_round(self, items: Sequence[AnyItem]) -> list[Labelled]:
        """Pairs become two answers each; then all answers are mismatched together, for KTO's KL estimate."""
        return unpair([item for item in items if not isinstance(item, Demonstration)])

    def answers(self, item: Labelled) -> tuple[Completion, ...]:
        return (item.completion,)

    def untrained_rows(self, item: Labelled) -> list[tuple[Row, float | None]]:
        if not item.kl_completion_ids:
            return []
        row = Row(prompt_ids=item.prompt.token_ids, completion_ids=item.kl_completion_ids)
        return [(row, item.kl_ref_logps)]

    def with_reference(self, item: Labelled, logps: Sequence[LogpsByReference]) -> Labelled:
        own, *mismatched = map(_mean_of_sums, logps)
        return replace(item, ref_logps=own, kl_ref_logps=mismatched[0] if mismatched else None)

    def lacks_reference(self, item: Labelled) -> bool:
        return item.ref_logps is None or (bool(item.kl_completion_ids) and item.kl_ref_logps is None)


class DemonstrationKind(ItemKind[Demonstration]):
    """Demonstrations; nothing is measured against a reference."""

    record = Demonstration
    commit_name = "demonstrations"

    def of_round(self, items: Sequence[AnyItem]) -> list[Demonstration]:
        return [item for item in items if isinstance(item, Demonstration)]

    def answers(self, item: Demonstration) -> tuple[Completion, ...]:
        return (item.completion,)

    def num_trained_tokens(self, item: Demonstration) -> int:
        return item.num_trained

    def with_reference(self, item: Demonstration, logps: Sequence[LogpsByReference]) -> Demonstration:
        return item

    def lacks_reference(self, item: Demonstration) -> bool:
        return False


PAIRS, LABELLED, DEMONSTRATIONS = PairKind(), LabelledKind(), DemonstrationKind()


def kind_of_items(objective: ObjectiveSection) -> PairKind | LabelledKind | DemonstrationKind:
    """The kind of item that an objective trains on."""
    if isinstance(objective, SFTObjective):
        return DEMONSTRATIONS
    return LABELLED if objective.is_unpaired else PAIRS


def kind_of(item: AnyItem) -> ItemKind[Any]:
    """The kind that an item is of."""
    kinds: tuple[ItemKind[Any], ...] = (PAIRS, LABELLED, DEMONSTRATIONS)
    return next(kind for kind in kinds if isinstance(item, kind.record))


def check_items(items: Items, objective: ObjectiveSection, round_index: int) -> None:
    """Raises TrainingError when items are not of the kind that an objective trains on, or lack reference log-probs."""
    kind: ItemKind[Any] = kind_of_items(objective)
    for item in items:
        if not isinstance(item, kind.record):
            raise TrainingError(
                f"round {round_index}: objective.type is {objective.type}, which does not train on a "
                f"{type(item).__name__}; see online_dpo.pairing.unpairing"
            )
        if objective.needs_reference and kind.lacks_reference(item):
            raise TrainingError(
                f"round {round_index}: an item of prompt {item.prompt.prompt_id} has no reference log-probs; call "
                f"reference_logps first"
            )


def _mean_of_sums(row: LogpsByReference, start: int = 0) -> float:
    return math.fsum(math.fsum(logps[start:]) for logps in row) / len(row)
