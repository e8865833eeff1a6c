"""What the statistics of a ring suggest: `StagingRing.advise`.

Where somebody had to wait, there are three reasons, told apart by what was counted:

1. Too few buffers: they go to the GPU before they are full (a submit, a turn of the loop), so that larger ones would
   not help.
2. Too small buffers: they are sealed with more to come. Fewer, larger submits cost the GPU less as well.
3. The GPU: it was busy for many rounds of the ring, though the buffers are large, or their submits small. More staging
   memory would only make a longer queue.

How much is advised follows from `peak_demand`, what was wanted at a time.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from .budget import MemoryBudget, MiB, size_text
from .stats import StagingStats

_ENOUGH = 8
"""Seals before anything is said about how full they were."""
_RARE = 0.01
"""Stalls for each allocation that are not worth a word."""
_AT_ONCE = 4
"""How many times as much memory is advised at once."""
_BUSY = 8
"""Rounds of the ring without a pause that make a GPU a busy one."""
_LARGE = 16 * MiB
"""As large as a ring chooses its buffers by itself: larger ones gain little."""
_ROUND_TRIP = 0.002
"""Seconds to a fence that are mostly the round trip itself, not the GPU's work: polls are up to a millisecond apart."""
_SUBMITS = ", or more in each submit (a batch)"
_NEAR = 0.9
"""Part of the budget from which on it is nearly spent."""


class AdviceKind(enum.StrEnum):
    """What is advised."""

    MORE_BUFFERS = "more buffers"
    LARGER_BUFFERS = "larger buffers"
    GPU_BOUND = "gpu bound"
    SMALLER_BUFFERS = "smaller buffers"
    NEAR_BUDGET = "near budget"


@dataclass(frozen=True, slots=True)
class Advice:
    """One piece of advice. The settings are for a ring with the same work; its present ones if they may stay."""

    kind: AdviceKind
    message: str
    """Why, with the numbers."""
    ring_count: int
    buffer_size: int
    """In bytes."""

    def __str__(self) -> str:
        return f"{self.kind}, {self.ring_count} × {size_text(self.buffer_size)}: {self.message}"

    def _repr_mimebundle_(self, **asked: object) -> dict[str, str]:
        """For a notebook: a table."""
        from . import reprs  # most programs never ask

        return reprs.bundle(
            repr(self), lambda: reprs.advice(self.kind, self.ring_count, self.buffer_size, self.message)
        )


def advise(stats: StagingStats, budget: MemoryBudget) -> tuple[Advice, ...]:
    """Advice for a ring with these statistics, the most urgent first."""
    found = [_stalls(stats, budget), _empty(stats), _near_budget(stats, budget)]
    return tuple(advice for advice in found if advice is not None)


def _stalls(stats: StagingStats, budget: MemoryBudget) -> Advice | None:
    """More memory, or none where that would not help."""
    if stats.buffer_stalls <= _RARE * stats.allocations_total or not stats.seals:
        return None
    count, size = stats.ring_count, stats.buffer_size
    why = f"{stats.buffer_stalls} of {stats.allocations_total} allocations waited, {stats.stall_seconds:.3f} s in all; "
    why += f"up to {size_text(stats.peak_demand)} were wanted at a time"
    taken = stats.sealed_bytes / stats.seals
    wanted = stats.peak_demand / taken  # buffers, as full as they were
    cramped = 2 * stats.seals_cramped >= stats.seals
    is_busy = wanted > _BUSY * count and stats.fence_latency_p50 > _ROUND_TRIP
    if is_busy and not (cramped and size < _LARGE):
        why += f", for which the GPU had no pause; fences take {stats.fence_latency_p50 * 1e3:.1f} ms, "
        why += (
            f"{stats.fence_latency_p99 * 1e3:.1f} ms at p99. Give it less to do{_SUBMITS if 2 * taken < size else ''}"
        )
        return Advice(AdviceKind.GPU_BOUND, f"{why}: more staging memory only makes its queue longer", count, size)
    wanted = min(wanted, _AT_ONCE * count)
    room = stats.memory + budget.available
    if cramped and count >= 3:
        why += f", and {stats.seals_cramped} of {stats.seals} buffers were sealed with more to come"
        size = min(round_up(math.ceil(wanted * taken / count)), room // count // 4 * 4)
        return Advice(AdviceKind.LARGER_BUFFERS, why, count, size) if size > stats.buffer_size else None
    why += f", and buffers were sealed with {size_text(taken)} in them"
    size = _snug(stats) or size
    count = min(max(math.ceil(wanted), count + 1), room // size)
    return Advice(AdviceKind.MORE_BUFFERS, why, count, size) if count > stats.ring_count else None


def _empty(stats: StagingStats) -> Advice | None:
    """Smaller buffers, in which everything would have fit all the same."""
    size = _snug(stats)
    if size is None:
        return None
    mean, most = size_text(stats.sealed_bytes / stats.seals), size_text(stats.sealed_most)
    why = f"buffers of {size_text(stats.buffer_size)} were sealed with {mean} in them, {most} at most"
    return Advice(AdviceKind.SMALLER_BUFFERS, why, stats.ring_count, size)


def _near_budget(stats: StagingStats, budget: MemoryBudget) -> Advice | None:
    """What of this ring can shrink, when the budget is nearly spent."""
    if budget.used < _NEAR * budget.limit:
        return None
    why = f"{size_text(budget.used)} of {size_text(budget.limit)} are in use, {size_text(stats.memory)} by this ring"
    size, count = _snug(stats) or stats.buffer_size, stats.peak_buffers
    if stats.seals < _ENOUGH or (count, size) == (stats.ring_count, stats.buffer_size):
        why += ", which needs them: shrink another ring, or give a MemoryBudget with a higher limit"
        return Advice(AdviceKind.NEAR_BUDGET, why, stats.ring_count, stats.buffer_size)
    why += f", which never had more than {count} buffers in use, with {size_text(stats.sealed_most)} in them"
    return Advice(AdviceKind.NEAR_BUDGET, why, count, size)


def _snug(stats: StagingStats) -> int | None:
    """The buffer size that would have been enough, if that is half of what it is, or less."""
    size = round_up(stats.sealed_most)
    return size if stats.seals >= _ENOUGH and 2 * size <= stats.buffer_size else None


def round_up(nbytes: int) -> int:
    """To a number with two significant bits, a multiple of 256 at least: 256, 512, 768, 1024, 1536, 2048, 3072, …"""
    step = max(256, 1 << max(0, (nbytes - 1).bit_length() - 2))
    return -(-nbytes // step) * step
