"""The stages of a run as Ray actors: generators, a host for each judge, one learner."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, cast

import ray

from actors.generator import EngineSpec, Generator
from actors.judge_host import JudgeHost
from actors.learner_host import LearnerHost
from actors.session import fetch, has_gpus
from judges.registry import JudgeSpec
from online_dpo.config.run import RunConfig
from online_dpo.errors import ActorError, JudgeError, ModelError, UserError
from online_dpo.learner.learner import LearnerSpec
from online_dpo.loop.stages import LearnerStage
from online_dpo.loop.weight_sync import check_digests
from online_dpo.types import (
    REWARD,
    Adapter,
    Completion,
    Prompt,
    Row,
    Sampled,
    SamplingPlan,
    Shard,
    TokenLogpRows,
    WeightsRef,
)

GENERATOR_CPUS = LEARNER_CPUS = 1.0
"""Logical CPUs: generator and learner take turns, so reserving the cores that each can use would only block them."""

GOODBYE_S = 10.0
"""How long engines may take to shut down before they are killed."""


@dataclass(eq=False, slots=True)
class RayTask:
    """A call under way, and how to make it again on a fresh generator."""

    ref: Any
    what: str
    pid: int | None = None
    replica: int | None = None  # of a sampling task
    call: tuple[Any, ...] = ()  # its arguments


class RemoteLearner:
    """`LearnerStage` over an actor: each method is a call that is waited for."""

    def __init__(self, actor: Any, pid: int) -> None:
        self._actor, self._pid = actor, pid

    def __getattr__(self, name: str) -> Any:
        method = getattr(self._actor, name)
        return lambda *args: fetch(method.remote(*args), "the learner", pid=self._pid)


class RayStages:
    """`online_dpo.loop.stages.Stages` on a Ray cluster.

    A generator that dies is replaced: the new one takes the current policy, and the shards that the old one held are
    sampled again. Their seeds make them the same.
    """

    def __init__(self, config: RunConfig, engine: EngineSpec, generator_class: type[Generator] = Generator) -> None:
        self._config, self._engine, self._generator_class = config, engine, generator_class
        self._judges: dict[str, Any] = {}
        self._generators: list[Any] = []
        self._pids: list[int] = []
        self._load: list[int] = []
        self._restarts = [0] * config.generator.replicas
        self._pushed: tuple[Adapter | None, int] | None = None
        self._fresh: set[int] = set()  # replicas that sampled nothing since they took their weights
        self._learner: RemoteLearner | None = None

    # Start and end

    def start_judges(
        self,
        specs: Mapping[str, JudgeSpec],
        *,
        first: Prompt,
        counted: Mapping[str, Mapping[str, float]] | None = None,
    ) -> None:
        """Start every judge's host and try it on two canned completions, before any engine starts.

        Args:
            specs: judge's name -> judge.
            first: the run's first prompt; the trial's prompt is of its form and has its metadata.
            counted: judge's name -> sums of its counters in the run so far.

        Raises:
            JudgeError: judges cannot be built or do not keep their contract; a line for each.
        """
        for name, spec in specs.items():
            section = spec.section
            threads = cast(int, section.threads)
            options = _actor_options(section.num_cpus, section.num_gpus, threads)
            host: Any = ray.remote(JudgeHost).options(**options)
            self._judges[name] = host.remote(spec, threads=threads, counted=(counted or {}).get(name))
        chat, metadata = first.messages is not None, dict(first.metadata)
        rules = {REWARD: self._config.pairing}
        trials = {name: host.try_it.remote(chat, metadata, rules.get(name)) for name, host in self._judges.items()}
        problems = []
        for name, trial in trials.items():
            try:
                fetch(trial, f"judge {name}", timeout_s=self._config.cluster.start_timeout_s)
            except (JudgeError, ModelError) as error:  # whoever has several judges learns about all of them at once
                problems.append(str(error))
        if problems:
            raise JudgeError("\n".join(problems))

    def start_engines(self, learner: LearnerSpec) -> None:
        """Start the generators (where anything is sampled) and the learner, side by side; wait until all are up."""
        num_gpus = self._learner_gpus()
        options = _actor_options(LEARNER_CPUS, num_gpus, cast(int, self._config.learner.threads))
        actor: Any = ray.remote(LearnerHost).options(**options).remote(learner)
        num_generators = self._config.generator.replicas if self._config.needs_generators else 0
        self._generators = [self._new_generator() for _ in range(num_generators)]
        self._load = [0] * len(self._generators)
        timeout_s = self._config.cluster.start_timeout_s
        self._learner = RemoteLearner(actor, fetch(actor.ready.remote(), "the learner", timeout_s=timeout_s))
        self._pids = [
            fetch(generator.ready.remote(), f"generator {i}", timeout_s=timeout_s)
            for i, generator in enumerate(self._generators)
        ]

    def close(self) -> None:
        """End our own actors; a cluster that others use stays as it was."""
        ending = [generator.close.remote() for generator in self._generators]
        if ending:
            ray.wait(ending, num_returns=len(ending), timeout=GOODBYE_S)
        learner = [self._learner._actor] if self._learner is not None else []
        for actor in [*self._generators, *self._judges.values(), *learner]:
            ray.kill(actor)

    # The protocol

    @property
    def learner(self) -> LearnerStage:
        return cast(LearnerStage, self._learner)

    def push(self, adapter: Adapter | None, version: int) -> list[str | None]:
        self._pushed = (adapter, version)
        self._fresh = set(range(len(self._generators)))
        shared = ray.put(adapter)  # once into the object store; every generator fetches it from there
        refs = [generator.push.remote(shared, version) for generator in self._generators]
        return [fetch(ref, f"generator {i}", pid=self._pids[i]) for i, ref in enumerate(refs)]

    def probe(self, rows: Sequence[Row]) -> list[TokenLogpRows]:
        refs = [generator.probe.remote(rows) for generator in self._generators]
        return [fetch(ref, f"generator {i}", pid=self._pids[i]) for i, ref in enumerate(refs)]

    def start_sampling(self, shard: Shard, plan: SamplingPlan, version: int) -> RayTask:
        replica = min(range(len(self._generators)), key=lambda i: (self._load[i], i))
        self._load[replica] += 1
        task = RayTask(ref=None, what=f"generator {replica}", replica=replica, call=(shard, plan, version))
        return self._sample(task)

    def start_judging(
        self, judge: str, shard: Shard, completions: Sequence[Completion], *, again: bool = False
    ) -> RayTask:
        ref = self._judges[judge].judge_shard.remote(shard, list(completions), again)
        return RayTask(ref=ref, what=f"judge {judge}")

    def start_scoring(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> RayTask:
        learner = cast(RemoteLearner, self._learner)
        return RayTask(ref=learner._actor.score.remote(rows, under), what="the learner", pid=learner._pid)

    def first_done(self, tasks: Sequence[Any]) -> tuple[RayTask, Any]:
        while True:
            by_ref = {task.ref: task for task in tasks}
            ready, _ = ray.wait(list(by_ref), num_returns=1)
            task = by_ref[ready[0]]
            if task.replica is None:
                return task, fetch(task.ref, task.what, pid=task.pid)
            try:
                completions = fetch(task.ref, task.what, pid=self._pids[task.replica])
            except ActorError as error:
                self._replace(task.replica, error)
                for other in tasks:
                    if other.replica == task.replica:
                        self._sample(other)
                continue
            self._load[task.replica] -= 1
            first = task.replica in self._fresh
            self._fresh.discard(task.replica)
            return task, Sampled(first_since_push=first, completions=tuple(completions))

    # Generators

    def _sample(self, task: RayTask) -> RayTask:
        task.ref = self._generators[cast(int, task.replica)].sample.remote(*task.call)
        return task

    def _new_generator(self) -> Any:
        section = self._config.generator
        num_gpus = section.num_gpus if section.num_gpus != "auto" else (section.tensor_parallel if has_gpus() else 0)
        threads = max(1, cast(int, section.threads) // section.tensor_parallel)  # of each of the engine's workers
        options = _actor_options(GENERATOR_CPUS, num_gpus, threads)
        options["runtime_env"]["env_vars"]["VLLM_CPU_KVCACHE_SPACE"] = str(section.kv_cache_gib)
        return ray.remote(self._generator_class).options(**options).remote(self._engine)

    def _replace(self, replica: int, error: ActorError) -> None:
        """A fresh engine with the current policy in the place of one that failed."""
        if self._restarts[replica] >= self._config.generator.max_restarts:
            raise ActorError(
                f"{error}\ngenerator {replica} was restarted {self._restarts[replica]} times; generator.max_restarts "
                f"is {self._config.generator.max_restarts}"
            ) from None
        self._restarts[replica] += 1
        ray.kill(self._generators[replica])
        self._generators[replica] = self._new_generator()
        timeout_s = self._config.cluster.start_timeout_s
        what = f"the restarted generator {replica}"
        self._pids[replica] = fetch(self._generators[replica].ready.remote(), what, timeout_s=timeout_s)
        if self._pushed is not None:
            adapter, version = self._pushed
            digest = fetch(self._generators[replica].push.remote(adapter, version), what, pid=self._pids[replica])
            check_digests(adapter, [digest])
            self._fresh.add(replica)

    def _learner_gpus(self) -> float:
        section = self._config.learner
        if section.num_gpus != "auto":
            return float(section.num_gpus)
        if not has_gpus():
            return 0.0
        generator = self._config.generator
        taken = generator.num_gpus if generator.num_gpus != "auto" else generator.tensor_parallel
        if not self._config.needs_generators:
            taken = 0
        total = ray.cluster_resources()["GPU"]
        if taken * generator.replicas + 1 > total:
            raise UserError(
                f"the cluster has {total:g} GPUs and the generators take {taken * generator.replicas:g}; nothing is "
                f"left for the learner: set generator.num_gpus and learner.num_gpus to fractions that add up, as "
                f"configs/one-gpu.yaml does"
            )
        return 1.0


def cpus_needed(config: RunConfig) -> float:
    """Logical CPUs that a run's actors reserve."""
    judges = [config.judge, config.pairing.annotator, *config.evaluation.judges.values()]
    num_generators = config.generator.replicas if config.needs_generators else 0
    return GENERATOR_CPUS * num_generators + LEARNER_CPUS + sum(judge.num_cpus for judge in judges if judge is not None)


def _actor_options(num_cpus: float, num_gpus: float, threads: int) -> dict[str, Any]:
    # Ray would set OMP_NUM_THREADS from num_cpus; bits depend on it, so it is set from the recorded number instead.
    # Judges share the cores with a busy engine: threads that spin while they wait would take them from it.
    env_vars = {
        "OMP_NUM_THREADS": str(threads),
        "MKL_NUM_THREADS": str(threads),
        "OMP_WAIT_POLICY": "PASSIVE",
    }
    return {"num_cpus": num_cpus, "num_gpus": num_gpus, "runtime_env": {"env_vars": env_vars}}
