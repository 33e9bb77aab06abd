"""The sections of judges: `judge`, each of `evaluation.judges`, and those that are inside another judge.

A judge that is hosted answers by itself; an outer one asks others, and has no hosting numbers of its own: what its
inner judges reserve adds up, and each of them is called by its own rules.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from typing import Annotated, Any, ClassVar, Literal, TypeAlias, TypeVar, get_args

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Auto, Count, Name, Section, changeable
from online_dpo.config.llm import OVERALL, Budget, Endpoint, JudgeEngine, check_llm

Positive = Annotated[float, Field(gt=0.0)]


class HostedJudge(Section):
    """What every judge's hosting actor needs."""

    about: ClassVar[str] = ""  # what `online-dpo judges` says

    batch_size: int = Field(64, ge=1)  # prompts handed to the judge in one call; never across shards
    concurrency: int = changeable(8, ge=1)  # calls in flight
    timeout_s: float = changeable(600.0, gt=0.0)
    retries: int = changeable(2, ge=0)  # after an exception or a timeout; what then still fails abstains
    num_cpus: float = changeable(1.0, ge=0.0)
    num_gpus: float = changeable(0.0, ge=0.0)
    threads: Auto | Count = "auto"


class ScoringEngine(Section):
    """A vLLM engine that a reward model runs in; the actor that hosts the judge starts it."""

    gpu_memory_utilization: float = changeable(0.3, gt=0.0, le=1.0)
    kv_cache_gib: int = changeable(1, ge=1)  # CPU only


class RewardModelJudge(HostedJudge):
    """A sequence-classification model with its own tokenizer and chat template."""

    about = "a sequence-classification model with its own tokenizer and chat template"

    type: Literal["reward_model"]
    path: str
    dtype: Literal["float32", "bfloat16"] = "float32"
    # Of a model with several labels: the position of one, or a weight for each; None = see docs/judges.md.
    output: Annotated[int, Field(ge=0)] | list[float] | None = None
    max_tokens: int | None = Field(None, ge=8)  # longer inputs lose the start of the prompt; None = the model's context
    batch_tokens: int = Field(8192, ge=1)  # in one forward pass; padding included, of which an engine needs none
    engine: ScoringEngine | None = None  # vLLM's pooling runner; None = transformers
    trust_remote_code: bool = False


class PythonJudge(HostedJudge):
    """A function or class: `package.module:name`, `path/to/file.py:name`, `embedded:gold`, or an entry point's name."""

    about = "a function or class of yours, from a file, a package, or an installed entry point"

    type: Literal["python"]
    target: str
    args: dict[str, Any] = Field(default_factory=dict)
    both_orders: bool = False  # ask compare about (a, b) and (b, a); pairs take the mean


class LlmJudge(HostedJudge):
    """A chat model that compares or grades answers, by the probability or the JSON that it replies with."""

    about = (
        "a chat model behind an endpoint or in an engine of its own: compares, grades, or goes by written principles"
    )

    type: Literal["llm"]
    endpoint: Endpoint | None = None
    engine: JudgeEngine | None = None
    form: Literal["pairwise", "pointwise"] = "pairwise"  # every two completions, or each from 1 to 10
    # One request for each; their verdicts are aggregated.
    principles: list[Annotated[str, Field(min_length=1)]] = Field(default=[OVERALL], min_length=1)
    weights: list[Annotated[float, Field(gt=0.0)]] | None = None  # of the principles; None = equal
    aggregate: Literal["mean", "min", "majority"] = "mean"
    verdict: Literal["json", "token"] = "json"  # a JSON object, or the probability of the first token
    min_mass: float = Field(0.5, ge=0.0, le=1.0)  # verdict: token; probability that must lie on the letters together
    both_orders: bool = True  # pairwise; otherwise one of the two by chance
    on_conflict: Literal["abstain", "average"] = "abstain"  # where the same place wins in both orders
    votes: int = Field(1, ge=1)  # requests for each verdict; more than half must be readable
    temperature: float = Field(0.0, ge=0.0)
    max_tokens: int = Field(64, ge=1)  # of a JSON reply
    seed: int = Field(0, ge=0)
    budget: Budget = Budget()
    concurrency: int = changeable(64, ge=1)  # requests in flight
    timeout_s: float = changeable(120.0, gt=0.0)  # of one try of a request

    @model_validator(mode="after")
    def _fields_agree(self) -> LlmJudge:
        check_llm(self)
        return self


class VerifierJudge(HostedJudge):
    """Compares the answer that a completion ends with to a column of the prompt's source: 1 = right, 0 = wrong."""

    about = "1 where a completion's final answer is the one in a column of the prompts, 0 where it is not"

    type: Literal["verifier"]
    method: Literal["exact", "regex", "numeric", "symbolic"]
    answer: str  # the metadata column with the right answer; of method regex with a regular expression
    pattern: str | None = None  # finds the answer in a completion: its last match, the first group where it has one
    reference_pattern: str | None = None  # the same for the column, such as '#### (.*)'; None = the final answer in it
    tolerance: float = Field(1e-9, ge=0.0)  # relative; of numbers and of values of expressions
    unreadable: Literal["wrong", "abstain"] = "wrong"  # a completion in which no answer is found

    @field_validator("pattern", "reference_pattern")
    @classmethod
    def _compiles(cls, value: str | None) -> str | None:
        if value is not None:
            check_regex(value)
        return value


class OuterJudge(Section):
    """A judge made of other judges; reservations add up, and they share one process."""

    about: ClassVar[str] = ""

    @property
    def inner(self) -> dict[str, Any]:
        """Where it is in this section -> the section of each inner judge."""
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
        """Of the trial alone: one call of each, one after the other."""
        return float(sum(section.timeout_s for section in self.inner.values()))


class ProcessJudge(OuterJudge):
    """Splits a completion into steps, has each scored, and aggregates."""

    about = "splits a completion into steps, has each scored by another judge, and aggregates"

    type: Literal["process"]
    judge: JudgeSection
    split: str = r"\n\s*\n"  # a regular expression between steps
    sees: Literal["prefix", "step"] = "prefix"  # what is scored: the completion up to the step's end, or the step alone
    aggregate: Literal["min", "mean", "product", "last"] = "min"

    @field_validator("split")
    @classmethod
    def _compiles(cls, value: str) -> str:
        return check_regex(value)


class EnsembleJudge(OuterJudge):
    """Several judges; their disagreement becomes the verdict's uncertainty."""

    about = "several judges: mean, weighted, majority, min, or mean minus k times their spread"

    type: Literal["ensemble"]
    judges: dict[Name, JudgeSection]
    aggregate: Literal["mean", "weighted", "majority", "min", "pessimistic"] = "mean"
    weights: dict[Name, Positive] | None = None  # of `weighted`, one for each judge
    k: float | None = Field(None, gt=0.0)  # of `pessimistic`: mean - k * spread; None = 1
    quorum: int | None = Field(None, ge=1)  # judges with an opinion, below which it abstains; None = more than half

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
    """Takes something off for every word or character."""

    about = "another judge, less a penalty for each word or character"

    type: Literal["length_penalty"]
    judge: JudgeSection
    rate: float = Field(gt=0.0)  # score units (or logits, where the judge compares) for each
    unit: Literal["words", "characters"] = "words"
    free: int = Field(0, ge=0)  # so many cost nothing


class NormaliseJudge(OuterJudge):
    """Scores on another scale: `(score - shift) / scale`, or within the prompt, then clipped."""

    about = "another judge's scores shifted, scaled, clipped, or standardised within each prompt"

    type: Literal["normalise"]
    judge: JudgeSection
    method: Literal["fixed", "z_score", "rank"] = "fixed"  # the last two look at the completions of one prompt only
    shift: float | None = None  # of `fixed`; None = 0
    scale: float | None = Field(None, gt=0.0)  # of `fixed`; None = 1
    clip: tuple[float, float] | None = None  # [lowest, highest]

    @model_validator(mode="after")
    def _fields_agree(self) -> NormaliseJudge:
        if self.method != "fixed" and (self.shift is not None or self.scale is not None):
            raise ValueError(f"shift or scale is set and method is {self.method}; they belong to method: fixed")
        if self.clip is not None and self.clip[0] >= self.clip[1]:
            raise ValueError(f"clip is {list(self.clip)}; write [lowest, highest]")
        return self


class CachedJudge(OuterJudge):
    """Asks another judge what it was not asked before."""

    about = "another judge, never asked the same twice: verdicts are kept in an SQLite file"

    type: Literal["cached"]
    judge: JudgeSection
    path: str = changeable(".cache/online-dpo/verdicts.sqlite")  # relative to where the command runs
    version: str = ""  # change it when the judge changed in a way that its section and file do not show


JudgeSection: TypeAlias = Annotated[
    RewardModelJudge
    | PythonJudge
    | LlmJudge
    | VerifierJudge
    | ProcessJudge
    | EnsembleJudge
    | LengthPenaltyJudge
    | NormaliseJudge
    | CachedJudge,
    Field(discriminator="type"),
]
for _outer in (ProcessJudge, EnsembleJudge, LengthPenaltyJudge, NormaliseJudge, CachedJudge):
    _outer.model_rebuild()

AnyJudge = TypeVar("AnyJudge", bound=Section)


def judge_kinds() -> dict[str, str]:
    """`type` -> what it is, in a line."""
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


def check_regex(value: str) -> str:
    """Raises ValueError where it is no regular expression."""
    try:
        re.compile(value)
    except re.error as error:
        raise ValueError(f"is {value!r}, which is no regular expression ({error}); mend it") from None
    return value
