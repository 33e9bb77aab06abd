"""The `model` section, the `prompts` section, and where every data set is found."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import Field

from online_dpo.config.base import Place, Section


class ModelSection(Section):
    """The model that is trained, and that samples."""

    path: Place
    """A folder, a hub id, or `embedded:policy` for the tiny model that ships with the package."""
    adapter: Place | None = None
    """The folder of a PEFT LoRA adapter to continue, which is then the initial policy. null starts a new adapter."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """The number format of the frozen weights."""
    quantization: Literal["nf4"] | None = None
    """Loads the frozen weights in 4 bits (bitsandbytes; on a GPU only), for the learner and for the engines, which
    serve the adapter unmerged. null keeps them in `dtype`."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class DataSource(Section):
    """Where a data set is found."""

    source: Place
    """A hub id, a local .jsonl, .jsonl.gz, .json, .parquet, .arrow or .csv file, a folder that `save_to_disk` of
    `datasets` wrote, or, for prompts, `embedded:openings/train`."""
    subset: str | None = None
    """The configuration of a hub data set (its `name`). null takes the default one."""
    split: str = "train"
    """The split of a hub data set, or of a folder with several."""


class PromptColumn(DataSource):
    """A data set of prompts and its column."""

    field: str = "prompt"
    """The column that holds the prompt: text, or a list of chat messages. Where there is no column `prompt`, a column
    `conversations` or `messages` is read, up to the assistant's last message."""


class PromptsSection(PromptColumn):
    """The prompts that online rounds sample completions for."""

    per_round: int = Field(128, ge=1)
    """The number of prompts in a round."""
    max_tokens: int = Field(512, ge=1)
    """The longest prompt in tokens. Longer ones are dropped and counted; a prompt is never cut."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Further arguments of the chat template, for all prompts and answers of the run."""
