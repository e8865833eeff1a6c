"""Destinations that are checked on the GPU, word by word, for what was uploaded to them.

An `Arena` is a buffer or a texture full of zeros, out of which uploads take disjoint regions. Their contents are slices
of one block of random words, none of them zero, that the GPU has as well. When an arena is full and nobody writes to it
any more, a compute shader compares every word of every region with the slice that it should hold, and counts the words
that are not zero, in the regions and in the whole arena: a byte that went astray makes these differ. Then it is cleared
and used again.
"""

from __future__ import annotations

import asyncio
import enum
from collections.abc import Sequence
from random import Random
from typing import Any

import numpy as np
import numpy.typing as npt
import wgpu

import aiostage
from aiostage.data.formats import padded_row

Words = npt.NDArray[np.uint32]

LONGEST = 3 * aiostage.MiB // 4
"""Words in the largest upload."""
_PERIOD = 1 << 20  # slices begin at one of so many places
_REGIONS = 4096  # in an arena
_WIDTH, _HEIGHT = 512, 64  # of a texture arena's layers, in texels
_CHANNELS = {"r32uint": 1, "rg32uint": 2, "rgba32uint": 4}

_WGSL = """
struct Region { start: u32, width: u32, rows: u32, stride: u32, source: u32, expect: u32 }
struct Found {
    compared: atomic<u32>, wrong: atomic<u32>, inside: atomic<u32>, everywhere: atomic<u32>, intact: atomic<u32>
}
@group(0) @binding(0) var<storage, read> words: array<u32>;
@group(0) @binding(1) var<storage, read> source: array<u32>;
@group(0) @binding(2) var<storage, read> regions: array<Region>;
@group(0) @binding(3) var<storage, read_write> found: Found;

@compute @workgroup_size(64)
fn compare(@builtin(workgroup_id) group: vec3u, @builtin(local_invocation_index) lane: u32) {
    let region = regions[group.x];
    var compared = 0u;
    var wrong = 0u;
    var inside = 0u;
    for (var row = 0u; row < region.rows; row++) {
        for (var x = lane; x < region.width; x += 64u) {
            let word = words[region.start + row * region.stride + x];
            let is_data = word == source[region.source + row * region.width + x];
            let is_right = (is_data && region.expect != 0u) || (word == 0u && region.expect != 1u);
            compared += 1u;
            wrong += select(1u, 0u, is_right);
            inside += select(0u, 1u, word != 0u);
        }
    }
    atomicAdd(&found.compared, compared);
    atomicAdd(&found.inside, inside);
    if (wrong > 0u) {
        atomicAdd(&found.wrong, wrong);
        atomicMin(&found.intact, group.x);
    }
}

@compute @workgroup_size(64)
fn survey(@builtin(global_invocation_id) id: vec3u, @builtin(num_workgroups) groups: vec3u) {
    var everywhere = 0u;
    for (var i = id.x; i < arrayLength(&words); i += groups.x * 64u) {
        everywhere += select(0u, 1u, words[i] != 0u);
    }
    atomicAdd(&found.everywhere, everywhere);
}
"""


class Expect(enum.IntEnum):
    """What a region has to hold: zeros, the upload's data, or either, word by word, if the upload was cancelled."""

    ZEROS = 0
    DATA = 1
    EITHER = 2


class Region:
    """A part of an arena that one upload writes. Set `expect` as the upload goes on, and `end` it."""

    def __init__(self, arena: Arena, place: Sequence[int], source: int, what: str) -> None:
        self.arena = arena
        self.start, self.width, self.rows, self.stride = place  # in words of what the shader sees
        self.source = source
        self.what = what
        self.expect = Expect.ZEROS

    @property
    def data(self) -> Words:
        """The words to upload."""
        return self.arena.checker.source[self.source : self.source + self.width * self.rows]

    @property
    def nbytes(self) -> int:
        return self.width * self.rows * 4

    @property
    def buffer_offset(self) -> int:
        return self.start * 4

    def end(self) -> None:
        """Nobody writes to it any more."""
        self.arena.writers -= 1
        self.arena.check_if_done()

    def __str__(self) -> str:
        return f"{self.what}, {self.rows} × {self.width} words at word {self.start}, expected {self.expect.name}"


class TexelRegion(Region):
    """A region of a texture."""

    origin: tuple[int, int, int]
    size: tuple[int, int, int]

    @property
    def destination(self) -> dict[str, Any]:
        return {"texture": self.arena.target, "origin": self.origin}

    @property
    def texels(self) -> Words:
        """The data, shaped (layers, rows, columns, channels)."""
        width, height, layers = self.size
        return self.data.reshape(layers, height, width, -1)


class Checker:
    """What all arenas of a device share: the random words, the shader, and what was found."""

    def __init__(self, device: wgpu.GPUDevice, seed: int) -> None:
        self.device = device
        rng = np.random.default_rng(seed)
        self.source: Words = rng.integers(1, 1 << 32, _PERIOD + LONGEST, np.uint32)
        self.source_buffer = device.create_buffer_with_data(data=self.source, usage=wgpu.BufferUsage.STORAGE)
        module = device.create_shader_module(code=_WGSL)
        kinds = ["read-only-storage"] * 3 + ["storage"]
        entries = [
            {"binding": i, "visibility": wgpu.ShaderStage.COMPUTE, "buffer": {"type": kind}}
            for i, kind in enumerate(kinds)
        ]
        self.layout = device.create_bind_group_layout(entries=entries)
        pipeline_layout = device.create_pipeline_layout(bind_group_layouts=[self.layout])
        self.compare, self.survey = (
            device.create_compute_pipeline(layout=pipeline_layout, compute={"module": module, "entry_point": name})
            for name in ("compare", "survey")
        )
        self.arenas = self.regions = self.words = self.wrong = self.astray = 0
        self.expected = dict.fromkeys(Expect, 0)  # regions
        self.mismatches: list[str] = []

    def note(self, regions: Sequence[Region], found: Sequence[int]) -> None:
        """Of one arena: (words compared, wrong ones, not zero in regions, not zero anywhere, first wrong region)."""
        compared, wrong, inside, everywhere, first = found
        assert compared == sum(region.width * region.rows for region in regions), "not every word was compared"
        self.arenas += 1
        self.regions += len(regions)
        self.words += compared
        self.wrong += wrong
        self.astray += everywhere - inside
        for region in regions:
            self.expected[region.expect] += 1
        if wrong:
            self.mismatches.append(f"{wrong} wrong words, first in region {first} of {len(regions)}: {regions[first]}")
        if everywhere != inside:
            self.mismatches.append(f"{everywhere - inside} words outside of {len(regions)} regions were written")


class Arena:
    """One destination. `BufferArena` and `TextureArena` say what it is, and where a region fits in it."""

    target: Any
    """The GPUBuffer or GPUTexture to upload to."""

    def __init__(self, checker: Checker, words: wgpu.GPUBuffer) -> None:
        self.checker = checker
        device = checker.device
        self._words = words  # that the shader sees
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST
        self._table = device.create_buffer(size=_REGIONS * 24, usage=usage)
        self._found = device.create_buffer(size=20, usage=usage | wgpu.BufferUsage.COPY_SRC)
        self._readable = device.create_buffer(size=20, usage=wgpu.BufferUsage.MAP_READ | wgpu.BufferUsage.COPY_DST)
        buffers = (words, checker.source_buffer, self._table, self._found)
        entries = [{"binding": i, "resource": {"buffer": buffer}} for i, buffer in enumerate(buffers)]
        self._bindings = device.create_bind_group(layout=checker.layout, entries=entries)
        self.clear()

    def clear(self) -> None:
        self.regions: list[Region] = []
        self.writers = 0
        self._closed: asyncio.Event | None = None

    def take(self, words: int, rng: Random, what: str) -> Any:
        """A region of about that many words, or None if there is no room."""
        if len(self.regions) >= _REGIONS - 1:
            return None
        region = self._fit(words, rng, what)
        if region is not None:
            self.regions.append(region)
            self.writers += 1
        return region

    async def done(self) -> None:
        """Wait until nobody writes to it any more."""
        self._closed = asyncio.Event()
        self.check_if_done()
        await self._closed.wait()

    def check_if_done(self) -> None:
        if self._closed is not None and self.writers == 0:
            self._closed.set()

    async def check(self, ring: aiostage.StagingRing, rng: Random) -> None:
        """Compare what it holds with what it should, and clear it."""
        self.regions.append(await self._mark(ring, rng))
        rows = [(r.start, r.width, r.rows, r.stride, r.source, r.expect) for r in self.regions]
        # By wgpu's own way, so that the checks do not rest on what they check.
        self.checker.device.queue.write_buffer(self._table, 0, np.array(rows, np.uint32))
        self.checker.device.queue.write_buffer(self._found, 0, np.array([0, 0, 0, 0, len(rows)], np.uint32))
        await ring.submit([self._command_buffer(len(rows))])
        await self._readable.map_async("READ")
        found = np.frombuffer(self._readable.read_mapped(), np.uint32).tolist()
        self._readable.unmap()
        self.checker.note(self.regions, found)
        self.clear()

    def _command_buffer(self, regions: int) -> wgpu.GPUCommandBuffer:
        encoder = self.checker.device.create_command_encoder()
        self._read(encoder)
        compute = encoder.begin_compute_pass()
        compute.set_bind_group(0, self._bindings)
        compute.set_pipeline(self.checker.compare)
        compute.dispatch_workgroups(regions)
        compute.set_pipeline(self.checker.survey)
        compute.dispatch_workgroups(256)
        compute.end()
        encoder.copy_buffer_to_buffer(self._found, 0, self._readable, 0, 20)
        encoder.clear_buffer(self._words)
        self._write_zeros(encoder)
        return encoder.finish()

    async def _mark(self, ring: aiostage.StagingRing, rng: Random) -> Region:
        """One more upload, to the place kept for it: what was written to this destination before comes before it, so
        nothing of an upload that was cancelled can be on its way any more once it is submitted."""
        raise NotImplementedError

    def _fit(self, words: int, rng: Random, what: str) -> Region | None:
        raise NotImplementedError

    def _read(self, encoder: Any) -> None:
        """Copy the destination to where the shader sees it."""

    def _write_zeros(self, encoder: Any) -> None:
        """Copy that, which was cleared, to the destination."""


class BufferArena(Arena):
    def __init__(self, checker: Checker, words: int) -> None:
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
        self.target = checker.device.create_buffer(size=words * 4, usage=usage)
        self._size = words
        super().__init__(checker, self.target)

    def clear(self) -> None:
        super().clear()
        self._head = 2  # the first word is the mark's; a word stays free between neighbours

    def _fit(self, words: int, rng: Random, what: str) -> Region | None:
        if self._head + words > self._size:
            return None
        region = Region(self, (self._head, words, 1, 0), rng.randrange(_PERIOD), what)
        self._head += words + 1
        return region

    async def _mark(self, ring: aiostage.StagingRing, rng: Random) -> Region:
        mark = Region(self, (0, 1, 1, 0), rng.randrange(_PERIOD), "mark")
        mark.expect = Expect.DATA
        await ring.write_buffer(self.target, 0, mark.data)
        return mark


class TextureArena(Arena):
    """An array texture. A region is a rectangle in one layer, beside the one before, or several whole layers."""

    def __init__(self, checker: Checker, format: str, words: int) -> None:
        self._format, self._channels = format, _CHANNELS[format]
        self._stride = padded_row(_WIDTH * self._channels * 4) // 4
        self._layers = words // (self._stride * _HEIGHT)
        self._size = (_WIDTH, _HEIGHT, self._layers)
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
        self.target = checker.device.create_texture(size=self._size, format=format, usage=usage)
        buffer_usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
        words = self._layers * _HEIGHT * self._stride
        super().__init__(checker, checker.device.create_buffer(size=words * 4, usage=buffer_usage))

    def clear(self) -> None:
        super().clear()
        self._x, self._layer = 0, 1  # the first layer is the mark's

    def _fit(self, words: int, rng: Random, what: str) -> TexelRegion | None:
        texels = max(1, words // self._channels)
        layers = texels // (_WIDTH * _HEIGHT)
        if layers:
            width, height, y = _WIDTH, _HEIGHT, 0
        else:
            layers = 1
            height = rng.randint(-(-texels // _WIDTH), min(texels, _HEIGHT))
            width, y = texels // height, rng.randint(0, _HEIGHT - height)
        if self._x + width > _WIDTH:
            self._x = 0
            self._layer += 1
        if self._layer + layers > self._layers:
            return None
        region = self._region((self._x, y, self._layer), (width, height, layers), rng, what)
        self._x += width
        self._layer += layers - 1
        return region

    def _region(self, origin: tuple[int, int, int], size: tuple[int, int, int], rng: Random, what: str) -> TexelRegion:
        x, y, layer = origin
        start = (layer * _HEIGHT + y) * self._stride + x * self._channels
        place = (start, size[0] * self._channels, size[1] * size[2], self._stride)  # whole layers adjoin
        region = TexelRegion(self, place, rng.randrange(_PERIOD), f"{what} of {self._format}")
        region.origin, region.size = origin, size
        return region

    async def _mark(self, ring: aiostage.StagingRing, rng: Random) -> Region:
        mark = self._region((0, 0, 0), (1, 1, 1), rng, "mark")
        mark.expect = Expect.DATA
        await ring.write_texture(mark.destination, mark.texels)
        return mark

    def _places(self) -> tuple[dict[str, Any], dict[str, Any]]:
        return {"texture": self.target}, {
            "buffer": self._words,
            "bytes_per_row": self._stride * 4,
            "rows_per_image": _HEIGHT,
        }

    def _read(self, encoder: Any) -> None:
        texture, words = self._places()
        encoder.copy_texture_to_buffer(texture, words, self._size)

    def _write_zeros(self, encoder: Any) -> None:
        texture, words = self._places()
        encoder.copy_buffer_to_texture(words, texture, self._size)


class Arenas:
    """Several arenas in turn: uploads take regions of one, while full ones are waited for and checked, in `group`."""

    def __init__(
        self, arenas: Sequence[Arena], ring: aiostage.StagingRing, rng: Random, group: asyncio.TaskGroup
    ) -> None:
        self._count = len(arenas)
        self._ring, self._rng, self._group = ring, rng, group
        self._free: asyncio.Queue[Arena] = asyncio.Queue()
        for arena in arenas:
            self._free.put_nowait(arena)
        self._current: Arena | None = None
        self._turn = asyncio.Lock()

    async def take(self, sizes: Sequence[int], rng: Random, what: str) -> list[Any]:
        """Regions of about so many words; waits while every arena is full.

        Take all that you need at once: who holds a region while it waits here holds up the arena that it lies in.
        """
        regions: list[Region] = []
        try:
            async with self._turn:
                for words in sizes:
                    while self._current is None or (region := self._current.take(words, rng, what)) is None:
                        self._retire()
                        self._current = await self._free.get()
                    regions.append(region)
        except BaseException:
            for region in regions:
                region.end()
            raise
        return regions

    async def check_all(self) -> None:
        """Wait for whoever still writes, and check what was not checked yet."""
        async with self._turn:
            self._retire()
            arenas = [await self._free.get() for _ in range(self._count)]
            for arena in arenas:
                self._free.put_nowait(arena)

    def _retire(self) -> None:
        if self._current is not None:
            self._group.create_task(self._check(self._current))
            self._current = None

    async def _check(self, arena: Arena) -> None:
        await arena.done()
        await arena.check(self._ring, self._rng)
        self._free.put_nowait(arena)
