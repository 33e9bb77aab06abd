"""The sections of judges that ask other judges, and `JudgeSection`: `judge`, and each of `evaluation.judges`.

A judge that asks others has no hosting numbers of its own: what its inner judges reserve adds up, and each of them is
called by its own rules.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Name, Place, Positive, Section, changeable
from online_dpo.config.judges.hosted import (
    ProcessRewardModelJudge,
    PythonJudge,
    RewardModelJudge,
    VerifierJudge,
    check_regex,
)
from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.view import ViewingSection


class OuterJudge(ViewingSection):
    """A judge that asks other judges. They share one process, and their reservations add up."""

    about: ClassVar[str] = ""
    """What `online-dpo judges` says about the kind."""

    @property
    def inner(self) -> dict[str, Any]:
        """The section of each inner judge, by its place in this section."""
        return {"judge": self.judge}  # type: ignore[attr-defined]

    @property
    def num_cpus(self) -> float:
        return float(sum(section.num_cpus for section in self.inner.values()))

    @property
    def num_gpus(self) -> float:
        return float(sum(section.num_gpus for section in self.inner.values()))

    @property
    def threads(self) -> int | Literal["auto"]:
        numbers = [section.threads for section in self.inner.values()]
        return "auto" if "auto" in numbers else max(numbers)

    @property
    def timeout_s(self) -> float:
        """The time limit of the trial alone, in which each inner judge is called once, one after the other."""
        return float(sum(section.timeout_s for section in self.inner.values()))

    @model_validator(mode="after")
    def _fits_its_judges(self) -> OuterJudge:
        for place, section in self.inner.items():
            if section.view is not None:
                raise ValueError(
                    f"{place}.view is set, and a judge inside another one sees what that one sees: set the view of the "
                    f"outer judge, such as judge.view"
                )
            if isinstance(section, HumanJudge):
                raise ValueError(
                    f"{place}.type is human; people answer in their own time, and no other judge waits for them: make "
                    f"them the judge itself, pairing.annotator or one of evaluation.judges"
                )
        return self


class ProcessJudge(OuterJudge):
    """Splits a completion into steps, has another judge score each, and aggregates the scores."""

    about = "splits a completion into steps, has each scored by another judge, and aggregates"

    type: Literal["process"]
    judge: JudgeSection
    """The judge that scores the steps."""
    split: str = r"\n\s*\n"
    """A regular expression for what stands between two steps."""
    sees: Literal["prefix", "step"] = "prefix"
    """What the judge is shown: the completion up to the step's end, or the step alone."""
    aggregate: Literal["min", "mean", "product", "last"] = "min"
    """How the steps' scores become one."""

    @field_validator("split")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return check_regex(value)


class EnsembleJudge(OuterJudge):
    """Several judges; their disagreement becomes the verdict's uncertainty."""

    about = "several judges: mean, weighted, majority, min, or mean minus k times their spread"

    type: Literal["ensemble"]
    judges: dict[Name, JudgeSection]
    """The judges, at least two, by name."""
    aggregate: Literal["mean", "weighted", "majority", "min", "pessimistic"] = "mean"
    """How their verdicts become one; pessimistic takes mean - k * spread."""
    weights: dict[Name, Positive] | None = None
    """For `aggregate: weighted`: a weight for each judge. null otherwise."""
    k: float | None = Field(None, gt=0.0)
    """For `aggregate: pessimistic`: how many spreads are taken off the mean. null means 1."""
    quorum: int | None = Field(None, ge=1)
    """How many judges must have an opinion; with fewer the ensemble abstains. null means more than half."""

    @property
    def inner(self) -> dict[str, Any]:
        return {f"judges.{name}": section for name, section in self.judges.items()}

    @model_validator(mode="after")
    def _fields_agree(self) -> EnsembleJudge:
        if len(self.judges) < 2:
            raise ValueError(f"judges has {len(self.judges)} judge; an ensemble has at least 2")
        if (self.weights is not None) != (self.aggregate == "weighted"):
            raise ValueError(
                f"weights is {'set' if self.weights else 'missing'} and aggregate is {self.aggregate}; weights belong "
                f"to aggregate: weighted"
            )
        if self.weights is not None and self.weights.keys() != self.judges.keys():
            raise ValueError(
                f"weights names {', '.join(self.weights)} and judges {', '.join(self.judges)}; give a weight for each"
            )
        if self.k is not None and self.aggregate != "pessimistic":
            raise ValueError(f"k is {self.k} and aggregate is {self.aggregate}; k belongs to aggregate: pessimistic")
        if self.quorum is not None and self.quorum > len(self.judges):
            raise ValueError(f"quorum is {self.quorum} and there are {len(self.judges)} judges; set it to at most that")
        return self


class LengthPenaltyJudge(OuterJudge):
    """Another judge's scores, less a penalty for every word or character."""

    about = "another judge, less a penalty for each word or character"

    type: Literal["length_penalty"]
    judge: JudgeSection
    """The judge that scores or compares."""
    rate: float = Field(gt=0.0)
    """The penalty for one unit of length, in score units, or in logits where the judge compares."""
    unit: Literal["words", "characters"] = "words"
    """What the length is counted in."""
    free: int = Field(0, ge=0)
    """The length that costs nothing, in units."""


class NormaliseJudge(OuterJudge):
    """Another judge's scores on another scale: `(score - shift) / scale`, or relative to the prompt's other scores."""

    about = "another judge's scores shifted, scaled, clipped, or standardised within each prompt"

    type: Literal["normalise"]
    judge: JudgeSection
    """The judge that scores."""
    method: Literal["fixed", "z_score", "rank"] = "fixed"
    """The scale: a fixed shift and scale, or the z-score or rank among the completions of one prompt."""
    shift: float | None = None
    """For `method: fixed`: what is taken off a score. null means 0."""
    scale: float | None = Field(None, gt=0.0)
    """For `method: fixed`: what the shifted score is divided by. null means 1."""
    clip: tuple[float, float] | None = None
    """[lowest, highest], to which the result is clipped. null: it is not clipped."""

    @model_validator(mode="after")
    def _fields_agree(self) -> NormaliseJudge:
        if self.method != "fixed" and (self.shift is not None or self.scale is not None):
            raise ValueError(f"shift or scale is set and method is {self.method}; they belong to method: fixed")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip is {list(self.clip)}; write [lowest, highest]")
        return self


class CachedJudge(OuterJudge):
    """Asks another judge only what it was not asked before."""

    about = "another judge, never asked the same twice: verdicts are kept in an SQLite file"

    type: Literal["cached"]
    judge: JudgeSection
    """The judge whose verdicts are kept."""
    path: Place = changeable(".cache/online-dpo/verdicts.sqlite")
    """The SQLite file, relative to the folder in which the command runs."""
    version: str = ""
    """Any text. Change it when the judge changed in a way that its section and file do not show."""


JudgeSection: TypeAlias = Annotated[
    RewardModelJudge
    | PythonJudge
    | LlmJudge
    | VerifierJudge
    | ProcessRewardModelJudge
    | ProcessJudge
    | EnsembleJudge
    | LengthPenaltyJudge
    | NormaliseJudge
    | CachedJudge
    | HumanJudge,
    Field(discriminator="type"),
]
for _outer in (ProcessJudge, EnsembleJudge, LengthPenaltyJudge, NormaliseJudge, CachedJudge):
    _outer.model_rebuild()

AnyJudge = TypeVar("AnyJudge", bound=Section)


def judge_kinds() -> dict[str, str]:
    """One line about each kind of judge, by its `type`."""
    kinds = get_args(get_args(JudgeSection)[0])
    return {get_args(kind.model_fields["type"].annotation)[0]: kind.about for kind in kinds}


def hosted_judges(section: Any, field: str) -> Iterator[tuple[str, Any]]:
    """`(field, section)` of each judge that answers by itself: this one, or those inside it."""
    if isinstance(section, OuterJudge):
        for place, inner in section.inner.items():
            yield from hosted_judges(inner, f"{field}.{place}")
    else:
        yield field, section


def replace_hosted(section: AnyJudge, change: Callable[[str, Any], Any], field: str = "judge") -> AnyJudge:
    """A copy in which `change(field, section)` stands for each judge that answers by itself."""
    if not isinstance(section, OuterJudge):
        changed: AnyJudge = change(field, section)
        return changed
    inner = {place: replace_hosted(judge, change, f"{field}.{place}") for place, judge in section.inner.items()}
    if isinstance(section, EnsembleJudge):
        return section.model_copy(update={"judges": {p.removeprefix("judges."): judge for p, judge in inner.items()}})
    return section.model_copy(update=inner)
