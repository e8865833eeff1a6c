"""Threads that copy into staging memory, and submit where a submit blocks, while the event loop goes on."""

from __future__ import annotations

import atexit
import queue
import threading
from collections.abc import Callable
from functools import partial
from weakref import WeakSet

import anyio

from .loop import LoopPort

Done = Callable[[BaseException | None], object]


class Workers:
    """A few long-lived threads that take jobs in order; `done` is called on the loop when one is through.

    A hand-off costs a queue and one wake-up of the loop for all jobs that end between two of its turns: a third of a
    round trip through `anyio.to_thread`, which starts from a task and comes back to one.
    """

    def __init__(self, port: LoopPort, threads: int, name: str) -> None:
        self._port = port
        self._count = threads
        self._name = name
        self._jobs: queue.SimpleQueue[tuple[Callable[[], object], Done] | None] = queue.SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._busy = 0  # jobs handed in and not reported done; changed on the loop alone

    def start(self, job: Callable[[], object], done: Done) -> None:
        """Have a thread run `job`; then `done(error or None)` on the loop."""
        self._busy += 1
        if self._busy > len(self._threads) < self._count:
            self._add_thread()
        self._jobs.put((job, done))

    async def run(self, job: Callable[[], object]) -> None:
        """Run `job` in a thread. A cancellation waits for it: it may be writing to memory that others get next."""
        finished = anyio.Event()
        errors: list[BaseException | None] = []

        def done(error: BaseException | None) -> None:
            errors.append(error)
            finished.set()

        self.start(job, done)
        with anyio.CancelScope(shield=True):
            await finished.wait()
        if errors[0] is not None:
            raise errors[0]

    def stop(self) -> None:
        """End the threads after the jobs that they have."""
        for _ in self._threads:
            self._jobs.put(None)

    def join(self) -> None:
        """Wait for the threads to end, a second at most."""
        self.stop()
        for thread in self._threads:
            thread.join(timeout=1)

    def _add_thread(self) -> None:
        thread = threading.Thread(target=self._work, name=f"aiostage {self._name} {len(self._threads)}", daemon=True)
        self._threads.append(thread)
        _all_workers.add(self)
        thread.start()

    def _work(self) -> None:
        while (item := self._jobs.get()) is not None:
            job, done = item
            error: BaseException | None = None
            try:
                job()
            except BaseException as caught:  # whoever waits for the job gets it
                error = caught
            self._port.post(partial(self._finish, done, error))
            del item, job, done, error  # or the thread would keep a caller's data until its next job

    def _finish(self, done: Done, error: BaseException | None) -> None:
        self._busy -= 1
        done(error)


_all_workers: WeakSet[Workers] = WeakSet()


@atexit.register
def _join_all() -> None:
    # A thread that is inside wgpu while the interpreter goes away takes the process down with it.
    for workers in list(_all_workers):
        workers.join()
