"""`online-dpo rewind`: takes rounds off a run, so that they are played again."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

from online_dpo.errors import UserError
from online_dpo.store.run_store import RunStore


def rewind(run_dir: Path, *, round_number: int | None, delete: bool) -> Iterator[str]:
    """Set rounds aside, or repair `latest`.

    Args:
        run_dir: of the run.
        round_number: the first round that is to be played again, counted from 1 as in `status`; None = take no round
            off, and only write `latest` again.
        delete: delete all rounds that were ever set aside.

    Returns:
        Lines about what was done.

    Raises:
        UserError: the run does not have this round, or could not go on without it; nothing was changed.
    """
    if round_number is not None and round_number < 1:
        raise UserError(f"--round is {round_number}, and rounds are counted from 1; give the first one to play again")
    num_kept = None if round_number is None else round_number - 1
    folder = RunStore.rewind(run_dir, num_kept=num_kept, delete=delete)
    if round_number is None:
        yield f"{run_dir}: every finished round is whole, and `latest` names the last one"
    else:
        yield f"{run_dir}: round {round_number} is the next one to be played"
    if folder is not None:
        yield f"the rounds from there on lie in {folder}; `online-dpo rewind {run_dir} --delete` deletes them"
    if delete:
        yield "everything that was set aside is deleted"
    yield f"continue with: online-dpo resume {run_dir}"
