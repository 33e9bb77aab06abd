"""Short runs of one model at several learning rates: what it learns, and how far it moves.

    python benchmarks/learning_rate.py MODEL [MODEL ...] --rates 5e-6 7e-5 7e-4 [key=value ...]
    python benchmarks/learning_rate.py --shape 896,4864,24,14,2 --rates 1e-5 1e-4      random weights, steps alone

A run is the product's own loop, learner, judges and statistics in one process; only the sampling is transformers'
instead of vLLM's, which saves the start of an engine for every run. Apart from `learner.lr` the config is the shortest
that the reviews task needs. With --shape (hidden, intermediate, layers, heads, key-value heads; vocabulary 4 096) the
model has random weights, and a few steps on random pairs say how far a step moves it. Prints a table; asserts nothing.
"""

from __future__ import annotations

import argparse
import asyncio
import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import LlamaConfig, LlamaForCausalLM

from actors.judge_host import JudgeHost
from online_dpo.commands.inputs import Materials, prepare
from online_dpo.commands.run import play, portable_yaml
from online_dpo.commands.specs import learner_spec
from online_dpo.commands.status import read_status
from online_dpo.config.loading import load_config
from online_dpo.learner import adapter_slots
from online_dpo.learner.frozen_models import load_model
from online_dpo.learner.learner import Learner
from online_dpo.models.tokenizer import load_tokenizer
from online_dpo.store.run_store import RunStore
from online_dpo.types import Adapter, Completion, Pair, Prompt, Row, Sampled, SamplingPlan, Shard, derive_seed

CONFIG: dict[str, Any] = {
    "prompts": {"source": "embedded:openings/train", "max_tokens": 64},
    "sampling": {"max_tokens": 48},
    "judge": {"type": "reward_model", "path": "embedded:reward"},
    "evaluation": {
        "sets": {"heldout": {"source": "embedded:openings/heldout", "count": 96}},
        "judges": {"gold": {"type": "python", "target": "embedded:gold"}},
        "every": 100,
    },
}
HEADER = "| model | lr | reward gain | gold gain | KL | length | distinct-2 | log-ratios after round 1 | warnings |"


@dataclass(eq=False)
class Task:
    """Done when it is waited for."""

    result: Callable[[], Any]


class OneProcess:
    """`loop.stages.Stages` without Ray and vLLM: the learner's own model samples."""

    def __init__(self, materials: Materials) -> None:
        spec = learner_spec(materials)
        self.learner = Learner(spec)
        # The learner's model packs its rows, so that it cannot generate.
        base = load_model(spec.base, dtype=spec.dtype, device=torch.device("cpu"))
        self._sampler = adapter_slots.attach(base, spec.lora, spec.adapter, seed=0)
        self._eos = materials.model.eos_token_ids
        self._tokenizer = load_tokenizer(materials.model.folder, trust_remote_code=False)
        self._hosts = {name: JudgeHost(spec) for name, spec in materials.judges.items()}
        self._loop = asyncio.new_event_loop()
        self._adapter: Adapter | None = None
        self._first = False

    def push(self, adapter: Adapter | None, version: int) -> list[str | None]:
        self._adapter, self._first = adapter, True
        return [None if adapter is None else adapter.digest]

    def probe(self, rows: Sequence[Row]) -> list[Any]:
        return [self.learner.score(rows, (self._adapter,))[0].token_logps]

    def start_sampling(self, shard: Shard, plan: SamplingPlan, version: int) -> Any:
        def work() -> Sampled:
            first, self._first = self._first, False
            return Sampled(first_since_push=first, completions=tuple(self._sample(shard, plan, version)))

        return Task(work)

    def start_judging(self, judge: str, shard: Shard, completions: Sequence[Completion], *, again: bool = False) -> Any:
        host = self._hosts[judge]
        return Task(lambda: self._loop.run_until_complete(host.judge_shard(shard, completions, again)))

    def start_scoring(self, rows: Sequence[Row], under: Sequence[Any]) -> Any:
        return Task(lambda: self.learner.score(rows, under))

    def first_done(self, tasks: Sequence[Any]) -> tuple[Any, Any]:
        return tasks[0], tasks[0].result()

    @torch.no_grad()
    def _sample(self, shard: Shard, plan: SamplingPlan, version: int) -> list[Completion]:
        seed = derive_seed(plan.run_seed, plan.purpose, plan.round_index, shard.index)
        torch.manual_seed(seed)
        width = max(len(prompt.token_ids) for prompt in shard.prompts)
        pad = self._eos[0]
        padded = [[pad] * (width - len(p.token_ids)) + list(p.token_ids) for p in shard.prompts]
        mask = [[0] * (width - len(p.token_ids)) + [1] * len(p.token_ids) for p in shard.prompts]
        with adapter_slots.weights_of(self._sampler, self._adapter):
            out: Any = self._sampler.generate(
                input_ids=torch.tensor(padded),
                attention_mask=torch.tensor(mask),
                do_sample=True,
                temperature=plan.temperature,
                top_k=0,
                top_p=1.0,
                num_return_sequences=plan.num_samples,
                max_new_tokens=plan.max_tokens,
                eos_token_id=list(self._eos),
                pad_token_id=pad,
                output_scores=True,
                return_dict_in_generate=True,
            )
        logps = torch.stack([s.log_softmax(-1) for s in out.scores], dim=1)  # [samples, tokens, V]
        tokens = out.sequences[:, width:]
        logps = logps.gather(-1, tokens[..., None])[..., 0]
        found = []
        for row, (ids, values) in enumerate(zip(tokens.tolist(), logps.tolist(), strict=True)):
            end = next((at for at, token in enumerate(ids) if token in self._eos), None)
            length = len(ids) if end is None else end + 1
            found.append(
                Completion(
                    prompt_id=shard.prompts[row // plan.num_samples].prompt_id,
                    sample_index=row % plan.num_samples,
                    token_ids=tuple(ids[:length]),
                    text=self._tokenizer.decode(ids[:length], skip_special_tokens=True),
                    finish_reason="length" if end is None else "stop",
                    sampler_logps=tuple(values[:length]),
                    policy_version=version,
                    seed=seed,
                )
            )
        return found


def learn(model: str, rate: str, overrides: Sequence[str]) -> str:
    """A run; its row of the table."""
    with tempfile.TemporaryDirectory() as folder:
        mapping = {**CONFIG, "model": {"path": model}, "run": {"dir": folder}}
        config = load_config(mapping, [f"learner.lr={rate}", *overrides])
        materials = prepare(config)
        with RunStore.create(config.run_dir, config_yaml=portable_yaml(materials.config), info={}) as store:
            play(materials, OneProcess(materials), store, [])
        status = read_status(config.run_dir)
    first, last = status["rounds"][0], status["rounds"][-1]
    found = last["evaluation"]["heldout"]
    gains = ["{:+.2f} [{:+.2f}, {:+.2f}]".format(*found["judges"][judge]["gain"]) for judge in ("reward", "gold")]
    moved = " ".join(f"{first[f'{side}_log_ratio_end']:+.4f}" for side in ("chosen", "rejected"))
    distinct = "-" if found["distinct_2"] is None else f"{found['distinct_2']:.3f}"
    warned = [record["round"] + 1 for record in status["rounds"] if any("learner.lr" in w for w in record["warnings"])]
    cells = [*gains, f"{found['kl_initial']:.4f}", f"{found['length_mean']:.1f}", distinct, moved]
    rate = f"{materials.config.learner.peak_lr:g}"
    return f"| {Path(model).name} | {rate} | {' | '.join(cells)} | {', '.join(map(str, warned)) or '-'} |"


def random_pairs(count: int, *, vocab_size: int, length: int = 48) -> list[Pair]:
    """Pairs of random tokens."""
    draw = torch.Generator().manual_seed(0)

    def answer(prompt_id: str, index: int) -> Completion:
        ids = tuple(torch.randint(3, vocab_size, (length,), generator=draw).tolist())
        return Completion(
            prompt_id=prompt_id,
            sample_index=index,
            token_ids=ids,
            text="",
            finish_reason="length",
            sampler_logps=(0.0,) * length,
            policy_version=0,
            seed=0,
        )

    prompts = [Prompt(prompt_id=str(i), token_ids=(1, 3 + i, 4 + i, 5 + i), text="") for i in range(count)]
    return [
        Pair(prompt=p, chosen=answer(p.prompt_id, 0), rejected=answer(p.prompt_id, 1), margin=1.0, probability=0.7)
        for p in prompts
    ]


def step_random(shape: Sequence[int], rates: Sequence[str], *, steps: int) -> None:
    """Nats that the chosen answers of a batch gain on the rejected ones with each step on it: a row for a rate."""
    from online_dpo.config.learner import LearnerSection
    from online_dpo.config.objective.pairwise import SigmoidObjective
    from online_dpo.learner.spec import LearnerSpec

    hidden, intermediate, layers, heads, kv_heads = shape
    pairs = random_pairs(8, vocab_size=4096)
    with tempfile.TemporaryDirectory() as folder:
        LlamaForCausalLM(
            LlamaConfig(
                vocab_size=4096,
                hidden_size=hidden,
                intermediate_size=intermediate,
                num_hidden_layers=layers,
                num_attention_heads=heads,
                num_key_value_heads=kv_heads,
                tie_word_embeddings=True,
            )
        ).save_pretrained(folder)
        for rate in rates:
            section = LearnerSection(lr=float(rate), batch_pairs=len(pairs), epochs=steps + 1)
            learner = Learner(
                LearnerSpec(
                    model_folder=folder,
                    model_name="random",
                    dtype="float32",
                    trust_remote_code=False,
                    lora=None,
                    adapter=None,
                    learner=section,
                    objective=SigmoidObjective(type="sigmoid"),
                    seed=0,
                    rounds=1,
                    threads=None,
                )
            )
            items = learner.reference_logps(pairs, (None,))
            learner.begin_round(0, items)
            found = [learner.step(step) for step in range(steps + 1)]
            moved = [f"{figures['reward_margin'] / 0.1:.5f}" for figures in found[1:]]
            print(f"| random, hidden {hidden} | {rate} | {' | '.join(moved)} |", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", help="folders, or embedded:policy; key=value sets a field of the config")
    parser.add_argument("--rates", nargs="+", required=True)
    parser.add_argument("--shape", help="hidden,intermediate,layers,heads,key-value heads of a random model")
    parser.add_argument("--steps", type=int, default=3, help="on the random model")
    args = parser.parse_args()
    if args.shape:
        step_random([int(part) for part in args.shape.split(",")], args.rates, steps=args.steps)
        return
    print(f"{HEADER}\n|{'---|' * 9}", flush=True)
    for model in (name for name in args.models if "=" not in name):
        for rate in args.rates:
            print(learn(model, rate, [name for name in args.models if "=" in name]), flush=True)


if __name__ == "__main__":
    main()
