"""Streams into pygfx's textures and buffers.

pygfx uploads what is marked at the next draw, on the loop. A stream uploads off the loop, and keeps three promises that
take some knowledge of pygfx:

1. What it writes is seen as a whole: by `atomic=True` of the ring; where there are mipmaps, in one submit with them.
2. What pygfx had still to upload comes before, so that it does not come on top later.
3. The data that a resource has on the CPU are those on the GPU, so that whatever marks it uploads the same again.
"""

from __future__ import annotations

import os
from collections.abc import Awaitable, Callable, Sequence
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar, overload
from weakref import WeakValueDictionary

import anyio
import numpy as np
import pygfx
import wgpu

from ..budget import MiB
from ..data.arrays import as_array, is_lazy
from ..data.formats import numpy_layout
from ..errors import InvalidCopy, WrongDevice
from ..threads import run_now, run_sync
from ..typing import Data
from . import private, regions

if TYPE_CHECKING:
    from ..fences import Fence
    from ..ring import StagingRing

T = TypeVar("T")
Array = regions.Array
_Mark = Callable[[], object]

_AT_ONCE = 64 * 1024
"""Bytes that are copied on the loop: a thread would cost more."""

_MOST_THREADS, _A_THREAD = 4, 2 * MiB
"""How many copy to the data on the CPU at a time, and how much is worth one."""

_streams: WeakValueDictionary[tuple[int, int], TextureStream | BufferStream] = WeakValueDictionary()
"""By the ids of ring and resource, which live as long as their stream."""


@overload
async def attach(ring: StagingRing, resource: pygfx.Texture) -> TextureStream: ...


@overload
async def attach(  # type: ignore[overload-cannot-match] # mypy is not shown pygfx's types
    ring: StagingRing, resource: pygfx.Buffer
) -> BufferStream: ...


async def attach(ring: StagingRing, resource: Any) -> Any:
    """A stream into a `gfx.Texture` or `gfx.Buffer`, before or after it was first drawn.

    The ring is one of pygfx's own device, `pygfx.renderers.wgpu.get_shared().device`. Attached again, a resource has
    the same stream.

    A resource that was made without data, and drawn, cannot be written to before it is made anew on the GPU, which is
    done here; what a shader of the program's own wrote to it is lost then, unless its usage has COPY_SRC.

    :returns: a `TextureStream` or `BufferStream`.
    :raises UnsupportedVersion: of pygfx.
    :raises WrongDevice: the ring is another device's.
    :raises TypeError: it is no texture and no buffer.
    :raises ValueError: its data on the CPU are read-only.
    :raises RingClosed, DeviceLost, WrongLoop:
    """
    private.check_version()
    if not isinstance(resource, pygfx.Texture | pygfx.Buffer):
        raise TypeError(f"only a gfx.Texture or gfx.Buffer can be attached, not a {type(resource).__name__}")
    ring.check()
    if ring.device is not private.device():
        raise WrongDevice("the ring is not on pygfx's device: open it on pygfx.renderers.wgpu.get_shared().device")
    if resource.view is not None and not resource.view.flags.writeable:
        raise ValueError("its data are read-only, and would not follow: make it with a copy, or with size and format")
    stream = _streams.get((id(ring), id(resource)))
    if stream is None:
        private.prepare(resource)
        kind = TextureStream if isinstance(resource, pygfx.Texture) else BufferStream
        stream = _streams[id(ring), id(resource)] = kind(ring, resource)
    return stream


class _Stream:
    """What both kinds have."""

    def __init__(self, ring: StagingRing, resource: Any) -> None:
        self.ring = ring
        self.resource = resource
        self._turn = anyio.Lock()

    async def _write(self, send: Callable[[], Awaitable[Fence]]) -> Fence:
        """What the GPU alone has."""
        private.flush(self.resource)
        fence = await send()
        private.touch(self.resource)
        return fence

    async def _write_both(self, send: Callable[[], Awaitable[Fence]], where: Any, array: Array, mark: _Mark) -> Fence:
        """What the CPU has as well, `where` in the view of its data.

        The CPU's follow: had they gone first, a draw might have shown some of them, and a write that failed had changed
        them. :param mark: has pygfx upload that part again.
        """
        resource = self.resource
        async with self._turn:
            private.flush(resource)
            with private.held(resource):
                try:
                    fence = await send()
                    await _copy(resource.view[where], array)
                except BaseException:  # which may come when the GPU has it already
                    mark()
                    raise
            private.touch(resource)
        return fence

    def __repr__(self) -> str:
        return f"<{type(self).__name__} into {self.resource!r}>"


class TextureStream(_Stream):
    """Writes to a `gfx.Texture`. Made by `attach`."""

    _twin: Any = None
    """Of a texture with mipmaps: what it will have, before anybody may see it."""

    async def write(self, array: Data, offset: Sequence[int] = (0, 0, 0), size: Sequence[int] | None = None) -> Fence:
        """Upload texels. The next draw after this has returned shows all of them, any draw before it all or none.

        Mipmaps follow in the same submit. If the texture has data on the CPU, those are changed as well, before this
        returns. Writes to one texture are made in the order of their calls.

        :param array: (depth, height, width, channels), without the axes that are not needed, of the texture's own type
            in either byte order; three channels if the texture was made from RGB. For a texture without data on the
            CPU, whatever `StagingRing.write_texture` takes.
        :param offset: (x, y, z) of the first texel, as in `gfx.Texture.update_range`.
        :param size: (width, height, depth) in texels; by default what the array's shape says.
        :returns: a fence that completes when the GPU has them.
        :raises InvalidCopy: they do not fit, or are of another type; nothing was changed.
        :raises StagingError, TypeError: as `StagingRing.write_texture`; none of it will be seen.
        """
        resource, texture = self.resource, private.wgpu_object(self.resource)
        offset = regions.triple(offset, "offset", 0)
        alpha, has_mipmaps = private.emulated_alpha(resource), texture.mip_level_count > 1
        if resource.view is None and alpha is None and not has_mipmaps:
            size = None if size is None else regions.triple(size, "size", 1)
            return await self._write(partial(self._send, texture, offset, size, array))
        array = await _as_array(array)
        kept = _layout_of(texture, alpha) if resource.view is None else resource.view
        region, array = regions.texels(array, kept, offset, size)
        send = partial(self._send_whole, texture, region, array, alpha)
        if resource.view is not None:
            return await self._write_both(send, region.window, array, partial(resource.update_range, *region))
        async with self._turn:
            return await self._write(send)

    async def _send_whole(self, texture: Any, region: regions.Region, array: Array, alpha: float | None) -> Fence:
        """As pygfx would, channels and mipmaps included."""
        if alpha is not None:
            array = await _at_once_or_in_a_thread(array.nbytes, regions.with_alpha, array, alpha)
        elif array.ndim == 3:
            array = array[..., np.newaxis]
        if texture.dimension == "1d":
            array = array[0, 0]
        if texture.mip_level_count == 1:
            return await self._send(texture, region.offset, region.size, array)
        if self._twin is None:
            self._twin = _twin_of(texture, self.ring.device)
        await self._send(self._twin, region.offset, region.size, array, atomic=False)
        source, destination = ({"texture": each, "origin": region.offset} for each in (self._twin, texture))
        encoder = self.ring.device.create_command_encoder()
        encoder.copy_texture_to_texture(source, destination, region.size)
        private.record_mipmaps(encoder, self.resource, range(texture.size[2])[region.window[0]])
        return await self.ring.submit([encoder.finish()])

    async def _send(self, texture: Any, offset: Any, size: Any, array: Any, atomic: bool = True) -> Fence:
        return await self.ring.write_texture({"texture": texture, "origin": offset}, array, size=size, atomic=atomic)


class BufferStream(_Stream):
    """Writes to a `gfx.Buffer`. Made by `attach`."""

    async def write(self, array: Data, offset: int = 0, size: int | None = None) -> Fence:
        """Upload items. The next draw after this has returned shows all of them, any draw before it all or none.

        If the buffer has data on the CPU, those are changed as well, before this returns, and with them what pygfx
        computes from them, such as bounding boxes. Writes to one buffer are made in the order of their calls.

        :param array: items of the buffer's own type, in either byte order. For a buffer without data on the CPU, all
            that `StagingRing.write_buffer` takes.
        :param offset: of the first item, in items, as in `gfx.Buffer.update_range`.
        :param size: how many items; by default all of the array.
        :returns: a fence that completes when the GPU has them.
        :raises InvalidCopy: they do not fit, or are of another type; nothing was changed.
        :raises StagingError, TypeError: as `StagingRing.write_buffer`; none of it will be seen.
        """
        resource, buffer = self.resource, private.wgpu_object(self.resource)
        offset, size = regions.count(offset, "offset"), None if size is None else regions.count(size, "size")
        if resource.view is None:
            if isinstance(array, np.ndarray) and not regions.is_little(array):
                array = await _at_once_or_in_a_thread(array.nbytes, regions.little, array)
            nbytes = None if size is None else size * resource.itemsize
            return await self._write(partial(self._send, buffer, offset * resource.itemsize, array, nbytes))
        part, array = regions.items(await _as_array(array), resource.view, offset, size)
        send = partial(self._send_whole, buffer, part, array)
        return await self._write_both(send, part, array, partial(resource.update_range, part.start, len(array)))

    async def _send_whole(self, buffer: Any, part: slice, array: Array) -> Fence:
        """As pygfx would, in the GPU's byte order."""
        start, array = regions.aligned(array, self.resource.view, part)
        if not regions.is_little(array):
            array = await _at_once_or_in_a_thread(array.nbytes, regions.little, array)
        return await self._send(buffer, start, array, None)

    async def _send(self, buffer: Any, start: int, array: Any, nbytes: int | None) -> Fence:
        return await self.ring.write_buffer(buffer, start, array, size=nbytes, atomic=True)


async def _as_array(data: Any) -> Array:
    """:raises TypeError: it is none."""
    return await run_sync(as_array, data) if is_lazy(data) else as_array(data)


async def _copy(to: Array, array: Array) -> None:
    """`np.copyto`, by threads that share it. They are waited for, whatever cancels the task."""
    parts = min(_MOST_THREADS, os.cpu_count() or 1, array.nbytes // _A_THREAD)
    if parts < 2:
        await _at_once_or_in_a_thread(array.nbytes, np.copyto, to, array)
        return
    axis = next(axis for axis, length in enumerate(array.shape) if length > 1)
    shares = zip(np.array_split(to, parts, axis), np.array_split(array, parts, axis), strict=True)
    async with anyio.create_task_group() as threads:
        for share in shares:
            threads.start_soon(run_now, np.copyto, *share)


async def _at_once_or_in_a_thread(nbytes: int, function: Callable[..., T], *arguments: Any) -> T:
    """What copies so many bytes. It is waited for, whatever cancels the task."""
    return function(*arguments) if nbytes <= _AT_ONCE else await run_now(function, *arguments)


def _layout_of(texture: Any, alpha: float | None) -> regions.Layout:
    """What data on the CPU would be like. :raises InvalidCopy: compressed, or depth."""
    known = numpy_layout(texture.format)
    if known is None:
        raise InvalidCopy(f"{texture.format} has no mipmaps that could be made")
    dtype, channels = known
    return regions.Layout(dtype, (*texture.size[::-1], channels if alpha is None else 3))


def _twin_of(texture: Any, device: Any) -> Any:
    """A texture for what is to be copied to the finest level of one."""
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
    return device.create_texture(size=texture.size, dimension=texture.dimension, format=texture.format, usage=usage)
