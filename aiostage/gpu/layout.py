"""Whether the carrier can call the installed wgpu-native: its functions and structs, by the header itself."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import wgpu

from .. import native
from ..errors import UnsupportedVersion

TESTED_WGPU = "0.32"
"""The newest release that the tests were run with, for the error's advice."""


def check_layouts() -> None:
    """Compare the carrier's idea of wgpu-native with the header that wgpu-py ships.

    :raises UnsupportedVersion: they differ: says where, and what to install.
    """
    from wgpu.backends.wgpu_native import _api

    if (difference := find_difference(_api)) is not None:
        raise UnsupportedVersion(
            f"this version of aiostage cannot work with wgpu {wgpu.__version__}, whose webgpu.h differs from what it "
            f"knows: {difference}. Install a newer aiostage, or a wgpu that it was tested with: "
            f"pip install 'wgpu=={TESTED_WGPU}.*'"
        )


def find_difference(api: Any) -> str | None:
    """The first difference, if there is one; `api` is wgpu-py's module with `ffi` and `lib`."""
    for name, type in native.functions():
        there = _type_of(api, name)
        if there != type:
            return f"{name} is {there or 'missing'}, not {type}"
    for name, value, size in native.layouts():
        there, wanted = _layout_of(api, name), (value, size) if "." in name else value
        if there != wanted:
            return f"{name} is {there if there is not None else 'missing'}, not {wanted}"
    return None


def _type_of(api: Any, name: str) -> str | None:
    function = getattr(api.lib, name, None)
    return None if function is None else api.ffi.typeof(function).cname.replace("(*)", "", 1)


def _layout_of(api: Any, name: str) -> Any:
    """The value of a constant, the size of a struct, or (offset, size) of a field."""
    if "_" in name:
        return getattr(api.lib, name, None)
    struct, _, field = name.partition(".")
    try:
        kind = api.ffi.typeof(struct)
        if not field:
            return api.ffi.sizeof(kind)
        found = dict(kind.fields)[field]
    except Exception:  # of cffi's own kinds, or a field's KeyError: it is not there
        return None
    return found.offset, api.ffi.sizeof(found.type)


def functions_of(api: Any) -> tuple[tuple[int, ...], bool]:
    """(addresses in the order of `native.functions()`, whether what waits for work is given a message as well)."""
    addresses = (int(api.ffi.cast("uintptr_t", getattr(api.lib, name))) for name, _ in native.functions())
    return tuple(addresses), len(api.ffi.typeof("WGPUQueueWorkDoneCallback").args) == 4


_TIMESTAMPS = {
    "wgpuCommandEncoderWriteTimestamp": "void(struct WGPUCommandEncoderImpl *, struct WGPUQuerySetImpl *, uint32_t)",
    "wgpuCommandEncoderResolveQuerySet": "void(struct WGPUCommandEncoderImpl *, struct WGPUQuerySetImpl *, uint32_t, "
    "uint32_t, struct WGPUBufferImpl *, uint64_t)",
    "wgpuQueueGetTimestampPeriod": "float(struct WGPUQueueImpl *)",
}


def timestamp_functions(api: Any) -> tuple[int, int, Callable[[Any], float]] | None:
    """(addresses of what writes and what resolves a timestamp, what tells the nanoseconds of a tick); or None, if they
    are not as the carrier calls them."""
    if any(_type_of(api, name) != type for name, type in _TIMESTAMPS.items()):
        return None
    write, resolve, period = (getattr(api.lib, name) for name in _TIMESTAMPS)
    return int(api.ffi.cast("uintptr_t", write)), int(api.ffi.cast("uintptr_t", resolve)), period
