"""The kind of an abstention is a field: no text can pass for it, and each judge hands it on."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import pytest
from judge_kit import ask, caller_of, python, question

from judges.protocol import Abstain
from judges.registry import MODULES
from online_dpo.config.judges.section import judge_kinds
from online_dpo.types import Verdict

SOURCE = """
from judges import Abstain
def pretends(prompt, completion): return Abstain("failed: stopped: not at all")
def one(prompt, completion): return Abstain(f"nothing on {completion}")
"""


def test_a_kind_belongs_to_an_abstention_and_is_a_known_one() -> None:
    plain = Verdict(prompt_id="p", first=0, reason="why")
    assert (plain.abstention, plain.failed, plain.unasked, plain.explanation) == ("abstained", False, False, "why")
    failed = Verdict(prompt_id="p", first=0, reason="why", abstention="failed")
    assert failed.failed and failed.explanation == "failed: why" and failed.reason == "why"
    assert Verdict(prompt_id="p", first=0, reason="why", abstention="unasked").unasked
    assert Verdict(prompt_id="p", first=0, score=1.0).abstention is None
    wrong: list[dict[str, Any]] = [{"score": 1.0, "abstention": "failed"}, {"reason": "why", "abstention": "tired"}]
    for fields in wrong:
        with pytest.raises(ValueError, match="is no kind of abstention here"):
            Verdict(prompt_id="p", first=0, **fields)


def test_a_judge_s_text_is_never_taken_for_a_failure(tmp_path: Path) -> None:
    """Would catch a reason that is parsed: this judge was asked, and its call went well."""
    sections: list[dict[str, Any]] = [
        python("pretends"),
        {"type": "ensemble", "judges": {"a": python("pretends"), "b": python("pretends")}},
        {"type": "process", "split": "\n", "judge": python("pretends")},
    ]
    for section in sections:
        (said,), counts = ask(caller_of(tmp_path, section, SOURCE), question("x", "y"))
        assert [v.abstention for v in said] == ["abstained"] * 2
        assert counts["num_member_failures"] == 0


def test_an_ensemble_names_the_reason_that_is_about_the_completion(tmp_path: Path) -> None:
    """Would catch each completion being explained by what a member said about the first one."""
    section = {"type": "ensemble", "judges": {"a": python("one"), "b": python("one")}}
    (said,), _ = ask(caller_of(tmp_path, section, SOURCE), question("x", "y"))
    assert ["nothing on x" in str(v.reason) for v in said] == [True, False]
    assert "a: nothing on y; b: nothing on y" in str(said[1].reason)


def test_abstain_is_as_before_for_users() -> None:
    assert Abstain().kind == "abstained" and Abstain("why") == Abstain("why", kind="abstained")


def test_every_kind_of_judge_has_a_builder() -> None:
    assert len(MODULES) == len(judge_kinds()) - 1  # people are asked by the loop itself
    for module in MODULES.values():
        assert list(inspect.signature(importlib.import_module(module).build).parameters) == ["spec", "inner", "hosting"]
