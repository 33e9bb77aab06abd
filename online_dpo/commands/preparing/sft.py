"""The section `sft`: a run of its own in the run directory, whose adapter is the initial policy of the rounds.

It is played as every other run is, so it resumes as they do. Its adapter is committed with the first round, which from
then on needs nothing of it.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from online_dpo.config.evaluation import EvaluationSection
from online_dpo.config.run import RunConfig, RunSection
from online_dpo.errors import RunDirectoryError
from online_dpo.reports.data_set_lines import show_preferences
from online_dpo.reports.listening import WARNING, Listener
from online_dpo.reports.results import RoundResult
from online_dpo.store.run_format import INITIAL_POLICY, SFT
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter


def sft_run(config: RunConfig) -> RunConfig:
    """The config of the run that the section `sft` stands for: the same model and learner, and demonstrations alone.

    Args:
        config: with the section. Thread counts are numbers.
    """
    section = config.sft
    assert section is not None
    template = {"chat_template_kwargs": config.chat_template_kwargs}
    held_out = {name: found for name, found in config.evaluation.pairs.items() if found.format == "demonstrations"}
    steps = section.model_dump(include={"lr", "schedule", "warmup_steps"})
    values: dict[str, Any] = {
        "run": RunSection(name=SFT, dir=str(config.run_dir), rounds=section.rounds, seed=config.run.seed),
        "model": config.model,
        "pairs": section.pairs.model_copy(update=template),
        "objective": {"type": "sft"},
        "evaluation": EvaluationSection(every=config.evaluation.every, pairs=held_out),
        "learner": config.learner.model_copy(update={**steps, "epochs": 1}),
        "cluster": config.cluster,
        "logging": config.logging.model_copy(update={"trackers": [], "tracker_options": {}}),
    }
    return RunConfig.model_validate(values)


def initial_policy(
    config: RunConfig, store: RunStore, tell: Callable[[str], None], launch: Callable[..., object]
) -> Adapter:
    """What the fine-tuning made; it is played, or played to its end, where the first round does not have it yet.

    Args:
        config: with the section `sft`.
        store: of the run.
        tell: prints a line.
        launch: plays the run of a config, or continues it.
    """
    first = store.round(0)
    if not first.has(INITIAL_POLICY):
        tell(f"supervised fine-tuning comes first, in {config.run_dir / SFT}")
        section = sft_run(config)
        launch(section, listeners=[_Notes(section.run.rounds, tell)])
        with RunStore.read(config.run_dir / SFT) as played:
            finished = played.finished_rounds()
            if len(finished) < section.run.rounds:
                raise RunDirectoryError(
                    f"{played.path} has {len(finished)} of {section.run.rounds} rounds; continue with `online-dpo "
                    f"resume {config.run_dir}`"
                )
            files = played.round(finished[-1]).get_files("adapter")
        first.put_files(INITIAL_POLICY, files)
    return Adapter.from_files(0, first.get_files(INITIAL_POLICY))


class _Notes(Listener):
    """Tells of the rounds of fine-tuning as lines, so that nobody takes them for rounds of the run."""

    def __init__(self, num_rounds: int, tell: Callable[[str], None]) -> None:
        self._num_rounds, self._tell = num_rounds, tell

    def note(self, line: str) -> None:
        mark = WARNING if line.startswith(WARNING) else ""
        self._tell(f"{mark}sft: {line.removeprefix(WARNING)}")

    def round_done(self, result: RoundResult) -> None:
        loss = "" if result.learning.loss is None else f": loss {result.learning.loss:.4f} nats per token"
        self._tell(f"sft: round {result.round + 1} of {self._num_rounds}{loss}")
        for name, found in result.evaluation_pairs.items():
            self._tell(f"sft: on {name}: {show_preferences(found)}")
