"""How much memory a run's actors will take on GPUs, estimated from models' shapes: before one is rented or waited for.

The learner's part is counted: weights, adapters, optimizer, and every tensor that the backward pass needs, as
transformers and PEFT keep them on a GPU (`tests/commands/test_memory.py` compares it with what autograd keeps). What an
engine needs besides weights and its cache is an allowance.
"""

from __future__ import annotations

import math
import shutil
import subprocess
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

from online_dpo.commands.preparing.inputs import judge_sections
from online_dpo.commands.preparing.writers import engine_tokens
from online_dpo.config.control import PathReference
from online_dpo.config.judges.hosted import ClassifierJudge, ScoringEngineSection
from online_dpo.config.judges.llm import ChatEngineSection, LlmJudge
from online_dpo.config.judges.section import hosted_judges
from online_dpo.config.learner import LoraSection
from online_dpo.config.objective.section import KTOObjective, SFTObjective
from online_dpo.config.run import RunConfig
from online_dpo.models.shapes import ModelShape

GIB = 1 << 30
BYTES = {"float32": 4, "bfloat16": 2}

NF4_BYTES = 0.516
"""Of a weight in 4 bits with its share of the doubly quantised scales (arXiv:2305.14314)."""

CONTEXT_GIB = 1.5
"""What CUDA, its libraries and NCCL take of each GPU in each process."""

ENGINE_GIB = 4.0
"""What vLLM needs for activations and CUDA graphs, besides weights and cache."""

FRAGMENTED = 1.1
"""Activations times this: PyTorch's allocator leaves gaps."""

USUAL_GIB = 79.0
"""What a GPU of 80 GB shows."""

NVIDIA_SMI_S = 20.0
"""So long the driver is waited for."""

Shapes = Callable[[str], ModelShape | None]
"""A path of the config -> the sizes of its model, where they are known."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ActorMemory:
    """What one actor takes of a GPU, or of several that share it out evenly."""

    name: str  # generator | learner | the field of a judge
    number: int  # such actors
    num_gpus: float  # of each; 0 = it computes on CPU
    parts: Mapping[str, float]  # GiB on each of its GPUs, by what it is
    note: str = ""
    limit_gib: float | None = None  # an engine's share of a GPU; None = all of it
    advice: str = ""  # what to change where it does not fit

    @property
    def total(self) -> float:
        """GiB on each GPU."""
        return sum(self.parts.values())


def gpu_memory_gib() -> float | None:
    """Of the smallest GPU of this machine; None where there is none."""
    if shutil.which("nvidia-smi") is None:
        return None
    command = ["nvidia-smi", "--query-gpu=memory.total", "--format=csv,noheader,nounits"]
    try:
        said = subprocess.run(command, capture_output=True, text=True, timeout=NVIDIA_SMI_S).stdout
    except (OSError, subprocess.TimeoutExpired):  # a driver that hangs must not keep a config from being checked
        return None
    found = [float(line) / 1024 for line in said.splitlines() if line.strip().replace(".", "", 1).isdigit()]
    return min(found, default=None)


def actors_memory(config: RunConfig, shapes: Shapes, gpu_gib: float) -> list[ActorMemory]:
    """Of generators, learner and judges, as far as the shapes of their models are known.

    Args:
        config: of the run.
        shapes: gives them.
        gpu_gib: memory of a GPU.
    """
    found = []
    policy = shapes(config.model.path)
    if policy is not None:
        if config.needs_generators:
            found.append(_generator(config, policy, gpu_gib))
        found.append(_learner(config, policy, shapes))
    for field, section in judge_sections(config).items():
        for place, judge in hosted_judges(section, field):
            if isinstance(judge, ClassifierJudge | LlmJudge):
                found += _judge(place, judge, shapes, gpu_gib)
    return found


def models(config: RunConfig) -> Iterator[tuple[str, str]]:
    """(field, path) of each model that takes memory of the run's own GPUs."""
    yield "model.path", config.model.path
    if isinstance(config.reference, PathReference) and config.reference.path != config.model.path:
        yield "reference.path", config.reference.path
    for field, section in judge_sections(config).items():
        for place, judge in hosted_judges(section, field):
            if (path := _path_of(judge)) is not None:
                yield f"{place}.path" if isinstance(judge, ClassifierJudge) else f"{place}.engine.path", path


def _path_of(judge: object) -> str | None:
    """Of the model that a judge's own process holds."""
    if isinstance(judge, ClassifierJudge):
        return judge.path
    return judge.engine.path if isinstance(judge, LlmJudge) and judge.engine is not None else None


def num_gpus(actors: list[ActorMemory], config: RunConfig) -> float:
    """GPUs of all actors together."""
    return 1.0 if config.layout == "colocated" else sum(actor.number * actor.num_gpus for actor in actors)


def too_large(actors: list[ActorMemory], config: RunConfig, gpu_gib: float) -> Iterator[str]:
    """A sentence about each actor that does not fit its GPU, or about what shares one."""
    for actor in actors:
        limit = gpu_gib if actor.limit_gib is None else actor.limit_gib
        if actor.num_gpus and actor.total > limit:
            largest = ", ".join(f"{gib:.1f} for {name}" for name, gib in actor.parts.items() if gib >= 0.05)
            yield (
                f"{actor.name} needs about {actor.total:.1f} GiB of each GPU ({largest}) and may use {limit:.1f} of "
                f"{gpu_gib:.0f}: {actor.advice}"
            )
    if config.layout == "colocated":
        beside = sum(_resident(actor) for actor in actors if actor.name != "generator" and actor.num_gpus)
        engine = config.generator.gpu_memory_utilization * gpu_gib
        if engine + beside > gpu_gib:
            yield (
                f"generator.gpu_memory_utilization is {config.generator.gpu_memory_utilization}, which is {engine:.1f} "
                f"GiB, and learner and judges beside it hold about {beside:.1f} of {gpu_gib:.0f} while it samples: "
                f"lower it to {math.floor(100 * max(0.0, 1.0 - beside / gpu_gib)) / 100} or less"
            )


def _resident(actor: ActorMemory) -> float:
    """GiB that stay while another actor of the same GPU works."""
    return sum(gib for name, gib in actor.parts.items() if name not in ("activations", "logits"))


def _generator(config: RunConfig, policy: ModelShape, gpu_gib: float) -> ActorMemory:
    section, element = config.generator, BYTES[config.engine_dtype]
    share = section.gpu_memory_utilization * gpu_gib
    weights = _weights(policy, element, config.model.quantization) / section.tensor_parallel
    one = (
        policy.kv_bytes(element)
        * engine_tokens(config, policy)
        / min(section.tensor_parallel, policy.num_kv_heads)
        / GIB
    )
    room = share - weights - ENGINE_GIB
    gpus = float(section.tensor_parallel) if section.num_gpus == "auto" else float(section.num_gpus)
    return ActorMemory(
        name="generator",
        number=section.replicas,
        num_gpus=gpus,
        parts={"weights": weights, "vLLM": ENGINE_GIB, "the cache of one answer": one},
        note=f"cache for {max(0, int(room / one))} answers of the longest kind at once" if one else "",
        limit_gib=share,
        advice="raise generator.gpu_memory_utilization or tensor_parallel, or lower prompts.max_tokens or "
        "sampling.max_tokens",
    )


def _learner(config: RunConfig, policy: ModelShape, shapes: Shapes) -> ActorMemory:
    section, element = config.learner, BYTES[config.model.dtype]
    lora = section.lora or LoraSection()
    parts = {"weights": _weights(policy, element, config.model.quantization)}
    if element == 4 and section.autocast != "off":  # the products' copies in bfloat16, which the backward pass needs
        parts["weights in bfloat16"] = 2 * policy.num_decoder_parameters / GIB
    if isinstance(config.reference, PathReference) and (given := shapes(config.reference.path)) is not None:
        parts["the reference's weights"] = _weights(given, element, None)
    # In float32: the policy's with gradient and two moments, and the frozen one of the reference.
    parts["adapters and optimizer"] = 20 * lora_parameters(policy, lora.r) / GIB
    tokens = micro_batch_tokens(config)
    kept = kept_bytes(policy, lora.r, checkpointed=section.activation_checkpointing)
    parts["activations"] = FRAGMENTED * tokens * kept / GIB
    parts["logits"] = max(1 << 22, 128 * policy.vocab_size) * 10 / GIB  # of a chunk, twice, and once in bfloat16
    parts["CUDA"] = CONTEXT_GIB
    advice = "lower learner.micro_batch_tokens"
    if tokens > section.micro_batch_tokens:
        advice = "lower prompts.max_tokens or sampling.max_tokens, since a pair is never split"
    if not section.activation_checkpointing:
        advice = f"set learner.activation_checkpointing to true, or {advice}"
    return ActorMemory(
        name="learner",
        number=section.num_workers,
        num_gpus=1.0 if section.num_gpus == "auto" else float(section.num_gpus),
        parts=parts,
        note=f"{tokens} tokens at once",
        advice=advice,
    )


def _judge(field: str, judge: ClassifierJudge | LlmJudge, shapes: Shapes, gpu_gib: float) -> Iterator[ActorMemory]:
    """Nothing for an endpoint, whose memory is somebody else's."""
    engine: ScoringEngineSection | ChatEngineSection | None = getattr(judge, "engine", None)
    path = _path_of(judge)
    shape = None if path is None else shapes(path)
    if shape is None:
        return
    dtype = judge.engine.dtype if isinstance(judge, LlmJudge) and judge.engine is not None else "bfloat16"
    dtype = judge.dtype if isinstance(judge, ClassifierJudge) else dtype
    parts, limit = {"weights": _weights(shape, BYTES[dtype], None)}, None
    advice = f"set {field}.dtype to bfloat16, or take a smaller model"
    if engine is not None:
        parts["vLLM"], limit = ENGINE_GIB, engine.gpu_memory_utilization * gpu_gib
        advice = f"raise {field}.engine.gpu_memory_utilization, or take a smaller model"
    elif isinstance(judge, ClassifierJudge):
        tokens = judge.batch_tokens
        # Nothing is kept without gradients: what one layer holds at its widest.
        one_layer = 6 * shape.hidden_size + 3 * shape.intermediate_size
        parts["activations"] = FRAGMENTED * BYTES[dtype] * tokens * one_layer / GIB
        parts["CUDA"] = CONTEXT_GIB
    num_gpus = float(judge.num_gpus)
    yield ActorMemory(name=field, number=1, num_gpus=num_gpus, parts=parts, limit_gib=limit, advice=advice)


def micro_batch_tokens(config: RunConfig) -> int:
    """The most tokens of one forward pass, padding included: at least one item, which a step never splits."""
    rows = 1 if isinstance(config.objective, KTOObjective | SFTObjective) else 2
    longest = [config.max_model_len] if config.prompts is not None else []
    if config.pairs is not None:
        longest.append(config.pairs.max_prompt_tokens + config.pairs.max_completion_tokens)
    return max(config.learner.micro_batch_tokens, rows * max(longest))


def lora_parameters(shape: ModelShape, rank: int) -> int:
    """Of one adapter on all linear layers of the decoder."""
    return shape.num_layers * rank * sum(inputs + outputs for inputs, outputs in shape.lora_layers)


def kept_bytes(shape: ModelShape, rank: int, *, checkpointed: bool = False, own_kernels: bool = False) -> float:
    """Bytes that a forward pass keeps for the backward pass, for each of its tokens, and what that pass works with.

    Counted tensor by tensor. A layer keeps what its norms read (in float32), the input of every LoRA (PEFT casts one
    for each), queries, keys, values and their result, and what the activation and the gate multiply. With checkpoints a
    layer keeps its input alone, and one layer at a time has all of it again.

    Args:
        shape: of the policy.
        rank: of the adapter.
        checkpointed: `learner.activation_checkpointing`.
        own_kernels: as the learner computes on CPU, in float32, with products of its own.
    """
    h, q, kv = shape.hidden_size, shape.query_size, shape.kv_size
    i = shape.intermediate_size * shape.num_active_experts
    inner = rank * len(shape.lora_layers)
    wide = 3 * i if shape.is_gated else i
    if own_kernels:
        element = 4
        layer = 4 * (4 * h + 2 * q + 2 * kv + wide + i + inner)
    else:
        element = 2
        layer = 8 * h + 2 * sum(inputs for inputs, _ in shape.lora_layers) + 4 * q + 4 * kv + 2 * wide + 2 * inner
    layer += 4 * (q + kv) if shape.has_normed_heads else 0
    ends = (4 + element) * h  # the last norm, and the gradient of the head
    if checkpointed:
        return shape.num_layers * element * h + 2 * layer + ends
    return (shape.num_layers + 1) * layer + ends


def _weights(shape: ModelShape, element: int, quantization: str | None) -> float:
    """GiB of a whole model."""
    if quantization is None:
        return element * shape.num_parameters / GIB
    layers = shape.num_decoder_parameters
    return (NF4_BYTES * layers + 2 * (shape.num_parameters - layers)) / GIB
