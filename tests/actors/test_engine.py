"""The loop on real vLLM and Ray: do generator and learner hold the same weights, and does the run stop if not?"""

from __future__ import annotations

import json
import math
import sys
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil
import pytest
import ray
import torch
from browser_kit import Visit
from engine_kit import World, left_of, small_config
from people_browser_kit import EXCLUDED, answer_all, answers, how_often_right, people, people_config, wanted
from transformers import AutoTokenizer

from actors.cluster import RayStages
from online_dpo.commands.preparing.inputs import inspect_inputs, load_inputs, prepare
from online_dpo.commands.preparing.specs import engine_spec, learner_spec
from online_dpo.commands.run import play
from online_dpo.config.loading import dump_config
from online_dpo.config.run import RunConfig
from online_dpo.errors import JudgeError, WeightMismatchError
from online_dpo.loop.draws import training_plan
from online_dpo.models.merging import Received
from online_dpo.reports.run_result import Awaited
from online_dpo.statistics.samples import paired_bootstrap
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Completion, Pair, Row, Shard

# Faults are functions that run inside the generator's process, which cannot import this file.
ray.cloudpickle.register_pickle_by_value(sys.modules[__name__])


@pytest.fixture(scope="session", params=["merge", "lora"])
def world(request: pytest.FixtureRequest, tmp_path_factory: Any, tiny_model: Path, ray_local: None) -> Iterator[World]:
    folder = tmp_path_factory.mktemp(f"world-{request.param}")
    world = World(small_config(folder, tiny_model, [f"generator.weight_push={request.param}"]))
    yield world
    world.close()


@pytest.fixture(scope="session")
def finished(world: World, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    """A finished run of two rounds, and its events."""
    path = tmp_path_factory.mktemp("finished") / "run"
    return path, world.run(path)


def big_adapter(world: World, targets: list[str] | None = None) -> Adapter:
    """The learner's adapter with large random values, optionally on some layers only."""
    from safetensors.torch import load, save

    fresh = world.stages.learner.policy(1)
    generator = torch.Generator().manual_seed(7)
    tensors = {
        name: 0.3 * torch.randn(tensor.shape, generator=generator)
        for name, tensor in load(fresh.weights).items()
        if targets is None or any(f".{target}." in name for target in targets)
    }
    config = json.loads(fresh.config)
    config["target_modules"] = targets or config["target_modules"]
    return Adapter(version=1, weights=save(tensors, metadata={"format": "pt"}), config=json.dumps(config).encode())


def transformers_logps(model: Path, adapter: Adapter, rows: list[Row], folder: Path) -> list[list[float]]:
    """Plain transformers + PEFT in float64, one sequence at a time: none of our code."""
    from peft import PeftModel
    from transformers import AutoModelForCausalLM

    for name, content in adapter.files().items():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(content)
    base = AutoModelForCausalLM.from_pretrained(model, dtype=torch.float64)
    policy = PeftModel.from_pretrained(base, str(folder)).double().eval()
    found = []
    with torch.no_grad():
        for row in rows:
            ids = torch.tensor([row.prompt_ids + row.completion_ids])
            logps = policy(input_ids=ids).logits[0].log_softmax(-1)
            start = len(row.prompt_ids)
            found.append([logps[start + i - 1, token].item() for i, token in enumerate(row.completion_ids)])
    return found


@pytest.mark.parametrize("targets", [None, ["q_proj", "v_proj"]], ids=["all-linear", "q-and-v"])
def test_pushed_adapter_is_what_transformers_computes(
    world: World, targets: list[str] | None, tiny_model: Path, tmp_path: Path
) -> None:
    """A wrong scale, a lost layer, or uninitialised halves of a packed qkv would be off by whole nats."""
    adapter, rows = big_adapter(world, targets), list(world.materials.job.probe)
    base = world.stages.probe(rows)[0]
    try:
        (received,) = world.stages.push(adapter, 1)
        assert received.digest == adapter.digest
        is_merged = world.materials.config.generator.weight_push == "merge"
        assert received.applied > 0.9999 if is_merged else received.applied is None
        found = world.stages.probe(rows)[0]
    finally:
        world.stages.push(None, 0)
    expected = transformers_logps(tiny_model, adapter, rows, tmp_path / "adapter")
    # Float32 against float64: such large values amplify rounding to 1.2e-4 nats (seen); the effect is whole nats.
    assert max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)) < 1e-3
    assert max(abs(a - b) for x, y in zip(found, base, strict=True) for a, b in zip(x, y, strict=True)) > 1.0
    assert world.stages.probe(rows)[0] == base  # the base did not drift


def test_an_engine_that_woke_samples_only_after_a_push(world: World) -> None:
    """On CPU a sleep moves nothing, and the weights count no more all the same."""
    rows, generator = list(world.materials.job.probe), world.stages._generators[0]
    shard = Shard(index=0, prompts=(world.materials.first,))
    plan = training_plan(world.materials.config, 0)
    adapter = big_adapter(world)
    try:
        assert [received.digest for received in world.stages.push(adapter, 1)] == [adapter.digest]
        before, sampled = world.stages.probe(rows), generator.call("sample", shard, plan, 1)
        for wake in (lambda: None, world.stages.wake, world.stages.wake):  # twice does no harm
            world.stages.sleep()
            wake()
            with pytest.raises(WeightMismatchError, match="policy 1 was to be sampled and the engine holds None"):
                generator.call("sample", shard, plan, 1)
        assert [received.digest for received in world.stages.push(adapter, 1)] == [adapter.digest]
        assert world.stages.probe(rows) == before
        assert generator.call("sample", shard, plan, 1) == sampled
    finally:
        world.stages.push(None, 0)


def test_sampled_log_probs_are_the_reference_s_whatever_they_were_sampled_with(world: World, tmp_path: Path) -> None:
    """Cold samples from a part of the vocabulary, whose log-probs stand for a pass of the learner. Would catch
    log-probs after temperature or top_p, which are off by tenths of a nat per token."""
    old = world.materials.config
    changes = {
        "run": {"rounds": 1},
        "sampling": {"temperature": 0.6, "top_p": 0.8},
        "reference": {"logps": "sampler"},
    }
    config = old.model_copy(
        update={name: getattr(old, name).model_copy(update=values) for name, values in changes.items()}
    )
    summary = world.run(tmp_path / "run", config).last("round_done")
    assert summary["num_reference_sampler"] == summary["num_pairs"] > 0 == summary["num_reference_recomputed"]
    assert summary["reference_gap"] < 1e-4
    with RunStore.read(tmp_path / "run") as store:
        pairs = store.round(0).get_records("pairs", Pair)
    recomputed = world.stages.learner.reference_logps(pairs, [None])
    tokenizer = AutoTokenizer.from_pretrained(config.model.path)
    texts = {
        c.text: tokenizer.decode(c.token_ids, skip_special_tokens=True) for p in pairs for c in (p.chosen, p.rejected)
    }
    whole = {text: decoded for text, decoded in texts.items() if "\ufffd" not in decoded}  # no bytes cut in half
    assert whole and all(text == decoded for text, decoded in whole.items())
    for used, other in zip(pairs, recomputed, strict=True):
        assert used.chosen_ref_logps == pytest.approx(other.chosen_ref_logps, abs=1e-3)
        assert used.rejected_ref_logps == pytest.approx(other.rejected_ref_logps, abs=1e-3)


def test_every_round_is_checked_and_has_power(finished: tuple[Path, Any]) -> None:
    path, tape = finished
    pushed = [event.data for event in tape.events if event.kind == "pushed"]
    assert [data["policy_version"] for data in pushed] == [0, 1, 2]
    assert all(data["probe_gap"] < 1e-4 for data in pushed)
    assert all(data["probe_has_power"] and data["probe_gap_previous"] > 1e-3 for data in pushed[1:])
    evaluated = [event.data for event in tape.events if event.kind == "evaluated"]
    assert [data["policy_version"] for data in evaluated] == [0, 1, 2]
    rescored = [event.data for event in tape.events if event.kind == "rescored"]
    assert [data["base"] for data in rescored] == ["evaluation-initial/heldout/"] + 2 * ["evaluation/heldout/"]
    assert all(data["sampled_gap"] < 1e-4 for data in rescored)
    assert all(data["sampled_has_power"] for data in rescored[1:])
    with RunStore.read(path) as store:
        for index in (0, 1):
            for shard in (0, 1):
                records = store.round(index).get_records(f"completions/shard-{shard:05d}", Completion)
                assert {completion.policy_version for completion in records} == {index}
                assert len({completion.seed for completion in records}) == len(records) == 12


def test_first_step_of_a_round_with_a_fresh_reference_has_loss_ln_2(finished: tuple[Path, Any]) -> None:
    """Invariant 4, through the real sampler, store and actors."""
    steps = [event.data for event in finished[1].events if event.kind == "step"]
    first = [data["loss"] for data in steps if data["step"] == 0]
    assert len(first) == 2
    assert all(abs(loss - math.log(2)) < 1e-5 for loss in first)
    assert abs(steps[1]["loss"] - math.log(2)) > 1e-4  # the update moved the policy away


def test_shards_are_judged_while_later_ones_are_sampled(finished: tuple[Path, Any]) -> None:
    events = [event for event in finished[1].events if event.data.get("base") == "" and event.round_index == 0]
    kinds = [(event.kind, event.data["shard"]) for event in events]
    assert kinds.index(("judging_started", 0)) < kinds.index(("shard_sampled", 1))
    assert {kind for kind, _ in kinds} == {"shard_sampled", "judging_started", "shard_judged"}


def test_kl_is_measured_on_the_updated_policy(finished: tuple[Path, Any]) -> None:
    evaluated = [event.data for event in finished[1].events if event.kind == "evaluated"]
    assert evaluated[0]["kl_initial"] == 0.0 and evaluated[0]["kl_reference"] == 0.0
    assert evaluated[1]["kl_initial"] == evaluated[1]["kl_reference"] > 1e-4  # round 0 trained with the initial policy
    assert evaluated[2]["kl_reference"] != evaluated[2]["kl_initial"] > 1e-4  # round 1 with the refreshed one


def test_committed_adapter_loads_in_plain_peft(
    world: World, finished: tuple[Path, Any], tiny_model: Path, tmp_path: Path
) -> None:
    with RunStore.read(finished[0]) as store:
        adapter = Adapter.from_files(2, store.round(1).get_files("adapter"))
        pairs = store.round(1).get_records("pairs", Pair)
    rows = [Row.of(pair.prompt, pair.chosen) for pair in pairs]
    expected = transformers_logps(tiny_model, adapter, rows, tmp_path / "adapter")
    found = world.stages.learner.score(rows, [adapter])[0].token_logps
    assert max(abs(a - b) for x, y in zip(found, expected, strict=True) for a, b in zip(x, y, strict=True)) < 1e-4


def skip_push(generator: Any) -> None:
    """Once there is something to push: report the right digest, keep the old weights."""
    replace_loading(generator, lambda honest, adapter: honest(adapter) if adapter is None else adapter.digest)


def tamper(generator: Any) -> None:
    """One flipped bit on the way."""

    def load(honest: Any, adapter: Adapter | None) -> str | None:
        if adapter is not None:
            weights = bytearray(adapter.weights)
            weights[-1] ^= 1
            adapter = Adapter(version=adapter.version, weights=bytes(weights), config=adapter.config)
        return honest(adapter)

    replace_loading(generator, load)


def replace_loading(generator: Any, load: Any) -> None:
    """Put `load(honest, adapter) -> digest` where the engine takes its weights, by either push."""
    if generator._slots is not None:
        honest_load = generator._slots.load
        generator._slots.load = lambda adapter: load(honest_load, adapter)
        return
    honest_rpc = generator._llm.collective_rpc

    def collective_rpc(method: str, args: tuple[Any, ...]) -> list[Any]:
        def honest(adapter: Adapter | None) -> str | None:
            files = (None, None) if adapter is None else (adapter.weights, adapter.config)
            received: Received = honest_rpc(method, args=(args[0], *files, args[-1]))[0]
            return received.digest

        weights, config = args[1:3]
        adapter = None if weights is None else Adapter(version=0, weights=weights, config=config)
        return [Received(digest=load(honest, adapter))]

    generator._llm.collective_rpc = collective_rpc


def keep_cache(generator: Any) -> None:
    """Never clear the prefix cache, and make the engine believe that the adapters of all versions are one."""
    generator._reset_prefix_cache = lambda: None
    if generator._slots is not None:
        honest = generator._slots.load

        def load(adapter: Adapter) -> str:
            digest = honest(adapter)
            # vLLM keys cached blocks by the adapter's name and path.
            generator._slots.current.lora_name = generator._slots.current.lora_path = "policy"
            return digest

        generator._slots.load = load


def repair(generator: Any) -> None:
    generator.__dict__.pop("_reset_prefix_cache", None)
    generator._llm.__dict__.pop("collective_rpc", None)
    if generator._slots is not None:
        generator._slots.__dict__.pop("load", None)
    generator._llm.reset_prefix_cache()


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        (skip_push, "disagree on the probe"),
        (tamper, "received adapter"),
        (keep_cache, "disagree on the sampled"),
    ],
)
def test_a_generator_with_other_weights_stops_the_run(world: World, fault: Any, message: str, tmp_path: Path) -> None:
    """In every case the round's training is committed, and nothing that was sampled from the wrong weights is."""
    world.sabotage(fault)
    try:
        with pytest.raises(WeightMismatchError, match=message):
            world.run(tmp_path / "run")
    finally:
        world.sabotage(repair)
    with RunStore.read(tmp_path / "run") as store:
        stopped = store.round(len(store.finished_rounds()))
        assert stopped.has("adapter")
        assert not any(name.startswith("evaluation/heldout/completions") for name in stopped.names())


def test_a_broken_judge_ends_the_engines_that_load_meanwhile(ray_local: None, tiny_model: Path, tmp_path: Path) -> None:
    """Would catch engines that start only after the judges, or that are waited for or left behind when one is bad."""
    config = small_config(tmp_path, tiny_model)
    (tmp_path / "judge.py").write_text("def score(prompt, completion):\n    return 'kind'\n")
    materials = prepare(config)
    stages = RayStages(materials.config, engine_spec(materials))
    before = set(psutil.Process().children(recursive=True))
    with pytest.raises(JudgeError, match="kind"):
        stages.start_judges(materials.judges, learner_spec(materials), first=materials.first)
    engines = [*stages._generators, stages.learner.host]  # type: ignore[attr-defined]
    assert len(engines) == 2 and not any(engine.is_ready for engine in engines)
    started = set(psutil.Process().children(recursive=True)) - before
    stages.close()
    # A worker whose actor was given up before it began waits for Ray to give it another one.
    assert len(started) >= 3 and left_of(list(started), 30.0, idle="ray::IDLE") == []


def test_actors_load_no_library_that_nothing_uses(world: World) -> None:
    def found(host: Any) -> set[str]:
        return {"sklearn", "pandas"} & set(sys.modules)

    hosts = [*world.stages._generators, world.stages.learner.host]  # type: ignore[attr-defined]
    assert [host.call("__ray_call__", found) for host in hosts] == [set(), set()]


@pytest.mark.parametrize("world", ["merge"], indirect=True)
def test_five_people_in_browsers_teach_the_policy_what_they_want(world: World, visit: Visit, tmp_path: Path) -> None:
    """One of them presses any key. Would catch votes that are lost or turned round between page, verdict and pair."""
    config = people_config(tmp_path, world.materials.config)
    materials = load_inputs(inspect_inputs(config))
    four = config.model_copy(update={"judge": config.judge.model_copy(update={"annotators": 4})})
    world.stages.learner.restore(world._fresh)
    rights = {"Ada": 0.9, "Bob": 0.85, "Cem": 0.8, "Dora": 0.75, "Eve": None}
    with RunStore.create(config.run_dir, config_yaml=dump_config(config), info={}) as store:

        def go_on(config: RunConfig) -> Awaited | None:
            job = replace(materials.job, config=config)
            return play(replace(materials, config=config, job=job), world.stages, store, []).awaited

        assert go_on(config) == Awaited(num_questions=30, num_missing_votes=150)
        with people(config.run_dir, rights, visit) as everybody:
            told = answer_all(config.run_dir, everybody)
            assert [name for name, notice in told.items() if notice == EXCLUDED] == ["Eve"]
            assert go_on(config) == Awaited(num_questions=30, num_missing_votes=30), "her votes are wanted of others"
            assert go_on(four) == Awaited(num_questions=30, num_missing_votes=120), "the second round"
            answer_all(config.run_dir, everybody)
            assert go_on(four) is None
            names = {person.annotator: person.name for person in everybody}
        votes, right = how_often_right(store, names)
        counted = Counter(names[vote.annotator] for vote in votes if vote.counts)
        assert counted == dict.fromkeys(("Ada", "Bob", "Cem", "Dora"), 60)
        assert {vote.status for vote in votes if names[vote.annotator] == "Eve"} == {"excluded"}
        assert right["consensus"] >= 2 + max(right[name] for name in counted), right
        policies = ((0, "evaluation-initial/heldout/"), (1, "evaluation/heldout/"))
        before, after = ({c.prompt_id: float(wanted(c.text)[0]) for c in answers(store, *place)} for place in policies)
        gain = paired_bootstrap(before, after, seed=0)
        assert gain is not None and gain[1] > 0.0, gain
