"""`RunConfig`, the whole config of a run, with the sections on the run itself, the cluster and logging.

Pydantic models: unknown keys are errors, and the members of a union are told apart by `type`. YAML files are read by
`loading`; checks that look at two sections are in `consistency`.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Literal

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Auto, Count, FolderName, Name, Place, Section, changeable
from online_dpo.config.candidates.section import CandidateSection, ChatWriter
from online_dpo.config.consistency import check_consistency
from online_dpo.config.control import AlarmSection, DriftSection, FixedReference, ReferenceSection
from online_dpo.config.data import ModelSection, PromptSet, PromptsSection
from online_dpo.config.evaluation import EvaluationSection, VerdictsSection
from online_dpo.config.generation import GeneratorSection, SamplingSection
from online_dpo.config.judges.section import JudgeSection
from online_dpo.config.judges.view import ViewingSection, ViewSection
from online_dpo.config.learner import LearnerSection
from online_dpo.config.objective.pairwise import SigmoidObjective
from online_dpo.config.objective.section import ObjectiveSection
from online_dpo.config.pairing import PairingSection
from online_dpo.config.preferences import DEFAULT_MAX_TOKENS, PairsSection, ReplaySection, SftSection


class RunSection(Section):
    """The run's place, length and seed."""

    name: FolderName = changeable("run")
    """The run's name. The run directory is `dir`/`name`, which may be moved and renamed."""
    dir: Place = changeable("runs")
    """The folder in which the run directory lies."""
    rounds: int = Field(5, ge=1)
    """The number of rounds. It may grow on resume where no schedule is stretched over the run."""
    seed: int = Field(0, ge=0)
    """The seed of all draws: prompts, samples, pairs, batches and dropout."""
    keep_optimizer: Literal["last", "all"] = changeable("last")
    """Whether the optimizer state of the last round alone is kept, or that of every round."""


class ClusterSection(Section):
    """The Ray cluster that the run's actors live in."""

    address: str | None = changeable(None)
    """The cluster to join, `auto` or host:port. null starts a local Ray of its own, unless RAY_ADDRESS is set."""
    num_cpus: Auto | Count = changeable("auto")
    """Logical CPUs of the local Ray; ignored when a cluster is joined. auto gives the cores of this machine, or
    what the actors reserve if that is more."""
    start_timeout_s: float = changeable(600.0, gt=0.0)
    """Seconds within which an actor must be placed and ready."""
    max_restarts: int = changeable(3, ge=0)
    """How often within an hour an actor that was lost (a generator, a judge, the learner) is started again."""
    stall_timeout_s: float = changeable(300.0, gt=0.0)
    """Seconds without any progress after which an actor is reported as silent, and after as many more replaced. A
    silence five times as long as the longest that ended by itself is waited for in any case."""


class LoggingSection(Section):
    """Where figures go besides `metrics.jsonl`."""

    report: bool = changeable(True)
    """Whether the report, a page for browsers, is written into the run directory after every round, as
    `report/report.html`."""
    trackers: list[Name] = changeable([])
    """Where figures and sample answers are sent as the run goes on: `tensorboard`, `wandb`, `trackio`, and what
    installed packages offer."""
    tracker_options: dict[Name, dict[str, Any]] = changeable({})
    """Tracker -> its options, such as `wandb: {project: reviews, mode: offline}`. They are written into the run
    directory, so keys and tokens do not belong here."""

    @model_validator(mode="before")
    @classmethod
    def _former_switch(cls, data: Any) -> Any:
        """Run directories of earlier releases have `tensorboard`, true or false, in place of `trackers`."""
        if isinstance(data, dict) and isinstance(data.get("tensorboard"), bool) and "trackers" not in data:
            rest = {name: value for name, value in data.items() if name != "tensorboard"}
            return {**rest, "trackers": ["tensorboard"] if data["tensorboard"] else []}
        return data

    @field_validator("trackers")
    @classmethod
    def _each_once(cls, trackers: list[str]) -> list[str]:
        if len(set(trackers)) < len(trackers):
            raise ValueError("names a tracker twice; name each once")
        return trackers


class RunConfig(Section):
    """A whole run. `online_dpo.load_config` builds it from YAML; `online_dpo.run` executes it."""

    run: RunSection = RunSection()
    """Where the run lies, how long it is, and its seed."""
    layout: Literal["separate", "colocated"] = changeable("separate")
    """Whether generator and learner have GPUs of their own (separate), or use one GPU in turns (colocated): the engine
    sleeps while the learner works, and takes the weights anew when it wakes."""
    model: ModelSection
    """The model that is trained."""
    sft: SftSection | None = None
    """Supervised fine-tuning before the first round. null: the initial policy is the model as it is, or
    `model.adapter`."""
    prompts: PromptsSection | None = None
    """The prompts that completions are sampled for. null: every round trains on `pairs` alone."""
    pairs: PairsSection | None = None
    """Preferences that were written down before the run. null: the run trains on sampled completions alone."""
    replay: ReplaySection | None = None
    """Pairs, or labelled answers, of earlier rounds that are trained on again. null: there are none."""
    sampling: SamplingSection = SamplingSection()
    """How completions are sampled."""
    candidates: list[CandidateSection] = Field([])
    """Further writers, whose answers join the policy's samples of a prompt before the judge sees them."""
    generator: GeneratorSection = GeneratorSection()
    """The engines that sample."""
    judge: JudgeSection | None = None
    """The training judge. null: every round trains on `pairs` alone."""
    evaluation: EvaluationSection = EvaluationSection()
    """What is measured after a round."""
    verdicts: VerdictsSection = VerdictsSection()
    """What is asked of judges beyond a verdict on each prompt."""
    pairing: PairingSection = PairingSection()
    """Which judged completions become pairs."""
    objective: ObjectiveSection = SigmoidObjective(type="sigmoid")
    """The loss."""
    reference: ReferenceSection = FixedReference(type="fixed")
    """The policy that the loss compares the trained one with."""
    drift: DriftSection | None = None
    """A budget on the KL to the initial policy. null: there is none."""
    alarm: AlarmSection | None = None
    """An alarm on the samples' diversity and length, and on over-optimisation. null: there is none."""
    learner: LearnerSection = LearnerSection()
    """The adapter and the updates."""
    overlap: int = Field(0, ge=0, le=1)
    """1: the next round is sampled and judged while the learner works on this one, by the policy that this round began
    with. 0: by the policy that the round before it made."""
    cluster: ClusterSection = ClusterSection()
    """The Ray cluster."""
    logging: LoggingSection = LoggingSection()
    """Where figures go."""

    @property
    def run_dir(self) -> Path:
        return Path(self.run.dir) / self.run.name

    @property
    def engine_dtype(self) -> Literal["float32", "bfloat16"]:
        """What the generators compute in."""
        return self.model.dtype if self.generator.dtype == "auto" else self.generator.dtype

    @property
    def view(self) -> ViewSection | None:
        """What of a completion is the answer, for all but a judge that has a view of its own."""
        return None if self.judge is None else self.judge.view

    def view_of(self, judge: ViewingSection) -> ViewSection | None:
        """What of a completion a judge of this run sees."""
        return judge.view or self.view

    @property
    def needs_generators(self) -> bool:
        """Whether anything is ever sampled."""
        return self.prompts is not None or bool(self.evaluation.sets)

    @property
    def prompt_parts(self) -> dict[str, PromptSet]:
        """Field -> data set of prompts, of training and of evaluation sets."""
        found = {} if self.prompts is None else self.prompts.parts("prompts")
        for name, section in self.evaluation.sets.items():
            found |= section.parts(f"evaluation.sets.{name}")
        return found

    @property
    def assumed_better(self) -> frozenset[str]:
        """Writers whose answers are taken to be better than the policy's, so that no judge is asked about them."""
        return frozenset(writer.source for writer in self.candidates if writer.assume == "better")

    def most_completions(self, *, are_judged: bool = False) -> int:
        """Completions of a prompt in a round, candidates included; all of them, or those that a judge is shown."""
        writers = [writer for writer in self.candidates if not (are_judged and writer.assume == "better")]
        return self.sampling.num_samples + sum(writer.num_answers for writer in writers)

    @property
    def hosted_writers(self) -> dict[str, ChatWriter]:
        """Field -> writer that an actor of its own hosts."""
        return {
            f"candidates.{index}": writer
            for index, writer in enumerate(self.candidates)
            if isinstance(writer, ChatWriter) and writer.is_hosted
        }

    @property
    def chat_template_kwargs(self) -> dict[str, Any]:
        """Further arguments of the chat template, of all prompts and answers of the run."""
        section = self.prompts or self.pairs
        return {} if section is None else section.chat_template_kwargs

    @property
    def max_prompt_tokens(self) -> int:
        """Tokens of the longest prompt that is sampled from."""
        if self.prompts is not None:
            return self.prompts.max_tokens
        return DEFAULT_MAX_TOKENS if self.pairs is None else self.pairs.max_prompt_tokens

    @property
    def max_model_len(self) -> int:
        """Tokens of the longest prompt and sampled completion together."""
        return self.max_prompt_tokens + self.sampling.max_tokens

    @property
    def tolerance(self) -> float:
        """Largest accepted mean gap between generator and learner log-probs, nats per token."""
        if self.generator.tolerance != "auto":
            return float(self.generator.tolerance)
        return 1e-3 if self.model.dtype == self.engine_dtype == "float32" else 5e-2

    @model_validator(mode="before")
    @classmethod
    def _default_objective(cls, data: Any) -> Any:
        """`objective.beta=0.2` alone means the default objective with another beta."""
        if isinstance(data, dict) and isinstance(data.get("objective"), dict) and "type" not in data["objective"]:
            data = {**data, "objective": {"type": "sigmoid", **data["objective"]}}
        return data

    @model_validator(mode="after")
    def _sections_agree(self) -> RunConfig:
        check_consistency(self)
        return self
