"""A classification model in transformers: token ids in, a logit for each label out, of a sequence or of its tokens.

One of the two modules of this package that import torch.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch

from online_dpo.models.loading import check_finite, load_weights
from online_dpo.models.model_files import Head


class _Model:
    """Logits do not depend on which sequences share a forward pass, beyond float error."""

    head: Head

    def __init__(
        self,
        folder: Path,
        config: Any,
        *,
        dtype: str,
        batch_tokens: int,
        trust_remote_code: bool,
        on_gpu: bool,
        label: str,
    ) -> None:
        """Load the model.

        Args:
            folder: of the model.
            config: of transformers, read from that folder.
            dtype: float32 or bfloat16.
            batch_tokens: padded tokens of one forward pass; one sequence is always taken.
            trust_remote_code: run code that the folder brings along.
            on_gpu: use the GPU where there is one.
            label: the model in error messages.

        Raises:
            ModelError: the model has no classification head, or a weight is missing or no number.
        """
        model = load_weights(
            folder,
            config,
            label=label,
            head=self.head,
            dtype=getattr(torch, dtype),
            trust_remote_code=trust_remote_code,
        )
        self._device = torch.device("cuda" if on_gpu and torch.cuda.is_available() else "cpu")
        self._model = model.eval().to(self._device)
        check_finite(self._model.state_dict().items(), label=label)
        self._batch_tokens = batch_tokens
        self._own_pad_id: int | None = config.get_text_config().pad_token_id

    def sleep(self) -> None:
        """Into the machine's memory, off the GPU; on CPU nothing moves."""
        self._model.to("cpu")
        torch.cuda.empty_cache()

    def wake(self) -> None:
        """Back to where it computes."""
        self._model.to(self._device)

    def _batches(self, rows: Sequence[Sequence[int]]) -> Iterator[list[int]]:
        """Indices of rows of similar length, the longest first; equal lengths keep their order."""
        batch: list[int] = []
        for index in sorted(range(len(rows)), key=lambda i: (-len(rows[i]), i)):
            if batch and len(rows[batch[0]]) * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(index)
        if batch:
            yield batch

    def _forward(self, rows: Sequence[Sequence[int]], pad_id: int) -> torch.Tensor:
        """The model's logits.

        Pads on the right whatever the tokenizer says: positions are then those of a lone sequence.
        """
        width = max(len(row) for row in rows)
        ids = torch.tensor([[*row] + [pad_id] * (width - len(row)) for row in rows], device=self._device)
        mask = torch.tensor([[1] * len(row) + [0] * (width - len(row)) for row in rows], device=self._device)
        logits: torch.Tensor = self._model(input_ids=ids, attention_mask=mask)[0]
        return logits.float()


class Classifier(_Model):
    """`Scorer`: a model with a head for the whole sequence."""

    head = "sequence"
    reads_last_token = False

    @torch.inference_mode()
    def logits(self, rows: Sequence[Sequence[int]]) -> list[list[float]]:
        found: list[list[float]] = [[]] * len(rows)
        for batch in self._batches(rows):
            some = [rows[i] for i in batch]
            pad_id = self._pad_id(some)
            self._model.config.get_text_config().pad_token_id = pad_id
            for index, values in zip(batch, self._forward(some, pad_id).tolist(), strict=True):
                found[index] = values
        return found

    def _pad_id(self, rows: Sequence[Sequence[int]]) -> int:
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


class TokenClassifier(_Model):
    """A model with a head for every token."""

    head = "token"

    @torch.inference_mode()
    def logits_at(self, rows: Sequence[Sequence[int]], places: Sequence[Sequence[int]]) -> list[list[list[float]]]:
        """The logits at some tokens of each row.

        Args:
            rows: token ids.
            places: of each row, which of its tokens.

        Returns:
            Of each row `[places, labels]`.
        """
        # A model that tells padding by its id, as RoBERTa does, names that id.
        pad_id = 0 if self._own_pad_id is None else self._own_pad_id
        found: list[list[list[float]]] = [[]] * len(rows)
        for batch in self._batches(rows):
            logits = self._forward([rows[i] for i in batch], pad_id)
            for index, values in zip(batch, logits, strict=True):
                found[index] = values[list(places[index])].tolist()
        return found
