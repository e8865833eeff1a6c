"""What was destroyed and submitted in all of wgpu-py."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from typing import Any
from weakref import WeakSet

from .. import native
from ..errors import InvalidSubmit
from ..exits import holding

_DESTROYED = "the destination was destroyed"
_MAPPED = "the destination buffer is mapped"


class Ledger:
    """What was destroyed and submitted in all of wgpu-py, and what destroying must wait for.

    wgpu-py calls C by the attributes of one object, `_api.libf`. Some of its functions are followed here, from the
    first connection to a device on and for good: under whatever others put around wgpu-py's methods, or take off again.

    Nobody waits for a submit here, which on a software adapter takes as long as the GPU's work. It is a *visit*, as is
    a look at mapped memory: a time in which what it has checked must stay as it is. The carrier counts them, and has
    what others need to tell it (native/fate.c). This closes these races:

    - A check, then a destroy in another thread, then the submit (or the look): both abort on what is destroyed. What is
      destroyed is noted here, then left out of what waits for its submit; and destroyed when no visit is left.
    - The same with a map of a destination. It cannot be put off, since its errors are its caller's; so it waits, and
      only for a submit that copies to this very buffer. wgpu-py says "pending" before, which later checks see.
    - Two threads submit the same command buffer: one of them claims it first.

    And no destroy stands behind a submit inside wgpu, where it would hold up whoever else needs the device's memory.

    A forked child destroys nothing of its parent's: it would wait for locks of wgpu's that its parent's threads had.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant and by `holding`: a garbage collection may destroy things anywhere
        self._is_following = False
        self._destroyed: WeakSet[Any] = WeakSet()  # pointers, as wgpu-py's objects have them in _internal
        self._born: WeakSet[Any] = WeakSet()  # pointers of what was made since
        self._submitted: set[Any] = set()  # pointers of command buffers that live
        self._number: Callable[[Any], int]
        self._is_in_child = False

    def enter_child(self) -> None:
        self.lock = threading.RLock()  # another thread may have had it
        self._born = WeakSet()
        self._is_in_child = True

    def follow(self, api: Any) -> None:
        """Follow what wgpu-py does from now on; `api` is its module."""
        with holding(self.lock):
            if self._is_following:
                return
            self._is_following = True
            functions, lib = api.libf, api.lib
            self._number = partial(_number, api.ffi)
            for kind in ("Buffer", "Texture", "Device"):
                ways = [self._number(getattr(lib, f"wgpu{kind}{what}")) for what in ("AddRef", "Destroy", "Release")]
                name = f"wgpu{kind}Destroy"
                setattr(functions, name, partial(self._destroy, kind == "Device", getattr(functions, name), *ways))
            for name in ("wgpuDeviceCreateBuffer", "wgpuDeviceCreateTexture"):
                setattr(functions, name, partial(self._create, getattr(functions, name)))
            functions.wgpuBufferMapAsync = partial(self._map, functions.wgpuBufferMapAsync)
            functions.wgpuQueueSubmit = partial(self._submit, functions.wgpuQueueSubmit, api.ffi.unpack)
            released = api.GPUCommandBuffer  # keeps its function for itself
            released._release_function = partial(self._release, released._release_function)
            errors = api.error_handler  # what wgpu reports in a thread of the carrier's is the carrier's
            errors.handle_error = partial(_handle_error, errors.handle_error)

    # -- what others do --

    def _create(self, create: Any, *arguments: Any) -> Any:
        pointer = create(*arguments)
        with holding(self.lock):
            self._born.add(pointer)
        return pointer

    def _destroy(self, is_device: bool, destroy: Any, keep: int, destroy_later: int, let_go: int, pointer: Any) -> None:
        with holding(self.lock):
            self._destroyed.add(pointer)
        if self._is_in_child and not is_device and pointer not in self._born:
            return
        number = self._number(pointer)
        if is_device:
            native.device_gone(number, "the device was destroyed")
        if native.gone(number, _DESTROYED, keep, destroy_later, let_go):
            destroy(pointer)

    def _map(self, map_async: Any, pointer: Any, *arguments: Any) -> Any:
        native.wait_for_use(self._number(pointer), _MAPPED)
        return map_async(pointer, *arguments)

    def _submit(self, submit: Any, unpack: Any, queue: Any, count: int, command_buffers: Any) -> None:
        self.claim(unpack(command_buffers, count) if count else ())
        number = self._number(queue)
        native.settle(number)
        with self.visit(number):
            submit(queue, count, command_buffers)

    def _release(self, release: Any, pointer: Any) -> None:
        self._submitted.discard(pointer)  # another one may be at that address soon
        release(pointer)

    # -- what we ask, and do --

    @contextmanager
    def visit(self, queue: int = 0) -> Iterator[None]:
        """Have nothing destroyed meanwhile: a submit to this queue is made, or with 0 a look at memory."""
        native.visit(queue)
        try:
            yield
        finally:
            native.unvisit(queue)

    def is_destroyed(self, resource: Any) -> bool:
        return resource._internal in self._destroyed

    def is_known(self, resource: Any) -> bool:
        """Whether `resource` was made since, or it was noted whether it had been destroyed before."""
        return resource._internal in self._born or hasattr(resource, "_aiostage_is_known")

    def note(self, resource: Any, destroyed: bool) -> None:
        with holding(self.lock):
            resource._aiostage_is_known = True
            if destroyed:
                self._destroyed.add(resource._internal)

    def claim(self, command_buffers: Sequence[Any]) -> None:
        """Have nobody else submit these pointers. :raises InvalidSubmit: of one that was submitted; none is claimed."""
        with holding(self.lock):
            if len(set(command_buffers)) < len(command_buffers) or not self._submitted.isdisjoint(command_buffers):
                raise InvalidSubmit("the command buffer was submitted before; a command buffer runs once")
            self._submitted.update(command_buffers)

    def unclaim(self, command_buffers: Sequence[Any]) -> None:
        """They were not submitted after all."""
        with holding(self.lock):
            self._submitted.difference_update(command_buffers)


def _number(ffi: Any, pointer: Any) -> int:
    return int(ffi.cast("uintptr_t", pointer))


def _handle_error(handle: Callable[[str, str], None], error_type: str, message: str) -> None:
    if not native.note_error(" ".join(message.split())):
        handle(error_type, message)


ledger = Ledger()
if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=ledger.enter_child)
