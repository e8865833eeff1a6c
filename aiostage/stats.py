"""What a ring says about itself."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from .budget import MemoryBudget
from .engine.buffer import BufferState as BufferState
from .engine.engine import Engine


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
    scratch_bytes: int = 0
    """Bytes of device memory that atomic uploads use, or that is kept for the next: no staging memory, and in no
    budget."""

    @property
    def memory(self) -> int:
        """Staging memory that the ring holds, in bytes, from open to close."""
        return self.ring_count * self.buffer_size

    def as_dict(self) -> dict[str, Any]:
        """The fields by name, for JSON; states are strings."""
        found = {
            field.name: getattr(self, field.name) for field in fields(self)
        }  # `asdict` copies, for 20 times as long
        found["buffer_states"] = [state.value for state in self.buffer_states]
        return found

    def _repr_mimebundle_(self, **asked: object) -> dict[str, str]:
        """For a notebook: the buffers as a bar, and a table."""
        from . import reprs  # most programs never ask

        return reprs.bundle(repr(self), lambda: reprs.statistics(self.as_dict()))


def snapshot(engine: Engine, ring_count: int, buffer_size: int, budget: MemoryBudget | None) -> StagingStats:
    """A consistent snapshot of a ring, as far as its loop has heard."""
    engine.collect_all()
    demand, counts, buffers = engine.demand, engine.counts, engine.shelf.all
    timeline = engine.timeline if buffers else None
    lent = engine.lending.counts if buffers else engine.lent_in_all
    return StagingStats(
        bytes_in_flight=lent.in_flight + sum(buffer.load.used for buffer in buffers if buffer.load is not None),
        current_ring_index=engine.shelf.cursor,
        buffer_stalls=counts.stalls + lent.stalls,
        ring_count=ring_count,
        buffer_size=buffer_size,
        buffer_states=tuple(engine.state_of(buffer) for buffer in buffers),
        waiters=len(engine.line.waiters) - engine.lending.is_starved + lent.waiting if buffers else 0,
        bytes_total=counts.nbytes + lent.nbytes,
        allocations_total=counts.allocations + lent.pieces,
        submits=counts.submits + lent.seals,
        stall_seconds=counts.stall_seconds + lent.stall_seconds,
        fence_latency_p50=timeline.latency(0.5) if timeline else 0.0,
        fence_latency_p99=timeline.latency(0.99) if timeline else 0.0,
        pending_fences=timeline.pending if timeline else 0,
        seals=demand.seals + lent.seals,
        sealed_bytes=demand.sealed + lent.sealed_bytes,
        sealed_most=max(demand.most, lent.sealed_most),
        seals_cramped=min(demand.cramped, demand.seals) + lent.cramped,
        peak_demand=max(demand.peak_now(), lent.most_wanted),
        peak_buffers=max(ring_count - demand.least_free, lent.most_used),
        budget_used=0 if budget is None else budget.used,
        budget_limit=0 if budget is None else budget.limit,
        scratch_bytes=engine.scratch.nbytes,
    )
