"""What a ring's users want of it, for statistics and advice."""

from __future__ import annotations


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
