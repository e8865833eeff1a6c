"""From a file to a GPUTexture, level by level, coarsest first."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import anyio
import numpy as np
import wgpu

from ..data.files import FileRange
from ..data.formats import required_feature, texel_block
from ..errors import InvalidTexture, UnsupportedTexture, afresh
from ..fences import Fence
from ..gpu.device import connect
from ..threads import run_sync
from ..typing import TextureDestination, TextureFile
from ..waiting import wait_out
from . import basis, dds, ktx2
from .child import Child
from .expand import bands, expanded
from .layout import Level, TextureInfo, check_views
from .names import FORMATS
from .source import Source
from .unpack import check_unpackable, read_level

if TYPE_CHECKING:
    from ..ring import StagingRing

_KTX1 = b"\xabKTX 11\xbb\r\n\x1a\n"

_WORTH_A_READ = 64 * 1024
"""Bytes in a row in the file that threads of the carrier read; fewer are less work for Python."""

# GPUTextureUsage.COPY_DST and TEXTURE_BINDING (WebGPU specification).
_COPY_DST, _TEXTURE_BINDING = 0x2, 0x4


def inspect(
    source: TextureFile, *, srgb: bool | None = None, view_formats: Sequence[str] = (), expand: bool = True
) -> TextureInfo:
    """What a KTX2 or DDS file holds, and what `open` would make of it. Blocking; reads the header only.

    :param source: as for `open`, and so are the others.
    :raises InvalidTexture: neither of the two, or damaged.
    :raises UnsupportedTexture: a texture that WebGPU has no form of, or one that needs pyktx.
    :raises OSError: the file cannot be read.
    """
    file = Source(source)
    try:
        info = _read(file).with_format(srgb, expand)
        check_views(info.format, view_formats)
        check_unpackable(file, info)
        return info
    finally:
        file.close()


def support(device: wgpu.GPUDevice | wgpu.GPUAdapter) -> tuple[str, ...]:
    """The texture formats, by WebGPU's names, that can be read from a file and sampled on this device.

    :param device: a GPUDevice. A GPUAdapter gives what a device would take that requests all the adapter's features.
    """
    return tuple(name for name in FORMATS if required_feature(name) in (None, *device.features))


def open(
    ring: StagingRing,
    source: TextureFile,
    *,
    usage: int = _TEXTURE_BINDING,
    label: str = "",
    srgb: bool | None = None,
    view_formats: Sequence[str] = (),
    expand: bool = True,
) -> TextureStream:
    """A texture whose levels arrive one by one: `async with open(ring, path) as stream:`, then iterate over it.

    :param source: a path, a file that was opened for bytes, or the file's bytes in anything with the buffer protocol
        (KTX2 or DDS).
    :param usage: of the GPUTexture; COPY_DST is added.
    :param srgb: whether the texture is of an sRGB format, for colours that the file does not say this of (DDS without a
        DX10 header never does), or of a linear one; None: as the file says.
    :param view_formats: other formats that views of the texture may have, as GPUDevice.create_texture takes them. What
        wgpu-py 0.32 takes is none: UnsupportedTexture.
    :param expand: make texels of a format that WebGPU has out of those that it has none for, and whole blocks where
        level 0 is none. `stream.info.expanded_from` tells. False: such files are refused.

    Entering the block reads the header and creates the texture.

    What comes out of that leaves nothing created and the ring untouched:

    :raises InvalidTexture: damage.
    :raises UnsupportedTexture: what WebGPU, the device or this installation cannot take.
    :raises OutOfMemory: the device has no memory for it.
    :raises OSError: the file cannot be read.
    """
    return TextureStream(ring, source, usage, label, srgb, view_formats, expand)


async def load(
    ring: StagingRing,
    source: TextureFile,
    *,
    usage: int = _TEXTURE_BINDING,
    label: str = "",
    srgb: bool | None = None,
    view_formats: Sequence[str] = (),
    expand: bool = True,
    on_level: Callable[[TextureStream], object] | None = None,
) -> TextureStream:
    """Upload a whole texture, coarsest level first; `on_level(stream)` is called after each. Otherwise like `open`.

    On return every level has been submitted: work submitted later sees it, and `await stream.fence` waits for it. If
    that fails, or is cancelled, the texture is destroyed.
    """
    made = open(ring, source, usage=usage, label=label, srgb=srgb, view_formats=view_formats, expand=expand)
    async with made as stream:
        try:
            async for _ in stream:
                if on_level is not None:
                    on_level(stream)
        except BaseException:
            stream.texture.destroy()
            raise
    return stream


class TextureStream:
    """A GPUTexture and what is there of it; made by `open` and `load`. Iterating uploads one level after the other.

    What was uploaded stays usable after the block. Several tasks may iterate: each level is uploaded once.
    """

    info: TextureInfo
    texture: wgpu.GPUTexture
    """The GPUTexture. Sample it through `view`: levels that are still missing hold zeros."""

    fence: Fence | None = None
    """Completes when the GPU has the last level that was uploaded."""

    def __init__(
        self,
        ring: StagingRing,
        source: TextureFile,
        usage: int,
        label: str,
        srgb: bool | None,
        view_formats: Sequence[str],
        expand: bool,
    ) -> None:
        self._ring = ring
        self._source = source
        self._view_formats = list(view_formats)
        self._descriptor = {"label": label, "usage": usage | _COPY_DST, "view_formats": self._view_formats}
        self._srgb, self._expand = srgb, expand
        self._file: Source | None = None  # open, from entering the block to leaving it
        self._turn = anyio.Lock()
        self._error: Exception | None = None
        self._arrived: list[anyio.Event] = []
        self.base_level = 0
        """The finest level that is there; `len(info.levels)` before the first."""

    async def __aenter__(self) -> TextureStream:
        self._ring.check()
        try:
            child = Child()  # of a file that needs one; a cancellation does not wait for it
            await run_sync(self._open, child, stop=child.stop)
            check_fits(self.info, self._ring.device)
            self.texture = connect(self._ring.device).create_texture(
                size=self.info.size,
                dimension="3d" if self.info.dimension == "3d" else "2d",
                format=self.info.format,
                mip_level_count=len(self.info.levels),
                **self._descriptor,
            )
        except BaseException as error:
            if self._file is not None:
                self._file.close()
            if isinstance(error, NotImplementedError):  # wgpu-py 0.32 has no view_formats
                raise UnsupportedTexture(f"the installed wgpu cannot make this texture: {error}") from error
            raise
        self.base_level = len(self.info.levels)
        self._arrived = [anyio.Event() for _ in self.info.levels]
        return self

    def _open(self, child: Child) -> None:
        # It keeps the file itself: a task that is cancelled meanwhile gets no result, but has the file to close.
        self._file, info = open_source(self._source, frozenset(self._ring.device.features), child)
        self.info = info.with_format(self._srgb, self._expand)
        check_views(self.info.format, self._view_formats)
        check_unpackable(self._file, self.info)

    async def __aexit__(self, *exc_info: object) -> None:
        if self.base_level:
            self._fail(anyio.ClosedResourceError(f"the stream was closed before mip level {self.base_level - 1}"))
        with anyio.CancelScope(shield=True):
            await wait_out(lambda: self._file is None, self._close)

    async def _close(self) -> None:
        async with self._turn:  # a task that reads the file right now does so to the end
            if self._file is not None:
                self._file.close()
                self._file = None

    def __aiter__(self) -> TextureStream:
        return self

    async def __anext__(self) -> int:
        """Upload the next finer level; returns its number.

        :raises InvalidTexture: the level is damaged; coarser ones stay usable.
        """
        async with self._turn:
            if self.base_level == 0:
                raise StopAsyncIteration
            if self._error is not None:
                raise afresh(self._error)
            try:
                await self._upload(self.base_level - 1)
            except Exception as error:
                self._fail(error)
                if self.base_level == len(self.info.levels):  # there is nothing to draw
                    self.texture.destroy()
                raise
            self.base_level -= 1
            self._arrived[self.base_level].set()
            return self.base_level

    def view(self) -> wgpu.GPUTextureView:
        """A GPUTextureView of the levels that are there: "2d", "2d-array", "cube", "cube-array" or "3d".

        :raises anyio.WouldBlock: none is there yet.
        """
        count = len(self.info.levels) - self.base_level
        if not count:
            raise anyio.WouldBlock
        return self.texture.create_view(
            dimension=self.info.dimension, base_mip_level=self.base_level, mip_level_count=count
        )

    async def wait_level(self, level: int) -> None:
        """Wait until this mip level, and with it each coarser one, is there; another task iterates meanwhile.

        :raises IndexError: the texture has no such level.
        :raises anyio.ClosedResourceError: the stream was closed before. Whatever ended the upload is raised as well.
        """
        if not 0 <= level < len(self._arrived):
            raise IndexError(f"mip level {level} of a texture that has {len(self._arrived)}")
        await self._arrived[level].wait()
        if level < self.base_level and self._error is not None:
            raise afresh(self._error)

    async def _upload(self, number: int) -> None:
        level, block = self.info.levels[number], self.info.block
        shape = -(-level.height // block.height), -(-level.width // block.width), block.nbytes
        assert self._file is not None  # or there was an error to raise
        if self.info.is_stored_as_it_goes(number) and level.stored >= _WORTH_A_READ:
            ranges = await run_sync(_ranges_of, self._file, level, shape)
            if ranges is not None:
                await self._upload_ranges(number, ranges)
                return
        content = await run_sync(read_level, self._file, self.info, number)
        blocks = np.frombuffer(content, np.uint8).reshape(level.images, *shape)
        destination: TextureDestination = {"texture": self.texture, "mip_level": number}
        if self.info.expansion is not None:
            width = texel_block(self.info.format).nbytes
            for z, y, band in bands(blocks):
                texels = await run_sync(expanded, self.info.expansion, band, width)
                self.fence = await self._ring.write_texture({**destination, "origin": (0, y, z)}, texels)
            return
        columns, rows = self.info.missing(number)
        if columns or rows:  # the last ones again
            blocks = await run_sync(np.pad, blocks, ((0, 0), (0, rows), (0, columns), (0, 0)), "edge")
        self.fence = await self._ring.write_texture(destination, blocks)

    async def _upload_ranges(self, number: int, ranges: list[FileRange]) -> None:
        """Straight from the file; each has as many images."""
        for index, some in enumerate(ranges):
            origin = 0, 0, index * some.shape[0]
            try:
                place: TextureDestination = {"texture": self.texture, "mip_level": number, "origin": origin}
                self.fence = await self._ring.write_texture(place, some)
            except EOFError:
                raise InvalidTexture(f"the file has been cut off in mip level {number}") from None

    def _fail(self, error: Exception) -> None:
        self._error = self._error or afresh(error)
        for event in self._arrived:
            event.set()


def _ranges_of(file: Source, level: Level, shape: tuple[int, ...]) -> list[FileRange] | None:
    ranges = [file.range(extent, (level.images // level.count, *shape)) for extent in level.extents]
    return [some for some in ranges if some is not None] or None


def check_fits(info: TextureInfo, device: Any) -> None:
    """:raises UnsupportedTexture: the device cannot have a texture like this, or its file cannot be unpacked here."""
    feature, block = required_feature(info.format), texel_block(info.format)
    if feature is not None and feature not in device.features:
        raise UnsupportedTexture(f"{info.format} needs a device with the feature {feature!r}, which this one lacks")
    sliced = f"{feature}-sliced-3d"
    if info.dimension == "3d" and block.width > 1 and sliced not in device.features:
        raise UnsupportedTexture(f"a 3D texture of {info.format} needs a device with the feature {sliced!r}")
    width, height, images = info.size
    kind = "3d" if info.dimension == "3d" else "2d"
    extent, limit = f"max-texture-dimension-{kind}", device.limits[f"max-texture-dimension-{kind}"]
    if max(width, height, images if kind == "3d" else 1) > limit:
        raise UnsupportedTexture(f"{' × '.join(map(str, info.size))} texels exceed the device's {extent} of {limit}")
    if kind == "2d" and images > device.limits["max-texture-array-layers"]:
        limit = device.limits["max-texture-array-layers"]
        raise UnsupportedTexture(f"{images} layers exceed the device's max-texture-array-layers of {limit}")


def open_source(source: Any, features: frozenset[str], child: Child | None = None) -> tuple[Source, TextureInfo]:
    """A file to be closed, transcoded for a device with these features if need be, and what it holds. Blocking."""
    file = Source(source)
    try:
        try:
            return file, _read(file)
        except ktx2.BasisPayload as found:
            if not basis.is_available():
                raise
            payload = found.payload
        transcoded = basis.transcode(file, features, child)
        file.close()
        return transcoded, replace(_read(transcoded), file_format=f"Basis Universal ({payload})")
    except BaseException:
        file.close()
        raise


def _read(source: Source) -> TextureInfo:
    start = bytes(source.read(0, min(source.size, len(ktx2.IDENTIFIER)), "the identifier"))
    if start == ktx2.IDENTIFIER:
        return ktx2.read(source)
    if start[:4] == dds.IDENTIFIER:
        return dds.read(source)
    if start == _KTX1:
        raise UnsupportedTexture("a KTX 1 file: ktx2ktx2, of the Khronos KTX-Software, makes a KTX2 file of it")
    raise InvalidTexture(f"neither a KTX2 nor a DDS file: it starts with {start!r}")
