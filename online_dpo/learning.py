"""The learner: a plain class that scores rows and takes LoRA steps. No Ray, no clock, no file system but the model's.

A Ray actor hosts it by calling exactly these methods, so all arguments and results are records or bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal, NoReturn

import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from online_dpo import adapters, checkpoints
from online_dpo.batching import round_batches
from online_dpo.config import LearnerSection, LoraSection
from online_dpo.errors import ModelError, TrainingError
from online_dpo.forward import Forward
from online_dpo.items import lacks_reference, rows_of, with_reference
from online_dpo.logprobs import TokenLogps, verify_head
from online_dpo.losses import pair_loss
from online_dpo.objective_config import ObjectiveSection
from online_dpo.schedules import beta_at, learning_rate, run_position
from online_dpo.stages import Under
from online_dpo.types import Adapter, Item, Items, Pair, Row, Scores, derive_seed


@dataclass(frozen=True, kw_only=True)
class LearnerSpec:
    """What a learner is made of; picklable."""

    model_folder: str  # where the base model lies on this machine
    model_name: str  # what the config calls it; written into adapters
    dtype: Literal["float32", "bfloat16"]  # of the base; LoRA weights are float32 always
    trust_remote_code: bool
    lora: LoraSection | None  # of a new adapter; None = defaults
    adapter: Adapter | None  # to continue; it is then the initial policy
    learner: LearnerSection
    objective: ObjectiveSection
    seed: int  # of the run
    rounds: int  # of the run
    threads: int | None  # None = torch's default


class Learner:
    """LoRA DPO on one device. Not thread-safe; between calls the policy is active, trainable and in eval mode."""

    def __init__(self, spec: LearnerSpec) -> None:
        """Load the base model, attach LoRA, build the optimizer.

        Raises:
            ModelError: the model does not load, its head is unknown, or the adapter does not fit.
        """
        if spec.threads is not None:
            torch.set_num_threads(spec.threads)
        self.spec = spec
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        base = _load_base(spec).to(self.device)
        verify_head(base)
        self.model = adapters.attach(base, spec.lora, spec.adapter, seed=spec.seed)
        self._forward = Forward(self.model, spec.learner)
        self._parameters = {name: p for name, p in self.model.named_parameters() if p.requires_grad}
        section = spec.learner
        self.optimizer = torch.optim.AdamW(self._parameters.values(), lr=section.lr, weight_decay=section.weight_decay)
        self._initial = None if spec.adapter is None else self.policy(0)
        self._pairs: list[Pair] = []
        self._beta_factor = 1.0
        self._batches: list[list[int]] = []
        self._position = checkpoints.Position(round_index=-1, next_step=0, global_step=0)

    def notices(self) -> list[str]:
        """What the config asks for and this model or machine cannot give, one line each."""
        return self._forward.notices

    def initial_adapter(self) -> Adapter | None:
        """Version 0: the adapter that the run continues, or None when the initial policy is the base model."""
        return self._initial

    def policy(self, version: int) -> Adapter:
        """The current weights as bytes, stamped with a version."""
        return adapters.snapshot(self.model, version=version, base_name=self.spec.model_name)

    def score(self, rows: Sequence[Row], under: Sequence[Under]) -> list[Scores]:
        """Log-probs and entropies of rows under each of several weights. Training state is left exactly as it is.

        Args:
            rows: in any order; they are batched by length within `learner.micro_batch_tokens`.
            under: an adapter, `"policy"` for the weights as they are now, or None for the base model.

        Returns:
            One `Scores` per entry of `under`, rows in the order given; entropies for `"policy"` only.
        """
        results = []
        for weights in under:
            logps: list[tuple[float, ...]] = [()] * len(rows)
            entropies: list[tuple[float, ...]] = [()] * len(rows)
            with adapters.weights_of(self.model, weights):
                for group in self._forward.row_groups(rows):
                    scored = self._forward.scores([rows[i] for i in group])
                    for i, row_logps, row_entropies in zip(group, *scored, strict=True):
                        logps[i], entropies[i] = tuple(row_logps.tolist()), tuple(row_entropies.tolist())
            results.append(
                Scores(token_logps=tuple(logps), entropies=tuple(entropies) if weights == "policy" else None)
            )
        return results

    def reference_logps(self, items: Sequence[Item], references: Sequence[Under]) -> list[Item]:
        """The items with the log-probs that a reference gives to their completions, summed over tokens.

        Args:
            items: of a round.
            references: whose log-probs are averaged; None = the base model. Without any, the items come back as they
                are: the objective needs no reference.
        """
        if not references:
            return list(items)
        rows = [row for item in items for row in rows_of(item)]
        logps = [self._training_logps(rows, reference) for reference in references]
        found = iter(zip(*logps, strict=True))  # per row, its token log-probs under every reference
        return [with_reference(item, [next(found) for _ in rows_of(item)]) for item in items]

    @torch.no_grad()
    def _training_logps(self, rows: Sequence[Row], under: Under) -> list[list[float]]:
        """Token log-probs computed exactly as training computes them: a policy equal to its reference gains nothing."""
        logps: list[list[float]] = [[]] * len(rows)
        with adapters.weights_of(self.model, under):
            for group in self._forward.row_groups(rows):
                found = self._forward.token_logps([rows[i] for i in group], training=False).logps
                for i, row in zip(group, found, strict=True):
                    logps[i] = row.tolist()
        return logps

    def begin_round(self, round_index: int, items: Items, beta_factor: float = 1.0) -> int:
        """Take a round's items. After `restore` inside this round, training goes on where the checkpoint stopped.

        Batches are as in `batching.round_batches`: an own permutation per epoch, sizes that differ by at most one.

        Args:
            round_index: 0-based.
            items: what the objective trains on: pairs, or labelled answers.
            beta_factor: of this round; every configured beta is multiplied by it.

        Returns:
            Optimizer steps of this round, all epochs together.

        Raises:
            TrainingError: an item has no reference log-probs, and the objective reads them.
        """
        for item in items if self.spec.objective.needs_reference else ():
            if lacks_reference(item):
                raise TrainingError(
                    f"round {round_index}: an item of prompt {item.prompt.prompt_id} has no reference log-probs; "
                    f"call reference_logps first"
                )
        section = self.spec.learner
        self._pairs = [item for item in items if isinstance(item, Pair)]
        self._beta_factor = beta_factor
        self._batches = round_batches(
            len(items),
            section.batch_pairs,
            epochs=section.epochs,
            seed=self.spec.seed,
            round_index=round_index,
        )
        if round_index != self._position.round_index:
            self._position = replace(self._position, round_index=round_index, next_step=0)
        return len(self._batches)

    def step(self, step: int) -> dict[str, float]:
        """One optimizer step on the global batch `step` of the round; gradients average over its pairs.

        Args:
            step: 0-based within the round; steps come in order.

        Returns:
            Means over the batch: `loss` (weighted, as optimised), `implicit_accuracy` (share of pairs whose chosen
            gain is larger), `implicit_margin` (beta times the gap of the gains), `chosen_logps`, `rejected_logps`,
            `chosen_gain`, `rejected_gain` (nats per completion); and of the step: `grad_norm` (before clipping),
            `clipped` (0 or 1), `lr`, `num_pairs`, `num_tokens` (completion tokens of both halves).

        Raises:
            TrainingError: a loss or a gradient is not finite. Weights and optimizer are as before the call.
        """
        position = self._position
        if step != position.next_step or step >= len(self._batches):
            raise TrainingError(
                f"round {position.round_index}: step {step} was asked for, but step {position.next_step} of "
                f"{len(self._batches)} is next; steps are taken in order, once each"
            )
        pairs = [self._pairs[i] for i in self._batches[step]]
        self.optimizer.zero_grad(set_to_none=True)
        values = self._accumulate(pairs, step)
        section = self.spec.learner
        norm = torch.nn.utils.clip_grad_norm_(self._parameters.values(), section.max_grad_norm).item()
        if not math.isfinite(norm):
            self._refuse("gradient", step, self._with_bad_gradients(pairs))
        lr = learning_rate(
            section,
            position=run_position(position.round_index, step, num_steps=len(self._batches), rounds=self.spec.rounds),
            global_step=position.global_step,
        )
        beta, summary = self._beta, self._summary(values, pairs)
        for group in self.optimizer.param_groups:
            group["lr"] = lr
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self._position = replace(position, next_step=step + 1, global_step=position.global_step + 1)
        clipped = float(norm > section.max_grad_norm)
        return {**summary, "grad_norm": norm, "clipped": clipped, "lr": lr, "beta": beta}

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
        adapters.fill(self.model, adapters.POLICY, Adapter.from_files(position.round_index, files))
        self.optimizer.load_state_dict({"state": state, "param_groups": self.optimizer.state_dict()["param_groups"]})
        self._position = position

    def _accumulate(self, pairs: Sequence[Pair], step: int) -> dict[str, Tensor]:
        """Gradients of the batch's mean loss; returns each value of `_pair_values` for all pairs, detached, on CPU."""
        collected: list[dict[str, Tensor]] = []
        for micro, group in enumerate(self._micro_batches(pairs)):
            if self._dropout > 0.0:
                # A seed per micro-batch, rather than one stream, leaves no random state to save or to restore.
                seed = derive_seed(self.spec.seed, "dropout", self._position.round_index, step, micro)
                torch.manual_seed(seed)
            values = self._pair_values(group)
            if not bool(values["loss"].isfinite().all()):
                finite = values["loss"].isfinite().tolist()
                self._refuse("loss", step, [pair for pair, good in zip(group, finite, strict=True) if not good])
            # Each micro-batch adds its share of the mean over the global batch (DESIGN invariant 7).
            (values["loss"].sum() / len(pairs)).backward()
            collected.append({name: value.detach().cpu() for name, value in values.items()})
        return {name: torch.cat([values[name] for values in collected]) for name in collected[0]}

    def _pair_values(self, pairs: Sequence[Pair]) -> dict[str, Tensor]:
        """Forward pass over both halves of some pairs: `[P]` tensors by name, `loss` weighted."""
        answers = [pair.chosen for pair in pairs] + [pair.rejected for pair in pairs]
        rows = [Row.of(pair.prompt, answer) for pair, answer in zip([*pairs, *pairs], answers, strict=True)]
        token_logps = self._token_logps(rows).logps
        # The gain is a small difference of large sums: summed in float64, it keeps what the tokens' float32 has.
        chosen, rejected = torch.stack([row.sum(dtype=torch.float64) for row in token_logps]).chunk(2)
        chosen_gain = chosen - chosen.new_tensor([pair.chosen_ref_logps for pair in pairs])
        rejected_gain = rejected - rejected.new_tensor([pair.rejected_ref_logps for pair in pairs])
        loss = pair_loss(self.spec.objective, self._beta)(chosen_gain, rejected_gain) * chosen.new_tensor(
            [pair.weight for pair in pairs]
        )
        return {
            "loss": loss,
            "chosen_logps": chosen,
            "rejected_logps": rejected,
            "chosen_gain": chosen_gain,
            "rejected_gain": rejected_gain,
        }

    def _token_logps(self, rows: Sequence[Row], *, with_collision: bool = False) -> TokenLogps:
        """Differentiable token log-probs of rows under the policy as it trains; the only place that asks for them."""
        return self._forward.token_logps(rows, training=True, with_collision=with_collision)

    def _summary(self, values: dict[str, Tensor], pairs: Sequence[Pair]) -> dict[str, float]:
        gap = values["chosen_gain"] - values["rejected_gain"]
        return {
            **{name: value.double().mean().item() for name, value in values.items()},
            "implicit_accuracy": (gap > 0).double().mean().item(),
            "implicit_margin": self._beta * gap.double().mean().item(),
            "num_pairs": float(len(pairs)),
            "num_tokens": float(sum(len(p.chosen.token_ids) + len(p.rejected.token_ids) for p in pairs)),
        }

    def _micro_batches(self, pairs: Sequence[Pair]) -> Iterator[list[Pair]]:
        for group in self._forward.groups([rows_of(pair) for pair in pairs]):
            yield [pairs[i] for i in group]

    def _with_bad_gradients(self, pairs: Sequence[Pair]) -> list[Pair]:
        """The pairs whose own gradient is not finite; all of them if only their sum overflows."""
        bad = []
        for pair in pairs:
            self.optimizer.zero_grad(set_to_none=True)
            self._pair_values([pair])["loss"].sum().backward()
            gradients = [p.grad for p in self._parameters.values() if p.grad is not None]
            if not bool(torch.nn.utils.get_total_norm(gradients).isfinite()):
                bad.append(pair)
        return bad or list(pairs)

    def _refuse(self, what: str, step: int, pairs: Sequence[Pair]) -> NoReturn:
        self.optimizer.zero_grad(set_to_none=True)
        ids = ", ".join(pair.prompt.prompt_id for pair in pairs)
        raise TrainingError(
            f"round {self._position.round_index}, step {step}: the {what} is not finite for pairs of prompt {ids}; "
            f"the weights are those before this step: lower learner.lr, or look at these pairs"
        )

    @property
    def _beta(self) -> float:
        position = self._position
        place = run_position(
            position.round_index, position.next_step, num_steps=len(self._batches), rounds=self.spec.rounds
        )
        return beta_at(self.spec.objective.betas[0], place) * self._beta_factor

    @property
    def _dropout(self) -> float:
        config: Any = self.model.peft_config[adapters.POLICY]
        return float(config.lora_dropout)


def _load_base(spec: LearnerSpec) -> Any:
    try:
        return AutoModelForCausalLM.from_pretrained(
            spec.model_folder,
            dtype=getattr(torch, spec.dtype),
            trust_remote_code=spec.trust_remote_code,
        )
    except (OSError, ValueError) as error:
        first = str(error).strip().splitlines()[0]
        raise ModelError(
            f"model.path {spec.model_name} does not load as a causal language model: {first}; give a folder with "
            f"config.json and safetensors weights, or a hub id"
        ) from None
