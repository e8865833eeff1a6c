"""What a container says about its texture, the same for KTX2 and DDS, and what any of them must keep to.

A header is trusted with nothing: sizes are computed from the format and the extents, compared with what the file
declares, and held against the length of the file, before a byte of content is read.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import NamedTuple

from ..data.formats import TexelBlock, texel_block
from ..errors import InvalidTexture, UnsupportedTexture


class Extent(NamedTuple):
    """A run of bytes in the file."""

    offset: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Level:
    """One mip level, and where the file has it: `count` runs of `stored` bytes, `stride` apart, from `offset`."""

    width: int  # texels, as is height
    height: int
    images: int  # layers, cube faces × cubes, or slices of a 3D texture
    nbytes: int  # of all images, unpacked and without any padding
    offset: int
    stored: int
    count: int = 1
    stride: int = 0

    @property
    def extents(self) -> Iterator[Extent]:
        """The runs of bytes, in the order that they are concatenated in."""
        return (Extent(self.offset + i * self.stride, self.stored) for i in range(self.count))

    @property
    def end(self) -> int:
        """Offset in the file past the last byte."""
        return self.offset + (self.count - 1) * self.stride + self.stored


@dataclass(frozen=True, slots=True)
class TextureInfo:
    """What a file holds, as its header says. `str(info)` is one line of it."""

    container: str  # "KTX2" or "DDS"
    format: str  # WebGPU's name
    dimension: str  # of a view of it: "2d", "2d-array", "cube", "cube-array" or "3d"
    size: tuple[int, int, int]  # of level 0: (width, height, layers or depth), as GPUDevice.create_texture takes it
    levels: tuple[Level, ...]  # mip levels, level 0 (the largest) first
    supercompression: str  # "none", "zstd" or "zlib"

    @property
    def nbytes(self) -> int:
        """Bytes of all levels, unpacked: what the texture takes on the GPU, but for the GPU's own padding."""
        return sum(level.nbytes for level in self.levels)

    def __str__(self) -> str:
        size = " × ".join(map(str, self.size[: 3 if self.size[2] > 1 else 2]))
        packed = "" if self.supercompression == "none" else f", {self.supercompression}"
        levels = f"{len(self.levels)} level{'s' * (len(self.levels) > 1)}"
        return f"{self.container}: {self.dimension} {self.format}, {size}, {levels}{packed}, {self.nbytes} bytes"


@dataclass(frozen=True, slots=True)
class Shape:
    """Extents as a header has them: at least 1 each; `layers` counts each face of a cube."""

    format: str
    width: int
    height: int
    depth: int
    layers: int
    levels: int
    dimension: str

    def check(self) -> None:
        """:raises InvalidTexture: extents, faces or mip levels that no texture has."""
        if min(self.width, self.height, self.depth, self.layers, self.levels) < 1:
            raise InvalidTexture(
                f"a texture of {self.width} × {self.height} × {self.depth} texels, {self.layers} layers and "
                f"{self.levels} mip levels has nothing in it"
            )
        if self.levels > max(self.width, self.height, self.depth).bit_length():
            raise InvalidTexture(
                f"{self.levels} mip levels are declared; {self.width} × {self.height} × {self.depth} texels have "
                f"{max(self.width, self.height, self.depth).bit_length()}"
            )
        if self.dimension.startswith("cube") and self.width != self.height:
            raise InvalidTexture(f"the faces of a cube map are square, not {self.width} × {self.height}")

    @property
    def size(self) -> tuple[int, int, int]:
        return self.width, self.height, self.depth if self.dimension == "3d" else self.layers

    @property
    def block(self) -> TexelBlock:
        return texel_block(self.format)

    def level_size(self, level: int) -> tuple[int, int, int]:
        """Texels, and layers or slices, of one mip level: (width, height, images)."""
        images = max(1, self.depth >> level) if self.dimension == "3d" else self.layers
        return max(1, self.width >> level), max(1, self.height >> level), images

    def level_bytes(self, level: int) -> int:
        """Bytes of all images of one mip level: whole texel blocks, tightly packed."""
        width, height, images = self.level_size(level)
        return images * -(-height // self.block.height) * -(-width // self.block.width) * self.block.nbytes


def dimension_name(cube: bool, array: bool, volume: bool) -> str:
    """WebGPU's name of the view of a whole texture."""
    if volume:
        return "3d"
    return ("cube" if cube else "2d") + ("-array" if array else "")


def check_bounds(levels: tuple[Level, ...], length: int) -> None:
    """:raises InvalidTexture: a level lies past the end of the file."""
    for number, level in enumerate(levels):
        if level.end > length:
            raise InvalidTexture(
                f"mip level {number} is declared to end at byte {level.end}, but the file ends at {length}"
            )


def unsupported(what: str, format: object) -> UnsupportedTexture:
    return UnsupportedTexture(f"{what} {format} has no counterpart in WebGPU that this reader knows")
