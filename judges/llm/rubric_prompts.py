"""The messages that ask which criteria of a checklist an answer meets; `judges.llm.prompts` says what holds of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, Literal

from judges.llm.prompts import CODE, RULES, WHY, ReplyFormat, flatten, make_format, make_nonce, quote
from judges.llm.quoting import neutralise
from judges.protocol import Abstain
from judges.values import read_number
from online_dpo.types import Message, PromptContent

Credit = Literal["yes_no", "partly", "fraction"]

WORDS = {"yes": 1.0, "partly": 0.5, "no": 0.0}
"""What a reply may say of a criterion -> its credit."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RubricFormat(ReplyFormat):
    """The form of a reply that answers every criterion of a checklist once, by its number."""

    num_criteria: int
    credit: Credit

    @property
    def words(self) -> dict[str, float]:
        """The words that are allowed; none where a number is wanted."""
        allowed = {"yes_no": ("yes", "no"), "partly": ("yes", "partly", "no"), "fraction": ()}[self.credit]
        return {word: WORDS[word] for word in allowed}

    @property
    def numbers(self) -> list[str]:
        """Of the criteria, from 1."""
        return [str(number) for number in range(1, self.num_criteria + 1)]

    @property
    def value_schema(self) -> dict[str, Any]:
        one: dict[str, Any] = {"type": "string", "enum": list(self.words)}
        if self.credit == "fraction":
            one = {"type": "number", "minimum": 0, "maximum": 1}
        return {
            "type": "object",
            "properties": dict.fromkeys(self.numbers, one),
            "required": self.numbers,
            "additionalProperties": False,
        }

    @property
    def instruction(self) -> str:
        coded = {} if self.code is None else {CODE: self.code}
        coded |= {WHY: "..."} if self.explains else {}
        shown = json.dumps({**coded, self.key: dict.fromkeys(self.numbers, "...")})
        values = " or ".join(f'"{word}"' for word in self.words) or "a number from 0 (not at all) to 1 (fully)"
        why = f" and, for {WHY}, a sentence that says why" if self.explains else ""
        return f"Reply with nothing but {shown}, with {values} in the place of the dots of each criterion{why}."

    def read(self, value: Any) -> list[float] | Abstain:
        """The credits in the verdict of a reply."""
        if not isinstance(value, dict) or value.keys() != set(self.numbers):
            return Abstain("unreadable: not every criterion is answered once")
        found = []
        for number in self.numbers:
            said = value[number]
            credit = self.words.get(said) if isinstance(said, str) else None
            if self.credit == "fraction" and (given := read_number(said)) is not None and 0.0 <= given <= 1.0:
                credit = given
            if credit is None:
                return Abstain("unreadable: no known verdict on a criterion")
            found.append(credit)
        return found


def make_rubric_format(
    *, criteria: Sequence[str], credit: Credit, prompt: PromptContent, answer: str, seed: int, coded: bool, vote: int,
    explains: bool,
) -> RubricFormat:  # fmt: skip
    """The form of the reply to one request. Criteria count among the texts that must not hold its key or code."""
    plain = make_format(
        form="rubric", as_json=True, coded=coded, seed=seed, principle=json.dumps(list(criteria)), prompt=prompt,
        answers=[answer, *criteria], vote=vote, explains=explains,
    )  # fmt: skip
    return RubricFormat(
        num_criteria=len(criteria), credit=credit, **{f.name: getattr(plain, f.name) for f in fields(plain)}
    )


def build_rubric_messages(
    wanted: RubricFormat, *, criteria: Sequence[str], prompt: PromptContent, answer: str, seed: int
) -> tuple[Message, ...]:
    """System and user message that ask about one answer.

    Args:
        wanted: how the reply is to look.
        criteria: from the config or the data set, quoted like everything else.
        prompt: text or chat messages.
        answer: that is judged.
        seed: of the judge.
    """
    nonce = make_nonce(seed, json.dumps(list(criteria)), prompt, [answer, *criteria])
    parts = [quote("prompt", nonce, flatten(prompt, nonce)), quote("answer", nonce, neutralise(answer))]
    parts += [
        quote(f"criterion-{n}", nonce, neutralise(text)) for n, text in zip(wanted.numbers, criteria, strict=True)
    ]
    parts.append(
        f"Which of the {len(criteria)} criteria does the answer meet? Say so of each by its number, also of those that "
        f"describe a fault: an answer that has the fault meets it. {wanted.instruction}"
    )
    system = (
        f"You hold an answer to a prompt against criteria.\n{RULES.format(nonce=nonce)}\nThe criteria are no part of "
        f"the answer; they say what to look for in it, and nothing else.\n{wanted.instruction}"
    )
    return ({"role": "system", "content": system}, {"role": "user", "content": "\n\n".join(parts)})
