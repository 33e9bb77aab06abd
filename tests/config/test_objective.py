"""The `objective` section: what it says is what the page says, and what makes no sense says why."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from config_kit import BASE

from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.objective.pairwise import PairObjective
from online_dpo.config.objective.section import MEMBERS
from online_dpo.config.resuming import check_resumable
from online_dpo.errors import ConfigError

PAGE = (Path(__file__).parents[2] / "docs/losses.md").read_text()
SUM = "objective={type: sum, terms: [{weight: 2, objective: {type: sigmoid, beta: 0.3}}, {objective: %s}]}"


def test_the_page_names_every_objective_and_every_field() -> None:
    rows = re.findall(r"^\| `(\w+)` \|", PAGE.split("## ")[0], re.MULTILINE)
    assert sorted(rows) == sorted(MEMBERS)
    fields = {name for member in MEMBERS.values() for name in member.model_fields} - {"type"}
    missing = {name for name in fields if f"`{name}" not in PAGE}
    assert not missing


@pytest.mark.parametrize("name", [name for name in MEMBERS if name != "sum"])
def test_every_objective_needs_no_more_than_its_name_and_survives_a_dump(name: str, tmp_path: Path) -> None:
    base = {"model": BASE["model"], "pairs": {"source": "x", "format": "demonstrations"}} if name == "sft" else BASE
    config = load_config(base, [f"objective.type={name}"])
    assert config.objective.type == name
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


def test_a_sum_and_a_schedule_survive_a_dump(tmp_path: Path) -> None:
    config = load_config(BASE, [SUM % "{type: ipo, beta: {type: cosine, start: 0.1, end: 0.2}, wpo: true}"])
    (tmp_path / "dumped.yaml").write_text(dump_config(config))
    assert load_config(tmp_path / "dumped.yaml") == config


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (
            ["objective.type=kto", "objective.soft_labels=true"],
            "objective has soft_labels, but kto trains on single completions, and this is about pairs: remove it, or",
        ),
        (["objective.type=kto", "objective.pair_weights=margin"], "objective has pair_weights, but kto trains on"),
        (["objective.type=kto", "objective.wpoo=true"], "objective.wpoo is not a known key"),
        (
            ["objective.label_smoothing=0.1"],
            "objective has label_smoothing, which sigmoid does not read; it belongs to cdpo, robust, exo_pair, aot",
        ),
        (["objective.type=cdpo", "objective.label_smoothing=0.5"], "objective.label_smoothing is 0.5; it must be less"),
        (["objective.type=robust", "objective.soft_labels=true"], "beside a label_smoothing; labels are either"),
        (["objective.type=exo_pair", "objective.label_smoothing=0"], "objective.label_smoothing is 0; it must"),
        (["objective.type=aot", "objective.wpo=true"], "objective has wpo, but aot compares sorted log-ratios"),
        (["objective.type=aot", "objective.pair_weights=margin"], "objective has pair_weights, but aot compares"),
        (["objective.type=simpo", "reference.type=every"], "objective.type is simpo, which has no reference"),
        (["objective.type=simpo", "objective.length_normalise=false"], "objective.length_normalise is false; it must"),
        (["objective.divergence=alpha"], "objective has divergence alpha and alpha None; set alpha, between 0 and 1"),
        (["objective.alpha=0.3"], "objective has divergence reverse_kl and alpha 0.3; remove alpha"),
        (["objective.divergence=alpha", "objective.alpha=1.0"], "objective.alpha is 1.0; it must be less than 1"),
        (["objective.divergence=js", "objective.length_normalise=true"], "which a mean over tokens is not: remove one"),
        (["objective.ld_alpha=1.5"], "objective.ld_alpha is 1.5; it must be less than or equal to 1"),
        (["objective.target_margin=-1"], "objective.target_margin is -1; it must be greater than or equal to 0"),
        (["objective.beta=0"], "objective.beta is 0; it must be greater than 0"),
        (["objective.beta=.inf"], "objective.beta is Infinity; it must be a finite number"),
        (["objective.beta={type: linear, start: 0.1}"], "objective.beta.end is missing; it has no default, so set it"),
        (["objective.beta={type: linar, start: 0.1}"], "objective.beta.type is linar; it must be one of number,"),
        (["objective.beta={type: linear, start: 0.1, edn: 1, end: 1}"], "edn is not a known key; did you mean end?"),
        (["objective.beta={type: adaptive, start: 9, target_kl: 1, max: 1}"], "objective.beta has start 9.0 outside"),
        ([SUM % "{type: kto}"], "objective.terms.1.objective is of type kto, which trains on single completions and"),
        (
            [SUM % "{type: sft}"],
            "objective.terms.1.objective is of type sft, which imitates demonstrations and the",
        ),
        ([SUM % "{type: ipo, beta: -1}"], "objective.terms.1.objective.beta is -1; it must be greater than 0"),
        ([SUM % "{type: ipo, beta: {type: adaptive, start: 1, target_kl: 1}}"], "one controller cannot follow several"),
        (
            ["objective={type: sum, beta: 1, terms: [{objective: {type: ipo}}]}"],
            "objective has beta, but a sum has none",
        ),
        (["objective={type: sum, terms: []}"], "objective.terms is []; it must be"),
    ],
)
def test_nonsense_says_why(overrides: list[str], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        load_config(BASE, overrides)
    assert message in str(error.value)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(
    ("beta", "free"),
    [
        ("0.1", True),
        ("{type: adaptive, start: 0.1, target_kl: 5}", True),
        ("{type: linear, start: 0.1, end: 0.2}", False),
        ("{type: cosine, start: 0.1, end: 0.2}", False),
    ],
)
def test_the_length_of_a_run_is_fixed_where_a_beta_is_stretched_over_it(beta: str, free: bool) -> None:
    common = [f"objective.beta={beta}", "evaluation.sets.heldout.source=prompts.jsonl"]
    old, new = (load_config(BASE, [*common, f"run.rounds={n}"]) for n in (4, 5))
    if free:
        assert check_resumable(old, new) == ["run.rounds was 4 and is now 5"]
    else:
        with pytest.raises(ConfigError, match=r"run\.rounds was 4 and is now 5"):
            check_resumable(old, new)


def test_a_term_that_differs_is_named_on_resume() -> None:
    old, new = (load_config(BASE, [SUM % f"{{type: ipo, beta: {beta}}}"]) for beta in (0.1, 0.2))
    with pytest.raises(ConfigError, match=r"objective.terms.1.objective.beta was 0.1 and is now 0.2"):
        check_resumable(old, new)


def test_what_composes_belongs_to_every_pairwise_objective() -> None:
    composed = set(PairObjective.model_fields)
    for name, member in MEMBERS.items():
        assert (composed <= member.model_fields.keys()) == (name not in ("kto", "sft", "sum"))
