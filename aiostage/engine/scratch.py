"""Device memory that atomic uploads go through, kept for the next of them."""

from __future__ import annotations

import operator
from collections.abc import Iterable
from typing import Any

from ..gpu.protocol import Native

MOST_IDLE = 256 << 20
"""Bytes that a ring keeps while no upload uses them."""

_STEP = 1 << 20  # sizes are multiples of it: uploads of about the same size use the same memory

_size_of = operator.attrgetter("size")


class Scratch:
    """The scratch buffers of a ring. One has one upload at a time."""

    def __init__(self) -> None:
        self.nbytes = 0
        """Of all, idle or in use."""
        self._idle: list[Any] = []  # that was used last is the last
        self._is_closed = False

    def take(self, nbytes: int) -> Any | None:
        """The smallest that is idle and has room, or None."""
        fitting = [buffer for buffer in self._idle if buffer.size >= nbytes]
        found = min(fitting, key=_size_of, default=None)
        if found is not None:
            self._idle.remove(found)
        return found

    def add(self, buffer: Any) -> None:
        """A new one, which is in use."""
        self.nbytes += buffer.size

    def give_back(self, buffers: Iterable[Any], native: Native) -> None:
        """Nobody uses them; of what is more than enough those are destroyed that were idle for longest."""
        self._idle += buffers
        self._let_go(0 if self._is_closed else MOST_IDLE, native)

    def close(self, native: Native) -> None:
        """Destroy them, and those in use as soon as they are given back."""
        self._is_closed = True
        self._let_go(0, native)

    def _let_go(self, most: int, native: Native) -> None:
        while sum(map(_size_of, self._idle)) > most:
            oldest = self._idle.pop(0)
            self.nbytes -= oldest.size
            native.destroy(oldest)


def create(native: Native, nbytes: int) -> Any:
    """A scratch buffer, made in a thread: memory is slow. :raises OutOfMemory, DeviceLost:"""
    return native.create_relay(min(-(-nbytes // _STEP) * _STEP, largest(native)))


def largest(native: Native) -> int:
    """Bytes of the largest that there can be."""
    return native.max_buffer_size // 4 * 4
