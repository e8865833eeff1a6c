"""Texels that WebGPU has no format for, made into those of one that it has. Blocking: for worker threads.

Each expansion goes from the bytes of a file straight into staging memory, a band of rows at a time.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from functools import lru_cache
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from ..data.formats import TexelBlock

Bytes = npt.NDArray[np.uint8]
_BAND = 1 << 20  # bytes of texels that are made at a time


class Expansion(NamedTuple):
    """How texels of so many bytes become others."""

    nbytes: int
    """Of a texel in the file."""
    fill: Callable[[Bytes, Bytes], None]
    """(texels of shape (…, nbytes), bytes of WebGPU's texels to write, of shape (…, n))."""
    as_it_is: tuple[str, str] = ("", "")
    """A format whose texels are the same bytes, with the swizzle that makes the same of them, if there is one."""

    @property
    def block(self) -> TexelBlock:
        """In the file."""
        return TexelBlock(1, 1, self.nbytes)


def expanded(expansion: Expansion, texels: Bytes, width: int) -> Bytes:
    """Texels of `width` bytes that are made of these, of shape (images, rows, columns, nbytes)."""
    out = np.empty((*texels.shape[:3], width), np.uint8)
    expansion.fill(texels, out)
    return out


def bands(texels: Bytes) -> Iterator[tuple[int, int, Bytes]]:
    """(image, row, texels) of parts in turn that fit in a processor's cache: rows of one image, or whole images."""
    images, rows, columns, nbytes = texels.shape
    some_rows = max(1, _BAND // (columns * nbytes))
    if some_rows >= rows:
        some = some_rows // rows
        yield from ((z, 0, texels[z : z + some]) for z in range(0, images, some))
        return
    for z in range(images):
        yield from ((z, y, texels[z : z + 1, y : y + some_rows]) for y in range(0, rows, some_rows))


# -- channels of whole bytes --


def _channels(width: int, sources: str, one: bytes, nbytes: int = 0) -> Expansion:
    """WebGPU's channels in order, each by its letter in the file's, "rgba" there too, or "1"; `width` bytes each."""
    count = nbytes or width * (1 + max("rgba".index(letter) for letter in sources if letter != "1"))

    def fill(texels: Bytes, out: Bytes) -> None:
        for channel, letter in enumerate(sources):
            to = out[..., channel * width : (channel + 1) * width]
            at = 0 if letter == "1" else "rgba".index(letter) * width
            to[...] = np.frombuffer(one, np.uint8) if letter == "1" else texels[..., at : at + width]

    return Expansion(count, fill)


_ONE = {
    "8unorm": b"\xff", "8snorm": b"\x7f", "8uint": b"\1", "8sint": b"\1",
    "16unorm": b"\xff\xff", "16snorm": b"\xff\x7f", "16uint": b"\1\0", "16sint": b"\1\0", "16float": b"\0\x3c",
    "32uint": b"\1\0\0\0", "32sint": b"\1\0\0\0", "32float": b"\0\0\x80\x3f",
}  # fmt: skip


def _of_channels() -> Iterator[tuple[str, Expansion]]:
    for kind, one in _ONE.items():
        width = len(one)
        yield f"rgb{kind}", _channels(width, "rgb1", one)
        if width == 1:
            yield f"bgr{kind}", _channels(width, "bgr1", one)
    yield "rgbx8", _channels(1, "rgb1", b"\xff", nbytes=4)
    yield "l8", _channels(1, "rrr1", b"\xff")._replace(as_it_is=("r8unorm", "rrr1"))
    for name, count in (("r8unorm", 1), ("rg8unorm", 2)):
        yield name, _with_zeros(count)


def _with_zeros(count: int) -> Expansion:
    def fill(texels: Bytes, out: Bytes) -> None:
        out[..., :count] = texels
        out[..., count:3] = 0
        out[..., 3] = 255

    return Expansion(count, fill)


# -- fields of bits --


def of_masks(bits: int, red: int, green: int, blue: int, alpha: int) -> Expansion | None:
    """Texels with these masks as rgba8unorm. A channel without a mask is 0, alpha 255. None: a channel has more than
    eight bits, or a mask that has gaps."""
    masks = red, green, blue, alpha
    if bits not in (8, 16, 24, 32) or not any(masks) or max(masks) >> bits:
        return None
    fields = [_field(mask) for mask in masks]
    if any(width > 8 or mask != ((1 << width) - 1) << low for mask, (low, width) in zip(masks, fields, strict=True)):
        return None
    nbytes = bits // 8

    def fill(texels: Bytes, out: Bytes) -> None:
        if all(width in (0, 8) and low % 8 == 0 for low, width in fields):
            for channel, (low, width) in enumerate(fields):
                out[..., channel] = texels[..., low // 8] if width else 255 * (channel == 3)
            return
        whole = texels[..., 0].astype(np.uint32)
        for byte in range(1, nbytes):
            whole |= texels[..., byte].astype(np.uint32) << (8 * byte)
        for channel, (low, width) in enumerate(fields):
            out[..., channel] = _unorm8(width)[(whole >> low) & ((1 << width) - 1)] if width else 255 * (channel == 3)

    return Expansion(nbytes, fill)


def _field(mask: int) -> tuple[int, int]:
    """(lowest bit, bits) of a mask without gaps."""
    low = (mask & -mask).bit_length() - 1 if mask else 0
    return low, (mask >> low).bit_length()


@lru_cache
def _unorm8(width: int) -> Any:
    """For each value of so many bits, that of eight bits which is closest to the same fraction of 1."""
    most = (1 << width) - 1
    return ((np.arange(most + 1) * 255 * 2 + most) // (2 * most)).astype(np.uint8)


def _packed(name: str) -> Expansion:
    """Vulkan's name of texels of 8 or 16 bits: channels from the highest bit on."""
    fields = [(letter, int(width)) for letter, width in re.findall(r"([rgba])(\d)", name)]
    low = bits = sum(width for _, width in fields)
    masks = dict.fromkeys("rgba", 0)
    for letter, width in fields:
        low -= width
        masks[letter] = ((1 << width) - 1) << low
    found = of_masks(bits, *masks.values())
    assert found is not None
    return found


def _swap_10(texels: Bytes, out: Bytes) -> None:
    """Red and blue of A2R10G10B10."""
    whole = np.ascontiguousarray(texels).view("<u4")[..., 0]
    swapped = (whole & 0xC00FFC00) | (whole & 0x3FF) << 20 | (whole >> 20) & 0x3FF
    out[...] = np.ascontiguousarray(swapped[..., np.newaxis].astype("<u4")).view(np.uint8)


_PACKED = "r4g4 r4g4b4a4 b4g4r4a4 r5g6b5 b5g6r5 r5g5b5a1 b5g5r5a1 a1r5g5b5 a4r4g4b4 a4b4g4r4 a1b5g5r5"

EXPANSIONS: dict[str, Expansion] = {
    **dict(_of_channels()),
    **{name: _packed(name) for name in _PACKED.split()},
    "bgr10a2": Expansion(4, _swap_10),
}
"""By the names that names.py has for them."""
