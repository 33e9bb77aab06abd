"""`online-dpo validate`: what can be found wrong without starting an engine."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator

from judges.hosting import NeedsEngine
from judges.registry import build_caller
from judges.trial import try_judges
from online_dpo.commands.preparing.fitting import check_lengths, check_machine
from online_dpo.commands.preparing.inputs import (
    judge_models,
    judge_sections,
    judge_specs,
    pair_sections,
    peek_sources,
    prepare,
)
from online_dpo.commands.preparing.model_checks import check_weights
from online_dpo.commands.preparing.resources import Estimate, Machine
from online_dpo.commands.preparing.sft import sft_run
from online_dpo.config.control import PathReference
from online_dpo.config.human_checks import human_judges
from online_dpo.config.run import RunConfig
from online_dpo.data.mixtures import PromptMixture
from online_dpo.data.preferences import describe_draw
from online_dpo.errors import JudgeError, ModelError
from online_dpo.loop.people.opening import gold_questions
from online_dpo.models.adapters import read_adapter
from online_dpo.models.given_reference import inspect_reference
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import is_hub_id, locate
from online_dpo.types import REWARD


def validate_light(config: RunConfig, machine: Machine) -> Iterator[str]:
    """Lines about what was checked; neither torch, ray nor vllm is imported, and nothing is downloaded.

    Args:
        config: of a run.
        machine: whose GPUs it is to fit.

    Raises:
        UserError: something is wrong.
    """
    estimate = Estimate(config, machine)
    yield from _check_lightly(config, estimate)
    yield from estimate.lines()
    yield _not_checked(config)


def _check_lightly(config: RunConfig, estimate: Estimate) -> Iterator[str]:
    check_machine(config)
    if _is_local(config.model.path):
        model = inspect_model(locate(config.model.path, field="model.path"), field="model.path")
        check_lengths(config, model)
        yield f"model.path: {config.model.path} is whole; longest prompt and completion fit into its context"
        if isinstance(config.reference, PathReference) and _is_local(config.reference.path):
            inspect_reference(config, model)
            yield f"reference.path: {config.reference.path} fits model.path"
        if config.model.adapter is not None and _is_local(config.model.adapter):
            read_adapter(config.model.adapter, base=model)
            yield f"model.adapter: {config.model.adapter} fits model.path"
    elif estimate.policy is not None:
        check_lengths(config, estimate.policy)
        yield f"model.path: {config.model.path} is a hub id; longest prompt and completion fit into its shape's context"
    else:
        yield f"model.path: {config.model.path} is a hub id; not looked up without --deep"
    peek_sources(config)
    yield "data: every local source is there and has its columns"
    judge_specs(config)
    judge_models(config, _is_local)
    if judge_sections(config):
        yield "judges: targets name what is there, local files compile, and local models are whole"


def _not_checked(config: RunConfig) -> str:
    """What `validate_light` leaves open."""
    sources = [section.source for section in (*config.prompt_parts.values(), *pair_sections(config).values())]
    remote = [path for path in [config.model.path, *sources] if not _is_local(path)]
    hub = f"what the hub holds ({', '.join(dict.fromkeys(remote))}), " if remote else ""
    return (
        f"not checked: {hub}the values of weights, the tokenizer and its chat template, rows after the first few, and "
        f"what judges answer; --deep checks these"
    )


def validate_deep(config: RunConfig, machine: Machine) -> Iterator[str]:
    """As `validate_light`, and loads tokenizer, prompts and judges; each judge is tried on two canned completions.

    Raises:
        UserError: something is wrong.
    """
    estimate = Estimate(config, machine)
    yield from _check_lightly(config, estimate)
    yield from estimate.lines()
    estimate.check()
    materials = prepare(config)
    if estimate.policy is None:  # what was on the hub is here now
        estimate = Estimate(config, machine)
        yield from estimate.lines()
        estimate.check()
    yield "models: every weight is there and has the shape that its model's config gives it; LoRA fits the policy"
    check_weights(materials.models)
    yield "weights: every value is a finite number"
    yield f"first prompt: {len(materials.first.token_ids)} tokens, {materials.first.content!r}"
    if isinstance(materials.job.prompts, PromptMixture) and config.prompts is not None:
        yield from materials.job.prompts.describe(config.prompts.per_round, config.run.rounds)
    yield from map(str, materials.job.overlaps)
    for name, prompts in materials.job.evaluation_sets.items():
        yield f"evaluation.sets.{name}: {len(prompts)} prompts"
    if materials.job.pairs is not None:
        yield f"pairs: {describe_draw(materials.job.pairs.head(None))}"
    if config.sft is not None:
        before = prepare(sft_run(materials.config))
        assert before.job.pairs is not None
        yield f"sft.pairs: {describe_draw(before.job.pairs.head(None))}"
    for name, held_out in materials.job.evaluation_pairs.items():
        yield f"evaluation.pairs.{name}: {describe_draw(held_out)}"
    chat = materials.first.messages is not None
    metadata, problems = dict(materials.first.metadata), []
    for name, spec in materials.judges.items():
        try:
            rules = config.pairing if name == REWARD else None
            asyncio.run(try_judges(build_caller(spec), chat=chat, metadata=metadata, rules=rules))
        except NeedsEngine as error:
            yield f"judge {name}: not tried, {error}"
        except (JudgeError, ModelError) as error:  # whoever has several judges learns about all of them at once
            problems.append(str(error))
        else:
            yield f"judge {name}: keeps its contract on two canned completions"
    if problems:
        raise JudgeError("\n".join(problems))
    for field, section in human_judges(config).items():
        gold = len(gold_questions(section, field))
        yield f"{field}: people, who are not asked by this; {gold} gold questions"
    yield "not checked: no engine was started, so its memory is not known, and judges saw canned answers alone"


def _is_local(path: str) -> bool:
    """Whether a path can be looked at without the network; what is no hub id either is reported at once."""
    return not is_hub_id(path)
