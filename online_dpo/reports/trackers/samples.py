"""Sample answers for trackers: the same held-out prompts after every round, and a few of the round's pairs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from online_dpo.config.judges.view import ViewSection
from online_dpo.pairing.answers import read_answer
from online_dpo.reports.trackers.tracker import Cell, SampleTable
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits, evaluation_base
from online_dpo.types import Completion, Pair, Prompt

NUM_ROWS = 8
MAX_CHARS = 2000
"""Of a cell: what is longer is cut, and says so."""


def sample_tables(
    store: RunStore, sets: Mapping[str, Sequence[Prompt]], version: int, view: ViewSection | None = None
) -> list[SampleTable]:
    """Of a policy that was evaluated, or made by a finished round.

    Args:
        store: of the run.
        sets: evaluation set -> its prompts.
        version: of the policy; 0 = the initial one.
        view: what of a completion is the answer.

    Raises:
        CorruptionError: a file is missing or damaged.
    """
    tables = [_answers(store, name, prompts, version, view) for name, prompts in sets.items()]
    return [table for table in (*tables, _pairs(store, version, view)) if table is not None]


def _answers(
    store: RunStore, name: str, prompts: Sequence[Prompt], version: int, view: ViewSection | None
) -> SampleTable | None:
    commits = ShardCommits(store.round(max(0, version - 1)), evaluation_base(name, is_initial=version == 0))
    if not commits.has_completions(0):
        return None  # the round was not evaluated
    completions = {completion.prompt_id: completion for completion in commits.completions(0)}
    judges = [
        folder.removeprefix("verdicts").removeprefix("-")
        for folder in dict.fromkeys(path.split("/")[-2] for path in commits.store.names(f"{commits.base}verdicts"))
    ]
    scores = {
        judge or "reward": {
            v.prompt_id: v.score for v in commits.verdicts(0, Asked(judge=judge) if judge else Asked()).verdicts
        }
        for judge in judges
    }
    rows = [
        (
            _prompt(prompt),
            _answer(completions[prompt.prompt_id], view),
            *(s.get(prompt.prompt_id) for s in scores.values()),
        )
        for prompt in prompts[:NUM_ROWS]
        if prompt.prompt_id in completions
    ]
    return SampleTable(name=f"samples/{name}", columns=("prompt", "answer", *scores), rows=tuple(rows))


def _pairs(store: RunStore, version: int, view: ViewSection | None) -> SampleTable | None:
    if version == 0 or not (found := store.round(version - 1)).has("pairs"):
        return None
    rows: list[tuple[Cell, ...]] = [
        (_prompt(pair.prompt), _answer(pair.chosen, view), _answer(pair.rejected, view), pair.margin)
        for pair in found.get_records("pairs", Pair, limit=NUM_ROWS)
    ]
    return SampleTable(name="pairs", columns=("prompt", "chosen", "rejected", "margin"), rows=tuple(rows))


def _prompt(prompt: Prompt) -> str:
    if prompt.messages is None:
        return _cut(prompt.text or "")
    return _cut("\n".join(f"{message['role']}: {message['content']}" for message in prompt.messages))


def _answer(completion: Completion, view: ViewSection | None) -> str:
    return _cut(read_answer(completion.text, view).text)


def _cut(text: str) -> str:
    left = len(text) - MAX_CHARS
    return text if left <= 0 else f"{text[:MAX_CHARS]} ... ({left} more characters)"
