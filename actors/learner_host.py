"""Hosts `online_dpo.learner.learner.Learner`; its methods are the actor's, unchanged."""

from __future__ import annotations

import gc

from actors.heartbeat import Progress, beat, here
from online_dpo.importing import quick_imports

with quick_imports():
    import torch
    from peft.tuners.lora import LoraLayer

    from online_dpo.learner.learner import Learner
    from online_dpo.learner.spec import LearnerSpec


class LearnerHost(Learner):
    """The learner in an actor's process."""

    def __init__(self, spec: LearnerSpec) -> None:
        super().__init__(spec)
        progress = Progress()
        for module in self.model.modules():
            if isinstance(module, LoraLayer):
                module.register_forward_pre_hook(progress.add)  # every pass comes by
        beat(progress.count)

    def release_memory(self) -> None:
        """Give back what PyTorch keeps of the GPU's memory for later; an engine that wakes needs it."""
        gc.collect()
        torch.cuda.empty_cache()  # does nothing without a GPU

    def ready(self) -> tuple[int, str]:
        """Process id and node, once the model is loaded."""
        return here()
