"""The section that says what of a completion judges see, and the base of all sections of judges, which have it."""

from __future__ import annotations

from typing import Literal

from pydantic import Field, model_validator

from online_dpo.config.base import Name, Section


class ThoughtTags(Section):
    """What stands before and after a thought."""

    open: str = Field(min_length=1)
    """The text that begins a thought, such as `[THINK]`."""
    close: str = Field(min_length=1)
    """The text that ends it, such as `[/THINK]`."""

    @model_validator(mode="after")
    def _differ(self) -> ThoughtTags:
        if self.open == self.close:
            raise ValueError(f"open and close are both {self.open!r}; a thought begins and ends with different texts")
        return self


class ViewSection(Section):
    """What of a completion is the answer. Thoughts between tags are left out; they are trained on all the same."""

    strip: list[Name] = Field([])
    """Names of tags whose content is a thought: `think` stands for `<think>` and `</think>`."""
    tags: list[ThoughtTags] = Field([])
    """Further tags that have another form, such as `{open: "[THINK]", close: "[/THINK]"}`."""
    prefilled: bool = False
    """Whether the prompt ends with an opening tag, which the chat template has written, so that a completion begins
    inside a thought. It is compared with the prompts when the run starts."""
    unclosed: Literal["abstain", "worst"] | float = "abstain"
    """What a completion gets whose thought has no end. No judge is asked about it: it makes no pair (abstain), loses to
    every answer that the judge has an opinion on (worst), or has this score."""

    @model_validator(mode="after")
    def _prefilled_by_a_tag(self) -> ViewSection:
        if self.prefilled and not self.pairs_of_tags:
            raise ValueError("prefilled is true and neither strip nor tags names a tag; name it, or remove prefilled")
        return self

    @property
    def pairs_of_tags(self) -> tuple[tuple[str, str], ...]:
        """`(opening, closing)` of every kind of thought; none where completions are seen whole."""
        return (*((f"<{name}>", f"</{name}>") for name in self.strip), *((tag.open, tag.close) for tag in self.tags))


class ViewingSection(Section):
    """What the section of every judge has."""

    view: ViewSection | None = None
    """What of a completion the judge sees. That of `judge` holds for the whole run: for filters of pairs, figures and
    the report, and for every other judge that has none of its own. null: completions are seen whole."""
