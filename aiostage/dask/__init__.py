"""More than one GPU, or machine: a ring and a device on every worker of a dask cluster. Start at `RingPlugin`."""

from .arrays import GpuArray, GpuWorker, WrongWorker, current
from .plugin import NoRing, RingPlugin, choose_adapter
from .tasks import compute, fetch, upload

__all__ = [
    "GpuArray",
    "GpuWorker",
    "NoRing",
    "RingPlugin",
    "WrongWorker",
    "choose_adapter",
    "compute",
    "current",
    "fetch",
    "upload",
]
