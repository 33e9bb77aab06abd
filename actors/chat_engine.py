"""A vLLM engine for a judge that declares one; it lives in the process of the judge's host."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from typing import Any, cast

from actors.engine_process import EngineSleep, prepare_judge_process
from judges.chat import CallFailed, ChatEngineRequest, ChatReply, ChatRequest
from judges.llm.quoting import without_tokens
from judges.threads import in_thread
from online_dpo.errors import JudgeError
from online_dpo.importing import quick_imports
from online_dpo.models.inspection import inspect_model
from online_dpo.models.locating import locate
from online_dpo.models.tokenizer import control_ids, control_tokens, load_tokenizer

MAX_NUM_SEQS = 256
"""Sequences decoded at once, at most."""


class VllmChat:
    """`Chat`. The requests of one call are alone in the engine, so replies do not depend on what else is judged."""

    def __init__(self, engine: ChatEngineRequest, *, sleeps: bool = False) -> None:
        """Load the model.

        Args:
            engine: what is wanted.
            sleeps: it gives its GPU's memory away while it is not asked.

        Raises:
            ModelError: its folder is missing or incomplete.
            JudgeError: it has no chat template.
        """
        on_gpu = prepare_judge_process(engine.kv_cache_gib)
        with quick_imports():
            from vllm import LLM

        self._sleep = EngineSleep(wanted=sleeps)
        field = f"{engine.label}.path"
        folder = locate(engine.path, field=field)
        info = inspect_model(folder, field=field)
        self._tokenizer = load_tokenizer(folder, trust_remote_code=engine.trust_remote_code)
        if self._tokenizer.chat_template is None:
            raise JudgeError(f"{field} {engine.path} has no chat template; choose a chat model")
        options: dict[str, Any] = {}
        if not on_gpu:
            # vLLM 0.32 on CPU dies of a request with a seed whose prompt is taken in in pieces.
            longest = engine.max_model_len or info.max_model_len or 0
            options = {"enable_chunked_prefill": False, "max_num_batched_tokens": max(8192, longest)}
        self._llm: Any = LLM(
            model=str(folder),
            dtype=cast(Any, engine.dtype),
            trust_remote_code=engine.trust_remote_code,
            max_model_len=engine.max_model_len,
            max_num_seqs=MAX_NUM_SEQS,
            gpu_memory_utilization=engine.gpu_memory_utilization,
            enforce_eager=not on_gpu,
            seed=0,  # requests have seeds of their own
            generation_config="vllm",  # nothing of the model's own may leak into sampling
            logprobs_mode="raw_logprobs",
            # A weak model may otherwise fill its reply with spaces, which JSON allows.
            structured_outputs_config={"backend": "xgrammar", "disable_any_whitespace": True},
            disable_log_stats=True,
            enable_sleep_mode=self._sleep.is_possible,
            **options,
        )
        self._max_tokens = int(self._llm.llm_engine.model_config.max_model_len)
        self._lock = threading.Lock()

    def sleep(self) -> None:
        """Give the GPU's memory away."""
        with self._lock:
            self._sleep.sleep(self._llm)

    def wake(self) -> None:
        """Take it back."""
        with self._lock:
            self._sleep.wake(self._llm)

    async def ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | CallFailed]:
        return await in_thread(self._ask, requests)

    def _ask(self, requests: Sequence[ChatRequest]) -> list[ChatReply | CallFailed]:
        with self._lock:
            prompts = [encode(self._tokenizer, request) for request in requests]
            fitting = [
                i
                for i, ids in enumerate(prompts)
                if ids is not None and len(ids) + requests[i].max_tokens <= self._max_tokens
            ]
            self._llm.reset_prefix_cache()  # otherwise replies would depend on the calls before
            outputs = self._llm.generate(
                [{"prompt_token_ids": prompts[i]} for i in fitting],
                [_sampling(requests[i]) for i in fitting],
                use_tqdm=False,
            )
        replies: list[ChatReply | CallFailed] = [self._refuse(ids) for ids in prompts]
        for i, output in zip(fitting, outputs, strict=True):
            was_read = list(output.prompt_token_ids) == prompts[i]
            replies[i] = _reply(output.outputs[0]) if was_read else CallFailed("the engine cut the question short")
        return replies

    def _refuse(self, ids: list[int] | None) -> CallFailed:
        if ids is None:
            return CallFailed("the question holds a control token of the judge's model")
        return CallFailed(f"the question has {len(ids)} tokens, and the model takes {self._max_tokens} with the reply")


def encode(tokenizer: Any, request: ChatRequest) -> list[int] | None:
    """The tokens of a request, of which only the chat template has written control tokens; None where that fails."""
    control = control_tokens(tokenizer)
    messages = [{**message, "content": without_tokens(message["content"], control)} for message in request.messages]
    ids, harmless = (_render(tokenizer, turns) for turns in (messages, [{**m, "content": "x"} for m in messages]))
    numbers = control_ids(tokenizer)
    return ids if [i for i in ids if i in numbers] == [i for i in harmless if i in numbers] else None


def _render(tokenizer: Any, messages: list[dict[str, str]]) -> list[int]:
    text = tokenizer.apply_chat_template(messages, tokenize=False, add_generation_prompt=True)
    # The template has written the special tokens already.
    return list(tokenizer(text, add_special_tokens=False).input_ids)


def _sampling(request: ChatRequest) -> Any:
    from vllm import SamplingParams
    from vllm.sampling_params import StructuredOutputsParams

    schema = None if request.schema is None else StructuredOutputsParams(json=dict(request.schema))
    return SamplingParams(
        max_tokens=request.max_tokens,
        temperature=request.temperature,
        seed=request.seed,
        logprobs=request.num_logprobs,
        structured_outputs=schema,
    )


def _reply(output: Any) -> ChatReply:
    first = None
    if output.logprobs:
        first = tuple((entry.decoded_token or "", float(entry.logprob)) for entry in output.logprobs[0].values())
    return ChatReply(text=output.text, cut_short=output.finish_reason == "length", first_logprobs=first)
