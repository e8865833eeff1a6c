"""`Native` on wgpu-native, by way of wgpu-py: what the carrier needs of it, and what is done on the loop.

Three traps are dealt with here, so that nobody else has to know them:

- A blocking `wgpuDevicePoll` holds every submit of the process until it returns, and wgpu-py starts one in a thread for
  each promise. While a device is attached, that thread polls without blocking.
- A submit that fails validation aborts the interpreter (wgpu-native issue 588). What can be at fault is checked before
  it: destroyed and mapped destinations, a lost device, the encoder itself, command buffers that were submitted before.
  wgpu-py does not say what was destroyed or submitted; see `Ledger`.
- wgpu-py's `copy_buffer_to_texture` drops the aspect; the C function takes it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import wgpu

from .. import native
from ..data.copies import BufferCopy, Copy, SmallCopies, Staged, TextureCopy
from ..errors import DeviceLost, InvalidCopy, InvalidSubmit, OutOfMemory, StagingError, WrongLoop
from ..exits import holding
from .layout import check_layouts, functions_of, timestamp_functions
from .ledger import ledger
from .protocol import Native, Times
from .volumes import Level, Volumes


def connect(device: Any) -> Native:
    """The `Native` of a wgpu.GPUDevice: one per device. Anything that is a `Native` already is returned as it is.

    :raises UnsupportedVersion: the installed wgpu is not one that this library can work with.
    :raises WrongLoop: this process was forked from the one that used the device.
    """
    if isinstance(device, Native):
        return device
    if not isinstance(device, wgpu.GPUDevice):
        raise TypeError(f"device must be a wgpu.GPUDevice, not {type(device).__name__}")
    known: WgpuNative | None = getattr(device, "_aiostage_native", None)
    if known is None:
        known = _connect_first(device)
    if known.process != os.getpid():
        raise WrongLoop("the device belongs to the process that this one was forked from; use 'spawn'")
    return known


def _connect_first(device: wgpu.GPUDevice) -> WgpuNative:
    check_layouts()
    with _clear_errors():
        made = WgpuNative(device)
    # Threads that get here at the same time make one each, and all use the one that is first in here.
    first: WgpuNative = vars(device).setdefault("_aiostage_native", made)
    return first


@contextmanager
def _clear_errors() -> Iterator[None]:
    """Raise DeviceLost and OutOfMemory in place of the validation errors that wgpu-native makes of them."""
    try:
        yield
    except wgpu.GPUError as error:
        if "Parent device is lost" in str(error):
            raise DeviceLost("the device is lost") from error
        if isinstance(error, wgpu.GPUOutOfMemoryError) or "Not enough memory" in str(error):
            raise OutOfMemory("the device has no memory left for this") from error
        raise


native.name_handle("_internal")  # of wgpu-py's objects


def _ascii(name: str) -> str:
    """As much of it as a trace can have without escapes."""
    return "".join(letter for letter in name[:60] if " " <= letter <= "~" and letter not in '"\\')


class WgpuNative:
    """`Native` on wgpu-py's C functions."""

    is_stepped = False

    def __init__(self, device: wgpu.GPUDevice) -> None:
        from wgpu.backends.wgpu_native import _api

        ledger.follow(_api)
        self.device = device
        self.process = os.getpid()
        self.name = _ascii(device.adapter.info["device"])
        self.submit_blocks = device.adapter.info["adapter_type"] == "CPU"
        self.max_buffer_size = int(device.limits["max-buffer-size"])
        self._api = _api
        self._ffi, self._lib, self._errors = _api.ffi, _api.lib, _api.error_handler
        self._aspects = {
            "all": self._lib.WGPUTextureAspect_All,
            "depth-only": self._lib.WGPUTextureAspect_DepthOnly,
            "stencil-only": self._lib.WGPUTextureAspect_StencilOnly,
        }
        self._poll_guard = _PollGuard(device, self._poll)
        self._volumes = Volumes(device, self._ffi, self._lib)
        # Writing nothing to it is the cheapest call that tells whether the device is lost.
        self._probe = device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST)
        self.functions, self.message_in_done = functions_of(_api)
        self.handles = (self.handle(device), self.handle(device.queue), self.handle(self._probe))

    def handle(self, resource: Any) -> int:
        try:
            return int(resource._aiostage_pointer)
        except AttributeError:
            resource._aiostage_pointer = pointer = int(self._ffi.cast("uintptr_t", resource._internal))
            return pointer

    # -- polling --

    def attach(self) -> None:
        self._poll_guard.attach()

    def detach(self) -> None:
        self._poll_guard.detach()

    def _poll(self) -> None:
        if self.submit_blocks and native.is_visited(self.handles[1]):
            return  # it would wait for the submit, which delivers as well
        self._lib.wgpuDevicePoll(self.device._internal, False, self._ffi.NULL)

    def is_lost(self, probe: bool = True) -> bool:
        if ledger.is_destroyed(self.device):
            return True
        if not probe:
            return False
        queue, buffer, nothing = self.device.queue._internal, self._probe._internal, self._ffi.NULL
        error, _ = self._captured(self._lib.wgpuQueueWriteBuffer, queue, buffer, 0, nothing, 0)
        return error is not None

    # -- timestamps --

    def times(self) -> Times | None:
        found = timestamp_functions(self._api)
        if not {"timestamp-query", "timestamp-query-inside-encoders"} <= set(self.device.features) or found is None:
            return None
        write, resolve, period = found
        usage = wgpu.BufferUsage
        with _clear_errors():
            queries = self.device.create_query_set(type="timestamp", count=2 * native.TIMES)
            resolved = self.device.create_buffer(
                size=native.TIMES * native.TIMES_STEP, usage=usage.QUERY_RESOLVE | usage.COPY_SRC
            )
            results = [
                self.device.create_buffer(size=16, usage=usage.COPY_DST | usage.MAP_READ) for _ in range(native.TIMES)
            ]
        return Times(
            (queries, resolved, results),
            write,
            resolve,
            self.handle(queries),
            self.handle(resolved),
            tuple(map(self.handle, results)),
            period(self.device.queue._internal) * 1e-9,
        )

    # -- staging memory --

    def is_host_cached(self, wanted: bool | None) -> bool:
        # Without that feature MAP_WRITE memory is all there is. On a CPU adapter it is ordinary memory; elsewhere it
        # is write-combined on the devices that were measured, which many threads fill more slowly.
        if self.submit_blocks:
            return True
        available = "mappable-primary-buffers" in self.device.features
        if wanted and not available:
            raise ValueError(
                "host_cached=True needs a device with the feature 'mappable-primary-buffers' "
                "(aiostage.request_device(adapter) asks for it where the adapter has it)"
            )
        return available if wanted is None else wanted

    def create_staging_buffer(self, size: int, host_cached: bool) -> Any:
        # Not mapped at creation: without MAP_WRITE, wgpu would lend other memory, and free it at the first submit.
        mode = wgpu.BufferUsage.MAP_READ if self._is_read_mapped(host_cached) else wgpu.BufferUsage.MAP_WRITE
        with _clear_errors():
            self._volumes.warm_up()
            buffer = self.device.create_buffer(
                label="staging buffer",
                size=size,
                usage=mode | wgpu.BufferUsage.COPY_SRC,
            )
        # Allocation.buffer.handle gives it to users, for whom one of these would end in an abort.
        buffer.destroy = buffer.unmap = buffer.map_async = buffer.map_sync = _refuse
        return buffer

    def map_mode(self, buffer: Any) -> int:
        return int(wgpu.MapMode.READ if buffer.usage & wgpu.BufferUsage.MAP_READ else wgpu.MapMode.WRITE)

    def _is_read_mapped(self, host_cached: bool) -> bool:
        # MAP_READ memory is what the driver keeps in the host's cache; the feature lets a copy read from it. wgpu does
        # not flush what was written to it, which the memory that its allocator takes for this, coherent, does not need.
        return host_cached and "mappable-primary-buffers" in self.device.features

    def destroy(self, buffer: Any) -> None:
        type(buffer).destroy(buffer)

    # -- submitting --

    def claim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        for command_buffer in command_buffers:
            if not isinstance(command_buffer, wgpu.GPUCommandBuffer):
                raise InvalidSubmit(f"{type(command_buffer).__name__} is not a GPUCommandBuffer")
            if not self.owns(command_buffer):
                raise InvalidSubmit("the command buffer belongs to another device than the ring")
            if command_buffer._internal is None:
                raise InvalidSubmit("the command buffer was released")
        ledger.claim([command_buffer._internal for command_buffer in command_buffers])

    def unclaim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        ledger.unclaim([command_buffer._internal for command_buffer in command_buffers])

    def is_first_use(self, copy: TextureCopy, used: set[Level]) -> bool:
        return self._volumes.is_first(copy, used)

    def note_use(self, copies: Iterable[Staged]) -> None:
        self._volumes.note(copies)

    def unusable(self, copy: Staged) -> str | None:
        destination = copy.destination
        if destination._internal is None:
            return "the destination was released"
        goes_to_buffer = copy.goes_to_buffer if type(copy) is SmallCopies else type(copy) is BufferCopy
        if goes_to_buffer and destination.map_state != "unmapped":
            return "the destination buffer is mapped"
        if not ledger.is_known(destination):
            error = self._probe_destroyed(copy[0] if isinstance(copy, SmallCopies) else copy)
            ledger.note(destination, destroyed=error is not None and "destroyed" in error)
        return "the destination was destroyed" if ledger.is_destroyed(destination) else None

    def _probe_destroyed(self, copy: Copy) -> str | None:
        """The error of a call that only fails, and only if the destination was destroyed before notes were taken."""
        lib, new = self._lib, self._ffi.new
        if isinstance(copy, BufferCopy):  # of an unmapped buffer; it fails in any case, the message tells
            return self._captured(lib.wgpuBufferUnmap, copy.destination._internal)[0]
        layout = new("WGPUTexelCopyBufferLayout *", {"bytesPerRow": 256, "rowsPerImage": 1})
        nothing, target = new("WGPUExtent3D *"), self._describe_target(copy)
        queue = self.device.queue._internal
        return self._captured(lib.wgpuQueueWriteTexture, queue, target, self._ffi.NULL, 0, layout, nothing)[0]

    def _record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        lib, used = self._lib, set[Level]()
        for copy in copies:
            source = copy.source.handle._internal
            if isinstance(copy, BufferCopy):
                target, offset = copy.destination._internal, copy.destination_offset
                lib.wgpuCommandEncoderCopyBufferToBuffer(encoder, source, copy.offset, target, offset, copy.size)
            else:
                self._volumes.prepare(encoder, copy, used)
                extent = self._ffi.new("WGPUExtent3D *", copy.size)
                where = self._describe_source(copy), self._describe_target(copy)
                lib.wgpuCommandEncoderCopyBufferToTexture(encoder, *where, extent)

    def _describe_source(self, copy: TextureCopy) -> Any:
        info = self._ffi.new("WGPUTexelCopyBufferInfo *")
        info.buffer = copy.source.handle._internal
        info.layout.offset = copy.offset
        info.layout.bytesPerRow = copy.bytes_per_row
        info.layout.rowsPerImage = copy.rows_per_image
        return info

    def _describe_target(self, copy: TextureCopy) -> Any:
        info = self._ffi.new("WGPUTexelCopyTextureInfo *")
        info.texture = copy.destination._internal
        info.mipLevel = copy.mip_level
        info.origin.x, info.origin.y, info.origin.z = copy.origin
        info.aspect = self._aspects[copy.aspect]
        return info

    def _captured(self, function: Callable[..., Any], *arguments: Any) -> tuple[str | None, Any]:
        """Call; returns the message of the error that wgpu reported meanwhile, if it did, and the result."""
        # wgpu reports in the calling thread, and wgpu-py leaves it with that thread's topmost slot, if it has one.
        # This is its handler's capture and release in a third of the time.
        slots, slot = self._errors._get_proxy_stack(), _ErrorSlot()
        slots.append(slot)
        try:
            result = function(*arguments)
        except wgpu.GPUError as error:  # of a call of wgpu-py's own in it
            slot.message, result = str(error), None
        finally:
            slots.pop()
        return None if slot.message is None else " ".join(slot.message.split()), result

    # -- a caller's encoder --

    def create_encoder(self) -> Any:
        with _clear_errors():
            return self.device.create_command_encoder()

    def finish_encoder(self, encoder: Any) -> Any:
        with _clear_errors():
            return encoder.finish()

    def record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        if not isinstance(encoder, wgpu.GPUCommandEncoder) or not self.owns(encoder):
            raise InvalidCopy(f"encoder must be a GPUCommandEncoder of the ring's device, not {type(encoder).__name__}")
        for copy in copies:
            if (reason := self.unusable(copy)) is not None:
                raise InvalidCopy(f"{copy!r}: {reason}")
        error, _ = self._captured(self._record, encoder._internal, copies)  # of a destroyed one only an error
        if error is not None:
            raise InvalidCopy(error)

    def create_relay(self, size: int, data: Any = None) -> Any:
        usage = wgpu.BufferUsage.COPY_SRC | (wgpu.BufferUsage.COPY_DST if data is None else wgpu.BufferUsage.MAP_WRITE)
        with _clear_errors(), ledger.visit():
            if self.is_lost(probe=False):  # its memory would be looked at
                raise DeviceLost("the device is lost")
            relay = self.device.create_buffer(
                label="staging relay", size=size, usage=usage, mapped_at_creation=data is not None
            )
            if data is not None:
                relay.write_mapped(data)
                relay.unmap()
        return relay

    # -- textures and pools --

    def create_texture(self, **descriptor: Any) -> Any:
        with _clear_errors():
            return self.device.create_texture(**descriptor)

    def create_block(self, size: int, usage: int) -> Any:
        with _clear_errors():
            buffer = self.device.create_buffer(label="pool block", size=size, usage=usage)
        buffer.destroy = _refuse_block  # others' ranges lie in it
        return buffer

    def offset_alignment(self, usage: int) -> int:
        limits = self.device.limits
        uniform = limits["min-uniform-buffer-offset-alignment"] if usage & wgpu.BufferUsage.UNIFORM else 4
        storage = limits["min-storage-buffer-offset-alignment"] if usage & wgpu.BufferUsage.STORAGE else 4
        return int(max(uniform, storage))

    def is_resource(self, resource: Any, kind: str) -> bool:
        return isinstance(resource, wgpu.GPUBuffer if kind == "buffer" else wgpu.GPUTexture)

    def owns(self, resource: Any) -> bool:
        return getattr(resource, "_device", None) is self.device

    def notes(self, resource: Any) -> dict[Any, Any] | None:
        try:
            notes: dict[Any, Any] = resource._aiostage_notes
        except AttributeError:
            if not self.owns(resource):
                return None
            notes = resource._aiostage_notes = {}
        return notes if resource._device is self.device else None


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise StagingError("a staging buffer is mapped, unmapped and destroyed by its ring alone")


def _refuse_block(*args: Any, **kwargs: Any) -> None:
    raise StagingError("a block is shared by the ranges of a pool; release the range instead")


class _ErrorSlot:
    """What wgpu-py's error handler puts an error in."""

    __slots__ = ("message", "name", "type")

    def __init__(self) -> None:
        self.name = "aiostage"
        self.type: str | None = None
        self.message: str | None = None


class _PollGuard:
    """Makes wgpu-py's own poll thread of one device poll without blocking, while somebody is attached.

    That thread polls for as long as a promise of wgpu-py's is pending, so it needs a pause between two polls: short
    for a young promise, up to a millisecond for one that takes long.
    """

    _SHORTEST, _LONGEST = 0.0001, 0.001  # seconds

    def __init__(self, device: Any, poll: Callable[[], None]) -> None:
        self._poller = device._poller
        self._poll = poll
        self._original: Any = None
        self._attached = 0
        self._pause = self._SHORTEST
        self._lock = threading.RLock()

    def attach(self) -> None:
        with holding(self._lock):
            self._attached += 1
            if self._attached == 1 and self._poller is not None:
                self._original = self._poller._poll_func
                self._poller._poll_func = self._gentle

    def detach(self) -> None:
        with holding(self._lock):
            self._attached -= 1
            # A destroyed device has put a function of its own there.
            if self._attached == 0 and self._poller is not None and self._poller._poll_func == self._gentle:
                self._poller._poll_func = self._original

    def _gentle(self, block: bool) -> None:
        self._poll()
        if block:
            time.sleep(self._pause)
            self._pause = min(self._pause * 1.2, self._LONGEST)
        else:  # wgpu-py's first poll for a new promise
            self._pause = self._SHORTEST
