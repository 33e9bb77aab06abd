"""The key of an endpoint: from the environment or a file, where the judge runs, and never anywhere else."""

from __future__ import annotations

import json
import os
from pathlib import Path

from online_dpo.config.judges.llm import Endpoint
from online_dpo.errors import JudgeError

HIDDEN = "[key]"
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
        """`text` without the key, should a server have sent it back."""
        if self._value is None:
            return text
        for form in {self._value, json.dumps(self._value)[1:-1]}:
            text = text.replace(form, HIDDEN)
        return text


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
