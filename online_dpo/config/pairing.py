"""The `pairing` section: which judged completions become pairs, or are labelled desirable or not (docs/pairs.md)."""

from __future__ import annotations

from typing import Annotated, Literal, TypeAlias

from pydantic import Field, model_validator

from online_dpo.config.base import Section
from online_dpo.config.judges.section import JudgeSection

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
    """The threshold, in the judge's score units."""


class QuantileLabels(Section):
    """The highest scores of the round are desirable, as many of the lowest are not; those between get no label."""

    type: Literal["quantile"]
    share: float = Field(0.25, gt=0.0, le=0.5)
    """The share of the round's scores at each end."""


LabelsSection: TypeAlias = Annotated[ThresholdLabels | QuantileLabels, Field(discriminator="type")]


class PairingSection(Section):
    """How a prompt's judged completions become pairs, or answers that are labelled desirable or not."""

    strategy: Strategy = "best_vs_worst"
    """Which completions of a prompt make a pair; docs/pairs.md describes each strategy."""
    min_margin: float = Field(0.0, ge=0.0)
    """The smallest margin of a pair, whatever the strategy: a difference of scores, or the logit of a probability."""
    min_chosen_score: float | None = None
    """The lowest score of a chosen answer, for judges that score. null: any."""
    duplicates: Literal["tokens", "text"] = "tokens"
    """By what two answers to a prompt are the same and count once: their token ids, or their text."""
    near_duplicate: float | None = Field(None, gt=0.0, le=1.0)
    """Two answers whose similarity is at least this make no pair: the share of the runs of three words in either that
    both have. null: similar answers make pairs."""
    max_length_ratio: float | None = Field(None, ge=1.0)
    """For length_controlled: the largest ratio of the two answers' lengths in tokens. null means 1.25."""
    max_pairs_per_prompt: int | None = Field(None, ge=1)
    """For all_pairs: how many pairs of a prompt are kept, those with the widest margins. null: all."""
    budget: int | None = Field(None, ge=1)
    """For uncertain: how many prompts of a round are kept, the most uncertain first. null: all."""
    annotator: JudgeSection | None = None
    """A second judge that is asked about the two answers of each selected pair and settles which is chosen. null: the
    training judge settles it."""
    labels: LabelsSection | None = None
    """How scores become labels for unpaired objectives (KTO). null: both answers of every pair are labelled."""

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


def explain_no_scores(rules: PairingSection, judge: str) -> str:
    """What to tell the user of a judge that only compares, where scores are read."""
    reader = "pairing.labels" if rules.labels is not None else "pairing.min_chosen_score"
    return (
        f"{rules.score_reader}, which reads scores of single answers, but {judge} only compares two: remove {reader}, "
        f"or take a judge that scores (an llm judge does so with form: pointwise)"
    )
