"""Config -> what it names: found, looked at and loaded, with every check that can be made before an engine starts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.registry import make_spec
from judges.spec import JudgeSpec
from online_dpo.commands.preparing.fitting import check_lengths, check_machine
from online_dpo.commands.preparing.learning_rates import settle_lr
from online_dpo.commands.preparing.model_checks import NamedModel, check_models, inspect_judge_models, own_models
from online_dpo.commands.preparing.writers import load_writers, writer_models
from online_dpo.config.human_checks import human_judges
from online_dpo.config.judges.section import JudgeSection, hosted_judges
from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.preferences import PairColumns
from online_dpo.config.run import RunConfig
from online_dpo.config.threads import resolve_threads
from online_dpo.data.answer_lengths import AnswerLengths, check_prefilled, has_special_tags
from online_dpo.data.decontamination import Overlap, decontaminate
from online_dpo.data.encoding import PromptEncoder
from online_dpo.data.mixtures import AnyPrompts, PromptMixture, load_evaluation_sets, load_prompts
from online_dpo.data.preference_files import peek_preferences
from online_dpo.data.preferences import PairDraw, load_evaluation_pairs, load_pairs
from online_dpo.data.prompts import Cursor, validate_source
from online_dpo.errors import ConfigError, JudgeError, ModelError
from online_dpo.loop.draws import check_one_form, first_written
from online_dpo.loop.people.opening import check_gold
from online_dpo.loop.rounds import Job
from online_dpo.loop.weight_sync import NUM_PROBE_ROWS, probe_rows
from online_dpo.models.adapters import read_adapter
from online_dpo.models.given_reference import GivenReference, inspect_reference
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.tokenizer import check_ids, load_tokenizer
from online_dpo.types import REWARD, Adapter, Prompt


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a config names, found and looked at; nothing slow is loaded yet."""

    config: RunConfig  # every `auto` that shapes the data is a number
    model: ModelInfo
    adapter: Adapter | None
    reference: GivenReference | None  # what `reference.path` names
    judges: Mapping[str, JudgeSpec]  # the training judge under `reward`, `annotator`, the evaluation's by their names
    models: tuple[NamedModel, ...]  # every one that is loaded, the policy's first


@dataclass(frozen=True, slots=True, kw_only=True)
class Materials(Inputs):
    """A run's inputs, loaded and checked."""

    job: Job
    first: Prompt  # of the first round; judges are tried on canned answers in its form, with its metadata


def prepare(config: RunConfig) -> Materials:
    """Load and check all inputs but the engines.

    Args:
        config: as loaded; on resume with the recorded thread counts.

    Raises:
        UserError: an input is missing, malformed or does not fit another.
    """
    return load_inputs(inspect_inputs(config))


def inspect_inputs(config: RunConfig) -> Inputs:
    """Find the inputs and check what can be checked before torch and transformers are imported, which takes seconds.

    Raises:
        UserError: an input is missing, malformed at its beginning, or does not fit another.
    """
    config = resolve_threads(config)
    check_machine(config)
    judges = judge_specs(config)
    peek_sources(config)
    model = inspect_model(locate(config.model.path, field="model.path"), field="model.path")
    adapter = None if config.model.adapter is None else read_adapter(config.model.adapter, base=model)
    config = settle_lr(config, model, adapter)
    check_lengths(config, model)
    reference = inspect_reference(config, model)
    return Inputs(
        config=config,
        model=model,
        adapter=adapter,
        reference=reference,
        judges=judges,
        models=(*own_models(config, model, reference), *judge_models(config), *writer_models(config)),
    )


def judge_sections(config: RunConfig) -> dict[str, JudgeSection]:
    """Field -> judge, the training judge first."""
    training: dict[str, JudgeSection] = {} if config.judge is None else {"judge": config.judge}
    if config.pairing.annotator is not None:
        training["pairing.annotator"] = config.pairing.annotator
    return training | {f"evaluation.judges.{name}": judge for name, judge in config.evaluation.judges.items()}


def judge_specs(config: RunConfig) -> dict[str, JudgeSpec]:
    """Judge's name -> what it is made of; people, whom nobody hosts, are left out.

    Raises:
        JudgeError: targets name nothing; a line for each such judge.
    """
    specs, problems = {}, []
    people = human_judges(config)
    for field, section in judge_sections(config).items():
        if field in people:
            continue
        try:
            specs[judge_name(field)] = make_spec(section, field=field, base_dir=Path.cwd(), view=config.view)
        except JudgeError as error:
            problems.append(str(error))
    if problems:
        raise JudgeError("\n".join(problems))
    return specs


def judge_models(config: RunConfig, wanted: Callable[[str], bool] = lambda path: True) -> list[NamedModel]:
    """The models that the judges need; `wanted` says of a path whether to look at it.

    Raises:
        ModelError: models are missing or damaged; a line for each such judge.
    """
    found: list[NamedModel] = []
    problems = []
    for field, section in judge_sections(config).items():
        try:
            found += inspect_judge_models(section, field, wanted=wanted)
        except ModelError as error:
            problems.append(str(error))
    if problems:
        raise ModelError("\n".join(problems))
    return found


def judge_name(field: str) -> str:
    """The name under which the loop asks the judge of a field."""
    own = {"judge": REWARD, "pairing.annotator": ANNOTATOR}
    return own.get(field, field.removeprefix("evaluation.judges."))


def peek_sources(config: RunConfig) -> None:
    """Look at the beginning of every local data set.

    Raises:
        DataError: one is missing, malformed there, or lacks a column.
    """
    for field, part in config.prompt_parts.items():
        validate_source(part, field=field)
    for field, pairs in pair_sections(config).items():
        peek_preferences(pairs, field=field)
    check_gold(config)


def pair_sections(config: RunConfig) -> dict[str, PairColumns]:
    """Field -> data set of preferences."""
    training: dict[str, PairColumns] = {} if config.pairs is None else {"pairs": config.pairs}
    if config.sft is not None:
        training["sft.pairs"] = config.sft.pairs
    return training | {f"evaluation.pairs.{name}": section for name, section in config.evaluation.pairs.items()}


def load_inputs(inputs: Inputs) -> Materials:
    """Check every model without its weights, and load tokenizer and prompts.

    Raises:
        UserError: a model is not whole, the tokenizer cannot be loaded, or there are not enough usable prompts.
    """
    config, model = inputs.config, inputs.model
    check_models(
        config, inputs.models, inputs.adapter, inputs.reference
    )  # first: what is wrong with a model may keep its tokenizer from loading
    tokenizer = load_tokenizer(model.folder, trust_remote_code=config.model.trust_remote_code)
    check_ids(tokenizer.get_vocab(), f"model.path is {config.model.path}", vocab_size=model.vocab_size)
    job, first = load_job(config, model, tokenizer)
    return Materials(
        config=config,
        model=model,
        adapter=inputs.adapter,
        reference=inputs.reference,
        judges=inputs.judges,
        models=inputs.models,
        job=job,
        first=first,
    )


def check_rubric_columns(config: RunConfig, prompts: Sequence[Prompt]) -> None:
    """Refuse a column of checklists that none of these prompts has, where nothing takes its place.

    Raises:
        ConfigError: there is such a column.
    """
    for field, judge in judge_sections(config).items():
        for place, section in hosted_judges(judge, field):
            rubric = getattr(section, "rubric", None)
            if rubric is None or rubric.criteria or any(rubric.column in prompt.metadata for prompt in prompts):
                continue
            known = ", ".join(dict.fromkeys(name for prompt in prompts for name in prompt.metadata)) or "none"
            raise ConfigError(
                f"{place}.rubric.column is {rubric.column}, and no prompt has such a column (there are: {known}); name "
                f"the column with the checklists, or set {place}.rubric.criteria"
            )


@dataclass(frozen=True, slots=True, kw_only=True)
class AllPrompts:
    """The prompts of a run, those to train on and those that are held out."""

    prompts: AnyPrompts | None  # without those that are to be left out
    sets: Mapping[str, tuple[Prompt, ...]]
    pairs: Mapping[str, PairDraw]
    overlaps: tuple[Overlap, ...]


def load_all_prompts(config: RunConfig, model: ModelInfo, tokenizer: Any) -> AllPrompts:
    """Load the prompts of a run, and leave out what the config says.

    Raises:
        UserError: a data set is malformed, or has not enough usable rows.
    """
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_tokens": config.max_prompt_tokens,
        "chat_template_kwargs": config.chat_template_kwargs,
        "seed": config.run.seed,
    }
    sets = load_evaluation_sets(config, **common)
    pairs = load_evaluation_pairs(config, tokenizer, model)
    prompts = load_prompts(config, **common)
    return AllPrompts(prompts=prompts, sets=sets, pairs=pairs, overlaps=decontaminate(config, prompts, sets, pairs))


def load_job(config: RunConfig, model: ModelInfo, tokenizer: Any) -> tuple[Job, Prompt]:
    """Load every data set; the job, and the prompt in whose form judges are tried.

    Raises:
        UserError: a data set is malformed, or has not enough usable rows.
    """
    asked = load_all_prompts(config, model, tokenizer)
    prompts, sampled = asked.prompts, [prompt for found in asked.sets.values() for prompt in found]
    if config.prompts is not None and prompts is not None:
        if isinstance(prompts, PromptMixture):
            prompts.check(config.prompts.per_round, config.run.rounds)
        # The first round's first prompts; too small or too long a source is reported here, before any engine starts.
        sampled = list(prompts.draw(Cursor(), config.prompts.per_round).prompts)
    pairs = load_pairs(config, tokenizer, model)
    if pairs is not None:
        written = first_written(config, pairs)
        check_one_form(config, sampled, written)
        sampled = sampled or [written]
    if sampled[0].messages is not None:
        encoder = PromptEncoder(tokenizer, config.chat_template_kwargs)
        encoder.check_template(sampled[0].messages, f"model.path is {config.model.path}")
    for field, section in judge_sections(config).items():
        if (view := config.view_of(section)) is not None:
            named = field if section.view is not None else "judge"
            check_prefilled(view, sampled, tokenizer, f"{named}.view")
    check_rubric_columns(config, sampled)
    first = sampled[:NUM_PROBE_ROWS]
    vocab_size = model.vocab_size or len(tokenizer)
    job = Job(
        config=config,
        prompts=prompts,
        evaluation_sets=asked.sets,
        probe=probe_rows(
            [p.token_ids for p in first],
            min(vocab_size, len(tokenizer)),
            config.run.seed,
            max_tokens=config.max_model_len - 1,
        ),
        pairs=pairs,
        measured=AnswerLengths(config.view, tokenizer),
        keeps_special_tokens=any(
            has_special_tags(config.view_of(section), tokenizer) for section in judge_sections(config).values()
        ),
        evaluation_pairs=asked.pairs,
        overlaps=asked.overlaps,
        writers=load_writers(config, tokenizer, model, sampled),
    )
    return job, first[0]
