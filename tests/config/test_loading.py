"""Configs: what is documented loads, what is wrong is told in one sentence."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from config_kit import BASE, REWARD_MODEL, RUN_CONFIGS

from online_dpo.commands.quickstart import CONFIG
from online_dpo.config.loading import dump_config, load_config, load_reward_model
from online_dpo.config.objective.pairwise import SigmoidObjective
from online_dpo.errors import ConfigError

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize("path", [*RUN_CONFIGS, CONFIG], ids=lambda path: path.stem)
def test_every_documented_config_loads_and_survives_a_dump(path: Path, tmp_path: Path) -> None:
    config = load_config(path)
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


def test_a_config_is_dumped_as_it_was_dumped_before() -> None:
    """A run that is resumed dumps what it loads: a default of another type than its field's would change the file."""
    dumped = dump_config(load_config({**BASE, "learner": {"lora": {"r": 8}}}))
    assert dump_config(load_config(yaml.safe_load(dumped))) == dumped


def test_the_documented_reward_model_is_a_config_of_its_own() -> None:
    assert load_reward_model(REWARD_MODEL).training.lora is not None
    with pytest.raises(ConfigError, match="output is not a known key"):
        load_config(REWARD_MODEL)


def test_the_readme_s_page_is_a_config(tmp_path: Path) -> None:
    page = re.search(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.DOTALL)
    assert page is not None
    (tmp_path / "readme.yaml").write_text(page.group(1))
    assert load_config(tmp_path / "readme.yaml").objective.type == "sigmoid"


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["sampling.num_samples=1"], "sampling.num_samples is 1; a pair needs at least 2 completions per prompt"),
        (["sampling.numsamples=2"], "sampling.numsamples is not a known key; did you mean num_samples?"),
        (["learner.lora.rr=3"], "learner.lora.rr is not a known key; did you mean r?"),
        (["judge.tarrget=x"], "judge.tarrget is not a known key; did you mean target?"),
        (["judge.type=reward_model"], "judge.path is missing; it has no default, so set it"),
        (["judge.type=oracle"], "judge.type is oracle; it must be one of reward_model, python"),
        (["evaluation.judges.gold.type=python"], "evaluation.judges.gold.target is missing"),
        (["evaluation.judges.reward.type=python", "evaluation.judges.reward.target=a:b"], "choose another"),
        (["learner.lr=fast"], "learner.lr is \"fast\"; it must be 'auto' or a valid number"),
        (["learner.lora.targets=[q_proj,lm_head]"], "contains lm_head"),
        (["sampling.truncated_penalty=2"], "set truncated: penalise or remove it"),
        (["generator.dtype=float16"], "it must be 'auto', 'float32' or 'bfloat16'; did you mean bfloat16?"),
        (["model.adapter=somewhere", "learner.lora.r=8"], "remove learner.lora"),
        (["rounds"], "override 'rounds' is not of the form section.field=value"),
    ],
)
def test_what_is_wrong_is_named_with_its_remedy(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(BASE, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


def test_an_override_of_type_starts_the_section_afresh() -> None:
    """Otherwise the fields of the file's member of the union would be unknown keys of the new one."""
    config = load_config(BASE, ["judge.type=reward_model", "judge.path=embedded:reward"])
    assert config.judge.type == "reward_model" and config.judge.path == "embedded:reward"
    assert load_config(BASE, ["objective.beta=0.3"]).objective == SigmoidObjective(type="sigmoid", beta=0.3)


@pytest.mark.parametrize(
    ("model", "generator", "engine", "tolerance"),
    [
        ("float32", "auto", "float32", 1e-3),
        ("bfloat16", "auto", "bfloat16", 5e-2),
        ("float32", "bfloat16", "bfloat16", 5e-2),
        ("bfloat16", "float32", "float32", 5e-2),
    ],
)
def test_engines_have_a_precision_of_their_own(model: str, generator: str, engine: str, tolerance: float) -> None:
    """The tolerance is that of the coarser side."""
    config = load_config(BASE, [f"model.dtype={model}", f"generator.dtype={generator}"])
    assert (config.engine_dtype, config.tolerance) == (engine, tolerance)
