"""A live image and a volume that grows, in one fastplotlib figure: both go to the GPU off the event loop.

Their textures are pygfx's, and public: `graphic.data.buffer`. Needs: pip install 'aiostage[fastplotlib]' pillow, and
glfw for a window

    python examples/fastplotlib_stream.py          # in a window, until it is closed
    python examples/fastplotlib_stream.py --offscreen [--frames 24] [--output fastplotlib_stream.png]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path

import fastplotlib as fpl
import numpy as np
import wgpu
from PIL import Image

import aiostage
from aiostage.pygfx import attach

ROWS, COLUMNS = 240, 320
SIDE, SLAB = 128, 16  # voxels
FPS = 30


def live(number: int) -> np.ndarray:
    """A frame of a camera that watches ripples: float32 (rows, columns), 0 to 1."""
    y, x = np.mgrid[:ROWS, :COLUMNS].astype(np.float32)
    far = np.hypot(x - COLUMNS / 2 - 70 * np.cos(number / 9), y - ROWS / 2 - 50 * np.sin(number / 7))
    return (0.5 + 0.5 * np.cos(far / 6 - number / 2) * np.exp(-far / 90)).astype(np.float32)


def slab(z: int) -> np.ndarray:
    """float32 (SLAB, SIDE, SIDE), as fastplotlib keeps volumes: three rings that are linked."""
    w, v, u = np.mgrid[z : z + SLAB, :SIDE, :SIDE].astype(np.float32) / SIDE * 2.2 - 1.1
    rings = (np.hypot(np.hypot(a, b / 0.6) - 0.75, c) for a, b, c in ((u, v, w), (v, w, u), (w, u, v)))
    return sum(np.exp(-((ring / 0.12) ** 2)) for ring in rings).astype(np.float32)


async def main(offscreen: bool, frames: int, output: Path) -> None:
    kind = "offscreen" if offscreen else "glfw"
    names = ["live", "as it arrives"]
    figure = fpl.Figure(shape=(1, 2), names=names, cameras=["2d", "3d"], canvas=kind, size=(800, 400))
    image = figure[0, 0].add_image(
        live(0), vmin=0, vmax=1, cmap="viridis", cpu_buffer=False, texture_usage=wgpu.TextureUsage.COPY_DST
    )
    volume = figure[0, 1].add_image_volume(np.zeros((SIDE,) * 3, np.float32), vmin=0, vmax=1.2, cmap="magma")
    figure.show(axes_visible=False)
    figure[0, 1].camera.show_object(volume.world_object, view_dir=(-1, -0.8, -0.5), up=(0, 0, 1), scale=0.75)

    async with aiostage.StagingRing(figure.renderer.device) as ring:
        camera = await attach(ring, image.data.buffer[0, 0])  # the GPU alone has its texels
        scan = await attach(ring, volume.data.buffer[0, 0, 0])  # and these are volume.data.value as well
        number = 0
        while not figure.canvas.get_closed() and not (offscreen and number == frames):
            await camera.write(live(number))
            if number % 2 == 0 and number // 2 * SLAB < SIDE:
                await scan.write(slab(number // 2 * SLAB), offset=(0, 0, number // 2 * SLAB))
            figure.canvas.request_draw()
            await asyncio.sleep(0 if offscreen else 1 / FPS)
            number += 1
        if offscreen:
            Image.fromarray(np.asarray(figure.canvas.draw())[..., :3]).save(output)
            print(f"{number} frames, {min(SIDE, -(-number // 2) * SLAB)} of {SIDE} slices; wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offscreen", action="store_true", help="no window: a picture of the last frame")
    parser.add_argument("--frames", type=int, default=24, help="how many, offscreen")
    parser.add_argument("--output", type=Path, default=Path("fastplotlib_stream.png"))
    sys.exit(asyncio.run(main(**vars(parser.parse_args()))))
