"""A GPU whose clock the test moves.

`SimulatedGpu` implements `aiostage.gpu.protocol.Native`, so `StagingRing(SimulatedGpu())` works. What it models:

1. `submit` queues work and returns. Nothing of it happens before the test calls `complete`, which does the oldest
   submission: copies read staging memory *then*, as a real GPU may, and change their destinations.
2. A staging buffer's memory is compared with what it was when it was unmapped, when each submission that reads it is
   done and again when it is mapped: a difference is a write to memory that the GPU owned, a *violation*.
3. Maps and fences become due with the submissions that they wait for; `poll` delivers them.
4. What aborts the interpreter with the real library (mapping a mapped buffer, submitting one, …) is an AssertionError
   and a violation too, so that it is seen even where a thread swallows the exception.
"""

from __future__ import annotations

import ctypes
import threading
from collections import deque
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import wgpu
from simulated_table import FUNCTIONS, number_of, set_freed

from aiostage import native
from aiostage.data.copies import BufferCopy, Copy, mip_extent
from aiostage.data.formats import texel_block
from aiostage.errors import DeviceLost, InvalidCopy, InvalidSubmit

Step = Callable[[], object]
Done = Callable[[bool], object]
"""Called by whoever polls, with whether it went well."""


class SimulatedBuffer:
    """A buffer: `bytes` is its memory. Staging buffers are "mapped", "unmapped" or "mapping"."""

    def __init__(self, gpu: SimulatedGpu, size: int, usage: int) -> None:
        self.gpu = gpu
        self.size = size
        self.usage = usage
        self.map_state = "unmapped"
        self.destroyed = False  # somebody has said so
        self.is_freed = False  # and it was done
        self.sealed: bytes | None = None  # what was in it when it was unmapped
        self.last_use = 0  # number of the last submission that reads it
        self._memory = (ctypes.c_ubyte * size)()
        self.address = ctypes.addressof(self._memory)
        self.bytes = np.frombuffer(self._memory, np.uint8)

    def destroy(self) -> None:
        self.destroyed = True
        _gone(self)


class SimulatedTexture:
    """A texture: `level(mip)` is an array (layers, block rows, block columns, bytes of a block)."""

    def __init__(self, gpu: SimulatedGpu, format: str, size: tuple[int, int, int], mip_level_count: int = 1) -> None:
        self.gpu = gpu
        self.format = format
        self.size = size
        self.mip_level_count = mip_level_count
        self.dimension = "2d"
        self.sample_count = 1
        self.usage = wgpu.TextureUsage.COPY_DST
        self.destroyed = False  # somebody has said so
        self.is_freed = False  # and it was done
        self.notes: dict[Any, Any] = {}
        block = texel_block(format)
        self.levels = []
        for mip in range(mip_level_count):
            width, height, layers = mip_extent(self, mip)
            self.levels.append(
                np.zeros((layers, -(-height // block.height), -(-width // block.width), block.nbytes), np.uint8)
            )

    def level(self, mip: int = 0) -> np.ndarray:
        return self.levels[mip]

    @property
    def block(self) -> Any:
        return texel_block(self.format)

    def destroy(self) -> None:
        self.destroyed = True
        _gone(self)


_ignore, _free = map(ctypes.CFUNCTYPE(None, ctypes.c_void_p), (lambda handle: None, set_freed))
_IGNORE, _FREE = (ctypes.cast(function, ctypes.c_void_p).value for function in (_ignore, _free))


def _gone(resource: Any) -> None:
    """As the ledger tells the carrier, which puts it off while a submit is being made."""
    number = number_of(resource)
    if native.gone(number, "the destination was destroyed", _IGNORE, _FREE, _IGNORE):
        set_freed(number)


class SimulatedCommandBuffer:
    """Steps to run, once."""

    def __init__(self, gpu: SimulatedGpu, steps: Sequence[Step]) -> None:
        self.gpu = gpu
        self.steps = steps
        self.claimed = self.submitted = False


class SimulatedEncoder:
    """Records steps: `run(function)` stands for a pass that the caller records."""

    def __init__(self, gpu: SimulatedGpu) -> None:
        self.gpu = gpu
        self.steps: list[Step] = []

    def run(self, step: Step) -> None:
        self.steps.append(step)

    def finish(self) -> SimulatedCommandBuffer:
        return SimulatedCommandBuffer(self.gpu, self.steps)


class SimulatedGpu:
    """See the module. With `free_running` each poll completes one submission by itself.

    `may_submit` is an event that submits wait for: clear it to have `submit` block, as a software adapter's does.
    """

    name = "simulated"
    max_buffer_size = 1 << 30
    functions = FUNCTIONS
    message_in_done = True
    is_stepped = False

    def __init__(self, *, submit_blocks: bool = False, free_running: bool = False) -> None:
        self.submit_blocks = submit_blocks
        self.free_running = free_running
        self.may_submit = threading.Event()
        self.may_submit.set()
        self.violations: list[str] = []
        self.staging: list[SimulatedBuffer] = []
        self.polls = 0
        self.attached = 0
        self.submitted = 0
        self.completed = 0
        self._lost = False
        self._in_flight: deque[list[Step]] = deque()
        self._due: list[tuple[int, Done]] = []  # (number of the submission to wait for, whom to tell)
        self._lock = threading.RLock()

    # -- what tests do --

    def buffer(self, size: int) -> SimulatedBuffer:
        return SimulatedBuffer(self, size, wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC)

    def texture(self, format: str, size: tuple[int, int, int], mip_level_count: int = 1) -> SimulatedTexture:
        return SimulatedTexture(self, format, size, mip_level_count)

    def command_buffer(self, *steps: Step) -> SimulatedCommandBuffer:
        return SimulatedCommandBuffer(self, steps)

    @property
    def in_flight(self) -> int:
        return len(self._in_flight)

    def complete(self, n: int = 1) -> None:
        """Do the oldest `n` submissions."""
        with self._lock:
            for _ in range(n):
                for step in self._in_flight.popleft():
                    step()
                self.completed += 1

    def has_told(self) -> bool:
        """Whether a poll has told of all that is complete."""
        with self._lock:
            return all(number > self.completed for number, _ in self._due)

    def complete_all(self) -> None:
        with self._lock:
            self.complete(len(self._in_flight))

    def destroy_device(self) -> None:
        """Lose it as GPUDevice.destroy does, of which the carrier is told."""
        self.lose()
        native.device_gone(number_of(self), "the device was destroyed")

    def lose(self) -> None:
        """Lose the device: what is in flight never happens."""
        with self._lock:
            self._lost = True
            self._in_flight.clear()
        self.may_submit.set()

    # -- polling --

    def attach(self) -> None:
        self.attached += 1

    def detach(self) -> None:
        self.attached -= 1

    def on_work_done(self, done: Done) -> None:
        with self._lock:
            self._due.append((self.submitted, done))

    def poll(self) -> None:
        with self._lock:
            self.polls += 1
            if self.free_running and self._in_flight:
                self.complete()
            due = [item for item in self._due if self._lost or item[0] <= self.completed]
            self._due = [item for item in self._due if item not in due]
            for _, done in due:
                done(not self._lost)

    def outstanding(self) -> int:
        return len(self._due)

    def is_lost(self, probe: bool = True) -> bool:
        return self._lost

    # -- staging memory --

    def is_host_cached(self, wanted: bool | None) -> bool:
        return bool(wanted)

    @property
    def handles(self) -> tuple[int, int, int]:
        return number_of(self), number_of(self), 0

    def times(self) -> None: ...

    def handle(self, resource: Any) -> int:
        return number_of(resource)

    def map_mode(self, buffer: SimulatedBuffer) -> int:
        return 2

    def create_staging_buffer(self, size: int, host_cached: bool) -> SimulatedBuffer:
        buffer = SimulatedBuffer(self, size, wgpu.BufferUsage.MAP_WRITE | wgpu.BufferUsage.COPY_SRC)
        self.staging.append(buffer)
        return buffer

    def map(self, buffer: SimulatedBuffer, done: Done) -> None:
        with self._lock:
            self._demand(buffer.map_state == "unmapped", f"map of a buffer that is {buffer.map_state}")
            if buffer.destroyed:  # which wgpu takes for an error, and no more
                native.note_error("the buffer was destroyed")
                return
            buffer.map_state = "mapping"
            self._due.append((buffer.last_use, partial(self._mapped, buffer, done)))

    def _mapped(self, buffer: SimulatedBuffer, done: Done, ok: bool) -> None:
        ok = ok and not buffer.destroyed
        if ok:
            self._compare(buffer)
        buffer.map_state = "mapped" if ok else "unmapped"
        done(ok)

    def address(self, buffer: SimulatedBuffer) -> int:
        self._demand(buffer.map_state == "mapped", f"address of a buffer that is {buffer.map_state}")
        return buffer.address

    def unmap(self, buffer: SimulatedBuffer) -> None:
        with self._lock:
            self._demand(self._lost or buffer.map_state == "mapped", f"unmap of a buffer that is {buffer.map_state}")
            buffer.map_state = "unmapped"
            buffer.sealed = buffer.bytes.tobytes()

    def destroy(self, buffer: SimulatedBuffer) -> None:
        buffer.destroyed = True

    # -- submitting --

    def unusable(self, copy: Copy) -> str | None:
        return "the destination was destroyed" if copy.destination.destroyed else None

    def is_first_use(self, copy: Any, used: Any) -> bool:
        return False

    def note_use(self, copies: Any) -> None: ...

    def claim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        for command_buffer in command_buffers:
            if not isinstance(command_buffer, SimulatedCommandBuffer) or not self.owns(command_buffer):
                raise InvalidSubmit("not a command buffer of this GPU")
            if command_buffer.claimed:
                raise InvalidSubmit("the command buffer was submitted before")
        for command_buffer in command_buffers:
            command_buffer.claimed = True

    def unclaim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        for command_buffer in command_buffers:
            command_buffer.claimed = False

    def submit(self, copies: Sequence[Any], command_buffers: Sequence[Any]) -> None:
        if self.submit_blocks:
            self.may_submit.wait()
        with self._lock:
            if self._lost:  # since somebody looked; nothing of it happens
                return
            steps: list[Step] = []
            self.submitted += 1
            for copy in copies:
                self._demand(not copy.destination.is_freed, "submit with a destroyed destination")
                source = copy.source.handle
                self._demand(source.map_state == "unmapped", f"submit of a buffer that is {source.map_state}")
                self._demand(not source.destroyed, "submit of a destroyed buffer")
                source.last_use = self.submitted
                steps.append(partial(self._copy, copy, source))
            for command_buffer in command_buffers:
                self._demand(not command_buffer.submitted, "submit of a command buffer that was submitted")
                command_buffer.submitted = True
                steps.extend(command_buffer.steps)
            self._in_flight.append(steps)

    def _copy(self, copy: Copy, source: SimulatedBuffer) -> None:
        self._compare(source)
        self._demand(copy.offset + copy.nbytes <= source.size, "a copy reads past its staging buffer")
        if isinstance(copy, BufferCopy):
            end = copy.destination_offset + copy.size
            self._demand(end <= copy.destination.size, "a copy writes past its destination")
            copy.destination.bytes[copy.destination_offset : end] = source.bytes[copy.offset : copy.offset + copy.size]
            return
        block = texel_block(copy.destination.format, copy.aspect)
        (x, y, z), (width, height, layers) = copy.origin, copy.size
        x, y, columns, rows = x // block.width, y // block.height, -(-width // block.width), -(-height // block.height)
        target = copy.destination.levels[copy.mip_level][z : z + layers, y : y + rows, x : x + columns]
        for layer in range(layers):
            for row in range(rows):
                start = copy.offset + (layer * copy.rows_per_image + row) * copy.bytes_per_row
                texels = source.bytes[start : start + columns * block.nbytes]
                target[layer, row] = texels.reshape(columns, block.nbytes)

    def _compare(self, buffer: SimulatedBuffer) -> None:
        if buffer.sealed is not None and buffer.sealed != buffer.bytes.tobytes():
            self.violations.append(f"somebody wrote to staging buffer {self.staging.index(buffer)} after its seal")

    def _demand(self, condition: bool, message: str) -> None:
        if not condition:
            self.violations.append(message)
            raise AssertionError(f"with a real GPU this would abort: {message}")

    # -- a caller's encoder --

    def create_encoder(self) -> SimulatedEncoder:
        return SimulatedEncoder(self)

    def finish_encoder(self, encoder: SimulatedEncoder) -> SimulatedCommandBuffer:
        return encoder.finish()

    def record(self, encoder: SimulatedEncoder, copies: Sequence[Copy]) -> None:
        if not isinstance(encoder, SimulatedEncoder):
            raise InvalidCopy("not an encoder of this GPU")
        for copy in copies:
            encoder.run(partial(self._copy, copy, copy.source.handle))

    def create_relay(self, size: int, data: Any = None) -> SimulatedBuffer:
        relay = self.buffer(size)
        if data is not None:
            relay.bytes[: len(data)] = np.frombuffer(data, np.uint8)
        return relay

    # -- textures and pools --

    def create_texture(self, **descriptor: Any) -> SimulatedTexture:
        size, levels = descriptor["size"], descriptor["mip_level_count"]
        return self.texture(descriptor["format"], size, mip_level_count=levels)

    def create_block(self, size: int, usage: int) -> SimulatedBuffer:
        if self._lost:
            raise DeviceLost("the device is lost")
        return SimulatedBuffer(self, size, usage)

    def offset_alignment(self, usage: int) -> int:
        return 256 if usage & (wgpu.BufferUsage.UNIFORM | wgpu.BufferUsage.STORAGE) else 4

    def is_resource(self, resource: Any, kind: str) -> bool:
        return isinstance(resource, SimulatedBuffer if kind == "buffer" else SimulatedTexture)

    def notes(self, resource: Any) -> dict[Any, Any] | None:
        return resource.notes if isinstance(resource, SimulatedTexture) and self.owns(resource) else None

    def owns(self, resource: Any) -> bool:
        return getattr(resource, "gpu", None) is self


async def until(condition: Callable[[], object]) -> None:
    """Let the loop and the threads go on until `condition()`."""
    with anyio.fail_after(30):
        while not condition():
            await anyio.sleep(0.0005)


async def turns(n: int = 20) -> None:
    """Let everything run that is ready, and what that makes ready."""
    for _ in range(n):
        await anyio.lowlevel.checkpoint()
