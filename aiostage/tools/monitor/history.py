"""What was heard of each ring, as far back as a screen is wide."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field
from typing import Any

_KEPT = 600
"""Samples: a minute's."""


@dataclass(frozen=True, slots=True)
class Look:
    """A ring at one moment."""

    at: float
    """Seconds, by the program's clock."""
    states: tuple[str, ...] | None
    """Of each buffer; None: the loop did not answer."""
    waiters: int
    rate: float | None
    """Bytes a second since the look before; None of the first, and where there was no answer."""
    stalls: int
    """Since the look before."""
    lag: float | None
    """Seconds until the loop answered; None: it has not yet."""


@dataclass
class RingHistory:
    """One ring: the looks at it, and the last words of it."""

    number: int
    last: dict[str, Any] = field(default_factory=dict)
    """As the schema has a ring."""
    stats: dict[str, Any] = field(default_factory=dict)
    """Of the last answer; empty before the first."""
    looks: deque[Look] = field(default_factory=lambda: deque(maxlen=_KEPT))
    _told_at: float = 0.0

    def add(self, at: float, said: dict[str, Any]) -> None:
        self.last = said
        stats = said["stats"]
        if stats is None:
            self.looks.append(Look(at, None, 0, None, 0, None))
            return
        before, self.stats = self.stats, stats
        since, self._told_at = at - self._told_at, at
        rate, stalls = None, 0
        if before and since > 0:
            rate = (stats["bytes_total"] - before["bytes_total"]) / since
            stalls = stats["buffer_stalls"] - before["buffer_stalls"]
        self.looks.append(Look(at, tuple(stats["buffer_states"]), stats["waiters"], rate, stalls, said["lag"]))

    def rate(self) -> float:
        """Bytes a second, over the last second or so."""
        rates = [look.rate for look in self.looks if look.rate is not None][-10:]
        return sum(rates) / len(rates) if rates else 0.0

    def top_rate(self) -> float:
        """The most that it was between two looks."""
        return max((look.rate for look in self.looks if look.rate is not None), default=0.0)

    def lags(self) -> list[float]:
        """Of all looks that were answered, the least first."""
        return sorted(look.lag for look in self.looks if look.lag is not None)

    def seconds(self) -> float:
        """How long the looks go back."""
        return self.looks[-1].at - self.looks[0].at if self.looks else 0.0


@dataclass
class History:
    """All rings of a program, those that are open now."""

    rings: dict[int, RingHistory] = field(default_factory=dict)

    def add(self, sample: dict[str, Any]) -> None:
        """A line of the kind "sample"."""
        said = {one["ring"]: one for one in sample["rings"]}
        self.rings = {number: self.rings.get(number) or RingHistory(number) for number in said}
        for number, history in self.rings.items():
            history.add(sample["time"], said[number])


def quantile(ordered: list[float], fraction: float) -> float:
    """Of values in order; 0 of none."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0.0
