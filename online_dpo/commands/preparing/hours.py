"""How long a run takes, by arithmetic: tokens, parameters, and a stated share of what a GPU could multiply."""

from __future__ import annotations

from dataclasses import dataclass

from online_dpo.commands.preparing.inputs import judge_sections
from online_dpo.commands.preparing.memory import Shapes
from online_dpo.config.judges.hosted import ClassifierJudge
from online_dpo.config.judges.section import hosted_judges
from online_dpo.config.objective.section import KTOObjective, SFTObjective
from online_dpo.config.run import RunConfig
from online_dpo.loop.draws import samples
from online_dpo.models.shapes import ModelShape

TFLOPS = 989.0
"""Of an H100 SXM, dense products in bfloat16 (NVIDIA's data sheet)."""

SAMPLING_SHARE, LEARNING_SHARE, JUDGING_SHARE = 0.10, 0.35, 0.35
"""What of it is reached: guesses, since nothing of this was measured on a GPU. Decoding reads weights more than it
multiplies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Hours:
    """Of a whole run, if every prompt and answer is as long as it may be."""

    sampling: float
    judging: float  # by reward models; it goes on beside sampling
    learning: float
    total: float


def hours(config: RunConfig, shapes: Shapes) -> Hours | None:
    """None where the policy's shape is unknown, or the rounds take whole epochs of a data set."""
    policy = shapes(config.model.path)
    if policy is None or (config.pairs is not None and config.pairs.per_round is None and config.prompts is None):
        return None
    rounds = range(config.run.rounds)
    evaluated = [r for r in rounds if (r + 1) % config.evaluation.every == 0 or r + 1 == config.run.rounds]
    num_evaluated = sum(section.count for section in config.evaluation.sets.values()) * (len(evaluated) + 1)
    num_sampled = 0
    if config.prompts is not None:
        num_sampled = config.prompts.per_round * config.sampling.num_samples * sum(samples(config, r) for r in rounds)
    answers = num_sampled + num_evaluated
    # Samples of one prompt share its tokens in the engine's cache.
    prompts = num_sampled / config.sampling.num_samples + num_evaluated
    tokens = answers * config.sampling.max_tokens + prompts * config.max_prompt_tokens
    engines = config.generator.replicas * config.generator.tensor_parallel
    sampling = _hours(policy, tokens, passes=1.0, share=SAMPLING_SHARE * engines)
    judging = _judging(config, shapes, answers * config.max_model_len)
    learning = _learning(config, policy)
    beside = max(sampling, judging)
    total = max(beside, learning) if config.overlap and config.layout == "separate" else beside + learning
    return Hours(sampling=sampling, judging=judging, learning=learning, total=total)


def _judging(config: RunConfig, shapes: Shapes, tokens: float) -> float:
    """Of the slowest judge; each of them sees every answer."""
    found = [0.0]
    for field, section in judge_sections(config).items():
        for _, judge in hosted_judges(section, field):
            shape = shapes(judge.path) if isinstance(judge, ClassifierJudge) else None
            if shape is not None:
                found.append(_hours(shape, tokens, passes=1.0, share=JUDGING_SHARE * max(1.0, judge.num_gpus)))
    return max(found)


def _learning(config: RunConfig, policy: ModelShape) -> float:
    """Reference pass and updates. Frozen weights get no gradient, so a backward pass is worth one forward pass."""
    rows = 1 if isinstance(config.objective, KTOObjective | SFTObjective) else 2
    tokens = 0.0
    for index in range(config.run.rounds):
        if config.prompts is not None and samples(config, index):
            k = config.sampling.num_samples
            each = k if config.pairing.labels is not None else 2  # answers to a prompt that are trained on
            if config.pairing.strategy == "all_pairs":
                each = 2 * min(k * (k - 1) // 2, config.pairing.max_pairs_per_prompt or k * k)
            tokens += config.prompts.per_round * each * config.max_model_len
        elif config.pairs is not None and config.pairs.per_round is not None:
            longest = config.pairs.max_prompt_tokens + config.pairs.max_completion_tokens
            tokens += config.pairs.per_round * rows * longest
    forward = 1.0 if config.objective.needs_reference else 0.0
    each_epoch = 3.0 if config.learner.activation_checkpointing else 2.0
    passes = forward + config.learner.epochs * each_epoch
    return _hours(policy, tokens, passes=passes, share=LEARNING_SHARE * config.learner.num_workers)


def _hours(shape: ModelShape, tokens: float, *, passes: float, share: float) -> float:
    """A pass multiplies each parameter once with each token, which is two operations."""
    return 2.0 * shape.num_active_parameters * tokens * passes / (share * TFLOPS * 1e12) / 3600.0
