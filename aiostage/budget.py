"""How much host-visible memory the rings of a device may hold."""

from __future__ import annotations

import threading
from weakref import WeakKeyDictionary

from .errors import BudgetExceeded
from .exits import holding
from .gpu.protocol import Native

KiB = 1024
MiB = 1024 * KiB


class MemoryBudget:
    """A limit, in bytes, on the staging memory of all rings that share it, or on the blocks of pools.

    Rings that are given none share one of 512 MiB per device; pools that are given none have no limit.
    """

    def __init__(self, limit: int = 512 * MiB) -> None:
        if limit <= 0:
            raise ValueError(f"limit must be positive, not {limit}")
        self.limit = limit
        self._used = 0
        self._lock = threading.RLock()

    @property
    def used(self) -> int:
        """Bytes that open rings, or pools, hold."""
        return self._used

    @property
    def available(self) -> int:
        """Bytes that are left."""
        return self.limit - self._used

    def reserve(self, nbytes: int) -> None:
        """Take `nbytes`. :raises BudgetExceeded: that many are not left; nothing is taken then."""
        with holding(self._lock):
            if self._used + nbytes > self.limit:
                raise BudgetExceeded(
                    f"{nbytes} bytes more would exceed the memory budget: {self._used} of {self.limit} in use; free "
                    "some of them, or give a larger MemoryBudget"
                )
            self._used += nbytes

    def release(self, nbytes: int) -> None:
        """Give `nbytes` back."""
        with holding(self._lock):
            self._used -= nbytes

    def __repr__(self) -> str:
        return f"<MemoryBudget {self._used} of {self.limit} bytes in use>"


_of_device: WeakKeyDictionary[Native, MemoryBudget] = WeakKeyDictionary()


def default_budget(native: Native) -> MemoryBudget:
    """The budget that the rings of one device share."""
    return _of_device.setdefault(native, MemoryBudget())


def size_text(nbytes: float) -> str:
    """Bytes for people: 512 B, 1.5 KiB, 8 MiB."""
    for unit, name in ((MiB, "MiB"), (KiB, "KiB")):
        if nbytes >= unit:
            return f"{nbytes / unit:.1f}".removesuffix(".0") + f" {name}"
    return f"{nbytes:.0f} B"
