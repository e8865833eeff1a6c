"""The free pieces of one block of memory, by size: what a pool cuts its ranges from.

Two-level segregated fit (Masmano, Ripoll, Crespo and Real, "TLSF: a new dynamic memory allocator for real-time
systems", ECRTS 2004): pieces lie in power-of-two buckets, each divided into 32 classes. A bit for each class that has
pieces finds one that is large enough in constant time; what is given back joins its free neighbours at once.
"""

from __future__ import annotations

from collections import defaultdict

_STEPS = 5
"""Binary logarithm of the classes in a bucket: a piece is at most a 32nd larger than the smallest of its class."""


def class_of(units: int) -> int:
    """The class that a free piece of `units` is in."""
    shift = units.bit_length() - _STEPS - 1
    return units if shift <= 0 else (shift << _STEPS) + (units >> shift)


def fitting_class(units: int) -> int:
    """The first class whose pieces all have `units` or more."""
    shift = units.bit_length() - _STEPS - 1
    return units if shift <= 0 else (shift << _STEPS) + (units + (1 << shift) - 1 >> shift)


class FreeSpace:
    """The free pieces of `size` units, all of them free at first. Not for two threads at a time."""

    __slots__ = ("_by_class", "_ends", "_sizes", "free", "mask", "size")

    def __init__(self, size: int) -> None:
        self.size = size
        self.free = 0
        """Units that are free."""
        self.mask = 0
        """Bit c is set if there are pieces of class c: `mask >> fitting_class(units)` tells whether `take` succeeds."""
        self._sizes: dict[int, int] = {}  # of each piece, by its start
        self._ends: dict[int, int] = {}  # start of each piece, by its end
        self._by_class: defaultdict[int, dict[int, None]] = defaultdict(dict)  # starts, the newest last
        self.give(0, size)

    def take(self, units: int, at_least: int) -> int:
        """Start of `units` that are free no more, out of a piece of class `at_least` or above; there must be one."""
        mask = self.mask >> at_least
        found = at_least + (mask & -mask).bit_length() - 1
        pieces = self._by_class[found]
        start, _ = pieces.popitem()
        if not pieces:
            self.mask ^= 1 << found
        size = self._sizes.pop(start)
        self.free -= units
        if size == units:
            del self._ends[start + size]
        else:
            self._add(start + units, size - units)
        return start

    def give(self, start: int, units: int) -> None:
        """`units` from `start` on are free again."""
        self.free += units
        end = start + units
        if end in self._sizes:
            end = self._remove(end)
        before = self._ends.get(start)
        if before is not None:
            self._remove(before)
            start = before
        self._add(start, end - start)

    def pieces(self) -> dict[int, int]:
        """Units of each free piece, by its start."""
        return dict(self._sizes)

    def largest(self) -> int:
        """Units of the largest free piece; 0 if there is none."""
        return max((self._sizes[start] for start in self._by_class[self.mask.bit_length() - 1]), default=0)

    # Both spell class_of out: a call would be a tenth of what a range costs.

    def _add(self, start: int, units: int) -> None:
        self._sizes[start] = units
        self._ends[start + units] = start
        shift = units.bit_length() - _STEPS - 1
        kind = units if shift <= 0 else (shift << _STEPS) + (units >> shift)
        pieces = self._by_class[kind]
        if not pieces:
            self.mask |= 1 << kind
        pieces[start] = None

    def _remove(self, start: int) -> int:
        """Returns the end of the piece that was there."""
        units = self._sizes.pop(start)
        end = start + units
        del self._ends[end]
        shift = units.bit_length() - _STEPS - 1
        kind = units if shift <= 0 else (shift << _STEPS) + (units >> shift)
        pieces = self._by_class[kind]
        del pieces[start]
        if not pieces:
            self.mask ^= 1 << kind
        return end
