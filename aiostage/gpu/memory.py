"""Python objects over mapped memory."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any


def export(address: int, size: int, owner: Callable[[Any], None]) -> Any:
    """A fresh object that exports `size` bytes of memory, writable, and that can be weakly referenced.

    Every view of it, however made, keeps it and `owner` alive: that tells whether one still exists, and keeps the
    memory from being freed under it. `owner` is called with nothing of interest when the last one is gone.
    """
    from wgpu.backends.wgpu_native import _api

    ffi = _api.ffi
    return ffi.buffer(ffi.gc(ffi.cast("char *", address), owner), size)
