"""The stages of a run as Ray actors: generators, a host for each judge, one learner."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from functools import partial
from typing import Any, cast

import ray

from actors import resources
from actors.failures import Incident
from actors.gang import Workers
from actors.generator import EngineSpec, Generator
from actors.judge_host import JudgeActor
from actors.learner_host import LearnerHost
from actors.session import dead_parts
from actors.supervision import ActorLost, RayTask, Supervised, first_done
from actors.writer_host import WriterActor
from judges.spec import JudgeSpec
from judges.writers.writer import WriterSpec
from online_dpo.config.run import RunConfig
from online_dpo.errors import ActorError, JudgeError, ModelError
from online_dpo.learner.learner import LearnerSpec
from online_dpo.loop.stages import LearnerStage
from online_dpo.loop.weight_sync import Gap, check_digests, check_gap
from online_dpo.models.merging import Received
from online_dpo.store.candidates import COUNTED
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

GOODBYE_S = 10.0
"""How long engines may take to shut down before they are killed."""


LESS_MEMORY = {
    "generator": "generator.kv_cache_gib, generator.shard_prompts or generator.replicas",
    "learner": "learner.micro_batch_tokens or learner.batch_pairs",
    "judge": "the judge's batch_size",
    "writer": "the writer's engine.kv_cache_gib or engine.max_model_len",
}
"""Kind of actor -> settings that make it need less memory."""


class RemoteLearner:
    """`LearnerStage` over an actor: each method is a call that is waited for."""

    def __init__(self, host: Supervised) -> None:
        self.host = host

    def __getattr__(self, name: str) -> Any:
        return lambda *args: self.host.call(name, *args)


class RayStages:
    """`online_dpo.loop.stages.Stages` on a Ray cluster.

    An actor that is lost is started again. A new generator takes the current policy and must score the probe set as
    before; the shards that the old one held are sampled again, and their seeds make them the same. A new judge is asked
    what the old one had not answered. A new learner knows nothing of the round, so its loss is raised: `recover` brings
    a fresh one, and the loop goes on from what is committed.

    Attributes:
        report: is told of what happened to actors.
    """

    def __init__(self, config: RunConfig, engine: EngineSpec, generator_class: type[Generator] = Generator) -> None:
        self.report: Callable[[Incident], None] = lambda incident: None
        self._config, self._engine, self._generator_class = config, engine, generator_class
        self._judges: dict[str, Supervised] = {}
        self._writers: dict[str, Supervised] = {}
        self._generators: list[Supervised] = []
        self._num_sampling: Counter[Supervised] = Counter()  # shards that each generator is sampling
        self._pushed: tuple[Adapter | None, int] | None = None
        self._probed: tuple[Sequence[Row], TokenLogpRows] | None = None  # since the last push
        self._judging: dict[Any, RayTask] = {}  # what was asked -> the call under way
        self._fresh: set[Supervised] = set()  # generators that sampled nothing since they took their weights
        self._learner: RemoteLearner | None = None
        self._workers: Workers | None = None  # of the learner

    # Start and end

    def start_judges(
        self,
        specs: Mapping[str, JudgeSpec],
        learner: LearnerSpec,
        *,
        first: Prompt,
        counted: Callable[[], Mapping[str, Mapping[str, float]]] = dict,
        writers: Mapping[str, WriterSpec] | None = None,
    ) -> None:
        """Start the hosts of all judges and writers and try each on something canned. The engines load meanwhile.

        Args:
            specs: judge's name -> judge.
            learner: the learner's making.
            first: the run's first prompt; the trial's prompt is of its form and has its metadata.
            counted: gives the sums of counters in the run so far, by judge's name and by `candidates/` and writer's.
            writers: writer's name -> writer of candidates.

        Raises:
            JudgeError: judges or writers cannot be built or do not keep their contract; a line for each.
        """
        for name, spec in specs.items():
            self._judges[name] = self._supervised(
                "judge", f"judge {name}", partial(self._new_host, JudgeActor, name, spec, counted)
            )
        for name, writer in (writers or {}).items():
            make = partial(self._new_host, WriterActor, f"{COUNTED}{name}", writer, counted)
            self._writers[name] = self._supervised("writer", f"writer {name}", make)
        chat, metadata = first.messages is not None, dict(first.metadata)
        rules = {REWARD: self._config.pairing}
        trials = [(host, host.submit("try_it", chat, metadata, rules.get(name))) for name, host in self._judges.items()]
        trials += [(host, host.submit("try_it", chat)) for host in self._writers.values()]
        asked: list[JudgeSpec | WriterSpec] = [*specs.values(), *(writers or {}).values()]
        in_turns = resources.share_a_gpu(self._config, resources.num_gpus())
        if not in_turns and not any(spec.section.num_gpus for spec in asked):
            # Else after the judges: vLLM measures a GPU's memory as it starts, and no other may take some meanwhile.
            self._begin_engines(learner)
        problems = []
        for host, trial in trials:
            try:
                host.fetch(trial, "try_it", timeout_s=self._config.cluster.start_timeout_s)
            except (JudgeError, ModelError) as error:  # whoever has several judges learns about all of them at once
                problems.append(str(error))
        if problems:
            raise JudgeError("\n".join(problems))

    def start_engines(self, learner: LearnerSpec) -> None:
        """Wait until every actor is up; start the engines where they did not begin beside the judges."""
        if self._learner is None:
            self._begin_engines(learner)
        for started in (
            *self._judges.values(),
            *self._writers.values(),
            cast(RemoteLearner, self._learner).host,
            *self._generators,
        ):
            started.wait_ready()

    def _begin_engines(self, learner: LearnerSpec) -> None:
        """Make the generators, where anything is sampled, and the learner.

        They load side by side; on a GPU that they share the learner starts once the generator sleeps.
        """
        options = resources.learner_options(self._config, resources.num_gpus())
        num_generators = self._config.generator.replicas if self._config.needs_generators else 0
        self._generators = [
            self._supervised("generator", f"generator {i}", self._new_generator, after_restart=self._bring_up_to_date)
            for i in range(num_generators)
        ]
        if resources.share_a_gpu(self._config, resources.num_gpus()):
            # vLLM measures the GPU's memory as it starts, and stops where others take or free some meanwhile.
            for generator in self._generators:
                generator.wait_ready()
            self.sleep()
        self._workers = Workers(LearnerHost, (learner,), options, self._config.learner.num_workers)
        host = self._supervised("learner", "the learner", self._workers.start)
        self._learner = RemoteLearner(host)

    def recover(self, error: ActorError) -> None:
        """Start the learner again where it was lost; the loop must then begin anew with what is committed.

        Raises:
            ActorError: the error, where something else was lost; or the learner was lost too often.
        """
        learner = cast(RemoteLearner, self._learner).host
        if not isinstance(error, ActorLost) or error.host is not learner:
            raise error
        learner.restart(error)
        self._num_sampling.clear()  # nobody waits for these shards any more

    def close(self) -> None:
        """End our own actors; a cluster that others use stays as it was."""
        if dead_parts():
            return  # nobody is left to ask for it; the end of the session ends what remains
        with suppress(ray.exceptions.RayError):
            ready = [generator for generator in self._generators if generator.is_ready]  # others have nothing to tidy
            ending = [ref for generator in ready for ref in generator.submit("close")]
            if ending:
                ray.wait(ending, num_returns=len(ending), timeout=GOODBYE_S)
        learner = [self._learner.host] if self._learner is not None else []
        for host in [*self._generators, *self._judges.values(), *self._writers.values(), *learner]:
            host.kill()
        if self._workers is not None:
            self._workers.release()

    # The protocol

    @property
    def learner(self) -> LearnerStage:
        return cast(LearnerStage, self._learner)

    def sleep(self) -> None:
        self._of_each_generator("sleep")
        for host in (*self._judges.values(), *self._writers.values()):  # each wakes when it is asked
            host.call_until_done("sleep")

    def wake(self) -> None:
        cast(RemoteLearner, self._learner).host.call("release_memory")
        self._of_each_generator("wake")

    def push(self, adapter: Adapter | None, version: int) -> list[Received]:
        self._pushed, self._probed = (adapter, version), None
        self._fresh = set(self._generators)
        shared = ray.put(adapter)  # once into the object store; every generator fetches it from there
        return self._of_each_generator("push", shared, version)

    def probe(self, rows: Sequence[Row]) -> list[TokenLogpRows]:
        found: list[TokenLogpRows] = self._of_each_generator("probe", rows)
        self._probed = (rows, found[0])
        return found

    def start_sampling(self, shard: Shard, plan: SamplingPlan, version: int) -> RayTask:
        generator = min(self._generators, key=lambda host: self._num_sampling[host])  # of equals the first
        self._num_sampling[generator] += 1
        return RayTask(host=generator, method="sample", args=(shard, plan, version), is_repeatable=True).begin()

    def start_judging(
        self, judge: str, shard: Shard, completions: Sequence[Completion], *, again: bool = False
    ) -> RayTask:
        key = (judge, again, tuple(prompt.prompt_id for prompt in shard.prompts), tuple(completions))
        return self._ask_once(key, self._judges[judge], "judge_shard", shard, list(completions), again)

    def start_writing(
        self, source: str, shard: Shard, prompt_ids: Sequence[str], samples: Sequence[Completion], round_index: int
    ) -> RayTask:
        key = ("writer", source, round_index, tuple(prompt_ids))
        args = (shard, list(prompt_ids), list(samples), round_index)
        return self._ask_once(key, self._writers[source], "write_shard", *args)

    def _ask_once(self, key: Any, host: Supervised, method: str, *args: Any) -> RayTask:
        # After the learner was lost the loop asks anew for what is being answered already.
        if (task := self._judging.get(key)) is None:
            task = self._judging[key] = RayTask(host=host, method=method, args=args, is_repeatable=True).begin()
        return task

    def start_rescoring(self, rows: Sequence[Row], under: Sequence[WeightsRef]) -> RayTask:
        return self.start_learner("check_logps", rows, under)

    def start_learner(self, method: str, *args: Any) -> RayTask:
        host = cast(RemoteLearner, self._learner).host
        return RayTask(host=host, method=method, args=args, is_repeatable=False).begin()

    def first_done(self, tasks: Sequence[Any]) -> tuple[RayTask, Any]:
        task, result = first_done(tasks)
        for key in [key for key, other in self._judging.items() if other is task]:
            del self._judging[key]  # a key holds completions, so its hash takes time
        if task.method == "sample":
            self._num_sampling[task.host] -= 1
            first = task.host in self._fresh
            self._fresh.discard(task.host)
            result = Sampled(first_since_push=first, completions=tuple(result))
        return task, result

    # Actors

    def _supervised(self, kind: str, name: str, make: Callable[[], Any], **options: Any) -> Supervised:
        cluster = self._config.cluster
        return Supervised(
            name,
            make,
            start_timeout_s=cluster.start_timeout_s,
            stall_timeout_s=cluster.stall_timeout_s,
            max_restarts=cluster.max_restarts,
            less_memory=LESS_MEMORY[kind],
            report=lambda incident: self.report(incident),
            **options,
        )

    def _of_each_generator(self, method: str, *args: Any) -> list[Any]:
        refs = [generator.submit(method, *args) for generator in self._generators]
        found = []
        for generator, ref in zip(self._generators, refs, strict=True):
            try:
                found.append(generator.fetch(ref, method))
            except ActorLost as error:
                generator.restart(error)
                found.append(generator.call_until_done(method, *args))
        return found

    def _bring_up_to_date(self, generator: Supervised) -> None:
        """Give a new generator the policy that the others hold, and see that it scores the probe set as they did."""
        if self._pushed is not None:
            adapter, version = self._pushed
            check_digests(adapter, [generator.call("push", adapter, version)])
            self._fresh.add(generator)
        if self._probed is not None:
            rows, before = self._probed
            check_gap("probe", Gap.between(generator.call("probe", rows), before), None, self._config.tolerance)

    def _new_generator(self) -> Any:
        options = resources.generator_options(self._config, resources.num_gpus())
        return ray.remote(self._generator_class).options(**options).remote(self._engine)

    def _new_host(
        self,
        actor: type[JudgeActor] | type[WriterActor],
        name: str,
        spec: JudgeSpec | WriterSpec,
        counted: Callable[[], Mapping[str, Mapping[str, float]]],
    ) -> Any:
        options = resources.judge_options(self._config, spec.section, resources.num_gpus())
        threads = cast(int, spec.section.threads)
        return (
            cast(Any, ray.remote(actor))
            .options(**options)
            .remote(spec, threads=threads, counted=counted().get(name), sleeps=self._config.layout == "colocated")
        )
