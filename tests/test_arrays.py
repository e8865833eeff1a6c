"""What data become: the texels and bytes that they mean, or an error that says what to give."""

from __future__ import annotations

import asyncio
import ctypes
import threading
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wgpu
from readback import read_buffer, read_texture
from simulated import SimulatedGpu

import aiostage
from aiostage import KiB
from aiostage.data.arrays import Scattered

OpenRing = Callable[..., Any]
Target = Callable[[int], wgpu.GPUBuffer]
RNG = np.random.default_rng(5)


def new_texture(device: wgpu.GPUDevice, format: str, size: tuple[int, int, int]) -> wgpu.GPUTexture:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=size, format=format, usage=usage)


PADDED = np.dtype({"names": ["a", "b"], "formats": ["u1", "u4"], "offsets": [0, 4], "itemsize": 16})


@pytest.mark.parametrize("by", ["ring", "batch"])
@pytest.mark.parametrize("step", [1, 2, -1])
async def test_gaps_of_structured_items_hold_their_own_bytes(
    open_ring: OpenRing, target: Target, step: int, by: str
) -> None:
    ring, buffer = await open_ring(ring_count=2, buffer_size=4096), target(16 * 1024)
    await (await ring.write_buffer(buffer, 0, np.full(16 * 1024, 0xEE, np.uint8)))  # somebody else's
    whole = RNG.integers(0, 200, 16 * 1024 * abs(step), np.uint8)
    data = whole.view(PADDED)[::step]
    if by == "ring":
        await ring.write_buffer(buffer, 0, data)
    else:
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, data)
    expected = whole.reshape(-1, 16)[::step].tobytes()
    assert bytes(read_buffer(buffer)) == expected


@pytest.mark.parametrize(
    ("format", "dtype"),
    [
        ("r16uint", ">u2"),
        ("rg16float", ">f2"),
        ("r32float", ">f4"),
        ("rgba32float", ">f4"),
        ("rg32uint", [("x", ">u4"), ("y", ">u4")]),
    ],
)
async def test_big_endian_texels_arrive_as_the_values_that_they_are(
    device: wgpu.GPUDevice, open_ring: OpenRing, format: str, dtype: Any
) -> None:
    ring, texture, dtype = await open_ring(buffer_size=1024), new_texture(device, format, (37, 29, 1)), np.dtype(dtype)
    channels = 1 if dtype.names else {"r1": 1, "r3": 1, "rg": 2}.get(format[:2], 1) if format[:4] != "rgba" else 4
    little = RNG.integers(0, 100, (29, 37, channels)).astype(dtype.newbyteorder("<")) if not dtype.names else None
    if little is None:
        little = RNG.integers(0, 100, (29, 37, 2)).astype("<u4").view(dtype.newbyteorder("<"))
    await ring.write_texture({"texture": texture}, little.astype(dtype))
    assert read_texture(texture)[0].tobytes() == little.tobytes()


async def test_a_channel_axis_of_one_is_no_layer(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, image = await open_ring(), RNG.integers(1, 255, (5, 7, 1), np.uint8)
    texture = new_texture(device, "r8unorm", (7, 5, 2))
    await ring.write_texture({"texture": texture}, image)
    found = read_texture(texture)[0]
    assert found[0].tobytes() == image.tobytes()
    assert not found[1].any()
    wide = new_texture(device, "r8unorm", (8, 8, 8))
    with pytest.raises(aiostage.InvalidCopy, match=r"\(1, 5, 7, 1\) or \(5, 7, 1, 1\)"):
        await ring.write_texture({"texture": wide}, image)
    await ring.write_texture({"texture": wide}, image[np.newaxis])
    await ring.write_texture({"texture": wide, "origin": (0, 0, 1)}, image[..., np.newaxis])
    assert read_texture(wide)[0][0, :5, :7].tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("format", "data", "gives"),
    [
        ("rgba8unorm", np.zeros((4, 4), np.float32), r"\* 255\)\.astype\(np\.uint8\)"),
        ("rgba8unorm", np.zeros((4, 4, 4), np.float32), r"\* 255"),
        ("rgba16float", np.zeros((4, 4), np.float64), r"astype\(np\.float16\)"),
        ("r32float", np.zeros((4, 4), np.int32), r"astype\(np\.float32\)"),
        ("r32uint", np.zeros((4, 4), np.float32), r"astype\(np\.uint32\)"),
        ("rgba8unorm", np.zeros((4, 4, 4), np.uint8).transpose(2, 0, 1)[:, :, :2].copy(), "shape it|exceed"),
        ("rgba8unorm", np.zeros((4, 2, 8), np.uint8), "moveaxis"),
    ],
)
async def test_texels_of_another_kind_or_order_are_refused(
    device: wgpu.GPUDevice, open_ring: OpenRing, format: str, data: Any, gives: str
) -> None:
    ring, texture = await open_ring(), new_texture(device, format, (4, 4, 1))
    with pytest.raises(aiostage.InvalidCopy, match=gives):
        await ring.write_texture({"texture": texture}, data)


class WithNulls:
    null_count = 3

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        raise AssertionError("not asked for")


@pytest.mark.parametrize("by", ["ring", "batch"])
@pytest.mark.parametrize(
    ("data", "gives"),
    [
        (np.ma.masked_less(np.arange(16, dtype=np.uint32), 3), r"filled\(value\)"),
        ([1, 2, 3, 4], "np.array"),
        ((1.0, 2.0), "np.array"),
        (7, "np.array"),
        ("text", "np.array"),
        (None, "np.array"),
        (WithNulls(), "3 missing"),
        (np.array([{}, []], object), "not object"),
    ],
)
async def test_what_has_no_bytes_of_its_own_is_refused(
    open_ring: OpenRing, target: Target, data: Any, gives: str, by: str
) -> None:
    ring, buffer = await open_ring(), target(64)
    with pytest.raises(TypeError, match=gives):
        if by == "ring":
            await ring.write_buffer(buffer, 0, data)
        else:
            async with ring.batch() as batch:
                await batch.write_buffer(buffer, 0, data)


@pytest.mark.parametrize("kind", ["memoryview", "ctypes"])
async def test_shaped_views_keep_their_shape(device: wgpu.GPUDevice, open_ring: OpenRing, kind: str) -> None:
    ring, image = await open_ring(), RNG.integers(0, 255, (3, 5, 4), np.uint8)
    texture = new_texture(device, "rgba8unorm", (8, 8, 1))
    data: Any = memoryview(image) if kind == "memoryview" else (((ctypes.c_uint8 * 4) * 5) * 3).from_buffer(image)
    await ring.write_texture({"texture": texture}, data)
    assert read_texture(texture)[0].reshape(8, 8, 4)[:3, :5].tobytes() == image.tobytes()


class Quantity(np.ndarray):
    """Refuses to be mixed with plain numbers, as astropy's does."""

    def __array_function__(self, *args: Any) -> Any:
        raise ValueError("units")

    __array_ufunc__ = __array_function__


SUBCLASSES = {
    "matrix": lambda array: array.view(np.matrix),
    "quantity": lambda array: array.view(Quantity),
    "recarray": lambda array: array.view(np.recarray),
}


@pytest.mark.filterwarnings("ignore:the matrix subclass")
@pytest.mark.parametrize("make", SUBCLASSES.values(), ids=SUBCLASSES)
@pytest.mark.parametrize("turn", [False, True])
async def test_subclasses_are_taken_as_the_arrays_that_they_are(
    open_ring: OpenRing, target: Target, make: Any, turn: bool
) -> None:
    ring, array = await open_ring(buffer_size=1024), RNG.integers(0, 1 << 32, (40, 30), np.uint32)
    data = make(array).T if turn else make(array)
    buffer = target(array.nbytes)
    await ring.write_buffer(buffer, 0, data, 8, array.nbytes - 8)
    expected = (array.T if turn else array).tobytes()[8:]
    assert bytes(read_buffer(buffer))[: len(expected)] == expected


class Lazy:
    """Computed when it is asked for, as dask's and zarr's arrays are."""

    def __init__(self, array: Any) -> None:
        self.array, self.thread = array, 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.thread = threading.get_ident()
        if self.array is None:
            raise ZeroDivisionError("while it was computed")
        return self.array


@pytest.mark.parametrize("by", ["ring", "batch"])
async def test_lazy_data_are_computed_in_a_thread(open_ring: OpenRing, target: Target, by: str) -> None:
    ring, buffer, lazy = await open_ring(), target(1024), Lazy(np.arange(256, dtype=np.uint32))
    if by == "ring":
        await ring.write_buffer(buffer, 0, lazy)
    else:
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, lazy)
    assert np.array_equal(np.frombuffer(read_buffer(buffer), np.uint32), lazy.array)
    assert lazy.thread not in (0, threading.get_ident())
    with pytest.raises(ZeroDivisionError):
        await ring.write_buffer(buffer, 0, Lazy(None))


@pytest.mark.parametrize("write", ["write_buffer", "write_texture"])
async def test_a_batch_that_ends_while_lazy_data_are_read_takes_them_no_more(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, write: str
) -> None:
    ring, buffer, texture = await open_ring(), target(1024), new_texture(device, "r32uint", (256, 1, 1))
    begun, go_on = threading.Event(), threading.Event()

    class Slow(Lazy):
        def __array__(self, *args: Any, **kwargs: Any) -> Any:
            begun.set()
            assert go_on.wait(10)
            return super().__array__(*args, **kwargs)

    slow = Slow(np.ones((1, 256), np.uint32))
    async with ring.batch() as batch:
        where = (buffer, 0) if write == "write_buffer" else ({"texture": texture},)
        writing = asyncio.ensure_future(getattr(batch, write)(*where, slow))
        while not begun.is_set():
            await asyncio.sleep(0.001)
    go_on.set()
    with pytest.raises(aiostage.AllocationClosed):
        await writing
    assert not any(read_buffer(buffer))
    assert not read_texture(texture)[0].any()


@pytest.fixture
def gathered(monkeypatch: pytest.MonkeyPatch) -> list[tuple[int, int]]:
    """(thread, bytes) of each piece of strided data that was gathered."""
    pieces, gather = [], Scattered.gather

    def noted(blocks: Scattered) -> Any:
        result = gather(blocks)
        pieces.append((threading.get_ident(), result.base.nbytes))
        return result

    monkeypatch.setattr(Scattered, "gather", noted)
    return pieces


@pytest.mark.parametrize(
    ("layout", "size"),
    [
        ({"bytes_per_row": 4 * 320}, (320, 240, 1)),
        ({"offset": 5, "bytes_per_row": 4 * 320, "rows_per_image": 60}, (100, 50, 4)),
        ({"offset": 64 * 1000, "bytes_per_row": 4 * 100}, (40, 400, 1)),
    ],
)
@pytest.mark.parametrize("dtype", ["u1", "<u2,<u2", "V3"])
async def test_strided_data_with_a_layout_are_laid_out_in_threads_a_piece_at_a_time(
    device: wgpu.GPUDevice, open_ring: OpenRing, gathered: list[tuple[int, int]], dtype: str, layout: Any, size: Any
) -> None:
    ring = await open_ring(ring_count=3, buffer_size=64 * KiB, inline_size=0)
    texture = new_texture(device, "rgba8uint", size)
    kind = np.dtype(dtype)
    whole = RNG.integers(0, 255, (480, 2, 2400 // kind.itemsize, kind.itemsize), np.uint8).view(kind)[..., 0]
    data = whole[:, 1, ::2]
    await ring.write_texture({"texture": texture}, data, layout, size)
    threads, sizes = zip(*gathered, strict=True)
    assert threading.get_ident() not in threads
    assert len(sizes) > 1
    assert max(sizes) <= 4 * 64 * KiB  # rows lie as far apart as the layout says
    flat = np.frombuffer(data.tobytes(), np.uint8)[layout.get("offset", 0) :]
    row = layout["bytes_per_row"]
    strides = (row * layout.get("rows_per_image", size[1]), row, 1)
    expected = np.ndarray((size[2], size[1], 4 * size[0]), np.uint8, flat, 0, strides)
    assert np.array_equal(read_texture(texture)[0], expected)


class Texture:
    """As pygfx's: it knows of a wgpu texture, and is none."""

    def __init__(self) -> None:
        self._wgpu_object = self._private = 1


async def test_a_destination_of_another_library_is_named(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring = await simulated_ring()
    for wrong in (Texture(), gpu.texture("r8unorm", (4, 4, 1)), 7):
        with pytest.raises(aiostage.InvalidCopy, match=r"\{'texture': texture\}") as caught:
            await ring.write_texture(wrong, bytes(16))
        assert "_private" not in str(caught.value)
        assert type(wrong).__qualname__ in str(caught.value)


async def test_an_odd_size_says_how_to_pad(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, data, buffer = await simulated_ring(), bytes(13), gpu.buffer(16)
    with pytest.raises(aiostage.InvalidCopy, match=r"bytes\(data\) \+ bytes\(3\)"):
        await ring.write_buffer(buffer, 0, data)
    await ring.write_buffer(buffer, 0, bytes(data) + bytes(3))


@pytest.mark.parametrize("key", [3, "depth"])
async def test_a_destination_with_a_texture_and_more_is_named(
    gpu: SimulatedGpu, simulated_ring: OpenRing, key: Any
) -> None:
    ring, texture, other = await simulated_ring(), gpu.texture("r8unorm", (4, 4, 1)), Texture()
    other.texture = texture
    with pytest.raises(aiostage.InvalidCopy, match=r"\{'texture': texture\}") as caught:
        await ring.write_texture(other, bytes(16))
    assert "_private" not in str(caught.value)
    with pytest.raises(aiostage.InvalidCopy, match="destination has texture"):
        await ring.write_texture({"texture": texture, key: 4}, bytes(16))


class Computed:
    """Lazy data whose computation may give more than a plain array."""

    def __init__(self, array: Any) -> None:
        self.array, self.asked = array, 0

    def __array__(self, dtype: Any = None, copy: Any = None) -> Any:
        self.asked += 1
        return self.array


async def test_a_mask_that_is_computed_is_refused_too(open_ring: OpenRing, target: Target) -> None:
    ring = await open_ring()
    with pytest.raises(TypeError, match=r"filled\(value\)"):
        await ring.write_buffer(target(64), 0, Computed(np.ma.masked_less(np.arange(16, dtype=np.uint32), 3)))


@pytest.mark.parametrize("by", ["ring", "batch"])
async def test_lazy_data_for_a_wrong_destination_are_not_computed(
    device: wgpu.GPUDevice, open_ring: OpenRing, by: str
) -> None:
    ring, lazy = await open_ring(), Computed(np.zeros((4, 4), np.uint8))
    buffer = device.create_buffer(size=64, usage=wgpu.BufferUsage.COPY_SRC)
    texture = device.create_texture(size=(4, 4, 1), format="r8unorm", usage=wgpu.TextureUsage.COPY_SRC)
    async with ring.batch() as batch:
        to = ring if by == "ring" else batch
        with pytest.raises(aiostage.InvalidCopy, match="COPY_DST"):
            await to.write_buffer(buffer, 0, lazy)
        with pytest.raises(aiostage.InvalidCopy, match="COPY_DST"):
            await to.write_texture({"texture": texture}, lazy)
    assert not lazy.asked


class CountsNulls(Computed):
    """As a polars Series: the count is a method."""

    def __init__(self, array: Any, nulls: int) -> None:
        super().__init__(array)
        self.nulls = nulls

    def null_count(self) -> int:
        return self.nulls


async def test_missing_values_are_counted_by_a_method_too(open_ring: OpenRing, target: Target) -> None:
    ring, buffer, data = await open_ring(), target(64), np.arange(16, dtype=np.uint32)
    await ring.write_buffer(buffer, 0, CountsNulls(data, 0))
    assert bytes(read_buffer(buffer)) == data.tobytes()
    with pytest.raises(TypeError, match="2 missing"):
        await ring.write_buffer(buffer, 0, CountsNulls(data, 2))


class NullBytes(bytearray):
    null_count = 2


@pytest.mark.parametrize("by", ["ring", "batch"])
async def test_missing_values_behind_a_buffer_are_refused(open_ring: OpenRing, target: Target, by: str) -> None:
    ring = await open_ring()
    async with ring.batch() as batch:
        with pytest.raises(TypeError, match="2 missing"):
            await (ring if by == "ring" else batch).write_buffer(target(64), 0, NullBytes(16))


class BitFields(ctypes.Structure):
    _fields_ = (("low", ctypes.c_uint32, 4), ("high", ctypes.c_uint32, 28))


class OneOf(ctypes.Union):
    _fields_ = (("whole", ctypes.c_uint32), ("real", ctypes.c_float))


@pytest.mark.parametrize("kind", [BitFields, OneOf])
async def test_items_that_numpy_does_not_know_are_bytes(open_ring: OpenRing, target: Target, kind: Any) -> None:
    ring, buffer, items = await open_ring(), target(64), (kind * 16)()
    ctypes.memmove(items, RNG.bytes(64), 64)
    await ring.write_buffer(buffer, 0, items)
    assert bytes(read_buffer(buffer)) == bytes(items)


async def test_structured_texels_are_no_raw_bytes(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, big = await open_ring(), np.dtype([("x", ">u4"), ("y", ">u4")])
    wide, narrow = new_texture(device, "rg32uint", (4, 4, 1)), new_texture(device, "rgba8unorm", (4, 4, 1))
    with pytest.raises(aiostage.InvalidCopy, match="shape it"):  # and not as bytes in the order that they have
        await ring.write_texture({"texture": wide}, np.ones(16, big))
    for data, size in ((np.zeros(8, big), None), (np.zeros((4, 4), big), (4, 4)), (np.zeros((4, 2), big), None)):
        with pytest.raises(aiostage.InvalidCopy, match="8 bytes an item"):
            await ring.write_texture({"texture": narrow}, data, size=size)


@pytest.mark.parametrize(("format", "dtype", "shape"), [("rgba16float", "i1", (4, 4, 8)), ("r16float", "?", (4, 4, 2))])
async def test_small_numbers_are_no_bytes_of_larger_texels(
    device: wgpu.GPUDevice, open_ring: OpenRing, format: str, dtype: str, shape: tuple[int, ...]
) -> None:
    ring, texture = await open_ring(), new_texture(device, format, (4, 4, 1))
    with pytest.raises(aiostage.InvalidCopy, match=r"astype\(np\.float16\)"):
        await ring.write_texture({"texture": texture}, np.zeros(shape, dtype))
    await ring.write_texture({"texture": texture}, np.zeros(shape, np.uint8))


@pytest.mark.parametrize("layout", [None, {"bytes_per_row": 32}])
@pytest.mark.parametrize("kind", [np.asarray, memoryview])
async def test_strided_data_of_another_shape_are_laid_out_in_a_thread(
    device: wgpu.GPUDevice, open_ring: OpenRing, gathered: list[tuple[int, int]], kind: Any, layout: Any
) -> None:
    ring, texture = await open_ring(inline_size=0), new_texture(device, "r8uint", (32, 32, 1))
    data = RNG.integers(0, 255, (16, 2, 64), np.uint8)[:, :, ::2]
    await ring.write_texture({"texture": texture}, kind(data), layout, (32, 32))
    assert len(gathered) == 1
    assert gathered[0][0] != threading.get_ident()
    assert read_texture(texture)[0].tobytes() == data.tobytes()
    gathered.clear()
    await ring.write_texture({"texture": texture}, kind(data.reshape(32, 32)[::-1]), None, (32, 32))
    assert not gathered  # of the texture's own shape: no copy is made
    assert read_texture(texture)[0].tobytes() == data.reshape(32, 32)[::-1].tobytes()


@pytest.mark.parametrize("axes", [5, 6, 7])
async def test_large_data_of_many_axes_that_are_not_in_a_row_arrive(
    open_ring: Callable[..., Any], target: Callable[[int], wgpu.GPUBuffer], axes: int
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=1 << 18, inline_size=0)
    shape = (4,) * (axes - 1) + (1 << 19 - 2 * (axes - 1),)
    data = np.random.default_rng(0).integers(0, 256, shape, np.uint8).swapaxes(0, 1)
    buffer = target(data.nbytes)
    await (await ring.write_buffer(buffer, 0, data))
    assert read_buffer(buffer).tobytes() == data.tobytes()
