"""The C functions that the carrier calls, in Python, for simulated GPUs: `FUNCTIONS` has their addresses.

They take the interpreter's lock, of course. What they raise is printed and lost, so that a `SimulatedGpu` notes what is
wrong in its `violations` too.
"""

from __future__ import annotations

import ctypes
import itertools
from collections.abc import Callable
from ctypes import CFUNCTYPE, POINTER, Structure, c_int32, c_size_t, c_uint32, c_uint64, c_void_p
from functools import partial
from types import SimpleNamespace
from typing import Any
from weakref import WeakValueDictionary

from aiostage import native
from aiostage.data.copies import BufferCopy

_things: WeakValueDictionary[int, Any] = WeakValueDictionary()
_numbers = itertools.count(1)
_kept: dict[int, Any] = {}  # encoders and command buffers, until they are released


class _String(Structure):
    _fields_ = (("data", c_void_p), ("length", c_size_t))


class _Info(Structure):
    _fields_ = (
        ("next", c_void_p),
        ("mode", c_uint32),
        ("callback", c_void_p),
        ("userdata1", c_void_p),
        ("userdata2", c_void_p),
    )


class _Layout(Structure):
    _fields_ = (("offset", c_uint64), ("bytes_per_row", c_uint32), ("rows_per_image", c_uint32))


class _Source(Structure):
    _fields_ = (("layout", _Layout), ("buffer", c_void_p))


class _Target(Structure):
    _fields_ = (("texture", c_void_p), ("mip_level", c_uint32), ("origin", c_uint32 * 3), ("aspect", c_uint32))


_Callback = CFUNCTYPE(None, c_int32, _String, c_void_p, c_void_p)
_ASPECTS = {1: "all", 2: "stencil-only", 3: "depth-only"}


def number_of(thing: Any) -> int:
    """The handle of a buffer, texture, command buffer or GPU."""
    number = getattr(thing, "number", None)
    if number is None:
        number = thing.number = next(_numbers)
        _things[number] = thing
    return number


def set_freed(number: int) -> None:
    """A buffer or texture is destroyed now, which somebody may have wanted before."""
    if (thing := _things.get(number)) is not None:
        thing.is_freed = True


class TextureCopyHere:
    """A copy to a texture, as the encoder has it."""

    def __init__(self, source: Any, layout: Any, target: Any, extent: Any) -> None:
        self.source = source
        self.offset, self.bytes_per_row, self.rows_per_image = (
            layout.offset,
            layout.bytes_per_row,
            layout.rows_per_image,
        )
        self.destination = _things[target.texture]
        self.mip_level, self.origin, self.aspect = target.mip_level, tuple(target.origin), _ASPECTS[target.aspect]
        self.size = tuple(extent)

    @property
    def nbytes(self) -> int:
        width, height, layers = self.size
        block = self.destination.block
        columns, rows = -(-width // block.width), -(-height // block.height)
        return self.bytes_per_row * (self.rows_per_image * (layers - 1) + rows - 1) + columns * block.nbytes


class _Encoder:
    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu
        self.copies: list[Any] = []


def _keep(thing: Any) -> int:
    number = number_of(thing)
    _kept[number] = thing
    return number


def _create_encoder(device: int, descriptor: int) -> int:
    gpu = _things[device]
    if gpu.is_lost():
        native.note_error("the device is lost")
    return _keep(_Encoder(gpu))


def _add(encoder: int, copy: Any) -> None:
    if copy.destination.destroyed:
        native.note_error("the destination was destroyed")
    _things[encoder].copies.append(copy)


def _copy_to_buffer(encoder: int, source: int, offset: int, target: int, target_offset: int, size: int) -> None:
    handle = SimpleNamespace(handle=_things[source])
    _add(encoder, BufferCopy(handle, offset, _things[target], target_offset, size))


def _copy_to_texture(encoder: int, source: Any, target: Any, extent: Any) -> None:
    handle = SimpleNamespace(handle=_things[source[0].buffer])
    _add(encoder, TextureCopyHere(handle, source[0].layout, target[0], (c_uint32 * 3).from_address(extent)))


def _finish(encoder: int, descriptor: int) -> int:
    return _keep(SimpleNamespaceWithWeakrefs(copies=_things[encoder].copies))


class SimpleNamespaceWithWeakrefs(SimpleNamespace):
    """What an encoder of the carrier's has become."""


def _release(number: int) -> None:
    _kept.pop(number, None)


def _nothing(number: int) -> None: ...


def _submit(queue: int, count: int, commands: Any) -> None:
    copies: list[Any] = []
    command_buffers: list[Any] = []
    gpu = _things[queue]
    for i in range(count):
        submitted = _things[commands[i]]
        if hasattr(submitted, "copies"):
            if command_buffers:  # of a departure before it
                gpu.submit(copies, command_buffers)
                copies, command_buffers = [], []
            copies += submitted.copies
        else:
            command_buffers.append(submitted)
    gpu.submit(copies, command_buffers)


def _tell(info: _Info, ok: bool) -> None:
    _Callback(info.callback)(1 if ok else 2, _String(), info.userdata1, info.userdata2)


def _copy_of(info: Any) -> _Info:
    return _Info(info.next, info.mode, info.callback, info.userdata1, info.userdata2)


def _map(buffer: int, mode: int, offset: int, size: int, info: _Info) -> int:
    staging = _things[buffer]
    staging.gpu.map(staging, partial(_tell, _copy_of(info)))
    return 0


def _on_work_done(queue: int, info: _Info) -> int:
    _things[queue].on_work_done(partial(_tell, _copy_of(info)))
    return 0


def _unmap(buffer: int) -> None:
    staging = _things[buffer]
    staging.gpu.unmap(staging)


def _address(buffer: int, offset: int, size: int) -> int:
    staging = _things[buffer]
    return staging.gpu.address(staging) + offset


def _poll(device: int, wait: int, submission: int) -> int:
    _things[device].poll()
    return 0


def _write_buffer(queue: int, buffer: int, offset: int, data: int, size: int) -> None:
    if _things[queue].is_lost():
        native.note_error("the device is lost")


def _write_texture(queue: int, target: Any, data: int, size: int, layout: int, extent: int) -> None: ...


_HANDLE = c_void_p
_TABLE: list[tuple[Callable[..., Any], Any, tuple[Any, ...]]] = [
    (_create_encoder, c_void_p, (_HANDLE, c_void_p)),
    (_copy_to_buffer, None, (_HANDLE, _HANDLE, c_uint64, _HANDLE, c_uint64, c_uint64)),
    (_copy_to_texture, None, (_HANDLE, POINTER(_Source), POINTER(_Target), c_void_p)),
    (_finish, c_void_p, (_HANDLE, c_void_p)),
    (_release, None, (_HANDLE,)),  # encoder
    (_nothing, None, (_HANDLE,)),  # keep command buffer
    (_release, None, (_HANDLE,)),
    (_nothing, None, (_HANDLE,)),  # keep buffer
    (_nothing, None, (_HANDLE,)),
    (_nothing, None, (_HANDLE,)),  # keep texture
    (_nothing, None, (_HANDLE,)),
    (_submit, None, (_HANDLE, c_size_t, POINTER(c_void_p))),
    (_unmap, None, (_HANDLE,)),
    (_map, c_uint64, (_HANDLE, c_uint64, c_size_t, c_size_t, _Info)),
    (_address, c_void_p, (_HANDLE, c_size_t, c_size_t)),
    (_address, c_void_p, (_HANDLE, c_size_t, c_size_t)),
    (_poll, c_uint32, (_HANDLE, c_uint32, c_void_p)),
    (_on_work_done, c_uint64, (_HANDLE, _Info)),
    (_write_buffer, None, (_HANDLE, _HANDLE, c_uint64, c_void_p, c_size_t)),
    (_write_texture, None, (_HANDLE, c_void_p, c_void_p, c_size_t, c_void_p, c_void_p)),
]
TYPES = [CFUNCTYPE(result, *arguments) for _, result, arguments in _TABLE]
_CALLBACKS = [kind(function) for kind, (function, _, _) in zip(TYPES, _TABLE, strict=True)]
FUNCTIONS = tuple(ctypes.cast(callback, c_void_p).value for callback in _CALLBACKS)
