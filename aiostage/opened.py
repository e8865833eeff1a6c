"""The rings of this process that are open, for whoever watches them."""

from __future__ import annotations

import itertools
import os
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

from .loop import LoopPort


class Opened(NamedTuple):
    """A ring that is open. Only the number may be used anywhere; the ring is its loop's."""

    number: int
    """1 for the first of the process."""
    ring: Any
    """A `StagingRing`."""
    port: LoopPort
    """The way to its loop."""


_numbers = itertools.count(1)
_opened: WeakKeyDictionary[Any, tuple[int, LoopPort]] = WeakKeyDictionary()


def add(ring: Any, port: LoopPort) -> None:
    """It is open."""
    _opened[ring] = next(_numbers), port


def remove(ring: Any) -> None:
    """It is closed."""
    _opened.pop(ring, None)


def rings() -> list[Opened]:
    """Those that are open now, in the order in which they were opened; from any thread."""
    alive = [ring for ref in _opened.keyrefs() if (ring := ref()) is not None]  # while others may be opened
    found = [Opened(at[0], ring, at[1]) for ring in alive if (at := _opened.get(ring)) is not None]
    return sorted(found, key=lambda one: one.number)


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_opened.clear)  # they are the parent's
