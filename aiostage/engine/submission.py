"""One queue submit: how it ended, and who hears of it. What goes is in the carrier's `Departure`."""

from __future__ import annotations

from collections.abc import Sequence
from logging import ERROR
from typing import Any

from ..data.copies import Copy
from ..errors import InvalidCopy, StagingError
from ..events import report
from .buffer import StagingBuffer
from .outcome import Outcome


class Submission:
    """One queue submit of sealed buffers: how it ended.

    It ends once, in one of three ways: `end_made`, `end_refused` (made, but for some copies), `end_lost`. Whoever waits
    for it, or for one of the loads that it took, hears of that in `_tell`.
    """

    __slots__ = ("_loads", "buffers", "failures", "fence", "made")

    def __init__(self, buffers: Sequence[StagingBuffer], fence: Any) -> None:
        self.buffers = buffers
        self.fence = fence
        self.failures: list[tuple[Copy, InvalidCopy]] = []
        self.made: Outcome[Any] = Outcome()  # with the fence
        # Where a thread submits, buffers may be back, with new loads, before the loop hears of the submit.
        self._loads = [buffer.load for buffer in buffers]

    def end_made(self) -> None:
        """All of it was submitted."""
        self._tell(None)

    def end_refused(self, failures: list[tuple[Copy, InvalidCopy]]) -> list[tuple[Any, InvalidCopy]]:
        """It was submitted without these copies. Returns what the owners of some must be told: (task, why)."""
        self.failures = failures
        owned = [(copy.owner, why) for copy, why in failures if copy.owner is not None]
        try:
            for _, why in owned:
                report(ERROR, "left_out", f"a staged copy was left out: {why}")
        finally:
            self._tell(None)
        return owned

    def end_lost(self, error: StagingError) -> None:
        """It was not submitted, or nobody knows, and with it the ring is lost."""
        self._tell(error)

    def _tell(self, error: StagingError | None) -> None:
        loads, self._loads = self._loads, []  # or it would keep itself alive: it is the outcome of each
        self.made.end(self.fence, error)
        for load in loads:
            load.gone.end(self, error)
