"""The sections of judges: `judge`, each of `evaluation.judges`, and those that are inside another judge."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import Field

from online_dpo.config_base import Auto, Count, Section, changeable


class HostedJudge(Section):
    """What every judge's hosting actor needs."""

    batch_size: int = Field(64, ge=1)  # prompts handed to the judge in one call; never across shards
    concurrency: int = changeable(8, ge=1)  # calls in flight
    timeout_s: float = changeable(600.0, gt=0.0)
    retries: int = changeable(2, ge=0)  # after an exception or a timeout; what then still fails abstains
    num_cpus: float = changeable(1.0, ge=0.0)
    num_gpus: float = changeable(0.0, ge=0.0)
    threads: Auto | Count = "auto"


class RewardModelJudge(HostedJudge):
    """A sequence-classification model with its own tokenizer and chat template."""

    type: Literal["reward_model"]
    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    max_tokens: int | None = Field(None, ge=8)  # longer inputs lose the start of the prompt; None = the model's context
    batch_tokens: int = Field(8192, ge=1)  # padded tokens in one forward pass
    trust_remote_code: bool = False


class PythonJudge(HostedJudge):
    """A function or class of the user's: `package.module:name`, `path/to/file.py:name`, or `embedded:gold`."""

    type: Literal["python"]
    target: str
    args: dict[str, Any] = Field(default_factory=dict)


JudgeSection = Annotated[RewardModelJudge | PythonJudge, Field(discriminator="type")]
