"""Map tiles over HTTP, while the map is dragged: the nearest to its middle first, and none that has left it meanwhile.

Each is fetched when its turn comes, decoded in a thread, and uploaded into a layer of one array texture by a frame that
has room for it. A tile that fails is named, and the rest goes on. Makes tiles of its own (`tile_server.py`), unless a
server is given: keep to its terms of use. Needs: pip install 'aiostage[demo,http]'

    python examples/http_tiles.py [--url 'https://…/{z}/{x}/{y}.png' --zoom 9 --at 46.5,8.0] [--output http_tiles.png]
"""

from __future__ import annotations

import argparse
import io
import math
import re
import sys
from contextlib import ExitStack
from functools import partial
from pathlib import Path

import anyio
import httpx
import numpy as np
import tile_server
import wgpu
from anyio.abc import TaskGroup
from offscreen import Offscreen
from PIL import Image, UnidentifiedImageError

import aiostage
from aiostage.streams import Upload, UploadQueue
from aiostage.tools.cli import exit_status
from aiostage.tools.demo import photos
from aiostage.tools.demo.gpu import describe, find_adapter
from aiostage.tools.demo.options import UsageError

TILE = 256  # pixels a side
SIZE = (5 * TILE, 3 * TILE)  # of the picture
GRID = (SIZE[0] // TILE + 1, SIZE[1] // TILE + 1)  # tiles that it may touch
DRAG, STEPS = (-4 * TILE, TILE), 32  # how far from its end the map is at first, and in how many frames it gets there
AT_ONCE = 8  # tiles that are fetched
LAYERS = GRID[0] * GRID[1] + AT_ONCE  # those that are seen, and those that had begun when they left

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

Tile = tuple[int, int]  # x, y


class Map:
    """Which tile is in which layer. The picture's corner is in pixels of the world at that zoom."""

    def __init__(self, queue: UploadQueue, client: httpx.AsyncClient, url: str, zoom: int) -> None:
        self.queue, self.client, self.url, self.zoom, self.corner = queue, client, url, zoom, (0, 0)
        self.waiting: dict[Tile, tuple[Upload, int]] = {}  # with its layer
        self.arrived: dict[Tile, int] = {}
        self.failed: dict[Tile, str] = {}
        self.free = list(range(LAYERS))
        device, usage = queue.ring.device, wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
        self.layers = device.create_texture(size=(TILE, TILE, LAYERS), format="rgba8unorm", usage=usage)
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.STORAGE
        self.view = device.create_buffer(size=16 + 4 * GRID[0] * GRID[1], usage=usage)
        self.picture = Offscreen(device, SIZE, SHADER)
        self.picture.bind(self.view, self.layers.create_view(dimension="2d-array"))

    def grid(self) -> list[Tile]:
        """From the tile in the corner on, row by row. North and south of the world there are none."""
        (left, top), side = (n // TILE for n in self.corner), 2**self.zoom
        return [((left + x) % side, top + y) for y in range(GRID[1]) for x in range(GRID[0])]

    def seen(self) -> dict[Tile, float]:
        """How far from the middle they are, in pixels."""
        found: dict[Tile, float] = {}
        for number, tile in enumerate(self.grid()):
            left = number % GRID[0] * TILE - self.corner[0] % TILE
            top = number // GRID[0] * TILE - self.corner[1] % TILE
            if left < SIZE[0] and top < SIZE[1] and 0 <= tile[1] < 2**self.zoom:
                far = math.dist((left + TILE / 2, top + TILE / 2), (SIZE[0] / 2, SIZE[1] / 2))
                found[tile] = min(far, found.get(tile, far))
        return found

    def look(self, corner: Tile, tasks: TaskGroup) -> None:
        """Drop what has left the picture, have the rest fetched, and the nearest to the middle first."""
        self.corner = corner
        seen = self.seen()
        for tile in self.arrived.keys() - seen.keys():
            self.free.append(self.arrived.pop(tile))
        for tile in self.waiting.keys() - seen.keys():
            if self.queue.cancel(tag=tile):  # else it has begun, and goes on
                self.free.append(self.waiting.pop(tile)[1])
        for tile in seen.keys() - self.arrived.keys() - self.waiting.keys() - self.failed.keys():
            layer, loader = self.free.pop(), partial(self.fetch, tile)
            destination = {"texture": self.layers, "origin": (0, 0, layer)}
            upload = self.queue.write_texture(destination, loader, tag=tile, nbytes=4 * TILE * TILE)
            self.waiting[tile] = upload, layer
            tasks.start_soon(self.arrive, tile, upload, layer)
        for tile in self.waiting.keys() & seen.keys():
            self.waiting[tile][0].priority = -seen[tile]

    async def fetch(self, tile: Tile) -> np.ndarray:
        places = {"{z}": self.zoom, "{x}": tile[0], "{y}": tile[1]}
        response = await self.client.get(re.sub("{[zxy]}", lambda found: str(places[found[0]]), self.url))
        response.raise_for_status()
        return await anyio.to_thread.run_sync(decode, response.content)

    async def arrive(self, tile: Tile, upload: Upload, layer: int) -> None:
        """It is in the next frame, or among those that failed: a program with a user would try these again."""
        try:
            await upload
            self.arrived[tile] = layer
        except aiostage.UploadCancelled:
            return
        except httpx.HTTPStatusError as error:
            self.failed[tile] = f"{error.response.status_code} {error.response.reason_phrase}"
        except (httpx.HTTPError, httpx.InvalidURL, *photos.UNREADABLE) as error:
            self.failed[tile] = str(error) or type(error).__name__
        del self.waiting[tile]
        if tile in self.failed:
            self.free.append(layer)

    async def draw(self) -> None:
        """One frame, with the tiles that it has room for before it and those that have arrived in it."""
        layers = [self.arrived.get(tile, -1) for tile in self.grid()]
        view = np.array([self.corner[0] % TILE, self.corner[1] % TILE, GRID[0], 0, *layers], np.int32)
        async with self.queue.ring.frame(uploads=self.queue) as frame:
            await frame.write_buffer(self.view, 0, view)
            self.picture.draw(frame.encoder)
        await anyio.sleep(1 / 60)


def decode(content: bytes) -> np.ndarray:
    """A tile's texels, (256, 256, 4); for a thread. :raises ValueError: it has another size."""
    try:
        with Image.open(io.BytesIO(content)) as image:
            if image.size != (TILE, TILE):
                raise ValueError(f"{image.width} × {image.height} pixels, not {TILE} × {TILE}")
            return np.asarray(image.convert("RGBA"))
    except UnidentifiedImageError as error:
        raise ValueError("not an image that Pillow can read") from error


def end_of(at: tuple[float, float], zoom: int) -> tuple[int, int]:
    """The corner of a picture around a place, latitude and longitude in degrees, in Web Mercator."""
    x, y = at[1] / 360 + 0.5, 0.5 - math.asinh(math.tan(math.radians(at[0]))) / (2 * math.pi)
    return round(x * TILE * 2**zoom - SIZE[0] / 2), round(y * TILE * 2**zoom - SIZE[1] / 2)


async def main(output: Path, url: str | None, zoom: int, at: tuple[float, float], timeout: float) -> None:
    adapter = find_adapter()
    print(describe(adapter))
    end, trusting = end_of(at, zoom), url is not None  # a proxy of the environment's is not for the tiles made here
    client = httpx.AsyncClient(timeout=timeout, follow_redirects=True, trust_env=trusting)
    with ExitStack() as stack:
        url = url or stack.enter_context(tile_server.serving())
        async with (
            client,
            aiostage.StagingRing(adapter.request_device_sync(), ring_count=3, buffer_size=1 * aiostage.MiB) as ring,
            anyio.create_task_group() as tasks,
            UploadQueue(ring, bytes_per_frame=1 * aiostage.MiB, concurrency=AT_ONCE) as queue,
        ):
            tiles = Map(queue, client, url, zoom)
            for left in range(STEPS, -1, -1):
                tiles.look((end[0] + DRAG[0] * left // STEPS, end[1] + DRAG[1] * left // STEPS), tasks)
                await tiles.draw()
            while tiles.waiting:
                await tiles.draw()
            await tiles.draw()
            done = queue.statistics()
    if not tiles.arrived:
        raise UsageError(f"{url}: no tile can be shown: {next(iter(tiles.failed.values()), 'there are none')}")
    for (x, y), why in sorted(tiles.failed.items()):
        print(f"tile {zoom}/{x}/{y}: {why}", file=sys.stderr)
    print(f"{done.done} tiles uploaded, {done.cancelled} left before their turn, {done.failed} failed")
    photos.write(tiles.picture.read(), output)
    print(f"wrote {output}")


def template(text: str) -> str:
    if not all(name in text for name in ("{z}", "{x}", "{y}")):
        raise argparse.ArgumentTypeError(f"{text} has not all of {{z}}, {{x}} and {{y}}")
    return text


def place(text: str) -> tuple[float, float]:
    found = re.fullmatch(r"(-?[\d.]+),(-?[\d.]+)", text)
    if found is None or abs(float(found[1])) > 85 or abs(float(found[2])) > 180:
        raise argparse.ArgumentTypeError(
            f"{text} is no latitude within 85° and longitude within 180°, such as 46.5,8.0"
        )
    return float(found[1]), float(found[2])


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--url", type=template, help="of a tile, with {z}, {x} and {y}; default: tiles that are made")
    parser.add_argument("--zoom", type=int, choices=range(23), default=4, metavar="0…22")
    parser.add_argument("--at", type=place, default="76,78", help="latitude,longitude of the middle (--at=-33.9,151.2)")
    parser.add_argument("--timeout", type=float, default=10, help="seconds to wait for a server's answer")
    parser.add_argument("--output", type=Path, default=Path("http_tiles.png"))
    options = parser.parse_args()
    arguments = options.output, options.url, options.zoom, options.at, options.timeout
    sys.exit(exit_status(parser.prog, lambda: anyio.run(main, *arguments)))
