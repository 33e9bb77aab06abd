"""Data sets of preferences or demonstrations -> `Pair`, `Labelled`, `Demonstration`: tokenised once.

They are drawn without replacement across rounds.

A prompt is never cut: a row whose prompt is too long is dropped. An answer that is too long loses its end, including
the end-of-sequence token, and nothing takes that token's place. So every answer is trained on after its whole prompt,
and no answer is taught to end where it did not.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from online_dpo.config.preferences import DEFAULT_MAX_TOKENS, EvaluationPairs, PairColumns, PairsSection
from online_dpo.config.run import RunConfig
from online_dpo.data.conversations import encode_conversation
from online_dpo.data.drawing import Cursor, EpochSampler, first_usable
from online_dpo.data.encoding import AnswerEncoder, is_blank
from online_dpo.data.preference_files import DROPPED, SplitRow, columns_in, columns_of, load_preferences, split_row
from online_dpo.data.row_files import Table, row_ids
from online_dpo.errors import DataError
from online_dpo.models.inspection import ModelInfo
from online_dpo.types import AnyItem, Completion, Demonstration, Labelled, Message, Pair, Prompt, text_of_turns


@dataclass(frozen=True, slots=True, kw_only=True)
class TokenLimits:
    """What is too long, and what becomes of it."""

    max_prompt_tokens: int
    max_completion_tokens: int
    drop_truncated: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class PairDraw:
    """A round's share of a data set, where the next round's begins, and what became of every row."""

    items: tuple[Pair, ...] | tuple[Labelled, ...] | tuple[Demonstration, ...]
    cursor: Cursor
    outcomes: Mapping[str, int]  # rows by what became of them: `kept`, or one of `DROPPED`
    counts: Mapping[str, int]  # `num_truncated_answers`, `num_split_boundaries`: of the kept rows


class PairSource:
    """The preferences of one data set. Tokenises at draw, so that a large set costs nothing until it is used."""

    def __init__(
        self, table: Table, *, spec: PairColumns, field: str, encoder: AnswerEncoder, limits: TokenLimits, seed: int
    ) -> None:
        """Use `load` instead, unless the rows come from elsewhere."""
        self._table, self._spec, self._field = table, spec, field
        self._encoder, self._limits, self._seed = encoder, limits, seed
        self._ids = row_ids(table, "pair")
        if self.has_chat and not encoder.has_chat_template:
            raise DataError(
                f"{table.label}, which holds chat messages, but the tokenizer has no chat template; put one into the "
                f"model's folder as chat_template.jinja, or give it as chat_template under chat_template_kwargs"
            )

    @classmethod
    def load(
        cls, spec: PairColumns, *, field: str, encoder: AnswerEncoder, limits: TokenLimits, seed: int
    ) -> PairSource:
        """Read a source and check every row.

        Args:
            spec: `config.PairsSection` or `config.EvaluationPairs`.
            field: the config section that `spec` is, such as `pairs`, for errors.
            encoder: of the policy's tokenizer.
            limits: in tokens.
            seed: of the run.

        Raises:
            DataError: the source is missing, malformed or empty, or a row holds no preference at all.
        """
        table = load_preferences(spec, field=field)
        spec = columns_in(spec, table.rows[0])
        return cls(table, spec=spec, field=field, encoder=encoder, limits=limits, seed=seed)

    def __len__(self) -> int:
        """Rows, usable or not."""
        return len(self._table.rows)

    @property
    def has_chat(self) -> bool:
        """Whether the prompts are chats; all are, or none is."""
        return isinstance(self._table.rows[0][columns_of(self._spec)[0]], list)

    def draw(self, cursor: Cursor, n: int | None, *, asked_by: str) -> PairDraw:
        """The next `n` usable rows, all different, each once in an epoch; None = the rest of the epoch.

        Args:
            cursor: `Cursor()` at first, afterwards the one that the last draw returned.
            n: how many.
            asked_by: the field of the config that settles `n`, with its value, for errors.

        Raises:
            DataError: fewer than `n` rows are usable, or the cursor is of another source.
        """
        outcomes, counts = self._no_counts()
        rows = EpochSampler(
            label=self._table.label,
            num_rows=len(self),
            seed=self._seed,
            purpose="pairs",
            read=lambda row: self._read(row, outcomes, counts),
        )
        items, following, is_enough = rows.draw(cursor, n)
        if not is_enough:
            raise self._too_few(asked_by, n)
        return PairDraw(items=tuple(items), cursor=following, outcomes=outcomes, counts=counts)  # type: ignore[arg-type]

    def head(self, count: int | None) -> PairDraw:
        """The first `count` usable rows in the order of the file, or all: the same for every run.

        Raises:
            DataError: fewer are usable, or none.
        """
        draw = self._read_all(count)
        if not draw.items or (count is not None and len(draw.items) < count):
            raise self._too_few(f"{self._field}.count is {count}", count)
        return draw

    def _read_all(self, count: int | None = None) -> PairDraw:
        outcomes, counts = self._no_counts()
        items: list[Any] = first_usable(lambda row: self._read(row, outcomes, counts), len(self), count)
        return PairDraw(items=tuple(items), cursor=Cursor(), outcomes=outcomes, counts=counts)

    def _no_counts(self) -> tuple[Counter[str], Counter[str]]:
        outcomes = Counter(dict.fromkeys(("kept", *DROPPED), 0))
        return outcomes, Counter(num_truncated_answers=0, num_split_boundaries=0)

    def _read(self, row: int, outcomes: Counter[str], counts: Counter[str]) -> AnyItem | None:
        found: Counter[str] = Counter()
        outcome = self._item(row, found)
        if isinstance(outcome, str):
            outcomes[outcome] += 1
            return None
        outcomes["kept"] += 1
        counts.update(found)
        return outcome

    def _item(self, row: int, found: Counter[str]) -> AnyItem | str:
        """What a row gives, or why it gives nothing; counts what happened to its answers."""
        preference = split_row(self._table.rows[row], self._spec)
        if isinstance(preference, str):
            return preference
        if is_blank(preference.prompt) or not all(answer.strip() for answer in preference.answers):
            return "empty"
        if preference.turns:
            return self._conversation(row, preference, found)
        prompt_ids, answers = self._encode(row, preference, found)
        if not prompt_ids or not all(answers):
            return "empty"
        if len(set(answers)) < len(answers):
            return "equal"
        if len(prompt_ids) > self._limits.max_prompt_tokens:
            return "prompt_too_long"
        limit = self._limits.max_completion_tokens
        found["num_truncated_answers"] = sum(len(answer) > limit for answer in answers)
        if self._limits.drop_truncated and found["num_truncated_answers"]:
            return "truncated"
        if len({answer[:limit] for answer in answers}) < len(answers):
            return "equal_when_truncated"
        return self._record(row, preference, prompt_ids, answers)

    def _record(
        self, row: int, preference: SplitRow, prompt_ids: tuple[int, ...], answers: Sequence[tuple[int, ...]]
    ) -> AnyItem:
        limit = self._limits.max_completion_tokens
        prompt = self._prompt(row, preference, prompt_ids)
        completions = [
            # What is trained on, so that text and tokens never tell two stories.
            _written(prompt, index, ids[:limit], written if len(ids) <= limit else self._readable(ids[:limit]))
            for index, (written, ids) in enumerate(zip(preference.answers, answers, strict=True))
        ]
        if preference.desirable is not None:
            return Labelled(prompt=prompt, completion=completions[0], desirable=preference.desirable)
        if self._spec.format == "demonstrations":
            turn: Message = {"role": "assistant", "content": completions[0].text}
            flags = (True,) * len(completions[0].token_ids)
            turns = () if prompt.messages is None else (turn,)
            return Demonstration(prompt=prompt, completion=completions[0], trained=flags, turns=turns)
        chosen, rejected = completions
        return Pair(prompt=prompt, chosen=chosen, rejected=rejected, margin=None, probability=None)

    def _prompt(self, row: int, preference: SplitRow, token_ids: tuple[int, ...]) -> Prompt:
        text = preference.prompt
        return Prompt(
            prompt_id=f"{self._field}/{self._ids[row]}",  # a run's own prompts may have the same names
            token_ids=token_ids,
            text=text if isinstance(text, str) else None,
            messages=None if isinstance(text, str) else text,
        )

    def _readable(self, ids: tuple[int, ...]) -> str:
        return self._encoder.decode(ids, skip_special_tokens=True)

    def _conversation(self, row: int, preference: SplitRow, found: Counter[str]) -> Demonstration | str:
        """A whole conversation. One that is too long loses exchanges from its end, and only its first answer is cut."""
        messages, limit = preference.prompt, self._limits.max_completion_tokens
        assert not isinstance(messages, str)
        try:
            encoded = encode_conversation(self._encoder, (*messages, *preference.turns))
        except Exception as error:  # as in `_encode`
            raise self._refused(row, error) from error
        ids, answers, turns = encoded.token_ids, encoded.answers, preference.turns
        begin = answers[0][0]
        if begin > self._limits.max_prompt_tokens:
            return "prompt_too_long"
        found["num_split_boundaries"] = encoded.num_split
        if len(ids) - begin > limit:
            if self._limits.drop_truncated:
                return "truncated"
            found["num_truncated_answers"] = sum(stop - begin > limit for _, stop in answers)
            answers = tuple(answer for answer in answers if answer[1] - begin <= limit)
            if answers:
                places = [index for index, turn in enumerate(turns) if turn["role"] == "assistant"]
                turns = turns[: places[len(answers) - 1] + 1]
            else:
                answers = ((begin, begin + limit),)
                turns = ({"role": "assistant", "content": self._readable(ids[begin : begin + limit])},)
        prompt, completion_ids = self._prompt(row, preference, ids[:begin]), ids[begin : answers[-1][1]]
        flags = [any(start <= begin + i < stop for start, stop in answers) for i in range(len(completion_ids))]
        completion = _written(prompt, 0, completion_ids, text_of_turns(turns))
        return Demonstration(prompt=prompt, completion=completion, trained=tuple(flags), turns=turns)

    def _encode(
        self, row: int, preference: SplitRow, found: Counter[str]
    ) -> tuple[tuple[int, ...], list[tuple[int, ...]]]:
        """`[T]` ids of the prompt and of each answer."""
        prompt, encoder = preference.prompt, self._encoder
        try:
            if isinstance(prompt, str):
                ids = encoder.encode_text(prompt)
                encoded = [encoder.encode_text_answer(prompt, ids, answer) for answer in preference.answers]
            else:
                messages: tuple[Message, ...] = prompt
                ids = encoder.encode_chat(messages)
                encoded = [encoder.encode_chat_answer(messages, ids, answer) for answer in preference.answers]
        # A template raises what its author chose, such as on roles that do not alternate.
        except Exception as error:
            if isinstance(prompt, str):
                raise
            raise self._refused(row, error) from error
        found["num_split_boundaries"] = sum(answer.is_split for answer in encoded)
        return ids, [answer.token_ids for answer in encoded]

    def _refused(self, row: int, error: Exception) -> DataError:
        return DataError(
            f"{self._table.label}; the chat template refuses {self._table.places[row]} ({error}): correct or "
            f"remove the row, or change chat_template_kwargs"
        )

    def _too_few(self, asked_by: str, wanted: int | None) -> DataError:
        """The error of a source with fewer usable rows than are wanted; it reads the whole source once more."""
        draw = self._read_all()
        found = f"{self._table.label}, which has {describe_draw(draw)}"
        if not draw.items:
            return DataError(f"{found}; look at the columns that {self._field} names, and at its limits in tokens")
        field = asked_by.split()[0]
        return DataError(f"{asked_by}, which takes {wanted} rows, but {found}; lower {field} or add rows")


def _written(prompt: Prompt, index: int, token_ids: tuple[int, ...], text: str) -> Completion:
    """An answer that no policy of the run sampled."""
    return Completion(
        prompt_id=prompt.prompt_id,
        sample_index=index,
        token_ids=token_ids,
        text=text,
        finish_reason=None,
        sampler_logps=None,
        policy_version=None,
        seed=None,
    )


def describe_draw(draw: PairDraw) -> str:
    """One line: what became of every row that was looked at."""
    dropped = ", ".join(f"{name} {number}" for name, number in draw.outcomes.items() if number and name != "kept")
    counts = ", ".join(f"{number} {name.removeprefix('num_')}" for name, number in draw.counts.items())
    num_rows = sum(draw.outcomes.values())
    return f"{draw.outcomes['kept']} usable of {num_rows} rows (dropped: {dropped or 'none'}; {counts})"


def load_pairs(config: RunConfig, tokenizer: Any, model: ModelInfo) -> PairSource | None:
    """What a run trains on besides its own samples, or instead of them.

    Raises:
        UserError: the source is missing or malformed.
    """
    spec = config.pairs
    if spec is None:
        return None
    limits = TokenLimits(
        max_prompt_tokens=spec.max_prompt_tokens,
        max_completion_tokens=spec.max_completion_tokens,
        drop_truncated=spec.truncated == "drop",
    )
    encoder = _encoder(config, tokenizer, model, append_eos=spec.append_eos)
    return PairSource.load(spec, field="pairs", encoder=encoder, limits=limits, seed=config.run.seed)


def load_evaluation_pairs(config: RunConfig, tokenizer: Any, model: ModelInfo) -> dict[str, PairDraw]:
    """Name -> held-out pairs, in the order of their file, the same for every run.

    Raises:
        UserError: a source is missing, malformed or too small.
    """
    found = {}
    for name, spec in config.evaluation.pairs.items():
        limits = evaluation_limits(config, spec)
        trained = _trained_on(config, spec)
        append_eos = trained is not None and trained.append_eos
        append_eos = append_eos if spec.append_eos is None else spec.append_eos
        encoder = _encoder(config, tokenizer, model, append_eos=append_eos)
        field = f"evaluation.pairs.{name}"
        source = PairSource.load(spec, field=field, encoder=encoder, limits=limits, seed=config.run.seed)
        found[name] = source.head(spec.count)
    return found


def evaluation_limits(config: RunConfig, spec: EvaluationPairs) -> TokenLimits:
    """A set's own limits, or those of what is trained on."""
    trained = _trained_on(config, spec)
    prompt = DEFAULT_MAX_TOKENS if trained is None else trained.max_prompt_tokens
    completion = DEFAULT_MAX_TOKENS if trained is None else trained.max_completion_tokens
    return TokenLimits(
        max_prompt_tokens=spec.max_prompt_tokens or prompt,
        max_completion_tokens=spec.max_completion_tokens or completion,
    )


def _trained_on(config: RunConfig, spec: EvaluationPairs) -> PairsSection | None:
    """The section whose settings a held-out set has where it has none: of demonstrations that of `sft`, if any."""
    return config.sft.pairs if config.sft is not None and spec.format == "demonstrations" else config.pairs


def _encoder(config: RunConfig, tokenizer: Any, model: ModelInfo, *, append_eos: bool) -> AnswerEncoder:
    return AnswerEncoder(
        tokenizer, config.chat_template_kwargs, eos_token_ids=model.eos_token_ids, append_eos=append_eos
    )
