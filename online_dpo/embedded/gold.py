"""The gold judge: an independent sentiment classifier, for evaluation only.

It is fitted to reviews that the reward model never saw, with a different kind of model, so a policy that merely
exploits the reward model does not raise it. numpy is all it needs.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

WEIGHTS = "gold.safetensors"
VOCABULARY = "vocabulary.json"
TOKEN_PATTERN = r"(?u)\b\w[\w']*"


class GoldJudge:
    """Logistic regression over the tf-idf of words and pairs of adjacent words."""

    def __init__(self, folder: Path | str | None = None) -> None:
        """Load the classifier in `folder`, or the embedded one.

        Raises:
            FileNotFoundError: the folder lacks one of the two files.
        """
        where = Path(folder) if folder is not None else Path(__file__).parent / "gold"
        tensors = load_file(where / WEIGHTS)
        self._coefficients = tensors["coefficients"].astype(np.float64)
        self._idf = tensors["idf"].astype(np.float64)
        self._intercept = float(tensors["intercept"][0])
        terms = json.loads((where / VOCABULARY).read_text(encoding="utf-8"))["terms"]
        self._index = {term: i for i, term in enumerate(terms)}
        self._words = re.compile(TOKEN_PATTERN)

    def score_batch(self, prompts: list[str], completions: list[str]) -> list[float]:
        """The log-odds that each completion is positive.

        Only the completion is read. The prompt is the same for every completion that is compared, and leaving it
        out keeps the score about what the policy wrote. A completion without a known word gets the intercept.

        Raises:
            ValueError: the two lists differ in length.
        """
        return [self.score(prompt, completion) for prompt, completion in zip(prompts, completions, strict=True)]

    def score(self, prompt: str, completion: str) -> float:
        """The log-odds that `completion` is positive; see `score_batch`."""
        words = self._words.findall(completion.lower())
        grams = Counter(words)
        grams.update(f"{first} {second}" for first, second in pairwise(words))
        known = [(self._index[gram], count) for gram, count in grams.items() if gram in self._index]
        if not known:
            return self._intercept
        at = np.array([index for index, _ in known])
        weights = (1.0 + np.log([count for _, count in known])) * self._idf[at]
        return float(weights @ self._coefficients[at] / np.linalg.norm(weights) + self._intercept)
