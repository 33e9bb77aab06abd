"""The same token log-probs through the loss functions of TRL's trainers: values, and the gradient of every token."""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass, replace
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import torch
from objective_kit import Drawn, Rows, at, draw, evaluate, leaves
from torch import Tensor
from trl import DPOTrainer, KTOTrainer

from online_dpo.config.objective.section import KTOObjective
from online_dpo.learner.batches import LabelledBatch
from online_dpo.learner.logprobs import LogpTensors
from online_dpo.learner.objectives import LabelledObjective
from online_dpo.pairing.unpairing import unpair

BETA = 0.3


def padded(rows: list[Tensor]) -> Tensor:
    return torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)


def inputs_of(rows: list[Tensor], prefix: str = "") -> dict[str, Tensor]:
    """Prompts of one token."""
    mask = padded([torch.tensor([0] + [1] * len(row)) for row in rows])
    ids = torch.arange(mask.numel()).reshape(mask.shape)
    return {f"{prefix}input_ids": ids, f"{prefix}attention_mask": mask.clone(), f"{prefix}completion_mask": mask}


def outputs_of(rows: list[Tensor], collisions: list[Tensor] | None = None) -> SimpleNamespace:
    """What TRL's patched model returns."""
    logps = padded(rows)
    zeros = torch.zeros_like(logps).detach()
    return SimpleNamespace(
        log_probs=logps,
        log_sum_sq_probs=zeros if collisions is None else padded(collisions),
        entropy=zeros,
        mean_logits=zeros,
        is_top1=zeros.bool(),
    )


def trainer(**fields: Any) -> Any:
    """As much of a trainer as its loss function reads."""
    same = lambda value: value  # noqa: E731
    return SimpleNamespace(
        accelerator=SimpleNamespace(device=torch.device("cpu"), gather=same, gather_for_metrics=same),
        model=SimpleNamespace(training=True),
        aux_loss_enabled=False,
        precompute_ref_logps=True,
        beta=BETA,
        _metrics=defaultdict(lambda: defaultdict(list)),
        _total_train_tokens=0,
        _tp_size=1,
        **fields,
    )


def by_trl(drawn: Drawn, dtype: torch.dtype = torch.float64, **config: Any) -> tuple[float, Rows]:
    """`DPOTrainer`'s loss of the whole batch, and its gradient for every token."""
    fields = {
        "loss_types": ["sigmoid"],
        "loss_weights": [1.0] * len(config.get("loss_types", [0])),
        "label_smoothing": 0.0,
        "use_weighting": False,
        "ld_alpha": None,
        "f_divergence_type": "reverse_kl",
        "f_alpha_divergence_coef": 0.5,
        "args": SimpleNamespace(discopop_tau=0.05),
        **config,
    }
    policy = leaves(drawn.policy)
    order = [*range(0, len(policy), 2), *range(1, len(policy), 2)]  # TRL has the chosen rows first
    alpha = 1.0 if fields["ld_alpha"] is None else fields["ld_alpha"]
    reference = []
    for i, row in enumerate(drawn.reference):
        shared = drawn.pairs[i // 2].shared_length
        reference.append(sum(row[:shared]) + alpha * sum(row[shared:]))
    rows = [policy[i].to(dtype) for i in order]
    collisions = [torch.tensor(drawn.collisions[i], dtype=dtype) for i in order]

    class Model:
        def __call__(self, **_: Any) -> SimpleNamespace:
            return outputs_of(rows, collisions)

    inputs = inputs_of(rows) | {
        "ref_chosen_logps": torch.tensor(reference[::2], dtype=dtype),
        "ref_rejected_logps": torch.tensor(reference[1::2], dtype=dtype),
    }
    loss = DPOTrainer._compute_loss(trainer(**fields), Model(), inputs, False)
    return loss.item(), [g.tolist() for g in torch.autograd.grad(loss, policy, materialize_grads=True)]


@dataclass(frozen=True)
class Case:
    ours: dict[str, Any]
    theirs: dict[str, Any]
    constant: float = 0.0  # that TRL adds
    dtype: torch.dtype = torch.float64
    tolerance: float = 1e-12  # relative


def same(name: str, **options: Any) -> Case:
    return Case({"type": name, **options}, {"loss_types": [name], **options})


CASES = {
    **{name: same(name) for name in ("sigmoid", "hinge", "nca_pair", "sppo_hard", "discopop", "aot")},
    "exo_pair": Case(  # TRL's epsilon is float32
        {"type": "exo_pair", "label_smoothing": 0.01},
        {"loss_types": ["exo_pair"], "label_smoothing": 0.01},
        tolerance=1e-6,
    ),
    "robust": same("robust", label_smoothing=0.1),
    "aot with smoothing": same("aot", label_smoothing=0.1),
    "aot_unpaired": Case({"type": "aot", "unpaired": True}, {"loss_types": ["aot_unpaired"]}),
    "apo_zero": Case({"type": "apo_zero"}, {"loss_types": ["apo_zero"]}, constant=1.0),
    "apo_down": Case({"type": "apo_down"}, {"loss_types": ["apo_down"]}, constant=1.0),
    "ipo, TRL's form": Case({"type": "ipo", "length_normalise": True}, {"loss_types": ["ipo"]}),
    "bco, TRL's form": Case({"type": "bco_pair", "shift": "none"}, {"loss_types": ["bco_pair"]}),
    "sigmoid_norm": Case({"type": "sigmoid", "length_normalise": True}, {"loss_types": ["sigmoid_norm"]}),
    "ld_alpha": same("sigmoid", ld_alpha=0.4),
    "wpo": Case({"type": "sigmoid", "wpo": True}, {"loss_types": ["sigmoid"], "use_weighting": True}),
    "forward_kl": Case({"type": "sigmoid", "divergence": "forward_kl"}, {"f_divergence_type": "forward_kl"}),
    "js": Case({"type": "sigmoid", "divergence": "js"}, {"f_divergence_type": "js_divergence"}),
    "alpha": Case(  # 1 - alpha; only in the precisions that TRL clamps for
        {"type": "sigmoid", "divergence": "alpha", "alpha": 0.3},
        {"f_divergence_type": "alpha_divergence", "f_alpha_divergence_coef": 0.7},
        dtype=torch.float32,
        tolerance=1e-5,
    ),
    "sum": Case(
        {
            "type": "sum",
            "terms": [
                {"weight": 0.8, "objective": {"type": "sigmoid", "beta": BETA}},
                {"weight": 0.3, "objective": {"type": "aot", "beta": BETA}},
            ],
        },
        {"loss_types": ["sigmoid", "aot"], "loss_weights": [0.8, 0.3]},
    ),
}


@pytest.mark.parametrize("case", CASES.values(), ids=list(CASES))
def test_losses_and_gradients_are_those_of_trl_s_dpo_trainer(case):
    drawn = draw(6)
    drawn = replace(drawn, pairs=[replace(pair, weight=1.0) for pair in drawn.pairs])
    ours = case.ours if case.ours["type"] == "sum" else {"beta": BETA, **case.ours}
    outcome, gradients = evaluate(drawn, ours)
    loss, expected = by_trl(drawn, case.dtype, **case.theirs)
    assert outcome.loss.mean().item() + case.constant == pytest.approx(loss, rel=case.tolerance)
    for found, wanted in zip(gradients, expected, strict=True):
        assert found == pytest.approx(wanted, rel=case.tolerance, abs=case.tolerance * 1e-2)


@pytest.mark.parametrize("sign", [1.0, -1.0], ids=["policy above", "policy below, so that the KL is cut at zero"])
def test_losses_and_gradients_are_those_of_trl_s_kto_trainer(sign):
    drawn = draw(4)
    items = unpair(drawn.pairs)
    items = [replace(item, weight=1.0, ref_logps=sum(row)) for item, row in zip(items, drawn.reference, strict=True)]
    mismatched = [torch.full((len(item.kl_completion_ids),), -1.0, dtype=torch.float64) for item in items]
    kl_ref = [row.sum().item() - sign * 0.7 * (1 + i % 3) for i, row in enumerate(mismatched)]
    weights = {"desirable_weight": 1.3, "undesirable_weight": 0.8}

    policy = leaves(drawn.policy)
    section = KTOObjective(type="kto", beta=BETA, **weights)
    log_ratios = torch.stack([row.sum() for row in mismatched]) - torch.tensor(kl_ref, dtype=torch.float64)
    outcome = LabelledObjective(section)(
        LabelledBatch.of(items, LogpTensors(tuple(policy), None)), at((), untrained=log_ratios)
    )
    found = torch.autograd.grad(outcome.loss.mean(), policy)

    theirs = leaves(drawn.policy)
    inputs = inputs_of(theirs) | inputs_of(mismatched, "KL_")
    inputs |= {
        "label": torch.tensor([item.desirable for item in items]),
        "ref_logps": torch.tensor([item.ref_logps for item in items], dtype=torch.float64),
        "ref_KL_logps": torch.tensor(kl_ref, dtype=torch.float64),
    }

    class Model:
        def __call__(self, *, input_ids: Tensor, **_: Any) -> SimpleNamespace:
            return outputs_of(mismatched if input_ids is inputs["KL_input_ids"] else theirs)

    fake = trainer(calculate_KL=True, loss_type="kto", **weights)
    fake._compute_kl_logps = MethodType(KTOTrainer._compute_kl_logps, fake)
    loss = KTOTrainer._compute_loss(fake, Model(), inputs, False)
    expected = torch.autograd.grad(loss, theirs)
    assert outcome.loss.mean().item() == pytest.approx(loss.item(), rel=1e-12)
    assert outcome.figures["kl"] == pytest.approx(fake._metrics["train"]["kl"][0])
    assert (outcome.figures["kl"] > 0.0) == (sign > 0.0)
    for ours, trl in zip(found, expected, strict=True):
        torch.testing.assert_close(ours, trl, rtol=1e-12, atol=1e-15)
