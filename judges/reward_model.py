"""A sequence-classification model as a judge, with its own tokenizer and chat template.

Scores do not depend on which completions share a forward pass, beyond float error. The only module of this package
that imports torch and transformers.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import AutoConfig, AutoModelForSequenceClassification, PreTrainedTokenizerBase

from judges.protocol import Limits, Question, count
from judges.threads import in_thread
from online_dpo.errors import JudgeError
from online_dpo.models import inspect_model, load_tokenizer, locate
from online_dpo.types import PromptContent, Verdict


class RewardModel:
    """Scores `prompt + completion` with a classification head.

    One label = its logit, two = the second's log-odds; with `output` one label of many, or a weighted sum of them.
    """

    limits = Limits(calls_in_flight=1)  # more calls would only share the same cores or GPU

    def __init__(
        self,
        path: str,
        *,
        field: str = "judge",
        dtype: str = "float32",
        output: int | Sequence[float] | None = None,
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        trust_remote_code: bool = False,
        on_gpu: bool = False,
    ) -> None:
        """Load the model.

        Args:
            path: a folder, a hub id, or `embedded:reward`.
            field: the config section, for error messages.
            dtype: float32 or bfloat16.
            output: the position of the label whose logit is the score, or a weight for each label's logit.
            max_tokens: longer inputs lose the start of the prompt; None = as many as the model has positions for.
            batch_tokens: padded tokens of one forward pass; one sequence is always taken.
            trust_remote_code: run code that the model's folder brings along.
            on_gpu: use the GPU where there is one.

        Raises:
            ModelError: the folder is missing or incomplete.
            JudgeError: the model has no classification head, or more than two labels and no `output` or one that
                does not fit; or `max_tokens` is beyond its positions.
        """
        label = f"{field}.path {path}"
        folder = locate(path, field=f"{field}.path")
        info = inspect_model(folder, field=f"{field}.path", generates=False)
        self._tokenizer: PreTrainedTokenizerBase = load_tokenizer(folder, trust_remote_code=trust_remote_code)
        config = AutoConfig.from_pretrained(folder, trust_remote_code=trust_remote_code)
        weights = _head_weights(output, config, field=field, label=label)
        self._max_tokens = self._input_limit(max_tokens, info.max_model_len, field)
        model = _load(folder, config, dtype=dtype, trust_remote_code=trust_remote_code, label=label)
        self._device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        self._weights = torch.tensor(weights, device=self._device)
        self._batch_tokens = batch_tokens
        self._own_pad_id: int | None = config.get_text_config().pad_token_id
        # A call that timed out may still be running in its thread, and fast tokenizers refuse to be shared.
        self._lock = threading.Lock()

    async def judge(self, questions: Sequence[Question]) -> list[list[Verdict]]:
        rows = [(q, i) for q in questions for i in range(len(q.completions))]
        scores, num_truncated = await in_thread(self._score, [(q.prompt, q.completions[i]) for q, i in rows])
        count("num_truncated_judge_inputs", num_truncated)
        verdicts: list[list[Verdict]] = []
        for (question, i), value in zip(rows, scores, strict=True):
            if i == 0:
                verdicts.append([])
            verdicts[-1].append(question.score(i, value))
        return verdicts

    def _score(self, texts: Sequence[tuple[PromptContent, str]]) -> tuple[list[float], int]:
        """Scores in the order given, and how many inputs were cut."""
        with self._lock, torch.inference_mode():
            encoded = [self._encode(prompt, completion) for prompt, completion in texts]
            rows = [self._cut(ids) for ids in encoded]
            scores = [0.0] * len(rows)
            for batch in self._batches(rows):
                for index, score in zip(batch, self._forward([rows[i] for i in batch]).tolist(), strict=True):
                    scores[index] = score
        return scores, sum(len(row) < len(ids) for row, ids in zip(rows, encoded, strict=True))

    def _encode(self, prompt: PromptContent, completion: str) -> list[int]:
        if isinstance(prompt, str):
            return list(self._tokenizer(prompt + completion).input_ids)
        if self._tokenizer.chat_template is None:
            raise JudgeError(
                "has no chat template, and the prompts are chat messages; choose a reward model for chats, or use "
                "plain text prompts"
            )
        messages = [*prompt, {"role": "assistant", "content": completion}]
        text = self._tokenizer.apply_chat_template(messages, tokenize=False)
        # The template has written the special tokens already, a BOS among them.
        return list(self._tokenizer(text, add_special_tokens=False).input_ids)

    def _cut(self, ids: list[int]) -> list[int]:
        """At most `max_tokens`: the start of the prompt goes first, never the end, nor a leading BOS or CLS."""
        if len(ids) <= self._max_tokens:
            return ids
        keep = 1 if ids[0] in (self._tokenizer.bos_token_id, self._tokenizer.cls_token_id) else 0
        return ids[:keep] + ids[len(ids) - self._max_tokens + keep :]

    def _batches(self, rows: Sequence[list[int]]) -> Iterator[list[int]]:
        """Indices of rows of similar length, the longest first; equal lengths keep their order."""
        batch: list[int] = []
        for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
            if batch and len(rows[batch[0]]) * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _forward(self, rows: Sequence[list[int]]) -> torch.Tensor:
        """`[B]` scores. Pads on the right whatever the tokenizer says: positions are then those of a lone sequence."""
        pad_id = self._pad_id(rows)
        self._model.config.get_text_config().pad_token_id = pad_id
        width = max(len(row) for row in rows)
        ids = torch.tensor([row + [pad_id] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        logits = self._model(input_ids=ids, attention_mask=mask).logits.float()
        return (logits * self._weights).sum(dim=1)

    def _pad_id(self, rows: Sequence[list[int]]) -> int:
        """The id that marks padding in this batch.

        transformers reads the score at the last token that is not `config.pad_token_id`. Where the model's config
        names one, that is part of the model: it is used, and a lone sequence is read at the same token. Where it
        names none, a lone sequence is read at its very last token, so padding takes an id that ends no sequence:
        with pad = EOS, as many tokenizers have it, the score would otherwise move off a final EOS.
        """
        if self._own_pad_id is not None:
            return self._own_pad_id
        endings = {row[-1] for row in rows}
        return next(i for i in range(len(endings) + 1) if i not in endings)

    def _input_limit(self, max_tokens: int | None, positions: int | None, field: str) -> int:
        if max_tokens is not None and positions is not None and max_tokens > positions:
            raise JudgeError(
                f"{field}.max_tokens is {max_tokens} and the model has {positions} positions; set it to at most that"
            )
        # A tokenizer that knows no limit says 1e30.
        return int(min(max_tokens or positions or math.inf, self._tokenizer.model_max_length))


def _head_weights(output: int | Sequence[float] | None, config: Any, *, field: str, label: str) -> list[float]:
    """A weight for each label's logit; of two labels the second's log-odds are the score."""
    number = int(config.num_labels)
    names = ", ".join(f"{i} {name}" for i, name in sorted((config.id2label or {}).items())[:8])
    if output is None:
        if number > 2:
            raise JudgeError(
                f"{label} has {number} labels ({names}); set {field}.output to the position of one, or to a list with "
                f"a weight for each"
            )
        return [1.0] if number == 1 else [-1.0, 1.0]
    if isinstance(output, int):
        if output >= number:
            raise JudgeError(f"{field}.output is {output} and the model has {number} labels ({names}); count from 0")
        return [float(i == output) for i in range(number)]
    if len(output) != number or not any(output):
        raise JudgeError(
            f"{field}.output has {len(output)} weights and the model has {number} labels ({names}); give one for "
            f"each, not all 0"
        )
    return [float(weight) for weight in output]


def _load(folder: Path, config: Any, *, dtype: str, trust_remote_code: bool, label: str) -> Any:
    try:
        model, info = AutoModelForSequenceClassification.from_pretrained(
            folder,
            config=config,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
            use_safetensors=True,
            output_loading_info=True,
        )
    except ValueError as error:
        raise JudgeError(f"{label} is no sequence-classification model: {error}; choose a reward model") from error
    # transformers would fill these with random numbers and only warn.
    if info["missing_keys"]:
        missing = ", ".join(sorted(info["missing_keys"])[:3])
        raise JudgeError(
            f"{label} has no weights for {missing}; it was not saved as a sequence-classification model: choose a "
            f"reward model"
        )
    return model
