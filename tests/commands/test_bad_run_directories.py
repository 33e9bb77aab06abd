"""Damaged or unusable run directories, full disks, rounds without pairs: what is told, and that nothing is lost."""

from __future__ import annotations

import fcntl
import json
import re
import shutil
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from cli_kit import SmallDisk, called, online_dpo, refused, write_inputs, write_run
from model_kit import change_json
from store_driver import tree

from online_dpo.store.run_store import RunStore


@pytest.fixture
def work(tiny_model: Path, tmp_path: Path) -> Path:
    """A folder with a config that could be run."""
    folder = tmp_path / "work"
    folder.mkdir()
    write_inputs(folder, tiny_model)
    return folder


@pytest.fixture
def ran(work: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The same, with a run in `runs/demo`: two of three rounds are finished, the third is under way."""
    monkeypatch.chdir(work)
    write_run()
    return work


@pytest.mark.parametrize("arguments", [["--help"], ["validate", "config.yaml"], ["status", "runs/demo"]], ids=" ".join)
def test_looking_imports_nothing_heavy(arguments: list[str], ran: Path) -> None:
    script = (
        "import sys\nfrom online_dpo.cli import main\nsys.argv[0] = 'online-dpo'\ntry:\n    main()\n"
        "finally:\n    print(sorted({'torch', 'ray', 'vllm', 'transformers', 'datasets'} & set(sys.modules)))"
    )
    done = online_dpo(*arguments, cwd=ran, program=[sys.executable, "-c", script])
    assert done.code == 0 and len(done.out.splitlines()) > 3 and not done.err
    assert done.out.splitlines()[-1] == "[]"


# ---- run directories


def test_a_place_where_no_run_can_begin(work: Path) -> None:
    (work / "runs/demo").mkdir(parents=True)
    (work / "runs/demo/thesis.tex").write_text("mine")
    assert refused("run", "config.yaml", cwd=work) == (
        "runs/demo is not empty and holds no run; choose another run.name or run.dir, or empty the folder"
    )
    assert refused("run", "config.yaml", "run.dir=judge.py", cwd=work) == (
        "judge.py/demo cannot be used: judge.py is a file where a folder must be; move it away, or set run.dir or "
        "run.name to another folder"
    )


def test_a_place_that_no_folder_can_have(work: Path) -> None:
    assert refused("run", "config.yaml", "run.dir=/proc/nope", cwd=work).startswith(
        "/proc/nope/demo cannot be made: the system lets no folder be made in /proc/nope"
    )
    for command in ("resume", "status", "rewind", "verify"):
        assert "has 5000 bytes, and a path has at most 4095" in refused(command, "x" * 5000, cwd=work)


@pytest.mark.parametrize("place", ["runs/demo", "."])
def test_a_folder_that_is_no_run(place: str, work: Path) -> None:
    no_run = f"{place} holds no run; give the folder that `online-dpo run` printed, such as runs/NAME"
    assert refused("resume", place, cwd=work) == no_run
    assert refused("export", place, "out", cwd=work) == no_run
    assert refused("status", place, cwd=work) == (
        f"{place} is not a run directory: it has no run.json; give the folder that `online-dpo run` printed"
    )


def test_a_run_of_another_format(ran: Path) -> None:
    change_json(ran / "runs/demo/run.json", format_version=7)
    for arguments in (
        ["run", "config.yaml"],
        ["resume", "runs/demo"],
        ["status", "runs/demo"],
        ["export", "runs/demo", "out"],
    ):
        assert refused(*arguments, cwd=ran) == (
            "runs/demo has format version 7 and this program reads version 3; use the release of online-dpo that "
            "wrote it, or start a new run with another run.name"
        )


@pytest.mark.parametrize(
    ("name", "damage"),
    [
        ("config.yaml", "flip"),
        ("run.json", "cut"),
        ("latest", "cut"),
        ("metrics.jsonl", "flip"),
        ("rounds/00000/prompts.parquet", "cut"),
        ("rounds/00001/adapter/adapter_model.safetensors", "flip"),
        ("rounds/00001/manifest.json", "cut"),
        ("rounds/00001/state.json", "flip"),
        ("rounds/00002/completions/shard-00000.parquet", "flip"),
        ("rounds/00002/learner/step-000002/state/optimizer.safetensors", "flip"),
    ],
)
def test_damage_is_told_before_anything_starts(name: str, damage: str, ran: Path) -> None:
    """One file of each kind; `test_store_damage` goes through all of them, byte by byte."""
    file = ran / "runs/demo" / name
    data = bytearray(file.read_bytes())
    middle = len(data) // 2
    data[middle] ^= 1
    file.write_bytes(data if damage == "flip" else data[:middle])
    refusal = refused("run", "config.yaml", cwd=ran)
    assert refusal.startswith(f"runs/demo/{name} ") and "; restore it from a backup" in refusal


def test_damage_is_told_by_every_command_that_reads_the_file(ran: Path) -> None:
    metrics, adapter = ran / "runs/demo/metrics.jsonl", ran / "runs/demo/rounds/00001/adapter/adapter_model.safetensors"
    whole = metrics.read_bytes()
    metrics.write_bytes(whole[: whole.index(b"\n") + 1])  # whole lines are gone
    for arguments in (["resume", "runs/demo"], ["status", "runs/demo"]):
        assert refused(*arguments, cwd=ran).startswith("runs/demo/metrics.jsonl does not match the sha256")
    metrics.write_bytes(whole)
    adapter.write_bytes(adapter.read_bytes()[:-1])
    assert refused("export", "runs/demo", "out", cwd=ran).startswith(
        "runs/demo/rounds/00001/adapter/adapter_model.safetensors does not match the sha256 that was committed with it;"
    )


def test_a_run_that_another_process_holds(ran: Path) -> None:
    with (ran / "runs/demo/lock").open("a+") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        for arguments in (["run", "config.yaml"], ["resume", "runs/demo"]):
            refusal = refused(*arguments, cwd=ran)
            assert re.match(r"runs/demo is in use by process \d+ on \S+; wait until it ends or stop it, or ", refusal)
        assert called("status", "runs/demo", cwd=ran).code == 0


def test_a_continuation_with_other_settings(ran: Path) -> None:
    for arguments in (["run", "config.yaml"], ["resume", "runs/demo"]):
        assert refused(*arguments, "sampling.temperature=0.7", "learner.lora.r=16", cwd=ran).splitlines() == [
            "learner.lora.r was 8 and is now 16",
            "sampling.temperature was 1.0 and is now 0.7",
            "these fields change the data; set them back, or start a new run with another run.name",
        ]


@pytest.mark.parametrize(
    ("name", "label"), [("prompts.jsonl", "prompts.source is prompts.jsonl"), ("judge.py", "judge.target is judge.py")]
)
def test_a_continuation_with_other_files(name: str, label: str, ran: Path) -> None:
    with (ran / name).open("a") as file:
        file.write("\n")
    assert refused("resume", "runs/demo", cwd=ran) == (
        f"{label}, whose content changed since this run began; put the old content back, or start a new run with "
        f"another run.name"
    )


def test_a_continuation_from_inside_the_folder_is_of_this_run(ran: Path) -> None:
    """Would catch `resume .` that begins a new run of that name inside."""
    for name in ("prompts.jsonl", "judge.py"):
        shutil.copy(ran / name, ran / "runs/demo")
    refusal = refused("resume", ".", "run.seed=1", cwd=ran / "runs/demo")
    assert refusal.splitlines()[0] == "run.seed was 0 and is now 1"


def test_an_export_that_cannot_be_written(ran: Path) -> None:
    assert refused("export", "runs/demo", "out", "--round", "3", cwd=ran) == (
        "--round is 3 and runs/demo has 2 finished rounds; choose one from 1 to 2"
    )
    (ran / "mine").mkdir()
    (ran / "mine/thesis.tex").write_text("mine")
    assert refused("export", "runs/demo", "mine", cwd=ran) == "OUT is mine, which is not empty; name a new folder"
    assert refused("export", "runs/demo", "judge.py", cwd=ran) == "OUT is judge.py, which is a file; name a new folder"
    assert called("export", "runs/demo", "out", "--round", "1", cwd=ran).code == 0
    exported = tree(ran / "out")
    assert b"# demo" in exported.pop("README.md")
    adapter = {f"rounds/00000/adapter/{name}": data for name, data in exported.items()}
    assert len(adapter) == 2 and adapter.items() <= tree(ran / "runs/demo").items()


# ---- disks


@pytest.fixture
def small_disk(work: Path) -> Iterator[SmallDisk]:
    """Mounted on `runs`; too small for what a learner commits, but not for the samples before that."""
    disk = SmallDisk(work / "runs", num_kib=200)
    yield disk
    disk.close()


def test_a_read_only_disk(small_disk: SmallDisk, ran: Path) -> None:
    small_disk.make_read_only()
    right = "give this user the right to read and write runs/{name}, or set run.dir to another folder"
    for arguments in (["run", "config.yaml"], ["resume", "runs/demo"]):
        refusal = refused(*arguments, cwd=ran)
        assert refusal.startswith("runs/demo/lock cannot be used: ") and refusal.endswith(right.format(name="demo"))
    refusal = refused("run", "config.yaml", "run.name=new", cwd=ran)
    assert refusal.startswith("runs/new cannot be used: ") and refusal.endswith(right.format(name="new"))
    refusal = refused("export", "runs/demo", "runs/out", cwd=ran)
    assert refusal.startswith("OUT is runs/out, which cannot be written (") and refusal.endswith(
        "name a folder that can"
    )
    assert "2 of 3 rounds finished" in called("status", "runs/demo", cwd=ran).out
    assert called("export", "runs/demo", "out", cwd=ran).code == 0


def committed(run_dir: Path) -> dict[str, tuple[int, bytes]]:
    """Time of writing and content of every file that no second command may write again."""
    files = tree(run_dir).items()
    return {name: ((run_dir / name).stat().st_mtime_ns, data) for name, data in files if name != "metrics.jsonl"}


def test_a_full_disk_keeps_what_was_committed_and_the_run_goes_on(small_disk: SmallDisk, work: Path) -> None:
    command = ("run", "config.yaml", "run.rounds=1")
    refusal = online_dpo(*command, cwd=work, program=small_disk.program).refusal
    assert re.fullmatch(
        r"runs/demo/rounds/00000/learner/\S+ cannot be written: No space left on device; what was committed before is "
        r"kept: free some space, then continue with `online-dpo resume runs/demo`",
        refusal,
    )
    assert called("status", "runs/demo", cwd=work).out.splitlines()[-1] == (
        "round 1 is unfinished: 1 shards sampled, 1 judged, paired, 1 steps taken"
    )
    left = committed(work / "runs/demo")
    # What was written of a commit that did not come to its checksum file is replaced by the next attempt.
    kept = {name: content for name, content in left.items() if "/learner/" not in name}
    assert {f"rounds/00000/{name}" for name in ("completions/shard-00000.parquet", "pairs.sha256")} < set(kept)
    assert not any(".partial-" in name or ("/learner/" in name and name.endswith(".sha256")) for name in left)
    small_disk.enlarge()
    done = online_dpo(*command, cwd=work)
    assert done.code == 0 and "round 1/1: " in done.out and not done.err
    assert kept.items() <= committed(work / "runs/demo").items()
    with RunStore.read(work / "runs/demo") as store:
        store.verify()
        assert store.finished_rounds() == [0]


def test_a_judge_that_gives_everyone_the_same_score(work: Path) -> None:
    (work / "judge.py").write_text("def score(prompt, completion):\n    return 0.5\n")
    refusal = online_dpo("run", "config.yaml", cwd=work).refusal
    assert refusal == (
        "round 1 gave no pair from 4 prompts: tie 4; what was sampled and judged is committed in rounds/00000 and "
        "stays so: look at it, then start a new run, under another run.name, with a judge that tells these completions "
        "apart"
    )
    kept = committed(work / "runs/demo")
    assert {f"rounds/00000/{name}/shard-00000.parquet" for name in ("completions", "verdicts")} < set(kept)
    status = json.loads(called("status", "runs/demo", "--json", cwd=work).out)
    assert status["num_finished"] == 0 and status["current"] == {
        "round": 0,
        "num_shards_sampled": 1,
        "num_shards_judged": 1,
        "has_pairs": False,
        "num_steps": 0,
    }
    assert online_dpo("run", "config.yaml", cwd=work).refusal == refusal
    assert committed(work / "runs/demo") == kept
