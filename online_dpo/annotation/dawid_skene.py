"""How reliable each annotator is, and what is then probably right, estimated together (Dawid and Skene, 1979).

Each annotator has a full confusion matrix, since people who say "tie" too often and people who guess do different
harm, which one number for each could not tell apart. Two things make it estimable from few votes:

- Which answer of a question is the first one means nothing. So an annotator takes a better first answer for a worse one
  as often as a better second one, and counts of mirrored cells are added up.
- Before any vote, annotators are thought to be right in four of five cases (`PRIOR_RIGHT`) and all outcomes to be
  equally frequent, with the weight of five questions (`PRIOR_STRENGTH`). Somebody who answers at random, or the
  contrary, soon outweighs it.

The same votes give the same estimate, in whatever order they come: each step is rounded, since otherwise the order of a
sum decided between two annotators who contradict each other and of whom nothing else is known.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from online_dpo.annotation.records import LABELS, MIRRORED

PRIOR_RIGHT, PRIOR_STRENGTH = 0.8, 5.0

_DECIMALS = 12
_EPS = 1e-10
_INDEX: Mapping[str, int] = {label: number for number, label in enumerate(LABELS)}
_MIRROR = [LABELS.index(MIRRORED[label]) for label in LABELS]


@dataclass(frozen=True, slots=True, kw_only=True)
class Estimate:
    """What the votes say, all together."""

    outcomes: Mapping[str, Mapping[str, float]]  # question -> outcome -> probability that it is the true one
    confusion: Mapping[str, Mapping[str, Mapping[str, float]]]  # annotator -> true outcome -> said -> probability

    def reliability(self, annotator: str) -> float:
        """How often the annotator is right where one of the answers is better."""
        return self.confusion[annotator]["first"]["first"]


def estimate(
    votes: Iterable[tuple[str, str, str]],
    known: Mapping[str, str] | None = None,
    *,
    strength: float = PRIOR_STRENGTH,
    max_iterations: int = 300,
    tolerance: float = 1e-7,
) -> Estimate:
    """Expectation maximisation from the shares of the votes, until no probability changes by more than `tolerance`.

    Args:
        votes: question, annotator, and outcome (of `LABELS`).
        known: question -> outcome, where the true one is known.
        strength: of what is thought before any vote, as a number of votes on each outcome; 0 = maximum likelihood.
        max_iterations: at most as many.
        tolerance: of probabilities.
    """
    rows = sorted(votes)
    questions, question_of = _numbered(row[0] for row in rows)
    annotators, annotator_of = _numbered(row[1] for row in rows)
    said = np.array([_INDEX[row[2]] for row in rows], dtype=int)
    num_labels = len(LABELS)
    shares = np.zeros((len(questions), num_labels))
    np.add.at(shares, (question_of, said), 1.0)
    fixed = [(i, _INDEX[known[q]]) for i, q in enumerate(questions) if q in known] if known else []
    # What nobody ever says cannot be told from what is never true.
    possible = shares.sum(axis=0) > 0.0
    possible |= possible[_MIRROR]
    possible[[answer for _, answer in fixed]] = True
    imagined = np.full((num_labels, num_labels), strength * (1 - PRIOR_RIGHT) / max(possible.sum() - 1, 1))
    np.fill_diagonal(imagined, strength * PRIOR_RIGHT)
    truth = _clamped(shares / np.maximum(shares.sum(axis=1, keepdims=True), 1.0), fixed)
    confusion = _confusion(truth, question_of, annotator_of, said, len(annotators), imagined, possible)
    for _ in range(max_iterations):
        before = truth
        prior = before.sum(axis=0) + np.where(possible, strength / possible.sum(), 0.0)
        prior = (prior + prior[_MIRROR]) / prior.sum()
        logs = np.tile(np.log(np.maximum(prior, _EPS)), (len(questions), 1))
        np.add.at(logs, question_of, np.log(confusion)[annotator_of, :, said])
        logs[:, ~possible] = -np.inf
        odds = np.exp(logs - logs.max(axis=1, keepdims=True))
        truth = _clamped(np.round(odds / odds.sum(axis=1, keepdims=True), _DECIMALS), fixed)
        confusion = _confusion(truth, question_of, annotator_of, said, len(annotators), imagined, possible)
        if np.abs(truth - before).max(initial=0.0) <= tolerance:
            break
    return Estimate(
        outcomes={q: dict(zip(LABELS, map(float, truth[i]), strict=True)) for i, q in enumerate(questions)},
        confusion={
            a: {
                label: dict(zip(LABELS, map(float, confusion[i, row]), strict=True))
                for row, label in enumerate(LABELS)
                if possible[row]
            }
            for i, a in enumerate(annotators)
        },
    )


def _confusion(
    truth: NDArray[np.float64],
    question_of: NDArray[np.int_],
    annotator_of: NDArray[np.int_],
    said: NDArray[np.int_],
    num_annotators: int,
    imagined: NDArray[np.float64],
    possible: NDArray[np.bool_],
) -> NDArray[np.float64]:
    """`[annotators, true, said]`: how often each says what, given how probable each outcome is."""
    counts = np.zeros((num_annotators, len(LABELS), len(LABELS)))
    for true in range(len(LABELS)):
        np.add.at(counts[:, true], (annotator_of, said), truth[question_of, true])
    counts += counts[:, _MIRROR][:, :, _MIRROR]
    counts = np.where(possible, np.maximum(counts + imagined, _EPS), _EPS)
    return np.asarray(counts / counts.sum(axis=2, keepdims=True))


def _clamped(truth: NDArray[np.float64], fixed: Iterable[tuple[int, int]]) -> NDArray[np.float64]:
    for question, answer in fixed:
        truth[question] = np.eye(len(LABELS))[answer]
    return truth


def _numbered(names: Iterable[str]) -> tuple[list[str], NDArray[np.int_]]:
    numbers: dict[str, int] = {}
    found = np.array([numbers.setdefault(name, len(numbers)) for name in names], dtype=int)
    return list(numbers), found
