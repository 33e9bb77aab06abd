"""vLLM's pooling runner for a reward model; it lives in the process of the judge's host."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, cast

from actors.engine_process import EngineSleep, prepare_judge_process
from judges.hosting import ScorerRequest
from online_dpo.errors import JudgeError
from online_dpo.importing import quick_imports


class VllmScorer:
    """`Scorer`. The sequences of one call are alone in the engine, which keeps nothing of calls before."""

    def __init__(self, engine: ScorerRequest, *, sleeps: bool = False) -> None:
        """Load the model.

        Args:
            engine: what is wanted.
            sleeps: it gives its GPU's memory away while it is not asked.

        Raises:
            JudgeError: vLLM knows no such model, or it has no classification head.
        """
        on_gpu = prepare_judge_process(engine.kv_cache_gib)
        with quick_imports():
            from vllm import LLM, PoolingParams

        self._sleep = EngineSleep(wanted=sleeps)
        try:
            self._llm: Any = LLM(
                model=engine.path,
                runner="pooling",
                convert="classify",
                dtype=cast(Any, engine.dtype),
                trust_remote_code=engine.trust_remote_code,
                max_model_len=engine.max_tokens,
                max_num_batched_tokens=max(engine.batch_tokens, engine.max_tokens),
                # A sequence whose start is already there has other float error than one that is not.
                enable_prefix_caching=False,
                enable_chunked_prefill=False,
                gpu_memory_utilization=engine.gpu_memory_utilization,
                enforce_eager=not on_gpu,
                disable_log_stats=True,
                enable_sleep_mode=self._sleep.is_possible,
            )
        except ValueError as error:  # pydantic's is one too
            reason = " ".join(str(error).split())
            raise JudgeError(f"{engine.label} cannot be loaded by vLLM's pooling runner: {reason}") from None
        pooler: Any = self._llm.llm_engine.model_config.pooler_config
        self.reads_last_token = pooler.seq_pooling_type == "LAST"
        # Logits, not the probabilities that vLLM would make of them.
        self._params = PoolingParams(use_activation=False)

    def sleep(self) -> None:
        self._sleep.sleep(self._llm)

    def wake(self) -> None:
        self._sleep.wake(self._llm)

    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        prompts = [{"prompt_token_ids": list(row)} for row in rows]
        outputs = self._llm.classify(prompts, pooling_params=self._params, use_tqdm=False)
        return [list(output.outputs.probs) for output in outputs]
