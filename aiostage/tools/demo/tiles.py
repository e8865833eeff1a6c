"""Cutting an image into square tiles of one size, one per layer of a texture array, and putting it together again."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import zip_longest

import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]

TILE = 256  # pixels a side
TEXEL = 4  # bytes of an rgba8unorm texel
ROW_BYTES = TILE * TEXEL
TILE_BYTES = TILE * ROW_BYTES


@dataclass(frozen=True)
class Tile:
    """Where a tile comes from and where it goes. `width` and `height` are the part of it that shows the image."""

    photo: int
    x: int
    y: int
    width: int
    height: int
    layer: int


def count_tiles(width: int, height: int) -> int:
    return -(-width // TILE) * -(-height // TILE)


def plan(sizes: Iterable[tuple[int, int]]) -> list[list[Tile]]:
    """For each image (width, height) its tiles in reading order; layers are numbered through all images."""
    planned: list[list[Tile]] = []
    layer = 0
    for photo, (width, height) in enumerate(sizes):
        corners = [(x, y) for y in range(0, height, TILE) for x in range(0, width, TILE)]
        planned.append(
            [
                Tile(photo, x, y, min(TILE, width - x), min(TILE, height - y), layer + index)
                for index, (x, y) in enumerate(corners)
            ]
        )
        layer += len(corners)
    return planned


def interleave(planned: Sequence[Sequence[Tile]], at_once: int) -> Iterator[Tile]:
    """Tiles of `at_once` images in turn, then of the next ones: several can be decoded while none waits in memory."""
    for first in range(0, len(planned), at_once):
        for row in zip_longest(*planned[first : first + at_once]):
            yield from (tile for tile in row if tile is not None)


def cut(image: Pixels, tile: Tile) -> Pixels:
    """The tile's pixels, (TILE, TILE, 4) and contiguous; beyond the image's edge the last pixel is repeated."""
    part = image[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width]
    padding = ((0, TILE - tile.height), (0, TILE - tile.width), (0, 0))
    return np.ascontiguousarray(np.pad(part, padding, mode="edge"))


def reassemble(tiles: Sequence[Tile], pixels: Sequence[Pixels]) -> Pixels:
    """The image whose tiles these are: the inverse of :func:`cut`."""
    width = max(tile.x + tile.width for tile in tiles)
    height = max(tile.y + tile.height for tile in tiles)
    image = np.empty((height, width, TEXEL), np.uint8)
    for tile, part in zip(tiles, pixels, strict=True):
        image[tile.y : tile.y + tile.height, tile.x : tile.x + tile.width] = part[: tile.height, : tile.width]
    return image
