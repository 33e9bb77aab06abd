"""The `pairs` section: what goes with what, and why the rest is refused."""

from __future__ import annotations

import re
from typing import Any

import pytest
import yaml

from online_dpo.commands.preparing.fitting import check_lengths
from online_dpo.commands.preparing.provenance import source_files
from online_dpo.config.loading import dump_config, load_config
from online_dpo.errors import ConfigError
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import locate

ALONE: dict[str, Any] = {"model": {"path": "m"}, "pairs": {"source": "pairs.jsonl"}}
ONLINE: dict[str, Any] = {
    "model": {"path": "m"},
    "prompts": {"source": "prompts.jsonl"},
    "judge": {"type": "python", "target": "judge.py:score"},
}
JUDGE = ["judge.type=python", "judge.target=a:b"]
SHORT = ["pairs.max_prompt_tokens=8", "pairs.max_completion_tokens=8"]
HELD = ["evaluation.pairs.h.source=h.jsonl", "evaluation.pairs.h.prompt=null", "evaluation.pairs.h.completion=messages"]
SETS = ["evaluation.sets.h.source=h.jsonl"]


@pytest.mark.parametrize(
    ("base", "overrides"),
    [
        (ALONE, []),
        (ALONE, ["pairs.per_round=64", "objective.type=kto", "pairs.format=labelled", "pairs.label=good"]),
        (ALONE, [*SETS, "evaluation.judges.gold.type=python", "evaluation.judges.gold.target=a:b"]),
        (ALONE, [*SETS, "sampling.max_tokens=8", "pairs.chat_template_kwargs.enable_thinking=false"]),
        (ALONE, ["objective.type=kto", "evaluation.pairs.people.source=h.jsonl"]),
        (
            ALONE,
            ["pairs.format=demonstrations", "objective.type=sft", "evaluation.pairs.h.format=demonstrations", *HELD],
        ),
        (ONLINE, ["pairs.source=p", "pairs.warm_start_rounds=2", "pairs.per_round=64"]),
        (ONLINE, ["pairs.source=p", "pairs.fraction=0.25", "objective.type=kto"]),
        (ONLINE, ["pairs.source=p", "pairs.fraction=0.25", "pairs.warm_start_rounds=1", "pairs.per_round=64"]),
        (ONLINE, ["evaluation.pairs.people.source=h.jsonl"]),
    ],
)
def test_what_goes_together(base: dict[str, Any], overrides: list[str]) -> None:
    config = load_config(base, overrides)
    assert load_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("base", "overrides", "message"),
    [
        (
            {"model": {"path": "m"}},
            [],
            "prompts and judge are missing; they have no default, so set both, or set pairs",
        ),
        (
            {"model": {"path": "m"}},
            ["prompts.source=p"],
            "judge is missing; it has no default, so set it",
        ),
        (ALONE, ["prompts.source=p"], "prompts is set, but pairs has neither warm_start_rounds nor fraction"),
        (ALONE, JUDGE, "judge is set, but pairs has neither warm_start_rounds nor fraction"),
        (ALONE, JUDGE, "goes under evaluation.judges"),
        (ALONE, ["pairing.strategy=random"], "pairing is set, but"),
        (ALONE, ["verdicts.min_coverage=0.2"], "verdicts.min_coverage is 0.2, but"),
        (ALONE, ["verdicts.repeated=0.2"], "verdicts.repeated is 0.2, but"),
        (ALONE, ["sampling.max_tokens=8"], "sampling.max_tokens is 8, but"),
        (ALONE, [*SETS, "sampling.num_samples=2"], "evaluation samples are drawn at temperature 1, one per prompt"),
        (ALONE, ["evaluation.judges.g.type=python", "evaluation.judges.g.target=a:b"], "there is no sample to judge"),
        (
            ALONE,
            ["pairs.warm_start_rounds=1"],
            "pairs.warm_start_rounds is 1, which leaves rounds that sample and judge, ",
        ),
        (ALONE, ["pairs.fraction=0.5", "prompts.source=p"], "but judge is missing: set it, or remove pairs.fraction"),
        (ONLINE, ["pairs.source=p", "pairs.warm_start_rounds=5"], "leaves no online round: raise run.rounds, or"),
        (ONLINE, ["pairs.source=p", "pairs.fraction=0.5", "pairs.per_round=8"], "remove per_round, or set warm_start"),
        (
            ONLINE,
            ["pairs.source=p", "pairs.fraction=0.5", "pairs.chat_template_kwargs.x=1"],
            "use prompts.chat_template_kwargs, which holds for pairs as well",
        ),
        (ALONE, ["pairs.fraction=1.0"], "pairs.fraction is 1.0; it must be less than 1"),
        (
            ALONE,
            ["pairs.label=good"],
            "pairs has label good and format pairs, which has no such column: set format to labelled, or remove label",
        ),
        (
            ALONE,
            ["pairs.format=labelled", "objective.type=kto", "pairs.chosen=a"],
            "set format to pairs, or remove chosen",
        ),
        (ALONE, ["pairs.format=labelled"], "objective.type is sigmoid, which compares two answers; set objective.type"),
        (ALONE, ["pairs.format=demonstrations"], "objective.type is sigmoid; sft alone trains on demonstrations"),
        (ALONE, ["objective.type=sft"], "pairs.format is pairs and objective.type is sft; sft alone trains"),
        (ONLINE, ["objective.type=sft"], "objective.type is sft and pairs is missing; SFT trains on demonstrations"),
        (
            ONLINE,
            ["objective.type=sft", "pairs.source=p", "pairs.format=demonstrations", "pairs.warm_start_rounds=1"],
            "objective.type is sft and pairs.warm_start_rounds is 1; SFT is a run on pairs alone",
        ),
        (ALONE, ["objective={type: sft, beta: 0.2}"], "has beta, but sft imitates demonstrations and compares nothing"),
        (
            ALONE,
            ["evaluation.pairs.h.source=h", "evaluation.pairs.h.completion=x"],
            "evaluation.pairs.h has completion x and format pairs, which has no such column: set format to labelled or",
        ),
        (ALONE, ["objective.soft_labels=true"], "objective.soft_labels is True, which reads what a judge says"),
        (
            ALONE,
            ["objective={type: sum, terms: [{objective: {type: ipo, pair_weights: margin}}]}"],
            "objective.pair_weights is margin, which reads what a judge says",
        ),
    ],
)
def test_nonsense_is_refused_with_the_reason_and_the_remedy(
    base: dict[str, Any], overrides: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(base, overrides)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_run_notices_that_its_pairs_were_exchanged() -> None:
    """Every data set whose content is recorded when the run begins."""
    config = load_config(
        ONLINE, ["pairs.source=p.jsonl", "pairs.fraction=0.5", "evaluation.pairs.people.source=h.jsonl"]
    )
    assert source_files(config) == {
        "prompts.source": "prompts.jsonl",
        "pairs.source": "p.jsonl",
        "evaluation.pairs.people.source": "h.jsonl",
        "judge.target": "judge.py",
    }


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["pairs.max_completion_tokens=500"],
            "pairs.max_prompt_tokens is 512 and pairs.max_completion_tokens is 500, ",
        ),
        (
            [*SHORT, "evaluation.pairs.people.source=h", "evaluation.pairs.people.max_prompt_tokens=505"],
            "evaluation.pairs.people.max_prompt_tokens is 505 and evaluation.pairs.people.max_completion_tokens is 8, ",
        ),
        (
            [*SETS, "pairs.max_completion_tokens=8", "pairs.max_prompt_tokens=300"],
            "sampling.max_tokens is 256, together",
        ),
    ],
)
def test_rows_that_the_model_cannot_see_whole_are_refused(overrides: list[str], message: str) -> None:
    """Of a run that samples nothing, the length of samples does not count."""
    model = inspect_model(locate("embedded:policy", field="model.path"), field="model.path")
    config = load_config(ALONE, overrides)
    with pytest.raises(ConfigError, match=re.escape(message)):
        check_lengths(config, model)
    check_lengths(load_config(ALONE, ["pairs.max_completion_tokens=8", "pairs.max_prompt_tokens=500"]), model)
