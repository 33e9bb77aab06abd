"""Checks of `candidates` that look at other sections. They take a `RunConfig`, which calls them."""

from __future__ import annotations

from collections import Counter
from typing import Any

from online_dpo.config.candidates.section import ReviseWriter


def check_candidates(config: Any) -> None:
    """Refuse writers that do not go with the rest of a `RunConfig`.

    Raises:
        ValueError: with the fields, their values and the remedy.
    """
    if not config.candidates:
        return
    if config.prompts is None:
        raise ValueError(
            "candidates is set, but no round samples completions that they could join: remove candidates, or set "
            "prompts and judge"
        )
    _check_names(config)
    _check_revisions(config)
    _check_assumptions(config)
    _check_judge(config)


def _check_names(config: Any) -> None:
    numbers = Counter(writer.source for writer in config.candidates)
    if twice := [source for source, number in numbers.items() if number > 1]:
        raise ValueError(
            f"candidates has {numbers[twice[0]]} writers named {twice[0]}; give each a name of its own, as in name: "
            f"{twice[0]}-2"
        )


def _check_revisions(config: Any) -> None:
    for index, writer in enumerate(config.candidates):
        if isinstance(writer, ReviseWriter) and writer.num_samples > config.sampling.num_samples:
            raise ValueError(
                f"candidates.{index}.num_samples is {writer.num_samples}, and the policy samples "
                f"{config.sampling.num_samples} completions that can be revised (sampling.num_samples): lower the first"
            )


def _check_assumptions(config: Any) -> None:
    """What reads a judge's opinion on a pair finds none where an answer is assumed to be better."""
    if not config.assumed_better:
        return
    index = next(i for i, writer in enumerate(config.candidates) if writer.assume == "better")
    named = f"candidates.{index}.assume is better"
    if (reader := config.pairing.score_reader) is not None:
        raise ValueError(
            f"{named} and {reader}, which reads the score that a judge gives; such answers have none: remove one of "
            f"the two"
        )
    objective = config.objective
    for term in [term.objective for term in getattr(objective, "terms", ())] or [objective]:
        for name, unused in (("soft_labels", False), ("pair_weights", "given")):
            if (value := getattr(term, name, unused)) != unused:
                raise ValueError(
                    f"{named} and objective.{name} is {value}, which reads what a judge says about a pair; no judge is "
                    f"asked about such answers: remove one of the two"
                )


def _check_judge(config: Any) -> None:
    judged = [i for i, writer in enumerate(config.candidates) if writer.assume is None]
    if config.judge is None and judged:
        raise ValueError(
            f"judge is missing and candidates.{judged[0]}.assume is null, so that nobody compares its answers with the "
            f"policy's: set judge, or assume: better"
        )
    if config.judge is not None and config.most_completions(are_judged=True) < 2:
        raise ValueError(
            "judge is set, but sampling.num_samples is 1 and every candidate has assume: better, so that the judge has "
            "nothing to compare: remove judge, or raise sampling.num_samples"
        )
