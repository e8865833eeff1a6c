"""Does the texture hold, byte for byte, what was sent?"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import anyio.to_thread
import numpy as np

from .gpu import read_layers
from .photos import Photo, decode
from .tiles import Pixels, Tile, cut

LAYERS_AT_ONCE = 64  # 16 MiB


async def differing(
    device: Any, texture: Any, photos: Sequence[Photo], planned: Sequence[Sequence[Tile]]
) -> list[Tile]:
    """Tiles that read back otherwise than as they were cut. Decodes the files anew: nothing of the run is trusted."""
    wrong: list[Tile] = []
    for photo, tiles in zip(photos, planned, strict=True):
        image = await anyio.to_thread.run_sync(decode, photo)
        for first in range(0, len(tiles), LAYERS_AT_ONCE):
            part = tiles[first : first + LAYERS_AT_ONCE]
            stored = read_layers(device, texture, part[0].layer, len(part))
            wrong += await anyio.to_thread.run_sync(compare, image, part, stored)
    return wrong


def compare(image: Pixels, tiles: Sequence[Tile], stored: Pixels) -> list[Tile]:
    return [tile for tile, layer in zip(tiles, stored, strict=True) if not np.array_equal(cut(image, tile), layer)]
