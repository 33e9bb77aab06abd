"""What every process with a vLLM engine does: it sets what vLLM reads as it is imported, and the engine may sleep."""

from __future__ import annotations

import os
from typing import Any


def prepare_process(*, eager: bool) -> None:
    """Set the environment variables that vLLM and Triton read; to be called before vLLM is imported.

    Args:
        eager: the engine compiles nothing.
    """
    # The engine lives in this process: weights are pushed by a direct call, and the actor's death is the engine's.
    os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] = "0"
    # Triton's products of float32 are TF32 by default, which moved log-probs by 1e-3 nats on an H100.
    os.environ.setdefault("TRITON_F32_DEFAULT", "ieee")
    if eager:
        # vLLM 0.32 compiles its log-prob ranks even when eager: seconds at the first call, and a C++ compiler.
        os.environ["TORCHDYNAMO_DISABLE"] = "1"


def prepare_judge_process(kv_cache_gib: int) -> bool:
    """Prepare this process for a judge's engine; whether it gets a GPU."""
    os.environ["VLLM_CPU_KVCACHE_SPACE"] = str(kv_cache_gib)
    import torch

    has_gpu = torch.cuda.is_available()
    prepare_process(eager=not has_gpu)
    return has_gpu


class EngineSleep:
    """Lets an engine give its GPU's memory away and take it back; where vLLM knows no sleep, as on CPU, nothing moves.

    Level 1 keeps the weights in the machine's memory and drops the KV cache. Level 2 would drop the weights as well,
    and some models lost more than their weights by it (NeMo-RL issue 2631).
    """

    def __init__(self, *, wanted: bool) -> None:
        from vllm.platforms import current_platform

        self.is_possible = wanted and current_platform.is_sleep_mode_available()  # what `enable_sleep_mode` must be
        self._is_asleep = False

    def sleep(self, llm: Any) -> None:
        """Give the memory away. No request may be running."""
        if self.is_possible and not self._is_asleep:
            self._is_asleep = True  # also where it fails half-way: only a wake-up can mend that
            llm.sleep(level=1)

    def wake(self, llm: Any) -> None:
        """Take the memory back. Weights may have changed meanwhile (vLLM issue 53888): they must be checked.

        Raises:
            RuntimeError: the engine is not wholly awake; only a new one helps.
        """
        if self._is_asleep:
            if not llm.wake_up():
                raise RuntimeError("vLLM did not take back all the GPU memory that it had before its sleep")
            self._is_asleep = False
