"""Rounds that train on a data set of preferences, over fakes: which items, in which order, after which kills."""

from __future__ import annotations

import json
import math
from collections import Counter
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import EVERY, instants
from kill_kit import WORK, event_kinds, go_on_and_compare
from loop_kit import FakeStages, token_logps, weights_of
from loop_runs import Kill, Run, comparable, records

from online_dpo.errors import ConfigError, DataError
from online_dpo.reports.data_set_lines import num_items, show_preferences
from online_dpo.reports.progress import describe_round
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Demonstration, Labelled, Pair, Row

NUM_ROWS, NUM_HELD_OUT = 7, 3
ALONE: dict[str, Any] = {"prompts": None, "judge": None, "sampling": {}, "evaluation__sets": {}}
KTO = {"type": "kto"}
SFT: dict[str, Any] = {**ALONE, "demonstrated": True, "objective": {"type": "sft"}, "reference": {"type": "fixed"}}
kind_named = {Pair: "pairs", Labelled: "labelled", Demonstration: "demonstrations"}


def offline(
    folder: Path, *, labelled: bool = False, demonstrated: bool = False, evaluate: bool = True, **overrides: Any
) -> Run:
    """Two rounds; `pairs__...` settles how the rows take part in them."""
    rows = [{"id": f"r{i}", "prompt": f"q{i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(NUM_ROWS)]
    rows.append({"id": "same", "prompt": "q", "chosen": " so", "rejected": " so"})
    held_out = rows[:NUM_HELD_OUT]
    if labelled:
        rows = [
            {"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"], "label": i % 3 > 0}
            for i, row in enumerate(rows)
        ]
    if demonstrated:
        rows = [{"id": row["id"], "prompt": row["prompt"], "completion": row["chosen"]} for row in rows]
        held_out = rows[:NUM_HELD_OUT]
    for name, some in (("pairs", rows), ("held-out", held_out)):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in some))
    kind = "demonstrations" if demonstrated else "labelled" if labelled else "pairs"
    pairs = {"source": str(folder / "pairs.jsonl"), "format": kind}
    fields = {key: overrides.pop(key) for key in list(overrides) if key.startswith("pairs__")}
    pairs |= {key.removeprefix("pairs__"): value for key, value in fields.items()}
    overrides = {**overrides, "pairs": pairs}
    if evaluate:
        people = {"source": str(folder / "held-out.jsonl"), "count": NUM_HELD_OUT}
        people |= {"format": kind} if demonstrated else {}
        overrides["evaluation__pairs"] = {"people": people}
    return Run.of(folder, **overrides)


def items(path: Path, index: int, kind: Any = Pair) -> list[Any]:
    with RunStore.read(path) as store:
        return store.round(index).get_records(kind_named[kind], kind)


def names(found: list[Any]) -> list[str]:
    return [item.prompt.prompt_id for item in found]


MODES = {
    "alone": {**ALONE, "pairs__per_round": 4},
    "alone, an epoch a round": ALONE,
    "alone, with samples to evaluate": {
        "prompts": None,
        "judge": None,
        "sampling": {"max_tokens": 5},
        "evaluation__judges": {"gold": {"type": "python", "target": "none:none"}},
        "pairs__per_round": 4,
    },
    "warm start": {"pairs__warm_start_rounds": 1, "pairs__per_round": 3},
    "warm start, overlapping": {"pairs__warm_start_rounds": 1, "pairs__per_round": 3, "overlap": 1, "run__rounds": 3},
    "mixed": {"pairs__fraction": 0.34, "prompts__per_round": 3, "evaluation__sets": {}},
    "warm start, then mixed": {
        "pairs__warm_start_rounds": 1,
        "pairs__per_round": 3,
        "pairs__fraction": 0.5,
        "evaluation__sets": {},
    },
    "sft": {**SFT, "pairs__per_round": 4},
    "kto on pairs": {**ALONE, "pairs__per_round": 4, "objective": KTO},
    "kto on labelled answers, mixed": {
        "labelled": True,
        "pairs__fraction": 0.3,
        "prompts__per_round": 2,
        "objective": KTO,
        "evaluation__sets": {},
    },
}


@EVERY
@pytest.mark.parametrize("mode", list(MODES))
def test_a_kill_at_any_event_and_another_in_the_continuation(mode: str, every: bool, tmp_path: Path) -> None:
    """Would catch a share that is drawn twice or not at all after a kill, a cursor that is lost, and held-out pairs
    that are scored again or under a policy that a resumed learner happens to hold."""
    run = offline(tmp_path, **MODES[mode])
    whole = run.go_on()
    work, expected = whole.tape.calls(*WORK), comparable(run.path)
    num_answers = NUM_HELD_OUT * (1 if run.config.objective.type == "sft" else 2)
    assert whole.tape.count(f"  score {num_answers} policy") == 1 + run.config.run.rounds
    for number in instants(event_kinds(whole.events), every=every):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with suppress(Kill):  # near its end the continuation has fewer events
            killed.go_on(kill_at=5 * number % 13)
        go_on_and_compare(killed, work, expected, f"killed before event {number}, {whole.events[number].kind}")


def test_a_run_on_pairs_alone_samples_and_judges_nothing(tmp_path: Path) -> None:
    """And each round goes on where the last one stopped: no row twice in an epoch, every row once."""
    run = offline(tmp_path, **ALONE, pairs__per_round=3, run__rounds=3)
    tape = run.go_on().tape
    assert not tape.calls("push", "probe", "sample", "judge", "rescore")
    rounds = [items(run.path, index) for index in range(3)]
    drawn = [name for found in rounds for name in names(found)]
    rows = {f"pairs/r{i}" for i in range(NUM_ROWS)}
    assert [len(found) for found in rounds] == [3, 3, 3] and set(drawn[:NUM_ROWS]) == rows
    assert drawn[6] not in drawn[:6] and len(set(names(rounds[2]))) == 3
    done = [record for record in records(run.path) if record["kind"] == "round_done"]
    counts = [(r["num_pairs"], r["num_offline_kept"], "num_prompts" in r, "outcomes" in r) for r in done]
    assert counts == [(3, 3, False, False)] * 3
    assert sum(r["num_offline_rows"] for r in done) == 9 + sum(r["num_offline_equal"] for r in done) >= 10
    for pair in rounds[0]:
        row = Row.of(pair.prompt, pair.chosen)
        assert pair.chosen_ref_logps == pytest.approx(sum(token_logps(row, (0.0,) * 4)))
        assert (pair.margin, pair.chosen.policy_version, pair.chosen.sampler_logps) == (None, None, None)


def test_a_warm_start_leaves_prompts_for_the_online_rounds(tmp_path: Path) -> None:
    """Would catch prompts that the offline rounds use up, and a version of samples that forgets the warm start."""
    run = offline(tmp_path, pairs__warm_start_rounds=2, pairs__per_round=2, run__rounds=3)
    run.go_on()
    online = Run.of(tmp_path, "online", run__rounds=1)
    online.go_on()
    assert [all(name.startswith("pairs/") for name in names(items(run.path, index))) for index in range(3)] == [
        True,
        True,
        False,
    ]
    with RunStore.read(run.path) as store, RunStore.read(online.path) as alone:
        assert store.round(2).get_files("prompts") == alone.round(0).get_files("prompts")
    assert {pair.chosen.policy_version for pair in items(run.path, 2)} == {2}


@pytest.mark.parametrize(("fraction", "num_written"), [(0.2, 1), (0.5, 4), (0.6, 6)])
def test_a_fraction_of_what_a_round_trains_on(fraction: float, num_written: int, tmp_path: Path) -> None:
    """4 pairs of the round's own: the written ones are `fraction` of all, rounded, and come last."""
    run = offline(tmp_path, pairs__fraction=fraction)
    run.go_on()
    for index in (0, 1):
        sampled = [not name.startswith("pairs/") for name in names(items(run.path, index))]
        assert sampled == [True] * 4 + [False] * num_written
        assert len(set(names(items(run.path, index)))) == 4 + num_written


def test_only_samples_take_their_reference_from_the_sampler(tmp_path: Path) -> None:
    """`reference.logps: sampler` beside rows that nothing sampled: would catch log-probs of 0, or of another policy."""
    sampler = {"type": "every", "rounds": 1, "logps": "sampler"}
    run = offline(tmp_path, pairs__fraction=0.5, reference=sampler)
    run.go_on()
    done = [record for record in records(run.path) if record["kind"] == "round_done"]
    assert [(r["num_reference_sampler"], r["num_reference_recomputed"]) for r in done] == [(4, 4)] * 2
    with RunStore.read(run.path) as store:
        reference = weights_of(Adapter.from_files(1, store.round(0).get_files("adapter")))
    *sampled, written = items(run.path, 1)[3:5]
    assert [pair.chosen.is_sampled for pair in (*sampled, written)] == [True, False]
    expected = sum(token_logps(Row.of(written.prompt, written.chosen), reference))
    assert written.chosen_ref_logps == pytest.approx(expected) != 0.0


def test_more_or_fewer_rows_than_a_round_can_take_is_told_before_anything_starts(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"^pairs\.fraction is 0\.1, which is less than half a row of a round: raise"):
        offline(tmp_path, pairs__fraction=0.1).go_on()
    message = r"^pairs\.fraction is 0\.8, which takes 16 rows, but .* has 7 usable of 8 rows \(dropped: equal 1;"
    with pytest.raises(DataError, match=message):
        offline(tmp_path, pairs__fraction=0.8).go_on()
    with pytest.raises(
        DataError, match=r"^pairs\.fraction is 0\.5, which takes 12 rows, but"
    ):  # all pairs of 3 samples of 4 prompts
        offline(tmp_path, pairs__fraction=0.5, pairing={"strategy": "all_pairs"}).go_on()


def test_a_source_that_changes_inside_a_round_is_refused(tmp_path: Path) -> None:
    """As a data set of the hub may; would catch counts of rows that were never trained on."""
    run = offline(tmp_path, **ALONE, pairs__per_round=4)
    number = next(i for i, event in enumerate(run.go_on().events) if event.data.get("stage") == "reference")
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(kill_at=number)
    rows = (tmp_path / "pairs.jsonl").read_text().splitlines()
    (tmp_path / "pairs.jsonl").write_text("\n".join([rows[-1]] * 3 + rows[3:]) + "\n")
    with pytest.raises(DataError, match="gives other rows than when round 1 began"):
        killed.go_on()


def test_labelled_answers_are_mismatched_over_the_round(tmp_path: Path) -> None:
    """Would catch a KL estimate from the answer itself, and labels that are lost on the way."""
    run = offline(tmp_path, **ALONE, labelled=True, objective=KTO, pairs__per_round=5, run__rounds=1)
    run.go_on()
    found = items(run.path, 0, Labelled)
    assert Counter(item.desirable for item in found) == Counter(
        int(name.removeprefix("pairs/r").replace("pairs/same", "7")) % 3 > 0 for name in names(found)
    )
    assert all(item.kl_completion_ids not in ((), item.completion.token_ids) for item in found)
    [done] = [record for record in records(run.path) if record["kind"] == "round_done"]
    assert (num_items(done), done["num_desirable"]) == (5, sum(item.desirable for item in found))


def test_held_out_preferences(tmp_path: Path) -> None:
    """The base's raw accuracy, then what the policy gained over it, against a count by hand."""
    run = offline(tmp_path, **ALONE, pairs__per_round=4, run__rounds=1)
    stages = FakeStages(run.config)
    run.go_on(stages)
    first, last = [record for record in records(run.path) if record["kind"] == "evaluated_pairs"]
    source = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]

    def logps(row: dict[str, Any], side: str, weights: Any) -> tuple[float, int]:
        encode = [[3 + ord(letter) % 37 for letter in text] for text in (row["prompt"], row[side])]
        found = token_logps(Row(prompt_ids=tuple(encode[0]), completion_ids=tuple(encode[1])), weights)
        return sum(found), len(found)

    gaps, right = [], {"before": [], "after": [], "per token": []}
    for row in source:
        base = [logps(row, side, (0.0,) * 4) for side in ("chosen", "rejected")]
        now = [logps(row, side, stages.learner.weights) for side in ("chosen", "rejected")]
        gaps.append(now[0][0] - base[0][0] - now[1][0] + base[1][0])
        right["before"].append(base[0][0] > base[1][0])
        right["after"].append(now[0][0] > now[1][0])
        right["per token"].append(base[0][0] / base[0][1] > base[1][0] / base[1][1])
    share = {name: sum(flags) / NUM_HELD_OUT for name, flags in right.items()}
    assert first["policy_version"] == 0 and "reward_accuracy" not in first
    assert (first["accuracy"], first["accuracy_per_token"]) == (share["before"], share["per token"])
    assert first["shorter_accuracy"] == 0.0  # " yes" is longer than " no"
    assert last["accuracy"] == share["after"] and last["accuracy_gain"] == share["after"] - share["before"]
    assert last["reward_accuracy"] == sum(gap > 0 for gap in gaps) / NUM_HELD_OUT
    assert last["log_ratio_margin"] == pytest.approx(sum(gaps) / NUM_HELD_OUT)
    assert last["log_ratio_margin_low"] <= last["log_ratio_margin"] <= last["log_ratio_margin_high"]
    assert (last["num_pairs"], last["num_equal"], last["num_truncated_answers"]) == (NUM_HELD_OUT, 0, 0)
    [done] = [record for record in records(run.path) if record["kind"] == "round_done"]
    assert done["evaluation_pairs"]["people"]["log_ratio_margin"] == last["log_ratio_margin"]


def test_an_sft_run_and_its_held_out_loss(tmp_path: Path) -> None:
    """Counts, loss and perplexity by hand, and their lines for people; no reference is scored."""
    run = offline(tmp_path, **SFT, pairs__per_round=4, run__rounds=1)
    stages = FakeStages(run.config)
    run.go_on(stages)
    assert stages.learner.references == [(0,)] or not any(len(found) > 1 for found in stages.learner.references)
    found = items(run.path, 0, Demonstration)
    [done] = [record for record in records(run.path) if record["kind"] == "round_done"]
    assert (len(found), num_items(done), done["num_demonstrations"], done["num_offline_kept"]) == (4, 4, 4, 4)
    assert describe_round(done).startswith("4 demonstrations, 4 rows of the data set, loss ")
    first, last = [record for record in records(run.path) if record["kind"] == "evaluated_pairs"]
    source = [json.loads(line) for line in (tmp_path / "held-out.jsonl").read_text().splitlines()]
    losses = []
    for weights in ((0.0,) * 4, stages.learner.weights):
        encoded = [[tuple(3 + ord(c) % 37 for c in row[side]) for side in ("prompt", "completion")] for row in source]
        logps = [logp for p, c in encoded for logp in token_logps(Row(prompt_ids=p, completion_ids=c), weights)]
        losses.append(-sum(logps) / len(logps))
    assert (first["loss"], last["loss"]) == (pytest.approx(losses[0]), pytest.approx(losses[1]))
    assert last["perplexity"] == pytest.approx(math.exp(losses[1])) and "loss_change" not in first
    assert last["loss_change"] == pytest.approx(losses[1] - losses[0]) != 0.0
    assert last["loss_change_low"] <= last["loss_change"] <= last["loss_change_high"]
    assert "trained_logps" not in last and last["num_demonstrations"] == NUM_HELD_OUT
    assert show_preferences(last).endswith(f"perplexity {last['perplexity']:.2f} (3 demonstrations)")


def test_the_policy_that_sft_made_is_the_reference_of_the_run_that_continues_it(tmp_path: Path) -> None:
    run = offline(tmp_path, **SFT, pairs__per_round=4, run__rounds=1)
    run.go_on()
    with RunStore.read(run.path) as store:
        made = Adapter.from_files(0, store.round(0).get_files("adapter"))
    online = Run.of(tmp_path, "online", run__rounds=1)
    online.go_on(FakeStages(online.config, initial=made))
    pair = items(online.path, 0)[0]
    expected = sum(token_logps(Row.of(pair.prompt, pair.chosen), weights_of(made)))
    assert weights_of(made) != (0.0,) * 4 and pair.chosen_ref_logps == pytest.approx(expected)
