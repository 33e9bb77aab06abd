"""The section of a judge that asks a chat model, and its parts: whom it asks, and what it may spend."""

from __future__ import annotations

import re
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

from pydantic import Field, field_validator, model_validator

from online_dpo.config.base import Auto, Count, Place, Section, changeable
from online_dpo.config.judges.hosted import HostedJudge

OVERALL = "It is more helpful, more correct and better written, taken all in all."


class Prices(Section):
    """What tokens cost, in the currency that `budget.cost` counts in."""

    prompt: float = changeable(..., ge=0.0)
    """The price of a million tokens of prompts."""
    completion: float = changeable(..., ge=0.0)
    """The price of a million tokens of replies."""

    def cost(self, prompt_tokens: float, reply_tokens: float) -> float:
        """Money for so many tokens."""
        return (prompt_tokens * self.prompt + reply_tokens * self.completion) / 1e6


class Endpoint(Section):
    """A server that speaks the OpenAI chat protocol. No field holds the key; a field says where the key is found."""

    base_url: str = changeable(...)
    """The address up to and without /chat/completions, such as http://127.0.0.1:8000/v1."""
    model: str
    """The model's name on the server."""
    api_key_env: str | None = changeable(None)
    """The environment variable that holds the key, where the judge runs. null: none."""
    api_key_file: Place | None = changeable(None)
    """The file that holds the key and nothing else, where the judge runs. null: none."""
    response_format: Literal["json_schema", "json_object", "none"] = "json_schema"
    """How the server is asked for JSON. Replies are read as strictly where the server cannot promise it."""
    extra_body: dict[str, Any] = Field({})
    """Further fields of every request."""
    max_wait_s: float = changeable(60.0, gt=0.0)
    """The longest wait in seconds between two tries, even where Retry-After asks for more."""
    prices: Prices | None = changeable(None)
    """What the server charges; `budget.cost` needs it. null: unknown."""

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
    """What a judge may spend in the whole run, resumes included. It is never exceeded."""

    calls: int | None = changeable(None, ge=1)
    """Requests that were answered or may have been charged for. null: no limit."""
    tokens: int | None = changeable(None, ge=1)
    """Tokens of prompts and replies together. null: no limit."""
    cost: float | None = changeable(None, gt=0.0)
    """Money, by `endpoint.prices`. null: no limit."""


class ChatEngineSection(Section):
    """A vLLM engine of the judge's, or writer's, own; the actor that hosts it starts it."""

    path: Place
    """A folder or a hub id of a chat model."""
    dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """The number format of the weights."""
    max_model_len: int | None = Field(None, ge=64)
    """The longest question and reply together, in tokens. null takes the model's context."""
    gpu_memory_utilization: float = changeable(0.3, gt=0.0, le=1.0)
    """The share of a GPU's memory that the engine may use."""
    kv_cache_gib: int = changeable(1, ge=1)
    """GiB of memory for the engine's KV cache on CPU."""
    trust_remote_code: bool = False
    """Whether code that comes with the model may run."""


class Criterion(Section):
    """One line of a checklist."""

    criterion: str = Field(min_length=1)
    """What an answer may do."""
    weight: float = 1.0
    """What it is worth; below 0 it is a fault. Not 0."""

    @field_validator("weight")
    @classmethod
    def _counts(cls, value: float) -> float:
        if value == 0.0:
            raise ValueError("is 0, so that the criterion would not count; give it a weight, or remove it")
        return value


class RubricSection(Section):
    """A checklist that every answer is held against."""

    column: str | None = None
    """The column of the prompts' source with each prompt's own checklist: a list of texts, or of objects with
    `criterion` and `weight` (or `points`). null: all prompts have `criteria`."""
    criteria: list[Criterion] = Field([])
    """The checklist of prompts that have none in `column`. Empty: the judge abstains on these."""
    credit: Literal["yes_no", "partly", "fraction"] = "partly"
    """What a criterion may get: yes or no; yes, partly (one half) or no; or a number from 0 to 1."""

    @model_validator(mode="after")
    def _has_criteria(self) -> RubricSection:
        if self.column is None and not self.criteria:
            raise ValueError("names neither a column nor criteria; set one of the two")
        return self


class LlmJudge(HostedJudge):
    """A chat model that compares or grades completions."""

    about = (
        "a chat model behind an endpoint or in an engine of its own: compares, grades, or goes by written principles"
    )

    type: Literal["llm"]
    endpoint: Endpoint | None = None
    """The server that is asked. null: `engine` must be set."""
    engine: ChatEngineSection | None = None
    """An engine of the judge's own that is asked. null: `endpoint` must be set."""
    form: Literal["pairwise", "pointwise", "rubric"] = "pairwise"
    """What is asked: which of every two completions is better; a grade from 1 to 10 for each completion; or which
    criteria of a checklist each completion meets."""
    rubric: RubricSection | None = None
    """For `form: rubric`: the checklist. null otherwise."""
    principles: list[Annotated[str, Field(min_length=1)]] = Field(default=[OVERALL], min_length=1)
    """Sentences that may apply to a completion. There is one request for each, and their verdicts are aggregated."""
    weights: list[Annotated[float, Field(gt=0.0)]] | None = None
    """The weight of each principle. null: all weigh the same."""
    aggregate: Literal["mean", "min", "majority"] = "mean"
    """How the principles' verdicts become one; min is for grades, majority for comparisons."""
    verdict: Literal["json", "token"] = "json"
    """How a verdict is read: from a JSON object, or from the probability of the reply's first token."""
    explain: bool = False
    """For `verdict: json`: whether the model says why in a sentence, before its verdict. The sentence is kept beside
    the verdict and shown in the report; nothing is read out of it."""
    min_mass: float = Field(0.5, ge=0.0, le=1.0)
    """For `verdict: token`: the probability that must lie on the allowed letters; below it the judge abstains."""
    both_orders: bool = True
    """For comparisons: whether both orders of presentation are asked. false asks one of them, drawn by `seed`."""
    on_conflict: Literal["abstain", "average"] = "abstain"
    """What happens where the same place wins in both orders: the judge abstains, or pairing takes the mean."""
    votes: int = Field(1, ge=1)
    """Requests for each verdict; more than half of the replies must be readable."""
    temperature: float = Field(0.0, ge=0.0)
    """The sampling temperature of replies; several votes need one above 0."""
    max_tokens: Auto | Count = "auto"
    """The longest JSON reply in tokens. auto: 64, and 256 with `explain`; 16 more for each criterion of a rubric."""
    max_chars: int = Field(200_000, ge=1)
    """The most characters of a prompt and the completions of one request together; the judge abstains above it."""
    seed: int = Field(0, ge=0)
    """The seed of votes, orders and the key of a reply."""
    budget: Budget = Budget()
    """What may be spent in the whole run."""
    concurrency: int = changeable(64, ge=1)
    """Requests that are under way at the same time."""
    timeout_s: float = changeable(120.0, gt=0.0)
    """Seconds that one try of a request may take."""

    @property
    def reply_tokens(self) -> int:
        """The longest JSON reply, in tokens."""
        return (256 if self.explain else 64) if self.max_tokens == "auto" else self.max_tokens

    @model_validator(mode="after")
    def _fields_agree(self) -> LlmJudge:
        _check_fields(self)
        return self


_NOT_OF_RUBRICS = {
    "principles": "asks about the criteria of rubric",
    "weights": "has weights in rubric.criteria",
    "aggregate": "adds up weighted criteria",
    "verdict": "is answered in JSON",
    "min_mass": "is answered in JSON",
    "on_conflict": "has no orders",
}
"""Field -> why it says nothing where a checklist is asked about."""


def _check_fields(section: LlmJudge) -> None:
    if (section.endpoint is None) == (section.engine is None):
        raise ValueError("needs either an endpoint or an engine; set one of the two")
    if section.explain and section.verdict == "token":
        raise ValueError(
            "explain is true and verdict is token, which is read from the reply's first token; set verdict: json"
        )
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
    if section.form != "pairwise" and not section.both_orders:
        raise ValueError(f"both_orders is set and form is {section.form}, which has no orders; remove both_orders")
    if (section.rubric is not None) != (section.form == "rubric"):
        raise ValueError(
            f"rubric is {'missing' if section.rubric is None else 'set'} and form is {section.form}; a rubric belongs "
            f"to form: rubric"
        )
    if section.form == "rubric":
        for name, replacement in _NOT_OF_RUBRICS.items():
            if getattr(section, name) != type(section).model_fields[name].default:
                raise ValueError(f"{name} is set and form is rubric, which {replacement}; remove {name}")
    if section.budget.cost is not None and (section.endpoint is None or section.endpoint.prices is None):
        raise ValueError("budget.cost is set and nothing has a price; set endpoint.prices")
    if section.engine is not None and section.budget != Budget():
        raise ValueError("budget is set and the judge has an engine of its own, which nobody bills; remove budget")
