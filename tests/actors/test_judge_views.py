"""Judges behind a view: they see answers, and are not asked about thoughts that have no end."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from verdict_kit import answers, brief, shard_of

from actors.judge_host import JudgeHost
from judges.registry import make_spec
from online_dpo.config.loading import load_config
from online_dpo.errors import JudgeError
from online_dpo.types import Judged

SEEN = """
from judges import StopJudging
class Asked:
    def __init__(self, stops=False): self.stops = stops
    def score(self, prompt, completion, metadata):
        assert "think" not in completion and completion != "", repr(completion)
        if self.stops and metadata["name"] == "q": raise StopJudging("enough")
        return float(len(completion))
def longer(prompt, a, b): raise AssertionError("compare is a method")
class Compare:
    def compare(self, prompt, a, b): return len(a) / (len(a) + len(b))
"""
TEXTS = ("<think>so long a thought</think>\n\n#### 72", "<think>so", "text <think>b</think>#### 7", "</think>#### 12")
UNCLOSED = "the thought has no end"


def host(tmp_path: Path, judge: dict[str, Any], view: dict[str, Any] | None = None, **further: Any) -> JudgeHost:
    (tmp_path / "mine.py").write_text(SEEN)
    section = {**judge, "view": {"strip": ["think"], **(view or {})}}
    config = load_config({**BASE, "judge": section, **further})
    return JudgeHost(make_spec(config.judge, field="judge", base_dir=tmp_path))


def judged(host: JudgeHost, *names: str, again: bool = False) -> Judged:
    given = [completion for name in names for completion in answers(name, *TEXTS)]
    return asyncio.run(host.judge_shard(shard_of(*names), given, again))


PYTHON = {"type": "python", "target": "mine.py:Asked"}
PENALTY = {"type": "length_penalty", "rate": 1, "unit": "characters", "judge": PYTHON}


@pytest.mark.parametrize(
    ("judge", "said"),
    [
        (PYTHON, (7.0, 11.0, 7.0)),
        (PENALTY, (0.0, 0.0, 0.0)),  # the thought costs nothing
        ({"type": "ensemble", "judges": {"a": PYTHON, "b": PENALTY}}, (3.5, 5.5, 3.5)),
        ({"type": "verifier", "method": "numeric", "answer": "name"}, (1.0, 0.0, 0.0)),
    ],
    ids=("python", "length_penalty", "ensemble", "verifier"),
)
def test_judges_see_the_answer(judge: dict[str, Any], said: tuple[float, ...], tmp_path: Path) -> None:
    found = judged(host(tmp_path, judge), "72")
    assert brief(found.verdicts) == [("72", 0, None, said[0]), ("72", 2, None, said[1]), ("72", 3, None, said[2]),
                                     ("72", 1, None, UNCLOSED)]  # fmt: skip
    assert [v.abstention for v in found.verdicts] == [None, None, None, "unclosed"]
    assert found.counters["num_unclosed_completions"] == 1
    assert found.counters["num_judge_failures"] == 0


def test_a_judge_that_compares_and_one_that_is_asked_again(tmp_path: Path) -> None:
    compare = host(tmp_path, {"type": "python", "target": "mine.py:Compare"}, {"unclosed": "worst"})
    found = judged(compare, "p")
    assert {(v.first, v.second) for v in found.verdicts} == {(0, 2), (0, 3), (2, 3), (1, None)}
    assert "num_unclosed_completions" not in judged(compare, "p", again=True).counters  # counted once


def test_a_score_for_what_has_no_end(tmp_path: Path) -> None:
    found = judged(host(tmp_path, PYTHON, {"unclosed": -3}), "p")
    assert brief(found.verdicts)[-1] == ("p", 1, None, -3.0)
    compare = host(tmp_path, {"type": "python", "target": "mine.py:Compare"}, {"unclosed": -3})
    with pytest.raises(JudgeError, match=r"judge.view.unclosed is -3, a score.*only compares two answers"):
        asyncio.run(compare.try_it(chat=False))


def test_nothing_at_all_is_said_about_a_prompt_that_was_not_asked(tmp_path: Path) -> None:
    """Otherwise its resumed run would take the abstention for all that there is to say."""
    found = judged(host(tmp_path, {**PYTHON, "args": {"stops": True}}), "p", "q")
    assert found.stopped == "enough"
    assert {v.prompt_id for v in found.verdicts} == {"p"} and len(found.verdicts) == 4
    assert found.counters["num_unclosed_completions"] == 1


def test_a_prompt_whose_thoughts_all_have_no_end_asks_nobody(tmp_path: Path) -> None:
    given = answers("p", "a", "b")
    prefilled = host(tmp_path, PYTHON, {"prefilled": True})
    found = asyncio.run(prefilled.judge_shard(shard_of("p", "q"), given))
    assert brief(found.verdicts) == [("p", 0, None, UNCLOSED), ("p", 1, None, UNCLOSED)]
    assert found.counters["num_judge_calls"] == 0
