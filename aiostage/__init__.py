"""aiostage: stream buffers and textures to the GPU from asyncio, through a ring of mapped staging buffers.

Start at `StagingRing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _compiled  # noqa: F401 - says what helps, where the compiled part is for another Python

if TYPE_CHECKING:  # else `__getattr__` brings them
    from .advice import Advice, AdviceKind
    from .allocation import Allocation
    from .batch import Batch, Frame
    from .budget import KiB, MemoryBudget, MiB
    from .devices import request_device
    from .engine.buffer import StagingBuffer
    from .engine.views import StagedArray
    from .errors import (
        AllocationClosed,
        AllocationTooLarge,
        AlreadyInitialized,
        BudgetExceeded,
        CannotServe,
        CannotStartThread,
        DeviceLost,
        FenceTimeout,
        InvalidCopy,
        InvalidSource,
        InvalidSubmit,
        InvalidTexture,
        OutOfMemory,
        PoolClosed,
        QueueClosed,
        RangeReleased,
        RangesStillAlive,
        RingClosed,
        StagingError,
        StallTimeout,
        UnsupportedTexture,
        UnsupportedVersion,
        UploadCancelled,
        ViewStillAlive,
        WrongDevice,
        WrongLoop,
    )
    from .fences import Fence, FenceTracker
    from .holdups import Hold, Wait, WaitKind
    from .ring import StagingRing
    from .stats import BufferState, StagingStats

__version__ = "0.2.0"

__all__ = [
    "Advice",
    "AdviceKind",
    "Allocation",
    "AllocationClosed",
    "AllocationTooLarge",
    "AlreadyInitialized",
    "Batch",
    "BudgetExceeded",
    "BufferState",
    "CannotServe",
    "CannotStartThread",
    "DeviceLost",
    "Fence",
    "FenceTimeout",
    "FenceTracker",
    "Frame",
    "Hold",
    "InvalidCopy",
    "InvalidSource",
    "InvalidSubmit",
    "InvalidTexture",
    "KiB",
    "MemoryBudget",
    "MiB",
    "OutOfMemory",
    "PoolClosed",
    "QueueClosed",
    "RangeReleased",
    "RangesStillAlive",
    "RingClosed",
    "StagedArray",
    "StagingBuffer",
    "StagingError",
    "StagingRing",
    "StagingStats",
    "StallTimeout",
    "UnsupportedTexture",
    "UnsupportedVersion",
    "UploadCancelled",
    "ViewStillAlive",
    "Wait",
    "WaitKind",
    "WrongDevice",
    "WrongLoop",
    "request_device",
]

_HOMES = (
    *("advice", "allocation", "batch", "budget", "devices", "engine.buffer", "engine.views", "errors", "fences"),
    *("holdups", "ring", "stats"),
)
"""The modules that the public names come from."""


def __getattr__(name: str) -> Any:
    """All public names, and wgpu and NumPy with them, when the first is asked for: `aiostage --help` needs none."""
    if name in __all__:
        found = globals()
        for home in _HOMES:
            module = vars(import_module(f".{home}", __name__))
            found.update({public: module[public] for public in __all__ if public in module})
        return found[name]
    if not name.startswith("_"):
        try:
            return import_module(f".{name}", __name__)  # as `aiostage.errors`, without an import of its own
        except ModuleNotFoundError as error:
            if error.name != f"{__name__}.{name}":
                raise
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
