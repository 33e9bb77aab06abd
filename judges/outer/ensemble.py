"""Several judges as one. How far they disagree becomes the verdict's uncertainty.

Where all of them score, the ensemble scores; where one compares, or votes are counted, it compares: a score then
counts as the preference that pairing would make of it.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from itertools import combinations

from judges.calling import Caller, Measurements
from judges.hosting import Hosting
from judges.protocol import Question, count
from judges.spec import JudgeSpec
from online_dpo.config.judges.section import EnsembleJudge
from online_dpo.member_agreement import MemberAgreement
from online_dpo.pairing.opinions import Opinion
from online_dpo.statistics.agreement import measure_agreement
from online_dpo.types import Verdict

ROUNDING = 1e-12
"""A mean probability this near to one half is a tie: opposite opinions may leave a trace of rounding, which must not
choose the completion that happens to stand first."""

MemberVerdicts = Mapping[str, Sequence[Verdict]]
"""Name of a member -> its verdicts on one question."""


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> Ensemble:
    """Build the judge of its members."""
    members = {place.removeprefix("judges."): caller for place, caller in inner.items()}
    return Ensemble(spec.section, members, field=spec.field)


class Ensemble:
    """Asks all of its members side by side. A member that fails or abstains is left out of that question only."""

    def __init__(self, section: EnsembleJudge, members: Mapping[str, Caller], *, field: str) -> None:
        self._section, self._members, self._field = section, members, field
        self._weights = section.weights or dict.fromkeys(members, 1.0)
        self._quorum = section.quorum or len(members) // 2 + 1

    async def judge(self, questions: Sequence[Question], measured: Measurements | None = None) -> list[list[Verdict]]:
        answers = await asyncio.gather(*(caller.ask(questions, measured) for caller in self._members.values()))
        verdicts = []
        for index, question in enumerate(questions):
            said = {name: answer[index] for name, answer in zip(self._members, answers, strict=True)}
            unasked = [verdict.reason for found in said.values() for verdict in found if verdict.unasked]
            if unasked:  # the others' quorum must not decide what this member would have been asked
                verdicts.append(question.abstain_from_all(str(unasked[0]), kind="unasked"))
                continue
            count("num_member_failures", sum(any(v.failed for v in found) for found in said.values()))
            verdicts.append(self._combine(question, said, measured))
        return verdicts

    def _combine(self, question: Question, said: MemberVerdicts, measured: Measurements | None) -> list[Verdict]:
        positions = range(len(question.completions))
        opinions = {name: Opinion(found, positions) for name, found in said.items()}
        agreement = _agreement(opinions, said, positions)
        if measured is not None:
            measured.add_agreement(self._field, agreement)
        compares = any(verdict.second is not None for found in said.values() for verdict in found)
        if (compares or self._section.aggregate == "majority") and len(positions) > 1:
            return [self._compare(question, said, opinions, i, j) for i, j in combinations(positions, 2)]
        return self._score(question, said)

    def _score(self, question: Question, said: MemberVerdicts) -> list[Verdict]:
        """Scores of one question are made by the same members: a sum over fewer members is on another scale.

        A member that did not score every completion is left out of the question while the quorum holds without it.
        Otherwise the ensemble abstains from the completions that the member did not score.
        """
        scores = {n: {v.first: v.score for v in found if v.score is not None} for n, found in said.items()}
        by_coverage = sorted(scores, key=lambda name: -len(scores[name]))  # stable: equal ones as in the config
        whole = [name for name in by_coverage if len(scores[name]) == len(question.completions)]
        used = whole if len(whole) >= self._quorum else by_coverage[: self._quorum]
        verdicts = []
        for i in range(len(question.completions)):
            if all(i in scores[name] for name in used):
                value, spread = self._aggregate({name: scores[name][i] for name in used})
                why = _rationale(said, {i})
                verdicts.append(
                    Verdict(prompt_id=question.prompt_id, first=i, score=value, uncertainty=spread, rationale=why)
                )
            else:
                missing = [name for name in said if i not in scores[name]]
                verdicts.append(self._abstain(question, said, missing, i))
        return verdicts

    def _compare(
        self, question: Question, said: MemberVerdicts, opinions: Mapping[str, Opinion], i: int, j: int
    ) -> Verdict:
        found = {name: p for name, opinion in opinions.items() if (p := opinion.preference(i, j)) is not None}
        if len(found) < self._quorum:
            missing = [name for name in said if name not in found]
            return self._abstain(question, said, missing, i, j)
        if self._section.aggregate == "majority":
            votes = {n: 1.0 if p.is_strict else 0.0 if p.reversed().is_strict else 0.5 for n, p in found.items()}
            value, spread = self._aggregate(votes)
        else:
            value, spread = self._aggregate({name: p.probability - 0.5 for name, p in found.items()}, signed=True)
            value = 0.5 + (value if abs(value) > ROUNDING else 0.0)
        value = min(max(value, 0.0), 1.0)
        return Verdict(
            prompt_id=question.prompt_id,
            first=i,
            second=j,
            probability=value,
            uncertainty=spread,
            rationale=_rationale(said, {i, j}),
        )

    def _aggregate(self, values: Mapping[str, float], *, signed: bool = False) -> tuple[float, float]:
        """The common value and the spread (standard deviation, weighted as the mean is).

        Args:
            values: judge -> score, vote, or with `signed` how much the probability is above one half. Caution then
                means nearer to zero, on whichever side: what `min` and `pessimistic` take off must not favour one.
            signed: see there.
        """
        total = math.fsum(self._weights[name] for name in values)
        mean = math.fsum(self._weights[name] * value for name, value in values.items()) / total
        spread = math.sqrt(math.fsum(self._weights[n] * (v - mean) ** 2 for n, v in values.items()) / total)
        spread = 0.0 if min(values.values()) == max(values.values()) else spread
        match self._section.aggregate:
            case "min":
                if not signed:
                    return min(values.values()), spread
                sizes = [max(0.0, math.copysign(1.0, mean) * value) for value in values.values()]
                return math.copysign(min(sizes), mean), spread
            case "pessimistic":
                loss = (self._section.k or 1.0) * spread
                return (math.copysign(max(0.0, abs(mean) - loss), mean) if signed else mean - loss), spread
        return mean, spread

    def _abstain(
        self, question: Question, said: MemberVerdicts, missing: Sequence[str], i: int, j: int | None = None
    ) -> Verdict:
        """For want of opinions. It is a failure where the quorum would stand without the failed calls."""
        reasons = {name: _abstention(said[name], i, j) for name in missing}
        num_failed = sum(verdict is not None and verdict.failed for verdict in reasons.values())
        num_present = len(said) - len(missing)
        text = "; ".join(f"{n}: {'not judged' if v is None else v.reason}" for n, v in reasons.items())
        sentence = f"{num_present} of {len(said)} judges have an opinion, the quorum is {self._quorum} ({text})"
        if num_present >= self._quorum:
            sentence = f"judged by other judges than the rest of the prompt ({text})"
        is_failure = num_present < self._quorum <= num_present + num_failed
        return question.abstain(i, sentence, second=j, kind="failed" if is_failure else "abstained")


def _rationale(said: MemberVerdicts, about: set[int]) -> str | None:
    """What members wrote for their opinions on these completions, by their names."""
    lines = [
        f"{name}: {verdict.rationale}"
        for name, found in said.items()
        for verdict in found
        if verdict.rationale is not None and {verdict.first, verdict.second} - {None} <= about
    ]
    return "\n".join(lines) or None


def _abstention(verdicts: Sequence[Verdict], i: int, j: int | None) -> Verdict | None:
    """A member's abstention from completion i, from j, or from the pair; None where it abstained from none of them."""
    about = (v for v in verdicts if v.reason is not None and {v.first, v.second} <= {i, j, None})
    return next(about, None)


def _agreement(opinions: Mapping[str, Opinion], said: MemberVerdicts, positions: Sequence[int]) -> MemberAgreement:
    """What Krippendorff's alpha is made of, for one question.

    Also counts how often two members who both have an opinion on two completions say the same: first, second or tie.
    """
    votes = []
    for i, j in combinations(positions, 2):
        found = [p for opinion in opinions.values() if (p := opinion.preference(i, j)) is not None]
        first, second = sum(p.is_strict for p in found), sum(p.reversed().is_strict for p in found)
        votes.append((first, second, len(found) - first - second))
        count("num_member_comparisons", math.comb(len(found), 2))
        count("num_member_agreements", sum(math.comb(number, 2) for number in votes[-1]))
    scores = [
        [v.score for given in said.values() for v in given if v.first == i and v.score is not None] for i in positions
    ]
    return measure_agreement(votes, scores)
