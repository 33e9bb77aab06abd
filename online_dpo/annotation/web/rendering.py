"""What a model or a user wrote becomes text, or Markdown without HTML, that a page can show. Nothing is fetched."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from markdown_it import MarkdownIt
from markdown_it.common.utils import escapeHtml
from markdown_it.renderer import RendererHTML
from markdown_it.token import Token

from online_dpo.types import PromptContent

MAX_MARKDOWN = 100_000
"""Characters of a text that is still shown as Markdown too; a longer one is shown as text only."""

_LINK = re.compile(r"(https?://|mailto:)", re.IGNORECASE)
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f"  # control characters but tab and newline
    "\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069"  # what changes the direction of the text around it
    "\u200b\u2028\u2029\u2060\ufeff\U000e0000-\U000e007f\ud800-\udfff]"  # no width, tags, and halves of characters
)


def visible(text: str) -> str:
    """The text with each character that no reader would see, or that moves others, as its code: `[U+202E]`.

    Joiners inside words and emoji stay: languages need them.
    """
    text = text.replace("\r\n", "\n").replace("\r", "\n")
    return _UNSEEN.sub(lambda found: f"[U+{ord(found[0]):04X}]", text)


def shown(text: str) -> dict[str, str | None]:
    """Both forms of a text: `text`, to be set as text, and `markdown`, which is HTML; None where it is too long."""
    return {"text": visible(text), "markdown": _markdown(text) if len(text) <= MAX_MARKDOWN else None}


def shown_prompt(prompt: PromptContent) -> list[dict[str, str | None]]:
    """A prompt as messages: those of a chat by role, a plain prompt as one message without a role."""
    if isinstance(prompt, str):
        return [{"role": None, **shown(prompt)}]
    return [{"role": visible(str(message.get("role", ""))), **shown(str(message.get("content")))} for message in prompt]


def _image(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Mapping[str, Any]) -> str:
    """An image is never fetched: its description and its address stand in its place."""
    token = tokens[place]
    words = self.renderInlineAsText(token.children, options, dict(env)) if token.children else ""
    return f'<span class="inert">[image: {escapeHtml(words)} {_address(token, "src")}]</span>'


def _link_open(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Mapping[str, Any]) -> str:
    return '<span class="inert">'


def _link_close(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Mapping[str, Any]) -> str:
    """A link leads nowhere; where it would lead stands behind its words, which may say something else."""
    start = place
    while tokens[start].type != "link_open":
        start -= 1
    words = "".join(token.content for token in tokens[start + 1 : place])
    address = _address(tokens[start], "href")
    return "</span>" if escapeHtml(words) == address else f" ({address})</span>"


def _cell(self: RendererHTML, tokens: Sequence[Token], place: int, options: Any, env: Mapping[str, Any]) -> str:
    """A cell without its alignment, which would be an inline style; the pages' policy allows none."""
    return f"<{tokens[place].tag}>"


def _address(token: Token, attribute: str) -> str:
    return escapeHtml(str(token.attrGet(attribute) or ""))


_RULES = {"image": _image, "link_open": _link_open, "link_close": _link_close, "th_open": _cell, "td_open": _cell}


def _renderer() -> MarkdownIt:
    markdown = MarkdownIt("commonmark", {"html": False, "breaks": True}).enable(["table", "strikethrough"])
    markdown.validateLink = lambda url: _LINK.match(url) is not None  # type: ignore[method-assign]
    for name, rule in _RULES.items():
        markdown.add_render_rule(name, rule)
    return markdown


_MARKDOWN = _renderer()


@lru_cache(maxsize=512)  # three people see the same answers soon after each other
def _markdown(text: str) -> str:
    return visible(_MARKDOWN.render(visible(text)))  # once more: Markdown writes characters as `&#x202e;` too
