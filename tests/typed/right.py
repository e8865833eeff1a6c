"""A program of a user's that type checkers have nothing to say about. It is checked, and not run."""

from __future__ import annotations

import array
import mmap
from collections.abc import AsyncIterator
from pathlib import Path

import anyio
import numpy as np
import wgpu

import aiostage
from aiostage import pools, streams, textures
from aiostage.streams import sources
from aiostage.typing import Data, TextureDestination


class Stored:
    """As zarr has them."""

    shape = (4, 256, 256)
    dtype = np.dtype(np.uint8)

    def __getitem__(self, index: object) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
        return np.zeros((1, 256, 256), np.uint8)


class Tensor:
    """As PyTorch has them."""

    def __dlpack__(self, *, stream: object = None) -> object:
        return None


async def everything(device: wgpu.GPUDevice, buffer: wgpu.GPUBuffer, texture: wgpu.GPUTexture) -> None:
    async with aiostage.StagingRing(device, ring_count=3, buffer_size=8 * aiostage.MiB) as ring:
        some: list[Data] = [
            b"bytes",
            bytearray(4),
            memoryview(b"bytes"),
            array.array("f", [1.0]),
            mmap.mmap(-1, 4096),
            np.zeros((4, 4), np.float32),
            np.zeros(4, "<u2"),
            Stored(),
            Tensor(),
            sources.file(Path("points.bin"), 0, 4096),
        ]
        for data in some:
            await ring.write_buffer(buffer, 0, data)
        fence: aiostage.Fence = await ring.write_buffer(buffer, 16, b"bytes", data_offset=1, size=4, atomic=True)
        await fence
        await fence.wait(timeout=1.0)
        place: TextureDestination = {"texture": texture, "mip_level": 1, "origin": (0, 0, 3), "aspect": "all"}
        await ring.write_texture(place, np.zeros((4, 4, 4), np.uint8))
        await ring.write_texture(
            {"texture": texture, "origin": {"x": 4}},
            bytes(1024),
            {"offset": 0, "bytes_per_row": 256},
            (4, 4, 1),
        )
        await ring.write_texture({"texture": texture}, bytes(64), {"bytes_per_row": 16}, {"width": 4, "height": 4})

        slot = await ring.allocate(1024, alignment=16)
        with slot:
            slot.array(np.float32, (16, 4))[:] = 1.0
            slot.copy_to_buffer(buffer, 0, encoder=device.create_command_encoder())
        with await ring.allocate_texture([4, 4], "rgba8unorm") as slot:
            slot.copy_to_texture({"texture": texture})

        async with ring.batch() as batch:
            await batch.write_buffers(buffer, [0, 16], np.zeros((2, 4), np.float32))
            await batch.write_textures([place, {"texture": texture}], [bytes(64), np.zeros((4, 4, 4), np.uint8)])
        await batch.fence

        async with streams.UploadQueue(ring, bytes_per_frame=aiostage.MiB) as queue:
            upload = queue.write_buffer(buffer, 0, lambda: b"loaded", priority=1, tag="tile")
            queue.write_texture(place, load, nbytes=64)
            upload.priority = 2.5
            async with ring.frame(uploads=queue) as frame:
                frame.encoder.begin_compute_pass().end()
            assert isinstance(await upload, aiostage.Fence)

        pool = pools.BufferPool(device, wgpu.BufferUsage.STORAGE)
        with pool.allocate(256) as part:
            await ring.write_buffer(part, 0, b"pool")

        info: textures.TextureInfo = await anyio.to_thread.run_sync(textures.inspect, Path("wood.ktx2"))
        print(info.format, (await textures.load(ring, b"bytes")).texture.format)
        await streams.feed(ring, numbers(), lambda number: ring.write_buffer(buffer, 0, bytes([number] * 4)))

        stats: aiostage.StagingStats = await ring.stats()
        print(stats.buffer_stalls + 1, stats.bytes_in_flight // 2)
        for advice in ring.advise():
            print(advice.message.upper(), advice.kind is aiostage.AdviceKind.MORE_BUFFERS)
        async for stats in ring.watch(interval=0.5):
            print(stats.stall_seconds)


async def load() -> bytes:
    return bytes(64)


async def numbers() -> AsyncIterator[int]:
    for number in range(3):
        yield number
