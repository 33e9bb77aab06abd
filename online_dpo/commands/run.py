"""Wires the loop to store, Ray and listeners. `run` and `resume` are the command line's and Python's."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from online_dpo.commands.preparing.inputs import Inputs, Materials, inspect_inputs, load_inputs, prepare
from online_dpo.commands.preparing.learning_rates import keep_recorded_lr
from online_dpo.commands.preparing.provenance import check_same_inputs, run_info
from online_dpo.commands.preparing.sft import initial_policy, sft_run
from online_dpo.commands.preparing.specs import engine_spec, learner_spec
from online_dpo.commands.preparing.spending import Expected, billed, expected_spending
from online_dpo.commands.preparing.writers import writer_specs
from online_dpo.commands.terminal.spending import beyond_budget, in_one_line
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.resuming import check_resumable
from online_dpo.config.run import RunConfig, RunSection
from online_dpo.config.threads import keep_recorded_threads, resolve_threads
from online_dpo.errors import ActorError, ConfigError, RunDirectoryError, UserError
from online_dpo.loop.people.leaving import still_missing
from online_dpo.loop.people.opening import judges_of, open_store, people_of
from online_dpo.loop.positions import why_stopped
from online_dpo.loop.stages import Event
from online_dpo.reports.incidents import Incidents
from online_dpo.reports.listening import WARNING, Guarded, Listener
from online_dpo.reports.metrics import MetricsWriter, check_metrics
from online_dpo.reports.page.writing import ReportWriter
from online_dpo.reports.result_reading import read_initial, read_rounds
from online_dpo.reports.run_result import Awaited, RunResult
from online_dpo.reports.trackers.feeding import Trackers
from online_dpo.reports.trackers.registry import make_trackers
from online_dpo.store.candidates import candidates_counted
from online_dpo.store.run_format import SFT
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import counted_so_far

Approve = Callable[[Sequence[Expected]], None]
"""Is told what judges behind endpoints will take before anything is started, and raises where that is too much."""


def run(config: RunConfig, *, listeners: Sequence[object] = (), approve: Approve | None = None) -> RunResult:
    """Start a run, or continue the one in its run directory.

    A run of which no round is finished, and which cannot be continued under this config, is set aside within its run
    directory, and a new one is started there.

    Args:
        config: from `load_config`.
        listeners: objects with some of the methods of a `Listener`.
        approve: is asked before judges behind endpoints are; None = nobody is.

    Raises:
        UserError: something the user can fix; nothing committed is lost.
        WeightMismatchError, ActorError, TrainingError: the run stopped; it can be resumed.
    """
    guard = Guarded(listeners)
    if RunStore.exists(config.run_dir):
        line = _make_room(config)
        if line is None:
            return _continue(config, guard, approve)
        guard.note(line)
    RunStore.expect_room(config.run_dir)  # before engines start, not after
    with ExitStack() as stack:
        materials = prepare(config)
        if config.learner.lr == "auto":
            guard.note(f"learner.lr is auto: {materials.config.learner.peak_lr:g} for this model")
        _announce_spending(materials, None, guard, approve)
        return _play(materials, None, stack, guard)


def continue_run(config: RunConfig, *, listeners: Sequence[object] = (), approve: Approve | None = None) -> RunResult:
    """Continue the run in the config's run directory; `approve` as in `run`, about what is left.

    Raises:
        ConfigError: it cannot be continued under this config.
        UserError, WeightMismatchError, ActorError, TrainingError: as `run`.
    """
    return _continue(config, Guarded(listeners), approve)


def _continue(config: RunConfig, guard: Guarded, approve: Approve | None) -> RunResult:
    with ExitStack() as stack:
        store = stack.enter_context(RunStore.open(config.run_dir))
        inputs, notes = inspect_continuation(config, store)
        for line in notes:
            guard.note(line)
        is_finished = len(store.finished_rounds()) >= config.run.rounds
        stopped = None if is_finished else why_stopped(config, store)
        awaited = None if is_finished or stopped else _awaited(inputs.config, store)
        materials = None if is_finished or stopped or awaited else load_inputs(inputs)
        if materials is not None:
            _announce_spending(materials, store, guard, approve)
        if portable_yaml(inputs.config) != store.config_yaml:
            store.amend(config_yaml=portable_yaml(inputs.config))
        if materials is not None:
            return _play(materials, store, stack, guard)
        if config.run.keep_optimizer == "last":
            store.prune_optimizer()  # what a kill right after the last round left
        if stopped is not None or awaited is not None:
            return _result(store, guard, Ending(stopped=stopped, awaited=awaited))
        guard.note(f"all {config.run.rounds} rounds of {config.run_dir} are finished already")
        return _result(store, guard)


def _awaited(config: RunConfig, store: RunStore) -> Awaited | None:
    """The answers that keep a run from going on which left to let people answer, and is not to wait for them now.

    Seen before anything slow is loaded: it may be asked often.
    """
    judges = judges_of(config)
    if not judges or all(section.wait for section in judges.values()):
        return None
    with open_store(judges, config, store.path) as annotation:
        found = still_missing(store, annotation)
    return None if found is None else Awaited(**found)


def _make_room(config: RunConfig) -> str | None:
    """Set a run aside that cannot be continued under this config, if no round of it is finished.

    Returns:
        A line about it; None where nothing was set aside.

    Raises:
        UserError: no run can be started under this config either; nothing was moved.
    """
    with RunStore.open(config.run_dir) as store:
        if store.finished_rounds():
            return None
        try:
            inspect_continuation(config, store)
            return None
        except ConfigError as error:
            reason = str(error).splitlines()[0]
        load_inputs(inspect_inputs(config))  # nothing is moved for a config that cannot be used
        folder = store.set_aside()
    _keep_sft(config, folder)
    return (
        f"the run in {config.run_dir} has no finished round and cannot go on under this config ({reason}): it lies in "
        f"{folder} now, and a new run begins"
    )


def _keep_sft(config: RunConfig, folder: Path) -> None:
    """Take the run that came before the first round back from a run that was set aside, if its config is the same."""
    if config.sft is None or not RunStore.exists(folder / SFT):
        return
    try:
        with RunStore.open(folder / SFT) as store:
            inspect_continuation(sft_run(resolve_threads(config)), store)
    except UserError:
        return
    (folder / SFT).rename(config.run_dir / SFT)


def inspect_continuation(config: RunConfig, store: RunStore) -> tuple[Inputs, list[str]]:
    """See whether a run can be continued under a config; nothing slow is loaded and nothing is changed.

    Returns:
        The inputs, and lines about differences that are allowed.

    Raises:
        CorruptionError: a committed file is damaged.
        ConfigError: a field that shapes the data differs, or what it names has other content.
        UserError: as `inspect_inputs`.
    """
    store.verify()
    check_metrics(store)
    if (num_finished := len(store.finished_rounds())) > config.run.rounds:
        raise ConfigError(
            f"run.rounds is {config.run.rounds} and {num_finished} rounds of {store.path} are finished; set it to "
            f"{num_finished} or more, or take rounds off first with `online-dpo rewind {store.path} --round "
            f"{config.run.rounds + 1}`"
        )
    recorded = load_config(_yaml_mapping(store.config_yaml))
    recorded = recorded.model_copy(update={"run": recorded.run.model_copy(update=_place(config))})
    config = keep_recorded_lr(keep_recorded_threads(config, recorded), recorded)
    notes = check_resumable(recorded, resolve_threads(config))
    inputs = inspect_inputs(config)
    notes += [f"damage to {store.path / key} was accepted" for key in store.accepted()]
    return inputs, notes + check_same_inputs(store.info, inputs)


def resume(run_dir: str | Path, overrides: Sequence[str] = (), *, listeners: Sequence[object] = ()) -> RunResult:
    """Continue the run of a directory, which may have been moved since.

    Args:
        run_dir: of the run.
        overrides: of its config, such as `run.rounds=4`.
        listeners: as `run`.

    Raises:
        RunDirectoryError: there is no run.
        UserError: as `run`.
    """
    return continue_run(recorded_config(Path(run_dir), overrides), listeners=listeners)


def recorded_config(run_dir: Path, overrides: Sequence[str] = (), *, place: Path | None = None) -> RunConfig:
    """The config of a run directory, with its place as it is now, or with another place."""
    if not RunStore.exists(run_dir):
        raise RunDirectoryError(
            f"{run_dir} holds no run; give the folder that `online-dpo run` printed, such as runs/NAME"
        )
    with RunStore.read(run_dir) as store:
        mapping = _yaml_mapping(store.config_yaml)
    folder = run_dir if place is None else place
    whole = folder.resolve()
    # A path such as `.` does not say where it is.
    parent = folder.parent if folder.name == whole.name else whole.parent
    mapping["run"] |= {"name": whole.name, "dir": str(parent)}
    return load_config(mapping, overrides)


def _announce_spending(materials: Materials, store: RunStore | None, guard: Guarded, approve: Approve | None) -> None:
    """Say what judges behind endpoints will take, and whether their budgets suffice; `approve` may refuse."""
    expected = billed(expected_spending(materials, store))
    if expected:
        guard.note(in_one_line(expected))
        for line in beyond_budget(expected):
            guard.note(f"{WARNING}{line}")
        if approve is not None:
            approve(expected)


def _play(materials: Materials, store: RunStore | None, stack: ExitStack, guard: Guarded) -> RunResult:
    # Imported here: a config error should not wait for ray and torch.
    from actors.cluster import RayStages
    from actors.resources import cpus_needed
    from actors.session import ray_session

    config = materials.config
    for overlap in materials.job.overlaps:
        guard.note(str(overlap) if overlap.is_dropped else f"warning: {overlap}")
    if config.sft is not None:
        if store is None:  # so that `resume` finds the run from here on
            info = run_info(materials)
            store = stack.enter_context(RunStore.create(config.run_dir, config_yaml=portable_yaml(config), info=info))
        materials = replace(materials, adapter=initial_policy(config, store, guard.note, run))
    guard.note("starting Ray and the judges" if materials.judges else "starting Ray")
    stack.enter_context(ray_session(config.cluster, num_cpus_needed=cpus_needed(config)))
    stages = RayStages(config, engine_spec(materials))
    stack.callback(stages.close)

    def counted() -> dict[str, dict[str, int | float]]:
        judges, sets = list(materials.judges), list(config.evaluation.sets)
        return {} if store is None else counted_so_far(store, judges, sets) | candidates_counted(store, list(writers))

    learner, writers = learner_spec(materials), writer_specs(config)
    stages.start_judges(materials.judges, learner, first=materials.first, counted=counted, writers=writers)
    if store is None:
        info = run_info(materials)
        store = stack.enter_context(RunStore.create(config.run_dir, config_yaml=portable_yaml(config), info=info))
    guard.note(f"starting {'the generators and ' if config.needs_generators else ''}the learner")
    stages.start_engines(learner)
    for line in stages.learner.notices():
        guard.note(line)
    listeners = [guard, *([ReportWriter(store, guard.note)] if config.logging.report else [])]
    return _result(store, guard, play(materials, stages, store, listeners))


@dataclass(frozen=True, slots=True, kw_only=True)
class Ending:
    """Why a run ended before its last round, though nothing went wrong; both None = it did not."""

    stopped: str | None = None  # by its drift budget or alarm
    awaited: Awaited | None = None  # answers of people


def play(materials: Materials, stages: Any, store: RunStore, listeners: Sequence[Listener]) -> Ending:
    """Run the loop and tell everyone. Where the learner is lost, begin the loop anew with what is committed.

    Raises:
        ActorError: an actor was lost too often; the message says what happened and how to go on.
    """

    def tell(line: str) -> None:
        for listener in listeners:
            listener.note(line)

    incidents = Incidents(store, listeners)
    stages.report = incidents.add
    config = materials.config
    made, plain = make_trackers(config.logging), config.model_dump(mode="json")
    with Trackers(made, plain, store, materials.job.evaluation_sets, tell, config.view) as trackers:
        while True:
            try:
                return _play_from_committed(materials, stages, store, (incidents, trackers, *listeners))
            except ActorError as error:
                try:
                    stages.recover(error)
                except ActorError as last:
                    raise ActorError(f"{last}\n{incidents.summary()}") from None


def _play_from_committed(materials: Materials, stages: Any, store: RunStore, listeners: Sequence[Listener]) -> Ending:
    from online_dpo.loop.rounds import run_rounds

    # The metrics hear first: a commit covers what they wrote.
    writer, ending = MetricsWriter(store), Ending()
    with people_of(materials.config, store.path) as people:
        events: Iterator[Event] = run_rounds(materials.job, stages, store, people)
        for event in events:
            writer.hear(event)
            for listener in listeners:
                listener.hear(event)
            if event.kind == "round_committed":
                result = next(r for r in read_rounds(store.metrics()) if r.round == event.round_index)
                for listener in listeners:
                    listener.round_done(result)
            elif event.kind == "run_stopped":
                ending = Ending(stopped=event.data["reason"])
            elif event.kind == "run_left":
                ending = Ending(awaited=Awaited(**event.data))
    return ending


def portable_yaml(config: RunConfig) -> str:
    """The config as it is committed: without where the run directory lies, which is wherever it is found."""
    return dump_config(config.model_copy(update={"run": config.run.model_copy(update={"dir": RunSection().dir})}))


def _place(config: RunConfig) -> dict[str, str]:
    return {"name": config.run.name, "dir": config.run.dir}


def _result(store: RunStore, guard: Guarded, ending: Ending | None = None) -> RunResult:
    ending = ending or Ending()
    records = list(store.metrics())
    return RunResult(
        run_dir=store.path,
        rounds=read_rounds(records),
        initial=read_initial(records),
        stopped=ending.stopped,
        awaited=ending.awaited,
        failed_listeners=tuple(guard.failed),
    )


def _yaml_mapping(text: str) -> dict[str, Any]:
    from omegaconf import OmegaConf

    mapping: Any = OmegaConf.to_container(OmegaConf.create(text))
    return dict(mapping)
