"""The misuse matrix: what people do wrong, one function each, and what happens.

`python misuse_cases.py NAME` runs one case in a process of its own: a case that ends in a signal is a defect of the
library. A case checks the exceptions itself. `python misuse_cases.py` prints the table that docs/misuse.md holds.
"""

from __future__ import annotations

import asyncio
import contextlib
import gc
import inspect
import logging
import os
import resource
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np
import wgpu
from wgpu.backends.wgpu_native.extras import set_instance_extras

import aiostage
from aiostage import KiB, MiB, memory, streams
from aiostage.streams import sources

LOOPS: dict[str, dict[str, Any]] = {
    "asyncio": {"backend": "asyncio"},
    "uvloop": {"backend": "asyncio", "backend_options": {"use_uvloop": True}},
    "trio": {"backend": "trio"},
}
BufferUsage, TextureUsage, MapMode = wgpu.BufferUsage, wgpu.TextureUsage, wgpu.MapMode


class Case(NamedTuple):
    run: Callable[[Sandbox], Any]
    group: str
    done: str
    happens: str


CASES: dict[str, Case] = {}


def case(group: str, done: str, happens: str) -> Callable[[Callable[[Sandbox], Any]], Callable[[Sandbox], Any]]:
    """Put a function in the matrix: who does what, and what happens then."""

    def add(function: Callable[[Sandbox], Any]) -> Callable[[Sandbox], Any]:
        CASES[function.__name__] = Case(function, group, done, happens)
        return function

    return add


class Sandbox:
    """A device, and things to misuse."""

    def __init__(self, flags: Sequence[str] = ("Default",)) -> None:
        self._flags = flags

    @cached_property
    def adapter(self) -> wgpu.GPUAdapter:
        set_instance_extras(backends=["Vulkan"], flags=self._flags)
        wanted = "DiscreteGPU" if os.environ.get("AIOSTAGE_TEST_ADAPTER") == "gpu" else "CPU"
        return next(a for a in wgpu.gpu.enumerate_adapters_sync() if a.info["adapter_type"] == wanted)

    @cached_property
    def device(self) -> wgpu.GPUDevice:
        return self.adapter.request_device_sync()

    @cached_property
    def other_device(self) -> wgpu.GPUDevice:
        return self.adapter.request_device_sync()

    def ring(self, ring_count: int = 3, buffer_size: int = 64 * KiB, **options: Any) -> aiostage.StagingRing:
        return aiostage.StagingRing(self.device, ring_count, buffer_size, **options)

    def buffer(self, size: int = 1024, usage: int = BufferUsage.COPY_DST | BufferUsage.COPY_SRC) -> wgpu.GPUBuffer:
        return self.device.create_buffer(size=size, usage=usage)

    def texture(self, format: str = "rgba8unorm", **options: Any) -> wgpu.GPUTexture:
        options = {"size": (16, 16, 1), "usage": TextureUsage.COPY_DST | TextureUsage.COPY_SRC} | options
        return self.device.create_texture(format=format, **options)

    def busy(self, copies: int = 4) -> None:
        """Give the GPU some work that takes a while: with 100 copies a second on a software adapter."""
        usage = BufferUsage.COPY_DST | BufferUsage.COPY_SRC
        a, b = (self.device.create_buffer(size=64 * MiB, usage=usage) for _ in range(2))
        encoder = self.device.create_command_encoder()
        for _ in range(copies):
            encoder.copy_buffer_to_buffer(a, 0, b, 0, 64 * MiB)
        self.device.queue.submit([encoder.finish()])

    def recorded(self) -> wgpu.GPUCommandBuffer:
        """A command buffer with a copy in it."""
        encoder = self.device.create_command_encoder()
        encoder.copy_buffer_to_buffer(self.buffer(), 0, self.buffer(), 0, 1024)
        return encoder.finish()

    async def assert_works(self, ring: aiostage.StagingRing) -> None:
        """The ring still uploads, through every one of its buffers."""
        buffer = self.buffer(ring.buffer_size)
        for value in range(1, 2 * ring.ring_count + 1):
            await ring.write_buffer(buffer, 0, bytes([value]) * ring.buffer_size)
        slot = await ring.allocate(4)
        with slot:
            slot.view[:] = b"slot"
            slot.copy_to_buffer(buffer, 4)
        await (await ring.submit())
        assert holds(buffer, bytes([value] * 4) + b"slot" + bytes([value] * (ring.buffer_size - 8)))


def holds(buffer: wgpu.GPUBuffer, content: bytes, offset: int = 0) -> bool:
    return bytes(buffer._device.queue.read_buffer(buffer, offset, len(content))) == content


@contextlib.contextmanager
def raises(expected: type[BaseException] | tuple[type[BaseException], ...], *parts: str) -> Iterator[None]:
    """This very exception, with all of these in its message."""
    try:
        yield
    except BaseException as error:
        classes = expected if isinstance(expected, tuple) else (expected,)
        if type(error) not in classes or not all(part in str(error) for part in parts):
            raise AssertionError(f"{type(error).__name__}({error}) in place of {expected} with {parts}") from error
    else:
        raise AssertionError(f"{expected} was not raised")


InvalidCopy, InvalidSubmit = aiostage.InvalidCopy, aiostage.InvalidSubmit
DeviceLost, RingClosed, AllocationClosed = aiostage.DeviceLost, aiostage.RingClosed, aiostage.AllocationClosed
WrongLoop = aiostage.WrongLoop

# -- Destinations --

GROUP = "Destinations"


@case(GROUP, "The destination buffer was destroyed before the call", "`InvalidCopy`")
async def buffer_destroyed_before(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()
        buffer.destroy()
        with raises(InvalidCopy, "destroyed"):
            await ring.write_buffer(buffer, 0, bytes(16))
        with raises(InvalidCopy, "destroyed"):
            await ring.write_buffer(buffer, 0, bytes(16))
        await box.assert_works(ring)


@case(GROUP, "The destination texture was destroyed before the call", "`InvalidCopy`")
async def texture_destroyed_before(box: Sandbox) -> None:
    async with box.ring() as ring:
        texture = box.texture()
        texture.destroy()
        with raises(InvalidCopy, "destroyed"):
            await ring.write_texture({"texture": texture}, np.zeros((16, 16, 4), np.uint8))
        await box.assert_works(ring)


@case(
    GROUP,
    "The destination buffer is destroyed between staging and submit",
    "`submit` raises `InvalidCopy` in the task that staged it; every other copy arrives",
)
async def buffer_destroyed_between(box: Sandbox) -> None:
    async with box.ring() as ring:
        doomed, fine = box.buffer(), box.buffer()
        for destination in (doomed, fine):
            slot = await ring.allocate(8)
            with slot:
                slot.view[:] = b"uploaded"
                slot.copy_to_buffer(destination, 8)
        doomed.destroy()
        with raises(InvalidCopy, "destroyed"):
            await ring.submit()
        assert holds(fine, b"uploaded", 8)
        await box.assert_works(ring)


@case(
    GROUP,
    "The destination texture is destroyed between staging and submit",
    "`submit` raises `InvalidCopy` in the task that staged it; every other copy arrives",
)
async def texture_destroyed_between(box: Sandbox) -> None:
    async with box.ring() as ring:
        doomed, fine = box.texture(), box.buffer()
        slot = await ring.allocate_texture((16, 16), "rgba8unorm")
        with slot:
            slot.array()[:] = 7
            slot.copy_to_texture({"texture": doomed})
            slot.copy_to_buffer(fine, 0, size=8)
        doomed.destroy()
        with raises(InvalidCopy, "destroyed"):
            await ring.submit()
        assert holds(fine, b"\7" * 8)
        await box.assert_works(ring)


@case(
    GROUP,
    "A destination of a batch or frame is destroyed before it ends",
    "leaving it raises `InvalidCopy`; its other copies arrive",
)
async def destroyed_in_a_batch(box: Sandbox) -> None:
    async with box.ring() as ring:
        for make in (ring.batch, ring.frame):
            doomed, fine = box.buffer(), box.buffer()
            with raises(InvalidCopy, "destroyed"):
                async with make() as batch:
                    await batch.write_buffer(doomed, 0, bytes(8))
                    await batch.write_buffer(fine, 0, b"uploaded")
                    doomed.destroy()
            assert holds(fine, b"uploaded")
        await box.assert_works(ring)


@case(GROUP, "A destination is destroyed while the GPU works", "nothing: the copy was submitted, its fence completes")
async def destroyed_while_the_gpu_works(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer, texture = box.buffer(), box.texture()
        box.busy()
        fences = [await ring.write_buffer(buffer, 0, bytes(1024))]
        fences.append(await ring.write_texture({"texture": texture}, bytes(1024)))
        buffer.destroy()
        texture.destroy()
        for fence in fences:
            await fence
        await box.assert_works(ring)


@case(GROUP, "The destination buffer is mapped", "`InvalidCopy`")
async def destination_mapped(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer(usage=BufferUsage.COPY_DST | BufferUsage.MAP_READ)
        buffer.map_sync(MapMode.READ)
        with raises(InvalidCopy, "mapped"):
            await ring.write_buffer(buffer, 0, bytes(16))
        born_mapped = box.device.create_buffer(size=16, usage=BufferUsage.COPY_DST, mapped_at_creation=True)
        with raises(InvalidCopy, "mapped"):
            await ring.write_buffer(born_mapped, 0, bytes(16))
        buffer.unmap()
        await ring.write_buffer(buffer, 0, bytes(16))
        await box.assert_works(ring)


@case(GROUP, "A map of the destination buffer is pending", "`InvalidCopy`")
async def destination_map_pending(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer(usage=BufferUsage.COPY_DST | BufferUsage.MAP_READ)
        box.busy()
        pending = buffer.map_async(MapMode.READ)
        with raises(InvalidCopy, "mapped"):
            await ring.write_buffer(buffer, 0, bytes(16))
        pending.sync_wait()
        await box.assert_works(ring)


@case(GROUP, "The destination buffer is mapped between staging and submit", "`submit` raises `InvalidCopy`")
async def destination_mapped_between(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer(usage=BufferUsage.COPY_DST | BufferUsage.MAP_READ)
        with await ring.allocate(16) as slot:
            slot.copy_to_buffer(buffer)
        buffer.map_sync(MapMode.READ)
        with raises(InvalidCopy, "mapped"):
            await ring.submit()
        await box.assert_works(ring)


@case(
    GROUP,
    "A destination is destroyed in another thread while a thread submits a copy to it",
    "the copy is submitted, then the destination destroyed; later copies raise `InvalidCopy`",
)
async def destroyed_in_a_thread(box: Sandbox) -> None:
    async with box.ring() as ring:
        for _ in range(100):
            doomed = [box.buffer(), box.texture()]
            thread = threading.Thread(target=lambda: [resource.destroy() for resource in doomed])  # noqa: B023
            writing = asyncio.gather(
                ring.write_buffer(doomed[0], 0, bytes(16)),
                ring.write_texture({"texture": doomed[1]}, bytes(1024)),
                return_exceptions=True,
            )
            await asyncio.sleep(0)
            thread.start()
            for outcome in await writing:
                assert isinstance(outcome, aiostage.Fence | InvalidCopy), outcome
            thread.join()
            with raises(InvalidCopy, "destroyed"):
                await ring.write_buffer(doomed[0], 0, bytes(16))
        await box.assert_works(ring)


@case(GROUP, "The destination was created without `COPY_DST`", "`InvalidCopy`")
async def no_copy_dst(box: Sandbox) -> None:
    async with box.ring() as ring:
        with raises(InvalidCopy, "COPY_DST"):
            await ring.write_buffer(box.buffer(usage=BufferUsage.COPY_SRC), 0, bytes(16))
        texture = box.texture(usage=TextureUsage.COPY_SRC)
        with raises(InvalidCopy, "COPY_DST"):
            await ring.write_texture({"texture": texture}, bytes(1024))
        with await ring.allocate(1024) as slot:
            with raises(InvalidCopy, "COPY_DST"):
                slot.copy_to_texture({"texture": texture}, size=(4, 4))
        await box.assert_works(ring)


@case(GROUP, "The destination is one of the ring's own staging buffers", "`InvalidCopy`")
async def copy_into_a_staging_buffer(box: Sandbox) -> None:
    async with box.ring() as ring:
        with await ring.allocate(16) as slot:
            with raises(InvalidCopy, "COPY_DST"):
                slot.copy_to_buffer(slot.buffer.handle)
        await box.assert_works(ring)


@case(GROUP, "The destination belongs to another device", "`InvalidCopy`")
async def other_devices_destination(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.other_device.create_buffer(size=16, usage=BufferUsage.COPY_DST)
        with raises(InvalidCopy, "another device"):
            await ring.write_buffer(buffer, 0, bytes(16))
        texture = box.other_device.create_texture(size=(4, 4, 1), format="r8uint", usage=TextureUsage.COPY_DST)
        with raises(InvalidCopy, "another device"):
            await ring.write_texture({"texture": texture}, bytes(16))
        await box.assert_works(ring)


@case(GROUP, "The destination texture is multisampled", "`InvalidCopy`")
async def multisampled(box: Sandbox) -> None:
    async with box.ring() as ring:
        usage = TextureUsage.COPY_DST | TextureUsage.RENDER_ATTACHMENT
        texture = box.texture(sample_count=4, usage=usage)
        with raises(InvalidCopy, "4 samples"):
            await ring.write_texture({"texture": texture}, bytes(1024))
        await box.assert_works(ring)


@case(GROUP, "The aspect is depth that no copy may write, or one the format lacks, or garbage", "`InvalidCopy`")
async def bad_aspect(box: Sandbox) -> None:
    async with box.ring() as ring:
        depth, both, colour = (box.texture(f) for f in ("depth32float", "depth24plus-stencil8", "rgba8unorm"))
        for texture, aspect in (
            (depth, "all"),
            (depth, "depth-only"),
            (both, "all"),
            (both, "depth-only"),
            (depth, "stencil-only"),
            (colour, "depth-only"),
            (colour, "red"),
            (colour, 7),
        ):
            with raises(InvalidCopy):
                await ring.write_texture({"texture": texture, "aspect": aspect}, bytes(1024), {}, (16, 16))
        await box.assert_works(ring)


@case(GROUP, "The mip level, layer, origin or size lies outside the texture", "`InvalidCopy` with the numbers")
async def outside_the_texture(box: Sandbox) -> None:
    async with box.ring() as ring:
        texture = box.texture(mip_level_count=2, size=(16, 16, 2))
        huge = 2**32 - 1
        for place, size in (
            ({"mip_level": 2}, (1, 1)),
            ({"mip_level": -1}, (1, 1)),
            ({"mip_level": 2**70}, (1, 1)),
            ({"mip_level": 0.5}, (1, 1)),
            ({"mip_level": "first"}, (1, 1)),
            ({"mip_level": 1}, (9, 1)),
            ({"origin": (0, 0, 2)}, (1, 1)),
            ({"origin": (-1, 0, 0)}, (1, 1)),
            ({"origin": (huge, huge, huge)}, (1, 1)),
            ({"origin": (0, 0, 0, 0)}, (1, 1)),
            ({"origin": "here"}, (1, 1)),
            ({"origin": (15, 15)}, (2, 2)),
            ({}, (17, 1)),
            ({}, (huge, huge, huge)),
            ({}, (-1, 1)),
            ({}, (1.5, 1)),
            ({}, "all"),
            ({}, 16),
            ({}, ()),
        ):
            with raises(InvalidCopy):
                await ring.write_texture({"texture": texture, **place}, bytes(2048), {}, size)
        await box.assert_works(ring)


@case(GROUP, "Blocks of a compressed or depth-stencil format are cut", "`InvalidCopy`")
async def cut_blocks(box: Sandbox) -> None:
    async with box.ring() as ring:
        stencil = box.texture("stencil8")
        with raises(InvalidCopy, "whole mip level"):
            await ring.write_texture({"texture": stencil}, bytes(64), {}, (8, 8))
        if "texture-compression-bc" in box.adapter.features:
            device = box.adapter.request_device_sync(required_features=["texture-compression-bc"])
            blocks = device.create_texture(size=(16, 16, 1), format="bc1-rgba-unorm", usage=TextureUsage.COPY_DST)
            async with aiostage.StagingRing(device, 1, 1024) as other:
                with raises(InvalidCopy, "multiples of 4"):
                    await other.write_texture({"texture": blocks}, bytes(64), {}, (6, 4))
        await box.assert_works(ring)


@case(GROUP, "The destination is garbage: None, bytes, a number, a texture for a buffer, a view", "`InvalidCopy`")
async def garbage_destination(box: Sandbox) -> None:
    async with box.ring() as ring:
        texture = box.texture(usage=TextureUsage.COPY_DST | TextureUsage.TEXTURE_BINDING)
        for garbage in (None, b"buffer", 7, texture, object(), wgpu.GPUBuffer):
            with raises(InvalidCopy):
                await ring.write_buffer(garbage, 0, bytes(16))
        for garbage in (None, 7, [], {}, texture, {"texture": None}, {"texture": texture.create_view()}):
            with raises(InvalidCopy):
                await ring.write_texture(garbage, bytes(1024))
        with raises(InvalidCopy, "mip_levle"):
            await ring.write_texture({"texture": texture, "mip_levle": 1}, bytes(1024))
        await box.assert_works(ring)


# -- Data, offsets and sizes --

GROUP = "Data, offsets and sizes"


@case(GROUP, "The data is None, a number in place of bytes, text, or Python objects", "`TypeError`")
async def garbage_data(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer, texture = box.buffer(), box.texture()
        for garbage in (None, object(), [None], np.array([{}, []], object), {"a": 1}):
            with raises(TypeError):
                await ring.write_buffer(buffer, 0, garbage)
            with raises(TypeError):
                await ring.write_texture({"texture": texture}, garbage)
        await box.assert_works(ring)


@case(GROUP, "Zero bytes or texels", "nothing is copied, and the fence completes; `allocate(0)` raises `ValueError`")
async def zero_sizes(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer, texture = box.buffer(), box.texture()
        await (await ring.write_buffer(buffer, 0, b""))
        await (await ring.write_buffer(buffer, 1024, bytes(8), 8))
        await (await ring.write_buffer(buffer, 0, bytes(8), size=0))
        await (await ring.write_texture({"texture": texture}, b"", {}, (0, 16)))
        await (await ring.write_texture({"texture": texture}, np.zeros((0, 16, 4), np.uint8)))
        with raises(ValueError, "positive"):
            await ring.allocate(0)
        with raises(ValueError, "positive"):
            await ring.allocate_texture((16, 0), "rgba8unorm")
        with await ring.allocate(16) as slot:
            slot.copy_to_buffer(buffer, size=0)
            slot.copy_to_texture({"texture": texture}, size=(0, 0))
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, b"")
        await batch.fence
        async with ring.batch() as batch:
            pass
        await batch.fence
        await (await ring.submit())
        await box.assert_works(ring)


@case(GROUP, "Offsets or sizes are negative, huge or no multiples of 4", "`InvalidCopy`; nothing is copied")
async def bad_buffer_ranges(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()
        for buffer_offset in (-4, 1, 1024, 2**31, 2**32, 2**63, 2**64, 2**80):
            with raises(InvalidCopy):
                await ring.write_buffer(buffer, buffer_offset, bytes(16))
        for data_offset, size in ((-4, None), (17, None), (2**64, None), (0, -4), (0, 20), (0, 2**64), (0, 3), (1, 15)):
            with raises(InvalidCopy):
                await ring.write_buffer(buffer, 0, bytes(16), data_offset, size)
        await box.assert_works(ring)


@case(GROUP, "Offsets or sizes are floats, strings or None", "`TypeError` or `InvalidCopy`; nothing is copied")
async def garbage_numbers(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()
        refused = (TypeError, InvalidCopy)
        for garbage in (4.0, "4", None, [4], float("nan"), float("inf")):
            with raises(refused):
                await ring.write_buffer(buffer, garbage, bytes(16))
            with raises(refused):
                await ring.write_buffer(buffer, 0, bytes(16), garbage)
            if garbage is not None:
                with raises(refused):
                    await ring.write_buffer(buffer, 0, bytes(16), 0, garbage)
            with await ring.allocate(16) as slot:
                with raises(refused):
                    slot.copy_to_buffer(buffer, garbage)
                with raises(refused):
                    slot.copy_to_buffer(buffer, data_offset=garbage)
        await box.assert_works(ring)


@case(GROUP, "`data_layout` is too small, too large, negative or garbage", "`InvalidCopy` or `TypeError`")
async def bad_data_layout(box: Sandbox) -> None:
    async with box.ring() as ring:
        texture, refused = box.texture(), (InvalidCopy, TypeError, AttributeError, ValueError)
        for layout in (
            {"bytes_per_row": 4},
            {"bytes_per_row": -64},
            {"bytes_per_row": 2**40},
            {"bytes_per_row": "wide"},
            {"rows_per_image": 4},
            {"rows_per_image": -1},
            {"rows_per_image": 2**70, "bytes_per_row": 2**70},
            {"offset": -1},
            {"offset": 1},
            {"offset": 2**64},
            {"offset": None, "stride": 4},
            7,
            "layout",
        ):
            with raises(refused):
                await ring.write_texture({"texture": texture}, bytes(1024), layout, (16, 16))
        await box.assert_works(ring)


@case(
    GROUP,
    "A slot's copy reads outside it, or has a layout that no GPU takes",
    "`InvalidCopy` or `TypeError`; the slot's other copies arrive",
)
async def bad_slot_copies(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer, texture, refused = box.buffer(), box.texture(), (InvalidCopy, TypeError, ValueError)
        with await ring.allocate(4096) as slot:
            slot.view[:4] = b"good"
            slot.copy_to_buffer(buffer, 0, size=4)
            for arguments in (
                {"data_offset": -4},
                {"data_offset": 2},
                {"data_offset": 4096, "size": 4},
                {"size": 8192},
                {"size": -4},
                {"size": 2**70},
                {"buffer_offset": 2**70, "size": 4},
            ):
                with raises(refused):
                    slot.copy_to_buffer(buffer, **arguments)
            for layout, size in (
                ({"bytes_per_row": 64}, (16, 16)),
                ({"bytes_per_row": 2**40}, (16, 1)),
                ({"bytes_per_row": 2**40}, (16, 2)),
                ({"rows_per_image": 2**40}, (16, 2)),
                ({"rows_per_image": 1}, (16, 2)),
                ({"bytes_per_row": -256}, (16, 1)),
                ({"offset": 3}, (16, 1)),
                ({"offset": -256}, (16, 1)),
                ({"offset": 4096}, (16, 1)),
                ({"offset": 2**70}, (16, 1)),
                ({"offset": "start"}, (16, 1)),
                ({"stride": 256}, (16, 1)),
                (None, None),
            ):
                with raises(refused):
                    slot.copy_to_texture({"texture": texture}, layout, size)
        await ring.submit()
        assert holds(buffer, b"good")
        await box.assert_works(ring)


@case(GROUP, "`allocate` of more than a staging buffer, of a negative size, or of garbage", "`ValueError`, `TypeError`")
async def bad_allocations(box: Sandbox) -> None:
    async with box.ring() as ring:
        with raises(aiostage.AllocationTooLarge, "65536"):
            await ring.allocate(64 * KiB + 1)
        with raises(aiostage.AllocationTooLarge):
            await ring.allocate(2**70)
        for garbage in (-1, 0, "four", None, 4.5, [4], float("nan")):
            with raises((ValueError, TypeError)):
                await ring.allocate(garbage)
        for garbage in (0, -4, "four", None, 4.0):
            with raises((ValueError, TypeError)):
                await ring.allocate(4, alignment=garbage)
        for size, format in (((4, 4), "rgb8"), ((4,) * 4, "r8uint"), ((-4, 4), "r8uint"), ("big", "r8uint"), (4, None)):
            with raises((ValueError, TypeError)):
                await ring.allocate_texture(size, format)
        with raises(aiostage.AllocationTooLarge):
            await ring.allocate_texture((4096, 4096), "rgba8unorm")
        await box.assert_works(ring)


@case(GROUP, "`slot.array` of a garbage type or of a shape that does not fit", "`ValueError`, `TypeError`")
async def bad_arrays(box: Sandbox) -> None:
    async with box.ring() as ring:
        with await ring.allocate(64) as slot:
            for dtype, shape in (
                ("float33", None),
                (object, 4),
                ("O", None),
                ([("a", "O")], 1),
                (7, 1),
                ("u1", 65),
                ("u1", -1),
                ("u1", (-8, -8)),
                ("u1", (2**33, 2**33)),
                ("f4", (4, 5)),
                ("u1", "many"),
                ("S0", 2**62),
            ):
                with raises((ValueError, TypeError)):
                    slot.array(dtype, shape)
        await box.assert_works(ring)


@case(GROUP, "The data is resized or closed while it is being copied", "Python's own `BufferError`, in who does it")
async def data_resized_meanwhile(box: Sandbox) -> None:
    async with box.ring(inline_size=0) as ring:
        buffer, data = box.buffer(1 * MiB), bytearray(b"x" * MiB)
        writing = asyncio.ensure_future(ring.write_buffer(buffer, 0, data))
        await asyncio.sleep(0)
        with raises(BufferError):
            data.clear()
        await writing
        assert holds(buffer, b"x" * MiB)
        await box.assert_works(ring)


@case(GROUP, "The ring is made with garbage: counts, sizes, device", "`ValueError`, `TypeError`; nothing is created")
async def bad_rings(box: Sandbox) -> None:
    for count, size in ((0, 64), (-1, 64), (3, 0), (3, 6), (3, -4), (2.5, 64), ("3", 64), (True, 64), (3, 2.5)):
        with raises((ValueError, TypeError)):
            box.ring(count, size)
    with raises(ValueError, "limit"):
        await box.ring(1, 2**62).open()
    with raises(aiostage.BudgetExceeded):
        await box.ring(1, 64, budget=aiostage.MemoryBudget(32)).open()
    for garbage in (None, 7, box.adapter, box.device.queue):
        with raises(TypeError):
            await aiostage.StagingRing(garbage).open()


@case(GROUP, "The device runs out of memory while the ring is opened", "`OutOfMemory`; nothing is kept")
async def out_of_memory(box: Sandbox) -> None:
    budget = aiostage.MemoryBudget(4096 * MiB)
    ring = box.ring(4, 128 * MiB, budget=budget)
    create, created = box.device.create_buffer, []

    def fail_third(**options: Any) -> wgpu.GPUBuffer:
        if len(created) == 2:
            raise wgpu.GPUOutOfMemoryError("as a device says it that tells them apart")
        created.append(create(**options))
        return created[-1]

    async with box.ring(1, 64):  # what the library itself needs of the device is there
        box.device.create_buffer = fail_third
        with raises(aiostage.OutOfMemory, "staging buffer 3 of 4, 134217728 bytes each"):
            await ring.open()
        box.device.create_buffer = create
    assert budget.used == 0
    with raises(RingClosed):
        await ring.allocate(4)

    if box.device.adapter.info["adapter_type"] == "CPU":  # whose memory is the process's
        in_use = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
        resource.setrlimit(resource.RLIMIT_AS, (in_use + 512 * MiB, resource.RLIM_INFINITY))
        with raises(aiostage.OutOfMemory, "of 16, 134217728 bytes each"):
            await box.ring(16, 128 * MiB, budget=budget).open()
        assert budget.used == 0
    async with box.ring(budget=budget) as ring:
        await box.assert_works(ring)


# -- The ring's and allocations' life --

GROUP = "The life of rings and allocations"


def every_call(ring: aiostage.StagingRing, box: Sandbox) -> list[Callable[[], Any]]:
    """Everything that a ring can be asked for."""
    buffer, texture = box.buffer(), box.texture()

    async def batch() -> None:
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, bytes(16))

    async def frame() -> None:
        async with ring.frame() as frame:
            await frame.write_buffer(buffer, 0, bytes(16))
            frame.encoder.clear_buffer(buffer)

    return [
        lambda: ring.allocate(16),
        lambda: ring.allocate_nowait(16),
        lambda: ring.allocate_texture((4, 4), "rgba8unorm"),
        lambda: ring.submit(),
        lambda: ring.submit_nowait(),
        lambda: ring.advance(),
        lambda: ring.write_buffer(buffer, 0, bytes(16)),
        lambda: ring.write_buffer(buffer, 0, b""),
        lambda: ring.write_texture({"texture": texture}, bytes(1024)),
        batch,
        frame,
        lambda: ring.stats(),
        lambda: ring.current,
    ]


def uses_of(slot: aiostage.Allocation, box: Sandbox) -> list[Callable[[], Any]]:
    """Everything that an open allocation can be asked for."""
    return [
        slot.commit,
        slot.__enter__,
        slot.array,
        lambda: slot.view,
        lambda: slot.copy_to_buffer(box.buffer()),
        lambda: slot.copy_to_texture({"texture": box.texture()}, size=(1, 1)),
    ]


async def assert_every_call_raises(ring: aiostage.StagingRing, box: Sandbox, expected: type[BaseException]) -> None:
    for call in every_call(ring, box):
        with raises(expected):
            result = call()
            if inspect.isawaitable(result):
                await result


@case(GROUP, "A ring is used that was never opened", "`RingClosed`")
async def never_opened(box: Sandbox) -> None:
    ring = box.ring()
    await assert_every_call_raises(ring, box, RingClosed)
    await ring.aclose()
    ring.stats_nowait()
    repr(ring)
    assert [stats async for stats in ring.watch()] == []


@case(GROUP, "A ring is used after it was closed", "`RingClosed`; closing it again does nothing")
async def used_after_close(box: Sandbox) -> None:
    async with box.ring() as ring:
        await box.assert_works(ring)
    await assert_every_call_raises(ring, box, RingClosed)
    await ring.aclose()
    ring.stats_nowait()
    repr(ring)


@case(GROUP, "A ring is opened twice", "`RuntimeError`; the ring works on")
async def opened_twice(box: Sandbox) -> None:
    async with box.ring() as ring:
        with raises(RuntimeError, "opened once"):
            await ring.open()
        await box.assert_works(ring)
    with raises(RuntimeError, "opened once"):  # nor after it was closed
        await ring.open()


@case(GROUP, "A ring is closed while a task waits in `allocate` and another in a large upload", "`RingClosed` in both")
async def closed_under_way(box: Sandbox) -> None:
    ring = box.ring(2, 4 * KiB)
    await ring.open()
    slots = [await ring.allocate(4 * KiB) for _ in range(2)]
    waiter = asyncio.ensure_future(ring.allocate(4))
    upload = asyncio.ensure_future(ring.write_buffer(box.buffer(MiB), 0, bytes(MiB)))
    await asyncio.sleep(0.01)
    await ring.aclose()
    for task in (waiter, upload):
        with raises(RingClosed):
            await task
    for slot in slots:
        slot.abandon()


@case(GROUP, "An allocation is committed twice, or after it was abandoned", "`AllocationClosed`")
async def double_commit(box: Sandbox) -> None:
    async with box.ring() as ring:
        slot = await ring.allocate(16)
        slot.copy_to_buffer(box.buffer())
        slot.commit()
        slot.abandon()  # does nothing
        for use in uses_of(slot, box):
            with raises(AllocationClosed):
                use()
        slot = await ring.allocate(16)
        slot.abandon()
        slot.abandon()
        with raises(AllocationClosed):
            slot.commit()
        await box.assert_works(ring)


@case(
    GROUP,
    "An allocation is used or committed after its ring was closed",
    "`RingClosed`; its arrays and views can still be read and written without harm, what is written goes nowhere",
)
async def allocation_after_close(box: Sandbox) -> None:
    async with box.ring() as ring:
        slot = await ring.allocate(64 * KiB)
        array, view = slot.array(np.uint32), slot.view
        array[:] = 7
        row = array[8:16]
    for use in uses_of(slot, box):
        with raises(RingClosed):
            use()
    del use
    with contextlib.suppress(ValueError):
        read_and_write(array, view, row)
    slot.abandon()
    del slot
    gc.collect()
    with contextlib.suppress(ValueError):
        read_and_write(array, view, row)
    assert int(array.sum()) >= 0


def read_and_write(*views: Any) -> None:
    """Touch every byte. A view that was released or made read-only raises ValueError."""
    for view in views:
        array = np.frombuffer(view, np.uint8) if isinstance(view, memoryview) else np.asarray(view)
        array.sum()
        if array.flags.writeable:
            array[:] = 9
            assert (array == 9).all()


@case(
    GROUP,
    "A committed array is read after the ring was closed, or written",
    "reading works; writing raises `ValueError`",
)
async def committed_array_after_close(box: Sandbox) -> None:
    async with box.ring() as ring:
        with await ring.allocate(64 * KiB) as slot:
            array = slot.array()
            array[:] = 7
            slot.copy_to_buffer(box.buffer(64 * KiB))
        await (await ring.submit())
        array.sum()
        with raises(ValueError, "read-only"):
            array[0] = 1
    del ring, slot
    gc.collect()
    array.sum()
    with raises(ValueError, "read-only"):
        array[0] = 1


@case(
    GROUP,
    "A view of another kind is alive at commit",
    "`ViewStillAlive`; once it is gone the commit works. After `with slot:` the slot is abandoned",
)
async def view_alive_at_commit(box: Sandbox) -> None:
    async with box.ring() as ring:
        slot = await ring.allocate(16)
        foreign = np.frombuffer(slot.view, np.uint8)
        with raises(aiostage.ViewStillAlive):
            slot.commit()
        del foreign
        slot.copy_to_buffer(box.buffer())
        slot.commit()
        kept = []
        with raises(aiostage.ViewStillAlive):
            with await ring.allocate(16) as slot:
                kept.append(np.frombuffer(slot.view, np.uint8))
        kept[0][:] = 1
        await ring.submit()
        await asyncio.wait_for(box.assert_works(ring), 5)
        kept.clear()
        await box.assert_works(ring)
    async with box.ring(strict_views=True) as ring:
        slot = await ring.allocate(16)
        array = slot.array()
        with raises(aiostage.ViewStillAlive):
            slot.commit()
        del array
        slot.commit()


@case(GROUP, "A staging buffer, `slot.buffer.handle`, is destroyed, unmapped or mapped by the user", "`StagingError`")
async def staging_buffer_destroyed(box: Sandbox) -> None:
    async with box.ring() as ring:
        with await ring.allocate(16) as slot:
            handle = slot.buffer.handle
            for use in (handle.destroy, handle.unmap, lambda: handle.map_async(MapMode.WRITE)):
                with raises(aiostage.StagingError, "ring"):
                    use()
            slot.copy_to_buffer(box.buffer())
        await (await ring.submit())
        with raises(aiostage.StagingError, "ring"):
            handle.destroy()
        await box.assert_works(ring)


@case(GROUP, "A view is alive when its ring is closed and gone", "it can be read and written; memory goes with it")
async def view_outlives_the_ring(box: Sandbox) -> None:
    ring = box.ring(1)
    await ring.open()
    kept = []
    with raises(aiostage.ViewStillAlive):
        with await ring.allocate(64 * KiB) as slot:
            kept.append(np.frombuffer(slot.view, np.uint8))
    await ring.aclose()
    del ring, slot
    gc.collect()
    read_and_write(*kept)


@case(GROUP, "An allocation is dropped without commit", "`ResourceWarning`; its place comes back")
async def allocation_dropped(box: Sandbox) -> None:
    async with box.ring(1, 4 * KiB) as ring:
        for _ in range(3):
            slot = await asyncio.wait_for(ring.allocate(4 * KiB), 5)
            with warnings.catch_warnings(record=True) as caught:
                warnings.simplefilter("always")
                del slot
                gc.collect()
            assert [w.category for w in caught] == [ResourceWarning], [str(w.message) for w in caught]
        await box.assert_works(ring)


@case(GROUP, "A ring is dropped without being closed, with work in flight", "`ResourceWarning`")
async def ring_dropped(box: Sandbox) -> None:
    ring = box.ring()
    await ring.open()
    box.busy()
    await ring.write_buffer(box.buffer(MiB), 0, bytes(MiB))
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        del ring
        for _ in range(50):
            await asyncio.sleep(0.01)
            gc.collect()
    assert ResourceWarning in [w.category for w in caught]
    async with box.ring() as ring:
        await box.assert_works(ring)


@case(GROUP, "A batch or frame is used outside its block, or entered twice", "`AllocationClosed`")
async def batch_outside_its_block(box: Sandbox) -> None:
    async with box.ring() as ring:
        for make in (ring.batch, ring.frame):
            batch = make()
            with raises(AllocationClosed):
                await batch.write_buffer(box.buffer(), 0, bytes(4))
            async with batch:
                with raises(AllocationClosed):
                    await batch.__aenter__()
                await batch.write_buffer(box.buffer(), 0, bytes(4))
            with raises(AllocationClosed):
                await batch.write_buffer(box.buffer(), 0, bytes(4))
            with raises(AllocationClosed):
                await batch.__aenter__()
        with raises(AllocationClosed):
            _ = batch.encoder
        await box.assert_works(ring)


@case(
    GROUP,
    "Open allocations hold every buffer while somebody waits",
    "`StallTimeout` after `stall_timeout`, with who holds what",
)
async def everything_held(box: Sandbox) -> None:
    async with box.ring(2, 4 * KiB, stall_timeout=0.1) as ring:
        slots = [await ring.allocate(4 * KiB) for _ in range(2)]
        for wait in (
            lambda: ring.allocate(4),
            lambda: ring.write_buffer(box.buffer(), 0, bytes(4)),
        ):
            with raises(aiostage.StallTimeout, "4096 bytes"):
                await wait()
        with raises(anyio.WouldBlock):
            ring.allocate_nowait(4)
        for slot in slots:
            slot.abandon()
        await box.assert_works(ring)


@case(
    GROUP,
    "The GPU is busy for longer than `fence_timeout` while somebody waits for a buffer or closes the ring",
    "`FenceTimeout`, and closed is closed; once it is done everything works on",
)
async def gpu_busy_for_long(box: Sandbox) -> None:
    slow = box.device.adapter.info["adapter_type"] == "CPU"
    async with box.ring(2, 16 * KiB, fence_timeout=0.02) as ring:
        buffer = box.buffer(64 * KiB)
        box.busy(80 if slow else 8000)
        upload = asyncio.ensure_future(ring.write_buffer(buffer, 0, bytes(32 * KiB)))
        await asyncio.sleep(0.1)
        for wait in (
            lambda: ring.allocate(4),
            lambda: ring.write_buffer(buffer, 0, bytes(64 * KiB)),
        ):
            with raises(aiostage.FenceTimeout):
                await wait()
        await (await upload)
        await box.assert_works(ring)

    ring = box.ring(fence_timeout=0.02)
    await ring.open()
    box.busy(80 if slow else 8000)
    await ring.write_buffer(buffer, 0, bytes(16))
    with raises((aiostage.FenceTimeout, NoError)):
        await ring.aclose()
        raise NoError
    with raises(RingClosed):
        await ring.allocate(4)
    async with box.ring() as ring:
        await box.assert_works(ring)


# -- Devices --

GROUP = "Lost devices"


@case(GROUP, "The device is destroyed before the ring is opened", "`DeviceLost`")
async def device_destroyed_before_open(box: Sandbox) -> None:
    ring = box.ring()
    box.device.destroy()
    with raises(DeviceLost):
        await ring.open()


@case(GROUP, "The device is destroyed before a call", "`DeviceLost` from every call that needs it; closing works")
async def device_destroyed_before_calls(box: Sandbox) -> None:
    async with box.ring() as ring:
        calls = every_call(ring, box)
        box.device.destroy()
        for call in calls:
            with raises((DeviceLost, NoError)):
                result = call()
                if inspect.isawaitable(result):
                    result = await result
                if isinstance(result, aiostage.Allocation):
                    result.abandon()
                raise NoError
        with raises(DeviceLost):
            await ring.write_buffer(calls[6].__closure__[0].cell_contents, 0, bytes(4))


class NoError(Exception):
    """A call that needs no device may work without one."""


@case(GROUP, "The device is destroyed while uploads run and tasks wait", "`DeviceLost` in each; nothing hangs")
async def device_destroyed_during_calls(box: Sandbox) -> None:
    async with box.ring(2, 16 * KiB, inline_size=0) as ring:
        buffer, texture = box.buffer(4 * MiB), box.texture(size=(1024, 1024, 1))
        tasks = [asyncio.ensure_future(ring.write_buffer(buffer, 0, bytes(4 * MiB))) for _ in range(5)]
        tasks += [asyncio.ensure_future(ring.write_texture({"texture": texture}, bytes(4 * MiB))) for _ in range(5)]
        tasks += [asyncio.ensure_future(ring.allocate(16 * KiB)) for _ in range(5)]
        await asyncio.sleep(0.02)
        box.device.destroy()
        for task in tasks:
            with raises((DeviceLost, NoError)):  # some may be through
                result = await asyncio.wait_for(task, 10)
                if isinstance(result, aiostage.Allocation):
                    result.abandon()
                raise NoError


@case(GROUP, "The device is destroyed with fences pending", "awaiting them raises `DeviceLost`")
async def device_destroyed_with_fences(box: Sandbox) -> None:
    async with box.ring() as ring:
        box.busy()
        fence = await ring.write_buffer(box.buffer(), 0, bytes(1024))
        tracker = aiostage.FenceTracker(box.device)
        own = tracker.insert()
        box.device.destroy()
        for pending in (fence, own):
            with raises((DeviceLost, NoError)):  # a software adapter may have finished
                await pending.wait(5)
                raise NoError
        with raises(DeviceLost):
            await tracker.insert().wait(5)
        tracker.close()


@case(
    GROUP,
    "The device is destroyed with an allocation, batch and frame open",
    "leaving them raises `DeviceLost`",
)
async def device_destroyed_with_everything_open(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()
        slot = await ring.allocate(16)
        slot.copy_to_buffer(buffer)
        with raises(DeviceLost):
            async with ring.batch() as batch, ring.frame() as frame:
                await batch.write_buffer(buffer, 0, bytes(16))
                await frame.write_buffer(buffer, 0, bytes(16))
                _ = frame.encoder
                box.device.destroy()
        with raises((DeviceLost, NoError)):
            slot.commit()
            raise NoError
        with raises(DeviceLost):
            await ring.submit()


@case(
    GROUP,
    "An open allocation's array or view is read or written after the device was destroyed",
    "it works without harm; what is written goes nowhere",
)
async def views_after_device_destroyed(box: Sandbox) -> None:
    async with box.ring(2, MiB) as ring:
        slot = await ring.allocate(MiB)
        array, view = slot.array(), slot.view
        array[:] = 7
        box.device.destroy()
        gc.collect()
        read_and_write(array, view)
        await asyncio.sleep(0.05)
        read_and_write(array, view)
        slot.abandon()
    del ring, slot
    gc.collect()
    array.sum()


@case(GROUP, "A committed array is read after the device was destroyed", "it works")
async def committed_array_after_device_destroyed(box: Sandbox) -> None:
    async with box.ring(2, MiB) as ring:
        with await ring.allocate(MiB) as slot:
            array = slot.array()
            array[:] = 7
            slot.copy_to_buffer(box.buffer(MiB))
        await (await ring.submit())
        box.device.destroy()
        gc.collect()
        array.sum()
        with raises(ValueError):
            array[:] = 1
    array.sum()


@case(GROUP, "The device is destroyed between staging with `encoder=` and commit", "`DeviceLost` or `InvalidCopy`")
async def device_destroyed_before_recording(box: Sandbox) -> None:
    async with box.ring() as ring:
        encoder = box.device.create_command_encoder()
        slot = await ring.allocate(16)
        slot.copy_to_buffer(box.buffer(), encoder=encoder)
        box.device.destroy()
        with raises((DeviceLost, InvalidCopy)):
            slot.commit()


@case(GROUP, "The device is destroyed and the ring closed in any order, twice", "closing works")
async def closed_after_device_destroyed(box: Sandbox) -> None:
    ring = box.ring()
    await ring.open()
    await ring.write_buffer(box.buffer(), 0, bytes(16))
    box.device.destroy()
    box.device.destroy()
    await asyncio.wait_for(ring.aclose(), 10)
    await ring.aclose()


# -- Loops and threads --

GROUP = "Loops, threads, processes"


@case(GROUP, "A ring is used on another event loop than its own", "`WrongLoop`")
def another_loop(box: Sandbox) -> None:
    with asyncio.Runner() as runner:
        ring = box.ring()
        runner.run(ring.open())
        slot = runner.run(ring.allocate(16))
        fence = runner.run(ring.write_buffer(box.buffer(), 0, bytes(16)))

        async def elsewhere() -> None:
            await assert_every_call_raises(ring, box, WrongLoop)
            for use in uses_of(slot, box):
                with raises(WrongLoop):
                    use()
            with raises(WrongLoop):
                await ring.aclose()
            if not fence.done():
                with raises(WrongLoop):
                    await fence

        asyncio.run(elsewhere())
        runner.run(ring.aclose())


@case(GROUP, "A ring or an allocation is used in another thread", "`WrongLoop`; the ring works on")
async def another_thread(box: Sandbox) -> None:
    async with box.ring() as ring:
        slot = await ring.allocate(16)
        buffer, errors = box.buffer(), []

        def use_all() -> None:
            for use in (
                lambda: ring.allocate_nowait(16),
                lambda: ring.submit_nowait(),
                lambda: ring.advance(),
                lambda: slot.view,
                lambda: slot.array(),
                lambda: slot.copy_to_buffer(buffer),
                lambda: slot.commit(),
                lambda: slot.abandon(),
                lambda: asyncio.run(ring.allocate(16)),
                lambda: asyncio.run(ring.write_buffer(buffer, 0, bytes(16))),
            ):
                try:
                    use()
                except WrongLoop:
                    errors.append(None)
                except BaseException as error:
                    errors.append(error)
                else:
                    errors.append("no error")

        await asyncio.to_thread(use_all)
        assert errors == [None] * 10, errors
        slot.copy_to_buffer(buffer)
        slot.commit()
        await ring.submit()
        await box.assert_works(ring)


@case(GROUP, "An array is written in another thread, after commit", "`ValueError` there")
async def written_in_a_thread_after_commit(box: Sandbox) -> None:
    async with box.ring() as ring:
        with await ring.allocate(16) as slot:
            array = slot.array()
            await asyncio.to_thread(array.fill, 7)
            slot.copy_to_buffer(box.buffer())
        with raises(ValueError, "read-only"):
            await asyncio.to_thread(array.fill, 8)
        await box.assert_works(ring)


@case(GROUP, "There is no event loop", "`WrongLoop`")
def no_loop(box: Sandbox) -> None:
    with raises(WrongLoop):
        aiostage.FenceTracker(box.device)
    with raises(RuntimeError, "one-shot"):
        opening = box.ring().open()
        try:
            opening.send(None)
        except WrongLoop:
            raise RuntimeError("one-shot") from None


@case(GROUP, "The loop ends with the ring open; another loop opens a ring on the same device", "the new ring works")
def loop_ends_with_ring_open(box: Sandbox) -> None:
    rings = []

    async def first() -> None:
        ring = box.ring()
        rings.append(ring)
        await ring.open()
        box.busy()
        await ring.write_buffer(box.buffer(), 0, bytes(16))

    async def second() -> None:
        async with box.ring() as ring:
            await box.assert_works(ring)

    for loop in LOOPS.values():
        anyio.run(first, **loop)
        anyio.run(second, **loop)
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            rings.clear()
            for _ in range(250):  # the GPU may still owe a mapping, which keeps the ring
                gc.collect()
                if ResourceWarning in [w.category for w in caught]:
                    break
                time.sleep(0.02)
        assert ResourceWarning in [w.category for w in caught]


@case(
    GROUP, "The loop is stopped and closed while tasks are suspended in every call", "the process ends, with status 0"
)
def loop_closed_under_tasks(box: Sandbox) -> None:
    loop, kept = asyncio.new_event_loop(), []

    async def main() -> None:
        ring = box.ring(2, 16 * KiB, inline_size=0)
        await ring.open()
        buffer = box.buffer(MiB)
        kept.append([await ring.allocate(16) for _ in range(3)])

        async def batch() -> None:
            async with ring.batch() as batch, ring.frame() as frame:
                await frame.write_buffer(buffer, 0, bytes(MiB))
                await batch.write_buffer(buffer, 0, bytes(MiB))

        box.busy(20)
        calls = (
            lambda: ring.write_buffer(buffer, 0, bytes(MiB)),
            batch,
            lambda: ring.allocate(16 * KiB),
            ring.submit,
            lambda: ring._tracker.wait_all(),
            lambda: aiostage.StagingRing(box.device).open(),
        )
        kept.extend(asyncio.ensure_future(call()) for call in calls)
        await asyncio.sleep(0.02)
        loop.stop()
        await asyncio.sleep(1)

    with raises(RuntimeError, "stopped before"):
        loop.run_until_complete(main())
    loop.close()
    logging.disable()  # asyncio's own complaints
    warnings.simplefilter("ignore")
    kept.clear()
    gc.collect()


@case(GROUP, "Two threads, each with a loop and a ring of its own, use the same device at the same time", "it works")
def two_loops_at_once(box: Sandbox) -> None:
    targets = [box.buffer(MiB) for _ in LOOPS]

    async def stream(target: wgpu.GPUBuffer, value: int) -> None:
        async with box.ring(2, 16 * KiB, inline_size=1024) as ring:
            for _ in range(5):
                async with anyio.create_task_group() as group:
                    for start in range(0, MiB, 64 * KiB):
                        group.start_soon(ring.write_buffer, target, start, bytes([value]) * 64 * KiB)
            await box.assert_works(ring)

    def run(index: int, loop: dict[str, Any]) -> None:
        anyio.run(stream, targets[index], index + 1, **loop)

    with ThreadPoolExecutor() as pool:
        for _ in pool.map(run, range(3), LOOPS.values()):
            pass
    for index, target in enumerate(targets):
        assert holds(target, bytes([index + 1]) * MiB)


@case(GROUP, "A task is cancelled at any await of the library", "only that task; the ring works on")
async def cancelled_anywhere(box: Sandbox) -> None:
    async with box.ring(2, 4 * KiB, inline_size=1024) as ring:
        buffer = box.buffer(64 * KiB)

        async def work() -> None:
            async with ring.frame() as frame, ring.batch() as batch:
                await batch.write_buffer(buffer, 0, bytes(16 * KiB))
                await frame.write_buffer(buffer, 0, bytes(16 * KiB))
                await ring.write_buffer(buffer, 0, bytes(16 * KiB))
                with await ring.allocate(64) as slot:
                    slot.copy_to_buffer(buffer)
                await (await ring.submit())

        for turns in range(60):
            tasks = [asyncio.ensure_future(work()) for _ in range(3)]
            for _ in range(turns):
                await asyncio.sleep(0.0002)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks, timeout=10)
            assert all(task.done() for task in tasks)
            for task in tasks:
                if not task.cancelled():
                    task.result()
        await box.assert_works(ring)


@case(GROUP, "The interpreter exits with work in flight and the ring open", "it exits, with status 0")
def exit_with_work_in_flight(box: Sandbox) -> None:
    keep: Any = box

    async def main() -> None:
        keep.open_ring = ring = box.ring(3, MiB)
        await ring.open()
        box.busy()
        for _ in range(10):
            await ring.write_buffer(box.buffer(MiB), 0, bytes(MiB))

    asyncio.run(main())
    sys.modules["__main__"].__dict__["keep"] = keep
    warnings.simplefilter("ignore")


@case(GROUP, "The interpreter exits with an allocation, a batch and views open", "it exits, with status 0")
def exit_with_allocation_open(box: Sandbox) -> None:
    kept: list[Any] = []

    async def main() -> None:
        ring = box.ring()
        await ring.open()
        slot = await ring.allocate(1024)
        batch = ring.batch()
        await batch.__aenter__()
        await batch.write_buffer(box.buffer(), 0, bytes(16))
        kept.extend([ring, slot, slot.array(), slot.view, batch])

    asyncio.run(main())
    sys.modules["__main__"].__dict__["kept"] = kept
    warnings.simplefilter("ignore")


@case(
    GROUP,
    "The interpreter exits while a thread is in a submit that takes long, as on a software adapter",
    "it waits for that, five seconds at most, and exits, with status 0",
)
def exit_during_a_submit(box: Sandbox) -> None:
    async def main() -> None:
        ring = sys.modules["__main__"].__dict__["keep"] = box.ring()
        await ring.open()
        box.busy(100)
        uploads = [ring.write_buffer(box.buffer(), 0, bytes(16)) for _ in range(3)]
        sys.modules["__main__"].__dict__["tasks"] = [asyncio.ensure_future(upload) for upload in uploads]
        await asyncio.sleep(0.02)

    loop = asyncio.new_event_loop()
    loop.run_until_complete(main())
    logging.disable()  # asyncio's own complaints
    warnings.simplefilter("ignore")


@case(GROUP, "`sys.exit` in the middle of a block, with uploads running", "the program ends with that status")
def system_exit(box: Sandbox) -> None:
    async def main() -> None:
        async with box.ring() as ring, asyncio.TaskGroup() as tasks:
            for _ in range(5):
                tasks.create_task(ring.write_buffer(box.buffer(MiB), 0, bytes(MiB)))
            await asyncio.sleep(0)
            async with ring.frame() as frame:
                await frame.write_buffer(box.buffer(), 0, bytes(16))
                raise SystemExit(3)

    with raises(SystemExit, "3"):
        asyncio.run(main())


@case(GROUP, "Ctrl-C while tasks upload", "`KeyboardInterrupt`; the blocks are left in order")
def keyboard_interrupt(box: Sandbox) -> None:
    left = []

    async def main() -> None:
        async with box.ring() as ring:
            try:
                buffer = box.buffer(MiB)
                asyncio.get_running_loop().call_later(0.1, os.kill, os.getpid(), signal.SIGINT)
                while True:
                    async with ring.batch() as batch:
                        await batch.write_buffer(buffer, 0, bytes(MiB))
            finally:
                left.append(ring)

    with raises(KeyboardInterrupt):
        asyncio.run(main())
    with raises(RingClosed):
        left[0].allocate_nowait(4)


@case(GROUP, "KeyboardInterrupt is raised inside a coroutine", "it ends the loop; what is open is abandoned")
def keyboard_interrupt_in_a_coroutine(box: Sandbox) -> None:
    async def main() -> None:
        async with box.ring() as ring:
            slot = await ring.allocate(16)
            with slot:
                slot.copy_to_buffer(box.buffer())
                raise KeyboardInterrupt

    with raises(KeyboardInterrupt):
        asyncio.run(main())


def in_child(act: Callable[[], Any]) -> bytes:
    """What `act` returns or raises in a forked child, which has half a minute and ends as multiprocessing's do."""
    read, write = os.pipe()
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # newer Pythons warn of any fork beside threads
        child = os.fork()
    if child == 0:
        signal.signal(signal.SIGALRM, signal.SIG_DFL)
        signal.alarm(30)  # one that hangs ends by a signal
        try:
            said = repr(act())
        except BaseException as error:
            said = type(error).__name__
        os.write(write, said.encode())
        os._exit(0)
    os.close(write)
    _, status = os.waitpid(child, 0)
    assert status == 0, status
    return os.read(read, 1000)


@case(GROUP, "The process forks and the child uses the ring", "`WrongLoop` in the child; the parent works on")
async def fork(box: Sandbox) -> None:
    async with box.ring() as ring:
        await box.assert_works(ring)
        buffer = box.buffer()
        assert in_child(lambda: ring.allocate_nowait(16)) == b"WrongLoop"
        await ring.write_buffer(buffer, 0, bytes(16))
        await box.assert_works(ring)


@case(
    GROUP, "The same on trio, whose running loop a child takes along", "`WrongLoop` in the child; the parent works on"
)
def fork_on_trio(box: Sandbox) -> None:
    async def main() -> None:
        async with box.ring() as ring:
            slot = await ring.allocate(16)
            for use in (lambda: ring.allocate_nowait(16), ring.submit_nowait, slot.commit, slot.abandon):
                assert in_child(use) == b"WrongLoop"
            slot.abandon()
            await box.assert_works(ring)

    anyio.run(main, backend="trio")


@case(GROUP, "The process forks and the child opens a ring on the parent's device", "`WrongLoop` in the child")
def ring_opened_after_fork(box: Sandbox) -> None:
    async def work() -> None:
        async with box.ring() as ring:
            await box.assert_works(ring)

    asyncio.run(work())
    assert in_child(lambda: asyncio.run(work())) == b"WrongLoop"
    asyncio.run(work())


@case(GROUP, "The process forks while uploads run, and the child does something else", "both end well")
async def child_minds_its_own_business(box: Sandbox) -> None:
    async with box.ring(inline_size=0) as ring:
        buffer = box.buffer(MiB)
        uploads = [asyncio.ensure_future(ring.write_buffer(buffer, 0, bytes([7]) * MiB)) for _ in range(3)]
        await asyncio.sleep(0.001)
        assert in_child(lambda: gc.collect() >= 0) == b"True"
        for upload in uploads:
            await upload
        assert holds(buffer, bytes([7]) * MiB)


# -- Encoders and command buffers --

GROUP = "Encoders and command buffers"


@case(GROUP, "A command buffer recorded with `encoder=` is handed to `device.queue.submit`", "it works")
async def own_submit(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()
        for value in range(8):
            encoder = box.device.create_command_encoder()
            with await ring.allocate(16) as slot:
                slot.view[:] = bytes([value]) * 16
                slot.copy_to_buffer(buffer, encoder=encoder)
            box.device.queue.submit([encoder.finish()])
            assert holds(buffer, bytes([value]) * 16)
        await box.assert_works(ring)


@case(GROUP, "It is submitted after the ring was closed", "it works")
async def submitted_after_close(box: Sandbox) -> None:
    buffer = box.buffer()
    async with box.ring() as ring:
        encoder = box.device.create_command_encoder()
        with await ring.allocate(16) as slot:
            slot.view[:] = b"sixteen bytes..."
            slot.copy_to_buffer(buffer, encoder=encoder)
    box.device.queue.submit([encoder.finish()])
    assert holds(buffer, b"sixteen bytes...")


@case(GROUP, "It is never submitted, or never finished", "nothing: the staging buffer comes back all the same")
async def never_submitted(box: Sandbox) -> None:
    async with box.ring(2, 4 * KiB, stall_timeout=2) as ring:
        kept = []
        for i in range(10):
            encoder = box.device.create_command_encoder()
            with await ring.allocate(4 * KiB) as slot:
                slot.copy_to_buffer(box.buffer(4 * KiB), encoder=encoder)
            kept.append(encoder.finish() if i % 2 else encoder)
        await box.assert_works(ring)
        kept.clear()
        gc.collect()
        await box.assert_works(ring)


@case(GROUP, "A command buffer is given to `ring.submit` twice", "`InvalidSubmit`; nothing is submitted")
async def submitted_twice(box: Sandbox) -> None:
    async with box.ring() as ring:
        command_buffer = box.recorded()
        await ring.submit([command_buffer])
        for again in ([command_buffer], [box.recorded(), command_buffer]):
            with raises(InvalidSubmit, "submitted before"):
                await ring.submit(again)
        fresh = box.recorded()
        with raises(InvalidSubmit):
            ring.submit_nowait([fresh, fresh])
        await ring.submit([fresh])
        await box.assert_works(ring)


@case(GROUP, "A command buffer that `queue.submit` ran is given to `ring.submit`", "`InvalidSubmit`")
async def submitted_elsewhere_before(box: Sandbox) -> None:
    async with box.ring() as ring:
        command_buffer = box.recorded()
        box.device.queue.submit([command_buffer])
        with raises(InvalidSubmit, "submitted before"):
            await ring.submit([command_buffer])
        await box.assert_works(ring)


@case(GROUP, "`queue.submit` is given one twice, or one that `ring.submit` ran", "`InvalidSubmit`")
async def submitted_again_elsewhere(box: Sandbox) -> None:
    async with box.ring() as ring:
        commands = box.recorded()
        with raises(InvalidSubmit, "runs once"):
            box.device.queue.submit([commands, commands])
        await ring.submit([commands])
        with raises(InvalidSubmit, "runs once"):
            box.device.queue.submit([commands])
        await box.assert_works(ring)


@case(
    GROUP,
    "wgpu-py's `submit` and `destroy` are wrapped by somebody else before, and unwrapped while a ring is open",
    "what they did is known all the same",
)
async def methods_unwrapped(box: Sandbox) -> None:
    owners = [(type(box.device.queue), "submit"), (type(box.buffer()), "destroy"), (type(box.texture()), "destroy")]
    originals = [getattr(owner, name) for owner, name in owners]
    for (owner, name), original in zip(owners, originals, strict=True):
        setattr(owner, name, lambda *args, call=original: call(*args))
    async with box.ring() as ring:
        for (owner, name), original in zip(owners, originals, strict=True):
            setattr(owner, name, original)
        commands, buffer, texture = box.recorded(), box.buffer(), box.texture()
        await ring.write_buffer(buffer, 0, bytes(16))
        await ring.write_texture({"texture": texture}, bytes(1024))
        box.device.queue.submit([commands])
        with raises(InvalidSubmit, "runs once"):
            await ring.submit([commands])
        buffer.destroy()
        texture.destroy()
        with raises(InvalidCopy, "destroyed"):
            await ring.write_buffer(buffer, 0, bytes(16))
        with raises(InvalidCopy, "destroyed"):
            await ring.write_texture({"texture": texture}, bytes(1024))
        await box.assert_works(ring)


@case(GROUP, "Two tasks give the same command buffer to `ring.submit` at the same time", "`InvalidSubmit` in one")
async def submitted_by_two_tasks(box: Sandbox) -> None:
    async with box.ring() as ring:
        command_buffer = box.recorded()
        results = await asyncio.gather(*(ring.submit([command_buffer]) for _ in range(2)), return_exceptions=True)
        assert sorted(type(result).__name__ for result in results) == ["Fence", "InvalidSubmit"], results
        await box.assert_works(ring)


@case(GROUP, "A command buffer of another device", "`InvalidSubmit`; nothing is submitted")
async def other_devices_command_buffer(box: Sandbox) -> None:
    async with box.ring() as ring:
        with raises(InvalidSubmit, "another device"):
            await ring.submit([box.other_device.create_command_encoder().finish()])
        await box.assert_works(ring)


@case(GROUP, "Garbage in place of command buffers: an encoder, None, text", "`InvalidSubmit` or `TypeError`")
async def garbage_command_buffers(box: Sandbox) -> None:
    async with box.ring() as ring:
        for garbage in (None, 7, [None], "text", [box.device.create_command_encoder()], [box.buffer()], box.recorded()):
            with raises((InvalidSubmit, TypeError)):
                await ring.submit(garbage)
            with raises((InvalidSubmit, TypeError)):
                ring.submit_nowait(garbage)
        await box.assert_works(ring)


@case(GROUP, "The encoder was finished before the commit", "`InvalidCopy` from the commit; the place comes back")
async def encoder_finished(box: Sandbox) -> None:
    async with box.ring(1) as ring:
        encoder = box.device.create_command_encoder()
        slot = await ring.allocate(16)
        slot.copy_to_buffer(box.buffer(), encoder=encoder)
        encoder.finish()
        with raises(InvalidCopy):
            slot.commit()
        await asyncio.wait_for(box.assert_works(ring), 5)


@case(GROUP, "The encoder has a pass open at the commit", "wgpu's own `GPUError` from its `finish`")
async def encoder_in_a_pass(box: Sandbox) -> None:
    async with box.ring(1) as ring:
        encoder = box.device.create_command_encoder()
        slot = await ring.allocate(16)
        slot.copy_to_buffer(box.buffer(), encoder=encoder)
        encoder.begin_compute_pass()
        slot.commit()
        with raises(wgpu.GPUValidationError):
            encoder.finish()
        await asyncio.wait_for(box.assert_works(ring), 5)


@case(GROUP, "The encoder is another device's, or no encoder", "`InvalidCopy`; the place comes back")
async def bad_encoders(box: Sandbox) -> None:
    async with box.ring(1) as ring:
        for garbage in (box.other_device.create_command_encoder(), 7, box.device, "encoder", box.recorded()):
            with raises(InvalidCopy, "encoder"):
                with await ring.allocate(16) as slot:
                    slot.copy_to_buffer(box.buffer(), encoder=garbage)
        await asyncio.wait_for(box.assert_works(ring), 5)


@case(GROUP, "The destination of a copy with `encoder=` is destroyed before the commit", "`InvalidCopy`")
async def destroyed_before_recording(box: Sandbox) -> None:
    async with box.ring(1) as ring:
        encoder = box.device.create_command_encoder()
        for destination in (box.buffer(), box.texture()):
            slot = await ring.allocate(16)
            if isinstance(destination, wgpu.GPUBuffer):
                slot.copy_to_buffer(destination, encoder=encoder)
            else:
                slot.copy_to_texture({"texture": destination}, size=(4, 1), encoder=encoder)
            destination.destroy()
            with raises(InvalidCopy, "destroyed"):
                slot.commit()
        await asyncio.wait_for(box.assert_works(ring), 5)


@case(GROUP, "`frame.encoder` was finished by the user, or has an invalid command in it", "wgpu's `GPUValidationError`")
async def bad_frame_encoder(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()
        with raises(wgpu.GPUValidationError):
            async with ring.frame() as frame:
                await frame.write_buffer(buffer, 0, bytes(16))
                frame.encoder.finish()
        with raises(wgpu.GPUValidationError):
            async with ring.frame() as frame:
                frame.encoder.copy_buffer_to_buffer(buffer, 0, buffer, 0, 1024)
        with raises(wgpu.GPUValidationError):
            async with ring.frame() as frame:
                frame.encoder.begin_compute_pass()
        await box.assert_works(ring)


@case(GROUP, "An exception is raised inside a batch or frame", "that exception; its uploads are abandoned")
async def exception_inside(box: Sandbox) -> None:
    async with box.ring() as ring:
        for make in (ring.batch, ring.frame):
            buffer = box.buffer()
            with raises(ZeroDivisionError):
                async with make() as batch:
                    await batch.write_buffer(buffer, 0, b"uploaded")
                    raise ZeroDivisionError
            with raises(aiostage.AllocationClosed):
                _ = batch.fence
            await box.assert_works(ring)
            assert holds(buffer, bytes(8))


# -- The synchronous facade --

GROUP = "The synchronous facade, `aiostage.memory`"


@case(
    GROUP, "The interpreter exits with it initialized, work in flight and a thread blocked", "it exits, with status 0"
)
def exit_with_manager_open(box: Sandbox) -> None:
    manager = memory.StagingRingManager(3, 64 * KiB, device=box.device)
    assert manager.initialize()
    sys.modules["__main__"].__dict__["keep"] = manager
    box.busy()
    manager.upload(box.buffer(MiB), bytes(MiB))

    def wait() -> None:
        with raises(RingClosed):
            manager.call(lambda ring: anyio.sleep(3600))

    threading.Thread(target=wait, daemon=True).start()


@case(GROUP, "The process forks and the child uses it", "`RingClosed` in the child; the parent works on")
def fork_with_manager(box: Sandbox) -> None:
    with memory.StagingRingManager(3, 64 * KiB, device=box.device) as manager:
        child = os.fork()
        if child == 0:
            try:
                manager.stats()
            except aiostage.RingClosed:
                manager.close()
                os._exit(0)
            os._exit(1)
        _, status = os.waitpid(child, 0)
        assert status == 0
        manager.call(box.assert_works)


@case(GROUP, "It is initialized twice, used before or after", "`AlreadyInitialized`, `RingClosed`")
def manager_out_of_order(box: Sandbox) -> None:
    manager = memory.StagingRingManager(3, 64 * KiB, device=box.device)
    with raises(RingClosed, "call initialize()"):
        manager.stats()
    with manager:
        with raises(aiostage.AlreadyInitialized):
            manager.initialize()
        manager.call(box.assert_works)
    with raises(RingClosed, "closed"):
        manager.upload(box.buffer(), bytes(4))


# -- Streams --

GROUP = "Queues, feeds and files, `aiostage.streams`"


@case(
    GROUP,
    "A queue is used before its block, after it, entered twice, or with numbers that make no sense",
    "`QueueClosed`, `ValueError`, `TypeError`",
)
async def queue_out_of_order(box: Sandbox) -> None:
    async with box.ring() as ring:
        for wrong in (0, -1, 2.5, "much"):
            with raises((ValueError, TypeError), "bytes_per_frame"):
                streams.UploadQueue(ring, wrong)  # type: ignore[arg-type]
        queue = streams.UploadQueue(ring)
        with raises(aiostage.QueueClosed, "async with"):
            queue.write_buffer(box.buffer(), 0, bytes(4))
        async with queue:
            with raises(aiostage.QueueClosed, "once"):
                await queue.__aenter__()
            with raises(ValueError, "None is no tag"):
                queue.cancel(None)
        with raises(aiostage.QueueClosed, "async with"):
            queue.write_buffer(box.buffer(), 0, bytes(4))
        await box.assert_works(ring)


@case(
    GROUP,
    "An upload of a queue is garbage, its loader raises or returns garbage",
    "its own error, from awaiting it; the others arrive",
)
async def queued_garbage(box: Sandbox) -> None:
    def no_tile() -> bytes:
        raise FileNotFoundError("no such tile")

    async with box.ring() as ring, streams.UploadQueue(ring) as queue:
        buffer = box.buffer()
        bad: list[tuple[type[Exception], streams.Upload]] = [
            (TypeError, queue.write_buffer(buffer, 0, None)),
            (TypeError, queue.write_buffer(buffer, 0, lambda: "text")),
            (FileNotFoundError, queue.write_buffer(buffer, 0, no_tile)),
            (InvalidCopy, queue.write_buffer(None, 0, bytes(4))),
            (InvalidCopy, queue.write_buffer(buffer, 1 << 40, bytes(4))),
            (InvalidCopy, queue.write_texture({}, np.zeros((4, 4, 4), np.uint8))),
        ]
        good = queue.write_buffer(buffer, 4, lambda: b"good")
        for expected, upload in bad:
            with raises(expected):
                await upload
        await (await good)
        assert holds(buffer, b"good", 4)
        await box.assert_works(ring)


@case(GROUP, "A queue is used on another loop or in another thread", "`WrongLoop`; it works on")
async def queue_in_another_thread(box: Sandbox) -> None:
    async with box.ring() as ring, streams.UploadQueue(ring) as queue:
        buffer = box.buffer()

        def elsewhere() -> None:
            with raises(WrongLoop):
                queue.write_buffer(buffer, 0, bytes(4))
            with raises(WrongLoop):
                queue.clear()

        await anyio.to_thread.run_sync(elsewhere)
        await queue.write_buffer(buffer, 0, b"here")
        await box.assert_works(ring)


@case(GROUP, "A queue of another ring is given to a frame", "`ValueError`")
async def queue_of_another_ring(box: Sandbox) -> None:
    async with box.ring() as ring, box.ring() as other, streams.UploadQueue(other) as queue:
        with raises(ValueError, "another ring"):
            async with ring.frame(uploads=queue):
                pass
        await box.assert_works(ring)


@case(
    GROUP,
    "A destination is destroyed while its upload waits, or its ring closed or device destroyed",
    "`InvalidCopy` in that upload; `RingClosed` or `DeviceLost` in all",
)
async def queue_loses_what_it_stands_on(box: Sandbox) -> None:
    async with box.ring() as ring, streams.UploadQueue(ring, 1024, idle_after=None) as queue:
        doomed, buffer = box.buffer(), box.buffer()
        lost, kept = queue.write_buffer(doomed, 0, bytes(4)), queue.write_buffer(buffer, 0, b"kept")
        doomed.destroy()
        async with ring.frame(uploads=queue):
            pass
        with raises(InvalidCopy, "destroyed"):
            await lost
        await (await kept)
        assert holds(buffer, b"kept")
        waits = queue.write_buffer(buffer, 0, bytes(4))
        await ring.aclose()
        with raises(RingClosed):
            await waits
    async with box.ring() as ring, streams.UploadQueue(ring, 1024, idle_after=None) as queue:
        waits = queue.write_buffer(buffer, 0, bytes(4))
        box.device.destroy()
        with raises(DeviceLost):
            async with ring.frame(uploads=queue):
                pass
        with raises(DeviceLost):
            await waits


@case(
    GROUP,
    "A feed's source or `write` raises, is no iterator, or no coroutine function",
    "that error, once, with the item named; `TypeError`; the ring works on",
)
async def feeds_gone_wrong(box: Sandbox) -> None:
    async with box.ring() as ring:
        buffer = box.buffer()

        async def bad(item: int) -> None:
            await ring.write_buffer(buffer, 0, bytes(4))
            if item == 3:
                raise KeyError("three")

        with raises(KeyError, "three"):
            await streams.feed(ring, range(10), bad)
        with raises(TypeError):
            await streams.feed(ring, 7, bad)  # type: ignore[arg-type]
        with raises(TypeError):
            await streams.feed(ring, range(10), lambda item: None)  # type: ignore[arg-type, return-value]
        with raises(ValueError, "limit"):
            await streams.feed(ring, range(10), bad, limit=0)
        await box.assert_works(ring)


@case(
    GROUP,
    "A range of a file is not in it, the file is missing, a folder, or gets shorter meanwhile",
    "`ValueError`, `OSError`, `EOFError`; nobody else's upload is touched",
)
async def files_gone_wrong(box: Sandbox) -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "points.bin")
        path.write_bytes(bytes(1000))
        for offset, size in ((-1, 4), (0, 1001), (1 << 70, 4)):
            with raises((ValueError, OverflowError)):
                sources.file(path, offset, size)
        with raises(FileNotFoundError):
            sources.file(Path(folder, "none"))
        with raises((IsADirectoryError, ValueError)):
            sources.file(folder)
        async with box.ring() as ring:
            buffer = box.buffer()
            data = sources.file(path)
            os.truncate(path, 100)
            with raises(EOFError, "points.bin"):
                await ring.write_buffer(buffer, 0, data)
            await box.assert_works(ring)


@case(GROUP, "The interpreter exits with a queue open and loaders running", "it exits, with status 0")
async def exit_with_a_queue(box: Sandbox) -> None:
    ring = box.ring()
    await ring.open()
    queue = streams.UploadQueue(ring)
    await queue.__aenter__()
    for _ in range(20):
        queue.write_buffer(box.buffer(), 0, lambda: bytes(1024))
    await asyncio.sleep(0)


# -- Running --


def table() -> str:
    """The matrix, as Markdown."""
    lines: list[str] = []
    for group in dict.fromkeys(entry.group for entry in CASES.values()):
        lines += [f"## {group}", "", "| what is done | what happens |", "| --- | --- |"]
        lines += [f"| {entry.done} | {entry.happens} |" for entry in CASES.values() if entry.group == group]
        lines.append("")
    return "\n".join(lines)


def main(name: str) -> None:
    box = Sandbox()
    result = CASES[name].run(box)
    if inspect.iscoroutine(result):
        asyncio.run(result)
    assert threading.current_thread() is threading.main_thread()
    print("done", flush=True)


if __name__ == "__main__":
    if len(sys.argv) > 1:
        main(sys.argv[1])
    else:
        print(table())
