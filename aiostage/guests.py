"""Uploads of somebody else's in a frame: which copies are theirs, and who hears how they ended."""

from __future__ import annotations

from typing import Any, Protocol

from .data.copies import Copy
from .engine.buffer import Load, StagingBuffer
from .engine.engine import Engine
from .engine.lanes import Lane
from .engine.submission import Submission
from .errors import InvalidCopy


class Uploads(Protocol):
    """What `StagingRing.frame(uploads=…)` takes."""

    @property
    def ring(self) -> Any:
        """Whose frames they go in."""

    async def admit(self, frame: Any) -> None:
        """Write to a frame that was just entered."""

    def submitted(self, frame: Any, fence: Any, refused: list[tuple[Any, InvalidCopy]]) -> None:
        """What was admitted was submitted, but for copies to destinations that were destroyed: those, and why."""

    def turned_away(self, frame: Any, error: Exception | None) -> None:
        """It was not: the frame was abandoned, or lost with its ring, by this error."""


class Guests:
    """The uploads that one frame has admitted. They are the first in it."""

    def __init__(self, uploads: Uploads) -> None:
        self._uploads = uploads
        self._frame: Any = None  # until they have left
        self._early: list[Load] = []  # that departed while they were admitted: theirs alone
        self._heads: list[tuple[Load, StagingBuffer, int]] = []  # up to where the others are theirs
        self.refused: set[Copy] = set()
        """Copies of theirs that were left out, once all has gone."""

    async def admit(self, frame: Any, engine: Engine, lane: Lane) -> None:
        """Let them in."""
        self._frame = frame
        try:
            await self._uploads.admit(frame)
        finally:
            engine.collect(lane)  # what they wrote and what comes now have records of their own
            self._heads = [(buffer.load, buffer, buffer.load.head) for buffer in lane.buffers]
            here = {load for load, _, _ in self._heads}
            self._early = [load for load in lane.loads or [] if load not in here]

    def follow(self, submission: Submission, loads: list[Load]) -> None:
        """The frame is on its way: they hear of the end, whoever else waits for it or does not."""
        left = 1 + len(loads)

        def gone(_: object) -> None:
            nonlocal left
            left -= 1
            if not left:
                self._leave(submission, loads)

        submission.made.then(gone)
        for load in loads:
            load.gone.then(gone)

    def _leave(self, submission: Submission, loads: list[Load]) -> None:
        frame, self._frame = self._frame, None
        if submission.made.error is None:
            submits = {load.gone.value for load in loads if load.gone.value is not None}
            failures = [(each, copy, why) for each in submits for copy, why in each.failures]
            refused = [(copy, why) for each, copy, why in failures if self._had(each, copy)]
            self.refused = {copy for copy, _ in refused}
            self._uploads.submitted(frame, submission.fence, [(copy.destination, why) for copy, why in refused])
        else:
            self._uploads.turned_away(frame, submission.made.error)
        self._early, self._heads = [], []  # a frame may be kept, and a buffer's memory not

    def _had(self, submission: Submission, copy: Copy) -> bool:
        """Whether a copy that went with this submit is one of theirs."""
        return any(load.gone.value is submission for load in self._early) or any(
            load.gone.value is submission and buffer is copy.source and copy.offset < head
            for load, buffer, head in self._heads
        )

    def turned_away(self) -> None:
        """The frame was abandoned."""
        frame, self._frame = self._frame, None
        self._early, self._heads = [], []
        if frame is not None:
            self._uploads.turned_away(frame, None)
