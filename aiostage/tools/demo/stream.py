"""The coroutines that decode photographs and stream their tiles through the ring."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt

import aiostage

from .photos import Photo, decode
from .tiles import TILE_BYTES, Pixels, Tile, cut, interleave

LEVELS = (128, 64, 32, 16, 8, 4, 2, 1)  # each round shows squares of so many pixels; the last is the photograph
PHOTOS_AT_ONCE = 4


@dataclass
class Progress:
    """What has been streamed and drawn so far."""

    tiles: int
    arrived: npt.NDArray[np.float32] = field(init=False)  # when each layer was last uploaded, in seconds of the run
    uploads: int = 0
    level: int = 0
    frames: int = 0

    def __post_init__(self) -> None:
        self.arrived = np.full(self.tiles, -1.0, np.float32)

    @property
    def uploads_planned(self) -> int:
        return self.tiles * len(LEVELS)

    @property
    def bytes(self) -> int:
        return self.uploads * TILE_BYTES


class Decoder:
    """Decodes each photograph once, for the first coroutine that wants a tile of it; the others wait for that."""

    def __init__(self, photos: Sequence[Photo], planned: Sequence[Sequence[Tile]], block: int) -> None:
        self._photos, self._planned, self._block = photos, planned, block
        self._locks = [anyio.Lock() for _ in photos]
        self._ready: dict[Tile, Pixels] = {}
        self._started: set[int] = set()

    async def tile(self, tile: Tile) -> Pixels:
        async with self._locks[tile.photo]:
            if tile.photo not in self._started:
                self._started.add(tile.photo)
                self._ready |= await anyio.to_thread.run_sync(self._decode, tile.photo)
        return self._ready.pop(tile)

    def _decode(self, photo: int) -> dict[Tile, Pixels]:
        image = decode(self._photos[photo], self._block)
        return {tile: cut(image, tile) for tile in self._planned[photo]}


@dataclass
class Streamer:
    """Streams every photograph in rounds, coarse to sharp, so that there is something to watch."""

    ring: aiostage.StagingRing
    texture: Any
    photos: Sequence[Photo]
    planned: Sequence[Sequence[Tile]]
    coroutines: int
    progress: Progress
    clock: Callable[[], float]  # seconds of the run
    uploaded: Callable[[], None]  # called after each upload

    async def round(self, level: int) -> None:
        """Upload all tiles once. Rounds must not overlap: an older, coarser tile would overwrite a newer one."""
        self.progress.level = level
        decoder = Decoder(self.photos, self.planned, LEVELS[level])
        tiles = interleave(self.planned, PHOTOS_AT_ONCE)
        async with anyio.create_task_group() as group:
            for _ in range(self.coroutines):
                group.start_soon(self._worker, decoder, tiles)

    async def _worker(self, decoder: Decoder, tiles: Iterator[Tile]) -> None:
        for tile in tiles:
            pixels = await decoder.tile(tile)
            await self.ring.write_texture({"texture": self.texture, "origin": (0, 0, tile.layer)}, pixels)
            self.progress.arrived[tile.layer] = self.clock()
            self.progress.uploads += 1
            self.uploaded()
