"""Draws rows without replacement: every epoch has an order of its own, and a committed cursor says where to go on."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from online_dpo.errors import DataError
from online_dpo.types import derive_seed

if TYPE_CHECKING:
    import numpy as np

T = TypeVar("T")


@dataclass(frozen=True, slots=True)
class Cursor:
    """Where the next round's rows begin: all that resuming needs."""

    epoch: int = 0
    position: int = 0  # rows of this epoch's order that were looked at
    deferred: tuple[int, ...] = ()  # of these, the rows that are still owed, since the last round already had them

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {"epoch": self.epoch, "position": self.position, "deferred": list(self.deferred)}

    @classmethod
    def from_dict(cls, values: Mapping[str, Any]) -> Cursor:
        return cls(epoch=values["epoch"], position=values["position"], deferred=tuple(values["deferred"]))

    def fits(self, num_rows: int) -> bool:
        """Whether it can be of a source with so many rows."""
        return 0 <= self.position <= num_rows and all(0 <= row < num_rows for row in self.deferred)

    @property
    def furthest(self) -> int:
        return max(self.position, *self.deferred, 0)


@dataclass(frozen=True, slots=True)
class MixtureCursor:
    """Where the next round of a mixture begins."""

    parts: Mapping[str, tuple[int, Cursor]]  # data set -> prompts drawn of it, and where its next ones begin

    def to_dict(self) -> dict[str, Any]:
        """As JSON values."""
        return {
            "sources": {
                name: {"num_drawn": number, **cursor.to_dict()} for name, (number, cursor) in self.parts.items()
            }
        }


def read_cursor(values: Mapping[str, Any]) -> Cursor | MixtureCursor:
    """What `to_dict` of either gave."""
    if "sources" not in values:
        return Cursor.from_dict(values)
    parts = values["sources"].items()
    return MixtureCursor({name: (part["num_drawn"], Cursor.from_dict(part)) for name, part in parts})


@dataclass(frozen=True, slots=True, kw_only=True)
class EpochSampler(Generic[T]):
    """Draws the rows of a source without replacement, in an order of its own for each epoch."""

    label: str  # of the source, the start of errors
    num_rows: int  # usable or not
    seed: int  # of the run
    purpose: str  # keeps the orders of two sources of one run apart
    read: Callable[[int], T | None]  # what becomes of a row; None = it cannot be used

    def draw(self, cursor: Cursor, n: int | None) -> tuple[list[T], Cursor, bool]:
        """The next `n` usable rows, all different, each once in an epoch.

        A draw that reaches into the next epoch leaves out what it already has and owes it to the next one.

        Args:
            cursor: `Cursor()` at first, afterwards the one that the last draw returned.
            n: how many; None = all that this epoch has left.

        Returns:
            What `read` made of them, the next cursor, and whether there were enough.

        Raises:
            DataError: the cursor is of another source.
        """
        if not cursor.fits(self.num_rows):
            raise DataError(
                f"{self.label}, which has {self.num_rows} rows, but the run had already reached row {cursor.furthest} "
                f"of it; put the source back as it was when the run began"
            )
        epoch, position, owed = cursor.epoch, cursor.position, deque(cursor.deferred)
        order = self.order(epoch)
        has_seen_all = position == 0
        taken: dict[int, T] = {}
        deferred: list[int] = []
        while n is None or len(taken) < n:
            if owed:
                row = owed.popleft()
            elif position < self.num_rows:
                row, position = int(order[position]), position + 1
            elif n is None or has_seen_all:
                break
            else:
                epoch, position, has_seen_all = epoch + 1, 0, True
                order = self.order(epoch)
                continue
            if row in taken:
                deferred.append(row)
            elif (item := self.read(row)) is not None:
                taken[row] = item
        following = Cursor(epoch + 1) if n is None else Cursor(epoch, position, (*owed, *deferred))
        return list(taken.values()), following, len(taken) == n if n is not None else bool(taken)

    def order(self, epoch: int) -> np.ndarray:
        """`[rows]` the rows in the order of one epoch."""
        import numpy as np  # not at the top: `validate` has no use for it, and it takes a third of a second

        # Raw PCG64 output: NumPy promises that stream for ever, but not what Generator.permutation makes of it.
        bits = np.random.PCG64(derive_seed(self.seed, self.purpose, epoch)).random_raw(self.num_rows)
        return np.argsort(bits, kind="stable")


def first_usable(read: Callable[[int], T | None], num_rows: int, count: int | None) -> list[T]:
    """The first `count` usable rows in the order of the file, or all of them; the same for every run.

    Args:
        read: as in `EpochSampler`.
        num_rows: usable or not.
        count: how many; None = all.
    """
    found: list[T] = []
    for row in range(num_rows):
        if len(found) == count:
            break
        if (item := read(row)) is not None:
            found.append(item)
    return found
