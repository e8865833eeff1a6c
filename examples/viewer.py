"""A small viewer: tiles of a picture are computed in threads and streamed to the GPU, coarse to fine, while it draws.

The program that docs/tutorial.md builds. Writes the last frame, or all of them as a moving picture.
Needs: pip install 'aiostage[demo]'

    python examples/viewer.py [--output viewer.png|viewer.gif] [--tiles-per-frame 8]
    python examples/viewer.py --window
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import wgpu
from PIL import Image

import aiostage
from aiostage.streams import Upload, UploadQueue
from aiostage.tools.demo import canvas as canvases
from aiostage.tools.demo.gpu import find_adapter
from aiostage.tools.status import exit_status

SIDE, TILE, LEVELS = 1024, 64, 5  # texels of the picture and of a tile; mip levels, of which the last is one tile
STEPS = 250

SHADER = """
@group(0) @binding(0) var picture: texture_2d<f32>;
@group(0) @binding(1) var<storage, read> finest: array<u32>;  // mip level that has arrived, by tile of level 0

@vertex fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
    return vec4f(f32(i & 1) * 4 - 1, f32(i >> 1) * 4 - 1, 0, 1);
}
@fragment fn colour(@builtin(position) at: vec4f) -> @location(0) vec4f {
    let texel = vec2u(at.xy);
    let level = finest[texel.y / TILE * (SIDE / TILE) + texel.x / TILE];
    if level >= LEVELS { return vec4f(0.03, 0.03, 0.05, 1); }
    return textureLoad(picture, texel >> vec2u(level), level);
}
"""


def mandelbrot(level: int, x: int, y: int) -> np.ndarray:
    """One tile, (64, 64, 4) uint8. NumPy gives the interpreter's lock away, so this runs well in a thread."""
    step = 2**level / SIDE
    column = (np.arange(x * TILE, (x + 1) * TILE) + 0.5) * step
    row = (np.arange(y * TILE, (y + 1) * TILE) + 0.5) * step
    c = (-0.7436 + 0.006 * (column - 0.5))[None, :] + 1j * (0.1318 + 0.006 * (row - 0.5))[:, None]
    z, count = np.zeros_like(c), np.zeros(c.shape, np.float32)
    for _ in range(STEPS):
        inside = (z.real**2 + z.imag**2) < 64
        z[inside] = z[inside] ** 2 + c[inside]
        count += inside
    size = np.maximum(np.abs(z), 1.0001)
    smooth = np.where(count < STEPS, count + 1 - np.log2(np.log(size)), 0)
    waves = 0.5 + 0.5 * np.cos(0.11 * smooth[..., None] + np.array([2.9, 2.4, 1.8]))
    colours = np.where(count[..., None] < STEPS, waves, 0.02)
    return np.dstack([255 * colours, np.full(c.shape, 255)]).astype(np.uint8)


class Viewer:
    """Draws the picture, each part of it from the finest level that is there."""

    def __init__(self, device: wgpu.GPUDevice, format: str) -> None:
        usage = wgpu.TextureUsage
        self.picture = device.create_texture(
            size=(SIDE, SIDE, 1),
            mip_level_count=LEVELS,
            format="rgba8unorm",
            usage=usage.COPY_DST | usage.TEXTURE_BINDING,
        )
        self.finest = np.full((SIDE // TILE, SIDE // TILE), LEVELS, np.uint32)
        self.arrived = device.create_buffer(
            size=self.finest.nbytes, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.STORAGE
        )
        constants = {"SIDE": SIDE, "TILE": TILE, "LEVELS": LEVELS}
        code = "".join(f"const {name} = {value}u;" for name, value in constants.items()) + SHADER
        module = device.create_shader_module(code=code)
        self.pipeline = device.create_render_pipeline(
            layout="auto",
            vertex={"module": module, "entry_point": "corner"},
            fragment={"module": module, "entry_point": "colour", "targets": [{"format": format}]},
        )
        self.bindings = device.create_bind_group(
            layout=self.pipeline.get_bind_group_layout(0),
            entries=[
                {"binding": 0, "resource": self.picture.create_view()},
                {"binding": 1, "resource": {"buffer": self.arrived}},
            ],
        )

    def queue_tiles(self, queue: UploadQueue) -> dict[tuple[int, int, int], Upload]:
        """All of them: the coarsest level first, and in each the middle first."""
        tiles: dict[tuple[int, int, int], Upload] = {}
        for level in range(LEVELS):
            count = SIDE // TILE >> level
            for x, y in np.ndindex(count, count):
                place: aiostage.typing.TextureDestination = {
                    "texture": self.picture,
                    "mip_level": level,
                    "origin": (x * TILE, y * TILE, 0),
                }
                middle = np.hypot(x - (count - 1) / 2, y - (count - 1) / 2)
                tiles[level, x, y] = queue.write_texture(
                    place, lambda tile=(level, x, y): mandelbrot(*tile), priority=100 * level - middle
                )
        return tiles

    def note_arrivals(self, tiles: dict[tuple[int, int, int], Upload]) -> None:
        for level, x, y in [tile for tile, upload in tiles.items() if upload.done()]:
            del tiles[level, x, y]
            part = self.finest[y << level : y + 1 << level, x << level : x + 1 << level]
            np.minimum(part, level, out=part)

    def draw(self, encoder: wgpu.GPUCommandEncoder, view: wgpu.GPUTextureView) -> None:
        attachment = {"view": view, "load_op": "clear", "store_op": "store"}
        render = encoder.begin_render_pass(color_attachments=[attachment])
        render.set_pipeline(self.pipeline)
        render.set_bind_group(0, self.bindings)
        render.draw(3)
        render.end()


async def main(tiles_per_frame: int, window: bool, output: Path) -> None:
    adapter = find_adapter()
    device = await anyio.to_thread.run_sync(aiostage.request_device, adapter)
    canvas = (canvases.open_window if window else canvases.open_offscreen)((SIDE, SIDE), adapter, device)
    frames: list[Any] = []
    async with (
        aiostage.StagingRing(device, ring_count=3, buffer_size=1 * aiostage.MiB) as ring,
        UploadQueue(ring, bytes_per_frame=tiles_per_frame * TILE * TILE * 4) as queue,
    ):
        viewer = Viewer(device, canvas.format)
        tiles = viewer.queue_tiles(queue)
        total = len(tiles)
        while tiles or (window and not canvas.closed):
            async with ring.frame(uploads=queue) as frame:  # the most urgent tiles, then what is drawn here
                viewer.note_arrivals(tiles)
                await frame.write_buffer(viewer.arrived, 0, viewer.finest)
                viewer.draw(frame.encoder, canvas.texture().create_view())
            if window:
                canvas.present()
            elif not tiles or (output.suffix == ".gif" and viewer.finest.max() < LEVELS):
                frames.append(Image.fromarray(canvas.image()).convert("RGB"))
            await anyio.sleep(1 / 60 if window else 0)
        stats = await ring.stats()
    canvas.close()
    print(f"{total} tiles, {stats.bytes_total / aiostage.MiB:.1f} MiB, {stats.buffer_stalls} stalls")
    if frames:
        save(frames, output)
        print(output)


def save(frames: list[Any], output: Path) -> None:
    if output.suffix != ".gif":
        frames[-1].save(output)
        return
    small = [frame.resize((SIDE // 3, SIDE // 3)).quantize(48, dither=Image.Dither.NONE) for frame in frames]
    small[0].save(output, save_all=True, append_images=small[1:], duration=[60] * (len(small) - 1) + [3000], loop=0)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--tiles-per-frame", type=int, default=8)
    parser.add_argument("--window", action="store_true")
    parser.add_argument("--output", type=Path, default=Path("viewer.png"))
    arguments = parser.parse_args()
    sys.exit(exit_status("viewer", lambda: anyio.run(main, *vars(arguments).values())))
