"""`online-dpo fork`: a new run from what another one committed, under another config and without sampling again."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from online_dpo.commands.preparing.fork_stages import (
    STAGES,
    changed_judges,
    check_later_round,
    first_stage,
    is_taken,
    is_taken_record,
)
from online_dpo.commands.preparing.inputs import Inputs, inspect_inputs
from online_dpo.commands.preparing.learning_rates import keep_recorded_lr
from online_dpo.commands.preparing.provenance import changed_inputs, run_info
from online_dpo.commands.run import portable_yaml, recorded_config
from online_dpo.config.resuming import changes
from online_dpo.config.run import RunConfig
from online_dpo.config.threads import keep_recorded_threads
from online_dpo.errors import ConfigError, UserError
from online_dpo.loop.control import Control
from online_dpo.store.forking import Taken, expect_forkable
from online_dpo.store.forking import fork as write
from online_dpo.store.run_store import RunStore


def fork(
    run_dir: Path, new_dir: Path, *, round_number: int, overrides: Sequence[str], start: str | None
) -> Iterator[str]:
    """Make a run that begins with the rounds of another one, and with a part of the round after them.

    Args:
        run_dir: of the other run, which is only read.
        new_dir: must not exist.
        round_number: the round that is done anew in part, counted from 1 as in `status`.
        overrides: of the config, such as `objective.beta=0.2`.
        start: the stage from which on that round is done anew; None = the first that reads what changed.

    Returns:
        Lines about what was done.

    Raises:
        UserError: the change cannot be had from this round on; nothing was written.
    """
    if start is not None and start not in STAGES:
        raise UserError(f"--from is {start}; choose one of {', '.join(STAGES)}")
    old, new = recorded_config(run_dir), recorded_config(run_dir, overrides, place=new_dir)
    index = round_number - 1
    with RunStore.read(run_dir) as source:
        expect_forkable(source, index)
        inputs = inspect_inputs(keep_recorded_lr(keep_recorded_threads(new, old), old))
        changed = _changes(source, old, inputs)
        control = Control.from_dict(source.round(index - 1).state()["control"]) if index else Control()
        check_later_round(old, inputs.config, changed, round_number, control.beta_factor)
        stage = _stage(old, inputs.config, changed, start)
        if inputs.config.run.rounds < round_number:
            raise ConfigError(
                f"run.rounds is {inputs.config.run.rounds} and the fork begins with round {round_number}; set it to "
                f"{round_number} or more"
            )
        taken = Taken(
            num_kept=index,
            wants=lambda name: is_taken(name, stage, changed=changed),
            wants_record=lambda record: is_taken_record(record, index, stage),
        )
        entry = {"round": round_number, "from": stage, "changed": changed, "judges": changed_judges(changed)}
        names = write(
            source, new_dir, taken, config_yaml=portable_yaml(inputs.config), info=run_info(inputs), entry=entry
        )
    yield f"{new_dir}: rounds before round {round_number} are copies of those of {run_dir}"
    yield f"round {round_number} is done anew from: {stage}; {_counted(names)}"
    for field, (before, after) in changed.items():
        yield f"{field} was {before} and is now {after}"
    yield f"continue with: online-dpo resume {new_dir}"


def _changes(source: RunStore, old: RunConfig, inputs: Inputs) -> dict[str, list[Any]]:
    """Field -> its value before and now; of a file whose content changed, the digests."""
    fields = {key: [before, after] for key, before, after, free in changes(old, inputs.config) if not free}
    files = {field: list(digests) for field, digests in changed_inputs(source.info, inputs).items()}
    return {**files, **fields}


def _stage(old: RunConfig, new: RunConfig, changed: Mapping[str, Any], start: str | None) -> str:
    """From where on the round is done anew.

    Raises:
        ConfigError: what changed is read by an earlier stage than the user names, or by sampling.
    """
    needed, field = first_stage(old, new, changed)
    if start is None and needed == "sample":
        raise ConfigError(
            f"{field} changed, which shapes the samples that a fork takes; set it back, or let the round be sampled "
            f"anew, with --from sample"
        )
    if start is not None and STAGES.index(start) > STAGES.index(needed):
        raise ConfigError(
            f"--from is {start}, and {field} changed, which is read before; give --from {needed}, or leave --from out"
        )
    return start or needed


def _counted(names: Sequence[str]) -> str:
    """What was taken of the round, in words."""
    counts = Counter(name.split("/")[0] for name in names)
    shards = [f"{counts[kind]} shards of {kind}" for kind in ("completions", "verdicts") if counts[kind]]
    items = [kind for kind in ("pairs", "labelled", "demonstrations") if counts[kind]]
    return f"taken of it: {', '.join([*shards, *items])}" if shards or items else "nothing is taken of it"
