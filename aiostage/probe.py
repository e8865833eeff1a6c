"""Who is told what Python's part of the library does, for a trace; nobody, unless one is being written.

Whoever has something to tell asks `tracer` first, which is all that it costs then. What the carriers do, they tell by
themselves (native/trace.h).
"""

from __future__ import annotations

from typing import Any, Protocol
from weakref import WeakKeyDictionary

Track = tuple[int, int, int]
"""Of a trace: its number, that of a process in it, and of a track there."""


class Port(Protocol):
    """A `LoopPort`, as far as a tracer needs to know it."""

    loop: Any

    def post(self, callback: Any) -> bool: ...

    def current_task(self) -> Any: ...

    def name_of(self, task: Any) -> str: ...


class Traced(Protocol):
    """The engine of a ring, likewise."""

    @property
    def port(self) -> Port: ...

    @property
    def name(self) -> str:
        """Of it and its device."""

    def time_submits(self) -> bool:
        """Have the GPU asked how long submits take; in any thread. False: it cannot be."""

    def show_buffers(self) -> None:
        """Tell in which states its buffers are; on its loop."""


class Tracer(Protocol):
    """A trace that is being written."""

    def opened(self, ring: Traced) -> None:
        """A ring was opened."""

    def closed(self, ring: Traced) -> None:
        """And closed."""

    def task(self, port: Port) -> Track:
        """The track of the task that runs on this loop now."""

    def stalled(self, port: Port, nbytes: int, seconds: float) -> None:
        """That task has waited so long for so many bytes of staging memory, until now."""


tracer: Tracer | None = None
rings: WeakKeyDictionary[Any, None] = WeakKeyDictionary()
"""Those that are open, each a `Traced`. To be read in any thread by `rings.keyrefs()`."""


def opened(ring: Traced) -> None:
    """A ring was opened."""
    rings[ring] = None
    if tracer is not None:
        tracer.opened(ring)


def closed(ring: Traced) -> None:
    """And closed, if it ever was opened."""
    if rings.pop(ring, ring) is None and tracer is not None:
        tracer.closed(ring)
