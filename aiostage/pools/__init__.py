"""Memory pools: long-lived device buffers, cut from a few large ones. Start at `BufferPool`."""

from .pool import (
    BUCKETS,
    LARGEST,
    SMALLEST,
    BucketStatistics,
    BufferPool,
    BufferRange,
    Defragmentation,
    Pin,
    PoolStatistics,
)

__all__ = [
    "BUCKETS",
    "LARGEST",
    "SMALLEST",
    "BucketStatistics",
    "BufferPool",
    "BufferRange",
    "Defragmentation",
    "Pin",
    "PoolStatistics",
]
