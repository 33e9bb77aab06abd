"""Tiny folders of models and adapters, written once for each module of tests."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
from model_kit import write_folders


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = tmp_path_factory.mktemp("models")
    write_folders(root)
    return root


@pytest.fixture
def folder(saved: Path, tmp_path: Path) -> Path:
    """A copy of the model's folder that a test may break."""
    return Path(shutil.copytree(saved / "model", tmp_path / "model"))
