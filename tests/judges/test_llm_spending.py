"""Budgets of the `llm` judge, and where its key goes: to the server and nowhere else."""

from __future__ import annotations

import asyncio
import logging
import pickle
import traceback
from pathlib import Path
from typing import Any

import pytest
from judge_servers import KEY, Answer, completion, longer_wins, material, serve, verdict
from llm_kit import ask, brief, question, section

from judges.hosting import Hosting
from judges.llm.building import build_llm
from judges.llm.key import ApiKey, read_key
from judges.protocol import StopJudging, collect_counts
from judges.trial import try_judge
from online_dpo.config.judges.llm import Endpoint
from online_dpo.config.loading import dump_config, load_config
from online_dpo.config.resuming import changes
from online_dpo.errors import ConfigError, JudgeError

QUESTIONS = [question(f"one {i}", f"seven {i}", f"seventeen {i}", name=str(i)) for i in range(8)]
PRICES = {"prompt": 1.0, "completion": 10.0}  # of a million tokens


def honest(body: dict[str, Any], _: int) -> Answer:
    return Answer(completion(longer_wins(body), usage=(300, 20)), delay_s=0.01)


def ask_all(judge: Any) -> tuple[list[bool], dict[str, int], str]:
    """Every question at once, as a host does: which were answered, the counts, and why it stopped."""

    async def main() -> list[Any]:
        return await asyncio.gather(*(judge.judge([q]) for q in QUESTIONS), return_exceptions=True)

    with collect_counts() as counts:
        found = asyncio.run(main())
    stops = [error for error in found if isinstance(error, BaseException)]
    assert all(isinstance(error, StopJudging) for error in stops)
    answers = [answer for answer in found if not isinstance(answer, BaseException)]
    assert all(v.probability in (0.0, 1.0) for [verdicts] in answers for v in verdicts), "whole answers, or none"
    return [not isinstance(a, BaseException) for a in found], dict(counts), str(stops[0]) if stops else ""


@pytest.mark.parametrize(
    ("budget", "answered"),
    [
        ({"calls": 20}, 3),  # 6 for each question
        ({"calls": 17}, 2),
        # 320 tokens a call are used; before it is asked a call counts as all its bytes, some 1500, so that less than
        # one question's worst case is left when it stops.
        ({"tokens": 20_000}, None),
        ({"cost": 0.02}, None),
    ],
)
def test_a_budget_is_never_exceeded_and_ends_between_two_questions(
    budget: dict[str, float], answered: int | None
) -> None:
    with serve(honest) as server:
        config = section(server, endpoint={"prices": PRICES}, budget=budget)
        judge = build_llm(config, "judge")
        done, counts, message = ask_all(judge)
        num_calls = len(server.requests)
        with pytest.raises(StopJudging):
            asyncio.run(judge.judge([question("a", "b")]))
        assert len(server.requests) == num_calls, "once it has stopped nothing is asked, however little it would cost"
    assert num_calls == 6 * sum(done) == counts["num_judge_charged_calls"]
    assert 0 < sum(done) < len(QUESTIONS) and (answered is None or sum(done) == answered)
    spent = {"calls": num_calls, "tokens": num_calls * 320, "cost": num_calls * (300 + 200) / 1e6}
    ((name, limit),) = budget.items()
    assert spent[name] <= limit
    worst = {"calls": 6, "tokens": 6 * 2000, "cost": 6 * (2000 + 640) / 1e6}
    assert spent[name] + worst[name] > limit, "no more is left over than a question might take"
    assert f"judge.budget.{name} is {limit:g}, of which {spent[name]:g} are spent" in message


def test_what_was_spent_before_counts_and_a_larger_budget_goes_on() -> None:
    before = {"num_judge_charged_calls": 12, "num_judge_charged_calls[judges.x]": 40}
    hosting = Hosting(counted=before)
    with serve(honest) as server:
        done, _, _ = ask_all(build_llm(section(server, budget={"calls": 20}), "judge", hosting=hosting))
        assert sum(done) == 1
        done, _, message = ask_all(build_llm(section(server, budget={"calls": 50}), "judge.judges.x", hosting=hosting))
        assert sum(done) == 1
        assert "judge.judges.x.budget.calls is 50, of which 46 are spent" in message
        done, counts, message = ask_all(
            build_llm(section(server, budget={"calls": 90}), "judge.judges.x", hosting=hosting)
        )
    assert all(done) and not message
    assert counts["num_judge_charged_calls"] == counts["num_judge_charged_calls[judges.x]"] == 48


@pytest.mark.parametrize(
    ("failure", "times", "budget", "verdicts", "charged"),
    [
        (Answer(b"", 503), 2, 2, [(0, 1, 0.0), (1, 0, 1.0)], 2),
        (Answer(b"{}"), 1, 3, [(0, 1, 0.0), (1, 0, 1.0)], 3),
        (Answer(b"{}"), 1, 2, [(0, 1, "failed: the budget leaves nothing for another try"), (1, 0, 1.0)], 2),
    ],
)
def test_what_may_have_been_charged_is_charged_and_what_was_not_is_not(
    failure: Answer, times: int, budget: int, verdicts: list[Any], charged: int
) -> None:
    """A question of two calls: one of them fails a few times."""

    def handler(body: dict[str, Any], before: int) -> Answer:
        fails = before < times and material(body)["answer-A"] == "one"
        return failure if fails else Answer(completion(longer_wins(body)))

    with serve(handler) as server:
        judge = build_llm(section(server, budget={"calls": budget}, retries=3), "judge")
        [found], counts = ask(judge, question("one", "three"))
    assert brief(found) == verdicts
    assert counts["num_judge_charged_calls"] == charged


def test_usage_that_nobody_reports_counts_at_its_worst() -> None:
    with serve(lambda body, _: Answer(completion(longer_wins(body), usage=None))) as server:
        _, counts = ask(build_llm(section(server, both_orders=False), "judge"), question("one", "three"))
        body = server.requests[0]
    assert counts["num_judge_completion_tokens"] == 64
    num_bytes = sum(len(m["content"].encode()) for m in body["messages"])
    assert num_bytes < counts["num_judge_prompt_tokens"] < num_bytes + 100


# The key


def config_with(folder: Path, **endpoint: Any) -> Any:
    (folder / "prompts.jsonl").write_text('{"prompt": "x"}\n')
    endpoint = {"base_url": "http://127.0.0.1:1/v1", "model": "m", **endpoint}
    return load_config(
        {
            "model": {"path": "embedded:policy"},
            "prompts": {"source": str(folder / "prompts.jsonl")},
            "judge": {"type": "llm", "endpoint": endpoint},
        }
    )


@pytest.mark.parametrize(
    "endpoint",
    [
        {"api_key": KEY},
        {"api_key_env": KEY},
        {"api_key_env": "4f1c9a77deadbeef4f1c9a77deadbeef"},
        {"base_url": f"https://user:{KEY}@127.0.0.1/v1"},
        {"base_url": f"https://127.0.0.1/v1?key={KEY}"},
        {"base_url": KEY},
        {"headers": {"Authorization": f"Bearer {KEY}"}},
        {"api_key_env": "A_NAME", "api_key_file": "a_file", "extra_body": {"key": KEY}},
    ],
)
def test_a_key_in_the_config_is_refused_without_being_shown(endpoint: dict[str, Any], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        config_with(tmp_path, **endpoint)
    secret = next(v for v in (KEY, "4f1c9a77deadbeef") if v in str(endpoint))
    assert secret not in str(caught.value) and "judge.endpoint" in str(caught.value)


def test_only_the_request_holds_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, capfd: pytest.CaptureFixture[str]
) -> None:
    """A server that echoes the key in errors, replies and headers; everything that is written is searched."""
    monkeypatch.setenv("MY_KEY", KEY)
    (tmp_path / "key").write_text(f"{KEY}\n")
    caplog.set_level(logging.DEBUG)
    echo = f'{{"error": {{"message": "the key {KEY} is not good enough"}}}}'.encode()
    written = []
    for where in ({"api_key_env": "MY_KEY"}, {"api_key_file": str(tmp_path / "key")}):
        config = config_with(tmp_path, **where)
        written += [dump_config(config), repr(config), str(changes(config, config)), repr(config.judge)]
        answers = [Answer(echo, 400), Answer(echo, 401), Answer(echo, 500), Answer(completion(KEY), headers={"x": KEY})]
        for answer in answers:
            with serve(lambda body, _, answer=answer: answer) as server:
                judge = build_llm(section(server, endpoint=where), "judge")
                written += [repr(judge), repr(vars(judge)), repr(vars(judge._chat))]
                try:
                    [verdicts], counts = ask(judge, question("one", "three"))
                    written += [repr(verdicts), repr(counts)]
                    assert "[key]" in repr(verdicts) or answer.status == 200
                except StopJudging as error:
                    written += [str(error), "".join(traceback.format_exception(error))]
                    assert "[key]" in str(error)
                try:
                    again = build_llm(section(server, endpoint=where), "judge")
                    asyncio.run(try_judge(again, field="judge", chat=False))
                except JudgeError as error:
                    written += ["".join(traceback.format_exception(error)), repr(pickle.dumps(error))]
                assert server.headers[0]["authorization"] == f"Bearer {KEY}"
    out, err = capfd.readouterr()
    assert caplog.text and "api_key" in written[0]
    for text in (*written, out, err, caplog.text, *(str(vars(record)) for record in caplog.records)):
        assert KEY not in text
    with pytest.raises(TypeError, match="does not travel"):
        pickle.dumps(ApiKey(KEY))


def test_a_key_that_is_not_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def read(**where: Any) -> str:
        with pytest.raises(JudgeError) as caught:
            read_key(Endpoint(base_url="http://h/v1", model="m", **where), "judge.endpoint")
        return str(caught.value)

    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    assert "judge.endpoint.api_key_env is NO_SUCH_KEY, and there is no such variable" in read(api_key_env="NO_SUCH_KEY")
    assert "which cannot be read (FileNotFoundError)" in read(api_key_file=str(tmp_path / "none"))
    for bad in (
        b"",
        b"short",
        f"{KEY}\n{KEY}".encode(),
        f"Bearer {KEY}".encode(),
        b"\xff\xfe123456789",
        f"{KEY}\u00e9".encode(),
    ):
        (tmp_path / "key").write_bytes(bad)
        message = read(api_key_file=str(tmp_path / "key"))
        assert KEY not in message and ("is no key" in message or "cannot be read" in message)
    assert read_key(Endpoint(base_url="http://h/v1", model="m"), "judge.endpoint").headers == {}


def test_a_server_that_spells_its_key_with_escapes_is_seen_through() -> None:
    key = ApiKey('ab"cd\\efgh')
    assert key.hide(r'{"error": "ab\"cd\\efgh"}') == '{"error": "[key]"}'


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({}, "judge needs either an endpoint or an engine"),
        ({"weights": [1.0, 2.0]}, "weights has 2 numbers and there are 1 principles"),
        ({"aggregate": "min"}, "aggregate is min"),
        ({"aggregate": "majority", "form": "pointwise"}, "aggregate is majority"),
        ({"votes": 3}, "votes is 3 and temperature is 0"),
        ({"form": "pointwise", "both_orders": False}, "which has no orders"),
        ({"budget": {"cost": 1.0}}, "set endpoint.prices"),
        ({"engine": {"path": "x"}}, "either an endpoint or an engine"),
        ({"endpoint.extra_body": {"temperature": 1.0}}, "sets temperature"),
        ({"endpoint.base_url": "localhost:8000"}, "is no http:// or https:// address"),
        ({"principles": []}, "judge.principles"),
    ],
)
def test_fields_that_do_not_agree(fields: dict[str, Any], message: str, tmp_path: Path) -> None:
    config = {
        "model": {"path": "embedded:policy"},
        "prompts": {"source": "x.jsonl"},
        "judge": {"type": "llm", "endpoint": {"base_url": "http://h/v1", "model": "m"}} if fields else {"type": "llm"},
    }
    for name, value in fields.items():
        inner: Any = config["judge"]
        *sections, last = name.split(".")
        for part in sections:
            inner = inner[part]
        inner[last] = value
    with pytest.raises(ConfigError, match=message.replace("(", r"\(")):
        load_config(config)


def test_extra_fields_of_a_request_and_the_other_name_of_max_tokens() -> None:
    with serve(lambda body, _: Answer(completion(verdict(body, 3)))) as server:
        extra = {"max_completion_tokens": 900, "reasoning_effort": "low"}
        config = section(server, form="pointwise", endpoint={"extra_body": extra, "response_format": "json_object"})
        [verdicts], _ = ask(build_llm(config, "judge"), question("x"))
    assert verdicts[0].score == 3.0
    body = server.requests[0]
    assert "max_tokens" not in body and body["reasoning_effort"] == "low" and body["max_completion_tokens"] == 900
    assert body["response_format"] == {"type": "json_object"}
