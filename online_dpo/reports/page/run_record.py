"""Everything about a run that a page shows besides its answers, read from the run directory alone.

A run that is under way, was damaged, or never sampled anything still gives a record: what could not be read is a
sentence in `problems`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from online_dpo.config.loading import load_config
from online_dpo.config.run import RunConfig
from online_dpo.errors import CorruptionError, UserError
from online_dpo.loop.positions import why_stopped
from online_dpo.loop.stages import INCIDENT
from online_dpo.reports.metrics import check_metrics
from online_dpo.reports.result_reading import read_initial, read_rounds
from online_dpo.reports.results import EvaluationResult, JudgeReport, RoundResult
from online_dpo.store.run_store import RunStore

Value = TypeVar("Value")


@dataclass(frozen=True, slots=True, kw_only=True)
class RunRecord:
    """A run as it stands."""

    path: Path  # the run directory
    config: RunConfig | None  # None = this program cannot read it
    config_yaml: str
    info: Mapping[str, Any]  # of run.json: package versions, fingerprints of the inputs
    finished: Sequence[int]  # indices of the finished rounds
    results: Sequence[RoundResult]  # of those whose figures are there
    summaries: Sequence[Mapping[str, Any]]  # the same, as lines of `metrics.jsonl`
    initial: Mapping[str, EvaluationResult]  # evaluation set -> the initial policy on it
    incidents: Sequence[str]  # what happened to actors
    adapters: Mapping[int, str]  # policy version -> sha256 of its weights
    now: str | None  # what is done of a round under way
    stopped: str | None  # why the drift budget or the alarm ended it
    problems: Sequence[str]  # what could not be read, sentences

    @property
    def name(self) -> str:
        return self.path.resolve().name

    @property
    def num_rounds(self) -> int | None:
        """Rounds that the config asks for."""
        return None if self.config is None else self.config.run.rounds

    @property
    def is_complete(self) -> bool:
        return self.num_rounds is not None and len(self.finished) >= self.num_rounds


def collect_record(store: RunStore, damage: str | None = None) -> RunRecord:
    """What a run directory tells.

    Args:
        store: from `store.salvage.read_what_is_left`, or the run's own.
        damage: what that found.
    """
    problems = [] if damage is None else [damage]
    config = _or_note(problems, lambda: _config_of(store.config_yaml))
    finished = store.finished_rounds()
    if damage is None:
        _or_note(problems, lambda: check_metrics(store))
    lines = _or_note(problems, store.metrics) or []
    summaries = [line for line in lines if line["kind"] == "round_done" and line["round"] in finished]
    results = [result for result in read_rounds(lines) if result.round in finished]
    stopped = None
    if config is not None and damage is None and len(finished) < config.run.rounds:
        stopped = _or_note(problems, lambda: why_stopped(config, store))
    problems += _missing(finished, [result.round for result in results])
    return RunRecord(
        path=store.path,
        config=config,
        config_yaml=store.config_yaml,
        info=store.info,
        finished=finished,
        results=results,
        summaries=summaries,
        initial=read_initial(lines),
        incidents=[f"round {line['round'] + 1}: {line['what']}" for line in lines if line["kind"] == INCIDENT],
        adapters=dict(_adapters(store, finished)),
        now=None if damage or (config is not None and len(finished) >= config.run.rounds) else _under_way(store),
        stopped=stopped,
        problems=list(dict.fromkeys(problems)),
    )


def reports_of(result: RoundResult) -> Iterator[tuple[str, JudgeReport]]:
    """Of a round: the training judge's and the annotator's, then those of the judges of each evaluation set."""
    yield from result.judging.judges.items()
    for name, evaluation in result.evaluation.items():
        yield from ((f"{judge} on {name}", found.report) for judge, found in evaluation.judges.items())


def _config_of(text: str) -> RunConfig:
    import yaml

    return load_config(yaml.safe_load(text))


def _or_note(problems: list[str], read: Callable[[], Value]) -> Value | None:
    """What could be read; otherwise None, and the reason among the problems."""
    try:
        return read()
    except UserError as error:
        problems.append(str(error))
        return None


def _missing(finished: Sequence[int], with_figures: Sequence[int]) -> Iterator[str]:
    gone = [index + 1 for index in range(max(finished, default=-1)) if index not in finished]
    if gone:
        yield f"round {', '.join(map(str, gone))} has no manifest, though later ones are there: nothing of it is shown"
    silent = [index + 1 for index in finished if index not in with_figures]
    if silent:
        yield f"the figures of round {', '.join(map(str, silent))} are missing from metrics.jsonl"


def _adapters(store: RunStore, finished: Sequence[int]) -> Iterator[tuple[int, str]]:
    for index in finished:
        try:
            digests = store.round(index).digests("adapter")
        except CorruptionError:
            continue  # what is wrong with it is told where its files are read
        yield from ((index + 1, digest) for key, digest in digests.items() if key.endswith(".safetensors"))


def _under_way(store: RunStore) -> str | None:
    """One sentence about the first unfinished round that has anything."""
    for part in store.unfinished_rounds():
        names = part.names()
        if names:
            sampled = sum(name.startswith("completions/") for name in names)
            judged = sum(name.startswith("verdicts/") for name in names)
            paired = "paired" if {"pairs", "labelled", "demonstrations"} & set(names) else "not paired yet"
            return f"Round {part.index + 1} is under way: shards sampled {sampled}, judged {judged}, {paired}."
    return None
