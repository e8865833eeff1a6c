"""What to do next, as pure functions from the state of a ring to a value. They change nothing: the engine acts.

- Where does a place come from? From the lane's last buffer while that has room; else from a free one, in ring order;
  else from any of the lane's with room. A free buffer is better than the last one if an open allocation in that is old,
  since a slow producer holds up everybody beside it.
- Who gets a place that has come free? The first in the line, or nobody: one who wants less does not go ahead.
- What departs because somebody needs room? Whatever nobody writes to, as long as no copy overtakes an earlier one to
  the same destination: `Lane.ready`.
- How do a submit's copies get out of a buffer that somebody else writes to? The buffer takes no more places, so that it
  comes free at the latest when those in it end; with a free buffer the copies are moved there.
- Who holds what, when nothing can move?
"""

from __future__ import annotations

from typing import NamedTuple

from ..data.copies import Staged
from .buffer import Shelf, StagingBuffer
from .lanes import Lane
from .line import Line, Waiter

Take = tuple[StagingBuffer, int]
"""A buffer, the lane's own or a free one, and the offset of a place in it. Plain: small writes are counted in µs."""


class Go(NamedTuple):
    """These may depart now."""

    buffers: list[StagingBuffer]


class Stay(NamedTuple):
    """Wait: for the end of places in `close`, which take no more; and copies of the first of them move to `target`."""

    close: list[StagingBuffer]
    target: StagingBuffer | None


def place_for(shelf: Shelf, lane: Lane, size: int, alignment: int) -> Take | None:
    """Where the lane gets a place; None: there is none."""
    if lane.buffers:
        last = lane.buffers[-1]
        offset = last.fits(size, alignment)
        if offset is not None and not (last.load.open and last.load.has_old_place()):
            return last, offset
    fresh = shelf.next_free()
    if fresh is not None:
        return fresh, 0
    for buffer in reversed(lane.buffers):
        offset = buffer.fits(size, alignment)
        if offset is not None:
            return buffer, offset
    return None


def next_served(shelf: Shelf, line: Line) -> tuple[Waiter, Take] | None:
    """Who of the line gets which place now: the first, or nobody."""
    waiter = line.first
    if waiter is None:
        return None
    take = place_for(shelf, waiter.lane, waiter.size, waiter.alignment)
    return take and (waiter, take)


def way_for(shelf: Shelf, lane: Lane, wanted: set[Staged]) -> Go | Stay:
    """How all of `wanted` get to a submit of this lane. A copy that one of them would overtake goes with them."""
    ready = lane.may_go({buffer for buffer in lane.buffers if buffer.load.is_busy})
    left = {copy.source for copy in wanted.intersection(lane.copies)}.difference(ready)
    if not left:
        return Go(ready)
    blocked = [buffer for buffer in lane.buffers if buffer.load.is_busy and buffer in left] or lane.blocked()
    # A place that was handed to a waiter becomes an open allocation in this turn: it is not moved away from.
    movable = blocked[0].load.open and not blocked[0].load.filling
    return Stay(blocked, shelf.next_free() if movable else None)


def who_holds_what(shelf: Shelf, patience: float) -> list[str] | None:
    """For each buffer, what only users can end; None if something else may still bring one back, or they only take
    turns: none of the allocations in it has been open for as long as somebody waits."""
    if any(b.load and b.load.open and not b.load.has_place_older_than(patience) for b in shelf.all):
        return None
    reasons = [buffer.held_by() for buffer in shelf.all]
    return [f"buffer {b.index}: {why}" for b, why in zip(shelf.all, reasons, strict=True)] if all(reasons) else None
