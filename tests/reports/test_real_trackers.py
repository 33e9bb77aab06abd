"""The real TensorBoard, Weights & Biases and Trackio, without a network: what they were sent is read back from them."""

from __future__ import annotations

import json
import socket
import sqlite3
import struct
import sys
import time
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from loop_runs import Kill, Run, records

KILL_AT = 40
"""An event in the second round, after its first step."""


@pytest.fixture(autouse=True)
def offline(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Nothing but this machine can be reached, and nobody tries."""
    tried: list[Any] = []
    connect, look_up = socket.socket.connect, socket.getaddrinfo

    def guarded(this: socket.socket, address: Any) -> None:
        if this.family != socket.AF_UNIX and address[0] not in ("127.0.0.1", "::1", "localhost"):
            tried.append(address)
            raise OSError("there is no network")
        connect(this, address)

    def guarded_look_up(host: Any, *arguments: Any, **options: Any) -> Any:
        if host not in (None, "localhost", "127.0.0.1", "::1", ""):
            tried.append(host)
            raise socket.gaierror("there is no network")
        return look_up(host, *arguments, **options)

    monkeypatch.setattr(socket.socket, "connect", guarded)
    monkeypatch.setattr(socket, "getaddrinfo", guarded_look_up)
    yield
    assert tried == []


@pytest.fixture(scope="module")
def home(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """An empty home, and Trackio's usual folder in it; Trackio reads where it is when it is imported."""
    folder = tmp_path_factory.mktemp("home")
    with pytest.MonkeyPatch.context() as patch:
        for name in ("HOME", "XDG_CONFIG_HOME", "XDG_CACHE_HOME", "XDG_DATA_HOME"):
            patch.setenv(name, str(folder))
        patch.setenv("TRACKIO_DIR", str(folder / "trackio"))
        patch.delenv("HF_TOKEN", raising=False)
        assert "trackio" not in sys.modules
        yield folder


@pytest.fixture
def run(tmp_path: Path, home: Path, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> Iterator[Run]:
    """A run that was killed and continued, with the tracker that the test is about."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    options = {"wandb": {"mode": "offline", "project": "films"}, "trackio": {"project": "films"}}
    logging = {"trackers": [request.param], "tracker_options": options}
    found = Run.of(tmp_path, "reviews", logging=logging)
    warned = []
    with pytest.raises(Kill):
        found.go_on(kill_at=KILL_AT)
    warned += found.go_on().warned
    assert warned == []
    yield found
    assert list((tmp_path / "here").iterdir()) == []
    assert {entry.name for entry in home.iterdir()} <= {"trackio", "wandb"}  # their usual folders


def expected(run: Run) -> dict[tuple[str, int], float]:
    """Some figures of the run, with their places."""
    lines = records(run.path)
    losses = [line["loss"] for line in lines if line["kind"] == "step"]
    kls = {line["policy_version"]: line["kl_initial"] for line in lines if line["kind"] == "evaluated"}
    return {
        **{("step/loss", position): loss for position, loss in enumerate(losses)},
        **{("evaluation/heldout/kl_initial", version): kl for version, kl in kls.items()},
    }


@pytest.mark.parametrize("run", ["tensorboard"], indirect=True)
def test_tensorboard(run: Run) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    found: dict[tuple[str, int], float] = {}
    times: Counter[tuple[str, int]] = Counter()
    texts: dict[tuple[str, int], str] = {}
    for file in sorted((run.path / "tensorboard").iterdir()):
        board = EventAccumulator(str(file)).Reload()
        for tag in board.Tags()["scalars"]:
            found |= {(tag, event.step): event.value for event in board.Scalars(tag)}
            times.update((tag, event.step) for event in board.Scalars(tag))
        for tag in board.Tags()["tensors"]:
            times.update((tag, event.step) for event in board.Tensors(tag))
            texts |= {(tag, e.step): e.tensor_proto.string_val[0].decode() for e in board.Tensors(tag)}
    assert set(times.values()) == {1}
    assert {key: found[key] for key in expected(run)} == pytest.approx(expected(run), rel=1e-6)
    assert "per_round: 4" in texts["config/text_summary", 0]
    table = texts["samples/heldout/text_summary", 2].splitlines()
    assert table[:2] == ["| prompt | answer | reward |", "| --- | --- | --- |"] and table[2].startswith("| heldout 0 |")
    assert ("pairs/text_summary", 1) in texts


@pytest.mark.parametrize("run", ["wandb"], indirect=True)
def test_wandb(run: Run) -> None:
    files = sorted((run.path / "wandb").glob("offline-run-*/*.wandb"))
    assert len(files) == 2  # a process each, for one run
    sent = [record for file in files for record in wait_for(file)]
    runs = [record.run for record in sent if record.HasField("run")]
    assert {(r.run_id, r.project, r.display_name) for r in runs} == {(identity(run, "wandb"), "films", "reviews")}
    config = {item.key: json.loads(item.value_json) for item in runs[0].config.update}
    assert config["prompts"]["per_round"] == 4
    rows = [as_row(record.history) for record in sent if record.HasField("history")]
    assert [row["_step"] for row in rows] == list(range(len(rows)))  # one history, which `wandb sync` may join
    steps = [(row["optimizer_step"], row["step/loss"]) for row in rows if "optimizer_step" in row]
    assert steps == [(at, value) for (name, at), value in expected(run).items() if name == "step/loss"]
    kls = [(row["round"], row[name]) for row in rows if (name := "evaluation/heldout/kl_initial") in row]
    assert kls == [(at, value) for (key, at), value in expected(run).items() if key == name]
    tables = {row["round"]: row["samples/heldout"] for row in rows if "samples/heldout" in row}
    assert list(tables) == [0, 1, 2] and all(table["_type"] == "table-file" for table in tables.values())
    [shown] = run.path.glob(f"wandb/offline-run-*/files/{tables[2]['path']}")
    assert json.loads(shown.read_text())["data"][0][0] == "heldout 0"


@pytest.mark.parametrize("run", ["trackio"], indirect=True)
def test_trackio(run: Run, home: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with sqlite3.connect(home / "trackio" / "films.db") as database:
        rows = list(database.execute("SELECT run_name, step, metrics FROM metrics ORDER BY id"))
        [(name, config)] = database.execute("SELECT run_name, config FROM configs")
    assert name == f"reviews-{identity(run, 'trackio')[-6:]}" and {row[0] for row in rows} == {name}
    assert json.loads(config)["prompts"]["per_round"] == 4
    found: dict[tuple[str, int], Any] = {}
    for _, step, metrics in rows:
        for figure, value in json.loads(metrics).items():
            assert (figure, step) not in found, "sent twice"
            found[figure, step] = value
    assert {key: found[key] for key in expected(run)} == pytest.approx(expected(run))
    assert found["samples/heldout", 2]["_value"][0]["prompt"] == "heldout 0"
    assert ("pairs", 1) in found
    assert capfd.readouterr().out == ""


def identity(run: Run, tracker: str) -> str:
    return str(json.loads((run.path / "trackers" / f"{tracker}.json").read_text())["id"])


def wait_for(file: Path) -> list[Any]:
    """The records of a run that has ended; its service may write the last of them after `finish` has returned."""
    for _ in range(600):
        found = list(read_wandb(file))
        if (found and found[-1].HasField("footer")) or any(record.HasField("exit") for record in found):
            return found
        time.sleep(0.05)
    raise AssertionError(f"{file} does not end")


def as_row(history: Any) -> dict[str, Any]:
    row: dict[str, Any] = {"_step": history.step.num}
    for item in history.item:
        path, value = [*item.nested_key] or [item.key], json.loads(item.value_json)
        place = row
        for key in path[:-1]:
            place = place.setdefault(key, {})
        place[path[-1]] = value
    return row


def read_wandb(file: Path) -> Iterator[Any]:
    """The records of wandb's own file: protocol buffers, in the log format of LevelDB behind seven bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    data, at, block, whole = file.read_bytes(), 7, 32768, b""
    while at + 7 <= len(data):
        if block - at % block < 7:
            at += block - at % block
        _, length, kind = struct.unpack("<IHB", data[at : at + 7])
        whole += data[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # whole, or the last part
            yield Record.FromString(whole)
            whole = b""
