"""The one way to wait: for an outcome, out a thread, or until something is so."""

from __future__ import annotations

import time
from collections.abc import Awaitable, Callable
from typing import Any, TypeVar

import anyio
from anyio.lowlevel import current_token

from .engine.buffer import Place, StagingBuffer
from .engine.engine import Engine
from .engine.lanes import Lane
from .engine.outcome import Outcome
from .errors import afresh

T = TypeVar("T")


async def outcome(pending: Outcome[T], make_event: Callable[[], Any] | None = None) -> T:
    """What comes out, for any number of tasks. Raises an error of it anew."""
    if not pending.is_over:
        if pending.event is None:
            pending.event = (make_event or anyio.Event)()  # not as a default: anyio imports its parts when asked
        await pending.event.wait()
    if pending.error is not None:
        raise afresh(pending.error)
    assert pending.value is not None
    return pending.value


async def until(engine: Engine, question: Callable[[], T | None], explain: Callable[[], object] | None = None) -> T:
    """Ask now, and again whenever something has changed in the ring, until the answer is not None.

    :param explain: called when nothing has for as long as the ring is patient: it may raise.
    :raises RingClosed, DeviceLost: the ring has ended meanwhile.
    """
    while (answer := question()) is None:
        change = engine.next_change()
        with anyio.move_on_after(engine.patience if explain is not None else None) as scope:
            await outcome(change)
        if scope.cancelled_caught and explain is not None:
            explain()
        engine.check()
    return answer


async def place_for(engine: Engine, lane: Lane, size: int, alignment: int) -> Place:
    """A place, in turn. Cancelled, what was handed over meanwhile goes to the next in the line.

    :raises StallTimeout: open allocations have held every buffer for as long as the ring is patient.
    """
    engine.port.check_task()
    started = time.perf_counter()
    waiter = engine.join_line(lane, size, alignment)
    try:
        while not waiter.place.is_over:
            with anyio.move_on_after(engine.patience):
                await outcome(waiter.place, engine.port.event)
            if not waiter.place.is_over:
                engine.explain()
        engine.check_lane(lane)
        return await outcome(waiter.place)
    except BaseException:
        engine.leave_line(waiter)
        raise
    finally:
        engine.resumed(waiter, time.perf_counter() - started)


async def way_for(engine: Engine, lane: Lane) -> list[StagingBuffer]:
    """Wait until no copy that is staged in `lane` now shares its buffer with something open, or is moved to a free one.

    :returns: what may depart. A copy that was staged meanwhile, and that one in there would overtake, was waited for as
        well.
    :raises StallTimeout:
    """
    way = engine.way(lane)
    try:
        return await until(engine, way, engine.explain)
    finally:
        engine.leave_way(way)


async def threads_of(engine: Engine) -> None:
    """Wait, whatever is thrown in, until no thread writes to the ring's memory or is about to submit."""
    await wait_out(lambda: engine.threads_are_done, lambda: outcome(engine.next_change()))


async def wait_out(is_over: Callable[[], bool], wait: Callable[[], Awaitable[object]]) -> None:
    """Wait again and again until `is_over()`; for threads, which write to memory that others get next.

    What is thrown into the waiting task is raised afterwards. A shield alone holds off only anyio's cancellations:
    none by asyncio's own means (`task.cancel`, `asyncio.timeout`, Ctrl-C under `asyncio.run`), nor trio's Ctrl-C.
    `LoopPort.check_task` must have passed: what a foreign driver steps would be thrown back in here for ever.
    """
    thrown: BaseException | None = None
    while not is_over() and _on_a_loop():  # a coroutine that is closed after its loop cannot wait, in no `finally`
        try:
            if thrown is None:
                await wait()
            else:
                with anyio.CancelScope(shield=True):
                    await wait()
        except GeneratorExit:  # there is no loop any more to wait on
            raise
        except BaseException as error:
            thrown = error
    try:
        if thrown is not None:
            raise thrown
    finally:
        del thrown  # or it, its traceback and this frame would keep each other, and the caller's data, alive


def _on_a_loop() -> bool:
    try:
        current_token()
    except RuntimeError:
        return False
    return True
