"""Models and engines that several test files share. Everything heavy starts once per session, in its own process."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
from tiny_model import build_tiny_model

pytest_plugins = ["browser_kit"]

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("CUDA_VISIBLE_DEVICES", "")
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")  # two test processes share the cores
# Where this is set, every process that a test starts would compile torch, transformers, vLLM and Ray anew.
os.environ.pop("PYTHONDONTWRITEBYTECODE", None)
sys.dont_write_bytecode = False

LONG = (
    "actors/test_engine_layouts.py",
    "commands/test_real_resume.py",
    "commands/test_bad_run_directories.py",
    "actors/test_engine.py",
    "actors/test_supervision.py",
    "actors/test_cluster.py",
    "actors/test_llm_vllm.py",
    "loop/test_offline_rounds.py",
    "commands/test_python_api.py",
    "commands/test_offline_command.py",
    "learner/test_forward.py",
    "judges/test_verifier.py",
    "loop/test_control.py",
    "loop/test_resume_kills.py",
    "commands/test_keys.py",
    "actors/test_scoring_engine.py",
    "loop/test_overlap.py",
    "statistics/test_overoptimisation.py",
    "commands/test_handover.py",
    "commands/test_bad_input.py",
    "test_cli.py",
    "actors/test_long_shards.py",
    "annotation/test_web_pages.py",
    "annotation/test_annotate_command.py",
    "actors/test_gang.py",
    "reports/comparing/test_comparison.py",
    "commands/test_view.py",
    "loop/test_lost_learner.py",
    "actors/test_session.py",
    "reports/test_terminals.py",
    "config/test_yaml_text.py",
)
"""Files of more than about ten seconds, the longest first: processes that share the work then end together."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    places = {Path(__file__).parent / name: place for place, name in enumerate(LONG)}
    missing = [str(path) for path in places if not path.exists()]
    assert not missing, f"conftest.LONG names files that are gone: {missing}"
    items.sort(key=lambda item: places.get(item.path, len(LONG)))  # stable: the order within a file stays


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
