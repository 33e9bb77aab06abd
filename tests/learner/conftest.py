"""A tiny base model and adapters of it, made once for each module of tests."""

from __future__ import annotations

import pytest
from learner_kit import random_adapter, save_tiny_llama

from online_dpo.types import Adapter


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> str:
    return save_tiny_llama(tmp_path_factory.mktemp("model"))


@pytest.fixture(scope="module")
def given(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    """An adapter to continue: its policy is far from the base model."""
    return random_adapter(tiny, tmp_path_factory.mktemp("adapter"), seed=1)


@pytest.fixture(scope="module")
def other(tiny: str, tmp_path_factory: pytest.TempPathFactory) -> Adapter:
    return random_adapter(tiny, tmp_path_factory.mktemp("other"), seed=2)
