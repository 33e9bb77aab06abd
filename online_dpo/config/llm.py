"""What an `llm` judge asks, and whom: the parts of its section. The section itself is in `judge_config`."""

from __future__ import annotations

import re
from typing import Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Section, changeable

OVERALL = "It is more helpful, more correct and better written, taken all in all."


class Prices(Section):
    """Of a million tokens, in whatever money `budget.cost` counts."""

    prompt: float = changeable(..., ge=0.0)
    completion: float = changeable(..., ge=0.0)


class Endpoint(Section):
    """A server that speaks the OpenAI chat protocol. The key is never a field: only where to find it is."""

    base_url: str = changeable(...)  # ends before /chat/completions, such as http://127.0.0.1:8000/v1
    model: str
    api_key_env: str | None = changeable(None)  # name of an environment variable, where the judge runs
    api_key_file: str | None = changeable(None)  # a file that holds nothing else, where the judge runs
    # How the JSON form is asked for; the answer is read as strictly where the server knows no such thing.
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    extra_body: dict[str, Any] = Field(default_factory=dict)  # further fields of every request
    max_wait_s: float = changeable(60.0, gt=0.0)  # between two tries, also where Retry-After asks for more
    prices: Prices | None = changeable(None)

    @field_validator("base_url")
    @classmethod
    def _holds_no_secret(cls, value: str) -> str:
        # No message shows the value: it may hold a password.
        parts = urlsplit(value)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise ValueError("is no http:// or https:// address; write it as in http://127.0.0.1:8000/v1")
        if "@" in parts.netloc or parts.query or parts.fragment:
            raise ValueError(
                "has a user name, a query or a fragment, which would end up in logs; give the bare address, and the "
                "key by api_key_env or api_key_file"
            )
        return value.rstrip("/")

    @field_validator("api_key_env")
    @classmethod
    def _is_a_name(cls, value: str | None) -> str | None:
        # What does not look like a name may be the key itself: it is refused before anything is written.
        if value is not None and not re.fullmatch(r"[A-Z_][A-Z0-9_]{0,63}", value):
            raise ValueError(
                "is not the name of an environment variable in capitals, such as OPENAI_API_KEY (the value is not "
                "shown: it may be the key itself); put the key into such a variable and name it here"
            )
        return value

    @field_validator("extra_body")
    @classmethod
    def _leaves_ours_alone(cls, value: dict[str, Any]) -> dict[str, Any]:
        ours = {
            "model",
            "messages",
            "stream",
            "n",
            "response_format",
            "logprobs",
            "top_logprobs",
            "temperature",
            "seed",
        }
        if taken := sorted(ours & value.keys()):
            raise ValueError(f"sets {', '.join(taken)}, which the judge sets itself; remove it")
        return value

    @model_validator(mode="after")
    def _one_key(self) -> Endpoint:
        if self.api_key_env is not None and self.api_key_file is not None:
            raise ValueError("api_key_env and api_key_file are both set; keep one")
        return self


class Budget(Section):
    """What a judge may spend in the whole run, resumes included; None = no limit. It is never exceeded."""

    calls: int | None = changeable(None, ge=1)  # answered requests, and those that may have been charged for
    tokens: int | None = changeable(None, ge=1)  # of prompts and answers together
    cost: float | None = changeable(None, gt=0.0)  # needs `endpoint.prices`


class JudgeEngine(Section):
    """A vLLM engine of the judge's own; the actor that hosts the judge starts it."""

    path: str  # a folder, or a hub id
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    max_model_len: int | None = Field(None, ge=64)  # tokens; None = the model's
    gpu_memory_utilization: float = changeable(0.3, gt=0.0, le=1.0)
    kv_cache_gib: int = changeable(1, ge=1)  # CPU only
    trust_remote_code: bool = False


def check_llm(section: Any) -> None:
    """Whether the fields of an `llm` section agree.

    Raises:
        ValueError: they do not.
    """
    if (section.endpoint is None) == (section.engine is None):
        raise ValueError("needs either an endpoint or an engine; set one of the two")
    if section.weights is not None and len(section.weights) != len(section.principles):
        raise ValueError(
            f"weights has {len(section.weights)} numbers and there are {len(section.principles)} principles; give one "
            f"for each"
        )
    if section.aggregate == "min" and section.form != "pointwise":
        raise ValueError("aggregate is min, which is of scores; set form: pointwise, or aggregate: mean or majority")
    if section.aggregate == "majority" and section.form != "pairwise":
        raise ValueError(
            "aggregate is majority, which is of comparisons; set form: pairwise, or aggregate: mean or min"
        )
    if section.weights is not None and section.aggregate == "min":
        raise ValueError(
            "weights is set and aggregate is min, which knows none; remove weights, or set aggregate: mean"
        )
    if section.votes > 1 and section.temperature == 0.0:
        raise ValueError(
            f"votes is {section.votes} and temperature is 0, so that all votes would be the same; set a temperature"
        )
    if section.form == "pointwise" and not section.both_orders:
        raise ValueError("both_orders is set and form is pointwise, which has no orders; remove both_orders")
    if section.budget.cost is not None and (section.endpoint is None or section.endpoint.prices is None):
        raise ValueError("budget.cost is set and nothing has a price; set endpoint.prices")
    if section.engine is not None and section.budget != Budget():
        raise ValueError("budget is set and the judge has an engine of its own, which nobody bills; remove budget")
