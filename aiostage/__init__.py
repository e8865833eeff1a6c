"""aiostage: stream buffers and textures to the GPU from asyncio, through a ring of mapped staging buffers.

Start at `StagingRing`.
"""

from . import _compiled  # noqa: F401 - says what helps, where the compiled part is for another Python
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
