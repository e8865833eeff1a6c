"""The plugin that opens a ring on every worker, and closes it with the worker."""

from __future__ import annotations

import functools
import logging
import os
import re
import threading
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any, Literal

import wgpu
from distributed import WorkerPlugin
from distributed.core import Status

from ..budget import MemoryBudget
from ..devices import request_device
from ..errors import StagingError
from ..ring import StagingRing
from ..threads import run_sync
from . import placement
from .arrays import PLUGIN, GpuWorker

_PLENTY = 1 << 20  # of the resource: how many tasks run at a time is the worker's number of threads
_BINDING = "max-storage-buffer-binding-size"

logger = logging.getLogger("aiostage")


class NoRing(StagingError, RuntimeError):
    """A worker has no adapter, or no memory for a ring; the message says which worker, and why.

    What to do: give that worker a driver, or register the plugin with `missing="skip"`.
    """


class RingPlugin(WorkerPlugin):  # type: ignore[misc] # mypy is not shown dask's types
    """A device and a `StagingRing` on every worker: `client.register_plugin(RingPlugin())`.

    Workers that come later get theirs too, those that are started again after a crash among them.

    :param ring_count: as for `StagingRing`.
    :param buffer_size: as for `StagingRing`.
    :param budget: bytes of staging memory that a worker's rings may hold; by default 512 MiB.
    :param memory: bytes of `GpuArray` that may be alive on a worker; without one, as many as the device has.
    :param device_features: features of WebGPU that each device must have.
    :param device_limits: limits of WebGPU that each device must have, beside the adapter's own for sizes of buffers.
    :param device: `device(worker, adapters)` returns the adapter of a worker (a `distributed.Worker`) out of all that
        wgpu found; it is called in a thread. By default `choose_adapter`.
    :param software: use software adapters, and no others.
    :param missing: what becomes of a worker without an adapter. "raise": `register_plugin` raises NoRing. "skip": it
        warns in its log. Either way the worker itself goes on, and is given no task that needs a GPU.
    :param options: what else `StagingRing` takes.
    """

    name = PLUGIN

    def __init__(
        self,
        ring_count: int | None = None,
        buffer_size: int | None = None,
        budget: int | None = None,
        memory: int | None = None,
        device_features: Iterable[str] = (),
        *,
        device_limits: Mapping[str, int] | None = None,
        device: Callable[[Any, Sequence[Any]], Any] | None = None,
        software: bool = False,
        missing: Literal["raise", "skip"] = "raise",
        **options: Any,
    ) -> None:
        if missing not in ("raise", "skip"):
            raise ValueError(f'missing must be "raise" or "skip", not {missing!r}')
        self._options = {"ring_count": ring_count, "buffer_size": buffer_size} | options
        StagingRing(None, **self._options)  # what is wrong with them is said now, not by each worker
        self._budget = budget
        self._memory = memory
        self._features = tuple(device_features)
        self._limits = dict(device_limits or {})
        self._choose = device
        self._software = software
        self._missing = missing
        self.gpu: GpuWorker | None = None
        """On a worker: what its tasks have there."""

    async def setup(self, worker: Any) -> None:
        """Called by dask. :raises NoRing: there can be no ring, unless such workers are skipped."""
        try:
            device = await run_sync(self._open_device, worker)
            budget = None if self._budget is None else MemoryBudget(self._budget)
            ring = StagingRing(device, budget=budget, **self._options)
            await ring.open()
        except Exception as error:
            message = f"worker {worker.name} ({worker.address}) has no GPU to use: {error}"
            if self._missing == "raise":
                raise NoRing(message) from error
            logger.warning(message)
            return
        self.gpu = GpuWorker(worker.address, device, ring, MemoryBudget(self._memory or 1 << 62))
        await worker.set_resources(**{PLUGIN: _PLENTY})
        await placement.welcome(worker)

    async def teardown(self, worker: Any) -> None:
        """Called by dask, when the worker closes or the plugin is removed."""
        gpu, self.gpu = self.gpu, None
        if gpu is None:
            return
        if worker.status == Status.running:  # and so stays in the cluster
            await worker.set_resources(**{PLUGIN: 0})
        await gpu.ring.aclose()

    def _open_device(self, worker: Any) -> Any:
        """In a thread: drivers take their time."""
        with _lock:
            adapters = all_adapters()
        if self._choose is None:
            adapter = choose_adapter(worker, adapters, self._software)
        else:
            adapter = self._choose(worker, adapters)
        if adapter is None:
            raise LookupError("device() returned None")
        limits = {_BINDING: adapter.limits[_BINDING], **self._limits}
        return request_device(adapter, required_features=self._features, required_limits=limits)


_lock = threading.Lock()


@functools.cache
def all_adapters() -> tuple[Any, ...]:
    """What wgpu finds on this machine, once for the process: two threads that look for OpenGL's at a time, or one that
    gives such a one back meanwhile, abort the process (wgpu-hal 29: "BadAccess"). Workers may be threads of one."""
    return tuple(wgpu.gpu.enumerate_adapters_sync())


def choose_adapter(worker: Any, adapters: Sequence[Any], software: bool = False) -> Any:
    """The adapter of a worker: workers 0, 1, 2 … of a machine with two GPUs use the first, the second, the first …

    The number is the environment variable AIOSTAGE_ADAPTER of the worker's process, or the worker's name where that is
    a number or ends in one after a dash (as those of `LocalCluster` and `dask worker --nworkers` do), or else 0. It
    counts discrete GPUs; integrated ones where there are none; software adapters alone where these are asked for.

    :raises LookupError: there is none.
    """
    kinds = ("CPU",) if software else ("DiscreteGPU", "IntegratedGPU")
    for kind in kinds:
        found = [a for a in adapters if a.info["adapter_type"] == kind and a.info["backend_type"] != "OpenGL"]
        if found:
            return found[_number(worker.name) % len(found)]
    seen = ", ".join(f"{a.info['device']} ({a.info['adapter_type']}, {a.info['backend_type']})" for a in adapters)
    raise LookupError(
        f"wgpu found no {'software adapter' if software else 'GPU'} there, but {seen or 'no adapter at all'}"
    )


def _number(name: Any) -> int:
    chosen = os.environ.get("AIOSTAGE_ADAPTER")
    if chosen is not None:
        if not chosen.isdecimal():
            raise LookupError(f"AIOSTAGE_ADAPTER must be a number, not {chosen!r}")
        return int(chosen)
    number = re.search(r"(?:^|-)(\d+)$", str(name))
    return int(number[1]) if number else 0
