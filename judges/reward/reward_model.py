"""A sequence-classification model as a judge, with its own tokenizer and chat template.

It runs in transformers, or in a vLLM engine that its host provides; scores do not depend on which completions share a
forward pass, beyond float error.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from typing import Any

from judges.calling import Caller
from judges.hosting import NO_HOSTING, Hosting, Scorer, ScorerRequest
from judges.protocol import count
from judges.reward.classifier import Classifier
from judges.reward.inputs import cut_input, encode_input
from judges.reward.scoring_model import ScoringModel
from judges.spec import JudgeSpec
from online_dpo.config.judges.hosted import RewardModelJudge, ScoringEngineSection
from online_dpo.errors import JudgeError
from online_dpo.types import PromptContent


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> RewardModel:
    """Load the model that a spec describes."""
    section: RewardModelJudge = spec.section
    return RewardModel(
        section.path,
        field=spec.field,
        dtype=section.dtype,
        output=section.output,
        max_tokens=section.max_tokens,
        batch_tokens=section.batch_tokens,
        engine=section.engine,
        trust_remote_code=section.trust_remote_code,
        on_gpu=section.num_gpus > 0,
        hosting=hosting,
    )


class RewardModel(ScoringModel):
    """Scores `prompt + completion` with a classification head.

    One label = its logit, two = the second's log-odds; with `output` one label of many, or a weighted sum of them.
    """

    def __init__(
        self,
        path: str,
        *,
        field: str = "judge",
        dtype: str = "float32",
        output: int | Sequence[float] | None = None,
        max_tokens: int | None = None,
        batch_tokens: int = 8192,
        engine: ScoringEngineSection | None = None,
        trust_remote_code: bool = False,
        on_gpu: bool = False,
        hosting: Hosting = NO_HOSTING,
    ) -> None:
        """Load the model.

        Args:
            path: a folder, a hub id, or `embedded:reward`.
            field: the config section, for error messages.
            dtype: float32 or bfloat16.
            output: the position of the label whose logit is the score, or a weight for each label's logit.
            max_tokens: longer inputs lose the start of the prompt; None = as many as the model has positions for.
            batch_tokens: of one forward pass, padded ones included; one sequence is always taken.
            engine: run in vLLM's pooling runner; None = in transformers.
            trust_remote_code: run code that the model's folder brings along.
            on_gpu: use the GPU where there is one; an engine always does.
            hosting: gives the engine.

        Raises:
            ModelError: the folder is missing or incomplete.
            JudgeError: the model has no classification head, or more than two labels and no `output` or one that
                does not fit; `max_tokens` is beyond its positions; or no engine can be had here.
        """
        super().__init__(path, field=field, max_tokens=max_tokens, trust_remote_code=trust_remote_code)
        label, folder, config = self._label, self._folder, self._config
        self._weights = _head_weights(output, config, field=field, label=label)
        self._own_pad_id: int | None = config.get_text_config().pad_token_id
        shape: dict[str, Any] = {"dtype": dtype, "batch_tokens": batch_tokens, "trust_remote_code": trust_remote_code}
        self._scorer: Scorer
        if engine is None:
            self._scorer = Classifier(folder, config, on_gpu=on_gpu, label=label, **shape)
        else:
            memory = engine.model_dump(include={"gpu_memory_utilization", "kv_cache_gib"})
            request = ScorerRequest(path=str(folder), max_tokens=self._max_tokens, label=label, **memory, **shape)
            self._scorer = hosting.scorer(request)
        hosting.can_sleep(self)

    def _score(self, texts: Sequence[tuple[PromptContent, str]]) -> list[float]:
        encoded = [encode_input(self._tokenizer, prompt, completion) for prompt, completion in texts]
        rows = [cut_input(self._tokenizer, ids, self._max_tokens) for ids in encoded]
        logits = self._scorer.logits([self._until_read(row) for row in rows])
        count("num_truncated_judge_inputs", sum(len(row) < len(ids) for row, ids in zip(rows, encoded, strict=True)))
        return [math.fsum(w * x for w, x in zip(self._weights, row, strict=True) if w) for row in logits]

    def _until_read(self, ids: list[int]) -> list[int]:
        """As far as transformers reads: it takes the score at the last token that is not the model's padding."""
        if not self._scorer.reads_last_token or self._own_pad_id is None:
            return ids
        end = max((i + 1 for i, token in enumerate(ids) if token != self._own_pad_id), default=1)
        return ids[:end]


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
