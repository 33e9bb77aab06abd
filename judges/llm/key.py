"""The key of an endpoint: from the environment or a file, where the judge runs, and never anywhere else."""

from __future__ import annotations

import base64
import html
import json
import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote_plus

from online_dpo.config.judges.llm import Endpoint
from online_dpo.errors import JudgeError

HIDDEN = "[key]"
WITHHELD = "[withheld: it holds the key]"
MOST_DISGUISES = 30
SHORTEST = 8
"""The fewest characters of a key: to hide a shorter text would garble every message."""


class ApiKey:
    """A secret that only the header of a request reads; its repr does not show it, and it cannot be pickled."""

    __slots__ = ("_value",)

    def __init__(self, value: str | None) -> None:
        self._value = value

    def __repr__(self) -> str:
        return "ApiKey()" if self._value is None else f"ApiKey({HIDDEN})"

    def __reduce__(self) -> str:
        raise TypeError("a key does not travel between processes: it is read where it is used")

    @property
    def headers(self) -> dict[str, str]:
        return {} if self._value is None else {"Authorization": f"Bearer {self._value}"}

    def hide(self, text: str) -> str:
        """`text` without the key and without any SHORTEST characters of it, should a server have sent it back.

        A text that holds them in a disguise (percent signs, entities, escapes, base64, hex, backwards, in another
        case, or with other characters in between) is withheld as a whole. Call this before a text is shortened.
        """
        if self._value is None:
            return text
        for form in (self._value, json.dumps(self._value)[1:-1]):
            text = _hide_parts(text, form)
        return WITHHELD if any(_holds_part(form, self._value) for form in _disguises(text)) else text


def _parts(value: str) -> set[str]:
    return {value[i : i + SHORTEST] for i in range(len(value) - SHORTEST + 1)}


def _hide_parts(text: str, value: str) -> str:
    """HIDDEN in the place of whatever consists of parts of `value`."""
    parts, end = _parts(value), 0
    pieces: list[str] = []
    hidden = [i for i in range(len(text)) if text[i : i + SHORTEST] in parts]
    for i in hidden:
        if i >= end or not pieces:
            pieces += [text[end:i], HIDDEN]
        end = i + SHORTEST
    return "".join([*pieces, text[end:]])


def _holds_part(text: str, value: str) -> bool:
    """Whether `text` holds SHORTEST letters and digits of `value` in a row, whatever stands in between."""
    parts = _parts(_plain(value))
    for piece in text.split(HIDDEN):
        found = _plain(piece)
        if parts & (_parts(found) | _parts(found[::-1])):
            return True
    return False


def _plain(text: str) -> str:
    return re.sub(r"[^0-9a-z]", "", text.lower())


def _disguises(text: str) -> Iterator[str]:
    """What a text may mean, by escapes of several kinds in any order, and by what is base64 or hex in it."""
    seen = [text]
    for form in seen:  # grows while it is read
        if len(seen) > MOST_DISGUISES:
            break
        escapes = re.sub(r"\\+(?:u|x|U000)\{?([0-9a-fA-F]{2,5})\}?", lambda m: chr(int(m.group(1), 16)), form)
        octal = re.sub(r"\\([0-7]{3})", lambda m: chr(int(m.group(1), 8)), form)
        for other in (html.unescape(form), unquote_plus(form), escapes, octal):
            if other not in seen:
                seen.append(other)
    yield from seen
    for form in seen:
        for run in re.findall(r"[A-Za-z0-9+/_-]{10,}", form):
            run = run.replace("-", "+").replace("_", "/")
            for start in range(4):
                cut = run[start : start + (len(run) - start) // 4 * 4]
                yield base64.b64decode(cut).decode("latin-1")
        for run in re.findall(r"(?:[0-9a-fA-F]{2}[\s:,]?){8,}", form):
            digits = re.sub(r"[^0-9a-fA-F]", "", run)
            for start in (0, 1):
                yield bytes.fromhex(digits[start : start + (len(digits) - start) // 2 * 2]).decode("latin-1")


def read_key(endpoint: Endpoint, field: str) -> ApiKey:
    """The key that an endpoint's section points to.

    Raises:
        JudgeError: the variable is not set, the file is not there, or what they hold is no key.
    """
    if endpoint.api_key_env is not None:
        place, value = f"{field}.api_key_env is {endpoint.api_key_env}", os.environ.get(endpoint.api_key_env)
        remedy = "set it where the judge runs; on a cluster that is every node, or the job's runtime environment"
        if value is None:
            raise JudgeError(f"{place}, and there is no such variable; {remedy}")
    elif endpoint.api_key_file is not None:
        place, remedy = f"{field}.api_key_file is {endpoint.api_key_file}", "give a file that holds the key alone"
        try:
            value = Path(endpoint.api_key_file).expanduser().read_text()
        except (OSError, UnicodeDecodeError) as error:
            # The error's own text ends with the path or with bytes of the file.
            raise JudgeError(f"{place}, which cannot be read ({type(error).__name__}); {remedy}") from None
    else:
        return ApiKey(None)
    value = value.strip()
    if len(value) < SHORTEST or not value.isascii() or not value.isprintable() or " " in value:
        raise JudgeError(
            f"{place}, and what it holds is no key: one line of at least {SHORTEST} ASCII characters without spaces is "
            f"wanted; {remedy}"
        )
    return ApiKey(value)
