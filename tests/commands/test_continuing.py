"""A run directory that is damaged, renamed, or whose config changed: what `run`, `resume` and `verify` make of it."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from cli_kit import called, refused, write_inputs, write_run
from model_kit import change_json
from store_driver import tree

from online_dpo.commands import run as command
from online_dpo.config.loading import load_config
from online_dpo.store.run_store import RunStore

ANSWERS = "rounds/00000/completions/shard-00000.parquet"


@pytest.fixture
def work(tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with a config that could be run; rounds are not played."""

    def play(materials: Any, store: RunStore | None, stack: ExitStack, listeners: Any) -> command.RunResult:
        config = materials.config
        if store is None:
            info = command.run_info(materials)
            store = RunStore.create(config.run_dir, config_yaml=command.portable_yaml(config), info=info)
            stack.enter_context(store)
        return command.RunResult(run_dir=store.path, rounds=())

    monkeypatch.setattr(command, "_play", play)
    folder = tmp_path / "work"
    folder.mkdir()
    monkeypatch.chdir(folder)
    write_inputs(folder, tiny_model)
    return folder


def start(work: Path) -> None:
    """A run that was killed in its first round."""
    assert called("run", "config.yaml", cwd=work).code == 0
    with RunStore.open(work / "runs/demo") as store:
        store.round(0).put_json("draw", {"n": 1})


def test_a_run_without_a_finished_round_starts_again_under_another_config(work: Path) -> None:
    start(work)
    before = tree(work / "runs/demo")
    done = called("run", "config.yaml", "learner.lr=1e-3", cwd=work)
    assert done.code == 0
    assert "the run in runs/demo has no finished round and cannot go on under this config (learner.lr was" in (
        done.out + done.err
    ).replace("\n", " ")
    assert tree(work / "runs/demo/set-aside/00001") == before
    with RunStore.read(work / "runs/demo") as store:
        assert load_config(command._yaml_mapping(store.config_yaml)).learner.lr == 1e-3
        assert store.round(0).names() == []
    # The old one is a run of its own, and the same config goes on without setting anything aside.
    assert called("verify", "runs/demo/set-aside/00001", cwd=work).code == 0
    assert called("run", "config.yaml", "learner.lr=1e-3", cwd=work).code == 0
    assert not (work / "runs/demo/set-aside/00002").exists()


def test_an_edited_judge_starts_again_too(work: Path) -> None:
    start(work)
    (work / "judge.py").write_text("def score(prompt, completion):\n    return -len(completion)\n")
    assert called("run", "config.yaml", cwd=work).code == 0
    assert (work / "runs/demo/set-aside/00001/rounds/00000/draw.json").is_file()


def test_nothing_is_set_aside_for_a_config_that_cannot_be_used_nor_by_resume(work: Path) -> None:
    start(work)
    refused("run", "config.yaml", "learner.lr=1e-3", "model.path=nowhere", cwd=work)
    refused("run", "config.yaml", "learner.lr=1e-3", "prompts.source=nowhere.jsonl", cwd=work)
    assert "learner.lr was" in refused("resume", "runs/demo", "learner.lr=1e-3", cwd=work)


def test_finished_rounds_are_never_set_aside_and_a_run_cannot_be_shorter_than_they_are(work: Path) -> None:
    write_run()
    assert "learner.lr was" in refused("run", "config.yaml", "learner.lr=1e-3", cwd=work)
    for arguments in (["run", "config.yaml"], ["resume", "runs/demo"]):
        assert refused(*arguments, "run.rounds=1", cwd=work) == (
            "run.rounds is 1 and 2 rounds of runs/demo are finished; set it to 2 or more, or take rounds off first "
            "with `online-dpo rewind runs/demo --round 2`"
        )


@pytest.mark.parametrize("name", ["demo (copy)", "Läufe, März", "-demo", 'a\'b "c"'])
def test_a_renamed_folder_works(name: str, work: Path) -> None:
    write_run()
    Path("runs/demo").rename(Path("runs", name))
    folder = f"runs/{name}"
    for arguments in (["status"], ["verify"], ["resume"]):
        assert called(*arguments, folder, cwd=work).code == 0, arguments
    with RunStore.read(work / folder) as store:
        assert store.finished_rounds() == [0, 1]


def test_verify_names_each_damaged_file_and_a_way_on_and_accepts_what_no_round_reads(work: Path) -> None:
    write_run()
    run = work / "runs/demo"
    assert called("verify", "runs/demo", cwd=work).out.startswith("runs/demo: all is whole, 2 finished rounds")
    (run / ANSWERS).write_bytes(b"gone")
    (run / "rounds/00001/adapter/adapter_model.safetensors").write_bytes(b"gone")
    done = called("verify", "runs/demo", cwd=work)
    assert done.code == 2 and done.err == (
        "error: 2 files are damaged in runs/demo; each is named above with a way on\n"
    )
    copy = "rounds/00000/adapter/adapter_model.safetensors"
    assert done.out.splitlines() == [
        f"runs/demo/{ANSWERS} does not match the sha256 that was committed with it",
        "  what depends on it: no later round reads it: the policies are as they were, and a record of round 1 is lost",
        f"  cheapest way on: copy the same bytes from elsewhere in the run: `cp "
        f"runs/demo/rounds/00001/completions/shard-00000.parquet runs/demo/{ANSWERS}`",
        "runs/demo/rounds/00001/adapter/adapter_model.safetensors does not match the sha256 that was committed with it",
        "  what depends on it: round 3 would begin with it",
        f"  cheapest way on: copy the same bytes from elsewhere in the run: `cp runs/demo/{copy} "
        f"runs/demo/rounds/00001/adapter/adapter_model.safetensors`",
    ]
    (run / "rounds/00001/adapter/adapter_model.safetensors").write_bytes((run / copy).read_bytes())
    refused("verify", "runs/demo", "--accept", "rounds/00001/state.json", cwd=work)
    assert "--accept" in refused("resume", "runs/demo", cwd=work)
    accepted = called("verify", "runs/demo", "--accept", f"runs/demo/{ANSWERS}", cwd=work)
    assert accepted.code == 0 and f"accepted: runs/demo/{ANSWERS}" in accepted.out
    resumed = called("resume", "runs/demo", cwd=work)
    assert resumed.code == 0 and "was accepted" in resumed.out + resumed.err


def test_verify_on_what_is_no_run(work: Path) -> None:
    assert "is not a run directory" in refused("verify", "judge.py", cwd=work)
    write_run()
    change_json(work / "runs/demo/run.json", format_version=7)
    assert "format version 7" in refused("verify", "runs/demo", cwd=work)
