"""A memory pool fills, loses two ranges of three, and is defragmented: where every range lies, as a picture.

Each range is written through a staging ring and read back at the end, moved or not. Needs: pip install 'aiostage[demo]'

    python examples/memory_pool_demo.py [--output memory_pool.png]
"""

from __future__ import annotations

import argparse
import random
import sys
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np
import wgpu
from PIL import Image, ImageDraw, ImageFont

import aiostage
from aiostage import KiB, MiB
from aiostage.pools import BufferPool, BufferRange, PoolStatistics
from aiostage.tools.demo import photos
from aiostage.tools.demo.gpu import describe, find_adapter
from aiostage.tools.status import exit_status

BLOCK = 8 * MiB
BLOCKS = 12  # that are filled at first
PINNED = 2  # ranges that stay where they are
COLOURS = ("#fde725", "#a0da39", "#4ac16d", "#1fa187", "#277f8e", "#46568f")
FIRST_BUCKET = 32 * KiB
WIDTH, ROW, GAP, HEAD = 440, 26, 24, 116  # pixels


class Scene(NamedTuple):
    """What the pool looked like at one time."""

    title: str
    stats: PoolStatistics
    places: list[tuple[Any, int, int, bool]]  # (buffer, offset, size, pinned)


def look(title: str, pool: BufferPool, ranges: list[BufferRange]) -> Scene:
    places = [(range_.buffer, range_.offset, range_.size, range_.pinned) for range_ in ranges]
    return Scene(title, pool.statistics(), places)


async def fill(pool: BufferPool, ring: aiostage.StagingRing, rng: random.Random) -> dict[BufferRange, int]:
    """Allocate until the blocks are full; each range is filled with a byte of its own."""
    filled: dict[BufferRange, int] = {}
    async with ring.batch() as batch:
        while pool.statistics().used < (BLOCKS - 0.4) * BLOCK:
            new = pool.allocate(int(2 ** rng.uniform(14, 20)) // 4 * 4)  # 16 KiB to 1 MiB
            filled[new] = rng.randrange(1, 256)
            await batch.write_buffer(new, 0, np.full(new.size, filled[new], np.uint8))
    await batch.fence
    return filled


def verify(device: wgpu.GPUDevice, filled: dict[BufferRange, int]) -> None:
    """Read every range back."""
    for range_, value in filled.items():
        content = np.frombuffer(device.queue.read_buffer(range_.buffer, range_.offset, range_.size), np.uint8)
        if not (content == value).all():
            raise SystemExit(f"WRONG: {range_} does not hold what was written")


def colour(size: int) -> str:
    return COLOURS[min(len(COLOURS) - 1, ((size - 1) // FIRST_BUCKET).bit_length())]


def paint(scenes: list[Scene]) -> Image.Image:
    """A column for each scene, a row for each block."""
    blocks = list(dict.fromkeys(place[0] for scene in scenes for place in scene.places))
    width = GAP + len(scenes) * (WIDTH + GAP)
    foot = HEAD + len(blocks) * (ROW + 6) + 18
    page = Image.new("RGB", (width, foot + 46), "#14171c")
    draw = ImageDraw.Draw(page)
    title, plain = ImageFont.load_default(24), ImageFont.load_default(15)
    draw.text((GAP, 16), "A memory pool, block by block", "#ffffff", title)
    for column, scene in enumerate(scenes):
        left, stats = GAP + column * (WIDTH + GAP), scene.stats
        draw.text((left, 58), scene.title, "#9fd0ff", plain)
        figures = f"{stats.ranges} ranges: {stats.used / MiB:.0f} of {stats.reserved / MiB:.0f} MiB in use"
        draw.text((left, 80), f"{figures}, {stats.fragmentation:.1%} lost", "#8a94a3", plain)
        present = {place[0] for place in scene.places}
        for row, block in enumerate(blocks):
            top = HEAD + row * (ROW + 6)
            frame = (left, top, left + WIDTH - 1, top + ROW - 1)
            if block not in present:
                draw.rectangle(frame, outline="#2b313a")
                draw.text((left + 10, top + 4), "given back", "#4a5361", plain)
                continue
            draw.rectangle(frame, fill="#2b313a")
            for buffer, offset, size, pinned in scene.places:
                if buffer is block:
                    start, end = (left + round(at * WIDTH / BLOCK) for at in (offset, offset + size))
                    span = (start, top, max(start, end - 2), top + ROW - 1)
                    draw.rectangle(span, fill=colour(size))
                    if pinned:
                        draw.rectangle(span, outline="#ff4d5e", width=3)
    left = GAP
    for bucket in range(len(COLOURS)):
        draw.rectangle((left, foot, left + 18, foot + 18), fill=COLOURS[bucket])
        size = FIRST_BUCKET << bucket
        label = f"to {size // KiB} KiB" if size < MiB else f"to {size // MiB} MiB"
        draw.text((left + 26, foot), label, "#dfe5ee", plain)
        left += 130
    draw.rectangle((left, foot, left + 18, foot + 18), outline="#ff4d5e", width=3)
    draw.text((left + 26, foot), "pinned: stays where it is", "#dfe5ee", plain)
    return page


async def main(output: Path) -> None:
    adapter = find_adapter()
    device = adapter.request_device_sync()
    print(describe(adapter))
    rng = random.Random(1)
    async with aiostage.StagingRing(device, ring_count=3, buffer_size=1 * MiB) as ring:
        pool = BufferPool(device, wgpu.BufferUsage.STORAGE, block_size=BLOCK)
        filled = await fill(pool, ring, rng)
        scenes = [look("filled", pool, list(filled))]

        for range_ in rng.sample(list(filled), len(filled) * 2 // 3):
            range_.release()
            del filled[range_]
        pins = [range_.pin() for range_ in rng.sample([range_ for range_ in filled if range_.size > MiB // 2], PINNED)]
        scenes.append(look("two ranges of three released", pool, list(filled)))

        done = await pool.defragment(seconds=10)
        scenes.append(look("defragmented", pool, list(filled)))
        print(f"{done.ranges_moved} ranges, {done.bytes_moved / MiB:.1f} MiB moved in {done.seconds * 1e3:.0f} ms")
        verify(device, filled)
        print(f"{done.blocks_freed} blocks given back, every range verified")

        for pin in pins:
            pin.release()
        for range_ in filled:
            range_.release()
        pool.close()
    photos.write(paint(scenes), output)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--output", type=Path, default=Path("memory_pool.png"))
    arguments = parser.parse_args()
    sys.exit(exit_status(parser.prog, lambda: anyio.run(main, arguments.output)))
