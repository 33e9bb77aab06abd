"""What a person reads while a run goes on: lines, on a terminal and anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.text import Text

from online_dpo.loop.stages import Event
from online_dpo.loop.weight_sync import MIN_APPLIED
from online_dpo.reports.data_set_lines import name_of_items, num_items, offline_outcomes, show_preferences
from online_dpo.reports.listening import WARNING, Listener
from online_dpo.reports.yields import losses
from online_dpo.text_files import printable
from online_dpo.types import REWARD


class Progress(Listener):
    """Prints a line for whatever a person should know. `live.terminal` shows a panel below these lines."""

    def __init__(self, console: Console | None = None) -> None:
        # Lines of a log are not folded: what reads them may be a program.
        self.console = console or Console(highlight=False, soft_wrap=True)
        self._num_rounds = 0
        self._asks_people = False
        self._began = time.monotonic()

    def note(self, line: str) -> None:
        self.tell(line, style="yellow" if line.startswith(WARNING) else "dim")

    def hear(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.data)
        for warning in warnings_of(event):
            self.note(f"{WARNING}{warning}")

    def tell(self, line: str, style: str = "") -> None:
        """Print a line. Text of models, judges and users in it is text, whatever characters it has."""
        self.console.print(Text(printable(line), style=style))

    def _on_run_started(self, data: Mapping[str, Any]) -> None:
        self._num_rounds = data["num_rounds"]

    def _on_round_started(self, data: Mapping[str, Any]) -> None:
        self._began = time.monotonic()

    def _on_pushed(self, data: Mapping[str, Any]) -> None:
        if data.get("probe_has_power") is False:
            self.note(
                f"policy {data['policy_version']} differs from the one before by less than the tolerance "
                f"({data['probe_gap_previous']:.1e} nats per token): the probe could not have noticed a skipped push"
            )

    def _on_people_asked(self, data: Mapping[str, Any]) -> None:
        if not self._asks_people:
            waits = f"{data['num_missing_votes']} votes on {data['num_questions']} questions are missing"
            self.note(f"people are asked: {waits}; `online-dpo annotate` shows the questions")
        self._asks_people = data["num_missing_votes"] > 0

    def _on_evaluated(self, data: Mapping[str, Any]) -> None:
        self.tell(f"policy {data['policy_version']} on {data['set']}: {describe_evaluation(data)}")

    def _on_evaluated_pairs(self, data: Mapping[str, Any]) -> None:
        self.tell(f"policy {data['policy_version']} on {data['set']}: {show_preferences(data)}")

    def _on_round_done(self, data: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._began
        self.tell(f"round {data['policy_version']}/{self._num_rounds}: {describe_round(data)}, {seconds:.1f} s")


def warnings_of(event: Event) -> list[str]:
    """What an event warns of, in sentences."""
    data = event.data
    if event.kind == "round_done":
        return list(data["warnings"])
    if event.kind == "step" and data.get("skipped"):
        prompts = ", ".join(data["bad_ids"])
        return [f"step {data['step'] + 1} was skipped: its {data['bad_value']} is not finite for prompts {prompts}"]
    if event.kind == "pushed" and (applied := data.get("applied")) is not None and not applied >= MIN_APPLIED:
        return [
            f"the generators hold {100 * applied:.0f} % of the update of policy {data['policy_version']}, the rest is "
            f"rounded away; where that lasts, set generator.dtype to float32 or raise learner.lr"
        ]
    return []


def describe_round(data: Mapping[str, Any]) -> str:
    """One line: yield, loss and reward of a round's summary, and every reason for which something gave no pair."""
    items = f"{num_items(data)} {name_of_items(data)}"
    if "num_prompts" in data:
        too_many = {"too_long": data["num_prompts_too_long"], "empty": data["num_prompts_empty"]}
        lost = _reasons({**losses(data["outcomes"]), **too_many})
        nothing = "label" if "labels" in data else "pair"
        items += f" from {data['num_prompts']} prompts" + (f" (no {nothing}: {lost})" if lost else "")
    if "num_replayed" in data:
        missing = data["num_replay_missing"]
        items += f", {data['num_replayed']} of earlier rounds" + (f" ({missing} too few)" if missing else "")
    if "num_offline_rows" in data:
        lost = _reasons({name: number for name, number in offline_outcomes(data).items() if name != "kept"})
        items += f", {data['num_offline_kept']} rows of the data set" + (f" (dropped: {lost})" if lost else "")
        cut = data["num_offline_truncated_answers"]
        items += f", {cut} answers cut" if cut else ""
    for source, found in data.get("candidates", {}).items():
        lost = _reasons({name: number for name, number in found["outcomes"].items() if name != "kept"})
        items += f", {found['num_candidates']} answers of {source}" + (f" (not: {lost})" if lost else "")
    if 0.0 < (data.get("on_policy_share") or 0.0) < 1.0:  # where a round mixes
        items += f", {100 * data['on_policy_share']:.0f} % on-policy"
    reward = "" if data.get(REWARD) is None else f", reward {data[REWARD]:.3f}"
    training = ""
    if "loss" in data:  # a round all of whose steps were skipped has none
        training = f", loss {data['loss']:.4f}"
        training += f", accuracy {data['reward_accuracy']:.2f}" if "reward_accuracy" in data else ""
    skipped = f", {data['num_skipped_steps']} steps skipped" if data.get("num_skipped_steps") else ""
    return f"{items}{training}{skipped}{reward}"


def _reasons(outcomes: Mapping[str, int]) -> str:
    return ", ".join(f"{name} {count}" for name, count in outcomes.items() if count)


def describe_evaluation(data: Mapping[str, Any]) -> str:
    """One line: every judge's mean and gain, then the price: KL, length, diversity."""
    parts = []
    for name, figures in data["judges"].items():
        if figures["mean"] is not None:
            gain = ""
            if figures["gain"] is not None:
                value, low, high = figures["gain"]
                gain = f" (gain {value:+.3f} [{low:+.3f}, {high:+.3f}], wins {100 * figures['win_rate'][0]:.0f} %)"
            parts.append(f"{name} {figures['mean']:.3f}{gain}")
    parts.append(f"KL to initial {data['kl_initial']:.2f}, length {data['length_mean']:.1f}")
    if data.get("distinct_2") is not None:
        parts.append(f"distinct-2 {data['distinct_2']:.3f}")
    return ", ".join(parts)
