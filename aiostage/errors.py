"""What can go wrong, by name.

Every exception of this library is a `StagingError` and also the builtin or anyio class that a caller who has never
heard of this library would expect.
"""

from __future__ import annotations

from concurrent.futures import CancelledError
from copy import copy
from typing import TypeVar

import anyio


class StagingError(Exception):
    """Base of everything that this library raises on its own account."""

    def __reduce__(self) -> str | tuple[object, ...]:
        return (
            super().__reduce__()
        )  # or tblib, by which dask sends errors, would make a MemoryError by its __new__ alone


class AllocationTooLarge(StagingError, ValueError):
    """More bytes were asked for than one staging buffer has: waiting would never help."""


class BudgetExceeded(StagingError, MemoryError):
    """The staging memory would exceed its `MemoryBudget`; nothing was created."""


class OutOfMemory(StagingError, MemoryError):
    """The device could not allocate a buffer. A ring that was to be opened has given back those that it had got."""


class ViewStillAlive(StagingError, BufferError):
    """Something outside the library can still write to the memory of an allocation that is to be committed.

    Named and derived after Python's own precedent: `mmap.close` raises BufferError while exports exist.
    """


class AllocationClosed(StagingError, ValueError):
    """The allocation was committed or abandoned before."""


class FenceTimeout(StagingError, TimeoutError):
    """The GPU did not finish within the time given."""


class StallTimeout(StagingError, TimeoutError):
    """No staging buffer can come back, because open allocations hold them all; the message says whose they are."""


class DeviceLost(StagingError, anyio.BrokenResourceError):
    """The GPU device is gone, and with it everything that was staged or in flight."""


class RingClosed(StagingError, anyio.ClosedResourceError):
    """The ring was closed, or never opened."""


class AlreadyInitialized(StagingError, RuntimeError):
    """`aiostage.memory` was initialized before; close it first, or make another manager."""


class InvalidCopy(StagingError, ValueError):
    """A copy that WebGPU would refuse; the message has the numbers. Nothing of it was submitted."""


class RangeReleased(StagingError, ValueError):
    """A pool's range was used, pinned or released after its last reference had been released."""


class RangesStillAlive(StagingError, BufferError):
    """A pool cannot be closed while ranges of it are referenced, pinned, or the destination of staged copies."""


class PoolClosed(StagingError, anyio.ClosedResourceError):
    """The pool was closed, and its ranges with it."""


class UploadCancelled(StagingError, CancelledError):
    """An upload of a queue was cancelled, by its tag or with its queue, before it was done.

    Derived from `concurrent.futures.CancelledError`, an ordinary exception: the task that awaits it is not cancelled.
    """


class QueueClosed(StagingError, anyio.ClosedResourceError):
    """An upload queue was used outside its 'async with' block."""


class InvalidTexture(StagingError, ValueError):
    """A texture file is damaged; the message says where. Nothing of the damaged level was uploaded."""


class UnsupportedTexture(StagingError, ValueError):
    """A texture file holds what WebGPU, this device or this installation cannot take; nothing was created."""


class InvalidSource(StagingError, ValueError):
    """What is streamed is damaged, or is not what its metadata say; the message names the item."""


class InvalidSubmit(StagingError, ValueError):
    """A command buffer that cannot be submitted here: another device's, submitted before, or none at all."""


class WrongLoop(StagingError, RuntimeError):
    """A ring, allocation or fence was used from another event loop, thread or process than the one it lives on."""


class CannotStartThread(StagingError, RuntimeError):
    """The system lets this process have no more threads, so a ring or tracker could not be opened; nothing was kept."""


class CannotServe(StagingError, OSError):
    """`aiostage.monitoring` has no place for a socket that its user alone can reach, or the system has no such sockets;
    nothing was kept. Everything else works without it."""


class UnsupportedVersion(StagingError, RuntimeError):
    """The installed wgpu cannot be driven by this version of the library."""


Error = TypeVar("Error", bound=Exception)


def afresh(error: Error) -> Error:
    """A new exception like one that is kept, to be raised in its place.

    Raised itself, it would gather the frames of everybody that it was raised for, and keep their data alive.
    """
    try:
        return copy(error)
    except TypeError:  # somebody's own class, which its arguments do not make again
        return error
