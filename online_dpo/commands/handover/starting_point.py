"""Where a run stands after a round, for a trainer that goes on: its policy, its reference, and the prompts to come."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from online_dpo.commands.preparing.inputs import load_all_prompts
from online_dpo.commands.preparing.provenance import source_digests
from online_dpo.config.control import PathReference
from online_dpo.config.run import RunConfig
from online_dpo.data.drawing import read_cursor
from online_dpo.errors import ConfigError, UserError
from online_dpo.loop.references import policy_of
from online_dpo.models.adapters import read_adapter
from online_dpo.models.inspection import ModelInfo, inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.tokenizer import load_tokenizer
from online_dpo.store.run_format import INITIAL_POLICY
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Prompt

Which = Literal["run", "initial"]


@dataclass(frozen=True, slots=True, kw_only=True)
class StartingPoint:
    """What a trainer continues."""

    config: RunConfig
    version: int  # of the policy: the number of rounds that made it
    base: Path  # the folder of the base model
    policy: Adapter
    reference: Adapter | None  # None = the base model
    prompts: list[Prompt]


def read_starting_point(config: RunConfig, store: RunStore, index: int, which: Which) -> StartingPoint:
    """Read a finished round, and draw the prompts that follow it.

    Args:
        config: of the run.
        store: of the run.
        index: of the round.
        which: the reference that the next round would have, or the initial policy.

    Raises:
        UserError: the run samples no prompts, its reference is no single adapter of this base model, or an input is
            missing or another one than when the run began.
    """
    if config.prompts is None:
        raise UserError(
            "the run's prompts is null, since it trains on pairs alone, and a trainer that samples needs prompts; "
            "export the policy alone, without --for"
        )
    base = inspect_model(locate(config.model.path, field="model.path"), field="model.path")
    initial = None if config.model.adapter is None else read_adapter(config.model.adapter, base=base)
    _expect_same_inputs(config, store, base, initial)
    if config.sft is not None:
        initial = Adapter.from_files(0, store.round(0).get_files(INITIAL_POLICY))
    policy = policy_of(store, index + 1, initial)
    assert policy is not None  # a round makes an adapter
    reference = initial
    if which == "run" and config.objective.needs_reference:
        reference = _reference(config, store, index, initial, policy, base)
    return StartingPoint(
        config=config,
        version=index + 1,
        base=base.folder,
        policy=policy,
        reference=reference,
        prompts=_prompts_to_come(config, base, store.round(index).state()["cursor"]),
    )


def _expect_same_inputs(config: RunConfig, store: RunStore, base: ModelInfo, initial: Adapter | None) -> None:
    """Raises ConfigError where base model, adapter, prompts or the judge's file have changed since the run began."""
    found = {"model.path": base.fingerprint, "model.adapter": None if initial is None else initial.digest}
    before = {
        "model.path": store.info["model_fingerprint"],
        "model.adapter": store.info["adapter_digest"],
        **{f: digest for f, digest in store.info["sources"].items() if f.startswith(("prompts", "judge"))},
    }
    now = {**found, **source_digests(config)}
    for field, digest in before.items():
        if now.get(field) != digest:
            raise ConfigError(
                f"{field} names something whose content changed since the run began, or that is not here; give it back "
                f"its content, and run the command in the folder in which the run was started"
            )


def _reference(
    config: RunConfig, store: RunStore, index: int, initial: Adapter | None, policy: Adapter, base: ModelInfo
) -> Adapter | None:
    """The reference of the round that would follow; None = the base model."""
    remedy = "give --reference initial"
    if isinstance(config.reference, PathReference):
        folder = locate(config.reference.path, field="reference.path")
        if not (folder / "adapter_config.json").is_file():
            raise UserError(f"reference.path is {config.reference.path}, another model than model.path; {remedy}")
        given = read_adapter(config.reference.path, base=base, field="reference.path")
        if _shape(given) != _shape(policy):
            raise UserError(
                f"reference.path is {config.reference.path}, an adapter of other rank, alpha or layers than the "
                f"policy's, which a trainer cannot hold beside it; {remedy}"
            )
        return given
    last = store.round(index)
    versions = tuple(last.state()["reference_versions"])
    if len(versions) != 1:
        raise UserError(f"the reference is the mean of {len(versions)} policies, and a trainer takes one; {remedy}")
    if last.has("reference"):
        return Adapter.from_files(versions[0], last.get_files("reference"))
    return policy_of(store, versions[0], initial)


def _shape(adapter: Adapter) -> tuple[Any, ...]:
    settings = json.loads(adapter.config)
    return settings["r"], settings["lora_alpha"], json.dumps(settings["target_modules"])


def _prompts_to_come(config: RunConfig, base: ModelInfo, cursor: Mapping[str, Any]) -> list[Prompt]:
    """Every usable prompt once, in the order in which the next rounds would come to it.

    Those that are left of this epoch come first, then the others in the next epoch's order. Of a mixture
    twice as many prompts are drawn as its data sets have rows, and each is taken once: a data set with a small weight
    may not be gone through.
    """
    assert config.prompts is not None
    tokenizer = load_tokenizer(base.folder, trust_remote_code=config.model.trust_remote_code)
    source = load_all_prompts(config, base, tokenizer).prompts
    assert source is not None
    position, found = read_cursor(cursor), dict[str, Prompt]()
    # The rest of this epoch and all of the next one are twice as many rows as there are, or fewer.
    for _ in range(math.ceil(2 * len(source) / config.prompts.per_round)):
        draw = source.draw(position, config.prompts.per_round)
        position = draw.cursor
        for prompt in draw.prompts:
            found.setdefault(prompt.prompt_id, prompt)
    return list(found.values())
