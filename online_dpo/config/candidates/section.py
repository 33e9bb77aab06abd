"""The kinds of writers under `candidates`: a teacher, revisions of the policy's answers, a column of the data set."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from online_dpo.config.base import Auto, Count, Name, Section, changeable
from online_dpo.config.judges.llm import Budget, ChatEngineSection, Endpoint

FAULTS = "Say what in your last answer is harmful, wrong, unhelpful or badly written."
"""The default principle of a critique."""


class Writer(Section):
    """What every writer has."""

    name: Name | None = None
    """The name under which the answers stand in tables, figures and reports. null takes the type."""
    assume: Literal["better"] | None = None
    """better: its answers are taken to be better than the policy's samples, and no judge is asked about them. null: the
    judge sees them like the policy's own."""
    separator: str = ""
    """What is put between a prompt of plain text and the answer, such as a space. A chat template puts its own."""

    @property
    def source(self) -> str:
        """Its name, wherever answers are marked with it."""
        return self.type if self.name is None else self.name  # type: ignore[attr-defined,no-any-return]

    @property
    def num_answers(self) -> int:
        """Answers to a prompt."""
        return 1


class ChatWriter(Writer):
    """A writer that asks a chat model, and what the actor that hosts it needs."""

    endpoint: Endpoint | None = None
    """The server that is asked."""
    engine: ChatEngineSection | None = None
    """A local model that is asked: an engine of the writer's own, in its actor."""
    num_samples: int = Field(1, ge=1)
    """Answers to a prompt; of `revise`, how many of the policy's samples are revised."""
    temperature: float = Field(0.0, ge=0.0)
    """The sampling temperature of its replies. Several answers of a teacher need one above 0."""
    max_tokens: Auto | Count = "auto"
    """The longest reply in the writer's tokens. auto: `sampling.max_tokens`."""
    budget: Budget = Budget()
    """What may be spent in the whole run. Once it is used up, prompts go on without this writer's answers."""
    concurrency: int = changeable(64, ge=1)
    """Requests that are under way at the same time."""
    timeout_s: float = changeable(120.0, gt=0.0)
    """Seconds that one try of a request may take."""
    retries: int = changeable(2, ge=0)
    """How often a request is made again after a failure; if it still fails, the prompt goes on without the answer."""
    num_cpus: float = changeable(1.0, ge=0.0)
    """Logical CPUs that the writer's actor reserves in Ray."""
    num_gpus: float = changeable(0.0, ge=0.0)
    """GPUs that the writer's actor reserves; a fraction shares one."""
    threads: Auto | Count = "auto"
    """CPU threads of the writer. auto takes half of the cores; the number is settled once and recorded."""

    @property
    def num_answers(self) -> int:
        return self.num_samples

    @property
    def is_hosted(self) -> bool:
        """Whether an actor of its own asks a model; otherwise the policy writes."""
        return self.endpoint is not None or self.engine is not None

    @model_validator(mode="after")
    def _spends_what_has_a_price(self) -> ChatWriter:
        if self.endpoint is not None and self.engine is not None:
            raise ValueError("endpoint and engine are both set; keep one of the two")
        if self.budget.cost is not None and (self.endpoint is None or self.endpoint.prices is None):
            raise ValueError("budget.cost is set and nothing has a price; set endpoint.prices")
        if self.endpoint is None and self.budget != Budget():
            raise ValueError("budget is set and no endpoint is asked, so that nobody bills; remove budget")
        return self


class TeacherWriter(ChatWriter):
    """A stronger model that answers the prompts."""

    type: Literal["teacher"]
    system: str | None = None
    """A system message in front of every prompt, where the prompt has none. null: none for chats; for prompts of plain
    text a sentence that asks for the continuation alone."""

    @model_validator(mode="after")
    def _has_a_model(self) -> TeacherWriter:
        if not self.is_hosted:
            raise ValueError("a teacher needs either an endpoint or an engine; set one of the two")
        if self.num_samples > 1 and self.temperature == 0.0:
            raise ValueError(
                f"num_samples is {self.num_samples} and temperature is 0, so that all answers would be the same; set a "
                f"temperature"
            )
        return self


class ReviseWriter(ChatWriter):
    """Critique and revision of the policy's answers by written principles (arXiv:2212.08073, section 3).

    Without an endpoint and an engine the policy itself writes both.
    """

    type: Literal["revise"]
    principles: list[Annotated[str, Field(min_length=1)]] = Field(default=[FAULTS], min_length=1)
    """Requests for a critique, of which each answer gets one, drawn by the run's seed."""
    revision: str = Field(
        "Write your last answer again without these faults. Reply with nothing but the new answer.", min_length=1
    )
    """The request for the revision, after the critique."""
    critique_tokens: Auto | Count = "auto"
    """The longest critique in tokens. auto: as `max_tokens`."""


class ColumnWriter(Writer):
    """A reference answer of the data set."""

    type: Literal["column"]
    column: str = Field(min_length=1)
    """The column of the prompts that holds the answer as text."""


CandidateSection: TypeAlias = Annotated[TeacherWriter | ReviseWriter | ColumnWriter, Field(discriminator="type")]
