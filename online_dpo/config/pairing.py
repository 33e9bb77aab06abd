"""The `pairing` section: which judged completions become pairs, or get labels of their own (docs/pairs.md)."""

from __future__ import annotations

from typing import Annotated, Any, Literal, TypeAlias

from pydantic import Field, model_validator

from online_dpo.config.base import Section
from online_dpo.config.judges import EnsembleJudge, JudgeSection, LlmJudge, OuterJudge, ProcessJudge

Strategy: TypeAlias = Literal[
    "best_vs_worst",
    "best_vs_second",
    "best_vs_random",
    "random",
    "all_pairs",
    "max_margin",
    "min_margin",  # the closest pair; the smallest margin that it may have is the field of that name
    "length_controlled",
    "uncertain",
]

DEFAULT_LENGTH_RATIO = 1.25

ANNOTATOR = "annotator"
"""The name of the judge under `pairing.annotator`, beside those of the evaluation's judges."""


class ThresholdLabels(Section):
    """A score above the value is desirable, one below is not, one equal to it gives no label."""

    type: Literal["threshold"]
    value: float


class QuantileLabels(Section):
    """The highest scores of the round are desirable, as many of the lowest are not, what lies between has no label."""

    type: Literal["quantile"]
    share: float = Field(0.25, gt=0.0, le=0.5)  # of the round's scores, at each end


LabelsSection: TypeAlias = Annotated[ThresholdLabels | QuantileLabels, Field(discriminator="type")]


class PairingSection(Section):
    strategy: Strategy = "best_vs_worst"
    min_margin: float = Field(0.0, ge=0.0)  # of a pair, whatever the strategy; score units, or logits
    min_chosen_score: float | None = None  # of the chosen answer; of judges that score
    duplicates: Literal["tokens", "text"] = "tokens"  # by what equal answers to a prompt count once
    near_duplicate: float | None = Field(None, gt=0.0, le=1.0)  # answers at least this similar make no pair
    max_length_ratio: float | None = Field(None, ge=1.0)  # of length_controlled, in tokens; None = 1.25
    max_pairs_per_prompt: int | None = Field(None, ge=1)  # of all_pairs; the widest margins are kept
    budget: int | None = Field(None, ge=1)  # of uncertain: prompts per round, the most uncertain first
    annotator: JudgeSection | None = None  # asked about the two answers of each pair alone; it settles who is chosen
    labels: LabelsSection | None = None  # of unpaired objectives; None = both answers of every pair

    @property
    def length_ratio(self) -> float | None:
        """The bound in use."""
        if self.strategy != "length_controlled":
            return None
        return DEFAULT_LENGTH_RATIO if self.max_length_ratio is None else self.max_length_ratio

    @property
    def score_reader(self) -> str | None:
        """The field, with its value, that reads scores of single answers; None = comparisons will do."""
        if self.labels is not None:
            return f"pairing.labels.type is {self.labels.type}"
        return None if self.min_chosen_score is None else f"pairing.min_chosen_score is {self.min_chosen_score}"

    @model_validator(mode="after")
    def _strategy_reads_its_fields(self) -> PairingSection:
        for name, owner, instead in (
            ("max_length_ratio", "length_controlled", "takes pairs of any lengths"),
            ("max_pairs_per_prompt", "all_pairs", "takes one pair per prompt"),
            ("budget", "uncertain", "does not rank prompts"),
        ):
            if (value := getattr(self, name)) is not None and self.strategy != owner and self.labels is None:
                raise ValueError(
                    f"pairing.{name} is {value}, but pairing.strategy is {self.strategy}, which {instead}: set "
                    f"strategy to {owner}, or remove {name}"
                )
        if self.annotator is not None and self.strategy == "all_pairs":
            raise ValueError(
                "pairing.annotator is set, but pairing.strategy is all_pairs, which would ask it about every pair: set "
                "strategy to one that takes a pair per prompt, such as uncertain, or remove annotator"
            )
        return self

    @model_validator(mode="after")
    def _labels_stand_alone(self) -> PairingSection:
        for name, info in type(self).model_fields.items():
            read = name in ("labels", "duplicates")
            if self.labels is not None and not read and (value := getattr(self, name)) != info.default:
                shown = "set" if isinstance(value, Section) else value
                raise ValueError(
                    f"pairing.{name} is {shown}, but pairing.labels is set, which labels every answer by its own "
                    f"score and pairs none: remove one of the two"
                )
        return self


def check_pairing(config: Any) -> None:
    """Refuse a `RunConfig` whose objective or judge cannot go with its `pairing` section.

    Raises:
        ValueError: with the reason and the remedy.
    """
    rules: PairingSection = config.pairing
    if rules.labels is not None and not config.objective.is_unpaired:
        raise ValueError(
            f"pairing.labels is set, but objective.type is {config.objective.type}, which compares two answers: set "
            f"objective.type to kto, or remove pairing.labels"
        )
    if rules.annotator is not None and ANNOTATOR in config.evaluation.judges:
        raise ValueError(
            "evaluation.judges has a judge named annotator; with pairing.annotator that name is taken: choose another"
        )
    if rules.score_reader is not None and config.judge is not None and only_compares(config.judge):
        raise ValueError(explain_no_scores(rules, f"judge.type {config.judge.type} as it is set"))


def only_compares(section: Any) -> bool:
    """Whether a judge is known from its section to score nothing."""
    if isinstance(section, LlmJudge):
        return section.form == "pairwise"
    if isinstance(section, EnsembleJudge) and section.aggregate == "majority":
        return True
    if isinstance(section, OuterJudge) and not isinstance(section, ProcessJudge):
        return any(map(only_compares, section.inner.values()))
    return False


def explain_no_scores(rules: PairingSection, judge: str) -> str:
    """What to tell the user of a judge that only compares, where scores are read."""
    reader = "pairing.labels" if rules.labels is not None else "pairing.min_chosen_score"
    return (
        f"{rules.score_reader}, which reads scores of single answers, but {judge} only compares two: remove {reader}, "
        f"or take a judge that scores (an llm judge does so with form: pointwise)"
    )
