"""People as evaluation judges: they compare a policy's held-out answers with those of the initial policy.

An evaluation samples one answer to each prompt, and people do not score answers but compare two. The answer of the
initial policy lies in the run directory; the verdict is about sample 0, the policy's, and sample 1, the initial one's.
"""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import replace
from typing import Any

from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.run import RunConfig
from online_dpo.loop.calls import Calls
from online_dpo.loop.rollouts import Rollouts, ask_given
from online_dpo.loop.stages import Event
from online_dpo.loop.verdicts import Asking, Said, report_on
from online_dpo.statistics.comparisons import by_prompt
from online_dpo.statistics.samples import paired_bootstrap
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import evaluation_base
from online_dpo.types import Completion, Prompt, Verdict


def human_evaluation_judges(config: RunConfig) -> list[str]:
    """Names of the evaluation's judges who are people."""
    return [name for name, section in config.evaluation.judges.items() if isinstance(section, HumanJudge)]


def initial_answers(store: RunStore, config: RunConfig, name: str, prompts: Sequence[Prompt]) -> list[Completion]:
    """What the initial policy answered to an evaluation set, as the second of two answers to each prompt."""
    base = evaluation_base(name, is_initial=True)
    found = Rollouts(store.round(0), prompts, config.generator.shard_prompts, base=base).completions()
    return [replace(completion, sample_index=1) for completion in found]


def ask_people(
    calls: Calls, rollouts: Rollouts, answers: Sequence[Completion], judges: Sequence[str]
) -> Generator[Event, None, Asking]:
    """Publish what people are asked about one evaluation set.

    Args:
        calls: of the process.
        rollouts: the policy's, all sampled.
        answers: both answers to each prompt.
        judges: human ones.

    Returns (as the generator's value): what is under way.
    """
    given: dict[str, list[Completion]] = {prompt.prompt_id: [] for prompt in rollouts.prompts}
    for answer in answers:
        given[answer.prompt_id].append(answer)
    return (yield from ask_given(calls, rollouts, given, judges))


def describe(
    config: RunConfig, answers: Sequence[Completion], said: Mapping[str, Said], seed: int
) -> dict[str, dict[str, Any]]:
    """Figures of each human judge, by its name: `win_rate` is over the initial policy, a tie being half a win."""
    return {
        judge: {
            "mean": None,
            "num_abstained": sum(verdict.reason is not None for verdict in found.verdicts),
            "gain": None,
            "win_rate": _win_rate(found.verdicts, seed),
            "report": report_on(answers, found, config.view_of(config.evaluation.judges[judge])),
        }
        for judge, found in said.items()
    }


def _win_rate(verdicts: Sequence[Verdict], seed: int) -> list[float] | None:
    """The share of prompts on which the policy wins, with the 95 % interval of the bootstrap over prompts."""
    wins = {
        name: 0.5 * ((p > 0.5) + (p >= 0.5))
        for name, found in by_prompt(verdicts).items()
        for p in [verdict.probability for verdict in found]
        if p is not None
    }
    estimate = paired_bootstrap(dict.fromkeys(wins, 0.0), wins, seed=seed)
    return None if estimate is None else list(estimate)
