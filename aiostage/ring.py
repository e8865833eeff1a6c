"""The ring: what users call. Each method is a few lines; `engine` does the work, `waiting` waits for it."""

from __future__ import annotations

import contextlib
import math
import operator
import os
import threading
import warnings
import weakref
from collections.abc import AsyncIterator, Callable, Sequence
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import wgpu

from . import atomically, opened, uploads, waiting
from .allocation import Allocation, TexelLayout, texel_layout
from .batch import Batch, Frame
from .budget import MemoryBudget, MiB, default_budget
from .engine.buffer import NO_TASK, Place, StagingBuffer
from .engine.engine import Engine
from .engine.relays import lift
from .errors import AllocationTooLarge, DeviceLost, FenceTimeout, OutOfMemory, RingClosed
from .fences import Fence, FenceTracker
from .stats import StagingStats, snapshot
from .threads import run_now
from .typing import BufferDestination, Data, DataLayout, Extent, TextureDestination

if TYPE_CHECKING:
    from .advice import Advice
    from .guests import Uploads
    from .holdups import Hold, Wait

_MANY_CORES = 8
_AT_ONCE = contextlib.nullcontext()


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
        if self._ring.is_closed:
            raise StopAsyncIteration
        return await self._ring.stats()


class StagingRing:
    """A ring of mapped staging buffers that coroutines stream to the GPU through.

    :param device: a wgpu.GPUDevice.
    :param ring_count: number of staging buffers. One works, without overlap of writing and copying. By default 3; on a
        GPU with eight processor cores or more as many as fit in half of what is left of the budget, 12 at most: what
        stays in the processor's cache is faster than more (docs/performance.md has the measurements).
    :param buffer_size: bytes in each, a multiple of 4; by default 8 MiB. Larger uploads are split.
    :param budget: shared limit on staging memory; by default 512 MiB for all rings of the device.
    :param strict_views: tolerate no view at all of an allocation's memory at commit, not even a read-only one.
    :param host_cached: staging memory that can be read as fast as it is written, or ValueError where the device has
        none. By default where the device has it; `ring.host_cached` says what it is.
    :param stall_timeout: seconds until a call that only open allocations hold up raises StallTimeout.
    :param fence_timeout: seconds until one that waits for the GPU raises FenceTimeout; None waits on.
    :param threads: threads that copy uploads; by default two more than half of the cores, 8 at most, and no more than
        there are cores.
    :param inline_size: pieces of uploads up to this many bytes are copied on the loop: a thread would cost more.

    Opened by `async with` (or `open` and `aclose`), on the event loop that it then lives on.
    """

    def __init__(
        self,
        device: wgpu.GPUDevice,
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
        self._has_default_count = ring_count is None  # which `open` chooses
        self.ring_count = 3 if ring_count is None else _positive(ring_count, "ring_count")
        self.buffer_size = 8 * MiB if buffer_size is None else _positive(buffer_size, "buffer_size")
        if self.buffer_size % 4:
            raise ValueError(f"buffer_size must be a multiple of 4, not {buffer_size}")
        self.frames_in_flight = self.ring_count  # three by default, however many buffers there are: latency
        self._budget = budget
        self._strict_views = strict_views
        self._host_cached = host_cached
        self._fence_timeout = fence_timeout
        self._threads = _default_threads() if threads is None else _positive(threads, "threads")
        patience = min(stall_timeout, fence_timeout or stall_timeout)
        self._engine = Engine(self.ring_count, inline_size, patience, fence_timeout)
        self._frames: set[Frame] = set()  # open, or with a fence that is pending
        self._opened = False
        self._thread: int | None = None  # that it was opened in
        self._tracker: FenceTracker
        self._taken: list[weakref.finalize[..., Engine]] = []  # each gives back what was taken, once
        self._closing: anyio.Event | None = None  # set when it is closed

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
        self._thread = threading.get_ident()
        engine, self._tracker = self._engine, FenceTracker.shared(self.device)
        native = self._tracker.native
        engine.use(self._tracker)
        self._budget = self._budget or default_budget(native)
        try:
            engine.port.check_task()
            self._choose_count(self._budget)
            if self.buffer_size > native.max_buffer_size:
                raise ValueError(
                    f"buffer_size {self.buffer_size} exceeds the device's limit of {native.max_buffer_size} bytes"
                )
            self.host_cached = native.is_host_cached(self._host_cached)
            self._budget.reserve(self.memory)
            self._owe(self._budget.release, self.memory)
            engine.carrier.add_copiers(self._threads)
            await run_now(self._create_buffers)
            engine.map()
            await waiting.outcome(engine.mapped)
            engine.start()
            opened.add(self, engine.port)
            if os.environ.get("AIOSTAGE_MONITOR", "0") not in ("", "0"):
                from .monitoring import serve_if_possible  # what others pay nothing for

                serve_if_possible()
        except BaseException:
            engine.error = RingClosed("the ring could not be opened")
            self._release()
            raise

    async def aclose(self) -> None:
        """Submit what is committed, wait for what is in flight, and give the memory back.

        Waiters are woken with RingClosed; open allocations are abandoned. Cancelled by asyncio's own means, it waits
        for the GPU no longer; the memory is given back all the same. Called again, it returns when that is done.

        :raises FenceTimeout: the GPU had not finished after `fence_timeout` seconds. The ring is closed.
        """
        if self._closing is None:
            await self._close()
        elif not self._closing.is_set():  # by another task, which hears what goes wrong
            self._engine.port.check_task()
            await self._closing.wait()

    async def _close(self) -> None:
        engine = self._engine
        if not engine.shelf.all:
            return
        engine.port.check_task()
        self._closing = anyio.Event()
        lost = engine.error
        engine.end(RingClosed("the ring was closed"))
        engine.carrier.listen()
        try:
            with anyio.CancelScope(shield=True):
                await waiting.threads_of(engine)
                if lost is None:
                    await self._drain()
        finally:
            try:
                await waiting.threads_of(engine)
            finally:
                self._release()
                self._closing.set()

    async def _drain(self) -> None:
        """Submit what is committed and wait for the GPU."""
        engine = self._engine
        try:
            for held in engine.slots.blocked():
                await run_now(lift(engine, held))
            for lane in (engine.uploads, engine.slots):
                ready = [buffer for buffer in lane.sealable() if buffer.load.copies]
                if ready or lane.copies:
                    engine.depart(lane, ready)
            while engine.under_way:
                await waiting.outcome(engine.next_change())
            with anyio.move_on_after(self._fence_timeout) as scope:
                for last in (engine.last, engine.lending.last):  # others' work on the device may go on for ever
                    if last is not None:
                        await last
        except DeviceLost:
            return
        if scope.cancelled_caught:
            raise FenceTimeout(f"the GPU has not finished what the ring submitted; {self._tracker.describe()}")

    def _release(self) -> None:
        opened.remove(self)
        self._engine.close()
        for give_back in self._taken:
            give_back()
        self._tracker.close()

    def _owe(self, function: Callable[..., object], *arguments: Any) -> None:
        """Something that `_release` has to call, or else the end of a ring that nobody closed."""
        end = weakref.finalize(self._engine, function, *arguments)
        end.atexit = False
        self._taken.append(end)

    def _choose_count(self, budget: MemoryBudget) -> None:
        """Many cores fill many buffers at a time. Not all of the budget, for others' rings."""
        if self._has_default_count and not self._tracker.native.submit_blocks and (os.cpu_count() or 1) >= _MANY_CORES:
            self.ring_count = max(3, min(12, budget.available // 2 // self.buffer_size))

    def _create_buffers(self) -> None:
        """In a thread: the first takes half a second where a driver compiles its first pipeline, and memory is slow."""
        native, shelf = self._tracker.native, self._engine.shelf
        for index in range(self.ring_count):
            try:
                handle = native.create_staging_buffer(self.buffer_size, self.host_cached)
            except OutOfMemory as error:
                raise OutOfMemory(
                    f"the device has no memory for staging buffer {index + 1} of {self.ring_count}, "
                    f"{self.buffer_size} bytes each; nothing was kept"
                ) from error
            shelf.add(handle, self.buffer_size)

    async def __aenter__(self) -> StagingRing:
        await self.open()
        return self

    async def __aexit__(self, *exc_info: object) -> None:
        await self.aclose()

    def __del__(self) -> None:
        engine = getattr(self, "_engine", None)
        if engine is not None and engine.shelf.all:
            warnings.warn("a StagingRing was not closed; use 'async with' or aclose", ResourceWarning, stacklevel=1)

    @property
    def is_closed(self) -> bool:
        """Whether it was closed or lost, or is not open yet: its methods raise then."""
        return self._engine.error is not None

    # -- allocating --

    def allocate_nowait(self, size: int, *, alignment: int = 4) -> Allocation:
        """Like `allocate`. :raises anyio.WouldBlock: there is no room now, or others wait already."""
        engine = self._engine
        engine.check()
        if alignment != 4 or type(alignment) is not int:
            alignment = math.lcm(4, _positive(alignment, "alignment"))
        if type(size) is not int or not 0 < size <= self.buffer_size:
            size = self._check_size(size)
        place = engine.take(engine.slots, size, alignment)
        if place is None:
            engine.reclaim()
            raise anyio.WouldBlock
        return self._allocation(place)

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
        return await self._wait_for(size, math.lcm(4, alignment))

    async def allocate_texture(self, size: Extent, format: str, *, aspect: str = "all") -> Allocation:
        """Staging memory for `size` texels (width, height, depth or layers), rows padded as copies demand.

        `slot.array()` has the padded row stride in its strides. Block-compressed formats have one element of
        `bytes` a block: an array of uint8 (layers, block rows, bytes in a row).

        :raises ValueError: the format cannot be written by a copy.
        """
        texels = texel_layout(size, format, aspect)
        nbytes = texels.bytes_per_row * texels.rows_per_image * texels.size[2]
        self._engine.check()
        place = self._engine.take(self._engine.slots, self._check_size(nbytes), 16)
        return self._allocation(place, texels) if place is not None else await self._wait_for(nbytes, 16, texels)

    async def _wait_for(self, size: int, alignment: int, texels: TexelLayout | None = None) -> Allocation:
        place = await waiting.place_for(self._engine, self._engine.slots, size, alignment)
        slot = self._allocation(place, texels)
        self._engine.changed()  # a submit may move its copies elsewhere now
        return slot

    def _allocation(self, place: Place, texels: TexelLayout | None = None) -> Allocation:
        port = self._engine.port
        task = port.current_task()
        place.give_to(task, NO_TASK if task is None else port.name_of(task))
        return Allocation(self._engine, place, self._strict_views, texels)

    def _check_size(self, size: int) -> int:
        if type(size) is not int or size <= 0:
            size = _positive(operator.index(size), "size")
        if size > self.buffer_size:
            raise AllocationTooLarge(
                f"{size} bytes do not fit in a staging buffer of {self.buffer_size}: write_buffer takes any size"
            )
        return size

    # -- submitting --

    async def submit(self, command_buffers: Sequence[wgpu.GPUCommandBuffer] = ()) -> Fence:
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
        engine = self._engine
        engine.check_task()
        command_buffers = list(command_buffers)
        ready = await waiting.way_for(engine, engine.slots)
        submission = engine.depart(engine.slots, ready, command_buffers)
        await waiting.outcome(submission.made)
        engine.raise_failures()
        fence: Fence = submission.fence
        return fence

    def submit_nowait(self, command_buffers: Sequence[wgpu.GPUCommandBuffer] = ()) -> Fence:
        """Like `submit`. :raises anyio.WouldBlock: a copy's buffer still has an open allocation."""
        engine = self._engine
        engine.check()
        command_buffers = list(command_buffers)
        if engine.slots.blocked():
            raise anyio.WouldBlock
        submission = engine.depart(engine.slots, engine.slots.sealable(), command_buffers)
        engine.raise_failures()
        fence: Fence = submission.fence
        return fence

    def advance(self, fence: Fence | None = None) -> Fence:
        """Close the current buffer to new allocations and move to the next.

        What is committed in it is submitted. With a `fence` given, one of this loop's, of whichever device, the buffer
        stays fenced until that is done too.

        :returns: `fence`, or one that completes when the GPU is done with the buffer.
        :raises anyio.WouldBlock: an allocation in it, or beside copies that come before its own, is open; it is closed
            to new ones all the same.
        :raises WrongLoop: `fence` is another loop's.
        """
        engine = self._engine
        engine.check()
        if fence is not None:
            fence.check()
        buffer = engine.close_current(engine.slots)
        if buffer is None:  # every buffer is on its way already
            return fence or self._tracker.insert()
        if buffer.load.is_busy or engine.slots.blocked():
            raise anyio.WouldBlock
        earlier = [other for other in engine.slots.buffers if other.load.copies and other is not buffer]
        submission = engine.depart(engine.slots, [*earlier, buffer], guard=fence)  # one: in the order of staging
        own: Fence = submission.fence
        return fence or own

    def fence(self, value: int | None = None) -> Fence:
        """The fence of the device that has this value, see `FenceTracker.fence`; without one, a new fence behind all
        that was submitted to the device until now."""
        self.check()
        return self._tracker.insert() if value is None else self._tracker.fence(value)

    def check(self) -> None:
        """Raise unless the ring can be used here and now. :raises RingClosed, DeviceLost, WrongLoop:"""
        self._engine.check()

    def when_ended(self, callback: Callable[[], object]) -> Callable[[], object]:
        """Call `callback()` on the loop, soon after the ring was closed or lost: `check` says which.

        :returns: what takes that back. Called again, it does nothing.
        """
        self._engine.check()
        at_end = self._engine.at_end
        at_end[callback] = None
        return lambda: at_end.pop(callback, None)  # which does not keep the ring

    # -- uploading --

    async def write_buffer(
        self,
        buffer: BufferDestination,
        buffer_offset: int,
        data: Data,
        data_offset: int = 0,
        size: int | None = None,
        *,
        atomic: bool = False,
    ) -> Fence:
        """Copy `data` to a GPUBuffer or a pool's range, as `GPUQueue.write_buffer` does, without holding the loop.

        On return `data` may be reused, and the copy was submitted: what is submitted later sees it. Small calls made in
        the same turn of the loop share a submit. `data` may be any object with the buffer protocol, also larger than
        the ring; its bytes are taken in C order, in the byte order that they have. Cancelled, it ends when what it had
        begun was submitted, and so cannot overwrite the next upload.

        :param data_offset: bytes of `data` to skip.
        :param size: bytes to copy; default: the rest.
        :param atomic: nobody sees a part of it. It arrives in one submit, however much larger than the ring it is; and
            not at all if it is cancelled before that, or anything goes wrong. More than `buffer_size` bytes take as
            much device memory meanwhile, and a copy by the GPU.
        :returns: a fence that completes when the GPU has copied.
        :raises InvalidCopy: WebGPU would refuse it; nothing was copied.
        :raises OutOfMemory: the device has no memory for an atomic one; nothing was copied.
        """
        engine = self._engine
        engine.check_task()
        if atomic:
            whole: Fence = await atomically.write_buffer(engine, buffer, buffer_offset, data, data_offset, size)
            return whole
        with await atomically.turn_of(engine, buffer) if engine.turns.atomic else _AT_ONCE:
            upload = None
            if data_offset == 0 and size is None:
                upload = uploads.begin_bytes(engine, buffer, buffer_offset, data)
            if upload is None:
                fence: Fence = await uploads.write_now(
                    engine, await uploads.cut_bytes(engine, buffer, buffer_offset, data, data_offset, size)
                )
            else:
                fence = await uploads.carried(engine, upload)
            return fence

    async def write_texture(
        self,
        destination: TextureDestination,
        data: Data,
        data_layout: DataLayout | None = None,
        size: Extent | None = None,
        *,
        atomic: bool = False,
    ) -> Fence:
        """Copy `data` to a region of a texture, as `GPUQueue.write_texture` does, without holding the loop.

        With `data_layout` and `size` None both follow from the shape of `data` and the format of the texture. Items are
        the texels' own type (docs/guide.md), in either byte order, or bytes.

        :param atomic: as in `write_buffer`.
        :raises InvalidCopy: WebGPU would refuse it, or the data are of another kind; nothing was copied.
        :raises TypeError: `data` is no array and no bytes, or has masked or missing values.
        :raises OutOfMemory: the device has no memory for an atomic one; nothing was copied.
        """
        engine = self._engine
        engine.check_task()
        if atomic:
            whole: Fence = await atomically.write_texture(engine, destination, data, data_layout, size)
            return whole
        with await atomically.turn_of(engine, destination) if engine.turns.atomic else _AT_ONCE:
            upload = uploads.begin_texels(engine, destination, data, data_layout, size)
            if upload is None:
                fence: Fence = await uploads.write_texels_now(engine, destination, data, data_layout, size)
            else:
                fence = await uploads.carried(engine, upload)
            return fence

    def batch(self) -> Batch:
        """Uploads that are submitted together, when the `async with` block ends."""
        return Batch(self._engine)

    def frame(self, uploads: Uploads | None = None) -> Frame:
        """One frame of a loop: uploads, then `frame.encoder`, in one submit when the `async with` block ends.

        Entering waits while `frames_in_flight` frames (`ring_count`, or three if none was given) are in flight: entered
        and not done on the GPU.

        :param uploads: an `aiostage.streams.UploadQueue` of this ring: entering admits some of what waits there.
        :raises ValueError: it is another ring's.
        """
        if uploads is not None and uploads.ring is not self:
            raise ValueError("these uploads are another ring's")
        return Frame(self._engine, self._frames, self.frames_in_flight, uploads)

    # -- statistics --

    async def stats(self) -> StagingStats:
        """Poll the GPU once, then a consistent snapshot."""
        engine, polled = self._engine, list[bool]()
        engine.check_task()

        def hear() -> None:
            polled.append(True)
            engine.changed()

        engine.carrier.poll(hear)
        with contextlib.suppress(RingClosed, DeviceLost):  # meanwhile
            await waiting.until(engine, lambda: polled or None)
        return self.stats_nowait()

    def stats_nowait(self) -> StagingStats:
        """A consistent snapshot, as far as the loop has heard."""
        return snapshot(self._engine, self.ring_count, self.buffer_size, self._budget)

    def watch(self, interval: float = 0.5) -> AsyncIterator[StagingStats]:
        """A snapshot at once and every `interval` seconds, until the ring is closed."""
        return _Watch(self, interval)

    def waits(self, limit: int | None = None) -> tuple[Wait, ...]:
        """The tasks that are suspended now for lack of staging memory, in the order in which they get it; at most
        `limit` of them. While whole uploads wait for a buffer, all of those that are under way are among them."""
        from .holdups import waits  # most programs never ask

        return waits(self._engine, limit)

    def holds(self, limit: int | None = None) -> tuple[Hold, ...]:
        """The allocations that are open now, by buffer; at most `limit` of them."""
        from .holdups import holds

        return holds(self._engine, limit)

    def advise(self) -> tuple[Advice, ...]:
        """What the statistics so far suggest: other settings for a ring with the same work, or what else to look at.

        Empty if there is nothing to change.
        """
        from .advice import advise  # most programs never ask

        self.check()
        assert self._budget is not None
        return advise(self.stats_nowait(), self._budget)

    @property
    def current(self) -> StagingBuffer:
        """The buffer that the next allocation is looked for in first."""
        self.check()
        shelf = self._engine.shelf
        buffer = shelf.all[shelf.cursor]
        buffer.lent = True  # with its handle
        return buffer

    @property
    def memory(self) -> int:
        """Staging memory that the ring holds, in bytes, from open to close."""
        return self.ring_count * self.buffer_size

    def __repr__(self) -> str:
        return f"<StagingRing of {self.ring_count} × {self.buffer_size} bytes, {self._engine.error or 'open'}>"

    def _repr_mimebundle_(self, **asked: object) -> dict[str, str]:
        """For a notebook: the buffers as a bar, and the counts so far. Asks the GPU nothing."""
        from . import reprs  # most programs never ask

        def draw() -> str:
            is_elsewhere = self._thread not in (None, threading.get_ident())  # where the counts change meanwhile
            stats = None if is_elsewhere else self.stats_nowait().as_dict()
            state = str(self._engine.error or "open")
            return reprs.ring("StagingRing", state, stats, None if self.is_closed else self.host_cached)

        return reprs.bundle(repr(self), draw)


def _default_threads() -> int:
    cores = os.cpu_count() or 2
    return min(8, cores, cores // 2 + 2)


def _positive(value: int, name: str) -> int:
    given: Any = value
    if isinstance(given, bool) or not isinstance(given, int | np.integer) or given <= 0:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return int(value)
