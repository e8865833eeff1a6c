"""The synchronous way in, for programs without an event loop: a ring that lives on a loop in a thread of its own.

`StagingRingManager` runs one ring; `init_memory_system`, `staging_stats` and `close_memory_system` keep one manager for
the whole program. All of it may be called from any thread. The calls block, but for `StagingRingManager.start`, which
returns a future; so they are not for coroutines, which open a `StagingRing` on the loop that they have, if that is
asyncio, uvloop or trio.
"""

from __future__ import annotations

import atexit
import threading
from collections.abc import Awaitable, Callable, Mapping
from concurrent.futures import CancelledError, Future
from functools import partial
from inspect import isawaitable
from logging import ERROR
from typing import TYPE_CHECKING, Any, Concatenate, ParamSpec, TypeVar
from weakref import WeakSet

import anyio
import wgpu

from . import exits
from .budget import MiB
from .errors import AlreadyInitialized, RingClosed, StagingError, WrongLoop, afresh
from .events import report
from .exits import holding
from .gpu.device import connect
from .portal import Portal
from .ring import StagingRing
from .typing import BufferDestination, Data, DataLayout, Extent, TextureDestination

if TYPE_CHECKING:
    from .pools.pool import BufferPool

P = ParamSpec("P")
T = TypeVar("T")

# Every usage but mapping (GPUBufferUsage in the WebGPU specification).
_ANY_USAGE = 0x3FC

_NO_THREAD = "the manager's thread has ended; a forked process makes a manager of its own"
_NO_ADAPTER = "no GPU adapter was found; see 'aiostage info'"


class StagingRingManager:
    """A staging ring behind blocking calls, which any thread may make.

    :param ring_count: number of staging buffers.
    :param buffer_size: bytes in each.
    :param device: a wgpu.GPUDevice; by default `initialize` requests one of the high-performance adapter.
    :param options: what else `StagingRing` takes, such as `budget`.

    Nothing is created before `initialize` (or `with`). The thread and its loop end with `close` or the interpreter.
    """

    def __init__(
        self,
        ring_count: int = 3,
        buffer_size: int = 8 * MiB,
        *,
        device: wgpu.GPUDevice | None = None,
        **options: Any,
    ) -> None:
        self.device = device
        """The GPUDevice; None before `initialize`, unless one was given."""
        self._options: dict[str, Any] = {"ring_count": ring_count, "buffer_size": buffer_size} | options
        StagingRing(device, **self._options)  # what is wrong with them is said now
        self._lock = threading.RLock()
        self._error: StagingError | None = RingClosed("the staging ring is not initialized: call initialize() first")
        self._thread: threading.Thread | None = None
        self._started: Future[None] = Future()
        self._portal: Portal | None = None  # from here on, what lives on the loop
        self._ring: StagingRing
        self._stop: anyio.Event

    def initialize(self) -> bool:
        """Open the ring, in a thread of its own. False, and nothing is left behind, where there is no GPU adapter.

        :raises AlreadyInitialized: it was initialized before.
        :raises BudgetExceeded, ValueError, DeviceLost: as `StagingRing.open`; it may be tried again.
        :raises CannotStartThread: the system has none left for this process.
        :raises RingClosed: the interpreter ends meanwhile.
        """
        self._check_thread()
        with holding(self._lock):
            if self._thread is not None:
                raise AlreadyInitialized("the manager was initialized before; make another one")
            if self.device is None:
                self.device = default_device()
                if self.device is None:
                    report(ERROR, "no_adapter", _NO_ADAPTER)
                    return False
            started: Future[None] = Future()
            self._started = started
            self._thread = exits.start(partial(self._run, started), "aiostage memory")
            _open_managers.add(self)
            try:
                started.result()
            except CancelledError:
                raise RingClosed("the interpreter ends") from None
            except BaseException:
                started.cancel()  # Ctrl-C: what is being opened is closed again
                self._thread = None
                raise
            self._error = None
        return True

    def is_initialized(self) -> bool:
        """Whether it can be used now."""
        return self._error is None and self._thread is not None and self._thread.is_alive()

    def upload(
        self,
        destination: BufferDestination | wgpu.GPUTexture | TextureDestination,
        data: Data,
        offset: int = 0,
        *,
        data_layout: DataLayout | None = None,
        size: int | Extent | None = None,
        atomic: bool = False,
    ) -> int:
        """Copy `data` to a buffer or texture. On return it may be reused, and the copy was submitted.

        :param destination: a GPUBuffer, a GPUTexture, or a mapping that tells a part of a texture, as wgpu has it.
        :param offset: where in the buffer, in bytes.
        :param data_layout: as in `StagingRing.write_texture`; follows from the data's shape by default.
        :param size: bytes of `data` for a buffer, the region's extent for a texture; by default all.
        :param atomic: nobody sees a part of it, as in `StagingRing.write_buffer`.
        :returns: the value of a fence that completes when the GPU has copied, for `wait`.
        :raises InvalidCopy: WebGPU would refuse it; nothing was copied.
        """
        return self.call(_upload, destination, data, offset, data_layout, size, atomic)

    def wait(self, value: int | None = None, timeout: float | None = None) -> None:
        """Block until the GPU has done fence `value`, or without one everything submitted to the device so far.

        :param timeout: seconds.
        :raises FenceTimeout: it was not done by then.
        :raises DeviceLost: it never will be.
        """
        self.call(_wait, value, timeout)

    def stats(self) -> dict[str, Any]:
        """The fields of `StagingStats` by name, after one poll of the GPU."""
        return self.call(StagingRing.stats).as_dict()

    def call(
        self,
        function: Callable[Concatenate[StagingRing, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> T:
        """Run `await function(ring, *args, **kwargs)` on the ring's loop: batches, slots, whatever a ring can do.

        :raises RingClosed: before `initialize` and after `close`, also while it waits.
        :raises WrongLoop: called on the ring's own loop, where waiting would never end.
        """
        future = self.start(function, *args, **kwargs)
        try:
            return future.result()
        except BaseException:
            future.cancel()  # Ctrl-C ends the wait, and with it the work
            raise
        finally:
            del future  # or it, its error and this frame would keep each other alive

    def start(
        self,
        function: Callable[Concatenate[StagingRing, P], Awaitable[T]],
        *args: P.args,
        **kwargs: P.kwargs,
    ) -> Future[T]:
        """The same without waiting: the future of what `function` returns or raises. It waits for no turn of the loop.

        For programs on a loop that is neither asyncio nor trio, such as Qt's. What is started begins in that order, and
        runs side by side. The future's callbacks run in the manager's thread.

        `future.cancel()` cancels the coroutine, as an anyio.CancelScope does; the future is cancelled once it has
        ended by that, so that data may be reused when the future is over. Closing the manager ends what still runs,
        with RingClosed.

        :raises RingClosed: before `initialize` and after `close`.
        :raises WrongLoop: called on the ring's own loop, where `await function(ring)` does it.
        :raises TypeError: `function` cannot be called. If it returns nothing to await, the future has that error.
        """
        self._check_thread()
        _check_is_function(function)
        with holding(self._lock):  # what is started before `close` stops the loop will run
            return self._check().start(partial(function, self._ring, *args, **kwargs))

    def close(self) -> None:
        """Submit what is committed, wait for the GPU, give the memory back and end the thread. Again does nothing."""
        self._check_thread()
        with holding(self._lock):
            self._end_loop()
        if self._thread is not None:
            exits.join(self._thread)

    def __enter__(self) -> StagingRingManager:
        if not self.initialize():
            raise StagingError(_NO_ADAPTER)
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<StagingRingManager, {self._error or self._ring}>"

    def _check_thread(self) -> None:
        if self._thread is threading.current_thread():
            raise WrongLoop("called on the manager's own event loop, which would wait for itself; await the ring's own")

    def _check(self) -> Portal:
        if self._error is not None:
            raise afresh(self._error)
        if self._thread is None or not self._thread.is_alive():  # as in a forked child
            raise RingClosed(_NO_THREAD)
        assert self._portal is not None
        return self._portal

    def _closed(self) -> RingClosed:
        return RingClosed("the staging ring was closed" if self._error is not None else _NO_THREAD)

    def _end_at_exit(self) -> None:
        """Close, without waiting for the lock: who has it may wait for a loop that will not turn any more."""
        self._started.cancel()
        self._end_loop()
        if self._thread is not None:
            exits.join(self._thread, exits.patience())

    def _end_loop(self) -> None:
        if self._error is None:
            self._error = RingClosed("the staging ring was closed; make another manager")
            assert self._portal is not None
            self._portal.port.post(self._stop.set)

    def _run(self, started: Future[None]) -> None:
        try:
            # Its own loop, whatever policy the program has set: a loop of Qt's lives in the main thread alone.
            anyio.run(self._live, started, backend_options={"loop_factory": _new_event_loop})
        except BaseException as error:
            if started.done():
                report(ERROR, "loop_ended", "the memory manager's event loop has ended", error)
            else:
                started.set_exception(error)
        finally:
            if self._portal is not None:
                self._portal.end()

    async def _live(self, started: Future[None]) -> None:
        async with StagingRing(self.device, **self._options) as ring, Portal(self._closed) as portal:
            if not started.set_running_or_notify_cancel():
                return
            self._ring, self._portal, self._stop = ring, portal, anyio.Event()
            started.set_result(None)
            await self._stop.wait()
            await ring.aclose()  # whoever waits for the ring hears of it; who waits for something else, as this ends


def _new_event_loop() -> Any:
    import asyncio

    return getattr(asyncio, "ProactorEventLoop", asyncio.SelectorEventLoop)()  # the former is Windows's


def _check_is_function(function: object) -> None:
    if not callable(function):
        hint = "the function itself, its arguments behind it" if isawaitable(function) else "an 'async def'"
        raise TypeError(f"{function!r} cannot be called with the ring: give {hint}")


async def _upload(
    ring: StagingRing, destination: Any, data: Any, offset: int, data_layout: Any, size: Any, atomic: bool
) -> int:
    if connect(ring.device).is_resource(destination, "texture"):
        destination = {"texture": destination}
    if isinstance(destination, Mapping):
        place: Any = destination
        fence = await ring.write_texture(place, data, data_layout, size, atomic=atomic)
    else:
        fence = await ring.write_buffer(destination, offset, data, 0, size, atomic=atomic)
    return fence.value


async def _wait(ring: StagingRing, value: int | None, timeout: float | None) -> None:
    await ring.fence(value).wait(timeout)


def default_device() -> Any:
    """A new device of the adapter that wgpu calls high-performance, or None where there is no adapter."""
    try:
        adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except RuntimeError:
        adapter = None
    return adapter and adapter.request_device_sync()


_open_managers: WeakSet[StagingRingManager] = WeakSet()


@atexit.register
def _close_all() -> None:
    for manager in list(_open_managers):
        manager._end_at_exit()  # a GPU that hangs does not keep the interpreter


# -- one for the whole program --

_system: dict[str, Any] | None = None
_system_lock = threading.RLock()


def init_memory_system(
    staging_rings: bool = True,
    ring_count: int = 3,
    buffer_size: int = 8 * MiB,
    memory_pools: bool | Mapping[str, int] = False,
    *,
    device: Any = None,
) -> dict[str, Any]:
    """Set up the program's staging ring, and memory pools, on one device.

    :param staging_rings: whether to have a ring, of `ring_count` buffers of `buffer_size` bytes.
    :param memory_pools: usage flags (wgpu.BufferUsage) of each pool, by its name; True for one named "buffers" that
        serves every usage of a buffer that is copied to.
    :param device: a wgpu.GPUDevice; by default a new one of the high-performance adapter.
    :returns: "device"; "staging_rings", the `StagingRingManager` or None; "memory_pools", a dict of
        `aiostage.pools.BufferPool` or None; "ring_count", "buffer_size" and "staging_memory", bytes, 0 without a ring.
    :raises AlreadyInitialized: `close_memory_system` was not called since the last time.
    :raises StagingError: there is no GPU adapter.
    :raises BudgetExceeded, ValueError, DeviceLost: as `StagingRing.open` and `BufferPool`; nothing is left behind.
    """
    global _system
    with holding(_system_lock):
        if _system is not None:
            raise AlreadyInitialized("the memory system was initialized before; call close_memory_system() first")
        device = device or default_device()
        if device is None:
            raise StagingError(_NO_ADAPTER)
        pools = _make_pools(device, memory_pools)
        manager = StagingRingManager(ring_count, buffer_size, device=device) if staging_rings else None
        if manager is not None:
            manager.initialize()
        _system = {
            "device": device,
            "staging_rings": manager,
            "memory_pools": pools,
            "ring_count": ring_count if manager else 0,
            "buffer_size": buffer_size if manager else 0,
            "staging_memory": ring_count * buffer_size if manager else 0,
        }
        return dict(_system)


def _make_pools(device: Any, wanted: bool | Mapping[str, int]) -> dict[str, BufferPool] | None:
    if not wanted:
        return None
    from .pools.pool import BufferPool  # only who wants them pays for importing them

    usages = {"buffers": _ANY_USAGE} if wanted is True else dict(wanted)
    return {name: BufferPool(device, usage) for name, usage in usages.items()}


def staging_stats() -> dict[str, Any]:
    """What `StagingRingManager.stats` says of the program's ring.

    :raises RingClosed: `init_memory_system` was not called, or made no ring.
    """
    system = _system
    if system is None:
        raise RingClosed("the memory system is not initialized: call init_memory_system() first")
    if system["staging_rings"] is None:
        raise RingClosed("the memory system was initialized without staging rings")
    stats: dict[str, Any] = system["staging_rings"].stats()
    return stats


def close_memory_system() -> None:
    """Close what `init_memory_system` made, which may be called again then.

    :raises RangesStillAlive: ranges of a pool are referenced. Release them, and call this again.
    """
    global _system
    with holding(_system_lock):
        system = _system or {}
        if system.get("staging_rings"):
            system["staging_rings"].close()  # first: staged copies pin the ranges that they go to
        for pool in (system.get("memory_pools") or {}).values():
            pool.close()
        _system = None
