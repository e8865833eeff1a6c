"""Copy commands, from staging memory to a destination, and the checks that each passes before it is recorded.

The rules are WebGPU's (specification, "Buffer Copies" and "Texel Copies"). A copy that breaks one raises InvalidCopy in
the coroutine that asked for it, so that it can never spoil an encoder that holds other coroutines' copies.
"""

from __future__ import annotations

import operator
import struct
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from ..errors import InvalidCopy
from .formats import TexelBlock, is_depth_stencil, texel_block

# Values of GPUBufferUsage.COPY_DST and GPUTextureUsage.COPY_DST (WebGPU specification).
_BUFFER_COPY_DST = 0x8
_TEXTURE_COPY_DST = 0x2


UNREAD = -1
"""In place of the job that was to fill a copy's source, and failed."""


class BufferSlice:
    """Stands for `size` bytes of `buffer` as the destination of a copy: the base of `aiostage.pools.BufferRange`."""

    __slots__ = ()
    size: int
    buffer: Any
    stays = False
    """Whether it is its holder who says how long it stays where it is."""

    def pin(self) -> Any:
        """A slice of the same bytes that stays for as long as it lives, and has their `offset` in its `buffer`."""
        raise NotImplementedError


class BufferCopy:
    """`size` bytes from `offset` in the staging buffer `source` to `destination_offset` in a GPUBuffer."""

    __slots__ = ("destination", "destination_offset", "job", "offset", "owner", "pin", "size", "source")

    def __init__(
        self, source: Any, offset: int, destination: Any, destination_offset: int, size: int, pin: Any = None
    ) -> None:
        self.owner: Any = None  # the task whose allocation it came from, if it did
        self.job = 0  # that fills its source, if one does: the copy is left out if that fails
        self.pin = pin  # of the slice that it goes to, if it does: lives as long as the copy
        self.source = source
        self.offset = offset
        self.destination = destination
        self.destination_offset = destination_offset
        self.size = size

    @property
    def nbytes(self) -> int:
        """Bytes of staging memory that are read."""
        return self.size

    def __repr__(self) -> str:
        return f"copy of {self.size} bytes to offset {self.destination_offset} of {self.destination}"


class TextureCopy:
    """Texel rows from `offset` in the staging buffer `source` to a region of one aspect and mip level of a GPUTexture.

    `origin` and `size` are in texels, (x, y, z) and (width, height, depth or layers).
    """

    __slots__ = (
        "aspect",
        "block",
        "bytes_per_row",
        "destination",
        "job",
        "mip_level",
        "nbytes",
        "offset",
        "origin",
        "owner",
        "rows_per_image",
        "size",
        "source",
    )

    def __init__(
        self,
        source: Any,
        offset: int,
        region: TextureRegion,
        bytes_per_row: int,
        rows_per_image: int,
    ) -> None:
        self.owner: Any = None  # the task whose allocation it came from, if it did
        self.job = 0  # that fills its source, if one does
        self.source = source
        self.offset = offset
        self.destination = region.texture
        self.mip_level = region.mip_level
        self.aspect = region.aspect
        self.block = region.block
        self.origin = region.origin
        self.size = region.size
        self.bytes_per_row = bytes_per_row
        self.rows_per_image = rows_per_image
        self.nbytes = footprint(region, bytes_per_row, rows_per_image)

    def to(self, texture: Any) -> TextureCopy:
        """The same to another texture, which is like this one's."""
        copy = TextureCopy.__new__(TextureCopy)
        for name in TextureCopy.__slots__:
            setattr(copy, name, getattr(self, name))
        copy.destination = texture
        return copy

    def __repr__(self) -> str:
        return f"copy of {self.size} texels to {self.origin}, mip level {self.mip_level}, of {self.destination}"


# carrier_copy in native/carrier.h: keep the two alike.
RECORD = struct.Struct("<BBBBIQQQQQQ8I")
TO_BUFFER, TO_TEXTURE = 0, 1


class SmallCopies:
    """Copies from one staging buffer to one destination that were recorded natively, in order: see native/writes.c."""

    __slots__ = ("destination", "job", "owner", "records", "source")

    def __init__(self, source: Any, destination: Any, records: bytes) -> None:
        self.owner: Any = None
        self.job = 0
        self.source = source
        self.destination = destination
        self.records = records
        """As the carrier has them."""

    def __len__(self) -> int:
        return len(self.records) // RECORD.size

    def __iter__(self) -> Iterator[BufferCopy | TextureCopy]:
        return map(self.__getitem__, range(len(self)))

    def __getitem__(self, index: int) -> BufferCopy | TextureCopy:
        kind, _, _, _, mip_level, _, _, offset, _, at, size, *numbers = RECORD.unpack_from(
            self.records, index * RECORD.size
        )
        if kind == TO_BUFFER:
            return BufferCopy(self.source, offset, self.destination, at, size)
        block = TexelBlock(size & 0xFFFFFFFF, size >> 32, at)
        origin, extent = tuple(numbers[:3]), tuple(numbers[3:6])
        region = TextureRegion(self.destination, mip_level, "all", origin, extent, block)
        return TextureCopy(self.source, offset, region, *numbers[6:])

    @property
    def goes_to_buffer(self) -> bool:
        """Or else to a texture."""
        return self.records[0] == TO_BUFFER


Copy = BufferCopy | TextureCopy
Staged = Copy | SmallCopies
Triple = tuple[int, int, int]


class TextureRegion(NamedTuple):
    """A checked region of a texture: where a texture copy goes."""

    texture: Any
    mip_level: int
    aspect: str
    origin: Triple
    size: Triple
    block: TexelBlock

    @property
    def block_columns(self) -> int:
        """Texel blocks in one row of the region."""
        return -(-self.size[0] // self.block.width)

    @property
    def block_rows(self) -> int:
        """Rows of texel blocks in one image of the region."""
        return -(-self.size[1] // self.block.height)

    @property
    def row_bytes(self) -> int:
        """Bytes in one row of texel blocks, without padding."""
        return self.block_columns * self.block.nbytes

    @property
    def is_empty(self) -> bool:
        """Whether there is nothing to copy."""
        return 0 in self.size

    def part(self, layer: int, layers: int, row: int, rows: int, column: int, columns: int) -> TextureRegion:
        """The sub-region of whole blocks that starts at (layer, block row, block column)."""
        x, y, z = self.origin
        width, height, _ = self.size
        left, top = column * self.block.width, row * self.block.height
        return self._replace(
            origin=(x + left, y + top, z + layer),
            size=(
                min(columns * self.block.width, width - left),
                min(rows * self.block.height, height - top),
                layers,
            ),
        )


def footprint(region: TextureRegion, bytes_per_row: int, rows_per_image: int) -> int:
    """Bytes from the first to past the last that a copy with this layout reads (WebGPU: "required bytes in copy")."""
    if region.is_empty:
        return 0
    whole_rows = rows_per_image * (region.size[2] - 1) + region.block_rows - 1
    return bytes_per_row * whole_rows + region.row_bytes


def whole(value: Any, name: str) -> int:
    """`value` as an int. :raises InvalidCopy: it is not a whole number."""
    try:
        return operator.index(value)
    except TypeError:
        raise InvalidCopy(f"{name} must be a whole number, not {value!r}") from None


def check_buffer_copy(buffer: Any, buffer_offset: int, size: int, owner: Any) -> tuple[Any, int, Any]:
    """Raise InvalidCopy unless `size` bytes may be copied to `buffer_offset` of `buffer` on `owner`'s device.

    :returns: (GPUBuffer, offset in it, pin for the copy to keep). The pin is None but for a `BufferSlice`.
    """
    given = buffer
    if isinstance(given, BufferSlice):
        buffer = given.buffer
    _check_destination(buffer, "buffer", _BUFFER_COPY_DST, "BufferUsage.COPY_DST", owner)
    if buffer_offset < 0 or buffer_offset % 4:
        raise InvalidCopy(f"buffer_offset must be a multiple of 4 and not negative, not {buffer_offset}")
    if size < 0 or size % 4:
        raise InvalidCopy(
            f"the number of bytes copied must be a multiple of 4, not {size}: pad the data, as in "
            f"bytes(data) + bytes({-size % 4})"
        )
    if buffer_offset + size > given.size:
        raise InvalidCopy(f"{size} bytes at offset {buffer_offset} do not fit in a buffer of {given.size} bytes")
    if given is buffer:
        return buffer, buffer_offset, None
    pin = given.pin()
    return pin.buffer, pin.offset + buffer_offset, pin


def check_source(offset: int, nbytes: int, available: int, alignment: int) -> None:
    """Raise InvalidCopy unless [offset, offset + nbytes) lies in an allocation of `available` bytes."""
    if offset < 0 or nbytes < 0 or offset + nbytes > available:
        raise InvalidCopy(f"the copy reads bytes {offset} to {offset + nbytes} of an allocation of {available} bytes")
    if offset % alignment:
        raise InvalidCopy(f"the copy starts at byte {offset}, which must be a multiple of {alignment}")


def resolve_region(destination: Mapping[str, Any], size: Any, owner: Any) -> TextureRegion:
    """The region that wgpu's `destination` dict and `size` describe, checked against the texture.

    :raises InvalidCopy: for a usage, format, aspect, mip level, origin or size that WebGPU would refuse.
    """
    return region_of(resolve_destination(destination, owner), size)


def region_of(destination: Destination, size: Any) -> TextureRegion:
    """The region of `size` texels of a resolved destination. :raises InvalidCopy:"""
    texture, mip_level, origin, aspect, block = destination
    region = TextureRegion(texture, mip_level, aspect, origin, as_extent(size), block)
    _check_region(region)
    return region


Destination = tuple[Any, int, Triple, str, TexelBlock]
_DESTINATION_KEYS = {"texture", "mip_level", "origin", "aspect"}


def resolve_destination(destination: Mapping[str, Any], owner: Any) -> Destination:
    """(texture, mip level, origin, aspect, texel block) of wgpu's `destination` dict, without a size yet."""
    given: Any = destination
    if not isinstance(given, Mapping):
        given = getattr(given, "__dict__", {})  # wgpu.structs.TexelCopyTextureInfo
        if "texture" not in given or not given.keys() <= _DESTINATION_KEYS:
            kind = type(destination)
            raise InvalidCopy(
                f"destination must be a dict such as {{'texture': texture}} with a wgpu.GPUTexture, not a "
                f"{kind.__module__}.{kind.__qualname__}"
            )
    destination = given
    if "texture" not in destination or not destination.keys() <= _DESTINATION_KEYS:
        raise InvalidCopy(f"destination has texture, mip_level, origin and aspect, not {sorted(destination, key=str)}")
    texture = destination["texture"]
    _check_destination(texture, "texture", _TEXTURE_COPY_DST, "TextureUsage.COPY_DST", owner)
    if texture.sample_count != 1:
        raise InvalidCopy(f"a texture with {texture.sample_count} samples per texel cannot be written by a copy")
    mip_level = _count(destination.get("mip_level") or 0, "mip_level")
    if mip_level >= texture.mip_level_count:
        raise InvalidCopy(f"mip level {mip_level} of a texture that has {texture.mip_level_count}")
    aspect = str(destination.get("aspect") or "all")
    try:
        block = texel_block(texture.format, aspect)
    except ValueError as error:
        raise InvalidCopy(str(error)) from None
    origin = _triple(destination.get("origin") or (0, 0, 0), "origin", _ORIGIN_KEYS, 0)
    return texture, mip_level, origin, aspect, block


def mip_extent(texture: Any, mip_level: int) -> Triple:
    """Logical size of one mip level in texels: (width, height, depth or array layers)."""
    width, height, depth = (int(extent) for extent in texture.size)
    if texture.dimension == "1d":
        return max(1, width >> mip_level), 1, 1
    if texture.dimension == "3d":
        depth = max(1, depth >> mip_level)
    return max(1, width >> mip_level), max(1, height >> mip_level), depth


def _check_region(region: TextureRegion) -> None:
    block, level = region.block, mip_extent(region.texture, region.mip_level)
    # A level's physical size is its logical one rounded up to whole blocks.
    physical = (
        -(-level[0] // block.width) * block.width,
        -(-level[1] // block.height) * block.height,
        level[2],
    )
    for axis, start, extent, limit in zip("xyz", region.origin, region.size, physical, strict=True):
        if start + extent > limit:
            raise InvalidCopy(
                f"{extent} texels from {axis}={start} exceed mip level {region.mip_level}, "
                f"which has {limit} of them along {axis} ({region.texture.format}, {level})"
            )
    for axis, start, extent, step in (
        ("x", region.origin[0], region.size[0], block.width),
        ("y", region.origin[1], region.size[1], block.height),
    ):
        if start % step or extent % step:
            raise InvalidCopy(
                f"origin and size along {axis} must be multiples of {step} texels for {region.texture.format}, "
                f"not {start} and {extent}"
            )
    if is_depth_stencil(region.texture.format) and (region.origin[:2] != (0, 0) or region.size[:2] != level[:2]):
        raise InvalidCopy(
            f"a copy to {region.texture.format} covers the whole mip level, {level[:2]} from (0, 0), "
            f"not {region.size[:2]} from {region.origin[:2]}"
        )


def _check_destination(resource: Any, kind: str, usage: int, usage_name: str, owner: Any) -> None:
    if not owner.is_resource(resource, kind):
        raise InvalidCopy(f"the destination must be a GPU{kind.capitalize()}, not {type(resource).__name__}")
    if not owner.owns(resource):
        raise InvalidCopy(f"the destination {kind} belongs to another device than the ring")
    if not resource.usage & usage:
        raise InvalidCopy(f"the destination {kind} was created without {usage_name} (its usage is {resource.usage})")


_EXTENT_KEYS = ("width", "height", "depth_or_array_layers")
_ORIGIN_KEYS = ("x", "y", "z")


def as_extent(size: Any) -> Triple:
    """(width, height, depth or array layers) of wgpu's `size`: one to three numbers, or a dict. :raises InvalidCopy:"""
    return _triple(size, "size", _EXTENT_KEYS, 1)


def pop_layout(layout: dict[str, Any], row: int, rows: int) -> Triple:
    """(offset, bytes per row, rows per image) of wgpu's `data_layout`, with defaults for the last two."""
    offset = whole(layout.pop("offset", 0) or 0, "offset")
    bytes_per_row = _count(layout.pop("bytes_per_row", 0) or row, "bytes_per_row")
    rows_per_image = _count(layout.pop("rows_per_image", 0) or rows, "rows_per_image")
    if layout:
        raise InvalidCopy(f"data_layout has offset, bytes_per_row and rows_per_image, not {sorted(layout, key=str)}")
    return offset, bytes_per_row, rows_per_image


def _triple(value: Any, name: str, keys: Sequence[str], default: int) -> Triple:
    if type(value) is tuple and len(value) == 3:  # nearly always
        x, y, z = value
        if type(x) is type(y) is type(z) is int and min(value) >= 0 and max(value) <= 0xFFFFFFFF:
            return value
    if isinstance(value, Mapping):
        if set(value) - set(keys):
            raise InvalidCopy(f"{name} has {', '.join(keys)}, not {sorted(value, key=str)}")
        value = [value.get(key, default) for key in keys]
    try:
        given = [_count(number, name) for number in value]
    except TypeError:
        raise InvalidCopy(f"{name} must be up to three numbers, not {value!r}") from None
    if not 1 <= len(given) <= 3:
        raise InvalidCopy(f"{name} must be one to three numbers, not {value!r}")
    given += [default] * (3 - len(given))
    return given[0], given[1], given[2]


def _count(value: Any, name: str) -> int:
    if type(value) is int and 0 <= value <= 0xFFFFFFFF:  # nearly always
        return value
    try:
        number = int(value)
    except (TypeError, ValueError):
        raise InvalidCopy(f"{name} must be whole numbers, not {value!r}") from None
    if number < 0 or number != value or number > 0xFFFFFFFF:
        raise InvalidCopy(f"{name} must be whole numbers from 0 to 4294967295, not {value!r}")
    return number
