"""A config's `objective` section as a function of a batch: the losses of `online_dpo.learner.losses`, composed.

What composes with every pairwise loss is applied around it and never inside it:

- the log-ratios are sums over tokens, in which the tokens beyond the length of the shorter answer count `ld_alpha`
  times (LD-DPO, arXiv:2409.06411); `length_normalise` divides by the number of tokens so counted (SimPO's mean);
- of a target margin, half is taken off the chosen log-ratio and half is added to the rejected one, so that it also
  reaches losses that depend on more than the difference of the two (arXiv:2405.14734's gamma, in reward units);
- soft labels give `p loss(w, l) + (1 - p) loss(l, w)` with the judge's probability p;
- WPO's weight multiplies the preference loss, without gradient (arXiv:2406.11827, eq. 2, sampled alignment);
- the supervised term adds `nll_weight` times the chosen answer's nats per token (arXiv:2404.19733, eq. 1);
- a pair's weight multiplies all of this.

`EntropyBonus` goes around any objective, those of labelled answers and demonstrations included.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Protocol, TypeAlias

import torch
from torch import Tensor

from online_dpo.config.objective.pairwise import AnyPairObjective, AOTObjective, BCOObjective, SigmoidObjective
from online_dpo.config.objective.section import KTOObjective, ObjectiveSection, SFTObjective, SumObjective
from online_dpo.errors import TrainingError
from online_dpo.learner import losses
from online_dpo.learner.batches import Batch, DemonstrationBatch, LabelledBatch, ObjectiveState, Outcome, PairBatch
from online_dpo.learner.losses import RunningMean
from online_dpo.learner.schedules import beta_at
from online_dpo.types import Demonstration, Labelled, Pair

PairLoss: TypeAlias = Callable[[Tensor, Tensor], Tensor]
"""`(chosen_log_ratio [P], rejected_log_ratio [P]) -> [P]`."""

_PLAIN: dict[str, Callable[..., Tensor]] = {
    "sigmoid": losses.sigmoid_loss,
    "ipo": losses.ipo_loss,
    "hinge": losses.hinge_loss,
    "simpo": losses.simpo_loss,
    "nca_pair": losses.nca_pair_loss,
    "sppo_hard": losses.sppo_hard_loss,
    "apo_zero": losses.apo_zero_loss,
    "apo_down": losses.apo_down_loss,
}
"""Losses without parameters of their own."""

_WITH_PARAMETER: dict[str, tuple[Callable[..., Tensor], str]] = {
    "cdpo": (losses.cdpo_loss, "label_smoothing"),
    "robust": (losses.robust_loss, "label_smoothing"),
    "exo_pair": (losses.exo_pair_loss, "label_smoothing"),
    "aot": (losses.aot_loss, "label_smoothing"),
    "dpop": (losses.dpop_loss, "penalty"),
    "discopop": (losses.discopop_loss, "tau"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class StepContext:
    """What an objective knows of a step besides the batch."""

    position: float  # share of the run that lies before the step; scheduled betas depend on it
    beta_factor: float  # of the round
    state: ObjectiveState  # before this batch
    untrained_log_ratios: Tensor  # [M] nats, of the untrained rows of the whole global batch; no gradient
    tokens_per_item: float  # trained tokens, mean over the global batch


class TrainingObjective(Protocol):
    """A function of a batch; the config's `objective` section names one."""

    @property
    def batch_type(self) -> type[Batch]: ...  # that it takes
    @property
    def is_coupled(self) -> bool: ...  # needs the whole global batch at once
    @property
    def with_collision(self) -> bool: ...  # as in `logprobs.token_logps`
    @property
    def with_entropy(self) -> bool: ...  # as there
    @property
    def fresh_state(self) -> ObjectiveState: ...  # at the beginning of a round

    def begin_round(self, items: Sequence[Any]) -> None:
        """Look at a round's items before any batch of them comes.

        Raises:
            TrainingError: the objective needs what an item does not have.
        """

    def __call__(self, batch: Any, context: StepContext) -> Outcome:
        """Losses of a batch: the global one where `is_coupled`, else any part of it."""


class PairTerm:
    """One pairwise loss with what it is composed with."""

    def __init__(self, section: AnyPairObjective) -> None:
        self.section = section
        self._mean_weight = 1.0

    @property
    def is_coupled(self) -> bool:
        """Whether a pair's loss depends on the other pairs of its batch."""
        section = self.section
        return isinstance(section, AOTObjective) or (isinstance(section, BCOObjective) and section.shift != "none")

    def begin_round(self, pairs: Sequence[Pair]) -> None:
        """Look at a round's pairs before any batch of them comes.

        Raises:
            TrainingError: the composition needs what a pair does not have.
        """
        section, kind = self.section, self.section.type
        asks = "soft_labels" if section.soft_labels else f"pair_weights {section.pair_weights}"
        for pair in pairs:
            judged = pair.probability is not None
            if not judged and (section.soft_labels or section.pair_weights != "given"):
                raise TrainingError(
                    f"objective.{asks} needs a judge's probability, and the pair of prompt {pair.prompt.prompt_id} is "
                    f"from a data set, which has none; remove it from the objective"
                )
            if isinstance(section, AOTObjective) and pair.weight != 1.0:
                raise TrainingError(
                    f"objective.type is {kind}, whose sorted log-ratios belong to no pair, and the pair of prompt "
                    f"{pair.prompt.prompt_id} has the weight {pair.weight}; choose another objective, or no weights"
                )
        raw = [self._raw_weight(pair.margin or 0.0, pair.probability or 0.0) for pair in pairs]
        self._mean_weight = sum(raw) / len(raw) if raw else 1.0

    def rewards(self, batch: PairBatch, beta: float) -> Tensor:
        """`[2, P]` beta times what the loss is a function of, before the target margin."""
        return beta * self._scores(batch)

    def losses(self, batch: PairBatch, beta: float, mean: RunningMean) -> tuple[Tensor, RunningMean]:
        """`[P]` losses, and the running mean with this batch in it."""
        section = self.section
        scores = self._scores(batch)
        shift = 0.5 * section.target_margin / beta
        if isinstance(section, BCOObjective):
            mean = mean.updated(beta * scores.detach().mean().item())
        if isinstance(section, AOTObjective) and not section.unpaired:
            policy, reference = self._composed(batch)
            loss = self._loss(beta, mean)(policy[0] - policy[1] - 2.0 * shift, reference[0] - reference[1])
        else:
            loss = self._loss(beta, mean)(scores[0] - shift, scores[1] + shift)
        if section.soft_labels:
            swapped = self._loss(beta, mean)(scores[1] - shift, scores[0] + shift)
            loss = batch.probability * loss + (1.0 - batch.probability) * swapped
        if section.wpo:
            loss = batch.alignment.sum(dim=0).exp() * loss
        if section.nll_weight:
            loss = loss - section.nll_weight * batch.logps[0] / batch.lengths[0]
        return loss * self._weights(batch), mean

    def _loss(self, beta: float, mean: RunningMean) -> PairLoss:
        """The loss that the section names, its parameters bound."""
        section = self.section
        if isinstance(section, BCOObjective):
            return partial(losses.bco_pair_loss, beta=beta, shift=0.0 if section.shift == "none" else mean.mean)
        if section.type in _PLAIN:
            return partial(_PLAIN[section.type], beta=beta)
        function, parameter = _WITH_PARAMETER[section.type]
        return partial(function, beta=beta, **{parameter: getattr(section, parameter)})

    def _scores(self, batch: PairBatch) -> Tensor:
        """`[2, P]` log-ratios, or what takes their place under another divergence."""
        policy, reference = self._composed(batch)
        section, log_ratios = self.section, policy - reference
        if isinstance(section, SigmoidObjective):
            return losses.divergence_score(log_ratios, divergence=section.divergence, alpha=section.alpha)
        return log_ratios

    def _composed(self, batch: PairBatch) -> tuple[Tensor, Tensor]:
        """`[2, P]` log-probs under policy and reference, tails and lengths treated alike."""
        section = self.section
        dropped = 0.0 if section.ld_alpha is None else 1.0 - section.ld_alpha
        policy = batch.logps - dropped * batch.tail_logps
        reference = batch.ref_logps - dropped * batch.ref_tail_logps
        if not section.needs_reference:
            reference = torch.zeros_like(reference)
        if section.length_normalise:
            lengths = batch.lengths - dropped * batch.tail_lengths
            policy, reference = policy / lengths, reference / lengths
        return policy, reference

    def _weights(self, batch: PairBatch) -> Tensor:
        if self.section.pair_weights == "given":
            return batch.weight
        raw = batch.margin if self.section.pair_weights == "margin" else 2.0 * batch.probability - 1.0
        return batch.weight * raw / self._mean_weight

    def _raw_weight(self, margin: float, probability: float) -> float:
        return {"given": 1.0, "margin": margin, "confidence": 2.0 * probability - 1.0}[self.section.pair_weights]


class PairwiseObjective:
    """One pairwise loss, or the weighted sum of several."""

    batch_type = PairBatch
    with_entropy = False

    def __init__(self, section: AnyPairObjective | SumObjective) -> None:
        terms = [(term.weight, term.objective) for term in section.terms] if section.type == "sum" else [(1.0, section)]
        self._terms = [(weight, PairTerm(part)) for weight, part in terms]
        self.is_coupled = any(term.is_coupled for _, term in self._terms)
        self.with_collision = any(term.section.wpo for _, term in self._terms)
        self.fresh_state: ObjectiveState = (RunningMean(),) * len(terms)

    def begin_round(self, pairs: Sequence[Pair]) -> None:
        """As `PairTerm.begin_round`, for every term."""
        for _, term in self._terms:
            term.begin_round(pairs)

    def __call__(self, batch: PairBatch, context: StepContext) -> Outcome:
        """As `TrainingObjective.__call__`, of `P` pairs."""
        parts, means, betas, figures = [], [], [], {}
        for (weight, term), mean in zip(self._terms, context.state, strict=True):
            beta = beta_at(term.section.beta, context.position) * context.beta_factor
            loss, mean = term.losses(batch, beta, mean)
            parts.append(weight * loss)
            means.append(mean)
            betas.append(beta)
            if isinstance(term.section, BCOObjective) and term.is_coupled:
                figures["bco_shift"] = mean.mean
        return Outcome(
            loss=torch.stack(parts).sum(dim=0),
            rewards=self._terms[0][1].rewards(batch, betas[0]).detach(),
            beta=betas[0],
            state=tuple(means),
            figures=figures,
        )


class LabelledObjective:
    """KTO. Its answers are coupled through the KL estimate alone, which has no gradient."""

    batch_type = LabelledBatch
    is_coupled = False
    with_collision = False
    with_entropy = False
    fresh_state: ObjectiveState = ()

    def __init__(self, section: KTOObjective) -> None:
        self.section = section

    def begin_round(self, items: Sequence[Labelled]) -> None:
        """Any labelled answer will do."""

    def __call__(self, batch: LabelledBatch, context: StepContext) -> Outcome:
        """As `TrainingObjective.__call__`, of `N` labelled answers; the untrained rows are mismatched completions."""
        section, kl = self.section, losses.kl_estimate(context.untrained_log_ratios)
        beta = beta_at(section.beta, context.position) * context.beta_factor
        log_ratios = batch.logps - batch.ref_logps
        loss = losses.kto_loss(
            log_ratios,
            batch.desirable,
            kl=kl,
            beta=beta,
            desirable_weight=section.desirable_weight,
            undesirable_weight=section.undesirable_weight,
        )
        return Outcome(
            loss=loss * batch.weight,
            rewards=(beta * log_ratios).detach(),
            beta=beta,
            state=(),
            figures={"kl": kl.item()},
        )


class ImitationObjective:
    """SFT: the mean negative log-likelihood of all trained tokens of a global batch, in nats, as TRL's `SFTTrainer`.

    A token counts the same in a long demonstration as in a short one. An item's loss is its own sum over the mean
    number of tokens of an item, so that the mean over items is the mean over tokens, however the batch is split.
    """

    batch_type = DemonstrationBatch
    is_coupled = False
    with_collision = False
    with_entropy = False
    fresh_state: ObjectiveState = ()

    def begin_round(self, items: Sequence[Demonstration]) -> None:
        """Any demonstration will do."""

    def __call__(self, batch: DemonstrationBatch, context: StepContext) -> Outcome:
        """As `TrainingObjective.__call__`, of `N` demonstrations."""
        loss = -batch.logps / context.tokens_per_item
        return Outcome(loss=loss, rewards=None, beta=None, state=(), figures={})


class EntropyBonus:
    """Any objective, with the policy's entropy in its favour: a weight times the mean over all trained tokens of the
    global batch, in nats, is taken off the mean loss. A pair's weight does not multiply it.

    As in `ImitationObjective`, an item's part is its own sum over the mean number of tokens of an item.
    """

    with_entropy = True

    def __init__(self, objective: TrainingObjective, weight: float) -> None:
        self._objective, self._weight = objective, weight
        self.batch_type, self.is_coupled = objective.batch_type, objective.is_coupled
        self.with_collision, self.fresh_state = objective.with_collision, objective.fresh_state

    def begin_round(self, items: Sequence[Any]) -> None:
        """As the objective's."""
        self._objective.begin_round(items)

    def __call__(self, batch: Any, context: StepContext) -> Outcome:
        """As `TrainingObjective.__call__`; adds the figures `entropy` (nats per token) and `entropy_bonus`."""
        outcome, entropy = self._objective(batch, context), batch.entropy / context.tokens_per_item
        mean = entropy.detach().mean().item()
        return replace(
            outcome,
            loss=outcome.loss - self._weight * entropy,
            figures={**outcome.figures, "entropy": mean, "entropy_bonus": self._weight * mean},
        )


def make_objective(section: ObjectiveSection) -> TrainingObjective:
    """The objective that a config names."""
    found: TrainingObjective
    if isinstance(section, SFTObjective):
        found = ImitationObjective()
    else:
        found = LabelledObjective(section) if isinstance(section, KTOObjective) else PairwiseObjective(section)
    return EntropyBonus(found, section.entropy_weight) if section.entropy_weight else found
