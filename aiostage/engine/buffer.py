"""A staging buffer and its states: the only file that sets one.

| state | it is | what means something then |
| --- | --- | --- |
| FREE | mapped and empty | `memory`, `bytes`, `address` |
| FILLING | mapped; takes places for one lane | those, and `load` |
| CLOSED | the same, but it takes no more: it is full, or has to depart soon | those |
| DEPARTING | sealed: nobody writes to it, and its copies are about to be submitted | `load` |
| AWAY | submitted: the GPU may read it. New ones begin here, until they are mapped | `load`, if it is not new |
| LENT | the carrier's, for whole uploads: it fills it, submits it and has it mapped again | – |
| HELD | mapped and empty, but a view that the library cannot end can still write to it | `memory`, `quarantine` |

FREE → FILLING → CLOSED → DEPARTING → AWAY → FREE is the common way, FREE → LENT → FREE that of whole uploads. Each
arrow is one method of `StagingBuffer`.
"""

from __future__ import annotations

import enum
import time
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from .. import native, probe
from ..gpu.memory import export
from .outcome import Outcome
from .views import Views

PATIENCE = 0.005
"""Seconds that an open allocation may be old before others prefer a free buffer to sharing one with it."""

NO_TASK = "no task"
"""Who has what was made outside of any task, or by one that is gone."""


class State(enum.Enum):
    """Where a staging buffer is in its life."""

    FREE = enum.auto()
    FILLING = enum.auto()
    CLOSED = enum.auto()
    DEPARTING = enum.auto()
    AWAY = enum.auto()
    LENT = enum.auto()
    HELD = enum.auto()

    __hash__ = object.__hash__  # an enum's own is a call of Python


_FILLING = State.FILLING  # asked for with each place, and slow to look up in an enum


class BufferState(enum.StrEnum):
    """Where a staging buffer is in its life, as far as users need to know."""

    AVAILABLE = "available"
    """Mapped and empty."""
    IN_USE = "in_use"
    """Mapped; holds allocations or copies that were not submitted yet."""
    FENCED = "fenced"
    """Sealed and handed to the GPU; not writable until the GPU is done and the buffer is mapped again. Or given out to
    nobody as long as a view of an abandoned allocation can write to it."""


_PUBLIC = {
    State.FREE: BufferState.AVAILABLE,
    State.FILLING: BufferState.IN_USE,
    State.CLOSED: BufferState.IN_USE,
    State.DEPARTING: BufferState.FENCED,
    State.AWAY: BufferState.FENCED,
    State.LENT: BufferState.IN_USE,
    State.HELD: BufferState.FENCED,
}
_TRACED = {
    BufferState.AVAILABLE: native.AVAILABLE,
    BufferState.IN_USE: native.IN_USE,
    BufferState.FENCED: native.FENCED,
}


class Place:
    """`size` bytes at `offset` of a staging buffer, from when they are taken until they are filled or given up.

    While it lasts the buffer cannot depart. It ends once, by `end`. Those that the library fills itself, or holds for a
    waiter, are anonymous; a user's has a name, for the report of a ring that cannot move.
    """

    __slots__ = ("_holder", "buffer", "is_over", "load", "name", "offset", "since", "size")

    def __init__(self, buffer: StagingBuffer, offset: int, size: int) -> None:
        self.buffer = buffer
        self.load: Load = buffer.load
        self.offset = offset
        self.size = size
        self.name: str | None = None
        self.since = 0.0
        self.is_over = False
        self._holder: weakref.ref[Any] | None = None  # weakly: a task keeps its result, which may be the allocation
        self.load.filling += 1

    def give_to(self, task: Any, name: str) -> None:
        """A user has it from now on: `task`, or with None nobody in particular."""
        self.load.filling -= 1
        self.load.open[self] = None
        self._holder, self.name, self.since = task and weakref.ref(task), name, time.perf_counter()

    def end(self) -> bool:
        """Nobody writes to it any more. False if that was so before."""
        if self.is_over:
            return False
        self.is_over = True
        if self.name is not None:
            del self.load.open[self]
        else:
            self.load.filling -= 1
        return True

    @property
    def memory(self) -> npt.NDArray[np.uint8]:
        """Its bytes."""
        assert self.buffer.memory is not None
        return self.buffer.memory[self.offset : self.offset + self.size]

    @property
    def task(self) -> Any:
        """The task that has it."""
        return (self._holder and self._holder()) or NO_TASK

    def __str__(self) -> str:
        return f"{self.name} holds {self.size} bytes for {time.perf_counter() - self.since:.1f} s"


class Load:
    """What is in a staging buffer: from its first place until the buffer comes back."""

    __slots__ = ("copies", "fences", "filling", "gone", "head", "jobs", "lane", "open", "unstaged", "used")

    def __init__(self, lane: Any) -> None:
        self.lane = lane
        self.head = 0  # first byte that no place has taken
        self.used = 0  # bytes in places that were not given up
        self.open: dict[Place, None] = {}  # places that users have
        self.filling = 0  # places of the library's own that are not over
        self.jobs: dict[int, None] = {}  # of the carrier's, that write to it: what departs waits for them there
        self.fences: list[Any] = []  # that have to be done before it comes back
        self.copies = 0  # copies staged and not submitted
        self.unstaged: list[weakref.ref[Any]] = []  # allocations committed without a copy
        self.gone: Outcome[Any] = Outcome()  # the submission that took it, once it was made

    @property
    def is_busy(self) -> bool:
        """Whether somebody may still write to it for whom the carrier cannot wait."""
        return self.filling > 0 or bool(self.open)

    @property
    def is_empty(self) -> bool:
        """Whether all that was in it was given up."""
        return not (self.used or self.copies or self.unstaged or self.jobs)

    def has_old_place(self) -> bool:
        """Whether its oldest open allocation has been open for long, as a slow producer's."""
        return self.has_place_older_than(PATIENCE)

    def has_place_older_than(self, seconds: float) -> bool:
        """Whether its oldest open allocation is."""
        for place in self.open:
            return time.perf_counter() - place.since > seconds
        return False


class StagingBuffer:
    """One host-visible buffer of the ring, and what is in it."""

    __slots__ = (
        "_shelf",
        "address",
        "bytes",
        "exports",
        "handle",
        "index",
        "keep_alive",
        "lent",
        "load",
        "memory",
        "number",
        "phase",
        "quarantine",
        "size",
    )

    def __init__(self, index: int, handle: Any, size: int, shelf: Shelf) -> None:
        self.index = index
        self.number = -1  # what the carrier calls it
        self.handle = handle  # wgpu's own GPUBuffer
        self.size = size
        self.keep_alive = lambda _, handle=handle: None  # held by whatever points at the memory
        self.exports: list[Any] = []  # weak references to what exported memory of it and was alive at commit
        self.quarantine: list[Views] = []  # abandoned, with views alive that could not be made read-only
        self.memory: npt.NDArray[np.uint8] | None = None  # its bytes while mapped
        self.bytes: memoryview | None = None  # the same, quicker for small writes
        self.address = 0
        self.load: Any = None  # a Load, or None
        self.lent = False  # a user has asked for it, and with its handle may copy out of what he commits without a copy
        self._shelf = shelf
        self.phase = State.AWAY
        shelf.of[State.AWAY].append(self)

    @property
    def state(self) -> BufferState:
        """Where it is in its life."""
        return _PUBLIC[self.phase]

    @property
    def is_wanted(self) -> bool:
        """Whether a copy of somebody's own may yet be made out of it: then it waits for the submit that follows."""
        unstaged = self.load.unstaged
        return bool(unstaged) and (self.lent or any(slot() is not None for slot in unstaged))

    # -- transitions --

    def begin(self, lane: Any) -> None:
        """FREE → FILLING, for one lane."""
        self._enter(State.FILLING)
        self.load = Load(lane)

    def lend(self) -> None:
        """FREE → LENT. It comes back as from a trip."""
        self._enter(State.LENT)
        self.memory = self.bytes = None

    def close(self) -> None:
        """FILLING → CLOSED."""
        if self.phase is not State.CLOSED:
            self._enter(State.CLOSED)

    def seal(self) -> None:
        """FILLING, CLOSED → DEPARTING."""
        self._enter(State.DEPARTING)
        self.memory = self.bytes = None
        self.load.copies = 0

    def leave(self) -> None:
        """DEPARTING → AWAY: the submit was made, or lost. It may have come back already when the loop hears of that."""
        if self.phase is State.DEPARTING:
            self._enter(State.AWAY)

    def come_back(self, address: int) -> None:
        """DEPARTING, AWAY, LENT → FREE or HELD: the GPU is done with it, and it is mapped at this address."""
        self.address = address
        exported = export(address, self.size, self.keep_alive)
        self.memory, self.bytes = np.frombuffer(exported, np.uint8), memoryview(exported).cast("B")
        self.empty()

    def empty(self) -> None:
        """FILLING, CLOSED, HELD and what comes back → FREE; or HELD, while somebody can still write to it."""
        self.load, self.lent = None, False
        self.exports = [export for export in self.exports if export() is not None]
        self.quarantine = [views for views in self.quarantine if views.is_foreign()]
        self._enter(State.HELD if self.quarantine else State.FREE)

    def forget_memory(self) -> None:
        """The ring is closed: the memory goes with the last that points at it."""
        self.memory = self.bytes = None

    def show(self) -> None:
        """For a trace: what state it is in. One that is lent the carrier shows."""
        if self._shelf.show is not None:
            self._shelf.show(self.number, _TRACED[self.state])

    def _enter(self, state: State) -> None:
        of = self._shelf.of
        of[self.phase].remove(self)
        of[state].append(self)
        self.phase = state
        if probe.tracer is not None and state is not State.LENT:
            self.show()

    # -- places --

    def fits(self, size: int, alignment: int) -> int | None:
        """Offset where `size` bytes fit, or None."""
        if self.phase is not _FILLING:
            return None
        offset = -(-self.load.head // alignment) * alignment
        return None if offset + size > self.size else offset

    def reserve(self, offset: int, size: int) -> None:
        """Take `size` bytes from `offset` on, where they fit. Who writes them later needs a `Place` as well."""
        load = self.load
        load.head = offset + size
        load.used += size

    def keep_busy(self) -> Place:
        """A place of no size, which keeps it from departing."""
        return Place(self, 0, 0)

    def held_by(self) -> str:
        """What keeps it from coming back that only users can end, once all that can go is gone; empty if nothing."""
        load: Load | None = self.load
        reasons = [str(place) for place in load.open] if load else []
        foreign = [views for views in self.quarantine if views.is_foreign()]
        if foreign:
            reasons.append(f"a view of an abandoned allocation{foreign[0].keepers()}")
        if load is None:
            return ", ".join(reasons)
        if self.is_wanted:
            reasons.append(
                f"{len(load.unstaged)} allocations committed without a copy, which go with the next ring.submit()"
            )
        if not reasons and load.copies and not load.filling:
            reasons.append("copies that must not overtake earlier ones")
        return ", ".join(reasons)


class Shelf:
    """The buffers of a ring: a list for each state, and in ring order."""

    __slots__ = ("all", "cursor", "of", "show", "take_back")

    def __init__(self) -> None:
        self.of: dict[State, list[StagingBuffer]] = {state: [] for state in State}
        self.all: list[StagingBuffer] = []  # by index
        self.take_back: Callable[[], object] | None = None  # has one that is lent be free, if no upload uses it
        self.show: Callable[[int, int], object] | None = None  # the state of one, by its number, to a trace
        self.cursor = 0  # index where the next buffer is looked for, and the current one while it has room

    def add(self, handle: Any, size: int) -> None:
        """A new buffer, not mapped yet."""
        self.all.append(StagingBuffer(len(self.all), handle, size, self))

    @property
    def free(self) -> list[StagingBuffer]:
        """Those that are mapped and empty, as they came."""
        return self.of[State.FREE]

    @property
    def lent(self) -> list[StagingBuffer]:
        """Those that whole uploads have."""
        return self.of[State.LENT]

    def next_free(self) -> StagingBuffer | None:
        """The first of them in ring order, from the cursor on; or one that was lent."""
        if not self.free and self.lent and self.take_back is not None:
            self.take_back()
        if not self.free:
            return None
        count = len(self.all)
        return min(self.free, key=lambda buffer: (buffer.index - self.cursor) % count)

    def clear(self) -> None:
        """The ring has none any more."""
        self.all = []

    def point_at(self, buffer: StagingBuffer) -> None:
        """It is the current one."""
        self.cursor = buffer.index

    def point_past(self, buffer: StagingBuffer) -> None:
        """If it is the current one, the next is."""
        if self.cursor == buffer.index:
            self.cursor = (buffer.index + 1) % len(self.all)
