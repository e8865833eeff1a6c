"""Uploads through a small ring against wgpu's own `queue.write_*`: the destinations end up equal, byte for byte.

Every example uploads the same data twice, to two destinations with the same random content, and compares all of both:
every mip level and layer of a texture, bytes that no upload touched included. What wgpu refuses the ring refuses.
AIOSTAGE_DIFFERENTIAL_EXAMPLES sets the number of examples of each of the three kinds.
"""

from __future__ import annotations

import asyncio
import contextlib
import math
import os
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import wgpu
from hypothesis import HealthCheck, assume, event, given, settings
from hypothesis import strategies as st
from readback import CREATABLE, aspect_honoured, fill_texture, read_buffer, read_texture

import aiostage
from aiostage.data.formats import is_depth_stencil, numpy_layout, required_feature, texel_block

EXAMPLES = int(os.environ.get("AIOSTAGE_DIFFERENTIAL_EXAMPLES", "500"))
PARTS = -(-EXAMPLES // 2000)  # a part ends well before what makes pytest take a test for hanging
in_parts = pytest.mark.parametrize("part", range(PARTS))

differential = settings(
    max_examples=-(-EXAMPLES // PARTS),
    deadline=None,
    derandomize=False,  # parts would be alike
    database=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large, HealthCheck.filter_too_much],
)

FEATURES = {required_feature(format) for format in wgpu.TextureFormat} - {None}
FEATURES |= {"texture-compression-bc-sliced-3d", "texture-compression-astc-sliced-3d"}
SLICED = {"bc": "texture-compression-bc-sliced-3d", "as": "texture-compression-astc-sliced-3d"}
SEEDS = st.integers(0, 2**32 - 1)
MAX_BYTES = 128 * 1024  # of a destination


class Bench:
    """One device, one event loop, and rings of many sizes, for all examples of this module."""

    def __init__(self, adapter: wgpu.GPUAdapter) -> None:
        self.device = adapter.request_device_sync(required_features=sorted(FEATURES & set(adapter.features)))
        self.runner = asyncio.Runner()
        self._rings: dict[RingShape, aiostage.StagingRing] = {}

    def run(self, shape: RingShape, upload: Callable[[aiostage.StagingRing], Awaitable[object]]) -> None:
        """Run `upload` with a ring of this shape, and wait for the GPU."""

        async def main() -> None:
            ring = self._rings.pop(shape, None)
            if ring is None:
                ring = aiostage.StagingRing(
                    self.device, shape.count, shape.size, threads=2, inline_size=shape.inline_size
                )
                await ring.open()
            self._rings[shape] = ring
            if len(self._rings) > 8:
                await self._rings.pop(next(iter(self._rings))).aclose()
            try:
                await asyncio.wait_for(upload(ring), 60)
            except TimeoutError:
                pytest.exit(f"an upload hangs: {ring.stats_nowait()}", returncode=1)  # no use in shrinking it

        self.runner.run(main())

    def close(self) -> None:
        async def main() -> None:
            for ring in self._rings.values():
                await ring.aclose()

        self.runner.run(main())
        self.runner.close()
        self.device.destroy()


@pytest.fixture(scope="module")
def bench(adapter: wgpu.GPUAdapter) -> Iterator[Bench]:
    bench = Bench(adapter)
    yield bench
    bench.close()


@dataclass(frozen=True)
class RingShape:
    count: int
    size: int
    inline_size: int  # 0 has worker threads copy everything


RINGS = st.builds(
    RingShape,
    st.integers(1, 4),
    st.sampled_from([1024, 1028, 1536, 2300, 4096, 10_000, 16_384, 65_536]),
    st.sampled_from([0, 1 << 20, 1 << 20]),
)


# -- Textures --


@dataclass(frozen=True)
class TextureCase:
    """A texture, and an upload to it in texel blocks: columns, rows, layers."""

    format: str
    aspect: str
    dimension: str
    size: tuple[int, int, int]  # in texels
    mip_level_count: int
    mip_level: int
    origin: tuple[int, int, int]
    copied: tuple[int, int, int]
    way: str  # "layout" with a data_layout; "shape" without
    container: str
    offset: int
    row_padding: int
    image_padding: int
    tail: int
    seed: int

    @contextlib.contextmanager
    def two_alike(self, device: wgpu.GPUDevice) -> Iterator[list[wgpu.GPUTexture]]:
        """Two textures with the same content: random, or none yet."""
        textures = []
        for _ in range(2):
            texture = device.create_texture(
                size=self.size,
                format=self.format,
                dimension=self.dimension,
                mip_level_count=self.mip_level_count,
                usage=wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC,
            )
            if self.seed % 2:  # the others are fresh, as wgpu made them
                fill_texture(texture, np.random.default_rng(self.seed + 1), self.aspect)
            textures.append(texture)
        yield textures
        for texture in textures:
            texture.destroy()


FORMATS_AND_ASPECTS = [(format, "all") for format in CREATABLE if not is_depth_stencil(format)]
FORMATS_AND_ASPECTS += [("stencil8", "stencil-only"), ("depth16unorm", "depth-only"), ("depth16unorm", "all")]
FORMATS_AND_ASPECTS += [("depth24plus-stencil8", "stencil-only"), ("depth32float-stencil8", "stencil-only")]
SIDES = [(300, 3, 2), (6, 150, 2), (40, 40, 2), (12, 12, 16), (3, 3, 40)]  # of textures, in blocks, at most


@st.composite
def texture_cases(draw: st.DrawFn, features: frozenset[str]) -> TextureCase:
    available = [(f, a) for f, a in FORMATS_AND_ASPECTS if required_feature(f) in features | {None}]
    format, aspect = draw(st.sampled_from(available))
    block = texel_block(format, aspect)
    compressed = (block.width, block.height) != (1, 1)
    dimensions = ["2d", "2d", "2d"]
    if not is_depth_stencil(format):
        dimensions += [] if compressed else ["1d"]
        dimensions += ["3d"] if not compressed or SLICED.get(format[:2]) in features else []
    dimension = draw(st.sampled_from(dimensions))
    sides = draw(st.sampled_from(SIDES)) if dimension != "1d" else (2000, 1, 1)
    columns, rows, layers = (draw(st.integers(1, side)) for side in sides)
    layers = min(layers, max(1, MAX_BYTES // (columns * rows * block.nbytes)))
    size = (columns * block.width, rows * block.height, layers)
    longest = max(size) if dimension == "3d" else max(size[:2])
    mip_level_count = 1 if dimension == "1d" else draw(st.integers(1, longest.bit_length()))
    mip_level = draw(st.integers(0, mip_level_count - 1))
    level = (
        -(-max(1, size[0] >> mip_level) // block.width),
        -(-max(1, size[1] >> mip_level) // block.height),
        max(1, layers >> mip_level) if dimension == "3d" else layers,
    )
    origin, copied = [0, 0, 0], list(level)
    for axis in (2,) if is_depth_stencil(format) else (0,) if dimension == "1d" else (0, 1, 2):
        if draw(st.booleans()):
            origin[axis] = draw(st.integers(0, level[axis] - 1))
            copied[axis] = draw(st.integers(min(1, draw(st.integers(0, 9))), level[axis] - origin[axis]))
    way = draw(st.sampled_from(["layout", "layout", "shape"]))
    return TextureCase(
        format=format,
        aspect=aspect,
        dimension=dimension,
        size=size,
        mip_level_count=mip_level_count,
        mip_level=mip_level,
        origin=(origin[0] * block.width, origin[1] * block.height, origin[2]),
        copied=(copied[0], copied[1], copied[2]),
        way=way,
        container=draw(st.sampled_from(sorted(CONTAINERS if way == "layout" else ARRANGEMENTS))),
        offset=draw(st.integers(0, 100)) if way == "layout" else 0,
        row_padding=draw(st.sampled_from([0, 0, 1, 3, 4, 16, 77, 256])) if way == "layout" else 0,
        image_padding=draw(st.integers(0, 3)) if way == "layout" else 0,
        tail=draw(st.integers(0, 9)) if way == "layout" else 0,
        seed=draw(SEEDS),
    )


# The same bytes as objects of several kinds.
CONTAINERS: dict[str, Callable[[np.ndarray], Any]] = {
    "bytes": lambda data: data.tobytes(),
    "bytearray": lambda data: bytearray(data.tobytes()),
    "memoryview": lambda data: memoryview(data.tobytes()),
    "array": lambda data: data,
    "read-only array": lambda data: np.frombuffer(data.tobytes(), np.uint8),
    "every other byte": lambda data: np.repeat(data, 2)[::2],
    "reversed": lambda data: data[::-1].copy()[::-1],
}

# The same array with other strides.
ARRANGEMENTS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "contiguous": lambda array: array,
    "cut out": lambda array: np.pad(array, 1)[(slice(1, -1),) * array.ndim],
    "upside down": lambda array: array[::-1].copy()[::-1],
    "fortran": np.asfortranarray,
    "every other": lambda array: np.repeat(array, 2, axis=0)[::2],
}


def shaped(case: TextureCase, data: np.ndarray) -> np.ndarray:
    """Blocks of bytes (layers, rows, columns, bytes of a block) as a user would have them: natural type and axes."""
    layout = numpy_layout(case.format)
    if layout is not None and case.seed % 3:
        data = np.ascontiguousarray(data).view(layout[0])
        data = data[..., 0] if layout[1] == 1 else data
    if case.dimension == "1d":
        data = data[0, 0]
    elif data.shape[0] == 1 and case.seed % 2 and data.shape[3:] != (1,):
        data = data[0]  # (rows, columns, 1) would be an image of layers
    return ARRANGEMENTS[case.container](data)


@dataclass(frozen=True)
class Spoiler:
    """Adds to one number of an upload, so that it may no longer be one that WebGPU takes."""

    what: str
    by: int


SPOILERS = st.builds(
    Spoiler,
    st.sampled_from(
        ["x", "y", "z", "width", "height", "layers", "mip_level", "offset", "bytes_per_row", "rows_per_image", "data"]
    ),
    st.sampled_from([-256, -4, -2, -1, 1, 2, 3, 4, 8, 2**16, 2**31 - 1]),
)


@dataclass
class TextureArguments:
    """The arguments of `write_texture`, to change before they are used."""

    destination: dict[str, Any]
    data: np.ndarray
    layout: dict[str, int]
    size: tuple[int, ...]

    @classmethod
    def of(cls, case: TextureCase) -> TextureArguments:
        block = texel_block(case.format, case.aspect)
        columns, rows, layers = case.copied
        layout = {
            "offset": case.offset,
            "bytes_per_row": columns * block.nbytes + case.row_padding,
            "rows_per_image": rows + case.image_padding,
        }
        nbytes = case.offset + layout["bytes_per_row"] * layout["rows_per_image"] * layers + case.tail
        return cls(
            {"mip_level": case.mip_level, "origin": case.origin},
            np.random.default_rng(case.seed).integers(0, 256, nbytes, np.uint8),
            layout,
            (columns * block.width, rows * block.height, layers),
        )

    def spoil(self, spoiler: Spoiler) -> None:
        what, by = spoiler.what, spoiler.by
        if what in ("x", "y", "z"):
            axis = "xyz".index(what)
            self.destination["origin"] = tuple(n + by * (i == axis) for i, n in enumerate(self.destination["origin"]))
        elif what in ("width", "height", "layers"):
            axis = ("width", "height", "layers").index(what)
            self.size = tuple(n + by * (i == axis) for i, n in enumerate(self.size))
        elif what == "mip_level":
            self.destination["mip_level"] += by
        elif what == "data":
            self.data = self.data[: len(self.data) + min(by, 0)]
        else:
            self.layout[what] += by

    def write_with_wgpu(self, texture: wgpu.GPUTexture, aspect: str) -> None:
        if 0 not in self.size:  # wgpu-py takes no empty data
            with aspect_honoured(aspect):
                destination = {"texture": texture, **self.destination}
                texture._device.queue.write_texture(destination, self.data, self.layout, self.size)


def assert_same_texels(uploaded: wgpu.GPUTexture, expected: wgpu.GPUTexture, aspect: str) -> None:
    for ours, wgpus in zip(read_texture(uploaded, aspect), read_texture(expected, aspect), strict=True):
        np.testing.assert_array_equal(ours, wgpus)


WAYS = {
    "ring": lambda ring: contextlib.nullcontext(ring),
    "batch": lambda ring: ring.batch(),
    "frame": lambda ring: ring.frame(),
}


async def write_texture(ring: aiostage.StagingRing, way: str, *arguments: Any) -> None:
    async with WAYS[way](ring) as writer:
        await writer.write_texture(*arguments)


async def write_buffer(ring: aiostage.StagingRing, way: str, *arguments: Any) -> None:
    async with WAYS[way](ring) as writer:
        await writer.write_buffer(*arguments)


@in_parts
def test_textures(bench: Bench, part: int) -> None:
    """Formats, dimensions, regions, mip levels, layers, strides, containers, arrangements and ring shapes."""

    @differential
    @given(texture_cases(frozenset(bench.device.features)), RINGS, st.sampled_from(sorted(WAYS)))
    def check(case: TextureCase, ring_shape: RingShape, way: str) -> None:
        given = TextureArguments.of(case)
        event(f"{case.dimension} by {case.way}")
        if case.way == "layout":
            arguments: tuple[Any, ...] = (CONTAINERS[case.container](given.data), given.layout, given.size)
        else:
            columns, rows, layers = case.copied
            nbytes = texel_block(case.format, case.aspect).nbytes
            data = shaped(case, given.data.reshape(layers, rows, columns, nbytes))
            if data.ndim == 3 and data.shape[2] == 1 and data.itemsize == nbytes:
                data = data[..., np.newaxis]  # or it might be an image of one channel
            arguments = (data,)
        with case.two_alike(bench.device) as (expected, uploaded):
            given.write_with_wgpu(expected, case.aspect)
            destination = {"texture": uploaded, "aspect": case.aspect, **given.destination}
            try:
                bench.run(ring_shape, lambda ring: write_texture(ring, way, destination, *arguments))
            except aiostage.AllocationTooLarge:
                # No other can be too large: depth and stencil go whole images at a time.
                assert is_depth_stencil(case.format)
                assert (
                    -(-given.size[0] * texel_block(case.format, case.aspect).nbytes // 256) * 256 * given.size[1]
                    > ring_shape.size
                )
                event("image larger than a staging buffer")
            else:
                assert_same_texels(uploaded, expected, case.aspect)

    check()


@in_parts
def test_what_wgpu_refuses_to_write_to_a_texture(bench: Bench, part: int) -> None:
    """One number is off: the ring raises InvalidCopy if wgpu raises, and does the same as wgpu if it does not."""

    @differential
    @given(texture_cases(frozenset(bench.device.features)), SPOILERS, RINGS)
    def check(case: TextureCase, spoiler: Spoiler, ring_shape: RingShape) -> None:
        given = TextureArguments.of(case)
        given.spoil(spoiler)
        assume(0 not in given.size)
        assume(given.layout["bytes_per_row"] and given.layout["rows_per_image"])  # wgpu-native aborts at 0
        with case.two_alike(bench.device) as (expected, uploaded):
            destination = {"texture": uploaded, "aspect": case.aspect, **given.destination}
            arguments = (destination, given.data, given.layout, given.size)
            try:
                given.write_with_wgpu(expected, case.aspect)
            except (wgpu.GPUError, ValueError, OverflowError):
                event("refused")
                with pytest.raises(aiostage.InvalidCopy):
                    bench.run(ring_shape, lambda ring: ring.write_texture(*arguments))
            else:
                event("taken")
                try:
                    bench.run(ring_shape, lambda ring: ring.write_texture(*arguments))
                except aiostage.AllocationTooLarge:
                    assert is_depth_stencil(case.format)
                    return
            assert_same_texels(uploaded, expected, case.aspect)

    check()


# -- Buffers --


@dataclass(frozen=True)
class BufferCase:
    buffer_size: int
    buffer_offset: int
    dtype: str
    shape: tuple[int, ...]
    arrangement: str
    data_offset: int
    size: int | None
    seed: int

    def data(self) -> np.ndarray:
        itemsize = np.dtype(self.dtype).itemsize
        content = np.random.default_rng(self.seed).integers(0, 256, math.prod(self.shape) * itemsize, np.uint8)
        return ARRANGEMENTS[self.arrangement](content.view(self.dtype).reshape(self.shape))


DTYPES = ["u1", "i2", "f2", ">u2", "f4", "f8", "c16", "?", "S3", "V5", "M8[ns]", "i4, f4, 3u1"]


@st.composite
def buffer_cases(draw: st.DrawFn) -> BufferCase:
    dtype = draw(st.sampled_from(DTYPES))
    itemsize = np.dtype(dtype).itemsize
    axes = draw(st.integers(1, 4))
    largest = draw(st.sampled_from([64, 1024, 64 * 1024])) // itemsize + 1
    shape = []
    for _ in range(axes):
        shape.append(draw(st.integers(1, max(1, largest))))
        largest //= shape[-1]
    draw(st.randoms(use_true_random=False)).shuffle(shape)
    nbytes = math.prod(shape) * itemsize
    data_offset = draw(st.integers(0, nbytes)) if draw(st.booleans()) else 0
    longest = nbytes - data_offset
    size = None
    if longest % 4 or draw(st.booleans()):
        size = draw(st.integers(0, longest // 4)) * 4
    copied = longest if size is None else size
    buffer_offset = draw(st.integers(0, 300)) * 4
    return BufferCase(
        buffer_size=max(4, buffer_offset + copied + draw(st.integers(0, 100)) * 4),
        buffer_offset=buffer_offset,
        dtype=dtype,
        shape=tuple(shape),
        arrangement=draw(st.sampled_from(sorted(ARRANGEMENTS))),
        data_offset=data_offset,
        size=size,
        seed=draw(SEEDS),
    )


def filled_buffer(device: wgpu.GPUDevice, size: int, seed: int) -> wgpu.GPUBuffer:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = device.create_buffer(size=size, usage=usage)
    device.queue.write_buffer(buffer, 0, np.random.default_rng(seed).integers(0, 256, size, np.uint8))
    return buffer


@in_parts
def test_buffers(bench: Bench, part: int) -> None:
    """Offsets, sizes, types, shapes, arrangements and ring shapes."""

    @differential
    @given(buffer_cases(), RINGS, st.sampled_from(sorted(WAYS)))
    def check(case: BufferCase, ring_shape: RingShape, way: str) -> None:
        data = case.data()
        expected, uploaded = (filled_buffer(bench.device, case.buffer_size, case.seed + 1) for _ in range(2))
        nbytes = data.nbytes - case.data_offset if case.size is None else case.size
        if nbytes:  # wgpu-py takes a size of 0 for none
            contiguous = np.frombuffer(data.tobytes(), np.uint8)
            bench.device.queue.write_buffer(expected, case.buffer_offset, contiguous, case.data_offset, nbytes)
        arguments = (uploaded, case.buffer_offset, data, case.data_offset, case.size)
        bench.run(ring_shape, lambda ring: write_buffer(ring, way, *arguments))
        np.testing.assert_array_equal(read_buffer(uploaded), read_buffer(expected))
        expected.destroy()
        uploaded.destroy()

    check()


# -- Two hundred at once --


def tiles(rng: np.random.Generator, width: int, height: int, count: int) -> list[tuple[int, int, int, int]]:
    """`count` rectangles (x, y, width, height) that tile the whole."""
    found = [(0, 0, width, height)]
    while len(found) < count:
        found.sort(key=lambda tile: tile[2] * tile[3])
        x, y, w, h = found.pop()
        if w > h:
            cut = int(rng.integers(1, w))
            found += [(x, y, cut, h), (x + cut, y, w - cut, h)]
        else:
            cut = int(rng.integers(1, h))
            found += [(x, y, w, cut), (x, y + cut, w, h - cut)]
    return found


@pytest.mark.blocks_loop("it starts two hundred tasks at once, with wgpu's own uploads in between")
@pytest.mark.parametrize("seed", range(4))
def test_two_hundred_coroutines_and_a_ring_of_three_times_64_kib(bench: Bench, seed: int) -> None:
    """Disjoint regions of one texture and one buffer, in random order, by every way of writing."""
    rng = np.random.default_rng(seed)
    device, usage = bench.device, wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    textures = [device.create_texture(size=(700, 500, 3), format="rgba8unorm", usage=usage) for _ in range(2)]
    for texture in textures:
        fill_texture(texture, np.random.default_rng(seed))
    buffers = [filled_buffer(device, 4_000_000, seed) for _ in range(2)]
    regions = [(*tile, layer) for layer in range(3) for tile in tiles(rng, 700, 500, 40)]
    rng.shuffle(regions)
    cuts = np.sort(rng.choice(1_000_000 - 1, 120, replace=False) + 1) * 4
    spans = list(zip(cuts[:-1].tolist(), cuts[1:].tolist(), strict=True))
    rng.shuffle(spans)

    async def upload_region(ring: aiostage.StagingRing, region: tuple[int, ...], data: np.ndarray, way: str) -> None:
        x, y, w, h, layer = region
        destination = {"texture": textures[0], "origin": (x, y, layer)}
        if way != "slot" or h * -(-w * 4 // 256) * 256 > ring.buffer_size:
            await write_texture(ring, "ring" if way == "slot" else way, destination, data)
            return
        slot = await ring.allocate_texture((w, h), "rgba8unorm")
        with slot:
            await asyncio.sleep(0)
            slot.array()[:] = data
            slot.copy_to_texture(destination)
        await ring.submit()

    async def upload_span(ring: aiostage.StagingRing, span: tuple[int, int], data: np.ndarray, way: str) -> None:
        if way != "slot" or len(data) > ring.buffer_size:
            await write_buffer(ring, "ring" if way == "slot" else way, buffers[0], span[0], data)
            return
        slot = await ring.allocate(len(data))
        with slot:
            await asyncio.sleep(0)
            slot.view[:] = data
            slot.copy_to_buffer(buffers[0], span[0])
        await ring.submit()

    async def upload_all(ring: aiostage.StagingRing) -> None:
        async with asyncio.TaskGroup() as tasks:
            for i in range(100):
                way = ("ring", "batch", "frame", "slot")[i % 4]
                x, y, w, h, layer = regions[i]
                data = rng.integers(0, 256, (h, w, 4), np.uint8)
                place = {"texture": textures[1], "origin": (x, y, layer)}
                device.queue.write_texture(place, data, {"bytes_per_row": w * 4}, (w, h, 1))
                tasks.create_task(upload_region(ring, regions[i], data, way))
                start, end = spans[i]
                data = rng.integers(0, 256, end - start, np.uint8)
                device.queue.write_buffer(buffers[1], start, data)
                tasks.create_task(upload_span(ring, (start, end), data, way))
        stats = await ring.stats()
        assert stats.buffer_stalls > 0

    bench.run(RingShape(3, 65_536, 16_384), upload_all)
    assert_same_texels(*textures, "all")
    np.testing.assert_array_equal(read_buffer(buffers[0]), read_buffer(buffers[1]))
    for destination in (*textures, *buffers):
        destination.destroy()
