"""What a learner is made of."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from online_dpo.config.learner import LearnerSection, LoraSection
from online_dpo.config.objective.section import ObjectiveSection
from online_dpo.learner.frozen_models import ModelSource
from online_dpo.types import Adapter


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
    engine_dtype: Literal["float32", "bfloat16"] = "float32"  # of the engines that its log-probs are compared with
    quantization: Literal["nf4"] | None = None  # of the base's weights
    reference: Adapter | ModelSource | None = None  # what `reference.path` names; scored under "reference_model"

    @property
    def base(self) -> ModelSource:
        """The policy's base model."""
        return ModelSource(
            field="model.path",
            name=self.model_name,
            folder=self.model_folder,
            trust_remote_code=self.trust_remote_code,
        )
