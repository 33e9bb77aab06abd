"""The `model` section, the `prompts` section, and where every data set is found."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal, Self

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Name, Place, Positive, Section


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


class PromptSet(DataSource):
    """A data set of prompts, its column, and the domain by which its figures are told from those of others."""

    field: str = "prompt"
    """The column that holds the prompt: text, or a list of chat messages. Where there is no column `prompt`, a column
    `conversations` or `messages` is read, up to the assistant's last message."""

    domain: Name | None = None
    """The domain of all its prompts; data sets may share one. null: each prompt's own, where `domain_field` is set,
    and otherwise the name of the file or hub id, with the subset and any split but train."""
    domain_field: str | None = None
    """The column that holds each prompt's domain, instead of one domain for all."""

    @model_validator(mode="after")
    def _one_domain(self) -> Self:
        if self.domain is not None and self.domain_field is not None:
            raise ValueError(f"has domain {self.domain} and domain_field {self.domain_field}; remove one of the two")
        return self

    @property
    def name(self) -> str:
        """Its domain, or what stands for it: a name from where it is found."""
        if self.domain is not None:
            return self.domain
        last = re.sub(r"(\.[a-z]+){1,2}$", "", self.source.rstrip("/").split("/")[-1].split(":")[-1])
        split = None if self.split == "train" else self.split
        found = "-".join(part for part in (last, self.subset, split) if part)
        return re.sub(r"[^A-Za-z0-9._-]+", "-", found).strip("-._") or "prompts"


class MixedPrompts(PromptSet):
    """A data set of a mixture of training prompts."""

    weight: Positive = 1.0
    """Its part in the mixture, relative to the other weights: of each round, and ever more exactly of all rounds
    together. It stays the same when the data set has been gone through, which then begins anew in another order."""
    max_tokens: int | None = Field(None, ge=1)
    """The longest prompt of this data set in tokens, at most `prompts.max_tokens`, which null takes."""


class CountedPrompts(PromptSet):
    """A data set of an evaluation set that has several."""

    count: int = Field(64, ge=1)
    """How many prompts are taken from the beginning of the source; it is an error if fewer are usable."""


class PromptSets(Section):
    """Prompts of one data set, or of several."""

    source: Place | None = None
    """A hub id, a local .jsonl, .jsonl.gz, .json, .parquet, .arrow or .csv file, a folder that `save_to_disk` of
    `datasets` wrote, or `embedded:openings/train`. null: `sources` are set."""
    subset: str | None = None
    """The configuration of a hub data set (its `name`). null takes the default one."""
    split: str = "train"
    """The split of a hub data set, or of a folder with several."""
    field: str = "prompt"
    """The column that holds the prompt: text, or a list of chat messages. Where there is no column `prompt`, a column
    `conversations` or `messages` is read, up to the assistant's last message."""
    sources: Sequence[PromptSet] = ()
    """Several data sets in place of `source`."""

    def parts(self, field: str) -> dict[str, PromptSet]:
        """The data sets, or the only one, by the field of the config that each is.

        Args:
            field: of this section, such as `prompts`.
        """
        if self.sources:
            return {f"{field}.sources.{index}": part for index, part in enumerate(self.sources)}
        assert self.source is not None
        own = {name: getattr(self, name) for name in PromptSet.model_fields if name in type(self).model_fields}
        return {field: PromptSet(**own)}

    @field_validator("sources")
    @classmethod
    def _no_domain_by_chance(cls, sources: Sequence[PromptSet]) -> Sequence[PromptSet]:
        """Two files of one name are not meant to be one domain, unless they are told so."""
        for index, part in enumerate(sources):
            for other in sources[:index]:
                if part.name == other.name and None in (part.domain, other.domain) and not part.domain_field:
                    raise ValueError(
                        f"has {other.source} and {part.source}, which would both be of the domain {part.name}, after "
                        f"their names: give each a domain, the same one if they belong together"
                    )
        return sources

    @model_validator(mode="after")
    def _one_or_several(self) -> Self:
        if self.source is None and not self.sources:
            raise ValueError(
                "has neither source nor sources; set source to a hub id or a file, or sources to a list of them"
            )
        of_each = {*CountedPrompts.model_fields, *MixedPrompts.model_fields} - {"max_tokens"}
        for name in sorted(of_each & type(self).model_fields.keys()) if self.sources else ():
            if (value := getattr(self, name)) != type(self).model_fields[name].default:
                raise ValueError(
                    f"has sources, and beside them {name}, which is {value}; each of the sources has a {name} of its "
                    f"own: move it there"
                )
        return self


def names_of(sources: Sequence[PromptSet]) -> list[str]:
    """A name for each of several data sets, all different: its domain, with a number where others come before it."""
    seen: Counter[str] = Counter()
    names = []
    for part in sources:
        seen[part.name] += 1
        names.append(part.name if seen[part.name] == 1 else f"{part.name}:{seen[part.name]}")
    return names


class PromptsSection(PromptSets):
    """The prompts that online rounds sample completions for."""

    per_round: int = Field(128, ge=1)
    """The number of prompts in a round."""
    max_tokens: int = Field(512, ge=1)
    """The longest prompt in tokens. Longer ones are dropped and counted; a prompt is never cut."""
    chat_template_kwargs: dict[str, Any] = Field({})
    """Further arguments of the chat template, for all prompts and answers of the run."""
    sources: list[MixedPrompts] = Field([])
    """A mixture: several data sets in place of `source`, from which each round draws by weight. A prompt that two of
    them have is drawn from the first alone."""
    contaminated: Literal["keep", "warn", "drop"] = "warn"
    """What becomes of prompts that an evaluation set or held-out pair has as well, in the same words or with 13 words
    in a row: nobody looks for them, they are told of and trained on, or they are dropped and counted."""

    @model_validator(mode="after")
    def _limits_fit(self) -> Self:
        for index, part in enumerate(self.sources):
            if part.max_tokens is not None and part.max_tokens > self.max_tokens:
                raise ValueError(
                    f"prompts.sources.{index}.max_tokens is {part.max_tokens} and prompts.max_tokens is "
                    f"{self.max_tokens}, which no prompt of the run exceeds: lower the one or raise the other"
                )
        return self
