"""`online-dpo fork`: which stage a change asks for, what is refused, and what is said about it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from cli_kit import called, refused, write_inputs, write_run
from store_driver import tree

from online_dpo.loop.control import Control
from online_dpo.store.forking import FORKS
from online_dpo.store.run_store import RunStore


@pytest.fixture
def work(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a run of three rounds, of which two are finished."""
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_inputs(folder, tiny_model)
    with (folder / "judge.py").open("a") as file:
        file.write("\n\ndef other(prompt, completion):\n    return 0.0\n")
    write_run()
    return folder


def fork(work: Path, *arguments: str, number: int = 3) -> dict[str, object]:
    """Fork the run at a round; what the new run says of it."""
    name = f"runs/fork-{len(list((work / 'runs').iterdir()))}"
    before = tree(work / "runs/demo")
    done = called("fork", "runs/demo", "--round", number, name, *arguments, cwd=work)
    assert done.code == 0, done
    assert done.out.splitlines()[-1] == f"continue with: online-dpo resume {name}"
    assert called("verify", name, cwd=work).code == 0
    assert tree(work / "runs/demo") == before
    with RunStore.read(work / name) as store:
        assert store.finished_rounds() == list(range(number - 1))
        return dict(store.info[FORKS][-1])


def test_the_first_stage_that_reads_what_changed_is_where_the_round_begins(work: Path) -> None:
    """Would catch verdicts of one judge under another, and reference log-probs that were computed otherwise."""
    for overrides, stage in (
        ([], "learn"),
        (["objective.beta=0.3", "learner.lr=1e-3", "run.rounds=9"], "learn"),
        (["learner.layout=separate"], "pair"),
        (["reference={type: every}"], "pair"),
        (["objective={type: kto}", "pairing={labels: {type: threshold, value: 0.5}}"], "pair"),
        (["objective={type: simpo}"], "pair"),
        (["sampling.truncated=drop"], "pair"),
        (["judge.threads=2"], "judge"),
        (["pairing.strategy=random", "judge={type: python, target: judge.py:other}"], "judge"),
    ):
        assert fork(work, *overrides)["from"] == stage, overrides
    entry = fork(work, "judge={type: python, target: judge.py:other}", "--from", "sample", number=1)
    assert (entry["from"], entry["judges"], entry["taken"], entry["kept_sha256"]) == ("sample", ["reward"], [], None)
    (work / "judge.py").write_text("def score(prompt, completion):\n    return -len(completion)\n")
    entry = fork(work)
    assert (entry["from"], list(entry["changed"])) == ("judge", ["judge.target"])


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["sampling.temperature=0.7"], r"sampling\.temperature changed, which shapes the samples .* --from sample"),
        (["generator.dtype=bfloat16"], r"generator\.dtype changed, which shapes the samples"),
        (["prompts.source=judge.py"], "prompts.source"),
        (["run.seed=1", "--from", "sample"], r"run\.seed changed, and the former prompts were drawn with the former"),
        (["learner.lora.r=16", "--from", "sample"], r"learner\.lora\.r changed, and the adapter that the round begins"),
        (
            ["judge={type: python, target: judge.py:other}", "--from", "pair"],
            r"--from is pair, and judge\.\w+ changed.*give --from judge",
        ),
        (["--from", "draw"], "--from is draw; choose one of sample, judge, pair, learn"),
        (["run.rounds=2"], r"run\.rounds is 2 and the fork begins with round 3; set it to 3 or more"),
        (["objective.betta=1"], "objective.betta"),
    ],
)
def test_what_a_fork_cannot_have_is_refused(arguments: list[str], said: str, work: Path) -> None:
    message = refused("fork", "runs/demo", "--round", 3, "runs/new", *arguments, cwd=work)
    assert re.search(said, message.replace("\n", " ")), message


def test_places_and_rounds_that_cannot_be(work: Path) -> None:
    (work / "file").write_text("")
    assert "NEW_DIR is runs/demo, which exists" in refused("fork", "runs/demo", "--round", 1, "runs/demo", cwd=work)
    assert "which exists" in refused("fork", "runs/demo", "--round", 1, "file", cwd=work)
    inside = refused("fork", "runs/demo", "--round", 1, "runs/demo/rounds/x", cwd=work)
    assert "lies in the run that is forked" in inside
    assert "choose one from 1 to 3" in refused("fork", "runs/demo", "--round", 4, "runs/new", cwd=work)
    assert "choose one from 1 to 3" in refused("fork", "runs/demo", "--round", 0, "runs/new", cwd=work)
    pruned = refused("fork", "runs/demo", "--round", 2, "runs/new", cwd=work)
    assert "optimizer state of round 1 of runs/demo was not kept" in pruned and "fork at round 1 or 3" in pruned
    refused("fork", "nowhere", "--round", 1, "runs/new", cwd=work)
    damaged = work / "runs/demo/rounds/00001/adapter/adapter_model.safetensors"
    damaged.write_bytes(b"?" + damaged.read_bytes()[1:])
    assert "rounds/00001/adapter/" in refused("fork", "runs/demo", "--round", 3, "runs/new", cwd=work)


def test_a_beta_that_was_raised_does_not_go_unseen(
    tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    write_inputs(tmp_path, tiny_model)
    write_run(Control(beta_factor=2.0))
    message = refused("fork", "runs/demo", "--round", 3, "runs/new", cwd=tmp_path)
    assert "objective.beta changed, and the rounds before multiplied beta by 2" in message


def test_where_a_run_comes_from_is_told_and_a_fork_of_a_fork_tells_all(work: Path) -> None:
    fork(work, "objective.beta=0.3")
    assert called("fork", "runs/fork-1", "--round", 3, "runs/twice", "objective.beta=0.4", cwd=work).code == 0
    for number, command in enumerate((["status"], ["report"], ["export"])):
        arguments = ["runs/twice", *([f"out-{number}"] if command == ["export"] else [])]
        out = called(*command, *arguments, cwd=work).out
        if command == ["report"]:
            out = (work / "runs/twice/report/report.html").read_text()
        first, second = out.index("forked from demo (run.json "), out.index("forked from fork-1 (run.json ")
        assert first < second and "changed: objective.beta 0.1" in out
    found = json.loads(called("status", "runs/twice", "--json", cwd=work).out)[FORKS]
    assert [entry["changed"]["objective.beta"] for entry in found] == [[0.1, 0.3], [0.3, 0.4]]
    assert FORKS not in json.loads(called("status", "runs/demo", "--json", cwd=work).out)
