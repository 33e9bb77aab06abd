"""How long a stage, a round and a run still take, by what this process has measured; None until it has."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

NUM_ROUNDS = 3
"""Whole rounds that the expectation is the mean of: the newest ones, since the first samples of an engine are slow."""

EVALUATING = "evaluating"


@dataclass
class Work:
    """What a stage has to do, counted: only what this process does, so that a resumed stage has its own rate."""

    total: int
    since: float
    done: int = 0

    @property
    def is_done(self) -> bool:
        return self.done >= self.total

    def left(self, now: float) -> float | None:
        """Seconds, at the rate so far."""
        if self.is_done:
            return 0.0
        return (now - self.since) * (self.total - self.done) / self.done if self.done else None


@dataclass
class Timing:
    """Hears when rounds and stages begin."""

    clock: Callable[[], float]
    num_rounds: int = 0
    evaluated_every: int | None = None
    """Rounds from one evaluation to the next; None = there is nothing to evaluate on."""
    works: dict[str, Work] = field(default_factory=dict)
    """Of the stage that is under way."""
    stage: str | None = None
    _round: int = 0
    _since: float = 0.0
    _spent: dict[str, float] = field(default_factory=dict)  # stage of this round -> seconds, without the current one
    _is_whole: bool = False  # whether this process has done all of the round
    _committed: bool = False  # whether the round before was this process's
    _is_initial: bool = False  # the initial policy is being evaluated, which no later round repeats
    _whole: list[Mapping[str, float]] = field(default_factory=list)
    _evaluating: float | None = None  # seconds of the last evaluation

    def begin_round(self, index: int) -> None:
        """A round begins, or goes on after a resume or a lost learner."""
        self._round, self._spent, self.works = index, {}, {}
        # The first round of a process is whole until something shows that an earlier one has worked on it.
        self._is_whole = self._committed or self.stage is None
        self._committed = self._is_initial = False
        self.stage, self._since = "preparing", self.clock()

    def begin_stage(
        self, stage: str, works: Mapping[str, int], *, is_resumed: bool = False, is_initial: bool = False
    ) -> None:
        """A stage begins.

        Args:
            stage: its name.
            works: what it has to do -> how much of it.
            is_resumed: an earlier process has done a part of it.
            is_initial: it evaluates the initial policy.
        """
        self._close()
        self._is_whole = self._is_whole and not is_resumed
        self._is_initial = is_initial
        self.stage, self._since = stage, self.clock()
        self.works = {name: Work(total, self._since) for name, total in works.items()}

    def found_resumed(self) -> None:
        """What happens now shows that an earlier process has worked on this round."""
        self._is_whole = False

    def end_round(self) -> None:
        """The round is committed."""
        self._close()
        if self._is_whole and "learning" in self._spent:
            self._whole = [*self._whole, self._spent][-NUM_ROUNDS:]
        self._committed, self.stage, self.works = True, "preparing", {}
        self._spent, self._round = {}, self._round + 1

    @property
    def stage_since(self) -> float:
        """When the stage began, by the clock."""
        return self._since

    @property
    def stage_left(self) -> float | None:
        """Seconds that the stage still takes: at its rate so far, or else as long as it took in earlier rounds."""
        now = self.clock()
        lefts = [work.left(now) for work in self.works.values()]
        if lefts and None not in lefts and any(not work.is_done for work in self.works.values()):
            return max(left for left in lefts if left is not None)
        expected = self._expected(self.stage)
        left = None if expected is None else expected - self._spent.get(str(self.stage), 0.0) - (now - self._since)
        return None if left is None or left <= 0.0 else left

    @property
    def stage_share(self) -> float | None:
        """How much of the stage is done, in [0, 1]."""
        if self.works:
            total = sum(work.total for work in self.works.values())
            return sum(min(work.done, work.total) for work in self.works.values()) / total if total else 1.0
        left = self.stage_left
        spent = self.clock() - self._since
        return None if left is None else spent / (spent + left)

    @property
    def round_left(self) -> float | None:
        """Seconds that the round still takes; None in the first whole round of the process."""
        now_left = self.stage_left
        if not self._whole or (now_left is None and self.stage != "preparing"):
            return None
        later = [name for name in self._stages(self._round) if name not in self._spent and name != self.stage]
        lefts = [self._expected(name) for name in later]
        return None if None in lefts else (now_left or 0.0) + sum(left for left in lefts if left is not None)

    @property
    def run_left(self) -> float | None:
        """Seconds until the last round is done."""
        left = self.round_left
        if left is None:
            return None
        for index in range(self._round + 1, self.num_rounds):
            seconds = [self._expected(name) for name in self._stages(index)]
            if None in seconds:
                return None
            left += sum(value for value in seconds if value is not None)
        return left

    @property
    def run_share(self) -> float:
        """How much of the run is done, in [0, 1]: rounds, and of the current one as much as is known."""
        spent, left = sum(self._spent.values()) + self.clock() - self._since, self.round_left
        of_round = 0.0 if left is None else spent / max(spent + left, 1e-9)
        return min(1.0, (self._round + of_round) / max(1, self.num_rounds))

    def _stages(self, index: int) -> list[str]:
        """What a round will have to do."""
        seen = dict.fromkeys(name for found in self._whole for name in found if name != EVALUATING)
        every = self.evaluated_every
        is_due = every is not None and ((index + 1) % every == 0 or index + 1 == self.num_rounds)
        return [*seen, *([EVALUATING] if is_due else [])]

    def _expected(self, stage: str | None) -> float | None:
        if stage == EVALUATING:
            return self._evaluating
        known = [found.get(str(stage), 0.0) for found in self._whole]
        return sum(known) / len(known) if known else None

    def _close(self) -> None:
        """Count what the current stage took."""
        seconds = self.clock() - self._since
        if self._is_initial:
            self._evaluating = (self._evaluating or 0.0) + seconds
        elif self.stage is not None:
            self._spent[self.stage] = self._spent.get(self.stage, 0.0) + seconds
            if self.stage == EVALUATING:
                self._evaluating = self._spent[EVALUATING]
        self._since = self.clock()
