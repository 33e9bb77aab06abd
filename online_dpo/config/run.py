"""What a run is made of. Pydantic models: unknown keys are errors, unions are told apart by `type`.

This module imports neither torch nor ray nor vllm: `online-dpo validate` answers at once. Loading from YAML with
dotted overrides, and the wording of errors, is in `config_loading`; the `objective` section in `objective_config`,
those of judges in `judge_config`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Auto, Count, Name, Section, Share, Tolerance, changeable
from online_dpo.config.control import AlarmSection, DriftSection, FixedReference, ReferenceSection, check_control
from online_dpo.config.judges import JudgeSection
from online_dpo.config.objective import ObjectiveSection, SigmoidObjective
from online_dpo.config.pairing import PairingSection, check_pairing
from online_dpo.config.preferences import DEFAULT_MAX_TOKENS, EvaluationPairs, PairsSection, check_pairs

LORA_RANKS = (1, 8, 16, 32, 64, 128, 256, 320, 512)  # what vLLM 0.32 accepts as max_lora_rank


class RunSection(Section):
    name: Name = changeable("run")  # with `dir` it is the run directory, which may be moved
    dir: str = changeable("runs")
    rounds: int = Field(5, ge=1)
    seed: int = Field(0, ge=0)
    keep_optimizer: Literal["last", "all"] = changeable("last")


class ModelSection(Section):
    path: str  # a folder, a hub id, or embedded:policy
    adapter: str | None = None  # a PEFT LoRA folder to continue; it is then the initial policy
    dtype: Literal["float32", "bfloat16"] = "float32"
    trust_remote_code: bool = False


class PromptsSection(Section):
    source: str  # a hub id, a .jsonl/.jsonl.gz/.json/.parquet/.csv file, or embedded:openings/train
    subset: str | None = None  # the `name` of a hub data set's configuration
    split: str = "train"
    field: str = "prompt"
    per_round: int = Field(128, ge=1)
    max_tokens: int = Field(512, ge=1)  # longer prompts are dropped and counted
    chat_template_kwargs: dict[str, Any] = Field(default_factory=dict)


class SamplingSection(Section):
    num_samples: int = 4
    temperature: float = Field(1.0, gt=0.0)
    top_p: float = Field(1.0, gt=0.0, le=1.0)
    max_tokens: int = Field(256, ge=1)
    stop: list[str] = Field(default_factory=list)
    truncated: Literal["keep", "drop", "penalise"] = "keep"
    truncated_penalty: float | None = Field(None, gt=0.0)  # taken off a truncated answer's score; None = 1.0

    @field_validator("num_samples")
    @classmethod
    def _at_least_a_pair(cls, value: int) -> int:
        if value < 2:
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
    replicas: int = changeable(1, ge=1)
    tensor_parallel: int = Field(1, ge=1)
    num_gpus: Auto | Share = changeable("auto")  # per replica; auto = tensor_parallel where Ray has GPUs, else 0
    gpu_memory_utilization: float = changeable(0.6, gt=0.0, le=1.0)
    kv_cache_gib: int = changeable(1, ge=1)  # CPU only: vLLM would otherwise take a share of all memory
    weight_push: Literal["auto", "merge", "lora"] = "auto"
    shard_prompts: int = Field(64, ge=1)
    block_size: int | None = Field(None, ge=1)  # None = vLLM's choice; on CPU a multiple of 32
    enforce_eager: Auto | bool = "auto"  # auto = eager on CPU (no compiler needed), compiled on GPU
    threads: Auto | Count = "auto"  # CPU only; auto = all cores, resolved once and recorded
    max_restarts: int = changeable(1, ge=0)  # how often a shard is tried again after its engine died
    rescored: Literal["all"] | Count = changeable(
        "all"
    )  # samples of an engine's first shard that the learner re-scores
    tolerance: Auto | Tolerance = changeable("auto")  # nats per token, mean; auto = 1e-3 in fp32, 5e-2 in bf16


class EvaluationSet(Section):
    source: str
    subset: str | None = None
    split: str = "train"
    field: str = "prompt"
    count: int = Field(64, ge=1)


class EvaluationSection(Section):
    """Fresh samples at temperature 1, top_p 1 from the updated policy: judge scores, KL, entropy, length, diversity.

    And held-out pairs: whether the policy prefers what people preferred, which takes no samples.
    """

    sets: dict[Name, EvaluationSet] = Field(default_factory=dict)
    judges: dict[Name, JudgeSection] = Field(default_factory=dict)  # besides the training judge
    pairs: dict[Name, EvaluationPairs] = Field(default_factory=dict)
    every: int = Field(1, ge=1)  # rounds

    @field_validator("judges")
    @classmethod
    def _reward_is_taken(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "reward" in value:
            raise ValueError("has a judge named reward; that name is the training judge's, choose another")
        return value


class VerdictsSection(Section):
    """What a round asks of its judges beyond a verdict on each prompt."""

    # Share of a round's prompts that the training judge must label: have an opinion on at least two completions.
    min_coverage: float = changeable(0.5, ge=0.0, le=1.0)
    # Share of prompts that judges are asked about a second time, past any cache, to see whether they repeat what they
    # said; evaluation judges on their own sets. Nobody pays for it unasked.
    repeated: float = Field(0.0, ge=0.0, le=1.0)


class LoraSection(Section):
    r: int = Field(16, ge=1, le=512)
    alpha: float = Field(32, gt=0.0)
    dropout: float = Field(0.0, ge=0.0, lt=1.0)
    targets: Literal["all-linear"] | list[str] = "all-linear"

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
    lr: float = Field(5e-6, gt=0.0)
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    warmup_steps: int = Field(0, ge=0)
    weight_decay: float = Field(0.0, ge=0.0)
    lora: LoraSection | None = None  # None = r 16, alpha 32 on all linear layers, or what model.adapter has
    batch_pairs: int = Field(16, ge=1)  # of an optimizer step; completions where the objective is unpaired
    micro_batch_tokens: int = Field(8192, ge=1)  # of one forward pass; at least one pair is taken
    layout: Literal["auto", "shared", "separate"] = "auto"  # do a prompt's answers share it; auto = where it pays
    autocast: Literal["auto", "bfloat16", "off"] = "auto"  # of matrix products; auto = bfloat16 on GPU, off on CPU
    activation_checkpointing: bool = False  # less memory for about a third more time
    compile: bool = False  # of what lies between the products; wants a C++ compiler on CPU
    epochs: int = Field(1, ge=1)
    max_grad_norm: float = Field(1.0, gt=0.0)
    checkpoint_steps: int = changeable(25, ge=0)  # a mid-round checkpoint every so many steps; 0 = none
    num_gpus: Auto | Share = changeable("auto")
    threads: Auto | Count = "auto"


class ClusterSection(Section):
    address: str | None = changeable(None)  # null = a local Ray of our own; "auto" or host:port = join one
    num_cpus: Auto | Count = changeable("auto")  # of the local Ray; ignored when joining
    start_timeout_s: float = changeable(600.0, gt=0.0)  # how long an actor may take to be placed and ready


class LoggingSection(Section):
    tensorboard: bool = changeable(False)


class RunConfig(Section):
    """A whole run. `online_dpo.load_config` builds it from YAML; `online_dpo.run` executes it."""

    run: RunSection = RunSection()
    model: ModelSection
    prompts: PromptsSection | None = None  # None = every round trains on `pairs` alone
    pairs: PairsSection | None = None
    sampling: SamplingSection = SamplingSection()
    generator: GeneratorSection = GeneratorSection()
    judge: JudgeSection | None = None  # None as for prompts
    evaluation: EvaluationSection = EvaluationSection()
    verdicts: VerdictsSection = VerdictsSection()
    pairing: PairingSection = PairingSection()
    objective: ObjectiveSection = SigmoidObjective(type="sigmoid")
    reference: ReferenceSection = FixedReference(type="fixed")
    drift: DriftSection | None = None
    alarm: AlarmSection | None = None
    learner: LearnerSection = LearnerSection()
    cluster: ClusterSection = ClusterSection()
    logging: LoggingSection = LoggingSection()

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def weight_push(self) -> Literal["merge", "lora"]:
        """The push in use: `auto` is `merge` for fp32 weights and `lora` for bf16 (DESIGN section 8)."""
        if self.generator.weight_push != "auto":
            return self.generator.weight_push
        return "merge" if self.model.dtype == "float32" else "lora"

    @property
    def needs_generators(self) -> bool:
        """Whether anything is ever sampled."""
        return self.prompts is not None or bool(self.evaluation.sets)

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Further arguments of the chat template, of all prompts and answers of the run."""
        section = self.prompts or self.pairs
        return {} if section is None else section.chat_template_kwargs

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that is sampled from."""
        if self.prompts is not None:
            return self.prompts.max_tokens
        return DEFAULT_MAX_TOKENS if self.pairs is None else self.pairs.max_prompt_tokens

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest prompt and sampled completion together."""
        return self.max_prompt_tokens + self.sampling.max_tokens

    @property
    def tolerance(self) -> float:
        """Largest accepted mean gap between generator and learner log-probs, nats per token."""
        if self.generator.tolerance != "auto":
            return float(self.generator.tolerance)
        return 1e-3 if self.model.dtype == "float32" else 5e-2

    @model_validator(mode="before")
    @classmethod
    def _default_objective(cls, data: Any) -> Any:
        """`objective.beta=0.2` alone means the default objective with another beta."""
        if isinstance(data, dict) and isinstance(data.get("objective"), dict) and "type" not in data["objective"]:
            data = {**data, "objective": {"type": "sigmoid", **data["objective"]}}
        return data

    @model_validator(mode="after")
    def _fields_agree(self) -> RunConfig:
        check_pairs(self)
        check_pairing(self)
        if self.generator.weight_push == "merge" and self.model.dtype == "bfloat16":
            raise ValueError(
                "generator.weight_push is merge and model.dtype is bfloat16; rounding W + dW to bfloat16 swallows "
                "small updates: set generator.weight_push to lora, or model.dtype to float32"
            )
        if self.model.adapter is not None and self.learner.lora is not None:
            raise ValueError(
                "learner.lora is set and model.adapter is continued; rank, alpha and targets come from the adapter: "
                "remove learner.lora, or merge the adapter into the model first"
            )
        check_control(self)
        return self
