"""Data sets -> `Prompt`: tokenised once, shuffled every epoch, drawn without replacement across rounds."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from online_dpo.config.data import MixedPrompts, PromptSet
from online_dpo.data.drawing import Cursor, EpochSampler, MixtureCursor, first_usable
from online_dpo.data.encoding import PromptEncoder, is_blank
from online_dpo.data.json_values import json_value
from online_dpo.data.prompt_files import column_in, load_table, prompt_of, validate_source
from online_dpo.data.row_files import Table, row_ids
from online_dpo.errors import DataError
from online_dpo.types import DOMAIN, Message, Prompt

__all__ = ["Cursor", "PromptDraw", "PromptEncoder", "PromptSource", "UsablePrompts", "validate_source"]


MAX_DOMAINS = 64
"""More domains than these in one data set are refused: each has figures of its own in every round."""

REASONS = ("too_long", "empty", "duplicate", "contaminated")
"""Why rows give no prompt; the last two are counted where they are looked for."""


@dataclass(frozen=True, slots=True, kw_only=True)
class UsablePrompts:
    """Prompts, and how many rows were passed over to find them."""

    prompts: tuple[Prompt, ...]
    passed_over: Mapping[str, int]  # reason -> rows


@dataclass(frozen=True, slots=True, kw_only=True)
class PromptDraw(UsablePrompts):
    """A round's prompts and where the next round's begin."""

    cursor: Cursor | MixtureCursor
    sources: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)  # of a mixture: name -> its figures


class PromptSource:
    """The prompts of one data set. Tokenises at draw, so that a large set costs nothing until it is used."""

    def __init__(
        self,
        table: Table,
        *,
        column: str,
        field: str,
        encoder: PromptEncoder,
        max_tokens: int,
        seed: int,
        limit_field: str = "prompts.max_tokens",
        name: str | None = None,
        domain_of: Callable[[Mapping[str, Any]], str] | None = None,
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
        self._limit_field = limit_field
        self._seed = seed
        self._ids = row_ids(table, "prompt")
        self._name = name
        self._domain_of = domain_of
        self._left_out: Mapping[int, str] = {}
        self._reasons: tuple[str, ...] = REASONS[:2]

    @classmethod
    def load(
        cls,
        spec: PromptSet,
        *,
        field: str,
        tokenizer: Any,
        max_tokens: int,
        chat_template_kwargs: Mapping[str, Any],
        seed: int,
        name: str | None = None,
    ) -> PromptSource:
        """Read a source and check every row.

        Args:
            spec: a hub id, a local file or `embedded:NAME`, and the column that holds text or chat messages. All other
                columns become metadata.
            field: the config section that `spec` is, such as `prompts` or `evaluation.sets.heldout`, for errors.
            tokenizer: of the policy, from `models.tokenizer.load_tokenizer`.
            max_tokens: longer prompts are passed over and counted.
            chat_template_kwargs: further arguments of the chat template.
            seed: of the run.
            name: tells it from the other data sets of a mixture or evaluation set: its prompts' ids begin with it,
                and they have a domain. None = there is no other.

        Raises:
            DataError: the source is missing, malformed or empty, or a row has no usable prompt.
        """
        encoder = PromptEncoder(tokenizer, chat_template_kwargs)
        table = load_table(spec, field=field)
        limit_field = "prompts.max_tokens"
        if isinstance(spec, MixedPrompts) and spec.max_tokens is not None:
            max_tokens, limit_field = spec.max_tokens, f"{field}.max_tokens"
        return cls(
            table,
            column=column_in(spec.field, table.rows[0]),
            field=field,
            encoder=encoder,
            max_tokens=max_tokens,
            seed=seed,
            limit_field=limit_field,
            name=name,
            domain_of=None if name is None and spec.domain_field is None else _domains(spec, table, field),
        )

    def __len__(self) -> int:
        """Rows, usable or not."""
        return len(self._table.rows)

    def draw(self, cursor: Cursor | MixtureCursor, n: int) -> PromptDraw:
        """The next `n` usable prompts, all different, each once in an epoch.

        A round that reaches into the next epoch leaves out what it already has and owes it to the next round.

        Args:
            cursor: `Cursor()` at first, afterwards the one that the last draw returned.
            n: prompts of a round.

        Raises:
            DataError: fewer than `n` prompts are usable, or the cursor is of another source.
        """
        if isinstance(cursor, MixtureCursor):
            raise DataError(
                f"{self._table.label}, but the run began with {', '.join(cursor.parts)}; put prompts.sources back as "
                f"they were when the run began"
            )
        skipped: Counter[str] = Counter()
        rows = EpochSampler(
            label=self._table.label,
            num_rows=len(self),
            seed=self._seed,
            purpose="prompts" if self._name is None else f"prompts/{self._name}",
            read=lambda row: self._read(row, skipped),
        )
        prompts, following, is_enough = rows.draw(cursor, n)
        if not is_enough:
            raise self.too_few("prompts.per_round", n, len(prompts))
        return PromptDraw(prompts=tuple(prompts), cursor=following, passed_over=self._counts(skipped))

    def head(self, count: int) -> UsablePrompts:
        """The first `count` usable prompts in the order of the file: the same for every run.

        Raises:
            DataError: fewer are usable.
        """
        skipped: Counter[str] = Counter()
        prompts = first_usable(lambda row: self._read(row, skipped), len(self), count)
        if len(prompts) < count:
            raise self.too_few(f"{self._field}.count", count, len(prompts))
        return UsablePrompts(prompts=tuple(prompts), passed_over=self._counts(skipped))

    @property
    def field(self) -> str:
        """The section of the config that it is."""
        return self._field

    def contents(self) -> Iterator[str | tuple[Message, ...]]:
        """What every row asks, usable or not: text, or the messages of a chat."""
        for value in self._table.column(self._column):
            yield value if isinstance(value, str) else prompt_of(value, self._column)

    def prompt_id(self, row: int) -> str:
        """The id of a row's prompt."""
        return self._ids[row] if self._name is None else f"{self._name}/{self._ids[row]}"

    def leave_out(self, rows: Iterable[int], reason: str) -> None:
        """Pass further rows over, before anything is drawn.

        Args:
            rows: of the source; those that are left out already keep their reason.
            reason: under which they are counted from now on, also where there are none.
        """
        self._left_out = {**dict.fromkeys(rows, reason), **self._left_out}
        self._reasons = (*self._reasons, reason)

    def count(self, most: int | None = None) -> UsablePrompts:
        """All usable prompts, or the first `most` of them, in the order of the file."""
        skipped: Counter[str] = Counter()
        prompts = first_usable(lambda row: self._read(row, skipped), len(self), most)
        return UsablePrompts(prompts=tuple(prompts), passed_over=self._counts(skipped))

    def _counts(self, skipped: Mapping[str, int]) -> dict[str, int]:
        return {reason: skipped.get(reason, 0) for reason in self._reasons}

    def _read(self, row: int, skipped: Counter[str]) -> Prompt | None:
        outcome = self._encode(row)
        if isinstance(outcome, Prompt):
            return outcome
        skipped[outcome] += 1
        return None

    def _encode(self, row: int) -> Prompt | str:
        """The prompt, or the reason why it cannot be used."""
        if row in self._left_out:
            return self._left_out[row]
        content = self._table.rows[row]
        value = content[self._column]
        token_ids = self._token_ids(row, value)
        if not token_ids:
            return "empty"
        if len(token_ids) > self._max_tokens:
            return "too_long"
        metadata = {name: self._json(name, item, row) for name, item in content.items() if name != self._column}
        return Prompt(
            prompt_id=self.prompt_id(row),
            token_ids=token_ids,
            text=value if isinstance(value, str) else None,
            messages=None if isinstance(value, str) else prompt_of(value, self._column),
            metadata=metadata if self._domain_of is None else {**metadata, DOMAIN: self._domain_of(content)},
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

    def too_few(self, field: str, wanted: int, num_usable: int) -> DataError:
        """The error of a source with fewer usable prompts than are wanted; it reads the whole source once more."""
        label, values = self._table.label, self._table.column(self._column)
        left = Counter(self._left_out.values())
        lengths = [len(self._token_ids(row, value)) for row, value in enumerate(values) if row not in self._left_out]
        filled = [length for length in lengths if length]
        if not filled and not left:
            return DataError(f"{label}, whose {len(lengths)} prompts are all empty; set {self._field}.field")
        if not num_usable and filled and not left:
            return DataError(
                f"{label}, whose prompts are all longer than {self._limit_field}, which is {self._max_tokens}; the "
                f"shortest has {min(filled)} tokens: raise {self._limit_field}"
            )
        num_too_long = sum(length > self._max_tokens for length in filled)
        others = "".join(f", {number} {_WHERE[reason]}" for reason, number in left.items())
        return DataError(
            f"{field} is {wanted}, but {label}, which has {num_usable} usable prompts ({num_too_long} are longer than "
            f"{self._limit_field}, which is {self._max_tokens}, and {len(lengths) - len(filled)} are empty{others}); "
            f"lower {field} to {num_usable} or add prompts"
        )


_WHERE = {
    "contaminated": "are in an evaluation set as well (prompts.contaminated is drop)",
    "duplicate": "are in a source before it",
}


def _domains(spec: PromptSet, table: Table, field: str) -> Callable[[Mapping[str, Any]], str]:
    """A row's domain.

    Raises:
        DataError: the rows have a column of that name for something else, or there are too many domains.
    """
    column = spec.domain_field
    if column != DOMAIN and table.has(DOMAIN):
        other = spec.name if column is None else f"what {column} holds"
        raise DataError(
            f"{table.label}, which has a column {DOMAIN}, and judges would find {other} in its place: set "
            f"{field}.domain_field to {DOMAIN}, without {field}.domain, or rename the column"
        )
    if column is None:
        name = spec.name
        return lambda row: name
    if (number := len(set(map(str, table.column(column))))) > MAX_DOMAINS:
        raise DataError(
            f"{table.label}, whose column {column} has {number} different values; every domain has figures of its own "
            f"in every round: set {field}.domain_field to a column with at most {MAX_DOMAINS}"
        )
    return lambda row: str(row[column])
