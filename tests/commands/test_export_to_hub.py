"""Model cards, and `export --push-to-hub` against a server on loopback that speaks a part of the hub's API."""

from __future__ import annotations

import base64
import hashlib
import json
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from xml.etree import ElementTree

import pytest
from cli_kit import called
from huggingface_hub import ModelCard, constants
from markdown_it import MarkdownIt
from shown_runs import Size, write_run

from online_dpo.commands.export import Options, export_lines
from online_dpo.config.loading import load_config
from online_dpo.errors import UserError
from online_dpo.reports.card.card import write_card
from online_dpo.reports.card.public_config import public_config, public_name
from online_dpo.reports.page.run_record import collect_record
from online_dpo.store.run_store import RunStore

HOSTILE = '<script>alert(1)</script> [x](javascript:y) `a` **b** | ![i](http:..) "q"'


SOURCES = {
    "prompts.source": "org/prompts",
    "evaluation.sets.x.source": "org/held-out",
    "pairs.source": "/home/me/p.csv",
}


class Hub(ThreadingHTTPServer):
    """Repositories in memory."""

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Answers)
        self.asked: list[str] = []
        self.private: dict[str, bool] = {}
        self.large: dict[str, bytes] = {}  # by sha256
        self.files: dict[str, bytes] = {}
        self.refuses = False

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


class _Answers(BaseHTTPRequestHandler):
    server: Hub

    def log_message(self, *_: Any) -> None:
        pass

    def _say(self, body: Any, status: int = 200) -> None:
        data = json.dumps(body).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(data)))
        self.end_headers()
        self.wfile.write(data)

    def _read(self) -> bytes:
        if "chunked" in self.headers.get("Transfer-Encoding", ""):
            found = b""
            while size := int(self.rfile.readline(), 16):
                found += self.rfile.read(size)
                self.rfile.readline()
            self.rfile.readline()
            return found
        return self.rfile.read(int(self.headers.get("Content-Length", 0)))

    def do_GET(self) -> None:
        self.server.asked.append(f"GET {self.path}")
        repo = self.path.removeprefix("/api/models/").split("?")[0]
        self._say({"id": repo, "private": self.server.private.get(repo, False), "sha": "0" * 40})

    def do_PUT(self) -> None:
        data = self._read()
        self.server.large[hashlib.sha256(data).hexdigest()] = data
        self._say({})

    def do_POST(self) -> None:
        body, path = self._read(), self.path
        self.server.asked.append(f"POST {path}")
        if self.server.refuses or self.headers.get("Authorization") != "Bearer hf_secret":
            self._say({"error": "no write access"}, 403)
        elif path == "/api/repos/create":
            asked = json.loads(body)
            repo = "/".join(filter(None, (asked.get("organization"), asked["name"])))
            if repo in self.server.private:
                self._say({"error": "exists", "url": f"{self.server.url}/{repo}"}, 409)
                return
            self.server.private[repo] = asked.get("private") or asked.get("visibility") == "private"
            self._say({"url": f"{self.server.url}/{repo}"})
        elif path.startswith("/api/validate-yaml"):
            self._say({"errors": [], "warnings": []})
        elif "/preupload/" in path:
            files = json.loads(body)["files"]
            mode = {True: "lfs", False: "regular"}
            found = [
                {"path": f["path"], "uploadMode": mode[f["path"].endswith(".safetensors")], "shouldIgnore": False}
                for f in files
            ]
            self._say({"files": found})
        elif path.endswith("/info/lfs/objects/batch"):
            objects = json.loads(body)["objects"]
            actions = {"upload": {"href": f"{self.server.url}/put", "header": {}}}
            self._say({"transfer": "basic", "objects": [{**o, "actions": actions} for o in objects]})
        elif "/commit/" in path:
            for line in map(json.loads, body.decode().splitlines()):
                value = line["value"]
                if line["key"] == "file":
                    self.server.files[value["path"]] = base64.b64decode(value["content"])
                elif line["key"] == "lfsFile":
                    self.server.files[value["path"]] = self.server.large[value["oid"]]
            self._say({"success": True, "commitOid": "1" * 40, "commitUrl": f"{self.server.url}/me/kinder/commit/1"})
        else:
            self._say({"error": path}, 404)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with Hub() as server:
        thread = threading.Thread(target=server.serve_forever, daemon=True)
        thread.start()
        monkeypatch.setattr(constants, "ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "hf_secret")
        yield server
        server.shutdown()


@pytest.fixture(scope="module")
def run_dir(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("runs") / "demo"
    write_run(path, Size(rounds=3), warnings=["something odd in /home/me/file.txt"])
    return path


def test_an_upload_is_the_folder_and_a_dry_run_sends_nothing(server: Hub, run_dir: Path, tmp_path: Path) -> None:
    lines = list(export_lines(run_dir, tmp_path / "dry", Options(repo_id="me/kinder", dry_run=True, private=True)))
    files = {file.name: file.read_bytes() for file in (tmp_path / "dry").iterdir()}
    assert set(files) == {"README.md", "curves.svg", "adapter_config.json", "adapter_model.safetensors"}
    assert lines[1:] == [
        "would be uploaded to me/kinder (private):",
        *(f"  {len(files[name]):>14,} bytes  {name}" for name in sorted(files)),
        f"  {sum(map(len, files.values())):>14,} bytes  in 4 files; nothing was sent",
    ]
    assert server.asked == []
    *_, last = export_lines(run_dir, tmp_path / "out", Options(repo_id="me/kinder", private=True))
    assert last == f"4 files are at {server.url}/me/kinder"
    assert server.private == {"me/kinder": True} and server.files == files
    server.private["me/open"] = False
    with pytest.raises(UserError, match="me/open is there already and is public: nothing was uploaded"):
        list(export_lines(run_dir, tmp_path / "open", Options(repo_id="me/open", private=True)))
    server.refuses = True
    with pytest.raises(
        UserError, match=r"me/other could not be uploaded \(.*403.*\); all files are in .*hf upload me/other"
    ):
        list(export_lines(run_dir, tmp_path / "refused", Options(repo_id="me/other")))
    assert server.files == files and (tmp_path / "refused/README.md").is_file()


def test_what_cannot_be_uploaded_is_told_before_anything_is_written(
    run_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("huggingface_hub.get_token", lambda: None)
    for arguments, message in (
        (["--push-to-hub", "me/x"], "--push-to-hub needs a token with write access"),
        (["--push-to-hub", "x", "--dry-run"], "--push-to-hub is 'x'; give the repository as owner/name"),
        (["--private"], "--private is given without --push-to-hub"),
        (["--dry-run"], "--dry-run is given without --push-to-hub"),
        (["--push-to-hub", "me/x", "--for", "grpo"], "--for and --push-to-hub are both given"),
    ):
        outcome = called("export", run_dir, "out", *arguments, cwd=tmp_path)
        assert message in outcome.refusal
        assert not (tmp_path / "out").exists()


def card_of(run_dir: Path, folder: Path, index: int = 2, **changes: Any) -> str:
    folder.mkdir()
    with RunStore.read(run_dir) as store:
        record = collect_record(store)
    write_card(replace(record, **changes), index, folder, form="adapter", sources=SOURCES, base_license="mit")
    return (folder / "README.md").read_text()


def test_a_card_says_what_the_run_measured_and_no_more(run_dir: Path, tmp_path: Path) -> None:
    text = card_of(run_dir, tmp_path / "card")
    card = ModelCard(text)
    assert card.data.to_dict() == {
        "datasets": ["org/prompts"], "library_name": "peft", "license": "mit", "pipeline_tag": "text-generation",
        "tags": ["online-dpo", "preference-optimization", "sigmoid", "lora"],
    }  # fmt: skip
    assert "| heldout | training judge, gain | 0.3000 (0.1500 to 0.4500) |" in text, "of the third policy"
    assert "After round 3 of 3, the policy is better than at the start." in text
    assert "something odd in file.txt" in text and "/home/me" not in text
    assert "| prompts | org/prompts |" in text and "| written data | p.csv |" in text
    assert "| 3 | " in text and "| 4 | " not in text
    earlier = card_of(run_dir, tmp_path / "earlier", index=0)
    assert "| heldout | training judge, gain | 0.1000 (0.05000 to 0.1500) |" in earlier and "| 2 | " not in earlier
    silent = card_of(run_dir, tmp_path / "silent", results=[], summaries=[], initial={})
    assert "nothing here says that it is better than the model it began with" in silent and "gain |" not in silent
    drawn = ElementTree.fromstring((tmp_path / "card/curves.svg").read_text())
    assert "Reward" in [element.text for element in drawn.iter("{http://www.w3.org/2000/svg}text")]
    assert not (tmp_path / "silent/curves.svg").exists()


def test_hostile_names_are_text_and_places_are_only_names(run_dir: Path, tmp_path: Path) -> None:
    config = load_config(
        {
            "run": {"name": HOSTILE.replace("/", "-"), "dir": "/home/me/runs"},
            "model": {"path": "org/base"},
            "prompts": {"source": f"/home/me/{HOSTILE.replace('/', '-')}.jsonl"},
            "judge": {
                "type": "llm",
                "endpoint": {"base_url": "http://10.0.0.3:1/v1", "model": HOSTILE, "api_key_file": "/home/me/key"},
                "principles": ["```\n# out"],
            },
            "logging": {"trackers": ["wandb"], "tracker_options": {"wandb": {"key": "hf_secret"}}},
        }
    )
    text = card_of(run_dir, tmp_path / "card", config=config, path=tmp_path / HOSTILE.replace("/", "-"))
    for private in ("/home/me", "10.0.0.3", "hf_secret", str(tmp_path), "api_key"):
        assert private not in text
    assert ModelCard(text).data.base_model == "org/base"
    html = MarkdownIt("commonmark").enable("table").render(ModelCard(text).text)
    assert "<script" not in html and 'javascript:y"' not in html and '<img src="http' not in html
    assert "<h1>out" not in html and html.count("<strong>") == 0


def test_names_of_the_hub_stay_and_local_ones_are_cut(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "org/name").mkdir(parents=True)
    for value, public in {
        "org/model": "org/model", "embedded:openings/train": "embedded:openings/train", "org/name": "name",
        "data/x.jsonl": "x.jsonl", "/a/b c": "b c", "~/x/": "x", "C:\\me\\x": "x", "judges/j.py:score": "j.py:score",
        "../up/model": "model", "a sentence": "a sentence", "and/or": "and/or",
        "package.module:name": "package.module:name",
    }.items():  # fmt: skip
        assert public_name(value) == public
    config = load_config(
        {
            "model": {"path": "org/model"},
            "prompts": {"source": "data/x.jsonl"},
            "judge": {"type": "python", "target": "a/j.py:s"},
        }
    )
    assert public_config(config) == {
        "model": {"path": "org/model"}, "prompts": {"source": "x.jsonl"},
        "judge": {"type": "python", "target": "j.py:s"},
    }  # fmt: skip
