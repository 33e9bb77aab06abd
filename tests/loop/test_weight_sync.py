"""The generators hold the learner's weights, or the run stops and keeps nothing of theirs (DESIGN invariants 2, 3)."""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from loop_kit import BASE, ORDERS, FakeGenerator, FakeStages, Weights, make_adapter, token_logps, weights_of
from loop_runs import Run, comparable, make_materials, records
from rich.console import Console

from online_dpo.errors import WeightMismatchError
from online_dpo.loop.stages import Event
from online_dpo.loop.weight_sync import Gap, check_digests, check_gap, check_versions, probe_rows
from online_dpo.models.merging import Received
from online_dpo.reports.progress import Progress
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Completion, Prompt, Row


class OldVersion(FakeGenerator):
    """Samples under a version that was not asked for."""

    def sample(self, *args: Any) -> tuple[Completion, ...]:
        return tuple(replace(c, policy_version=max(self.version - 1, 0)) for c in super().sample(*args))


class SkippedPush(FakeGenerator):
    """Says that it received the adapter, and keeps what it had."""

    def push(self, adapter: Adapter | None, version: int) -> Received:
        self.version = version
        return Received(digest=None if adapter is None else adapter.digest)


class TamperedAdapter(FakeGenerator):
    """Receives other bytes than were sent."""

    def push(self, adapter: Adapter | None, version: int) -> Received:
        changed = None if adapter is None else make_adapter(version, (9.0, *weights_of(adapter)[1:]))
        return super().push(changed, version)


class WrongScale(FakeGenerator):
    """Took the right bytes and computes something else from them."""

    def push(self, adapter: Adapter | None, version: int) -> Received:
        received = super().push(adapter, version)
        self.weights = self.sampling_weights = tuple(0.5 * weight for weight in self.weights)
        return received


class StaleCache(FakeGenerator):
    """Scores with the new weights and samples with the old ones, as from blocks of an old prefix cache."""

    def push(self, adapter: Adapter | None, version: int) -> Received:
        old = self.weights
        received = super().push(adapter, version)
        self.sampling_weights = old
        return received


FAULTS: dict[type[FakeGenerator], str] = {
    OldVersion: "was sampled from policy version 0 and version 1 was asked for",
    SkippedPush: "disagree on the probe: .* tolerance 0.001",
    TamperedAdapter: "received adapter .* the weights were changed on the way",
    WrongScale: "disagree on the probe: ",
    StaleCache: "disagree on the sampled: .* tolerance 0.001",
}


@pytest.fixture(scope="module", params=["evaluation first", "training first"])
def clean(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run without faults; the first to sample after a push is an evaluation, or the next round."""
    without: dict[str, Any] = {"evaluation": {}} if request.param == "training first" else {}
    run = Run.of(tmp_path_factory.mktemp("clean"), **without)
    run.go_on()
    return run


@pytest.mark.parametrize("order", ["fifo", "lifo"])
@pytest.mark.parametrize("honest", [0, 1], ids=["alone", "beside an honest one"])
@pytest.mark.parametrize("faulty", FAULTS, ids=lambda fault: fault.__name__)
def test_wrong_weights_stop_the_run_and_nothing_of_theirs_is_kept(
    clean: Run, faulty: type[FakeGenerator], honest: int, order: str, tmp_path: Path
) -> None:
    """Would catch a check of one replica only, one that comes after the commit, and a later shard of a bad engine that
    slips in while its first one is re-scored."""
    run = clean.at(tmp_path / "run")
    generators = [*(FakeGenerator() for _ in range(honest)), faulty()]
    with pytest.raises(WeightMismatchError, match=FAULTS[faulty]):
        run.go_on(FakeStages(run.config, generators=generators, order=ORDERS[order]))
    kept = kept_completions(run)
    assert honest or {version for version, *_ in kept} == {0}
    for version, row, completion in kept:
        weights: Weights = BASE if version == 0 else weights_of(policy_of_round_0(run))
        assert completion.policy_version == version and completion.sampler_logps == token_logps(row, weights)
    run.go_on()
    assert comparable(run.path) == comparable(clean.path)


def kept_completions(run: Run) -> list[tuple[int, Row, Completion]]:
    """(the version that it should be from, prompt and tokens, completion) of all that is committed, by version."""
    kept = []
    with RunStore.read(run.path) as store:
        for index in range(len(store.finished_rounds()) + 1):
            part = store.round(index)
            prompts = list(make_materials(run.config).job.evaluation_sets.get("heldout", ()))
            prompts += part.get_records("prompts", Prompt) if part.has("prompts") else []
            ids = {prompt.prompt_id: prompt.token_ids for prompt in prompts}
            for name in (name for name in part.names() if "completions/" in name):
                for c in part.get_records(name, Completion):
                    row = Row(prompt_ids=ids[c.prompt_id], completion_ids=c.token_ids)
                    kept.append((index + name.startswith("evaluation/"), row, c))
    return sorted(kept, key=lambda entry: entry[0])


def policy_of_round_0(run: Run) -> Adapter:
    with RunStore.read(run.path) as store:
        return Adapter.from_files(1, store.round(0).get_files("adapter"))


@pytest.mark.parametrize(("tolerance", "has_power"), [("auto", True), (10.0, False)])
def test_a_check_that_could_not_have_told_the_versions_apart_says_so(
    tolerance: float | str, has_power: bool, tmp_path: Path
) -> None:
    """Would catch a tolerance so wide that a skipped push passes in silence."""
    run = Run.of(tmp_path, generator__tolerance=tolerance)
    run.go_on(FakeStages(run.config, generators=[FakeGenerator() if has_power else SkippedPush()]))
    checks = [record for record in records(run.path, without=()) if record["kind"] in ("pushed", "rescored")]
    assert [record["kind"] for record in checks] == ["pushed", "rescored"] * 3
    assert not any("has_power" in key for record in checks[:2] for key in record)  # there is no version before 0
    assert [record["probe_has_power"] for record in checks[2::2]] == [has_power] * 2
    assert [record["sampled_has_power"] for record in checks[3::2]] == [has_power] * 2
    if has_power:
        assert all(record["probe_gap"] == 0.0 < record["probe_gap_previous"] for record in checks[2::2])
    else:
        assert all(record["probe_gap"] > 0.1 for record in checks[2::2])


def test_no_more_samples_are_rescored_than_asked_for(tmp_path: Path) -> None:
    run = Run.of(tmp_path, generator__rescored=3, run__rounds=2, evaluation__sets={})
    stages = FakeStages(run.config)
    start, scored = stages.start_rescoring, []

    def start_rescoring(rows, under):
        scored.append(rows)
        return start(rows, under)

    stages.start_rescoring = start_rescoring
    run.go_on(stages)
    sampled = {(row.prompt_ids, row.completion_ids) for _, row, _ in kept_completions(run)}
    assert [len(rows) for rows in scored] == [3, 3]  # of six, after each push
    assert all((row.prompt_ids, row.completion_ids) in sampled for rows in scored for row in rows)
    assert len({row.prompt_ids for row in scored[0]}) > 1  # spread over the shard's prompts


def test_the_log_has_the_replica_that_is_furthest_off(tmp_path: Path) -> None:
    """Would catch figures of whichever replica answered last."""
    run = Run.of(tmp_path, generator__tolerance=10.0, run__rounds=1)
    for name, generators in {"a": [SkippedPush(), FakeGenerator()], "b": [FakeGenerator(), SkippedPush()]}.items():
        other = run.at(tmp_path / name)
        other.go_on(FakeStages(run.config, generators=generators))
        pushed = [record for record in records(other.path, without=()) if record["kind"] == "pushed"]
        assert pushed[1]["probe_gap"] > 0.1


class Rounding(FakeGenerator):
    """Takes a share of every update."""

    def __init__(self, applied: float) -> None:
        super().__init__()
        self.applied = applied

    def push(self, adapter: Adapter | None, version: int) -> Received:
        received = super().push(adapter, version)
        return received if adapter is None else replace(received, applied=self.applied)


def test_the_smallest_share_of_an_update_is_logged_and_one_below_half_is_a_warning(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=2, evaluation__sets={})
    stages = FakeStages(run.config, generators=[Rounding(0.9), Rounding(0.31)])
    run.go_on(stages)
    base, pushed = [record for record in records(run.path, without=()) if record["kind"] == "pushed"]
    assert "applied" not in base and pushed["applied"] == 0.31
    text = io.StringIO()
    progress = Progress(Console(file=text, width=300))
    for share in (0.5, 0.31):
        data = {"policy_version": 1, "probe_has_power": True, "applied": share}
        progress.hear(Event(kind="pushed", round_index=1, data=data))
    assert text.getvalue().count("warning") == 1
    assert "warning: the generators hold 31 % of the update of policy 1" in text.getvalue()


def test_gap_is_over_tokens_not_over_rows() -> None:
    left, right = [[-1.0, -2.0, -3.0], [-4.0]], [[-1.5, -2.0, -3.0], [-3.0]]
    assert Gap.between(left, right) == Gap(mean=1.5 / 4, max=1.0, row_max=1.0, num_tokens=4)
    assert Gap.between([[-1.0, -2.0], []], [[-1.5, -2.0], []]) == Gap(mean=0.25, max=0.5, row_max=0.25, num_tokens=2)
    assert Gap.between([], []) == Gap(mean=0.0, max=0.0, row_max=0.0, num_tokens=0)
    with pytest.raises(ValueError, match="zip"):
        Gap.between([[-1.0, -2.0]], [[-1.0]])  # a token without a counterpart is never left out in silence


@pytest.mark.parametrize("position", [0, 1, 2])
@pytest.mark.parametrize("bad", [math.nan, -math.inf])
def test_a_gap_that_is_no_number_raises(bad: float, position: int) -> None:
    """Comparisons with NaN are false: `gap > tolerance` would let it pass."""
    row = [-1.0, -1.0, -1.0]
    row[position] = bad
    for left, right in (([row], [[-1.0] * 3]), ([row], [row])):
        with pytest.raises(WeightMismatchError, match="nats per token"):
            check_gap("probe", Gap.between(left, right), None, 1e9)


def test_check_gap_at_and_around_the_tolerance() -> None:
    def gap(mean: float) -> Gap:
        return Gap(mean=mean, max=2 * mean, row_max=1.5 * mean, num_tokens=3)

    assert check_gap("probe", gap(0.5), gap(0.75), 0.5) == {
        "probe_gap": 0.5,
        "probe_gap_row_max": 0.75,
        "probe_gap_max": 1.0,
        "probe_gap_previous": 0.75,
        "probe_has_power": True,
    }
    assert check_gap("sampled", gap(0.0), gap(0.5), 0.5)["sampled_has_power"] is False
    assert check_gap("sampled", gap(0.0), gap(math.nan), 0.5)["sampled_has_power"] is False
    with pytest.raises(
        WeightMismatchError, match=r"on the probe: 0\.51 nats .* worst row, max 1\.02, 3 tokens\), tolerance 0\.5 \(5 "
    ):
        check_gap("probe", gap(0.51), None, 0.5)


@pytest.mark.parametrize(("stale", "stops"), [(0.0101, True), (0.0099, False)])
def test_one_stale_row_among_many_stops_the_run(stale: float, stops: bool) -> None:
    """A hundredth of the rows leaves the mean a tenth of the tolerance: the mean alone would let it pass."""
    left = [[-1.0] * 4] * 100
    right = [[-1.0] * 4] * 99 + [[-1.0 - stale] * 4]
    gap = Gap.between(left, right)
    assert gap.mean < 0.11 * 1e-3
    if stops:
        with pytest.raises(WeightMismatchError, match=r"0\.0101 in the worst row.* \(0\.01 for a row\)"):
            check_gap("sampled", gap, None, 1e-3)
    else:
        assert check_gap("sampled", gap, None, 1e-3)["sampled_gap_row_max"] == pytest.approx(stale)


def test_digests_of_all_replicas_count() -> None:
    adapter = make_adapter(1, BASE)
    right, nothing = Received(digest=adapter.digest), Received(digest=None)
    check_digests(adapter, [right, right])
    check_digests(None, [nothing])
    for expected, received in ((adapter, [right, nothing]), (None, [nothing, right])):
        with pytest.raises(WeightMismatchError, match=r"generator 1 received"):
            check_digests(expected, received)
    # Both files count: other scaling in the config is another policy.
    assert replace(adapter, config=b"{}").digest != adapter.digest
    assert replace(adapter, version=2).digest == adapter.digest


def test_versions_of_all_completions_count() -> None:
    fields: dict[str, Any] = {"prompt_id": "p", "token_ids": (), "text": "", "sampler_logps": (), "seed": 1}
    found = [
        Completion(sample_index=i, finish_reason="stop", policy_version=version, **fields)
        for i, version in enumerate([3, 3, 4])
    ]
    check_versions(3, found[:2])
    with pytest.raises(WeightMismatchError, match="completion p/2 was sampled from policy version 4 and version 3"):
        check_versions(3, found)


def test_probe_rows_are_fixed_by_the_seed_and_use_the_vocabulary() -> None:
    prompts = [(index, 5) for index in range(12)]
    rows = probe_rows(prompts, 7, 0, max_tokens=18)
    assert rows == probe_rows(prompts, 7, 0, max_tokens=18) != probe_rows(prompts, 7, 1, max_tokens=18)
    assert [row.prompt_ids for row in rows] == prompts[:8]
    tokens: Sequence[int] = [token for row in rows for token in row.completion_ids]
    assert set(tokens) == set(range(7)) and len(tokens) == 8 * 16
    assert len({row.completion_ids for row in rows}) == 8


@pytest.mark.parametrize(
    ("max_tokens", "lengths"), [(90, (48, 16)), (50, (34, 16)), (40, (24, 16)), (17, (1, 16)), (9, (1, 8))]
)
def test_a_probe_fits_into_the_engine_s_context(max_tokens: int, lengths: tuple[int, int]) -> None:
    """A prompt of the full length before completions of at most 16 tokens left no room for the probe's own tokens."""
    [row] = probe_rows([range(60)], 7, 0, max_tokens=max_tokens)
    assert (len(row.prompt_ids), len(row.completion_ids)) == lengths
    assert row.prompt_ids == tuple(range(lengths[0]))
