"""The line of those who wait for a place: first come, first served."""

from __future__ import annotations

import time
from collections import OrderedDict

from .buffer import NO_TASK, Place
from .lanes import Lane
from .outcome import Outcome


class Waiter:
    """Somebody who waits for a place; it is handed over, not looked for again."""

    __slots__ = ("alignment", "lane", "name", "place", "since", "size")

    def __init__(self, lane: Lane, size: int, alignment: int, name: str = NO_TASK) -> None:
        self.name = name  # of the task
        self.since = time.perf_counter()
        self.lane = lane
        self.size = size
        self.alignment = alignment
        self.place: Outcome[Place] = Outcome()


class Line:
    """Waiters, the first to be served first."""

    __slots__ = ("waiters",)

    def __init__(self) -> None:
        self.waiters: OrderedDict[Waiter, None] = OrderedDict()

    @property
    def first(self) -> Waiter | None:
        """Whose turn it is."""
        return next(iter(self.waiters), None)

    def join(self, waiter: Waiter) -> None:
        """Behind all others."""
        self.waiters[waiter] = None

    def leave(self, waiter: Waiter) -> bool:
        """Without a place, or with one. False if it had left."""
        return self.waiters.pop(waiter, waiter) is None
