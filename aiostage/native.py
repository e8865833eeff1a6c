"""The one door to wgpu-native.

`Native` is what the ring and the fences need of a GPU, small enough to be simulated; `WgpuNative` does it with the C
functions that wgpu-py has loaded. Nothing else in this library touches wgpu-py's private parts.

Three traps are dealt with here, so that nobody else has to know them:

- A blocking `wgpuDevicePoll` holds every submit of the process until it returns, and wgpu-py starts one in a thread for
  each promise. While a device is attached, that thread polls without blocking.
- A submit that fails validation aborts the interpreter (wgpu-native issue 588). What can be at fault is checked right
  before the submit: destroyed and mapped destinations, a lost device, the encoder itself, command buffers that were
  submitted before. wgpu-py does not say what was destroyed or submitted: while a device is attached, the methods that
  do it are wrapped to note it down, and to wait for a submit that another thread is making.
- wgpu-py's `copy_buffer_to_texture` drops the aspect; the C function takes it.
"""

from __future__ import annotations

import functools
import itertools
import threading
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, Protocol, runtime_checkable

import wgpu

from .copies import BufferCopy, Copy
from .errors import DeviceLost, InvalidCopy, InvalidSubmit, StagingError, UnsupportedVersion

SUPPORTED_WGPU = ("0.31", "0.32")

Done = Callable[[bool], object]
"""Called once with whether it went well, from whichever thread polls."""


@runtime_checkable
class Native(Protocol):
    """A GPU device and its queue, as much of it as staging needs. All methods may be called from any thread."""

    submit_blocks: bool
    """Whether `submit` and `map` may wait for earlier GPU work (software adapters do)."""
    max_buffer_size: int

    def attach(self) -> None:
        """Keep blocking polls off this device until as many calls of `detach`."""

    def detach(self) -> None: ...

    def create_staging_buffer(self, size: int, host_cached: bool) -> Any:
        """A new staging buffer of `size` bytes, mapped for writing."""

    def is_host_cached(self, wanted: bool | None) -> bool:
        """Whether staging memory can be read fast. :raises ValueError: if it is `wanted` and cannot be had."""

    def map(self, buffer: Any, done: Done) -> None:
        """Map a staging buffer again as soon as the GPU has finished with it."""

    def address(self, buffer: Any) -> int:
        """Where the memory of a mapped staging buffer lies. :raises DeviceLost:"""

    def unmap(self, buffer: Any) -> None: ...

    def destroy(self, buffer: Any) -> None: ...

    def submit(self, copies: Sequence[Copy], command_buffers: Sequence[Any]) -> list[tuple[Copy, InvalidCopy]]:
        """Copies, then command buffers, in one queue submit; returns the copies that were left out, and why.

        :raises DeviceLost: nothing was submitted.
        """

    def claim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        """Have nobody else submit them. :raises InvalidSubmit: one is unfit for this queue; none is claimed."""

    def on_work_done(self, done: Done) -> None:
        """Call `done` when the GPU has finished all that was submitted until now."""

    def poll(self) -> None:
        """Deliver what is done, without waiting."""

    def outstanding(self) -> int:
        """How many maps and fences a poll could still deliver."""

    def is_lost(self) -> bool: ...

    def create_encoder(self) -> Any: ...

    def finish_encoder(self, encoder: Any) -> Any: ...

    def record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        """Record copies whose source is a relay into a caller's encoder. :raises InvalidCopy:"""

    def create_relay(self, size: int) -> Any:
        """A buffer in device memory that copies go through on their way into a caller's encoder."""

    def write_relay(self, relay: Any, data: Any) -> None: ...

    def is_resource(self, resource: Any, kind: str) -> bool:
        """Whether `resource` is a "buffer" or "texture" of this kind of device."""

    def owns(self, resource: Any) -> bool: ...


def connect(device: Any) -> Native:
    """The `Native` of a wgpu.GPUDevice: one per device. Anything that is a `Native` already is returned as it is.

    :raises UnsupportedVersion: for a wgpu that this library was not tested with.
    """
    if isinstance(device, Native):
        return device
    if not isinstance(device, wgpu.GPUDevice):
        raise TypeError(f"device must be a wgpu.GPUDevice, not {type(device).__name__}")
    native = getattr(device, "_aiostage_native", None)
    if native is None:
        check_version()
        with _telling_loss():
            native = WgpuNative(device)
        device._aiostage_native = native
    return native


@contextmanager
def _telling_loss() -> Iterator[None]:
    """Raise DeviceLost in place of the validation error that a lost device causes."""
    try:
        yield
    except wgpu.GPUError as error:
        if "Parent device is lost" in str(error):
            raise DeviceLost("the device is lost") from error
        raise


def check_version(version: str | None = None) -> None:
    """:raises UnsupportedVersion: unless `version` (default: the installed wgpu's) is a tested one."""
    version = wgpu.__version__ if version is None else version
    if ".".join(version.split(".")[:2]) not in SUPPORTED_WGPU:
        raise UnsupportedVersion(
            f"wgpu {version} is installed; this version of aiostage works with {', '.join(SUPPORTED_WGPU)} "
            f"(pip install 'wgpu=={SUPPORTED_WGPU[-1]}.*')"
        )


def export(address: int, size: int, owner: Callable[[Any], None]) -> Any:
    """A fresh object that exports `size` bytes of memory, writable, and that can be weakly referenced.

    Every view of it, however made, keeps it and `owner` alive: that tells whether one still exists, and keeps the
    memory from being freed under it. `owner` is called with nothing of interest when the last one is gone.
    """
    ffi = _ffi()
    return ffi.buffer(ffi.gc(ffi.cast("char *", address), owner), size)


def _ffi() -> Any:
    from wgpu.backends.wgpu_native import _api

    return _api.ffi


class WgpuNative:
    """`Native` on wgpu-py's C functions, with one static callback of each kind and a key as its userdata."""

    def __init__(self, device: wgpu.GPUDevice) -> None:
        from wgpu.backends.wgpu_native import _api

        self.device = device
        self.submit_blocks = device.adapter.info["adapter_type"] == "CPU"
        self.max_buffer_size = int(device.limits["max-buffer-size"])
        self._ffi = _api.ffi
        self._lib = _api.lib
        self._errors = _api.error_handler
        self._device: Any = device._internal
        self._queue: Any = device.queue._internal
        self._aspects = {
            "all": self._lib.WGPUTextureAspect_All,
            "depth-only": self._lib.WGPUTextureAspect_DepthOnly,
            "stencil-only": self._lib.WGPUTextureAspect_StencilOnly,
        }
        self._poll_guard = _PollGuard(device, self.poll)
        self._make_callbacks()
        self._make_structs()
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

        def remember(done: Done) -> Any:
            key = next(keys)
            waiting[key] = done
            return ffi.cast("void *", key)

        # The last argument but one, the message, is new in wgpu 0.32's header: take what the header says.
        def mapped(status: int, *rest: Any) -> None:
            deliver(status == lib.WGPUMapAsyncStatus_Success, rest[-2])

        def work_done(status: int, *rest: Any) -> None:
            deliver(status == lib.WGPUQueueWorkDoneStatus_Success, rest[-2])

        self._waiting, self._remember = waiting, remember
        self._map_info = ffi.new("WGPUBufferMapCallbackInfo *")
        self._work_done_info = ffi.new("WGPUQueueWorkDoneCallbackInfo *")
        # For the userdata in each; one apiece, because mapping may block behind a submit.
        self._map_lock, self._work_done_lock = threading.Lock(), threading.Lock()
        self._static = []  # cffi needs the callbacks kept alive
        for info, function in ((self._map_info, mapped), (self._work_done_info, work_done)):
            callback = ffi.callback(ffi.typeof(info.callback), function)
            self._static.append(callback)
            info.mode = lib.WGPUCallbackMode_AllowProcessEvents
            info.callback = callback

    def _make_structs(self) -> None:
        new = self._ffi.new
        self._encoder_descriptor = new("WGPUCommandEncoderDescriptor *")
        self._finish_descriptor = new("WGPUCommandBufferDescriptor *")

    # -- polling --

    def attach(self) -> None:
        _ledger.attach()
        self._poll_guard.attach()

    def detach(self) -> None:
        self._poll_guard.detach()
        _ledger.detach()

    def poll(self) -> None:
        self._lib.wgpuDevicePoll(self._device, False, self._ffi.NULL)

    def outstanding(self) -> int:
        return len(self._waiting)

    def on_work_done(self, done: Done) -> None:
        info = self._work_done_info
        with self._work_done_lock:
            info.userdata1 = self._remember(done)
            self._lib.wgpuQueueOnSubmittedWorkDone(self._queue, info[0])

    def is_lost(self) -> bool:
        error = self._captured(self._lib.wgpuQueueWriteBuffer, self._queue, self._probe._internal, 0, self._ffi.NULL, 0)
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
        mode = wgpu.BufferUsage.MAP_READ if self._is_read_mapped(host_cached) else wgpu.BufferUsage.MAP_WRITE
        with _telling_loss():
            buffer = self.device.create_buffer(
                label="staging buffer",
                size=size,
                usage=mode | wgpu.BufferUsage.COPY_SRC,
                mapped_at_creation=True,
            )
        # Allocation.buffer.handle gives it to users, for whom one of these would end in an abort.
        buffer.destroy = buffer.unmap = buffer.map_async = buffer.map_sync = _refuse
        return buffer

    def _is_read_mapped(self, host_cached: bool) -> bool:
        # MAP_READ memory is what the driver keeps in the host's cache; the feature lets a copy read from it.
        return host_cached and "mappable-primary-buffers" in self.device.features

    def map(self, buffer: Any, done: Done) -> None:
        lib = self._lib
        info = self._map_info
        mode = lib.WGPUMapMode_Read if buffer.usage & wgpu.BufferUsage.MAP_READ else lib.WGPUMapMode_Write
        with self._map_lock:
            info.userdata1 = key = self._remember(done)
            error = self._captured(lib.wgpuBufferMapAsync, buffer._internal, mode, 0, buffer.size, info[0])
        if error is not None:
            late = self._waiting.pop(int(self._ffi.cast("uintptr_t", key)), None)
            if late is not None:
                late(False)

    def address(self, buffer: Any) -> int:
        # A buffer mapped for reading is only lent as const; the memory is the same.
        get = (
            self._lib.wgpuBufferGetConstMappedRange
            if buffer.usage & wgpu.BufferUsage.MAP_READ
            else self._lib.wgpuBufferGetMappedRange
        )
        with _ledger.lock:  # a destroyed buffer or device has unmapped it, and asking then aborts
            if _ledger.is_destroyed(buffer) or self.is_lost():
                raise DeviceLost("the device was lost with staging buffers in flight")
            return int(self._ffi.cast("intptr_t", get(buffer._internal, 0, buffer.size)))

    def unmap(self, buffer: Any) -> None:
        self._captured(self._lib.wgpuBufferUnmap, buffer._internal)  # a lost device has unmapped it already

    def destroy(self, buffer: Any) -> None:
        type(buffer).destroy(buffer)

    # -- submitting --

    def claim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        seen = set()
        with _ledger.lock:
            for command_buffer in command_buffers:
                if not isinstance(command_buffer, wgpu.GPUCommandBuffer):
                    raise InvalidSubmit(f"{type(command_buffer).__name__} is not a GPUCommandBuffer")
                if not self.owns(command_buffer):
                    raise InvalidSubmit("the command buffer belongs to another device than the ring")
                if _ledger.was_submitted(command_buffer) or id(command_buffer) in seen:
                    raise InvalidSubmit("the command buffer was submitted before; a command buffer runs once")
                seen.add(id(command_buffer))
            _ledger.note_submitted(command_buffers)

    def submit(self, copies: Sequence[Copy], command_buffers: Sequence[Any]) -> list[tuple[Copy, InvalidCopy]]:
        with _ledger.lock:  # from the checks to the submit, nothing is destroyed or mapped
            good, refused = self._sift(copies)
            command_buffer, error = self._encode(good)
            if error is not None:
                good, refused = self._find_guilty(good, refused)
                command_buffer, error = self._encode(good)
            if error is not None or self.is_lost():
                raise DeviceLost(error or "the device was lost before the submit")
            ours = [] if command_buffer is None else [command_buffer]
            theirs = [buffer._internal for buffer in command_buffers]
            batch = self._ffi.new("WGPUCommandBuffer[]", ours + theirs)
            self._lib.wgpuQueueSubmit(self._queue, len(batch), batch)
        for buffer in ours:
            self._lib.wgpuCommandBufferRelease(buffer)
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
        if not _ledger.is_known(destination):
            error = self._probe_destroyed(copy)
            _ledger.note(destination, destroyed=error is not None and "destroyed" in error)
        return "the destination was destroyed" if _ledger.is_destroyed(destination) else None

    def _probe_destroyed(self, copy: Copy) -> str | None:
        """The error of a call that only fails, and only if the destination was destroyed before notes were taken."""
        lib, new = self._lib, self._ffi.new
        if isinstance(copy, BufferCopy):  # of an unmapped buffer; it fails in any case, the message tells
            return self._captured(lib.wgpuBufferUnmap, copy.destination._internal)
        layout = new("WGPUTexelCopyBufferLayout *", {"bytesPerRow": 256, "rowsPerImage": 1})
        nothing, target = new("WGPUExtent3D *"), self._texture_info(copy)
        return self._captured(lib.wgpuQueueWriteTexture, self._queue, target, self._ffi.NULL, 0, layout, nothing)

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
                self._lib.wgpuCommandBufferRelease(command_buffer)
            else:
                refused.append((copy, InvalidCopy(f"{copy!r}: {error}")))
        return good, refused

    def _encode(self, copies: Sequence[Copy]) -> tuple[Any, str | None]:
        """(command buffer, error); both None when there is nothing to encode."""
        if not copies:
            return None, None
        lib = self._lib
        encoder = lib.wgpuDeviceCreateCommandEncoder(self._device, self._encoder_descriptor)
        try:
            error = self._captured(self._record, encoder, copies)
            if error is not None:
                return None, error
            with _Capture(self._errors) as capture:
                command_buffer = lib.wgpuCommandEncoderFinish(encoder, self._finish_descriptor)
            return command_buffer, capture.error
        finally:
            lib.wgpuCommandEncoderRelease(encoder)

    def _record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        lib, new = self._lib, self._ffi.new
        copy_buffer, copy_texture = (
            lib.wgpuCommandEncoderCopyBufferToBuffer,
            lib.wgpuCommandEncoderCopyBufferToTexture,
        )
        for copy in copies:
            source = copy.source.handle._internal
            if isinstance(copy, BufferCopy):
                target = copy.destination._internal
                copy_buffer(encoder, source, copy.offset, target, copy.destination_offset, copy.size)
            else:
                info = new("WGPUTexelCopyBufferInfo *")
                info.buffer = source
                info.layout.offset = copy.offset
                info.layout.bytesPerRow = copy.bytes_per_row
                info.layout.rowsPerImage = copy.rows_per_image
                copy_texture(encoder, info, self._texture_info(copy), new("WGPUExtent3D *", copy.size))

    def _texture_info(self, copy: Any) -> Any:
        info = self._ffi.new("WGPUTexelCopyTextureInfo *")
        info.texture = copy.destination._internal
        info.mipLevel = copy.mip_level
        info.origin.x, info.origin.y, info.origin.z = copy.origin
        info.aspect = self._aspects[copy.aspect]
        return info

    def _captured(self, function: Callable[..., Any], *arguments: Any) -> str | None:
        """Call, and return the message of the error that wgpu reported, if it did."""
        with _Capture(self._errors) as capture:
            function(*arguments)
        return capture.error

    # -- a caller's encoder --

    def create_encoder(self) -> Any:
        with _telling_loss():
            return self.device.create_command_encoder()

    def finish_encoder(self, encoder: Any) -> Any:
        with _telling_loss():
            return encoder.finish()

    def record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        if not isinstance(encoder, wgpu.GPUCommandEncoder) or not self.owns(encoder):
            raise InvalidCopy(f"encoder must be a GPUCommandEncoder of the ring's device, not {type(encoder).__name__}")
        _, refused = self._sift(copies)
        if refused:
            raise refused[0][1]
        error = self._captured(self._record, encoder._internal, copies)
        if error is not None:
            raise InvalidCopy(error)

    def create_relay(self, size: int) -> Any:
        usage = wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        with _telling_loss():
            return self.device.create_buffer(label="staging relay", size=size, usage=usage)

    def write_relay(self, relay: Any, data: Any) -> None:
        with _telling_loss():
            self.device.queue.write_buffer(relay, 0, data)

    def is_resource(self, resource: Any, kind: str) -> bool:
        return isinstance(resource, wgpu.GPUBuffer if kind == "buffer" else wgpu.GPUTexture)

    def owns(self, resource: Any) -> bool:
        return getattr(resource, "_device", None) is self.device


def _refuse(*args: Any, **kwargs: Any) -> None:
    raise StagingError("a staging buffer is mapped, unmapped and destroyed by its ring alone")


class _Ledger:
    """What was destroyed and submitted, in all of wgpu-py, while a device is attached.

    Notes are attributes of the objects, with the number of the period in which they were taken: between two periods
    nobody took any.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()
        self._attached = 0
        self._period = 0
        self._originals: list[tuple[type, str, Any]] = []

    def attach(self) -> None:
        from wgpu.backends.wgpu_native import _api

        with self.lock:
            self._attached += 1
            if self._attached == 1:
                self._period += 1
                for owner in (_api.GPUBuffer, _api.GPUTexture, _api.GPUDevice):
                    self._wrap(owner, "destroy", self._destroyed)
                self._wrap(_api.GPUBuffer, "map_async", None)
                self._wrap(_api.GPUQueue, "submit", self._queue_submitted)

    def detach(self) -> None:
        with self.lock:
            self._attached -= 1
            if self._attached == 0:
                for owner, name, original in self._originals:
                    setattr(owner, name, original)
                self._originals.clear()

    def note(self, resource: Any, destroyed: bool) -> None:
        resource._aiostage_fate = self._period, destroyed

    def is_known(self, resource: Any) -> bool:
        """Whether the fate of `resource` has been followed since it was noted first."""
        return getattr(resource, "_aiostage_fate", (0,))[0] == self._period

    def is_destroyed(self, resource: Any) -> bool:
        return bool(getattr(resource, "_aiostage_fate", None) == (self._period, True))

    def note_submitted(self, command_buffers: Iterable[Any]) -> None:
        for command_buffer in command_buffers:
            command_buffer._aiostage_submitted = True

    def was_submitted(self, command_buffer: Any) -> bool:
        return getattr(command_buffer, "_aiostage_submitted", False)

    def _destroyed(self, resource: Any) -> None:
        self.note(resource, destroyed=True)

    def _queue_submitted(self, queue: Any, command_buffers: Iterable[Any]) -> None:
        if isinstance(command_buffers, Sequence):  # anything else could be gone through only once
            if any(map(self.was_submitted, command_buffers)):
                raise InvalidSubmit("a command buffer was submitted before; it runs once")  # wgpu would abort
            self.note_submitted(command_buffers)

    def _wrap(self, owner: type, name: str, note: Callable[..., None] | None) -> None:
        """Have calls of a method wait for the lock, and `note` called with their arguments."""
        original = getattr(owner, name)
        self._originals.append((owner, name, original))

        @functools.wraps(original)
        def wrapper(*args: Any, **kwargs: Any) -> Any:
            with self.lock:
                if note is not None:
                    note(*args, **kwargs)
                return original(*args, **kwargs)

        setattr(owner, name, wrapper)


_ledger = _Ledger()


class _Capture:
    """Collects what wgpu reports in this thread inside the with-block, in place of its logging it."""

    __slots__ = ("_handler", "error")

    def __init__(self, handler: Any) -> None:
        self._handler = handler
        self.error: str | None = None

    def __enter__(self) -> _Capture:
        self._handler.capture("aiostage")
        return self

    def __exit__(self, *exc_info: object) -> None:
        caught = self._handler.release("aiostage")
        if caught is not None:
            self.error = " ".join(caught[1].split())


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
        self._lock = threading.Lock()

    def attach(self) -> None:
        with self._lock:
            self._attached += 1
            if self._attached == 1 and self._poller is not None:
                self._original = self._poller._poll_func
                self._poller._poll_func = self._gentle

    def detach(self) -> None:
        with self._lock:
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
