"""Data sets -> `Prompt`: tokenised once, shuffled every epoch, drawn without replacement across rounds."""

from __future__ import annotations

import base64
import math
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import date, time, timedelta
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from uuid import UUID

from online_dpo.errors import ConfigError, DataError, ModelError
from online_dpo.prompt_files import Spec, Table, load_table, messages_of, validate_source
from online_dpo.types import Message, Prompt, derive_seed

__all__ = ["Cursor", "Draw", "PromptEncoder", "PromptSource", "Selection", "validate_source"]

if TYPE_CHECKING:
    import numpy as np

_TEMPLATE_ARGUMENTS_IN_USE = ("conversation", "tokenize", "add_generation_prompt", "continue_final_message")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next round's prompts begin: all that resuming needs."""

    epoch: int = 0
    position: int = 0  # rows of this epoch's order that were looked at
    deferred: tuple[int, ...] = ()  # of these, the rows that are still owed, since the last round already had them

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"epoch": self.epoch, "position": self.position, "deferred": list(self.deferred)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cursor:
        return cls(epoch=values["epoch"], position=values["position"], deferred=tuple(values["deferred"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """Prompts, and how many were passed over to find them."""

    prompts: tuple[Prompt, ...]
    num_too_long: int
    num_empty: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Draw(Selection):
    """A round's prompts and where the next round's begin."""

    cursor: Cursor


class PromptEncoder:
    """Text or chat messages -> token ids that a completion can follow."""

    def __init__(self, tokenizer: Any, chat_template_kwargs: Mapping[str, Any]) -> None:
        """Use one tokenizer for all prompts of a run.

        Args:
            tokenizer: a Transformers tokenizer.
            chat_template_kwargs: further arguments of its chat template.

        Raises:
            ConfigError: `chat_template_kwargs` has an argument that is not free.
        """
        taken = [name for name in _TEMPLATE_ARGUMENTS_IN_USE if name in chat_template_kwargs]
        if taken:
            raise ConfigError(
                f"prompts.chat_template_kwargs sets {taken[0]}, which is fixed by what a prompt is; remove it"
            )
        self.has_chat_template = bool(
            getattr(tokenizer, "chat_template", None) or "chat_template" in chat_template_kwargs
        )
        self._tokenizer = tokenizer
        self._kwargs = dict(chat_template_kwargs)

    def encode_text(self, text: str) -> tuple[int, ...]:
        """`[T]` ids of plain text with the tokenizer's special tokens, and not a second BOS if it begins with one."""
        tokenizer = self._tokenizer
        body, full = self._tokenize(text), list(tokenizer(text, verbose=False)["input_ids"])
        # From the right, so that in a text that is nothing but BOS the first of the two counts as the added one.
        start = next((i for i in range(len(full) - len(body), -1, -1) if full[i : i + len(body)] == body), None)
        if start is None:
            raise ModelError(
                f"the tokenizer {type(tokenizer).__name__} tokenises text differently when it adds special tokens, so "
                f"that prompts have no fixed meaning; set model.path to a model with another tokenizer"
            )
        before, after = full[:start], full[start + len(body) :]
        if before == [tokenizer.bos_token_id] and text.startswith(tokenizer.bos_token):
            before = []
        # An answer cannot follow an end of sequence; some tokenizers append one to whatever they are given.
        after = [token_id for token_id in after if token_id != tokenizer.eos_token_id]
        return (*before, *body, *after) if body else ()

    def encode_chat(self, messages: tuple[Message, ...]) -> tuple[int, ...]:
        """`[T]` ids of a chat up to where the assistant answers; special tokens are the template's alone."""
        rendered = self._tokenizer.apply_chat_template(
            [dict(message) for message in messages], tokenize=False, add_generation_prompt=True, **self._kwargs
        )
        return tuple(self._tokenize(rendered))

    def _tokenize(self, text: str) -> list[int]:
        return list(self._tokenizer(text, add_special_tokens=False, verbose=False)["input_ids"])


class PromptSource:
    """The prompts of one data set. Tokenises at draw, so that a large set costs nothing until it is used."""

    def __init__(
        self, table: Table, *, column: str, field: str, encoder: PromptEncoder, max_tokens: int, seed: int
    ) -> None:
        """Use `load` instead, unless the rows come from elsewhere."""
        if table.has_chat and not encoder.has_chat_template:
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
        self._ids = _prompt_ids(table)

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
            tokenizer: of the policy, from `models.load_tokenizer`.
            max_tokens: longer prompts are passed over and counted.
            chat_template_kwargs: further arguments of the chat template.
            seed: of the run.

        Raises:
            DataError: the source is missing, malformed or empty, or a row has no usable prompt.
        """
        encoder = PromptEncoder(tokenizer, chat_template_kwargs)
        table = load_table(spec, field=field)
        return cls(table, column=spec.field, field=field, encoder=encoder, max_tokens=max_tokens, seed=seed)

    def __len__(self) -> int:
        """Rows, usable or not."""
        return len(self._table.rows)

    def draw(self, cursor: Cursor, n: int) -> Draw:
        """The next `n` usable prompts, all different, each once in an epoch.

        A round that reaches into the next epoch leaves out what it already has and owes it to the next round.

        Args:
            cursor: `Cursor()` at first, afterwards the one that the last draw returned.
            n: prompts of a round.

        Raises:
            DataError: fewer than `n` prompts are usable, or the cursor is of another source.
        """
        self._check(cursor)
        epoch, position, owed = cursor.epoch, cursor.position, deque(cursor.deferred)
        order = self._order(epoch)
        has_seen_all = position == 0
        taken: dict[int, Prompt] = {}
        deferred: list[int] = []
        skipped = {"too long": 0, "empty": 0}
        while len(taken) < n:
            if owed:
                row = owed.popleft()
            elif position < len(order):
                row, position = int(order[position]), position + 1
            elif has_seen_all:
                raise self._too_few("prompts.per_round", n, len(taken))
            else:
                epoch, position, has_seen_all = epoch + 1, 0, True
                order = self._order(epoch)
                continue
            if row in taken:
                deferred.append(row)
                continue
            outcome = self._encode(row)
            if isinstance(outcome, Prompt):
                taken[row] = outcome
            else:
                skipped[outcome] += 1
        return Draw(
            prompts=tuple(taken.values()),
            cursor=Cursor(epoch, position, (*owed, *deferred)),
            num_too_long=skipped["too long"],
            num_empty=skipped["empty"],
        )

    def head(self, count: int) -> Selection:
        """The first `count` usable prompts in the order of the file: the same for every run.

        Raises:
            DataError: fewer are usable.
        """
        prompts: list[Prompt] = []
        skipped = {"too long": 0, "empty": 0}
        for row in range(len(self)):
            if len(prompts) == count:
                break
            outcome = self._encode(row)
            if isinstance(outcome, Prompt):
                prompts.append(outcome)
            else:
                skipped[outcome] += 1
        if len(prompts) < count:
            raise self._too_few(f"{self._field}.count", count, len(prompts))
        return Selection(prompts=tuple(prompts), num_too_long=skipped["too long"], num_empty=skipped["empty"])

    def _order(self, epoch: int) -> np.ndarray:
        """`[rows]` the rows of the table in the order of one epoch."""
        import numpy as np  # not at the top: `validate` has no use for it, and it takes a third of a second

        # Raw PCG64 output: NumPy promises that stream for ever, but not what Generator.permutation makes of it.
        bits = np.random.PCG64(derive_seed(self._seed, "prompts", epoch)).random_raw(len(self))
        return np.argsort(bits, kind="stable")

    def _check(self, cursor: Cursor) -> None:
        if not 0 <= cursor.position <= len(self) or not all(0 <= row < len(self) for row in cursor.deferred):
            raise DataError(
                f"{self._table.label}, which has {len(self)} rows, but the run had already reached row "
                f"{max(cursor.position, *cursor.deferred, 0)} of it; put the source back as it was when the run began"
            )

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
            messages=None if isinstance(value, str) else messages_of(value),
            metadata={name: self._json(name, item, row) for name, item in content.items() if name != self._column},
        )

    def _token_ids(self, row: int, value: str | list[dict[str, Any]]) -> tuple[int, ...]:
        """`[T]` ids, none if there is nothing to answer."""
        if isinstance(value, str):
            return self._encoder.encode_text(value) if value.strip() else ()
        if not any(message["content"].strip() for message in value):
            return ()
        try:
            return self._encoder.encode_chat(messages_of(value))
        # A template raises what its author chose, such as on roles that do not alternate.
        except Exception as error:
            raise DataError(
                f"{self._table.label}; the chat template refuses {self._column} of {self._table.places[row]} "
                f"({error}): mend or remove the row, or change prompts.chat_template_kwargs"
            ) from error

    def _json(self, name: str, value: Any, row: int) -> Any:
        """A column's value as JSON carries it: NaN as null, times, decimals and UUIDs as text, bytes as base64."""
        if value is None or isinstance(value, str | bool | int):
            return value
        if isinstance(value, float):
            return value if math.isfinite(value) else None
        if isinstance(value, list | tuple):
            return [self._json(name, item, row) for item in value]
        if isinstance(value, dict):
            return {str(key): self._json(name, item, row) for key, item in value.items()}
        if isinstance(value, date | time):
            return value.isoformat()
        if isinstance(value, Decimal | UUID | timedelta):
            return str(value)
        if isinstance(value, bytes):
            return base64.b64encode(value).decode("ascii")
        raise DataError(
            f"{self._table.label}; {name} of {self._table.places[row]} is {type(value).__name__}, which a judge cannot "
            f"be given as JSON: remove the column from the data set"
        )

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


def _prompt_ids(table: Table) -> list[str]:
    """The `prompt_id` or `id` column where it names every row differently, otherwise row numbers."""
    for name in ("prompt_id", "id"):
        if name not in table.rows[0]:
            continue
        ids = [str(value) for value in table.column(name) if isinstance(value, str | int)]
        if len(set(ids)) == len(table.rows):
            return ids
    return [f"{row:06d}" for row in range(len(table.rows))]
