"""Who waits for staging memory, and who has it: `StagingRing.waits` and `StagingRing.holds`."""

from __future__ import annotations

import enum
import time
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice

from .engine.buffer import NO_TASK
from .engine.engine import Engine


class WaitKind(enum.StrEnum):
    """What somebody waits for."""

    PLACE = "place"
    """An allocation, or a piece of a write that goes by places: it stands in the line, first come, first served."""
    UPLOAD = "upload"
    """A whole upload: those that are under way take turns at the buffers."""


@dataclass(frozen=True, slots=True)
class Wait:
    """A task that is suspended because no staging buffer has room for it."""

    task: str
    """Its name."""
    kind: WaitKind
    size: int | None
    """Bytes that it wants a place for; None for a whole upload."""
    seconds: float
    """Since it began to wait, or since its upload began."""


@dataclass(frozen=True, slots=True)
class Hold:
    """An allocation that is open: its staging buffer cannot go to the GPU before it is committed or abandoned."""

    task: str
    """The name of the task that made it; "no task" if it was made outside of any."""
    buffer: int
    """Index of the staging buffer."""
    size: int
    """In bytes."""
    seconds: float
    """Since it was made."""


def waits(engine: Engine, limit: int | None) -> tuple[Wait, ...]:
    """Those in the line in its order, then uploads in theirs. Which of these has no buffer at the moment the carrier
    knows alone: they are named while one has none."""
    return tuple(islice(_waits(engine), limit))


def _waits(engine: Engine) -> Iterator[Wait]:
    now = time.perf_counter()
    if not engine.shelf.all:  # closed, or not open yet
        return
    lending = engine.lending
    for waiter in engine.line.waiters:
        if not lending.is_for(waiter):
            yield Wait(waiter.name, WaitKind.PLACE, waiter.size, now - waiter.since)
    if lending.is_starved or lending.counts.waiting:
        for upload in lending.uploads:
            task = NO_TASK if upload.task is None else engine.port.name_of(upload.task)
            yield Wait(task, WaitKind.UPLOAD, None, now - upload.since)


def holds(engine: Engine, limit: int | None) -> tuple[Hold, ...]:
    """Open allocations, by buffer and then the oldest first."""
    return tuple(islice(_holds(engine), limit))


def _holds(engine: Engine) -> Iterator[Hold]:
    now = time.perf_counter()
    for buffer in engine.shelf.all:
        for place in buffer.load.open if buffer.load is not None else ():
            yield Hold(place.name or "", buffer.index, place.size, now - place.since)
