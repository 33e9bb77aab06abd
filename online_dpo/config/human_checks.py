"""Checks between the sections of human judges and the rest of the config."""

from __future__ import annotations

from typing import Any

from online_dpo.config.judges.human import SHARED, HumanJudge


def human_judges(config: Any) -> dict[str, HumanJudge]:
    """Field -> section of each human judge of a `RunConfig`, the training judge first."""
    found = {"judge": config.judge, "pairing.annotator": config.pairing.annotator}
    found |= {f"evaluation.judges.{name}": section for name, section in config.evaluation.judges.items()}
    return {field: section for field, section in found.items() if isinstance(section, HumanJudge)}


def check_human_judges(config: Any) -> None:
    """Refuse what people cannot be asked, and settings of theirs that would be ignored.

    Raises:
        ValueError: with the fields, their values and the remedy.
    """
    people = human_judges(config)
    if not people:
        return
    _check_one_queue(people)
    if {"judge", "pairing.annotator"} <= people.keys():
        raise ValueError(
            "judge.type and pairing.annotator.type are both human, so that people would be asked about the same "
            "answers twice: remove pairing.annotator, or let a model judge first"
        )
    for field, section in people.items():
        if section.max_comparisons is not None and field != "judge":
            raise ValueError(
                f"{field}.max_comparisons is {section.max_comparisons}, and this judge compares two answers of each "
                f"prompt: remove it"
            )
    if isinstance(config.judge, HumanJudge):
        _check_training_judge(config, config.judge)
    _check_repeats(config, people)
    _check_over_optimisation(config)


def _check_one_queue(people: dict[str, HumanJudge]) -> None:
    (first, settings), *others = people.items()
    for field, section in others:
        for name in SHARED:
            if getattr(section, name) != getattr(settings, name):
                raise ValueError(
                    f"{first}.{name} is {_shown(settings, name)} and {field}.{name} is {_shown(section, name)}; the "
                    f"human judges of a run share their people, page and queue: give both the same {name}"
                )


def _shown(section: HumanJudge, name: str) -> str:
    value = getattr(section, name)
    return "another section" if name == "quality" else str(value)


def _check_training_judge(config: Any, section: HumanJudge) -> None:
    num_samples = config.sampling.num_samples
    fewest = (num_samples + 1) // 2
    if section.max_comparisons is not None and section.max_comparisons < fewest:
        raise ValueError(
            f"judge.max_comparisons is {section.max_comparisons} and sampling.num_samples is {num_samples}; each "
            f"completion is compared at least once: set max_comparisons to {fewest} or more, or sample fewer"
        )


def _check_repeats(config: Any, people: dict[str, HumanJudge]) -> None:
    asked = ([] if config.judge is None else ["judge"]) + [f"evaluation.judges.{n}" for n in config.evaluation.judges]
    if config.verdicts.repeated and set(asked) <= people.keys():
        raise ValueError(
            f"verdicts.repeated is {config.verdicts.repeated:g} and all judges are human; whether people repeat what "
            f"they said is seen by quality.repeat_share: set verdicts.repeated to 0"
        )


def _check_over_optimisation(config: Any) -> None:
    """It compares scores, and people give none."""
    if config.alarm is None or config.alarm.over_optimisation is not True:
        return
    others = [name for name, judge in config.evaluation.judges.items() if not isinstance(judge, HumanJudge)]
    for field, only_people in (("judge", isinstance(config.judge, HumanJudge)), ("evaluation.judges", not others)):
        if only_people:
            raise ValueError(
                f"alarm.over_optimisation is true, which compares scores, and {field} is human, who compare answers "
                f"and score none: set alarm.over_optimisation to auto, or take a judge that scores"
            )
