"""What any array-like becomes: a plain array whose bytes or texels are uploaded, or an error that says what to give."""

from __future__ import annotations

import ctypes
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..errors import InvalidCopy
from .exchange import BITS, from_dlpack
from .files import Stored, packed, place_of
from .formats import TexelBlock, numpy_layout

Array = npt.NDArray[Any]
Bytes = npt.NDArray[np.uint8]

WHOLE: frozenset[type] = frozenset((bytes, bytearray, memoryview, np.ndarray))
"""Types, without their subclasses, of what has neither a mask nor missing values."""


def is_lazy(data: Any) -> bool:
    """Whether `as_array` may compute or read what `data` stands for, and so belongs in a thread."""
    if isinstance(data, np.ndarray | bytes | bytearray | memoryview):
        return False
    try:
        memoryview(data)
    except (TypeError, ValueError, BufferError):
        return any(hasattr(data, way) for way in ("__array__", "__array_interface__", "__dlpack__")) or is_indexed(data)
    return False


def is_indexed(data: Any) -> bool:
    """Whether `data[slices]` is a part of an array of known shape and dtype: of dask, zarr, h5py, xarray and the like.

    What is in memory already is none, nor what is indexed by its own labels, as in pandas.
    """
    shape, dtype = getattr(data, "shape", None), getattr(data, "dtype", None)
    return (
        isinstance(dtype, np.dtype)
        and isinstance(shape, tuple)
        and all(isinstance(n, int | np.integer) and n >= 0 for n in shape)  # dask's may be unknown
        and hasattr(data, "__getitem__")
        and not any(hasattr(data, other) for other in ("__array_interface__", "__dlpack__", "iloc"))
        and type(data).__module__.split(".")[0] != "pandas"
    )


def as_array(data: Any) -> Array:
    """`data` as a plain array, without a copy where it has the buffer protocol, DLPack or `__array_interface__`.

    :raises TypeError: it has no dtype of its own (numbers, lists), masked or missing values, or Python objects.
    """
    if type(data) is not np.ndarray:
        data = _plain(data)
    if data.dtype.hasobject:
        raise TypeError(f"data must be bytes or numbers, not {data.dtype}")
    array: Array = data
    return array


def is_masked(data: Any) -> bool:
    """Whether it is an array with a mask, which its bytes do not have."""
    return type(data) is not np.ndarray and isinstance(data, np.ma.MaskedArray)


def missing(data: Any) -> int:
    """How many values it says are missing, by an Arrow array's attribute or a polars series' method."""
    count = getattr(data, "null_count", 0)
    if callable(count):
        count = count()
    return count if isinstance(count, int) else 0


def _plain(data: Any) -> Any:
    if is_masked(data):
        raise TypeError("data is a masked array, and its mask would be lost: give data.filled(value)")
    if isinstance(data, np.ndarray):  # a matrix, a quantity: whose own indexing and arithmetic are not in demand
        return np.ndarray.view(data, np.ndarray)
    if nulls := missing(data):
        raise TypeError(f"data has {nulls} missing values: fill them, and give the result")
    try:
        view = memoryview(data)
    except (TypeError, ValueError, BufferError):
        if (array := _asked(data)) is not None:
            return array
        raise TypeError(
            f"data must be bytes or an array, not {type(data).__name__}: give it a dtype, as np.array(data, np.float32)"
        ) from None
    if isinstance(data, ctypes.Array | ctypes.Structure | ctypes.Union):
        return np.ndarray(view.shape or (), _ctypes_dtype(type(data)), view)
    try:
        return np.asarray(view)
    except (ValueError, NotImplementedError):  # a format that numpy does not know
        if not view.c_contiguous:
            raise TypeError(
                f"data has items of format {view.format!r}, which numpy does not know: give bytes"
            ) from None
        return np.frombuffer(view, np.uint8)


def _asked(data: Any) -> Array | None:
    """What it makes of itself, or None: it makes no array. :raises TypeError: it is on a GPU, or has a mask."""
    if hasattr(data, "__dlpack__") and not hasattr(data, "__array_interface__"):
        shared = from_dlpack(data)
        if shared is not None or not hasattr(data, "__array__"):
            return shared
    if not is_lazy(data):
        return None
    made: Array = _plain(np.asanyarray(data if hasattr(data, "__array__") or not is_indexed(data) else data[()]))
    return made


def _ctypes_dtype(kind: Any) -> np.dtype[Any]:
    """Of the items, which their buffer's format does not tell for unions and bit fields: numpy would guess."""
    while issubclass(kind, ctypes.Array):
        kind = kind._type_
    try:
        dtype: np.dtype[Any] = np.dtype(kind)
    except (TypeError, NotImplementedError, ValueError):
        dtype = np.dtype(f"V{ctypes.sizeof(kind)}")
    return dtype


def as_items(array: Array) -> Array:
    """`array` with items that are copied byte for byte: numpy copies a structured one field by field, without gaps."""
    return array if array.dtype.names is None else array.view(f"V{array.itemsize}")


def copy_bytes(target: Bytes, array: Array, start: int) -> None:
    """Write the bytes of `array`, in C order, from byte `start` on, until `target` is full."""
    for source, offset, steps, _ in _byte_runs(array, start, len(target)):
        np.copyto(np.ndarray(source.shape, source.dtype, target, offset, steps), source)


def _row(array: Array, index: int) -> Array:
    return array[index] if array.ndim > 1 else array[index : index + 1]


class Run(NamedTuple):
    """An array whose items go to `offset` bytes from the start of a place, and from there `steps` bytes apart along
    each of its axes."""

    array: Array
    offset: int
    steps: tuple[int, ...]
    swap: int
    """Bytes in what is turned round, since the GPU wants them little-endian; or 0."""


_MOST_AXES = 5
"""Of an array that a thread can copy without Python: BLOCK_DIMENSIONS in native/block.h."""


def byte_runs(array: Array, start: int, nbytes: int) -> list[Run] | None:
    """Bytes of `array`, in C order, from byte `start` on: as runs that a thread can copy without Python; None: it has
    too many axes for that."""
    return None if array.ndim > _MOST_AXES and not array.flags.c_contiguous else _byte_runs(array, start, nbytes)


def _byte_runs(array: Array, start: int, nbytes: int) -> list[Run]:
    if array.flags.c_contiguous:
        return [Run(array.reshape(-1).view(np.uint8)[start : start + nbytes], 0, (1,), 0)]
    runs: list[Run] = []
    row = array.nbytes // len(array)
    first, skip = divmod(start, row)
    done = 0
    if skip:
        done = min(row - skip, nbytes)
        runs += _byte_runs(_row(array, first), skip, done)
        first += 1
    whole = (nbytes - done) // row
    if whole:
        block = array[first : first + whole]
        runs.append(Run(_opaque(block), done, packed(block.shape, array.itemsize), 0))
        done += whole * row
    if done < nbytes:
        rest = _byte_runs(_row(array, first + whole), 0, nbytes - done)
        runs += [run._replace(offset=run.offset + done) for run in rest]
    return runs


def _opaque(array: Array) -> Array:
    """With items that every consumer of buffers takes: some of numpy's own, such as dates, have no format."""
    is_plain = array.dtype.kind in "uifcV" and array.dtype.names is None and array.dtype.isbuiltin != 2
    return array if is_plain else array.view(f"V{array.itemsize}")


# -- texels --


class Scattered:
    """Texel blocks in the C-order bytes of an array that does not have them in a row, which `gather` does for it.

    :param shape: (layers, block rows, block columns, bytes of a block), with `strides` in bytes from `offset` on.
    """

    __slots__ = ("array", "offset", "shape", "strides")

    def __init__(
        self, array: Array, offset: int, shape: tuple[int, int, int, int], strides: tuple[int, int, int, int]
    ) -> None:
        self.array = array
        self.offset = offset
        self.shape = shape
        self.strides = strides

    def __getitem__(self, window: tuple[slice, slice, slice]) -> Scattered:
        offset, (layers, rows, columns, nbytes) = place_of(window, self.shape, self.strides)
        return Scattered(self.array, self.offset + offset, (layers, rows, columns, nbytes), self.strides)

    def gather(self) -> Array:
        """The blocks, in memory of their own: no more of the array than from the first of them to the last."""
        extent = sum((n - 1) * step for n, step in zip(self.shape, self.strides, strict=True)) + 1
        flat = np.empty(extent, np.uint8)
        copy_bytes(flat, as_items(self.array), self.offset)
        return np.ndarray(self.shape, np.uint8, flat, 0, self.strides)


Blocks = Array | Scattered | Stored


def copy_blocks(memory: Bytes, source: Array | Scattered, stride: int) -> None:
    """Like `copy_texels`."""
    copy_texels(memory, source.gather() if isinstance(source, Scattered) else source, stride)


def texel_runs(source: Array | Scattered, stride: int) -> list[Run] | None:
    """Blocks (layers, block rows, block columns, items) as runs to rows `stride` bytes apart; None: they have to be
    gathered, or converted, by Python."""
    if isinstance(source, Scattered):
        return None
    swap = 0
    if not source.dtype.isnative and source.dtype.names is not None:
        return None
    if source.dtype.newbyteorder("<") != source.dtype:
        swap = source.itemsize // 2 if source.dtype.kind == "c" else source.itemsize
    items = as_items(source)
    if swap:
        items = items.view(f"V{items.itemsize}")
        if swap != items.itemsize:
            return None
    return [Run(_opaque(items), 0, row_steps(items.shape, items.itemsize, stride), swap)]


def row_steps(shape: tuple[int, ...], itemsize: int, stride: int) -> tuple[int, ...]:
    """Bytes between the items of blocks (layers, block rows, block columns, items) in rows `stride` bytes apart."""
    return stride * shape[1], stride, shape[3] * itemsize, itemsize


def copy_texels(memory: Bytes, source: Array, stride: int) -> None:
    """Write blocks (layers, block rows, block columns, items) as rows `stride` bytes apart, in little-endian order."""
    if source.dtype.names is not None and not source.dtype.isnative:
        little = np.zeros(source.shape, source.dtype.newbyteorder("<"))
        little[...] = source
        source = little
    source = as_items(source)
    steps = row_steps(source.shape, source.itemsize, stride)
    target: Array = np.ndarray(source.shape, source.dtype.newbyteorder("<"), buffer=memory, strides=steps)
    np.copyto(target, source)


def is_raw(array: Array | Stored) -> bool:
    """Whether its items are bytes, and not values."""
    return (array.dtype.kind in "VS" and array.dtype.names is None) or array.dtype == np.uint8


def _is_bfloat16(dtype: np.dtype[Any]) -> bool:
    """Whether it is the type of that name, or its bits."""
    return (dtype.metadata is not None and dtype.metadata == BITS.metadata) or (
        dtype.kind == "V" and dtype.name == "bfloat16"
    )


def check_texels(array: Array | Stored, format: str, block: TexelBlock) -> None:
    """:raises InvalidCopy: the items are of another kind than the texels of this format."""
    dtype, layout = array.dtype, numpy_layout(format)
    if _is_bfloat16(dtype) and "float" in format:  # its bits would be taken for those of other values
        raise InvalidCopy(f"data of bfloat16 for {format}: convert it to the texels' type, or give the bits as uint16")
    if is_raw(array):
        return
    if dtype.names is not None:
        if dtype.itemsize == block.nbytes:
            return
        raise InvalidCopy(
            f"structured data have {dtype.itemsize} bytes an item, and {format} has {block.nbytes} a texel block: they "
            "must be the same, or give the bytes"
        )
    if layout is None:  # whole blocks
        if dtype.kind in "ui":
            return
        raise InvalidCopy(f"data of {dtype} for {format}: give its blocks as bytes")
    texel, channels = layout
    if dtype.itemsize == texel.itemsize == 1:
        return
    if dtype.kind in "ui" and dtype.itemsize in (texel.itemsize, block.nbytes):
        if dtype.kind == "i" and texel.kind == "f":
            raise InvalidCopy(_wrong_kind(dtype, format, texel, channels))
        return  # the values, or their bits
    if dtype.kind == texel.kind == "f" and dtype.itemsize == texel.itemsize:
        return
    if dtype.kind == "c" and texel.kind == "f" and channels == 2 and dtype.itemsize == 2 * texel.itemsize:
        return
    raise InvalidCopy(_wrong_kind(dtype, format, texel, channels))


def _wrong_kind(dtype: np.dtype[Any], format: str, texel: np.dtype[Any], channels: int) -> str:
    if dtype.kind == "f" and "unorm" in format and texel.kind == "u":
        way = f"(data * {2 ** (8 * texel.itemsize) - 1}).astype(np.{texel.name})"
    else:
        way = f"data.astype(np.{texel.name})"
    return f"data of {dtype} for {format}, whose texels are {channels} of {texel.name}: give {way}, or the bytes"


def shape_of_blocks(
    array: Array | Stored, block: TexelBlock, dimension: str, room: tuple[int, int, int]
) -> tuple[int, ...] | None:
    """(layers, block rows, block columns, items of a block) of `array` by its shape, or None.

    A last axis of length 1 may be the only channel of an image, or one column of each of several: what fits in `room`,
    (layers, block rows, block columns), decides.

    :raises InvalidCopy: both fit.
    """
    fewest, most = (1, 1) if dimension == "1d" else (2, 3)
    shape = array.shape
    if array.itemsize == block.nbytes:
        if len(shape) <= most and not (len(shape) == most == 3 and _is_image(shape, room)):
            shape = (*shape, 1)
        elif shape[-1] != 1:
            return None
    elif not shape or shape[-1] * array.itemsize != block.nbytes:
        return None
    spatial = len(shape) - 1
    return (1,) * (3 - spatial) + shape if fewest <= spatial <= most else None


def is_shaped(array: Array, block: TexelBlock) -> bool:
    """Whether the shape alone tells what the texel blocks of a 2D texture are, whatever `room` there is."""
    may_be_image = array.itemsize == block.nbytes and array.ndim == 3 and array.shape[2] == 1
    return not may_be_image and shape_of_blocks(array, block, "2d", (0, 0, 0)) is not None


def _is_image(shape: tuple[int, ...], room: tuple[int, int, int]) -> bool:
    """Whether three axes, the last of length 1, are (rows, columns, channel) rather than (layers, rows, columns)."""
    image = (1, *shape[:2])
    fits, fits_as_image = (all(n <= most for n, most in zip(each, room, strict=True)) for each in (shape, image))
    if shape[2] != 1 or not fits_as_image or shape == image:
        return False
    if fits:
        raise InvalidCopy(
            f"data of shape {shape} may be one image of {shape[0]} × {shape[1]} texels, or {shape[0]} layers of "
            f"{shape[1]} rows of one: give it a channel axis, {(1, *shape[:2], 1)} or {(*shape, 1)}"
        )
    return True
