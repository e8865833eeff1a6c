"""Blocking calls in threads that are waited for, whatever cancels the task."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any, TypeVar

import anyio.to_thread

from .carrier.threads import Workers
from .loop import LoopPort
from .waiting import in_thread

T = TypeVar("T")


async def run_sync(function: Callable[..., T], *args: Any) -> T:
    """Call it in a thread, as `anyio.to_thread.run_sync` does; a cancellation waits until the thread has ended.

    anyio's own does not wait when asyncio itself cancels the task (`task.cancel`, `asyncio.timeout`): then the thread
    goes on in a file, or in memory, that somebody else has by now.
    """
    port = LoopPort()
    workers = Workers(port, 1, "thread")
    try:
        async with anyio.to_thread.current_default_thread_limiter():
            return await in_thread(workers.start, partial(function, *args))
    finally:
        workers.stop()
