"""A run that is killed at any instant and continued equals the one that was left alone, and redoes nothing.

The learner, generator and judge are fakes that are made anew for every process; the run directory is real.
"""

from __future__ import annotations

import re
import shutil
from collections.abc import Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import EVERY, instants
from kill_kit import WORK, Camera, event_kinds, go_on_and_compare, restore
from loop_kit import FakeStages, label, make_adapter
from loop_runs import Kill, Run, comparable, records
from pydantic import BaseModel

from online_dpo.config.base import Section
from online_dpo.config.judges.human import QualitySection
from online_dpo.config.loading import JudgesConfig
from online_dpo.config.objective.pairwise import PairObjective
from online_dpo.config.objective.section import MEMBERS
from online_dpo.config.resuming import check_resumable
from online_dpo.config.reward_model.section import RewardModelConfig
from online_dpo.config.run import RunConfig
from online_dpo.errors import ConfigError
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter

GOLD = {"gold": {"type": "python", "target": "none:none"}}


@EVERY
def test_a_kill_at_any_change_of_the_disk(every: bool, tmp_path: Path) -> None:
    """Would catch two commits that must be one, work that is done again, metrics that are lost or written twice, and
    leftovers that an uninterrupted run does not have."""
    run = Run.of(tmp_path, prompts__per_round=3, learner__batch_pairs=1)  # two checkpoints before the last step
    with Camera(run.path) as camera:
        work = run.go_on().tape.calls(*WORK)
    assert len(work) == 3 * 2 + 4 * 2 + 2 + 6 and len(camera.pictures) > 120
    assert sum(not files.get("metrics.jsonl", b"\n").endswith(b"\n") for files in camera.pictures) > 10  # cut lines
    expected = comparable(run.path)
    learner_states = {str(Path(name).parent) for name in expected if "/learner/" in name and name.endswith(".json")}
    assert learner_states == {"rounds/00001/learner/final"}
    for number in instants(camera.picture_kinds, every=every):
        killed = run.at(tmp_path / "killed")
        restore(killed.path, {**camera.pictures[number], "lock": b""})
        go_on_and_compare(killed, work, expected, f"killed at change {number} of {len(camera.pictures)}")
        shutil.rmtree(killed.path)


@EVERY
def test_a_kill_at_any_event_and_another_in_the_continuation(every: bool, tmp_path: Path) -> None:
    """The kill leaves through the loop's generators, as Ctrl-C does."""
    run = Run.of(
        tmp_path, evaluation__judges=GOLD, reference={"type": "every", "rounds": 2}, verdicts={"repeated": 0.7}
    )
    whole = run.go_on()
    work, expected = whole.tape.calls(*WORK), comparable(run.path)
    assert {call.split()[1] for call in work if call.startswith("repeat ")} == {"reward", "gold"}
    for number in instants(event_kinds(whole.events), every=every):
        killed = run.at(tmp_path / f"{number}")
        with pytest.raises(Kill):
            killed.go_on(kill_at=number)
        with suppress(Kill):  # near its end the continuation has fewer events
            killed.go_on(kill_at=5 * number % 17)
        go_on_and_compare(killed, work, expected, f"killed before event {number}, {whole.events[number].kind}")


def test_checks_of_samples_that_stay_committed_stay_in_the_metrics(tmp_path: Path) -> None:
    """Would catch a continued run whose log has no gap for its first shards, which are not sampled again."""
    run = Run.of(tmp_path, evaluation={})
    kinds = [(event.kind, event.round_index) for event in run.go_on().events]
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(kill_at=kinds.index(("paired", 0)))
    stages = FakeStages(run.config)
    killed.go_on(stages)
    assert [call.split()[1] for call in stages.tape.calls("push")] == ["1"]
    checks = [record for record in records(killed.path, without=()) if record["kind"] in ("pushed", "rescored")]
    assert [(record["kind"], record["round"]) for record in checks] == [
        ("pushed", 0), ("rescored", 0), ("pushed", 1), ("rescored", 1)
    ]  # fmt: skip
    assert comparable(killed.path) == comparable(run.path)


@pytest.mark.parametrize("index", [1, 2, 3])
@pytest.mark.parametrize("initial", [None, make_adapter(0, (0.3, -0.2, 0.1, 0.5))], ids=["base", "adapter"])
def test_a_reference_is_read_back_after_a_kill_behind_a_learner_step(
    index: int, initial: Adapter | None, tmp_path: Path
) -> None:
    """Would catch a reference that is taken from the resumed policy: rounds 1 and 3 are in the midst of `every: 2`."""
    run = Run.of(tmp_path, run__rounds=4, reference={"type": "every", "rounds": 2})
    whole = run.go_on(FakeStages(run.config, initial=initial))
    steps = [i for i, event in enumerate(whole.events) if (event.kind, event.round_index) == ("step", index)]
    killed = run.at(tmp_path / "killed")
    with pytest.raises(Kill):
        killed.go_on(FakeStages(run.config, initial=initial), kill_at=steps[0] + 1)
    with RunStore.read(killed.path) as store:
        assert store.round(index).names("learner/") == ["learner/step-000001"]
    stages = FakeStages(run.config, initial=initial)
    killed.go_on(stages)
    first = "v2" if index > 1 else label(initial)
    # This round's log-probs are committed; what follows is measured against the reference that the round began with.
    assert [label(used) for _, used in stages.learner.references] == ["v2"] * (3 - index)
    assert label(next(under for num_rows, under in stages.learner.scored_under if num_rows == 2)[1]) == first
    assert comparable(killed.path) == comparable(run.path)


def test_more_rounds_continue_the_run_where_the_schedule_allows(tmp_path: Path) -> None:
    """Would catch a continuation that is another run than one of that length from the start."""
    longer, run = Run.of(tmp_path, "longer", run__rounds=3), Run.of(tmp_path, run__rounds=2)
    longer.go_on()
    run.go_on()
    assert check_resumable(run.config, longer.config) == ["run.rounds was 2 and is now 3"]
    stages = FakeStages(run.config)
    longer.at(run.path).go_on(stages)
    assert {call.split()[1] for call in stages.tape.calls("step")} == {"2"}
    assert comparable(run.path) == comparable(longer.path)


@pytest.mark.parametrize("schedule", ["linear", "cosine"])
def test_more_rounds_are_refused_where_the_schedule_is_stretched(schedule: str, tmp_path: Path) -> None:
    two, three = (Run.of(tmp_path, run__rounds=n, learner={"schedule": schedule}).config for n in (2, 3))
    with pytest.raises(ConfigError, match=r"^run\.rounds was 2 and is now 3\n.*set them back, or start a new run"):
        check_resumable(two, three)


NESTED = "judge.judge.judge.judge.judge"  # the ensemble in OUTER

CHANGEABLE = {
    "run.name",
    "run.dir",
    "run.rounds",  # with a constant schedule
    "run.keep_optimizer",
    "layout",
    "generator.replicas",
    "generator.num_gpus",
    "generator.gpu_memory_utilization",
    "generator.kv_cache_gib",
    "cluster.max_restarts",
    "cluster.stall_timeout_s",
    "generator.tolerance",
    "generator.rescored",
    *(
        f"{judge}.{name}"
        for judge in (
            "judge",
            "pairing.annotator",
            "evaluation.judges.gold",
            f"{NESTED}.judges.a",
            f"{NESTED}.judges.b",
        )
        for name in ("concurrency", "timeout_s", "retries", "num_cpus", "num_gpus", "memory_limit_gb")
    ),
    "judge.judge.path",  # of the cache
    *(
        f"{asked}.{name}"
        for asked in ("judge", "candidates.0")
        for name in (
            *(f"endpoint.{name}" for name in ("base_url", "api_key_env", "api_key_file", "max_wait_s")),
            *(f"endpoint.prices.{name}" for name in ("prompt", "completion")),
        )
    ),
    *(
        f"{asked}.budget.{n}"
        for asked in ("judge", "candidates.0", "candidates.1")
        for n in ("calls", "tokens", "cost")
    ),
    *(
        f"candidates.{index}.{name}"
        for index in (0, 1)
        for name in ("concurrency", "timeout_s", "retries", "num_cpus", "num_gpus")
    ),
    *(f"judge.{name}" for name in ("annotators", "wait", "instructions", "criteria", "lease_s")),
    *(f"judge.quality.{name}" for name in QualitySection.model_fields),
    *(f"{asked}.engine.{n}" for asked in ("judge", "candidates.1") for n in ("gpu_memory_utilization", "kv_cache_gib")),
    "learner.checkpoint_steps",
    "learner.num_gpus",
    "learner.num_workers",
    "cluster.address",
    "cluster.num_cpus",
    "cluster.start_timeout_s",
    "logging.report",
    "logging.trackers",
    "logging.tracker_options",
    "drift.max_kl",  # unless beta is raised
    "drift.action",
    "alarm.action",
    "alarm.bands",
    "alarm.over_optimisation",
    "verdicts.min_coverage",
    "prompts.contaminated",  # unless they are dropped
}

COMMON: dict[str, Any] = {
    "model": {"path": "m"},
    "prompts": {"source": "p"},
    "evaluation": {"sets": {"heldout": {"source": "h"}}, "judges": GOLD},
}
MIXED: dict[str, Any] = {
    "prompts": {"sources": [{"source": "p"}]},
    "evaluation": {"sets": {"heldout": {"sources": [{"source": "h"}]}}},
}
PAIRWISE = [name for name, member in MEMBERS.items() if issubclass(member, PairObjective)]
JUDGE = {"type": "python", "target": "j"}
VERIFIER = {"type": "verifier", "method": "exact", "answer": "a"}
OUTER: dict[str, Any] = {"type": "ensemble", "judges": {"a": VERIFIER, "b": JUDGE}}
for name, extra in (("process", {}), ("normalise", {}), ("cached", {}), ("length_penalty", {"rate": 0.1})):
    OUTER = {"type": name, "judge": OUTER, **extra}
RUBRIC = {"form": "rubric", "rubric": {"criteria": [{"criterion": "Is right."}]}}
PRICED = {"base_url": "http://localhost/v1", "model": "m", "prices": {"prompt": 1.0, "completion": 2.0}}
WRITERS = [
    {"type": "teacher", "endpoint": PRICED},
    {"type": "revise", "engine": {"path": "m"}},
    {"type": "column", "column": "c"},
]
SFT = {"pairs": {"source": "d", "format": "demonstrations"}, "lr": 1e-4}
CONTROL = {"drift": {"max_kl": 1.0, "action": "stop"}, "alarm": {"action": "stop"}}
CONFIGS = [
    RunConfig.model_validate({**COMMON, "judge": JUDGE, "reference": {"type": "ensemble", "last": 2}, **CONTROL}),
    RunConfig.model_validate({**COMMON, "judge": JUDGE, "reference": {"type": "path", "path": "r"}}),
    RunConfig.model_validate({**COMMON, "judge": OUTER}),
    RunConfig.model_validate({**COMMON, **MIXED, "judge": JUDGE}),
    RunConfig.model_validate({**COMMON, "judge": JUDGE, "candidates": WRITERS, "sft": SFT}),
    RunConfig.model_validate({**COMMON, "judge": JUDGE, "replay": {"fraction": 0.5}}),
    RunConfig.model_validate({**COMMON, "judge": {"type": "llm", "endpoint": PRICED}}),
    RunConfig.model_validate({**COMMON, "judge": {"type": "llm", "endpoint": PRICED, **RUBRIC}}),
    RunConfig.model_validate({**COMMON, "judge": {"type": "process_reward_model", "path": "j", "marker": "<m>"}}),
    RunConfig.model_validate({**COMMON, "judge": {"type": "human"}}),
    RunConfig.model_validate({**COMMON, "judge": {**JUDGE, "view": {"tags": [{"open": "[", "close": "]"}]}}}),
    RunConfig.model_validate({**COMMON, "judge": {"type": "llm", "engine": {"path": "m"}}}),
    RunConfig.model_validate({**COMMON, "judge": {"type": "python", "target": "j"}, "learner": {"lora": {"r": 8}}}),
    RunConfig.model_validate(
        {
            **COMMON,
            "judge": {"type": "reward_model", "path": "j", "engine": {}},
            "objective": {"type": "sum", "terms": [{"objective": {"type": name}} for name in PAIRWISE]},
            "reference": {"type": "every"},
        }
    ),
    RunConfig.model_validate(
        {"model": {"path": "m"}, "pairs": {"source": "p"}, "evaluation": {"pairs": {"people": {"source": "h"}}}}
    ),
    RunConfig.model_validate(
        {"model": {"path": "m"}, "pairs": {"source": "p", "format": "demonstrations"}, "objective": {"type": "sft"}}
    ),
    *(
        RunConfig.model_validate({**COMMON, "judge": {"type": "python", "target": "j"}, "objective": objective})
        for objective in (
            {"type": "kto", "beta": {"type": "adaptive", "start": 0.1, "target_kl": 5.0}},
            {"type": "sigmoid", "beta": {"type": "linear", "start": 0.1, "end": 0.2}},
            {"type": "ipo", "beta": {"type": "cosine", "start": 0.1, "end": 0.2}},
        )
    ),
    RunConfig.model_validate({**COMMON, "judge": JUDGE, "pairing": {"strategy": "uncertain", "annotator": JUDGE}}),
    *(
        RunConfig.model_validate(
            {**COMMON, "judge": JUDGE, "objective": {"type": "kto"}, "pairing": {"labels": labels}}
        )
        for labels in ({"type": "threshold", "value": 0.5}, {"type": "quantile"})
    ),
]


def sections_of(section: BaseModel, prefix: str = "") -> Iterator[tuple[str, BaseModel]]:
    yield prefix, section
    for name in type(section).model_fields:
        value = getattr(section, name)
        entries = value.items() if isinstance(value, dict) else [("", value)]
        if isinstance(value, list):
            entries = [(str(index), entry) for index, entry in enumerate(value)]
        for key, entry in entries:
            if isinstance(entry, BaseModel):
                yield from sections_of(entry, f"{prefix}{name}.{key}." if key else f"{prefix}{name}.")


def leaves_of(config: RunConfig) -> list[str]:
    found = []
    for prefix, section in sections_of(config):
        inner = {path for path, _ in sections_of(config)}
        names = [prefix + name for name in type(section).model_fields]
        found += [name for name in names if not any(path.startswith(f"{name}.") for path in inner)]
    return found


def with_other_value(section: Any, path: str) -> Any:
    """A copy in which one leaf has a value that no config has; unvalidated, so any will do."""
    name, _, rest = path.partition(".")
    if isinstance(section, dict):
        return {**section, name: with_other_value(section[name], rest)}
    if isinstance(section, list):
        return [with_other_value(entry, rest) if str(i) == name else entry for i, entry in enumerate(section)]
    value = with_other_value(getattr(section, name), rest) if rest else "another value"
    return section.model_copy(update={name: value})


LEAVES = {name: config for config in reversed(CONFIGS) for name in leaves_of(config)}


def test_the_leaves_are_all_there_are() -> None:
    """A section that is added to the config must be looked at by the test below."""

    def all_sections(base: type[Section]) -> set[type[Section]]:
        return {base}.union(*map(all_sections, base.__subclasses__()))

    seen = {cls for config in CONFIGS for _, section in sections_of(config) for cls in type(section).__mro__}
    # What only other commands read, `judge` and `reward-model`, has no run to resume.
    of_runs = {cls for cls in all_sections(Section) - {JudgesConfig} if cls.__module__ != RewardModelConfig.__module__}
    assert of_runs <= seen
    assert LEAVES.keys() >= CHANGEABLE


@pytest.mark.parametrize("leaf", sorted(LEAVES))
def test_only_what_cannot_change_the_data_may_change_on_resume(leaf: str) -> None:
    """Would catch a field that is marked by mistake, or loses its mark."""
    old, new = LEAVES[leaf], with_other_value(LEAVES[leaf], leaf)
    if leaf in CHANGEABLE:
        [line] = check_resumable(old, new)
        assert line.startswith(f"{leaf} was ") and line.endswith(' and is now "another value"')
    else:
        with pytest.raises(ConfigError, match=rf'^{re.escape(leaf)} was .* and is now "another value"\n'):
            check_resumable(old, new)
