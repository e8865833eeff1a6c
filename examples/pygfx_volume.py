"""A volume that arrives slab by slab while pygfx draws it, each slab as a whole.

Slabs are computed here; anything that gives arrays will do, such as a chunk of a zarr array, or a file's memory map.
Needs: pip install 'aiostage[pygfx]' pillow, and glfw for a window

    python examples/pygfx_volume.py                # in a window, until it is closed
    python examples/pygfx_volume.py --offscreen [--output pygfx_volume.png]
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

SIDE, SLAB = 96, 8  # voxels
VIEW = 240  # pixels of a picture
SHOWN = (0.25, 0.5, 0.75, 1.0)  # how much is there when a picture is drawn, offscreen


def slab(z: int) -> np.ndarray:
    """uint8 (SLAB, SIDE, SIDE) of a gyroid in a ball: a surface that divides space in two."""
    at = np.mgrid[z : z + SLAB, :SIDE, :SIDE].astype(np.float32) / SIDE * 2 - 1
    w, v, u = at * 9.5
    surface = np.exp(-9 * (np.sin(u) * np.cos(v) + np.sin(v) * np.cos(w) + np.sin(w) * np.cos(u)) ** 2)
    inside = np.clip(9 * (0.95 - np.sqrt((at**2).sum(0))), 0, 1)
    return (255 * surface * inside * (0.45 + 0.55 * (at[2] + 1) / 2)).astype(np.uint8)


def open_canvas(offscreen: bool) -> Any:
    if offscreen:
        from rendercanvas.offscreen import RenderCanvas
    else:
        from rendercanvas.glfw import RenderCanvas  # draws on the asyncio loop that runs
    return RenderCanvas(size=(VIEW, VIEW), title="aiostage: a volume in pygfx")


async def main(offscreen: bool, output: Path) -> None:
    canvas = open_canvas(offscreen)
    renderer = gfx.WgpuRenderer(canvas, pixel_scale=1, ppaa="none")
    texture = gfx.Texture(dim=3, size=(SIDE, SIDE, SIDE), format="u1")
    material = gfx.VolumeMipMaterial(clim=(0, 255), map=gfx.cm.inferno)
    volume = gfx.Volume(gfx.Geometry(grid=texture), material)
    camera = gfx.PerspectiveCamera(40)
    camera.show_object(volume, view_dir=(-1, -0.8, -0.6), up=(0, 0, 1), scale=0.7)
    canvas.request_draw(lambda: renderer.render(volume, camera))

    pictures = []
    async with aiostage.StagingRing(renderer.device) as ring:
        stream = await attach(ring, texture)
        for z in range(0, SIDE, SLAB):
            await stream.write(await asyncio.to_thread(slab, z), offset=(0, 0, z))
            canvas.request_draw()
            if offscreen and (z + SLAB) / SIDE in SHOWN:
                pictures.append(np.asarray(canvas.draw())[..., :3])
        while not (offscreen or canvas.get_closed()):
            await asyncio.sleep(0.1)
    if offscreen:
        Image.fromarray(np.hstack(pictures)).save(output)
        print(f"{SIDE} × {SIDE} × {SIDE} voxels in {SIDE // SLAB} slabs; wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--offscreen", action="store_true", help="no window: pictures while it arrives, in a row")
    parser.add_argument("--output", type=Path, default=Path("pygfx_volume.png"))
    sys.exit(asyncio.run(main(**vars(parser.parse_args()))))
