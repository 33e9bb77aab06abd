"""The `learner` section: the LoRA adapter and the updates that train it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator

from online_dpo.config.base import Auto, Count, NumGpus, Positive, Section, changeable

AUTO_LR, MAX_AUTO_LR, AUTO_LR_ALPHA = 0.36, 7e-4, 32.0
"""`lr: auto` is AUTO_LR / (hidden size * sqrt(layers)), at most MAX_AUTO_LR, at this alpha; see docs/results.md."""

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.32 accepts as max_lora_rank


class LoraSection(Section):
    """The shape of a new LoRA adapter."""

    r: int = Field(16, ge=1, le=512)
    """The rank."""
    alpha: float = Field(32.0, gt=0.0)
    """The numerator of the scale alpha / r, by which the adapter's product is multiplied."""
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    """The probability of dropping an input of the adapter in training."""
    targets: Literal["all-linear"] | list[str] = "all-linear"
    """The linear layers that are adapted: all but the head, or those whose names are given. Of a mixture of experts,
    all-linear means those of attention."""

    @field_validator("targets")
    @classmethod
    def _linear_layers_only(cls, value: str | list[str]) -> str | list[str]:
        if isinstance(value, list):
            refused = sorted({t for t in value if t.split(".")[-1] in ("embed_tokens", "lm_head")})
            if refused:
                raise ValueError(
                    f"contains {', '.join(refused)}; embeddings and heads may be tied or packed in the engine, so a "
                    f"pushed copy could go stale: choose linear layers, or all-linear"
                )
            if not value:
                raise ValueError("is empty; name linear layers, or use all-linear")
        return value


class LearnerSection(Section):
    """The optimizer (AdamW), its batches, and how the learner computes."""

    lr: Auto | Positive = "auto"
    """The peak learning rate. auto is 0.36 / (hidden size * square root of the number of layers), at most 7e-4, times
    32 / `lora.alpha`; the number is settled once and recorded."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate over the run. linear and cosine fall to 0 at its end and fix `run.rounds` on resume."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps at the start of the run, over which the learning rate rises to `lr`."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled weight decay."""
    lora: LoraSection | None = None
    """The adapter's shape. null means the defaults of that section, or the shape that `model.adapter` has."""
    batch_pairs: int = Field(16, ge=1)
    """Pairs of an optimizer step; completions where the objective is unpaired (KTO)."""
    micro_batch_tokens: int = Field(8192, ge=1)
    """Tokens of one forward pass. At least one pair is taken. It changes memory and speed, not what is learned."""
    layout: Literal["auto", "shared", "separate"] = "auto"
    """Whether the answers to a prompt share one copy of it in a forward pass. auto shares where it pays: on CPU, and on
    a GPU from 3 billion weights on, unless they are quantised."""
    autocast: Literal["auto", "bfloat16", "off"] = "auto"
    """The precision of matrix products. auto is bfloat16 on GPU and off (the precision of the weights) on CPU."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: less memory for about a third more time."""
    compile: bool = False
    """Whether what lies between the matrix products is compiled; on CPU this needs a C++ compiler."""
    epochs: int = Field(1, ge=1)
    """How often a round trains on each of its pairs."""
    max_grad_norm: float = Field(1.0, gt=0.0)
    """Gradients with a larger norm are scaled down to it."""
    checkpoint_steps: int = changeable(25, ge=0)
    """Optimizer steps between two checkpoints inside a round; 0 writes none."""
    num_workers: int = changeable(1, ge=1)
    """Processes (ranks) that share out the learner's work, each with a copy of the base model and a GPU of its own
    where there are GPUs. The same number gives the same bytes. Another number gives results that are equal within
    rounding; with `lora.dropout` it draws other masks."""
    num_gpus: Auto | NumGpus = changeable("auto")
    """GPUs that each of the learner's workers reserves; a fraction shares one. auto takes 1 where Ray has GPUs, else
    0."""
    threads: Auto | Count = "auto"
    """CPU threads of each of the learner's workers. auto shares all cores out among them; the number is settled once
    and recorded, and again where a run is continued with another `num_workers`."""

    @property
    def peak_lr(self) -> float:
        """`lr` as the number that it is once a run has begun."""
        if isinstance(self.lr, str):
            raise ValueError("learner.lr is auto: it is settled where the model is known")
        return self.lr
