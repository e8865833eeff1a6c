"""The end of the interpreter.

It stops daemon threads wherever they are, for good and with the locks that they hold; then destructors run. And a
thread that wgpu calls back into Python after that takes the process down. So there are two rules:

- What a destructor can reach waits for no thread. It takes locks by `holding`, and starts threads by `start`.
- An atexit handler, when threads still run, ends ours, and joins them: those that are inside wgpu, such as a software
  adapter's submit, get `PATIENCE` seconds together. From then on the library does without threads: `over` is True, and
  later atexit handlers, which may close a ring, do all work themselves.
"""

from __future__ import annotations

import atexit
import sys
import threading
import time
from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol
from weakref import WeakKeyDictionary

from .errors import CannotStartThread

PATIENCE = 5.0
over = False
_deadline: float | None = None


class Joinable(Protocol):
    """A thread, or several."""

    def is_alive(self) -> bool: ...

    def join(self, timeout: float | None = None) -> None: ...


endings: WeakKeyDictionary[Any, Callable[[Any], Iterable[Joinable]]] = WeakKeyDictionary()
"""What has threads, and a function of it that has nothing more begin in them, and returns those to join."""

_NOTHING: AbstractContextManager[Any] = nullcontext()


def holding(
    lock: AbstractContextManager[Any],
    is_finalizing: Callable[[], bool] = sys.is_finalizing,  # here, since globals go before the last destructors
    nothing: AbstractContextManager[Any] = _NOTHING,
) -> AbstractContextManager[Any]:
    """`lock`, to be held by `with`; nothing once only one thread is left, because nobody would give it back."""
    return nothing if is_finalizing() else lock


def start(target: Callable[[], object], name: str) -> threading.Thread:
    """A new daemon thread. :raises CannotStartThread: the system has none left, or the interpreter is ending."""
    thread = threading.Thread(target=target, name=name, daemon=True)
    try:
        if sys.is_finalizing():  # as newer Pythons say themselves; older ones wait for ever
            raise RuntimeError("can't start new thread at interpreter shutdown")
        thread.start()
    except RuntimeError as error:
        raise CannotStartThread(f"the thread '{name}' could not be started: {error}") from error
    return thread


def join(thread: Joinable, timeout: float | None = None) -> None:
    """Wait for a thread to end, unless it never will."""
    if thread.is_alive() and thread is not threading.current_thread() and not sys.is_finalizing():
        thread.join(timeout)


def patience() -> float:
    """Seconds that are left to all who wait for threads at exit."""
    global _deadline
    now = time.monotonic()
    if _deadline is None:
        _deadline = now + PATIENCE
    return max(0.0, _deadline - now)


@atexit.register
def _end() -> None:
    global over
    over = True
    things = [thing for ref in endings.keyrefs() if (thing := ref()) is not None]  # while others may still be added
    for thread in [thread for thing in things for thread in endings[thing](thing)]:
        join(thread, patience())
