"""Models in transformers: no weight is filled in, left over, or no number, whatever the family calls it."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from family_kit import FAMILIES, build_family
from safetensors.torch import load_file, save_file

from online_dpo.errors import ModelError
from online_dpo.learner.frozen_models import ModelSource, load_model
from online_dpo.models import loading
from online_dpo.models.inspection import inspect_model

Change = Callable[[dict[str, torch.Tensor]], Any]
UP = "model.layers.1.mlp.up_proj.weight"


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_is_compared_as_transformers_loads_it(family: str, tmp_path: Path) -> None:
    """Would catch a comparison that knows nothing of tied heads, renamed tensors or fused experts."""
    info = inspect_model(build_family(family, tmp_path / "model"), field="model.path")
    headers = loading._headers(info, "")
    names = sorted(headers)

    def compare(changed: dict[str, torch.Tensor]) -> str:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(loading, "_headers", lambda info, label: changed)
            try:
                loading.empty_model(info, label="model.path is x", trust_remote_code=False)
            except ModelError as error:
                return str(error)
        return "nothing is wrong"

    assert compare(headers) == "nothing is wrong"
    for name in (names[0], names[len(names) // 2], names[-1]):
        without = {other: tensor for other, tensor in headers.items() if other != name}
        larger = {**headers, name: torch.empty([size + 2 for size in headers[name].shape], device="meta")}
        experts = "its tensors of experts do not fit together" if "expert" in name else "-"
        assert re.search(rf"has no weights for .*{name.split('.')[-1]}|{experts}", compare(without)), name
        assert re.search(rf"does not belong to its weights: |{experts}", compare(larger)), name
        assert "weights that its config.json has no place for: never" in compare({**headers, "never": headers[name]})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda tensors: tensors.pop("model.norm.weight"), "which has no weights for model.norm.weight, so that"),
        (lambda tensors: tensors.update(more=torch.ones(1)), "weights that its config.json has no place for: more;"),
        (
            lambda tensors: tensors.update({UP: tensors[UP][1:].clone()}),
            rf"{UP} is \[23, 16\] in the files and \[24, 16",
        ),
        (lambda tensors: tensors[UP][3, :2].fill_(torch.nan), f"2 of the 384 values of {UP} are NaN or infinite"),
        (lambda tensors: tensors[UP][3, :2].fill_(-torch.inf), f"2 of the 384 values of {UP} are NaN or infinite"),
    ],
    ids=["missing", "left over", "shape", "nan", "inf"],
)
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_learner_is_as_strict_where_it_loads_a_model(change: Change, message: str, dtype: Any, folder: Path) -> None:
    source = ModelSource(field="reference.path", name="other", folder=str(folder), trust_remote_code=False)
    load_model(source, dtype=dtype, device=torch.device("cpu"))
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ModelError, match=message) as caught:
        load_model(source, dtype=dtype, device=torch.device("cpu"))
    assert str(caught.value).startswith("reference.path is other, wh")
