"""What the engine needs of whoever works off the loop: copies and departures, and to be told of their ends."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Protocol

from ..data.copies import Copy
from ..errors import InvalidCopy, StagingError

Ended = Callable[[BaseException | None], object]
"""Called on the loop with what a job raised, or None."""


class Source(Protocol):
    """A staging buffer, as far as a carrier needs to know it."""

    index: int
    handle: Any


class Departure:
    """Staging buffers that are sealed, the copies out of them, and the command buffers that run after those.

    Its ends are told on the loop: one of `made` and `lost`, and `back` for each buffer. A buffer may be back before the
    loop hears that the submit was made.
    """

    __slots__ = ("back", "buffers", "command_buffers", "copies", "error", "failures", "fence", "logs", "lost", "made")

    def __init__(
        self,
        buffers: Sequence[Source],
        copies: Sequence[Copy],
        command_buffers: Sequence[Any],
        fence: Any,
        *,
        made: Callable[[list[tuple[Copy, InvalidCopy]]], object],
        lost: Callable[[StagingError], object],
        back: Callable[[Any, bool], object],
        logs: bool,
    ) -> None:
        self.buffers = buffers
        self.copies = copies
        self.command_buffers = command_buffers
        self.fence = fence
        """A serial without a value yet: the departure's."""
        self.made = made
        """It was submitted; with the copies that were left out, and why."""
        self.lost = lost
        """It was not, or nobody knows."""
        self.back = back
        """The GPU is done with a buffer, which is mapped again; or with False it never will be."""
        self.logs = logs
        """Whether somebody listens to events."""
        self.failures: list[tuple[Copy, InvalidCopy]] = []
        self.error: StagingError | None = None


class Carrier(Protocol):
    """Works off the loop, wherever that could wait. Called on the loop; `copy` also before a ring is open.

    A carrier gives each departure's fence its value in the order of the submits (`Timeline.insert`, or `promise` and
    `fulfil`; `withdraw` before `lost`), keeps polling while something is owed (`wake`), and lets go of copies and
    command buffers once it has submitted them. Its threads are in `exits.endings`. `StagingRing.open` makes it.
    """

    submits_later: bool
    """Whether `depart` returns before the submit was made."""
    stop: Callable[[], object]
    """Begin nothing more. What was begun is told of."""

    def copy(self, job: Callable[[], object], ended: Ended, nbytes: int = 0) -> None:
        """Run a job, which copies so many bytes, in a thread."""

    def depart(self, departure: Departure) -> None:
        """Unmap, submit, and have the buffers mapped again."""

    def address(self, handle: Any) -> int:
        """Where the memory of a buffer lies that has come back. :raises DeviceLost:"""
