"""The interpreter ends at the worst moment, in processes of their own: each must end, with its status.

`python test_exit.py NAME` plays one scene.
"""

from __future__ import annotations

import atexit
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Last to run, because first to be registered: after it only destructors do.
last_words: list[Callable[[], object]] = []
atexit.register(lambda: [say() for say in last_words])

import asyncio  # noqa: E402
import contextlib  # noqa: E402
import ctypes  # noqa: E402
import gc  # noqa: E402
import logging  # noqa: E402
import operator  # noqa: E402
import queue  # noqa: E402
import signal  # noqa: E402
import warnings  # noqa: E402
from functools import partial  # noqa: E402

import numpy as np  # noqa: E402
import pytest  # noqa: E402
from interpose import replace  # noqa: E402
from misuse_cases import Sandbox  # noqa: E402
from simulated import SimulatedGpu, until  # noqa: E402
from simulated_table import FUNCTIONS  # noqa: E402

import aiostage  # noqa: E402
from aiostage import KiB, MiB, exits, memory, native  # noqa: E402
from aiostage.carrier import carrier as carriers  # noqa: E402
from aiostage.events import event  # noqa: E402
from aiostage.gpu.device import connect  # noqa: E402

kept: dict[str, Any] = {}  # until the interpreter takes it down
SCENES: dict[str, Callable[[], object]] = {}
LATER = "done"  # what a scene returns that says by itself that it got to its end


def scene(function: Callable[[], object]) -> Callable[[], object]:
    SCENES[function.__name__] = function
    return function


@pytest.mark.parametrize("name", SCENES)
def test_the_interpreter_ends(name: str) -> None:
    paths = [str(Path(__file__).parents[1]), *sys.path]
    environment = os.environ | {"PYTHONPATH": os.pathsep.join(paths), "PYTHONWARNINGS": "ignore"}
    command = [sys.executable, "-X", "faulthandler", __file__, name]
    outcome = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=False)
    assert outcome.returncode == 0, outcome.stderr[-4000:]
    assert outcome.stdout == "done\n"
    assert "panicked" not in outcome.stderr  # coroutines that are closed without a loop may complain


async def test_jobs_that_no_thread_will_do_are_done_by_the_loop_at_exit(monkeypatch: pytest.MonkeyPatch) -> None:
    ends: list[BaseException | None] = []
    data = np.arange(64 * MiB, dtype=np.uint32).view(np.uint8)[: 64 * MiB].reshape(16, -1)
    copied = np.zeros_like(data)
    async with aiostage.FenceTracker(SimulatedGpu(free_running=True)) as tracker:
        carrier = tracker.carrier
        carrier.add_copiers(2)
        for source, to in zip(data, copied, strict=True):
            carrier.copy(source, to.ctypes.data, (1,), 0, lambda job, error: ends.append(error))
        with monkeypatch.context() as patch:
            patch.setattr(exits, "over", True)
            threads = list(carrier._outlive_threads())  # which end amid their jobs
            await until(lambda: len(ends) == len(data))
        assert ends == [None] * len(data)
        assert (copied == data).all()
        assert not any(thread.is_alive() for thread in threads)


async def test_a_forked_child_waits_for_no_thread_or_lock_of_its_parent() -> None:
    gpu, statuses = SimulatedGpu(free_running=True), []
    async with aiostage.StagingRing(gpu, 3, 16 * KiB, inline_size=0) as ring:
        carrier, buffer = ring._tracker.carrier, gpu.buffer(16 * KiB)

        async def upload() -> None:
            while len(statuses) < 8:
                await ring.write_buffer(buffer, 0, bytes(16 * KiB))

        uploading = [asyncio.ensure_future(upload()) for _ in range(4)]  # threads take locks all the time
        for _ in range(8):
            await asyncio.sleep(0.01)
            with warnings.catch_warnings():
                warnings.simplefilter("ignore")  # newer Pythons warn of threads
                child = os.fork()
            if child == 0:
                signal.signal(signal.SIGALRM, signal.SIG_DFL)  # what waits in C runs no handler of Python's
                signal.alarm(3)
                for thread in carrier._outlive_threads():  # as at its exit,
                    exits.join(thread, exits.patience())
                carrier.stop()  # and in a destructor
                os._exit(0)
            statuses.append((await asyncio.to_thread(os.waitpid, child, 0))[1])
        await asyncio.gather(*uploading)
    assert statuses == [0] * 8


def test_a_forked_child_may_destroy_things_whatever_lock_a_thread_had() -> None:
    stop, statuses = threading.Event(), []
    getpid = ctypes.cast(ctypes.CDLL(None).getpid, ctypes.c_void_p).value  # does nothing to what it is given
    # The more carriers there are, the longer somebody has the lock.
    carriers = [native.Carrier(FUNCTIONS, 1, 1, 1, True) for _ in range(200)]

    def take_locks() -> None:
        while not stop.is_set():
            native.settle(1)

    threads = [threading.Thread(target=take_locks) for _ in range(2)]
    for thread in threads:
        thread.start()
    for _ in range(50):
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            child = os.fork()
        if child == 0:
            signal.signal(signal.SIGALRM, signal.SIG_DFL)
            signal.alarm(10)
            native.gone(2, "the destination was destroyed", getpid, getpid, getpid)
            native.wait_for_use(2, "the destination buffer is mapped")
            native.settle(1)
            os._exit(0)
        statuses.append(os.waitpid(child, 0)[1])
        if statuses[-1]:
            break
    stop.set()
    for thread in threads:
        thread.join()
    assert statuses == [0] * 50
    assert len(carriers) == 200


# -- what the scenes are made of --


class AtTheEnd:
    """Calls `act` from its destructor, when the interpreter takes it down."""

    def __init__(self, act: Callable[[], object]) -> None:
        self._act = act

    def __del__(self) -> None:
        self._act()


def suspended_everywhere(box: Sandbox) -> None:
    """Coroutines that nobody will resume, whose destructors run when the interpreter ends."""

    async def main() -> None:
        ring = box.ring(2, 16 * KiB, inline_size=0)
        await ring.open()
        buffer = box.buffer(MiB)
        box.busy(20)
        opening = aiostage.StagingRing(box.device)
        kept["slots"] = [await ring.allocate(16) for _ in range(3)]

        async def batch() -> None:
            async with ring.batch() as batch, ring.frame() as frame:
                await frame.write_buffer(buffer, 0, bytes(MiB))
                await batch.write_buffer(buffer, 0, bytes(MiB))

        calls: list[Callable[[], Any]] = [
            lambda: ring.write_buffer(buffer, 0, bytes(MiB)),
            batch,
            lambda: ring.allocate(16 * KiB),
            ring.submit,
            lambda: ring._tracker.wait_all(),
            opening.open,
        ]
        kept["coroutines"] = [call() for call in calls]
        for coroutine in kept["coroutines"]:  # to its first suspension; in no task, which would complain
            with contextlib.suppress(StopIteration):
                coroutine.send(None)
        await until(lambda: len(opening._engine.shelf.all) == opening.ring_count)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    loop.close()
    kept["box"] = box


def all_locks() -> Iterator[Any]:
    """Every lock that the library has now, and those of others that it may wait for."""
    kinds = (type(threading.Lock()), type(threading.RLock()))
    modules = [module for name, module in list(sys.modules.items()) if name.startswith("aiostage")]
    ours = [thing for thing in gc.get_objects() if type(thing).__module__.startswith(("aiostage", "trio", "logging"))]
    for thing in (*modules, *ours):
        names = [*getattr(thing, "__dict__", ()), *getattr(type(thing), "__slots__", ())]
        for value in [getattr(thing, name, None) for name in names]:
            if isinstance(value, kinds):
                yield value


def prepare_to_hold_all() -> None:
    """Have daemon threads take every lock at the very end, and stop with them."""
    begin = threading.Event()
    # Without a frame of this module, which would keep it from being taken down.
    todo: list[list[Callable[[], object]]] = [[begin.wait] for _ in range(100)]
    for acts in todo:  # newer Pythons start none at exit
        threading.Thread(target=list, args=(map(operator.call, acts),), daemon=True).start()

    def hold_all() -> None:
        taken = []
        for acts, lock in zip(todo, list(all_locks()), strict=False):
            taken.append(threading.Event())
            acts += [lock.acquire, taken[-1].set, partial(time.sleep, 3600)]
        begin.set()
        assert sum(event.wait(1) for event in taken) >= 5  # but for those that are held already, as to sleep on

    last_words.append(hold_all)


def block_submits(device: Any) -> None:
    """The submits of this device never return, as on a GPU that hangs."""
    # By a C function: a thread that stands in one of this module's would keep that from being taken down.
    pause = ctypes.cast(ctypes.CDLL(None).pause, ctypes.c_void_p).value
    replace(connect(device), "wgpuQueueSubmit", pause)


def until_a_submit_is_blocked(box: Sandbox) -> None:
    """Upload until the thread that submits has ended up in there."""
    box.busy = lambda copies: None  # type: ignore[method-assign]
    suspended_everywhere(box)
    time.sleep(0.3)


def impatient() -> None:
    if "aiostage.exits" in sys.modules:
        sys.modules["aiostage.exits"].PATIENCE = 0.3


# -- the scenes --


@scene
def daemon_threads_hold_every_lock() -> None:
    suspended_everywhere(Sandbox())
    manager = kept["manager"] = memory.StagingRingManager(2, 64 * KiB, device=kept["box"].device)
    assert manager.initialize()
    prepare_to_hold_all()


TRIO = """
async def main():
    await ring.open()
    slots.put(await ring.allocate(16))
    await trio.sleep_forever()
"""


@scene
def a_trio_loop_in_a_daemon_thread_has_its_lock() -> None:
    import trio

    slots: queue.SimpleQueue[Any] = queue.SimpleQueue()
    names: dict[str, Any] = {"ring": Sandbox().ring(), "slots": slots, "trio": trio}
    exec(TRIO, names)  # no function of this module, which would keep it from being taken down
    threading.Thread(target=trio.run, args=(names["main"],), daemon=True).start()
    kept["slot"] = slots.get(timeout=30)
    prepare_to_hold_all()


@scene
def a_submit_never_ends() -> None:
    box = Sandbox()
    block_submits(box.device)
    until_a_submit_is_blocked(box)
    impatient()


@scene
def destructors_use_everything_while_a_submit_never_ends() -> str:
    box = Sandbox()
    other = box.other_device
    manager = memory.StagingRingManager(2, 64 * KiB, device=other)
    assert manager.initialize()
    stuck = memory.StagingRingManager(2, 64 * KiB, device=other)
    assert stuck.initialize()
    pause = ctypes.CDLL(None).pause
    pause.argtypes = [ctypes.py_object]
    for _ in range(2):  # its loop will not turn any more, and a call that waits for it has the manager's lock
        threading.Thread(target=stuck.call, args=(pause,), daemon=True).start()
        time.sleep(0.3)
    memory.init_memory_system(device=other, ring_count=1, buffer_size=64 * KiB, memory_pools=True)
    encoder = other.create_command_encoder()
    buffer, texture = box.buffer(), box.texture()
    block_submits(box.device)
    until_a_submit_is_blocked(box)
    ring = kept["coroutines"][2].cr_frame.f_locals["self"]

    def use() -> None:
        buffer.destroy()
        texture.destroy()
        for act in (
            lambda: other.queue.submit([encoder.finish()]),
            manager.stats,
            stuck.stats,
            stuck.close,
            lambda: memory.StagingRingManager(2, 64 * KiB, device=other).initialize(),
            memory.close_memory_system,
            ring._tracker.insert,
            lambda: ring._engine.carrier.poll(int),
            lambda: ring._budget.release(0),
            ring._tracker.native.attach,
            ring._tracker.native.detach,
            lambda: connect(box.device),
            lambda: event("taken_down"),
            box.device.destroy,
        ):
            quietly(act)
        os.write(1, b"done\n")

    kept["end"] = AtTheEnd(use)
    logging.basicConfig(level=logging.DEBUG)
    logging.getLogger("asyncio").setLevel(logging.CRITICAL)
    impatient()
    prepare_to_hold_all()
    return LATER


@scene
def a_handler_that_runs_after_the_librarys_own_closes_a_ring() -> str:
    box, loop = Sandbox(), asyncio.new_event_loop()
    ring = box.ring(2, 16 * KiB, inline_size=0)
    buffer = box.buffer(MiB)
    loop.run_until_complete(ring.open())
    uploads = [loop.create_task(ring.write_buffer(buffer, 0, bytes([n]) * MiB)) for n in range(1, 4)]
    loop.run_until_complete(asyncio.sleep(0))
    manager = memory.StagingRingManager(2, 64 * KiB, device=box.device)
    assert manager.initialize()

    async def finish() -> None:
        outcomes = await asyncio.gather(*uploads, return_exceptions=True)
        assert all(isinstance(outcome, aiostage.Fence | aiostage.StagingError | RuntimeError) for outcome in outcomes)
        if not any(isinstance(outcome, aiostage.DeviceLost) for outcome in outcomes):
            await (await ring.write_buffer(buffer, 0, bytes(MiB)))
            await ring.stats()
        await ring.aclose()

    def close() -> None:
        loop.run_until_complete(asyncio.wait_for(finish(), 30))
        loop.close()
        manager.close()
        print("done", flush=True)

    last_words.append(close)
    return LATER


@scene
def a_handler_that_runs_after_the_librarys_own_awaits_a_fence() -> str:
    box, loop = Sandbox(), asyncio.new_event_loop()

    async def insert() -> aiostage.Fence:
        return aiostage.FenceTracker(box.device).insert()

    async def finish(fence: aiostage.Fence) -> None:
        await fence.wait(30)
        print("done", flush=True)

    box.busy(20)
    fence = loop.run_until_complete(insert())
    last_words.append(lambda: (loop.run_until_complete(finish(fence)), loop.close()))
    return LATER


@scene
def a_manager_is_being_initialized_for_ever_in_a_thread() -> None:
    box = Sandbox()
    manager = kept["manager"] = memory.StagingRingManager(2, 64 * KiB, device=box.device)
    begun = threading.Event()
    connect(box.device).create_staging_buffer = lambda *args: (begun.set(), ctypes.CDLL(None).pause())  # type: ignore[method-assign]
    threading.Thread(target=lambda: quietly(manager.initialize), daemon=True).start()
    assert begun.wait(30)
    impatient()


@scene
def a_carrier_that_nobody_has_any_more_is_inside_wgpu() -> object:
    """Whose thread might log, and so wait for the interpreter, when that has gone."""
    gpu, inside = SimulatedGpu(), threading.Event()
    poll = gpu.poll

    def slow_poll() -> None:
        inside.set()
        time.sleep(0.5)
        poll()

    gpu.poll = slow_poll  # type: ignore[method-assign]

    async def use() -> None:
        tracker = aiostage.FenceTracker(gpu)
        tracker.insert()
        assert await asyncio.to_thread(inside.wait, 30)
        tracker.carrier.stop()

    asyncio.run(use())
    gc.collect()
    stopped = list(carriers._ending)
    assert stopped
    last_words.append(lambda: print("threads are left" if stopped[0].counts()["threads"] else "done", flush=True))
    return LATER


def quietly(act: Callable[[], object]) -> None:
    with contextlib.suppress(RuntimeError, aiostage.StagingError):
        act()


def main(name: str) -> None:
    warnings.simplefilter("ignore")
    if SCENES[name]() is None:
        print("done", flush=True)


if __name__ == "__main__":
    main(sys.argv[1])
