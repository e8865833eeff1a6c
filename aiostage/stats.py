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

    @property
    def memory(self) -> int:
        """Staging memory that the ring holds, in bytes, from open to close."""
        return self.ring_count * self.buffer_size

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; states are strings."""
        fields = asdict(self)
        fields["buffer_states"] = [state.value for state in self.buffer_states]
        return fields
