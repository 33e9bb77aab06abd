"""A run's page, put together."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

from online_dpo.reports.judge_tables import (
    COLUMNS,
    LATENCY_COLUMNS,
    judge_columns,
    judge_rows,
    latency_rows,
    reasons_of,
)
from online_dpo.reports.layout import percent
from online_dpo.reports.page.answers.cache import SampleCache
from online_dpo.reports.page.answers.collecting import collect_answers
from online_dpo.reports.page.headline import headline
from online_dpo.reports.page.rendering import render
from online_dpo.reports.page.run_charts import judge_charts, run_charts
from online_dpo.reports.page.run_record import RunRecord, collect_record, reports_of
from online_dpo.reports.people import ANNOTATOR_COLUMNS, annotator_rows, people_lines, read_people
from online_dpo.reports.results import PairsResult, RoundResult
from online_dpo.store.forking import describe_forks
from online_dpo.store.run_store import RunStore
from online_dpo.version import __version__


def run_page(store: RunStore, damage: str | None = None, cache: SampleCache | None = None, **values: Any) -> str:
    """The report of a run as it stands, as HTML.

    Args:
        store: of the run, from `store.salvage.read_what_is_left`, or the run's own.
        damage: what is wrong with its rounds.
        cache: of samples; None = the one beneath the run directory, which is then only read.
        values: further ones of `render`.
    """
    record = collect_record(store, damage)
    answers = collect_answers(store, record, cache or SampleCache(store.path))
    return render("report.html.jinja", data=answers, **page_values(record, answers), **values)


def page_values(record: RunRecord, answers: Mapping[str, Any]) -> dict[str, Any]:
    """What the template of a run is given."""
    used = judge_columns(record.summaries)
    return {
        "record": record,
        "progress": progress(record),
        "headline": headline(record),
        "charts": run_charts(record.results, record.initial),
        "judge_charts": judge_charts(record.results),
        "judge_header": [COLUMNS[i] for i in used],
        "judge_rows": [[row[i] for i in used] for summary in record.summaries for row in judge_rows(summary)],
        "latency_header": LATENCY_COLUMNS,
        "latency_rows": [row for summary in record.summaries for row in latency_rows(summary)],
        "reasons": [line for summary in record.summaries for line in reasons_of(summary)],
        "spending": spending(record),
        **people_values(record),
        "forks": describe_forks(record.info),
        "packages": record.info.get("packages", {}),
        "fingerprints": list(fingerprints(record)),
        "round_header": ROUND_COLUMNS,
        "round_rows": [round_row(record, result) for result in record.results],
        "answers": answers,
        "problems": _without_place(record, [*record.problems, *answers["problems"]]),
        "written": time.strftime("%Y-%m-%d %H:%M:%S %Z"),
        "version": __version__,
    }


def progress(record: RunRecord) -> str:
    """A sentence or two about how far the run is."""
    num_finished = len(record.finished)
    if record.is_complete:
        return f"Finished: {num_finished} rounds."
    if record.stopped is not None:
        return f"Stopped after round {num_finished} of {record.num_rounds}."
    of_all = "?" if record.num_rounds is None else record.num_rounds
    return f"{num_finished} of {of_all} rounds are finished." + ("" if record.now is None else f" {record.now}")


def _without_place(record: RunRecord, lines: Iterable[str]) -> list[str]:
    """Each line once, with the run directory's name in place of where it lies: pages are sent to others."""
    place = str(record.path)
    return list(dict.fromkeys(line.replace(f"{place}/", "").replace(place, record.name) for line in lines))


PEOPLE_COLUMNS = ("round", "judge", "annotator", "votes", "seconds", "first shown\nwins", "agrees with\nothers")


def people_values(record: RunRecord) -> dict[str, Any]:
    """Of the people who judge: how far they are, each one in all, and each one in every round."""
    people = read_people(record.path)
    rounds = [
        (
            str(result.policy_version),
            judge,
            annotator,
            str(figures["num_votes"]),
            f"{figures['median_seconds']:.1f}",
            percent(figures["first_shown_wins"]),
            percent(figures["agrees"]),
        )
        for result in record.results
        for judge, report in reports_of(result)
        for annotator, figures in (report.people or {}).get("annotators", {}).items()
    ]
    return {
        "people_lines": [] if people is None else list(people_lines(people, Path(record.name))),
        "annotator_header": ANNOTATOR_COLUMNS,
        "annotator_rows": list(annotator_rows([] if people is None else people.get("annotators", []))),
        "people_header": (
            "round",
            "judge",
            "annotator",
            "votes",
            "seconds",
            "first shown\nwins",
            "agrees with\nothers",
        ),
        "people_rows": rounds,
    }


def spending(record: RunRecord) -> dict[str, dict[str, float]]:
    """Judge -> what it counted in all finished rounds: calls, tokens, and what it counts itself."""
    totals: dict[str, dict[str, float]] = {}
    for result in record.results:
        for judge, report in reports_of(result):
            total = totals.setdefault(judge, {})
            for counted, number in report.counters.items():
                total[counted] = total.get(counted, 0) + number
    return totals


def fingerprints(record: RunRecord) -> Iterator[tuple[str, str]]:
    """What the run began with -> its digest, so that two runs can be compared."""
    names = {"model_fingerprint": "base model", "adapter_digest": "initial adapter", "reference_digest": "reference"}
    yield from ((name, str(record.info[key])) for key, name in names.items() if record.info.get(key))
    yield from ((field, str(digest)) for field, digest in record.info.get("sources", {}).items())


ROUND_COLUMNS = ("policy", "made at", "trained on", "steps", "against policies", "beta", "adapter, sha256")


def round_row(record: RunRecord, result: RoundResult) -> tuple[str, ...]:
    """One policy, by `ROUND_COLUMNS`."""
    beta = result.learning.beta
    return (
        str(result.policy_version),
        "" if result.time is None else time.strftime("%Y-%m-%d %H:%M", time.localtime(result.time)),
        _trained_on(result.pairs),
        str(result.learning.num_steps or ""),
        ", ".join(map(str, result.reference_versions)),
        "" if beta is None else f"{beta:.3g}",
        record.adapters.get(result.policy_version, "")[:16],
    )


def _trained_on(items: PairsResult) -> str:
    if items.num_pairs is not None:
        return f"{items.num_pairs} pairs"
    if items.num_demonstrations is not None:
        return f"{items.num_demonstrations} demonstrations"
    return f"{(items.num_desirable or 0) + (items.num_undesirable or 0)} labelled answers"
