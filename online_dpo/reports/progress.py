"""What a person sees while a run goes on: a live display on a terminal, plain lines anywhere else."""

from __future__ import annotations

import time
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from online_dpo.loop.stages import Event
from online_dpo.loop.weight_sync import MIN_APPLIED
from online_dpo.reports.data_set_lines import name_of_items, num_items, offline_outcomes, show_preferences
from online_dpo.reports.listening import Listener
from online_dpo.reports.yields import losses
from online_dpo.types import REWARD, Verdict


class Progress(Listener):
    """Listens to a run. Also a context manager: the live display needs an end."""

    def __init__(self, console: Console | None = None) -> None:
        # Lines of a log are not folded: what reads them may be a program.
        self._console = console or Console(highlight=False, soft_wrap=True)
        self._live: Live | None = None
        if self._console.is_terminal:
            self._live = Live(console=self._console, refresh_per_second=4, transient=True)
        self._num_rounds = 0
        self._began = time.monotonic()
        self._status: dict[str, str] = {}

    def __enter__(self) -> Progress:
        if self._live is not None:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._live is not None:
            self._live.stop()

    def note(self, line: str) -> None:
        self._console.print(Text(line, style="dim"))

    def hear(self, event: Event) -> None:
        handler = getattr(self, f"_on_{event.kind}", None)
        if handler is not None:
            handler(event.data)
        if self._live is not None:
            self._live.update(self._panel())

    def _on_run_started(self, data: Mapping[str, Any]) -> None:
        self._num_rounds = data["num_rounds"]

    def _on_round_started(self, data: Mapping[str, Any]) -> None:
        self._began, self._status = time.monotonic(), {}

    def _on_pushed(self, data: Mapping[str, Any]) -> None:
        if data.get("probe_has_power") is False:
            self.note(
                f"policy {data['policy_version']} differs from the one before by less than the tolerance "
                f"({data['probe_gap_previous']:.1e} nats per token): the probe could not have noticed a skipped push"
            )
        if (applied := data.get("applied")) is not None and not applied >= MIN_APPLIED:
            self._warn(
                f"the generators hold {100 * applied:.0f} % of the update of policy {data['policy_version']}, the rest "
                f"is rounded away; where that lasts, set generator.dtype to float32 or raise learner.lr"
            )

    def _on_stage(self, data: Mapping[str, Any]) -> None:
        self._status["stage"] = data["stage"]
        if data["stage"] in ("sampling", "evaluating"):
            self._on_sampling_ahead(data)

    def _on_sampling_ahead(self, data: Mapping[str, Any]) -> None:
        self._tokens, self._tokens_since = 0, time.monotonic()

    def _on_shard_sampled(self, data: Mapping[str, Any]) -> None:
        self._tokens += data["num_tokens"]
        rate = self._tokens / max(time.monotonic() - self._tokens_since, 1e-9)
        self._status["tokens/s"] = f"{rate:.0f}"

    def _on_shard_judged(self, data: Mapping[str, Any]) -> None:
        verdicts: tuple[Verdict, ...] = data["verdicts"]
        scores = [verdict.score for verdict in verdicts if verdict.score is not None]
        if scores and data["judge"] == REWARD:
            self._status["reward"] = f"{sum(scores) / len(scores):.3f}"

    def _on_paired(self, data: Mapping[str, Any]) -> None:
        name = "labels" if "labels" in data else "pairs"
        self._status[name] = str(data["num_items"])

    def _on_step(self, data: Mapping[str, Any]) -> None:
        self._status["step"] = f"{data['step'] + 1}/{data['num_steps']}"
        if data.get("skipped"):
            self._console.print(
                Text(f"step {data['step'] + 1} was skipped: its {data['bad_value']} is not finite for prompts ")
                + Text(", ".join(data["bad_ids"]))
            )
            return
        self._status["loss"] = f"{data['loss']:.4f}"

    def _on_evaluated(self, data: Mapping[str, Any]) -> None:
        self._console.print(Text(f"policy {data['policy_version']} on {data['set']}: {describe_evaluation(data)}"))

    def _on_evaluated_pairs(self, data: Mapping[str, Any]) -> None:
        self._console.print(Text(f"policy {data['policy_version']} on {data['set']}: {show_preferences(data)}"))

    def _on_round_done(self, data: Mapping[str, Any]) -> None:
        seconds = time.monotonic() - self._began
        version = data["policy_version"]
        self._console.print(Text(f"round {version}/{self._num_rounds}: {describe_round(data)}, {seconds:.1f} s"))
        for warning in data["warnings"]:
            self._warn(warning)

    def _warn(self, warning: str) -> None:
        self._console.print(Text(f"warning: {warning}", style="yellow"))

    def _panel(self) -> Table:
        table = Table.grid(padding=(0, 2))
        table.add_row(*(Text(f"{name} {value}", style="cyan") for name, value in self._status.items()))
        return table


def describe_round(data: Mapping[str, Any]) -> str:
    """One line: yield, loss and reward of a round's summary, and every reason for which something gave no pair."""
    items = f"{num_items(data)} {name_of_items(data)}"
    if "num_prompts" in data:
        too_many = {"too_long": data["num_prompts_too_long"], "empty": data["num_prompts_empty"]}
        lost = _reasons({**losses(data["outcomes"]), **too_many})
        nothing = "label" if "labels" in data else "pair"
        items += f" from {data['num_prompts']} prompts" + (f" (no {nothing}: {lost})" if lost else "")
    if "num_offline_rows" in data:
        lost = _reasons({name: number for name, number in offline_outcomes(data).items() if name != "kept"})
        items += f", {data['num_offline_kept']} rows of the data set" + (f" (dropped: {lost})" if lost else "")
        cut = data["num_offline_truncated_answers"]
        items += f", {cut} answers cut" if cut else ""
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
