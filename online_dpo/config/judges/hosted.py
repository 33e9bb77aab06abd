"""The sections of judges that answer by themselves: reward models, code of yours, verifiers; and what all need.

The judges that ask a chat model are in `llm`.
"""

from __future__ import annotations

import re
from typing import Annotated, Any, ClassVar, Literal

from pydantic import Field, field_validator

from online_dpo.config.base import Auto, Count, Place, Section, changeable
from online_dpo.config.judges.view import ViewingSection


class HostedJudge(ViewingSection):
    """What the actor that hosts a judge needs, whatever the kind."""

    about: ClassVar[str] = ""
    """What `online-dpo judges` says about the kind."""

    batch_size: int = Field(64, ge=1)
    """Prompts that the judge gets in one call; a call never reaches across shards."""
    concurrency: int = changeable(8, ge=1)
    """Calls that are under way at the same time."""
    timeout_s: float = changeable(600.0, gt=0.0)
    """Seconds that a call may take."""
    retries: int = changeable(2, ge=0)
    """How often a call is tried again after an exception or a timeout; if it still fails, the judge abstains."""
    num_cpus: float = changeable(1.0, ge=0.0)
    """Logical CPUs that the judge's actor reserves in Ray."""
    num_gpus: float = changeable(0.0, ge=0.0)
    """GPUs that the judge's actor reserves; a fraction shares one."""
    threads: Auto | Count = "auto"
    """CPU threads of the judge. auto takes half of the cores; the number is settled once and recorded."""


class ScoringEngineSection(Section):
    """A vLLM engine that a reward model runs in; the actor that hosts the judge starts it."""

    gpu_memory_utilization: float = changeable(0.3, gt=0.0, le=1.0)
    """The share of a GPU's memory that the engine may use."""
    kv_cache_gib: int = changeable(1, ge=1)
    """GiB of memory for the engine's KV cache on CPU."""


class ClassifierJudge(HostedJudge):
    """A model with a classification head, with its own tokenizer and chat template."""

    path: Place
    """A folder or a hub id; of a reward model also `embedded:reward`, the tiny one that ships with the package."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number format of the weights."""
    max_tokens: int | None = Field(None, ge=8)
    """The longest input in tokens; longer ones lose the start of the prompt. null takes the model's context."""
    batch_tokens: int = Field(8192, ge=1)
    """Tokens of one forward pass, padding included (an engine needs none)."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class RewardModelJudge(ClassifierJudge):
    """A sequence-classification model with its own tokenizer and chat template."""

    about = "a sequence-classification model with its own tokenizer and chat template"

    type: Literal["reward_model"]
    output: Annotated[int, Field(ge=0)] | list[float] | None = None
    """How a model with several outputs gives one score: the position of one, or a weight for each. null: docs/judges.md
    says which models need neither."""
    engine: ScoringEngineSection | None = None
    """A vLLM engine to run the model in. null runs it in transformers."""


class ProcessRewardModelJudge(ClassifierJudge):
    """A token-classification model that scores every step of a completion; its scores are aggregated."""

    about = "a token-classification model that scores every step of a completion"

    type: Literal["process_reward_model"]
    marker: str = Field(min_length=1)
    """The text that the model was trained to find after each step, such as `<extra_0>`; a step's score is read at its
    last token."""
    separator: str = Field("\n\n", min_length=1)
    """The text between two steps of a completion."""
    label: int | None = Field(None, ge=0)
    """The position, from 0, of the label of a good step, whose probability is the step's score. null: the second of two
    labels, or the only one."""
    aggregate: Literal["min", "mean", "product", "last"] = "min"
    """How the steps' scores become one."""


class IsolatedJudge(HostedJudge):
    """A judge that works in a process of its own, which is killed and replaced where it hangs."""

    memory_limit_gb: float | None = changeable(None, gt=0.0)
    """Resident memory in GB that this process may take; above it the process is killed, and its call fails. null takes
    half of the machine's memory."""


class PythonJudge(IsolatedJudge):
    """A function or class of yours."""

    about = "a function or class of yours, from a file, a package, or an installed entry point"

    type: Literal["python"]
    target: Place
    """`path/to/file.py:name`, `package.module:name`, `embedded:gold`, or the name of an installed entry point."""
    args: dict[str, Any] = Field({})
    """Further keyword arguments of a function, or the arguments of a class's constructor."""
    both_orders: bool = False
    """Whether `compare` is asked about (a, b) and (b, a); pairs then take the mean."""


class VerifierJudge(IsolatedJudge):
    """Compares the answer that a completion ends with to a column of the prompt's source: 1 = right, 0 = wrong."""

    about = "1 where a completion's final answer is the one in a column of the prompts, 0 where it is not"

    type: Literal["verifier"]
    method: Literal["exact", "regex", "numeric", "symbolic"]
    """How two answers are compared: as text, by a regular expression, as numbers, or as expressions."""
    answer: str
    """The column of the prompt's source that holds the right answer; with `method: regex` a regular expression."""
    pattern: str | None = None
    """A regular expression that finds the answer in a completion: its last match, the first group where it has one.
    null takes the final answer."""
    reference_pattern: str | None = None
    """The same for the column, such as '#### (.*)'. null takes the final answer in it."""
    tolerance: float | None = Field(None, ge=0.0)
    """The largest relative difference of two equal numbers. null: an integer must be the same, others agree to 1e-9."""
    unreadable: Literal["wrong", "abstain"] = "wrong"
    """What a completion gets in which no answer is found."""

    @field_validator("pattern", "reference_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            check_regex(value)
        return value


def check_regex(value: str) -> str:
    """The value itself.

    Raises:
        ValueError: it is no regular expression.
    """
    try:
        re.compile(value)
    except (re.error, OverflowError, RecursionError) as error:
        raise ValueError(f"is {value!r}, which is no regular expression ({error}); correct it") from None
    return value
