"""Fixtures. Tests run on the software adapter unless AIOSTAGE_TEST_ADAPTER=gpu asks for the machine's own.

AIOSTAGE_TEST_LOOP=uvloop runs every asyncio test on uvloop. With PYTHONASYNCIODEBUG=1 a test fails if something held
its loop for more than 0.1 s, unless it is marked with `blocks_loop`.
"""

from __future__ import annotations

import asyncio
import gc
import logging
import os
import signal
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import Any

import anyio
import pytest
import wgpu
from held import HeldCopies
from held import held as held
from misuse_cases import LOOPS
from simulated import SimulatedGpu, turns

import aiostage


def _find_adapter() -> wgpu.GPUAdapter:
    adapters = wgpu.gpu.enumerate_adapters_sync()
    wanted = "DiscreteGPU" if os.environ.get("AIOSTAGE_TEST_ADAPTER") == "gpu" else "CPU"
    for adapter in adapters:
        if adapter.info["adapter_type"] == wanted and adapter.info["backend_type"] == "Vulkan":
            return adapter
    pytest.exit(f"no {wanted} Vulkan adapter; './dev test' installs a software one (mesa-vulkan-drivers)", returncode=3)


def pytest_configure(config: pytest.Config) -> None:
    if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:  # as in what a script starts with "&": tests press Ctrl-C
        signal.signal(signal.SIGINT, signal.default_int_handler)
    if os.environ.get("AIOSTAGE_TEST_LOOP") == "uvloop":
        import uvloop

        asyncio.set_event_loop_policy(uvloop.EventLoopPolicy())
        uvloop.Event = asyncio.Event  # where wgpu-py 0.31 and 0.32 look for it when one of their promises is awaited
    if os.environ.get("PYTHONASYNCIODEBUG"):
        config.option.asyncio_debug = True  # pytest-asyncio's loops go by this
        _stop_loop_clocks_while_others_run()


def _stop_loop_clocks_while_others_run() -> None:
    """Leave out of loop.time() for how long this thread was ready to run while others ran: the machine held it then.

    On Linux; elsewhere debug mode wants an idle machine.
    """
    try:
        statistics = os.open(f"/proc/self/task/{threading.get_native_id()}/schedstat", os.O_RDONLY)
    except OSError:
        return

    def time_of_ours(self: asyncio.BaseEventLoop) -> float:
        return time.monotonic() - int(os.pread(statistics, 100, 0).split()[1]) / 1e9

    asyncio.BaseEventLoop.time = time_of_ours  # type: ignore[method-assign]


class _SlowCallbacks(logging.Handler):
    """Collects what asyncio says about callbacks that held the loop for more than 0.1 s."""

    def __init__(self) -> None:
        super().__init__()
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        message = record.getMessage()
        if message.startswith("Executing ") and " took " in message:
            self.messages.append(message)


@pytest.fixture(scope="session")
def warmed_up(shared_device: wgpu.GPUDevice) -> None:
    """The first ring of a process is slower, as is reading back: cffi parses each C type of wgpu's header when it is
    first used."""

    async def first() -> None:
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
        texture = shared_device.create_texture(size=(4, 4, 1), format="rgba8unorm", usage=usage)
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
        volume = shared_device.create_texture(size=(4, 4, 2), dimension="3d", format="rgba8unorm", usage=usage)
        buffer = shared_device.create_buffer(size=64, usage=wgpu.BufferUsage.COPY_DST)
        async with aiostage.StagingRing(shared_device, 1, 1024) as ring, ring.frame() as frame:
            await frame.write_buffer(buffer, 0, bytes(64))
            await frame.write_texture({"texture": texture}, bytes(64))
            await frame.write_texture({"texture": volume, "origin": (0, 0, 1)}, bytes(64), size=(4, 4, 1))
            frame.encoder.clear_buffer(buffer)
        shared_device.queue.read_texture({"texture": texture}, {"bytes_per_row": 16}, (4, 4, 1))  # as tests do

    asyncio.run(first(), debug=False)


@pytest.fixture(autouse=bool(os.environ.get("PYTHONASYNCIODEBUG")))
def nothing_holds_the_loop(request: pytest.FixtureRequest, warmed_up: None) -> Iterator[None]:
    handler = _SlowCallbacks()
    logger = logging.getLogger("asyncio")
    logger.addHandler(handler)
    gc.disable()  # a collection takes as long as the heap of all tests is large,
    gc.freeze()  # and so would those that a test makes itself
    yield
    gc.enable()
    gc.unfreeze()
    if gc.get_count()[0] > 100_000:
        gc.collect()
    logger.removeHandler(handler)
    if request.node.get_closest_marker("blocks_loop") is None:
        assert not handler.messages, "\n".join(handler.messages)


@pytest.fixture(scope="session")
def adapter() -> wgpu.GPUAdapter:
    return _find_adapter()


@pytest.fixture(scope="session")
def shared_device(adapter: wgpu.GPUAdapter) -> wgpu.GPUDevice:
    """One device for all tests that leave it whole, with every feature that copies can use."""
    wanted = {"texture-compression-bc", "texture-compression-etc2", "texture-compression-astc"}
    wanted |= {"depth32float-stencil8", "mappable-primary-buffers", "texture-format16bit-norm"}
    return adapter.request_device_sync(required_features=sorted(wanted & set(adapter.features)))


@pytest.fixture
def device(shared_device: wgpu.GPUDevice) -> wgpu.GPUDevice:
    return shared_device


@pytest.fixture
def own_device(adapter: wgpu.GPUAdapter) -> wgpu.GPUDevice:
    """A device that the test may lose."""
    return adapter.request_device_sync()


@pytest.fixture
async def open_ring(device: wgpu.GPUDevice) -> AsyncIterator[Callable[..., Any]]:
    """Opens rings that are closed after the test: `await open_ring(ring_count=…, buffer_size=…)`."""
    rings: list[aiostage.StagingRing] = []

    async def open_one(on: Any = None, **options: Any) -> aiostage.StagingRing:
        ring = aiostage.StagingRing(device if on is None else on, **options)
        await ring.open()
        rings.append(ring)
        return ring

    yield open_one
    for ring in rings:
        await ring.aclose()


@pytest.fixture
def target(device: wgpu.GPUDevice) -> Callable[[int], wgpu.GPUBuffer]:
    """Makes buffers that can be copied to and read back."""

    def make(size: int) -> wgpu.GPUBuffer:
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
        return device.create_buffer(size=size, usage=usage)

    return make


@pytest.fixture(params=[False, True], ids=["submits inline", "submits in a thread"])
def gpu(request: pytest.FixtureRequest) -> Iterator[SimulatedGpu]:
    """A GPU that does nothing before it is told to; nobody may have written to memory that it owned."""
    gpu = SimulatedGpu(submit_blocks=request.param)
    yield gpu
    assert gpu.violations == []


@pytest.fixture
async def simulated_ring(gpu: SimulatedGpu) -> AsyncIterator[Callable[..., Any]]:
    """Opens rings on `gpu` that are closed after the test, by default of three buffers of 1 KiB."""
    rings: list[aiostage.StagingRing] = []

    async def open_one(ring_count: int = 3, buffer_size: int = 1024, **options: Any) -> aiostage.StagingRing:
        ring = aiostage.StagingRing(gpu, ring_count, buffer_size, **options)
        await ring.open()
        rings.append(ring)
        return ring

    yield open_one
    gpu.may_submit.set()
    gpu.free_running = True
    for ring in rings:
        await ring.aclose()


@pytest.fixture
async def held_ring(held: HeldCopies) -> AsyncIterator[Callable[..., Any]]:
    """Like `simulated_ring`, on `held`."""
    rings: list[aiostage.StagingRing] = []

    async def open_one(ring_count: int = 3, buffer_size: int = 1024, **options: Any) -> aiostage.StagingRing:
        ring = aiostage.StagingRing(held, ring_count, buffer_size, **options)
        await ring.open()
        rings.append(ring)
        return ring

    yield open_one
    held.may_copy.set()
    held.free_running = True
    for ring in rings:
        await ring.aclose()


@pytest.fixture
def always_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """Allocations share a staging buffer however long one of them has been open."""
    monkeypatch.setattr("aiostage.engine.buffer.PATIENCE", float("inf"))


@pytest.fixture
def never_shared(monkeypatch: pytest.MonkeyPatch) -> None:
    """An allocation prefers a free staging buffer to one that holds an open allocation, however young."""
    monkeypatch.setattr("aiostage.engine.buffer.PATIENCE", -1.0)


@pytest.fixture(params=LOOPS)
def run(request: pytest.FixtureRequest) -> Callable[[Callable[[], Awaitable[None]]], None]:
    """Runs a coroutine function on each loop to its end, in a minute, and sees that it leaves no task behind."""

    def run(scenario: Callable[[], Awaitable[None]]) -> None:
        async def in_time() -> None:
            with anyio.fail_after(60):
                await scenario()
            if LOOPS[request.param]["backend"] == "asyncio":
                await turns()
                assert asyncio.all_tasks() == {asyncio.current_task()}
            for thread in threading.enumerate():
                if thread.name == "aiostage thread":  # has told that it is over, and ends
                    thread.join(5)
                    assert not thread.is_alive()

        anyio.run(in_time, **LOOPS[request.param])

    return run
