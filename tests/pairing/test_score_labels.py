"""Answers labelled by their scores, on cases calculated by hand, and whole rounds that train on them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from loop_kit import FakeStages, by_text
from loop_runs import Kill, Run, comparable, records
from pairing_kit import FAILED, comparisons, completion, prompt, scores

from online_dpo.commands.status import read_status
from online_dpo.config.pairing import PairingSection
from online_dpo.errors import NoPairsError
from online_dpo.pairing.score_labels import COMPLETION_OUTCOMES, Labelling, label_by_score
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Judged, Labelled, Verdict


def label(
    labels: dict[str, Any],
    completions: list[Completion],
    verdicts: list[Verdict],
    names: tuple[str, ...] = ("p",),
    **options: Any,
) -> Labelling:
    rules = PairingSection(labels=labels, duplicates=options.pop("duplicates", "tokens"))  # type: ignore[arg-type]
    given = {"truncated": "keep", "truncated_penalty": None, **options}
    return label_by_score([prompt(name) for name in names], completions, verdicts, rules=rules, **given)


def signs(result: Labelling) -> dict[int, bool]:
    return {item.completion.sample_index: item.desirable for item in result.items}


HUNDRED = tuple(map(float, range(100)))  # 0.29 * 100 is a little less than 29 in floating point
TWENTY_NINE = {i: i > 50 for i in range(100) if i < 29 or i > 70}


@pytest.mark.parametrize(
    ("labels", "values", "expected"),
    [
        ({"type": "threshold", "value": 0.5}, (0.0, 1.0, 0.5, 0.6), {0: False, 1: True, 3: True}),
        ({"type": "threshold", "value": -2.0}, (0.0, 1.0), {0: True, 1: True}),
        ({"type": "quantile", "share": 0.25}, (3.0, 1.0, 2.0, 4.0), {1: False, 3: True}),
        ({"type": "quantile", "share": 0.5}, (3.0, 1.0, 2.0, 4.0), {0: True, 1: False, 2: False, 3: True}),
        ({"type": "quantile", "share": 0.5}, (3.0, 1.0, 2.0), {0: True, 1: False}),
        ({"type": "quantile", "share": 0.24}, (3.0, 1.0, 2.0, 4.0), {}),  # less than one answer
        ({"type": "quantile", "share": 0.29}, HUNDRED, TWENTY_NINE),
        # Equals across the bound: neither is taken, on either side.
        ({"type": "quantile", "share": 0.5}, (1.0, 2.0, 2.0, 3.0), {0: False, 3: True}),
        ({"type": "quantile", "share": 0.5}, (1.0, 2.0, 2.0, 2.0), {0: False}),
        ({"type": "quantile", "share": 0.5}, (1.0, 1.0), {}),
    ],
)  # fmt: skip
def test_the_sides_of_threshold_and_quantiles(
    labels: dict[str, Any], values: tuple[float, ...], expected: dict[int, bool]
) -> None:
    result = label(labels, [completion(i) for i in range(len(values))], scores(*values))
    assert signs(result) == expected
    assert result.labels["undecided"] == len(values) - len(expected)


def test_quantiles_are_the_round_s_and_not_a_prompt_s() -> None:
    completions = [completion(i, name=name) for name in "ab" for i in range(2)]
    verdicts = [*scores(1.0, 2.0, name="a"), *scores(3.0, 4.0, name="b")]
    result = label({"type": "quantile", "share": 0.5}, completions, verdicts, ("a", "b"))
    assert [(item.prompt.prompt_id, item.desirable) for item in result.items] == [
        ("a", False), ("a", False), ("b", True), ("b", True)
    ]  # fmt: skip


EMPTY_AND_CUT = {"empty": 1, "truncated": 1}
PROMPT_OUTCOMES = [
    ("labelled", [completion(0)], scores(1.0), {"desirable": 1}),  # one answer is enough
    ("too_few_completions", [], [], {}),
    ("truncated", [completion(0, cut=True)], scores(1.0), {"truncated": 1}),
    ("empty_completions", [completion(0, tokens=()), completion(1, cut=True)], scores(1.0, 1.0), EMPTY_AND_CUT),
    ("judge_failed", [completion(0), completion(1)], scores(FAILED, "?"), {"judge_failed": 1, "abstained": 1}),
    ("abstained", [completion(0), completion(1, tokens=(10,))], scores("?", 1.0), {"abstained": 1, "duplicate": 1}),
    ("no_score", [completion(0), completion(1)], comparisons({(0, 1): 0.9}), {"no_score": 2}),
    ("undecided", [completion(0), completion(1)], scores(0.5, "?"), {"undecided": 1, "abstained": 1}),
]  # fmt: skip


@pytest.mark.parametrize(("outcome", "completions", "verdicts", "labels"), PROMPT_OUTCOMES)
def test_what_becomes_of_every_prompt_and_completion(
    outcome: str, completions: list[Completion], verdicts: list[Verdict], labels: dict[str, int]
) -> None:
    result = label({"type": "threshold", "value": 0.5}, completions, verdicts, truncated="drop")
    assert {name for name, number in result.outcomes.items() if number} == {outcome}
    assert result.labels == {**dict.fromkeys(COMPLETION_OUTCOMES, 0), **labels}


def test_a_truncated_answer_is_penalised_before_it_is_labelled() -> None:
    completions = [completion(0, cut=True), completion(1)]
    found = label(
        {"type": "threshold", "value": 0.5}, completions, scores(1.0, 1.0), truncated="penalise", truncated_penalty=0.6
    )
    assert signs(found) == {0: False, 1: True}


THRESHOLD = {"labels": {"type": "threshold", "value": 2.0}}
QUANTILE = {"labels": {"type": "quantile", "share": 0.25}}


def test_rounds_train_on_every_answer_with_a_label(tmp_path: Path) -> None:
    run = Run.of(tmp_path, objective={"type": "kto"}, pairing=THRESHOLD)
    run.go_on()
    with RunStore.read(run.path) as store:
        first = store.round(0)
        assert not first.has("pairs")
        items = first.get_records("labelled", Labelled)
        sampled = [c for name in first.names("completions/") for c in first.get_records(name, Completion)]
    expected = [(c.prompt_id, c.sample_index, by_text(c.text) > 2.0) for c in sampled if by_text(c.text) != 2.0]
    assert [(i.prompt.prompt_id, i.completion.sample_index, i.desirable) for i in items] == expected
    assert len(items) == 12 and len({item.desirable for item in items}) == 2
    owner = {c.token_ids: c.prompt_id for c in sampled}
    assert all(owner[item.kl_completion_ids] != item.prompt.prompt_id for item in items)
    assert all(item.ref_logps is not None and item.kl_ref_logps is not None for item in items)

    summary = next(record for record in records(run.path) if record["kind"] == "round_done")
    assert (summary["num_desirable"], summary["num_undesirable"]) == (
        summary["labels"]["desirable"],
        summary["labels"]["undesirable"],
    )
    assert sum(summary["labels"].values()) == summary["num_completions"] == 12
    [told, _] = read_status(run.path)["yield"]
    assert told["labels"] == summary["labels"] and (told["prompts"], told["gave"], told["share"]) == (4, 4, 1.0)


def test_labels_join_those_of_a_data_set(tmp_path: Path) -> None:
    """Half of the answers are the data set's: as many rows as the round has labels of its own."""
    rows = [f'{{"prompt": "q{i}", "completion": "a{i}", "label": {str(i % 2 == 0).lower()}}}\n' for i in range(40)]
    (tmp_path / "rows.jsonl").write_text("".join(rows))
    pairs = {"source": str(tmp_path / "rows.jsonl"), "format": "labelled", "fraction": 0.5}
    run = Run.of(tmp_path, objective={"type": "kto"}, pairing=QUANTILE, pairs=pairs)
    run.go_on()
    with RunStore.read(run.path) as store:
        items = store.round(0).get_records("labelled", Labelled)
    assert [item.completion.is_sampled for item in items] == [True] * 6 + [False] * 6


@pytest.mark.parametrize("pairing", [THRESHOLD, QUANTILE], ids=["threshold", "quantile"])
def test_a_killed_run_ends_like_one_that_was_not(pairing: dict[str, Any], tmp_path: Path) -> None:
    run = Run.of(tmp_path, objective={"type": "kto"}, pairing=pairing)
    whole = run.go_on()
    for number in range(0, len(whole.events), 3):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        killed.go_on()
        assert comparable(killed.path) == comparable(run.path), f"killed before event {number}"


class Comparing(FakeStages):
    """Its judge prefers the first of the sampled ones."""

    def _judged(self, judge: str, completions: Any) -> Judged:
        firsts = [c for c in completions if c.sample_index == 0]
        verdicts = [Verdict(prompt_id=c.prompt_id, first=0, second=i, probability=0.9) for c in firsts for i in (1, 2)]
        return Judged(verdicts=tuple(verdicts), counters={})


@pytest.mark.parametrize(
    ("sections", "field"),
    [
        ({"pairing": {"min_chosen_score": 0.5}}, "pairing.min_chosen_score is 0.5"),
        ({"pairing": THRESHOLD, "objective": {"type": "kto"}}, "pairing.labels.type is threshold"),
    ],
)
def test_a_judge_that_gives_comparisons_alone_stops_the_run(
    sections: dict[str, Any], field: str, tmp_path: Path
) -> None:
    """Where the trial could not see it; would catch a bound that all answers pass, or all fail, in silence."""
    run = Run.of(tmp_path, evaluation={}, **sections)
    message = rf"^round 1: {field}, which reads scores of single answers, but the judge only compares two: remove"
    with pytest.raises(NoPairsError, match=message):
        run.go_on(Comparing(run.config))


def test_a_round_without_any_label_says_why(tmp_path: Path) -> None:
    run = Run.of(
        tmp_path,
        evaluation={},
        objective={"type": "kto"},
        pairing={"labels": {"type": "threshold", "value": 1.0}},
    )
    with pytest.raises(NoPairsError, match=r"^round 1 gave no label from 4 prompts: undecided 4; what was sampled"):
        run.go_on(FakeStages(run.config, judge=lambda _: 1.0))
