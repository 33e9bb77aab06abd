"""The annotation store of a run: made or opened by the config, with its rules and gold questions."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path

from online_dpo.annotation.records import GoldQuestion, Rules
from online_dpo.annotation.store import FILE, AnnotationStore
from online_dpo.config.human_checks import human_judges
from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.pairing import ANNOTATOR
from online_dpo.config.preferences import PairColumns
from online_dpo.config.run import RunConfig
from online_dpo.data.preference_files import columns_in, load_preferences, peek_preferences, split_row
from online_dpo.errors import DataError
from online_dpo.loop.people.asking import People
from online_dpo.types import REWARD, PromptContent, derive_seed

INSTRUCTIONS = "Choose the answer that is better, taken all in all."


def judges_of(config: RunConfig) -> dict[str, HumanJudge]:
    """Name in the loop -> section of each human judge."""
    names = {"judge": REWARD, "pairing.annotator": ANNOTATOR}
    return {
        names.get(field, field.removeprefix("evaluation.judges.")): section
        for field, section in human_judges(config).items()
    }


def rules_of(section: HumanJudge) -> Rules:
    """How people are asked, by the section of any of the run's human judges."""
    quality = section.quality
    return Rules(
        votes_per_question=section.annotators,
        lease_s=section.lease_s,
        gold_share=quality.gold_share if quality.gold is not None else 0.0,
        repeat_share=quality.repeat_share,
        min_seconds=quality.min_seconds,
        min_accuracy=quality.min_accuracy,
        min_consistency=quality.min_consistency,
        min_checks=quality.min_checks,
        criteria=tuple(section.criteria),
        instructions=section.instructions or INSTRUCTIONS,
        consensus=section.consensus,
        min_agreement=section.min_agreement,
        disagreement=section.disagreement,
        seed=section.seed,
    )


@contextmanager
def people_of(config: RunConfig, run_dir: Path) -> Iterator[People | None]:
    """The human judges of a run, with its store; None where the config has none.

    Raises:
        UserError: the store cannot be used, or the gold questions cannot be read.
    """
    judges = judges_of(config)
    if not judges:
        yield None
        return
    with open_store(judges, config, run_dir) as store:
        yield People(store, judges, view=config.view)


@contextmanager
def open_store(judges: Mapping[str, HumanJudge], config: RunConfig, run_dir: Path) -> Iterator[AnnotationStore]:
    """The run's store under the config as it is now; made where it is missing.

    Raises:
        UserError: as `people_of`.
    """
    field, section = next(iter(human_judges(config).items()))
    gold = gold_questions(section, field)
    with AnnotationStore.create(run_dir / FILE, rules_of(section), time.time()) as store:
        store.add_gold(gold, time.time())
        yield store


def check_gold(config: RunConfig) -> None:
    """Look at the beginning of the files of gold questions.

    Raises:
        DataError: one is missing, malformed there, or lacks a column.
    """
    for field, section in human_judges(config).items():
        if section.quality.gold is not None:
            peek_preferences(PairColumns(source=section.quality.gold), field=f"{field}.quality.gold")


def gold_questions(section: HumanJudge, field: str) -> list[GoldQuestion]:
    """The questions with known answers of a file of preferences; which side is the right one is drawn.

    Args:
        section: of a human judge.
        field: where it stands in the config.

    Raises:
        DataError: the file cannot be read, or a row is no preference.
    """
    if section.quality.gold is None:
        return []
    spec, found = PairColumns(source=section.quality.gold), []
    table = load_preferences(spec, field=f"{field}.quality.gold")
    spec = columns_in(spec, table.rows[0])
    for number, row in enumerate(table.rows):
        split = split_row(row, spec)
        if isinstance(split, str) or split.answers[0] == split.answers[1]:
            raise DataError(
                f"{field}.quality.gold is {section.quality.gold}, and {table.places[number]} has two equal answers; a "
                f"gold question has a right and a wrong one: remove the row"
            )
        prompt: PromptContent = split.prompt if isinstance(split.prompt, str) else [dict(m) for m in split.prompt]
        chosen, rejected = split.answers
        is_first = random.Random(derive_seed(section.seed, "gold", number)).random() < 0.5
        found.append(
            GoldQuestion(
                prompt=prompt,
                first_text=chosen if is_first else rejected,
                second_text=rejected if is_first else chosen,
                answer="first" if is_first else "second",
            )
        )
    return found
