"""The preview of what judges will take, against what a run really asked of a server on this machine."""

from __future__ import annotations

import asyncio
import json
import re
from collections import Counter
from collections.abc import Sequence
from contextlib import contextmanager
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from candidates_kit import run_with, stages_of
from cli_kit import called, write_inputs
from hosted_kit import HostedStages
from judge_servers import Answer, Server, completion, longer_wins, serve, verdict
from llm_kit import section
from loop_runs import Kill, Run, make_materials

from judges.chat import ChatReply, ChatRequest
from judges.estimating import Questions, estimate
from judges.llm.budget import Spend
from judges.llm.building import judge_of
from judges.protocol import Limits, Question
from online_dpo.commands.preparing.spending import Expected, expected_spending
from online_dpo.commands.run import run
from online_dpo.commands.terminal import spending as words
from online_dpo.config.loading import load_config
from online_dpo.errors import ConfigError
from online_dpo.store.run_store import RunStore
from online_dpo.types import Prompt

TEMPLATE = 7  # tokens that the server's chat template adds to a request
NOBODY = Server("http://127.0.0.1:1/v1")
PRICES = {"prompt": 2.0, "completion": 10.0}


def prompt_of(text: str, **metadata: Any) -> Prompt:
    return Prompt(prompt_id=text, token_ids=(), text=text, metadata=metadata)


def count_tokens(texts: Sequence[str]) -> list[int]:
    """A token is a word or a sign; so are those of the fakes' answers, as many as they have tokens."""
    return [len(re.findall(r"\w+|[^\w\s]", text)) for text in texts]


class Billing:
    """A server's handler that counts, by the name of each model, what it would send a bill for."""

    def __init__(self) -> None:
        self.spent: dict[str, Spend] = {}

    def handler(self, body: dict[str, Any], _: int) -> Answer:
        text = verdict(body, 5) if "You grade" in body["messages"][0]["content"] else longer_wins(body)
        asked = sum(count_tokens([message["content"] for message in body["messages"]])) + TEMPLATE
        (replied,) = count_tokens([text])
        self.spent[body["model"]] = self.spent.get(body["model"], Spend()) + Spend(1, asked, replied)
        return Answer(completion(text, usage=(asked, replied)))


def llm(server: Server, name: str, **fields: Any) -> dict[str, Any]:
    endpoint = {"base_url": server.base_url, "model": name, "prices": PRICES}
    return {"type": "llm", "endpoint": endpoint, **fields}


def play(run: Run, **options: Any) -> None:
    """As a process would: each judge is tried, then the rounds are played."""
    stages = HostedStages(run.config, run_dir=run.path)
    try:
        for host in stages.hosts.values():
            stages.loop.run_until_complete(host.try_it(False))
        run.go_on(stages, **options)
    finally:
        stages.close()


def check(expected: Sequence[Expected], spent: dict[str, Spend], *, models: dict[str, str]) -> None:
    for one in expected:
        real = spent[models[one.field]]
        assert one.use.most is not None
        low, high = one.use.least, one.use.most
        for name in ("calls", "prompt", "completion"):
            assert getattr(low, name) <= getattr(real, name) <= getattr(high, name), (one.field, name, real, one.use)
        assert one.cost is not None and one.cost[1] is not None
        assert one.cost[0] <= (2.0 * real.prompt + 10.0 * real.completion) / 1e6 <= one.cost[1]


def test_a_run_takes_what_was_foreseen(tmp_path: Path) -> None:
    """An ensemble of two, an annotator and an evaluation judge that is asked again; then the second half, after a
    kill. Would catch a judge, a stage or a resume that the preview forgets or counts twice."""
    billing = Billing()
    with serve(billing.handler) as server:
        inner = {"pairs": llm(server, "a", votes=2, temperature=1.0), "grades": llm(server, "b", form="pointwise")}
        run = Run.of(
            tmp_path,
            run__rounds=3,
            judge={"type": "ensemble", "judges": inner},
            pairing={"annotator": llm(server, "c")},
            evaluation__judges={"gold": llm(server, "d", form="pointwise", principles=["It is true.", "It is kind."])},
            evaluation__every=2,
            verdicts={"repeated": 0.5, "min_coverage": 0.0},
        )
        models = {
            "judge.judges.pairs": "a",
            "judge.judges.grades": "b",
            "pairing.annotator": "c",
            "evaluation.judges.gold": "d",
        }
        materials = make_materials(run.config)
        whole = expected_spending(materials, count_tokens=count_tokens)
        assert [one.field for one in whole] == list(models)
        with pytest.raises(Kill):
            play(run, kill_at=60)
        before, billing.spent = billing.spent, {}
        with RunStore.read(run.path) as store:
            assert store.finished_rounds() and store.unfinished_rounds()[0].names("verdicts/"), "not killed midway"
            left = expected_spending(materials, store, count_tokens)
        play(run)
    check(left, billing.spent, models=models)
    # The trial was made in both processes, and is foreseen once; the kill lost nothing else.
    for before_it, now in zip(whole, left, strict=True):
        assert now.use.least.calls < before_it.use.least.calls or now.field == "pairing.annotator"
    total = {name: before[name] + billing.spent[name] for name in before}
    trials = {"a": 2 * 4, "b": 2 * 2, "c": 2, "d": 4}
    check(whole, {n: Spend(s.calls - trials[n], s.prompt, s.completion) for n, s in total.items()}, models=models)


def test_what_writers_of_candidates_take_is_foreseen(tmp_path: Path) -> None:
    """A teacher and a reviser, with the prompt that each is tried on; after a kill, what is left of it."""
    spent: dict[str, Spend] = {}

    def handler(body: dict[str, Any], _: int) -> Answer:
        asked = sum(count_tokens([message["content"] for message in body["messages"]])) + TEMPLATE
        digest = sha256(json.dumps(body["messages"]).encode()).hexdigest()
        spent[body["model"]] = spent.get(body["model"], Spend()) + Spend(1, asked, 1)
        return Answer(completion(f"t{digest[: 1 + int(digest[0], 16) % 3]}", usage=(asked, 1)))

    with serve(handler) as server:
        endpoint = {"base_url": server.base_url, "prices": PRICES}
        teacher = {"type": "teacher", "num_samples": 2, "temperature": 1.0, "endpoint": {**endpoint, "model": "t"}}
        reviser = {"type": "revise", "endpoint": {**endpoint, "model": "r"}, "budget": {"calls": 10}}
        run = run_with(tmp_path, teacher, reviser)
        models = {"candidates.0": "t", "candidates.1": "r"}

        def process(**options: Any) -> None:
            stages = stages_of(run)
            for host in stages.writers.values():
                asyncio.run(host.try_it(False))
            run.go_on(stages, **options)

        whole = expected_spending(make_materials(run.config), count_tokens=count_tokens)
        assert [one.field for one in whole] == list(models)
        (line,) = words.beyond_budget(whole)
        assert line.startswith("candidates.1.budget.calls is 10, ") and "go on without its answers" in line
        reviser["budget"] = {}
        run = run_with(tmp_path, teacher, reviser)
        with pytest.raises(Kill):
            process(kill_at=40)
        before = dict(spent)
        spent.clear()
        with RunStore.read(run.path) as store:
            assert store.finished_rounds() == [0] and not store.unfinished_rounds()[0].has("pairs")
            left = expected_spending(make_materials(run.config), store, count_tokens)
        process()
    check(left, spent, models=models)
    calls = [(one.use.least.calls, one.use.most and one.use.most.calls) for one in whole]
    assert calls == [(18, 18), (9, 18)], "two answers each, or a critique and perhaps a revision; and of the trial"
    total = {name: before[name] + spent[name] for name in before}
    check(whole, {name: Spend(s.calls - 2, s.prompt, s.completion) for name, s in total.items()}, models=models)


class Silent:
    """A chat that nobody may ask."""

    async def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply]:
        raise AssertionError("nothing is asked")


@pytest.mark.parametrize(
    ("fields", "calls"),
    [
        ({}, 3 * 12),  # 4 answers: 6 comparisons, in both orders
        ({"both_orders": False}, 3 * 6),
        ({"both_orders": False, "votes": 3, "temperature": 1.0, "principles": ["a", "b"]}, 3 * 36),
        ({"form": "pointwise", "principles": ["a", "b"]}, 3 * 8),
        ({"form": "rubric", "rubric": {"column": "rubric"}, "votes": 2, "temperature": 1.0}, 3 * 8),
    ],
)
def test_requests_are_counted_as_they_are_made(fields: dict[str, Any], calls: int) -> None:
    config = section(NOBODY, endpoint={"extra_body": {"max_completion_tokens": 900}}, **fields)
    prompts = [prompt_of(text, rubric=[text, "Is right."]) for text in ("one", "two words", "and three words")]
    asked = Questions(number=3, prompts=prompts, num_completions=4, answer_tokens=100)
    (use,) = estimate(config, "judge", [asked], count_tokens).values()
    judge = judge_of(config, Silent(), Limits())
    texts = tuple(f"{i} " + "word " * 99 for i in range(4))
    about = [Question(prompt_id="", prompt=p.content, completions=texts, metadata=p.metadata) for p in prompts]
    made = [request for question in about for request in judge.requests(question)]
    assert use.most is not None and use.least.calls == use.most.calls == len(made) == calls
    real = sum(count_tokens([m["content"] for request in made for m in request.messages]))
    assert use.least.prompt < real < use.most.prompt < real + 67 * calls, "64 are for a chat template"
    assert (use.least.completion, use.most.completion) == (calls, 900 * calls)


def test_prompts_without_a_rubric_are_not_asked_about() -> None:
    config = section(NOBODY, form="rubric", rubric={"column": "rubric"})
    prompts = [prompt_of("a", rubric=["Is right."]), prompt_of("b"), prompt_of("c", rubric=[]), prompt_of("d")]
    asked = Questions(number=40, prompts=prompts, num_completions=2, answer_tokens=9)
    (use,) = estimate(config, "judge", [asked], count_tokens).values()
    assert use.most is not None and (use.least.calls, use.most.calls) == (20, 80)
    none = replace(asked, prompts=prompts[1:])
    assert estimate(config, "judge", [none], count_tokens)["judge"].least == Spend()


def test_outer_judges_pass_on_what_they_ask() -> None:
    inner = {"type": "llm", "form": "pointwise", "endpoint": {"base_url": "http://127.0.0.1:1/v1", "model": "m"}}
    asked = [Questions(number=5, prompts=[prompt_of("p")], num_completions=3, answer_tokens=9)]

    def calls(judge: dict[str, Any]) -> tuple[int, int | None]:
        config = load_config({"model": {"path": "x"}, "prompts": {"source": "p.jsonl"}, "judge": judge}).judge
        (use,) = estimate(config, "judge", asked, count_tokens).values()
        return use.least.calls, use.most and use.most.calls

    assert calls(inner) == (15, 15)
    assert calls({"type": "length_penalty", "rate": 0.1, "judge": inner}) == (15, 15)
    assert calls({"type": "cached", "judge": inner}) == (0, 15)
    assert calls({"type": "process", "judge": inner}) == (0, None)
    assert estimate(load_config(CODE).judge, "judge", asked, count_tokens) == {}


CODE = {"model": {"path": "x"}, "prompts": {"source": "p"}, "judge": {"type": "python", "target": "judge.py:score"}}


def test_the_command_says_what_a_run_would_cost(tmp_path: Path) -> None:
    """And names a budget that does not suffice; nothing is asked, so no server is there."""
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "prices": PRICES}
    judge = {"type": "llm", "endpoint": endpoint, "budget": {"calls": 20, "cost": 5.0}}
    write_inputs(tmp_path, Path("embedded:policy"), judge=judge)
    said = called("judge", "config.yaml", "--estimate", cwd=tmp_path)
    assert said.code == 0 and not said.err and said.out.startswith("judge: 26 requests, "), (
        said
    )  # 3 rounds of 4 prompts, and the trial
    assert "judge.budget.calls is 20, and the whole run takes 26: it will stop before its end" in said.out
    assert "budget.cost" not in said.out
    found = json.loads(called("judge", "config.yaml", "run.rounds=5", "--estimate", "--json", cwd=tmp_path).out)
    assert found["judges"]["judge"]["requests"] == [42, 42]
    low, high = found["judges"]["judge"]["prompt_tokens"]
    assert 42 * 100 < low < high < 42 * 2000
    assert found["cost"][1] == pytest.approx((2.0 * high + 10.0 * 42 * 64) / 1e6)
    assert "leave the file out" in called("judge", "config.yaml", "rows.jsonl", "--estimate", cwd=tmp_path).refusal
    assert "no FILE is given" in called("judge", "config.yaml", cwd=tmp_path).refusal


class TooMuch(ConfigError):
    pass


def test_a_run_asks_before_anything_is_started(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m"}
    write_inputs(tmp_path, Path("embedded:policy"), judge={"type": "llm", "endpoint": endpoint, "budget": {"calls": 1}})
    told: list[str] = []

    class Hears:
        def note(self, line: str) -> None:
            told.append(line)

    def refuse(expected: Sequence[Expected]) -> None:
        raise TooMuch(words.in_one_line(expected))

    with pytest.raises(TooMuch):
        run(load_config("config.yaml"), listeners=[Hears()], approve=refuse)
    first, second = [line for line in told if "asked" in line or "budget" in line]
    assert first.startswith("endpoints will be asked: 26 requests, ") and "no prices are set for judge" in first
    assert second.startswith("warning: judge.budget.calls is 1,")
    assert not (tmp_path / "runs").exists()


@pytest.mark.parametrize(("answer", "goes_on"), [(True, True), (False, False)])
def test_the_question(answer: bool, goes_on: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: Counter[str] = Counter()

    @contextmanager
    def pause():
        asked["paused"] += 1
        yield
        asked["went on"] += 1

    def confirm(question: str) -> bool:
        asked[question.split()[-2]] += 1
        return answer

    monkeypatch.setattr(words.typer, "confirm", confirm)
    questions = [Questions(number=2, prompts=[prompt_of("p")], num_completions=2, answer_tokens=9)]

    def expected(prices: dict[str, float] | None) -> list[Expected]:
        config = section(NOBODY, endpoint={"prices": prices})
        (use,) = estimate(config, "judge", questions, count_tokens).values()
        return [Expected(field="judge", section=config, use=use, spent=Spend())]

    assert words.ask_before_spending(pause) is None, "pytest has no terminal"
    for name in ("stdin", "stdout"):
        monkeypatch.setattr(words.sys, name, type("Terminal", (), {"isatty": lambda self: True})())
    ask = words.ask_before_spending(pause)
    assert ask is not None
    ask(expected(prices=None))
    ask(expected(prices={"prompt": 0.0, "completion": 0.0}))
    assert not asked, "nothing costs money"
    if goes_on:
        ask(expected(PRICES))
    else:
        with pytest.raises(words.typer.Abort):
            ask(expected(PRICES))
    assert asked == {"paused": 1, "go": 1, **({"went on": 1} if goes_on else {})}
