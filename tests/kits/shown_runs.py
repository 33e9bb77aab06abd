"""Run directories that are made to be shown, through the store's own writing code: as large or as hostile as wanted."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from online_dpo.config.loading import dump_config, load_config
from online_dpo.store.files import Files
from online_dpo.store.run_store import RunStore
from online_dpo.store.shards import Asked, ShardCommits, evaluation_base
from online_dpo.types import Completion, Judged, Pair, Prompt, Shard, Verdict

STORY = "the film was a slow warm story of two brothers who never quite say what they mean and then it ends"


@dataclass(frozen=True, slots=True, kw_only=True)
class Size:
    """Of a run."""

    rounds: int = 2
    prompts: int = 4
    samples: int = 3
    words: int = 12
    held_out: int = 4


Text = Callable[[random.Random, Size], str]


def babble(draw: random.Random, size: Size) -> str:
    return " ".join(draw.choices(STORY.split(), k=max(1, round(draw.gauss(size.words, size.words / 4)))))


def write_run(
    path: Path,
    size: Size,
    text: Text = babble,
    *,
    name: Callable[[str], str] = str,
    warnings: Sequence[str] = (),
) -> None:
    """A finished run with scores, pairs and an evaluation set.

    Args:
        path: of the run directory.
        size: of the run.
        text: makes prompts and answers.
        name: makes prompt ids of plain ones.
        warnings: of every round.
    """
    draw = random.Random(0)
    config = load_config(
        {
            "run": {"dir": str(path.parent), "name": path.name, "rounds": size.rounds},
            "model": {"path": "none"},
            "prompts": {"source": "none", "per_round": size.prompts},
            "sampling": {"num_samples": size.samples, "max_tokens": 4 * size.words},
            "judge": {"type": "python", "target": "none:none"},
            "evaluation": {
                "sets": {"heldout": {"source": "none", "count": size.held_out}},
                "judges": {"gold": {"type": "python", "target": "none:none"}},
            },
        }
    )
    held_out = [_prompt(name(f"h{i}"), text(draw, size)) for i in range(size.held_out)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Files, "sync", lambda *_: None)
        patch.setattr("os.fsync", lambda _: None)
        with RunStore.create(path, config_yaml=dump_config(config), info={"packages": {"online-dpo": "0"}}) as store:
            before: dict[str, Any] = {}
            for index in range(size.rounds):
                if index == 0:
                    before = _evaluate(store, index, held_out, 0, size, text, draw)
                    store.append_metrics(
                        {"kind": "evaluated", "round": 0, "set": "heldout", "policy_version": 0, **before}
                    )
                found = _play(store, index, size, text, draw, name)
                after = _evaluate(store, index, held_out, index + 1, size, text, draw)
                store.append_metrics({**_summary(index, found, after), "warnings": list(warnings)})
                store.finish_round(
                    index, {"metrics": store.metrics_position(), "control": {"beta_factor": 1.0, "measured": None}}
                )


def _play(
    store: RunStore, index: int, size: Size, text: Text, draw: random.Random, name: Callable[[str], str]
) -> dict[str, int]:
    part = store.round(index)
    prompts = [_prompt(name(f"r{index}-{i}"), text(draw, size)) for i in range(size.prompts)]
    part.put_records("prompts", prompts)
    commits, pairs, tied = ShardCommits(part), [], 0
    for number, start in enumerate(range(0, size.prompts, 64)):
        shard = Shard(index=number, prompts=tuple(prompts[start : start + 64]))
        answers = {
            p.prompt_id: [_answer(p, i, index, text(draw, size), draw) for i in range(size.samples)]
            for p in shard.prompts
        }
        scores = {key: [round(draw.gauss(index / 10, 1.0), 2) for _ in found] for key, found in answers.items()}
        for key in list(scores)[::5]:
            scores[key] = [0.5] * size.samples  # ties
        commits.put_completions(number, [answer for found in answers.values() for answer in found])
        verdicts = [
            Verdict(prompt_id=key, first=i, score=score)
            for key, found in scores.items()
            for i, score in enumerate(found)
        ]
        commits.put(shard, Asked(), Judged(verdicts=tuple(verdicts), counters={"num_judge_calls": 1}))
        for prompt in shard.prompts:
            given, said = scores[prompt.prompt_id], answers[prompt.prompt_id]
            best, worst = given.index(max(given)), given.index(min(given))
            if given[best] == given[worst] or said[best].token_ids == said[worst].token_ids:
                tied += 1
                continue
            pairs.append(_pair(prompt, said[best], said[worst], given[best] - given[worst]))
    part.put_records("pairs", pairs)
    part.put_files("adapter", {"adapter_model.safetensors": bytes([index % 256]), "adapter_config.json": b"{}"})
    return {"paired": len(pairs), "tie": tied}


def _evaluate(
    store: RunStore, index: int, prompts: list[Prompt], version: int, size: Size, text: Text, draw: random.Random
) -> dict[str, Any]:
    """Commits the samples of a set; returns the figures of its line."""
    part, base = store.round(index), evaluation_base("heldout", is_initial=version == 0)
    if version == 0:
        part.put_records(f"{base}prompts", prompts)
    ShardCommits(part, base).put_completions(0, [_answer(p, 0, version, text(draw, size), draw) for p in prompts])
    scores = {j: {p.prompt_id: round(draw.gauss(version / 10, 1), 3) for p in prompts} for j in ("reward", "gold")}
    means = {judge: sum(found.values()) / len(found) for judge, found in scores.items()}
    estimate = None if version == 0 else [0.1 * version, 0.05 * version, 0.15 * version]
    judges = {judge: {"mean": mean, "gain": estimate, "win_rate": None, "report": {}} for judge, mean in means.items()}
    kl = {"kl_initial": 0.1 * version, "kl_reference": 0.05 * version, "length_mean": 12.0}
    part.put_json(f"{base}summary", {"judges": judges, "scores": scores, **kl})
    return {"judges": judges, **kl}


def _summary(index: int, outcomes: dict[str, int], evaluated: dict[str, Any]) -> dict[str, Any]:
    report = {"num_verdicts": 1, "num_abstained": 0, "abstention_rate": 0.0, "reasons": {}, "counters": {}}
    judges = {judge: {**found, "report": report} for judge, found in evaluated["judges"].items()}
    return {
        "kind": "round_done",
        "round": index,
        "policy_version": index + 1,
        "time": 1.7e9 + index,
        "reference_versions": [0],
        "outcomes": outcomes,
        "num_pairs": outcomes["paired"],
        "num_prompts": sum(outcomes.values()),
        "loss": 0.69 - 0.001 * index,
        "reward": 0.1 * index,
        "evaluation": {"heldout": {**evaluated, "judges": judges}},
        "judges": {"reward": report},
        "seconds": {"sampling": 3.0, "learning": 5.0},
    }


def _prompt(prompt_id: str, text: str) -> Prompt:
    return Prompt(prompt_id=prompt_id, token_ids=(1,), text=text)


def _answer(prompt: Prompt, sample: int, version: int, text: str, draw: random.Random) -> Completion:
    tokens = tuple(draw.randrange(3, 4096) for _ in range(max(1, len(text.split()))))
    return Completion(
        prompt_id=prompt.prompt_id,
        sample_index=sample,
        token_ids=tokens,
        text=text,
        finish_reason="stop",
        sampler_logps=tuple(-3.0 * draw.random() for _ in tokens),
        policy_version=version,
        seed=draw.getrandbits(62),
    )


def _pair(prompt: Prompt, chosen: Completion, rejected: Completion, margin: float) -> Pair:
    references = {"chosen_ref_logps": -2.0, "rejected_ref_logps": -3.0}
    return Pair(prompt=prompt, chosen=chosen, rejected=rejected, margin=margin, probability=0.9, **references)
