"""Whoever wants to know what happens in a run, and how they are told: none of them can end or change it."""

from __future__ import annotations

import inspect
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from online_dpo.errors import ConfigError
from online_dpo.loop.stages import Event
from online_dpo.reports.results import RoundResult

log = logging.getLogger(__name__)

WARNING = "warning: "
"""How a note begins that warns."""


class Listener:
    """Is told what happens in a run, in order, on the thread that runs it; the run waits until each method returns.

    Subclass it, or pass any object that has some of its methods. What a listener is given is its own copy. One that
    raises an exception is told nothing more, and the run goes on: the error is logged, the other listeners get a
    `note`, and `RunResult.failed_listeners` says so. A `KeyboardInterrupt` ends the run as Ctrl-C does; `resume`
    continues it.
    """

    def note(self, line: str) -> None:
        """Hear a sentence for people, such as that engines are starting.

        Args:
            line: the sentence, without a line break at its end.
        """

    def hear(self, event: Event) -> None:
        """Hear an event, as soon as it has happened.

        Args:
            event: `docs/api.md` has a table of every kind and its data.
        """

    def round_done(self, result: RoundResult) -> None:
        """Hear the result of a round, once it is committed: no resume repeats it.

        Args:
            result: as it will stand in `RunResult.rounds`.
        """


@dataclass(frozen=True, slots=True, kw_only=True)
class EventKind:
    """When an event of a kind comes, and what its `data` holds beside."""

    when: str
    data: Mapping[str, str] = field(default_factory=dict)  # name -> what it is; `...` stands for further figures


_PLACE = {"shard": "its number", "base": "folder of an evaluation's samples in the round; empty for the round's own"}
_WORK = {
    "num_completions": "of `sampling` and `evaluating`: completions in all",
    "num_to_sample": "those that are not sampled yet",
    "num_to_judge": "prompts that are not judged yet, once for each judge",
}
_JUDGED = {**_PLACE, "judge": "`reward`, or the name of an evaluation judge"}
_GAPS = "nats per token: mean, largest mean of a row, largest of a token, and mean to the policy before"

EVENTS = {
    "run_started": EventKind(
        when="everything is loaded; again where the learner was lost and started anew",
        data={
            "num_rounds": "`run.rounds`",
            "evaluated_every": "`evaluation.every`; None where there is nothing to evaluate on",
        },
    ),
    "round_started": EventKind(when="a round begins, or goes on after a resume or a lost learner"),
    "stage": EventKind(
        when="a stage of the round begins",
        data={
            "stage": "`sampling`, `annotating`, `reference`, `learning` or `evaluating`",
            "num_prompts": "of `sampling`: prompts drawn",
            **_WORK,
            "policy_version": "of `evaluating`: of the policy",
        },
    ),
    "sampling_ahead": EventKind(
        when="with `overlap: 1`, the next round begins to be sampled; its shards have its `round_index`",
        data={"stage": "`sampling`", "num_prompts": "prompts drawn", **_WORK},
    ),
    "pushed": EventKind(
        when="the generators hold a policy, and the probe set was compared",
        data={
            "policy_version": "of the policy",
            "probe_gap": _GAPS,
            "probe_gap_row_max": "",
            "probe_gap_max": "",
            "probe_gap_previous": "",
            "probe_has_power": "whether a skipped push would have been noticed",
            "applied": "where an adapter was merged: the share of the update that the weights hold after rounding",
        },
    ),
    "shard_sampled": EventKind(
        when="a shard is sampled",
        data={**_PLACE, "num_completions": "completions sampled", "num_tokens": "their tokens"},
    ),
    "candidates_written": EventKind(
        when="a writer's answers to a shard are committed",
        data={**_PLACE, "source": "the writer's name", "num_kept": "answers that joined the samples"},
    ),
    "rescored": EventKind(
        when="the learner has re-scored the samples of an engine's first shard after a push",
        data={
            **_PLACE,
            "sampled_gap": _GAPS,
            "sampled_gap_row_max": "",
            "sampled_gap_max": "",
            "sampled_gap_previous": "",
            "sampled_has_power": "as `probe_has_power`",
        },
    ),
    "judging_started": EventKind(when="a judge is asked about a shard", data=_JUDGED),
    "shard_judged": EventKind(
        when="what a judge said about a shard is committed",
        data={**_JUDGED, "verdicts": "a tuple of `Verdict`", "latencies_s": "judge -> seconds of each call"},
    ),
    "shard_repeated": EventKind(
        when="the same for the prompts that a judge was asked about again",
        data={**_JUDGED, "latencies_s": "judge -> seconds of each call"},
    ),
    "paired": EventKind(
        when="the round's completions are paired or labelled",
        data={"num_items": "pairs or labelled answers", "...": "figures that `round_done` has too"},
    ),
    "step": EventKind(
        when="the learner has taken or skipped an optimizer step",
        data={
            "step": "its number in the round, from 0",
            "num_steps": "steps of the round",
            "skipped": "1 where a value was not finite: `bad_value` says which and `bad_ids` of which prompts",
            "...": "figures as in `LearningResult`, of this step alone",
        },
    ),
    "evaluated": EventKind(
        when="a policy was evaluated on a set of prompts; version 0 is the initial policy",
        data={"set": "its name", "policy_version": "of the policy", "...": "figures as in `EvaluationResult`"},
    ),
    "evaluated_pairs": EventKind(
        when="a policy was evaluated on a set of held-out pairs",
        data={"set": "its name", "policy_version": "of the policy", "...": "figures as in `evaluation_pairs`"},
    ),
    "round_done": EventKind(
        when="a round is complete and about to be committed",
        data={"policy_version": "of the round's policy", "...": "all that `RoundResult` has but `push` and `seconds`"},
    ),
    "round_committed": EventKind(when="the round is committed; `round_done` of the listeners comes next"),
    "incident": EventKind(
        when="an actor was lost, started again or is silent; a `note` tells the same",
        data={"actor": "its name", "what": "a sentence"},
    ),
    "people_asked": EventKind(
        when="the run waits for people, at first and whenever somebody has answered",
        data={"num_questions": "that it waits for", "num_missing_votes": "votes that they still want, all together"},
    ),
    "run_left": EventKind(
        when="the run ends because people have not answered and it is not to wait for them",
        data={"num_questions": "as in `people_asked`", "num_missing_votes": ""},
    ),
    "run_stopped": EventKind(when="the drift budget or the alarm ends the run", data={"reason": "a sentence"}),
    "run_done": EventKind(when="all rounds are finished"),
}
"""Every kind of `Event`. Names of `data` without words belong to the one above them."""

METHODS = {"note": "line", "hear": "event", "round_done": "result"}


class Guarded(Listener):
    """Tells many listeners, and parts with those that raise."""

    def __init__(self, listeners: Sequence[object]) -> None:
        """Look at the listeners, before anything slow begins.

        Raises:
            ConfigError: one of them has no method of a listener, or one that cannot be called with what it is told.
        """
        if not isinstance(listeners, Sequence) or isinstance(listeners, str):
            raise ConfigError(f"listeners is a {type(listeners).__name__}; give a list of them: [listener]")
        for number, listener in enumerate(listeners):
            _check(listener, f"listeners[{number}]")
        self._listeners = list(listeners)
        self.failed: list[str] = []

    def note(self, line: str) -> None:
        """As `Listener.note`, to all."""
        self._tell("note", line)

    def hear(self, event: Event) -> None:
        """As `Listener.hear`, to all; each gets a copy."""
        self._tell("hear", event)

    def round_done(self, result: RoundResult) -> None:
        """As `Listener.round_done`, to all; each gets a copy."""
        self._tell("round_done", result)

    def _tell(self, method: str, said: str | Event | RoundResult) -> None:
        for listener in list(self._listeners):
            function = getattr(listener, method, None)
            if function is None:
                continue
            try:
                function(_copied(said))
            except Exception as error:
                self._part_with(listener, method, error)

    def _part_with(self, listener: object, method: str, error: Exception) -> None:
        self._listeners.remove(listener)
        log.warning("a listener raised an exception", exc_info=error)
        name = type(listener).__name__
        self.failed.append(
            f"listener {name} raised {type(error).__name__} in {method} and is told nothing more; the run is not "
            f"affected: {error}"
        )
        self.note(f"{WARNING}{self.failed[-1]}")


def _check(listener: object, place: str) -> None:
    if inspect.isclass(listener):
        raise ConfigError(f"{place} is the class {listener.__name__}; give an object of it: {listener.__name__}()")
    methods = {name: getattr(listener, name) for name in METHODS if hasattr(listener, name)}
    if not methods:
        raise ConfigError(f"{place} is a {type(listener).__name__} without any of the methods {', '.join(METHODS)}")
    for name, method in methods.items():
        try:
            inspect.signature(method).bind(None)
        except (TypeError, ValueError):
            raise ConfigError(
                f"{place}.{name} of {type(listener).__name__} cannot be called with one argument; write "
                f"def {name}(self, {METHODS[name]})"
            ) from None


def _copied(said: Any) -> Any:
    """What may be changed is copied: dictionaries and lists, not the frozen records in them."""
    if isinstance(said, Event):
        return Event(kind=said.kind, round_index=said.round_index, data=_copied(said.data))
    if isinstance(said, dict):
        return {key: _copied(value) for key, value in said.items()}
    if isinstance(said, list):
        return [_copied(value) for value in said]
    return said
