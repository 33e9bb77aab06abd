"""Whether the policy got better, in one sentence, with its figures and with what a person should look at."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from online_dpo.reports.page.charts import number
from online_dpo.reports.page.run_record import RunRecord
from online_dpo.reports.results import Estimate, EvaluationResult, RoundResult
from online_dpo.types import REWARD

Tone = Literal["good", "bad", "open"]
MAX_CUT = 0.25
"""A larger share of the last round's answers cut at their limit deserves a warning."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Figure:
    """One number at the top of a page."""

    label: str
    value: str
    interval: str = ""  # such as `95 %: 0.2 to 0.6`
    note: str = ""
    tone: Tone = "open"


@dataclass(frozen=True, slots=True, kw_only=True)
class Warned:
    """A warning, with the rounds that gave it in about these words."""

    kind: str
    text: str  # the newest
    rounds: Sequence[int]  # counted from 1, ascending; empty = about the whole run


@dataclass(frozen=True, slots=True, kw_only=True)
class Headline:
    """What stands at the top of a page."""

    sentence: str
    tone: Tone
    figures: Sequence[Figure]
    warnings: Sequence[Warned]  # the newest first


def headline(record: RunRecord) -> Headline:
    """Judge a run by its newest evaluation."""
    evaluated = [result for result in record.results if result.evaluation]
    warnings = list(_warnings(record))
    if not evaluated:
        sentence, tone = _without_evaluation(record)
        return Headline(sentence=sentence, tone=tone, figures=_own_figures(record), warnings=warnings)
    last = evaluated[-1]
    name, evaluation = next(iter(last.evaluation.items()))
    sentence, tone = _verdict(evaluation)
    where = f"After round {last.policy_version}" + (f" of {record.num_rounds}" if record.num_rounds else "")
    said = "; ".join(_said(evaluation))
    return Headline(
        sentence=f"{where}, {sentence}" + (f" On {name}: {said}." if said else ""),
        tone=tone,
        figures=list(_figures(last)),
        warnings=warnings,
    )


def _verdict(evaluation: EvaluationResult) -> tuple[str, Tone]:
    """By the judges that the policy was not trained to please, where there are any."""
    gains = {judge: found.gain for judge, found in evaluation.judges.items() if found.gain is not None}
    reward = gains.pop(REWARD, None)
    better = [judge for judge, gain in gains.items() if gain.low > 0.0]
    worse = [judge for judge, gain in gains.items() if gain.high < 0.0]
    if worse:
        named = f"judge {_listed(worse)}"
        if reward is not None and reward.low > 0.0:
            return f"the policy pleases its training judge more and {named} less: it is over-optimised.", "bad"
        return f"the policy is worse than at the start by {named}.", "bad"
    if better:
        if reward is None or reward.low > 0.0:
            return "the policy is better than at the start.", "good"
        return (
            f"the policy is better than at the start by judge {_listed(better)}, and not by its training judge.",
            "good",
        )
    if reward is None and not gains:
        return "whether the policy is better cannot be told: no judge scored it against the initial policy.", "open"
    if gains:
        chance = f"the gain by judge {_listed(list(gains))} may be chance"
        return f"whether the policy is better is not clear: {_of_reward(reward)}{chance}.", "open"
    assert reward is not None
    if reward.low > 0.0:
        return "the policy pleases its training judge more; no other judge was asked whether it is better.", "good"
    if reward.high < 0.0:
        return "the policy pleases its training judge less than at the start.", "bad"
    return "the policy shows no gain that is more than chance.", "open"


def _of_reward(reward: Estimate | None) -> str:
    if reward is None:
        return ""
    if reward.low > 0.0:
        return "its training judge scores it higher, and "
    return "its training judge scores it lower, and " if reward.high < 0.0 else ""


def _said(evaluation: EvaluationResult) -> Iterator[str]:
    judges = sorted(evaluation.judges, key=lambda judge: judge == REWARD)  # the independent ones first
    for judge in judges:
        found = evaluation.judges[judge]
        if found.gain is not None:
            wins = f", wins {_percent(found.win_rate)} of the prompts" if found.win_rate is not None else ""
            yield f"{judge} {_signed(found.gain)}{wins}"
    if evaluation.kl_initial is not None:
        yield f"KL to the initial policy {evaluation.kl_initial:.3g} nats per completion"


def _figures(last: RoundResult) -> Iterator[Figure]:
    several = len(last.evaluation) > 1
    for name, evaluation in last.evaluation.items():
        where = f" on {name}" if several else ""
        for judge in sorted(evaluation.judges, key=lambda judge: judge != REWARD):
            found = evaluation.judges[judge]
            label = "Reward" if judge == REWARD else judge[:1].upper() + judge[1:]
            if found.gain is not None:
                yield Figure(
                    label=f"{label} gained{where}", value=f"{found.gain.value:+.3g}",
                    interval=f"95 %: {found.gain.low:+.3g} to {found.gain.high:+.3g}",
                    note=f"mean {found.mean:.3g}" if found.mean is not None else "",
                    tone=_tone(found.gain, 0.0),
                )  # fmt: skip
            if found.win_rate is not None:
                low, high = (f"{100 * value:.0f}" for value in found.win_rate[1:])
                yield Figure(
                    label=f"Wins by {judge}{where}", value=f"{100 * found.win_rate.value:.0f} %",
                    interval=f"95 %: {low} to {high} %", note="against the initial policy",
                    tone=_tone(found.win_rate, 0.5),
                )  # fmt: skip
        if evaluation.kl_initial is not None:
            yield Figure(
                label=f"KL to the initial policy{where}", value=f"{evaluation.kl_initial:.3g}",
                note="nats per completion",
            )  # fmt: skip


def _without_evaluation(record: RunRecord) -> tuple[str, Tone]:
    """By held-out pairs or demonstrations, where there are any; otherwise nothing can be told."""
    after, sets = _held_out(record)
    for name, figures in sets.items():
        if (share := _estimate(figures, "reward_accuracy")) is not None:
            tone = _tone(share, 0.5)
            what = {"good": "moved towards", "bad": "moved away from", "open": "shows no clear move towards"}[tone]
            low, high = (f"{100 * value:.0f}" for value in share[1:])
            return (
                f"{after}, the policy {what} the held-out preferences: on {name} it raised the preferred answer more "
                f"in {100 * share.value:.0f} % of the pairs (95 %: {low} to {high} %).",
                tone,
            )
    for name, figures in sets.items():
        if (change := _estimate(figures, "loss_change")) is not None:
            tone = _tone(Estimate(-change.value, -change.high, -change.low), 0.0)
            what = {"good": "more likely", "bad": "less likely", "open": "about as likely"}[tone]
            return (
                f"{after}, held-out demonstrations are {what} than at the start: on {name} the loss changed by "
                f"{_signed(change)} to {figures['loss']:.3g} nats per token.",
                tone,
            )
    if not record.results:
        return "No round is finished yet.", "open"
    if record.results[-1].pairs.num_demonstrations is not None:
        return (
            "Whether the fine-tuning helps beyond its own demonstrations cannot be told: the run has no held-out set "
            "under evaluation.pairs.",
            "open",
        )
    return (
        "Whether the policy got better cannot be told: the run has no evaluation set, so no fresh samples were "
        "compared with the initial policy's.",
        "open",
    )


def _held_out(record: RunRecord) -> tuple[str, Mapping[str, Mapping[str, float | None]]]:
    """When held-out pairs and demonstrations were measured last, and the figures of each set."""
    found = [result for result in record.results if result.evaluation_pairs]
    return (f"After round {found[-1].policy_version}", found[-1].evaluation_pairs) if found else ("", {})


def _estimate(figures: Mapping[str, float | None], name: str) -> Estimate | None:
    value, low, high = (figures.get(key) for key in (name, f"{name}_low", f"{name}_high"))
    return None if value is None or low is None or high is None else Estimate(value, low, high)


def _own_figures(record: RunRecord) -> list[Figure]:
    """The losses of held-out demonstrations, or the training judge's score of the rounds' own samples."""
    losses = [
        Figure(label=f"Loss on {name}", value=f"{figures['loss']:.3g}", note=_perplexity(figures))
        for name, figures in _held_out(record)[1].items()
        if figures.get("loss") is not None
    ]
    if losses:
        return losses
    rewards = [result.judging.reward for result in record.results if result.judging.reward is not None]
    if not rewards:
        return []
    return [
        Figure(label="Reward of the first round's samples", value=number(rewards[0])),
        Figure(label="Reward of the last round's samples", value=number(rewards[-1])),
    ]


def _perplexity(figures: Mapping[str, float | None]) -> str:
    perplexity = figures.get("perplexity")
    return "nats per token" + ("" if perplexity is None else f", perplexity {perplexity:.3g}")


def _warnings(record: RunRecord) -> Iterator[Warned]:
    if record.stopped is not None:
        yield Warned(kind="stopped", text=record.stopped, rounds=())
    told: dict[str, list[tuple[int, str]]] = {}
    for result in record.results:
        for text in (*result.warnings, *_truncation(record, result), *_skipped(result)):
            shape = re.sub(r"[-+]?\d[\d.e+-]*", "#", text)
            told.setdefault(shape, []).append((result.policy_version, text))
    for found in sorted(told.values(), key=lambda found: -found[-1][0]):
        text = found[-1][1]
        yield Warned(kind=_kind(text), text=text, rounds=[number for number, _ in found])
    if record.incidents:
        yield Warned(kind="machine", text="; ".join(record.incidents), rounds=())


def _truncation(record: RunRecord, result: RoundResult) -> Iterator[str]:
    cut, total = result.sampling.num_truncated_completions, result.sampling.num_completions
    if cut is not None and total and cut / total > MAX_CUT:
        limit = "" if record.config is None else f", which is {record.config.sampling.max_tokens}"
        yield f"{100 * cut / total:.0f} % of the sampled answers were cut at sampling.max_tokens{limit}"


def _skipped(result: RoundResult) -> Iterator[str]:
    if result.learning.num_skipped_steps:
        yield (
            f"{result.learning.num_skipped_steps} of {result.learning.num_steps} optimizer steps were skipped, because "
            f"a value was not finite"
        )


_KINDS: Mapping[str, str] = {
    "is over-optimised": "over-optimisation",
    "drift.max_kl": "drift",
    "alarm.bands": "alarm",
    "sampling.max_tokens": "truncation",
    "judge ": "judge",
    "the update moved": "update",
    "optimizer steps": "update",
}


def _kind(text: str) -> str:
    return next((kind for words, kind in _KINDS.items() if words in text), "warning")


def _tone(estimate: Estimate, level: float) -> Tone:
    return "good" if estimate.low > level else "bad" if estimate.high < level else "open"


def _signed(estimate: Estimate) -> str:
    return f"{estimate.value:+.3g} [{estimate.low:+.3g}, {estimate.high:+.3g}]"


def _percent(estimate: Estimate) -> str:
    return f"{100 * estimate.value:.0f} % [{100 * estimate.low:.0f}, {100 * estimate.high:.0f}]"


def _listed(names: Sequence[str]) -> str:
    return " and ".join(names)
