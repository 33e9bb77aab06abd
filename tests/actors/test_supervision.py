"""Actors that die, hang or fail, in real processes: each is replaced, its work is done again, and nothing waits."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from typing import Any

import pytest
import ray

from actors.failures import Incident, cause_of
from actors.heartbeat import Progress, Watch, beat, here
from actors.supervision import ActorLost, RayTask, Supervised, first_done
from online_dpo.errors import ActorError, ModelError, TrainingError


class Worker:
    """Does as it is told; `life` is the number of its process among those of one test, from 1."""

    def __init__(self, life: int, dies_at_start: bool = False, error: str = "") -> None:
        if error:
            raise ModelError(error)
        if dies_at_start:
            os._exit(1)
        self.life, self.progress, self.is_second = life, Progress(), False
        beat(self.progress.count)

    def ready(self) -> tuple[int, str]:
        return here()

    def which(self) -> tuple[int, int]:
        return self.life, os.getpid()

    def take_part(self, method: str, *args: Any) -> None:
        self.is_second = True
        getattr(self, method)(*args)

    def do(self, what: str, lives: int) -> int:
        """Misbehave in the first `lives` processes."""
        if self.life <= lives:
            match what:
                case "exit":
                    os._exit(1)
                case "stop":
                    os.kill(os.getpid(), signal.SIGSTOP)
                case "hang":
                    time.sleep(1000)
                case "raise":
                    raise RuntimeError("a bug in native code")
                case "slow":
                    for _ in range(8):
                        time.sleep(0.5)
                        self.progress.add()
                case "second exits":
                    if self.is_second:
                        os._exit(1)
                    time.sleep(1000)
                case "second stops":
                    if self.is_second:
                        os.kill(os.getpid(), signal.SIGSTOP)
                    time.sleep(1000)
                case "second has little to do":
                    if not self.is_second:
                        return self.do("slow", lives)
                    time.sleep(4.0)
                case "ours":
                    raise TrainingError("the loss is not finite")
        return self.life


@pytest.fixture
def incidents() -> list[Incident]:
    return []


@pytest.fixture
def make(ray_local: None, incidents: list[Incident]) -> Any:
    """Makes a supervised worker; all end with the test."""
    made: list[Supervised] = []

    def of(*, dying_starts: tuple[int, ...] = (), num_workers: int = 1, **options: Any) -> Supervised:
        lives: list[int] = []

        def actor() -> Any:
            lives.append(len(lives) + 1)
            remote: Any = ray.remote(Worker).options(num_cpus=0)
            found = [remote.remote(lives[-1], dies_at_start=lives[-1] in dying_starts) for _ in range(num_workers)]
            return found if num_workers > 1 else found[0]

        options = {"max_restarts": 3, "stall_timeout_s": 300.0, **options}
        host = Supervised(
            "worker 0", actor, start_timeout_s=120.0, less_memory="worker.size", report=incidents.append, **options
        )
        host.wait_ready()
        made.append(host)
        return host

    yield of
    for host in made:
        host.kill()


def test_a_lost_actor_is_replaced_in_every_state(make: Any, incidents: list[Incident]) -> None:
    """Idle, in a call, raising, and lost again in the same call by its successor."""
    up_to_date: list[int] = []
    host = make(max_restarts=9, after_restart=lambda host: up_to_date.append(host.call("which")[0]))
    _, pid = host.call("which")
    os.kill(pid, signal.SIGKILL)
    time.sleep(0.5)
    assert host.call_until_done("do", "", 0) == 2  # was idle
    assert host.call_until_done("do", "exit", 3) == 4  # dies twice
    assert host.call_until_done("do", "raise", 4) == 5
    assert up_to_date == [2, 3, 4, 5]
    assert [(i.actor, i.what) for i in incidents] == [("worker 0", "was lost")] * 4
    assert "its process ended without a word" in incidents[1].cause and "actor_id" in incidents[1].detail
    assert incidents[3].cause == "RuntimeError: a bug in native code" and "line" in incidents[3].detail
    assert "it is started again (4 of 9 within an hour)" in incidents[3].sentence
    with pytest.raises(TrainingError, match="the loss is not finite"):  # our own errors are no reason to start again
        host.call_until_done("do", "ours", 99)


def test_a_successor_that_dies_while_it_starts_is_replaced_too(make: Any, incidents: list[Incident]) -> None:
    host = make(dying_starts=(2, 3))
    assert host.call_until_done("do", "exit", 1) == 4
    assert [i.doing for i in incidents] == ["in its call do", "starting", "starting"]


def test_what_the_constructor_raises_on_purpose_is_raised(ray_local: None) -> None:
    """Would catch a user's mistake that is taken for a lost actor: another exit code, and restarts that cannot help."""
    remote: Any = ray.remote(Worker)
    host = Supervised(
        "worker 0",
        lambda: remote.options(num_cpus=0).remote(1, error="model.path is empty"),
        start_timeout_s=120.0,
        stall_timeout_s=300.0,
        max_restarts=3,
        less_memory="",
    )
    with pytest.raises(ModelError, match=r"^model\.path is empty$"):
        host.wait_ready()


def test_restarts_are_counted_within_an_hour(make: Any) -> None:
    now = [0.0]
    host = make(max_restarts=2, clock=lambda: now[0])
    assert host.call_until_done("do", "exit", 2) == 3
    now[0] = 3601.0
    assert host.call_until_done("do", "exit", 3) == 4
    with pytest.raises(ActorError, match=r"started again 2 times within the last hour, and cluster.max_restarts is 2"):
        host.call_until_done("do", "exit", 99)


@pytest.mark.parametrize("what", ["stop", "hang"])
def test_whoever_does_not_answer_is_named_and_then_replaced(what: str, make: Any, incidents: list[Incident]) -> None:
    host = make(stall_timeout_s=1.5)
    _, pid = host.call("which")
    assert host.call_until_done("do", what, 1) == 2
    assert [i.what for i in incidents] == ["is silent", "was lost"]
    assert "while in its call do: it has made no progress since" in incidents[0].sentence
    assert "it has not answered since" in incidents[1].cause
    with pytest.raises(ProcessLookupError):  # a stopped process would keep its memory
        for _ in range(100):
            os.kill(pid, 0)
            time.sleep(0.1)


def test_workers_that_wait_for_each_other_are_lost_together(make: Any, incidents: list[Incident]) -> None:
    """Would catch a wait for the living, and a rank that is taken for hung because it has little to do."""
    host = make(num_workers=2, stall_timeout_s=1.5)
    pids = [pid for pid, _ in host._processes]
    assert host.call_until_done("do", "second exits", 1) == 2
    assert incidents[0].cause.startswith("rank 1 of 2: its process ended without a word")
    assert host.call_until_done("do", "second has little to do", 2) == 2  # longer than is too long
    assert len(incidents) == 1
    assert host.call_until_done("do", "second stops", 2) == 3
    assert [i.what for i in incidents[1:]] == ["is silent", "was lost"]
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_slow_actor_that_makes_progress_is_left_alone(make: Any, incidents: list[Incident]) -> None:
    host = make(stall_timeout_s=1.5)
    assert host.call_until_done("do", "slow", 1) == 1  # four seconds, more than twice as long as is too long
    assert incidents == []


def test_tasks_of_a_lost_actor_begin_again_and_others_do_not(make: Any, incidents: list[Incident]) -> None:
    bad, good = make(), make()

    def task(host: Supervised, what: str, lives: int, *, is_repeatable: bool = True) -> RayTask:
        return RayTask(host=host, method="do", args=(what, lives), is_repeatable=is_repeatable).begin()

    tasks = [task(bad, "exit", 1), task(bad, "", 0), task(good, "", 0)]
    found = {}
    while tasks:
        done, result = first_done(tasks)
        tasks.remove(done)
        found[done.host, done.args] = result
    assert found == {(bad, ("exit", 1)): 2, (bad, ("", 0)): 2, (good, ("", 0)): 1}
    assert len(incidents) == 1  # two tasks were lost, and one actor
    stale = task(bad, "hang", 2)
    bad.restart(ActorLost(bad, "do", "for this test", ""))
    assert first_done([stale]) == (stale, 3) and len(incidents) == 2  # its own actor was replaced already
    with pytest.raises(ActorLost):
        first_done([task(good, "exit", 1, is_repeatable=False)])
    assert len(incidents) == 2


def test_a_silence_is_measured_against_those_that_ended() -> None:
    now = [0.0]

    class Scripted(Watch):
        value: bytes | None = b"0"

        def read(self) -> bytes | None:
            return self.value

    class Handle:
        class _actor_id:
            @staticmethod
            def hex() -> str:
                return "ff"

    watch = Scripted(Handle, floor_s=10.0, clock=lambda: now[0])

    def at(when: float, value: bytes) -> float:
        now[0], watch.value = when, value
        return watch.silence()

    assert at(1.0, b"0") == 0.0 and at(9.0, b"0") == 8.0 and watch.deadline_s == 10.0
    assert at(41.0, b"1") == 0.0 and watch.deadline_s == 200.0  # forty seconds ended by themselves
    assert at(141.0, b"1") == 100.0
    watch.begin()
    assert at(142.0, b"1") == 1.0


def test_causes_are_sentences() -> None:
    memory = ray.exceptions.OutOfMemoryError(
        "1 worker(s) were killed due to the node running low on memory. Memory on the node (IP: 10.0.0.1, ID: ab) was "
        "28.51GB used / 30.00GB limit (0.950333)\nOOM kill reason: ... " + "Considered workers: [...] " * 30
    )
    assert cause_of(memory, "learner.micro_batch_tokens") == (
        "its node ran out of memory (28.51GB of 30.00GB were used); lower learner.micro_batch_tokens"
    )
    assert cause_of(ray.exceptions.NodeDiedError("x"), "") == "its node died"
    assert "raylet" in cause_of(ray.exceptions.LocalRayletDiedError(), "")
    assert len(cause_of(ray.exceptions.RaySystemError("word " * 1000), "")) < 400


LOSES_RAY = """
import os, sys, time, psutil, ray
from actors.heartbeat import here
from actors.session import ray_session
from actors.supervision import Supervised
from online_dpo.config.run import ClusterSection
from online_dpo.errors import ActorError

class Sleeper:
    def ready(self):
        return here()
    def sleep(self):
        time.sleep(1000)

try:
    with ray_session(ClusterSection(num_cpus=2), num_cpus_needed=1):
        make = lambda: ray.remote(Sleeper).remote()
        host = Supervised("s", make, start_timeout_s=60, stall_timeout_s=300, max_restarts=3, less_memory="")
        host.wait_ready()
        [part] = [p for p in psutil.Process().children(True) if p.cmdline()[:1] and sys.argv[1] in p.cmdline()[0]]
        os.kill(part.pid, 9)
        host.call_until_done("sleep")
except ActorError as error:
    print(f"error: {error}")
"""


@pytest.mark.parametrize("part", ["raylet", "gcs_server"])
def test_a_run_that_loses_its_local_ray_says_so_and_ends(part: str) -> None:
    """Ray itself waits for a minute, and then ends the process in its own words or crashes it."""
    done = subprocess.run([sys.executable, "-c", LOSES_RAY, part], capture_output=True, text=True, timeout=55)
    assert f"error: the local Ray lost its {part} (killed from outside" in done.stdout, done
    assert done.returncode == 1 and done.stderr == ""
