"""The section of a judge who is a person, or several."""

from __future__ import annotations

from typing import Annotated, ClassVar, Literal

from pydantic import Field, model_validator

from online_dpo.config.base import Place, Section, changeable
from online_dpo.config.judges.view import ViewingSection


class QualitySection(Section):
    """How it is seen whether somebody answers with care. Who falls below a bar is told, and their votes count no more.

    Nothing of it is a function of the config alone, since people vote as they do: all of it may change on resume.
    """

    gold: Place | None = changeable(None)
    """A file of preferences with known answers, in the columns `prompt`, `chosen` and `rejected`; they are mixed in
    among the questions, and nothing shows which they are. null: none."""
    gold_share: float = changeable(0.1, ge=0.0, le=0.5)
    """The share of gold questions among those that a person gets."""
    repeat_share: float = changeable(0.05, ge=0.0, le=0.5)
    """The share of questions that a person answered before, with the sides swapped, among those that they get."""
    min_accuracy: float = changeable(0.7, ge=0.0, le=1.0)
    """The smallest share of gold questions that a person must answer rightly."""
    min_consistency: float = changeable(0.5, ge=0.0, le=1.0)
    """The smallest share of repeated questions that a person must answer as before."""
    min_seconds: float = changeable(1.0, ge=0.0)
    """A vote that is given in fewer seconds does not count: nobody reads two answers so fast."""
    min_checks: int = changeable(8, ge=1)
    """How many gold questions, or repeats, a person must have answered before the bar holds."""

    @model_validator(mode="after")
    def _leaves_questions(self) -> QualitySection:
        if self.gold_share + self.repeat_share > 0.5:
            raise ValueError(
                f"gold_share is {self.gold_share:g} and repeat_share is {self.repeat_share:g}; together they take more "
                f"than half of what people answer: lower one of them"
            )
        return self


class HumanJudge(ViewingSection):
    """People who compare two completions at a time, in a browser (`online-dpo annotate`)."""

    about: ClassVar[str] = "people who compare two completions at a time, in a browser"

    type: Literal["human"]
    annotators: int = changeable(1, ge=1)
    """How many different people answer each question."""
    consensus: Literal["majority", "dawid_skene"] = "majority"
    """How the votes on a question become one verdict: each counts alike, or by how reliable the votes on all questions
    show each person to be."""
    min_agreement: float = Field(0.5, ge=0.0, le=1.0)
    """The smallest support of the leading outcome: its share of the votes, or its probability. Below it, and where
    several lead, people disagree."""
    disagreement: Literal["abstain", "soft"] = "abstain"
    """What a tie or a disagreement becomes: an abstention, or a probability near one half."""
    max_comparisons: int | None = Field(None, ge=1)
    """For the training judge: how many comparisons of a prompt's completions are asked, so chosen that each completion
    is in as many as any other. null: every two completions are compared."""
    wait: bool = changeable(True)
    """Whether the run stays up until the answers are in. false: it publishes its questions and ends with exit code 4;
    `online-dpo resume` continues it."""
    instructions: str | None = changeable(None)
    """What people are told about the task, above every question. null: that the better answer is wanted."""
    criteria: list[Annotated[str, Field(min_length=1)]] = changeable([])
    """Further respects in which the two answers are compared, such as `correct`, each on a scale of five steps. They
    are kept with the vote, and nothing is trained on them."""
    lease_s: float = changeable(600.0, gt=0.0)
    """Seconds for which a question is a person's own while their page is open on it and says nothing."""
    quality: QualitySection = QualitySection()
    """Gold questions, repeats and bars."""
    seed: int = Field(0, ge=0)
    """The seed of sides, of the order of questions, and of which completions are compared."""

    num_cpus: ClassVar[float] = 0.0
    num_gpus: ClassVar[float] = 0.0
    threads: ClassVar[int] = 1
    """Nobody is hosted: the run itself asks. These stand beside the fields of the same names of other judges."""

    @model_validator(mode="after")
    def _fields_agree(self) -> HumanJudge:
        if twice := {name for name in self.criteria if self.criteria.count(name) > 1}:
            raise ValueError(f"criteria has {sorted(twice)[0]!r} twice; name each once")
        if self.view is not None and isinstance(self.view.unclosed, float):
            raise ValueError(
                f"view.unclosed is {self.view.unclosed:g}, a score, and people compare answers; set it to abstain or "
                f"worst"
            )
        return self


SHARED = ("annotators", "wait", "instructions", "criteria", "lease_s", "quality", "seed")
"""Fields in which all human judges of a run are the same: the people, their page and their queue are the run's."""
