"""Completions and verdicts made by hand, and pairing them."""

from __future__ import annotations

from typing import Any

from online_dpo.config.pairing import PairingSection
from online_dpo.pairing.pairs import Pairing, build_pairs
from online_dpo.types import Completion, Prompt, Verdict

FAILED = "failed"


def prompt(name: str = "p") -> Prompt:
    return Prompt(prompt_id=name, token_ids=(1, 2), text="x")


def completion(
    index: int,
    *,
    name: str = "p",
    tokens: tuple[int, ...] | None = None,
    cut: bool = False,
    text: str | None = None,
) -> Completion:
    ids = (10 + index,) if tokens is None else tokens
    return Completion(
        prompt_id=name,
        sample_index=index,
        token_ids=ids,
        text=str(ids) if text is None else text,
        finish_reason="length" if cut else "stop",
        sampler_logps=(-1.0,) * len(ids),
        policy_version=0,
        seed=index,
    )


def scores(*values: float | str, name: str = "p") -> list[Verdict]:
    """One verdict per completion; a string is the reason of an abstention, `FAILED` that of a failed call."""
    return [
        Verdict(prompt_id=name, first=i, **(silent(value) if isinstance(value, str) else {"score": value}))
        for i, value in enumerate(values)
    ]


def silent(reason: str) -> dict[str, Any]:
    """The fields of an abstention."""
    return {"reason": reason, "abstention": "failed" if reason == FAILED else "abstained"}


def comparisons(table: dict[tuple[int, int], float | str]) -> list[Verdict]:
    return [
        Verdict(prompt_id="p", first=i, second=j, **(silent(p) if isinstance(p, str) else {"probability": p}))
        for (i, j), p in table.items()
    ]


def pair_up(completions: list[Completion], verdicts: list[Verdict], **options: Any) -> Pairing:
    """Options are fields of `pairing`, or arguments of `build_pairs`."""
    given: dict[str, Any] = {"truncated": "keep", "truncated_penalty": None, "seed": 0, "round_index": 0}
    prompts = options.pop("prompts", [prompt()])
    given |= {name: options.pop(name) for name in list(options) if name in (*given, "view")}
    return build_pairs(prompts, completions, verdicts, rules=PairingSection(**options), **given)


def winners(result: Pairing) -> list[tuple[int, int]]:
    return [(p.chosen.sample_index, p.rejected.sample_index) for p in result.pairs]


def only_outcome(result: Pairing) -> str:
    (word,) = [word for word, number in result.outcomes.items() if number]
    return word


FOUR = [completion(i) for i in range(4)]
