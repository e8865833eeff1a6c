"""Mistakes in a program of a user's: each line that is marked has an error. It is checked, and not run.

To mypy wgpu's classes are Any, so what is wrong with one of them only pyright sees.
"""

from __future__ import annotations

import numpy as np
import wgpu

import aiostage
from aiostage import pools, streams, textures
from aiostage.typing import TextureDestination


async def mistakes(device: wgpu.GPUDevice, buffer: wgpu.GPUBuffer, texture: wgpu.GPUTexture) -> None:
    aiostage.StagingRing(buffer)  # wrong to pyright
    aiostage.StagingRing(device, ring_count="three")  # wrong
    aiostage.StagingRing(device, buffer_sise=4)  # wrong
    async with aiostage.StagingRing(device) as ring:
        await ring.write_buffer(texture, 0, b"bytes")  # wrong to pyright
        await ring.write_buffer(buffer, b"bytes")  # wrong
        await ring.write_buffer(buffer, "0", b"bytes")  # wrong
        await ring.write_buffer(buffer, 0, "text")  # wrong
        await ring.write_buffer(buffer, 0, None)  # wrong
        await ring.write_buffer(buffer, 0, 3.5)  # wrong
        await ring.write_buffer(buffer, 0, [1, 2, 3])  # wrong
        await ring.write_texture(texture, bytes(4))  # wrong to pyright
        await ring.write_texture({"texture": buffer}, bytes(4))  # wrong to pyright
        await ring.write_texture({"texture": texture, "mip_levle": 1}, bytes(4))  # wrong
        await ring.write_texture({"mip_level": 1}, bytes(4))  # wrong
        await ring.write_texture({"texture": texture, "origin": "corner"}, bytes(4), None, {"w": 4})  # wrong
        await ring.write_texture({"texture": texture}, bytes(4), {"bytes_per_rows": 256})  # wrong
        await ring.write_texture({"texture": texture}, bytes(4), {"bytes_per_row": "256"})  # wrong
        await ring.write_texture({"texture": texture}, bytes(4), None, 16)  # wrong
        place: TextureDestination = {"texture": texture, "layer": 3}  # wrong
        print(place)

        slot = ring.allocate(1024)
        slot.commit()  # wrong
        with await ring.allocate(1024) as part:
            part.copy_to_buffer(buffer, 0, encoder=device)  # wrong to pyright
            part.array(np.float32, "16")  # wrong
        await ring.submit(device.create_command_encoder())  # wrong to pyright
        print((await ring.write_buffer(buffer, 0, bytes(4))).vlaue)  # wrong
        async with ring.batch() as batch:
            await batch.write_textures({"texture": texture}, bytes(64))  # wrong
            await batch.write_buffers(buffer, [0], "text")  # wrong
        async with streams.UploadQueue(device) as queue:  # wrong to pyright
            queue.write_buffer(buffer, 0, b"bytes", priority="high")  # wrong
            queue.write_buffer(buffer, 0, 17)  # wrong
        pools.BufferPool(ring, 0)  # wrong to pyright
        await textures.load(ring, 42)  # wrong
        print((await ring.stats()).stalls)  # wrong
        print([advice.reason for advice in ring.advise()])  # wrong
