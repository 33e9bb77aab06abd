"""A token-classification model as a judge: it scores every step of a completion, and its scores are aggregated.

The model finds a marker after each step, as it did when it was trained, and a step's score is the probability of the
label "good" at the marker's last token. Steps and markers are turned into tokens one by one, so that their places are
known and nothing that a completion says can pass for a marker or another special token.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from judges.calling import Caller
from judges.hosting import Hosting
from judges.protocol import Abstain, Question, count
from judges.reward.classifier import TokenClassifier
from judges.reward.inputs import what_is_cut, write_chat
from judges.reward.scoring_model import ScoringModel
from judges.spec import JudgeSpec
from online_dpo.config.judges.hosted import ProcessRewardModelJudge
from online_dpo.errors import JudgeError
from online_dpo.types import PromptContent, Verdict


def build(spec: JudgeSpec, inner: Mapping[str, Caller], hosting: Hosting) -> ProcessRewardModel:
    """Load the model that a spec describes."""
    return ProcessRewardModel(spec.section, field=spec.field, hosting=hosting)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Row:
    """One prompt and completion as the model reads them."""

    ids: list[int]
    places: list[int]  # of the last token of each marker


class ProcessRewardModel(ScoringModel):
    """Scores the steps of a completion, each from 0 to 1."""

    def __init__(self, section: ProcessRewardModelJudge, *, field: str, hosting: Hosting) -> None:
        """Load the model.

        Args:
            section: the judge's part of the config.
            field: the name of that part.
            hosting: of the judge.

        Raises:
            ModelError: the folder is missing or incomplete, or its model has no token-classification head.
            JudgeError: the label or the marker does not fit the model.
        """
        trusted = section.trust_remote_code
        super().__init__(section.path, field=field, max_tokens=section.max_tokens, trust_remote_code=trusted)
        self._section = section
        self._good = self._label_of_good(field)
        self._marker = self._tokens(section.marker)
        if not self._marker or self._tokenizer.unk_token_id in self._marker:
            raise JudgeError(
                f"{field}.marker is {section.marker!r}, which {self._label} has no token for; give the text that the "
                f"model was trained to find after each step"
            )
        self._start, self._end = self._special_ends()
        self._scorer: TokenClassifier = TokenClassifier(
            self._folder,
            self._config,
            dtype=section.dtype,
            batch_tokens=section.batch_tokens,
            trust_remote_code=trusted,
            on_gpu=section.num_gpus > 0,
            label=self._label,
        )
        hosting.can_sleep(self)

    def _score(self, texts: Sequence[tuple[PromptContent, str]]) -> list[list[float] | Abstain]:
        """The scores of each completion's steps."""
        for event in ("num_truncated_judge_inputs", "num_judge_too_long"):
            count(event, 0)
        encoded = [self._encode(prompt, completion) for prompt, completion in texts]
        rows = [row for row in encoded if isinstance(row, _Row)]
        logits = iter(self._scorer.logits_at([row.ids for row in rows], [row.places for row in rows]))
        return [[self._probability(step) for step in next(logits)] if isinstance(row, _Row) else row for row in encoded]

    def _verdict(self, question: Question, position: int, said: list[float] | Abstain) -> Verdict:
        if isinstance(said, Abstain):
            return question.score(position, said)
        match self._section.aggregate:
            case "min":
                value = min(said)
            case "mean":
                value = math.fsum(said) / len(said)
            case "product":
                value = math.prod(said)
            case "last":
                value = said[-1]
        # Each step's, beside the verdict, for people.
        return replace(question.score(position, value), rationale=f"steps: {', '.join(f'{p:.4g}' for p in said)}")

    def _encode(self, prompt: PromptContent, completion: str) -> _Row | Abstain:
        steps = [step.strip() for step in completion.split(self._section.separator)]
        steps = [step for step in steps if step]
        if not steps:
            return Abstain("the completion has no step")
        before, after = self._around(prompt)
        answer: list[int] = []
        places: list[int] = []
        for step in steps:
            ids = self._tokens(step, splits_special=True)
            if len(self._marker) == 1 and self._marker[0] in ids:
                return Abstain("the completion holds the marker of steps")
            answer += [*ids, *self._marker]
            places.append(len(before) + len(answer) - 1)
        ids = [*before, *answer, *after]
        keep, number = what_is_cut(self._tokenizer, ids, self._max_tokens)
        if keep + number > len(before):
            count("num_judge_too_long")
            return Abstain(f"too long: the completion has {len(answer)} tokens, and the input {self._max_tokens}")
        count("num_truncated_judge_inputs", number > 0)
        return _Row(ids=ids[:keep] + ids[keep + number :], places=[place - number for place in places])

    def _around(self, prompt: PromptContent) -> tuple[list[int], list[int]]:
        """What stands before and after the steps."""
        if isinstance(prompt, str):
            return [*self._start, *self._tokens(prompt)], self._end
        place = "answer"
        while any(place in message["content"] or place in message["role"] for message in prompt):
            place += "-answer"
        # The last one: a template may write the word itself.
        before, found, after = write_chat(self._tokenizer, prompt, place).rpartition(place)
        if not found:
            raise JudgeError("has a chat template that does not write the answer; choose a model whose template does")
        return self._tokens(before), self._tokens(after)

    def _tokens(self, text: str, *, splits_special: bool = False) -> list[int]:
        """Of a part of the input; with `splits_special` what spells a special token is plain text."""
        return list(
            self._tokenizer(
                text, add_special_tokens=False, split_special_tokens=splits_special, verbose=False
            ).input_ids
        )

    def _special_ends(self) -> tuple[list[int], list[int]]:
        """What the tokenizer puts before and after a plain text."""
        bare, whole = self._tokens("a"), list(self._tokenizer("a").input_ids)
        start = next(i for i in range(len(whole)) if whole[i : i + len(bare)] == bare)
        return whole[:start], whole[start + len(bare) :]

    def _probability(self, logits: Sequence[float]) -> float:
        """Of the label of a good step: a softmax over all labels, or a sigmoid of the only one."""
        highest = max(logits)
        odds = [math.exp(value - highest) for value in logits]
        if len(logits) == 1:
            return 1.0 / (1.0 + math.exp(-logits[0])) if logits[0] > -700.0 else 0.0
        return odds[self._good] / math.fsum(odds)

    def _label_of_good(self, field: str) -> int:
        number, given = int(self._config.num_labels), self._section.label
        names = ", ".join(f"{i} {name}" for i, name in sorted((self._config.id2label or {}).items())[:8])
        if given is None and number > 2:
            raise JudgeError(f"{self._label} has {number} labels ({names}); set {field}.label to that of a good step")
        if given is not None and given >= number:
            raise JudgeError(f"{field}.label is {given} and the model has {number} labels ({names}); count from 0")
        return number - 1 if given is None else given
