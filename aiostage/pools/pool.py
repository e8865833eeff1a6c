"""Memory pools: long-lived device buffers, cut from a few large ones.

A pool holds *blocks*, large GPUBuffers, and hands out *ranges* of them. How a range lives:

1. `allocate` cuts it from a free piece of the first block that has one large enough; a new block is made if none has.
2. Its holders count references. With the last one released, and no pin left, the piece is free again.
3. While nobody pins it, `defragment` may move it to another block, so that blocks come free. `buffer` and `offset` say
   where it is now. A *pin* keeps it where it is, and alive; each staged copy to it holds one.

Freed memory is handed out again at once: the queue runs what is submitted in order, so a later range's copies cannot
overtake what still uses an earlier one.
"""

from __future__ import annotations

import operator
import threading
import time
import warnings
import weakref
from collections import defaultdict, deque
from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import wgpu

from ..budget import MemoryBudget, MiB, default_budget
from ..data.copies import BufferCopy, BufferSlice
from ..errors import AllocationTooLarge, PoolClosed, RangeReleased, RangesStillAlive
from ..exits import holding
from ..fences import Fence, FenceTracker
from ..gpu.device import connect
from ..gpu.protocol import Native
from .freespace import FreeSpace, class_of, fitting_class

SMALLEST, LARGEST = 64, 8 * MiB
"""Sizes of the first and the last bucket, in bytes."""

BUCKETS = tuple(SMALLEST << i for i in range(18))
"""All of them."""

_STEP_RANGES, _STEP_BYTES = 64, 8 * MiB
"""The most that `defragment` moves before it looks at the clock."""

# Values of GPUBufferUsage (WebGPU specification).
_MAP, _COPY = 0x1 | 0x2, 0x4 | 0x8


Place = tuple["Block", int, int]
"""Where a range lies: (block, first unit, number of units), a unit being the pool's alignment."""

Ranges = dict[int, "weakref.ref[BufferRange]"]
"""Ranges by their first unit."""


class Block:
    """One large GPUBuffer, and what is in it."""

    __slots__ = ("handle", "nbytes", "pins", "ranges", "space")

    def __init__(self, handle: Any, nbytes: int, units: int) -> None:
        self.handle = handle  # wgpu's own GPUBuffer
        self.nbytes = nbytes
        self.space = FreeSpace(units)
        self.ranges: defaultdict[int, Ranges] = defaultdict(dict)  # by bucket
        self.pins = 0  # of its ranges: with one it cannot come free

    @property
    def used(self) -> int:
        """Units that are handed out."""
        return self.space.size - self.space.free


class Pin(BufferSlice):
    """Keeps a range where it is, and alive: `buffer`, `offset` and `size` hold until `release`.

    Made by `BufferRange.pin`, and a destination as the range is. A context manager; one that nobody refers to any more
    is released as well.
    """

    __slots__ = ("_range", "buffer", "offset", "size")
    stays = True

    def __init__(self, pinned: BufferRange) -> None:
        self._range: BufferRange | None = pinned
        block, start, _ = pinned._place
        self.buffer: wgpu.GPUBuffer = block.handle
        self.offset: int = start * pinned._pool.alignment
        self.size: int = pinned.size

    @property
    def binding(self) -> dict[str, Any]:
        """The range as a resource of a bind group: the pin must outlive the use of that."""
        return {"buffer": self.buffer, "offset": self.offset, "size": self.size}

    def pin(self) -> Pin:
        """Another pin of the same range. :raises RangeReleased: this one was released."""
        if self._range is None:
            raise RangeReleased("the pin was released before")
        with holding(self._range._pool._lock):
            return self._range._add_pin()

    def release(self) -> None:
        """Let the range be moved. Does nothing the second time."""
        pinned, self._range = self._range, None
        if pinned is not None:
            with holding(pinned._pool._lock):
                pinned._unpin()

    def __enter__(self) -> Pin:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __del__(self) -> None:
        pinned = self._range
        if pinned is not None:
            pinned._pool._unfinished.append(pinned._unpin)


class BufferRange(BufferSlice):
    """`size` bytes of a pool's memory, from `BufferPool.allocate`: a destination of uploads, and a part of a GPUBuffer.

    The first reference is the caller's; leaving `with range:` or `release` gives it up. All methods may be called from
    any thread.
    """

    __slots__ = ("__weakref__", "_pins", "_place", "_pool", "_references", "_round", "size")

    def __init__(self, pool: BufferPool, place: Place, size: int) -> None:
        self.size = size
        """Bytes that were asked for."""
        self._pool = pool
        self._place = place
        self._references = 1
        self._pins = 0
        self._round = pool._round  # of defragmentation, in which somebody last asked where it is

    @property
    def buffer(self) -> wgpu.GPUBuffer:
        """The GPUBuffer that it lies in now. Without a pin, ask again after each `await`.

        :raises RangeReleased, PoolClosed:
        """
        self._check()
        self._round = self._pool._round
        return self._place[0].handle

    @property
    def offset(self) -> int:
        """Where it starts in `buffer`, in bytes: a multiple of the pool's alignment. Raises as `buffer` does."""
        self._check()
        self._round = self._pool._round
        return self._place[1] * self._pool.alignment

    @property
    def references(self) -> int:
        """How many there are; 0 once it is released."""
        return self._references

    @property
    def pinned(self) -> bool:
        """Whether it cannot be moved: somebody holds a pin, or a copy to it is staged."""
        with holding(self._pool._lock):
            self._pool._check()
            return self._pins > 0

    def retain(self) -> BufferRange:
        """One more reference; each needs a `release`. :raises RangeReleased, PoolClosed:"""
        with holding(self._pool._lock):
            self._check()
            self._references += 1
        return self

    def release(self) -> None:
        """Give up one reference. With the last, and no pin left, the memory may be handed out again.

        :raises RangeReleased: there is none left.
        """
        pool = self._pool
        with holding(pool._lock):
            if pool._closed or not self._references:
                self._check()
            self._references -= 1
            if not self._references and not self._pins:
                pool._free(self._place, self.size)
                del self._place  # or whoever keeps this object would keep the block

    def pin(self) -> Pin:
        """Keep it where it is. :raises RangeReleased, PoolClosed:"""
        with holding(self._pool._lock):
            self._check()
            return self._add_pin()

    def __enter__(self) -> BufferRange:
        self._check()
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.release()

    def __del__(self) -> None:
        if self._references and not self._pool._closed:
            self._pool._unfinished.append(partial(self._pool._free, self._place, self.size))
            warnings.warn(f"{self!r} was not released", ResourceWarning, stacklevel=1)

    def __repr__(self) -> str:
        return f"<BufferRange of {self.size} bytes, {self._references} references, {self._pins} pins>"

    def _check(self) -> None:
        if self._pool._closed:
            raise PoolClosed("the pool was closed")
        if not self._references:
            raise RangeReleased("the range was released before")

    def _add_pin(self) -> Pin:
        self._pins += 1
        self._place[0].pins += 1
        self._round = self._pool._round
        return Pin(self)

    def _unpin(self) -> None:
        self._pins -= 1
        self._place[0].pins -= 1
        self._round = self._pool._round
        if not self._pins and not self._references:
            self._pool._free(self._place, self.size)
            del self._place

    def _may_move(self, round: int) -> bool:
        """Whether nobody holds it where it is, or has asked where that is since a round of defragmentation began."""
        return not self._pins and self._references > 0 and self._round < round


class _Move(NamedTuple):
    range: BufferRange
    source: Place
    target: Place


@dataclass(frozen=True, slots=True)
class BucketStatistics:
    """The ranges of one power-of-two bucket."""

    size: int
    """The largest range in it, in bytes; the smallest is more than half of that."""
    ranges: int
    """How many there are."""
    nbytes: int
    """Bytes that they were asked for with."""


@dataclass(frozen=True, slots=True)
class PoolStatistics:
    """A consistent snapshot of a pool. Sizes in bytes."""

    reserved: int
    """Device memory that the pool holds."""
    used: int
    """What of it is handed out, rounded up as it was."""
    requested: int
    """What was asked for."""
    largest_free: int
    """The largest free piece."""
    block_size: int
    """Size of a block that is shared."""
    blocks: int
    """How many of those there are."""
    empty_blocks: int
    """How many of them hold no range; `defragment` gives them back."""
    own_blocks: int
    """Blocks of one range above 8 MiB."""
    ranges: int
    """Ranges that are handed out."""
    buckets: tuple[BucketStatistics, ...]
    """The same by size, those with a block of their own left out."""
    allocations_total: int
    """Ranges since the pool was made."""
    blocks_total: int
    """Blocks since then."""
    ranges_moved: int
    """Ranges that `defragment` has moved."""
    bytes_moved: int
    """Their bytes."""
    staging_used: int
    """Staging memory that the device's rings hold of the budget that they share: none of it is in `reserved`."""
    staging_limit: int
    """What that budget is limited to."""

    @property
    def free(self) -> int:
        """Bytes that are not handed out."""
        return self.reserved - self.used

    @property
    def reclaimable(self) -> int:
        """Bytes in whole blocks that the pool would not need if its ranges were packed without gaps."""
        own = self.reserved - self.blocks * self.block_size
        return self.blocks * self.block_size - -(-(self.used - own) // self.block_size) * self.block_size

    @property
    def internal_fragmentation(self) -> float:
        """Share of what is handed out that nobody asked for: sizes are rounded up."""
        return 1 - self.requested / self.used if self.used else 0.0

    @property
    def external_fragmentation(self) -> float:
        """Share of what the pool holds that is `reclaimable`: free, but scattered."""
        return self.reclaimable / self.reserved if self.reserved else 0.0

    @property
    def fragmentation(self) -> float:
        """Share of what the pool holds that is lost either way. Room in the last block is not lost, but spare."""
        return (self.used - self.requested + self.reclaimable) / self.reserved if self.reserved else 0.0


@dataclass(frozen=True, slots=True)
class Defragmentation:
    """What one call of `BufferPool.defragment` did."""

    ranges_moved: int
    bytes_moved: int
    blocks_freed: int
    """Blocks that were given back, those that were empty before included."""
    finished: bool
    """Nothing is left that a call now could improve; otherwise the time was up."""
    seconds: float
    """Time that it took, after what had been submitted before was done."""


class BufferPool:
    """Long-lived buffers of one usage, cut from large blocks: cheaper to make than GPUBuffers, and few.

    :param device: a wgpu.GPUDevice.
    :param usage: wgpu.BufferUsage flags of every range; COPY_SRC and COPY_DST are added, for moves.
    :param block_size: bytes in a block, at least 8 MiB. Larger blocks hold more ranges, smaller ones come free sooner.
    :param alignment: ranges start at multiples of it: a power of two, 64 at least. By default what the device demands
        of the offset of a binding (256, unless the device was requested with less) for UNIFORM and STORAGE, else 64.
        Sizes are rounded up to it.
    :param budget: limit on the memory of the blocks. None: no limit but the device's. Staging memory has another.

    Sizes of 64 bytes to 8 MiB share blocks; above that a range has a block of its own, made and given back with it. The
    content of a new range is undefined: what was there before. May be used from any thread; `defragment` needs a loop.
    """

    def __init__(
        self,
        device: wgpu.GPUDevice,
        usage: int,
        *,
        block_size: int = 32 * MiB,
        alignment: int | None = None,
        budget: MemoryBudget | None = None,
    ) -> None:
        self._native: Native = connect(device)
        self.device = device
        if usage & _MAP:
            raise ValueError("a pool's blocks cannot be mapped: mapping one would take all of its ranges from the GPU")
        self.usage = int(usage) | _COPY
        self.alignment = max(SMALLEST, self._native.offset_alignment(self.usage)) if alignment is None else alignment
        if self.alignment < SMALLEST or self.alignment & (self.alignment - 1) or self.alignment > LARGEST:
            raise ValueError(f"alignment must be a power of two from {SMALLEST} to {LARGEST}, not {alignment}")
        if block_size < LARGEST or block_size % self.alignment:
            raise ValueError(f"block_size must be a multiple of {self.alignment} and at least {LARGEST}")
        if block_size > self._native.max_buffer_size:
            raise ValueError(f"block_size {block_size} exceeds the device's limit of {self._native.max_buffer_size}")
        self.block_size = block_size
        self._budget = budget
        self._closed = False
        self._blocks: list[Block] = []  # the oldest first: they fill up, and the younger ones come free
        self._own: list[Block] = []  # of one range above LARGEST
        self._spare: Block | None = None  # the last that became empty: it is kept for the next range
        self._round = 0  # of defragmentation
        self._lock = threading.Lock()
        # What finalizers left to do. They run anywhere, also where the lock is held, so they only append here.
        self._unfinished: deque[Callable[[], None]] = deque()
        self._requested = [0] * 64  # bytes, by bucket, those above LARGEST included
        self._allocations = self._blocks_made = self._blocks_freed = self._ranges_moved = self._bytes_moved = 0

    def allocate(self, size: int) -> BufferRange:
        """A range of `size` bytes, with one reference; its content is undefined.

        :raises AllocationTooLarge: more than the device allows in one buffer.
        :raises BudgetExceeded: it takes a new block, which would exceed the budget.
        :raises DeviceLost:
        """
        if type(size) is not int or size <= 0:
            size = _positive(size)
        units = -(-size // self.alignment)
        with holding(self._lock):
            if self._unfinished or self._closed:
                self._check()
            wanted = fitting_class(units)
            for block in self._blocks if size <= LARGEST else ():
                if block.space.mask >> wanted:
                    break
            else:
                block, wanted = self._make_block(size, units)
            start = block.space.take(units, wanted)
            made = BufferRange(self, (block, start, units), size)
            bucket = (size - 1 >> 6).bit_length()
            block.ranges[bucket][start] = weakref.ref(made)
            self._requested[bucket] += size
            self._allocations += 1
            return made

    def statistics(self) -> PoolStatistics:
        """A consistent snapshot. :raises PoolClosed:"""
        with holding(self._lock):
            self._check()
            staging = default_budget(self._native)
            everything = self._blocks + self._own
            counts = self._count()
            return PoolStatistics(
                reserved=sum(block.nbytes for block in everything),
                used=sum(block.used for block in everything) * self.alignment,
                requested=sum(self._requested),
                largest_free=max((block.space.largest() for block in self._blocks), default=0) * self.alignment,
                block_size=self.block_size,
                blocks=len(self._blocks),
                empty_blocks=sum(not block.used for block in self._blocks),
                own_blocks=len(self._own),
                ranges=sum(counts),
                buckets=tuple(map(BucketStatistics, BUCKETS, counts, self._requested)),
                allocations_total=self._allocations,
                blocks_total=self._blocks_made,
                ranges_moved=self._ranges_moved,
                bytes_moved=self._bytes_moved,
                staging_used=staging.used,
                staging_limit=staging.limit,
            )

    async def defragment(self, seconds: float = 0.002) -> Defragmentation:
        """Empty the emptiest blocks into the others and give them back, for `seconds` or a little more.

        Waits first for the GPU to be done with what was submitted before; that time does not count. A range that is
        pinned, that a staged copy goes to, or whose place somebody has asked for since the call stays where it is.
        Other tasks go on meanwhile. Call it now and then, when `statistics().reclaimable` is worth it.

        :raises PoolClosed, DeviceLost:
        :raises WrongLoop: it is not called on an event loop.
        """
        tracker = FenceTracker.shared(self.device)
        try:
            with holding(self._lock):
                self._check()
                freed = self._blocks_freed
                self._round = round = self._round + 1
                self._drop_empty()
            await tracker.insert()
            started = time.perf_counter()
            sizes: list[int] = []
            passed: set[Block] = set()
            while moves := self._plan(round, passed):
                sizes += await self._move(moves, round, tracker)
                if time.perf_counter() >= started + seconds:
                    break
            freed = self._blocks_freed - freed
            return Defragmentation(len(sizes), sum(sizes), freed, not moves, time.perf_counter() - started)
        finally:
            tracker.close()

    def close(self) -> None:
        """Give the blocks back. Those that the GPU still uses live until it is done.

        :raises RangesStillAlive: some are referenced or pinned; the pool stays open.
        """
        with holding(self._lock):
            if self._closed:
                return
            self._check()
            ranges = sum(self._count())
            if ranges:
                raise RangesStillAlive(
                    f"{ranges} ranges with {sum(self._requested)} bytes are referenced, pinned, or the destination of "
                    "staged copies: release them first"
                )
            self._shut()

    def __enter__(self) -> BufferPool:
        with holding(self._lock):
            self._check()
        return self

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> None:
        if exc_type is None:
            self.close()
        else:  # its ranges end with it
            with holding(self._lock):
                self._shut()

    def __repr__(self) -> str:
        return f"<BufferPool of {len(self._blocks)} × {self.block_size} bytes, {sum(self._count())} ranges>"

    # -- the rest is called with the lock held, but for what awaits --

    def _check(self) -> None:
        """Raise PoolClosed if it is; do what finalizers have left."""
        if self._closed:
            raise PoolClosed("the pool was closed")
        while self._unfinished:
            self._unfinished.popleft()()

    def _count(self) -> list[int]:
        """How many ranges there are, by bucket."""
        counts = [0] * len(self._requested)
        for block in self._blocks + self._own:
            for bucket, ranges in block.ranges.items():
                counts[bucket] += len(ranges)
        return counts

    def _make_block(self, size: int, units: int) -> tuple[Block, int]:
        """A new block for a range, and the class that its only piece can be taken from."""
        own = size > LARGEST
        nbytes = units * self.alignment if own else self.block_size
        if nbytes > self._native.max_buffer_size:
            raise AllocationTooLarge(f"{size} bytes exceed the device's limit of {self._native.max_buffer_size}")
        if self._budget is not None:
            self._budget.reserve(nbytes)
        try:
            handle = self._native.create_block(nbytes, self.usage)
        except BaseException:
            if self._budget is not None:
                self._budget.release(nbytes)
            raise
        block = Block(handle, nbytes, nbytes // self.alignment)
        (self._own if own else self._blocks).append(block)
        self._blocks_made += 1
        return block, class_of(block.space.size)

    def _free(self, place: Place, size: int) -> None:
        """Nobody refers to a range any more."""
        if self._closed:
            return
        block, start, units = place
        bucket = (size - 1 >> 6).bit_length()
        del block.ranges[bucket][start]
        self._requested[bucket] -= size
        space = block.space
        space.give(start, units)
        if space.free == space.size:
            spare = self._spare
            if size <= LARGEST and (spare is None or spare is block or spare.used):
                self._spare = block
            else:
                self._drop(block)

    def _drop(self, block: Block) -> None:
        # Not destroyed: a command buffer that still refers to it would abort the interpreter when it is submitted.
        # wgpu frees it once nobody does.
        (self._blocks if block in self._blocks else self._own).remove(block)
        if block is self._spare:
            self._spare = None
        self._blocks_freed += 1
        if self._budget is not None:
            self._budget.release(block.nbytes)

    def _drop_empty(self) -> None:
        for block in [block for block in self._blocks if not block.used]:
            self._drop(block)

    def _shut(self) -> None:
        for block in self._blocks + self._own:
            self._drop(block)
        self._closed = True

    # -- moving --

    def _plan(self, round: int, passed: set[Block]) -> list[_Move]:
        """Moves out of the emptiest block that can come free, the largest ranges first; none if there is no such block.

        Blocks that cannot be emptied now are added to `passed`.
        """
        with holding(self._lock):
            self._check()
            while (victim := self._emptiest(passed)) is not None:
                moves = self._empty(victim, round)
                if moves:
                    return moves
                passed.add(victim)
            return []

    def _emptiest(self, passed: set[Block]) -> Block | None:
        """The block that is least used, if what is in it may fit in the others."""
        candidates = [block for block in reversed(self._blocks) if not block.pins and block not in passed]
        victim = min(candidates, key=lambda block: block.used, default=None)
        if victim is None or sum(block.space.free for block in self._blocks) < victim.space.size:
            return None
        return victim

    def _empty(self, victim: Block, round: int) -> list[_Move]:
        """Moves of the largest ranges of a block, up to a step's worth; none if one of them has to stay."""
        moves: list[_Move] = []
        nbytes = 0
        for bucket in sorted(victim.ranges, reverse=True):
            for reference in victim.ranges[bucket].values():
                moving = reference()
                if moving is None:  # its finalizer has just run
                    continue
                target = self._find_elsewhere(victim, moving) if moving._may_move(round) else None
                if target is None:
                    for move in moves:
                        self._vacate(move.target)
                    return []
                moves.append(_Move(moving, moving._place, target))
                nbytes += moving.size
                if nbytes >= _STEP_BYTES or len(moves) == _STEP_RANGES:
                    return moves
        return moves

    def _find_elsewhere(self, victim: Block, moving: BufferRange) -> Place | None:
        units = moving._place[2]
        wanted = fitting_class(units)
        for block in self._blocks:
            if block is not victim and block.space.mask >> wanted:
                return block, block.space.take(units, wanted), units
        return None

    def _vacate(self, place: Place) -> None:
        block, start, units = place
        block.space.give(start, units)

    async def _move(self, moves: list[_Move], round: int, tracker: FenceTracker) -> list[int]:
        """Copy, then switch over; returns the sizes of the ranges that were moved, once the GPU is done."""
        try:
            fence = await self._copy(moves, tracker)
        except BaseException:
            self._switch(moves, -1)
            raise
        moved = self._switch(moves, round)
        await fence
        return moved

    async def _copy(self, moves: list[_Move], tracker: FenceTracker) -> Fence:
        unit = self.alignment
        copies = [
            BufferCopy(source, start * unit, target.handle, to * unit, units * unit)
            for _, (source, start, units), (target, to, _) in moves
        ]
        return await tracker.submit(copies)

    def _switch(self, moves: list[_Move], round: int) -> list[int]:
        """Let ranges lie where they were copied to, unless somebody held them or asked for their place meanwhile.

        Returns their sizes.
        """
        moved = []
        with holding(self._lock):
            for move in moves:
                carried, source, target = move
                if carried._may_move(round) and carried._place is source and not self._closed:
                    carried._place = target
                    bucket = (carried.size - 1 >> 6).bit_length()
                    target[0].ranges[bucket][target[1]] = source[0].ranges[bucket].pop(source[1])
                    self._ranges_moved += 1
                    self._bytes_moved += carried.size
                    moved.append(carried.size)
                    self._vacate(source)
                else:
                    self._vacate(target)
            self._drop_empty()
        return moved


def _positive(size: Any) -> int:
    """`size`, of a numpy type perhaps, as an int. :raises ValueError:"""
    try:
        number = operator.index(size)
    except TypeError:
        number = 0
    if number <= 0 or isinstance(size, bool):
        raise ValueError(f"size must be a positive whole number, not {size!r}")
    return number
