"""Judges that hang, die, print, or take all memory: each costs its own question, and the rest is judged as before."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from judge_kit import ask, brief, caller_of, python, question

from judges.isolation import process
from judges.isolation.failures import Interrupted, ProcessEnded
from judges.isolation.memory import resident_bytes, total_bytes

SOURCE = r'''
import asyncio, itertools, os, re, signal, sys, time
HARMLESS = len
def pattern(p, c):
    """Holds the GIL: no thread of the same process, nor its signal handlers, would run again."""
    return float(bool(re.fullmatch(r"((?:\d+,?)+) dollars", "1" * 40))) if c == "bad" else len(c)
async def blocking_loop(p, c):
    while c == "bad": pass
    await asyncio.sleep(0.02)
    return len(c)
async def never_cancelled(p, c):
    while c == "bad":
        try: await asyncio.sleep(60)
        except asyncio.CancelledError: pass
    return len(c)
class endless:
    def score_batch(self, ps, cs):
        return (i for i in itertools.count() if i < 0) if "bad" in cs else [len(c) for c in cs]
def leaves(p, c):
    if c == "bad": os._exit(3)
    return len(c)
async def segfault(p, c):
    if c == "bad": os.kill(os.getpid(), signal.SIGSEGV)
    await asyncio.sleep(0.02)
    return len(c)
async def exits_in_a_task(p, c):
    async def inner(): sys.exit(4)
    if c == "bad": await asyncio.create_task(inner())
    return len(c)
class Textless(Exception):
    def __str__(self): raise KeyError("x")
def textless(p, c):
    if c == "bad": raise Textless
    return len(c)
def writes_everywhere(p, c):
    for fd in range(3, 1024):
        try:
            if c == "bad": os.write(fd, bytes([0, 0, 0, 0, 0, 0, 0, 3]) + b"x y")
        except OSError: pass
    return len(c)
def closes_everything(p, c):
    if c == "bad": os.closerange(3, 1024)
    return len(c)
def interrupt(p, c):
    if c == "bad": raise KeyboardInterrupt
    return len(c)
def memory(p, c):
    taken = []
    while c == "bad": taken.append(bytearray(b"x") * 20_000_000)
    return len(c)
def sends_itself_sigterm(p, c):
    if c == "bad": os.kill(os.getpid(), signal.SIGTERM); time.sleep(60)
    return len(c)
'''
SLOW = "TimeoutError: no answer within 0.4 s"
DIES = "ProcessEnded: its process "
CASES = {
    "pattern": SLOW,
    "blocking_loop": SLOW,
    "never_cancelled": SLOW,
    "endless": SLOW,
    "leaves": f"{DIES}ended with exit code 3",
    "segfault": f"{DIES}was killed by SIGSEGV",
    "exits_in_a_task": f"{DIES}ended with exit code 4",
    "writes_everywhere": f"{DIES}wrote into the connection",
    "closes_everything": "",
    "textless": "Textless: an error without a text: its str() raised KeyError",
    "interrupt": "RuntimeError: raised KeyboardInterrupt",
    "memory": f"{DIES}took ",
    "sends_itself_sigterm": f"{DIES}was killed by SIGTERM",
}


@pytest.fixture(autouse=True)
def short_grace(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(process, "GRACE_S", 0.2)


def test_a_judge_that_repeats_its_own_calls_may_not_hang_either(tmp_path: Path) -> None:
    source = """
from judges import Limits
class Own:
    limits = Limits(own_retries=True)
    async def judge(self, questions):
        while any("bad" in q.completions for q in questions): pass
        return [[q.compare(0, 1, "first") for _ in (1,)] for q in questions]
"""
    caller = caller_of(tmp_path, python("Own", retries=1, timeout_s=0.4), source)
    said, _ = ask(caller, question("a", "bb", name="0"), question("bad", "c", name="1"))
    assert "TimeoutError: no answer within 0.8 s" in str(brief(said[1])) and "TimeoutError" not in str(brief(said[0]))


@pytest.mark.parametrize("name", CASES)
def test_what_a_judge_does_costs_its_own_question_only(name: str, tmp_path: Path) -> None:
    """Four calls at a time where the code is asynchronous, so that others are under way when the process dies."""
    before = threading.active_count()
    limits = {"timeout_s": 30.0 if name == "memory" else 0.4, "memory_limit_gb": 0.3 if name == "memory" else 4}
    caller = caller_of(tmp_path, python(name, retries=0, concurrency=4, **limits), SOURCE)
    asked = [
        question("a", "bb", name="0"),
        question("bad", "c", name="1"),
        *(question("d", name=str(i)) for i in (2, 3)),
    ]
    started = time.monotonic()
    said, counts = ask(caller, *asked)
    assert time.monotonic() - started < 15
    assert [brief(said[i]) for i in (0, 2, 3)] == [[1.0, 2.0], [1.0], [1.0]]
    assert all(v.failed for v in said[1])
    assert all(str(v.reason).startswith(CASES[name]) for v in said[1]), said[1]
    assert (counts["num_judge_timeouts"] > 0) == (CASES[name] == SLOW) or not CASES[name]
    if name == "memory":
        assert "GB of memory and judge.memory_limit_gb is 0.3" in str(said[1][0].reason)
    assert brief(ask(caller, asked[0])[0][0]) == [1.0, 2.0], "the process was replaced"
    caller.judge.child.close()  # type: ignore[union-attr]
    wait_until(lambda: threading.active_count() <= before)


def test_a_call_that_the_process_never_read_is_not_blamed_for_its_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The guilty call blocks the event loop until the other one is sent, and then ends the process from a task."""
    source = """
import asyncio, sys, time
class Exits:
    async def call(self, is_bad):
        async def inner(): sys.exit(4)
        if is_bad:
            time.sleep(1)
            await asyncio.create_task(inner())
"""
    (tmp_path / "exits.py").write_text(source)
    monkeypatch.syspath_prepend(str(tmp_path))
    child = process.Child("exits:Exits", {}, start_timeout_s=30.0)

    async def both() -> list[Any]:
        await child.ready()
        guilty = asyncio.create_task(child.call("call", True, timeout_s=None))
        await asyncio.sleep(0.4)
        return await asyncio.gather(guilty, child.call("call", False, timeout_s=None), return_exceptions=True)

    assert [type(error) for error in asyncio.run(both())] == [Interrupted, Interrupted]
    with pytest.raises(ProcessEnded, match="ended with exit code 4"):  # asked alone
        asyncio.run(child.call("call", True, timeout_s=None))
    assert asyncio.run(child.call("call", False, timeout_s=None)) is None
    child.close()


def wait_until(true: Callable[[], bool], seconds: float = 10.0) -> None:
    deadline = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def test_state_lives_as_long_as_the_process_and_slow_calls_do_not_end_it(tmp_path: Path) -> None:
    source = """
import asyncio, os
class f:
    def __init__(self): self.calls = 0
    async def score(self, prompt, completion):
        self.calls += 1
        if completion == "slow": await asyncio.sleep(60)
        if completion == "die": os._exit(1)
        return self.calls
"""
    caller = caller_of(tmp_path, python("f", retries=0, timeout_s=0.3), source)
    first = caller.judge.child.pid  # type: ignore[union-attr]
    said = [brief(ask(caller, question(text))[0][0])[0] for text in ("a", "slow", "b")]
    assert said == [1.0, "failed: TimeoutError: no answer within 0.3 s", 3.0]
    assert caller.judge.child.pid == first, "code that can be cancelled is not killed"  # type: ignore[union-attr]
    ask(caller, question("die"))
    assert brief(ask(caller, question("c"))[0][0]) == [1.0], "constructed anew"
    wait_until(lambda: not Path(f"/proc/{first}").exists())


def test_what_it_prints_is_no_part_of_our_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    source = """
import os, subprocess, sys
print("on import")
def f(p, c):
    print("in a call", flush=True); os.write(1, b"past Python\\n"); subprocess.run(["echo", "from a program"])
    return sys.stdin.read() == "" and 1.0
"""
    assert brief(ask(caller_of(tmp_path, python("f"), source), question("a"))[0][0]) == [1.0]
    out, err = capfd.readouterr()
    assert out == ""
    assert set(err.splitlines()) >= {"on import", "in a call", "past Python", "from a program"}


@pytest.mark.parametrize("signum", [signal.SIGTERM, signal.SIGKILL])
def test_nothing_is_left_when_its_host_is_killed(signum: int, tmp_path: Path) -> None:
    """The host is killed while its judge holds the GIL for ever, and reacts at once."""
    (tmp_path / "host.py").write_text(f"""
import asyncio, sys
from pathlib import Path
sys.path[:0] = {[str(Path(__file__).parents[1] / "kits")]!r}
from judge_kit import ask, caller_of, python, question
caller = caller_of(Path({str(tmp_path)!r}), python("pattern"), {SOURCE!r})
print(caller.judge.child.pid, flush=True)
ask(caller, question("bad"))
""")
    host = subprocess.Popen([sys.executable, tmp_path / "host.py"], stdout=subprocess.PIPE, text=True)
    assert host.stdout is not None
    child = int(host.stdout.readline())
    time.sleep(0.3)
    assert Path(f"/proc/{child}").exists()
    os.kill(host.pid, signum)
    assert host.wait(5) == -signum
    host.stdout.close()
    wait_until(lambda: not Path(f"/proc/{child}").exists())


def test_code_that_does_not_start_is_one_sentence(tmp_path: Path) -> None:
    from online_dpo.errors import JudgeError

    for source, message in [
        (
            "def f(p, c): return 1\nimport os\nos._exit(5)",
            "does not start: ProcessEnded: its process ended",
        ),
        ("class f:\n  def __init__(self): raise KeyboardInterrupt", "does not start: RuntimeError: raised KeyboardInt"),
    ]:
        with pytest.raises(JudgeError) as caught:
            caller_of(tmp_path, python("f"), source)
        assert str(caught.value).startswith(f"judge.target mine.py:f {message}")
        assert "\n" not in str(caught.value)


def test_memory_is_that_of_the_machine_and_of_the_process() -> None:
    assert 1e8 < resident_bytes(os.getpid()) + 9e7 < total_bytes() < 1e14
    assert resident_bytes(2**22 + 1) == 0
