"""Models and engines that several test files share. Everything heavy starts once per session, in its own process."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two test processes share the cores

LONG = (
    "test_real_resume",
    "test_bad_input",
    "test_bad_run_directories",
    "test_engine",
    "test_engine_layouts",
    "test_llm_vllm",
    "test_scoring_engine",
    "test_stopped_run",
    "test_offline_command",
    "test_long_shards",
    "test_session",
    "test_cluster",
    "test_judge_command",
)
"""Files that start engines or run the command, the longest first: two processes that share the work end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {name: place for place, name in enumerate(LONG)}
    items.sort(key=lambda item: places.get(item.path.stem, len(LONG)))  # stable: the order within a file stays


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A random 2-layer Llama with grouped-query attention and a byte-level BPE tokenizer with BOS, EOS and pad."""
    return build_tiny_model(tmp_path_factory.mktemp("tiny") / "model")


@pytest.fixture(scope="session")
def ray_local() -> Iterator[None]:
    """A local Ray with logical CPUs to spare; shut down at the end, nothing else on the machine is touched."""
    from actors.session import ray_session
    from online_dpo.config.run import ClusterSection

    with ray_session(ClusterSection(num_cpus=16), num_cpus_needed=8):
        yield
