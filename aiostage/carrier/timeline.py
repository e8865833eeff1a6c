"""How far the GPU is: the serials of a device's queue, and the thread that polls for them."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable, Iterable
from functools import partial
from typing import Any, ClassVar, Generic, Self, TypeVar
from weakref import WeakMethod, WeakValueDictionary, finalize

from .. import exits
from ..errors import DeviceLost
from ..events import DEBUG, event, logger
from ..exits import holding
from ..gpu.device import connect
from ..gpu.protocol import Native
from ..loop import LoopPort


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

    def __repr__(self) -> str:
        state = "pending" if not self.done() else "lost" if self.error else "done"
        return f"<{type(self).__name__} {self.value} {state} after {self.elapsed * 1e3:.3f} ms>"


S = TypeVar("S", bound=Serial)


class Timeline(Generic[S]):
    """The serials of one device on one loop, and the thread that polls for them while some are pending.

    The GPU's progress is told on the loop that it was made on.

    :raises CannotStartThread: the thread that polls cannot be started.
    """

    _timelines: ClassVar[WeakValueDictionary[tuple[int, int], Any]] = WeakValueDictionary()
    _counting = threading.RLock()  # held to change anybody's _users: what is never closed is collected in any thread

    def __init__(self, device: Any) -> None:
        self.native: Native = connect(device)
        self.port = LoopPort()
        self._pending: deque[S] = deque()  # in the order of their values
        self.order = threading.RLock()  # held from a submit to its fence, so that fences have its order
        self._promised: deque[S] = deque()  # with a value, for work that a thread is submitting, and those behind
        self._made: set[S] = set()  # of them, whose work was submitted
        self._value = 0
        self.completed = 0
        """The value of the newest fence that the GPU has reached, as far as the loop has heard."""
        self._reached_values: deque[tuple[int, float]] = deque()  # of fences that the GPU has reached, and when
        self._newest_at = 0.0  # when it reached the newest that the loop has heard of
        self._delivering = False  # and that the loop is about to hear of
        self._polls_here = False  # on the loop, at the interpreter's end
        self._latencies: deque[float] = deque(maxlen=256)
        self._users = 1
        # Weakly, or the thread would keep a tracker that was never closed, and with it all that its dead loop was told.
        self._polling = Poller(self.native, WeakMethod(self._expected), WeakMethod(self._lost))
        self.native.attach()
        self._end = finalize(self, _end, self._polling, self.native)
        self._end.atexit = False
        exits.endings[self] = Timeline._outlive_thread

    @classmethod
    def shared(cls, device: Any) -> Self:
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

    def insert(self, fence: S | None = None, ask: bool = True) -> S:
        """A fence behind everything that was submitted to the device's queue until now.

        On a lost device it fails with DeviceLost.

        :param fence: one that was made earlier, without a value, for work that had yet to be submitted.
        :param ask: without it the queue is not asked to tell when the work is done; `reach` will say so.
        """
        with holding(self.order):
            fence = self._number(fence)
            if self._promised:  # behind what is yet to be submitted, and so to be reached after it
                self._promised.append(fence)
                self._made.add(fence)
                return fence
        if ask:
            self.ask(fence)
        return fence

    def promise(self, fence: S) -> None:
        """Give a fence its value, for work that a thread is about to submit; `fulfil` or `withdraw` it."""
        with holding(self.order):
            self._promised.append(self._number(fence))

    def fulfil(self, fence: S) -> None:
        """The work of a promised fence was submitted."""
        fence.inserted_at = time.perf_counter()
        self._made.add(fence)
        self._ask_for_promised()

    def withdraw(self, fence: S, error: DeviceLost) -> None:
        """A fence's work was not submitted, or nobody can tell when it is done; on the loop."""
        with holding(self.order):
            for line in (self._pending, self._promised):
                if fence in line:
                    line.remove(fence)
            self._made.discard(fence)
        if not fence.done():
            fence._complete(error)
        self._ask_for_promised()
        self._stop_if_over()

    def make(self) -> S:
        """A serial without a value yet."""
        raise NotImplementedError

    def _number(self, fence: S | None) -> S:
        fence = fence or self.make()
        self._value += 1
        fence.value = self._value
        fence.inserted_at = time.perf_counter()
        self._pending.append(fence)
        if logger.isEnabledFor(DEBUG):
            event("fence_inserted", fence=fence.value)
        return fence

    def _ask_for_promised(self) -> None:
        # A fence that is reached has reached those before it, so none may be asked for before their work was submitted.
        newest = None
        with holding(self.order):
            while self._promised and self._promised[0] in self._made:
                newest = self._promised.popleft()
                self._made.remove(newest)
        if newest is not None:
            self.ask(newest)

    def ask(self, fence: S) -> None:
        """Have the queue tell when the work before `fence` is done."""
        self.native.on_work_done(partial(self._reached, fence.value))
        self.wake()

    def reach(self, value: int, at: float) -> None:
        """Complete the fences up to this value: `at` this time a poll saw that the GPU had finished what is before."""
        self._newest_at = at = max(at, self._newest_at)  # several threads may poll
        if self.native.is_lost(probe=False):  # a destroyed device reports success for what it never finished
            self._fail(DeviceLost(f"the device was lost while {self.describe()}"))
        while self._pending and self._pending[0].value <= value:
            done = self._pending.popleft()
            done._complete(None, at)
            self.completed = done.value
            self._latencies.append(done.elapsed)
            if logger.isEnabledFor(DEBUG):
                event("fence_done", fence=done.value, elapsed=done.elapsed)
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
        fence = self.make()
        fence.value = value
        fence._complete(None if value <= self.completed else DeviceLost(f"the device was lost before fence {value}"))
        return fence

    def wake(self) -> None:
        """Start polling: something else than a fence, a re-mapping, is outstanding."""
        if exits.over:
            self._poll_here()
        else:
            self._polling.wake()

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

    def _outlive_thread(self) -> Iterable[threading.Thread]:
        """The interpreter ends, and the thread before it: from now on the loop polls, if it ever runs again."""
        self.port.post(self._poll_here)
        return ()

    def _poll_here(self) -> None:
        if not self._polls_here and self.native.outstanding():
            self._polls_here = True
            self.port.post(self._poll_on)

    def _poll_on(self) -> None:
        self._polls_here = False
        self.native.poll()
        if self.native.is_lost():
            self._fail(DeviceLost(f"the device was lost while {self.describe()}"))
        time.sleep(Poller._SHORTEST)
        self._poll_here()

    def _expected(self) -> tuple[float, float]:
        """(seconds that the oldest fence has been pending, seconds that fences took lately)."""
        return self.oldest_age(), self._latencies[-1] if self._latencies else 0.0

    def _reached(self, value: int, ok: bool) -> None:
        """The GPU has finished what fence `value` stands behind, or never will; called by whichever thread polls."""
        if not ok:
            self._lost()
            return
        self._reached_values.append((value, time.perf_counter()))  # by several threads, perhaps not in order
        if not self._delivering:
            self._delivering = True
            if not self.port.post(self._deliver):  # the loop is gone, and nobody will hear of these any more
                self._pending.clear()
                self._stop_if_over()

    def _deliver(self) -> None:
        self._delivering = False
        reached = []
        while self._reached_values:
            reached.append(self._reached_values.popleft())
        for value, at in sorted(reached):
            self.reach(value, at)

    def _lost(self) -> None:
        self.port.post(lambda: self._fail(DeviceLost(f"the device was lost while {self.describe()}")))

    def _fail(self, error: DeviceLost) -> None:
        with holding(self.order):
            self._promised.clear()
            self._made.clear()
        while self._pending:
            self._pending.popleft()._complete(error)
        self._stop_if_over()


def _end(polling: Poller, native: Native) -> None:
    polling.stop()
    native.detach()


class Poller:
    """A thread that polls a device while it owes maps or fences, and sleeps for good otherwise.

    A sleep costs some 40 µs of CPU, a late poll costs latency. So the pause is a quarter of the time that the oldest
    fence has been pending, or of the distance to the moment when it is expected, whichever is shorter; a millisecond at
    most, or two for what has been pending for long.
    """

    _SHORTEST, _LONGEST = 0.0001, 0.001  # seconds
    _CHECKS = 0.02  # seconds between two looks whether the device is lost

    def __init__(
        self,
        native: Native,
        expected: WeakMethod[Callable[[], tuple[float, float]]],
        lost: WeakMethod[Callable[[], None]],
    ) -> None:
        self._native = native
        self._expected = expected
        self._lost = lost
        self._bell = threading.Lock()  # held, but for the moment of a ring: waiting on it is cheaper than on an Event
        self._bell.acquire()
        self._parked = False
        self._stopping = False
        self.polls = 0
        self._thread = None if exits.over else exits.start(self._run, "aiostage poll")
        exits.endings[self] = Poller._end

    def wake(self) -> None:
        """Have the device polled until it owes nothing."""
        if self._parked:
            self._ring()

    def stop(self) -> None:
        """End the thread, and wait a moment for that; no longer where a submit may hold up its last poll."""
        for thread in self._end():
            exits.join(thread, 0.1 if self._native.submit_blocks else 1)

    def _end(self) -> list[threading.Thread]:
        self._stopping = True
        self._ring()
        return [self._thread] if self._thread is not None else []

    def _run(self) -> None:
        native, checked = self._native, 0.0
        while not self._stopping:
            if native.outstanding() == 0:
                self._park(lambda: native.outstanding() == 0)
                continue
            now = time.perf_counter()
            if now - checked > self._CHECKS:
                checked = now
                if native.is_lost():
                    self._park(self._give_up)
                    continue
            native.poll()
            self.polls += 1
            self._bell.acquire(timeout=self._pause())

    def _give_up(self) -> bool:
        self._native.poll()  # delivers the maps that will never be
        if (lost := self._lost()) is not None:
            lost()
        return True

    def _park(self, idle: Callable[[], bool]) -> None:
        # Parked is said first and the reason asked once more, so that a wake between the two is not missed.
        self._parked = True
        if idle() and not self._stopping:
            self._bell.acquire()
        self._parked = False

    def _ring(self) -> None:
        try:
            self._bell.release()
        except RuntimeError:
            pass  # rung already, and not heard yet

    def _pause(self) -> float:
        known = self._expected()
        age, expected = known() if known is not None else (0.0, 0.0)
        longest = min(max(self._LONGEST, age / 25), 2 * self._LONGEST)
        return min(max(min(age, abs(age - expected)) / 4, self._SHORTEST), longest)
