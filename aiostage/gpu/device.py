"""`Native` on wgpu-native, by the C functions that wgpu-py has loaded.

Three traps are dealt with here, so that nobody else has to know them:

- A blocking `wgpuDevicePoll` holds every submit of the process until it returns, and wgpu-py starts one in a thread for
  each promise. While a device is attached, that thread polls without blocking.
- A submit that fails validation aborts the interpreter (wgpu-native issue 588). What can be at fault is checked right
  before the submit: destroyed and mapped destinations, a lost device, the encoder itself, command buffers that were
  submitted before. wgpu-py does not say what was destroyed or submitted; see `Ledger`.
- wgpu-py's `copy_buffer_to_texture` drops the aspect; the C function takes it.
"""

from __future__ import annotations

import ctypes
import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import wgpu

from ..data.copies import BufferCopy, Copy
from ..errors import DeviceLost, InvalidCopy, InvalidSubmit, OutOfMemory, StagingError, UnsupportedVersion, WrongLoop
from ..exits import holding
from .functions import CallbackInfo, Functions
from .ledger import ledger
from .protocol import Done, Native
from .volumes import Level, Volumes

SUPPORTED_WGPU = ("0.31", "0.32")

_PIECE = 1024 * 1024
"""Bytes of a new staging buffer that are filled with zeros at a time."""


def connect(device: Any) -> Native:
    """The `Native` of a wgpu.GPUDevice: one per device. Anything that is a `Native` already is returned as it is.

    :raises UnsupportedVersion: for a wgpu that this library was not tested with.
    :raises WrongLoop: this process was forked from the one that used the device.
    """
    if isinstance(device, Native):
        return device
    if not isinstance(device, wgpu.GPUDevice):
        raise TypeError(f"device must be a wgpu.GPUDevice, not {type(device).__name__}")
    native: WgpuNative | None = getattr(device, "_aiostage_native", None)
    if native is None:
        native = _connect_first(device)
    if native.process != os.getpid():
        raise WrongLoop("the device belongs to the process that this one was forked from; use 'spawn'")
    return native


def _connect_first(device: wgpu.GPUDevice) -> WgpuNative:
    check_version()
    with _clear_errors():
        made = WgpuNative(device)
    # Threads that get here at the same time make one each, and all use the one that is first in here.
    native: WgpuNative = vars(device).setdefault("_aiostage_native", made)
    return native


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


def check_version(version: str | None = None) -> None:
    """:raises UnsupportedVersion: unless `version` (default: the installed wgpu's) is a tested one."""
    version = wgpu.__version__ if version is None else version
    if ".".join(version.split(".")[:2]) not in SUPPORTED_WGPU:
        raise UnsupportedVersion(
            f"wgpu {version} is installed; this version of aiostage works with {', '.join(SUPPORTED_WGPU)} "
            f"(pip install 'wgpu=={SUPPORTED_WGPU[-1]}.*')"
        )


_logger = logging.getLogger("wgpu")  # its level is how much wgpu-native logs


def _has_layers() -> bool:
    """Whether Vulkan layers are asked for, which may have wgpu log anywhere."""
    return any(os.environ.get(name) for name in ("VK_INSTANCE_LAYERS", "VK_LOADER_LAYERS_ENABLE"))


class WgpuNative:
    """`Native` on wgpu-py's C functions, with one static callback of each kind and a key as its userdata."""

    def __init__(self, device: wgpu.GPUDevice) -> None:
        from wgpu.backends.wgpu_native import _api, lib_path

        ledger.follow(_api)
        self.device = device
        self.process = os.getpid()
        self.submit_blocks = device.adapter.info["adapter_type"] == "CPU"
        self.max_buffer_size = int(device.limits["max-buffer-size"])
        self._ffi = _api.ffi
        self._lib = _api.lib  # for its constants and types; what is called, is called through `_functions`
        self._errors = _api.error_handler
        self._device, self._queue = self._pointer(device), self._pointer(device.queue)
        self._releasing = Functions(lib_path, holding=False)
        self._holding = None if self.submit_blocks or _has_layers() else Functions(lib_path, holding=True)
        self._aspects = {
            "all": self._lib.WGPUTextureAspect_All,
            "depth-only": self._lib.WGPUTextureAspect_DepthOnly,
            "stencil-only": self._lib.WGPUTextureAspect_StencilOnly,
        }
        self._submitting = threading.RLock()
        self._poll_guard = _PollGuard(device, self.poll)
        self._make_callbacks()
        self._structs = _CopyStructs(self._ffi)
        self._volumes = Volumes(device, self._ffi, self._pointer)
        # Writing nothing to it is the cheapest call that tells whether the device is lost.
        self._probe = device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST)

    def _make_callbacks(self) -> None:
        ffi, lib = self._ffi, self._lib
        keys = itertools.count(1)
        waiting: dict[int, Done] = {}

        def deliver(ok: bool, userdata: Any) -> None:
            done = waiting.pop(int(ffi.cast("uintptr_t", userdata)), None)
            if done is not None:
                done(ok)

        def remember(done: Done) -> int:
            key = next(keys)
            waiting[key] = done
            return key

        # The last argument but one, the message, is new in wgpu 0.32's header: take what the header says.
        def mapped(status: int, *rest: Any) -> None:
            deliver(status == lib.WGPUMapAsyncStatus_Success, rest[-2])

        def work_done(status: int, *rest: Any) -> None:
            deliver(status == lib.WGPUQueueWorkDoneStatus_Success, rest[-2])

        self._waiting, self._remember = waiting, remember
        # For the userdata in each; one apiece, because mapping may block behind a submit.
        self._map_lock, self._work_done_lock = threading.RLock(), threading.RLock()
        self._static = []  # cffi needs the callbacks kept alive
        infos = []
        for kind, function in (("BufferMap", mapped), ("QueueWorkDone", work_done)):
            of = ffi.typeof(f"WGPU{kind}Callback")
            callback = ffi.callback(of, function)
            self._static.append(callback)
            address = int(ffi.cast("uintptr_t", callback))
            infos.append(CallbackInfo(None, lib.WGPUCallbackMode_AllowProcessEvents, address, None, None))
        self._map_info, self._work_done_info = infos

    @property
    def _functions(self) -> Functions:
        """The C functions as they may be called now: the level of wgpu's logger can change at any time."""
        holding = self._holding
        return self._releasing if holding is None or _logger.level < logging.WARNING else holding

    def _pointer(self, resource: Any) -> int:
        """The address of the C object behind one of wgpu-py's; it stays the same."""
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

    def poll(self) -> None:
        if self.submit_blocks and ledger.submits():
            return  # it would wait for the submit, which delivers as well
        self._functions.wgpuDevicePoll(self._device, False, None)

    def outstanding(self) -> int:
        return len(self._waiting)

    def on_work_done(self, done: Done) -> None:
        info = self._work_done_info
        with holding(self._work_done_lock):
            info.userdata1 = self._remember(done)
            self._functions.wgpuQueueOnSubmittedWorkDone(self._queue, info)

    def is_lost(self, probe: bool = True) -> bool:
        if ledger.is_destroyed(self.device):
            return True
        if not probe:
            return False
        write = self._releasing.wgpuQueueWriteBuffer
        error, _ = self._captured(write, self._queue, self._pointer(self._probe), 0, None, 0)
        return error is not None

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
                "(adapter.request_device_sync(required_features=['mappable-primary-buffers']))"
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
        try:
            self._zero(buffer)
        except BaseException:
            self.destroy(buffer)
            raise
        return buffer

    def _zero(self, buffer: Any) -> None:
        # The first mapping fills with zeros, in the poll that makes it, and nobody can submit meanwhile. So a piece at
        # a time, each a fraction of a millisecond, in polls that do not keep the interpreter's lock.
        for start in range(0, buffer.size, _PIECE):
            answers: list[bool] = []
            self._map(buffer, start, min(_PIECE, buffer.size - start), answers.append)
            while not answers:
                self._releasing.wgpuDevicePoll(self._device, False, None)
                if not answers:  # somebody else's poll is about to deliver it
                    if self.is_lost():
                        break
                    time.sleep(0.0001)
            if answers != [True]:
                if self.is_lost():
                    raise DeviceLost("the device was lost while its ring was opened")
                raise OutOfMemory("the memory of a staging buffer could not be mapped")
            self.unmap(buffer)

    def _is_read_mapped(self, host_cached: bool) -> bool:
        # MAP_READ memory is what the driver keeps in the host's cache; the feature lets a copy read from it. wgpu does
        # not flush what was written to it, which the memory that its allocator takes for this, coherent, does not need.
        return host_cached and "mappable-primary-buffers" in self.device.features

    def map(self, buffer: Any, done: Done) -> None:
        self._map(buffer, 0, buffer.size, done)

    def _map(self, buffer: Any, offset: int, size: int, done: Done) -> None:
        info, call = self._map_info, self._functions.wgpuBufferMapAsync
        mode = wgpu.MapMode.READ if buffer.usage & wgpu.BufferUsage.MAP_READ else wgpu.MapMode.WRITE
        with holding(self._map_lock):
            info.userdata1 = key = self._remember(done)
            error, _ = self._captured(call, self._pointer(buffer), mode, offset, size, info)
        if error is not None:
            late = self._waiting.pop(key, None)
            if late is not None:
                late(False)

    def address(self, buffer: Any) -> int:
        # A buffer mapped for reading is only lent as const; the memory is the same.
        functions = self._functions
        get = (
            functions.wgpuBufferGetConstMappedRange
            if buffer.usage & wgpu.BufferUsage.MAP_READ
            else functions.wgpuBufferGetMappedRange
        )
        # A destroyed buffer or device has unmapped it, and asking then aborts.
        with ledger.visit():
            if ledger.is_destroyed(buffer) or self.is_lost(probe=False):
                raise DeviceLost("the device was lost with staging buffers in flight")
            return int(get(self._pointer(buffer), 0, buffer.size))

    def unmap(self, buffer: Any) -> None:
        # A lost device has unmapped it already.
        self._captured(self._functions.wgpuBufferUnmap, self._pointer(buffer))

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

    def submit(self, copies: Sequence[Copy], command_buffers: Sequence[Any]) -> list[tuple[Copy, InvalidCopy]]:
        functions = self._functions
        # One at a time, as inside wgpu, so that what was postponed has its moment between two. No loop waits for that:
        # where a submit blocks, threads make it.
        with holding(self._submitting), ledger.visit(copies, command_buffers) as visit:
            if self.is_lost(probe=False):  # or about to be destroyed
                raise DeviceLost("the device was lost before the submit")
            good, refused = self._sift(copies)
            command_buffer, error = self._encode(good)
            if error is not None:
                good, refused = self._find_guilty(good, refused)
                command_buffer, error = self._encode(good)
            # Encoding has told already, where there was something to encode: nothing destroys the device meanwhile.
            if error is not None or (command_buffer is None and self.is_lost()):
                raise DeviceLost(error or "the device was lost before the submit")
            pointers = [] if command_buffer is None else [command_buffer]
            pointers += map(self._pointer, command_buffers)
            visit.claimed = ()
            functions.wgpuQueueSubmit(self._queue, len(pointers), (ctypes.c_void_p * len(pointers))(*pointers))
            self._volumes.note(good)
        if command_buffer is not None:
            functions.wgpuCommandBufferRelease(command_buffer)
        return refused

    def _sift(self, copies: Sequence[Copy]) -> tuple[list[Copy], list[tuple[Copy, InvalidCopy]]]:
        """Copies that may be encoded, and those whose destination has become unusable since they were staged."""
        reasons: dict[int, str | None] = {}
        good: list[Copy] = []
        refused: list[tuple[Copy, InvalidCopy]] = []
        for copy in copies:
            key = id(copy.destination)
            if key not in reasons:
                reasons[key] = self._unusable(copy)
            reason = reasons[key]
            if reason is None:
                good.append(copy)
            else:
                refused.append((copy, InvalidCopy(f"{copy!r}: {reason}")))
        return good, refused

    def _unusable(self, copy: Copy) -> str | None:
        """Why the destination of a copy would make the submit abort, or None."""
        destination = copy.destination
        if destination._internal is None:
            return "the destination was released"
        if isinstance(copy, BufferCopy) and destination.map_state != "unmapped":
            return "the destination buffer is mapped"
        if not ledger.is_known(destination):
            error = self._probe_destroyed(copy)
            ledger.note(destination, destroyed=error is not None and "destroyed" in error)
        return "the destination was destroyed" if ledger.is_destroyed(destination) else None

    def _probe_destroyed(self, copy: Copy) -> str | None:
        """The error of a call that only fails, and only if the destination was destroyed before notes were taken."""
        lib, new = self._lib, self._ffi.new
        if isinstance(copy, BufferCopy):  # of an unmapped buffer; it fails in any case, the message tells
            return self._captured(self._releasing.wgpuBufferUnmap, self._pointer(copy.destination))[0]
        layout = new("WGPUTexelCopyBufferLayout *", {"bytesPerRow": 256, "rowsPerImage": 1})
        nothing, target = new("WGPUExtent3D *"), self._describe_target(copy)
        queue = self.device.queue._internal
        return self._captured(lib.wgpuQueueWriteTexture, queue, target, self._ffi.NULL, 0, layout, nothing)[0]

    def _find_guilty(
        self, copies: Iterable[Copy], refused: list[tuple[Copy, InvalidCopy]]
    ) -> tuple[list[Copy], list[tuple[Copy, InvalidCopy]]]:
        """One copy per encoder: those that fail alone are at fault, the others go on."""
        if self.is_lost():
            raise DeviceLost("the device was lost before the submit")
        good = []
        for copy in copies:
            command_buffer, error = self._encode([copy])
            if error is None:
                good.append(copy)
                self._functions.wgpuCommandBufferRelease(command_buffer)
            else:
                refused.append((copy, InvalidCopy(f"{copy!r}: {error}")))
        return good, refused

    def _encode(self, copies: Sequence[Copy]) -> tuple[Any, str | None]:
        """(command buffer, error); both None when there is nothing to encode."""
        if not copies:
            return None, None
        functions = self._functions
        error, encoder = self._captured(functions.wgpuDeviceCreateCommandEncoder, self._device, None)
        if not encoder:
            return None, error
        command_buffer = None
        if error is None:
            error, _ = self._captured(self._record, encoder, copies)
        if error is None:
            error, command_buffer = self._captured(functions.wgpuCommandEncoderFinish, encoder, None)
        functions.wgpuCommandEncoderRelease(encoder)
        if error is not None and command_buffer:
            functions.wgpuCommandBufferRelease(command_buffer)
        return (command_buffer, None) if error is None else (None, error)

    def _record(self, encoder: int, copies: Sequence[Copy]) -> None:
        functions, pointer = self._functions, self._pointer
        used: set[Level] = set()
        for copy in copies:
            source = pointer(copy.source.handle)
            if isinstance(copy, BufferCopy):
                target = pointer(copy.destination)
                functions.wgpuCommandEncoderCopyBufferToBuffer(
                    encoder, source, copy.offset, target, copy.destination_offset, copy.size
                )
            else:
                self._volumes.prepare(functions, encoder, copy, used)
                self._describe_source(copy)
                self._describe_target(copy)
                functions.wgpuCommandEncoderCopyBufferToTexture(encoder, *self._structs.arguments)

    def _describe_source(self, copy: Any) -> None:
        info, extent = self._structs.source, self._structs.extent
        info.buffer = copy.source.handle._internal
        info.layout.offset = copy.offset
        info.layout.bytesPerRow = copy.bytes_per_row
        info.layout.rowsPerImage = copy.rows_per_image
        extent.width, extent.height, extent.depthOrArrayLayers = copy.size

    def _describe_target(self, copy: Any) -> Any:
        info = self._structs.target
        info.texture = copy.destination._internal
        info.mipLevel = copy.mip_level
        info.origin.x, info.origin.y, info.origin.z = copy.origin
        info.aspect = self._aspects[copy.aspect]
        return info

    def _captured(self, function: Callable[..., Any], *arguments: Any) -> tuple[str | None, Any]:
        """Call; returns the message of the error that wgpu reported meanwhile, if it did, and the result."""
        # wgpu reports in the calling thread, and wgpu-py leaves it with that thread's topmost slot, if it has one.
        # This is its handler's capture and release in a third of the time, with several to each submit.
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
        _, refused = self._sift(copies)
        if refused:
            raise refused[0][1]
        error, _ = self._captured(self._record, self._pointer(encoder), copies)  # of a destroyed one only an error
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

    # -- pools --

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


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise StagingError("a staging buffer is mapped, unmapped and destroyed by its ring alone")


def _refuse_block(*args: Any, **kwargs: Any) -> None:
    raise StagingError("a block is shared by the ranges of a pool; release the range instead")


class _CopyStructs(threading.local):
    """What describes a copy to a texture: of each thread its own, since the loop records while a thread submits."""

    def __init__(self, ffi: Any) -> None:
        self.source = ffi.new("WGPUTexelCopyBufferInfo *")
        self.target = ffi.new("WGPUTexelCopyTextureInfo *")
        self.extent = ffi.new("WGPUExtent3D *")
        structs = self.source, self.target, self.extent
        self.arguments = [int(ffi.cast("uintptr_t", struct)) for struct in structs]


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
