"""Data sets -> `Prompt`: tokenised once, shuffled every epoch, drawn without replacement across rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from online_dpo.data.drawing import Cursor, EpochSampler, first_usable
from online_dpo.data.encoding import PromptEncoder, is_blank
from online_dpo.data.json_values import json_value
from online_dpo.data.prompt_files import Spec, column_in, load_table, prompt_of, validate_source
from online_dpo.data.row_files import Table, row_ids
from online_dpo.errors import DataError
from online_dpo.types import Prompt

__all__ = ["Cursor", "PromptDraw", "PromptEncoder", "PromptSource", "UsablePrompts", "validate_source"]


@dataclass(frozen=True, slots=True, kw_only=True)
class UsablePrompts:
    """Prompts, and how many rows were passed over to find them."""

    prompts: tuple[Prompt, ...]
    num_too_long: int
    num_empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDraw(UsablePrompts):
    """A round's prompts and where the next round's begin."""

    cursor: Cursor


class PromptSource:
    """The prompts of one data set. Tokenises at draw, so that a large set costs nothing until it is used."""

    def __init__(
        self, table: Table, *, column: str, field: str, encoder: PromptEncoder, max_tokens: int, seed: int
    ) -> None:
        """Use `load` instead, unless the rows come from elsewhere."""
        if not encoder.has_chat_template and any(isinstance(value, list) for value in table.column(column)):
            raise DataError(
                f"{table.label}, whose column {column} holds chat messages, but the tokenizer has no chat template; "
                f"put one into the model's folder as chat_template.jinja, or use prompts that are plain text"
            )
        self._table = table
        self._column = column
        self._field = field
        self._encoder = encoder
        self._max_tokens = max_tokens
        self._seed = seed
        self._ids = row_ids(table, "prompt")

    @classmethod
    def load(
        cls,
        spec: Spec,
        *,
        field: str,
        tokenizer: Any,
        max_tokens: int,
        chat_template_kwargs: Mapping[str, Any],
        seed: int,
    ) -> PromptSource:
        """Read a source and check every row.

        Args:
            spec: `config.PromptsSection` or `config.EvaluationSet`: a hub id, a local file or `embedded:NAME`, and
                the column that holds text or chat messages. All other columns become metadata.
            field: the config section that `spec` is, such as `prompts` or `evaluation.sets.heldout`, for errors.
            tokenizer: of the policy, from `models.tokenizer.load_tokenizer`.
            max_tokens: longer prompts are passed over and counted.
            chat_template_kwargs: further arguments of the chat template.
            seed: of the run.

        Raises:
            DataError: the source is missing, malformed or empty, or a row has no usable prompt.
        """
        encoder = PromptEncoder(tokenizer, chat_template_kwargs)
        table = load_table(spec, field=field)
        column = column_in(spec.field, table.rows[0])
        return cls(table, column=column, field=field, encoder=encoder, max_tokens=max_tokens, seed=seed)

    def __len__(self) -> int:
        """Rows, usable or not."""
        return len(self._table.rows)

    def draw(self, cursor: Cursor, n: int) -> PromptDraw:
        """The next `n` usable prompts, all different, each once in an epoch.

        A round that reaches into the next epoch leaves out what it already has and owes it to the next round.

        Args:
            cursor: `Cursor()` at first, afterwards the one that the last draw returned.
            n: prompts of a round.

        Raises:
            DataError: fewer than `n` prompts are usable, or the cursor is of another source.
        """
        skipped: Counter[str] = Counter()
        rows = EpochSampler(
            label=self._table.label,
            num_rows=len(self),
            seed=self._seed,
            purpose="prompts",
            read=lambda row: self._read(row, skipped),
        )
        prompts, following, is_enough = rows.draw(cursor, n)
        if not is_enough:
            raise self._too_few("prompts.per_round", n, len(prompts))
        return PromptDraw(
            prompts=tuple(prompts),
            cursor=following,
            num_too_long=skipped["too long"],
            num_empty=skipped["empty"],
        )

    def head(self, count: int) -> UsablePrompts:
        """The first `count` usable prompts in the order of the file: the same for every run.

        Raises:
            DataError: fewer are usable.
        """
        skipped: Counter[str] = Counter()
        prompts = first_usable(lambda row: self._read(row, skipped), len(self), count)
        if len(prompts) < count:
            raise self._too_few(f"{self._field}.count", count, len(prompts))
        return UsablePrompts(prompts=tuple(prompts), num_too_long=skipped["too long"], num_empty=skipped["empty"])

    def _read(self, row: int, skipped: Counter[str]) -> Prompt | None:
        outcome = self._encode(row)
        if isinstance(outcome, Prompt):
            return outcome
        skipped[outcome] += 1
        return None

    def _encode(self, row: int) -> Prompt | str:
        """The prompt, or the reason why it cannot be used."""
        content = self._table.rows[row]
        value = content[self._column]
        token_ids = self._token_ids(row, value)
        if not token_ids:
            return "empty"
        if len(token_ids) > self._max_tokens:
            return "too long"
        return Prompt(
            prompt_id=self._ids[row],
            token_ids=token_ids,
            text=value if isinstance(value, str) else None,
            messages=None if isinstance(value, str) else prompt_of(value, self._column),
            metadata={name: self._json(name, item, row) for name, item in content.items() if name != self._column},
        )

    def _token_ids(self, row: int, value: str | list[dict[str, Any]]) -> tuple[int, ...]:
        """`[T]` ids, none if there is nothing to answer."""
        content = value if isinstance(value, str) else prompt_of(value, self._column)
        if is_blank(content):
            return ()
        if isinstance(content, str):
            return self._encoder.encode_text(content)
        try:
            return self._encoder.encode_chat(content)
        # A template raises what its author chose, such as on roles that do not alternate.
        except Exception as error:
            raise DataError(
                f"{self._table.label}; the chat template refuses {self._column} of {self._table.places[row]} "
                f"({error}): correct or remove the row, or change prompts.chat_template_kwargs"
            ) from error

    def _json(self, name: str, value: Any, row: int) -> Any:
        try:
            return json_value(value)
        except TypeError as error:
            raise DataError(
                f"{self._table.label}; {name} of {self._table.places[row]} is {error}, which a judge cannot be given "
                f"as JSON: remove the column from the data set"
            ) from None

    def _lengths(self) -> Iterator[int]:
        return (len(self._token_ids(row, value)) for row, value in enumerate(self._table.column(self._column)))

    def _too_few(self, field: str, wanted: int, num_usable: int) -> DataError:
        """The error of a source with fewer usable prompts than are wanted; it reads the whole source once more."""
        lengths = list(self._lengths())
        filled = [length for length in lengths if length]
        if not filled:
            return DataError(
                f"{self._table.label}, whose {len(lengths)} prompts are all empty; set {self._field}.field"
            )
        if not num_usable:
            return DataError(
                f"{self._table.label}, whose prompts are all longer than prompts.max_tokens, which is "
                f"{self._max_tokens}; the shortest has {min(filled)} tokens: raise prompts.max_tokens"
            )
        num_too_long = sum(length > self._max_tokens for length in filled)
        return DataError(
            f"{field} is {wanted}, but {self._table.label}, which has {num_usable} usable prompts ({num_too_long} are "
            f"longer than prompts.max_tokens, which is {self._max_tokens}, and {len(lengths) - len(filled)} are "
            f"empty); lower {field} to {num_usable} or add prompts"
        )
