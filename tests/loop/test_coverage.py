"""A round whose judge labels too little fails loudly, keeps all that was said, and is asked for the rest alone."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Callable, Collection, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from crashing_disk import EVERY, instants
from hosted_kit import HostedStages
from judge_servers import Answer, completion, longer_wins, material, serve
from kill_kit import Camera, restore
from loop_kit import FakeStages
from loop_runs import Run, comparable, tree

from online_dpo.errors import LowCoverageError
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import counted_so_far
from online_dpo.types import REWARD, Completion, Judged, Prompt, Verdict


class Failing(FakeStages):
    """Its training judge fails on some prompts and is silent about others; it counts what it answers."""

    def __init__(self, *args: Any, down: Collection[str] = (), mute: Collection[str] = (), **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        self.down, self.mute = down, mute
        self.asked: Counter[str] = Counter()

    def _judged(self, judge: str, completions: Sequence[Completion]) -> Judged:
        judged = super()._judged(judge, completions)
        if judge != REWARD:
            return judged
        self.asked.update({c.prompt_id for c in completions})
        verdicts = [self._spoil(verdict) for verdict in judged.verdicts]
        answered = {v.prompt_id for v in verdicts if not v.failed}
        return Judged(verdicts=tuple(verdicts), counters={"num_answered": len(answered)})

    def _spoil(self, verdict: Verdict) -> Verdict:
        if verdict.prompt_id not in {*self.down, *self.mute}:
            return verdict
        silent = Verdict(prompt_id=verdict.prompt_id, first=verdict.first, reason="I would rather not")
        if verdict.prompt_id in self.down:
            return replace(silent, reason="OSError: down", abstention="failed")
        return silent


def drawn(run: Run, index: int) -> list[str]:
    with RunStore.read(run.path) as store:
        return [prompt.prompt_id for prompt in store.round(index).get_records("prompts", Prompt)]


@pytest.fixture
def whole(tmp_path: Path) -> Run:
    """8 prompts a round in 3 shards, of which at least 6 must be labelled; one is not, on purpose."""
    run = Run.of(
        tmp_path, "whole", prompts__per_round=8, generator__shard_prompts=3, verdicts={"min_coverage": 0.75},
        evaluation={}, run__rounds=1,
    )  # fmt: skip
    run.go_on()
    mute = drawn(run, 0)[7]
    shutil.rmtree(run.path)
    run.go_on(Failing(run.config, mute=[mute]))
    return run


def fail(run: Run, stages: FakeStages) -> str:
    with pytest.raises(LowCoverageError) as error:
        run.go_on(stages)
    return str(error.value)


def test_the_round_fails_and_its_continuation_equals_a_run_that_never_failed(whole: Run, tmp_path: Path) -> None:
    """Would catch a round that is trained on the rest in silence, verdicts that are lost with those that failed, ones
    that are asked for again, silence on purpose that is, and a failure that comes back from its own commits."""
    names = drawn(whole, 0)
    down, mute = [names[0], names[4]], [names[7]]
    run = whole.at(tmp_path / "run")
    stages = Failing(run.config, down=down, mute=mute)
    message = fail(run, stages)
    assert message.startswith(
        "round 1: the judge has an opinion on 5 of 8 prompts, and verdicts.min_coverage is 0.75 (abstentions: "
        "6 x failed: OSError: down, 3 x I would rather not); what was said is committed: fix the judge, then resume: "
        "the 2 prompts"
    )
    again = Failing(run.config, down=down[1:], mute=mute)
    run.go_on(again)  # 6 of 8 are enough
    assert stages.asked == Counter(names) and again.asked == Counter(down)
    with RunStore.read(run.path) as store:
        assert counted_so_far(store, [REWARD], ["heldout"]) == {REWARD: {"num_answered": 7}}
    third = whole.at(tmp_path / "third")
    fail(third, Failing(run.config, down=names, mute=mute))
    fail(third, Failing(run.config, down=down, mute=mute))
    last = Failing(run.config, mute=mute)
    third.go_on(last)
    assert last.asked == Counter(down)
    assert comparable(third.path) == comparable(whole.path)


def test_where_nothing_failed_asking_again_is_no_remedy(whole: Run, tmp_path: Path) -> None:
    """The bound may be lowered, and then nothing is asked at all."""
    mute = drawn(whole, 0)[:3]
    run = whole.at(tmp_path / "run")
    message = fail(run, Failing(run.config, mute=mute))
    assert "no call failed, so asking again would change nothing: resume with a lower verdicts.min_coverage" in message
    assert fail(run, stages := Failing(run.config)) == message and not stages.asked
    lower = run.config.model_copy(update={"verdicts": run.config.verdicts.model_copy(update={"min_coverage": 0.5})})
    Run(lower, run.path).go_on(stages := Failing(lower))
    assert not stages.asked


def test_labelled_prompts_with_a_failed_call_are_left_alone(whole: Run, tmp_path: Path) -> None:
    """Two of three completions of each prompt are judged: that is a label, and half a question is not asked again."""

    class Half(Failing):
        def _spoil(self, verdict: Verdict) -> Verdict:
            return super()._spoil(verdict) if verdict.first == 2 or verdict.prompt_id in self.mute else verdict

    names = drawn(whole, 0)
    run = whole.at(tmp_path / "run")
    run.go_on(Half(run.config, down=names))
    other = whole.at(tmp_path / "other")
    assert "no call failed" in fail(other, Half(run.config, down=names[:4], mute=names[4:]))


@EVERY
def test_a_kill_at_any_change_of_the_disk_loses_and_repeats_nothing(whole: Run, every: bool, tmp_path: Path) -> None:
    """Of the process that fails and of the one that goes on. Would catch a shard of which neither whole nor part is
    left, what was paid for counted twice or never, and leftovers."""
    names = drawn(whole, 0)
    down, mute = [names[0], names[1], names[4]], [names[7]]
    run, expected = whole.at(tmp_path / "run"), comparable(whole.path)
    with Camera(run.path) as camera:
        fail(run, Failing(run.config, down=down, mute=mute))
        num_failing = len(camera.pictures)
        run.go_on(Failing(run.config, mute=mute))
    assert comparable(run.path) == expected
    failed = [i for i, picture in enumerate(camera.pictures) if any("not-covered.sha256" in name for name in picture)]
    assert failed and num_failing <= failed[0] < failed[-1]
    # The process that goes on makes changes of the same kinds as the one that fails, and both are killed.
    kinds = [(number < failed[0], kind) for number, kind in enumerate(camera.picture_kinds)]
    for number in instants(kinds, every=every):
        killed = whole.at(tmp_path / "killed")
        restore(killed.path, {**camera.pictures[number], "lock": b""})
        when = f"killed at change {number} of {len(camera.pictures)}"
        stages = Failing(run.config, mute=mute)
        if RunStore.exists(killed.path):
            with RunStore.read(killed.path) as store:
                before = counted_so_far(store, [REWARD], ["heldout"])[REWARD].get("num_answered", 0)
            try:
                killed.go_on(stages)
            except LowCoverageError:
                assert number < failed[0], when
                killed.go_on(stages)
            if before < 8 and number >= failed[0]:
                assert before >= 5 and not set(stages.asked) - set(down), when
            if number >= failed[0]:  # before that a fresh process may find failures committed, and they are enough
                assert comparable(killed.path) == expected, when
            assert not list(killed.path.rglob("parts*/*")), when
        shutil.rmtree(killed.path)


def test_a_real_server_that_is_down_at_first(tmp_path: Path) -> None:
    """Through host, HTTP and budget: what was answered is not sent again, and what was charged stays counted."""
    is_down = True

    def handler(body: dict[str, Any], _: int) -> Answer:
        asked_about = material(body)["prompt"]
        if is_down and int(asked_about.split()[-1]) % 3:
            return Answer(b'{"error": "overloaded"}', 503)
        return Answer(completion(longer_wins(body)))

    with serve(handler) as server:
        endpoint = {"base_url": server.base_url, "model": "m", "max_wait_s": 0.05}
        judge = {"type": "llm", "endpoint": endpoint, "retries": 1, "budget": {"calls": 100}}
        run = Run.of(
            tmp_path, judge=judge, run__rounds=1, evaluation={}, prompts__per_round=9, verdicts={"min_coverage": 0.9}
        )

        def go_on(act: Callable[[HostedStages], Any]) -> None:
            stages = HostedStages(run.config, run_dir=run.path)
            try:
                act(stages)
            finally:
                stages.close()

        go_on(lambda stages: fail(run, stages))
        with RunStore.read(run.path) as store:
            charged = counted_so_far(store, [REWARD], ["heldout"])[REWARD]["num_judge_charged_calls"]
        answered = [body for body in server.requests if int(material(body)["prompt"].split()[-1]) % 3 == 0]
        assert charged == len(answered) > 0
        num_before, is_down = len(server.requests), False
        go_on(run.go_on)
        sent = server.requests[num_before:]
        assert sent and not [body for body in sent if body in answered]
        with RunStore.read(run.path) as store:
            store.verify()
            assert counted_so_far(store, [REWARD], ["heldout"])[REWARD]["num_judge_charged_calls"] == charged + len(
                sent
            )
            assert sum("parts" in name for name in store.round(0).names()) == 0
        assert not any("not-covered" in name for name in tree(run.path))
