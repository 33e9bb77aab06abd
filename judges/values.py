"""What a judge returned, read as what it has to be: a number, a position, a list, a reason. Nothing is guessed."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterator, Sequence
from decimal import Decimal
from itertools import islice
from numbers import Real
from typing import Any

NUMBERS = ("int", "uint", "float", "bfloat")
"""How the names of NumPy's and PyTorch's real types begin; text, dates, booleans and complex numbers are none."""
MAX_REASON = 2000
"""Characters of a reason; the rest is cut."""


def read_number(value: object) -> float | None:
    """`value` as a finite float, or None where it is none. Never guesses: text and booleans are no numbers."""
    dtype = getattr(value, "dtype", None)
    if dtype is None:
        is_real = isinstance(value, (Real, Decimal)) and not isinstance(value, bool)
    else:
        kind = getattr(dtype, "name", None) or str(dtype).rpartition(".")[2]
        is_real = str(kind).startswith(NUMBERS) and getattr(value, "ndim", 0) == 0
    if not is_real:
        return None
    try:
        number = float(value.detach() if hasattr(value, "detach") else value)  # type: ignore[arg-type]
    except Exception:  # too large, or a tensor that holds no value
        return None
    return number if math.isfinite(number) else None


def read_position(value: Any) -> int | None:
    """`value` as an integer, or None where it is none. 1.0 is none: an order is no list of scores."""
    try:
        return None if read_number(value) is None else operator.index(value)
    except TypeError:
        return None


def as_list(value: Any, expected: int) -> list[Any] | None:
    """The elements of what has an order: lists, tuples, arrays and tensors of one dimension, iterators.

    Args:
        value: whatever a judge returned.
        expected: how many elements are wanted. Of an iterator, which may be endless, at most one more is taken.

    Returns:
        The elements, or None for text, sets, mappings, single values and arrays of other dimensions.
    """
    if isinstance(value, (str, bytes, bytearray, memoryview)) or getattr(value, "ndim", 1) != 1:
        return None
    if isinstance(value, Iterator):
        return list(islice(value, expected + 1))
    # Arrays, tensors and series are no Sequence.
    return list(value) if isinstance(value, Sequence) or hasattr(value, "ndim") else None


def how_many(elements: Sequence[Any], expected: int) -> str:
    """The number of elements that `as_list` found, as a message says it."""
    return str(len(elements)) if len(elements) <= expected else f"more than {expected}"


def storable(reason: str) -> str:
    """A reason that can be written as UTF-8, and is no longer than a page."""
    reason = reason.encode("utf-8", "replace").decode("utf-8")
    return reason if len(reason) <= MAX_REASON else f"{reason[: MAX_REASON - 3]}..."


def show(value: object) -> str:
    """A value in a message: its repr, shortened, on one line, with its type where the repr does not tell."""
    try:
        text = " ".join(repr(value).split())
    except Exception as error:
        return f"a {type(value).__name__} that cannot be shown ({type(error).__name__})"
    text = text if len(text) <= 80 else f"{text[:77]}..."
    # numpy's and other subclasses have a repr of their own.
    tells = value is None or type(value) in (str, int, float, complex, bool, list, tuple, dict, set)
    return text if tells else f"{text} ({type(value).__name__})"
