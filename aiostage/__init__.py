"""aiostage: stream buffers and textures to the GPU from asyncio, through a ring of mapped staging buffers.

Start at `StagingRing`.
"""

from . import _compiled  # noqa: F401 - says what helps, where the compiled part is for another Python
from .allocation import Allocation
from .batch import Batch, Frame
from .budget import KiB, MemoryBudget, MiB
from .devices import request_device
from .engine.buffer import StagingBuffer
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
    WrongLoop,
)
from .fences import Fence, FenceTracker
from .ring import StagingRing
from .stats import BufferState, StagingStats

__version__ = "0.1.0"

__all__ = [
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
    "StagingBuffer",
    "StagingError",
    "StagingRing",
    "StagingStats",
    "StallTimeout",
    "UnsupportedTexture",
    "UnsupportedVersion",
    "UploadCancelled",
    "ViewStillAlive",
    "WrongLoop",
    "request_device",
]
