"""Text that a model or a user wrote, made fit for a page: nothing in it can act, hide or rearrange what stands beside.

Markup is escaped by the templates. Here are the characters that escaping leaves as they are: controls, overrides of
the writing direction, invisible ones, and halves of surrogate pairs, which no UTF-8 file can hold.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from typing import Any

# All of C0 but tab and line feed, DEL and C1; marks, embeddings, overrides and isolates of the writing direction;
# invisible characters that can hide text (soft hyphen, zero-width space, word joiner, tags ...); line and paragraph
# separators; halves of surrogate pairs; and what Unicode says is no character. Joiners (U+200C, U+200D) stay: emoji and
# several scripts are written with them.
_UNSEEN = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\u00ad\u061c\u180e\u200b\u200e\u200f\u2028-\u202e\u2060-\u206f\ufeff\ufff9-\ufffb"
    "\ufffe\uffff\ud800-\udfff\U000e0000-\U000e007f]"
)
_CLOSES_SCRIPT = {"<": "\\u003c", ">": "\\u003e", "&": "\\u0026", "\u2028": "\\u2028", "\u2029": "\\u2029"}


def visible(text: str) -> str:
    """The same text with each such character shown by its code point, such as `\u27e8U+202E\u27e9`; CRLF becomes LF."""
    return _UNSEEN.sub(_code_point, text.replace("\r\n", "\n"))


def visible_values(value: Any) -> Any:
    """`visible` of every text in JSON values, keys included."""
    if isinstance(value, str):
        return visible(value)
    if isinstance(value, Mapping):
        return {visible(str(key)): visible_values(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [visible_values(inner) for inner in value]
    return value


def script_json(value: Any) -> str:
    """JSON that stands in a `<script type="application/json">` and cannot end it, open another or begin a comment.

    Raises:
        ValueError: a number is not finite, which JSON cannot hold.
    """
    text = json.dumps(visible_values(value), ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return re.sub("[<>&\u2028\u2029]", lambda match: _CLOSES_SCRIPT[match.group()], text)


def _code_point(match: re.Match[str]) -> str:
    return f"\u27e8U+{ord(match.group()):04X}\u27e9"
