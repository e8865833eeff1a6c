"""What the statistics of a ring suggest: `StagingRing.advise`.

Where somebody had to wait, there are three reasons, told apart by what was counted:

1. The ring is too small for what is wanted at a time. `peak_demand` is how much that was.
2. Its buffers go to the GPU before they are full (a submit, a turn of the loop), so that larger ones would not help.
3. The GPU is never done: it was busy for several rounds of the ring. More staging memory only makes a longer queue.
"""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from .budget import KiB, MemoryBudget, MiB
from .stats import StagingStats

_ENOUGH = 8
"""Seals before anything is said about how full they were."""
_RARE = 0.01
"""Stalls for each allocation that are not worth a word."""
_AT_ONCE = 4
"""How many times as much memory is advised at once, and how many rounds without a pause make a GPU busy."""
_ROUND_TRIP = 0.002
"""Seconds to a fence that are mostly the round trip itself, not the GPU's work: polls are up to a millisecond apart."""
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


def advise(stats: StagingStats, budget: MemoryBudget) -> tuple[Advice, ...]:
    """Advice for a ring with these statistics, the most urgent first."""
    found = [_stalls(stats, budget), _empty(stats), _near_budget(stats, budget)]
    return tuple(advice for advice in found if advice is not None)


def _stalls(stats: StagingStats, budget: MemoryBudget) -> Advice | None:
    """More memory, or none where that would not help."""
    if stats.buffer_stalls <= _RARE * stats.allocations_total or not stats.seals:
        return None
    waited = (
        f"{stats.buffer_stalls} of {stats.allocations_total} allocations waited, {stats.stall_seconds:.3f} s in all"
    )
    taken = stats.sealed_bytes / stats.seals
    wanted = stats.peak_demand / taken  # buffers, as full as they were
    if wanted > _AT_ONCE * stats.ring_count and stats.fence_latency_p50 > _ROUND_TRIP:
        median, most = stats.fence_latency_p50 * 1e3, stats.fence_latency_p99 * 1e3
        why = (
            f"{waited}, for the GPU: {size_text(stats.peak_demand)} without a pause, and fences take {median:.1f} ms, "
        )
        why += f"{most:.1f} ms at p99. Give it less to do: more staging memory only makes its queue longer"
        return Advice(AdviceKind.GPU_BOUND, why, stats.ring_count, stats.buffer_size)
    wanted = min(wanted, _AT_ONCE * stats.ring_count)
    room = stats.memory + budget.available
    waited += f"; up to {size_text(stats.peak_demand)} were wanted at a time"
    if stats.ring_count >= 3 and 2 * stats.seals_cramped >= stats.seals:
        size = min(round_up(math.ceil(wanted * taken / stats.ring_count)), room // stats.ring_count // 4 * 4)
        if size <= stats.buffer_size:
            return None
        why = f"{waited}, and {stats.seals_cramped} of {stats.seals} buffers were sealed with more to come"
        return Advice(AdviceKind.LARGER_BUFFERS, why, stats.ring_count, size)
    size = _snug(stats) or stats.buffer_size
    count = min(max(math.ceil(wanted), stats.ring_count + 1), room // size)
    if count <= stats.ring_count:
        return None
    why = f"{waited}, and buffers were sealed with {size_text(taken)} in them"
    return Advice(AdviceKind.MORE_BUFFERS, why, count, size)


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


def size_text(nbytes: float) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 8 MiB."""
    for unit, name in ((MiB, "MiB"), (KiB, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{nbytes:.0f} B"
