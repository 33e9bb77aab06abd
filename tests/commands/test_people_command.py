"""A run that left for people to answer, as a user meets it: exit code 4, messages, and what asks nobody."""

from __future__ import annotations

import json
import socket
import time
from pathlib import Path

import pytest
from cli_kit import called, online_dpo, write_inputs, write_run
from people_kit import HUMAN, answer, opened
from store_driver import tree

from online_dpo.annotation.records import Question
from online_dpo.annotation.store import FILE
from online_dpo.commands.run import recorded_config, run
from online_dpo.loop.people.leaving import MARK
from online_dpo.loop.people.opening import judges_of, open_store
from online_dpo.store.run_store import RunStore

TEXTS = {"prompt": "?", "first_text": "a", "second_text": "b"}
QUESTIONS = [Question(purpose="reward", round_index=2, prompt_id=f"p{i}", first=0, second=1, **TEXTS) for i in range(3)]


@pytest.fixture
def left(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run whose third round waits for people, without its engines."""
    write_inputs(tmp_path, tiny_model, judge=HUMAN)
    monkeypatch.chdir(tmp_path)
    write_run()
    config = recorded_config(Path("runs/demo"))
    with open_store(judges_of(config), config, config.run_dir) as annotation:
        annotation.add_questions(QUESTIONS, time.time())
    with RunStore.open(config.run_dir) as store:
        store.round(2).put_json(MARK, {"questions": [question.question_id for question in QUESTIONS]})
    return tmp_path


def test_a_run_that_left_is_continued_once_people_have_answered(left: Path) -> None:
    """Would catch engines that start to find nothing to do, and a wait that looks like a failure or like success."""
    before = {name: data for name, data in tree(left).items() if "annotation/" not in name}
    answer(left / "runs/demo", at_most=1)
    done = online_dpo("resume", "runs/demo", cwd=left)
    assert (done.code, done.out) == (4, "run directory: runs/demo\n")
    assert done.err == (
        "people are asked 3 questions, and 2 votes are missing\nopen them with: online-dpo annotate runs/demo\n"
        "continue with: online-dpo resume runs/demo\n"
    )
    assert {name: data for name, data in tree(left).items() if "annotation/" not in name} == before
    result = run(recorded_config(Path("runs/demo")))
    assert result.awaited is not None and (result.awaited.num_missing_votes, result.stopped) == (2, None)
    status = called("status", "runs/demo", cwd=left)
    assert "people: 1 of 3 questions are settled, 2 votes are missing; 1 people" in status.out
    assert json.loads(called("status", "runs/demo", "--json", cwd=left).out)["people"]["awaited"] is True
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))  # going on is seen by the search for a cluster that is not there
        address = f"cluster.address=127.0.0.1:{closed.getsockname()[1]}"
        waits = called("resume", "runs/demo", "judge.wait=true", address, cwd=left)
        assert "no Ray cluster answers there" in waits.refusal, "it stays up to wait"
        assert called("resume", "runs/demo", "judge.wait=false", "judge.annotators=2", cwd=left).code == 4
        answer(left / "runs/demo")
        assert called("resume", "runs/demo", cwd=left).code == 4, "two people are wanted now"
        answer(left / "runs/demo", "Bob")
        assert "no Ray cluster answers there" in called("resume", "runs/demo", cwd=left).refusal
    assert called("verify", "runs/demo", cwd=left).code == 0


def test_a_lost_store_is_made_anew_and_a_damaged_one_is_named(left: Path) -> None:
    with socket.socket() as closed:
        closed.bind(("127.0.0.1", 0))
        address = f"cluster.address=127.0.0.1:{closed.getsockname()[1]}"
        file = left / "runs/demo" / FILE
        file.write_bytes(b"no database at all" * 100)
        assert str(FILE) in called("resume", "runs/demo", address, cwd=left).refusal
        assert str(FILE) in called("status", "runs/demo", cwd=left).out
        for part in file.parent.iterdir():
            part.unlink()
        assert "no Ray cluster answers there" in called("resume", "runs/demo", address, cwd=left).refusal
    with opened(left / "runs/demo") as annotation:
        assert annotation.questions() == [], "the run asks them again once it is up"


def test_nobody_is_asked_outside_of_a_run(left: Path) -> None:
    (left / "rows.jsonl").write_text('{"prompt": "p", "completions": ["a", "b"]}\n')
    refusal = called("judge", "config.yaml", "rows.jsonl", cwd=left).refusal
    assert refusal.startswith("judge.type is human, and people are asked in a run alone")
    checked = called("validate", "config.yaml", "--deep", cwd=left)
    assert checked.code == 0 and "judge: people, who are not asked by this; 0 gold questions" in checked.out
