"""The line of those who wait for a place: first come, first served."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterator

from .buffer import Place
from .lanes import Lane
from .outcome import Outcome


class Waiter:
    """Somebody who waits for a place; it is handed over, not looked for again."""

    __slots__ = ("alignment", "lane", "place", "size")

    def __init__(self, lane: Lane, size: int, alignment: int) -> None:
        self.lane = lane
        self.size = size
        self.alignment = alignment
        self.place: Outcome[Place] = Outcome()


class Line:
    """Waiters, the first to be served first."""

    def __init__(self) -> None:
        self._waiters: OrderedDict[Waiter, None] = OrderedDict()

    def __len__(self) -> int:
        return len(self._waiters)

    def __iter__(self) -> Iterator[Waiter]:
        return iter(list(self._waiters))

    @property
    def first(self) -> Waiter | None:
        """Whose turn it is."""
        return next(iter(self._waiters), None)

    def join(self, waiter: Waiter) -> None:
        """Behind all others."""
        self._waiters[waiter] = None

    def leave(self, waiter: Waiter) -> bool:
        """Without a place, or with one. False if it had left."""
        return self._waiters.pop(waiter, waiter) is None
