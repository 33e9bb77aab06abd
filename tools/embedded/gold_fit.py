"""How the gold judge is fitted and written. scikit-learn is needed here and nowhere else."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from safetensors.numpy import save_file
from sklearn.feature_extraction.text import TfidfVectorizer
from sklearn.linear_model import LogisticRegression
from sklearn.pipeline import Pipeline, make_pipeline

from online_dpo.embedded.gold import TOKEN_PATTERN, VOCABULARY, WEIGHTS


def fit_gold(
    texts: Sequence[str],
    positive: Sequence[bool],
    *,
    max_features: int = 20_000,
    min_df: int = 8,
    strength: float = 1.0,
) -> Pipeline:
    """Fit tf-idf and logistic regression to labelled texts; `strength` is scikit-learn's C."""
    vectoriser = TfidfVectorizer(
        token_pattern=TOKEN_PATTERN,
        ngram_range=(1, 2),
        max_features=max_features,
        min_df=min_df,
        sublinear_tf=True,
    )
    return make_pipeline(vectoriser, LogisticRegression(C=strength, max_iter=1000)).fit(list(texts), list(positive))


def export_gold(pipeline: Pipeline, folder: Path) -> None:
    """Write a pipeline of `fit_gold` as open files that `GoldJudge` reads: no pickle."""
    vectoriser, classifier = pipeline[0], pipeline[-1]
    folder.mkdir(parents=True, exist_ok=True)
    terms = vectoriser.get_feature_names_out().tolist()
    tensors = {
        "coefficients": classifier.coef_[0].astype(np.float32),
        "idf": vectoriser.idf_.astype(np.float32),
        "intercept": classifier.intercept_.astype(np.float32),
    }
    save_file(tensors, folder / WEIGHTS)
    (folder / VOCABULARY).write_text(json.dumps({"terms": terms}, ensure_ascii=False) + "\n", encoding="utf-8")
