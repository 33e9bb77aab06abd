"""Two ranks of a learner: the first in the test's process, the second in one of its own, both doing the same."""

from __future__ import annotations

import multiprocessing
import os
from collections.abc import Callable, Sequence
from dataclasses import replace
from multiprocessing.connection import Connection
from typing import Any

import torch
from learner_kit import captured_gradients, rows_of, train
from torch.distributed import TCPStore

from online_dpo.learner import communication
from online_dpo.learner.communication import FOREVER, Communicator, TorchCommunicator
from online_dpo.learner.learner import Learner
from online_dpo.learner.spec import LearnerSpec

Action = Callable[..., Any]
"""What a rank does, given its `Communicator`; a function of this module, from which the other process imports it."""


class TwoRanks:
    """Joined by gloo until `close`."""

    def __init__(self) -> None:
        os.environ.setdefault("GLOO_SOCKET_IFNAME", "lo")
        store = TCPStore("127.0.0.1", 0, 2, is_master=True, wait_for_workers=False, timeout=FOREVER)
        context = multiprocessing.get_context("spawn")
        self._pipe, there = context.Pipe()
        self._process = context.Process(target=_serve, args=(there, store.port), daemon=True)
        self._process.start()
        self._ranks = TorchCommunicator(store, rank=0, size=2)

    def do(self, action: Action, *args: Any) -> Any:
        """Let both ranks act; what comes out of it, which must be the same for both."""
        mine, theirs = self.do_both(action, *args)
        assert mine == theirs
        return mine

    def do_both(self, action: Action, *args: Any) -> tuple[Any, Any]:
        """Let both ranks act."""
        self._pipe.send((action, args))
        mine = action(self._ranks, *args)
        return mine, self._pipe.recv()

    def close(self) -> None:
        self._pipe.send(None)
        self._process.join(60)
        self._ranks.close()


def _serve(pipe: Connection, port: int) -> None:
    store = TCPStore("127.0.0.1", port, 2, is_master=False, timeout=FOREVER)
    ranks = TorchCommunicator(store, rank=1, size=2)
    while (asked := pipe.recv()) is not None:
        action, args = asked
        pipe.send(action(ranks, *args))
    ranks.close()


def first_gradients(
    ranks: Communicator | None, spec: LearnerSpec, items: list[Any], reference: Any
) -> tuple[dict[str, list[float]], list[Any], dict[str, Any]]:
    """Of the first step in float64, the items with their reference log-probs, and the step's figures."""
    learner = Learner(spec, ranks)
    learner.model.double()
    ready = learner.reference_logps(items, [reference] if spec.objective.needs_reference else [])
    figures: list[dict[str, Any]] = []
    take = learner.step
    learner.step = lambda step: figures.append(take(step)) or figures[-1]  # type: ignore[method-assign,func-returns-value]
    found = captured_gradients(learner, ready)
    return {name: gradient.flatten().tolist() for name, gradient in found.items()}, ready, figures[0]


def rounds(
    ranks: Communicator | None,
    spec: LearnerSpec,
    items: list[Any],
    reference: Any,
    steps: Sequence[tuple[int, int]],
    files: dict[str, bytes] | None = None,
) -> tuple[list[dict[str, Any]], dict[str, bytes]]:
    """Figures of some steps `(round, step)`, from a checkpoint on if there is one, and the checkpoint after them."""
    learner = Learner(spec, ranks)
    items = learner.reference_logps(items, [reference])
    if files is not None:
        learner.restore(files)
    figures, begun = [], None
    for index, step in steps:
        if index != begun:
            learner.begin_round(index, items)
            begun = index
        figures.append(learner.step(step))
    return figures, learner.checkpoint()


def skip(
    ranks: Communicator,
    spec: LearnerSpec,
    items: list[Any],
    reference: Any,
    poison: dict[str, Any],
    culprits: list[int],
) -> tuple[dict[str, Any], list[str], bool, dict[str, Any]]:
    """A first step in which an item of each of some ranks is poisoned.

    Returns:
        The step's figures, the prompts of the poisoned items, whether weights and optimizer are what they were, and the
        figures of the step after it.
    """
    learner = Learner(spec, ranks)
    ready = learner.reference_logps(items, [reference])
    learner.begin_round(0, ready)
    share = learner._share([ready[i] for i in learner._batches[0]])
    bad = [first for rank, first in enumerate(ranks.gather(share[0])) if rank in culprits]
    learner.begin_round(0, [replace(item, **poison) if item in bad else item for item in ready])
    before = learner.checkpoint()
    skipped, after = learner.step(0), learner.checkpoint()
    is_unchanged = {name for name in before if before[name] != after[name]} == {"state.json"}
    return skipped, [item.prompt.prompt_id for item in bad], is_unchanged, learner.step(1)


def scores(ranks: Communicator | None, spec: LearnerSpec, pairs: list[Any], under: list[Any]) -> list[Any]:
    """Of every row of the pairs."""
    return Learner(spec, ranks).score(rows_of(pairs), under)


def drifting(ranks: Communicator, spec: LearnerSpec, items: list[Any]) -> tuple[dict[str, bytes], bool]:
    """A learner whose second rank's weights are not those of the first, before and after a step; whether they were."""
    learner = Learner(spec, ranks)
    ready = learner.reference_logps(items, [None])
    with torch.no_grad():
        for parameter in learner._parameters.values():
            parameter += 1e-6 * ranks.rank
    drifted = len(set(ranks.gather(learner.policy(0).digest))) == 2
    train(learner, ready, steps=range(1))
    return learner.policy(1).files(), drifted


def add(ranks: Communicator, values: list[list[float]], piece: int) -> list[float]:
    """The sum over ranks of each one's values, a few at a time."""
    before, communication.PIECE = communication.PIECE, piece
    mine = torch.tensor(values[ranks.rank])
    ranks.add(mine)
    communication.PIECE = before
    return [float(value) for value in mine]
