"""What vLLM and Triton read from the environment of a process with an engine."""

from __future__ import annotations

import os

import pytest

from actors.engine_process import prepare_judge_process, prepare_process

VARIABLES = ("VLLM_ENABLE_V1_MULTIPROCESSING", "TRITON_F32_DEFAULT", "TORCHDYNAMO_DISABLE", "VLLM_CPU_KVCACHE_SPACE")


@pytest.fixture(autouse=True)
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in VARIABLES:
        monkeypatch.setenv(name, "")  # so that whatever is set is taken back
        monkeypatch.delenv(name)


def seen() -> dict[str, str]:
    return {name: os.environ[name] for name in VARIABLES if name in os.environ}


def test_engines_multiply_float32_as_float32_in_one_process() -> None:
    prepare_process(eager=False)
    assert seen() == {"VLLM_ENABLE_V1_MULTIPROCESSING": "0", "TRITON_F32_DEFAULT": "ieee"}


def test_an_eager_engine_compiles_nothing_and_the_users_precision_stays(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TRITON_F32_DEFAULT", "tf32x3")
    prepare_process(eager=True)
    assert seen()["TRITON_F32_DEFAULT"] == "tf32x3" and seen()["TORCHDYNAMO_DISABLE"] == "1"


@pytest.mark.parametrize("gpu", [True, False])
def test_judges_engines_are_prepared_likewise_and_compile_on_a_gpu_alone(
    gpu: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("torch.cuda.is_available", lambda: gpu)
    assert prepare_judge_process(3) is gpu
    assert seen()["VLLM_CPU_KVCACHE_SPACE"] == "3" and seen()["TRITON_F32_DEFAULT"] == "ieee"
    assert ("TORCHDYNAMO_DISABLE" in seen()) is not gpu
