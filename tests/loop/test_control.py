"""The adaptive beta, the drift budget and the collapse alarm: by hand, and in runs over fakes that are killed."""

from __future__ import annotations

from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from control_kit import config, measured, value_of, without_warnings
from loop_kit import FakeGenerator, FakeStages
from loop_runs import Kill, Run, comparable, records

from online_dpo.config.control import WATCHED
from online_dpo.config.loading import load_config
from online_dpo.config.resuming import check_resumable
from online_dpo.errors import ConfigError, WeightMismatchError
from online_dpo.loop.calls import Calls
from online_dpo.loop.control import Control, advance, findings, measure, stop_reason
from online_dpo.loop.positions import why_stopped
from online_dpo.loop.references import Reference, score_items
from online_dpo.store.run_store import RunStore
from online_dpo.types import Completion, Pair

# ---- by hand


def test_measure_weighs_sets_by_their_completions() -> None:
    """Would catch a mean of means, figures of one set under another's name, and start and now swapped."""
    figures = dict.fromkeys(WATCHED, 2.0)
    found = {
        "a": {**figures, "num_completions": 30, "kl_initial": 4.0, "kl_reference": 1.0, "distinct_2": 0.5},
        "b": {**figures, "num_completions": 10, "kl_initial": 8.0, "kl_reference": 5.0},
    }
    initial = {"a": {**figures, "distinct_2": 0.9}, "b": {**figures, "entropy": None}}
    result = measure(7, found, initial)
    assert (result.policy_version, result.kl_initial, result.kl_reference) == (7, 5.0, 2.0)
    assert result.sets["a"]["distinct_2"] == [0.9, 0.5] and result.sets["b"]["distinct_2"] == [2.0, 2.0]
    assert result.sets["b"]["entropy"] == [None, 2.0]
    without = {name: {k: v for k, v in row.items() if k != "kl_reference"} for name, row in found.items()}
    assert measure(7, without, initial).kl_reference is None


ADAPTIVE = {"type": "adaptive", "start": 0.1, "target_kl": 2.0, "gain": 0.5, "max_change": 0.4, "min": 0.05, "max": 0.3}


@pytest.mark.parametrize(
    ("beta", "kl", "expected"),
    [
        (0.1, 2.0, 0.1),  # on target
        (0.1, 2.4, 0.1 * (1 + 0.5 * 0.2)),  # above: the policy is held closer
        (0.1, 1.6, 0.1 * (1 - 0.5 * 0.2)),
        (0.1, 100.0, 0.14),  # cut to max_change
        (0.1, 0.0, 0.06),
        (0.28, 100.0, 0.3),  # max
        (0.06, 0.0, 0.05),  # min
    ],
)
def test_adaptive_beta_by_hand(beta: float, kl: float, expected: float) -> None:
    """Would catch the wrong sign, a change relative to `start` instead of the present beta, a KL to the initial policy,
    and bounds on the factor instead of on beta."""
    run = config(objective={"type": "sigmoid", "beta": ADAPTIVE})
    control = Control(beta_factor=beta / 0.1)
    now = measured(kl_initial=50.0, kl_reference=kl)
    result = advance(run, control, now)
    assert 0.1 * result.beta_factor == pytest.approx(expected)
    assert result.measured == now


def test_a_drift_budget_raises_beta_by_its_factor_up_to_a_limit() -> None:
    run = config(drift={"max_kl": 5.0, "action": "raise_beta", "factor": 3.0, "max_factor": 10.0})
    control = Control()
    factors = []
    for kl in (5.0, 5.1, 4.0, 6.0, 7.0, 1.0):
        control = advance(run, control, measured(kl_initial=kl, kl_reference=100.0))
        factors.append(control.beta_factor)
    assert factors == [1.0, 3.0, 3.0, 9.0, 10.0, 10.0]
    plain = config(drift={"max_kl": 5.0, "action": "raise_beta"})
    for _ in range(7):
        control = advance(plain, control if control.beta_factor != 10.0 else Control(), measured(kl_initial=6.0))
    assert control.beta_factor == 64.0
    for action in ("warn", "stop"):
        held = config(drift={"max_kl": 5.0, "action": action})
        assert advance(held, Control(), measured(kl_initial=9.0)).beta_factor == 1.0


@pytest.mark.parametrize(("action", "stops"), [("warn", False), ("raise_beta", False), ("stop", True)])
def test_a_drift_budget_is_reported_and_stops_where_asked(action: str, stops: bool) -> None:
    run = config(drift={"max_kl": 5.0, "action": action})
    assert findings(run, measured(kl_initial=5.0, kl_reference=9.0)) == [] == findings(run, None)
    over = measured(kl_initial=5.25)
    [finding] = findings(run, over)
    assert finding.message == (
        "policy 3 is 5.25 nats per completion away from the initial policy, and drift.max_kl is 5"
    )
    reason = stop_reason(run, Control(measured=over))
    assert reason == (
        f"{finding.message}: resume with a higher drift.max_kl, or with drift.action=warn" if stops else None
    )


@pytest.mark.parametrize(
    ("start", "now", "rings"),
    [(0.9, 0.72, False), (0.9, 0.71, True), (0.9, 1.12, False), (0.9, 1.13, True), (0.9, None, True),
     (None, 5.0, False), (0.0, 0.0, False), (0.0, 0.1, True)],
)  # fmt: skip
def test_the_alarm_rings_outside_of_its_band(start: float | None, now: float | None, rings: bool) -> None:
    """Would catch a band around the wrong policy, one with a single side, and a figure that cannot be measured any more
    and passes for that."""
    run = config(alarm={"bands": {"distinct_2": 1.25}})
    found = findings(run, measured(distinct_2=[start, now], self_bleu=[1.0, 50.0]))
    assert len(found) == rings
    if now == 0.71:
        assert found[0].message == (
            "distinct_2 of policy 3 on heldout is 0.71, and alarm.bands allows 0.72 to 1.12 (0.9 at the start)"
        )


def test_the_alarm_s_own_bands_and_action() -> None:
    collapsed = measured(distinct_2=[0.9, 0.5], self_bleu=[6.0, 20.0], length_mean=[40.0, 10.0], eos_rate=[0.1, 1.0])
    warned = findings(config(alarm={}), collapsed)
    assert [finding.message.split()[0] for finding in warned] == ["distinct_2", "self_bleu", "length_mean"]
    assert stop_reason(config(alarm={}), Control(measured=collapsed)) is None
    stopped = stop_reason(config(alarm={"action": "stop", "bands": {"eos_rate": 2}}), Control(measured=collapsed))
    assert stopped is not None and stopped.endswith(
        "resume with a wider alarm.bands.eos_rate, or with alarm.action=warn"
    )


# ---- what the config refuses

NOTHING_TO_MEASURE = "and evaluation.sets is empty; KL and diversity are measured on fresh samples"


@pytest.mark.parametrize(
    ("sections", "message"),
    [
        ({"drift": {"max_kl": 1}, "evaluation": {}}, f"drift is set {NOTHING_TO_MEASURE}"),
        ({"alarm": {}, "evaluation": {}}, f"alarm is set {NOTHING_TO_MEASURE}"),
        (
            {"objective": {"type": "ipo", "beta": ADAPTIVE}, "evaluation": {}},
            f"objective.beta is adaptive {NOTHING_TO_MEASURE}",
        ),
        (
            {"objective": {"type": "ipo", "beta": ADAPTIVE}, "drift": {"max_kl": 1, "action": "raise_beta"}},
            "only one of them can move beta: set drift.action to warn or stop, or objective.beta to a number",
        ),
        (
            {"objective": {"type": "simpo", "beta": ADAPTIVE}},
            "objective.type is simpo, whose beta holds the policy to no reference: give beta a number",
        ),
        ({"objective": {"type": "simpo"}, "drift": {"max_kl": 1, "action": "raise_beta"}}, "drift.action is raise"),
        ({"drift": {"max_kl": 1, "factor": 3}}, "drift has factor, but action is warn; set action to raise_beta"),
        ({"drift": {"max_kl": 0}}, "drift.max_kl is 0; it must be greater than 0"),
        ({"drift": {}}, "drift.max_kl is missing; it has no default, so set it"),
        ({"alarm": {"bands": {"distinct_2": 1.0}}}, "alarm.bands.distinct_2 is 1.0; it must be greater than 1"),
        ({"alarm": {"bands": {}}}, "alarm has empty bands; name a figure to watch, set over_optimisation to true, or"),
        ({"alarm": {"bands": {"reward": 2}}}, "alarm.bands.reward is not a known key; it must be 'distinct_1', "),
        (
            {"reference": {"type": "fixed", "logps": "sampler"}},
            "has logps sampler, but a fixed reference is the sampling policy in the first round alone; set logps to",
        ),
        ({"reference": {"type": "ensemble", "last": 2, "logps": "sampler"}}, "is never the sampling policy alone"),
        ({"reference": {"type": "path", "path": "p", "logps": "sampler"}}, "a given reference is not the policy that"),
        (
            {"reference": {"type": "every", "logps": "sampler"}, "objective": {"type": "kto"}},
            "reference.logps is sampler and objective.type is kto, whose KL estimate needs answers to other prompts",
        ),
        ({"reference": {"type": "ensemble", "last": 1}}, "reference.last is 1; it must be greater than or equal to 2"),
        ({"reference": {"type": "ensemble"}}, "reference.last is missing; it has no default, so set it"),
        ({"reference": {"type": "every"}, "objective": {"type": "simpo"}}, "which has no reference to schedule"),
    ],
)  # fmt: skip
def test_what_makes_no_sense_is_refused(sections: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError) as error:
        config(**sections)
    assert message in str(error.value) and "\n" not in str(error.value)


def test_pairs_that_nobody_sampled_have_no_sampler() -> None:
    with pytest.raises(ConfigError, match=r"every round trains on pairs\.source alone, which no policy"):
        load_config(
            {"model": {"path": "m"}, "pairs": {"source": "p"}, "reference": {"type": "every", "logps": "sampler"}}
        )


# ---- what may change on resume


def test_bounds_may_change_on_resume_where_they_only_stop_the_run() -> None:
    """Would catch a budget that raises beta, and with it changes the data, being moved in the middle of a run."""
    stop = {"max_kl": 5.0, "action": "stop"}
    for new in ({"max_kl": 9.0, "action": "stop"}, {"max_kl": 5.0, "action": "warn"}, None):
        assert check_resumable(config(drift=stop), config(drift=new)) != []
        assert check_resumable(config(drift=new), config(drift=stop)) != []
    alarm = {"action": "stop", "bands": {"distinct_2": 1.1}}
    for other in ({"action": "warn"}, {"action": "stop", "bands": {"distinct_2": 2.0}}, None):
        assert check_resumable(config(alarm=alarm), config(alarm=other)) != []
    raising = {"max_kl": 5.0, "action": "raise_beta"}
    for new in ({**raising, "max_kl": 9.0}, {**raising, "factor": 3.0}, stop, None):
        for old, then in ((raising, new), (new, raising)):
            with pytest.raises(ConfigError, match=r"^drift\..* (was|and is now) .*"):
                check_resumable(config(drift=old), config(drift=then))


# ---- runs


def summaries(path: Path) -> list[dict[str, Any]]:
    return [record for record in records(path) if record["kind"] == "round_done"]


def test_a_budget_stops_the_run_with_its_round_committed(tmp_path: Path) -> None:
    """Would catch a round that is lost or half committed, a run that goes on without being told to, and one that does
    not go on when it is, or goes on as another run."""
    free = Run.of(tmp_path, "free", run__rounds=4, drift={"max_kl": 1e9, "action": "stop"})
    free.go_on()
    kls = [summary["evaluation"]["heldout"]["kl_initial"] for summary in summaries(free.path)]
    assert kls[0] < kls[1]
    budget = (kls[0] + kls[1]) / 2
    run = Run.of(tmp_path, run__rounds=4, drift={"max_kl": budget, "action": "stop"})
    events = run.go_on().events
    assert [(event.kind, event.round_index) for event in events[-2:]] == [("round_committed", 1), ("run_stopped", 2)]
    reason = events[-1].data["reason"]
    assert reason.startswith("policy 2 is ") and "resume with a higher drift.max_kl" in reason
    assert [len(summary["warnings"]) for summary in summaries(run.path)] == [0, 1]
    with RunStore.read(run.path) as store:
        store.verify()
        assert store.finished_rounds() == [0, 1] and why_stopped(run.config, store) == reason
        assert why_stopped(free.config, store) is None
    before = comparable(run.path)
    again = run.go_on()
    assert again.tape.calls("push", "sample", "judge", "step") == [] and again.events[-1].data["reason"] == reason
    assert comparable(run.path) == before
    check_resumable(run.config, free.config)
    free.at(run.path).go_on()
    assert without_warnings(run.path) == without_warnings(free.path)


def test_a_budget_that_is_left_in_the_last_round_stops_nothing(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=1, drift={"max_kl": 1e-9, "action": "stop"})
    assert [event.kind for event in run.go_on().events[-2:]] == ["round_committed", "run_done"]
    assert len(summaries(run.path)[0]["warnings"]) == 1


class Parrot(FakeGenerator):
    """From its second version on it says the same to every prompt."""

    def sample(self, *args: Any) -> tuple[Completion, ...]:
        found = super().sample(*args)
        return tuple(replace(c, text="ha ha ha ha") for c in found) if self.version >= 2 else found


def test_the_alarm_stops_a_policy_that_repeats_itself(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=4, alarm={"action": "stop", "bands": {"distinct_2": 1.5, "length_mean": 1e9}})
    events = run.go_on(FakeStages(run.config, generators=[Parrot()])).events
    assert (events[-1].kind, events[-1].round_index) == ("run_stopped", 2)
    assert events[-1].data["reason"].startswith("distinct_2 of policy 2 on heldout is ")


def test_only_scheduled_evaluations_count(tmp_path: Path) -> None:
    """Would catch a run that is continued with more rounds and differs from a longer one: the last round is evaluated
    whether its turn has come or not."""
    adaptive = {"type": "sigmoid", "beta": {**ADAPTIVE, "min": 1e-3, "max": 10.0}}
    evaluation = {"sets": {"heldout": {"source": str(tmp_path / "heldout.jsonl"), "count": 2}}, "every": 2}
    common: dict[str, Any] = {"objective": adaptive, "evaluation": evaluation}
    longer, run = Run.of(tmp_path, "longer", run__rounds=4, **common), Run.of(tmp_path, run__rounds=3, **common)
    longer.go_on()
    run.go_on()
    longer.at(run.path).go_on()
    factors = [[summary["beta_factor"] for summary in summaries(r.path)] for r in (run, longer)]
    assert factors[0] == factors[1] and factors[0][0] == factors[0][1] == 1.0 != factors[0][2] == factors[0][3]


CONTROLS: dict[str, dict[str, Any]] = {
    "adaptive": {"objective": {"type": "sigmoid", "beta": {**ADAPTIVE, "min": 1e-3, "max": 10.0}}},
    "raise": {"drift": {"max_kl": 1e-3, "action": "raise_beta"}},
    "ensemble": {"reference": {"type": "ensemble", "last": 2}},
    "sampler": {"reference": {"type": "every", "rounds": 2, "logps": "sampler"}},
    "unpaired": {"objective": {"type": "kto"}},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_kill_at_any_event_changes_no_decision(name: str, tmp_path: Path) -> None:
    """Would catch a controller that starts afresh, counts an evaluation twice, or learns with another beta than the
    uninterrupted run; the fake learner's weights depend on beta's factor and on the reference."""
    run = Run.of(tmp_path, run__rounds=3, **CONTROLS[name])
    whole = run.go_on()
    expected = comparable(run.path)
    factors = [summary["beta_factor"] for summary in summaries(run.path)]
    assert factors[0] == 1.0 and (len(set(factors)) == 3) == (name in ("adaptive", "raise"))
    for number in range(0, len(whole.events), 3):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with suppress(Kill):
            killed.go_on(kill_at=7 * number % 11)
        stages = FakeStages(run.config)
        killed.go_on(stages)
        assert comparable(killed.path) == expected, f"killed before event {number}, {whole.events[number].kind}"


# ---- the sampler's log-probs as the reference's


def test_the_sampler_s_log_probs_are_used_where_it_is_the_reference(tmp_path: Path) -> None:
    """Would catch log-probs of another version, and rounds in which nothing tells where they came from. In the fakes
    both sides compute the same numbers, so the runs must be equal."""
    every = {"type": "every", "rounds": 2}
    plain = Run.of(tmp_path, "plain", run__rounds=4, reference=every)
    run = Run.of(tmp_path, run__rounds=4, reference={**every, "logps": "sampler"})
    stages = FakeStages(run.config)
    plain.go_on()
    run.go_on(stages)
    assert [version for version, *_ in stages.learner.references] == [1, 3]
    found = [
        {
            name: summary[name]
            for name in summary
            if "reference_sampler" in name or "recomputed" in name or "_gap" in name
        }
        for summary in summaries(run.path)
    ]
    used = {"num_reference_sampler": 4, "num_reference_recomputed": 0}
    gap = {"reference_gap": 0.0, "reference_gap_row_max": 0.0, "reference_gap_max": 0.0}
    assert found == [{**used, **gap}, {"num_reference_sampler": 0, "num_reference_recomputed": 4}] * 2
    with RunStore.read(run.path) as left, RunStore.read(plain.path) as right:
        for index in range(4):
            assert left.round(index).get_records("pairs", Pair) == right.round(index).get_records("pairs", Pair)
            assert left.round(index).get_files("adapter") == right.round(index).get_files("adapter")


def items_of(run: Run) -> list[Pair]:
    with RunStore.read(run.path) as store:
        return store.round(0).get_records("pairs", Pair)


@pytest.mark.parametrize(("shift", "stops"), [(0.9e-3, False), (1.1e-3, True)])
def test_a_sampler_that_disagrees_is_no_reference(shift: float, stops: bool, tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=1, reference={"type": "every", "logps": "sampler"})
    run.go_on()
    calls = Calls(FakeStages(run.config))

    def shifted(answer: Completion) -> Completion:
        return replace(answer, sampler_logps=tuple(logp + shift for logp in answer.sampler_logps or ()))

    pairs = [replace(pair, chosen=shifted(pair.chosen), rejected=shifted(pair.rejected)) for pair in items_of(run)]
    reference = Reference(members=(None,), versions=(0,))
    if stops:
        with pytest.raises(WeightMismatchError, match=r"0\.0011 nats per token .* tolerance 0\.001; .*=recompute"):
            value_of(score_items(run.config, calls, pairs, reference, 0))
    else:
        scored, figures = value_of(score_items(run.config, calls, pairs, reference, 0))
        assert figures["reference_gap"] == pytest.approx(shift)
        assert scored[0].chosen_ref_logps == pytest.approx(sum(pairs[0].chosen.sampler_logps or ()))


def test_pairs_that_others_sampled_are_recomputed(tmp_path: Path) -> None:
    """Would catch log-probs of a data set's or an older policy's answers, and items that change their order."""
    run = Run.of(tmp_path, run__rounds=1, reference={"type": "every", "logps": "sampler"})
    run.go_on()
    calls = Calls(FakeStages(run.config))
    pairs = items_of(run)
    pairs[1] = replace(pairs[1], rejected=replace(pairs[1].rejected, policy_version=3))
    foreign = {"finish_reason": None, "sampler_logps": None, "policy_version": None, "seed": None}
    pairs[2] = replace(pairs[2], chosen=replace(pairs[2].chosen, **foreign))
    scored, figures = value_of(score_items(run.config, calls, pairs, Reference(members=(None,), versions=(0,)), 0))
    assert (figures["num_reference_sampler"], figures["num_reference_recomputed"]) == (2, 2)
    assert scored == calls.stages.learner.reference_logps(pairs, [None])


def test_figures_of_items_that_were_never_committed_are_replaced(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=1, reference={"type": "every", "logps": "sampler"})
    whole = run.go_on()
    kinds = [event.data.get("stage") for event in whole.events]
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(kill_at=kinds.index("reference"))
    with RunStore.open(killed.path) as store:  # a kill between the two commits
        store.round(0).put_json("reference-logps", {"num_reference_sampler": 99})
    killed.go_on()
    assert comparable(killed.path) == comparable(run.path)
