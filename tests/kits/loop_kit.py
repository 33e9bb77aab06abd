"""Deterministic stand-ins for everything outside the loop, each of which writes down what it is asked.

A policy is four numbers, carried in safetensors bytes as an adapter; a base model is four zeros. The log-prob of a
token is a pure function of the prompt, the completion so far and these numbers, the same for learner and generator.
"""

from __future__ import annotations

import asyncio
import json
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np
from safetensors.numpy import load, save

from actors.writer_host import WriterHost
from online_dpo.config.run import RunConfig
from online_dpo.learner.grouping import round_batches
from online_dpo.learner.items import kind_of
from online_dpo.models.merging import Received
from online_dpo.types import (
    REWARD,
    Adapter,
    AnyItem,
    Completion,
    Demonstration,
    Item,
    Items,
    Judged,
    Labelled,
    Pair,
    Row,
    Sampled,
    SamplingPlan,
    Scores,
    Shard,
    TokenLogpRows,
    Verdict,
    WeightsRef,
    derive_seed,
)

EOS, VOCAB = 2, 40
Weights = tuple[float, ...]
BASE: Weights = (0.0, 0.0, 0.0, 0.0)
GIVEN: Weights = (0.2, 0.1, -0.4, 0.3)  # what `reference.path` names
CONFIG_JSON = b'{"peft_type": "LORA", "r": 1}'
TENSOR = "base_model.model.layers.0.lora_B.weight"


def make_adapter(version: int, weights: Weights) -> Adapter:
    return Adapter(version=version, weights=save({TENSOR: np.array(weights)}), config=CONFIG_JSON)


def weights_of(adapter: WeightsRef) -> Weights:
    if isinstance(adapter, str):
        assert adapter == "reference_model"
        return GIVEN
    return BASE if adapter is None else tuple(load(adapter.weights)[TENSOR].tolist())


@cache
def uniform(*parts: Any) -> float:
    """A number in [0, 1) that is a pure function of the parts."""
    return derive_seed(0, *map(repr, parts)) / 2**63


@cache
def features(prompt_ids: tuple[int, ...], prefix: tuple[int, ...]) -> tuple[float, ...]:
    return tuple(uniform("feature", i, prompt_ids, prefix) - 0.5 for i in range(len(BASE) + 1))


def token_logps(row: Row, weights: Weights) -> tuple[float, ...]:
    logps = []
    for end in range(1, len(row.completion_ids) + 1):
        base, *slopes = features(row.prompt_ids, row.completion_ids[:end])
        logps.append(base - 2.0 + sum(w * s for w, s in zip(weights, slopes, strict=True)))
    return tuple(logps)


class Tape(list[str]):
    """Calls and events in the order in which they happened; calls are indented."""

    def call(self, name: str, *details: Any) -> None:
        self.append(" ".join(["  " + name, *map(str, details)]))

    def calls(self, *names: str) -> list[str]:
        return [line.strip() for line in self if line.startswith("  ") and line.split()[0] in names]


class FakeLearner:
    """A step moves the weights by a pure function of weights, batch, step and dropout seed; momentum persists."""

    def __init__(self, tape: Tape, config: RunConfig, initial: Adapter | None) -> None:
        self.tape, self.config, self._initial = tape, config, initial
        self.weights, self.momentum = weights_of(initial), 0.0
        self.round, self.next_step = -1, 0
        self.references: list[
            tuple[int, *tuple[WeightsRef, ...]]
        ] = []  # (policy version of the pairs, what was handed in)
        self.scored_under: list[tuple[int, Sequence[WeightsRef]]] = []  # (rows, weights)

    def initial_adapter(self) -> Adapter | None:
        return self._initial

    def policy(self, version: int) -> Adapter:
        return make_adapter(version, self.weights)

    def score(self, rows: Sequence[Row], under: Sequence[Any]) -> list[Scores]:
        self.tape.call("score", len(rows), *(label(name) for name in under))
        self.scored_under.append((len(rows), under))
        return self.scores(rows, under)

    def check_logps(self, rows: Sequence[Row], under: Sequence[Any]) -> list[TokenLogpRows]:
        self.tape.call("check_logps", len(rows), *(label(name) for name in under))
        return [scores.token_logps for scores in self.scores(rows, under)]

    def scores(self, rows: Sequence[Row], under: Sequence[Any]) -> list[Scores]:
        found = []
        for name in under:
            weights = self.weights if name == "policy" else weights_of(name)
            logps = tuple(token_logps(row, weights) for row in rows)
            entropies = tuple(tuple(-x for x in row) for row in logps) if name == "policy" else None
            found.append(Scores(token_logps=logps, entropies=entropies))
        return found

    def reference_logps(self, items: Sequence[Item], references: Sequence[WeightsRef]) -> list[Item]:
        self.tape.call("reference_logps", len(items), *map(label, references))
        self.references.append((versions_of(items[0])[0], *references))
        weights = [weights_of(reference) for reference in references]
        if not references:
            return list(items)
        return [
            kind_of(item).with_reference(
                item, [[token_logps(row, w) for w in weights] for row in kind_of(item).scored_rows(item)]
            )
            for item in items
        ]

    def begin_round(self, round_index: int, items: Items, beta_factor: float = 1.0) -> int:
        section, run = self.config.learner, self.config.run
        self.items, self.beta_factor = list(items), beta_factor
        self.batches = round_batches(
            len(items), section.batch_pairs, epochs=section.epochs, seed=run.seed, round_index=round_index
        )
        if round_index != self.round:
            self.round, self.next_step = round_index, 0
        self.tape.call("begin_round", round_index, f"from={self.next_step}")
        return len(self.batches)

    def step(self, step: int) -> dict[str, float]:
        self.tape.call("step", self.round, step)
        assert step == self.next_step, "a step was repeated or left out"
        batch = [self.items[i] for i in self.batches[step]]
        gains = [self.gap(item) for item in batch]
        seed = derive_seed(self.config.run.seed, "dropout", self.round, step)
        self.momentum = 0.5 * self.momentum + self.beta_factor - 0.1 * sum(gains) / len(gains)
        answers = [kind_of(item).scored_rows(item)[0].completion_ids for item in batch]
        moves = [uniform("move", i, seed, *answers) for i in range(len(BASE))]
        self.weights = tuple(w + self.momentum * (m - 0.3) for w, m in zip(self.weights, moves, strict=True))
        self.next_step = step + 1
        return {
            "loss": -sum(gains) / len(gains),
            "reward_accuracy": sum(gain > 0 for gain in gains) / len(gains),
            "num_pairs": float(len(batch)),
        }

    def gap(self, item: AnyItem) -> float:
        """By how much the policy prefers the chosen answer, or what was labelled desirable, to the reference."""
        logps = [sum(token_logps(row, self.weights)) for row in kind_of(item).scored_rows(item)]
        if isinstance(item, Pair):
            assert item.chosen_ref_logps is not None and item.rejected_ref_logps is not None
            return logps[0] - item.chosen_ref_logps - (logps[1] - item.rejected_ref_logps)
        if isinstance(item, Demonstration):
            return logps[0] / item.num_trained
        assert item.ref_logps is not None
        return (logps[0] - item.ref_logps) * (1 if item.desirable else -1)

    def checkpoint(self) -> dict[str, bytes]:
        self.tape.call("checkpoint", self.round, self.next_step)
        state = {"momentum": self.momentum, "round": self.round, "next_step": self.next_step}
        return {**self.policy(self.round).files(), "state.json": json.dumps(state).encode()}

    def restore(self, files: Mapping[str, bytes]) -> None:
        assert set(files) == {"adapter_config.json", "adapter_model.safetensors", "state.json"}
        state = json.loads(files["state.json"])
        self.weights = weights_of(Adapter.from_files(0, files))
        self.momentum, self.round, self.next_step = state["momentum"], state["round"], state["next_step"]
        self.tape.call("restore", self.round, self.next_step)


class FakeGenerator:
    """One engine. Subclasses misbehave; the honest one samples from exactly what was pushed."""

    def __init__(self) -> None:
        self.weights, self.version = BASE, 0
        self.sampling_weights = BASE  # another than `weights` only where a cache is stale

    def push(self, adapter: Adapter | None, version: int) -> Received:
        self.weights = self.sampling_weights = weights_of(adapter)
        self.version = version
        return Received(digest=None if adapter is None else adapter.digest)

    def sleep(self) -> None:
        """What is there after a wake-up is not to be trusted."""
        self.weights = self.sampling_weights = tuple(weight + 1.0 for weight in self.weights)

    def probe(self, rows: Sequence[Row]) -> list[tuple[float, ...]]:
        return [token_logps(row, self.weights) for row in rows]

    def sample(self, shard: Shard, plan: SamplingPlan) -> tuple[Completion, ...]:
        found = []
        for prompt in shard.prompts:
            for index in range(plan.num_samples):
                seed = derive_seed(plan.run_seed, plan.purpose, plan.round_index, prompt.prompt_id, index)
                rng = random.Random(repr((seed, prompt.token_ids, self.sampling_weights)))
                tokens = [rng.randrange(3, VOCAB) for _ in range(rng.randint(2, plan.max_tokens))]
                stops = rng.random() < 0.7
                tokens[-1] = EOS if stops else tokens[-1]
                row = Row(prompt_ids=prompt.token_ids, completion_ids=tuple(tokens))
                found.append(
                    Completion(
                        prompt_id=prompt.prompt_id,
                        sample_index=index,
                        token_ids=row.completion_ids,
                        text=" ".join(f"w{token}" for token in tokens),
                        finish_reason="stop" if stops else "length",
                        sampler_logps=token_logps(row, self.sampling_weights),
                        policy_version=self.version,
                        seed=seed,
                    )
                )
        return tuple(found)


def by_text(text: str) -> float:
    """The usual fake judge."""
    return round(4.0 * uniform("judge", text), 3)


Order = Callable[[Sequence["FakeTask"]], int]
"""Which of the tasks under way is done next."""

ORDERS: dict[str, Order] = {"fifo": lambda tasks: 0, "lifo": lambda tasks: len(tasks) - 1}


def shuffled(seed: int) -> Order:
    rng = random.Random(seed)
    return lambda tasks: rng.randrange(len(tasks))


@dataclass(eq=False)
class FakeTask:
    name: str
    result: Callable[[], Any]
    replica: int | None = None  # of sampling tasks


class FakeStages:
    """The world in one process. Work is done when it is waited for, in the given order."""

    def __init__(
        self,
        config: RunConfig,
        *,
        initial: Adapter | None = None,
        order: Order = ORDERS["fifo"],
        generators: Sequence[FakeGenerator] | None = None,
        judge: Callable[[str], float] = by_text,
        tape: Tape | None = None,
        writers: Mapping[str, WriterHost] | None = None,
    ) -> None:
        self.tape = Tape() if tape is None else tape
        self.writers, self._loop = writers or {}, asyncio.new_event_loop()
        self.learner = FakeLearner(self.tape, config, initial)
        self.generators = [FakeGenerator()] if generators is None else list(generators)
        self.order, self.judge = order, judge
        self._fresh: set[int] = set()

    def sleep(self) -> None:
        self.tape.call("sleep")
        for generator in self.generators:
            generator.sleep()

    def wake(self) -> None:
        self.tape.call("wake")

    def push(self, adapter: Adapter | None, version: int) -> list[Received]:
        self.tape.call("push", version, label(adapter))
        self._fresh = set(range(len(self.generators)))
        return [generator.push(adapter, version) for generator in self.generators]

    def probe(self, rows: Sequence[Row]) -> list[list[tuple[float, ...]]]:
        self.tape.call("probe", len(rows))
        return [generator.probe(rows) for generator in self.generators]

    def start_sampling(self, shard: Shard, plan: SamplingPlan, version: int) -> FakeTask:
        replica = shard.index % len(self.generators)
        self.tape.call("sample", who := name_shard(version, [prompt.prompt_id for prompt in shard.prompts]))
        return FakeTask(f"sample {who}", lambda: self.generators[replica].sample(shard, plan), replica)

    def start_judging(
        self, judge: str, shard: Shard, completions: Sequence[Completion], *, again: bool = False
    ) -> FakeTask:
        who, verb = shard_of(completions), "repeat" if again else "judge"
        self.tape.call(verb, judge, who)
        return FakeTask(f"{verb} {judge} {who}", lambda: self.judged(judge, shard, completions, again))

    def start_writing(
        self, source: str, shard: Shard, prompt_ids: Sequence[str], samples: Sequence[Completion], round_index: int
    ) -> FakeTask:
        """By a real host, whose connections need one event loop."""
        who = ",".join(prompt_ids)
        self.tape.call("write", source, who)
        write = self.writers[source].write_shard
        return FakeTask(
            f"write {source} {who}",
            lambda: self._loop.run_until_complete(write(shard, prompt_ids, samples, round_index)),
        )

    def start_rescoring(self, rows: Sequence[Row], under: Sequence[Any]) -> FakeTask:
        self.tape.call("rescore", len(rows), *(label(name) for name in under))
        return FakeTask("rescore", lambda: [scores.token_logps for scores in self.learner.scores(rows, under)])

    def start_learner(self, method: str, *args: Any) -> FakeTask:
        return FakeTask(method, lambda: getattr(self.learner, method)(*args))

    def first_done(self, tasks: Sequence[FakeTask]) -> tuple[FakeTask, Any]:
        task = tasks[self.order(tasks)]
        self.tape.call("done:", task.name)
        result = task.result()
        if task.replica is not None:
            first = task.replica in self._fresh
            self._fresh.discard(task.replica)
            result = Sampled(first_since_push=first, completions=result)
        return task, result

    def judged(self, judge: str, shard: Shard, completions: Sequence[Completion], again: bool) -> Judged:
        return self._judged(judge, completions)

    def _judged(self, judge: str, completions: Sequence[Completion]) -> Judged:
        text = {REWARD: lambda c: c.text}.get(judge, lambda c: f"{judge} {c.text}")
        verdicts = [
            Verdict(prompt_id=c.prompt_id, first=c.sample_index, score=self.judge(text(c))) for c in completions
        ]
        return Judged(verdicts=tuple(verdicts), counters={"num_judge_calls": 1})


def name_shard(version: int, prompt_ids: Sequence[str]) -> str:
    """Unique in a run: prompts differ within it, and evaluation sets have prompts of their own."""
    return f"v{version} {','.join(prompt_ids)}"


def shard_of(completions: Sequence[Completion]) -> str:
    """The same name, from what was sampled for the shard."""
    return name_shard(completions[0].policy_version, list(dict.fromkeys(c.prompt_id for c in completions)))


def label(weights: Any) -> str:
    if weights is None or isinstance(weights, str):
        return weights or "base"
    return f"v{weights.version}"


def versions_of(item: Pair | Labelled) -> list[int]:
    """Policy versions that an item's completions were sampled from."""
    answers = [item.chosen, item.rejected] if isinstance(item, Pair) else [item.completion]
    return [answer.policy_version for answer in answers]
