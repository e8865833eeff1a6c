"""Other people's arrays: whose are taken as they lie in memory, whose are read part by part, and whose are refused."""

from __future__ import annotations

import ast
import ctypes
import gc
import importlib.util
import math
import re
import threading
import time
import types
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS
from readback import read_buffer, read_texture
from simulated import SimulatedGpu

import aiostage
from aiostage import KiB
from aiostage.data import lazy
from aiostage.data.arrays import as_array, is_indexed
from aiostage.streams import feed, sources

OpenRing = Callable[..., Any]
Target = Callable[[int], wgpu.GPUBuffer]
RNG = np.random.default_rng(11)


def new_texture(device: wgpu.GPUDevice, format: str, size: tuple[int, int, int], **more: Any) -> wgpu.GPUTexture:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=size, format=format, usage=usage, **more)


def address(array: np.ndarray) -> int:
    return array.__array_interface__["data"][0]


# -- DLPack --


class Managed(ctypes.Structure):
    """DLManagedTensor of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
    )


DELETER = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
DESTRUCTOR = ctypes.CFUNCTYPE(None, ctypes.c_void_p)
# By address, since a destructor's capsule has no references to count.
IS_VALID = ctypes.PYFUNCTYPE(ctypes.c_int, ctypes.c_void_p, ctypes.c_char_p)(("PyCapsule_IsValid", ctypes.pythonapi))
POINTER_OF = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.c_void_p, ctypes.c_char_p)(
    ("PyCapsule_GetPointer", ctypes.pythonapi)
)
KEPT: list[Any] = []  # what capsules point to; a real exporter's deleter would free it
CODES = {"i": 0, "u": 1, "f": 2, "c": 5}


@DESTRUCTOR
def give_back(capsule: int) -> None:
    """As producers do: what nobody has consumed is deleted with its capsule."""
    if IS_VALID(capsule, b"dltensor"):
        managed = Managed.from_address(POINTER_OF(capsule, b"dltensor"))
        DELETER(managed.deleter)(ctypes.addressof(managed))


class Tensor:
    """Exports itself by DLPack, and in no other way; as PyTorch's do where one keeps a gradient."""

    def __init__(
        self, array: np.ndarray, kind: tuple[int, int] | None = None, device: int = 1, requires_grad: bool = False
    ) -> None:
        self.array, self.device, self.requires_grad = array, device, requires_grad
        self.kind = kind or (CODES[array.dtype.kind], 8 * array.itemsize)
        self.deleted = 0

    def detach(self) -> Tensor:
        self.requires_grad = False
        return self

    def __dlpack_device__(self) -> tuple[int, int]:
        return self.device, 0

    def __dlpack__(self, *, stream: Any = None) -> Any:
        if self.requires_grad:
            raise BufferError("Can't export tensors that require gradient, use tensor.detach()")
        shape = (ctypes.c_int64 * self.array.ndim)(*self.array.shape)
        strides = (ctypes.c_int64 * self.array.ndim)(*(step // self.array.itemsize for step in self.array.strides))
        managed = Managed(address(self.array), self.device, 0, self.array.ndim, *self.kind, 1, shape, strides)
        me = weakref.ref(self)

        @DELETER
        def delete(_: int) -> None:
            if (tensor := me()) is not None:
                tensor.deleted += 1

        managed.deleter = ctypes.cast(delete, ctypes.c_void_p).value
        KEPT.extend((shape, strides, managed, delete, self.array))
        new = ctypes.pythonapi.PyCapsule_New
        new.restype, new.argtypes = ctypes.py_object, (ctypes.c_void_p, ctypes.c_char_p, DESTRUCTOR)
        return new(ctypes.addressof(managed), b"dltensor", give_back)


@pytest.mark.parametrize("turn", [False, True], ids=["contiguous", "transposed"])
@pytest.mark.parametrize("dtype", ["f4", "i8", "u1", "c8"])
def test_dlpack_is_taken_without_a_copy(dtype: str, turn: bool) -> None:
    array = RNG.integers(0, 100, (6, 8)).astype(dtype)
    tensor = Tensor(array.T[::2] if turn else array)
    taken = as_array(tensor)
    assert address(taken) == address(array)
    assert np.array_equal(taken, tensor.array)
    del taken
    assert tensor.deleted == 1


async def test_dlpack_arrives(open_ring: OpenRing, target: Target) -> None:
    ring, array, buffer = await open_ring(), RNG.random((64, 32), np.float32), target(8192)
    await ring.write_buffer(buffer, 0, Tensor(array.T))
    assert bytes(read_buffer(buffer)) == array.T.tobytes()
    await ring.write_buffer(buffer, 0, Tensor(array, requires_grad=True))
    assert bytes(read_buffer(buffer)) == array.tobytes()


async def test_a_tensor_on_a_gpu_says_how_to_bring_it(open_ring: OpenRing, target: Target) -> None:
    ring, tensor = await open_ring(), Tensor(np.zeros(4, np.float32), device=2)
    with pytest.raises(TypeError, match=r"CUDA device 0.*data\.cpu\(\)"):
        await ring.write_buffer(target(64), 0, tensor)
    with pytest.raises(TypeError, match=r"data\.cpu\(\)"):
        await ring.write_buffer(target(64), 0, Tensor(np.zeros(4, np.float32), device=99))


BFLOAT16 = (4, 16)


@pytest.mark.parametrize("step", [1, 2])
async def test_bfloat16_is_taken_as_its_bits(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, step: int
) -> None:
    bits = RNG.integers(0, 1 << 16, (8, 16), np.uint16)[:, ::step]
    tensor = Tensor(bits, BFLOAT16)
    taken = as_array(tensor)
    assert (taken.dtype, address(taken)) == (np.uint16, address(bits))
    del taken
    gc.collect()
    assert tensor.deleted == 1
    ring, buffer = await open_ring(), target(bits.nbytes)
    await ring.write_buffer(buffer, 0, tensor)
    assert bytes(read_buffer(buffer)) == bits.tobytes()
    texture = new_texture(device, "r16uint", (bits.shape[1], 8, 1))
    await ring.write_texture({"texture": texture}, tensor)
    assert read_texture(texture)[0].tobytes() == bits.tobytes()
    with pytest.raises(aiostage.InvalidCopy, match="bfloat16 for r16float"):
        await ring.write_texture({"texture": new_texture(device, "r16float", (16, 8, 1))}, tensor)


async def test_a_float_of_eight_bits_is_taken_as_its_bits(open_ring: OpenRing, target: Target) -> None:
    ring, bits, buffer = await open_ring(), RNG.integers(0, 256, 64, np.uint8), target(64)
    await ring.write_buffer(buffer, 0, Tensor(bits, (10, 8)))
    assert bytes(read_buffer(buffer)) == bits.tobytes()
    with pytest.raises(TypeError, match="must be bytes or an array"):
        await ring.write_buffer(buffer, 0, Tensor(bits, (3, 8)))  # an opaque handle


@pytest.mark.blocks_loop("it imports ml_dtypes")
async def test_numpys_own_extension_types_are_taken_as_their_bits(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target
) -> None:
    ml_dtypes = pytest.importorskip(
        "ml_dtypes", reason="ml_dtypes, which has numpy's bfloat16, is not installed: pip install ml_dtypes"
    )
    ring = await open_ring(inline_size=0)
    array, buffer = RNG.random((64, 16)).astype(ml_dtypes.bfloat16), target(2048)
    for data in (array, array.T):
        await ring.write_buffer(buffer, 0, data)
        assert bytes(read_buffer(buffer)) == data.tobytes()
    with pytest.raises(aiostage.InvalidCopy, match="bfloat16 for r16float"):
        await ring.write_texture({"texture": new_texture(device, "r16float", (16, 64, 1))}, array)


@pytest.mark.blocks_loop("it imports torch")
async def test_pytorch_tensors_arrive(open_ring: OpenRing, target: Target) -> None:
    torch = pytest.importorskip(
        "torch", reason="PyTorch is large, and not installed with the others: pip install torch"
    )
    ring, buffer = await open_ring(), target(96)
    tensor = torch.arange(24, dtype=torch.float32).reshape(4, 6)
    for data in (tensor, tensor.T, tensor.clone().requires_grad_()):
        assert address(as_array(data)) == data.data_ptr()
        await ring.write_buffer(buffer, 0, data)
        assert bytes(read_buffer(buffer)) == data.detach().numpy().tobytes()
    halves = tensor.to(torch.bfloat16)
    assert np.array_equal(as_array(halves), halves.view(torch.uint16).numpy())


# -- the array interface, and plain arrays of every kind --


class Interface:
    def __init__(self, array: np.ndarray) -> None:
        self.array, self.__array_interface__ = array, array.__array_interface__


async def test_the_array_interface_is_taken_without_a_copy(open_ring: OpenRing, target: Target) -> None:
    array = RNG.random((16, 8), np.float32)
    assert address(as_array(Interface(array))) == address(array)
    ring, buffer = await open_ring(), target(array.nbytes // 2)
    await ring.write_buffer(buffer, 0, Interface(array[:, ::2]))
    assert bytes(read_buffer(buffer)) == array[:, ::2].tobytes()


async def test_a_range_of_a_file_arrives(open_ring: OpenRing, target: Target, device: Any, tmp_path: Path) -> None:
    content, path = RNG.integers(0, 256, 3 * 7 * 5 * 4 + 100, np.uint8), tmp_path / "data"
    path.write_bytes(content.tobytes())
    ring, buffer = await open_ring(), target(400)
    texture = new_texture(device, "rgba8unorm", (5, 7, 3))
    await ring.write_buffer(buffer, 0, sources.file(path, 100, 400))
    with sources.file(path, 100, shape=(3, 7, 5, 4)) as whole:
        await ring.write_texture({"texture": texture}, whole)
        assert bytes(read_buffer(buffer)) == content[100:500].tobytes()
        await ring.write_buffer(buffer, 0, whole.part(4, 16))
    assert bytes(read_buffer(buffer))[:20] == content[104:120].tobytes() + content[116:120].tobytes()
    assert read_texture(texture)[0].tobytes() == content[100:].tobytes()
    with pytest.raises(ValueError, match="not all in"):
        sources.file(path, 100, 1 << 20)


READ_ONLY = np.arange(64, dtype=np.uint32)
READ_ONLY.flags.writeable = False
KINDS = {
    "big-endian": np.arange(64, dtype=">u4"),
    "bool": np.arange(64) % 3 == 0,
    "structured": np.zeros(16, [("a", "<f4"), ("b", ">u2"), ("c", "u1")])[:16],
    "no axes": np.array(7.5),
    "empty": np.empty((4, 0), np.float32),
    "read-only": READ_ONLY,
    "Fortran": np.asfortranarray(np.arange(64, dtype=np.int16).reshape(4, 16)),
    "dates": np.arange(8).astype("M8[s]"),
    "negative strides": np.arange(64, dtype=np.uint32)[::-2],
    "repeated": np.broadcast_to(np.float32(3), (4, 4)),
}


@pytest.mark.parametrize("by", ["ring", "batch", "part by part"])
@pytest.mark.parametrize("kind", KINDS)
async def test_bytes_are_copied_as_they_are_in_c_order(open_ring: OpenRing, target: Target, kind: str, by: str) -> None:
    ring, data = await open_ring(), KINDS[kind]
    buffer, expected = target(512), data.tobytes()
    expected += bytes(-len(expected) % 4)
    if len(expected) != data.nbytes:
        data = np.frombuffer(expected, np.uint8)
    if by == "batch":
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 4, data)
    else:
        await ring.write_buffer(buffer, 4, Indexed(data) if by == "part by part" else data)
    assert bytes(read_buffer(buffer))[4 : 4 + len(expected)] == expected
    assert not any(read_buffer(buffer)[4 + len(expected) :])


# -- arrays that are read part by part --


class Indexed:
    """An array in a file: it has a shape and a dtype, and gives what it is asked for."""

    def __init__(self, array: Any, chunks: tuple[int, ...] | None = None) -> None:
        self.array, self.shape, self.dtype = array, array.shape, array.dtype
        self.chunks = chunks
        self.asked: list[tuple[slice, ...]] = []
        self.threads: set[int] = set()
        self.alive = self.most_alive = self.running = self.most_running = 0
        self._lock = threading.Lock()

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        with self._lock:
            self.asked.append(index)
            self.threads.add(threading.get_ident())
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        part = np.array(self.array[index], order="K")
        with self._lock:
            self.running -= 1
            self.alive += part.nbytes
            self.most_alive = max(self.most_alive, self.alive)
        weakref.finalize(part, self._gone, part.nbytes)
        return part

    def _gone(self, nbytes: int) -> None:
        with self._lock:
            self.alive -= nbytes


@pytest.mark.parametrize("inline", [0, 1 << 20])
@pytest.mark.parametrize(
    ("shape", "chunks"),
    [
        ((4096,), None),
        ((7, 1001, 3), None),
        ((7, 1001, 3), (3, 100, 3)),
        ((64, 64, 64), (16, 16, 16)),
        ((5, 3, 100, 70), (1, 2, 64, 32)),
        ((3, 100_004), None),
    ],
)
async def test_parts_make_the_bytes_of_the_whole(
    open_ring: OpenRing, target: Target, shape: tuple[int, ...], chunks: Any, inline: int
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4 * KiB, inline_size=inline)
    data = Indexed(RNG.integers(0, 256, shape, np.uint8), chunks)
    for offset, size in ((0, None), (5, 2048), (3, 4)):
        nbytes = (data.array.nbytes - offset) // 4 * 4 if size is None else size
        buffer = target(nbytes)
        await ring.write_buffer(buffer, 0, data, offset, nbytes)
        assert bytes(read_buffer(buffer)) == data.array.tobytes()[offset : offset + nbytes]
    assert threading.get_ident() not in data.threads
    assert data.most_running == 1  # nobody said that it may be read in several threads


@pytest.mark.parametrize(
    ("shape", "format", "size"),
    [
        ((50, 60), "r8uint", (60, 50, 1)),
        ((50, 60, 4), "rgba8uint", (60, 50, 1)),
        ((50, 60, 1), "r8uint", (60, 50, 1)),
        ((6, 50, 60), "r8uint", (60, 50, 6)),
        ((6, 50, 60, 2), "rg8uint", (60, 50, 6)),
    ],
)
@pytest.mark.parametrize("given", [False, True], ids=["", "with a size"])
async def test_parts_make_the_texels_of_the_whole_and_no_chunk_is_read_twice(
    device: wgpu.GPUDevice, open_ring: OpenRing, shape: tuple[int, ...], format: str, size: Any, given: bool
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=2 * KiB)
    chunks = tuple(min(n, 16 if n > 4 else n) for n in shape)
    data = Indexed(RNG.integers(0, 256, shape, np.uint8), chunks)
    texture = new_texture(device, format, size)
    await ring.write_texture({"texture": texture}, data, size=size if given else None)
    assert read_texture(texture)[0].tobytes() == data.array.tobytes()
    assert len(data.asked) > 1
    for index in data.asked:
        assert all(part.start % chunk == 0 for part, chunk in zip(index, chunks, strict=True))
    read = sum(math.prod(part.stop - part.start for part in index) for index in data.asked)
    assert read == data.array.size


@pytest.mark.parametrize("by", ["ring", "batch"])
async def test_bytes_flow_in_bounded_memory(gpu: SimulatedGpu, simulated_ring: OpenRing, by: str) -> None:
    ring = await simulated_ring(ring_count=3, buffer_size=64 * KiB, inline_size=0)
    gpu.free_running = True
    gpu.may_submit.set()
    data = Indexed(np.broadcast_to(np.uint8(1), (256, 64 * KiB)))  # 16 MiB
    buffer = gpu.buffer(data.array.size)
    if by == "ring":
        await ring.write_buffer(buffer, 0, data)
    else:
        async with ring.batch() as batch:
            await batch.write_buffer(buffer, 0, data)
    assert len(data.asked) == 256
    assert data.most_alive <= (3 + 1 + 1) * 64 * KiB  # what waits for the ring's buffers, one in hand, one ahead


async def test_volumes_flow_in_bounded_memory(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    data = Indexed(np.broadcast_to(np.uint8(1), (128, 256, 256)), (32, 32, 32))
    texture = new_texture(device, "r8uint", (256, 256, 128), dimension="3d")
    await ring.write_texture({"texture": texture}, data)
    assert len(data.asked) == 4 * 8 * 4  # boxes of two chunks
    assert data.most_alive <= (2 + 1 + 1) * 64 * KiB


async def test_what_fails_while_it_is_read_is_raised_and_the_ring_goes_on(open_ring: OpenRing, target: Target) -> None:
    class Damaged(Indexed):
        def __getitem__(self, index: tuple[slice, ...]) -> Any:
            if index[0].start >= 3:
                raise OSError("block 3 is damaged")
            return super().__getitem__(index)

    ring, buffer = await open_ring(ring_count=2, buffer_size=KiB), target(8 * KiB)
    with pytest.raises(OSError, match="block 3"):
        await ring.write_buffer(buffer, 0, Damaged(np.ones((8, KiB), np.uint8)))
    await ring.write_buffer(buffer, 0, bytes(8 * KiB))
    assert not any(read_buffer(buffer))


async def test_a_part_of_another_shape_or_type_is_named(open_ring: OpenRing, target: Target) -> None:
    class Lies(Indexed):
        def __getitem__(self, index: tuple[slice, ...]) -> Any:
            part = super().__getitem__(index)
            return part[:, 1:] if self.array.itemsize == 1 else part.astype(np.float64)

    ring, buffer = await open_ring(buffer_size=KiB), target(8 * KiB)
    with pytest.raises(aiostage.InvalidCopy, match=r"data\[0:1, 0:1024\] gave uint8 of shape \(1, 1023\)"):
        await ring.write_buffer(buffer, 0, Lies(np.ones((8, KiB), np.uint8)))
    with pytest.raises(aiostage.InvalidCopy, match=r"gave float64 of shape \(1, 256\), not float32"):
        await ring.write_buffer(buffer, 0, Lies(np.ones((8, 256), np.float32)))


async def test_cancelled_it_ends_when_the_thread_that_reads_has(open_ring: OpenRing, target: Target) -> None:
    class Slow(Indexed):
        def __getitem__(self, index: tuple[slice, ...]) -> Any:
            time.sleep(0.05)
            return super().__getitem__(index)

    ring, data = await open_ring(buffer_size=KiB), Slow(np.ones((100, KiB), np.uint8))
    with anyio.move_on_after(0.12) as scope:
        await ring.write_buffer(target(100 * KiB), 0, data)
    assert scope.cancelled_caught
    count = len(data.asked)
    assert 0 < count < 10
    await anyio.sleep(0.15)
    assert len(data.asked) == count
    assert data.running == 0


class OfZarr(Indexed):
    """Of a library that is known to be ready for threads."""

    __module__ = "zarr.of_this_test"

    def __getitem__(self, index: tuple[slice, ...]) -> Any:
        with self._lock:
            self.running += 1
            self.most_running = max(self.most_running, self.running)
        time.sleep(0.01)
        with self._lock:
            self.running -= 1
        return super().__getitem__(index)


@pytest.mark.parametrize(("tokens", "running"), [(40, 4), (2, 2), (1, 1)])
async def test_parts_are_read_ahead_in_as_many_threads_as_there_are(
    open_ring: OpenRing, target: Target, tokens: int, running: int
) -> None:
    ring, data, buffer = (
        await open_ring(buffer_size=KiB),
        OfZarr(RNG.integers(0, 256, (24, KiB), np.uint8)),
        target(24 * KiB),
    )
    limiter = anyio.to_thread.current_default_thread_limiter()
    before, limiter.total_tokens = limiter.total_tokens, tokens
    try:
        async with anyio.create_task_group() as group:
            for _ in range(2):
                group.start_soon(ring.write_buffer, buffer, 0, data)
        assert bytes(read_buffer(buffer)) == data.array.tobytes()
        assert running <= data.most_running <= min(2 * 4, tokens)
        assert limiter.borrowed_tokens == 0
    finally:
        limiter.total_tokens = before


async def test_lazy_texels_for_a_layout_are_read_as_a_whole(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, data = await open_ring(), Indexed(RNG.integers(0, 256, 64 * 32, np.uint8))
    texture = new_texture(device, "r8uint", (32, 64, 1))
    await ring.write_texture({"texture": texture}, data, {"bytes_per_row": 32}, (32, 64))
    assert read_texture(texture)[0].tobytes() == data.array.tobytes()
    await ring.write_texture({"texture": texture}, data)  # a whole level
    assert len(data.asked) == 2


def stored(kind: str, array: np.ndarray, folder: Path) -> Any:
    """The same array in somebody else's hands, in chunks of 16."""
    chunks = tuple(min(16, n) for n in array.shape)
    if kind == "dask":
        return pytest.importorskip("dask.array", reason="dask is not installed: pip install 'dask[array]'").from_array(
            array, chunks=chunks
        )
    if kind.startswith("zarr"):
        zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install zarr")
        return zarr.create_array(folder / kind, data=array, chunks=chunks, zarr_format=int(kind[-1]))
    if kind == "h5py":
        h5py = pytest.importorskip("h5py", reason="h5py is not installed: pip install h5py")
        return h5py.File(folder / "file.h5", "w").create_dataset("data", data=array, chunks=chunks)
    xarray = pytest.importorskip("xarray", reason="xarray is not installed: pip install xarray")
    if kind == "xarray":
        return xarray.DataArray(array)
    pytest.importorskip("dask.array", reason="dask is not installed, and xarray's own arrays are in memory")
    return xarray.DataArray(array).chunk(16)


LIBRARIES = ["dask", "zarr v2", "zarr v3", "h5py", "xarray", "xarray on dask"]


@pytest.mark.blocks_loop("they import their libraries")
@pytest.mark.parametrize("dtype", ["u1", ">u2", "f4"])
@pytest.mark.parametrize("kind", LIBRARIES)
async def test_arrays_of_other_libraries_flow_part_by_part(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Target, tmp_path: Path, kind: str, dtype: str
) -> None:
    array = RNG.integers(0, 100, (40, 30, 52)).astype(dtype)
    data = stored(kind, array, tmp_path)
    assert is_indexed(data)
    ring, buffer = await open_ring(ring_count=2, buffer_size=16 * KiB), target(array.nbytes)
    await ring.write_buffer(buffer, 0, data)
    assert bytes(read_buffer(buffer)) == array.astype(data.dtype).tobytes()
    format = {"u1": "r8uint", ">u2": "r16uint", "f4": "r32float"}[dtype]
    texture = new_texture(device, format, (52, 30, 40), dimension="3d")
    await ring.write_texture({"texture": texture}, data)
    assert read_texture(texture)[0].tobytes() == array.astype(array.dtype.newbyteorder("<")).tobytes()


@pytest.mark.blocks_loop("they import their libraries")
@pytest.mark.parametrize(("kind", "threads"), [("h5py", 1), ("zarr v3", 4), ("dask", 4), ("xarray", 1)])
def test_several_threads_read_where_that_is_known_to_work(kind: str, threads: int, tmp_path: Path) -> None:
    data = stored(kind, np.zeros((32, 32, 32), np.uint8), tmp_path)
    gpu = SimulatedGpu(submit_blocks=False)
    cut = lazy.from_buffer(aiostage.gpu.device.connect(gpu), 4096, gpu.buffer(1 << 15), 0, data, 0, None)
    assert cut.pieces.at_once == threads


# -- planes of video frames --

PLANES = {
    "yuv420p": ([(38, 50), (19, 25), (19, 25)], "u1"),
    "nv12": ([(38, 50), (19, 25, 2)], "u1"),
    "p010le": ([(38, 50), (19, 25, 2)], "<u2"),
    "yuv444p16be": ([(38, 50)] * 3, ">u2"),
    "gray": ([(38, 50)], "u1"),
    "grayf32le": ([(38, 50)], "<f4"),
    "rgb24": ([(38, 50, 3)], "u1"),
    "rgb0": ([(38, 50, 4)], "u1"),
    "rgba64le": ([(38, 50, 4)], "<u2"),
    "yuyv422": ([(38, 50, 2)], "u1"),
    "x2rgb10le": ([(38, 50)], "<u4"),
    "rgb565le": ([(38, 50)], "<u2"),
}


@pytest.mark.parametrize("format", PLANES)
def test_a_plane_of_a_video_frame_is_its_memory(format: str) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    frame, (shapes, dtype) = av.VideoFrame(50, 38, format), PLANES[format]
    for index, shape in enumerate(shapes):
        memory = np.frombuffer(frame.planes[index], np.uint8)
        memory[:] = RNG.integers(0, 200, memory.size, np.uint8)
        plane = sources.plane(frame, index)
        assert (plane.shape, plane.dtype) == (shape, np.dtype(dtype))
        assert address(plane) == address(memory)
        row = plane[0].size * plane.itemsize
        assert plane.strides[0] == frame.planes[index].line_size >= row  # padded, but for the widest
        rows = memory.reshape(38 // (38 // shape[0]), -1)[:, :row]
        assert plane.tobytes() == rows.tobytes()
    with pytest.raises(IndexError, match=f"plane {len(shapes)} of {format}"):
        sources.plane(frame, len(shapes))


@pytest.mark.blocks_loop("it imports PyAV")
async def test_planes_arrive_as_textures(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    ring, image = await open_ring(), RNG.integers(0, 255, (38, 50, 3), np.uint8)
    frame = av.VideoFrame.from_ndarray(image, "rgb24").reformat(format="nv12")
    for index, (format, size) in enumerate([("r8unorm", (50, 38, 1)), ("rg8unorm", (25, 19, 1))]):
        texture, plane = new_texture(device, format, size), sources.plane(frame, index)
        await ring.write_texture({"texture": texture}, plane)
        assert read_texture(texture)[0].tobytes() == plane.tobytes()
    plane = sources.plane(frame, 0)
    expected = plane.tobytes()
    del frame
    gc.collect()
    assert plane.tobytes() == expected


@pytest.mark.parametrize(("format", "index", "gives"), [("monow", 0, "whole bytes"), ("pal8", 1, "palette")])
def test_what_is_no_array_of_pixels_is_refused(format: str, index: int, gives: str) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    with pytest.raises(ValueError, match=rf"{gives}.*reformat"):
        sources.plane(av.VideoFrame(50, 38, format), index)


# -- zarr pyramids --


def ome(levels: int, axes: str = "zyx", version: str = "0.5", base: float = 0.5) -> dict[str, Any]:
    kinds = {"t": "time", "c": "channel"}
    multiscale: dict[str, Any] = {
        "axes": [{"name": name, "type": kinds.get(name, "space")} for name in axes],
        "datasets": [
            {
                "path": str(number),
                "coordinateTransformations": [
                    {"type": "scale", "scale": [1.0 if name in kinds else base * 2**number for name in axes]}
                ],
            }
            for number in range(levels)
        ],
    }
    if version == "0.5":
        return {"ome": {"version": version, "multiscales": [multiscale]}}
    return {"multiscales": [{"version": version, **multiscale}]}


def make_pyramid(
    store: Any,
    shape: tuple[int, ...] = (40, 36, 50),
    levels: int = 3,
    axes: str = "zyx",
    version: str = "0.5",
    **more: Any,
) -> tuple[Any, list[np.ndarray]]:
    """A group with an image of random voxels, and its levels."""
    zarr = pytest.importorskip("zarr", reason="zarr is not installed: pip install zarr")
    group = zarr.open_group(store, mode="w", zarr_format=3 if version == "0.5" else 2)
    array = RNG.integers(1, 250, shape, np.uint8)
    arrays = []
    for number in range(levels):
        chunks = tuple(min(16, n) if name in "zyx" else 1 for n, name in zip(array.shape, axes, strict=True))
        group.create_array(str(number), data=array, chunks=chunks, **more)
        arrays.append(array)
        array = array[tuple(slice(None, None, 2) if name in "zyx" else slice(None) for name in axes)]
    group.attrs.update(ome(levels, axes, version))
    return group, arrays


@pytest.mark.blocks_loop("it imports zarr")
@pytest.mark.parametrize("by", ["upload", "load", "write_texture"])
@pytest.mark.parametrize("version", ["0.4", "0.5"])
async def test_every_chunk_of_a_pyramid_arrives_where_it_belongs(
    device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path, version: str, by: str
) -> None:
    _, arrays = make_pyramid(tmp_path, version=version)
    pyramid = await sources.zarr_pyramid(str(tmp_path), (0, 0, 0)).open()
    assert pyramid.axes == ("z", "y", "x")
    assert [level.shape for level in pyramid.levels] == [array.shape for array in arrays]
    textures = [new_texture(device, "r8unorm", level.shape[::-1], dimension="3d") for level in pyramid.levels]
    ring, numbers = await open_ring(ring_count=2, buffer_size=64 * KiB), []
    async for chunk in pyramid:
        destination = {"texture": textures[chunk.level]}
        if by == "upload":
            await chunk.upload(ring, destination)
        elif by == "load":
            await ring.write_texture({**destination, "origin": chunk.origin}, await chunk.load())
        else:
            await ring.write_texture({**destination, "origin": chunk.origin}, chunk)
        numbers.append(chunk.level)
    assert numbers == sorted(numbers, reverse=True)
    assert len(numbers) == sum(math.prod(level.grid) for level in pyramid.levels)
    for texture, array in zip(textures, arrays, strict=True):
        assert read_texture(texture)[0].tobytes() == array.tobytes()


@pytest.mark.blocks_loop("it imports zarr")
async def test_chunks_are_decoded_straight_into_staging_rows(
    device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _, arrays = make_pyramid(tmp_path, levels=1)
    ring, texture = await open_ring(buffer_size=64 * KiB), new_texture(device, "r8unorm", (50, 36, 40), dimension="3d")
    outs, read = [], sources.Chunk.read

    def noted(chunk: Any, out: Any = None) -> Any:
        outs.append((out.strides, threading.get_ident()))
        return read(chunk, out)

    monkeypatch.setattr(sources.Chunk, "read", noted)
    async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0)):
        await chunk.upload(ring, {"texture": texture})
    assert {strides[1] for strides, _ in outs} == {256}  # rows of staging memory
    assert threading.get_ident() not in {thread for _, thread in outs}
    assert read_texture(texture)[0].tobytes() == arrays[0].tobytes()


@pytest.mark.blocks_loop("it imports zarr")
async def test_what_is_larger_than_a_staging_buffer_or_of_another_type_is_uploaded_too(
    device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path
) -> None:
    _, arrays = make_pyramid(tmp_path, levels=1)
    ring = await open_ring(buffer_size=4 * KiB)
    for format in ("r8unorm", "r8sint"):
        texture = new_texture(device, format, (50, 36, 40), dimension="3d")
        async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0)):
            await chunk.upload(ring, {"texture": texture})
        assert read_texture(texture)[0].tobytes() == arrays[0].tobytes()


def distance(chunk: Any, point: tuple[float, ...], scale: float) -> float:
    center = [(start + (n - 1) / 2) * scale for start, n in zip(chunk.start, chunk.shape, strict=True)]
    return math.dist(center, point)


@pytest.mark.blocks_loop("it imports zarr")
async def test_the_nearest_chunk_comes_first_wherever_the_view_moves(tmp_path: Path) -> None:
    make_pyramid(tmp_path, (64, 64, 64), levels=2)
    point = (0.0, 0.0, 0.0)
    pyramid = sources.zarr_pyramid(tmp_path, lambda: point)
    left = {(level, index) for level, n in ((0, 4), (1, 2)) for index in np.ndindex(n, n, n)}
    count = 0
    async for chunk in pyramid:
        scale = 0.5 * 2**chunk.level
        others = [
            sources.Chunk(pyramid._image, pyramid.levels[chunk.level], i, "fill") for n, i in left if n == chunk.level
        ]
        assert distance(chunk, point, scale) == min(distance(other, point, scale) for other in others)
        left.remove((chunk.level, chunk.index))
        count += 1
        if count % 10 == 0:
            point = tuple(RNG.uniform(0, 32, 3))
    assert not left


@pytest.mark.blocks_loop("it imports zarr")
async def test_other_axes_are_selected_and_levels_chosen(tmp_path: Path) -> None:
    _, arrays = make_pyramid(tmp_path, (3, 2, 20, 20, 20), levels=2, axes="tczyx")
    found = np.zeros(arrays[1].shape[2:], np.uint8)
    async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0), levels=[1], select={"t": 2, "c": 1}):
        found[
            tuple(slice(start, start + n) for start, n in zip(chunk.start, chunk.shape, strict=True))
        ] = await chunk.load()
    assert np.array_equal(found, arrays[1][2, 1])
    with pytest.raises(ValueError, match="select has x"):
        await sources.zarr_pyramid(tmp_path, (0, 0, 0), select={"x": 1}).open()
    with pytest.raises(aiostage.InvalidSource, match=r"t = 3 was selected of 3"):
        await sources.zarr_pyramid(tmp_path, (0, 0, 0), select={"t": 3}).open()
    with pytest.raises(ValueError, match=r"levels \[5\] of an image that has 2"):
        await sources.zarr_pyramid(tmp_path, (0, 0, 0), levels=[5]).open()
    with pytest.raises(ValueError, match="z, y, x in the world"):
        await sources.zarr_pyramid(tmp_path, (0, 0)).open()


@pytest.mark.blocks_loop("it imports zarr")
async def test_several_tasks_share_a_pyramid_and_a_cancelled_one_leaves_nothing_open(
    device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path
) -> None:
    _, arrays = make_pyramid(tmp_path, (48, 48, 48), levels=1)
    ring, texture = await open_ring(buffer_size=64 * KiB), new_texture(device, "r8unorm", (48, 48, 48), dimension="3d")
    pyramid, done = sources.zarr_pyramid(tmp_path, (9, 9, 9)), set()

    async def work() -> None:
        async for chunk in pyramid:
            await chunk.upload(ring, {"texture": texture})
            done.add(chunk.index)

    for delay in (0.001, 0.01, 0.03):  # at whatever point
        with anyio.move_on_after(delay):
            async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0)):
                await chunk.upload(ring, {"texture": texture})
        assert (await ring.stats()).buffer_states.count("allocated") == 0
    async with anyio.create_task_group() as group:
        for _ in range(4):
            group.start_soon(work)
    assert len(done) == 27
    assert read_texture(texture)[0].tobytes() == arrays[0].tobytes()


@pytest.mark.blocks_loop("it imports zarr")
async def test_a_missing_chunk_is_fill_or_an_error_that_names_it(tmp_path: Path) -> None:
    make_pyramid(tmp_path, levels=1, fill_value=7)
    (tmp_path / "0" / "c" / "1" / "2" / "0").unlink()
    async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0)):
        if chunk.index == (1, 2, 0):
            assert (await chunk.load() == 7).all()
    with pytest.raises(aiostage.InvalidSource, match=r"level 0 \('0'\), chunk \(1, 2, 0\): it is missing"):
        async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0), missing="error"):
            await chunk.load()


@pytest.mark.blocks_loop("it imports zarr")
@pytest.mark.parametrize("damage", [b"", b"\x00" * 50, b"\x01" * 5000])
@pytest.mark.parametrize("compressors", ["auto", None])
async def test_a_damaged_chunk_is_named_and_the_others_arrive(
    device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path, damage: bytes, compressors: Any
) -> None:
    make_pyramid(tmp_path, levels=1, compressors=compressors)
    (tmp_path / "0" / "c" / "1" / "1" / "1").write_bytes(damage)
    ring, texture = await open_ring(buffer_size=64 * KiB), new_texture(device, "r8unorm", (50, 36, 40), dimension="3d")
    failures = []
    async for chunk in sources.zarr_pyramid(tmp_path, (0, 0, 0)):
        try:
            await chunk.upload(ring, {"texture": texture})
        except aiostage.InvalidSource as error:
            failures.append(str(error))
    assert len(failures) == 1
    assert "level 0 ('0'), chunk (1, 1, 1): " in failures[0]


def broken(change: Callable[[dict[str, Any]], object], version: str = "0.5") -> dict[str, Any]:
    attributes = ome(3, version=version)
    change((attributes.get("ome") or attributes)["multiscales"][0])
    return attributes


LIES = {
    "no metadata": ({}, "no multiscales"),
    "another version": (broken(lambda m: m.update(version="0.2"), "0.4"), "OME-Zarr 0.2"),
    "no axes": (broken(lambda m: m.pop("axes")), "no axes"),
    "one axis too few": (broken(lambda m: m["axes"].pop()), "scale or translation of 2 axes|array of 3 axes"),
    "no datasets": (broken(lambda m: m.update(datasets=[])), "no datasets"),
    "no path": (broken(lambda m: m["datasets"][1].pop("path")), r"datasets\[1\] has no path"),
    "another path": (broken(lambda m: m["datasets"][1].update(path="9")), r"level 1 \('9'\): there is no such array"),
    "the wrong order": (broken(lambda m: m["datasets"].reverse()), r"level 1 \('1'\).*more than"),
    "no scale": (broken(lambda m: m["datasets"][1].pop("coordinateTransformations")), r"level 1.*no transformation"),
    "a scale of 0": (
        broken(lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[1, 0, 1])),
        r"level 1.*positive",
    ),
    "a text": (
        broken(lambda m: m["datasets"][1]["coordinateTransformations"][0].update(scale=[1, "1", 1])),
        r"level 1.*not all numbers",
    ),
    "the scale of another": (
        broken(lambda m: m["datasets"][2]["coordinateTransformations"][0].update(scale=[0.5, 0.5, 0.5])),
        r"level 2 \('2'\).*in the world",
    ),
}


@pytest.mark.blocks_loop("it imports zarr")
@pytest.mark.parametrize("lie", LIES)
async def test_metadata_that_lie_get_one_error_that_names_the_item(tmp_path: Path, lie: str) -> None:
    group, _ = make_pyramid(tmp_path)
    attributes, gives = LIES[lie]
    group.attrs.put(attributes)
    with pytest.raises(aiostage.InvalidSource, match=gives):
        async for _ in sources.zarr_pyramid(tmp_path, (0, 0, 0)):
            raise AssertionError("there is no chunk")
    with pytest.raises(aiostage.InvalidSource, match="no zarr group"):
        await sources.zarr_pyramid(tmp_path / "nothing", (0, 0, 0)).open()


# -- the example --


@pytest.fixture
def example() -> Any:
    pytest.importorskip("zarr", reason="zarr is not installed: pip install zarr")
    path = Path(__file__).parent.parent / "examples" / "zarr_volume.py"
    spec = importlib.util.spec_from_file_location("zarr_volume", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.blocks_loop("the example draws and reads back")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_example_flies_through_its_volume(example: Any, loop: str, tmp_path: Path) -> None:
    example.SIDE, example.VIEW = 64, 120
    picture = tmp_path / "picture.png"
    anyio.run(example.main, picture, **LOOPS[loop])  # it compares the last projection with the volume's
    assert picture.stat().st_size > 10_000


@pytest.mark.blocks_loop("the example draws and reads back")
async def test_the_example_draws_the_finest_that_has_arrived(
    example: Any, device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path
) -> None:
    volume = RNG.integers(0, 256, (64, 64, 64), np.uint8)
    example.write_pyramid(volume, tmp_path)
    pyramid = await sources.zarr_pyramid(tmp_path, (0, 0, 0)).open()
    painter = example.Painter(await open_ring(), pyramid.levels)
    seen = np.zeros_like(volume)
    assert not (await painter.project()).any()
    async for chunk in pyramid:
        await painter.upload(chunk)
        factor = 2**chunk.level
        region = tuple(slice(s * factor, (s + n) * factor) for s, n in zip(chunk.start, chunk.shape, strict=True))
        seen[region] = np.kron(await chunk.load(), np.ones((factor,) * 3, np.uint8))
        assert np.array_equal(await painter.project(), seen.max(axis=0))
    assert np.array_equal(seen, volume)


# -- what the page says --

PAGE = Path(__file__).parent.parent / "docs" / "sources.md"


def test_each_row_of_the_page_has_a_test() -> None:
    table = PAGE.read_text().split("| source | copies before staging |")[1].split("\n\n")[0]
    rows = [line for line in table.splitlines() if line.startswith("| ")][1:]
    assert len(rows) > 10
    for row in rows:
        assert row.split("`")[-2] in globals(), row


@pytest.mark.blocks_loop("it imports zarr")
async def test_what_the_page_does_with_other_libraries_runs(
    device: wgpu.GPUDevice, open_ring: OpenRing, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    av = pytest.importorskip("av", reason="PyAV is not installed: pip install av")
    make_pyramid(tmp_path / "volume.zarr")
    monkeypatch.chdir(tmp_path)
    names = {
        "ring": await open_ring(),
        "frame": av.VideoFrame(64, 32, "nv12"),
        "luma_texture": new_texture(device, "r8unorm", (64, 32, 1)),
        "chroma_texture": new_texture(device, "rg8unorm", (32, 16, 1)),
        "feed": feed,
        "container": types.SimpleNamespace(decode=lambda video: [av.VideoFrame(64, 32, "yuv420p") for _ in range(5)]),
        "render": lambda encoder: None,
        "y": new_texture(device, "r8unorm", (64, 32, 1)),
        "u": new_texture(device, "r8unorm", (32, 16, 1)),
        "v": new_texture(device, "r8unorm", (32, 16, 1)),
        "camera": types.SimpleNamespace(position=(1, 2, 3)),
        "textures": [new_texture(device, "r8unorm", (50, 36, 40), dimension="3d") for _ in range(3)],
    }
    found = re.findall(r"```py\n(.*?)```", PAGE.read_text(), re.DOTALL)
    assert len(found) == 3
    for block in found:
        await types.FunctionType(compile(block, str(PAGE), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT), names)()


async def test_a_batch_takes_a_list_of_arrays_that_are_read(device: wgpu.GPUDevice, open_ring: OpenRing) -> None:
    ring, texture = await open_ring(), new_texture(device, "r8uint", (32, 16, 3))
    data = [Indexed(RNG.integers(0, 256, (16, 32), np.uint8)) for _ in range(3)]
    async with ring.batch() as batch:
        await batch.write_textures([{"texture": texture, "origin": (0, 0, z)} for z in range(3)], data)
    assert read_texture(texture)[0].tobytes() == b"".join(each.array.tobytes() for each in data)
    assert [len(each.asked) for each in data] == [1, 1, 1]  # checked before, and read once
