"""Fresh samples from a policy on held-out prompts: what improved, and at what price (DESIGN invariant 8)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Generator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from online_dpo.config.judges.human import HumanJudge
from online_dpo.config.judges.view import ViewSection
from online_dpo.config.run import RunConfig
from online_dpo.loop import compared_policies
from online_dpo.loop.calls import Calls
from online_dpo.loop.compared_policies import human_evaluation_judges
from online_dpo.loop.rollouts import Collected, Rollouts, Sampling, rows_of
from online_dpo.loop.stages import Event, LearnerStage
from online_dpo.loop.verdicts import Asking, asked_again, report_on
from online_dpo.loop.weight_sync import Policy, Pusher
from online_dpo.statistics.domains import by_domain, describe_samples
from online_dpo.statistics.samples import (
    describe_completions,
    kl_per_completion,
    mean,
    mean_token_logps,
    paired_bootstrap,
    scores_by_prompt,
    win_rate,
)
from online_dpo.store.forking import former_judges
from online_dpo.store.round_store import RoundStore
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import evaluation_base
from online_dpo.types import REWARD, Completion, Prompt, SamplingPlan, Verdict, WeightsRef, derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class SampledSet:
    """An evaluation set that is sampled, and what people are asked about it."""

    collected: Collected
    rollouts: Rollouts
    people: Asking | None = None
    answers: Sequence[Completion] = ()  # both that people compare, of every prompt


def evaluate(
    config: RunConfig,
    calls: Calls,
    store: RoundStore,
    pusher: Pusher,
    policy: Policy,
    *,
    sets: Mapping[str, Sequence[Prompt]],
    references: Mapping[str, Sequence[WeightsRef]],
    baseline: Mapping[str, Any] | None,
    initial_answers: Callable[[str], Sequence[Completion]] = lambda name: (),
) -> Generator[Event, None, dict[str, Any]]:
    """Sample each set once per prompt at temperature 1, top_p 1; judge, and measure KL on exactly those samples.

    Args:
        config: of the run.
        calls: of the process, whose learner holds the policy.
        store: of the round in whose folder the figures are committed.
        pusher: hands the policy to the generators where something is to be sampled.
        policy: that is evaluated.
        sets: name -> held-out prompts.
        references: name -> policies whose mean log-prob KL is measured against: `reference` (what the policy was
            trained with; no policies where the objective needs none) and `initial`.
        baseline: what this function returned for the initial policy; scores gain over it, paired by prompt.
        initial_answers: the initial policy's to a set, with which people compare the policy's.

    Returns (as the generator's value):
        set name -> figures, committed as `summary` beside the set's samples.
    """
    summaries: dict[str, Any] = {}
    sampled = yield from _ask_people(config, calls, store, pusher, policy, sets, initial_answers)
    for name, prompts in sets.items():
        base = evaluation_base(name, is_initial=policy.version == 0)
        commit = f"{base}summary"
        if policy.version == 0 and not store.has(f"{base}prompts"):
            store.put_records(f"{base}prompts", prompts)  # once; people read them beside the answers
        if not store.has(commit):
            if name not in sampled:
                sampled[name] = yield from _sample(config, calls, store, pusher, policy, name, prompts)
            seed = derive_seed(config.run.seed, "bootstrap", name, policy.version)
            compared = yield from _comparisons(config, sampled[name], seed)
            collected = sampled[name].collected
            measured = _measure(calls.stages.learner, prompts, collected, references)
            before = None if baseline is None else baseline[name]["scores"]
            described = _describe(config, collected, before, seed)
            found = {**described, "judges": {**described["judges"], **compared}, **measured.means()}
            if config.evaluation.sets[name].has_domains:
                found["domains"] = _domains(prompts, collected, measured, before or {}, seed)
            store.put_json(commit, found)
        summaries[name] = store.get_json(commit)
        shown = {key: value for key, value in summaries[name].items() if key != "scores"}
        yield Event(
            kind="evaluated",
            round_index=store.index,
            data={"set": name, "policy_version": policy.version, **shown},
        )
    return summaries


def evaluation_work(
    config: RunConfig, store: RoundStore, sets: Mapping[str, Sequence[Prompt]], version: int
) -> dict[str, int]:
    """What there is to do for a policy's evaluation, and what is left of it; as `Rollouts.work`, of all sets."""
    total: Counter[str] = Counter()
    for name, prompts in sets.items():
        base = evaluation_base(name, is_initial=version == 0)
        rollouts = Rollouts(store, prompts, config.generator.shard_prompts, base=base)
        total.update(rollouts.work(_scoring_judges(config), 1))
    return dict(total)


def _ask_people(
    config: RunConfig,
    calls: Calls,
    store: RoundStore,
    pusher: Pusher,
    policy: Policy,
    sets: Mapping[str, Sequence[Prompt]],
    initial_answers: Callable[[str], Sequence[Completion]],
) -> Generator[Event, None, dict[str, SampledSet]]:
    """Sample every set that is not evaluated, and ask people about all at once: a run that does not wait leaves once.

    Returns (as the generator's value): set name -> what is under way; nothing where people are not asked.
    """
    sampled: dict[str, SampledSet] = {}
    people = human_evaluation_judges(config) if policy.version > 0 else []
    for name, prompts in sets.items() if people else ():
        if not store.has(f"{evaluation_base(name, is_initial=False)}summary"):
            found = yield from _sample(config, calls, store, pusher, policy, name, prompts)
            answers = [*found.collected.completions, *initial_answers(name)]
            asking = yield from compared_policies.ask_people(calls, found.rollouts, answers, people)
            sampled[name] = replace(found, people=asking, answers=answers)
    return sampled


def _sample(
    config: RunConfig,
    calls: Calls,
    store: RoundStore,
    pusher: Pusher,
    policy: Policy,
    name: str,
    prompts: Sequence[Prompt],
) -> Generator[Event, None, SampledSet]:
    """Sample a set, and have it judged by all who score."""
    base = evaluation_base(name, is_initial=policy.version == 0)
    rollouts = Rollouts(store, prompts, config.generator.shard_prompts, base=base)
    if rollouts.missing:
        yield from pusher.push(policy, store.index)
    plan = evaluation_plan(config, name, policy.version)
    again = _asked_again(config, prompts, policy.version)
    sampling = Sampling(calls, rollouts, pusher, policy, plan, judges=_scoring_judges(config), again=again)
    yield from sampling.begin()
    collected = yield from sampling.finish()
    return SampledSet(collected=collected, rollouts=rollouts)


def _scoring_judges(config: RunConfig) -> list[str]:
    """The training judge and the evaluation's, without people: they compare."""
    named = {**({} if config.judge is None else {REWARD: config.judge}), **config.evaluation.judges}
    return [name for name, section in named.items() if not isinstance(section, HumanJudge)]


def _comparisons(config: RunConfig, sampled: SampledSet, seed: int) -> Generator[Event, None, dict[str, Any]]:
    """What people say about a set that they were asked about; nothing about any other."""
    if sampled.people is None:
        return {}
    yield from sampled.people.finish()
    said = sampled.people.said(sampled.rollouts.shards)
    return compared_policies.describe(config, sampled.answers, said, seed)


def committed_evaluation(store: RunStore, name: str, version: int) -> dict[str, Any]:
    """What was found for a policy on an evaluation set, scores by prompt included.

    Of rounds before a fork, scores of judges that the fork changed are left out: they compare with none after it.
    """
    index = max(0, version - 1)
    found = store.round(index).get_json(f"{evaluation_base(name, is_initial=version == 0)}summary")
    former = former_judges(store.info, index)
    return {**found, "scores": {judge: by for judge, by in found["scores"].items() if judge not in former}}


def evaluation_plan(config: RunConfig, name: str, version: int) -> SamplingPlan:
    """How an evaluation set is sampled."""
    return SamplingPlan(
        purpose=f"evaluation:{name}",
        round_index=version,
        num_samples=1,
        temperature=1.0,
        top_p=1.0,
        max_tokens=config.sampling.max_tokens,
        stop=tuple(config.sampling.stop),
        run_seed=config.run.seed,
    )


def _asked_again(config: RunConfig, prompts: Sequence[Prompt], version: int) -> dict[str, frozenset[str]]:
    """Evaluation judge -> prompts that it is asked about a second time."""
    ids, share = [prompt.prompt_id for prompt in prompts], config.verdicts.repeated
    judges = [judge for judge in _scoring_judges(config) if judge != REWARD]
    return {judge: asked_again(share, ids, config.run.seed, version, judge) for judge in judges}


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """What the learner measured of each completion of a set."""

    kls: Mapping[str, Sequence[float]]  # figure -> nats per completion
    entropies: Sequence[Sequence[float]]  # of each token, nats

    def means(self, rows: Sequence[int] | None = None) -> dict[str, float | None]:
        """Mean KL per completion and mean entropy per token, of all completions or of some."""
        chosen = range(len(self.entropies)) if rows is None else rows
        figures = {name: mean([values[row] for row in chosen]) for name, values in self.kls.items()}
        return {**figures, "entropy": mean([value for row in chosen for value in self.entropies[row]])}


def _measure(
    learner: LearnerStage,
    prompts: Sequence[Prompt],
    collected: Collected,
    references: Mapping[str, Sequence[WeightsRef]],
) -> Measured:
    """KL to each reference by both estimators, and the policy's entropy.

    An ensemble's mean log-prob is not that of a normalised distribution, so its KL is the mean of the KLs to its
    members; the low-variance estimate is smaller by what the mixture lacks of a probability of one.
    """
    # Each policy is scored once, however many references it is in.
    under: list[WeightsRef] = list(
        dict.fromkeys(["policy", *(name for group in references.values() for name in group)])
    )
    rows = rows_of(prompts, collected.completions)
    scores = dict(zip(under, learner.score(rows, under), strict=True))
    policy = scores["policy"]
    kls: dict[str, list[float]] = {}
    for name, members in references.items():
        if members:
            others = mean_token_logps([scores[member].token_logps for member in members])
            both = [kl_per_completion(p, q) for p, q in zip(policy.token_logps, others, strict=True)]
            kls[f"kl_{name}"] = [low_variance for low_variance, _ in both]
            kls[f"kl_{name}_plain"] = [plain for _, plain in both]
    return Measured(kls=kls, entropies=policy.entropies or [()] * len(rows))


def _domains(
    prompts: Sequence[Prompt],
    collected: Collected,
    measured: Measured,
    before: Mapping[str, Mapping[str, float]],
    seed: int,
) -> dict[str, dict[str, Any]]:
    """Domain -> figures of its completions, and of each judge but people."""
    found = {}
    for domain, ids in by_domain(prompts).items():
        rows = [row for row, c in enumerate(collected.completions) if c.prompt_id in ids]
        found[domain] = {
            "num_prompts": len(ids),
            **describe_samples([collected.completions[row] for row in rows]),
            **measured.means(rows),
            "judges": {
                judge: _compare([v for v in said.verdicts if v.prompt_id in ids], before.get(judge, {}), seed)
                for judge, said in collected.said.items()
            },
        }
    return found


def _describe(config: RunConfig, collected: Collected, before: Mapping[str, Any] | None, seed: int) -> dict[str, Any]:
    """Figures of the completions, and of each judge; its `gain` and `win_rate` are [value, lowest, highest]."""
    judges: dict[str, dict[str, Any]] = {}
    scores: dict[str, dict[str, float]] = {}
    for judge, said in collected.said.items():
        scores[judge] = scores_by_prompt(said.verdicts)
        start = {} if before is None else before.get(judge, {})
        judges[judge] = {
            **_compare(said.verdicts, start, seed),
            "report": report_on(collected.completions, said, _view_of(config, judge)),
        }
    return {**describe_completions(collected.completions, config.view), "judges": judges, "scores": scores}


def _view_of(config: RunConfig, judge: str) -> ViewSection | None:
    return config.view if judge == REWARD else config.view_of(config.evaluation.judges[judge])


def _compare(verdicts: Sequence[Verdict], before: Mapping[str, float], seed: int) -> dict[str, Any]:
    """What a judge said, against its scores of the initial policy."""
    scores = scores_by_prompt(verdicts)
    return {
        "mean": mean(list(scores.values())),
        "num_abstained": sum(verdict.reason is not None for verdict in verdicts),
        "gain": _as_list(paired_bootstrap(before, scores, seed=seed)),
        "win_rate": _as_list(win_rate(before, scores, seed=seed)),
    }


def _as_list(estimate: tuple[float, float, float] | None) -> list[float] | None:
    return None if estimate is None else list(estimate)
