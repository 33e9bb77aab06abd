"""Verdicts on a part of a shard, committed when a judge stops before it has seen all of it, and what was counted."""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence

from online_dpo.store.run_store import RoundStore, RunStore
from online_dpo.types import REWARD, Judged, Shard, Verdict

_COUNTERS = re.compile(
    r"(?P<base>.*/)?(?P<again>repeat-)?(?P<what>counters|parts)(-(?P<judge>.+))?/(?P<shard>shard-\d+)(-\d+)?"
)


def name_commit(base: str, what: str, shard: int, judge: str = REWARD, *, again: bool = False) -> str:
    """The name of what a shard has.

    Args:
        base: prefix of the names inside the round, such as `evaluation/heldout/`.
        what: `completions`, `verdicts`, `counters` or `parts`.
        shard: its index.
        judge: whose; the training judge's names are without it.
        again: of what the judge said when it was asked again.
    """
    if again:
        what = "repeats" if what == "verdicts" else f"repeat-{what}"
    return f"{base}{what}{'' if judge == REWARD else f'-{judge}'}/shard-{shard:05d}"


def put_part(store: RoundStore, name: str, part: Judged) -> None:
    """Commit what was said and counted before the judge stopped, beside the parts that are there.

    Args:
        store: of the round.
        name: of the shard's parts; each gets a number.
        part: as the judge's host returned it.
    """
    from online_dpo.store.tables import to_parquet  # 0.3 s, and `status` needs none

    files = {"verdicts.parquet": to_parquet(part.verdicts), "counters.json": json.dumps(dict(part.counters)).encode()}
    store.put_files(f"{name}-{len(store.names(f'{name}-')):03d}", files)


def commit_judged(store: RoundStore, shard: Shard, result: Judged, name: Callable[[str], str]) -> Judged | None:
    """Commit what a judge said about a shard, with the parts that are there.

    Args:
        store: of the round.
        shard: what it was asked about.
        result: as its host returned it.
        name: of the shard's `verdicts`, `counters` and `parts`.

    Returns:
        All that was said about the shard; None where the judge stopped before its end.
    """
    if result.stopped is not None:
        put_part(store, name("parts"), result)
        return None
    whole = join(shard, [*get_parts(store, name("parts")), result])
    # The verdicts' commit is what counts as done, so it comes last.
    if store.has(name("counters")):
        store.remove(name("counters"))  # of verdicts that a kill kept from being committed
    store.put_json(name("counters"), dict(whole.counters))
    store.put_records(name("verdicts"), whole.verdicts)
    remove_parts(store, name("parts"))
    return whole


def get_parts(store: RoundStore, name: str) -> list[Judged]:
    """All parts of a shard."""
    from online_dpo.store.tables import from_parquet  # as above

    found = []
    for part in store.names(f"{name}-"):
        files = store.get_files(part)
        verdicts = from_parquet(files["verdicts.parquet"], Verdict)
        found.append(Judged(verdicts=tuple(verdicts), counters=json.loads(files["counters.json"])))
    return found


def remove_parts(store: RoundStore, name: str) -> None:
    """Once the whole shard is committed."""
    for part in store.names(f"{name}-"):
        store.remove(part)


def join(shard: Shard, parts: Iterable[Judged]) -> Judged:
    """Parts about different prompts as one: verdicts in prompt order, counters summed."""
    parts = list(parts)
    order = {prompt.prompt_id: i for i, prompt in enumerate(shard.prompts)}
    verdicts = sorted((v for part in parts for v in part.verdicts), key=lambda v: order[v.prompt_id])  # stable
    return Judged(verdicts=tuple(verdicts), counters=sum_counters(part.counters for part in parts))


def sum_counters(counters: Iterable[Mapping[str, int | float]]) -> dict[str, int | float]:
    """Of parts or shards; a count of 0 stays."""
    total: Counter[str] = Counter()
    for each in counters:
        total.update(each)
    return dict(total)


def counted_so_far(store: RunStore, judges: Sequence[str]) -> dict[str, dict[str, int | float]]:
    """Judge -> sums of what it counted in all that is committed, evaluations included."""
    found: dict[str, list[Mapping[str, int | float]]] = {judge: [] for judge in judges}
    for index in range(len(store.finished_rounds()) + 1):
        round_store = store.round(index)
        for name in round_store.names():
            match = _COUNTERS.fullmatch(name)
            judge = (match["judge"] or REWARD) if match else None
            if match is None or judge not in found:
                continue
            ending = "" if match["judge"] is None else f"-{match['judge']}"
            verdicts = "repeats" if match["again"] else "verdicts"
            whole = round_store.has(f"{match['base'] or ''}{verdicts}{ending}/{match['shard']}")
            # A kill may leave the parts beside the whole that they went into, or the whole's counters without it.
            if whole == (match["what"] == "counters"):
                is_part = match["what"] == "parts"
                read = (
                    json.loads(round_store.get_files(name)["counters.json"]) if is_part else round_store.get_json(name)
                )
                found[judge].append(read)
    return {judge: sum_counters(counters) for judge, counters in found.items()}
