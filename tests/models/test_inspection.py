"""Model folders: where they are found, what is read from them, what is said when they cannot be used."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
from huggingface_hub.errors import LocalEntryNotFoundError
from model_kit import change_json
from safetensors.torch import load_file, save_file

from online_dpo.errors import ModelError
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.tokenizer import load_tokenizer

# ---- inspect_model


def test_a_model_as_transformers_writes_it(saved: Path) -> None:
    info = inspect_model(saved / "model", field="model.path")
    assert info.eos_token_ids == (2, 7, 9)
    assert (info.max_model_len, info.vocab_size, info.model_type) == (128, 32, "llama")
    assert info.architectures == ("LlamaForCausalLM",)
    assert info.weight_files == (saved / "model" / "model.safetensors",)
    assert not info.quantised

    sharded = inspect_model(saved / "sharded", field="model.path")
    assert len(sharded.weight_files) > 2
    names = [name for file in sharded.weight_files for name in load_file(file)]
    assert sorted(names) == sorted(load_file(saved / "model" / "model.safetensors"))
    assert list(sharded.weight_files) == sorted(sharded.weight_files)


def test_a_multimodal_config_keeps_its_numbers_one_level_down(folder: Path) -> None:
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps({"model_type": "vlm", "text_config": config}))
    info = inspect_model(folder, field="model.path")
    assert (info.eos_token_ids, info.max_model_len, info.vocab_size, info.model_type) == ((2, 7, 9), 128, 32, "vlm")


@pytest.mark.parametrize(
    ("rope", "expected"),
    [
        ({"rope_type": "linear", "factor": 4.0}, 512),
        ({"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32}, 128),
        ({"rope_type": "default"}, 128),
    ],
)
def test_only_unscaled_lengths_are_stretched(folder: Path, rope: dict[str, Any], expected: int) -> None:
    change_json(folder / "config.json", rope_parameters=rope)
    assert inspect_model(folder, field="model.path").max_model_len == expected


@pytest.mark.parametrize("spelling", ["plain", "added-token dict", "special_tokens_map", "slow with decoder"])
def test_every_spelling_of_special_tokens(folder: Path, spelling: str) -> None:
    change_json(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    file = folder / "tokenizer_config.json"
    if spelling == "added-token dict":
        change_json(file, eos_token={"__type": "AddedToken", "content": "world"})
    elif spelling == "special_tokens_map":
        change_json(file, eos_token=None)
        (folder / "special_tokens_map.json").write_text(json.dumps({"eos_token": {"content": "world"}}))
    elif spelling == "slow with decoder":
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"sentencepiece")
        decoder = {"0": {"content": "<pad>"}, "5": {"content": "world"}}
        change_json(file, eos_token="world", added_tokens_decoder=decoder)
    else:
        change_json(file, eos_token="world")
    assert inspect_model(folder, field="model.path").eos_token_ids == (5,)


def test_fingerprint_follows_content_and_not_place(saved: Path, folder: Path) -> None:
    def fingerprint(of: Path) -> str:
        return inspect_model(of, field="model.path").fingerprint

    original = fingerprint(saved / "model")
    assert fingerprint(folder) == original
    (folder / "README.md").write_text("not part of the model")
    assert fingerprint(folder) == original
    seen = {original}
    weights = load_file(folder / "model.safetensors")
    weights["model.norm.weight"][-1] += 1.0
    save_file(weights, folder / "model.safetensors", metadata={"format": "pt"})
    seen.add(fingerprint(folder))
    (folder / "chat_template.jinja").write_text("{{ messages }}")
    seen.add(fingerprint(folder))
    change_json(folder / "generation_config.json", eos_token_id=2)
    seen.add(fingerprint(folder))
    assert len(seen) == 4


def break_no_config(folder: Path) -> None:
    (folder / "config.json").unlink()


def break_is_adapter(folder: Path) -> None:
    (folder / "config.json").rename(folder / "adapter_config.json")


def break_config_syntax(folder: Path) -> None:
    (folder / "config.json").write_text('{"model_type": ')


def break_no_weights(folder: Path) -> None:
    (folder / "model.safetensors").unlink()


def break_only_pickled(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def break_empty_weights(folder: Path) -> None:
    (folder / "model.safetensors").write_bytes(b"")


def break_truncated_weights(folder: Path) -> None:
    content = (folder / "model.safetensors").read_bytes()
    (folder / "model.safetensors").write_bytes(content[:-1])


def break_missing_shard(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    shards = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": shards}))


def break_two_sets_of_weights(folder: Path) -> None:
    shutil.copy(folder / "model.safetensors", folder / "part.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "part.safetensors"}}))


def break_no_tokenizer(folder: Path) -> None:
    (folder / "tokenizer.json").unlink()


def break_no_eos(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", eos_token=None)


def break_no_pad(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", pad_token=None)


def break_unknown_pad(folder: Path) -> None:
    change_json(folder / "tokenizer_config.json", pad_token="[PAD]")


def break_pad_beyond_embedding(folder: Path) -> None:
    change_json(folder / "config.json", vocab_size=5)
    change_json(folder / "tokenizer_config.json", pad_token="world")


@pytest.mark.parametrize(
    ("file", "change", "expected"),
    [
        (
            "tokenizer.json",
            {"model": {"vocab": {"a": []}}},
            "something else where tokens and their ids should be; save",
        ),
        ("tokenizer.json", {"model": 3}, "something else where tokens and their ids should be; save"),
        ("tokenizer.json", {"added_tokens": [{"id": 1}]}, "something else where tokens and their ids should be; save"),
        ("generation_config.json", {"eos_token_id": [None]}, r"has the eos_token_id \[None\]; it must be a token's id"),
        ("config.json", {"eos_token_id": "</s>"}, "has the eos_token_id </s>; it must be a token's id, or a list"),
    ],
)
def test_json_of_another_shape_is_no_traceback(folder: Path, file: str, change: dict[str, Any], expected: str) -> None:
    change_json(folder / file, **change)
    with pytest.raises(ModelError, match=expected):
        inspect_model(folder, field="model.path")


@pytest.mark.parametrize("rope", [True, "linear", {"rope_type": "linear", "factor": "2"}])
def test_a_context_is_read_whatever_stands_beside_it(folder: Path, rope: Any) -> None:
    change_json(folder / "config.json", rope_parameters=rope)
    assert inspect_model(folder, field="model.path").max_model_len == 128


@pytest.mark.parametrize(
    ("breakage", "expected"),
    [
        (break_no_config, "has no config.json; give a folder that save_pretrained wrote"),
        (break_is_adapter, "it is a LoRA adapter: set model.adapter to it"),
        (break_config_syntax, "config.json cannot be read"),
        (break_no_weights, "no weights file model.safetensors; download the model or save it again"),
        (break_only_pickled, r"\*.bin; these are pickled, and nothing is ever unpickled here: convert them"),
        (break_empty_weights, r"model.safetensors \(0 bytes\) is damaged"),
        (break_truncated_weights, r"model.safetensors \(\d+ bytes\) is damaged"),
        (break_missing_shard, "no weights file model-00002-of-00002.safetensors"),
        (break_two_sets_of_weights, "both model.safetensors and model.safetensors.index.json"),
        (break_no_tokenizer, "no tokenizer files; put the model's tokenizer there"),
        (break_no_eos, "no EOS token, so that no answer could end; set eos_token in tokenizer_config.json"),
        (break_no_pad, "no pad token; set pad_token in tokenizer_config.json, for example to the EOS token '</s>'"),
        (break_unknown_pad, r"pad_token '\[PAD\]' is not in its vocabulary files"),
        (break_pad_beyond_embedding, r"pad_token 'world' is not in the model's vocabulary of 5 \(id 5\)"),
    ],
    ids=lambda value: value.__name__ if callable(value) else "",
)
def test_a_broken_folder_says_what_is_wrong(folder: Path, breakage: Any, expected: str) -> None:
    breakage(folder)
    with pytest.raises(ModelError, match=expected) as caught:
        inspect_model(folder, field="judge.path")
    assert str(caught.value).startswith(f"judge.path is {folder}, ")


def test_a_classifier_needs_no_eos(folder: Path) -> None:
    break_no_eos(folder)
    change_json(folder / "config.json", eos_token_id=None)
    (folder / "generation_config.json").unlink()
    assert inspect_model(folder, field="judge.path", generates=False).eos_token_ids == ()


def test_tokenizer_loads_or_says_why_not(folder: Path) -> None:
    assert load_tokenizer(folder)("hello world")["input_ids"] == [4, 5]
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelError, match=r"the tokenizer in .* cannot be loaded \(.+\); save it again"):
        load_tokenizer(folder)


def test_looking_imports_nothing_heavy(saved: Path) -> None:
    code = (
        "import sys; from pathlib import Path; from online_dpo.models import inspection, locating\n"
        f"inspection.inspect_model(locating.locate({str(saved / 'model')!r}, field='f'), field='f')\n"
        "print(sorted({'torch', 'transformers', 'huggingface_hub', 'peft'} & set(sys.modules)))"
    )
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"


# ---- locate


def test_folders_are_found_and_made_absolute(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(saved)
    assert locate("model", field="model.path") == (saved / "model").resolve()
    assert locate("./model", field="model.path") == (saved / "model").resolve()


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("./nowhere", "there is no such folder"),
        ("~/no/such/folder", "there is no such folder"),
        ("a/b/c", "there is no such folder"),
        ("nowhere", "there is no such folder"),
        ("embedded:nothing", "nothing is embedded as 'nothing'; the names are policy"),
        ("embedded:openings/train", "is a file; give the folder of a model"),
    ],
)
def test_a_missing_folder_is_said_without_asking_the_hub(
    path: str, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    monkeypatch.setattr(huggingface_hub, "snapshot_download", lambda *args, **kwargs: calls.append("asked"))
    with pytest.raises(ModelError, match=expected) as caught:
        locate(path, field="model.path")
    assert str(caught.value).startswith(f"model.path is {path}")
    assert calls == []


class Hub:
    """Stands for the hub: what the cache holds, what a download gives, and the calls made."""

    def __init__(self, cached: Path | None, online: Path | Exception, patch: pytest.MonkeyPatch) -> None:
        self.cached, self.online = cached, online
        self.calls: list[str] = []
        patch.setattr(huggingface_hub, "snapshot_download", self)
        patch.setattr(huggingface_hub, "model_info", self.answer)

    def answer(self, repo_id: str, *, timeout: float) -> None:
        """`snapshot_download` would ask without a limit of time, and a hub that never answers would be waited for."""
        assert 0 < timeout <= 30
        self.calls.append(f"{repo_id} asked")

    def __call__(self, repo_id: str, *, local_files_only: bool, **patterns: Any) -> str:
        self.calls.append(f"{repo_id} {'cache' if local_files_only else 'hub'}")
        assert not any(pattern.endswith((".bin", ".pt", ".pth")) for pattern in patterns["allow_patterns"])
        if local_files_only and self.cached is None:
            raise LocalEntryNotFoundError("not cached")
        answer = self.cached if local_files_only else self.online
        if isinstance(answer, Exception):
            raise answer
        return str(answer)


def test_hub_ids_come_from_the_cache_only_where_it_is_complete(
    saved: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for cached in ("model", "sharded"):
        complete = Hub(saved / cached, ConnectionError("must not be asked"), monkeypatch)
        assert locate("org/name", field="model.path") == saved / cached
        assert complete.calls == ["org/name cache"]

    break_missing_shard(folder)
    partial = Hub(folder, saved / "model", monkeypatch)
    assert locate("org/name", field="model.path") == saved / "model"
    assert partial.calls == ["org/name cache", "org/name asked", "org/name hub"]


def test_an_unreachable_hub_is_one_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    hub = Hub(None, ConnectionError("Name or service not known\nmore\nlines"), monkeypatch)
    with pytest.raises(ModelError) as caught:
        locate("org/name", field="judge.path")
    assert str(caught.value) == (
        "judge.path is org/name; there is no such folder, and a model of that id could not be fetched from the hub "
        "(Name or service not known): give an existing folder, or connect, and check the id and your access to it"
    )
    assert hub.calls == ["org/name cache", "org/name asked", "org/name hub"]
