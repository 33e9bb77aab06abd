"""Sleep of a vLLM engine, for the time in which others use its GPU."""

from __future__ import annotations

from typing import Any


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
