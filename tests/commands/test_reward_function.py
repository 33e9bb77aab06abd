"""`as_reward_function`: what a trainer gets of every kind of judge, and what it is told where there is no reward."""

from __future__ import annotations

import gc
import json
import logging
import pickle
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import psutil
import pytest
from judge_servers import Answer, completion, longer_wins, material, serve, verdict

from online_dpo import as_reward_function, load_config
from online_dpo.commands.judge import Options, judge_file
from online_dpo.errors import ConfigError, DataError, JudgeError, JudgingStopped

MINE = """
import time
from online_dpo import Abstain

def score(prompt, completion, metadata):
    if completion == "?":
        return Abstain("cannot tell")
    if completion == "boom":
        raise ValueError("no such word")
    if completion == "hang":
        time.sleep(600)
    text = prompt if isinstance(prompt, str) else prompt[-1]["content"]
    return len(completion) + 100 * len(text) + 10000 * metadata.get("bonus", 0)

class Longer:
    def compare(self, prompt, a, b):
        if "?" in (a, b):
            return Abstain("one is unreadable")
        return "tie" if len(a) == len(b) else 0.9 if len(a) > len(b) else 0.2
"""


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "mine.py").write_text(MINE)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def python(name: str, **fields: Any) -> dict[str, Any]:
    return {"type": "python", "target": f"mine.py:{name}", "retries": 0, **fields}


def say(text: str, role: str = "assistant") -> list[dict[str, str]]:
    return [{"role": role, "content": text}]


def test_scores_reach_their_rows_with_columns_and_in_chats(folder: Path, caplog: pytest.LogCaptureFixture) -> None:
    reward = as_reward_function(python("score", retries=1))
    told: dict[str, float] = {}
    asked: dict[str, Any] = {"completion_ids": [[1]] * 6, "trainer_state": object(), "log_extra": print}
    with caplog.at_level(logging.WARNING):
        found = reward(
            prompts=["ab", "a", "ab", "ab", "a", "ab"],  # groups may lie apart, and a column tells equal prompts apart
            completions=["x", "xxx", "?", "xx", "boom", "xxxx"],
            bonus=[1, 2, 1, 1, 2, 3],
            log_metric=told.__setitem__,
            **asked,
        )
    assert found == [10201.0, None, None, 10202.0, None, 30204.0], "what cannot be scored fails with its whole prompt"
    counters = reward.counters
    assert {name: counters[name] for name in ("num_completions", "num_rewards", "num_abstained", "num_failed")} == {
        "num_completions": 6, "num_rewards": 3, "num_abstained": 1, "num_failed": 2,
    }  # fmt: skip
    assert counters["num_judge_retries"] == 1 and counters["num_judge_failures"] == 1
    assert told == {"judge/no_reward": 0.5}
    (line,) = [record.getMessage() for record in caplog.records if "have no reward" in record.getMessage()]
    assert line == (
        "judge: 3 of 6 completions have no reward (1 abstentions, 2 failed calls); most often: failed: ValueError: no "
        "such word (2 x)"
    )
    found = reward([say("abc", "user")] * 3, [say("x"), say("?"), say("xx")], bonus=[0, 0, 0], self=[1, 1, 1])
    assert found == [301.0, None, 302.0] and counters["num_completions"] == 9
    assert reward.__name__ == "judge" and reward([], []) == []


def test_code_that_hangs_is_killed_and_ends_with_the_function(folder: Path) -> None:
    before = set(psutil.Process().children())
    reward = as_reward_function(python("score", timeout_s=0.3, batch_size=1))
    assert reward(["a", "b"], ["hang", "x"]) == [None, 101.0]
    assert reward.counters["num_judge_timeouts"] == 1
    judges = set(psutil.Process().children()) - before
    assert len(judges) == 1, "the one that hung was replaced"
    del reward
    gc.collect()
    assert psutil.wait_procs(judges, timeout=60)[1] == []


def test_comparisons_become_the_mean_probability_of_winning(folder: Path) -> None:
    reward = as_reward_function({"judge": python("Longer")}, name="longer")
    # Two groups, interleaved. p: x < xx = yy < zzz; q: one abstention, so that only a and bb are compared.
    found = reward(["p", "q", "p", "q", "p", "p", "q"], ["zzz", "a", "x", "?", "xx", "yy", "bb"])
    p = [(0.9 + 0.9 + 0.9) / 3, (0.1 + 0.2 + 0.2) / 3, (0.1 + 0.8 + 0.5) / 3, (0.1 + 0.8 + 0.5) / 3]
    assert [found[i] for i in (0, 2, 4, 5)] == pytest.approx(p)
    assert [found[i] for i in (1, 3, 6)] == [pytest.approx(0.2), None, pytest.approx(0.8)]
    with pytest.raises(JudgeError, match=r"one completion alone of the prompt 'q'.*multiple of num_generations"):
        reward(["p", "p", "q"], ["x", "xx", "x"])
    assert reward.__name__ == "longer"


def test_a_language_model_on_loopback_and_its_budget(folder: Path) -> None:
    def grade(body: dict[str, Any], _: int) -> Answer:
        found = material(body)
        text = longer_wins(body) if "answer-A" in found else verdict(body, min(10, len(found["answer"])))
        return Answer(completion(text, usage=(300, 5)))

    with serve(grade) as server:
        llm = {"type": "llm", "endpoint": {"base_url": server.base_url, "model": "m"}}
        points = as_reward_function({**llm, "form": "pointwise", "budget": {"calls": 5}})
        assert points(["p", "p", "p"], ["x", "xxxx", "x"]) == [1.0, 4.0, 1.0]
        assert points.counters["num_judge_completion_tokens"] == 10
        with pytest.raises(JudgingStopped, match=r"judge.endpoint http.*budget.calls is 5, of which 4 are spent"):
            points(["p", "p"], ["abc", "abcdef"])  # the trial took 2 calls, and the same text is asked about once
        pairs = as_reward_function({**llm, "form": "pairwise"})
        assert pairs(["p", "p", "p"], ["x", "xxxx", "xx"]) == pytest.approx([0.0, 1.0, 0.5], abs=1e-5)


def test_the_embedded_reward_model_and_steps_score_as_the_judge_command(folder: Path) -> None:
    judge = {"type": "ensemble", "judges": {
        "model": {"type": "reward_model", "path": "embedded:reward", "threads": 1},
        "steps": {"type": "process", "judge": {"type": "python", "target": "embedded:gold"}, "split": "[.]"},
    }}  # fmt: skip
    (folder / "judge.yaml").write_text(json.dumps({"evaluation": {"judges": {"both": judge}}}))
    texts = ["a quiet joy. i loved it.", "far too long", "dull. but well acted."]
    (folder / "rows.jsonl").write_text(json.dumps({"prompt": "The film was", "completions": texts}) + "\n")
    said = judge_file(folder / "judge.yaml", folder / "rows.jsonl", (), Options(judge="both"))
    expected = [v["score"] for v in said["prompts"][0]["verdicts"]]
    reward = as_reward_function(folder / "judge.yaml", judge="both")
    assert reward(["The film was"] * 3, texts) == pytest.approx(expected) and reward.__name__ == "both"


def test_it_can_be_pickled_and_called_from_threads(folder: Path) -> None:
    config = load_config(
        {"model": {"path": "m"}, "prompts": {"source": "s"}, "judge": python("score"), "sampling": {"num_samples": 2}}
    )
    first = as_reward_function(config)
    again = pickle.loads(pickle.dumps(first))
    alone = as_reward_function(config.judge)  # type: ignore[arg-type]
    with ThreadPoolExecutor(8) as pool:
        tasks = [pool.submit(again, ["p"], ["x" * n], bonus=[n]) for n in range(1, 20)]
        assert [task.result() for task in tasks] == [[float(n + 100 + 10000 * n)] for n in range(1, 20)]
    assert again.counters["num_completions"] == 19 and first.counters["num_completions"] == 0
    assert alone.__name__ == again.__name__ == first.__name__ == "judge"


@pytest.mark.parametrize(
    ("config", "judge", "error", "message"),
    [
        ({"type": "human"}, None, ConfigError, "judge.type is human, and people are asked in a run alone"),
        ({"type": "humane"}, None, ConfigError, "judge.type is humane"),
        ({"evaluation": {}}, None, ConfigError, "the config has no judge section"),
        ({"evaluation": {}}, "gold", ConfigError, "judge gold is none of evaluation.judges"),
        ("none.yaml", None, ConfigError, "none.yaml"),
        (python("absent"), None, JudgeError, "mine.py has nothing named absent"),
    ],
)
def test_what_is_no_judge_is_told(
    folder: Path, config: Any, judge: str | None, error: type[Exception], message: str
) -> None:
    with pytest.raises(error, match=message):
        as_reward_function(config, judge=judge)


@pytest.mark.parametrize(
    ("prompts", "completions", "columns", "message"),
    [
        (["p"], ["a", "b"], {}, "1 prompts, 2 completions; give as many of each"),
        (["p"], ["a"], {"answer": [1, 2]}, "1 prompts, 1 completions, 2 answer"),
        ([3], ["a"], {}, "a prompt that is neither text nor a list of chat messages"),
        ([[{"role": "user", "content": [{"type": "image"}]}]], ["a"], {}, "neither text nor a list of chat messages"),
        (["p"], [[{"role": "assistant", "content": "a"}] * 2], {}, "a completion that is neither text nor a list of"),
        (["p"], [None], {}, "a completion that is neither text"),
        (["p"], ["a"], {"picture": [object()]}, "column picture holds object, which a judge cannot be given as JSON"),
    ],
)
def test_what_cannot_be_judged_is_told(
    folder: Path, prompts: list[Any], completions: list[Any], columns: dict[str, Any], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        as_reward_function(python("score"))(prompts, completions, **columns)
