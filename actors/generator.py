"""A vLLM engine that samples shards of prompts, token ids in and out, and takes new weights."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal, cast

from actors.engine_process import EngineSleep, prepare_process
from actors.heartbeat import Progress, beat, here
from actors.lora_slots import LoraSlots
from online_dpo.config.learner import LORA_RANKS
from online_dpo.errors import ModelError, WeightMismatchError
from online_dpo.importing import quick_imports
from online_dpo.models.merging import Received
from online_dpo.types import Adapter, Completion, FinishReason, Row, SamplingPlan, Shard, derive_seed


@dataclass(frozen=True, slots=True, kw_only=True)
class EngineSpec:
    """All that an engine is made from; the same on every replica."""

    model_folder: str
    trust_remote_code: bool
    dtype: str
    max_model_len: int  # tokens, prompt and completion together
    max_num_seqs: int
    weight_push: Literal["merge", "lora"]
    lora_rank: int
    lora_targets: tuple[str, ...]  # last names of the layers that an adapter may have
    tensor_parallel: int
    eos_token_ids: tuple[int, ...]
    gpu_memory_utilization: float
    block_size: int | None
    enforce_eager: bool
    seed: int
    quantization: Literal["nf4"] | None = None  # of the weights as they are loaded
    sleeps: bool = False  # gives the GPU's memory away while the learner works
    keeps_special_tokens: bool = False  # in texts, all but the one that ends a completion


MAX_BATCHED_TOKENS = 8192
"""Prompt tokens that an engine on CPU takes in at once, unless a single prompt is longer."""


class Generator:
    """Hosts one vLLM engine. Calls are synchronous: a shard is alone in the engine, which its reproducibility needs."""

    def __init__(self, spec: EngineSpec) -> None:
        """Start the engine.

        Raises:
            ModelError: vLLM refuses the model, or refuses to serve adapters of it.
        """
        prepare_process(eager=spec.enforce_eager)
        if spec.tensor_parallel > 1:
            # CPU only: by default vLLM wants one NUMA node for each of its workers, and dies on a machine with fewer.
            os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
        with quick_imports():
            import torch
            from vllm import LLM

        self._spec = spec
        self._version: int | None = None
        self._was_asleep = False  # since the last push
        self._sleep = EngineSleep(wanted=spec.sleeps)
        options = _engine_options(spec, on_gpu=torch.cuda.is_available())
        try:
            self._llm: Any = LLM(**options, enable_sleep_mode=self._sleep.is_possible)
        except ValueError as error:  # pydantic's is one too
            raise _refusal(spec.model_folder, error) from None
        self._slots = LoraSlots(self._llm.llm_engine) if spec.weight_push == "lora" else None
        beat(self._count_steps().count)

    def push(self, adapter: Adapter | None, version: int) -> Received:
        """Take the policy of `version`; None is the base model.

        Returns:
            What every worker received.

        Raises:
            WeightMismatchError: workers disagree, or the prefix cache could not be cleared.
        """
        self._version = None  # until everything below has worked, nothing may be sampled
        if self._slots is not None:
            self._slots.clear()
            received = [Received(digest=None if adapter is None else self._slots.load(adapter))]
        else:
            files = (None, None) if adapter is None else (adapter.weights, adapter.config)
            args = (self._spec.model_folder, *files, self._was_asleep)
            received = self._llm.collective_rpc("load_merged", args=args)
        digests = {found.digest for found in received}
        if len(digests) != 1:
            raise WeightMismatchError(f"the engine's workers received different adapters: {sorted(map(str, digests))}")
        self._reset_prefix_cache()
        self._version, self._was_asleep = version, False
        return cast(Received, received[0])  # each worker merges whole weights and takes its part of them

    def sleep(self) -> None:
        """Give the GPU's memory away until `wake`; on CPU nothing moves. Nothing is sampled before the next push."""
        self._version, self._was_asleep = None, True
        self._sleep.sleep(self._llm)

    def wake(self) -> None:
        """Take the GPU's memory back; the policy must be pushed again."""
        self._sleep.wake(self._llm)

    def sample(self, shard: Shard, plan: SamplingPlan, version: int) -> list[Completion]:
        """`num_samples` completions for each prompt of a shard, in prompt and sample order.

        One request per sample with a seed of its own: vLLM's n > 1 seeds children with seed + index, so that samples
        of neighbouring seeds would share their random streams.

        Raises:
            WeightMismatchError: the engine does not hold the policy of `version`.
        """
        from vllm import SamplingParams

        if self._version != version:
            raise WeightMismatchError(f"policy {version} was to be sampled and the engine holds {self._version}")
        self._reset_prefix_cache()  # otherwise a shard's bits would depend on the shards before it
        wanted = [(prompt, index) for prompt in shard.prompts for index in range(plan.num_samples)]
        seeds = [
            derive_seed(plan.run_seed, "sample", plan.purpose, plan.round_index, prompt.prompt_id, index)
            for prompt, index in wanted
        ]
        params = [
            SamplingParams(
                n=1,
                seed=seed,
                temperature=plan.temperature,
                top_p=plan.top_p,
                max_tokens=plan.max_tokens,
                stop=list(plan.stop),
                stop_token_ids=list(self._spec.eos_token_ids),
                logprobs=0,
                skip_special_tokens=not self._spec.keeps_special_tokens,
            )
            for seed in seeds
        ]
        outputs = self._generate([list(prompt.token_ids) for prompt, _ in wanted], params)
        return [
            _completion(prompt.prompt_id, index, output.outputs[0], version, seed)
            for (prompt, index), output, seed in zip(wanted, outputs, seeds, strict=True)
        ]

    def probe(self, rows: Sequence[Row]) -> list[list[float]]:
        """Log-probs `[T]` of each row's completion tokens, scored as a prompt, in nats.

        Scoring bypasses the prefix cache, so this sees the weights themselves.
        """
        from vllm import SamplingParams

        params = SamplingParams(max_tokens=1, prompt_logprobs=0, detokenize=False)
        outputs = self._generate([list(row.prompt_ids + row.completion_ids) for row in rows], params)
        scores = []
        for row, output in zip(rows, outputs, strict=True):
            start = len(row.prompt_ids)
            scores.append(
                [output.prompt_logprobs[start + i][token].logprob for i, token in enumerate(row.completion_ids)]
            )
        return scores

    def ready(self) -> tuple[int, str]:
        """Process id and node, once the engine is up."""
        return here()

    def close(self) -> None:
        """Leave nothing behind: adapters in memory, worker processes of the engine."""
        if self._slots is not None:
            self._slots.close()
        self._llm.llm_engine.engine_core.shutdown()

    def _generate(self, token_ids: list[list[int]], params: Any) -> list[Any]:
        prompts = [{"prompt_token_ids": ids} for ids in token_ids]
        request = self._slots.current if self._slots is not None else None
        return self._llm.generate(prompts, params, use_tqdm=False, lora_request=request)

    def _count_steps(self) -> Progress:
        """What counts the engine's steps from now on."""
        engine, progress = self._llm.llm_engine, Progress()
        step = engine.step

        def counted(*args: Any, **options: Any) -> Any:
            progress.add()
            return step(*args, **options)

        engine.step = counted
        return progress

    def _reset_prefix_cache(self) -> None:
        # It returns False and clears nothing while any block is in use.
        if not self._llm.reset_prefix_cache():
            raise WeightMismatchError("vLLM did not clear its prefix cache; stale blocks could have been sampled from")


def _engine_options(spec: EngineSpec, *, on_gpu: bool) -> dict[str, Any]:
    """What vLLM's `LLM` is made with."""
    options: dict[str, Any] = {
        "model": spec.model_folder,
        "dtype": spec.dtype,
        "trust_remote_code": spec.trust_remote_code,
        "max_model_len": spec.max_model_len,
        "max_num_seqs": spec.max_num_seqs,
        "tensor_parallel_size": spec.tensor_parallel,
        "gpu_memory_utilization": spec.gpu_memory_utilization,
        "enforce_eager": spec.enforce_eager,
        "seed": spec.seed,
        # Nothing of the model's generation_config may leak into sampling (top_k, penalties, temperature); its extra
        # end-of-sequence ids arrive through `eos_token_ids`.
        "generation_config": "vllm",
        "logprobs_mode": "raw_logprobs",
        "worker_extension_cls": "online_dpo.models.merging.MergeExtension",
        "disable_log_stats": True,
    }
    if spec.weight_push == "lora":
        # vLLM accepts few ranks; a larger slot changes nothing in the result.
        rank = next(r for r in LORA_RANKS if r >= spec.lora_rank)
        options |= {"enable_lora": True, "max_lora_rank": rank, "max_loras": 1, "max_cpu_loras": 2}
        # Without this vLLM 0.32 wraps the head too, which nothing here trains, and on CPU scoring a prompt then fails:
        # its LoRA logits expect one row per request.
        options["lora_target_modules"] = list(spec.lora_targets)
    if spec.quantization == "nf4":
        # vllm-bnb-plugin quantises as the learner does: blocks of 64, their scales quantised too.
        options |= {"quantization": "bitsandbytes", "load_format": "bitsandbytes"}
    if spec.block_size is not None:
        options["block_size"] = spec.block_size
    if not on_gpu:
        # vLLM 0.32 on CPU dies of a request with a seed whose prompt is taken in in pieces.
        options["enable_chunked_prefill"] = False
        options["max_num_batched_tokens"] = max(MAX_BATCHED_TOKENS, spec.max_model_len)
    return options


def _refusal(model_folder: str, error: ValueError) -> ModelError:
    """What vLLM says against a model, as an error of ours."""
    reason = " ".join(str(error).split()).rstrip(".")
    remedy = "set generator.weight_push to merge" if "LoRA" in reason else "choose another model"
    return ModelError(f"vLLM does not serve {model_folder}: {reason}; {remedy}")


def _completion(prompt_id: str, index: int, output: Any, version: int, seed: int) -> Completion:
    token_ids = tuple(output.token_ids)
    return Completion(
        prompt_id=prompt_id,
        sample_index=index,
        token_ids=token_ids,
        text=output.text,
        finish_reason=cast(FinishReason, output.finish_reason),
        sampler_logps=tuple(
            position[token].logprob for token, position in zip(token_ids, output.logprobs, strict=True)
        ),
        policy_version=version,
        seed=seed,
    )
