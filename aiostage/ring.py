"""The staging ring: rotation, allocation, waiting and submission.

How a byte travels:

1. `allocate` (or an upload call) takes a place in the current staging buffer of its *lane*: AVAILABLE → IN_USE.
2. The bytes are written, copies out of them are staged, and the place is given up (`commit`): nobody writes any more.
3. The lane *departs*: its buffers that nobody writes to are sealed, their copies submitted, a fence inserted and the
   re-mapping asked for: IN_USE → FENCED. Where a submit blocks, a thread does it.
4. Fence and mapping are done, the buffer comes back: FENCED → AVAILABLE, and the first waiter is handed its place.

A lane is what departs together: the slots that users hold, the uploads of this turn of the loop, one batch, one frame.
A buffer serves one lane at a time, so nobody's open allocation can hold up another lane's copies.
"""

from __future__ import annotations

import math
import operator
import os
import time
import warnings
import weakref
from collections import OrderedDict, deque
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from functools import partial
from logging import ERROR, WARNING
from typing import TYPE_CHECKING, Any, NamedTuple

import anyio
import anyio.lowlevel
import numpy as np

from . import uploads
from .allocation import Allocation, texel_layout
from .budget import MemoryBudget, MiB, default_budget
from .carrier.threads import Workers, wait_out
from .data.copies import BufferCopy, Copy
from .engine.lanes import NO_TASK, Hold, Lane, StagingBuffer, Submission, Trip
from .engine.views import Views
from .errors import (
    AllocationClosed,
    AllocationTooLarge,
    DeviceLost,
    FenceTimeout,
    InvalidCopy,
    OutOfMemory,
    RingClosed,
    StagingError,
    StallTimeout,
    afresh,
)
from .events import DEBUG, event, logger, report
from .exits import holding
from .fences import Fence, FenceTracker
from .gpu.memory import export
from .gpu.protocol import Native, map_first
from .stats import BufferState, Demand, StagingStats

if TYPE_CHECKING:
    from .advice import Advice


_MANY_CORES = 8


class _Waiter:
    """Somebody suspended until there is a place; it is handed over, not looked for again."""

    __slots__ = ("alignment", "event", "lane", "place", "size")

    def __init__(self, lane: Lane, size: int, alignment: int, event: Any) -> None:
        self.lane = lane
        self.size = size
        self.alignment = alignment
        self.event = event
        self.place: tuple[StagingBuffer, int] | None = None


class _Relay(NamedTuple):
    """Device memory between a staging buffer and a caller's encoder, in the place of a copy's source."""

    handle: Any


class _Watch:
    """Iterates over snapshots. No generator: a loop that is left by `break` would have to close one."""

    def __init__(self, ring: StagingRing, interval: float) -> None:
        self._ring = ring
        self._interval = interval
        self._pause = 0.0

    def __aiter__(self) -> _Watch:
        return self

    async def __anext__(self) -> StagingStats:
        await anyio.sleep(self._pause)
        self._pause = self._interval
        if self._ring._error is not None:
            raise StopAsyncIteration
        return await self._ring.stats()


class StagingRing:
    """A ring of mapped staging buffers that coroutines stream to the GPU through.

    :param device: a wgpu.GPUDevice.
    :param ring_count: number of staging buffers. One works, without overlap of writing and copying. By default 3; on a
        GPU with eight processor cores or more as many as fit in half of what is left of the budget, 16 at most.
    :param buffer_size: bytes in each, a multiple of 4. Larger uploads are split. By default 8 MiB, or 16 MiB on such a
        machine (docs/performance.md has the measurements).
    :param budget: shared limit on staging memory; by default 512 MiB for all rings of the device.
    :param strict_views: tolerate no view at all of an allocation's memory at commit, not even a read-only one.
    :param host_cached: staging memory that can be read as fast as it is written, or ValueError where the device has
        none. By default where the device has it; `ring.host_cached` says what it is.
    :param stall_timeout: seconds until a call that only open allocations hold up raises StallTimeout.
    :param fence_timeout: seconds until one that waits for the GPU raises FenceTimeout; None waits on.
    :param threads: threads that copy uploads; by default one for each core, at most 12.
    :param inline_size: uploads up to this many bytes are copied on the loop: a thread would cost more.

    Opened by `async with` (or `open` and `aclose`), on the event loop that it then lives on.
    """

    def __init__(
        self,
        device: Any,
        ring_count: int | None = None,
        buffer_size: int | None = None,
        *,
        budget: MemoryBudget | None = None,
        strict_views: bool = False,
        host_cached: bool | None = None,
        stall_timeout: float = 10.0,
        fence_timeout: float | None = None,
        threads: int | None = None,
        inline_size: int = 256 * 1024,
    ) -> None:
        self.device = device
        self._chosen = ring_count, buffer_size  # None: `open` chooses
        self.ring_count = 3 if ring_count is None else _positive(ring_count, "ring_count")
        self.buffer_size = 8 * MiB if buffer_size is None else _positive(buffer_size, "buffer_size")
        if self.buffer_size % 4:
            raise ValueError(f"buffer_size must be a multiple of 4, not {buffer_size}")
        self.frames_in_flight = self.ring_count  # three by default, however many buffers there are: latency
        self._budget = budget
        self._strict_views = strict_views
        self._host_cached = host_cached
        self._stall_timeout = stall_timeout
        self._fence_timeout = fence_timeout
        self._patience = min(stall_timeout, fence_timeout or stall_timeout)
        self._threads = min(12, os.cpu_count() or 2) if threads is None else _positive(threads, "threads")
        self._inline_size = inline_size
        self._error: StagingError | None = RingClosed("the ring is not open; use 'async with'")
        self._opened = False
        self._buffers: list[StagingBuffer] = []
        self._cursor = 0  # index where the next buffer is looked for, and the current one while it has room
        self._slots = Lane()  # what allocate gives out
        self._uploads = Lane()  # write_buffer and write_texture
        self._lanes = dict.fromkeys((self._slots, self._uploads))  # and one of each batch and frame, oldest first
        self._waiters: OrderedDict[_Waiter, None] = OrderedDict()
        self._blocked: dict[partial[list[StagingBuffer] | None], None] = {}  # submits that wait for an open slot
        self._frames: set[uploads.Frame] = set()  # open, or with a fence that is pending
        self._failures: deque[tuple[Any, InvalidCopy]] = deque(maxlen=64)  # of slots: (task, why)
        self._change: anyio.Event | None = None
        self._flush_scheduled = False
        self._under_way: deque[Submission] = deque()  # that a thread is making
        self._last: Fence | None = None  # of the newest submission
        self._taken: list[weakref.finalize[..., StagingRing]] = []  # each gives back what the ring took, once
        self._closing: anyio.Event | None = None  # set when it is closed
        # Weakly, or the ring would keep itself alive by the slots that it watches.
        self._slot_gone = _call_weakly(weakref.WeakMethod(self._reclaim_later))
        self._free = 0  # buffers that are AVAILABLE
        self._stalls = self._submits = self._bytes = self._allocations = 0
        self._stall_seconds = 0.0
        self._demand = Demand(self.ring_count)
        self._logs = False  # whether somebody listens to events; asked at each submit, which is cheap enough

    # -- opening and closing --

    async def open(self) -> None:
        """Create, map and warm up the staging buffers, off the loop.

        :raises BudgetExceeded: nothing was created.
        :raises OutOfMemory: the device has less; what was created has been given back.
        :raises CannotStartThread: likewise.
        :raises ValueError: the device cannot have such buffers.
        :raises WrongLoop: called from a coroutine that is no task of a running event loop.
        """
        if self._opened:
            raise RuntimeError("a ring is opened once; make another one")
        self._opened = True
        self._logs = logger.isEnabledFor(DEBUG)
        self._tracker = FenceTracker.shared(self.device)
        self._native: Native = self._tracker.native
        self._port = self._tracker.port
        self._budget = self._budget or default_budget(self._native)
        try:
            self._port.check_task()
            self._choose_size(self._budget)
            if self.buffer_size > self._native.max_buffer_size:
                raise ValueError(
                    f"buffer_size {self.buffer_size} exceeds the device's limit of {self._native.max_buffer_size} bytes"
                )
            self.host_cached = self._native.is_host_cached(self._host_cached)
            self._budget.reserve(self.memory)
            self._owe(self._budget.release, self.memory)
            self._workers = Workers(self._port, self._threads, "copy")
            self._owe(self._workers.stop)
            self._submitter = Workers(self._port, 1, "submit")
            self._owe(self._submitter.stop)
            await self._workers.run(self._create_buffers)
            for buffer in self._buffers:
                self._map_in(buffer)
        except BaseException:
            self._error = RingClosed("the ring could not be opened")
            self._release()
            raise
        self._demand = Demand(self.ring_count)
        self._error = None

    async def aclose(self) -> None:
        """Submit what is committed, wait for what is in flight, and give the memory back.

        Waiters are woken with RingClosed; open allocations are abandoned. Cancelled by asyncio's own means, it waits
        for the GPU no longer; the memory is given back all the same. Called again, it returns when that is done.

        :raises FenceTimeout: the GPU had not finished after `fence_timeout` seconds. The ring is closed.
        """
        if self._closing is None:
            await self._close()
        elif not self._closing.is_set():  # by another task, which hears what goes wrong
            self._port.check_task()
            await self._closing.wait()

    async def _close(self) -> None:
        if not self._buffers:
            return
        self._port.check_task()
        self._closing = anyio.Event()
        lost, self._error = self._error, RingClosed("the ring was closed")
        self._wake_all(self._error)
        try:
            with anyio.CancelScope(shield=True):
                await wait_out(self._threads_are_done, self._changed)
                if lost is None:
                    await self._drain()
        finally:
            try:
                await wait_out(self._threads_are_done, self._changed)
            finally:
                self._release()
                self._closing.set()

    async def __aenter__(self) -> StagingRing:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        if getattr(self, "_buffers", None):
            warnings.warn("a StagingRing was not closed; use 'async with' or aclose", ResourceWarning, stacklevel=1)

    # -- allocating --

    def allocate_nowait(self, size: int, *, alignment: int = 4) -> Allocation:
        """Like `allocate`. :raises anyio.WouldBlock: there is no room now, or others wait already."""
        self._check()
        if alignment != 4 or type(alignment) is not int:
            alignment = math.lcm(4, _positive(alignment, "alignment"))
        size = self._check_size(size)
        place = self._find_now(self._slots, size, alignment)
        if place is None:
            self._reclaim()
            raise anyio.WouldBlock
        return self._open_allocation(place, size)

    async def allocate(self, size: int, *, alignment: int = 4) -> Allocation:
        """`size` writable bytes of staging memory, at an offset that is a multiple of 4 and of `alignment`.

        Suspends while no buffer has room; first come, first served.

        :raises AllocationTooLarge: more than `buffer_size`.
        :raises StallTimeout: open allocations have held every buffer for `stall_timeout` seconds.
        :raises RingClosed, DeviceLost: there will be no room any more.
        """
        try:
            return self.allocate_nowait(size, alignment=alignment)
        except anyio.WouldBlock:
            pass
        place = await self._wait(self._slots, size, math.lcm(4, alignment))
        slot = self._open_allocation(place, size)
        place[0].copying -= 1  # the hand-over held it
        self._notify()  # a submit may move its copies elsewhere now
        return slot

    async def allocate_texture(self, size: Any, format: str, *, aspect: str = "all") -> Allocation:
        """Staging memory for `size` texels (width, height, depth or layers), rows padded as copies demand.

        `slot.array()` has the padded row stride in its strides. Block-compressed formats have one element of
        `bytes` a block: an array of uint8 (layers, block rows, bytes in a row).

        :raises ValueError: the format cannot be written by a copy.
        """
        texels = texel_layout(size, format, aspect)
        nbytes = texels.bytes_per_row * texels.rows_per_image * texels.size[2]
        slot = await self.allocate(nbytes, alignment=16)
        slot._texels = texels
        return slot

    # -- submitting --

    async def submit(self, command_buffers: Sequence[Any] = ()) -> Fence:
        """Submit the copies committed so far, then `command_buffers`, in one queue submit.

        Suspends while such a copy shares its staging buffer with an allocation that is still open and no other buffer
        is free to move it to. (On a software adapter also while a thread makes the submit.)

        :returns: a fence that completes when the GPU has finished all of it.
        :raises InvalidSubmit: a command buffer is unfit; nothing was submitted.
        :raises InvalidCopy: a destination of a copy that this task staged was destroyed; the rest was submitted. Copies
            that no task staged are in the library's log alone.
        :raises StallTimeout: open allocations have held every buffer for `stall_timeout` seconds; nothing was sent.
        :raises DeviceLost:
        """
        self._check_task()
        command_buffers = list(command_buffers)
        ready = await self._unblock(self._slots)
        submission = self._depart(self._slots, ready, command_buffers)
        await submission.made.wait()
        self._raise_failures()
        return submission.fence

    def submit_nowait(self, command_buffers: Sequence[Any] = ()) -> Fence:
        """Like `submit`. :raises anyio.WouldBlock: a copy's buffer still has an open allocation."""
        self._check()
        command_buffers = list(command_buffers)
        if self._slots.blocked():
            raise anyio.WouldBlock
        submission = self._depart(self._slots, self._slots.sealable(), command_buffers)
        if submission.error is not None:
            raise afresh(submission.error)
        self._raise_failures()
        return submission.fence

    def advance(self, fence: Fence | None = None) -> Fence:
        """Close the current buffer to new allocations and move to the next.

        What is committed in it is submitted. With a `fence` given, one of this loop's, of whichever device, the buffer
        stays fenced until that is done too.

        :returns: `fence`, or one that completes when the GPU is done with the buffer.
        :raises anyio.WouldBlock: an allocation in it, or beside copies that come before its own, is open; it is closed
            to new ones all the same.
        :raises WrongLoop: `fence` is another loop's.
        """
        self._check()
        if fence is not None:
            fence.check()
        buffer = self._slots.buffers[-1] if self._slots.buffers else self._next_available(self._slots)
        if buffer is None:  # every buffer is on its way already
            return fence or self._tracker.insert()
        buffer.closed = True
        self._move_cursor(buffer)
        if buffer.is_held or self._slots.blocked():
            raise anyio.WouldBlock
        earlier = [other for other in self._slots.buffers if other.copies and other is not buffer]
        submission = self._depart(self._slots, [*earlier, buffer], guard=fence)  # one submit: in the order of staging
        if submission.error is not None:
            raise afresh(submission.error)
        return fence or submission.fence

    def fence(self, value: int) -> Fence:
        """The fence of the device that has this value, see `FenceTracker.fence`."""
        self._check()
        return self._tracker.fence(value)

    # -- uploading --

    async def write_buffer(
        self, buffer: Any, buffer_offset: int, data: Any, data_offset: int = 0, size: int | None = None
    ) -> Fence:
        """Copy `data` to a GPUBuffer or a pool's range, as `GPUQueue.write_buffer` does, without holding the loop.

        On return `data` may be reused, and the copy was submitted: what is submitted later sees it. Calls made in the
        same turn of the loop share a submit. `data` may be any object with the buffer protocol, also larger than the
        ring; its bytes are taken in C order, in the byte order that they have. Cancelled, it ends when what it had
        staged was submitted, and so cannot overwrite the next upload.

        :param data_offset: bytes of `data` to skip.
        :param size: bytes to copy; default: the rest.
        :returns: a fence that completes when the GPU has copied.
        :raises InvalidCopy: WebGPU would refuse it; nothing was copied.
        """
        self._check_task()
        data = await uploads.load(self, buffer, data)
        pieces = uploads.from_buffer(self, buffer, buffer_offset, data, data_offset, size)
        return await uploads.write_now(self, pieces)

    async def write_texture(
        self,
        destination: Mapping[str, Any],
        data: Any,
        data_layout: Mapping[str, int] | None = None,
        size: Any = None,
    ) -> Fence:
        """Copy `data` to a region of a texture, as `GPUQueue.write_texture` does, without holding the loop.

        With `data_layout` and `size` None both follow from the shape of `data` and the format of the texture. Items are
        the texels' own type (docs/guide.md), in either byte order, or bytes.

        :raises InvalidCopy: WebGPU would refuse it, or the data are of another kind; nothing was copied.
        :raises TypeError: `data` is no array and no bytes, or has masked or missing values.
        """
        self._check_task()
        data = await uploads.load_texels(self, destination, data)
        return await uploads.write_now(self, uploads.from_texels(self, destination, data, data_layout, size))

    def batch(self) -> uploads.Batch:
        """Uploads that are submitted together, when the `async with` block ends."""
        return uploads.Batch(self)

    def frame(self) -> uploads.Frame:
        """One frame of a loop: uploads, then `frame.encoder`, in one submit when the `async with` block ends.

        Entering waits while `frames_in_flight` frames (`ring_count`, or three if none was given) are in flight: entered
        and not done on the GPU.
        """
        return uploads.Frame(self)

    # -- statistics --

    async def stats(self) -> StagingStats:
        """Poll the GPU once, then a consistent snapshot."""
        self._check_task()
        if self._native.submit_blocks:
            await self._workers.run(self._native.poll)
        else:
            self._native.poll()
        await anyio.lowlevel.checkpoint()  # what the poll delivered arrives with the loop's next turn
        return self.stats_nowait()

    def stats_nowait(self) -> StagingStats:
        """A consistent snapshot, as far as the loop has heard."""
        demand = self._demand
        return StagingStats(
            bytes_in_flight=sum(buffer.used for buffer in self._buffers),
            current_ring_index=self._cursor,
            buffer_stalls=self._stalls,
            ring_count=self.ring_count,
            buffer_size=self.buffer_size,
            buffer_states=tuple(buffer.state for buffer in self._buffers),
            waiters=len(self._waiters),
            bytes_total=self._bytes,
            allocations_total=self._allocations,
            submits=self._submits,
            stall_seconds=self._stall_seconds,
            fence_latency_p50=self._tracker.latency(0.5) if self._buffers else 0.0,
            fence_latency_p99=self._tracker.latency(0.99) if self._buffers else 0.0,
            pending_fences=self._tracker.pending if self._buffers else 0,
            seals=demand.seals,
            sealed_bytes=demand.sealed,
            sealed_most=demand.most,
            seals_cramped=min(demand.cramped, demand.seals),
            peak_demand=demand.peak_now(),
            peak_buffers=self.ring_count - demand.least_free,
            budget_used=0 if self._budget is None else self._budget.used,
            budget_limit=0 if self._budget is None else self._budget.limit,
        )

    def watch(self, interval: float = 0.5) -> AsyncIterator[StagingStats]:
        """A snapshot at once and every `interval` seconds, until the ring is closed."""
        return _Watch(self, interval)

    def advise(self) -> tuple[Advice, ...]:
        """What the statistics so far suggest: other settings for a ring with the same work, or what else to look at.

        Empty if there is nothing to change.
        """
        from .advice import advise  # most programs never ask

        self._check()
        assert self._budget is not None
        return advise(self.stats_nowait(), self._budget)

    @property
    def current(self) -> StagingBuffer:
        """The buffer that the next allocation is looked for in first."""
        self._check()
        buffer = self._buffers[self._cursor]
        buffer.lent = True  # with its handle
        return buffer

    @property
    def memory(self) -> int:
        """Staging memory that the ring holds, in bytes, from open to close."""
        return self.ring_count * self.buffer_size

    def __repr__(self) -> str:
        return f"<StagingRing of {self.ring_count} × {self.buffer_size} bytes, {self._error or 'open'}>"

    # -- places --

    def _check(self) -> None:
        if self._error is not None:
            raise afresh(self._error)
        self._port.check()

    def _check_task(self) -> None:
        if self._error is not None:
            raise afresh(self._error)
        self._port.check_task()

    def _check_lane(self, lane: Lane) -> None:
        if self._error is not None:
            raise afresh(self._error)
        if lane.ended:
            raise AllocationClosed("the batch or frame has ended")

    def _check_size(self, size: int) -> int:
        if type(size) is not int or size <= 0:
            size = _positive(operator.index(size), "size")
        if size > self.buffer_size:
            raise AllocationTooLarge(f"{size} bytes do not fit in a staging buffer of {self.buffer_size}")
        return size

    def _find(self, lane: Lane, size: int, alignment: int) -> tuple[StagingBuffer, int] | None:
        """Take a place: in the lane's last buffer, a free one, or any of the lane's; None if there is none."""
        if lane.buffers:
            buffer = lane.buffers[-1]
            offset = buffer.place(size, alignment)
            if offset is not None and not buffer.is_held_long() and not self._spreads(buffer, size):
                return self._claim(buffer, offset, size)
        fresh = self._next_available(lane)
        if fresh is not None:
            return self._claim(fresh, 0, size)
        for buffer in reversed(lane.buffers):
            offset = buffer.place(size, alignment)
            if offset is not None:
                return self._claim(buffer, offset, size)
        return None

    def _find_now(self, lane: Lane, size: int, alignment: int) -> tuple[StagingBuffer, int] | None:
        """A place, unless there is none, or others wait for one."""
        return None if self._waiters else self._find(lane, size, alignment)

    def _spreads(self, buffer: StagingBuffer, size: int) -> bool:
        """Whether an upload that takes much of a buffer had better not wait in it for another's thread, since most
        are free. Smaller ones gain more by sharing a submit."""
        large = size > self._inline_size and 4 * size >= self.buffer_size
        return large and buffer.copying > 0 and 2 * self._free > self.ring_count

    def _claim(self, buffer: StagingBuffer, offset: int, size: int) -> tuple[StagingBuffer, int]:
        buffer.head = offset + size
        buffer.used += size
        self._bytes += size
        self._allocations += 1
        if self._logs:
            event("allocated", buffer=buffer.index, offset=offset, size=size)
        return buffer, offset

    def _next_available(self, lane: Lane) -> StagingBuffer | None:
        """The next free buffer in ring order, for `lane`."""
        if not self._free:
            return None
        while self._buffers[self._cursor].state is not BufferState.AVAILABLE:
            self._cursor = (self._cursor + 1) % self.ring_count
        buffer = self._buffers[self._cursor]
        self._free -= 1
        if self._free < self._demand.least_free:
            self._demand.least_free = self._free
        buffer.state = BufferState.IN_USE
        buffer.lane = lane
        lane.buffers.append(buffer)
        if lane.trips is not None:
            lane.trips.append(buffer.trip)
        return buffer

    def _open_allocation(self, place: tuple[StagingBuffer, int], size: int) -> Allocation:
        buffer, offset = place
        task = self._port.current_task()
        name = "no task" if task is None else self._port.name_of(task)
        buffer.open[offset] = Hold(task and weakref.ref(task), name, size, time.perf_counter())
        return Allocation(self, buffer, offset, size)

    def _reserve_now(self, lane: Lane, size: int, alignment: int) -> tuple[StagingBuffer, int] | None:
        """A place that the library itself fills, like one that it waited for; `_filled` ends it."""
        self._check_lane(lane)
        place = self._find_now(lane, size, alignment)
        if place is not None:
            place[0].copying += 1
        return place

    def _filled(self, buffer: StagingBuffer, size: int, copy: Copy | None) -> None:
        """A place of the library's own is written: its copy is staged, or with None it is given up."""
        buffer.copying -= 1
        lane = buffer.lane
        assert lane is not None
        if copy is not None and not lane.ended:
            lane.stage(copy)
        elif not lane.ended:
            buffer.used -= size
        if lane is self._uploads and not self._flush_scheduled:
            self._flush_scheduled = True
            self._port.soon(self._flush)
        self._let_go(buffer)

    # -- waiting --

    async def _wait(self, lane: Lane, size: int, alignment: int) -> tuple[StagingBuffer, int]:
        self._port.check_task()
        waiter = _Waiter(lane, size, alignment, self._port.event())
        self._waiters[waiter] = None
        self._stalls += 1
        self._demand.waits(size, self.ring_count * self.buffer_size)
        if self._logs:
            event("stalled", size=size, waiters=len(self._waiters))
        started = time.perf_counter()
        self._reclaim()
        self._grant()
        try:
            await self._suspend(waiter)
            self._check_lane(lane)
        except BaseException:
            self._waiters.pop(waiter, None)
            if waiter.place is not None:  # handed over while the cancellation or the end was on its way
                self._filled(waiter.place[0], size, None)
            else:
                self._grant()
            raise
        finally:
            waited = time.perf_counter() - started
            self._stall_seconds += waited
            self._demand.waiting -= size
            if self._logs:
                event("resumed", size=size, waited=waited, granted=waiter.place is not None)
        assert waiter.place is not None
        return waiter.place

    async def _suspend(self, waiter: _Waiter) -> None:
        while True:
            with anyio.move_on_after(self._patience):
                await waiter.event.wait()
            if waiter.event.is_set():
                return
            self._explain()

    def _explain(self) -> None:
        """Raise if waiting on cannot help: say who holds the buffers, or that the GPU does."""
        self._check_device()
        self._reclaim()  # what stays behind cannot go
        held = [f"buffer {b.index}: {why}" for b in self._buffers if (why := b.held_by())]
        if len(held) == self.ring_count:
            message = f"no staging buffer can come back; {'; '.join(held)}"
            report(WARNING, "stall_timeout", message)
            raise StallTimeout(message)
        self._check_fences()

    def _check_device(self) -> None:
        """Raise if the device is lost: with nothing in flight, nobody has heard of it yet."""
        if self._native.is_lost():
            self._break(DeviceLost("the device was lost"))
        self._check()

    def _check_fences(self) -> None:
        """Raise if the GPU has not finished for too long."""
        if self._fence_timeout is None:
            return
        if self._under_way and (age := self._under_way[0].fence.elapsed) > self._fence_timeout:
            raise FenceTimeout(f"the GPU is busy; a submit has been waiting for it for {age:.3f} s")
        if self._tracker.oldest_age() > self._fence_timeout:
            raise FenceTimeout(f"the GPU has not given a staging buffer back; {self._tracker.describe()}")

    def _grant(self) -> None:
        """Hand places to waiters, first come, first served."""
        while self._waiters:
            waiter = next(iter(self._waiters))
            place = self._find(waiter.lane, waiter.size, waiter.alignment)
            if place is None:
                return
            del self._waiters[waiter]
            place[0].copying += 1  # held until the waiter runs
            waiter.place = place
            waiter.event.set()

    def _reclaim(self) -> None:
        """Somebody needs room: what is staged and nobody writes to departs early."""
        for lane in list(self._lanes):
            ready = lane.ready()
            if ready:
                self._depart(lane, ready)

    def _reclaim_later(self) -> None:
        """A slot that was committed without a copy is gone, in whichever thread."""
        self._port.post(self._reclaim_for_waiters)

    def _reclaim_for_waiters(self) -> None:
        if self._waiters:
            self._reclaim()
            self._grant()

    def _let_go(self, buffer: StagingBuffer) -> None:
        """Somebody stopped writing to `buffer`."""
        if not buffer.is_held:
            if buffer.used == 0 and not buffer.copies and not buffer.unstaged:
                self._take_back(buffer)
            self._reclaim_for_waiters()
        self._notify()

    def _take_back(self, buffer: StagingBuffer) -> None:
        """All that was in an IN_USE buffer was given up: it needs no trip to be empty again."""
        assert buffer.lane is not None
        buffer.lane.buffers.remove(buffer)
        if buffer.lane.trips is not None:
            buffer.lane.trips.remove(buffer.trip)
        buffer.lane = None
        self._come_back(buffer)

    async def _changed(self) -> None:
        if self._change is None:
            self._change = anyio.Event()
        await self._change.wait()

    def _notify(self) -> None:
        if self._change is not None:
            self._change.set()
            self._change = None

    # -- allocations that end --

    def _committed(self, slot: Allocation, copies: list[Copy], recorded: list[tuple[Any, Copy]]) -> None:
        buffer = slot._buffer
        hold = buffer.open.pop(slot.offset)
        if self._logs:
            n = len(copies) + len(recorded)
            event("committed", buffer=buffer.index, offset=slot.offset, size=slot.size, copies=n)
        for copy in copies:
            copy.owner = hold.task
            self._slots.stage(copy)
        if slot._views is not None:
            buffer.exports += slot._views.alive()
        try:
            if recorded:
                self._record(slot, recorded, bool(copies))
            elif not copies:
                buffer.unstaged.append(weakref.ref(slot, self._slot_gone))
        finally:
            self._let_go(buffer)

    def _drop(self, buffer: StagingBuffer, trip: Trip, offset: int, size: int, views: Views | None) -> None:
        """An open allocation is abandoned."""
        if views is not None:
            buffer.exports += views.alive()
            if views.is_foreign():
                buffer.quarantine.append(views)
        if buffer.trip is trip and buffer.open.pop(offset, None) is not None:
            buffer.used -= size
            if self._logs:
                event("abandoned", buffer=buffer.index, offset=offset, size=size)
            self._let_go(buffer)

    def _record(self, slot: Allocation, recorded: list[tuple[Any, Copy]], stays: bool) -> None:
        """Record a slot's copies into its caller's encoders; it `stays` in flight for copies of the ring's own.

        The caller may submit those at any time, or never, so they must not read from a staging buffer, which has to be
        unmapped then and comes back afterwards. They read from a relay, which the ring fills: in device memory, by a
        copy that is submitted now; or at once, if the buffer cannot be sealed now or a thread would submit it later.

        :raises InvalidCopy: an encoder takes none; the others have theirs all the same.
        """
        buffer, padding, data = slot._buffer, -slot.size % 4, None
        if buffer.is_held or self._slots.blocked() or padding or self._native.submit_blocks:
            assert buffer.memory is not None
            data = buffer.memory[slot.offset : slot.offset + slot.size]
        relay = self._native.create_relay(slot.size + padding, data)
        refused: list[InvalidCopy] = []
        for encoder, copy in recorded:
            copy.offset -= slot.offset
            copy.source = _Relay(relay)
            try:
                self._native.record(encoder, [copy])
            except InvalidCopy as error:
                refused.append(afresh(error))
        if data is None and len(refused) < len(recorded):
            self._slots.stage(BufferCopy(buffer, slot.offset, relay, 0, slot.size))
            self._depart(self._slots, self._slots.sealable())
        elif not stays:
            buffer.used -= slot.size
        if refused:
            raise refused[0]

    # -- departing --

    def _flush(self) -> None:
        """The turn of the loop is over: its uploads depart, but for buffers that are still being written."""
        self._flush_scheduled = False
        ready = [buffer for buffer in self._uploads.ready() if buffer.copies]
        if ready and self._error is None:
            self._depart(self._uploads, ready)

    def _depart(
        self,
        lane: Lane,
        buffers: Sequence[StagingBuffer],
        command_buffers: Sequence[Any] = (),
        guard: Fence | None = None,
    ) -> Submission:
        """Seal `buffers` and submit their copies, then `command_buffers`. `guard` keeps the last of `buffers`."""
        self._native.claim_command_buffers(command_buffers)
        submission = Submission(buffers, lane.take(buffers), command_buffers, Fence(self._tracker))
        cramped = len(buffers) > 1 or bool(self._waiters)
        for buffer in buffers:
            self._demand.leaves(buffer.head, cramped)
            buffer.state = BufferState.FENCED
            buffer.memory = buffer.bytes = None
            buffer.copies = 0
            self._move_cursor(buffer)
        self._submits += 1
        self._last = submission.fence
        if self._native.submit_blocks:
            self._under_way.append(submission)
            self._tracker.promise(submission.fence)
            self._submitter.start(partial(self._execute, submission, guard), partial(self._departed_later, submission))
        else:
            try:
                self._execute(submission, guard)
            finally:
                self._departed(submission)
        return submission

    def _execute(self, submission: Submission, guard: Fence | None) -> None:
        """Unmap, submit, fence and map again; on the loop, or in the submitting thread where a submit blocks."""
        try:
            for buffer in submission.buffers:
                self._native.unmap(buffer.handle)
            telling = self._submit(submission)
            self._logs = logger.isEnabledFor(DEBUG)
            if self._logs:
                indices = [buffer.index for buffer in submission.buffers]
                event("submitted", fence=submission.fence.value, buffers=indices, copies=len(submission.copies))
            for buffer in submission.buffers:
                fence, until = submission.fence, guard if buffer is submission.buffers[-1] else None
                self._native.map(buffer.handle, partial(self._remapped, buffer, fence, until, buffer in telling))
            self._tracker.wake()
        except StagingError as error:
            submission.error = afresh(error)
        except BaseException as error:  # nobody knows how far it came
            submission.error = DeviceLost(f"a submit was interrupted, and with it the ring: {error!r}")
            raise

    def _submit(self, submission: Submission) -> set[Any]:
        """Submit and fence. Returns the buffers whose mapping tells that it is done, if the queue was not asked to."""
        native, tracker = self._native, self._tracker
        if native.submit_blocks:  # and would hold up who waits for the tracker's lock
            submission.failures = native.submit(submission.copies, submission.command_buffers)
            tracker.fulfil(submission.fence)
            return set()
        with holding(tracker.order):
            submission.failures = native.submit(submission.copies, submission.command_buffers)
            sources = {copy.source for copy in submission.copies} if not submission.failures else set()
            telling = sources.intersection(submission.buffers)
            tracker.insert(submission.fence, ask=not telling)
        return telling

    def _remapped(self, buffer: StagingBuffer, fence: Fence, guard: Fence | None, tells: bool, ok: bool) -> None:
        """The GPU is done with `buffer`, or lost; called by whichever thread polls or submits."""
        if tells and ok:
            self._port.post(partial(self._tracker.reach, fence.value, time.perf_counter()))
        self._port.post(partial(self._mapped, buffer, fence, guard, tells, ok))

    def _departed_later(self, submission: Submission, error: BaseException | None) -> None:
        self._under_way.popleft()  # the thread makes them in order
        self._departed(submission)
        self._notify()

    def _departed(self, submission: Submission) -> None:
        """The submit was made, or failed: tell those who wait for it."""
        try:
            if submission.error is not None:
                self._tracker.withdraw(submission.fence, DeviceLost(*submission.error.args))
                self._break(submission.error)
            for copy, why in submission.failures:
                if copy.owner is not None:
                    self._failures.append((copy.owner, why))
                    report(ERROR, "left_out", f"a staged copy was left out: {why}")
        finally:
            submission.copies = []  # nothing keeps the destinations alive any more
            for trip in (submission.made, *submission.trips):
                trip.end(submission)

    def _raise_failures(self) -> None:
        """Raise what became of copies that this task staged; others' stay for them."""
        task = self._port.current_task() or NO_TASK
        mine = [why for owner, why in self._failures if owner is task]
        if mine:
            self._failures = deque((f for f in self._failures if f[0] is not task), maxlen=64)
            raise afresh(mine[0])

    def _move_cursor(self, buffer: StagingBuffer) -> None:
        if self._cursor == buffer.index:
            self._cursor = (buffer.index + 1) % self.ring_count

    async def _unblock(self, lane: Lane) -> list[StagingBuffer]:
        """Wait until no copy of `lane` shares its buffer with something open, or is moved to a free buffer.

        :returns: what may depart. A copy that was staged meanwhile, and that one in there would overtake, was waited
            for as well.
        """
        make_way = partial(self._make_way, lane, set(lane.copies))
        try:
            while (ready := make_way()) is None:
                self._blocked[make_way] = None
                with anyio.move_on_after(self._patience) as scope:
                    await self._changed()
                if scope.cancelled_caught:
                    self._explain()
                self._check()
        finally:
            self._blocked.pop(make_way, None)
        return ready

    def _make_way(self, lane: Lane, wanted: set[Copy]) -> list[StagingBuffer] | None:
        """What may depart, if all of `wanted` may. If not, see to it that it soon will, and return None."""
        ready = lane.may_go({buffer for buffer in lane.buffers if buffer.is_held})
        left = {copy.source for copy in wanted.intersection(lane.copies)}.difference(ready)
        if not left:
            return ready
        blocked = [buffer for buffer in lane.buffers if buffer.is_held and buffer in left] or lane.blocked()
        for buffer in blocked:
            buffer.closed = True  # or the wait might never end
        # A waiter's place that was handed over becomes an open allocation in this turn.
        fresh = self._next_available(lane) if blocked[0].open and not blocked[0].copying else None
        if fresh is not None:
            self._evacuate(lane, blocked[0], fresh)
        return None

    def _evacuate(self, lane: Lane, held: StagingBuffer, fresh: StagingBuffer) -> None:
        """Have the copies moved out of a buffer that somebody else holds open. Nobody's cancellation ends that."""
        # They count as in the fresh buffer at once, which nobody submits before the bytes are there.
        moving = [copy for copy in lane.copies if copy.source is held]
        for copy in moving:
            copy.source = fresh
        fresh.copies, held.copies = held.copies, 0
        leaving = held.used - sum(hold.size for hold in held.open.values())
        fresh.used += leaving
        held.used -= leaving
        fresh.head, fresh.closed = held.head, True
        for buffer in (held, fresh):
            buffer.copying += 1
        source, target = held.memory, fresh.memory
        assert source is not None
        assert target is not None

        def move() -> None:
            for copy in moving:  # to the same offsets: they fit, and stay aligned
                span = slice(copy.offset, copy.offset + copy.nbytes)
                target[span] = source[span]

        def moved(error: BaseException | None) -> None:
            for buffer in (held, fresh):
                buffer.copying -= 1
                self._let_go(buffer)

        self._workers.start(move, moved)

    def _discard(self, lane: Lane) -> None:
        """A batch or frame is abandoned: its copies are forgotten, also those that a thread is still writing."""
        lane.ended = True
        lane.copies.clear()
        for buffer in list(lane.buffers):
            buffer.copies = 0
            buffer.used = 0
            if not buffer.is_held:
                self._take_back(buffer)
        self._retire(lane)

    def _retire(self, lane: Lane) -> None:
        lane.ended = True
        self._lanes.pop(lane, None)
        for waiter in [waiter for waiter in self._waiters if waiter.lane is lane]:  # somebody's who outlives it
            del self._waiters[waiter]
            waiter.event.set()
        if self._waiters:
            self._grant()

    # -- coming back --

    def _mapped(self, buffer: StagingBuffer, fence: Fence, guard: Fence | None, tells: bool, ok: bool) -> None:
        """The GPU is done with `buffer`, and it is mapped again; or with `ok` False it never will be."""
        if tells and not ok:
            self._tracker.ask(fence)
        if self._error is not None:
            self._notify()
            return
        for pending in (fence, guard):
            if ok and pending is not None and not pending.done():
                pending.add_done_callback(lambda _: self._mapped(buffer, fence, guard, False, ok))
                return
        self._demand.returns()
        try:
            if not ok:
                raise DeviceLost("the device was lost with staging buffers in flight")
            self._map_in(buffer)
        except DeviceLost as error:
            self._break(error)

    def _map_in(self, buffer: StagingBuffer) -> None:
        buffer.address = self._native.address(buffer.handle)
        exported = export(buffer.address, buffer.size, buffer.keep_alive)
        buffer.memory, buffer.bytes = np.frombuffer(exported, np.uint8), memoryview(exported).cast("B")
        self._come_back(buffer)

    def _come_back(self, buffer: StagingBuffer) -> None:
        """`buffer` is mapped and empty: AVAILABLE, unless somebody can still write to it."""
        buffer.exports = [export for export in buffer.exports if export() is not None]
        buffer.quarantine = [views for views in buffer.quarantine if views.is_foreign()]
        buffer.clear()
        if buffer.quarantine:
            buffer.state = BufferState.FENCED
            buffer.quarantine[0].when_gone(partial(self._port.post, partial(self._come_back, buffer)))
            return
        buffer.state = BufferState.AVAILABLE
        self._free += 1
        if self._logs:
            event("available", buffer=buffer.index)
        for make_way in self._blocked:  # before waiters, or a stream of those could hold a submit up for ever
            make_way()
        self._grant()
        self._notify()

    # -- ending --

    def _choose_size(self, budget: MemoryBudget) -> None:
        """Many cores fill many buffers at a time, and large ones take fewer submits. Not all of the budget, for others'
        rings."""
        ring_count, buffer_size = self._chosen
        if self._native.submit_blocks or (os.cpu_count() or 1) < _MANY_CORES:
            return
        if buffer_size is None:
            self.buffer_size = min(16 * MiB, self._native.max_buffer_size)
        if ring_count is None:
            self.ring_count = max(3, min(16, budget.available // 2 // self.buffer_size))

    def _create_buffers(self) -> None:
        """Create and map; in a thread, because the first mapping of a buffer fills it with zeros."""
        for index in range(self.ring_count):
            try:
                handle = self._native.create_staging_buffer(self.buffer_size, self.host_cached)
            except OutOfMemory as error:
                raise OutOfMemory(
                    f"the device has no memory for staging buffer {index + 1} of {self.ring_count}, "
                    f"{self.buffer_size} bytes each; nothing was kept"
                ) from error
            self._buffers.append(StagingBuffer(index, handle, self.buffer_size))
        map_first(self._native, [buffer.handle for buffer in self._buffers])

    def _threads_are_done(self) -> bool:
        return not self._under_way and not any(buffer.copying for buffer in self._buffers)

    async def _drain(self) -> None:
        """Submit what is committed and wait for the GPU."""
        try:
            for held in self._slots.blocked():
                copies = [copy for copy in self._slots.copies if copy.source is held]
                await self._workers.run(partial(self._lift, held, copies))
            for lane in (self._uploads, self._slots):
                ready = [buffer for buffer in lane.sealable() if buffer.copies]
                if ready or lane.copies:
                    self._depart(lane, ready)
            while self._under_way:
                await self._changed()
            with anyio.move_on_after(self._fence_timeout) as scope:
                if self._last is not None:  # others' work on the device may go on for ever
                    await self._last
        except DeviceLost:
            return
        if scope.cancelled_caught:
            raise FenceTimeout(f"the GPU has not finished what the ring submitted; {self._tracker.describe()}")

    def _lift(self, held: StagingBuffer, copies: Sequence[Copy]) -> None:
        """Move copies out of a buffer that is held open, with no other one needed."""
        for copy in copies:
            assert held.memory is not None
            data = held.memory[copy.offset : copy.offset + copy.nbytes]
            relay = self._native.create_relay(copy.nbytes + -copy.nbytes % 4, data)
            copy.source, copy.offset = _Relay(relay), 0

    def _break(self, error: StagingError) -> None:
        """The device is gone: everybody who waits hears of it."""
        if self._error is None:
            self._error = error
            self._wake_all(error)

    def _wake_all(self, error: StagingError) -> None:
        while self._waiters:
            waiter, _ = self._waiters.popitem(last=False)
            waiter.event.set()
        self._blocked.clear()
        if not isinstance(error, RingClosed):  # closing submits what is staged
            for buffer in self._buffers:
                buffer.trip.fail(error)
        self._notify()

    def _release(self) -> None:
        """Give everything back. Memory that something still points at is freed with the last of its views."""
        for buffer in self._buffers:
            buffer.trip.fail(RingClosed("the ring was closed"))
            buffer.memory = buffer.bytes = None
            if not buffer.open and all(export() is None for export in buffer.exports):
                self._native.destroy(buffer.handle)
        self._buffers = []
        for give_back in self._taken:
            give_back()
        self._tracker.close()

    def _owe(self, function: Callable[..., object], *arguments: Any) -> None:
        """Something that `_release` has to call, or else the end of a ring that nobody closed."""
        end = weakref.finalize(self, function, *arguments)
        end.atexit = False
        self._taken.append(end)


def _call_weakly(method: weakref.WeakMethod[Callable[[], object]]) -> Callable[[object], None]:
    """A callback for weak references that calls a method of something that may be gone by then."""

    def call(_: object) -> None:
        bound = method()
        if bound is not None:
            bound()

    return call


def _positive(value: int, name: str) -> int:
    given: Any = value
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given <= 0:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)
