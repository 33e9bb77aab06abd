"""Figures about samples against values by hand, and what `status` makes of a run directory."""

from __future__ import annotations

import io
import math
import random
from pathlib import Path
from typing import Any

import pytest
from loop_kit import BASE, Weights, by_text, token_logps, weights_of
from loop_runs import Kill, Run, make_materials, records, tree
from rich.console import Console

from online_dpo.commands.status import read_status, show_status
from online_dpo.loop.evaluation import committed_evaluation
from online_dpo.loop.stages import Event
from online_dpo.reports.metrics import StageClock
from online_dpo.statistics.samples import (
    describe_completions,
    describe_items,
    distinct,
    kl_per_completion,
    mean,
    paired_bootstrap,
    scores_by_prompt,
    self_bleu,
    win_rate,
)
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Completion, Labelled, Pair, Prompt, Row, Verdict


def completion(index: int, tokens: int, text: str = "", reason: Any = "stop", logp: float = -1.0) -> Completion:
    return Completion(
        prompt_id="p",
        sample_index=index,
        token_ids=tuple(range(index, index + tokens)),
        text=text,
        finish_reason=reason,
        sampler_logps=(logp,) * tokens,
        policy_version=0,
        seed=0,
    )


def test_kl_of_a_completion_by_hand() -> None:
    """Two tokens, d = ln 2 and -ln 2. Would catch a swapped sign, and exp of the sum instead of a sum of exps, which
    here gives 0."""
    low_variance, plain = kl_per_completion([math.log(0.5), math.log(0.25)], [math.log(0.25), math.log(0.5)])
    assert low_variance == pytest.approx((0.5 - 1 + math.log(2)) + (2 - 1 - math.log(2)), abs=1e-15)
    assert plain == pytest.approx(0.0, abs=1e-15)
    low_variance, plain = kl_per_completion([math.log(0.5)], [math.log(0.25)])
    assert (low_variance, plain) == (pytest.approx(math.log(2) - 0.5), pytest.approx(math.log(2)))
    assert kl_per_completion([], []) == (0, 0)
    # 1 - exp(-d) written without expm1 would lose all of a tiny difference.
    assert kl_per_completion([1e-9], [0.0])[0] == pytest.approx(5e-19, rel=1e-3, abs=0.0)
    with pytest.raises(ValueError, match="zip"):
        kl_per_completion([-1.0, -2.0], [-1.0])


def test_both_kl_estimates_agree_with_the_true_divergence() -> None:
    """Sampled from p over three tokens, against the sum over the vocabulary."""
    p, q = [0.6, 0.3, 0.1], [0.3, 0.3, 0.4]
    true = sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
    tokens = random.Random(0).choices(range(3), p, k=20_000)
    low_variance, plain = kl_per_completion([math.log(p[t]) for t in tokens], [math.log(q[t]) for t in tokens])
    assert low_variance / len(tokens) == pytest.approx(true, abs=0.01)
    assert plain / len(tokens) == pytest.approx(true, abs=0.02)


def test_distinct_by_hand_and_against_sets_of_tuples() -> None:
    assert distinct(["a b a b", "b c"], (1, 2)) == [3 / 6, 3 / 4]  # ab ba ab | bc; none spans two texts
    assert distinct(["a", ""], (2,)) == [None] and distinct([], (1,)) == [None]
    # With 2048 words the first one of eight counts for a multiple of 2 ** 64.
    assert distinct([f"w{i}{' x' * 7}" for i in range(2047)], (8,)) == [1.0]
    rng, orders = random.Random(0), (1, 2, 3, 8)
    texts = [" ".join(rng.choices(["a", "\ud800", "a\u00a0b", "\u00e9"], k=rng.randrange(30))) for _ in range(200)]
    for order, share in zip(orders, distinct(texts, orders), strict=True):
        grams = [tuple(w[i : i + order]) for w in map(str.split, texts) for i in range(len(w) - order + 1)]
        assert share == len(set(grams)) / len(grams)


def test_self_bleu_against_bleu_by_hand() -> None:
    """Would catch a text that is compared with itself too, which gives 100 whatever the others are."""
    same = ["the film was good and long"] * 3
    assert self_bleu(same) == pytest.approx(100.0)
    # Seven words of which six, four of six pairs, three of five triples and two of four quadruples are in another text.
    texts = ["a b c d e f g", "a b c d e x f", "p q r s t u v"]
    first = (6 / 7 * 4 / 6 * 3 / 5 * 2 / 4) ** 0.25
    # Nothing in common: sacrebleu's exponential smoothing gives orders without a match a half, a quarter, ... of one;
    # without a single common word the effective order is 0.
    assert self_bleu(texts) == pytest.approx(100.0 * (2 * first + 0.0) / 3)
    assert self_bleu(["a b"]) is None and self_bleu([]) is None and self_bleu(["", ""]) == 0.0


def test_self_bleu_takes_a_fixed_subset_of_positions() -> None:
    """Would catch a subset that differs from call to call or grows with the samples."""
    alike = [f"{i} {i} {i} {i}" for i in range(500)]
    assert self_bleu(alike) == 0.0
    marked = ["a b c d" if i % 4 else text for i, text in enumerate(alike)]
    found = self_bleu(marked)
    assert found == self_bleu(marked)
    assert found is not None and (found * 32 / 100) == pytest.approx(round(found * 32 / 100)) and 50 < found < 95


def test_descriptions_by_hand() -> None:
    """Would catch means over completions where tokens are meant, and the reverse."""
    found = describe_completions([completion(0, 3, "a b a", logp=-1.0), completion(1, 1, "a b", "length", logp=-5.0)])
    assert found == {
        "num_completions": 2,
        "length_mean": 2.0,
        "eos_rate": 0.5,
        "distinct_1": 2 / 5,
        "distinct_2": 2 / 3,
        "distinct_3": 1.0,
        "self_bleu": pytest.approx(100.0 * ((2 / 3 * 1 / 2 * 1 / 2) ** (1 / 3) + math.exp(1 - 3 / 2)) / 2),
        "duplicate_rate": 0.0,
        "sampler_logp_mean": -2.0,
    }
    repeated = [completion(i % 2, 1 + i % 2) for i in range(5)]  # two different ones
    assert describe_completions(repeated)["duplicate_rate"] == 3 / 5
    prompt = Prompt(prompt_id="p", token_ids=(1,), text="")
    halves = [(completion(0, 3), completion(1, 1), 0.5), (completion(0, 2), completion(1, 4), 1.5)]
    pairs = [Pair(prompt=prompt, chosen=c, rejected=r, margin=margin, probability=0.6) for c, r, margin in halves]
    assert describe_items(pairs) == {
        "num_pairs": 2,
        "margin_mean": 1.0,
        "chosen_length_mean": 2.5,
        "rejected_length_mean": 2.5,
    }
    assert mean([]) is None and describe_completions([])["length_mean"] is None


def test_scores_by_prompt_leave_abstentions_out() -> None:
    """Would catch an abstention that counts as zero."""
    verdicts = [
        Verdict(prompt_id="a", first=0, score=1.0),
        Verdict(prompt_id="a", first=1, score=2.0),
        Verdict(prompt_id="a", first=2, reason="timeout", abstention="failed"),
        Verdict(prompt_id="b", first=0, reason="unsure"),
        Verdict(prompt_id="c", first=0, second=1, probability=0.7),
    ]
    assert scores_by_prompt(verdicts) == {"a": 1.5}


def test_paired_bootstrap_against_the_large_sample_interval() -> None:
    """The scores differ far more between prompts than within one, so an unpaired interval would be 20 times wider."""
    rng = random.Random(1)
    before = {f"p{i}": rng.gauss(0.0, 10.0) for i in range(400)}
    after = {key: value + rng.gauss(0.3, 0.5) for key, value in before.items()}
    gains = [after[key] - before[key] for key in before]
    centre = sum(gains) / len(gains)
    deviation = math.sqrt(sum((gain - centre) ** 2 for gain in gains) / len(gains))
    found = paired_bootstrap(before, after, seed=3)
    assert found is not None
    gain, low, high = found
    half = 1.96 * deviation / math.sqrt(len(gains))
    assert gain == pytest.approx(centre, abs=1e-12)
    assert (low, high) == (pytest.approx(centre - half, abs=0.1 * half), pytest.approx(centre + half, abs=0.1 * half))
    assert paired_bootstrap(before, after, seed=3) == found != paired_bootstrap(before, after, seed=4)
    # The order in which prompts were scored has no part in it.
    assert paired_bootstrap(dict(reversed(before.items())), after, seed=3) == found


def test_win_rate_by_hand() -> None:
    """Would catch ties that count as wins or losses, and prompts that only one side scored."""
    before = {"a": 1.0, "b": 2.0, "c": 3.0, "d": 4.0, "only": 9.0}
    after = {"a": 1.5, "b": 2.0, "c": 9.0, "d": 3.0, "other": 0.0}
    found = win_rate(before, after, seed=0)
    assert found is not None and found[0] == (1 + 0.5 + 1 + 0) / 4 and 0.0 <= found[1] < found[0] < found[2] <= 1.0
    assert win_rate({"a": 1.0}, {"b": 1.0}, seed=0) is None
    many = {str(i): float(i % 10 < 7) for i in range(1000)}
    share, low, high = win_rate(dict.fromkeys(many, 0.5), many, seed=1) or (0.0, 0.0, 0.0)
    half = 1.96 * math.sqrt(0.7 * 0.3 / 1000)
    assert (share, low, high) == pytest.approx((0.7, 0.7 - half, 0.7 + half), abs=0.004)


def test_paired_bootstrap_takes_common_prompts_only() -> None:
    assert paired_bootstrap({"a": 1.0, "b": 9.0}, {"a": 3.0, "c": -9.0}, seed=0) == (2.0, 2.0, 2.0)
    assert paired_bootstrap({"a": 1.0}, {"b": 1.0}, seed=0) is None


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    run = Run.of(tmp_path_factory.mktemp("finished"), reference={"type": "every", "rounds": 1})
    run.go_on()
    return run


def test_an_evaluation_measures_the_updated_policy_on_its_own_samples(finished: Run) -> None:
    """KL of the committed samples, by another route. Would catch samples from before the update, and a KL against the
    reference as it is refreshed rather than as it was trained with (which would be 0)."""
    evaluated = {r["policy_version"]: r for r in records(finished.path) if r["kind"] == "evaluated"}
    prompts = {p.prompt_id: p for p in make_materials(finished.config).job.evaluation_sets["heldout"]}
    with RunStore.read(finished.path) as store:
        policies = [BASE, *(weights_of(Adapter.from_files(0, store.round(i).get_files("adapter"))) for i in (0, 1))]
        samples = store.round(1).get_records("evaluation/heldout/completions/shard-00000", Completion)
        initial = store.round(0).get_records("evaluation-initial/heldout/completions/shard-00000", Completion)
    rows = [Row.of(prompts[c.prompt_id], c) for c in samples]

    def kl(weights: Weights, other: Weights) -> float:
        pairs = [
            (p, q) for row in rows for p, q in zip(token_logps(row, weights), token_logps(row, other), strict=True)
        ]
        return sum(math.exp(q - p) - 1 + p - q for p, q in pairs) / len(rows)

    assert [c.sampler_logps for c in samples] == [token_logps(row, policies[2]) for row in rows]
    assert evaluated[2]["kl_reference"] == pytest.approx(kl(policies[2], policies[1]), rel=1e-9)
    assert evaluated[2]["kl_initial"] == pytest.approx(kl(policies[2], policies[0]), rel=1e-9)
    assert kl(policies[2], policies[1]) != pytest.approx(kl(policies[2], policies[0]), rel=0.01)
    gains = [by_text(after.text) - by_text(before.text) for before, after in zip(initial, samples, strict=True)]
    assert evaluated[2]["judges"]["reward"]["gain"][0] == pytest.approx(sum(gains) / len(gains))
    assert evaluated[0]["kl_initial"] == evaluated[0]["kl_reference"] == 0.0
    assert evaluated[0]["judges"]["reward"]["gain"] is None


@pytest.mark.parametrize("name", ["entropy", "distinct_2", "judges", "kl_initial", "scores"])
def test_a_judge_may_have_the_name_of_a_figure(name: str, finished: Run, tmp_path: Path) -> None:
    """Would catch a judge's mean that replaces what the alarm reads, and a table that takes a judge for a figure."""
    judge = {"type": "python", "target": "none:none"}
    run = Run.of(tmp_path, reference={"type": "every", "rounds": 1}, evaluation__judges={name: judge})
    run.go_on()
    for record, expected in zip(records(run.path), records(finished.path), strict=True):
        if record["kind"] != "evaluated":
            continue
        judges = record["judges"]
        assert {**record, "judges": {"reward": judges["reward"]}} == expected
        with RunStore.read(run.path) as store:
            scores = committed_evaluation(store, "heldout", record["policy_version"])["scores"]
        assert {judge: figures["mean"] for judge, figures in judges.items()} == {
            judge: mean(list(scores[judge].values())) for judge in ("reward", name)
        }
    console = Console(width=200, file=io.StringIO())
    show_status(read_status(run.path), console, as_json=False)
    shown = console.file.getvalue()  # type: ignore[attr-defined]
    assert f"{name} on heldout" in shown


def test_the_kl_to_an_ensemble_is_to_the_mean_of_all_its_members(tmp_path: Path) -> None:
    """By another route. Would catch a member that is left out, and the ensemble of the next round."""
    run = Run.of(tmp_path, reference={"type": "ensemble", "last": 2})
    run.go_on()
    [found] = [r for r in records(run.path) if r["kind"] == "evaluated" and r["policy_version"] == 2]
    prompts = {p.prompt_id: p for p in make_materials(run.config).job.evaluation_sets["heldout"]}
    with RunStore.read(run.path) as store:
        first, second = (weights_of(Adapter.from_files(0, store.round(i).get_files("adapter"))) for i in (0, 1))
        samples = store.round(1).get_records("evaluation/heldout/completions/shard-00000", Completion)
    rows = [Row.of(prompts[c.prompt_id], c) for c in samples]
    plain = {
        other: sum(sum(token_logps(row, second)) - sum(token_logps(row, other)) for row in rows) / len(rows)
        for other in (BASE, first)
    }
    assert found["kl_reference_plain"] == pytest.approx((plain[BASE] + plain[first]) / 2)
    assert found["kl_initial_plain"] == pytest.approx(plain[BASE]) != pytest.approx(plain[first])


def test_status_of_a_finished_run(finished: Run) -> None:
    before = tree(finished.path)
    status = read_status(finished.path)
    assert {key: status[key] for key in ("num_rounds", "num_finished", "current")} == {
        "num_rounds": 2,
        "num_finished": 2,
        "current": None,
    }
    assert [record["policy_version"] for record in status["rounds"]] == [1, 2]
    assert [record["set"] for record in status["initial"]] == ["heldout"]
    seconds = status["rounds"][1]["seconds"]
    assert set(seconds) == {"preparing", "sampling", "reference", "learning", "evaluating"}
    assert tree(finished.path) == before
    shown = show(status)
    assert f"{finished.path}: 2 of 2 rounds finished" in shown and "unfinished" not in shown
    assert f"{status['rounds'][1]['evaluation']['heldout']['kl_initial']:.3f}" in shown


UNTOUCHED = {"num_shards_sampled": 0, "num_shards_judged": 0, "has_pairs": False, "num_steps": 0}


@pytest.mark.parametrize(
    ("event", "current"),
    [
        (("stage", 0), {"round": 0, **UNTOUCHED}),
        (("shard_judged", 1), {"round": 1, **UNTOUCHED, "num_shards_sampled": 2, "num_shards_judged": 1}),
        (
            ("step", 1),
            {"round": 1, "num_shards_sampled": 2, "num_shards_judged": 2, "has_pairs": True, "num_steps": 1},
        ),
        (
            ("round_done", 1),
            {"round": 1, "num_shards_sampled": 2, "num_shards_judged": 2, "has_pairs": True, "num_steps": 2},
        ),
        (("round_committed", 1), None),
    ],
)
def test_status_of_a_run_that_was_killed(
    finished: Run, event: tuple[str, int], current: dict[str, Any] | None, tmp_path: Path
) -> None:
    """Would catch a round whose summary is written but not committed, steps of another round, evaluation shards that
    count as training shards."""
    events = [(e.kind, e.round_index) for e in finished.at(tmp_path / "whole").go_on().events]
    run = finished.at(tmp_path / "run")
    with pytest.raises(Kill):
        run.go_on(kill_at=events.index(event))  # the metrics have heard it then
    status = read_status(run.path)
    assert status["current"] == current
    num_finished = 2 if current is None else current["round"]
    assert status["num_finished"] == num_finished
    assert [record["policy_version"] for record in status["rounds"]] == [1, 2][:num_finished]
    assert f"{num_finished} of 2 rounds finished" in show(status)
    assert ("is unfinished" in show(status)) == (current is not None)


def show(status: dict[str, Any]) -> str:
    console = Console(file=io.StringIO(), width=200)
    show_status(status, console, as_json=False)
    return console.file.getvalue()  # type: ignore[attr-defined]


def test_seconds_belong_to_the_stage_that_was_announced_before() -> None:
    times = iter([0.0, 1.0, 3.0, 6.0, 10.0, 15.0, 21.0])
    clock = StageClock(lambda: next(times))
    for kind, stage in [("round_started", ""), ("stage", "sampling"), ("stage", "learning"), ("stage", "sampling")]:
        clock.hear(Event(kind=kind, round_index=0, data={"stage": stage} if stage else {}))
    clock.hear(Event(kind="step", round_index=0))  # announces nothing, so the clock is not even read
    clock.hear(Event(kind="round_done", round_index=0))
    assert clock.seconds == {"preparing": 2.0, "sampling": 3.0 + 5.0, "learning": 4.0}
    clock.hear(Event(kind="round_started", round_index=1))
    assert clock.seconds == {}


def test_labelled_answers_are_counted_by_their_label() -> None:
    prompt = Prompt(prompt_id="p", token_ids=(1,), text="")
    items = [Labelled(prompt=prompt, completion=completion(i, 1 + i), desirable=i < 1) for i in range(3)]
    assert describe_items(items) == {
        "num_desirable": 1,
        "num_undesirable": 2,
        "margin_mean": None,
        "chosen_length_mean": 1.0,
        "rejected_length_mean": 2.5,
    }
