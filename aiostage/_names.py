"""The public names, in one place. `aiostage` hands them out, and imports this when it is first asked for one."""

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

__all__ = [
    "Allocation",
    "AllocationClosed",
    "AllocationTooLarge",
    "AlreadyInitialized",
    "Batch",
    "BudgetExceeded",
    "BufferState",
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
