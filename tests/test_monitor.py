"""Watching a program: the socket, what comes out of it, who looks and how, and that the program does not notice."""

from __future__ import annotations

import asyncio
import contextlib
import fcntl
import json
import logging
import os
import pty
import re
import select
import signal
import socket
import stat
import struct
import subprocess
import sys
import tempfile
import termios
import threading
import time
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS
from rich.console import Console
from simulated import SimulatedGpu, until

import aiostage
from aiostage import monitoring, opened
from aiostage.holdups import WaitKind
from aiostage.memory import StagingRingManager
from aiostage.monitoring import samples, server, sockets
from aiostage.tools.monitor import app, reading
from aiostage.tools.monitor.history import History
from aiostage.tools.monitor.view import View, plain_line
from aiostage.tools.status import UsageError

ROOT = Path(__file__).parent.parent


@pytest.fixture
def folder(monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where sockets go. A short path: those of sockets have some hundred characters at most."""
    with tempfile.TemporaryDirectory(prefix="aio") as runtime:
        monkeypatch.setenv("XDG_RUNTIME_DIR", runtime)
        yield Path(runtime, "aiostage")
        monitoring.stop()


@pytest.fixture(autouse=True)
def nobody_serves_after_a_test() -> Iterator[None]:
    yield
    monitoring.stop()
    assert not [thread for thread in threading.enumerate() if thread.name == "aiostage monitor"]


class Reader:
    """Somebody who looks, by the bare socket."""

    def __init__(self, path: Path) -> None:
        self.connection = socket.socket(socket.AF_UNIX)
        self.connection.settimeout(20)
        self.connection.connect(str(path))
        self._file = self.connection.makefile("rb")

    def line(self) -> dict[str, Any] | None:
        """The next one; None: the connection is closed."""
        text = self._file.readline()
        return json.loads(text) if text else None

    def sample(self, is_so: Callable[[Any], object] = lambda rings: rings) -> list[dict[str, Any]]:
        """The rings of the next sample of which something is so."""
        end = time.monotonic() + 20
        while time.monotonic() < end:
            line = self.line()
            assert line is not None, "the connection was closed"
            if line["kind"] == "sample" and is_so(line["rings"]):
                rings: list[dict[str, Any]] = line["rings"]
                return rings
        raise AssertionError(f"no such sample came; the last was {line}")

    def close(self) -> None:
        self._file.close()
        self.connection.close()

    def __enter__(self) -> Reader:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.close()


async def look(reader: Reader, is_so: Callable[[Any], object] = lambda rings: rings) -> list[dict[str, Any]]:
    """`Reader.sample` while the loop goes on."""
    return await anyio.to_thread.run_sync(reader.sample, is_so)


def has_answered(rings: list[dict[str, Any]]) -> bool:
    return bool(rings) and all(ring["stats"] is not None for ring in rings)


# -- what is said --


async def test_a_sample_is_what_the_rings_own_statistics_are(
    simulated_ring: Any, gpu: SimulatedGpu, folder: Path
) -> None:
    gpu.free_running = True
    ring = await simulated_ring(ring_count=3, buffer_size=4096)
    for value in range(5):
        await (await ring.write_buffer(gpu.buffer(10_000), 0, bytes([value]) * 10_000))
    await until(lambda: ring.stats_nowait().bytes_in_flight == 0)
    with Reader(monitoring.serve()) as reader:
        hello = reader.line()
        assert hello is not None
        assert hello.pop("program") == monitoring.server._program()["program"] != ""
        about = {"kind": "hello", "schema": 1, "period": server.PERIOD}
        assert hello == about | {"pid": os.getpid(), "aiostage": aiostage.__version__}
        [said] = await look(reader, has_answered)
        assert said["stats"] == json.loads(json.dumps(ring.stats_nowait().as_dict()))
        assert said["stats"]["bytes_total"] == 50_000
        assert said["advice"] == [
            {
                "kind": str(one.kind),
                "message": one.message,
                "ring_count": one.ring_count,
                "buffer_size": one.buffer_size,
            }
            for one in ring.advise()
        ]
        assert said["thread"] == threading.current_thread().name
        assert 0 < said["lag"] < 10
        assert (said["error"], said["late"], said["waits"], said["holds"]) == (None, 0.0, [], [])
        assert said["host_cached"] is ring.host_cached
    assert set(said) == {
        *("ring", "device", "host_cached", "thread", "lag", "late", "error", "stats", "waits", "holds", "advice")
    }


async def test_who_waits_and_who_holds_is_told_by_name(simulated_ring: Any, folder: Path) -> None:
    ring = await simulated_ring(ring_count=1, buffer_size=1024)

    async def hold() -> None:
        slot = await ring.allocate(1024)
        await let_go.wait()
        slot.abandon()

    async def wait(size: int) -> None:
        (await ring.allocate(size)).abandon()

    let_go = anyio.Event()
    with Reader(monitoring.serve()) as reader:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(hold, name="slow producer")
            await until(lambda: ring.holds())
            tasks.start_soon(wait, 512, name="points")
            tasks.start_soon(wait, 8, name="lines")
            [said] = await look(reader, lambda rings: has_answered(rings) and rings[0]["stats"]["waiters"] == 2)
            assert [(one["task"], one["kind"], one["size"]) for one in said["waits"]] == [
                ("points", "place", 512),
                ("lines", "place", 8),
            ]
            assert [(one["task"], one["buffer"], one["size"]) for one in said["holds"]] == [("slow producer", 0, 1024)]
            assert said["stats"]["buffer_states"] == ["in_use"]
            assert 0 < said["waits"][1]["seconds"] <= said["waits"][0]["seconds"] <= said["holds"][0]["seconds"]
            let_go.set()
        [said] = await look(reader, lambda rings: has_answered(rings) and not rings[0]["stats"]["waiters"])
        assert said["waits"] == said["holds"] == []
    assert ring.waits() == ring.holds() == ()


async def test_whole_uploads_that_wait_are_told_by_name(simulated_ring: Any, gpu: SimulatedGpu, folder: Path) -> None:
    ring = await simulated_ring(ring_count=1, buffer_size=1024, inline_size=16)
    buffers = [gpu.buffer(8192), gpu.buffer(8192)]

    async def upload(buffer: Any) -> None:
        await (await ring.write_buffer(buffer, 0, bytes(range(256)) * 32))

    assert ring.waits() == ()
    with Reader(monitoring.serve()) as reader:
        async with anyio.create_task_group() as tasks:
            for name, buffer in zip(("terrain", "sky"), buffers, strict=True):
                tasks.start_soon(upload, buffer, name=name)
            [said] = await look(reader, lambda rings: has_answered(rings) and len(rings[0]["waits"]) == 2)
            assert {(one["task"], one["kind"], one["size"]) for one in said["waits"]} == {
                ("terrain", "upload", None),
                ("sky", "upload", None),
            }
            assert {wait.kind for wait in ring.waits()} == {WaitKind.UPLOAD}
            assert len(ring.waits(limit=1)) == 1
            gpu.may_submit.set()
            gpu.free_running = True
    assert all(bytes(buffer.bytes) == bytes(range(256)) * 32 for buffer in buffers)


async def test_an_upload_that_has_no_buffer_at_all_is_told_by_its_name_alone(
    simulated_ring: Any, gpu: SimulatedGpu
) -> None:
    gpu.free_running = True
    ring = await simulated_ring(ring_count=1, buffer_size=1024, inline_size=16)
    slot = await ring.allocate(8)
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(ring.write_buffer, gpu.buffer(4096), 0, bytes(4096), name="terrain")
        await until(lambda: ring.waits())
        assert [(wait.task, wait.kind) for wait in ring.waits()] == [("terrain", WaitKind.UPLOAD)]  # it stands in line
        assert [hold.size for hold in ring.holds()] == [8]
        slot.abandon()


@pytest.mark.parametrize("loop", LOOPS)
def test_it_works_on_every_loop(loop: str, folder: Path) -> None:
    async def scenario() -> None:
        gpu = SimulatedGpu(free_running=True)
        async with aiostage.StagingRing(gpu, 2, 1024) as ring:
            await (await ring.write_buffer(gpu.buffer(64), 0, bytes(64)))
            with Reader(monitoring.serve()) as reader:
                [said] = await look(reader, has_answered)
                assert said["stats"]["bytes_total"] == 64
                assert said["error"] is None

    anyio.run(scenario, **LOOPS[loop])


async def test_rings_come_and_go_while_somebody_looks(simulated_ring: Any, folder: Path) -> None:
    first = await simulated_ring()
    with Reader(monitoring.serve()) as reader:
        [before] = await look(reader, has_answered)
        second = await simulated_ring(ring_count=2)
        both = await look(reader, lambda rings: has_answered(rings) and len(rings) == 2)
        assert [ring["stats"]["ring_count"] for ring in both] == [3, 2]
        assert both[0]["ring"] == before["ring"] < both[1]["ring"]
        await first.aclose()
        [last] = await look(reader, lambda rings: len(rings) == 1)
        assert last["ring"] == both[1]["ring"]
        await second.aclose()
        assert await look(reader, lambda rings: not rings) == []


@pytest.mark.blocks_loop("a manager's calls block")
async def test_rings_of_several_threads_are_asked_on_their_own_loops(simulated_ring: Any, folder: Path) -> None:
    await simulated_ring()
    with StagingRingManager(2, 4096, device=SimulatedGpu(free_running=True)), Reader(monitoring.serve()) as reader:
        rings = await look(reader, lambda rings: has_answered(rings) and len(rings) == 2)
        assert [ring["thread"] for ring in rings] == [threading.current_thread().name, "aiostage memory"]


@pytest.mark.blocks_loop("it is what the test does")
async def test_a_loop_that_is_held_is_told_of_and_not_asked_twice(simulated_ring: Any, folder: Path) -> None:
    await simulated_ring()
    with Reader(monitoring.serve()) as reader:
        await look(reader, has_answered)
        held = asyncio.get_running_loop().run_in_executor(None, reader.sample, lambda rings: rings[0]["late"] > 0.5)
        time.sleep(1.0)
        [said] = await held
        assert said["stats"] is None
        assert said["thread"] is None
        [said] = await look(reader, has_answered)
        assert said["lag"] > 0.5
        assert said["late"] == 0
        [said] = await look(
            reader, has_answered
        )  # a loop that was asked again and again would answer as late once more
        assert said["lag"] < 0.5


async def test_an_answer_that_is_late_is_told_with_its_lag(
    simulated_ring: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Between the sample that misses it and the next question."""
    posted: list[Callable[[], object]] = []
    await simulated_ring()
    [one] = opened.rings()
    monkeypatch.setattr(one.port, "post", lambda callback: posted.append(callback) or True)
    sampler = samples.Sampler()
    sampler.ask()
    time.sleep(0.05)
    assert sampler.sample()["rings"][0]["late"] > 0.05
    posted.pop()()
    sampler.ask()
    assert not posted
    [said] = sampler.sample()["rings"]
    assert said["lag"] > 0.05
    assert said["late"] == 0.0
    sampler.ask()
    posted.pop()()
    sampler.begin()  # nobody looked for a while, and that answer is old
    assert len(posted) == 1


@pytest.mark.blocks_loop("it asks for a device")
async def test_a_lost_device_is_told_of(own_device: wgpu.GPUDevice, folder: Path) -> None:
    buffer = own_device.create_buffer(size=64, usage=wgpu.BufferUsage.COPY_DST)
    async with aiostage.StagingRing(own_device, 2, 4096) as ring:
        with Reader(monitoring.serve()) as reader:
            [said] = await look(reader, has_answered)
            assert "llvmpipe" in said["device"]
            own_device.destroy()
            with pytest.raises(aiostage.StagingError):
                await (await ring.write_buffer(buffer, 0, bytes(64)))
            with pytest.raises(aiostage.DeviceLost):
                await ring.fence()
            [said] = await look(reader, lambda rings: rings and rings[0]["error"])
            assert said["error"].startswith("DeviceLost: ")
            assert said["advice"] == []


async def test_a_ring_whose_loop_has_ended_is_told_of(folder: Path) -> None:
    async def leave() -> aiostage.StagingRing:
        ring = aiostage.StagingRing(SimulatedGpu(free_running=True), 1, 1024)
        await ring.open()
        return ring

    ring = await anyio.to_thread.run_sync(asyncio.run, leave())
    with Reader(monitoring.serve()) as reader:
        [said] = await look(reader, lambda rings: rings and rings[0]["error"])
        assert said["error"] == "its event loop has ended"
    opened.remove(ring)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ResourceWarning)
        del ring


# -- who may look --


def test_only_its_user_reaches_the_socket(folder: Path) -> None:
    path = monitoring.serve()
    assert path == folder / f"{os.getpid()}.sock"
    assert monitoring.serve() == path
    assert stat.S_IMODE(folder.stat().st_mode) == 0o700
    assert stat.S_ISSOCK(path.stat().st_mode)
    assert stat.S_IMODE(path.stat().st_mode) == 0o600
    assert path.stat().st_uid == folder.stat().st_uid == os.geteuid()
    monitoring.stop()
    assert list(folder.iterdir()) == []


def make_link(folder: Path) -> None:
    folder.with_name("elsewhere").mkdir(0o700)
    folder.symlink_to(folder.with_name("elsewhere"))


def make_open(folder: Path) -> None:
    folder.mkdir()
    folder.chmod(0o750)


def make_others(folder: Path) -> None:
    folder.mkdir(0o700)
    os.chown(folder, 12345, 12345)


def make_parent_open(folder: Path) -> None:
    folder.parent.chmod(0o777)  # anybody may put another folder in the place of ours


def make_file(folder: Path) -> None:
    folder.write_text("")


@pytest.mark.parametrize("spoil", [make_link, make_open, make_others, make_parent_open, make_file])
def test_a_folder_that_others_may_have_made_is_not_used(
    spoil: Callable[[Path], None], folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if spoil is make_others and os.geteuid() != 0:
        pytest.skip("only root can give a folder to somebody else")
    spoil(folder)
    with tempfile.TemporaryDirectory(prefix="aio") as other:
        monkeypatch.setattr(tempfile, "tempdir", other)
        path = monitoring.serve()
        assert path.parent == Path(other, f"aiostage-{os.geteuid()}")
        assert stat.S_IMODE(path.parent.stat().st_mode) == 0o700
        assert sockets.find() == {os.getpid(): path}
        monitoring.stop()
        path.parent.rmdir()
        spoil_at = path.parent
        if spoil in (make_link, make_open, make_file):
            spoil(spoil_at)
            with pytest.raises(aiostage.CannotServe, match="is not a folder that this user alone can enter"):
                monitoring.serve()
            assert sockets.find() == {}


@pytest.mark.usefixtures("folder")
def test_a_system_without_unix_sockets_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(socket, "AF_UNIX")
    with pytest.raises(aiostage.CannotServe, match="takes Unix sockets"):
        monitoring.serve()
    with pytest.raises(UsageError, match="takes Unix sockets"):
        app.run(None, True, False, None)


def test_a_path_that_is_too_long_for_a_socket_says_so(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = folder.parent / ("x" * 100)
    long.mkdir()
    monkeypatch.setenv("XDG_RUNTIME_DIR", str(long))
    with pytest.raises(aiostage.CannotServe, match=r"no socket can be made at .*too long"):
        monitoring.serve()


def test_what_the_dead_left_behind_is_recognised(folder: Path) -> None:
    monitoring.serve()
    for name in ("999999.sock", f"{os.getpid()}.sock.old"):
        with socket.socket(socket.AF_UNIX) as dead:
            dead.bind(str(folder / name))
    assert list(sockets.find()) == [os.getpid()]
    assert not (folder / "999999.sock").exists()
    monitoring.stop()
    with socket.socket(socket.AF_UNIX) as dead:  # of an earlier process with our number
        dead.bind(str(folder / f"{os.getpid()}.sock"))
    with Reader(monitoring.serve()) as reader:
        assert reader.line() is not None


def test_a_socket_that_answers_is_never_taken_away(folder: Path) -> None:
    folder.mkdir(0o700)
    with socket.socket(socket.AF_UNIX) as other:  # as in another container, with our number
        other.bind(str(folder / f"{os.getpid()}.sock"))
        other.listen()
        with pytest.raises(aiostage.CannotServe, match="is another program's"):
            monitoring.serve()
        assert sockets.answers(folder / f"{os.getpid()}.sock")


@pytest.mark.usefixtures("folder")
async def test_a_ring_opens_where_nobody_can_be_served_with_one_warning(
    simulated_ring: Any, folder: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    make_open(folder)
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("AIOSTAGE_MONITOR", "1")
    monkeypatch.setattr(monitoring, "_gave_up", False)
    folder.chmod(0o777)
    for _ in range(2):
        assert not (await simulated_ring()).is_closed
    [record] = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert "AIOSTAGE_MONITOR is set, but nobody can look" in record.getMessage()
    assert record.event == "not_monitored"  # type: ignore[attr-defined]


@pytest.mark.parametrize("value", ["", "0", None])
async def test_without_the_variable_nothing_is_served(
    value: str | None, simulated_ring: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if value is None:
        monkeypatch.delenv("AIOSTAGE_MONITOR", raising=False)
    else:
        monkeypatch.setenv("AIOSTAGE_MONITOR", value)
    await simulated_ring()
    assert not folder.exists()
    assert "aiostage monitor" not in {thread.name for thread in threading.enumerate()}


async def test_with_the_variable_the_first_ring_serves(
    simulated_ring: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AIOSTAGE_MONITOR", "1")
    assert not folder.exists()
    await simulated_ring()
    assert list(sockets.find()) == [os.getpid()]


# -- who looks disturbs nobody --


async def test_a_loop_is_asked_nothing_while_nobody_looks(
    simulated_ring: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PERIOD", 0.01)
    asked, ask = [], samples._Watched.ask
    turns, select_ = [], server.selectors.PollSelector.select
    monkeypatch.setattr(
        server.selectors.PollSelector, "select", lambda one, timeout: turns.append(timeout) or select_(one, timeout)
    )
    monkeypatch.setattr(samples._Watched, "ask", lambda watched: asked.append(watched) or ask(watched))
    await simulated_ring()
    path = monitoring.serve()
    await anyio.sleep(0.1)
    assert asked == []
    assert turns == [None]  # its thread sleeps until somebody comes
    with Reader(path) as reader:
        await look(reader, has_answered)
    assert asked
    await until(lambda: monitoring._server is not None and not monitoring._server._clients)
    count = len(asked)
    await anyio.sleep(0.1)
    assert len(asked) == count
    assert turns[-1] is None


async def test_who_never_reads_is_dropped_and_others_read_on(
    simulated_ring: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "PERIOD", 0.001)
    monkeypatch.setattr(server, "BEHIND", 10_000)
    await simulated_ring()
    path = monitoring.serve()
    with Reader(path) as idle, Reader(path) as busy:
        await until(lambda: monitoring._server is not None and len(monitoring._server._clients) == 2)
        clients = monitoring._server._clients  # type: ignore[union-attr]
        pending = []
        with anyio.fail_after(30):
            while len(clients) == 2:
                await look(busy)
                pending += [len(client._pending) for client in list(clients.values())]
        assert 0 < max(pending) <= 10_000
        for _ in range(10):
            await look(busy, has_answered)
        while idle.line() is not None:  # what the system kept, and then the end
            pass


async def test_twenty_look_and_one_too_many_is_told(
    simulated_ring: Any, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(server, "MOST", 20)
    await simulated_ring()
    path = monitoring.serve()
    with contextlib.ExitStack() as stack:
        readers = [stack.enter_context(Reader(path)) for _ in range(20)]
        for reader in readers:
            await look(reader, has_answered)
        with Reader(path) as late:
            assert late.line() == {"kind": "end", "reason": "20 are looking already"}
            assert late.line() is None
        with pytest.raises(UsageError, match="20 are looking already"):
            reading.Program(path)
        for reader in readers:
            await look(reader, has_answered)


@pytest.mark.usefixtures("folder")
async def test_who_says_something_is_dropped(simulated_ring: Any) -> None:
    await simulated_ring()
    with Reader(monitoring.serve()) as talker:
        talker.connection.sendall(b"GET / HTTP/1.1\r\n\r\n")
        with contextlib.suppress(ConnectionResetError):
            while talker.line() is not None:
                pass


@pytest.mark.blocks_loop("it reads back")
async def test_uploads_arrive_while_others_come_and_go_a_hundred_times(
    device: wgpu.GPUDevice, target: Callable[[int], wgpu.GPUBuffer], folder: Path
) -> None:
    path, buffer, random = monitoring.serve(), target(200_000), np.random.default_rng(0)
    visits = 0

    def visit() -> None:
        nonlocal visits
        for number in range(100):
            with Reader(path) as reader:
                for _ in range(number % 3):  # some do not even read
                    reader.line()
                if number % 2:  # and some leave what is on its way unread, which resets the connection
                    reader.connection.shutdown(socket.SHUT_RD)
            visits += 1

    async with aiostage.StagingRing(device, 3, 65536, inline_size=4096) as ring:
        visiting = asyncio.get_running_loop().run_in_executor(None, visit)
        uploads = 0
        while not visiting.done() or uploads < 20:
            data = random.bytes(200_000)
            await (await ring.write_buffer(buffer, 0, data))
            assert device.queue.read_buffer(buffer) == data
            uploads += 1
        await visiting
        assert visits == 100
        assert ring.stats_nowait().bytes_total == 200_000 * uploads
    with Reader(path) as reader:
        assert await look(reader, lambda rings: not rings) == []


async def test_a_forked_child_serves_nothing_of_its_parents(simulated_ring: Any, folder: Path) -> None:
    await simulated_ring()
    path = monitoring.serve()
    with Reader(path) as reader:
        await look(reader, has_answered)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # newer Pythons warn of threads
            child = os.fork()
        if child == 0:
            is_bare = monitoring._server is None and opened.rings() == []
            monitoring.stop()
            time.sleep(3600 if is_bare else 0)
            os._exit(1)
        try:
            await look(reader, has_answered)
            assert path.exists()
            monitoring.stop()  # with its copies of the descriptors open, the reader would hear nothing of it
            line = await anyio.to_thread.run_sync(read_to_the_end, reader)
            assert line == {"kind": "end", "reason": "the program has stopped serving"}
            assert os.waitpid(child, os.WNOHANG) == (0, 0)  # noqa: ASYNC222 - does not block
        finally:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)  # noqa: ASYNC222 - it was killed


def read_to_the_end(reader: Reader) -> Any:
    last = None
    while (line := reader.line()) is not None:
        last = line
    return last


# -- programs and the command --


class Program:
    """tests/monitored.py, in a process of its own."""

    def __init__(self, folder: Path, *arguments: str, served: str = "1") -> None:
        environment = os.environ | {"AIOSTAGE_MONITOR": served, "PYTHONPATH": str(ROOT), "PYTHONASYNCIODEBUG": ""}
        self._process = subprocess.Popen(
            [sys.executable, str(ROOT / "tests" / "monitored.py"), *(arguments or ("asyncio",))],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            env=environment | {"XDG_RUNTIME_DIR": str(folder.parent)},
            text=True,
        )
        self.pid = self._process.pid
        self.path = folder / f"{self.pid}.sock"
        assert self._process.stdout is not None
        assert self._process.stdout.readline() == "open\n", self._process.communicate()[1]

    def end(self) -> dict[str, Any]:
        """What came of it."""
        said, complaints = self._process.communicate(timeout=60)
        assert self._process.returncode == 0, complaints
        found: dict[str, Any] = json.loads(said)
        assert found["wrong"] == 0
        assert found["uploads"] > 0
        return found

    def kill(self) -> None:
        self._process.kill()
        self._process.communicate()

    def __enter__(self) -> Program:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.kill()


COMMAND = [sys.executable, "-m", "aiostage.tools.cli", "monitor"]


def command(folder: Path, *arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    full = os.environ | {"XDG_RUNTIME_DIR": str(folder.parent), "COLUMNS": "90"} | environment
    return subprocess.run(
        [*COMMAND, *map(str, arguments)], capture_output=True, text=True, timeout=60, cwd=ROOT, env=full, check=False
    )


class Terminal:
    """The command in a terminal of so many columns."""

    def __init__(self, folder: Path, columns: int, *arguments: object, **environment: str) -> None:
        full = os.environ | {"XDG_RUNTIME_DIR": str(folder.parent), "TERM": "xterm-256color"} | environment
        for name in ("COLUMNS", "LINES", *(() if "NO_COLOR" in environment else ("NO_COLOR",))):
            full.pop(name, None)
        self._screen, inner = pty.openpty()
        fcntl.ioctl(inner, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
        self.process = subprocess.Popen(
            [*COMMAND, *map(str, arguments)], stdin=inner, stdout=inner, stderr=inner, cwd=ROOT, env=full
        )
        os.close(inner)
        self.shown = ""

    def until(self, is_so: Callable[[str], object]) -> str:
        """Read until something is so of all that was shown."""
        end = time.monotonic() + 60
        while not is_so(self.shown) and time.monotonic() < end:
            if select.select([self._screen], [], [], 0.1)[0]:
                try:
                    more = os.read(self._screen, 1 << 16)
                except OSError:  # nobody has the other end
                    break
                self.shown += more.decode(errors="ignore")
        assert is_so(self.shown), self.shown
        return self.shown

    def end(self, by: int | None = None) -> int:
        if by is not None:
            self.process.send_signal(by)
        with contextlib.suppress(OSError):  # when nobody has the other end any more
            while select.select([self._screen], [], [], 60)[0] and (more := os.read(self._screen, 1 << 16)):
                self.shown += more.decode(errors="ignore")
        return self.process.wait(60)

    def __enter__(self) -> Terminal:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self.process.kill()
        self.process.wait()
        os.close(self._screen)


def bare(text: str) -> str:
    """Without what steers the terminal."""
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text)


@pytest.mark.parametrize("loop", LOOPS)
def test_a_program_is_watched_by_the_variable_alone_and_its_socket_ends_with_it(loop: str, folder: Path) -> None:
    with Program(folder, loop) as program:
        with Reader(program.path) as reader:
            hello = reader.line()
            assert hello is not None
            assert (hello["pid"], hello["program"]) == (program.pid, "monitored.py")
            [first] = reader.sample(has_answered)
            [later] = reader.sample(
                lambda rings: has_answered(rings) and rings[0]["stats"]["bytes_total"] > first["stats"]["bytes_total"]
            )
            found = program.end()
            assert first["stats"]["bytes_total"] < later["stats"]["bytes_total"] <= found["bytes_total"]
            assert read_to_the_end(reader) == {"kind": "end", "reason": "the program has ended"}
        assert not program.path.exists()
        assert "aiostage monitor" in found["threads"]


def test_a_program_without_the_variable_has_no_thread_no_socket_and_no_module_for_it(folder: Path) -> None:
    with Program(folder, served="") as program:
        assert not folder.exists()
        found = program.end()
    assert "aiostage monitor" not in found["threads"]
    assert found["modules"] == []
    assert not folder.exists()


@pytest.mark.parametrize(("columns", "by", "status"), [(40, signal.SIGINT, 130), (80, signal.SIGTERM, 143)])
def test_the_live_view_shows_everything_and_is_left_with_the_terminal_as_it_was(
    columns: int, by: int, status: int, folder: Path
) -> None:
    with Program(folder) as program, Terminal(folder, columns) as terminal:
        shown = bare(terminal.until(lambda shown: bare(shown).count("fences") > 4))
        assert "\x1b[3" in terminal.shown  # there are colours
        assert max(map(len, re.split(r"[\r\n]+", shown))) <= columns
        assert f"monitored.py · pid {program.pid}" in shown
        for row in ("buf 0", "buf 1", "buf 2", "waits", "rate", "stalls", "fences", "lag", "budget"):
            assert re.search(rf"^\s*{row} ", shown, re.MULTILINE), row
        lanes = re.findall(r"buf 0   ([▁▄▆╳]+)", shown)
        assert len(lanes[-1]) > len(lanes[0])  # a column more for each sample
        assert terminal.end(by=by) == status
        assert terminal.shown.count("\x1b[?25h") == terminal.shown.count("\x1b[?25l") == 1  # the cursor is back
        assert "Traceback" not in terminal.shown
        program.end()


def test_without_colours_there_are_none(folder: Path) -> None:
    with Program(folder), Terminal(folder, 80, NO_COLOR="1") as terminal:
        terminal.until(lambda shown: bare(shown).count("fences") > 1)
        terminal.end(by=signal.SIGINT)
        assert not re.search(r"\x1b\[(?:[0-9;]*;)?[34][0-9](?:;[0-9;]*)?m", terminal.shown)


def test_killing_who_looks_leaves_the_program_alone(folder: Path) -> None:
    with Program(folder, "asyncio", "real") as program:  # which SIGPIPE would end
        for _ in range(3):
            with Terminal(folder, 80) as terminal:
                terminal.until(lambda shown: "fences" in shown)
                assert terminal.end(by=signal.SIGKILL) == -signal.SIGKILL
        with Reader(program.path) as reader:
            reader.sample(has_answered)
        program.end()


def test_the_end_of_the_program_is_told_and_no_error(folder: Path) -> None:
    with Program(folder) as program, Terminal(folder, 80) as terminal:
        terminal.until(lambda shown: "fences" in shown)
        program.end()
        assert terminal.end() == 0
        assert bare(terminal.shown).rstrip().endswith("the program has ended")


def test_a_program_that_is_killed_has_ended_too_and_leaves_no_socket_for_long(folder: Path) -> None:
    with Program(folder) as program, Terminal(folder, 80) as terminal:
        terminal.until(lambda shown: "fences" in shown)
        program.kill()
        assert terminal.end() == 0
        assert bare(terminal.shown).rstrip().endswith("the program has ended")
        assert not program.path.exists()


def test_a_program_that_is_stopped_is_silent(folder: Path) -> None:
    with Program(folder) as program, Terminal(folder, 80) as terminal:
        terminal.until(lambda shown: "fences" in shown)
        os.kill(program.pid, signal.SIGSTOP)
        terminal.until(lambda shown: "silent for 2 s" in bare(shown))
        os.kill(program.pid, signal.SIGCONT)
        terminal.end(by=signal.SIGINT)
        program.end()


def test_once_as_json_and_where_there_is_no_terminal(folder: Path) -> None:
    with Program(folder) as program:
        once = command(folder, "--once")
        assert once.returncode == 0, once.stderr
        assert re.search(r"^buf 2   [▁▄▆╳]+$", once.stdout, re.MULTILINE)
        assert "\x1b" not in once.stdout
        one = command(folder, program.pid, "--once", "--json")
        assert one.returncode == 0, one.stderr
        [line] = map(json.loads, one.stdout.splitlines())
        assert line["kind"] == "sample"
        narrow = command(folder, "--once", COLUMNS="40", PYTHONIOENCODING="ascii")
        assert narrow.stdout.isascii()
        assert max(map(len, narrow.stdout.splitlines())) <= 40

        both = [
            subprocess.Popen(
                [*COMMAND, *options],
                stdout=subprocess.PIPE,
                text=True,
                cwd=ROOT,
                env=os.environ | {"PYTHONUNBUFFERED": ""},
            )
            for options in (["--json", "--interval", "0.5"], ["--interval", "0.2"])
        ]
        time.sleep(5)
        program.end()
        json_lines, text = (process.communicate(timeout=30)[0] for process in both)
        assert [process.returncode for process in both] == [0, 0]
        kinds = [json.loads(line)["kind"] for line in json_lines.splitlines()]
        assert kinds[0] == "hello"
        assert kinds[-1] == "end"
        assert set(kinds[1:-1]) == {"sample"}
        assert len(kinds) <= 14  # of some 50
        assert text.startswith(f"aiostage monitor · monitored.py · pid {program.pid}\n")
        assert re.search(r"^ring 1 [_o#]{3} [\d.]+ [MG]B/s, \d+ stalls", text, re.MULTILINE)
        assert text.endswith("the program has ended\n")


def test_without_a_number_there_has_to_be_one_program(folder: Path) -> None:
    folder.mkdir(0o700)
    none = command(folder)
    assert (none.returncode, none.stdout) == (2, "")
    assert "AIOSTAGE_MONITOR=1" in none.stderr
    with Program(folder) as first, Program(folder) as second:
        several = command(folder)
        assert several.returncode == 2
        assert several.stdout.split() == [str(first.pid), "monitored.py", str(second.pid), "monitored.py"]
        assert "which one?" in several.stderr
        chosen = command(folder, second.pid, "--once")
        assert f"pid {second.pid}" in chosen.stdout
        missing = command(folder, 1, "--once")
        assert missing.returncode == 2
        assert "number 1 can be watched" in missing.stderr


@pytest.mark.usefixtures("folder")
@pytest.mark.parametrize("interval", [0.0, -1.0, float("nan"), float("inf")])
def test_an_interval_is_a_time(interval: float) -> None:
    with pytest.raises(UsageError, match="interval"):
        app.run(None, True, False, interval)


def test_a_program_of_another_schema_is_refused(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(server, "SCHEMA", 2)
    with pytest.raises(UsageError, match="speaks schema 2, and this is 1"):
        reading.Program(monitoring.serve())


@pytest.mark.parametrize("once", [False, True])
def test_a_name_and_a_last_word_steer_no_terminal(
    once: bool, folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(server, "_program", lambda: {"pid": os.getpid(), "program": "evil\x1b[2J", "aiostage": "0"})
    program = reading.Program(monitoring.serve())
    ending = threading.Timer(0.5, monitoring.stop)
    ending.start()
    app._draw_once(program) if once else print(app._show(program, None))
    ending.join()
    program.close()
    shown = capsys.readouterr().out
    assert r"evil\x1b[2J" in shown
    assert "\x1b" not in shown


def test_an_end_and_a_list_steer_no_terminal(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    line = reading.Line("", {"kind": "end", "reason": "evil\x1b[2J"})
    program: Any = SimpleNamespace(lines=lambda pause: iter([line]), pid=1)
    watch = app._Watch(program, 1.0)
    assert list(watch) == []
    assert watch.ended == r"evil\x1b[2J"
    monkeypatch.setattr(server, "_program", lambda: {"pid": 1, "program": "evil\x1b[2J", "aiostage": "0"})
    assert reading._name_at(monitoring.serve()) == r"evil\x1b[2J"


# -- the picture --


def said(**changes: Any) -> dict[str, Any]:
    stats = dict(ring_count=2, buffer_size=1 << 20, buffer_states=["available", "fenced"], waiters=0, bytes_total=0)
    stats |= dict(buffer_stalls=0, allocations_total=10, stall_seconds=0.0, pending_fences=0)
    stats |= dict(fence_latency_p50=0.001, fence_latency_p99=0.02, budget_used=1 << 20, budget_limit=1 << 22)
    ring = dict(ring=1, device="GPU", host_cached=True, thread="MainThread", lag=0.0001, late=0.0, error=None)
    ring |= dict(waits=[], holds=[], advice=[])
    return ring | {"stats": stats | changes.pop("stats", {})} | changes


def drawn(*rings: list[dict[str, Any]], width: int = 100, height: int | None = None) -> str:
    history = History()
    for number, some in enumerate(rings):
        history.add({"kind": "sample", "time": number * 0.1, "rings": some})
    console = Console(width=width, record=True, file=open(os.devnull, "w"), force_terminal=True)  # noqa: SIM115
    console.print(View(console, "test.py", 1).draw(history, height=height))
    console.file.close()
    return console.export_text()


def test_lanes_rates_and_stalls_are_those_of_the_samples() -> None:
    states = [["available", "fenced"], ["in_use", "fenced"], ["fenced", "available"]]
    picture = drawn(
        *[
            [said(stats={"buffer_states": each, "bytes_total": 10**9 * at, "buffer_stalls": 2 * at, "waiters": at})]
            for at, each in enumerate(states)
        ]
    )
    lines = picture.splitlines()
    assert "buf 0   ▁▄▆" in lines
    assert "buf 1   ▆▆▁" in lines
    assert "waits    12" in lines
    assert "rate    ▁██" in lines
    assert "10.00 GB/s now, 10.00 GB/s at most" in picture
    assert "4 of 10 allocations, 0.00 s; 20.0 a second" in picture
    assert "p50 1.00 ms, p99 20 ms" in picture
    assert "budget  ▆▆▁" in picture
    assert "1 MiB of 4 MiB, 25%" in picture


def test_names_advice_errors_and_held_loops_are_shown_and_steer_nothing() -> None:
    wait = {"task": "evil\x1b[2Jtask", "kind": "place", "size": 1024, "seconds": 1.5}
    hold = {"task": "slow", "buffer": 1, "size": 4096, "seconds": 0.5}
    advice = {"kind": "more buffers", "message": "because", "ring_count": 6, "buffer_size": 1 << 20}
    picture = drawn([said(waits=[wait], holds=[hold], advice=[advice], stats={"waiters": 7})])
    assert "evil?[2Jtask (1 KiB, 1.5 s) and 6 more" in picture
    assert "slow (buf 1, 4 KiB, 500 ms)" in picture
    assert "more buffers, 6 × 1 MiB: because" in picture
    held = drawn([said()], [said(stats={}) | {"stats": None, "late": 2.0, "lag": None}])
    assert "held for 2.0 s" in held
    assert "buf 0   ▁╳" in held
    assert "has not answered for 3.0 s" in drawn([said() | {"stats": None, "late": 3.0}])
    assert "DeviceLost: gone" in drawn([said(error="DeviceLost: gone")])
    assert "no ring is open" in drawn([])


@pytest.mark.parametrize("width", [30, 40, 80, 200])
def test_it_is_as_wide_as_the_screen(width: int) -> None:
    wait = {"task": "a task with a long name" * 3, "kind": "upload", "size": None, "seconds": 1.5}
    advice = {"kind": "gpu bound", "message": "many words " * 20, "ring_count": 6, "buffer_size": 1 << 20}
    rings = [[said(waits=[wait] * 8, advice=[advice], stats={"ring_count": 30, "buffer_states": ["in_use"] * 30})]]
    lines = drawn(*rings * 300, width=width).splitlines()
    assert max(map(len, lines)) <= width
    assert f"buf 0   {'▄' * (width - 8)}" in lines
    assert any("and 6 buffers more" in line for line in lines)


def test_where_the_screen_is_low_the_later_rings_get_a_line_each() -> None:
    rings = [said(ring=number) for number in (1, 2, 3)]
    low, high = (drawn(rings, rings, height=height).splitlines() for height in (24, 60))
    assert len(low) <= 24
    assert [line for line in low if line.startswith("ring")] == [
        "ring 1 · 2 × 1 MiB · GPU · loop in MainThread",
        *(f"ring {n} _# 0.00 MB/s, 0 stalls, 0 waiting, fences p99 20 ms, lag p99 0.10 ms" for n in (2, 3)),
    ]
    assert sum(line.startswith("buf 0") for line in high) == 3


def test_a_line_says_what_is_wrong() -> None:
    history = History()
    history.add({"time": 0.0, "rings": [said(error="RingClosed: bye"), said(ring=2) | {"stats": None, "late": 1.0}]})
    assert [plain_line(ring) for ring in history.rings.values()] == [
        "ring 1: RingClosed: bye",
        "ring 2: its loop has not answered for 1.0 s",
    ]
