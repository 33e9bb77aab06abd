"""The `candidates` section: what goes with what, and why the rest is refused before a run starts."""

from __future__ import annotations

from typing import Any

import pytest
import yaml
from config_kit import BASE

from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.resuming import check_resumable
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError

ENDPOINT = {"base_url": "http://localhost/v1", "model": "m"}
TEACHER = {"type": "teacher", "endpoint": ENDPOINT}
COLUMN = {"type": "column", "column": "answer"}
BETTER = {**COLUMN, "assume": "better"}


def load(*candidates: dict[str, Any], overrides: list[str] | None = None, **sections: Any) -> RunConfig:
    given = {**BASE, **sections, "candidates": list(candidates)}
    return load_config({name: value for name, value in given.items() if value is not None}, overrides or [])


@pytest.mark.parametrize(
    ("candidates", "sections"),
    [
        ([TEACHER, COLUMN, {"type": "revise"}, {"type": "revise", "name": "r", "endpoint": ENDPOINT}], {}),
        ([{**TEACHER, "num_samples": 3, "temperature": 0.7, "budget": {"calls": 9}}], {}),
        ([{"type": "teacher", "engine": {"path": "m"}}], {}),
        ([BETTER], {"judge": None}),
        ([BETTER], {"judge": None, "sampling": {"num_samples": 1}}),
        ([BETTER, COLUMN | {"name": "b"}], {"sampling": {"num_samples": 1}}),
    ],
)
def test_what_goes_together(candidates: list[dict[str, Any]], sections: dict[str, Any]) -> None:
    config = load(*candidates, **sections)
    assert load_config(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize(
    ("candidates", "sections", "message"),
    [
        ([{"type": "teacher"}], {}, "a teacher needs either an endpoint or an engine; set one of the two"),
        ([{**TEACHER, "engine": {"path": "m"}}], {}, "endpoint and engine are both set; keep one of the two"),
        ([{**TEACHER, "num_samples": 2}], {}, "num_samples is 2 and temperature is 0, so that all answers would be"),
        ([{**TEACHER, "budget": {"cost": 1.0}}], {}, "budget.cost is set and nothing has a price; set endpoint.prices"),
        ([{"type": "revise", "budget": {"calls": 1}}], {}, "budget is set and no endpoint is asked"),
        ([COLUMN, COLUMN], {}, "candidates has 2 writers named column; give each a name of its own"),
        ([{"type": "revise", "num_samples": 5}], {}, "candidates.0.num_samples is 5, and the policy samples 4"),
        ([COLUMN], {"judge": None}, "judge is missing; it has no default, so set it"),
        ([BETTER, TEACHER], {"judge": None}, "judge is missing and candidates.1.assume is null"),
        ([BETTER], {"sampling": {"num_samples": 1}}, "the judge has nothing to compare: remove judge, or raise"),
        ([BETTER], {"pairing": {"min_chosen_score": 1.0}}, "assume is better and pairing.min_chosen_score"),
        (
            [BETTER], {"objective": {"type": "kto"}, "pairing": {"labels": {"type": "quantile"}}},
            "candidates.0.assume is better and pairing.labels.type is quantile",
        ),
        ([BETTER], {"objective": {"soft_labels": True}}, "objective.soft_labels is True, which reads what"),
        ([], {"sampling": {"num_samples": 1}}, "sampling.num_samples is 1; a pair needs at least 2"),
        ([COLUMN], {"sampling": {"num_samples": 0}}, "sampling.num_samples is 0; a pair needs at least 2"),
        (
            [COLUMN], {"prompts": None, "judge": None, "pairs": {"source": "p.jsonl"}},
            "candidates is set, but no round samples completions that they could join",
        ),
        ([{"type": "oracle"}], {}, "candidates.0.type"),
    ],
)  # fmt: skip
def test_why_it_is_refused(candidates: list[dict[str, Any]], sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as caught:
        load(*candidates, **sections)
    assert message in str(caught.value) and "\n\n" not in str(caught.value)


def test_what_may_change_on_resume() -> None:
    """The budget and the address may; what the writer is asked with may not."""
    old = load({**TEACHER, "budget": {"calls": 10}})
    moved = {**TEACHER, "endpoint": {**ENDPOINT, "base_url": "http://elsewhere/v1"}, "budget": {"calls": 20}}
    assert len(check_resumable(old, load(moved))) == 2
    for other in ({**TEACHER, "temperature": 0.5}, {**TEACHER, "assume": "better"}, {**TEACHER, "name": "x"}):
        with pytest.raises(ConfigError, match=r"candidates\.0\."):
            check_resumable(old, load({**other, "budget": {"calls": 10}}))
    with pytest.raises(ConfigError, match=r"candidates"):
        check_resumable(old, load())
