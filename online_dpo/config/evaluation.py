"""The `evaluation` and `verdicts` sections: what is measured after a round, and what is asked of judges."""

from __future__ import annotations

from typing import Any

from pydantic import Field, field_validator

from online_dpo.config.base import Name, Section, changeable
from online_dpo.config.data import CountedPrompts, PromptSets
from online_dpo.config.judges.section import JudgeSection
from online_dpo.config.preferences import EvaluationPairs


class EvaluationSet(PromptSets):
    """Prompts that the updated policy answers once each."""

    count: int = Field(64, ge=1)
    """How many prompts are taken from the beginning of the source; it is an error if fewer are usable."""
    domain_field: str | None = None
    """The column that holds each prompt's domain, by which figures are told apart. null: they are not."""
    sources: list[CountedPrompts] = Field([])
    """Several data sets in place of `source`, each with a count of its own. Figures are told by their domains, too."""

    @property
    def has_domains(self) -> bool:
        """Whether figures are told by domain."""
        return bool(self.sources) or self.domain_field is not None


class EvaluationSection(Section):
    """Fresh samples of the updated policy at temperature 1 and top_p 1, and held-out pairs.

    Samples give judges' scores, KL, entropy, length and diversity. Held-out pairs tell whether the policy prefers what
    people preferred, which takes no samples.
    """

    sets: dict[Name, EvaluationSet] = Field({})
    """Sets of prompts to sample for, by name."""
    judges: dict[Name, JudgeSection] = Field({})
    """Judges of these samples besides the training judge, by name."""
    pairs: dict[Name, EvaluationPairs] = Field({})
    """Sets of held-out preferences, by name."""
    every: int = Field(1, ge=1)
    """Rounds from one evaluation to the next."""

    @field_validator("judges")
    @classmethod
    def _reward_is_taken(cls, value: dict[str, Any]) -> dict[str, Any]:
        if "reward" in value:
            raise ValueError("has a judge named reward; that name is the training judge's, choose another")
        return value


class VerdictsSection(Section):
    """What a round asks of its judges beyond a verdict on each prompt."""

    min_coverage: float = changeable(0.5, ge=0.0, le=1.0)
    """The share of a round's prompts on which the training judge must have an opinion about at least two completions;
    below it the run stops."""
    repeated: float = Field(0.0, ge=0.0, le=1.0)
    """The share of prompts that judges are asked about a second time, past any cache, to see whether they repeat what
    they said; evaluation judges on their own sets. 0 asks nothing, and costs nothing."""
