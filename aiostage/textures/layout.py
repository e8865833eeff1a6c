"""What a container says about its texture, the same for all of them, and what any of them must keep to.

A header is trusted with nothing: sizes are computed from the format and the extents, compared with what the file
declares, and held against the length of the file, before a byte of content is read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from typing import NamedTuple

from ..data.formats import TexelBlock, texel_block
from ..errors import InvalidTexture, UnsupportedTexture
from .expand import Expansion
from .names import FileFormat


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


class Notes(NamedTuple):
    """What a file says beside its texels' places. None: nothing."""

    alpha: str | None = None
    transfer: str | None = None
    orientation: str | None = None
    swizzle: str | None = None
    generate_mips: bool = False
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class TextureInfo:
    """What a file holds, as its header says, and what is made of it. `str(info)` is one line of it."""

    container: str  # "KTX2", "KTX" or "DDS"
    format: str  # WebGPU's name, of the texture that is made
    dimension: str  # of a view of it: "2d", "2d-array", "cube", "cube-array" or "3d"
    size: tuple[int, int, int]  # of the texture: (width, height, layers or depth), as GPUDevice.create_texture takes it
    levels: tuple[Level, ...]  # mip levels, level 0 (the largest) first, of the size that the file gives
    supercompression: str = "none"  # "none", "zstd" or "zlib"
    file_format: str = ""
    """The format in the file, by the name that its specification has for it."""
    alpha: str | None = None
    """"straight", "premultiplied", "opaque" or "custom", if the file says so."""
    transfer: str | None = None
    """"linear", "srgb" or another transfer function of colours, if the file says so."""
    orientation: str | None = None
    """Where rows, columns and slices go: "rd" is right and down (KTX)."""
    swizzle: str | None = None
    """The channels to read for red, green, blue and alpha, or "0" and "1": "rrr1" is grey."""
    generate_mips: bool = False
    """The file asks its loader to make the other mip levels (KTX2: levelCount 0). They are not made here."""
    warnings: tuple[str, ...] = ()
    """What is unusual about the file, or about what becomes of it."""
    expansion: Expansion | None = field(default=None, repr=False, compare=False)

    @property
    def expanded_from(self) -> str | None:
        """The format in the file, if texels are not on the GPU as they are there: of another format, or with some added
        since WebGPU wants level 0 to be whole blocks. Those of the file are at the top left then: `levels[0].width` by
        `levels[0].height`."""
        if self.expansion is not None:
            return self.file_format
        return (
            None if self._is_whole else f"{self.file_format}, {self.levels[0].width} × {self.levels[0].height} texels"
        )

    @property
    def _is_whole(self) -> bool:
        return self.size[:2] == (self.levels[0].width, self.levels[0].height)

    def missing(self, number: int) -> tuple[int, int]:
        """(columns, rows) of blocks that this mip level has on the GPU, and not in the file."""
        block, level = texel_block(self.format), self.levels[number]
        width, height = (max(1, extent >> number) for extent in self.size[:2])
        return (
            -(-width // block.width) - -(-level.width // block.width),
            -(-height // block.height) - -(-level.height // block.height),
        )

    def is_stored_as_it_goes(self, number: int) -> bool:
        """Whether the file has this mip level byte for byte as the texture does."""
        return self.supercompression == "none" and self.expansion is None and self.missing(number) == (0, 0)

    @property
    def block(self) -> TexelBlock:
        """Of texels in the file."""
        return texel_block(self.format) if self.expansion is None else self.expansion.block

    @property
    def nbytes(self) -> int:
        """Bytes that the texture takes on the GPU, but for the GPU's own padding."""
        shape = Shape(self.format, *self.size[:2], self.size[2], self.size[2], len(self.levels), self.dimension)
        return sum(shape.level_bytes(number) for number in range(len(self.levels)))

    def with_format(self, srgb: bool | None, expand: bool) -> TextureInfo:
        """What is made of the file by someone who wants sRGB or not, and takes expanded texels or not.

        :raises UnsupportedTexture: this cannot be made.
        """
        if not expand and self.expansion is not None and self.expansion.as_it_is[0]:
            format, swizzle = self.expansion.as_it_is
            return replace(self, format=format, swizzle=swizzle, expansion=None).with_format(srgb, expand)
        if not expand and self.expansion is not None:
            raise UnsupportedTexture(
                f"{self.file_format} has no counterpart in WebGPU; with expand=True it becomes {self.format}"
            )
        if not expand and not self._is_whole:
            block, level = self.block, self.levels[0]
            raise UnsupportedTexture(
                f"WebGPU wants level 0 of {self.format} to be whole blocks of {block.width} × {block.height} texels, "
                f"which {level.width} × {level.height} is not: encode the image at a multiple of these, or expand it"
            )
        return self if srgb is None else replace(self, format=_as_srgb(self.format, srgb))

    def __str__(self) -> str:
        size = " × ".join(map(str, self.size[: 3 if self.size[2] > 1 else 2]))
        packed = "" if self.supercompression == "none" else f", {self.supercompression}"
        levels = f"{len(self.levels)} level{'s' * (len(self.levels) > 1)}"
        made = f" (from {self.expanded_from})" if self.expanded_from else ""
        return f"{self.container}: {self.dimension} {self.format}{made}, {size}, {levels}{packed}, {self.nbytes} bytes"


def check_views(format: str, view_formats: Iterable[str]) -> None:
    """:raises UnsupportedTexture: a texture of this format has no views of one of those (WebGPU, "texture view format
    compatible": they differ in "-srgb" alone)."""
    for other in view_formats:
        if other.removesuffix("-srgb") != format.removesuffix("-srgb"):
            raise UnsupportedTexture(f"views of {format} are of it or of its sRGB or linear form, not of {other}")


def _as_srgb(format: str, srgb: bool) -> str:
    linear = format.removesuffix("-srgb")
    if not srgb:
        return linear
    try:
        texel_block(linear + "-srgb")
    except ValueError:
        raise UnsupportedTexture(f"WebGPU has no sRGB form of {linear}") from None
    return linear + "-srgb"


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
    texel: TexelBlock | None = None  # in the file, if it is another one there

    def check(self) -> None:
        """:raises InvalidTexture: extents, faces or mip levels that no texture has."""
        if min(self.width, self.height, self.depth, self.layers, self.levels) < 1:
            raise InvalidTexture(
                f"a texture of {self.width} × {self.height} × {self.depth} texels, {self.layers} layers and "
                f"{self.levels} mip levels has nothing in it"
            )
        if self.levels > self.most_levels:
            raise InvalidTexture(
                f"{self.levels} mip levels are declared; {self.width} × {self.height} × {self.depth} texels have "
                f"{self.most_levels}"
            )
        if self.dimension.startswith("cube") and self.width != self.height:
            raise InvalidTexture(f"the faces of a cube map are square, not {self.width} × {self.height}")

    @property
    def most_levels(self) -> int:
        """Down to one texel."""
        return max(self.width, self.height, self.depth if self.dimension == "3d" else 1).bit_length()

    @property
    def size(self) -> tuple[int, int, int]:
        return self.width, self.height, self.depth if self.dimension == "3d" else self.layers

    @property
    def block(self) -> TexelBlock:
        """In the file."""
        return self.texel or texel_block(self.format)

    def level_size(self, level: int) -> tuple[int, int, int]:
        """Texels, and layers or slices, of one mip level: (width, height, images)."""
        images = max(1, self.depth >> level) if self.dimension == "3d" else self.layers
        return max(1, self.width >> level), max(1, self.height >> level), images

    def level_bytes(self, level: int) -> int:
        """Bytes of all images of one mip level: whole texel blocks, tightly packed."""
        width, height, images = self.level_size(level)
        return images * -(-height // self.block.height) * -(-width // self.block.width) * self.block.nbytes


def make_info(
    container: str,
    format: FileFormat,
    shape: Shape,
    levels: Sequence[Level],
    notes: Notes,
    expansion: Expansion | None,
    supercompression: str = "none",
) -> TextureInfo:
    """What is made of such a file, unless somebody wants it otherwise."""
    block = texel_block(format.format)
    width, height, images = shape.size
    return TextureInfo(
        container,
        format.format,
        shape.dimension,
        (-(-width // block.width) * block.width, -(-height // block.height) * block.height, images),
        tuple(levels),
        supercompression,
        format.name,
        alpha=format.alpha or notes.alpha,
        transfer=notes.transfer,
        orientation=notes.orientation,
        swizzle=notes.swizzle or format.swizzle or None,
        generate_mips=notes.generate_mips,
        warnings=(*notes.warnings, *([format.warning] if format.warning else [])),
        expansion=expansion,
    )


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


def check_nothing_is_left(end: int, length: int, what: str) -> None:
    """:raises InvalidTexture: there is content that no level has: something in the header was misunderstood."""
    if length > end:
        raise InvalidTexture(f"{what} ends at byte {end}, but {length - end} bytes more follow: no part of it has them")
