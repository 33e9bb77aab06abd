"""What votes come to, against hand calculation and crowd-kit."""

from __future__ import annotations

import math
import random
from collections.abc import Sequence

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from online_dpo.annotation.agreement import krippendorff_alpha, share_of
from online_dpo.annotation.consensus import find_consensus
from online_dpo.annotation.dawid_skene import estimate
from online_dpo.annotation.quality import Standing, shortfall, wilson_interval
from online_dpo.annotation.records import LABELS, MIRRORED, Rules, Vote

Row = tuple[str, str, str]
PEOPLE = {"a": 0.9, "b": 0.85, "c": 0.8, "d": 0.75, "random": 0.5}


def vote(question: str, annotator: str, outcome: str, kind: str = "question", status: str = "counted") -> Vote:
    return Vote(
        vote_id=f"{question}/{annotator}", question_id=question, annotator=annotator, outcome=outcome, ratings={},
        comment="", swapped=False, seconds=1.0, at=0.0, kind=kind, repeat_of=None, status=status,
    )  # type: ignore[arg-type]  # fmt: skip


def votes_of(question: str, outcomes: Sequence[str]) -> list[Vote]:
    return [vote(question, f"a{i}", outcome) for i, outcome in enumerate(outcomes)]


def simulate(
    reliability: dict[str, float], num_questions: int, seed: int, outcomes: Sequence[str] = ("first", "second", "tie")
) -> tuple[list[Row], dict[str, str]]:
    """Votes of everybody on every question: right with their own probability, else any other outcome."""
    draw = random.Random(seed)
    rows, truth = [], {}
    for i in range(num_questions):
        true = draw.choice(outcomes)
        truth[f"q{i}"] = true
        for annotator, right in reliability.items():
            others = [label for label in outcomes if label != true]
            rows.append((f"q{i}", annotator, true if draw.random() < right else draw.choice(others)))
    return rows, truth


def mirrored(rows: list[Row]) -> list[Row]:
    return [(f"mirrored {q}", a, MIRRORED.get(outcome, outcome)) for q, a, outcome in rows]


@pytest.mark.parametrize("extra", [{"random": 1 / 3}, {"adversarial": 0.05}, {"random": 1 / 3, "adversarial": 0.05}])
def test_dawid_skene_is_crowd_kits_on_the_votes_and_their_mirror_image(extra: dict[str, float]) -> None:
    """crowd-kit knows nothing of mirrored questions, so it is given each question in both orders."""
    pandas = pytest.importorskip("pandas")
    classification = pytest.importorskip("crowdkit.aggregation")
    rows, _ = simulate({"a": 0.9, "b": 0.8, "c": 0.75, **extra}, 60, seed=3)
    rows = [row for i, row in enumerate(rows) if i % 5]  # not everybody answers everything
    data = pandas.DataFrame(rows + mirrored(rows), columns=["task", "worker", "label"])
    theirs = classification.DawidSkene(n_iter=30, tol=-math.inf).fit(data)
    ours = estimate(rows, strength=0.0, max_iterations=30, tolerance=-1.0)
    for question, found in ours.outcomes.items():
        for label in ("first", "second", "tie"):
            assert found[label] == pytest.approx(theirs.probas_.loc[question, label], abs=1e-6)
    for annotator, matrix in ours.confusion.items():
        for true, said in matrix.items():
            for label in ("first", "second", "tie"):
                expected = theirs.errors_[true].get((annotator, label), 0.0)
                assert said[label] == pytest.approx(expected, abs=1e-6)


def test_known_answers_count_as_in_crowd_kit() -> None:
    pandas = pytest.importorskip("pandas")
    classification = pytest.importorskip("crowdkit.aggregation")
    rows, truth = simulate({"a": 0.9, "b": 0.6, "c": 0.5}, 40, seed=5)
    known = {question: truth[question] for question in list(truth)[:10]}
    both = {**known, **{f"mirrored {q}": MIRRORED.get(label, label) for q, label in known.items()}}
    data = pandas.DataFrame(rows + mirrored(rows), columns=["task", "worker", "label"])
    theirs = classification.DawidSkene(n_iter=20, tol=-math.inf).fit(data, true_labels=pandas.Series(both))
    ours = estimate(rows, known, strength=0.0, max_iterations=20, tolerance=-1.0)
    for question, found in ours.outcomes.items():
        assert found["first"] == pytest.approx(theirs.probas_.loc[question, "first"], abs=1e-6)


def test_weighing_people_beats_counting_votes_and_the_best_of_them() -> None:
    right = {"dawid_skene": 0, "majority": 0, **dict.fromkeys(PEOPLE, 0)}
    for seed in range(20):
        rows, truth = simulate(PEOPLE, 100, seed, ("first", "second"))
        answers = {q: [vote(*row) for row in rows if row[0] == q] for q in truth}
        for method in ("dawid_skene", "majority"):
            found = find_consensus(answers, method=method, min_agreement=0.0, disagreement="soft")  # type: ignore[arg-type]
            right[method] += sum(found[q].outcome == true for q, true in truth.items())
        for q, annotator, outcome in rows:
            right[annotator] += outcome == truth[q]
    assert right["dawid_skene"] > right["majority"] > right["a"] > right["random"]


def test_an_adversary_is_read_the_other_way_round_and_somebody_random_hardly_at_all() -> None:
    rows, truth = simulate({"a": 0.9, "b": 0.85, "adversarial": 0.05, "random": 0.5}, 150, 1, ("first", "second"))
    found = estimate(rows)
    assert found.reliability("adversarial") < 0.15
    assert 0.4 < found.reliability("random") < 0.6 < 0.75 < found.reliability("b")
    right = sum(max(found.outcomes[q], key=found.outcomes[q].__getitem__) == true for q, true in truth.items())
    assert right > 0.95 * len(truth)


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(st.sampled_from("pqrst"), st.sampled_from("abcd"), st.sampled_from(LABELS)), min_size=1, max_size=25
    ),
    st.randoms(use_true_random=False),
)
def test_the_order_of_votes_and_of_answers_changes_nothing(rows: list[Row], draw: random.Random) -> None:
    """Not even where there are fewer votes than parameters; and probabilities are some."""
    found = estimate(rows).outcomes
    shuffled = draw.sample(rows, len(rows))
    turned = {q for q in "pqrst" if draw.random() < 0.5}
    other = estimate([(q, a, MIRRORED.get(o, o) if q in turned else o) for q, a, o in shuffled]).outcomes
    for question, outcomes in found.items():
        assert sum(outcomes.values()) == pytest.approx(1.0)
        for label, p in outcomes.items():
            name = MIRRORED.get(label, label) if question in turned else label
            assert other[question][name] == pytest.approx(p, abs=1e-6)
    assert estimate(rows).outcomes == found


@pytest.mark.parametrize(
    ("outcomes", "min_agreement", "abstain", "soft"),
    [
        (["first", "first", "second"], 0.6, 2 / 3, 2 / 3),
        (["first", "first", "second"], 0.7, "disagreement: 2 for the first, 1 for the second", 2 / 3),
        (["second", "second", "second"], 1.0, 0.0, 0.0),
        (["first", "tie"], 0.5, "disagreement: 1 for the first, 1 for a tie", 0.75),
        (["tie", "tie", "second"], 0.6, "tie: 1 for the second, 2 for a tie", 1 / 3),
        (["both_bad", "both_bad", "first"], 0.6, "both bad: 1 for the first, 2 for both bad",
         "both bad: 1 for the first, 2 for both bad"),
        (["both_bad", "first", "first"], 0.6, 5 / 6, 5 / 6),
        ([], 0.0, "no votes", "no votes"),
    ],
)  # fmt: skip
def test_majority_by_hand(outcomes: list[str], min_agreement: float, abstain: float | str, soft: float | str) -> None:
    for disagreement, expected in (("abstain", abstain), ("soft", soft)):
        found = find_consensus(
            {"q": votes_of("q", outcomes)}, method="majority", min_agreement=min_agreement, disagreement=disagreement
        )["q"]  # type: ignore[arg-type]
        assert found.num_votes == len(outcomes)
        if isinstance(expected, str):
            assert (found.probability, found.reason) == (None, expected)
        else:
            assert found.reason is None and found.probability == pytest.approx(expected)


def test_few_votes_of_dawid_skene_come_to_what_most_say() -> None:
    for outcomes, leader in (
        (["first"], "first"),
        (["first", "second", "second"], "second"),
        (["tie", "tie", "first"], "tie"),
    ):
        (found,) = find_consensus(
            {"q": votes_of("q", outcomes)}, method="dawid_skene", min_agreement=0.0, disagreement="soft"
        ).values()
        assert found.outcome == leader and 0.5 < found.support < 1.0
    (even,) = find_consensus(
        {"q": votes_of("q", ["first", "second"])}, method="dawid_skene", min_agreement=0.0, disagreement="abstain"
    ).values()
    assert even.outcome is None and even.reason == "disagreement: 1 for the first, 1 for the second"


def test_what_people_said_elsewhere_tells_whom_to_believe() -> None:
    answers = {"q": [vote("q", "good", "first"), vote("q", "bad", "second")]}
    known = {f"g{i}": "first" for i in range(10)}
    evidence = [vote(g, "good", "first", "gold", "check") for g in known]
    evidence += [vote(g, "bad", "second" if i % 2 else "first", "gold", "check") for i, g in enumerate(known)]
    (found,) = find_consensus(
        answers, method="dawid_skene", min_agreement=0.6, disagreement="abstain", evidence=evidence, known=known
    ).values()
    assert found.outcome == "first" and found.probability is not None and found.probability > 0.7


def test_krippendorffs_alpha_by_hand() -> None:
    # Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), part A: two observers, ten units, alpha 0.095.
    meg, owen = "0100000010", "1110010000"
    names = {"0": "second", "1": "first"}
    units = [[names[m], names[o]] for m, o in zip(meg, owen, strict=True)]
    assert krippendorff_alpha([votes_of("q", unit) for unit in units]) == pytest.approx(1 - 19 * 4 / (14 * 6))
    # Units of 2 to 4 votes over four outcomes; the last has a single vote, which says nothing.
    labels = dict(zip("abcd", LABELS, strict=True))
    answers = [
        votes_of("q", [labels[letter] for letter in unit]) for unit in ("aaaa", "bbbc", "ccc", "ab", "dddd", "c")
    ]
    # So n = 17: a 5, b 4, c 4, d 4. Disagreeing ordered pairs over (m - 1):
    # bbbc: 2 * 3 * 1 / 3 = 2; ab: 2 * 1 * 1 / 1 = 2; together 4.
    # Expected: sum of n_c (n - n_c) = 5 * 12 + 3 * 4 * 13 = 216. alpha = 1 - 16 * 4 / 216.
    assert krippendorff_alpha(answers) == pytest.approx(1 - 64 / 216)
    assert krippendorff_alpha([votes_of("q", ["first", "first"])]) is None
    assert krippendorff_alpha([votes_of("q", ["first"])]) is None
    assert krippendorff_alpha(
        [votes_of("q", ["first", "second"]), votes_of("r", ["second", "first"])]
    ) == pytest.approx(1 - 3 * 4 / 8)  # worse than chance


def test_wilsons_interval_by_hand() -> None:
    # 5 of 10, z = 1.96 (Wilson, 1927; as in R's prop.test without correction): 0.2366 to 0.7634.
    low, high = wilson_interval(5, 10, 1.959963984540054)
    assert (low, high) == (pytest.approx(0.23659, abs=1e-5), pytest.approx(0.76341, abs=1e-5))
    assert wilson_interval(0, 10)[0] == 0.0 and 0.0 < wilson_interval(0, 10)[1] < 0.3
    assert share_of(0, 0) is None


def test_the_bar_excludes_who_is_surely_below_it() -> None:
    rules = Rules(min_accuracy=0.7, min_consistency=0.6, min_checks=8, min_seconds=1.0)
    nothing = dict.fromkeys(Standing.__dataclass_fields__, 0)

    def standing(**numbers: int) -> str | None:
        return shortfall(Standing(**{**nothing, **numbers}), rules)

    assert standing(num_gold=7, num_gold_right=0) is None  # too few to tell
    assert standing(num_gold=8, num_gold_right=5) is None  # may well be above it
    assert standing(num_gold=20, num_gold_right=10) == (
        "of the questions with a known answer you answered 10 of 20 right, and at least 70% are wanted"
    )
    assert "shown twice" in (standing(num_repeats=10, num_repeats_same=2) or "")
    assert standing(num_timed=20, num_too_fast=10) is None
    assert standing(num_timed=20, num_too_fast=11) == "11 of your 20 votes took less than 1 s"
