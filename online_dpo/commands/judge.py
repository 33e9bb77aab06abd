"""`online-dpo judge` and `online-dpo judges`: a judge without a run. The way to develop one."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.loading import JudgesConfig, load_judges
from online_dpo.config.run import RunConfig
from online_dpo.data.completion_files import JudgeRow, read_rows
from online_dpo.errors import ConfigError, UserError
from online_dpo.pairing.answers import with_answers
from online_dpo.reports.metrics import describe_latency
from online_dpo.statistics.comparisons import against_gold, agreement, comparisons_of, describe, order_consistency
from online_dpo.statistics.judge_warnings import warnings
from online_dpo.statistics.judges import report
from online_dpo.types import REWARD, Judged, Shard, Verdict

TEXT_WIDTH = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """The command's options."""

    judge: str | None = None  # one of evaluation.judges; None = the training judge
    gold: str | None = None
    repeat: bool = False
    swap: bool = False
    limit: int | None = None


def judge_file(config: Path, file: Path, overrides: Sequence[str], options: Options) -> dict[str, Any]:
    """Judge a file as a run would, in this process.

    Returns:
        `prompts`, with the verdicts on each, and `figures`.

    Raises:
        UserError: the config, the file or the judge is wrong.
    """
    from actors.judge_host import JudgeHost  # neither Ray nor an engine is needed
    from judges.registry import make_spec

    section, field = section_of(load_judges(config, overrides), options.judge, source=str(config), option="--judge")
    rows = read_rows(file, gold=options.gold, limit=options.limit)
    spec = make_spec(section, field=field, base_dir=Path.cwd())
    host = JudgeHost(spec, threads=section.threads if isinstance(section.threads, int) else None)

    async def ask() -> tuple[Judged, Judged | None, Judged | None, float]:
        await host.try_it(rows[0].prompt.messages is not None, rows[0].prompt.metadata)
        started = time.perf_counter()
        judged = await _judge(host, rows)
        elapsed = time.perf_counter() - started
        again = await _judge(host, rows) if options.repeat else None
        return judged, again, await _judge(host, rows, swapped=True) if options.swap else None, elapsed

    judged, again, swapped, elapsed = asyncio.run(ask())
    rows = [replace(row, completions=tuple(with_answers(row.completions, spec.view))) for row in rows]
    figures: dict[str, Any] = describe(rows, judged.verdicts)
    completions = [completion for row in rows for completion in row.completions]
    repeats = () if again is None else again.verdicts
    reported = report(completions, judged.verdicts, judged.counters, repeats, judged.agreement)
    figures |= {"counters": reported["counters"], "ensembles": reported.get("ensembles", {})}
    figures["warnings"] = list(warnings(options.judge or REWARD, reported))
    figures["stopped"] = judged.stopped
    figures["elapsed_s"] = elapsed
    seconds: dict[str, list[float]] = {}
    for result in (judged, again, swapped):
        for label, found in result.latencies_s.items() if result is not None else ():
            seconds.setdefault(label, []).extend(found)
    figures["latency_s"] = {label: describe_latency(found) for label, found in seconds.items()}
    figures["order_consistency"] = order_consistency(judged.verdicts)
    comparisons = comparisons_of(rows, judged.verdicts)
    if again is not None:
        figures["repeat_agreement"] = agreement(comparisons, comparisons_of(rows, again.verdicts))
    if swapped is not None:
        figures["swap_agreement"] = agreement(comparisons, comparisons_of(rows, swapped.verdicts))
    if options.gold is not None:
        figures["gold"] = against_gold(rows, judged.verdicts)
    said: dict[str, list[Verdict]] = {}
    for verdict in judged.verdicts:
        said.setdefault(verdict.prompt_id, []).append(verdict)
    return {"prompts": [_prompt(row, said.get(row.prompt.prompt_id, [])) for row in rows], "figures": figures}


def estimate_run(
    config: Path, file: Path | None, overrides: Sequence[str], *, judge: str | None, as_json: bool
) -> Iterator[str]:
    """Lines about what a whole run would ask of chat models, or one line of JSON.

    Args:
        config: of the run.
        file: must be None; an override that stands in its place is taken as one.
        overrides: of the config.
        judge: one of evaluation.judges alone; None = every judge.
        as_json: for machines.

    Raises:
        UserError: the config is not a run's, or is wrong.
    """
    from online_dpo.commands.preparing.inputs import prepare
    from online_dpo.commands.preparing.spending import expected_spending
    from online_dpo.commands.terminal import spending

    if file is not None:
        if "=" not in str(file):
            raise UserError(f"--estimate is about the prompts of a whole run, and {file} is given; leave the file out")
        overrides = [str(file), *overrides]
    loaded = load_judges(config, overrides)
    if not isinstance(loaded, RunConfig):
        raise ConfigError(f"{config} has judges alone, and --estimate is of a whole run; add model and prompts")
    field = "" if judge is None else section_of(loaded, judge, source=str(config), option="--judge")[1]
    expected = [one for one in expected_spending(prepare(loaded)) if f"{one.field}.".startswith(field and f"{field}.")]
    if as_json:
        yield json.dumps(spending.as_json(expected))
    elif expected:
        yield from spending.describe(expected)
    else:
        yield "no judge and no writer of candidates asks a chat model; what code of yours asks is not known here"


def show(report: dict[str, Any], *, num_prompts: int) -> Iterator[str]:
    """Lines for people."""
    for prompt in report["prompts"][:num_prompts]:
        yield f"line {prompt['line']}: {_short(prompt['prompt'])}"
        for place, text in enumerate(prompt["completions"]):
            yield f"  [{place}] {_short(text)}"
        for verdict in prompt["verdicts"]:
            yield f"  {_sentence(verdict)}"
            yield from (f"    {line}" for line in str(verdict.get("rationale", "")).splitlines())
    left = len(report["prompts"]) - num_prompts
    if left > 0:
        yield f"... and {left} more (--show N, or --json for all)"
    yield from _summary(report["figures"])


def installed_judges() -> Iterator[str]:
    """One line for each kind of judge and for each that an installed package offers. Nothing of theirs is imported."""
    from judges.user.user_code import EMBEDDED, entry_points
    from online_dpo.config.judges.section import judge_kinds

    for name, about in judge_kinds().items():
        yield f"type: {name:<16} {about}"
    for name, (module, attribute) in EMBEDDED.items():
        yield f"target: {'embedded:' + name:<14} {module}:{attribute}"
    for name, point in sorted(entry_points().items()):
        dist = point.dist
        origin = "" if dist is None else f", {dist.name} {dist.version}"
        summary = dist.metadata["Summary"] if dist is not None and "Summary" in dist.metadata else ""
        yield f"target: {name:<14} {point.value}{origin}{f': {summary}' if summary else ''}"


async def _judge(host: Any, rows: Sequence[JudgeRow], *, swapped: bool = False) -> Judged:
    """All rows as one shard; with `swapped` the completions are shown in the opposite order."""

    def place(row: JudgeRow, index: int) -> int:
        return len(row.completions) - 1 - index if swapped else index

    completions = [replace(c, sample_index=place(row, c.sample_index)) for row in rows for c in row.completions]
    shard = Shard(index=0, prompts=tuple(row.prompt for row in rows))
    judged: Judged = await host.judge_shard(shard, completions)
    if not swapped:
        return judged
    last = {row.prompt.prompt_id: len(row.completions) - 1 for row in rows}
    verdicts = tuple(
        replace(
            verdict,
            first=last[verdict.prompt_id] - verdict.first,
            second=None if verdict.second is None else last[verdict.prompt_id] - verdict.second,
        )
        for verdict in judged.verdicts
    )
    return replace(judged, verdicts=verdicts)


def section_of(config: RunConfig | JudgesConfig, name: str | None, *, source: str, option: str) -> tuple[Any, str]:
    """The judge that is meant, with the training judge's view where it has none, and its field in the config.

    Args:
        config: with judges.
        name: one of `evaluation.judges`; None = the training judge.
        source: what the config is called in errors.
        option: what `name` is called there.

    Raises:
        ConfigError: there is no such judge, or it is people.
    """
    field, judges = "judge" if name is None else f"evaluation.judges.{name}", config.evaluation.judges
    section = config.judge if name is None else judges.get(name)
    if section is None and name is None:
        raise ConfigError(f"{source} has no judge section; add one, or name one of evaluation.judges by {option}")
    if section is None:
        raise ConfigError(f"{option} {name} is none of evaluation.judges; they are: {', '.join(judges) or 'none'}")
    if isinstance(section, HumanJudge):
        raise ConfigError(
            f"{field}.type is human, and people are asked in a run alone: start one with `online-dpo run {source}`, "
            f"and open its questions with `online-dpo annotate`"
        )
    view = section.view or (None if config.judge is None else config.judge.view)
    return section.model_copy(update={"view": view}), field


def _prompt(row: JudgeRow, verdicts: Sequence[Verdict]) -> dict[str, Any]:
    names = ("first", "second", "score", "probability", "reason", "abstention", "uncertainty", "rationale")
    return {
        "line": int(row.prompt.prompt_id),
        "prompt": row.prompt.content,
        "completions": [c.text for c in row.completions],
        "gold": row.gold,
        "verdicts": [{n: getattr(v, n) for n in names if getattr(v, n) is not None} for v in verdicts],
    }


def _sentence(verdict: dict[str, Any]) -> str:
    about = f"[{verdict['first']}]"
    if "second" in verdict:
        about += f" over [{verdict['second']}]"
    if "reason" in verdict:
        return f"{about} {'failed' if verdict['abstention'] == 'failed' else 'abstains'}: {verdict['reason']}"
    value = verdict.get("score", verdict.get("probability"))
    spread = f" +- {verdict['uncertainty']:.3g}" if "uncertainty" in verdict else ""
    return f"{about} {'p = ' if 'probability' in verdict else ''}{value:.4g}{spread}"


def _summary(figures: dict[str, Any]) -> Iterator[str]:
    yield (
        f"{figures['num_prompts']} prompts, {figures['num_completions']} completions, {figures['num_verdicts']} "
        f"verdicts in {figures['elapsed_s']:.2f} s"
    )
    if figures["stopped"] is not None:
        yield f"the judge stopped, so some prompts have no verdict: {figures['stopped']}"
    yield f"abstentions: {figures['num_abstained']}, of which failed calls: {figures['num_failed']}"
    for reason, number in list(figures["reasons"].items())[:10]:
        yield f"  {number} x {reason}"
    yield (
        f"comparisons: {figures['num_comparisons']}, decided {figures['num_decided']}, ties {figures['num_tied']}; "
        f"the first wins {_percent(figures['first_wins'])}, the longer wins {_percent(figures['longer_wins'])}"
    )
    for label, seconds in figures["latency_s"].items():
        yield (
            f"latency of {label}: median {seconds['median'] * 1e3:.1f} ms, 95 % {seconds['p95'] * 1e3:.1f} ms, "
            f"most {seconds['max'] * 1e3:.1f} ms in {seconds['num_calls']} calls"
        )
    yield "counters: " + ", ".join(f"{name} {number}" for name, number in figures["counters"].items())
    counters = figures["counters"]
    if counters.get("num_member_comparisons"):
        share = counters["num_member_agreements"] / counters["num_member_comparisons"]
        yield f"members of ensembles agree on {_percent(share)} of {counters['num_member_comparisons']} comparisons"
    for field, found in figures["ensembles"].items():
        for name, alpha in found.items():
            what = "scores" if name == "alpha_scores" else "preferences"
            yield f"Krippendorff's alpha of {field}, {what}: {'-' if alpha is None else f'{alpha:.3f}'}"
    for name, what in (
        ("order_consistency", "both orders, same winner"),
        ("repeat_agreement", "asked again, same outcome"),
        ("swap_agreement", "completions in the opposite order, same outcome"),
    ):
        share, number = figures.get(name, (None, 0))
        if number:
            yield f"{what}: {_percent(share)} of {number}"
    if "gold" in figures:
        gold = figures["gold"]
        ece = "none" if gold["ece"] is None else f"{gold['ece']:.4f}"
        yield (
            f"against gold: accuracy {_percent(gold['accuracy'])} ({gold['num_right']} right, {gold['num_wrong']} "
            f"wrong, {gold['num_tied']} ties, {gold['num_abstained']} abstained of {gold['num_known']}), ECE {ece}"
            + (f", AUC {gold['auc']:.4f}" if gold.get("auc") is not None else "")
        )
    for warning in figures["warnings"]:
        yield f"warning: {warning}"


def _short(text: Any) -> str:
    line = " ".join((text if isinstance(text, str) else json.dumps(text, ensure_ascii=False)).split())
    return line if len(line) <= TEXT_WIDTH else f"{line[: TEXT_WIDTH - 3]}..."


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f} %"
