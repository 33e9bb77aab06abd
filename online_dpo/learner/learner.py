"""The learner: a plain class that scores rows and takes LoRA steps. No Ray, no clock, no file system but the model's.

A Ray actor hosts it by calling exactly these methods, so all arguments and results are records or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from online_dpo.errors import TrainingError
from online_dpo.learner import adapter_slots, checkpoints, lora_targets
from online_dpo.learner.batches import Batch
from online_dpo.learner.forward import Forward
from online_dpo.learner.frozen_models import load_model
from online_dpo.learner.gradients import Accumulation, NotFinite
from online_dpo.learner.grouping import round_batches
from online_dpo.learner.items import ItemKind, check_items, kind_of, kind_of_items
from online_dpo.learner.logprobs import LogpTensors
from online_dpo.learner.objectives import StepContext, make_objective
from online_dpo.learner.schedules import beta_at, learning_rate, run_position
from online_dpo.learner.spec import LearnerSpec
from online_dpo.types import Adapter, Item, Items, Row, Scores, WeightsRef, derive_seed


class Learner:
    """LoRA DPO on one device. Not thread-safe; between calls the policy is active, trainable and in eval mode."""

    def __init__(self, spec: LearnerSpec) -> None:
        """Load the base model, attach LoRA, build the optimizer.

        Raises:
            ModelError: a model does not load, its head is unknown, or an adapter does not fit.
        """
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base = load_model(spec.base, dtype=spec.dtype, device=self.device, quantization=spec.quantization)
        self.model = adapter_slots.attach(base, spec.lora, spec.adapter, seed=spec.seed)
        given: Any = None
        if isinstance(spec.reference, Adapter):
            adapter_slots.add_given(self.model, spec.reference)
        elif spec.reference is not None:
            given = load_model(spec.reference, dtype=spec.dtype, device=self.device)
        self._forward = Forward(self.model, spec.learner)
        self._given = None if given is None else Forward(given, spec.learner)
        self._parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        section = spec.learner
        self.optimizer = torch.optim.AdamW(
            self._parameters.values(), lr=section.peak_lr, weight_decay=section.weight_decay
        )
        self._initial = None if spec.adapter is None else self.policy(0)
        self._objective = make_objective(spec.objective)
        self._kind: ItemKind[Any] = kind_of_items(spec.objective)
        self._items: list[Any] = []
        self._beta_factor = 1.0
        self._batches: list[list[int]] = []
        self._position = checkpoints.TrainingPosition(round_index=-1, next_step=0, global_step=0)

    def notices(self) -> list[str]:
        """What the config asks for and this model or machine cannot give, one line each."""
        targets = lora_targets.notice(self.model, adapter_slots.POLICY)
        given = self._given.notices if self._given is not None else ()
        return [*([] if targets is None else [targets]), *self._forward.notices, *given]

    def initial_adapter(self) -> Adapter | None:
        """Version 0: the adapter that the run continues, or None when the initial policy is the base model."""
        return self._initial

    def policy(self, version: int) -> Adapter:
        """The current weights as bytes, stamped with a version."""
        return adapter_slots.snapshot(self.model, version=version, base_name=self.spec.model_name)

    def score(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> list[Scores]:
        """Log-probs and entropies of rows under each of several weights. Training state is left exactly as it is.

        Args:
            rows: in any order; they are batched by length within `learner.micro_batch_tokens`.
            under: an adapter, `"policy"` for the weights as they are now, `"reference_model"` for what the config's
                `reference.path` names, or None for the base model.

        Returns:
            One `Scores` per entry of `under`, rows in the order given; entropies for `"policy"` only.
        """
        results = []
        for weights in under:
            logps: list[tuple[float, ...]] = [()] * len(rows)
            entropies: list[tuple[float, ...]] = [()] * len(rows)
            with self._weights_of(weights) as forward:
                for group in forward.row_groups(rows):
                    scored = forward.scores([rows[i] for i in group])
                    for i, row_logps, row_entropies in zip(group, *scored, strict=True):
                        logps[i], entropies[i] = tuple(row_logps.tolist()), tuple(row_entropies.tolist())
            results.append(
                Scores(token_logps=tuple(logps), entropies=tuple(entropies) if weights == "policy" else None)
            )
        return results

    def reference_logps(self, items: Sequence[Item], references: Sequence[WeightsRef]) -> list[Item]:
        """The items with the log-probs that a reference gives to their completions, summed over tokens.

        Args:
            items: of a round.
            references: whose log-probs are averaged; None = the base model. Without any, the items come back as they
                are: the objective needs no reference.
        """
        if not references:
            return list(items)
        rows = [row for item in items for row in kind_of(item).scored_rows(item)]
        logps = [self._training_logps(rows, reference) for reference in references]
        found = iter(zip(*logps, strict=True))  # per row, its token log-probs under every reference
        return [
            kind.with_reference(item, [next(found) for _ in kind.scored_rows(item)])
            for item, kind in zip(items, map(kind_of, items), strict=True)
        ]

    @torch.no_grad()
    def _training_logps(self, rows: Sequence[Row], under: WeightsRef) -> list[list[float]]:
        """Token log-probs exactly as training computes them: a policy that is its reference has log-ratios of zero."""
        logps: list[list[float]] = [[]] * len(rows)
        with self._weights_of(under) as forward:
            for group in forward.row_groups(rows):
                found = forward.token_logps([rows[i] for i in group], training=False).logps
                for i, row in zip(group, found, strict=True):
                    logps[i] = row.tolist()
        return logps

    def begin_round(self, round_index: int, items: Items, beta_factor: float = 1.0) -> int:
        """Take a round's items. After `restore` inside this round, training goes on where the checkpoint stopped.

        Batches are as in `grouping.round_batches`: an own permutation per epoch, sizes that differ by at most one.

        Args:
            round_index: 0-based.
            items: what the objective trains on: pairs, or labelled answers.
            beta_factor: of this round; every configured beta is multiplied by it.

        Returns:
            Optimizer steps of this round, all epochs together.

        Raises:
            TrainingError: an item lacks what the objective needs.
        """
        check_items(items, self.spec.objective, round_index)
        self._objective.begin_round(items)
        section = self.spec.learner
        self._items = list(items)
        self._beta_factor = beta_factor
        self._batches = round_batches(
            len(items),
            section.batch_pairs,
            epochs=section.epochs,
            seed=self.spec.seed,
            round_index=round_index,
        )
        if round_index != self._position.round_index:
            fresh = self._objective.fresh_state
            self._position = replace(self._position, round_index=round_index, next_step=0, state=fresh)
        return len(self._batches)

    def step(self, step: int) -> dict[str, Any]:
        """One optimizer step on the global batch `step` of the round; gradients average over its items.

        A step whose loss or gradient is not finite is skipped: weights, optimizer and the objective's state stay as
        they are, and the next step is that of the next batch.

        Args:
            step: 0-based within the round; steps come in order.

        Returns:
            Finite numbers, means over the batch: `loss` (weighted, as optimised), `reward_accuracy` (share of pairs
            whose chosen log-ratio is larger, of labelled answers on their side of the KL estimate), `reward_margin`
            (beta times the difference of the log-ratios, as the objective normalises them), `chosen_logps`,
            `rejected_logps`, and with a reference `chosen_log_ratio`, `rejected_log_ratio` (nats per completion); and
            of the step: `grad_norm` (before clipping), `clipped` and `skipped` (0 or 1), `lr`, `beta`, `num_pairs` or
            `num_items`, `num_tokens` (of completions), and what the objective adds: `kl`, `bco_shift`. A skipped step
            has `skipped`, `lr`, `beta`, `bad_value` (`loss`, `KL estimate` or `gradient`) and `bad_ids`, the
            prompts of the items at fault.

        Raises:
            TrainingError: the step is not the next one.
        """
        position = self._position
        if step != position.next_step or step >= len(self._batches):
            raise TrainingError(
                f"round {position.round_index}: step {step} was asked for, but step {position.next_step} of "
                f"{len(self._batches)} is next; steps are taken in order, once each"
            )
        items = [self._items[i] for i in self._batches[step]]
        self.optimizer.zero_grad(set_to_none=True)
        try:
            return self._update(items)
        except NotFinite as fault:
            ids = list(dict.fromkeys(item.prompt.prompt_id for item in fault.items))
            figures = {"skipped": 1.0, "lr": self._lr, "beta": self._beta, "bad_value": fault.what, "bad_ids": ids}
            self._position = replace(position, next_step=step + 1)
            return figures
        finally:
            self.optimizer.zero_grad(set_to_none=True)

    def checkpoint(self) -> dict[str, bytes]:
        """File name -> content: the adapter, the optimizer's moments and the position. Safetensors and JSON only."""
        policy = self.policy(self._position.round_index)
        return policy.files() | checkpoints.pack(self._parameters, self.optimizer, self._position)

    def restore(self, files: Mapping[str, bytes]) -> None:
        """Become the learner that wrote `checkpoint`, bit for bit; `begin_round` of its round, then go on.

        Raises:
            RunDirectoryError: a file is missing or belongs to other parameters.
            ModelError: the adapter does not fit the model. The learner is unchanged in both cases.
        """
        position, state = checkpoints.unpack(files, self._parameters)
        adapter_slots.fill(self.model, adapter_slots.POLICY, Adapter.from_files(position.round_index, files))
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self._position = position

    def _update(self, items: list[Any]) -> dict[str, float]:
        """Take a step on a batch.

        Raises:
            NotFinite: nothing was updated.
        """
        position, section = self._position, self.spec.learner
        untrained = self._untrained_log_ratios(items)
        batch, outcome = self._accumulation(untrained).run(self._micro_batches(items))
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), section.max_grad_norm).item()
        if not math.isfinite(norm):
            raise NotFinite("gradient", self._with_bad_gradients(items, untrained))
        lr = self._lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self._position = replace(
            position,
            next_step=position.next_step + 1,
            global_step=position.global_step + 1,
            state=outcome.state,
        )
        return {
            **batch.describe(outcome, with_log_ratios=self.spec.objective.needs_reference),
            "grad_norm": norm,
            "clipped": float(norm > section.max_grad_norm),
            "skipped": 0.0,
            "lr": lr,
            "beta": outcome.beta,
            "num_tokens": float(sum(len(row.completion_ids) for row in self._trained_rows(items))),
        }

    def _accumulation(self, untrained_log_ratios: Tensor) -> Accumulation:
        """Losses and gradients of the step that is next."""
        position, objective = self._position, self._objective
        context = StepContext(
            position=self._place,
            beta_factor=self._beta_factor,
            state=position.state,
            untrained_log_ratios=untrained_log_ratios,
        )

        def forward(micro: int, items: Sequence[Any]) -> Batch:
            if adapter_slots.dropout_of(self.model) > 0.0:
                # A seed per micro-batch, rather than one stream, leaves no random state to save or to restore, and
                # gives the same masks to a second pass.
                parts = ("dropout", position.round_index, position.next_step, micro)
                torch.manual_seed(derive_seed(self.spec.seed, *parts))
            scored = self._token_logps(self._trained_rows(items), with_collision=objective.with_collision)
            return objective.batch_type.of(items, scored)

        return Accumulation(forward, partial(objective, context=context), is_coupled=objective.is_coupled)

    def _untrained_log_ratios(self, items: Sequence[Any]) -> Tensor:
        """`[M]` log-ratios of a whole batch's untrained rows, without dropout, so that micro-batches cannot matter.

        Raises:
            NotFinite: one of them is not finite.
        """
        found = [(item, row, reference) for item in items for row, reference in self._kind.untrained_rows(item)]
        logps = self._training_logps([row for _, row, _ in found], "policy")
        log_ratios = [sum(row) - (reference or 0.0) for row, (_, _, reference) in zip(logps, found, strict=True)]
        if bad := [item for (item, *_), value in zip(found, log_ratios, strict=True) if not math.isfinite(value)]:
            raise NotFinite("KL estimate", bad)
        return torch.tensor(log_ratios, dtype=torch.float64, device=self.device)

    def _token_logps(self, rows: Sequence[Row], *, with_collision: bool = False) -> LogpTensors:
        """Differentiable token log-probs of rows under the policy as it trains; the only place that asks for them."""
        return self._forward.token_logps(rows, training=True, with_collision=with_collision)

    def _micro_batches(self, items: Sequence[Any]) -> list[list[Any]]:
        """Items that go through the model together; the halves of a pair are never parted."""
        rows = [self._kind.trained_rows(item) for item in items]
        return [[items[i] for i in group] for group in self._forward.groups(rows)]

    def _trained_rows(self, items: Sequence[Any]) -> list[Row]:
        return [row for item in items for row in self._kind.trained_rows(item)]

    def _with_bad_gradients(self, items: Sequence[Any], untrained_log_ratios: Tensor) -> list[Any]:
        """The items whose own gradient is not finite; all of them if only their sum overflows."""
        bad = []
        for item in items:
            self.optimizer.zero_grad(set_to_none=True)
            self._accumulation(untrained_log_ratios).run([[item]])
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
                bad.append(item)
        return bad or list(items)

    @property
    def _place(self) -> float:
        """How much of the run lies before the next step."""
        at = self._position
        return run_position(at.round_index, at.next_step, num_steps=len(self._batches), rounds=self.spec.rounds)

    @property
    def _lr(self) -> float:
        return learning_rate(self.spec.learner, position=self._place, global_step=self._position.global_step)

    @property
    def _beta(self) -> float:
        return beta_at(self.spec.objective.betas[0], self._place) * self._beta_factor

    @contextmanager
    def _weights_of(self, under: WeightsRef) -> Iterator[Forward]:
        """What rows go through to be scored under other weights: the policy's model for the time being, or another."""
        if under == "reference_model" and self._given is not None:
            yield self._given
        else:
            with adapter_slots.weights_of(self.model, under):
                yield self._forward
