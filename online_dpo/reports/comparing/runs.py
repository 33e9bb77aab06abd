"""The runs that are compared: their names on the page, and their newest answers to held-out prompts."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from online_dpo.errors import CorruptionError, UserError
from online_dpo.reports.page.run_record import RunRecord, collect_record
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.store.salvage import read_what_is_left
from online_dpo.store.shards import ShardCommits, evaluation_base
from online_dpo.text_files import shown
from online_dpo.types import Completion, Prompt, PromptContent

MOST_RUNS = 12
"""Colours, dashes and marks tell so many apart."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Evaluated:
    """A run's newest policy that was evaluated on a set. `key` stands for a prompt, the same in every run."""

    version: int  # of the policy; 0 = the initial one
    completions: Mapping[str, Completion]  # by key
    prompts: Mapping[str, Prompt]  # by key; empty where they are not in the run directory
    scores: Mapping[str, Mapping[str, float]]  # judge -> key -> score


@dataclass(frozen=True, slots=True, kw_only=True)
class ComparedRun:
    """One of the runs."""

    place: int  # among the runs, from 0: also its colour, dashes and mark
    label: str  # no other run's
    record: RunRecord
    evaluated: Mapping[str, Evaluated]  # by evaluation set
    problems: Sequence[str]  # what could not be read, sentences


def read_runs(paths: Sequence[Path]) -> list[ComparedRun]:
    """What is compared.

    Raises:
        UserError: there are too few or too many runs, or one is named twice.
        RunDirectoryError: one of the folders holds no run.
        CorruptionError: a run's settings are damaged.
    """
    _expect_different(paths)
    runs = []
    for place, (path, label) in enumerate(zip(paths, labels(paths), strict=True)):
        with ExitStack() as stack:
            store, damage = read_what_is_left(path)
            stack.enter_context(store)
            record = collect_record(store, damage)
            problems = list(record.problems)
            evaluated = {
                name: found
                for name, version in _newest(record).items()
                if (found := _read(store, record, name, version, problems)) is not None
            }
            runs.append(ComparedRun(place=place, label=label, record=record, evaluated=evaluated, problems=problems))
    return runs


def labels(paths: Sequence[Path]) -> list[str]:
    """The shortest ends of the paths that tell them apart, the folder's own name where no other has it."""
    parts = [path.resolve().parts for path in paths]
    found = []
    for own in parts:
        others = [other for other in parts if other != own]
        length = next(n for n in range(1, len(own) + 1) if all(other[-n:] != own[-n:] for other in others))
        found.append("/".join(own[-length:]).replace("//", "/"))
    return found


def _expect_different(paths: Sequence[Path]) -> None:
    if not 2 <= len(paths) <= MOST_RUNS:
        given = "1 run directory is" if len(paths) == 1 else f"{len(paths)} run directories are"
        raise UserError(f"{given} given; `online-dpo compare` takes 2 to {MOST_RUNS}")
    known: dict[Path, Path] = {}
    for path in paths:
        if (before := known.setdefault(path.resolve(), path)) is not path:
            same = "is given twice" if before == path else f"is the same folder as {shown(before)}"
            raise UserError(f"{shown(path)} {same}; give each run once")


def _newest(record: RunRecord) -> dict[str, int]:
    """Evaluation set -> version of the newest policy that was evaluated on it."""
    found = dict.fromkeys(record.initial, 0)
    for result in record.results:
        found |= dict.fromkeys(result.evaluation, result.policy_version)
    return found


def _read(store: RunStore, record: RunRecord, name: str, version: int, problems: list[str]) -> Evaluated | None:
    part, base = store.round(max(0, version - 1)), evaluation_base(name, is_initial=version == 0)
    try:
        commits = ShardCommits(part, base)
        shards = [int(commit.rpartition("-")[2]) for commit in part.names(f"{base}completions/shard-")]
        completions = {c.prompt_id: c for shard in shards for c in commits.completions(shard)}
        prompts = _prompts(store.round(0), name)
        scores = part.get_json(f"{base}summary").get("scores", {})
    except CorruptionError as error:
        problems.append(str(error))
        return None
    keys = _keys(name, completions, prompts, record)
    return Evaluated(
        version=version,
        completions={keys[prompt_id]: completion for prompt_id, completion in completions.items()},
        prompts={keys[prompt_id]: prompt for prompt_id, prompt in prompts.items() if prompt_id in keys},
        scores={
            judge: {keys[prompt_id]: score for prompt_id, score in given.items() if prompt_id in keys}
            for judge, given in scores.items()
        },
    )


def _prompts(part: RoundStore, name: str) -> dict[str, Prompt]:
    commit = f"{evaluation_base(name, is_initial=True)}prompts"
    return {p.prompt_id: p for p in part.get_records(commit, Prompt)} if part.has(commit) else {}


def _keys(name: str, ids: Iterable[str], prompts: Mapping[str, Prompt], record: RunRecord) -> dict[str, str]:
    """Prompt id -> what stands for it in every run: its content, since ids may be no more than row numbers.

    A run of an older version did not commit its prompts. There an id counts together with the file that it is from;
    without the file's digest no prompt is the same as any in another run.
    """
    source = record.info.get("sources", {}).get(f"evaluation.sets.{name}.source") or str(record.path.resolve())
    times: Counter[str] = Counter()
    found = {}
    for prompt_id in ids:
        prompt = prompts.get(prompt_id)
        key = _digest(["id", source, prompt_id]) if prompt is None else _digest(["content", prompt.content])
        times[key] += 1  # a set may hold the same prompt several times
        found[prompt_id] = f"{key}-{times[key]}"
    return found


def _digest(value: list[str | PromptContent]) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()[:24]
