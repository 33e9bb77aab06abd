"""Judges built from the text of a config and a user's file, and what they say in short."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from judges.calling import Caller, Measurements
from judges.protocol import Question, collect_counts
from judges.registry import build_caller, make_spec
from online_dpo.config.loading import load_judges
from online_dpo.types import Verdict


def caller_of(folder: Path, judge: dict[str, Any], source: str | None = None) -> Caller:
    """The judge of a config section; `source` is what `mine.py` holds."""
    if source is not None:
        (folder / "mine.py").write_text(source)

    async def no_sleep(_: float) -> None:
        return None

    return build_caller(make_spec(load_judges({"judge": judge}).judge, field="judge", base_dir=folder), sleep=no_sleep)


def python(name: str, **more: Any) -> dict[str, Any]:
    return {"type": "python", "target": f"mine.py:{name}", **more}


def question(*completions: str, name: str = "p", prompt: Any = "Say:", **metadata: Any) -> Question:
    return Question(prompt_id=name, prompt=prompt, completions=completions, metadata=metadata)


def ask(caller: Caller, *questions: Question) -> tuple[list[list[Verdict]], Counter[str]]:
    """The verdicts on each question, and what was counted."""
    said, counts, _ = measure(caller, *questions)
    return said, counts


def measure(caller: Caller, *questions: Question) -> tuple[list[list[Verdict]], Counter[str], Measurements]:
    """As `ask`, with what was measured."""
    measured = Measurements()
    with collect_counts() as counts:
        said = asyncio.run(caller.ask(questions, measured))
    return said, counts, measured


def brief(verdicts: Sequence[Verdict]) -> list[Any]:
    """Scores, probabilities or reasons, in order."""
    return [next(x for x in (v.score, v.probability, v.explanation) if x is not None) for v in verdicts]
