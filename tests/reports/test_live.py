"""Where a run stands: by hand calculation, and over whole fake-driven runs. `test_terminals.py` has real terminals."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from loop_runs import Kill, Run
from rich.console import Console

from online_dpo.loop.stages import Event
from online_dpo.reports.listening import Listener
from online_dpo.reports.live.headline import sparkline
from online_dpo.reports.live.panel import duration, panel
from online_dpo.reports.live.standing import NUM_SHOWN, Standing
from online_dpo.reports.live.terminal import Terminal
from online_dpo.types import Verdict


class Clock:
    """Says what a test wants."""

    now = 0.0

    def __call__(self) -> float:
        return self.now


def play(standing: Standing, clock: Clock, script: list[tuple[float, str, int, dict[str, Any]]]) -> None:
    for now, kind, index, data in script:
        clock.now = now
        standing.hear(Event(kind=kind, round_index=index, data=data))


def a_round(start: float, index: int, *, evaluated: float = 0.0) -> list[tuple[float, str, int, dict[str, Any]]]:
    """Two seconds of preparing, ten of sampling, twenty of learning, and perhaps an evaluation."""
    step = {"num_steps": 2, "loss": 0.5}
    work = {"num_completions": 8, "num_to_sample": 8, "num_to_judge": 2}
    ending = start + 32 + evaluated
    evaluating = [(start + 32, "stage", index, {"stage": "evaluating", "policy_version": index + 1})]
    return [
        (start, "round_started", index, {}),
        (start + 2, "stage", index, {"stage": "sampling", **work}),
        (start + 12, "stage", index, {"stage": "learning"}),
        (start + 22, "step", index, {"step": 0, **step}),
        (start + 32, "step", index, {"step": 1, **step}),
        *(evaluating if evaluated else []),
        (ending, "round_committed", index, {}),
    ]


def test_what_is_left_by_hand() -> None:
    """4 rounds of 32 s, each second one with 6 s of evaluation besides; the initial policy's evaluation took 7 s."""
    clock = Clock()
    standing = Standing(clock)
    timing = standing.timing
    play(standing, clock, [(0.0, "run_started", 0, {"num_rounds": 4, "evaluated_every": 2})])
    play(
        standing,
        clock,
        [(0.0, "round_started", 0, {}), (0.0, "stage", 0, {"stage": "evaluating", "policy_version": 0})],
    )
    play(standing, clock, a_round(5.0, 0)[1:3])
    clock.now = 27.0
    assert timing.stage_left is None and timing.run_left is None and timing.stage_share is None  # nothing measured yet
    play(standing, clock, a_round(5.0, 0)[3:4])
    assert timing.stage_left == pytest.approx(10.0) and timing.stage_share == 0.5  # one of two steps in ten seconds
    assert timing.run_left is None  # no round was whole yet
    play(standing, clock, a_round(5.0, 0)[4:])
    # Sampling and learning take 30 s; the only evaluation so far is the initial policy's, which no later round repeats.
    assert timing.run_left == pytest.approx(3 * 30.0 + 2 * 7.0)
    play(standing, clock, a_round(37.0, 1, evaluated=6.0))
    assert timing.run_left == pytest.approx(30.0 + 30.0 + 6.0 + 2 * 1.0)  # preparing took 0 s and 2 s
    play(standing, clock, a_round(75.0, 2))
    play(standing, clock, a_round(107.0, 3, evaluated=6.0)[:4])
    assert timing.stage_left == pytest.approx(10.0) and timing.run_left == pytest.approx(10.0 + 6.0)
    assert timing.run_share == pytest.approx((3 + 22 / 38) / 4)


def test_a_resumed_stage_counts_what_this_process_does() -> None:
    clock = Clock()
    standing = Standing(clock)
    work = {"num_completions": 100, "num_to_sample": 10, "num_to_judge": 20}
    play(
        standing,
        clock,
        [
            (0.0, "run_started", 3, {"num_rounds": 9, "evaluated_every": None}),
            (0.0, "round_started", 3, {}),
            (1.0, "stage", 3, {"stage": "sampling", **work}),
            (5.0, "shard_sampled", 3, {"num_completions": 4, "num_tokens": 40}),
        ],
    )
    assert timing_of(standing) == (None, None)  # nothing is judged yet, so nobody knows
    verdicts = tuple(Verdict(prompt_id=f"p{i}", first=j, score=1.0) for i in range(5) for j in range(2))
    play(standing, clock, [(5.0, "shard_judged", 3, {"judge": "reward", "verdicts": verdicts})])
    assert timing_of(standing) == (12.0, None)  # 15 of 20 prompts at 5 in 4 s; the 6 completions need 6 s
    assert standing.sampled is not None and standing.sampled.per_second(standing.sampled.num_tokens) == 10.0
    rest = [(9.0, "stage", 3, {"stage": "learning"}), (9.0, "step", 3, {"step": 5, "num_steps": 8, "loss": 1.0})]
    play(standing, clock, [*rest, (20.0, "round_committed", 3, {})])
    assert timing_of(standing)[1] is None  # that round was not whole
    play(standing, clock, a_round(20.0, 4))
    assert timing_of(standing)[1] == pytest.approx(4 * 32.0)


def timing_of(standing: Standing) -> tuple[float | None, float | None]:
    return standing.timing.stage_left, standing.timing.run_left


class Watching(Listener):
    """Draws the panel at every event, at many widths, with a clock that goes on by a second."""

    def __init__(self) -> None:
        self.clock = Clock()
        self.standing = Standing(self.clock)
        self.drawn: list[list[str]] = []

    def note(self, line: str) -> None:
        self.standing.note(line)

    def hear(self, event: Event) -> None:
        self.clock.now += 1.0
        self.standing.hear(event)
        for width in (1, 20, 40, 90):
            for ascii_only in (False, True):
                lines = panel(self.standing, width=width, ascii_only=ascii_only)
                assert all(line.cell_len < max(2, width) for line in lines), (width, [line.plain for line in lines])
                assert all(line.plain.isprintable() and (line.plain.isascii() or not ascii_only) for line in lines)
        self.drawn.append([line.plain for line in panel(self.standing, width=90)])


@pytest.mark.parametrize("overlap", [0, 1])
def test_the_panel_of_a_run_event_by_event(overlap: int, tmp_path: Path) -> None:
    run = Run.of(tmp_path, overlap=overlap, run__rounds=3)
    watching = Watching()
    events = run.go_on(listeners=[watching]).events
    at = {f"{e.kind} {e.round_index}": drawn for e, drawn in zip(events, watching.drawn, strict=True)}
    assert at["run_started 0"][0].split() == ["round", "1/3", "starting"]
    first = next(
        drawn for event, drawn in zip(events, watching.drawn, strict=True) if event.data.get("stage") == "sampling"
    )
    assert first[0].split() == ["round", "1/3", "sampling", "0/12", "sampled", "0/4", "judged"]
    learned = at["step 1"]
    assert learned[0].split() == ["round", "2/3", "learning", "2/2", "steps"] and "left" in learned[2]
    figures = next(line for line in learned if line.startswith("reward 2"))
    assert "KL" in figures and "▁█" in figures
    assert ("ahead: round 2   12/12 sampled   4/4 judged" in at["step 0"]) == (overlap == 1)
    done = at["run_done 3"]
    assert done[0].split() == ["round", "3/3", "done"] and "100 %" in done[1]


def test_rounds_on_a_data_set_alone(tmp_path: Path) -> None:
    """Nothing is sampled or judged: steps are counted, and the figures are the learner's."""
    rows = [{"prompt": f"q{i}", "chosen": f" yes {i}", "rejected": f" no {i}"} for i in range(6)]
    (tmp_path / "pairs.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    pairs = {"source": str(tmp_path / "pairs.jsonl"), "format": "pairs", "per_round": 4}
    alone: dict[str, Any] = {"prompts": None, "judge": None, "sampling": {}, "evaluation__sets": {}, "pairs": pairs}
    watching = Watching()
    run = Run.of(tmp_path, run__rounds=3, **alone)
    events = run.go_on(listeners=[watching]).events
    at = {f"{e.kind} {e.round_index}": drawn for e, drawn in zip(events, watching.drawn, strict=True)}
    assert at["step 2"][0].split() == ["round", "3/3", "learning", "2/2", "steps"]
    assert " left, " in at["step 1"][2] and any(line.startswith("loss ") and "▁" in line for line in at["run_done 3"])


def test_a_resumed_run_shows_all_rounds_and_knows_no_time_left(tmp_path: Path) -> None:
    run = Run.of(tmp_path, run__rounds=3)
    with pytest.raises(Kill):
        run.go_on(kill_at=20)
    watching = Watching()
    listener = run.go_on(listeners=[watching])
    rounds = [event.round_index for event in listener.events if event.kind == "round_committed"]
    for event, drawn in zip(listener.events, watching.drawn, strict=True):
        if event.round_index <= rounds[0] and event.kind != "round_committed":
            assert not any(line.startswith("run ") and "left" in line for line in drawn), event
    assert "left" in next(line for line in watching.drawn[-3] if line.startswith("run "))


def test_the_newest_warnings_stay_and_all_are_counted() -> None:
    standing = Standing(Clock())
    for number in range(5):
        standing.note(f"warning: number {number}\x1b[2J [red]")
        standing.note("no warning")
    lines = [line.plain for line in panel(standing, width=60)]
    assert lines[1:] == ["5 warnings, the newest 3:", *(f"  number {n}\\x1b[2J [red]" for n in range(5 - NUM_SHOWN, 5))]
    standing.hear(Event(kind="incident", round_index=2, data={"actor": "generator 0", "what": "generator 0 was lost"}))
    assert [line.plain for line in panel(standing, width=60)][-2:] == ["1 incident:", "  round 3: generator 0 was lost"]


def test_lines_of_values() -> None:
    assert sparkline([0.0, 1.0, None, 7.0], width=9) == "▁▂ █"
    assert sparkline([5.0, 0.0, 1.0, 7.0], width=3) == "▁▂█"
    assert sparkline([2.0, 2.0], width=9) == "▄▄" and sparkline([2.0, None], width=9) == ""
    assert sparkline([0.0, 7.0], width=9, ascii_only=True) == "_#"
    assert [duration(s) for s in (None, 0.4, 34, 760, 3723)] == ["", "0:00", "0:34", "12:40", "1:02:03"]


def test_a_narrower_terminal_is_drawn_over_whole(tmp_path: Path) -> None:
    """Lines that a terminal has folded take more rows; would catch rows that are left above the panel."""
    file = (tmp_path / "screen").open("w+", encoding="utf-8")
    console = Console(file=file, force_terminal=True, width=80, height=24, color_system=None)
    terminal = Terminal(console)
    with terminal:
        for number in range(2):
            terminal.note(f"warning: {number} {'x' * 60}")
        terminal._live.refresh()
        rows = sum(-(-length // 30) for length in terminal._panel.widths)
        file.truncate(0)
        console.size = (30, 24)  # type: ignore[assignment]
        terminal._live.refresh()
    file.seek(0)
    assert file.read().split("round")[0].count("\x1b[1A") >= rows - 1 > len(terminal._panel.widths)
