"""How far the GPU is: the serials of a device's queue."""

from __future__ import annotations

import operator
import threading
import time
from bisect import bisect
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakMethod, WeakValueDictionary, finalize

import wgpu

from ..errors import DeviceLost, StagingError
from ..events import DEBUG, event, logger
from ..exits import holding
from ..gpu.device import connect
from ..gpu.protocol import Native
from ..loop import LoopPort
from .carrier import Carrier
from .departure import Departure


class Serial:
    """A point in the work of a device's queue, by number: done when the GPU has finished all that comes before it.

    Serials are done in the order of their `value`.
    """

    __slots__ = ("__weakref__", "_callbacks", "completed_at", "error", "event", "inserted_at", "timeline", "value")

    def __init__(self, timeline: Timeline[Any]) -> None:
        self.timeline = timeline
        self._callbacks: list[Callable[[Any], object]] = []
        self.event: Any = None  # set when it is done
        self.error: DeviceLost | None = None
        """Why it never will be done."""
        self.value = 0  # until it is inserted
        self.inserted_at = time.perf_counter()
        self.completed_at: float | None = None
        """When a poll saw that the GPU had finished; the loop may have heard of it later."""

    def done(self) -> bool:
        """Whether the GPU has finished, or never will."""
        return self.completed_at is not None

    @property
    def elapsed(self) -> float:
        """Seconds from insertion to completion, or until now."""
        return (self.completed_at or time.perf_counter()) - self.inserted_at

    def add_done_callback(self, callback: Callable[[Any], object]) -> None:
        """Call `callback(fence)` on the loop when done; soon, if it is done already.

        What it raises goes to asyncio's exception handler, or to the library's logger on trio.

        :raises WrongLoop: called from elsewhere than the fence's loop.
        """
        self.check()
        if self.done():
            self.timeline.port.soon(partial(callback, self))
        else:
            self._callbacks.append(callback)

    def check(self) -> None:
        """:raises WrongLoop: unless called on the fence's loop."""
        self.timeline.port.check()

    def _complete(self, error: DeviceLost | None, at: float | None = None) -> None:
        self.completed_at = time.perf_counter() if at is None else at
        self.error = error
        if self.event is not None:
            self.event.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            self.timeline.port.soon(partial(callback, self))

    @property
    def state(self) -> str:
        """In a word: pending, done or lost."""
        return "pending" if not self.done() else "lost" if self.error else "done"

    def __repr__(self) -> str:
        return f"<{type(self).__name__} {self.value} {self.state} after {self.elapsed * 1e3:.3f} ms>"


S = TypeVar("S", bound=Serial)


class Timeline(Generic[S]):
    """The serials of one device on one loop, and the carrier that works and polls for them.

    The GPU's progress is told on the loop that it was made on.

    :raises CannotStartThread: the thread that polls cannot be started.
    """

    _timelines: ClassVar[WeakValueDictionary[tuple[int, int], Any]] = WeakValueDictionary()
    _counting = threading.RLock()  # held to change anybody's _users: what is never closed is collected in any thread

    def __init__(self, device: wgpu.GPUDevice) -> None:
        self.native: Native = connect(device)
        self.port = LoopPort()
        self._pending: deque[S] = deque()  # in the order of their values
        self.order = (
            threading.RLock()
        )  # held from a departure until its fence is pending: a garbage collection may depart as well
        self._value = 0
        self.completed = 0
        """The newest value that the GPU has reached, as far as the loop has heard."""
        self._lost: StagingError | None = None
        self._newest_at = 0.0  # when the GPU reached it
        self._latencies: deque[float] = deque(maxlen=256)
        self._users = 1
        self.carrier = Carrier(self.native, self.port, WeakMethod(self._reach), WeakMethod(self._fail))
        self.native.attach()
        self._end = finalize(self, _end, self.carrier.stop, self.native)
        self._end.atexit = False

    @classmethod
    def shared(cls, device: wgpu.GPUDevice) -> Self:
        """The tracker that this loop's rings on this device share; each must `close` it once."""
        native, port = connect(device), LoopPort()
        key = id(native), id(port.loop)
        with holding(cls._counting):
            found = cls._timelines.get(key)
            if found is None or found._users <= 0:
                found = cls._timelines[key] = cls(device)
            else:
                found._users += 1
            shared: Self = found
            return shared

    @property
    def pending(self) -> int:
        """How many fences have not completed."""
        return len(self._pending)

    @property
    def newest_pending(self) -> S | None:
        """The newest that is not done, if any is not."""
        return self._pending[-1] if self._pending else None

    @property
    def value(self) -> int:
        """The value of the newest fence; 0 before the first."""
        return self._value

    def insert(self) -> S:
        """A fence behind everything that was submitted to the device's queue until now.

        On a lost device it fails with DeviceLost.
        """
        with holding(self.order):
            return self._add(self.carrier.mark())

    def depart(self, departure: Departure) -> None:
        """Have it depart, with its fence pending from then on."""
        with holding(self.order):
            self._add(self.carrier.depart(departure), departure.fence)

    def submitted(self, value: int, ago: float) -> S:
        """A fence for what was submitted so long ago, with this serial."""
        if value > self._value:
            self._value = value
        is_newest = not self._pending or self._pending[-1].value < value
        fence = self._add(value) if is_newest and value > self.completed and self._lost is None else self.fence(value)
        at = time.perf_counter() - ago
        if at < fence.inserted_at:
            fence.inserted_at = at
        return fence

    def _add(self, value: int, fence: S | None = None) -> S:
        if fence is None:
            fence = self.make()
        fence.value = value
        if value > self._value:
            self._value = value
        if not self._pending or self._pending[-1].value < value:
            self._pending.append(fence)
        else:
            self._pending.insert(bisect(self._pending, value, key=_value_of), fence)
        if logger.isEnabledFor(DEBUG):
            event("fence_inserted", fence=value)
        return fence

    def make(self) -> S:
        """A serial without a value yet."""
        raise NotImplementedError

    def _reach(self, value: int, ago: float) -> None:
        """Complete the fences up to this value: so long ago a poll saw that the GPU had finished what is before."""
        if self.native.is_lost(probe=False):  # a destroyed device reports success for what it never finished
            self._fail(DeviceLost(f"the device was lost while {self.describe()}"))
        self._newest_at = at = max(time.perf_counter() - ago, self._newest_at)
        while self._pending and self._pending[0].value <= value:
            done = self._pending.popleft()
            done._complete(None, max(at, done.inserted_at))
            self._latencies.append(done.elapsed)
            if logger.isEnabledFor(DEBUG):
                event("fence_done", fence=done.value, elapsed=done.elapsed)
        if self._lost is None:
            self.completed = value
        self._stop_if_over()

    def fence(self, value: int) -> S:
        """The fence that has this value, for those who kept only the number. Of one that is done no times are known.

        :raises ValueError: no fence has it. They are numbered from 1, when their work is submitted.
        """
        if not 0 < value <= self._value:
            raise ValueError(f"no fence has the value {value}; the newest has {self._value}")
        for fence in self._pending:
            if fence.value == value:
                return fence
        if value > self.completed and self._lost is None:  # of an upload, who has not asked for one
            return self._add(value)
        fence = self.make()
        fence.value = value
        fence._complete(None if value <= self.completed else DeviceLost(f"the device was lost before fence {value}"))
        return fence

    def latency(self, fraction: float) -> float:
        """Seconds from insertion to completion that this fraction of the last 256 fences stayed within; 0 if none."""
        latencies = sorted(self._latencies)
        return latencies[min(len(latencies) - 1, int(fraction * len(latencies)))] if latencies else 0.0

    def oldest_age(self) -> float:
        """Seconds that the oldest pending fence has been pending; 0 if none is."""
        try:
            return time.perf_counter() - self._pending[0].inserted_at
        except IndexError:  # none, or the last one was just completed by the loop
            return 0.0

    def describe(self) -> str:
        """What is pending, and for how long."""
        if not self._pending:
            return "no fence is pending"
        oldest = self._pending[0]
        return f"{len(self._pending)} pending, the oldest is fence {oldest.value} for {oldest.elapsed:.3f} s"

    def close(self) -> None:
        """Stop polling; with fences still pending, as soon as they are delivered. A lost device fails them."""
        with holding(self._counting):
            self._users -= 1
        if self._users == 0 and self._pending and self.native.is_lost():
            self._fail(DeviceLost(f"the device was lost while {self.describe()}"))
        self._stop_if_over()

    def _stop_if_over(self) -> None:
        if self._users == 0 and not self._pending:
            self._users = -1  # once
            self._end()

    def _fail(self, error: StagingError) -> None:
        self._lost = error
        while self._pending:
            self._pending.popleft()._complete(DeviceLost(*error.args))
        self._stop_if_over()


_value_of: Callable[[Serial], int] = operator.attrgetter("value")


def _end(stop: Callable[[], object], native: Native) -> None:
    stop()
    native.detach()
