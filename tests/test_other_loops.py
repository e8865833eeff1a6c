"""Loops of other people's: rendercanvas's own, and Qt's by way of qasync and QtAsyncio, in processes of their own.

`python test_other_loops.py SCENE LOOP` plays one scene, and prints what came of it.
"""

from __future__ import annotations

import asyncio
import functools
import importlib
import json
import os
import re
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import CancelledError, Future
from importlib import metadata
from pathlib import Path
from typing import Any

import anyio
import pytest
from simulated import SimulatedGpu

import aiostage
from aiostage import StagingRing, memory
from aiostage.streams import feed

NATIVE = {"raw", "qt", "offscreen", "wx"}
"""rendercanvas's loops that step coroutines themselves; what those wait for is rendercanvas's `sleep` and `Event`."""

NEEDS = {
    "qt": ("PySide6_Essentials", "'./dev test' installs it"),
    "wx": ("wxPython", "PyPI has no wheel of it for Linux; where there is one, 'pip install wxPython'"),
    "qasync": ("qasync", "'./dev test' installs it"),
    "qtasyncio": ("PySide6", "PySide6-Essentials lacks QtAsyncio; './dev test' installs all of it"),
}
"""What is to be installed for a loop. Not imported here: Qt loads OpenGL, beside which other tests need not run."""

Scene = Callable[[str], object]
SCENES: dict[str, Scene] = {}
ROOT = Path(__file__).parents[1]


def scene(function: Scene) -> Scene:
    SCENES[function.__name__] = function
    return function


def skip_without(loop: str) -> None:
    needed, reason = NEEDS.get(loop, ("rendercanvas", "'./dev test' installs it"))
    try:
        metadata.version(needed)
    except metadata.PackageNotFoundError:
        pytest.skip(f"{needed} is not installed: {reason}")
    if loop in ("qt", "qasync", "qtasyncio") and (lacks := what_qt_lacks()):
        pytest.skip(f"{lacks}; './dev test' installs what Qt needs, as root")


@functools.cache
def what_qt_lacks() -> str:
    """The library of the system that it looked for in vain, if any."""
    run = subprocess.run([sys.executable, "-c", "import PySide6.QtWidgets"], capture_output=True, text=True)
    missing = re.search(r"ImportError: (.*: cannot open shared object file.*)", run.stderr)
    return missing[1] if missing else ""


def play(name: str, loop: str) -> Any:
    """What the scene printed last."""
    skip_without(loop)
    return json.loads(run_script(Path(__file__), name, loop).splitlines()[-1])


def run_script(*command: str | Path) -> str:
    """What it printed, when it has ended well and complained of nothing."""
    paths = os.pathsep.join([str(ROOT), *sys.path])
    environment = os.environ | {"PYTHONPATH": paths, "QT_QPA_PLATFORM": "offscreen"}
    line = [sys.executable, "-X", "faulthandler", *command]
    run = subprocess.run(line, capture_output=True, text=True, timeout=90, env=environment)
    assert run.returncode == 0, run.stdout + run.stderr
    assert "Error" not in run.stderr, run.stderr
    return run.stdout


def say(result: Any) -> None:
    print(json.dumps(result), flush=True)


# -- rendercanvas's --


def run_on(name: str, function: Callable[[Any], Awaitable[object]]) -> None:
    """Run `await function(loop)` as a task of rendercanvas's loop of that name, and that loop until it has ended."""
    if name == "qt":
        importlib.import_module("PySide6.QtWidgets")
    loop = importlib.import_module(f"rendercanvas.{name}").loop
    loop._stop_when_no_canvases = False
    failures: list[BaseException] = []
    ended = threading.Event()

    async def task() -> None:
        try:
            await function(loop)
        except BaseException as error:
            failures.append(error)
        finally:
            ended.set()
            loop.stop(force=True)

    loop.add_task(task)
    while not ended.is_set():  # the offscreen one makes a few steps a time
        loop.run()
    if failures:
        raise failures[0]


async def wait_for(future: Future[Any], loop: Any) -> Any:
    """As docs/qt.md has it."""
    from rendercanvas.utils.asyncs import Event

    event = Event()
    future.add_done_callback(lambda _: loop.call_soon_threadsafe(event.set))
    await event.wait()
    return future.result()


async def write(ring: StagingRing, buffer: Any, data: bytes) -> int:
    await (await ring.write_buffer(buffer, 0, data))
    return threading.get_ident()


@scene
def ring_in_a_task(name: str) -> None:
    async def task(loop: Any) -> None:
        gpu = SimulatedGpu(free_running=True)
        buffer = gpu.buffer(4096)
        data = bytes(range(256)) * 16
        try:
            async with StagingRing(gpu, 3, 1024) as ring:
                await write(ring, buffer, data)
        except aiostage.WrongLoop as error:
            say(str(error))
        else:
            assert buffer.bytes.tobytes() == data
            say("works")

    run_on(name, task)


@scene
def started_at_a_manager(name: str) -> None:
    async def task(loop: Any) -> None:
        from rendercanvas.utils.asyncs import sleep

        ticks = 0
        ended = threading.Event()

        async def tick() -> None:
            nonlocal ticks
            while not ended.is_set():
                await sleep(0.005)
                ticks += 1

        gpu = SimulatedGpu()
        buffer = gpu.buffer(4096)
        data = bytes(range(256)) * 16
        with memory.StagingRingManager(3, 1024, device=gpu) as manager:
            loop.add_task(tick)
            future = manager.start(write, buffer, data)
            while not manager.stats()["waiters"] or ticks < 3:  # the ring is full, and this loop goes on
                await sleep(0.001)
            assert not future.done()
            gpu.free_running = True
            assert await wait_for(future, loop) != threading.get_ident()
            assert buffer.bytes.tobytes() == data
            for start, error in [
                (lambda: manager.start(write, gpu.buffer(4), data), aiostage.InvalidCopy),
                (lambda: cancelled(manager.start(_sleep)), CancelledError),
            ]:
                try:
                    await wait_for(start(), loop)
                except error:
                    continue
                raise AssertionError(f"no {error}")
        ended.set()
        say(ticks)

    run_on(name, task)


async def _sleep(ring: StagingRing) -> None:
    await anyio.sleep(3600)


def cancelled(future: Future[Any]) -> Future[Any]:
    assert future.cancel()
    return future


@pytest.mark.parametrize("loop", ["raw", "qt", "offscreen", "wx", "asyncio", "trio"])
def test_a_ring_in_a_task_of_rendercanvas_works_or_says_what_does(loop: str) -> None:
    said = play("ring_in_a_task", loop)
    if loop in NATIVE:
        assert "manager.start(function, *args)" in said
    else:
        assert said == "works"


@pytest.mark.parametrize("loop", ["raw", "qt", "offscreen", "wx", "asyncio", "trio"])
def test_what_a_manager_starts_is_awaited_on_every_loop_of_rendercanvas(loop: str) -> None:
    assert play("started_at_a_manager", loop) >= 3


# -- rendercanvas's, within a running asyncio loop --


@scene
def within_asyncio(name: str) -> None:
    """The task that waits for rendercanvas's loop is current, but it is not what opens the ring."""
    if name == "raw":  # and nothing but rendercanvas says so
        sys.modules["sniffio"] = None  # type: ignore[assignment]
        name = "offscreen"

    async def main() -> None:
        ring_in_a_task(name)

    asyncio.run(main())


@pytest.mark.parametrize("loop", ["raw", "offscreen"], ids=["without sniffio", "with sniffio"])
def test_a_task_of_rendercanvas_within_a_task_of_asyncio_raises_and_does_not_wait(loop: str) -> None:
    assert "stepped by rendercanvas" in play("within_asyncio", loop)


# -- Qt's --


def application() -> Any:
    from PySide6 import QtWidgets

    return QtWidgets.QApplication([])


def run_qt(name: str, main: Callable[[], Awaitable[object]]) -> None:
    """Run it as a task of Qt's loop."""
    app = application()
    failures: list[BaseException] = []

    async def task() -> None:
        try:
            await main()
        except BaseException as error:
            failures.append(error)
        finally:
            app.quit()

    if name == "qasync":
        import qasync

        loop = qasync.QEventLoop(app)
        asyncio.set_event_loop(loop)
        running = asyncio.ensure_future(task(), loop=loop)
        with loop:
            loop.run_forever()
        assert running.done() or failures
    else:
        from PySide6 import QtAsyncio

        QtAsyncio.run(task())
    if failures:
        raise failures[0]


@scene
def rings_on_qt(name: str) -> None:
    """Waiting, stalls, cancellation, hand-over, threads and a queue, while a timer of Qt's goes on."""

    async def main() -> None:
        from PySide6 import QtCore

        ticks = []
        timer = QtCore.QTimer()
        timer.timeout.connect(lambda: ticks.append(None))
        timer.start(2)
        gpu = SimulatedGpu()
        buffer = gpu.buffer(4096)
        async with StagingRing(gpu, 3, 1024, stall_timeout=0.1) as ring:
            upload = asyncio.ensure_future(write(ring, buffer, bytes(range(256)) * 16))
            while not ring.stats_nowait().waiters or len(ticks) < 3:
                await asyncio.sleep(0.001)
            gpu.free_running = True
            await upload
            assert buffer.bytes.tobytes() == bytes(range(256)) * 16
            slots = [await ring.allocate(1024) for _ in range(3)]
            try:
                await ring.allocate(4)
            except aiostage.StallTimeout:
                pass
            else:
                raise AssertionError("it should have stalled")
            waiting = asyncio.ensure_future(ring.allocate(1024))
            await asyncio.sleep(0.01)
            waiting.cancel()
            await asyncio.wait([waiting])
            assert waiting.cancelled()
            with anyio.move_on_after(0.01) as scope:
                await ring.allocate(1024)
            assert scope.cancelled_caught
            for slot in slots:
                slot.abandon()
            await feed(ring, range(20), lambda index: ring.write_buffer(buffer, 0, bytes(512)))
        say(len(ticks))

    run_qt(name, main)


def test_a_ring_lives_on_qasync() -> None:
    assert play("rings_on_qt", "qasync") >= 3


def test_a_task_of_qtasyncio_cannot_wait_for_a_ring_and_is_told_what_can() -> None:
    said = play("ring_on_qt", "qtasyncio")
    assert "QAsyncioTask" in said
    assert "manager.start(function, *args)" in said


@scene
def ring_on_qt(name: str) -> None:
    async def main() -> None:
        try:
            async with StagingRing(SimulatedGpu(free_running=True), 3, 1024):
                pass
        except aiostage.WrongLoop as error:
            say(str(error))

    run_qt(name, main)


@scene
def manager_on_qt(name: str) -> None:
    """Its loop is none of Qt's, though that is the policy; a task of Qt's awaits its futures."""

    async def main() -> None:
        gpu = SimulatedGpu(free_running=True)
        buffer = gpu.buffer(4096)
        with memory.StagingRingManager(3, 1024, device=gpu) as manager:
            thread = await asyncio.wrap_future(manager.start(write, buffer, bytes(range(256)) * 16))
            assert thread != threading.get_ident()
            assert buffer.bytes.tobytes() == bytes(range(256)) * 16
            future = manager.start(_sleep)
            task = asyncio.ensure_future(asyncio.wrap_future(future))
            await asyncio.sleep(0.01)
            task.cancel()
            while not future.done():
                await asyncio.sleep(0.001)
            say(future.cancelled())

    run_qt(name, main)


@pytest.mark.parametrize("loop", ["qasync", "qtasyncio"])
def test_a_task_on_qt_awaits_what_a_manager_started(loop: str) -> None:
    assert play("manager_on_qt", loop) is True


@scene
def rendercanvas_on_qt(name: str) -> None:
    """Tasks of rendercanvas's beside those of asyncio, both stepped by Qt: the latter may have rings."""

    async def main() -> None:
        from rendercanvas.qt import loop

        said: list[str] = []

        async def theirs() -> None:
            try:
                await StagingRing(SimulatedGpu(), 3, 1024).open()
            except aiostage.WrongLoop as error:
                said.append(str(error))

        loop._stop_when_no_canvases = False
        loop.add_task(theirs)
        while not said:
            await asyncio.sleep(0.001)
        if name == "qasync":
            buffer = SimulatedGpu(free_running=True).buffer(4)
            async with StagingRing(buffer.gpu, 3, 1024) as ring:
                await write(ring, buffer, b"1234")
            assert buffer.bytes.tobytes() == b"1234"
        say(said[0])

    run_qt(name, main)


@pytest.mark.parametrize("loop", ["qasync", "qtasyncio"])
def test_a_task_of_rendercanvas_beside_those_of_asyncio_raises_and_does_not_wait(loop: str) -> None:
    assert "stepped by rendercanvas" in play("rendercanvas_on_qt", loop)


@scene
def closed_loop(name: str) -> None:
    """qasync's takes callbacks after its end, and says nothing."""
    from aiostage.loop import LoopPort

    ports: list[LoopPort] = []

    async def main() -> None:
        ports.append(LoopPort())

    run_qt(name, main)
    say(ports[0].post(int))


def test_a_loop_of_qasync_that_is_closed_takes_nothing() -> None:
    assert play("closed_loop", "qasync") is False


# -- the page, and the examples --

PROGRAMS = re.findall(r"```py\n(.*?)```", (ROOT / "docs" / "other-loops.md").read_text(), re.DOTALL)
"""Those with a window; `test_docs.py` runs its other blocks."""


@pytest.mark.parametrize(("number", "loop"), [(0, "qasync"), (1, "qtasyncio"), (2, "qt")])
def test_a_program_of_the_page_runs(number: int, loop: str, tmp_path: Path) -> None:
    assert len(PROGRAMS) == 3
    skip_without(loop)
    script = tmp_path / "program.py"
    script.write_text(PROGRAMS[number])
    run_script(script)


@pytest.mark.parametrize(("example", "loop"), [("qt_qasync", "qasync"), ("qt_asyncio", "qtasyncio")])
def test_an_example_streams_while_its_slider_moves(example: str, loop: str, tmp_path: Path) -> None:
    skip_without(loop)
    picture = tmp_path / "window.png"
    printed = run_script(ROOT / "examples" / f"{example}.py", "--frames", "20", "--picture", str(picture))
    said = dict(line.split(": ") for line in printed.splitlines())
    assert int(said["pictures streamed"]) == 20
    assert int(said["turns of the slider meanwhile"]) >= 5
    assert said["the texture is the last picture"] == "True"
    assert picture.stat().st_size > 5000


if __name__ == "__main__":
    SCENES[sys.argv[1]](sys.argv[2])
