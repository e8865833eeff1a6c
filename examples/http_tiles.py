"""Map tiles over HTTP, while the map is dragged: the nearest to its middle first, and none that has left it meanwhile.

Each is fetched when its turn comes, decoded in a thread, and uploaded into a layer of one array texture by a frame that
has room for it. A tile that fails is named, and the rest goes on. Makes tiles of its own (`tile_server.py`), unless a
server is given: keep to its terms of use. Needs: pip install 'aiostage[demo,http]'

    python examples/http_tiles.py [--url 'https://…/{z}/{x}/{y}.png' --zoom 9 --at 46.5,8.0] [--output http_tiles.png]
"""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from contextlib import nullcontext
from functools import partial

import anyio
import httpx
import launch
import numpy as np
import tile_server
import wgpu
from PIL import Image
from tile_map import MOST, TILE, Place, Tile, TileMap, add_options, decode, drag

import aiostage
from aiostage.streams import Upload, UploadQueue
from aiostage.tools.status import UsageError

AT_ONCE = 8  # tiles that are fetched
LAYERS = MOST + AT_ONCE  # those that are seen, and those that had begun when they left


class Tiles:
    """Which tile is in which layer."""

    def __init__(self, queue: UploadQueue, fetch: Callable[[Tile], Awaitable[np.ndarray]]) -> None:
        self.queue, self.fetch = queue, fetch
        self.waiting: dict[Tile, tuple[Upload, int]] = {}  # with its layer
        self.arrived: dict[Tile, int] = {}
        self.failed: dict[Tile, str] = {}
        self.free = list(range(LAYERS))
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
        self.layers = queue.ring.device.create_texture(size=(TILE, TILE, LAYERS), format="rgba8unorm", usage=usage)

    def look(self, seen: dict[Tile, float], tasks: anyio.abc.TaskGroup) -> None:
        """Drop what has left the picture, have the rest fetched, and the nearest to the middle first."""
        for tile in self.arrived.keys() - seen.keys():
            self.free.append(self.arrived.pop(tile))
        for tile in self.waiting.keys() - seen.keys():
            if self.queue.cancel(tag=tile):  # else it has begun, and goes on
                self.free.append(self.waiting.pop(tile)[1])
        for tile in seen.keys() - self.arrived.keys() - self.waiting.keys() - self.failed.keys():
            layer = self.free.pop()
            destination = {"texture": self.layers, "origin": (0, 0, layer)}
            upload = self.queue.write_texture(destination, partial(self.fetch, tile), tag=tile, nbytes=4 * TILE * TILE)
            self.waiting[tile] = upload, layer
            tasks.start_soon(self.arrive, tile, upload, layer)
        for tile in self.waiting.keys() & seen.keys():
            self.waiting[tile][0].priority = -seen[tile]

    async def arrive(self, tile: Tile, upload: Upload, layer: int) -> None:
        """It is in the next frame, or among those that failed: a program with a user would try these again."""
        try:
            await upload
            self.arrived[tile] = layer
        except aiostage.UploadCancelled:
            return
        except (httpx.HTTPError, httpx.InvalidURL, ValueError) as error:
            self.failed[tile] = (str(error) or type(error).__name__).splitlines()[0]
            self.free.append(layer)
        del self.waiting[tile]


async def main(device: wgpu.GPUDevice, url: str | None, zoom: int, at: Place, timeout: float) -> Image.Image:
    async def fetch(tile: Tile) -> np.ndarray:
        response = await client.get(template.format(z=zoom, x=tile[0], y=tile[1]))
        response.raise_for_status()
        return await anyio.to_thread.run_sync(decode, response.content)

    with nullcontext(url) if url else tile_server.serving() as template:
        async with (
            httpx.AsyncClient(timeout=timeout, follow_redirects=True, trust_env=bool(url)) as client,
            aiostage.StagingRing(device, ring_count=3, buffer_size=1 * aiostage.MiB) as ring,
            anyio.create_task_group() as tasks,
            UploadQueue(ring, bytes_per_frame=1 * aiostage.MiB, concurrency=AT_ONCE) as queue,
        ):
            tiles = Tiles(queue, fetch)
            picture = TileMap(device, tiles.layers, zoom)
            for corner in drag(at, zoom, tiles.waiting):
                tiles.look(picture.move(corner), tasks)
                async with ring.frame(uploads=queue) as frame:  # with the tiles that it has room for before it
                    await picture.draw(frame, tiles.arrived)
                await anyio.sleep(1 / 60)
            done = queue.statistics()
    if not tiles.arrived:
        raise UsageError(f"{template}: no tile can be shown: {next(iter(tiles.failed.values()), 'there are none')}")
    for (x, y), why in sorted(tiles.failed.items()):
        print(f"tile {zoom}/{x}/{y}: {why}", file=sys.stderr)
    print(f"{done.done} tiles uploaded, {done.cancelled} left before their turn, {done.failed} failed")
    return picture.read()


if __name__ == "__main__":
    launch.run(main, __doc__, add_options)
