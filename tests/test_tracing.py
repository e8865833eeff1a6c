"""Traces: what is in them is what the program did, they are what Perfetto reads, and nothing that goes wrong with one
disturbs the program."""

from __future__ import annotations

import asyncio
import errno
import itertools
import json
import logging
import os
import signal
import subprocess
import sys
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import perfetto
import pytest
import wgpu
from misuse_cases import LOOPS
from perfetto import around, flows, slices, titles_of
from simulated import SimulatedGpu, until

import aiostage
from aiostage import KiB, MiB, memory, native, probe, tracing
from aiostage.data.files import FileRange

ROOT = Path(__file__).parent.parent
LARGE = 512 * KiB  # more than is copied on the loop
Target = Callable[[int], wgpu.GPUBuffer]


@pytest.fixture(autouse=True)
def nothing_is_left() -> Iterator[None]:
    yield
    assert probe.tracer is None
    assert not any(thread.name == "aiostage trace" for thread in threading.enumerate())


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "run.json"


def checked(path: Path) -> list[perfetto.Event]:
    """The events of a whole trace, which is what it should be."""
    events: list[perfetto.Event] = json.loads(path.read_text())  # strictly
    perfetto.check(events)
    assert events == tracing.load(path)
    return events


def about(events: list[perfetto.Event]) -> dict[str, Any]:
    (last,) = [event for event in events if event["name"] == "aiostage"]
    assert last is events[-1]
    found: dict[str, Any] = last["args"]
    return found


def states(events: list[perfetto.Event], track: str) -> list[str]:
    """That a buffer was in, one after another without a gap."""
    found = slices(events, track=track)
    for before, after in itertools.pairwise(found):
        end = perfetto.nanoseconds(before["ts"]) + perfetto.nanoseconds(before["dur"])
        assert end == perfetto.nanoseconds(after["ts"])
    return [event["name"] for event in found]


# -- what is in it --


async def test_each_upload_is_a_slice_of_its_task_a_copy_a_submit_and_a_fence(
    device: wgpu.GPUDevice, target: Target, path: Path
) -> None:
    uploads, data = 6, np.arange(LARGE, dtype=np.uint8)
    stats = []

    async def upload(ring: aiostage.StagingRing) -> None:
        buffer = target(LARGE)
        for _ in range(uploads):
            await (await ring.write_buffer(buffer, 0, data))

    with tracing.trace(path) as trace:
        async with aiostage.StagingRing(device, 2, MiB) as ring:
            await asyncio.create_task(upload(ring), name="a loader")
            stats.append(ring.stats_nowait())
    events = checked(path)
    assert trace.lost == about(events)["lost_events"] == 0
    assert trace.rings == 1
    found = slices(events, "upload")
    assert {event["args"]["bytes"] for event in found} == {LARGE}
    assert slices(events, track="a loader") == found
    assert len(found) == len(slices(events, "submit")) == stats[0].submits == uploads
    assert sum(event["args"]["bytes"] for event in slices(events, "copy")) == uploads * LARGE
    assert sum(event["args"]["bytes"] for event in slices(events, "submit")) == uploads * LARGE

    posted = flows(events, "upload")
    assert [around(events, start) for start, _ in posted] == found
    submits = [around(events, end) for _, end in posted]
    assert submits == slices(events, "submit", "GPU thread")
    fences = flows(events, "fence")
    assert [around(events, start) for start, _ in fences][:uploads] == submits
    done = [around(events, end) for _, end in fences]
    assert len({event["ts"] for event in done}) == len(fences) >= uploads
    assert {event["name"] for event in done[:uploads]} == {"GPU"}
    assert [event["args"]["fence"] for event in found] == [event["args"]["fence"] for event in submits]


async def test_small_uploads_are_slices_that_lead_to_their_submits_too(
    device: wgpu.GPUDevice, target: Target, path: Path
) -> None:
    """Those of one turn of the loop share one; what only Python can bring into order goes the same way."""
    usage = wgpu.TextureUsage.COPY_DST
    texture = device.create_texture(size=(256, 256, 1), format="rgba8unorm", usage=usage)
    sizes = [64, 1024, 128 * KiB]
    with tracing.trace(path):
        async with aiostage.StagingRing(device, 2, 256 * KiB) as ring:
            async with asyncio.TaskGroup() as tasks:
                for size in sizes:
                    tasks.create_task(ring.write_buffer(target(size), 0, bytes(size)), name=f"{size} bytes")
            await ring.write_texture({"texture": texture}, np.zeros((256, 256, 4), np.uint8)[::-1])
            stats = ring.stats_nowait()
    events = checked(path)
    for size in sizes:
        (found,) = slices(events, "upload", f"{size} bytes")
        assert found["args"]["bytes"] == size
    leads = flows(events, "upload")
    assert len(leads) == len(slices(events, "upload")) == 4
    submits = {around(events, end)["ts"] for _, end in leads}
    assert len(submits) == stats.submits == 2
    for start, end in leads:
        upload, submit = around(events, start), around(events, end)
        assert submit["name"] == "submit"
        last, count = submit["args"]["fence"], submit["args"]["fences"]
        assert last - count < upload["args"]["fence"] <= last


async def test_stalls_are_told_by_task_as_often_as_the_ring_counts_them(
    device: wgpu.GPUDevice, target: Target, path: Path
) -> None:
    async def write(ring: aiostage.StagingRing, size: int) -> None:
        buffer, data = target(size), bytes(size)
        for _ in range(8):
            await ring.write_buffer(buffer, 0, data)

    async def fill(ring: aiostage.StagingRing) -> None:
        buffer = target(4096)
        for _ in range(20):
            with await ring.allocate(4096) as slot:
                slot.copy_to_buffer(buffer)
            await ring.submit()

    with tracing.trace(path):
        async with aiostage.StagingRing(device, 1, LARGE, threads=2) as ring:
            async with asyncio.TaskGroup() as tasks:
                for number in range(3):
                    tasks.create_task(write(ring, LARGE), name=f"whole {number}")
                    tasks.create_task(write(ring, 128 * KiB), name=f"small {number}")
                tasks.create_task(fill(ring), name="slots")
            stats = ring.stats_nowait()
    events = checked(path)
    found = slices(events, "stall")
    assert len(found) == stats.buffer_stalls > 3
    assert sum(event["dur"] for event in found) * 1e-6 == pytest.approx(stats.stall_seconds, rel=0.05, abs=0.005)
    titles = titles_of(events)
    stalled = {titles[event["pid"], event["tid"]] for event in found}
    assert stalled <= {*(f"{kind} {number}" for kind in ("whole", "small") for number in range(3)), "slots"}
    assert any(name.startswith("whole") for name in stalled)
    assert len(slices(events, "submit")) <= stats.submits + 2
    assert sum(event["args"]["bytes"] for event in slices(events, "submit")) == stats.bytes_total


async def test_a_buffers_lane_has_the_states_that_the_ring_tells(path: Path) -> None:
    gpu, seen = SimulatedGpu(), []
    with tracing.trace(path):
        async with aiostage.StagingRing(gpu, 2, 1024) as ring:

            def look() -> None:
                seen.append(ring.stats_nowait().buffer_states[0].value)

            look()
            with ring.allocate_nowait(64) as slot:
                look()
                slot.copy_to_buffer(gpu.buffer(64))
            await ring.submit()
            look()
            gpu.complete()
            await until(lambda: ring.stats_nowait().buffer_states[0] is aiostage.BufferState.AVAILABLE)
            look()
            ring.allocate_nowait(64).abandon()
            gpu.free_running = True
    events = checked(path)
    assert seen == ["available", "in_use", "fenced", "available"]
    lane = states(events, f"ring {ring._engine.number}, buffer 0")
    assert lane[:4] == seen
    assert set(lane) <= {"available", "in_use", "fenced"}
    assert states(events, f"ring {ring._engine.number}, buffer 1")[0] == "available"


async def test_whole_uploads_move_the_lanes_of_the_buffers_that_they_are_lent(path: Path) -> None:
    gpu = SimulatedGpu(free_running=True)
    with tracing.trace(path):
        async with aiostage.StagingRing(gpu, 1, MiB) as ring:
            for _ in range(3):
                await (await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)))
            await until(lambda: ring.stats_nowait().buffer_states[0] is aiostage.BufferState.AVAILABLE)
    assert states(checked(path), f"ring {ring._engine.number}, buffer 0") == [
        *(["available", "in_use", "fenced"] * 3),
        "available",
    ]


async def test_batches_and_frames_are_submits_with_their_copies_and_command_buffers(
    device: wgpu.GPUDevice, target: Target, path: Path
) -> None:
    one, two, other = target(LARGE), target(64), target(64)
    with tracing.trace(path):
        async with aiostage.StagingRing(device, 3, MiB) as ring:
            async with ring.batch() as batch:
                await batch.write_buffer(one, 0, bytes(LARGE))
                await batch.write_buffer(two, 0, bytes(64))
            async with ring.frame() as frame:
                await frame.write_buffer(two, 0, bytes(64))
                frame.encoder.copy_buffer_to_buffer(two, 0, other, 0, 64)
            await frame.fence
            await ring.fence()
    events = checked(path)
    first, second = (event["args"] for event in slices(events, "submit"))
    assert (first["copies"], first["bytes"]) == (2, LARGE + 64)
    assert "command_buffers" not in first
    assert (second["copies"], second["bytes"], second["command_buffers"]) == (1, 64, 1)
    assert slices(events, "fence", "GPU thread")
    assert len(flows(events, "fence")) >= 3


async def test_a_file_is_read_by_copy_threads(
    device: wgpu.GPUDevice, target: Target, path: Path, tmp_path: Path
) -> None:
    file = tmp_path / "data"
    file.write_bytes(bytes(2 * LARGE))
    with tracing.trace(path):
        async with aiostage.StagingRing(device, 2, MiB) as ring:
            await ring.write_buffer(target(2 * LARGE), 0, FileRange(file))
    events = checked(path)
    read = slices(events, "read")
    assert sum(event["args"]["bytes"] for event in read) == 2 * LARGE
    titles = titles_of(events)
    assert all(titles[event["pid"], event["tid"]].startswith("copy thread ") for event in read)


async def test_a_ring_that_is_open_before_the_trace_begins_is_in_it(path: Path) -> None:
    gpu = SimulatedGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 2, MiB) as ring:
        slot = ring.allocate_nowait(64)
        with tracing.trace(path):
            await until(lambda: any(loop.answers for loop in probe.tracer._loops.values()))
        slot.abandon()
    events = checked(path)
    assert states(events, f"ring {ring._engine.number}, buffer 0") == ["in_use"]
    assert states(events, f"ring {ring._engine.number}, buffer 1") == ["available"]


async def test_the_lag_of_a_loop_is_counted_while_it_has_a_ring(path: Path) -> None:
    held = 0.05
    with tracing.trace(path) as trace:
        await anyio.sleep(3 * tracing.PERIOD)
        assert not trace._loops
        async with aiostage.StagingRing(SimulatedGpu(free_running=True), 1, 1024):
            await until(lambda: any(loop.answers > 2 for loop in trace._loops.values()))
            (loop,) = trace._loops.values()
            while not loop._waits:
                await anyio.lowlevel.checkpoint()
            threading.Event().wait(held)  # on the loop
            answers = loop.answers
            await until(lambda: loop.answers > answers)
        answers = loop.answers
        await anyio.sleep(5 * tracing.PERIOD)
        assert loop.answers <= answers + 1
    lags = [event["args"]["value"] for event in checked(path) if event["ph"] == "C"]
    assert len(lags) == loop.answers
    assert max(lags) >= held * 1e3 * 0.9


async def test_gpu_time_is_there_where_the_device_has_timestamps_and_else_the_trace_says_why_not(
    adapter: wgpu.GPUAdapter, device: wgpu.GPUDevice, path: Path
) -> None:
    wanted = {"timestamp-query", "timestamp-query-inside-encoders"}
    if not wanted <= set(adapter.features):
        pytest.skip("needs an adapter with timestamp-query and timestamp-query-inside-encoders, as llvmpipe")
    timed = await asyncio.to_thread(adapter.request_device_sync, required_features=sorted(wanted))
    buffer = timed.create_buffer(size=LARGE, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC)
    data = np.random.default_rng(1).integers(0, 255, LARGE, np.uint8)
    with tracing.trace(path) as trace:
        async with aiostage.StagingRing(timed, 2, MiB) as ring, aiostage.StagingRing(device, 1, 1024):
            await until(lambda: len(trace.gpu_time) == 2)
            before = ring.stats_nowait().submits
            for _ in range(40):  # more than are timed at once
                await (await ring.write_buffer(buffer, 0, data))
                await anyio.sleep(0.005)
            async with ring.frame() as frame:
                await frame.write_buffer(buffer, 0, data[:64])
                frame.encoder.clear_buffer(buffer, 64, 64)
            await frame.fence
            made = ring.stats_nowait().submits - before
    assert bytes(timed.queue.read_buffer(buffer, 128, 1024)) == data[128:1152].tobytes()
    events = checked(path)
    found = slices(events, "GPU time", "GPU time, by timestamps")
    assert 3 < len(found) <= made == 41  # one in ten milliseconds
    submits = {event["args"]["fence"]: event for event in slices(events, "submit")}
    for event in found:
        assert event["dur"] > 0
        assert event["ts"] >= submits[event["args"]["fence"]]["ts"]
    assert sorted(value.partition(":")[0] for value in trace.gpu_time.values()) == ["none", "timestamp queries"]


async def test_names_of_tasks_are_shown_whatever_they_are(path: Path) -> None:
    names = ['"quoted" \\ back', "höhe ✓", "tab\tnewline\n", "x" * 1000, "\ud800"]
    gpu = SimulatedGpu(free_running=True)
    with tracing.trace(path):
        async with aiostage.StagingRing(gpu, 1, MiB) as ring:
            for name in names:
                await asyncio.create_task(ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)), name=name)
    assert {name[: tracing.TITLE] for name in names} <= set(titles_of(checked(path)).values())


async def test_tasks_that_come_and_go_share_tracks(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tracing, "MOST_NAMES", 10)
    gpu = SimulatedGpu(free_running=True)
    with tracing.trace(path):
        async with aiostage.StagingRing(gpu, 1, MiB) as ring:
            for number in range(40):
                name = None if number % 2 else f"tile {number}"
                await asyncio.create_task(ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)), name=name)
    events = checked(path)
    assert len(slices(events, "upload")) == 40
    titles = Counter(titles_of(events).values())
    assert sum(count for title, count in titles.items() if title.startswith("tile")) <= 10
    assert titles["a task"] <= 3


@pytest.mark.parametrize("loop", LOOPS)
def test_rings_of_several_loops_and_threads_are_processes_of_one_trace(loop: str, path: Path) -> None:
    async def main(gpu: SimulatedGpu) -> None:
        async with aiostage.StagingRing(gpu, 2, MiB) as ring:
            for _ in range(3):
                await (await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)))

    def run() -> None:
        anyio.run(main, SimulatedGpu(free_running=True), **LOOPS[loop])

    with tracing.trace(path):
        threads = [threading.Thread(target=run) for _ in range(3)]
        for thread in threads:
            thread.start()
        run()
        for thread in threads:
            thread.join()
    events = checked(path)
    processes = Counter(event["args"]["name"] for event in events if event["name"] == "process_name")
    assert processes == {"simulated": 4, **{f"event loop {number}": 1 for number in range(1, 5)}}
    assert len(slices(events, "upload")) == 12
    assert len(flows(events, "upload")) == 12


def test_a_manager_without_a_loop_is_traced(device: wgpu.GPUDevice, target: Target, path: Path) -> None:
    with tracing.trace(path):
        with memory.StagingRingManager(2, MiB, device=device) as manager:
            manager.upload(target(LARGE), np.zeros(LARGE, np.uint8))
    assert slices(checked(path), "upload")


# -- what goes wrong in the program --


async def test_cancelled_and_failed_waits_are_slices_all_the_same(path: Path) -> None:
    gpu = SimulatedGpu()
    with tracing.trace(path):
        async with aiostage.StagingRing(gpu, 1, MiB) as ring:
            slot = await ring.allocate(MiB)
            waiting = asyncio.create_task(ring.allocate(4), name="waits")
            upload = asyncio.create_task(ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)), name="uploads")
            await until(lambda: ring.stats_nowait().waiters)
            waiting.cancel()
            upload.cancel()
            await asyncio.wait([waiting, upload])
            slot.abandon()
            gpu.free_running = True
    events = checked(path)
    assert [event["args"] for event in slices(events, "stall", "waits")] == [{"bytes": 4}]
    assert not flows(events, "upload")
    (ended,) = slices(events, "upload", "uploads")
    assert "fence" not in ended["args"]


async def test_a_lost_device_ends_no_trace(path: Path) -> None:
    gpu = SimulatedGpu()
    with tracing.trace(path) as trace:
        with pytest.raises(aiostage.DeviceLost):
            async with aiostage.StagingRing(gpu, 1, MiB) as ring:
                await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE))
                writing = asyncio.create_task(ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)))
                await until(lambda: ring.stats_nowait().waiters)
                gpu.lose()
                await writing
    events = checked(path)
    assert trace.error is None
    assert len(slices(events, "upload")) == 2
    assert len(flows(events, "upload")) == 1
    assert slices(events, "stall")


# -- what goes wrong with the trace --


def test_a_second_trace_is_refused_and_the_first_goes_on(path: Path, tmp_path: Path) -> None:
    with tracing.trace(path):
        with pytest.raises(RuntimeError, match=r"a trace is being written to .*run\.json; one at a time"):
            with tracing.trace(tmp_path / "other.json"):
                pass
        assert probe.tracer is not None
        assert not (tmp_path / "other.json").exists()
    checked(path)
    with tracing.trace(path) as again:
        pass
    assert about(checked(path))["lost_events"] == 0
    with pytest.raises(RuntimeError, match="written once"):
        again.__enter__()


def test_where_no_file_can_be_made_it_is_an_oserror_and_nothing_is_traced(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        tracing.trace(tmp_path / "missing" / "run.json").__enter__()
    assert probe.tracer is None
    assert native.trace_begin(4096)  # nobody else has begun one
    native.trace_end()


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full: runs on Linux")
async def test_a_full_disk_is_reported_once_and_the_program_goes_on(caplog: pytest.LogCaptureFixture) -> None:
    gpu = SimulatedGpu(free_running=True)
    with tracing.trace("/dev/full") as trace:
        await until(lambda: trace.error)
        async with aiostage.StagingRing(gpu, 1, MiB) as ring:
            await (await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)))
            assert probe.tracer is None
    assert trace.error is not None
    assert trace.error.errno == errno.ENOSPC
    (record,) = caplog.records
    assert record.levelno == logging.ERROR
    assert record.event == "trace_failed"
    assert "/dev/full" in record.getMessage()


@pytest.mark.skipif(sys.platform == "win32", reason="needs a named pipe: runs on any system but Windows")
def test_memory_is_bounded_and_what_finds_no_room_is_counted(tmp_path: Path) -> None:
    """The reader of a pipe takes its time: nobody waits for it."""
    path = tmp_path / "pipe"
    os.mkfifo(path)
    reader = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
    os.set_blocking(reader, True)
    drained = bytearray()

    def drain() -> None:
        while part := os.read(reader, 1 << 16):
            drained.extend(part)

    async def main() -> None:
        gpu = SimulatedGpu(free_running=True)
        async with aiostage.StagingRing(gpu, 2, MiB) as ring:
            buffer, data = gpu.buffer(LARGE), bytes(LARGE)
            for _ in range(1000):
                await ring.write_buffer(buffer, 0, data)

    thread = threading.Thread(target=drain)
    with tracing.trace(path, room=16384) as trace:
        asyncio.run(main())
        native.trace_end()
        text, lost = native.trace_take()
        assert len(text) <= 16384
        assert lost > 1000
        thread.start()
    thread.join()
    os.close(reader)
    (tmp_path / "kept").write_bytes(drained)
    events = tracing.load(tmp_path / "kept")
    perfetto.check(events, is_whole=False)
    assert trace.nbytes == len(drained)


def test_what_is_lost_is_in_the_trace(path: Path) -> None:
    async def main() -> None:
        gpu = SimulatedGpu(free_running=True)
        async with aiostage.StagingRing(gpu, 2, MiB) as ring:
            for _ in range(200):
                await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE))

    with tracing.trace(path, room=1024) as trace:
        asyncio.run(main())
    events = tracing.load(path)
    perfetto.check(events, is_whole=False)
    assert about(events)["lost_events"] == trace.lost > 0


KILLED = """
import asyncio, os, signal, sys
sys.path.insert(0, {tests!r})
from simulated import SimulatedGpu
import aiostage
from aiostage import tracing

async def main():
    gpu = SimulatedGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 2, 1 << 20) as ring:
        while trace.nbytes < 100_000:
            await ring.write_buffer(gpu.buffer(1 << 19), 0, bytes(1 << 19))
        os.kill(os.getpid(), signal.SIGKILL)

with tracing.trace({path!r}) as trace:
    asyncio.run(main())
"""


@pytest.mark.skipif(sys.platform == "win32", reason="needs SIGKILL: runs on any system but Windows")
def test_the_trace_of_a_killed_program_loads(path: Path) -> None:
    program = KILLED.format(tests=str(ROOT / "tests"), path=str(path))
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60, cwd=ROOT)
    assert run.returncode == -signal.SIGKILL, run.stderr
    assert not path.read_text().rstrip().endswith("]")
    events = tracing.load(path)
    perfetto.check(events, is_whole=False)
    assert len(slices(events, "upload")) > 50
    assert flows(events, "fence")


def test_a_trace_that_was_cut_off_anywhere_loads_as_far_as_it_goes(path: Path, tmp_path: Path) -> None:
    async def main() -> None:
        gpu = SimulatedGpu(free_running=True)
        async with aiostage.StagingRing(gpu, 1, MiB) as ring:
            await (await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)))

    with tracing.trace(path):
        asyncio.run(main())
    whole, text, cut = checked(path), path.read_bytes(), tmp_path / "cut"
    for length in range(0, len(text), 7):
        cut.write_bytes(text[:length])
        events = tracing.load(cut)
        assert events == whole[: len(events)]
    assert len(events) >= len(whole) - 1


@pytest.mark.skipif(not hasattr(os, "fork"), reason="needs os.fork: runs on any system but Windows")
@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_a_forked_child_writes_nothing_to_its_parents_file(path: Path) -> None:
    with tracing.trace(path):
        child = os.fork()
        if child == 0:
            trace, is_off = probe.tracer, probe.tracer is None
            begins = native.trace_begin(4096)
            os._exit(0 if trace is None and is_off and begins and not native.trace_take()[0] else 1)
        assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    checked(path)


# -- off --


async def test_off_nobody_is_told_of_anything(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And after a trace as before it."""
    with tracing.trace(path):
        pass
    told: list[str] = []
    for name in ("task", "stalled", "opened", "closed"):
        monkeypatch.setattr(tracing.Trace, name, lambda *args, name=name: told.append(name))
    gpu = SimulatedGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 1, MiB) as ring:
        monkeypatch.setattr("aiostage.engine.buffer.StagingBuffer.show", lambda buffer: told.append("show"))
        await (await ring.write_buffer(gpu.buffer(LARGE), 0, bytes(LARGE)))
        with await ring.allocate(4) as slot:
            slot.copy_to_buffer(gpu.buffer(4))
        await ring.submit()
    assert told == []
    assert native.trace_take() == (b"", 0)
