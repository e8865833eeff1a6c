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
    """More bytes were asked for than one staging buffer has: waiting would never help.

    What to do: write with `write_buffer` or `write_texture`, which go in pieces; or open the ring with a larger
    `buffer_size`.
    """


class BudgetExceeded(StagingError, MemoryError):
    """The staging memory would exceed its `MemoryBudget`; nothing was created.

    What to do: close a ring that is not needed, open a smaller one, or share a larger `MemoryBudget`.
    """


class OutOfMemory(StagingError, MemoryError):
    """The device could not allocate a buffer. A ring that was to be opened has given back those that it had got.

    What to do: destroy buffers and textures that are not needed, or open a smaller ring.
    """


class ViewStillAlive(StagingError, BufferError):
    """Something outside the library can still write to the memory of an allocation that is to be committed.

    Named and derived after Python's own precedent: `mmap.close` raises BufferError while exports exist.

    What to do: delete the tensor, array or memoryview before the block of the allocation ends.
    """


class AllocationClosed(StagingError, ValueError):
    """The allocation was committed or abandoned before, or the block of the batch or frame has ended.

    What to do: write inside the block, and allocate anew for what comes later.
    """


class FenceTimeout(StagingError, TimeoutError):
    """The GPU did not finish within the time given.

    What to do: wait on, give it less to do at a time, or a longer `timeout` or `fence_timeout`.
    """


class StallTimeout(StagingError, TimeoutError):
    """No staging buffer can come back, because open allocations hold them all; the message says whose they are.

    What to do: commit or abandon allocations before awaiting something that needs the ring; or open more buffers.
    """


class DeviceLost(StagingError, anyio.BrokenResourceError):
    """The GPU device is gone, and with it everything that was staged or in flight.

    What to do: request a new device, open a new ring on it, and upload again.
    """


class RingClosed(StagingError, anyio.ClosedResourceError):
    """The ring was closed, or never opened.

    What to do: use it inside `async with`, or between `open` and `aclose`; once closed, make another.
    """


class AlreadyInitialized(StagingError, RuntimeError):
    """`aiostage.memory` was initialized before.

    What to do: close it first, or make another manager.
    """


class InvalidCopy(StagingError, ValueError):
    """A copy that WebGPU would refuse; the message has the numbers. Nothing of it was submitted.

    What to do: what the message says; other copies are not affected.
    """


class RangeReleased(StagingError, ValueError):
    """A pool's range was used, pinned or released after its last reference had been released.

    What to do: hold a reference, `with range:`, or a `pin`, for as long as it is used.
    """


class RangesStillAlive(StagingError, BufferError):
    """A pool cannot be closed while ranges of it are referenced, pinned, or the destination of staged copies.

    What to do: release them, and submit what is staged; then close it.
    """


class PoolClosed(StagingError, anyio.ClosedResourceError):
    """The pool was closed, and its ranges with it.

    What to do: make another pool.
    """


class UploadCancelled(StagingError, CancelledError):
    """An upload of a queue was cancelled, by its tag or with its queue, before it was done.

    Derived from `concurrent.futures.CancelledError`, an ordinary exception: the task that awaits it is not cancelled.

    What to do: nothing, if it was meant; else queue it again.
    """


class QueueClosed(StagingError, anyio.ClosedResourceError):
    """An upload queue was used outside its 'async with' block.

    What to do: queue inside the block.
    """


class InvalidTexture(StagingError, ValueError):
    """A texture file is damaged; the message says where. Nothing of the damaged level was uploaded.

    What to do: write the file again; `aiostage inspect` says the same of it without a program.
    """


class UnsupportedTexture(StagingError, ValueError):
    """A texture file holds what WebGPU, this device or this installation cannot take; nothing was created.

    What to do: convert the file, request the feature, or install the package that the message names.
    """


class InvalidSource(StagingError, ValueError):
    """What is streamed is damaged, or is not what its metadata say; the message names the item.

    What to do: mend the item, or pass over it: the ring and other items go on.
    """


class InvalidSubmit(StagingError, ValueError):
    """A command buffer that cannot be submitted here: another device's, submitted before, or none at all.

    What to do: record a new one, on the ring's device; each is submitted once.
    """


class WrongDevice(StagingError, ValueError):
    """An object of another device than the ring's.

    What to do: open the ring on the object's device. pygfx has one, `gfx.renderers.wgpu.get_shared().device`.
    """


class WrongLoop(StagingError, RuntimeError):
    """A ring, allocation or fence was used from another event loop, thread or process than the one it lives on.

    What to do: a ring for each loop; `asyncio.run_coroutine_threadsafe` from another thread; or
    `aiostage.memory.StagingRingManager`, which any thread may call.
    """


class CannotStartThread(StagingError, RuntimeError):
    """The system lets this process have no more threads, so a ring or tracker could not be opened; nothing was kept.

    What to do: raise the limit on processes (`ulimit -u`, or the container's), or end other threads.
    """


class CannotServe(StagingError, OSError):
    """`aiostage.monitoring` has no place for a socket that its user alone can reach, or the system has no such sockets;
    nothing was kept. Everything else works without it.

    What to do: point `XDG_RUNTIME_DIR` or `TMPDIR` to a folder that belongs to the user alone.
    """


class UnsupportedVersion(StagingError, RuntimeError):
    """The installed wgpu, or pygfx, cannot be driven by this version of the library.

    What to do: install one that it was tested with, as the message says, or a newer aiostage.
    """


Error = TypeVar("Error", bound=Exception)


def afresh(error: Error) -> Error:
    """A new exception like one that is kept, to be raised in its place.

    Raised itself, it would gather the frames of everybody that it was raised for, and keep their data alive.
    """
    try:
        return copy(error)
    except TypeError:  # somebody's own class, which its arguments do not make again
        return error
