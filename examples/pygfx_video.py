"""A video in a pygfx scene: each frame goes to the texture off the event loop, and is seen as a whole.

Frames are computed here; anything that gives arrays will do, such as PyAV's `frame.to_ndarray(format="rgba")`.
Needs: pip install 'aiostage[pygfx]' pillow, and glfw for a window

    python examples/pygfx_video.py                 # in a window, until it is closed
    python examples/pygfx_video.py --offscreen [--frames 60] [--output pygfx_video.png]
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pygfx as gfx
from PIL import Image

import aiostage
from aiostage.pygfx import attach

WIDTH, HEIGHT = 640, 360
FPS = 30


def video_frame(number: int) -> np.ndarray:
    """Two spirals that turn through each other: RGBA, uint8 (rows, columns, 4)."""
    y, x = np.mgrid[-HEIGHT / 2 : HEIGHT / 2, -WIDTH / 2 : WIDTH / 2].astype(np.float32) / HEIGHT
    turn, rgba = number / FPS, np.full((HEIGHT, WIDTH, 4), 255, np.uint8)
    waves = 0.0
    for arms, side in ((5, -0.45), (-3, 0.45)):
        radius, angle = np.hypot(x - side * np.cos(turn / 2), y), np.arctan2(y, x - side * np.cos(turn / 2))
        waves = waves + np.cos(arms * angle + 26 * radius - 4 * turn) * np.exp(-1.3 * radius)
    for channel, shift in enumerate((0.0, 0.9, 1.9)):
        rgba[..., channel] = 127.5 + 127.5 * np.cos(2.2 * waves + shift + turn / 3)
    return rgba


def open_canvas(offscreen: bool) -> Any:
    if offscreen:
        from rendercanvas.offscreen import RenderCanvas
    else:
        from rendercanvas.glfw import RenderCanvas  # draws on the asyncio loop that runs
    return RenderCanvas(size=(WIDTH, HEIGHT), title="aiostage: a video in pygfx")


async def main(offscreen: bool, frames: int, output: Path) -> None:
    canvas = open_canvas(offscreen)
    renderer = gfx.WgpuRenderer(canvas, pixel_scale=1, ppaa="none")
    texture = gfx.Texture(dim=2, size=(WIDTH, HEIGHT, 1), format="4xu1")  # no data: they are on the GPU alone
    image = gfx.Image(gfx.Geometry(grid=texture), gfx.ImageBasicMaterial(clim=(0, 255)))
    camera = gfx.OrthographicCamera()
    camera.show_rect(-0.5, WIDTH - 0.5, -0.5, HEIGHT - 0.5)
    camera.local.scale_y = -1
    canvas.request_draw(lambda: renderer.render(image, camera))

    async with aiostage.StagingRing(renderer.device) as ring:
        stream = await attach(ring, texture)
        number = 0
        while not canvas.get_closed() and not (offscreen and number == frames):
            await stream.write(video_frame(number))
            canvas.request_draw()
            await asyncio.sleep(0 if offscreen else 1 / FPS)
            number += 1
        if offscreen:
            Image.fromarray(np.asarray(canvas.draw())[..., :3]).save(output)
            print(f"{number} frames of {WIDTH} × {HEIGHT}; wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offscreen", action="store_true", help="no window: a picture of the last frame")
    parser.add_argument("--frames", type=int, default=60, help="how many, offscreen")
    parser.add_argument("--output", type=Path, default=Path("pygfx_video.png"))
    sys.exit(asyncio.run(main(**vars(parser.parse_args()))))
