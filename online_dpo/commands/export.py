"""`online-dpo export`: a round's policy, for everyone, for another trainer, or for the hub."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from online_dpo.commands.handover import hub
from online_dpo.commands.handover.folders import (
    chosen_round,
    expect_new,
    license_of,
    new_folder,
    write_adapter,
    write_merged,
)
from online_dpo.commands.preparing.provenance import source_files
from online_dpo.commands.run import recorded_config
from online_dpo.errors import UserError
from online_dpo.models.locating import locate
from online_dpo.reports.card.card import write_card
from online_dpo.reports.page.run_record import RunRecord, collect_record
from online_dpo.store.forking import describe_forks
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter

Trainer = Literal["grpo", "verl"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command's options."""

    round_number: int | None = None  # counted from 1; None = the last finished one
    merge: bool = False
    trainer: Trainer | None = None
    reference: Literal["run", "initial"] = "run"
    repo_id: str | None = None  # of the hub
    private: bool = False
    dry_run: bool = False


def export_lines(run_dir: Path, out: Path, options: Options) -> Iterator[str]:
    """Export, and say what was done.

    Raises:
        UserError: the options do not fit each other, or as `export`, `export_for` and `hub.push`.
    """
    _check(options)
    if options.trainer is not None:
        number, notes = export_for(
            options.trainer, run_dir, out,
            round_number=options.round_number, merge=options.merge, reference=options.reference,
        )  # fmt: skip
        script = "python train_grpo.py" if options.trainer == "grpo" else "sh train_verl.sh"
        yield f"round {number} of {run_dir}: in {out}, where `{script}` goes on"
        yield from (f"note: {note}" for note in notes)
    else:
        number = export(run_dir, out, round_number=options.round_number, merge=options.merge)
        yield f"round {number} of {run_dir}: {'merged model' if options.merge else 'adapter'} in {out}"
    with RunStore.read(run_dir) as store:
        yield from (f"the run was {line}" for line in describe_forks(store.info))
    if options.repo_id is None:
        return
    files = hub.listed(out)
    if options.dry_run:
        yield f"would be uploaded to {options.repo_id} ({'private' if options.private else 'public'}):"
        yield from (f"  {size:>14,} bytes  {name}" for name, size in files)
        yield f"  {sum(size for _, size in files):>14,} bytes  in {len(files)} files; nothing was sent"
    else:
        url = hub.push(out, options.repo_id, private=options.private, message=f"The policy after round {number}")
        yield f"{len(files)} files are at {url}"


def _check(options: Options) -> None:
    """Before anything is written."""
    if options.repo_id is None:
        for flag, is_given in (("--private", options.private), ("--dry-run", options.dry_run)):
            if is_given:
                raise UserError(f"{flag} is given without --push-to-hub; name the repository, as owner/name")
        return
    if options.trainer is not None:
        raise UserError("--for and --push-to-hub are both given; upload the policy alone, without --for")
    hub.expect_repo(options.repo_id)
    if not options.dry_run:
        hub.expect_token()


def export(run_dir: Path, out: Path, *, round_number: int | None, merge: bool) -> int:
    """Write the policy after a finished round to a new folder, with a model card.

    Args:
        run_dir: of the run.
        out: must not exist, or be empty.
        round_number: counted from 1 as in `status`; None = the last finished one.
        merge: write a whole model (config, tokenizer, safetensors) rather than the adapter alone.

    Returns:
        The round that was exported.

    Raises:
        RunDirectoryError: no such round is finished.
        UserError: `out` is not empty.
    """
    config = recorded_config(run_dir)
    expect_new(out)
    with RunStore.read(run_dir) as store:
        index = chosen_round(store, run_dir, round_number)
        adapter = Adapter.from_files(index + 1, store.round(index).get_files("adapter"))
        record = collect_record(store)
    with new_folder(out) as folder:
        if merge:
            write_merged(locate(config.model.path, field="model.path"), adapter, folder, dtype=config.model.dtype)
        else:
            write_adapter(adapter, folder)
        _write_card(record, index, folder, "model" if merge else "adapter")
    return index + 1


def export_for(
    trainer: Trainer,
    run_dir: Path,
    out: Path,
    *,
    round_number: int | None,
    merge: bool,
    reference: Literal["run", "initial"],
) -> tuple[int, list[str]]:
    """Write a folder in which another trainer goes on with a round's policy, and with the run's judge as the reward.

    Args:
        trainer: which.
        run_dir: of the run.
        out: must not exist, or be empty.
        round_number: counted from 1; None = the last finished one.
        merge: whole models rather than adapters; verl always gets one.
        reference: the run's, as the next round would have it, or the initial policy.

    Returns:
        The round, and lines about what cannot come along.

    Raises:
        UserError: `out` is not empty, there is no such round, or the run has something that no trainer can take.
    """
    from online_dpo.commands.handover.grpo import write_grpo
    from online_dpo.commands.handover.starting_point import read_starting_point
    from online_dpo.commands.handover.verl import write_verl

    config = recorded_config(run_dir)
    expect_new(out)
    with RunStore.read(run_dir) as store:
        index = chosen_round(store, run_dir, round_number)
        start = read_starting_point(config, store, index, reference)
        record = collect_record(store)
    with new_folder(out) as folder:
        notes = write_verl(start, folder) if trainer == "verl" else write_grpo(start, folder, merge=merge)
        _write_card(record, index, folder, trainer)
    return index + 1, notes


def _write_card(record: RunRecord, index: int, folder: Path, form: str) -> None:
    config = record.config
    assert config is not None  # it was read before
    sources = {field: source for field, source in source_files(config).items() if field.endswith(".source")}
    licence = license_of(config.model.path)
    write_card(record, index, folder, form=form, sources=sources, base_license=licence)
