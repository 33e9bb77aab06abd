"""What judges share that are models with a classification head: their files, tokenizer and limits, and their thread."""

from __future__ import annotations

import asyncio
import math
import threading
from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any

from transformers import PreTrainedTokenizerBase

from judges.hosting import Sleeper
from judges.protocol import Abstain, Limits, Question
from judges.threads import in_thread
from online_dpo.errors import JudgeError
from online_dpo.models.inspection import inspect_model
from online_dpo.models.loading import read_config
from online_dpo.models.locating import locate
from online_dpo.models.tokenizer import load_tokenizer
from online_dpo.types import PromptContent, Verdict


class ScoringModel(ABC):
    """Scores every completion by itself, in a thread beside the event loop, one call at a time."""

    limits = Limits(calls_in_flight=1)  # more calls would only share the same cores or GPU
    _scorer: Sleeper

    def __init__(self, path: str, *, field: str, max_tokens: int | None, trust_remote_code: bool) -> None:
        """Read what stands beside the weights.

        Args:
            path: a folder, a hub id, or an embedded name.
            field: the config section, for error messages.
            max_tokens: of an input; None = as many as the model has positions for.
            trust_remote_code: run code that the model's folder brings along.

        Raises:
            ModelError: the folder is missing or incomplete.
            JudgeError: `max_tokens` is beyond the model's positions.
        """
        self._label = f"{field}.path {path}"
        self._folder = locate(path, field=f"{field}.path")
        info = inspect_model(self._folder, field=f"{field}.path", generates=False)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(self._folder, trust_remote_code=trust_remote_code)
        self._config = read_config(self._folder, label=self._label, trust_remote_code=trust_remote_code)
        self._max_tokens = self._input_limit(max_tokens, info.max_model_len, field)
        # A call that timed out may still be running in its thread, and fast tokenizers refuse to be shared.
        self._lock = threading.Lock()

    def sleep(self) -> None:
        """Give the GPU's memory away, if the model has any."""
        with self._lock:
            self._scorer.sleep()

    def wake(self) -> None:
        """Take it back."""
        with self._lock:
            self._scorer.wake()

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        rows = [(q, i) for q in questions for i in range(len(q.completions))]
        given_up = threading.Event()
        try:
            found = await in_thread(self._alone, [(q.prompt, q.completions[i]) for q, i in rows], given_up)
        except asyncio.CancelledError:
            given_up.set()
            raise
        verdicts: list[list[Verdict]] = []
        for (question, i), said in zip(rows, found, strict=True):
            if i == 0:
                verdicts.append([])
            verdicts[-1].append(self._verdict(question, i, said))
        return verdicts

    @abstractmethod
    def _score(self, texts: Sequence[tuple[PromptContent, str]]) -> Sequence[Any]:
        """What there is to say about each prompt and completion, in order; what is counted here belongs to the call."""

    def _verdict(self, question: Question, position: int, said: Any) -> Verdict:
        return question.score(position, said)

    def _alone(self, texts: Sequence[tuple[PromptContent, str]], given_up: threading.Event) -> Sequence[Any]:
        """`_score` while no other call runs; nothing once nobody waits for it any more."""
        while not self._lock.acquire(timeout=1.0):
            if given_up.is_set():
                return [Abstain()] * len(texts)
        try:
            return self._score(texts)
        finally:
            self._lock.release()

    def _input_limit(self, max_tokens: int | None, positions: int | None, field: str) -> int:
        if max_tokens is not None and positions is not None and max_tokens > positions:
            raise JudgeError(
                f"{field}.max_tokens is {max_tokens} and the model has {positions} positions; set it to at most that"
            )
        # A tokenizer that knows no limit says 1e30.
        return int(min(max_tokens or positions or math.inf, self._tokenizer.model_max_length))
