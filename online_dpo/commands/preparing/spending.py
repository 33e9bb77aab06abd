"""What a run will ask of chat models before it ends: a preview, so that money is not spent unseen.

A resumed run is told what is left. What a run does if it stops early, or has to ask again, is not foreseen.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

from judges.estimating import MAX_SAMPLED_PROMPTS, CountTokens, Questions, Use, estimate
from judges.llm.budget import Spend, spent_of
from judges.trial import ANSWERS, TEXT
from judges.writers.estimating import estimate_writer, writer_spent
from online_dpo.commands.preparing.inputs import Materials, judge_name, judge_sections
from online_dpo.commands.preparing.writers import writer_specs
from online_dpo.config.candidates.section import ReviseWriter, TeacherWriter
from online_dpo.config.human_checks import human_judges
from online_dpo.config.judges.llm import LlmJudge
from online_dpo.config.judges.section import JudgeSection, OuterJudge, hosted_judges
from online_dpo.config.pairing import ANNOTATOR
from online_dpo.data.drawing import Cursor, MixtureCursor
from online_dpo.loop.draws import samples
from online_dpo.models.tokenizer import load_tokenizer
from online_dpo.store.candidates import COUNTED, CandidateCommits, candidates_counted
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits, counted_so_far, evaluation_base
from online_dpo.types import REWARD, Prompt

TRIAL_TOKENS = 32
"""More than either of a trial's answers has."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Expected:
    """What one judge or writer of candidates that asks a chat model will take from now on."""

    field: str
    section: LlmJudge | TeacherWriter | ReviseWriter
    use: Use
    spent: Spend  # before, by the same run

    @property
    def is_billed(self) -> bool:
        return self.section.endpoint is not None

    @property
    def cost(self) -> tuple[float, float | None] | None:
        """Money, from the least to the most, where that is known; None without prices."""
        return self.use.cost(self.section.endpoint.prices if self.section.endpoint is not None else None)

    def limits(self) -> Iterator[tuple[str, float, float, float | None]]:
        """Each limit of the budget, the limit itself, and what the whole run takes of it: at least, and at most."""
        prices = None if self.section.endpoint is None else self.section.endpoint.prices
        least, most = self.spent + self.use.least, None if self.use.most is None else self.spent + self.use.most
        for name, limit in self.section.budget.model_dump().items():
            if limit is not None:
                yield name, limit, least.amount(name, prices), None if most is None else most.amount(name, prices)


def expected_spending(
    materials: Materials, store: RunStore | None = None, count_tokens: CountTokens | None = None
) -> list[Expected]:
    """What every judge and writer that asks a chat model will take, in the order of the config.

    Args:
        materials: of the run.
        store: of the run where it is continued; what is committed there is not asked again.
        count_tokens: None = as the policy's tokenizer counts.

    Raises:
        UserError: as drawing prompts.
    """
    config = materials.config
    sections, people = judge_sections(config), human_judges(config)
    asking = {
        field: section
        for field, section in sections.items()
        if field not in people and any(isinstance(judge, LlmJudge) for _, judge in hosted_judges(section, field))
    }
    if not asking and not config.hosted_writers:
        return []
    plan, counter = _Plan(materials, store), count_tokens or _counter(materials)
    names = [judge_name(field) for field in sections]
    counted = {} if store is None else counted_so_far(store, names, list(config.evaluation.sets))
    found = []
    for field, section in asking.items():
        uses = estimate(section, field, plan.questions(judge_name(field)), counter)
        for place, use in _trials(section, field, materials.first, counter):
            uses[place] += use
        judges = {place: judge for place, judge in hosted_judges(section, field) if isinstance(judge, LlmJudge)}
        for place, judge in judges.items():
            spent = spent_of(counted.get(judge_name(field), {}), place)
            found.append(Expected(field=place, section=judge, use=uses[place], spent=spent))
    return [*found, *_writers(materials, store, plan, counter)]


class _Plan:
    """Which questions the loop will ask each judge, by name."""

    def __init__(self, materials: Materials, store: RunStore | None) -> None:
        self._config, self._job, self._store = materials.config, materials.job, store
        self._first = 0 if store is None else len(store.finished_rounds())
        self._training = self._training_prompts()

    def questions(self, judge: str) -> Iterator[Questions]:
        if judge in (REWARD, ANNOTATOR):
            yield from self._about_rounds(judge)
        if judge != ANNOTATOR:
            yield from self._about_sets(judge)

    def num_to_write(self, source: str) -> int:
        """Prompts that a writer has not answered yet."""
        config, number = self._config, 0
        for index in self._rounds():
            if config.prompts is not None and samples(config, index):
                number += config.prompts.per_round - self._num_written(index, source)
        return number

    def _num_written(self, index: int, source: str) -> int:
        if self._store is None or index > self._first + 1:
            return 0
        return CandidateCommits(self._store.round(index)).num_prompts(source)

    def _about_rounds(self, judge: str) -> Iterator[Questions]:
        config = self._config
        for index in self._rounds():
            if config.prompts is None or not samples(config, index):
                continue
            number, judged = config.prompts.per_round, self._num_judged(index, "", Asked(judge=judge))
            asked = self._questions(self._training, config.most_completions(are_judged=True))
            if judge == ANNOTATOR:
                number = min(number, config.pairing.budget or number)
                yield replace(asked, number=number - judged, num_completions=2, least=0.0)
            else:
                yield replace(asked, number=number - judged)
                yield replace(asked, number=self._most_repeated(number), least=0.0)

    def _about_sets(self, judge: str) -> Iterator[Questions]:
        for name, prompts in self._job.evaluation_sets.items():
            asked = self._questions(prompts, 1)
            for index, is_initial in self._evaluations():
                base = evaluation_base(name, is_initial=is_initial)
                yield replace(asked, number=len(prompts) - self._num_judged(index, base, Asked(judge=judge)))
                if judge != REWARD:
                    yield replace(asked, number=self._most_repeated(len(prompts)), least=0.0)

    def _questions(self, prompts: Sequence[Prompt], num_completions: int) -> Questions:
        """About each prompt."""
        most = self._config.sampling.max_tokens
        return Questions(number=len(prompts), prompts=prompts, num_completions=num_completions, answer_tokens=most)

    def _evaluations(self) -> Iterator[tuple[int, bool]]:
        """Round whose folder they lie in, and whether it is that of the initial policy."""
        every, rounds = self._config.evaluation.every, self._config.run.rounds
        for index in self._rounds():
            if index == 0:
                yield index, True
            if (index + 1) % every == 0 or index + 1 == rounds:
                yield index, False

    def _rounds(self) -> range:
        return range(self._first, self._config.run.rounds)

    def _num_judged(self, index: int, base: str, asked: Asked) -> int:
        """Prompts on which a judge's verdicts are committed."""
        if self._store is None or index > self._first + 1:
            return 0
        return ShardCommits(self._store.round(index), base).num_judged(asked)

    def _most_repeated(self, number: int) -> int:
        """Of so many prompts, each of which is asked about again by a chance of its own: four deviations more."""
        share = self._config.verdicts.repeated
        return min(number, math.ceil(number * share + 4.0 * math.sqrt(number * share * (1.0 - share))))

    def _training_prompts(self) -> Sequence[Prompt]:
        """The first of the run's prompts in the order in which they are drawn, which is shuffled."""
        source, config = self._job.prompts, self._config
        cursor: Cursor | MixtureCursor = Cursor()
        found: list[Prompt] = []
        if source is None or config.prompts is None:
            return found
        for _ in range(config.run.rounds):
            if len(found) >= MAX_SAMPLED_PROMPTS:
                break
            draw = source.draw(cursor, config.prompts.per_round)
            found += draw.prompts
            cursor = draw.cursor
        return found[:MAX_SAMPLED_PROMPTS]


def _trials(section: JudgeSection, field: str, first: Prompt, counter: CountTokens) -> Iterator[tuple[str, Use]]:
    """Each judge is tried once, after those inside it."""
    is_chat = first.messages is not None
    form: dict[str, Any] = {"messages": ({"role": "user", "content": TEXT},)} if is_chat else {"text": TEXT}
    prompt = Prompt(prompt_id="trial", token_ids=(), metadata=first.metadata, **form)
    trial = Questions(number=1, prompts=[prompt], num_completions=len(ANSWERS), answer_tokens=TRIAL_TOKENS)
    if isinstance(section, OuterJudge):
        for place, inner in section.inner.items():
            yield from _trials(inner, f"{field}.{place}", first, counter)
    yield from estimate(section, field, [trial], counter).items()


def _writers(materials: Materials, store: RunStore | None, plan: _Plan, counter: CountTokens) -> Iterator[Expected]:
    """What writers of candidates will take, with the prompt that each is tried on."""
    config, source = materials.config, materials.job.prompts
    if source is None or config.prompts is None:
        return
    prompts = source.draw(Cursor(), config.prompts.per_round).prompts
    specs = writer_specs(config)
    counted = {} if store is None else candidates_counted(store, list(specs))
    for name, spec in specs.items():
        uses = [
            estimate_writer(spec, prompts, number=number, num_samples=k, answer_tokens=most, count_tokens=counter)
            for number, k, most in (
                (plan.num_to_write(name), config.sampling.num_samples, config.sampling.max_tokens),
                (1, 1, TRIAL_TOKENS),
            )
        ]
        spent = writer_spent(counted.get(f"{COUNTED}{name}", {}))
        yield Expected(field=spec.field, section=spec.section, use=uses[0] + uses[1], spent=spent)


def _counter(materials: Materials) -> CountTokens:
    tokenizer = load_tokenizer(materials.model.folder, trust_remote_code=materials.config.model.trust_remote_code)

    def count(texts: Sequence[str]) -> list[int]:
        return [len(ids) for ids in tokenizer(list(texts), add_special_tokens=False, verbose=False)["input_ids"]]

    return count


def billed(expected: Sequence[Expected]) -> list[Expected]:
    """Those that somebody may send a bill for."""
    return [one for one in expected if one.is_billed]


def total_cost(expected: Sequence[Expected]) -> tuple[float, float | None] | None:
    """Money of all judges that have prices; None where none has any."""
    costs = [cost for one in expected if (cost := one.cost) is not None]
    if not costs:
        return None
    highs = [high for _, high in costs]
    return math.fsum(low for low, _ in costs), None if None in highs else math.fsum(h for h in highs if h is not None)
