"""User code -> `Judge`: a function, or a class with one of `score`, `score_batch`, `compare`, `rank`, `judge`.

A parameter named `metadata` asks for the prompt's further columns. Blocking code runs in a thread and is never called
twice at once, so it need not be thread-safe; `async def` code runs `concurrency` calls at a time.

All of this runs in the process that `judge_process` starts, which waits for its imports: they are few.
"""

from __future__ import annotations

import asyncio
import copy
import difflib
import inspect
import json
import sys
from collections.abc import Awaitable, Callable, Mapping, Sequence
from itertools import combinations, permutations
from typing import Any, cast

from judges.protocol import ABSTAIN_HINT, Judge, Limits, Question, count, limits_of
from judges.threads import in_thread
from judges.values import as_list, how_many, show
from online_dpo.errors import JudgeError
from online_dpo.types import NUM_RANKINGS, Verdict

KINDS = {"score": "pointwise", "score_batch": "pointwise", "compare": "pairwise", "rank": "list-wise"}
PARAMETERS = {
    "score": ("prompt", "completion"),
    "score_batch": ("prompts", "completions"),
    "compare": ("prompt", "a", "b"),
    "rank": ("prompt", "completions"),
}


class _UserCode:
    """One callable of the user's, blocking or not, with or without `metadata`. It gets copies, which it may change."""

    def __init__(self, function: Callable[..., Any], keywords: Mapping[str, Any]) -> None:
        self._function = function
        self._keywords = dict(keywords)
        # An instance with an async __call__ is a coroutine function in all but inspect's opinion.
        self.is_async = any(inspect.iscoroutinefunction(f) for f in (function, getattr(function, "__call__", None)))  # noqa: B004
        self._wants_metadata = "metadata" in _parameters(function)

    @property
    def limits(self) -> Limits:
        return Limits(questions_per_call=1, calls_in_flight=None if self.is_async else 1)

    async def __call__(self, *args: Any, metadata: Any) -> Any:
        args = tuple(_copied(arg) for arg in args)
        keywords = {**self._keywords, "metadata": _copied(metadata)} if self._wants_metadata else self._keywords
        if self.is_async:
            return await self._function(*args, **keywords)
        work = asyncio.ensure_future(in_thread(self._function, *args, **keywords))
        try:
            result = await asyncio.shield(work)
        except asyncio.CancelledError:
            await asyncio.wait([work])  # a thread cannot be killed; this process is, if that takes long
            raise
        # A decorator may hide that a function is async.
        return await cast(Awaitable[Any], result) if inspect.isawaitable(result) else result


class PointwiseJudge:
    """Calls `score(prompt, completion)` for each completion in turn."""

    def __init__(self, function: Callable[..., Any], keywords: Mapping[str, Any] | None = None) -> None:
        self._code = _UserCode(function, keywords or {})
        self.limits = self._code.limits

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        return [
            [
                q.score(i, await self._code(q.prompt, text, metadata=dict(q.metadata)))
                for i, text in enumerate(q.completions)
            ]
            for q in questions
        ]


class BatchJudge:
    """Calls `score_batch(prompts, completions)` once per batch; a prompt is repeated for each of its completions."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._code = _UserCode(function, {})
        self.limits = Limits(calls_in_flight=self._code.limits.calls_in_flight)

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        rows = [(q, i, text) for q in questions for i, text in enumerate(q.completions)]
        answer = await self._code(
            [q.prompt for q, _, _ in rows],
            [text for _, _, text in rows],
            metadata=[dict(q.metadata) for q, _, _ in rows],
        )
        scores = as_list(answer, len(rows))
        if scores is None or len(scores) != len(rows):
            found = show(answer) if scores is None else f"{how_many(scores, len(rows))} scores"
            raise JudgeError(
                f"returned {found} for {len(rows)} completions; return a list with one finite number for each, or "
                f"{ABSTAIN_HINT.replace('return', 'put').replace(' to abstain', ' in its place to abstain')}"
            )
        verdicts: dict[str, list[Verdict]] = {q.prompt_id: [] for q in questions}
        for (question, i, _), value in zip(rows, scores, strict=True):
            verdicts[question.prompt_id].append(question.score(i, value))
        return [verdicts[q.prompt_id] for q in questions]


class PairwiseJudge:
    """Calls `compare(prompt, a, b)` for every two completions, in one order (`a` was sampled first) or in both."""

    def __init__(self, function: Callable[..., Any], *, both_orders: bool = False) -> None:
        self._code = _UserCode(function, {})
        self._pairs = permutations if both_orders else combinations
        self.limits = self._code.limits

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        return [
            [await self._compare(question, i, j) for i, j in self._pairs(range(len(question.completions)), 2)]
            for question in questions
        ]

    async def _compare(self, question: Question, i: int, j: int) -> Verdict:
        a, b = question.completions[i], question.completions[j]
        return question.compare(i, j, await self._code(question.prompt, a, b, metadata=dict(question.metadata)))


class ListwiseJudge:
    """Calls `rank(prompt, completions)`, which returns the positions of the completions, the best first."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._code = _UserCode(function, {})
        self.limits = self._code.limits

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        count(NUM_RANKINGS, len(questions))  # scores that do not tell that they come from an order of presentation
        return [
            q.ranking(await self._code(q.prompt, list(q.completions), metadata=dict(q.metadata))) for q in questions
        ]


class ProtocolJudge:
    """Calls `judge(questions)`, with questions that are its own to change."""

    def __init__(self, instance: Judge) -> None:
        self._instance = instance
        self.limits = limits_of(instance)

    async def judge(self, questions: Sequence[Question]) -> Sequence[Sequence[Verdict]]:
        return await self._instance.judge(_copied(list(questions)))


def _copied(value: Any) -> Any:
    """A deep copy. What a batch holds several times, such as a prompt for each of its completions, is copied each."""
    return [copy.deepcopy(item) for item in value] if isinstance(value, list) else copy.deepcopy(value)


def adapt(target: object, args: Mapping[str, Any], *, field: str, name: str, both_orders: bool = False) -> Judge:
    """Make a judge of a user's function or class.

    A class that is a pydantic model, or that names one as `Args`, has its arguments validated; with `Args` the
    constructor gets one argument, the validated model.

    Args:
        target: what the config's `target` names.
        args: the constructor's arguments, or further arguments of a function.
        field: the config section, such as `judge`.
        name: the target as the config has it.
        both_orders: ask `compare` about every two completions both ways.

    Raises:
        JudgeError: it is not callable, its signature does not fit, its constructor raises, or its methods leave
            open how to judge.
    """
    label = f"{field}.target {name}"
    if not inspect.isclass(target):
        if not callable(target):
            raise JudgeError(
                f"{label} is {show(target)}, which cannot be called; name a function score(prompt, completion) or "
                f"a class"
            )
        _check_args(target, args, ("prompt", "completion"), field=field, label=label)
        _refuse_both_orders(both_orders, field=field, label=label)
        return PointwiseJudge(target, args)
    return _adapt_instance(_construct(target, args, field, label), field=field, label=label, both_orders=both_orders)


def _construct(target: type, args: Mapping[str, Any], field: str, label: str) -> Any:
    model = getattr(target, "Args", None)
    pydantic = sys.modules.get("pydantic")  # code that has not imported it has no model of it
    has_args = pydantic is not None and inspect.isclass(model) and issubclass(model, pydantic.BaseModel)
    checked: Any = model if has_args else target
    _check_args(checked, args, (), field=field, label=label)
    try:
        return target(checked(**args)) if has_args else target(**args)
    except Exception as error:
        if pydantic is not None and isinstance(error, pydantic.ValidationError):
            lines = [_explain(problem, field) for problem in error.errors()]
            raise JudgeError("\n".join(f"{line} (as {label} has it)" for line in lines)) from None
        raise JudgeError(
            f"{label} could not be constructed: {type(error).__name__}: {error}; check {field}.args and what the "
            f"constructor reads"
        ) from error


def _explain(problem: Any, field: str) -> str:
    place = ".".join(map(str, (f"{field}.args", *problem["loc"])))
    if problem["type"] == "missing":
        return f"{place} is missing; set it"
    wish = str(problem["msg"]).removeprefix("Input should be ").removeprefix("Value error, ")
    return f"{place} is {json.dumps(problem['input'], default=str)}; it must be {wish}"


def _adapt_instance(instance: Any, *, field: str, label: str, both_orders: bool) -> Judge:
    if callable(getattr(instance, "judge", None)):
        if not inspect.iscoroutinefunction(instance.judge):
            raise JudgeError(f"{label} has a judge method that is not async; write async def judge(self, questions)")
        _refuse_both_orders(both_orders, field=field, label=label)
        return ProtocolJudge(instance)
    methods = [name for name in KINDS if callable(getattr(instance, name, None))]
    if not methods:
        known = [name for name in dir(instance) if not name.startswith("_")]
        close = [name for name in known if difflib.get_close_matches(name, [*KINDS, "judge"], n=1)]
        hint = f"did you mean to name {close[0]} differently? " if close else ""
        raise JudgeError(f"{label} has no judging method; {hint}give it one of judge, {', '.join(KINDS)}")
    if len({KINDS[name] for name in methods}) > 1:
        raise JudgeError(
            f"{label} has {' and '.join(methods)}, which are different kinds of judging; keep one kind, or write "
            f"async def judge(self, questions)"
        )
    # Of the two pointwise methods the one that sees the whole batch is preferred.
    name = "score_batch" if "score_batch" in methods else methods[0]
    method = getattr(instance, name)
    _check_args(method, {}, PARAMETERS[name], field=field, label=f"{label}'s {name}")
    if name == "compare":
        return PairwiseJudge(method, both_orders=both_orders)
    _refuse_both_orders(both_orders, field=field, label=label)
    return {"score": PointwiseJudge, "score_batch": BatchJudge, "rank": ListwiseJudge}[name](method)


def _refuse_both_orders(both_orders: bool, *, field: str, label: str) -> None:
    if both_orders:
        raise JudgeError(f"{field}.both_orders is true and {label} has no compare to ask both ways; remove it")


def _parameters(function: Callable[..., Any]) -> Mapping[str, inspect.Parameter]:
    """Parameters by name; none for the few built-in functions that do not tell."""
    try:
        return inspect.signature(function).parameters
    except ValueError:
        return {}


def _check_args(
    function: Callable[..., Any], args: Mapping[str, Any], positional: tuple[str, ...], *, field: str, label: str
) -> None:
    """See whether `function(*positional, **args)` binds, before anything is called."""
    try:
        signature = inspect.signature(function)
    except ValueError:
        return  # a built-in function that does not tell: only calling it can
    parameters = signature.parameters
    by_place = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_ONLY, p.POSITIONAL_OR_KEYWORD)]
    taken = by_place[: len(positional)]
    own = [n for n, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY) and n not in taken]
    for key in args:
        if key not in own and not any(p.kind is p.VAR_KEYWORD for p in parameters.values()):
            close = difflib.get_close_matches(key, own, n=1)
            hint = f"did you mean {close[0]}?" if close else f"known there: {', '.join(own) or 'none'}"
            raise JudgeError(f"{field}.args.{key} is not an argument of {label}; {hint}")
    missing = [n for n in own if parameters[n].default is inspect.Parameter.empty and n not in args]
    if missing and not positional:
        raise JudgeError(f"{field}.args lacks {', '.join(missing)}, which {label} needs; set it there")
    asked: dict[str, Any] = {"metadata": {}} if positional and "metadata" in own else {}
    try:
        signature.bind(*positional, **{**args, **asked})
    except TypeError as error:
        called = f"({', '.join(positional)})"
        raise JudgeError(
            f"{label} cannot be called with {called}: {error}; write it with these parameters (and metadata, where it "
            f"wants it), set others in {field}.args, or give a class with compare or rank"
        ) from None
