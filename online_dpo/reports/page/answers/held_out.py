"""The same held-out prompts under one policy after the other."""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from online_dpo.config.judges.view import ViewSection
from online_dpo.errors import CorruptionError
from online_dpo.reports.page.answers.cards import content_of, text_of
from online_dpo.store.round_store import RoundStore
from online_dpo.store.shards import ShardCommits, evaluation_base
from online_dpo.types import Completion, Prompt

MAX_PROMPTS = 24
"""Of an evaluation set that a page shows."""


def held_out(part: RoundStore, view: ViewSection | None) -> tuple[list[dict[str, Any]], list[str]]:
    """The answers to a sample of every evaluation set that a round committed, as JSON values.

    Returns:
        For each policy that was evaluated in this round and each set: `set`, `version`, `num_prompts` of the whole set
        and `rows`: `id`, `prompt` (None where it is not in the run directory), `f` finish reason, `s` judge -> score,
        and of the text what a card has of it (`t`, `x`, `n`, and with a view `m`, `th`, `ct`, `un`). And sentences
        about what could not be read.
    """
    found, problems = [], []
    for is_initial in (True, False):
        for name in _sets(part, is_initial=is_initial):
            try:
                found.append(_of_set(part, name, view, is_initial=is_initial))
            except CorruptionError as error:
                problems.append(str(error))
    return found, problems


def _of_set(part: RoundStore, name: str, view: ViewSection | None, *, is_initial: bool) -> dict[str, Any]:
    base = evaluation_base(name, is_initial=is_initial)
    commits = ShardCommits(part, base)
    shards = [int(commit.rpartition("-")[2]) for commit in part.names(f"{base}completions/shard-")]
    completions = {c.prompt_id: c for shard in shards for c in commits.completions(shard)}
    prompts = {p.prompt_id: p for p in part.get_records(f"{base}prompts", Prompt)} if part.has(f"{base}prompts") else {}
    scores = part.get_json(f"{base}summary").get("scores", {})
    return {
        "set": name,
        "version": 0 if is_initial else part.index + 1,
        "num_prompts": len(completions),
        "rows": [_row(completions[key], prompts.get(key), scores, view) for key in _chosen(name, completions)],
    }


def _row(
    completion: Completion, prompt: Prompt | None, scores: Mapping[str, Mapping[str, float]], view: ViewSection | None
) -> dict[str, Any]:
    given = {judge: found[completion.prompt_id] for judge, found in scores.items() if completion.prompt_id in found}
    return {"id": completion.prompt_id, "prompt": content_of(prompt), **answer_of(completion, given, view)}


def answer_of(completion: Completion, scores: Mapping[str, float], view: ViewSection | None) -> dict[str, Any]:
    """One answer with its scores by judge, by the keys that `held_out` names."""
    return {
        **text_of(completion, view),
        "f": completion.finish_reason,
        "s": {judge: float(f"{score:.5g}") for judge, score in scores.items()},
    }


def _chosen(name: str, prompt_ids: Iterable[str]) -> Sequence[str]:
    """The same prompts of a set in every round, in the order of the set."""
    known = list(prompt_ids)
    ranked = sorted(known, key=lambda key: hashlib.sha256(f"{name}/{key}".encode(errors="surrogatepass")).digest())
    chosen = set(ranked[:MAX_PROMPTS])
    return [key for key in known if key in chosen]


def _sets(part: RoundStore, *, is_initial: bool) -> list[str]:
    """Evaluation sets whose figures are committed."""
    start = evaluation_base("", is_initial=is_initial).rstrip("/") + "/"
    names = (commit.removeprefix(start) for commit in part.names(start))
    return [name.removesuffix("/summary") for name in names if name.endswith("/summary")]
