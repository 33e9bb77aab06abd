"""Texts of others, quoted so that they cannot pass for anything but text.

In a quoted text nothing closes a tag, nothing spells a control token of a chat template, and nothing is invisible.
"""

from __future__ import annotations

import re
import unicodedata

_ALWAYS_BROKEN = re.compile(
    r"\[(?=\s*/?\s*g?[A-Z][A-Z_ ]+\])"  # [INST], [/INST], [SYSTEM_PROMPT], also with spaces inside
    r"|\](?=~)|(?<=~)\["  # MiniMax's ]~b], ]~!b[ and [e~[
)
_BRACKETED = re.compile(r"\[(?=([^\s\[\]]{1,64})\])")
"""The bracket of a word in brackets, with no space in it: the shape of `[|assistant|]`, `[gMASK]`, `[control_8]`."""

_ORDINARY = re.compile(
    r"[a-z]+|.|-?\d+"  # a subscript, a box that is ticked, the number of a source
    r"|[\w.\-+*/%:]*[,:=+*\-\"'(){}.%;&][\w,:=+*/\-\"'(){}.%;&#\\^$?]*"  # code, JSON, expressions, patterns
)
"""What stands in brackets in code and prose. No vocabulary that we know has a token of this form."""

_UNUSUAL = re.compile("[^\x20-\x7e\n\t]")
_IGNORABLE = re.compile(
    "[\u00ad\u034f\u061c\u115f\u1160\u17b4\u17b5\u180b-\u180f\u200b-\u200f\u202a-\u202e\u2060-\u206f\u3164"
    "\ufe00-\ufe0f\ufeff\uffa0\ufff0-\ufff8\U0001bca0-\U0001bca3\U0001d173-\U0001d17a\U000e0000-\U000e0fff]"
)
"""Unicode's class Default_Ignorable_Code_Point (DerivedCoreProperties.txt of Unicode 15): shown as nothing."""

_JOINED = re.compile("[\u0590-\u109f\u1780-\u18af\ufb50-\ufdff\ufe70-\ufefc]")
"""Letters and vowel signs of scripts in which a joiner changes the word: Arabic, those of India, Burmese, Khmer."""

_JOINERS, _PRESENTATION = "\u200c\u200d", "\ufe0e\ufe0f"


def neutralise(text: str) -> str:
    """`text` without the power to end its quotation: XML escapes, and invisible characters made visible.

    Different texts stay different, and letters, digits and punctuation of any language stay as they are.
    """
    text = text.replace("&", "&amp;").replace("<", "&lt;").replace(">", "&gt;")
    text = _UNUSUAL.sub(_spell_out, text)
    text = _BRACKETED.sub(lambda m: m.group() if _ORDINARY.fullmatch(m.group(1)) else _code(m.group()), text)
    return _ALWAYS_BROKEN.sub(lambda m: _code(m.group()), text)


def without_tokens(text: str, tokens: list[str]) -> str:
    """`text`, in which none of these tokens of a vocabulary occurs: their first character is spelled out."""
    for token in sorted((token for token in tokens if token.strip()), key=len, reverse=True):
        while token in text and "&" not in token:  # again where two overlapped; our escapes have an ampersand
            text = text.replace(token, _code(token[0]) + token[1:])
    return text


def _spell_out(match: re.Match[str]) -> str:
    """`&#x...;` for what is invisible or unassigned, or a look-alike that some tokenizers turn into one of `<>[]|`."""
    char, text, at = match.group(), match.string, match.start()
    if char in _JOINERS or char in _PRESENTATION:
        before, after = text[at - 1 : at] if at else "", text[at + 1 : at + 2]
        return char if _is_ordinary_joiner(char, before, after) else _code(char)
    hidden = unicodedata.category(char) in ("Cc", "Cf", "Cs", "Co", "Cn", "Zl", "Zp") or _IGNORABLE.match(char)
    look_alike = any(c in "<>[]|" for c in unicodedata.normalize("NFKD", char))
    return _code(char) if hidden or look_alike else char


def _is_ordinary_joiner(char: str, before: str, after: str) -> bool:
    """Whether it does what it is for: it joins two letters of Persian or Hindi, or two emoji, or makes one emoji."""
    if before.isascii() and not (char in _PRESENTATION and after == "\u20e3"):  # the digit of a keycap
        return False
    if char in _PRESENTATION:
        return after == "\u20e3" or unicodedata.category(before) in ("So", "Sm", "Po", "Sk")
    is_word = _JOINED.match(before) and (not after or not after.isascii() or after in " \n.,:!?")
    is_emoji = before in _PRESENTATION or unicodedata.category(before) in ("So", "Sk")
    return bool(is_word) or (is_emoji and unicodedata.category(after or " ") == "So")


def _code(char: str) -> str:
    return f"&#x{ord(char):X};"
