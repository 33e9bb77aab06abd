"""Every objective with items for it; and pairs with token log-probs drawn at random, for objectives without a model."""

from __future__ import annotations

import random
from dataclasses import dataclass, replace
from typing import Any

import torch
from learner_kit import make_pairs
from torch import Tensor

from online_dpo.config.objective.pairwise import Objective
from online_dpo.config.objective.section import MEMBERS
from online_dpo.learner.batches import ObjectiveState, Outcome, PairBatch
from online_dpo.learner.items import PAIRS
from online_dpo.learner.learner import Learner
from online_dpo.learner.logprobs import LogpTensors
from online_dpo.learner.objectives import PairwiseObjective, StepContext
from online_dpo.pairing.unpairing import unpair
from online_dpo.types import Adapter, Demonstration, Pair

Rows = list[list[float]]


@dataclass(frozen=True)
class Drawn:
    """Pairs and, row by row (chosen and rejected in turn), token log-probs and log collision probabilities."""

    pairs: list[Pair]
    policy: Rows
    reference: Rows
    collisions: Rows

    def sides(self, index: int) -> tuple[slice, int]:
        return slice(2 * index, 2 * index + 2), self.pairs[index].shared_length


def draw(count: int = 5, seed: int = 0) -> Drawn:
    """Different lengths, margins, probabilities and weights; log-ratios of a few nats."""
    rng = random.Random(seed)
    pairs = make_pairs(count, seed=seed)
    pairs = [
        replace(pair, margin=0.2 + i, probability=0.55 + 0.08 * i, weight=0.5 + 0.3 * i) for i, pair in enumerate(pairs)
    ]
    lengths = [len(answer.token_ids) for pair in pairs for answer in (pair.chosen, pair.rejected)]

    def rows(low: float, high: float) -> Rows:
        return [[rng.uniform(low, high) for _ in range(length)] for length in lengths]

    policy, reference, collisions = rows(-3.0, -0.1), rows(-3.0, -0.1), rows(-2.5, -0.5)
    pairs = [
        PAIRS.with_reference(pair, [[row] for row in reference[2 * i : 2 * i + 2]]) for i, pair in enumerate(pairs)
    ]
    return Drawn(pairs, policy, reference, collisions)


def leaves(rows: Rows) -> list[Tensor]:
    return [torch.tensor(row, dtype=torch.float64, requires_grad=True) for row in rows]


def at(
    state: ObjectiveState, *, position: float = 0.0, beta_factor: float = 1.0, untrained: Tensor | None = None
) -> StepContext:
    """A step's context."""
    log_ratios = torch.zeros(0, dtype=torch.float64) if untrained is None else untrained
    return StepContext(
        position=position,
        beta_factor=beta_factor,
        state=state,
        untrained_log_ratios=log_ratios,
        tokens_per_item=1.0,
    )


def evaluate(drawn: Drawn, section: dict[str, Any]) -> tuple[Outcome, Rows]:
    """An objective's outcome on the drawn pairs, and the gradient of its mean loss for every token."""
    objective = PairwiseObjective(MEMBERS[section["type"]].model_validate(section))  # type: ignore[arg-type]
    objective.begin_round(drawn.pairs)
    policy = leaves(drawn.policy)
    collisions = tuple(torch.tensor(row, dtype=torch.float64) for row in drawn.collisions)
    batch = PairBatch.of(drawn.pairs, LogpTensors(tuple(policy), collisions if objective.with_collision else None))
    outcome = objective(batch, at(objective.fresh_state))
    return outcome, [g.tolist() for g in torch.autograd.grad(outcome.loss.mean(), policy, materialize_grads=True)]


def section(name: str, **options: Any) -> Objective:
    return MEMBERS[name].model_validate({"type": name, **options})


def items_for(objective: Objective, count: int) -> list[Any]:
    pairs = make_pairs(count)
    if objective.type == "sft":
        return [demonstration_of(pair) for pair in pairs]
    return unpair(pairs) if objective.is_unpaired else pairs


def demonstration_of(pair: Pair) -> Demonstration:
    """Its chosen answer as a conversation: every third token is another's, and not trained on."""
    flags = tuple(place % 3 != 1 for place in range(len(pair.chosen.token_ids)))
    return Demonstration(prompt=pair.prompt, completion=pair.chosen, trained=flags)


def ready(learner: Learner, items: list[Any], reference: Adapter | None) -> list[Any]:
    return learner.reference_logps(items, [reference] if learner.spec.objective.needs_reference else [])


OBJECTIVES = {
    **{name: section(name) for name in MEMBERS if name != "sum"},
    "aot unpaired": section("aot", unpaired=True),
    **{f"{name} with entropy": section(name, entropy_weight=0.7) for name in ("aot", "kto", "sft")},
    "sum": section(
        "sum",
        terms=[
            {"weight": 0.5, "objective": {"type": "aot", "ld_alpha": 0.5, "length_normalise": True, "nll_weight": 0.1}},
            {"objective": {"type": "bco_pair", "wpo": True, "soft_labels": True, "target_margin": 0.3}},
            {"objective": {"type": "sigmoid", "divergence": "js", "pair_weights": "margin"}},
        ],
    ),
}
