"""What of a map of tiles is seen, and the picture of it. For `http_tiles.py`."""

from __future__ import annotations

import argparse
import io
import math
import re
from collections.abc import Iterator, Sized

import numpy as np
import wgpu
from offscreen import Offscreen
from PIL import Image, UnidentifiedImageError

import aiostage
from aiostage.tools.demo.photos import UNREADABLE

TILE = 256  # pixels a side
SIZE = (5 * TILE, 3 * TILE)  # of the picture
GRID = (SIZE[0] // TILE + 1, SIZE[1] // TILE + 1)  # tiles that it may touch
MOST = GRID[0] * GRID[1]
DRAG, STEPS = (-4 * TILE, TILE), 16  # how far from its end the map is at first, and in how many frames it gets there

Tile = tuple[int, int]  # x, y
Place = tuple[float, float]  # latitude, longitude in degrees

SHADER = """
struct View { corner: vec2i, columns: i32, unused: i32, layers: array<i32> }  // in pixels of the grid; its tiles
@group(0) @binding(0) var<storage, read> view: View;
@group(0) @binding(1) var tiles: texture_2d_array<f32>;
@fragment fn colour(@builtin(position) at: vec4f) -> @location(0) vec4f {
    let pixel = vec2i(at.xy) + view.corner;
    let layer = view.layers[pixel.y / TILE * view.columns + pixel.x / TILE];
    if (layer < 0) { return vec4f(vec3f(select(0.16, 0.2, (pixel.x + pixel.y) % 16 < 8)), 1); }  // stripes
    return textureLoad(tiles, pixel % TILE, layer, 0);
}
""".replace("TILE", str(TILE))


class TileMap:
    """A picture of tiles. Its corner is in pixels of the world at that zoom.

    :param tiles: an array texture: a tile a layer.
    """

    def __init__(self, device: wgpu.GPUDevice, tiles: wgpu.GPUTexture, zoom: int) -> None:
        self.side = 2**zoom  # of the world, in tiles
        self.corner = (0, 0)
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.STORAGE
        self.view = device.create_buffer(size=16 + 4 * MOST, usage=usage)
        self.picture = Offscreen(device, SIZE, SHADER)
        self.picture.bind(self.view, tiles.create_view(dimension="2d-array"))

    def grid(self) -> list[Tile]:
        """From the tile in the corner on, row by row."""
        left, top = (n // TILE for n in self.corner)
        return [(left + x, top + y) for y in range(GRID[1]) for x in range(GRID[0])]

    def move(self, corner: tuple[int, int]) -> dict[Tile, float]:
        """The tiles that are seen then, and how far from the middle they are, in pixels."""
        self.corner = corner
        found = {}
        for x, y in self.grid():
            left, top = x * TILE - self.corner[0], y * TILE - self.corner[1]
            if left < SIZE[0] and top < SIZE[1] and 0 <= min(x, y) <= max(x, y) < self.side:
                found[x, y] = math.dist((left + TILE / 2, top + TILE / 2), (SIZE[0] / 2, SIZE[1] / 2))
        return found

    async def draw(self, frame: aiostage.Frame, layers: dict[Tile, int]) -> None:
        """Those tiles that are in a layer; stripes in place of others."""
        found = [layers.get(tile, -1) for tile in self.grid()]
        view = np.array([self.corner[0] % TILE, self.corner[1] % TILE, GRID[0], 0, *found], np.int32)
        await frame.write_buffer(self.view, 0, view)
        self.picture.draw(frame.encoder)

    def read(self) -> Image.Image:
        """What was drawn. Blocks until the GPU has."""
        return self.picture.read()


def drag(at: Place, zoom: int, waiting: Sized) -> Iterator[tuple[int, int]]:
    """Corners of the picture, until its middle is there; then that one while anything is waiting, and once more."""
    x, y = at[1] / 360 + 0.5, 0.5 - math.asinh(math.tan(math.radians(at[0]))) / (2 * math.pi)  # Web Mercator
    end = round(x * TILE * 2**zoom - SIZE[0] / 2), round(y * TILE * 2**zoom - SIZE[1] / 2)
    for left in range(STEPS, 0, -1):
        yield end[0] + DRAG[0] * left // STEPS, end[1] + DRAG[1] * left // STEPS
    yield end
    while waiting:
        yield end
    yield end


def decode(content: bytes) -> np.ndarray:
    """A tile's texels, (256, 256, 4); for a thread. :raises ValueError: it has another size, or is no whole image."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            size, texels = image.size, np.asarray(image.convert("RGBA"))
    except UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error
    except UNREADABLE as error:
        raise ValueError(str(error)) from error
    if size != (TILE, TILE):
        raise ValueError(f"{size[0]} × {size[1]} pixels, not {TILE} × {TILE}")
    return texels


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--url", type=template, help="of a tile, with {z}, {x} and {y}; default: tiles that are made")
    parser.add_argument("--zoom", type=int, choices=range(23), default=4, metavar="0…22")
    parser.add_argument("--at", type=place, default="76,78", help="latitude,longitude of the middle (--at=-33.9,151.2)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait for a server's answer")


def template(text: str) -> str:
    if not all(name in text for name in ("{z}", "{x}", "{y}")):
        raise argparse.ArgumentTypeError(f"{text} has not all of {{z}}, {{x}} and {{y}}")
    try:
        text.format(z=0, x=0, y=0)
    except (LookupError, ValueError, AttributeError) as error:
        raise argparse.ArgumentTypeError(f"{text} has more in braces than {{z}}, {{x}} and {{y}}") from error
    return text


def place(text: str) -> Place:
    found = re.fullmatch(r"(-?[\d.]+),(-?[\d.]+)", text)
    if found is None or abs(float(found[1])) > 85 or abs(float(found[2])) > 180:
        raise argparse.ArgumentTypeError(
            f"{text} is no latitude within 85° and longitude within 180°, such as 46.5,8.0"
        )
    return float(found[1]), float(found[2])
