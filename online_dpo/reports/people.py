"""What is told of the people who judge: how far they are while a run waits, and how each of them works.

Names stay with the administrators: everything here knows pseudonyms alone.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from rich.table import Table

from online_dpo.annotation.records import AnnotatorFigures
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.annotation.tables.database import AnnotationStoreError
from online_dpo.reports.layout import percent, titled


def read_people(run_dir: Path) -> dict[str, Any] | None:
    """How far people are with all that a run has asked them so far, as JSON values; None where nobody is asked.

    Returns:
        `num_questions`, `num_settled`, `num_votes` (that count), `num_missing_votes`, `num_at_work` (questions that
        somebody looks at), `num_people`, `num_stuck` (questions for which people are missing), `paused`, and
        `annotators`: a list of pseudonym, status, votes, speed, position bias and what the hidden checks gave. Where
        the store cannot be read, `problem` alone.
    """
    if not (run_dir / FILE).exists():
        return None
    try:
        with AnnotationStore.open(run_dir / FILE) as store:
            progress, people = store.progress(time.time()), store.annotators()
    except AnnotationStoreError as error:
        return {"problem": str(error)}
    return {
        "num_questions": progress.num_questions,
        "num_settled": progress.num_settled,
        "num_votes": progress.num_votes,
        "num_missing_votes": progress.num_missing,
        "num_at_work": progress.num_leased,
        "num_people": progress.num_people,
        "num_stuck": len(progress.stuck),
        "paused": progress.paused,
        "annotators": [_annotator(found) for found in people if found.annotator.role == "annotator"],
    }


def _annotator(found: AnnotatorFigures) -> dict[str, Any]:
    return {
        "annotator": found.annotator.annotator,
        "status": found.annotator.status,
        "reason": found.annotator.reason,
        "num_votes": found.num_votes,
        "num_counted": found.num_counted,
        "num_skipped": found.num_skipped,
        "median_seconds": found.median_seconds,
        "first_shown_wins": _share(found.num_shown_first, found.num_sided),
        "accuracy": _share(found.num_gold_right, found.num_gold),
        "num_gold": found.num_gold,
        "consistency": _share(found.num_repeats_same, found.num_repeats),
        "num_repeats": found.num_repeats,
    }


def people_lines(people: Mapping[str, Any], run_dir: Path) -> Iterator[str]:
    """Sentences for `status`."""
    if "problem" in people:
        yield f"people: {people['problem']}"
        return
    yield (
        f"people: {people['num_settled']} of {people['num_questions']} questions are settled, "
        f"{people['num_missing_votes']} votes are missing; {people['num_people']} people, of whom "
        f"{people['num_at_work']} look at a question now" + ("; the annotation is paused" if people["paused"] else "")
    )
    if people["num_stuck"]:
        yield (
            f"warning: {people['num_stuck']} questions want votes of more people than there are: invite some, with "
            f"`online-dpo annotate {run_dir}`"
        )
    for found in people["annotators"]:
        if found["status"] == "excluded":
            yield f"{found['annotator']} is excluded: {found['reason']}"


ANNOTATOR_COLUMNS = (
    "annotator",
    "status",
    "votes",
    "counted",
    "seconds",
    "first shown\nwins",
    "gold\nright",
    "repeats\nsame",
)


def annotators_table(annotators: Sequence[Mapping[str, Any]]) -> Table | None:
    """A row for each person who has voted; None without any."""
    rows = list(annotator_rows(annotators))
    if not rows:
        return None
    table = titled("people")
    for name in ANNOTATOR_COLUMNS:
        table.add_column(name, justify="left" if name in ("annotator", "status") else "right", no_wrap=True)
    for row in rows:
        table.add_row(*row)
    return table


def annotator_rows(annotators: Sequence[Mapping[str, Any]]) -> Iterator[tuple[str, ...]]:
    """A row of `ANNOTATOR_COLUMNS` for each person who has voted, of all rounds together."""
    for found in annotators:
        if found["num_votes"]:
            seconds = found["median_seconds"]
            yield (
                found["annotator"],
                found["status"],
                str(found["num_votes"]),
                str(found["num_counted"]),
                "" if seconds is None else f"{seconds:.1f}",
                percent(found["first_shown_wins"]),
                percent(found["accuracy"]),
                percent(found["consistency"]),
            )


def _share(number: int, total: int) -> float | None:
    return number / total if total else None
