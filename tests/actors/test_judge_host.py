"""The host: positions, batches, concurrency, retries, timeouts, and that no failure ever becomes a label."""

from __future__ import annotations

import asyncio
import pickle
import re
from collections.abc import Awaitable, Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
from config_kit import BASE
from verdict_kit import answers, brief, shard_of

from actors.judge_host import JudgeHost
from judges.registry import make_spec
from judges.reward import reward_model
from judges.reward.classifier import Classifier
from judges.spec import JudgeSpec
from online_dpo.config.judges.hosted import PythonJudge
from online_dpo.config.loading import load_config
from online_dpo.config.pairing import PairingSection
from online_dpo.errors import JudgeError
from online_dpo.pairing.pairs import build_pairs
from online_dpo.types import Completion, Judged, Shard


def host_of(
    source: str, *, name: str = "f", sleep: Callable[[float], Awaitable[None]] | None = None, **hosting: Any
) -> JudgeHost:
    section = PythonJudge(type="python", target=f"mine.py:{name}", **hosting)
    slept: list[float] = []

    async def no_sleep(seconds: float) -> None:
        slept.append(seconds)

    host = JudgeHost(JudgeSpec(section=section, field="judge", source=source), sleep=sleep or no_sleep)
    host.slept = slept  # type: ignore[attr-defined]
    return host


def judge(host: JudgeHost, shard: Shard, completions: list[Completion]) -> Judged:
    return asyncio.run(host.judge_shard(shard, completions))


def counters(judged: Judged, *, calls: int, retries: int = 0, timeouts: int = 0, failures: int = 0) -> None:
    assert judged.counters == {
        "num_judge_calls": calls,
        "num_judge_retries": retries,
        "num_judge_timeouts": timeouts,
        "num_judge_failures": failures,
    }


def test_positions_become_sample_indices_in_prompt_order() -> None:
    """Samples 2 and 5 of one prompt and 1 and 4 of the other, given out of order, one text occurring twice."""
    source = """
class f:
    def compare(self, prompt, a, b):
        return {"ab": 0.9, "cc": 0.5}[a + b]
"""
    given = [*answers("q", "c", "c", first=1), *answers("p", "b", first=5), *answers("p", "a", first=2)]
    given[1] = Completion(**{**{f: getattr(given[1], f) for f in given[1].__slots__}, "sample_index": 4})
    judged = judge(host_of(source), shard_of("p", "empty", "q"), given)
    assert brief(judged.verdicts) == [("p", 2, 5, 0.9), ("q", 1, 4, 0.5)]
    counters(judged, calls=2)


def test_models_of_a_judge_sleep_until_they_are_asked(tmp_path: Path) -> None:
    """A model that is inside another judge too; whoever is not told to take turns keeps its memory."""
    told: list[str] = []

    class Told(Classifier):
        def sleep(self) -> None:
            told.append("sleep")
            super().sleep()

        def wake(self) -> None:
            told.append("wake")
            super().wake()

        def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
            told.append("asked")
            return super().logits(rows)

    judge = {"type": "length_penalty", "judge": {"type": "reward_model", "path": "embedded:reward"}, "rate": 0.1}
    spec = make_spec(load_config({**BASE, "judge": judge}).judge, field="judge", base_dir=tmp_path)
    given = answers("p", "good", "bad")

    async def play(host: JudgeHost) -> list[Judged]:
        await host.try_it(chat=False)
        told.clear()
        await host.sleep()
        await host.sleep()
        first = await host.judge_shard(shard_of("p"), given)
        return [first, await host.judge_shard(shard_of("p"), given)]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(reward_model, "Classifier", Told)
        in_turns = asyncio.run(play(JudgeHost(spec, sleeps=True)))
        assert told == ["sleep", "sleep", "wake", "asked", "asked"]
        alone = asyncio.run(play(JudgeHost(spec)))
        assert told == ["asked", "asked"]
    assert [j.verdicts for j in in_turns] == [j.verdicts for j in alone]


def test_batches_of_the_configured_size_and_bounded_concurrency() -> None:
    source = """
import asyncio
from judges import count
running, peak = 0, 0
class f:
    async def judge(self, questions):
        global running, peak
        running += 1
        peak = max(peak, running)
        await asyncio.sleep(0.01)
        running -= 1
        count("num_seen", len(questions))
        count("num_peak_" + str(peak))
        count("batch " + " ".join(q.prompt_id for q in questions))
        return [[q.score(i, int(q.prompt_id)) for i, _ in enumerate(q.completions)] for q in questions]
"""
    host = host_of(source, batch_size=2, concurrency=3)
    names = [str(i) for i in range(13)]

    async def main() -> list[Judged]:
        # Two shards at once share the bound, and each counts its own.
        first, second = names[:9], names[9:]
        return await asyncio.gather(
            host.judge_shard(shard_of(*first), [c for n in first for c in answers(n, "x", "y")]),
            host.judge_shard(shard_of(*second), [c for n in second for c in answers(n, "x", "y")]),
        )

    nine, four = asyncio.run(main())
    assert brief(nine.verdicts) == [(n, i, None, float(n)) for n in names[:9] for i in range(2)]
    assert (nine.counters["num_seen"], four.counters["num_seen"]) == (9, 4)
    assert (nine.counters["num_judge_calls"], four.counters["num_judge_calls"]) == (5, 2)
    said = {**nine.counters, **four.counters}
    assert max(name for name in said if name.startswith("num_peak_")) == "num_peak_3"
    batches = sorted(name for name in said if name.startswith("batch "))
    assert batches == [f"batch {b}" for b in ("0 1", "11 12", "2 3", "4 5", "6 7", "8", "9 10")], "none crosses shards"


@pytest.mark.parametrize(("kind", "peak"), [("def", 1), ("async def", 4)])
def test_blocking_code_is_never_called_twice_at_once(kind: str, peak: int) -> None:
    wait = "time.sleep(0.005)" if kind == "def" else "await asyncio.sleep(0.005)"
    source = f"""
import asyncio, time
running, peak = 0, 0
{kind} f(prompt, completion):
    global running, peak
    running += 1
    peak = max(peak, running)
    {wait}
    running -= 1
    return peak
"""
    host = host_of(source, concurrency=4)
    names = [str(i) for i in range(8)]
    judged = judge(host, shard_of(*names), [c for n in names for c in answers(n, "x")])
    assert max(v.score for v in judged.verdicts) == peak  # type: ignore[type-var]
    counters(judged, calls=8)


def test_a_passing_fault_is_retried_and_leaves_no_trace() -> None:
    source = """
from judges import count
calls = 0
class f:
    async def judge(self, questions):
        global calls
        calls += 1
        count("num_tries")
        if calls < 3:
            raise ConnectionError("busy")
        return [[q.score(i, len(c)) for i, c in enumerate(q.completions)] for q in questions]
"""
    host = host_of(source, retries=2)
    judged = judge(host, shard_of("p"), answers("p", "a", "bb"))
    assert brief(judged.verdicts) == [("p", 0, None, 1.0), ("p", 1, None, 2.0)]
    assert judged.counters == {
        "num_judge_calls": 3,
        "num_judge_retries": 2,
        "num_judge_timeouts": 0,
        "num_judge_failures": 0,
        "num_tries": 1,  # what the failed calls counted went with them
    }
    assert host.slept == [0.5, 1.0]  # type: ignore[attr-defined]


def test_one_poisonous_question_does_not_take_its_batch_along() -> None:
    source = """
class f:
    def score_batch(self, prompts, completions):
        if "poison" in completions:
            raise ValueError("cannot\\n read this")
        return [len(c) for c in completions]
"""
    given = [*answers("p", "a", "bb"), *answers("q", "ok", "poison"), *answers("r", "ccc", "d")]
    judged = judge(host_of(source, retries=1), shard_of("p", "q", "r"), given)
    failed = "failed: ValueError: cannot read this"
    assert brief(judged.verdicts) == [
        ("p", 0, None, 1.0),
        ("p", 1, None, 2.0),
        ("q", 0, None, failed),
        ("q", 1, None, failed),
        ("r", 0, None, 3.0),
        ("r", 1, None, 1.0),
    ]
    counters(judged, calls=2 + 3, retries=1, failures=1)


BROKEN = {
    "None": ("def f(p, c): return None if c == 'bad' else 1.0", "failed: JudgeError: returned None for completion 1"),
    "nan": ("def f(p, c): return float('nan') if c == 'bad' else 1.0", "failed: JudgeError: returned nan"),
    "text": ("def f(p, c): return '7' if c == 'bad' else 1.0", "failed: JudgeError: returned '7'"),
    "incomplete": (
        "class f:\n  async def judge(self, qs):\n"
        "    return [[q.score(i, 1.0) for i, c in enumerate(q.completions) if c != 'bad'] for q in qs]",
        "failed: JudgeError: returned no verdict on completion 1",
    ),
    "too few": (
        "class f:\n  def score_batch(self, ps, cs): return [1.0 for c in cs if c != 'bad']",
        "failed: JudgeError: returned 1 scores for 2 completions",
    ),
    "crossed": (
        "class f:\n  async def judge(self, qs):\n"
        "    return [[qs[0].score(i, 1.0) for i, c in enumerate(q.completions)] for q in qs] if len(qs) > 1 or"
        " qs[0].prompt_id == 'p' else []",
        "failed: JudgeError: returned 0 lists",
    ),
    "cancelled": (
        "import asyncio\nasync def f(p, c):\n  if c == 'bad': raise asyncio.CancelledError\n  return 1.0",
        "failed: RuntimeError: cancelled its own call",
    ),
    "exit": (
        "import sys\nasync def f(p, c):\n  if c == 'bad': sys.exit(1)\n  return 1.0",
        "failed: RuntimeError: called sys.exit(1)",
    ),
}


@pytest.mark.parametrize("case", BROKEN)
def test_a_broken_contract_fails_its_question_only_and_is_never_a_label(case: str) -> None:
    source, reason = BROKEN[case]
    given = [*answers("p", "a", "b"), *answers("q", "good", "bad")]
    shard = shard_of("p", "q")
    judged = judge(host_of(source, retries=3), shard, given)
    assert brief(judged.verdicts)[:2] == [("p", 0, None, 1.0), ("p", 1, None, 1.0)]
    assert [(v.first, v.score, v.probability) for v in judged.verdicts[2:]] == [(0, None, None), (1, None, None)]
    assert all(str(v.explanation).startswith(reason) for v in judged.verdicts[2:])
    assert judged.counters["num_judge_failures"] == 1
    if "JudgeError" in reason:
        assert judged.counters["num_judge_retries"] == 0, "asking again does not repair a broken contract"
    result = build_pairs(
        shard.prompts,
        given,
        judged.verdicts,
        rules=PairingSection(strategy="all_pairs"),
        truncated="keep",
        truncated_penalty=None,
        seed=0,
        round_index=0,
    )
    assert result.pairs == ()
    assert {k: v for k, v in result.outcomes.items() if v} == {"tie": 1, "judge_failed": 1}


@pytest.mark.parametrize("kind", ["def", "async def"])
def test_what_takes_too_long_fails_and_the_rest_goes_on(kind: str) -> None:
    wait = "time.sleep(30)" if kind == "def" else "await asyncio.sleep(30)"
    source = f"import asyncio, time\n{kind} f(p, c):\n  if c == 'slow': {wait}\n  return len(c)\n"
    given = [*answers("p", "a", "slow"), *answers("q", "bb", "ccc")]
    judged = judge(host_of(source, timeout_s=0.5, retries=1), shard_of("p", "q"), given)
    failed = "failed: TimeoutError: no answer within 0.5 s"
    assert brief(judged.verdicts) == [
        ("p", 0, None, failed),
        ("p", 1, None, failed),
        ("q", 0, None, 2.0),
        ("q", 1, None, 3.0),
    ]
    counters(judged, calls=3, retries=1, timeouts=2, failures=1)


def test_cancelling_the_host_is_no_failure_of_the_judge() -> None:
    source = """
import asyncio
class f:
    calls = 0
    async def judge(self, questions):
        self.calls += 1
        await asyncio.sleep(60 if self.calls == 1 else 0)
        return [[q.score(i, self.calls) for i, _ in enumerate(q.completions)] for q in questions]
"""
    host = host_of(source)

    async def main() -> None:
        host._ready()
        task = asyncio.create_task(host.judge_shard(shard_of("p"), answers("p", "a", "b")))
        await asyncio.sleep(0.2)
        task.cancel()
        await task

    with pytest.raises(asyncio.CancelledError):
        asyncio.run(main())
    after = judge(host, shard_of("p"), answers("p", "a", "b"))
    assert [v.score for v in after.verdicts] == [2.0, 2.0], "the process lives, and was asked once before"
    counters(after, calls=1)


def test_long_reasons_are_short_and_strangers_are_refused() -> None:
    judged = judge(host_of("def f(p, c): raise OSError('x' * 999)", retries=0), shard_of("p"), answers("p", "a"))
    assert re.fullmatch(r"failed: OSError: x{197}\.\.\.", str(judged.verdicts[0].explanation))
    with pytest.raises(ValueError, match="shard 3 has no prompt q"):
        judge(host_of("def f(p, c): return 1"), shard_of("p"), answers("q", "a"))


def test_try_it_builds_late_and_reports_what_is_wrong(tmp_path: Path) -> None:
    host = host_of("def f(p, c): return None")  # building happens where the error can be reported
    with pytest.raises(JudgeError, match=r"^judge\.target mine\.py:f was tried on two canned completions and returned"):
        asyncio.run(host.try_it(chat=False))
    with pytest.raises(JudgeError, match="nothing named f"):
        asyncio.run(host_of("x = 1").try_it(chat=False))
    slow = host_of("import asyncio\nasync def f(p, c): await asyncio.sleep(60)", timeout_s=0.1)
    with pytest.raises(JudgeError, match=r"did not return within 0\.1 s") as caught:
        asyncio.run(slow.try_it(chat=True))
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)
    asyncio.run(host_of("def f(p, c, metadata): return metadata['k']").try_it(chat=True, metadata={"k": 1}))


def test_threads_reach_the_thread_that_computes() -> None:
    import torch

    before = torch.get_num_threads()
    source = "import torch\ndef f(p, c): return torch.get_num_threads()"
    section = PythonJudge(type="python", target="mine.py:f")
    try:
        host = JudgeHost(JudgeSpec(section=section, field="judge", source=source), threads=before + 1)
        assert judge(host, shard_of("p"), answers("p", "a")).verdicts[0].score == before + 1
    finally:
        torch.set_num_threads(before)
