"""Hosts `online_dpo.learner.learner.Learner`; its methods are the actor's, unchanged."""

from __future__ import annotations

import gc
from typing import Any

from actors.heartbeat import Progress, beat, here
from online_dpo.importing import quick_imports

with quick_imports():
    import torch
    from peft.tuners.lora import LoraLayer

    from actors.gang import Membership, join
    from online_dpo.learner.learner import Learner
    from online_dpo.learner.spec import LearnerSpec


class LearnerHost(Learner):
    """The learner, or one of its workers, in an actor's process."""

    def __init__(self, spec: LearnerSpec, membership: Membership | None = None) -> None:
        super().__init__(spec, None if membership is None else join(membership))
        progress = Progress()
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(progress.add)  # every pass comes by
        beat(progress.count)

    def take_part(self, method: str, *args: Any) -> None:
        """Do a worker's share of a call whose result the first worker sends."""
        getattr(self, method)(*args)

    def release_memory(self) -> None:
        """Give back what PyTorch keeps of the GPU's memory for later; an engine that wakes needs it."""
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU

    def ready(self) -> tuple[int, str]:
        """Process id and node, once the model is loaded."""
        return here()
