"""A judge as the reward function of another trainer, in its process: no Ray is started."""

from __future__ import annotations

import asyncio
import hashlib
import json
import logging
import os
import threading
import weakref
from collections import Counter
from collections.abc import Callable, Coroutine, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from judges.registry import make_spec
from judges.spec import JudgeSpec
from online_dpo.commands.judge import section_of
from online_dpo.config.base import Section
from online_dpo.config.loading import JudgesConfig, load_judges
from online_dpo.config.run import RunConfig
from online_dpo.data.completion_files import answers
from online_dpo.data.json_values import json_value
from online_dpo.data.prompt_files import messages_of
from online_dpo.errors import DataError, JudgeError, JudgingStopped
from online_dpo.pairing.opinions import Opinion, scores_nothing
from online_dpo.types import Judged, Prompt, Shard, Verdict

log = logging.getLogger(__name__)
T = TypeVar("T")


def as_reward_function(
    config: str | Path | Mapping[str, Any] | Section, *, judge: str | None = None, name: str | None = None
) -> RewardFunction:
    """A judge as a function that gives a reward to each completion, as TRL's `GRPOTrainer(reward_funcs=...)` wants it.

    Relative paths in the config are relative to the current folder, as they are for all commands.

    Args:
        config: a YAML file, its content, or a config object: of a whole run, or only with `judge` or
            `evaluation.judges`, or a judge's section alone.
        judge: one of `evaluation.judges`; None = the training judge.
        name: of the function, in the trainer's logs; None = that of the judge.

    Raises:
        ConfigError: the config is wrong or has no such judge, or the judge is people.
        JudgeError: the judge's file is missing or no Python. What else is wrong with a judge shows in the first call.
    """
    if isinstance(config, Mapping) and "type" in config:
        config = {"judge": dict(config)}
    elif isinstance(config, Section) and not isinstance(config, RunConfig | JudgesConfig):
        config = {"judge": config.model_dump(mode="python", exclude_unset=True)}
    source = str(config) if isinstance(config, str | Path) else "the config"
    if not isinstance(config, RunConfig | JudgesConfig):
        config = load_judges(dict(config) if isinstance(config, Mapping) else Path(config))  # type: ignore[arg-type]
    section, field = section_of(config, judge, source=source, option="judge")
    return RewardFunction(make_spec(section, field=field, base_dir=Path.cwd()), name=name or judge or "judge")


class RewardFunction:
    """Asks a judge about prompts and completions, by the rules of its config, in this process and its children.

    The completions of one prompt are judged together, so that a judge that compares can be asked. The judge's score is
    the reward; of a judge that compares it is the mean probability of winning against the prompt's other completions
    in the same call. The first call tries the judge on two canned completions. It may be called from several threads,
    and can be pickled; each process then has a judge, and a budget, of its own.

    Attributes:
        counters: sums over all calls: `num_completions`, `num_rewards`, `num_abstained` and `num_failed` completions
            (without a reward), and what the judge counts.
    """

    def __init__(self, spec: JudgeSpec, *, name: str) -> None:
        """Starts nothing yet.

        Args:
            spec: of the judge.
            name: the function's `__name__`.
        """
        self.__name__ = name
        self.counters: Counter[str] = Counter()
        self._spec = spec
        self._lock = threading.Lock()
        self._thread: _JudgeThread | None = None

    def __reduce__(self) -> tuple[Callable[..., RewardFunction], tuple[JudgeSpec, str]]:
        return _rebuild, (self._spec, self.__name__)

    def __call__(
        self,
        /,  # a column may be called self
        prompts: Sequence[Any],
        completions: Sequence[Any],
        *,
        completion_ids: Any = None,
        trainer_state: Any = None,
        log_extra: Any = None,
        log_metric: Callable[[str, float], None] | None = None,
        environments: Any = None,
        **columns: Any,
    ) -> list[float | None]:
        """Judge completions.

        Args:
            prompts: `[B]` texts or lists of chat messages; equal ones, with equal columns, are one prompt.
            completions: `[B]` texts, or lists of one message of the assistant.
            completion_ids: not read; TRL gives it, as the next four.
            trainer_state: not read.
            log_extra: not read.
            log_metric: is told the share of completions without a reward, as `NAME/no_reward`.
            environments: not read.
            columns: `[B]` each, the data set's further columns. They are the metadata of the prompts.

        Returns:
            `[B]` rewards; None where the judge abstained or failed, which TRL leaves out of its means.

        Raises:
            DataError: prompts, completions or columns are of another form, or unequal in number.
            JudgeError: the judge cannot be built, or compares and is given one completion of a prompt alone.
            JudgingStopped: it answers nothing more, such as at the end of its budget.
        """
        prompt_ids, found, texts = _groups(prompts, completions, columns)
        if not found:
            return []
        judged = self._ask(found, texts)
        said: dict[str, list[Verdict]] = {}
        for verdict in judged.verdicts:
            said.setdefault(verdict.prompt_id, []).append(verdict)
        rewards = {i: iter(_rewards(said.get(i, []), len(group))) for i, group in texts.items()}
        values = [next(rewards[prompt_id]) for prompt_id in prompt_ids]
        self._count(values, judged)
        if log_metric is not None:
            log_metric(f"{self.__name__}/no_reward", values.count(None) / len(values))
        return values

    def _ask(self, prompts: Mapping[str, Prompt], texts: Mapping[str, Sequence[str]]) -> Judged:
        first = next(iter(prompts.values()))
        with self._lock:
            if self._thread is None or self._thread.pid != os.getpid():  # threads do not come along through a fork
                self._thread = _JudgeThread(self._spec, first)
            thread = self._thread
        alone = [i for i, group in texts.items() if len(group) == 1]
        if thread.compares and alone:
            raise JudgeError(
                f"{self._spec.label} compares two completions, and this call has one completion alone of the prompt "
                f"{_short(prompts[alone[0]])}: give all completions of a prompt in one call (in TRL, "
                f"per_device_train_batch_size times steps_per_generation is a multiple of num_generations), or take a "
                f"judge that scores"
            )
        completions = [c for i, group in texts.items() for c in answers(i, group)]
        judged = thread.run(thread.host.judge_shard(Shard(index=0, prompts=tuple(prompts.values())), completions))
        if judged.stopped is not None:
            raise JudgingStopped(f"{self._spec.label}: {judged.stopped}")
        return judged

    def _count(self, values: Sequence[float | None], judged: Judged) -> None:
        failures = [verdict for verdict in judged.verdicts if verdict.failed]
        num_failed = min(len({(v.prompt_id, v.first) for v in failures}), values.count(None))
        own = {
            "num_completions": len(values),
            "num_rewards": len(values) - values.count(None),
            "num_abstained": values.count(None) - num_failed,
            "num_failed": num_failed,
        }
        with self._lock:
            self.counters.update(own)
            self.counters.update(judged.counters)
        if values.count(None):
            reasons = Counter(verdict.explanation for verdict in judged.verdicts if verdict.reason is not None)
            reason, number = reasons.most_common(1)[0] if reasons else ("nothing was said about them", 1)
            log.warning(
                "%s: %d of %d completions have no reward (%d abstentions, %d failed calls); most often: %s (%d x)",
                self.__name__, values.count(None), len(values), own["num_abstained"], num_failed, reason, number,
            )  # fmt: skip


class _JudgeThread:
    """A judge on an event loop in a thread of its own. The thread ends, and the judge's processes, with this object."""

    def __init__(self, spec: JudgeSpec, first: Prompt) -> None:
        """Start it and try the judge in the form of a prompt.

        Raises:
            JudgeError: it cannot be built, or does not keep its contract.
        """
        from actors.judge_host import JudgeHost  # its module imports Ray, but starts none

        self.pid = os.getpid()
        self.host = JudgeHost(spec)
        self._loop = asyncio.new_event_loop()
        threading.Thread(target=_serve, args=(self._loop,), name="judge-reward", daemon=True).start()
        weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop).atexit = False
        said = self.run(self.host.try_it(first.messages is not None, first.metadata))
        self.compares = scores_nothing(said)

    def run(self, work: Coroutine[Any, Any, T]) -> T:
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        except BaseException:  # an interrupt of this thread too: nobody waits any more
            future.cancel()
            raise


def _serve(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.close()


def _rebuild(spec: JudgeSpec, name: str) -> RewardFunction:
    return RewardFunction(spec, name=name)


def _groups(
    prompts: Sequence[Any], completions: Sequence[Any], columns: Mapping[str, Any]
) -> tuple[list[str], dict[str, Prompt], dict[str, list[str]]]:
    """`[B]` the prompt id of each row; prompts by id; texts of each prompt's completions, in order."""
    lengths = {"prompts": len(prompts), "completions": len(completions)}
    lengths |= {column: len(values) for column, values in columns.items() if isinstance(values, list | tuple)}
    if len(set(lengths.values())) > 1:
        counted = ", ".join(f"{number} {column}" for column, number in lengths.items())
        raise DataError(f"a reward function was given {counted}; give as many of each")
    rows = {column: values for column, values in columns.items() if column in lengths}
    ids: list[str] = []
    found: dict[str, Prompt] = {}
    texts: dict[str, list[str]] = {}
    for row, (prompt, completion) in enumerate(zip(prompts, completions, strict=True)):
        content = _prompt(prompt)
        metadata = {column: _value(column, values[row]) for column, values in rows.items()}
        key = json.dumps([content, metadata], sort_keys=True)
        prompt_id = f"prompt-{hashlib.sha256(key.encode('utf-8', 'surrogatepass')).hexdigest()[:16]}"
        if prompt_id not in found:
            found[prompt_id] = Prompt(prompt_id=prompt_id, token_ids=(), metadata=metadata, **content)
        ids.append(prompt_id)
        texts.setdefault(prompt_id, []).append(_text(completion))
    return ids, found, texts


def _prompt(value: Any) -> dict[str, Any]:
    if isinstance(value, str):
        return {"text": value}
    if isinstance(value, list) and value and all(isinstance(message, dict) for message in value):
        messages = messages_of(value)
        if all(isinstance(m.get("role"), str) and isinstance(m.get("content"), str) for m in messages):
            return {"messages": messages}
    raise DataError("a reward function was given a prompt that is neither text nor a list of chat messages with texts")


def _text(completion: Any) -> str:
    """The text that is judged."""
    if isinstance(completion, list) and len(completion) == 1 and isinstance(completion[0], dict):
        completion = completion[0].get("content")
    if not isinstance(completion, str):
        raise DataError(
            "a reward function was given a completion that is neither text nor a list of one message with a text; "
            "conversations of several turns, tool calls and images cannot be judged"
        )
    return completion


def _value(column: str, value: Any) -> Any:
    try:
        return json_value(value)
    except TypeError as error:
        raise DataError(
            f"the data set's column {column} holds {error}, which a judge cannot be given as JSON: remove the column"
        ) from None


def _rewards(verdicts: Sequence[Verdict], number: int) -> list[float | None]:
    """Of the completions of one prompt."""
    opinion = Opinion(verdicts, range(number))
    if any(verdict.probability is not None for verdict in verdicts):
        strengths = opinion.strengths()
        return [strengths.get(i) for i in range(number)]
    return [opinion.score(i) for i in range(number)]


def _short(prompt: Prompt) -> str:
    text = prompt.text if prompt.messages is None else prompt.messages[-1]["content"]
    line = " ".join(str(text).split())
    return repr(line if len(line) <= 60 else f"{line[:57]}...")
