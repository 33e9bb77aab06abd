"""Rounds that train on items of earlier rounds again, over fakes: which come back, whence, and after which kills."""

from __future__ import annotations

from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import EVERY, instants
from kill_kit import WORK, event_kinds, go_on_and_compare
from loop_kit import token_logps, weights_of
from loop_runs import Kill, Run, comparable, records

from online_dpo.errors import ConfigError
from online_dpo.learner.items import LABELLED, PAIRS, ItemKind, kind_of
from online_dpo.reports.progress import describe_round
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Row

KINDS: dict[str, ItemKind[Any]] = {"pairs": PAIRS, "labelled": LABELLED}
REPLAYING = {"run__rounds": 4, "evaluation__sets": {}, "replay": {"rounds": 2, "fraction": 0.34}}


def tables(run: Run) -> tuple[list[list[Any]], list[dict[str, Any]]]:
    """Of every round: what it trained on, and the commit about what came back."""
    with RunStore.read(run.path) as store:
        rounds = [store.round(index) for index in store.finished_rounds()]
        name = next(name for name in KINDS if rounds[0].has(name))
        return [r.get_records(name, KINDS[name].record) for r in rounds], [r.get_json("replay") for r in rounds]


def told(item: Any) -> tuple[Any, ...]:
    """What stays of an item in another round: prompt, answers with their sampler's log-probs, and the judgement."""
    parts = (item.prompt, *kind_of(item).answers(item), item.weight)
    return (*parts, item.margin, item.probability) if hasattr(item, "margin") else (*parts, item.desirable)


@pytest.mark.parametrize("objective", ["sigmoid", "kto"])
def test_items_of_the_last_rounds_come_back_once_each_with_log_probs_of_the_reference_of_now(
    objective: str, tmp_path: Path
) -> None:
    """Would catch an item that comes back because it came back before, a stale reference, a sample whose policy's
    version or log-probs are lost, and a share that is not the one that was asked for."""
    run = Run.of(tmp_path, objective={"type": objective}, **REPLAYING)
    run.go_on()
    found, commits = tables(run)
    summaries = [line for line in records(run.path) if line["kind"] == "round_done"]
    for index, (items, commit, summary) in enumerate(zip(found, commits, summaries, strict=True)):
        num_own, places = commit["num_own"], [tuple(place) for place in commit["items"]]
        own, back = items[:num_own], items[num_own:]
        wanted = int(0.34 / 0.66 * num_own + 0.5)
        pool = sum(commits[earlier]["num_own"] for earlier in range(max(0, index - 2), index))
        assert len(back) == len(places) == len(set(places)) == min(wanted, pool)
        assert places == sorted(places) and all(index - 2 <= earlier < index for earlier, _ in places)
        assert all(place < commits[earlier]["num_own"] for earlier, place in places)
        assert [told(item) for item in back] == [told(found[earlier][place]) for earlier, place in places]
        answers = [answer for item in items for answer in kind_of(item).answers(item)]
        assert {a.policy_version for item in own for a in kind_of(item).answers(item)} == {index}
        share = sum(answer.policy_version == index for answer in answers) / len(answers)
        assert summary["on_policy_share"] == pytest.approx(share)
        assert (summary["num_replayed"], summary["num_replay_missing"]) == (len(back), wanted - len(back))
        assert ("of earlier rounds" in describe_round(summary)) and (" too few)" in describe_round(summary)) == (
            wanted > len(back)
        )
        with RunStore.read(run.path) as store:
            policy = Adapter.from_files(index, store.round(index - 1).get_files("adapter")) if index else None
        for item in back:
            rows = kind_of(item).trained_rows(item)
            logps = [sum(token_logps(row, weights_of(policy))) for row in rows]
            kept = [item.ref_logps] if objective == "kto" else [item.chosen_ref_logps, item.rejected_ref_logps]
            assert kept == pytest.approx(logps)
            if objective == "kto" and item.kl_completion_ids:
                mismatched = Row(prompt_ids=item.prompt.token_ids, completion_ids=item.kl_completion_ids)
                assert item.kl_ref_logps == pytest.approx(sum(token_logps(mismatched, weights_of(policy))))
    assert summaries[0]["num_replayed"] == 0 < summaries[0]["num_replay_missing"]
    assert {earlier for earlier, _ in commits[-1]["items"]} == {1, 2} or len(commits[-1]["items"]) < 2


@EVERY
@pytest.mark.parametrize("objective", [pytest.param("sigmoid", marks=pytest.mark.exhaustive), "kto"])
def test_a_kill_at_any_event_and_another_in_the_continuation(objective: str, every: bool, tmp_path: Path) -> None:
    rows = [f'{{"id": "r{i}", "prompt": "q{i}", "chosen": " yes {i}", "rejected": " no {i}"}}\n' for i in range(7)]
    (tmp_path / "pairs.jsonl").write_text("".join(rows))
    mixed = {**REPLAYING, "run__rounds": 2, "pairs": {"source": str(tmp_path / "pairs.jsonl"), "fraction": 0.25}}
    run = Run.of(tmp_path, objective={"type": objective}, **mixed)
    whole = run.go_on()
    work, expected = whole.tape.calls(*WORK), comparable(run.path)
    for number in instants(event_kinds(whole.events), every=every):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with suppress(Kill):
            killed.go_on(kill_at=5 * number % 13)
        go_on_and_compare(killed, work, expected, f"killed before event {number}, {whole.events[number].kind}")
    for items, commit in zip(*tables(run), strict=True):  # own, of earlier rounds, and the data set's, in this order
        sides = [kind_of(item).answers(item)[0].policy_version is None for item in items]
        num_sampled = commit["num_own"] + len(commit["items"])
        assert sides == sorted(sides) and Counter(sides)[False] == num_sampled
        if not commit["num_missing"]:
            assert len(commit["items"]) == pytest.approx(0.34 * len(items), abs=1.0)
            assert Counter(sides)[True] == pytest.approx(0.25 * len(items), abs=1.0 + (objective == "kto"))


def test_replay_is_refused_where_nothing_can_come_back(tmp_path: Path) -> None:
    pairs = {"source": "pairs.jsonl"}
    replay = {"fraction": 0.5}
    with pytest.raises(ConfigError, match="every round trains on pairs alone"):
        Run.of(tmp_path, prompts=None, judge=None, sampling={}, evaluation__sets={}, pairs=pairs, replay=replay)
    with pytest.raises(ConfigError, match=r"replay.fraction is 0.5 and pairs.fraction is 0.5, which leaves nothing"):
        Run.of(tmp_path, pairs={**pairs, "fraction": 0.5}, replay=replay)
    with pytest.raises(ConfigError, match=r"replay.fraction"):
        Run.of(tmp_path, replay={"rounds": 2})


def test_nothing_of_it_is_in_a_run_without_it(tmp_path: Path) -> None:
    run = Run.of(tmp_path, evaluation__sets={})
    run.go_on()
    with RunStore.read(run.path) as store:
        assert not store.round(0).has("replay")
    assert "num_replayed" not in records(run.path)[-1] and records(run.path)[-1]["on_policy_share"] == 1.0
