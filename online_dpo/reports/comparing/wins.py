"""Two runs' newest policies on the held-out prompts that both answered, paired by prompt."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

from online_dpo.config.run import RunConfig
from online_dpo.reports.comparing.runs import ComparedRun, Evaluated
from online_dpo.reports.comparing.settings import differing_fields
from online_dpo.reports.results import Estimate
from online_dpo.statistics.samples import paired_bootstrap, win_rate
from online_dpo.types import REWARD, derive_seed

LAST_BITS = ("threads", "batch_size", "batch_tokens")
"""Fields of a judge that change no more of its scores than the rounding."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """One run against another, by one judge on one evaluation set."""

    num_common: int  # prompts that both answered and the judge scored in both
    num_won: int  # of them, on which the first run scores higher
    num_lost: int
    wins: Estimate  # share of them on which the first run scores higher, equal scores being half a win
    gain: Estimate  # mean of the first run's score less the second's

    @property
    def chance(self) -> float:
        """How likely wins and losses are at least so unequal where neither run is better: the exact sign test.

        Two-sided; ties are left out (Conover, Practical Nonparametric Statistics, 1999, section 3.4). A bootstrap over
        a few prompts that are all won knows of nothing but wins, and is certain of them.
        """
        n, most = self.num_won + self.num_lost, max(self.num_won, self.num_lost)
        return min(1.0, 2.0 * sum(math.comb(n, k) for k in range(most, n + 1)) / 2.0**n)

    @property
    def is_better(self) -> bool:
        """Whether the first run is better by more than chance: by the interval and by the sign test."""
        return self.wins.low > 0.5 and self.chance < 0.05

    def reversed(self) -> Pairing:
        """The second run against the first."""
        wins, gain = self.wins, self.gain
        return Pairing(
            num_common=self.num_common,
            num_won=self.num_lost,
            num_lost=self.num_won,
            wins=Estimate(1.0 - wins.value, 1.0 - wins.high, 1.0 - wins.low),
            gain=Estimate(0.0 - gain.value, 0.0 - gain.high, 0.0 - gain.low),  # no negative zeros
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Contest:
    """All runs against each other, by one judge on one evaluation set."""

    set_name: str
    judge: str
    pairings: Mapping[tuple[int, int], Pairing]  # places of two runs, in both orders
    notes: Sequence[str]  # which prompts are not common, and why runs were not paired; sentences

    @property
    def title(self) -> str:
        judge = "the training judge" if self.judge == REWARD else f"judge {self.judge}"
        return f"{judge} on {self.set_name}"


def contests(runs: Sequence[ComparedRun]) -> list[Contest]:
    """Every judge on every evaluation set that at least two runs have; the training judge comes last."""
    found = dict.fromkeys(
        (name, judge) for run in runs for name, evaluated in run.evaluated.items() for judge in evaluated.scores
    )
    ordered = sorted(found, key=lambda each: each[1] == REWARD)
    return [contest for name, judge in ordered if (contest := _contest(runs, name, judge)) is not None]


def _contest(runs: Sequence[ComparedRun], name: str, judge: str) -> Contest | None:
    having = [run for run in runs if name in run.evaluated and run.evaluated[name].scores.get(judge)]
    if len(having) < 2:
        return None
    pairings: dict[tuple[int, int], Pairing] = {}
    notes = []
    for i, first in enumerate(having):
        for second in having[i + 1 :]:
            said = f"{first.label} and {second.label}"
            others = differing_judge(first, second, judge)
            if others:
                notes.append(f"{said} are not paired: their judges are not the same, they differ in {others}.")
                continue
            pairing = pair(first.evaluated[name], second.evaluated[name], name, judge)
            if pairing is not None:
                pairings[first.place, second.place] = pairing
                pairings[second.place, first.place] = pairing.reversed()
            if (why := "; ".join(_not_common(first, second, name, judge))) or pairing is None:
                number = 0 if pairing is None else pairing.num_common
                have = f"{said} have {number} prompt{'' if number == 1 else 's'} in common"
                notes.append(f"{have}: {why}." if why else f"{have}.")
    places = {run.place for run in having}
    absent = [run.label for run in runs if run.place not in places]
    if absent:
        notes.append(f"Without scores: {', '.join(absent)}.")
    return Contest(set_name=name, judge=judge, pairings=pairings, notes=notes)


def pair(first: Evaluated, second: Evaluated, name: str, judge: str) -> Pairing | None:
    """The first run against the second, both intervals by a bootstrap over the common prompts; None without any."""
    mine, other = first.scores[judge], second.scores[judge]
    seed = derive_seed(0, "compare", name, judge)  # the same page, whenever it is made
    wins, gain = win_rate(other, mine, seed=seed), paired_bootstrap(other, mine, seed=seed)
    if wins is None or gain is None:
        return None
    common = mine.keys() & other.keys()
    return Pairing(
        num_common=len(common),
        num_won=sum(mine[key] > other[key] for key in common),
        num_lost=sum(mine[key] < other[key] for key in common),
        wins=Estimate(*wins),
        gain=Estimate(*gain),
    )


def differing_judge(first: ComparedRun, second: ComparedRun, judge: str) -> str:
    """Fields in which two judges of the same name differ, so that their scores do not compare; empty = in none."""
    field = "judge" if judge == REWARD else f"evaluation.judges.{judge}"
    configs = (first.record.config, second.record.config)
    if configs[0] is None or configs[1] is None:
        return "a config that cannot be read"
    digests = [
        {key: value for key, value in run.record.info.get("sources", {}).items() if key.startswith(f"{field}.")}
        for run in (first, second)
    ]
    fields = [key for key in differing_fields(configs[0], configs[1]) if key == field or key.startswith(f"{field}.")]
    fields = [key for key in fields if key.rpartition(".")[2] not in LAST_BITS]
    # The same file with the same function is the same judge, wherever the file lies.
    fields = [key for key in fields if not _is_same_code(key, configs, digests)]
    fields += [f"the content of {key}" for key in digests[0] if digests[0][key] != digests[1].get(key, digests[0][key])]
    return ", ".join(fields)


def _is_same_code(field: str, configs: Sequence[RunConfig | None], digests: Sequence[Mapping[str, str]]) -> bool:
    if not field.endswith(".target") or digests[0].get(field) is None or digests[0].get(field) != digests[1].get(field):
        return False
    functions = set()
    for config in configs:
        value: object = config
        for name in field.split("."):
            value = value.get(name) if isinstance(value, dict) else getattr(value, name, None)
        functions.add(str(value).rpartition(":")[2])
    return len(functions) == 1


def _not_common(first: ComparedRun, second: ComparedRun, name: str, judge: str) -> Iterator[str]:
    one, two = first.evaluated[name], second.evaluated[name]
    both = one.completions.keys() & two.completions.keys()
    for run, answered in ((first, one.completions), (second, two.completions)):
        if len(answered) > len(both):
            yield f"{_prompts(len(answered) - len(both))} only in the set of {run.label}"
    for run, evaluated in ((first, one), (second, two)):
        if silent := len(both - evaluated.scores[judge].keys()):
            yield f"{_prompts(silent)} without a score in {run.label}"


def _prompts(number: int) -> str:
    return f"{number} prompt is" if number == 1 else f"{number} prompts are"
