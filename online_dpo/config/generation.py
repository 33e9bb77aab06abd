"""The `sampling` and `generator` sections: what is sampled, and the vLLM engines that sample it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Auto, Count, NumGpus, Positive, Section, changeable


class SamplingSection(Section):
    """How the completions of a training round are sampled."""

    num_samples: int = 4
    """Completions per prompt; at least 2, since a pair needs two, or 1 where there are `candidates`."""
    temperature: float = Field(1.0, gt=0.0)
    """The sampling temperature."""
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    """The probability mass that nucleus sampling keeps; 1 keeps all tokens."""
    max_tokens: int = Field(256, ge=1)
    """The longest completion in tokens, of evaluation samples too."""
    stop: list[str] = Field([])
    """Strings that end a completion, besides the model's own end tokens."""
    truncated: Literal["keep", "drop", "penalise"] = "keep"
    """What becomes of a completion that reached `max_tokens`: it stays, it is dropped, or its score is lowered."""
    truncated_penalty: float | None = Field(None, gt=0.0)
    """What `truncated: penalise` takes off the score of a truncated completion. null means 1.0."""

    @field_validator("num_samples")
    @classmethod
    def _at_least_a_pair(cls, value: int) -> int:
        if value < 1:
            raise ValueError(f"is {value}; a pair needs at least 2 completions per prompt")
        return value

    @model_validator(mode="after")
    def _penalty_is_read(self) -> SamplingSection:
        if self.truncated_penalty is not None and self.truncated != "penalise":
            raise ValueError(
                f"truncated_penalty is set but truncated is {self.truncated}; set truncated: penalise or remove it"
            )
        return self


class GeneratorSection(Section):
    """The vLLM engines that sample, and how weights and shards reach them."""

    replicas: int = changeable(1, ge=1)
    """The number of engines that sample side by side."""
    tensor_parallel: int = Field(1, ge=1)
    """The number of GPUs (on CPU: of worker processes) that one engine is split over."""
    num_gpus: Auto | NumGpus = changeable("auto")
    """GPUs that a replica reserves; a fraction shares one. auto takes `tensor_parallel` where Ray has GPUs, else 0."""
    gpu_memory_utilization: float = changeable(0.6, gt=0.0, le=1.0)
    """The share of a GPU's memory that an engine may use."""
    kv_cache_gib: int = changeable(1, ge=1)
    """GiB of memory for an engine's KV cache on CPU, where vLLM would otherwise take a share of all memory."""
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    """The precision that an engine computes in, which need not be the learner's. auto is `model.dtype`."""
    weight_push: Literal["auto", "merge", "lora"] = "auto"
    """How an engine gets new weights: merged into its own, or as a LoRA adapter, which slows sampling down. auto
    merges, except where the base is quantised."""
    shard_prompts: int = Field(64, ge=1)
    """The number of prompts that an engine samples in one call, and that are committed together."""
    block_size: int | None = Field(None, ge=1)
    """Tokens of a KV-cache block; on CPU a multiple of 32. null leaves the choice to vLLM."""
    enforce_eager: Auto | bool = "auto"
    """Whether engines run without compiling. auto runs eagerly on CPU, where no compiler is then needed, and compiles
    on GPU."""
    threads: Auto | Count = "auto"
    """CPU threads of an engine on CPU. auto takes all cores; the number is settled once and recorded."""
    rescored: Literal["all"] | Count = changeable("all")
    """How many samples of an engine's first shard after a push the learner scores too, which checks the weights."""
    tolerance: Auto | Positive = changeable("auto")
    """The largest accepted gap between the log-probs of engine and learner, as a mean in nats per token; beyond it the
    run stops. auto is 1e-3 where both compute in float32, and 5e-2 where one of them computes in bfloat16."""
