"""What a ring says about itself."""

from __future__ import annotations

import enum
from dataclasses import asdict, dataclass
from typing import Any


class BufferState(enum.StrEnum):
    """Where a staging buffer is in its life."""

    AVAILABLE = "available"
    """Mapped and empty."""
    IN_USE = "in_use"
    """Mapped; holds allocations or copies that were not submitted yet."""
    FENCED = "fenced"
    """Sealed and handed to the GPU; not writable until the GPU is done and the buffer is mapped again."""


@dataclass(frozen=True, slots=True)
class StagingStats:
    """A consistent snapshot of a ring. Sizes in bytes, times in seconds."""

    bytes_in_flight: int
    """Bytes allocated, and not given back by the GPU yet."""
    current_ring_index: int
    """Index of the buffer that the next allocation is looked for in first."""
    buffer_stalls: int
    """How often an allocation had to suspend for lack of space."""
    ring_count: int
    """Number of staging buffers."""
    buffer_size: int
    """Size of each."""
    buffer_states: tuple[BufferState, ...]
    """State of each, by index."""
    waiters: int
    """Allocations that are suspended now."""
    bytes_total: int
    """Bytes allocated since the ring was opened."""
    allocations_total: int
    """Allocations since then, the pieces of uploads included."""
    submits: int
    """Queue submits that the ring made."""
    stall_seconds: float
    """Total time that allocations were suspended."""
    fence_latency_p50: float
    """From insertion to completion, median of the device's last 256 fences."""
    fence_latency_p99: float
    """The same, 99th percentile."""
    pending_fences: int
    """Fences of the device that are not done."""
    seals: int
    """How often a staging buffer was sealed with something in it."""
    sealed_bytes: int
    """Bytes that were taken in these, all together."""
    sealed_most: int
    """The most that was taken in one of them."""
    seals_cramped: int
    """How many of them were sealed with more waiting to go in, or with parts of one upload or batch in others."""
    peak_demand: int
    """Most bytes that were wanted at a time, in one upload or by those who wrote and waited while the GPU never ran out
    of buffers: with that much memory nobody would have waited."""
    peak_buffers: int
    """Most staging buffers that were not available at one time."""
    budget_used: int
    """Bytes of staging memory that all rings hold that share this one's `MemoryBudget`, this one's included."""
    budget_limit: int
    """What they may hold together."""

    @property
    def memory(self) -> int:
        """Staging memory that the ring holds, in bytes, from open to close."""
        return self.ring_count * self.buffer_size

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; states are strings."""
        fields = asdict(self)
        fields["buffer_states"] = [state.value for state in self.buffer_states]
        return fields


class Demand:
    """What the users of a ring want of it, counted as buffers leave for the GPU and come back."""

    __slots__ = ("away", "busy", "cramped", "least_free", "most", "peak", "sealed", "seals", "waiting")

    def __init__(self, ring_count: int) -> None:
        self.least_free = ring_count
        self.seals = self.sealed = self.most = self.cramped = 0
        self.waiting = 0  # bytes of allocations that are suspended
        self.away = 0  # buffers that left and have not come back
        self.busy = 0  # bytes that left since none was away
        self.peak = 0

    def leaves(self, taken: int, cramped: bool) -> None:
        """A buffer with so many bytes taken is sealed."""
        self.away += 1
        if taken:
            self.seals += 1
            self.sealed += taken
            self.busy += taken
            self.cramped += cramped
            if taken > self.most:
                self.most = taken

    def returns(self) -> None:
        """One came back."""
        if self.away == 1:
            self.peak = self.peak_now()
            self.busy = 0
        self.away -= 1

    def waits(self, size: int, memory: int) -> None:
        """An allocation is suspended in a ring of so much memory; `waiting` is to be taken back when it goes on."""
        self.waiting += size
        if not self.away:  # open allocations hold all of it
            self.peak = max(self.peak, memory + self.waiting)

    def cut(self, count: int, nbytes: int) -> None:
        """An upload of so many bytes did not fit in one buffer, but in so many."""
        self.cramped += count
        self.peak = max(self.peak, nbytes)

    def peak_now(self) -> int:
        """The peak, with what is going on now."""
        return max(self.peak, self.busy + self.waiting if self.away else 0)
