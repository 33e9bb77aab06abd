"""The learner: a plain class that scores rows and takes LoRA steps. No Ray, no clock, no file system but the model's.

A Ray actor hosts it by calling exactly these methods, so all arguments and results are records or bytes. Where several
ranks learn together, each is a `Learner`: all get the same calls with the same arguments, in the same order, and give
the same results.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from online_dpo.errors import TrainingError
from online_dpo.learner import adapter_slots, checkpoints, lora_targets
from online_dpo.learner.batches import Batch
from online_dpo.learner.communication import Alone, Communicator, add_gradients, follow_first
from online_dpo.learner.forward import Forward
from online_dpo.learner.frozen_models import load_model
from online_dpo.learner.gradients import Accumulation, NotFinite
from online_dpo.learner.grouping import deal, num_tokens, round_batches
from online_dpo.learner.items import ItemKind, check_items, kind_of, kind_of_items
from online_dpo.learner.logprobs import LogpTensors
from online_dpo.learner.objectives import StepContext, make_objective
from online_dpo.learner.schedules import beta_at, learning_rate, run_position
from online_dpo.learner.scoring import Scoring
from online_dpo.learner.spec import LearnerSpec
from online_dpo.types import Adapter, Item, Items, Row, Scores, TokenLogpRows, WeightsRef, derive_seed


class Learner:
    """LoRA DPO on one device. Not thread-safe; between calls the policy is active, trainable and in eval mode."""

    def __init__(self, spec: LearnerSpec, ranks: Communicator | None = None) -> None:
        """Load the base model, attach LoRA, build the optimizer.

        Args:
            spec: of the learner, the same on all ranks.
            ranks: that learn together; None = this one alone.

        Raises:
            ModelError: a model does not load, its head is unknown, or an adapter does not fit.
        """
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self.spec, self._ranks = spec, ranks or Alone()
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
        self._scoring = Scoring(self.model, self._forward, self._given, self._ranks)
        self._parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        follow_first(list(self._parameters.values()), self._ranks)
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
        mine = [*([] if targets is None else [targets]), *self._forward.notices, *given]
        return list(dict.fromkeys(line for lines in self._ranks.gather(mine) for line in lines))

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
        return [self._scoring.scores(rows, weights) for weights in under]

    def check_logps(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> list[TokenLogpRows]:
        """Log-probs of rows for a comparison with what an engine says, under each of several weights as in `score`.

        Where engines compute in bfloat16, so does this if training does: it is then several times as fast, and no
        further from the engine than the engine is from the truth.
        """
        if self.spec.engine_dtype == "float32":
            return [scores.token_logps for scores in self.score(rows, under)]
        return [self._scoring.training_logps(rows, weights) for weights in under]

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
        logps = [self._scoring.training_logps(rows, reference) for reference in references]
        found = iter(zip(*logps, strict=True))  # per row, its token log-probs under every reference
        return [
            kind.with_reference(item, [next(found) for _ in kind.scored_rows(item)])
            for item, kind in zip(items, map(kind_of, items), strict=True)
        ]

    def begin_round(self, round_index: int, items: Items, beta_factor: float = 1.0) -> int:
        """Take a round's items. After `restore` inside this round, training goes on where the checkpoint stopped.

        Batches are as in `grouping.round_batches`: an own permutation per epoch, sizes that differ by at most one.

        Args:
            round_index: 0-based.
            items: what the objective trains on: pairs, labelled answers, or demonstrations.
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
            `num_items`, `num_tokens` (that the loss is of), and what the objective adds: `kl`, `bco_shift`, `entropy`,
            `entropy_bonus`. SFT has a loss (nats per token) and neither rewards nor log-probs nor a `beta`. A skipped
            step has `skipped`, `lr`, `beta`, `bad_value` (`loss`, `KL estimate` or `gradient`) and `bad_ids`, the
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
            figures = {"skipped": 1.0, "lr": self._lr, **self._beta, "bad_value": fault.what, "bad_ids": ids}
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
        parameters, mine = list(self._parameters.values()), self._share(items)
        num_tokens = sum(map(self._kind.num_trained_tokens, items))
        context = StepContext(
            position=self._place,
            beta_factor=self._beta_factor,
            state=position.state,
            untrained_log_ratios=self._untrained_log_ratios(items),
            tokens_per_item=num_tokens / len(items),
        )
        batch, outcome = self._accumulation(context, self._ranks).run(self._micro_batches(mine), len(items))
        add_gradients(parameters, self._ranks)
        norm = torch.nn.utils.clip_grad_norm_(parameters, section.max_grad_norm).item()
        if not math.isfinite(norm):
            bad = [item for part in self._ranks.gather(self._with_bad_gradients(mine, context)) for item in part]
            raise NotFinite("gradient", bad or items)  # perhaps only their sum overflows
        lr = self._lr
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        follow_first(parameters, self._ranks)
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
            **({} if outcome.beta is None else {"beta": outcome.beta}),
            "num_tokens": float(num_tokens),
        }

    def _accumulation(self, context: StepContext, ranks: Communicator) -> Accumulation:
        """Losses and gradients of the step that is next, of which these ranks have the items."""
        position, objective = self._position, self._objective

        def forward(micro: int, items: Sequence[Any]) -> Batch:
            if adapter_slots.dropout_of(self.model) > 0.0:
                # A seed per micro-batch, rather than one stream, leaves no random state to save or to restore, and
                # gives the same masks to a second pass. No two ranks have the same one.
                number = micro * self._ranks.size + self._ranks.rank
                parts = ("dropout", position.round_index, position.next_step, number)
                torch.manual_seed(derive_seed(self.spec.seed, *parts))
            scored = self._token_logps(self._trained_rows(items))
            return objective.batch_type.of(items, scored)

        return Accumulation(
            forward,
            partial(objective, context=context),
            is_coupled=objective.is_coupled,
            ranks=ranks,
            device=self.device,
        )

    def _untrained_log_ratios(self, items: Sequence[Any]) -> Tensor:
        """`[M]` log-ratios of a whole batch's untrained rows, without dropout, so that micro-batches cannot matter.

        Raises:
            NotFinite: one of them is not finite.
        """
        found = [(item, row, reference) for item in items for row, reference in self._kind.untrained_rows(item)]
        logps = self._scoring.training_logps([row for _, row, _ in found], "policy")
        log_ratios = [sum(row) - (reference or 0.0) for row, (_, _, reference) in zip(logps, found, strict=True)]
        if bad := [item for (item, *_), value in zip(found, log_ratios, strict=True) if not math.isfinite(value)]:
            raise NotFinite("KL estimate", bad)
        return torch.tensor(log_ratios, dtype=torch.float64, device=self.device)

    def _token_logps(self, rows: Sequence[Row]) -> LogpTensors:
        """Differentiable token log-probs of rows under the policy as it trains; the only place that asks for them."""
        asks = {"with_collision": self._objective.with_collision, "with_entropy": self._objective.with_entropy}
        return self._forward.token_logps(rows, training=True, **asks)

    def _share(self, items: list[Any]) -> list[Any]:
        """This rank's items of a batch; the halves of a pair are never parted."""
        tokens = [num_tokens(self._kind.trained_rows(item)) for item in items]
        return [items[i] for i in deal(tokens, self._ranks.size)[self._ranks.rank]]

    def _micro_batches(self, items: Sequence[Any]) -> list[list[Any]]:
        """Items that go through the model together; the halves of a pair are never parted."""
        rows = [self._kind.trained_rows(item) for item in items]
        return [[items[i] for i in group] for group in self._forward.groups(rows)]

    def _trained_rows(self, items: Sequence[Any]) -> list[Row]:
        return [row for item in items for row in self._kind.trained_rows(item)]

    def _with_bad_gradients(self, items: Sequence[Any], context: StepContext) -> list[Any]:
        """Of this rank's items, those whose own gradient is not finite."""
        bad = []
        for item in items:
            self.optimizer.zero_grad(set_to_none=True)
            try:
                self._accumulation(context, Alone()).run([[item]], 1)
            except NotFinite:  # its loss is not, by itself; the other ranks wait for an answer
                bad.append(item)
                continue
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
                bad.append(item)
        return bad

    @property
    def _place(self) -> float:
        """How much of the run lies before the next step."""
        at = self._position
        return run_position(at.round_index, at.next_step, num_steps=len(self._batches), rounds=self.spec.rounds)

    @property
    def _lr(self) -> float:
        return learning_rate(self.spec.learner, position=self._place, global_step=self._position.global_step)

    @property
    def _beta(self) -> dict[str, float]:
        """The next step's, for the log; of the first term, and nothing where the objective has none."""
        betas = self.spec.objective.betas
        return {"beta": beta_at(betas[0], self._place) * self._beta_factor} if betas else {}
