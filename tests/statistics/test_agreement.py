"""Krippendorff's alpha: against published values, against its definition, and from sums added up in parts."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Sequence
from itertools import permutations, product
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from judge_kit import caller_of, measure, python, question

from online_dpo.member_agreement import MemberAgreement
from online_dpo.statistics.agreement import describe_ensembles, interval_alpha, measure_agreement, nominal_alpha

# Krippendorff, "Computing Krippendorff's alpha-reliability" (2011), part C: 4 observers, 12 units, missing values.
PUBLISHED = [
    [1, 1, None, 1], [2, 2, 3, 2], [3, 3, 3, 3], [3, 3, 3, 3], [2, 2, 2, 2], [1, 2, 3, 4], [4, 4, 4, 4], [1, 1, 2, 1],
    [2, 2, 2, 2], [None, 5, 5, 5], [None, None, 1, 1], [None, 3, None, None],
]  # fmt: skip


def by_definition(units: Sequence[Sequence[Any]], distance: Callable[[Any, Any], float]) -> float | None:
    """`1 - D_o / D_e` over all pairs of values, one by one."""
    paired = [[v for v in unit if v is not None] for unit in units]
    paired = [unit for unit in paired if len(unit) > 1]
    values = [value for unit in paired for value in unit]
    n = len(values)
    observed = sum(sum(distance(a, b) for a, b in permutations(unit, 2)) / (len(unit) - 1) for unit in paired) / n
    expected = sum(distance(a, b) for a, b in permutations(values, 2)) / (n * (n - 1))
    return None if expected == 0 else 1 - observed / expected


def nominal(units: Sequence[Sequence[Any]]) -> float | None:
    categories = sorted({value for unit in units for value in unit if value is not None})
    return nominal_alpha(Counter(tuple(list(unit).count(c) for c in categories) for unit in units))


def interval(units: Sequence[Sequence[Any]]) -> float | None:
    sums: dict[int, list[int]] = {}
    for unit in units:
        values = [value for value in unit if value is not None]
        parts = (1, sum(values), sum(v * v for v in values), sum(values) ** 2)
        sums[len(values)] = [a + b for a, b in zip(sums.get(len(values), [0] * 4), parts, strict=True)]
    return interval_alpha({m: (a, b, c, d) for m, (a, b, c, d) in sums.items()})


def test_published_values() -> None:
    assert round(nominal(PUBLISHED) or 0, 3) == 0.743
    assert round(interval(PUBLISHED) or 0, 3) == 0.849


@given(st.lists(st.lists(st.sampled_from([None, 0, 1, 2]), min_size=4, max_size=4), min_size=1, max_size=8))
@settings(max_examples=150, deadline=None)
def test_the_definition(units: list[list[int | None]]) -> None:
    if any(len([v for v in unit if v is not None]) > 1 for unit in units):
        assert nominal(units) == pytest.approx(by_definition(units, lambda a, b: float(a != b)))
        assert interval(units) == pytest.approx(by_definition(units, lambda a, b: (a - b) ** 2))
    else:
        assert nominal(units) is None and interval(units) is None


SOURCE = """
from judges import Abstain
def noise(prompt, completion, salt):
    value = hash_of(prompt + completion + salt)
    return Abstain("mute") if value < 0.1 else round(8 * value)
def hash_of(text):
    import hashlib
    return hashlib.sha256(text.encode()).digest()[0] / 256
"""


def test_what_an_ensemble_measures_is_all_that_alpha_needs(tmp_path: Path) -> None:
    """Questions of three completions, some unanswered. Would catch an alpha that is averaged over parts, one that takes
    a judge's silence for a tie, and statistics that lose a bit in whatever order they are added up."""
    judges = {name: python("noise", args={"salt": name}) for name in ("a", "b", "c", "d")}
    texts = ("x", "y", "z")
    questions = [question(*texts, name=str(i), prompt=str(i)) for i in range(40)]
    section = {"type": "ensemble", "judges": judges, "quorum": 1}
    measured = [
        measure(caller_of(tmp_path, section, SOURCE), *questions[i:j])[1:] for i, j in ((0, 3), (3, 20), (20, 40))
    ]
    counts, parts = measured[0][0], [found.agreement["judge"] for _, found in measured]
    whole = parts[0].plus(parts[1]).plus(parts[2])
    assert whole == parts[2].plus(parts[0]).plus(parts[1])
    assert MemberAgreement.from_json(json.loads(json.dumps(whole.to_json()))) == whole
    found = describe_ensembles({"judge": whole})["judge"]
    scope: dict[str, Any] = {}
    exec(SOURCE, scope)
    scores = [
        [[scope["noise"](str(i), text, name) for text in texts] for name in judges] for i in range(40)
    ]  # [question][judge][completion]
    numbers = [[[v if isinstance(v, int) else None for v in judge] for judge in asked] for asked in scores]
    assert any(None in judge for asked in numbers for judge in asked)
    duels = [
        [None if None in (judge[i], judge[j]) else (judge[i] > judge[j]) - (judge[i] < judge[j]) for judge in asked]
        for asked, (i, j) in product(numbers, ((0, 1), (0, 2), (1, 2)))
    ]
    assert found["alpha"] == pytest.approx(by_definition(duels, lambda a, b: float(a != b)))
    values = [[judge[i] for judge in asked] for asked, i in product(numbers, range(3))]
    assert found["alpha_scores"] == pytest.approx(by_definition(values, lambda a, b: (a - b) ** 2))
    assert "num_member_comparisons" in counts and not any("[" in name for name in counts)


def test_scores_of_any_size_are_added_up() -> None:
    wild = MemberAgreement()
    for values in ([1e300, -1e300], [0.1, 0.1], [3.0]):
        wild = wild.plus(measure_agreement([], [values]))
    assert describe_ensembles({"judge": wild}) == {"judge": {"alpha_scores": pytest.approx(-0.5)}}
    assert MemberAgreement.from_json(json.loads(json.dumps(wild.to_json()))) == wild
    assert measure_agreement([(1, 0, 0)], []) == MemberAgreement(), "one judge cannot agree"
    assert describe_ensembles({"judge": MemberAgreement()}) == {}
