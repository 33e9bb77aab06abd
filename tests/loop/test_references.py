"""Every kind of reference in the learner: invariant 4 of DESIGN, ensembles, adapters and models that are given."""

from __future__ import annotations

import json
import math
import pickle
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from cli_kit import write_inputs
from learner_kit import (
    NAME,
    make_pairs,
    make_spec,
    plain_peft,
    random_adapter,
    read_folder,
    rows_of,
    save_tiny_llama,
    slow_token_logps,
    train,
)
from model_kit import change_json, write_folders
from peft import LoraConfig, get_peft_model
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from online_dpo.commands.preparing.inputs import inspect_inputs, prepare
from online_dpo.commands.preparing.provenance import check_same_inputs, run_info
from online_dpo.commands.preparing.specs import learner_spec
from online_dpo.config.loading import load_config
from online_dpo.errors import ConfigError, ModelError
from online_dpo.learner.frozen_models import ModelSource
from online_dpo.learner.learner import Learner
from online_dpo.loop.evaluation import mean_token_logps
from online_dpo.models.given_reference import inspect_reference
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.statistics.samples import kl_per_completion
from online_dpo.types import Adapter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def start(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return random_adapter(tiny, tmp_path_factory.mktemp("start"), seed=1)


@pytest.fixture(scope="module")
def narrow(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """Of another rank and on other layers than the policy's."""
    folder = tmp_path_factory.mktemp("narrow")
    torch.manual_seed(5)
    config = LoraConfig(r=2, lora_alpha=6, target_modules=["q_proj", "down_proj"], task_type="CAUSAL_LM")
    model: Any = get_peft_model(AutoModelForCausalLM.from_pretrained(tiny), config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "lora_B" in name:
                parameter.normal_(std=0.1)
    model.save_pretrained(folder)
    return read_folder(folder)


@pytest.fixture(scope="module")
def smaller(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    """Another model over the same vocabulary."""
    config = LlamaConfig(**{**json.loads((Path(tiny) / "config.json").read_text()), "num_hidden_layers": 1})
    torch.manual_seed(9)
    folder = tmp_path_factory.mktemp("smaller")
    LlamaForCausalLM(config).save_pretrained(folder)
    return str(folder)


def source(folder: str) -> ModelSource:
    return ModelSource(field="reference.path", name=NAME, folder=folder, trust_remote_code=False)


# ---- invariant 4: a policy that is its reference begins at ln 2


@pytest.mark.parametrize(
    "kind", ["fixed, base", "fixed, adapter", "every", "ensemble", "given adapter", "given model", "given merged model"]
)
def test_a_round_whose_reference_is_the_policy_begins_at_ln_2(
    kind: str, tiny: str, start: Adapter, tmp_path: Path
) -> None:
    """Would catch a reference that is scored under the slot of another, in another mode, or not at all."""
    initial = start if kind in ("fixed, adapter", "given adapter", "given merged model") else None
    given: Any = {"given adapter": start, "given model": source(tiny)}.get(kind)
    if kind == "given merged model":
        merged: Any = plain_peft(tiny, start, tmp_path / "adapter", dtype=torch.float32).merge_and_unload()
        merged.save_pretrained(tmp_path / "merged")
        given = source(str(tmp_path / "merged"))
    learner = Learner(make_spec(tiny, initial, batch_pairs=8, reference=given))
    references: Any = [initial]
    if kind in ("every", "ensemble"):
        train(learner, learner.reference_logps(make_pairs(8), [None]))
        references = [learner.policy(1)] * (3 if kind == "ensemble" else 1)
    elif kind.startswith("given"):
        references = ["reference_model"]
    before = learner.checkpoint()
    pairs = learner.reference_logps(make_pairs(8, seed=3), references)
    assert learner.checkpoint() == before
    metrics = train(learner, pairs, round_index=1, steps=range(1))[0]
    assert metrics["loss"] == pytest.approx(math.log(2), abs=1e-5)
    assert metrics["chosen_log_ratio"] == pytest.approx(0.0, abs=1e-4) and metrics["grad_norm"] > 1e-2


# ---- what each reference says


def test_an_ensemble_is_the_mean_of_its_members_log_probs(
    tiny: str, start: Adapter, narrow: Adapter, smaller: str, tmp_path: Path
) -> None:
    """Against PEFT alone, in float64. Would catch a mean of probabilities, and a member that is scored twice."""
    other = random_adapter(tiny, tmp_path / "other", seed=2)
    learner = Learner(make_spec(tiny, start))
    pairs = make_pairs(5)
    found = learner.reference_logps(pairs, [None, start, other])
    models = [
        AutoModelForCausalLM.from_pretrained(tiny).double(),
        plain_peft(tiny, start, tmp_path / "a", dtype=torch.float64),
        plain_peft(tiny, other, tmp_path / "b", dtype=torch.float64),
    ]
    for pair, scored in zip(pairs, found, strict=True):
        with torch.no_grad():
            sums = [slow_token_logps(m, pair.prompt.token_ids, pair.chosen.token_ids).sum().item() for m in models]
        assert scored.chosen_ref_logps == pytest.approx(sum(sums) / 3, abs=1e-4)
        assert max(sums) - min(sums) > 0.1


def test_the_kl_to_an_ensemble_is_the_mean_of_the_kls_to_its_members() -> None:
    members = [[[-1.0, -2.0], [-3.0]], [[-2.0, -2.5], [-1.0]]]
    assert mean_token_logps(members) == [[-1.5, -2.25], [-2.0]]
    policy = [-1.25, -1.75]
    plain = [kl_per_completion(policy, rows[0])[1] for rows in members]
    assert kl_per_completion(policy, mean_token_logps(members)[0])[1] == pytest.approx(sum(plain) / 2)


@pytest.mark.parametrize("kind", ["adapter", "model"])
def test_a_given_reference_scores_as_itself_and_leaves_the_policy_alone(
    kind: str, tiny: str, start: Adapter, narrow: Adapter, smaller: str, tmp_path: Path
) -> None:
    """An adapter of another shape beside the policy's, or another model. Would catch a policy that trains or scores
    through the reference's slot, or an optimizer that holds the reference's weights."""
    reference: Any = narrow if kind == "adapter" else source(smaller)
    plain, learner = Learner(make_spec(tiny, start)), Learner(make_spec(tiny, start, reference=reference))
    rows = rows_of(make_pairs(4))
    expected_model: Any = (
        plain_peft(tiny, narrow, tmp_path / "narrow", dtype=torch.float64)
        if kind == "adapter"
        else AutoModelForCausalLM.from_pretrained(smaller).double()
    )
    for moment in range(2):
        given, policy = learner.score(rows, ["reference_model", "policy"])
        for row, found in zip(rows, given.token_logps, strict=True):
            with torch.no_grad():
                expected = slow_token_logps(expected_model, row.prompt_ids, row.completion_ids)
            assert found == pytest.approx(expected.tolist(), abs=2e-5), moment
        assert policy == plain.score(rows, ["policy"])[0]
        pairs = learner.reference_logps(make_pairs(8), ["reference_model"])
        assert train(learner, pairs, round_index=moment) == train(plain, pairs, round_index=moment)
        assert learner.checkpoint() == plain.checkpoint()
    assert {n for n, p in learner.model.named_parameters() if p.requires_grad} == {
        n for n, p in plain.model.named_parameters() if p.requires_grad
    }


def test_a_given_adapter_that_is_no_plain_lora(tiny: str, start: Adapter) -> None:
    config = json.loads(start.config) | {"use_dora": True}
    dora = Adapter(version=0, weights=start.weights, config=json.dumps(config).encode())
    with pytest.raises(ModelError, match="use_dora"):
        Learner(make_spec(tiny, start, reference=dora))


# ---- what is refused before anything is loaded


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_folders(root)
    return root


@pytest.fixture
def other(saved: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(saved / "model", tmp_path / "other"))


def inspected(saved: Path, path: Path, **sampling: Any) -> Any:
    config = {
        "model": {"path": str(saved / "model")},
        "prompts": {"source": "p", "max_tokens": 16},
        "sampling": {"max_tokens": 16, **sampling},
        "judge": {"type": "python", "target": "j"},
        "reference": {"type": "path", "path": str(path)},
    }
    return inspect_reference(load_config(config), inspect_model(saved / "model", field="model.path"))


def rename(folder: Path, changes: dict[str, str | None]) -> None:
    """Tokens of a tokenizer.json under other names; None removes one."""
    file = folder / "tokenizer.json"
    content = json.loads(file.read_text())
    vocabulary = content["model"]["vocab"]
    content["model"]["vocab"] = {changes.get(k, k): v for k, v in vocabulary.items() if changes.get(k, k) is not None}
    file.write_text(json.dumps(content))


def test_a_model_with_the_same_tokens_is_a_reference(saved: Path, other: Path) -> None:
    """A word more, and another shape, do no harm."""
    rename(other, {})
    change_json(other / "tokenizer.json", version="1.0")
    content = json.loads((other / "tokenizer.json").read_text())
    content["model"]["vocab"]["more"] = 6
    (other / "tokenizer.json").write_text(json.dumps(content))
    found = inspected(saved, other)
    assert isinstance(found, ModelInfo) and found.folder == other
    adapter = inspected(saved, saved / "adapter")
    assert (
        isinstance(adapter, Adapter) and adapter.weights == (saved / "adapter/adapter_model.safetensors").read_bytes()
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"hello": "world", "world": "hello"},
            "token 'hello' has id 4 in the policy and is id 5 in the reference (2 of",
        ),
        (
            {"world": "welt"},
            "token 'world' has id 5 in the policy and is absent in the reference (1 of 6 tokens differ)",
        ),
    ],
)
def test_a_reference_with_another_vocabulary(
    changes: dict[str, str | None], message: str, saved: Path, other: Path
) -> None:
    """The sizes are equal, so only a look at the tokens can tell."""
    rename(other, changes)
    with pytest.raises(ModelError) as error:
        inspected(saved, other)
    assert str(error.value).startswith(f"reference.path is {other}, whose vocabulary is not that of model.path: ")
    assert message in str(error.value) and "\n" not in str(error.value)


def test_a_reference_that_is_too_small(saved: Path, other: Path) -> None:
    change_json(other / "config.json", vocab_size=5)
    with pytest.raises(ModelError, match=r"gives the token 'world' the id 5, but whose embedding has 5 rows"):
        inspected(saved, other)
    change_json(other / "config.json", vocab_size=32, max_position_embeddings=30)
    with pytest.raises(ConfigError, match=r"whose context is 30 tokens; prompts\.max_tokens and .* are together 32"):
        inspected(saved, other)
    with pytest.raises(ModelError, match=r"^reference\.path is .*; there is no such folder"):
        inspected(saved, saved / "none")


def test_vocabularies_that_are_no_lists_of_tokens_must_be_the_same_file(
    saved: Path, other: Path, tmp_path: Path
) -> None:
    ours = Path(shutil.copytree(saved / "model", tmp_path / "ours/model"))
    for folder in (ours, other):
        (folder / "tokenizer.json").unlink()
        (folder / "tokenizer.model").write_bytes(b"sentencepiece")
        tokens = {"0": {"content": "<pad>"}, "2": {"content": "</s>"}}
        change_json(folder / "tokenizer_config.json", added_tokens_decoder=tokens)
    assert isinstance(inspected(ours.parent, other), ModelInfo)
    (other / "tokenizer.model").write_bytes(b"another")
    with pytest.raises(ModelError, match=r"cannot be compared .* no tokenizer\.json; save both tokenizers with"):
        inspected(ours.parent, other)


# ---- from the config to the learner


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_a_given_reference_reaches_the_learner_and_must_stay_as_it_is(
    kind: str, tiny_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Would catch a reference that the learner never hears of, and a run that is continued with another one."""
    monkeypatch.chdir(tmp_path)
    if kind == "model":
        shutil.copytree(tiny_model, "given")
    else:
        random_adapter(str(tiny_model), Path("given"), seed=3)
    write_inputs(tmp_path, tiny_model, reference={"type": "path", "path": "given"})
    materials = prepare(load_config("config.yaml"))
    found = pickle.loads(pickle.dumps(learner_spec(materials))).reference
    if kind == "model":
        folder = str(tmp_path / "given")
        assert found == ModelSource(field="reference.path", name="given", folder=folder, trust_remote_code=False)
        changed = Path("given/tokenizer_config.json")
    else:
        assert found.weights == Path("given/adapter_model.safetensors").read_bytes()
        changed = Path("given/adapter_config.json")
    info = run_info(materials)
    assert check_same_inputs(info, inspect_inputs(materials.config)) == []
    change_json(changed, **({"model_max_length": 99} if kind == "model" else {"lora_alpha": 99}))
    with pytest.raises(ConfigError, match=r"^reference\.path is given, whose content changed since this run began"):
        check_same_inputs(info, inspect_inputs(materials.config))
