"""What people are told about data sets of preferences. Imports nothing heavy: `status` answers at once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from online_dpo.data.preference_files import DROPPED


def num_items(data: Mapping[str, Any]) -> int:
    """Pairs, labelled answers or demonstrations that a round trained on."""
    alone = [data[name] for name in ("num_pairs", "num_demonstrations") if name in data]
    return int(alone[0] if alone else data["num_desirable"] + data["num_undesirable"])


def name_of_items(data: Mapping[str, Any]) -> str:
    """What they are called."""
    if "num_demonstrations" in data:
        return "demonstrations"
    return "pairs" if "num_pairs" in data else "labelled answers"


def offline_outcomes(data: Mapping[str, Any]) -> dict[str, int]:
    """A round's rows of the data set, by what became of them."""
    return {name: data[f"num_offline_{name}"] for name in ("kept", *DROPPED) if f"num_offline_{name}" in data}


def show_preferences(figures: Mapping[str, Any]) -> str:
    """One line for people about held-out pairs or demonstrations."""
    if "num_demonstrations" in figures:
        change = ""
        if "loss_change" in figures:
            change = " (change {loss_change:+.4f} [{loss_change_low:+.4f}, {loss_change_high:+.4f}])".format(**figures)
        perplexity = "" if figures["perplexity"] is None else f", perplexity {figures['perplexity']:.2f}"
        number = figures["num_demonstrations"]
        return f"loss {figures['loss']:.4f} nats per token{change}{perplexity} ({number} demonstrations)"
    parts = [f"accuracy {figures['accuracy']:.3f}, per token {figures['accuracy_per_token']:.3f}"]
    if "reward_accuracy" in figures:
        low, high = figures["reward_accuracy_low"], figures["reward_accuracy_high"]
        parts.append(f"over the initial policy {figures['reward_accuracy']:.3f} [{low:.3f}, {high:.3f}]")
        parts.append(f"by {figures['log_ratio_margin']:+.2f} nats")
    parts.append(f"by length alone {figures['shorter_accuracy']:.3f}")
    return ", ".join(parts) + f" ({figures['num_pairs']} pairs)"
