"""Every recipe fits the GPUs that it names, offline; what does not fit is said before anything is fetched."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
from pathlib import Path

import pytest
from cli_kit import Outcome, called, write_inputs

from judges.protocol import Question
from judges.verifier.verifier import Verifier
from online_dpo.commands.preparing.hours import hours
from online_dpo.commands.preparing.memory import kept_bytes, lora_parameters
from online_dpo.config.judges.hosted import VerifierJudge
from online_dpo.config.loading import load_config
from online_dpo.embedded import path_of
from online_dpo.models.shapes import ModelShape, find_shape, read_shape

RECIPES = Path(__file__).parents[2] / "configs" / "recipes"
GPUS = {
    "gsm8k-qwen2.5-0.5b": (1, 23),  # GiB of the smallest GPU that its header names
    "tldr-pythia-1b": (1, 39),
    "llama-3.1-8b-ultrafeedback": (8, 79),
    "qwen3-8b-thinking-maths": (8, 79),
    "two-nodes": (16, 79),
}


def gsm8k_row() -> dict[str, object]:
    spec = importlib.util.spec_from_file_location("recipes_gsm8k", RECIPES / "gsm8k.py")
    assert spec is not None and spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module.chat_row({"question": "How many legs has a dog?", "answer": "A dog has <<2+2=4>>4 legs.\n#### 4"})


@pytest.fixture
def place(tmp_path: Path) -> Path:
    """A folder with the one data set that a recipe wants as a file."""
    folder = tmp_path / "data" / "gsm8k"
    folder.mkdir(parents=True)
    for split in ("train", "test"):
        (folder / f"{split}.jsonl").write_text(json.dumps(gsm8k_row()) + "\n")
    return tmp_path


def validate(name: str, place: Path, *arguments: object) -> Outcome:
    return called("validate", RECIPES / f"{name}.yaml", *arguments, cwd=place)


def shape(name: str) -> ModelShape:
    file = find_shape(name, RECIPES / "shapes")
    assert file is not None
    return read_shape(file, field=name)


def test_every_recipe_is_tested() -> None:
    assert {file.stem for file in RECIPES.glob("*.yaml")} == GPUS.keys()


@pytest.mark.parametrize("name", GPUS)
def test_a_recipe_fits_the_gpus_that_it_names(name: str, place: Path) -> None:
    number, gib = GPUS[name]
    said = validate(name, place, "--gpu-memory", gib)
    assert said.code == 0, said
    assert f"GPUs: {number} of {gib} GiB" in said.out and "does not fit" not in said.out
    assert "fit into its shape's context" in said.out and "hours: about " in said.out
    config = load_config(RECIPES / f"{name}.yaml")
    assert config.run.name and config.evaluation.every <= config.run.rounds


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        (
            "tldr-pythia-1b",
            ["learner.micro_batch_tokens=32768", "--gpu-memory", 39],
            "learner needs about 48.5 GiB of each GPU (1.9 for weights",
        ),
        (
            "llama-3.1-8b-ultrafeedback",
            ["learner.activation_checkpointing=false"],
            "set learner.activation_checkpointing to true, or lower learner.micro_batch_tokens",
        ),
        (
            "qwen3-8b-thinking-maths",
            ["sampling.max_tokens=39000", "--gpu-memory", 39],
            "lower prompts.max_tokens or sampling.max_tokens, since a pair is never split",
        ),
        ("qwen3-8b-thinking-maths", ["sampling.max_tokens=40000"], "the context of Qwen/Qwen3-8B is 40960"),
        ("two-nodes", ["generator.gpu_memory_utilization=0.2"], "generator needs about 19.2 GiB of each GPU"),
        ("two-nodes", ["judge.dtype=float32", "--gpu-memory", 23], "judge needs about 31.7 GiB"),
        ("gsm8k-qwen2.5-0.5b", ["generator.gpu_memory_utilization=0.97"], "lower it to 0.96 or less"),
    ],
)  # fmt: skip
def test_what_does_not_fit_is_said(name: str, arguments: list[object], message: str, place: Path) -> None:
    """By `--deep` as an error, before anything is asked of the hub; without it as a line, where a run might do."""
    assert message in validate(name, place, "--deep", *arguments).refusal
    said = validate(name, place, *arguments)
    assert message in said.out + said.err


def test_where_a_shape_is_looked_for(place: Path) -> None:
    shutil.copy(RECIPES / "two-nodes.yaml", place / "config.yaml")
    said = called("validate", "config.yaml", cwd=place)
    assert "is a hub id; not looked up without --deep" in said.out
    assert "put its config.json there as shapes/meta-llama--Llama-3.1-8B-Instruct.json" in said.out
    assert "not estimated: judge.path is Skywork/Skywork-Reward-V2-Llama-3.1-8B, and its sizes are not here" in said.out
    assert "which is no folder" in called("validate", "config.yaml", "--shapes", "nowhere", cwd=place).refusal
    assert "--gpu-memory is inf" in called("validate", "config.yaml", "--gpu-memory", "inf", cwd=place).refusal
    said = called("validate", "config.yaml", "--shapes", RECIPES / "shapes", cwd=place)
    assert "GPUs: 16 of 79 GiB" in said.out
    (place / "shapes").mkdir()
    file = place / "shapes" / "meta-llama--Llama-3.1-8B-Instruct.json"
    for content, complaint in (
        ("{", "cannot be read"),
        ("[]", "holds no JSON object"),
        ('{"model_type": "llama", "hidden_size": "4096"}', "hidden_size is '4096'"),
        ('{"model_type": "llama", "hidden_size": 4096}', "num_attention_heads is missing"),
        ('{"hidden_size": 1, "num_attention_heads": 1}', "names no model_type"),
    ):
        file.write_text(content)
        message = called("validate", "config.yaml", cwd=place).refusal
        assert "meta-llama--Llama-3.1-8B-Instruct.json" in message and complaint in message


@pytest.mark.parametrize(
    ("says", "memory"),
    [("echo 81559; echo 40960", "of 40 GiB"), ("echo no devices; exit 9", "of 79 GiB"), ("exit 1", "of 79 GiB")],
)
def test_the_smallest_gpu_of_the_machine_counts(
    says: str, memory: str, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (place / "nvidia-smi").write_text(f"#!/bin/sh\n{says}\n")
    (place / "nvidia-smi").chmod(0o755)
    monkeypatch.setenv("PATH", f"{place}:{os.environ['PATH']}")
    assert memory in validate("two-nodes", place).out
    assert "of 20 GiB" in validate("two-nodes", place, "--gpu-memory", 20).out


def test_a_local_model_of_unknown_sizes_is_no_error(tmp_path: Path) -> None:
    """Where a GPU is in question; nothing is said of GPUs otherwise."""
    write_inputs(tmp_path, Path("embedded:policy"))
    assert "GPU" not in called("validate", "config.yaml", cwd=tmp_path).out
    said = called("validate", "config.yaml", "--gpu-memory", 8, cwd=tmp_path)
    assert "GPUs: 2 of 8 GiB" in said.out and "not estimated" not in said.out  # a generator and a learner
    shutil.copytree(path_of("embedded:policy"), tmp_path / "model")
    file = tmp_path / "model" / "config.json"
    sizes = json.loads(file.read_text())
    del sizes["num_attention_heads"]
    file.write_text(json.dumps(sizes))
    said = called("validate", "config.yaml", "model.path=model", "--gpu-memory", 8, cwd=tmp_path)
    assert (
        said.code == 0 and "not estimated: model.path is model, whose config.json says its sizes in a way" in said.out
    )


@pytest.mark.parametrize(
    ("name", "published"),
    [  # parameters, as the files on the hub add up
        ("Qwen/Qwen2.5-0.5B-Instruct", 494_032_768),
        ("trl-lib/pythia-1b-deduped-tldr-sft", 1_011_781_632),
        ("meta-llama/Llama-3.1-8B-Instruct", 8_030_261_248),
        ("Skywork/Skywork-Reward-V2-Llama-3.1-8B", 7_504_928_768),
        ("Qwen/Qwen3-8B", 8_190_735_360),
    ],
)
def test_shapes_are_those_of_the_published_models(name: str, published: int) -> None:
    """Biases and norms are left out of the count."""
    assert shape(name).num_parameters == pytest.approx(published, rel=1e-3)


def test_numbers_by_hand() -> None:
    llama = shape("meta-llama/Llama-3.1-8B-Instruct")
    assert llama.kv_bytes(2) == 128 * 1024  # 32 layers, 8 heads of 128, keys and values
    assert lora_parameters(llama, 16) == 41_943_040  # as PEFT prints for all linear layers
    # In bytes: norms read 2 x 4 x 4096; LoRA of q, k, v, o, gate and up takes 4096 inputs in bfloat16, of down 14336;
    # queries and results 4096, keys and values 1024; gate, its activation and up 14336; and 16 inner values of each.
    layer = 32768 + 2 * (6 * 4096 + 14336) + 2 * (2 * 4096 + 2 * 1024) + 6 * 14336 + 2 * 7 * 16
    assert kept_bytes(llama, 16) == 33 * layer + 6 * 4096
    assert kept_bytes(llama, 16, checkpointed=True) == 32 * 2 * 4096 + 2 * layer + 6 * 4096


def test_hours_by_hand() -> None:
    """Two rounds on an 8 B model: 10 prompts of 100 tokens, 4 answers of 900, one pair of each prompt."""
    base = load_config(RECIPES / "two-nodes.yaml").model_dump(mode="json")
    small = {
        "run": {"rounds": 2}, "overlap": 0, "prompts": {**base["prompts"], "per_round": 10, "max_tokens": 100},
        "sampling": {**base["sampling"], "num_samples": 4, "max_tokens": 900}, "evaluation": {}, "judge": base["judge"],
        "model": base["model"], "generator": {"replicas": 2}, "learner": {"num_workers": 2, "epochs": 3},
    }  # fmt: skip
    found = hours(load_config(small), shape)
    assert found is not None
    peak = 989e12 * 3600
    p = shape("meta-llama/Llama-3.1-8B-Instruct").num_parameters - 128256 * 4096  # a lookup multiplies nothing
    q = shape("Skywork/Skywork-Reward-V2-Llama-3.1-8B").num_decoder_parameters
    # Two engines at a tenth of the peak; a judge at 35 %; two workers, with a reference pass and three epochs of a pass
    # forward and one back over the two answers of a pair.
    assert found.sampling == pytest.approx(2 * p * 2 * (40 * 900 + 10 * 100) / (2 * 0.10 * peak))
    assert found.judging == pytest.approx(2 * q * 2 * 40 * 1000 / (0.35 * peak))
    assert found.learning == pytest.approx(2 * p * 2 * 10 * 2 * 1000 * (1 + 3 * 2) / (2 * 0.35 * peak))
    assert found.total == max(found.sampling, found.judging) + found.learning
    overlapping = hours(load_config({**small, "overlap": 1}), shape)
    assert overlapping is not None and overlapping.total == max(found.sampling, found.judging, found.learning)


def test_the_verifier_reads_the_answers_of_the_recipe() -> None:
    import asyncio

    row = gsm8k_row()
    judge = Verifier(VerifierJudge(type="verifier", method="numeric", answer="answer"), field="judge")
    question = Question(
        prompt_id="0",
        prompt=row["prompt"],  # type: ignore[arg-type]
        completions=("2 + 2 = 4\n#### 4", "2 + 3 = 5\n#### 5"),
        metadata={"answer": row["answer"]},
    )
    (verdicts,) = asyncio.run(judge.judge([question]))
    assert [verdict.score for verdict in verdicts] == [1.0, 0.0]
