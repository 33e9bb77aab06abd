"""Optimizer state and position of a learner as files: safetensors and JSON, nothing that would be unpickled."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass

import torch
from safetensors import SafetensorError
from safetensors.torch import load as parse_safetensors
from safetensors.torch import save as write_safetensors
from torch import Tensor

from online_dpo.errors import RunDirectoryError
from online_dpo.learner.batches import ObjectiveState
from online_dpo.learner.losses import RunningMean

OPTIMIZER_FILE, STATE_FILE = "optimizer.safetensors", "state.json"


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainingPosition:
    """Where training stands. Learning rate, beta, batches and dropout masks all derive from it."""

    round_index: int  # -1 before the first round
    next_step: int  # within the round
    global_step: int  # optimizer steps of the run so far; skipped ones are none
    state: ObjectiveState = ()  # of the objective, within the round


def pack(
    parameters: Mapping[str, Tensor], optimizer: torch.optim.Optimizer, position: TrainingPosition
) -> dict[str, bytes]:
    """File name -> content.

    Args:
        parameters: all that the optimizer holds, by name; names, unlike positions, survive a change of order.
        optimizer: its state holds tensors only, as AdamW's does: `exp_avg`, `exp_avg_sq`, `step`.
        position: to be continued from.
    """
    tensors = {
        f"{kind}/{name}": value.detach().to("cpu").contiguous()
        for name, parameter in parameters.items()
        for kind, value in optimizer.state.get(parameter, {}).items()
    }
    return {
        OPTIMIZER_FILE: write_safetensors(dict(sorted(tensors.items())), metadata={"format": "pt"}),
        STATE_FILE: json.dumps(asdict(position), indent=2, sort_keys=True).encode(),
    }


def unpack(
    files: Mapping[str, bytes], parameters: Mapping[str, Tensor]
) -> tuple[TrainingPosition, dict[int, dict[str, Tensor]]]:
    """Read what `pack` wrote, beside an adapter's files.

    Returns:
        The position, and the `state` part of an optimizer's state dict over `parameters`, in their order.

    Raises:
        RunDirectoryError: a file is missing or unreadable, or belongs to other parameters.
    """
    missing = sorted({OPTIMIZER_FILE, STATE_FILE, "adapter_config.json", "adapter_model.safetensors"} - files.keys())
    if missing:
        raise RunDirectoryError(f"the learner's checkpoint lacks {', '.join(missing)}; resume from an earlier one")
    try:
        tensors = parse_safetensors(files[OPTIMIZER_FILE])
        fields = json.loads(files[STATE_FILE])
        position = TrainingPosition(**{**fields, "state": tuple(RunningMean(**mean) for mean in fields["state"])})
    except (SafetensorError, ValueError, TypeError, KeyError) as error:
        raise RunDirectoryError(
            f"the learner's checkpoint is not readable ({error}); resume from an earlier one"
        ) from None
    state: dict[int, dict[str, Tensor]] = {}
    order = {name: index for index, name in enumerate(parameters)}
    for key, tensor in tensors.items():
        kind, name = key.split("/", 1)
        fits = name in order and (kind == "step" or tensor.shape == parameters[name].shape)
        if not fits:
            raise RunDirectoryError(
                f"{OPTIMIZER_FILE} holds {kind} of {name} as {list(tensor.shape)}, which is no parameter of this "
                f"learner; resume with the model and learner.lora that the run began with"
            )
        state.setdefault(order[name], {})[kind] = tensor
    return position, state
