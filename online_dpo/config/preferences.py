"""The config of preferences that were written down before the run: `pairs`, and `evaluation.pairs`."""

from __future__ import annotations

from typing import Any, Literal, Self, TypeAlias

from pydantic import Field, model_validator

from online_dpo.config.base import Auto, Positive, Section
from online_dpo.config.data import DataSource

DEFAULT_MAX_TOKENS = 512


Format: TypeAlias = Literal["pairs", "labelled", "demonstrations"]

COLUMNS: dict[Format, tuple[str, ...]] = {
    "pairs": ("chosen", "rejected"),
    "labelled": ("completion", "label"),
    "demonstrations": ("completion",),
}
"""The fields that name what is read of a row besides the prompt."""


class PairColumns(DataSource):
    """A data set of preferences, or of demonstrations, and its columns."""

    format: Format = "pairs"
    """What a row holds: two answers; one answer and a label that says whether it is desirable (for KTO); or one answer
    or whole conversation to imitate (for SFT)."""
    prompt: str | None = "prompt"
    """The column of the prompt. null: there is none, and the answers are whole conversations that begin alike."""
    chosen: str = "chosen"
    """The column of the preferred answer."""
    rejected: str = "rejected"
    """The column of the other answer."""
    completion: str = "completion"
    """For the formats labelled and demonstrations: the column of the answer, or where `prompt` is null of the whole
    conversation."""

    @property
    def columns(self) -> dict[str, str]:
        """The fields that name what is read besides the prompt -> the column that each names."""
        return {name: getattr(self, name) for name in COLUMNS[self.format]}

    @property
    def is_labelled(self) -> bool:
        """Whether a row is one answer with a label rather than two answers."""
        return self.format == "labelled"

    @model_validator(mode="after")
    def _columns_are_of_the_format(self) -> Self:
        fields = type(self).model_fields
        for name in dict.fromkeys(name for names in COLUMNS.values() for name in names):
            if name not in fields or name in COLUMNS[self.format]:
                continue
            if (value := getattr(self, name)) != fields[name].default:
                others = " or ".join(other for other, names in COLUMNS.items() if name in names)
                raise ValueError(
                    f"has {name} {value} and format {self.format}, which has no such column: set format to {others}, "
                    f"or remove {name}"
                )
        return self


class PairsSection(PairColumns):
    """Preferences to train on: in every round (no `prompts`, no `judge`), before the online rounds, or beside them."""

    label: str = "label"
    """For `format: labelled`: the column of the label, true or false."""
    per_round: int | None = Field(None, ge=1)
    """Rows of a round that trains on these alone. null: all that the epoch has left, so that a round is an epoch."""
    warm_start_rounds: int | None = Field(None, ge=1)
    """How many rounds at the start train on these alone, before the online rounds. null: none, or all where `fraction`
    is null too."""
    fraction: float | None = Field(None, gt=0.0, lt=1.0)
    """The share of these in what each online round trains on. null: none."""
    max_prompt_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1)
    """The longest prompt in tokens. A row with a longer one is dropped and counted."""
    max_completion_tokens: int = Field(DEFAULT_MAX_TOKENS, ge=1)
    """The longest answer in tokens. A longer one loses its end."""
    truncated: Literal["keep", "drop"] = "keep"
    """What becomes of a row whose answer lost its end."""
    append_eos: bool = False
    """Whether answers that have no end token get the tokenizer's."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Further arguments of the chat template, in a run without `prompts`."""

    @property
    def is_whole_run(self) -> bool:
        """Whether no round samples anything to train on."""
        return self.warm_start_rounds is None and self.fraction is None

    @model_validator(mode="after")
    def _per_round_is_read(self) -> PairsSection:
        if self.per_round is not None and self.fraction is not None and self.warm_start_rounds is None:
            raise ValueError(
                f"pairs.per_round is {self.per_round} and pairs.fraction is {self.fraction}; the fraction settles how "
                f"many join a round's own: remove per_round, or set warm_start_rounds for rounds without samples"
            )
        return self


class ReplaySection(Section):
    """Items of earlier rounds that come back beside a round's own, with reference log-probs of this round."""

    rounds: int = Field(1, ge=1)
    """How many rounds before a round its replayed items come from."""
    fraction: float = Field(gt=0.0, lt=1.0)
    """The share of replayed items in what a round trains on. Where earlier rounds have too few, the rest is counted."""


class SftSection(Section):
    """Supervised fine-tuning before the first round. What it makes is the initial policy of the run."""

    pairs: PairsSection
    """The demonstrations, with `format: demonstrations`. Their chat template is that of the run."""
    rounds: int = Field(1, ge=1)
    """The number of rounds of fine-tuning. With `pairs.per_round: null` each is an epoch."""
    lr: Auto | Positive = "auto"
    """The peak learning rate, by itself from that of the run; auto as for `learner.lr`."""
    schedule: Literal["constant", "linear", "cosine"] = "constant"
    """The learning rate over these rounds. linear and cosine fall to 0 at their end."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps at their start, over which the learning rate rises to `lr`."""


class EvaluationPairs(PairColumns):
    """Held-out pairs, on which it is measured how often the policy prefers the preferred answer, or demonstrations, on
    which its loss and perplexity are."""

    format: Literal["pairs", "demonstrations"] = "pairs"
    """What a row holds: two answers, or one answer or whole conversation."""
    count: int = Field(256, ge=1)
    """How many rows are taken from the beginning of the source; it is an error if fewer are usable."""
    max_prompt_tokens: int | None = Field(None, ge=1)
    """The longest prompt in tokens. null takes the limit of `pairs` (of `sft.pairs` for demonstrations), or 512 where
    that is missing."""
    max_completion_tokens: int | None = Field(None, ge=1)
    """The longest answer in tokens. null takes the limit of `pairs` (of `sft.pairs` for demonstrations), or 512 where
    that is missing."""
    append_eos: bool | None = None
    """Whether answers that have no end token get the tokenizer's. null takes the value of `pairs` (of `sft.pairs` for
    demonstrations), or false where that is missing."""
