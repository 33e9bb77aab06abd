"""vLLM's log-probs of every family after a push are the learner's; docs/models.md has what was seen."""

from __future__ import annotations

from pathlib import Path

import pytest
from family_engine import PAGE, PUSHES, REFUSED, RULE, Refused, compare
from family_kit import FAMILIES


def rows() -> dict[str, list[str]]:
    """Family -> the cells of its row in docs/models.md."""
    lines = PAGE.read_text().split(RULE)[1].strip().splitlines()
    table = [line.strip("| ").split(" | ") for line in lines[: lines.index("")]]
    return {cells[0]: cells[1:] for cells in table}


def test_the_table_of_models_has_every_family() -> None:
    assert list(rows()) == list(FAMILIES)
    for cells in rows().values():
        assert all(cell == REFUSED or float(cell) < 1e-4 for cell in cells[2:])


@pytest.mark.exhaustive
@pytest.mark.parametrize("push", PUSHES)
@pytest.mark.parametrize("family", FAMILIES)
def test_a_pushed_policy_has_the_learner_s_log_probs(family: str, push: str, tmp_path: Path) -> None:
    if rows()[family][2 + PUSHES.index(push)] == REFUSED:
        with pytest.raises(Refused):
            compare(family, push, tmp_path)
        return
    found = compare(family, push, tmp_path)
    assert found.gap < 1e-4 and found.moved > 0.3 and found.back == 0.0
