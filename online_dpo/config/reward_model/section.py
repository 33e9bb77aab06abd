"""`RewardModelConfig`: preferences from one of three places, a base model, and how it is trained on them."""

from __future__ import annotations

from typing import Literal, Self

from pydantic import Field, model_validator

from online_dpo.config.base import Count, Place, Positive, Section
from online_dpo.config.learner import LoraSection
from online_dpo.config.preferences import PairColumns

SOURCES = ("pairs", "run", "votes")
"""The fields that say where preferences come from."""


class BaseModelSection(Section):
    """The model that the training begins with."""

    path: Place
    """A folder, a hub id, or `embedded:policy`. A language model gets a new head; a reward model with one output keeps
    its own. A LoRA policy is merged first: `online-dpo export RUN_DIR FOLDER --merge`."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number format of the weights, also of those that are written. bfloat16 needs `training.lora`."""
    chat_template: str | None = None
    """A chat template that takes the place of the tokenizer's, and is written with it. null: the tokenizer's own."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class PreferenceColumns(PairColumns):
    """A data set of preferences and its columns."""

    format: Literal["pairs"] = "pairs"
    """What a row holds: two answers, one of which is preferred."""


class RunPairs(Section):
    """The pairs that a run was trained on."""

    dir: Place
    """The run's folder, such as runs/reviews."""
    rounds: list[Count] | None = Field(None, min_length=1)
    """The rounds whose pairs are taken, counted from 1 as in `status`. null takes all that are finished."""


class VotesSection(Section):
    """What people said about the answers of a run."""

    dir: Place
    """The run's folder, in which `online-dpo annotate` keeps the votes."""


class HeldoutSection(Section):
    """What is kept from training, to be measured on."""

    share: float = Field(0.1, gt=0.0, lt=1.0)
    """The share of the prompts. A prompt's side is settled by a hash of `seed` and its content, so that all pairs of a
    prompt are on one side and further rows move none."""
    pairs: PreferenceColumns | None = None
    """A data set of its own in place of a share; its prompts are then left out of training. null: there is none."""


class TrainingSection(Section):
    """The optimizer (AdamW) and its batches."""

    lr: Positive = 1e-4
    """The peak learning rate. About 1e-4 suits LoRA, 1e-5 all weights of a large model, 1e-3 the embedded one."""
    schedule: Literal["constant", "linear", "cosine"] = "linear"
    """The learning rate over the training. linear and cosine fall to 0 at its end."""
    warmup_steps: int = Field(0, ge=0)
    """Optimizer steps at the start, over which the learning rate rises to `lr`."""
    weight_decay: float = Field(0.0, ge=0.0)
    """AdamW's decoupled weight decay."""
    epochs: int = Field(1, ge=1)
    """How often each pair is trained on."""
    batch_pairs: int = Field(32, ge=1)
    """Pairs of an optimizer step."""
    micro_batch_pairs: int | None = Field(None, ge=1)
    """Pairs of a forward pass, which must divide `batch_pairs`: less memory. null takes all of a step at once."""
    max_grad_norm: float = Field(1.0, gt=0.0)
    """Gradients with a larger norm are scaled down to it."""
    lora: LoraSection | None = None
    """Trains LoRA and the head, and merges them into the model at the end. null trains all weights."""
    center_rewards: float | None = Field(None, gt=0.0)
    """Adds so many times the mean square of (score of the chosen + score of the rejected) to the loss, which keeps
    scores around 0 (arXiv:2312.09244, equation 2; 0.01 is usual). null adds nothing."""
    autocast: Literal["auto", "bfloat16", "off"] = "auto"
    """The precision of matrix products. auto is bfloat16 on GPU and off (the precision of the weights) on CPU."""
    activation_checkpointing: bool = False
    """Whether activations are computed again in the backward pass: less memory for about a third more time."""

    @model_validator(mode="after")
    def _micro_batches_fill_a_batch(self) -> Self:
        if self.micro_batch_pairs is not None and self.batch_pairs % self.micro_batch_pairs:
            raise ValueError(
                f"training.micro_batch_pairs is {self.micro_batch_pairs} and training.batch_pairs is "
                f"{self.batch_pairs}, which is no multiple of it; change one of them"
            )
        return self


class RewardModelConfig(Section):
    """A whole training of a reward model. One of `pairs`, `run` and `votes` says what people or judges prefer."""

    output: Place
    """The new folder of the model."""
    seed: int = Field(0, ge=0)
    """The seed of the new head, of the split, and of the order of batches."""
    model: BaseModelSection
    """What the training begins with."""
    pairs: PreferenceColumns | None = None
    """A data set of preferences. null: they come from `run` or `votes`."""
    run: RunPairs | None = None
    """A run whose pairs are the preferences. null: they come from `pairs` or `votes`."""
    votes: VotesSection | None = None
    """A run whose annotators' votes are the preferences. null: they come from `pairs` or `run`."""
    heldout: HeldoutSection = HeldoutSection()
    """What is measured on."""
    max_tokens: int | None = Field(None, ge=8)
    """The longest prompt and answer together in tokens; longer ones lose the start of the prompt, in training and when
    the model judges. null takes the model's context."""
    training: TrainingSection = TrainingSection()
    """How the model is trained."""

    @model_validator(mode="after")
    def _sections_agree(self) -> Self:
        given = [name for name in SOURCES if getattr(self, name) is not None]
        if len(given) != 1:
            found = f"{' and '.join(given)} are set" if given else f"{', '.join(SOURCES)} are missing"
            raise ValueError(f"{found}; set exactly one of {', '.join(SOURCES)}, which says where preferences are")
        if self.heldout.pairs is not None and "share" in self.heldout.model_fields_set:
            raise ValueError(
                f"heldout.share is {self.heldout.share:g} and heldout.pairs is set; what is held out is one or the "
                f"other: remove one of them"
            )
        if self.model.dtype == "bfloat16" and self.training.lora is None:
            raise ValueError(
                "model.dtype is bfloat16 and training.lora is missing; most updates of whole weights are lost in "
                "bfloat16: set model.dtype to float32 (training.autocast then saves time), or set training.lora"
            )
        return self
