"""Judges that stop before everything is judged."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

from loop_kit import FakeStages

from online_dpo.types import Completion, Judged


class Stingy(FakeStages):
    """Its judges answer so many questions, all together, and then stop."""

    def __init__(self, *args: Any, questions: int = 10**9, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.left, self.said = questions, Counter[tuple[str, str]]()

    def _judged(self, judge: str, completions: Sequence[Completion]) -> Judged:
        prompts = list(dict.fromkeys(c.prompt_id for c in completions))
        asked, self.left = prompts[: self.left], max(0, self.left - len(prompts))
        judged = super()._judged(judge, [c for c in completions if c.prompt_id in asked])
        self.said.update((judge, "|".join(c.text for c in completions if c.prompt_id == name)) for name in asked)
        stopped = None if len(asked) == len(prompts) else f"judge {judge} is tired"
        return Judged(verdicts=judged.verdicts, counters={"num_judge_calls": len(asked)}, stopped=stopped)
