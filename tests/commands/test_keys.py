"""A real run with two keys, and a search for them in all that it leaves behind."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest
from engine_kit import small_config
from judge_servers import Answer, completion, longer_wins, material, serve, verdict

from online_dpo.config.loading import dump_config

FROM_ENVIRONMENT, FROM_FILE = "sk-environment-31c9e07f55d2", "sk-file-8b40d6a1973e"


def everything(folder: Path) -> dict[str, bytes]:
    """Name -> content of every file, tables also as text: what is compressed would hide a key from a search."""
    found: dict[str, bytes] = {}
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink():
            found[str(path)] = path.read_bytes()
            if path.suffix == ".parquet":
                found[f"{path} as text"] = repr(pq.ParquetFile(path).read(use_threads=False).to_pylist()).encode()
    return found


@pytest.fixture
def session() -> Any:
    """Ray's own place; sockets in pytest's folders would have names that are too long."""
    folder = Path(tempfile.mkdtemp(prefix="odpo-", dir="/tmp"))
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def test_no_key_is_left_anywhere(tmp_path: Path, tiny_model: Path, session: Path) -> None:
    """The server sends the keys back in errors and headers, at every second prompt for good. Would catch a key in a
    commit, a message, a log of ours or Ray's, or the recorded config."""

    def handler(body: dict[str, Any], before: int) -> Answer:
        key = FROM_ENVIRONMENT if body["model"] == "pairwise" else FROM_FILE
        echo = f'{{"error": {{"message": "the key {key} is not good enough"}}}}'.encode()
        name, number, *_ = material(body)["prompt"].replace(":", "").split()
        if name in ("train", "heldout") and int(number) % 2:
            return Answer(echo, 400, headers={"x-key": key})
        if name == "train" and before == 0:
            return Answer(echo, 503, headers={"x-key": key})
        return Answer(completion(longer_wins(body) if body["model"] == "pairwise" else verdict(body, 5)))

    (tmp_path / "key").write_text(f"{FROM_FILE}\n")
    with serve(handler) as server:
        endpoint = {"base_url": server.base_url, "max_wait_s": 0.05}
        config = small_config(
            tmp_path / "run", tiny_model,
            ["run.rounds=1", "prompts.per_round=4", "sampling.num_samples=2", "evaluation.sets.heldout.count=2",
             "verdicts.min_coverage=0"],
        )  # fmt: skip
        mapping = config.model_dump(mode="json")
        mapping["judge"] = {"type": "llm", "endpoint": {**endpoint, "model": "pairwise", "api_key_env": "MY_KEY"}}
        mapping["evaluation"]["judges"] = {
            "gold": {
                "type": "llm",
                "form": "pointwise",
                "endpoint": {**endpoint, "model": "pointwise", "api_key_file": str(tmp_path / "key")},
            }
        }
        config = type(config).model_validate(mapping)
        (tmp_path / "config.yaml").write_text(dump_config(config))
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        environment |= {"MY_KEY": FROM_ENVIRONMENT, "RAY_TMPDIR": str(session)}

        def online_dpo(*arguments: object) -> str:
            command = [sys.executable, "-m", "online_dpo.cli", *map(str, arguments)]
            done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)
            assert done.returncode == 0, done
            return done.stdout + done.stderr

        printed = online_dpo("run", tmp_path / "config.yaml")
        sent = {headers["authorization"] for headers in server.headers}
    assert sent == {f"Bearer {FROM_ENVIRONMENT}", f"Bearer {FROM_FILE}"}
    printed += online_dpo("status", config.run_dir, "--json")
    logs, left = everything(session), everything(config.run_dir)
    assert any("/logs/" in name for name in logs) and any("metrics.jsonl" in name for name in left)
    reasons = b"".join(content for name, content in left.items() if "/verdicts" in name)
    assert b"the key [key] is not good enough" in reasons, "what the server said was kept, and the key was not"
    for name, content in {"output": printed.encode(), **logs, **left}.items():
        for key in (FROM_ENVIRONMENT, FROM_FILE):
            assert key.encode() not in content, name
