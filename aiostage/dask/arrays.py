"""What lives on a worker: its device and ring, and arrays on that device, which are dask keys."""

from __future__ import annotations

import math
import weakref
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any, NoReturn, TypeVar

import numpy as np
import numpy.typing as npt
import wgpu
from dask.sizeof import sizeof
from distributed import get_worker
from distributed.protocol import dask_deserialize, dask_serialize

from ..budget import MemoryBudget
from ..data.formats import padded_row
from ..errors import StagingError
from ..ring import StagingRing
from ..threads import run_sync

T = TypeVar("T")
Array = npt.NDArray[Any]

PLUGIN = "aiostage"
"""The name of the plugin on a worker, and of the resource that a worker with a ring offers."""

_COPIES = int(wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC)  # textures have the same two under other numbers


class WrongWorker(StagingError, RuntimeError):
    """A `GpuArray` was used where it does not live, or a task that needs a GPU runs on a worker that has none.

    What to do: give the array to a task, which goes where it is, or `fetch` it.
    """


class GpuArray:
    """An array in a buffer or a texture of one worker's device. As the result of a task it stays there, as a dask key.

    Made by `GpuWorker.upload` or `GpuWorker.empty`. The memory is given back when dask forgets the key and no task has
    the array any more. What dask sends elsewhere, as `future.result()` does, is a handle: it knows `shape`, `dtype`,
    `nbytes` and `worker`, and raises WrongWorker when it is asked for more.
    """

    def __init__(self, gpu: GpuWorker | None, resource: Any, shape: tuple[int, ...], dtype: Any, worker: str) -> None:
        self._gpu = gpu
        self._resource = resource
        self.shape = shape
        self.dtype = np.dtype(dtype)
        self.worker = worker
        """The address of the worker that it lives on."""

    @property
    def nbytes(self) -> int:
        """Bytes of the items, without what the GPU pads."""
        return int(math.prod(self.shape) * self.dtype.itemsize)

    @property
    def buffer(self) -> wgpu.GPUBuffer:
        """The wgpu.GPUBuffer. :raises WrongWorker: on another worker. :raises TypeError: it is in a texture."""
        return self._of(wgpu.GPUBuffer)

    @property
    def texture(self) -> wgpu.GPUTexture:
        """The wgpu.GPUTexture. :raises WrongWorker: on another worker. :raises TypeError: it is in a buffer."""
        return self._of(wgpu.GPUTexture)

    async def fetch(self) -> Array:
        """A copy in the host's memory, which may go anywhere. On its worker; clients have `aiostage.dask.fetch`.

        :raises WrongWorker: on another worker.
        """
        gpu = self.home()
        if isinstance(self._resource, wgpu.GPUTexture):
            return await _fetch_texture(gpu, self)
        return await _fetch_buffer(gpu, self)

    def home(self) -> GpuWorker:
        """What it lives on. :raises WrongWorker: that is not in this process."""
        if self._gpu is None:
            raise WrongWorker(f"{self!r} cannot be used elsewhere; fetch() there gives an array that may go anywhere")
        return self._gpu

    def _of(self, kind: type) -> Any:
        self.home()
        if not isinstance(self._resource, kind):
            raise TypeError(f"{self!r} is in a {type(self._resource).__name__}, not in a {kind.__name__}")
        return self._resource

    def __reduce__(self) -> NoReturn:
        # Of dask's spilling to disk, too: the file would have no bytes of it, and the memory would be given back.
        raise TypeError(f"{self!r} cannot be pickled; fetch() there gives an array that can")

    def __repr__(self) -> str:
        return f"<GpuArray {self.shape} of {self.dtype} on worker {self.worker}>"


def _to_elsewhere(array: GpuArray, context: Any = None) -> tuple[dict[str, Any], list[bytes]]:
    """As a handle, over the wire: dask waits for ever for a key that a peer fails to send (dask/distributed#6705)."""
    if context is None:  # no wire: the disk
        array.__reduce__()
    return {"shape": array.shape, "dtype": array.dtype.str, "worker": array.worker}, []


def _from_elsewhere(header: dict[str, Any], frames: list[bytes]) -> GpuArray:
    return GpuArray(None, None, tuple(header["shape"]), header["dtype"], header["worker"])


dask_serialize.register(GpuArray)(_to_elsewhere)
dask_deserialize.register(GpuArray)(_from_elsewhere)
sizeof.register(GpuArray)(lambda array: 256)  # of the host's memory, which is what dask keeps account of


class GpuWorker:
    """What a task on a worker has there: `device`, `ring`, and `memory`, the budget of its arrays.

    All methods are for coroutines on the worker's event loop. What of wgpu blocks is called in threads.
    """

    def __init__(self, worker: str, device: Any, ring: StagingRing, memory: MemoryBudget) -> None:
        self.worker = worker
        """The address of the worker."""
        self.device = device
        self.ring = ring
        self.memory = memory
        """Bytes of arrays that are alive, and their limit."""
        self._pipelines: dict[tuple[str, str], Any] = {}

    async def upload(
        self, data: Any, *, texture: Mapping[str, Any] | None = None, usage: int | None = None
    ) -> GpuArray:
        """`data` on the device, through the ring.

        :param data: an array; of items of any size, where it goes to a buffer.
        :param texture: "size", "format" and what else `create_texture` takes, for a texture in place of a buffer.
        :param usage: flags beside those of copies; by default STORAGE for buffers, TEXTURE_BINDING for textures.
        :raises BudgetExceeded: the arrays of this worker would exceed its budget; nothing was created.
        :raises InvalidCopy: WebGPU would refuse it.
        """
        array = data if isinstance(data, np.ndarray) else await run_sync(np.asarray, data)
        made = await self._make(array.shape, array.dtype, texture, usage)
        if texture is not None:
            await self.ring.write_texture({"texture": made.texture}, array)
            return made
        if array.nbytes % 4:  # WebGPU copies words
            array = await run_sync(_padded, array)
        await self.ring.write_buffer(made.buffer, 0, array)
        return made

    async def empty(self, shape: Sequence[int], dtype: Any, *, usage: int | None = None) -> GpuArray:
        """An array of zeros in a buffer, for shaders to write to. :raises BudgetExceeded: as `upload`."""
        return await self._make(tuple(shape), np.dtype(dtype), None, usage)

    async def run(self, code: str, *arrays: GpuArray, groups: Sequence[int], entry: str = "main") -> None:
        """Run a compute shader over buffers, which are the bindings 0, 1, … of its group 0, and wait until it is done.

        :param code: WGSL; compiled once on each worker.
        :param groups: workgroups along x, y and z.
        :raises WrongWorker: an array lives elsewhere.
        """
        pipeline = self._pipelines.get((code, entry))
        if pipeline is None:
            pipeline = self._pipelines[code, entry] = await run_sync(self._compile, code, entry)
        entries = [{"binding": i, "resource": {"buffer": self.own(array).buffer}} for i, array in enumerate(arrays)]
        encoder = self.device.create_command_encoder()
        work = encoder.begin_compute_pass()
        work.set_pipeline(pipeline)
        work.set_bind_group(0, self.device.create_bind_group(layout=pipeline.get_bind_group_layout(0), entries=entries))
        work.dispatch_workgroups(*groups)
        work.end()
        await (await self.ring.submit([encoder.finish()]))

    async def call(self, function: Callable[..., T], *args: Any) -> T:
        """`function(*args)` in a thread, for what of wgpu blocks."""
        return await run_sync(function, *args)

    def own(self, array: GpuArray) -> GpuArray:
        """`array`. :raises WrongWorker: it lives elsewhere."""
        if array._gpu is self:
            return array
        if array.worker == self.worker:
            raise WrongWorker(f"{array!r} cannot be used any more: the plugin that it was made with was replaced")
        raise WrongWorker(
            f"{array!r} cannot be used on {self.worker}; fetch() there gives an array that may go anywhere"
        )

    async def _make(
        self, shape: tuple[int, ...], dtype: np.dtype[Any], texture: Mapping[str, Any] | None, usage: int | None
    ) -> GpuArray:
        nbytes = math.prod(shape) * dtype.itemsize
        if not nbytes or dtype.hasobject:
            raise ValueError(f"there can be no array of shape {shape} and {dtype} on a GPU")
        self.memory.reserve(nbytes)
        try:
            if texture is None:
                more = int(wgpu.BufferUsage.STORAGE) if usage is None else usage
                create = partial(self.device.create_buffer, size=-(-nbytes // 4) * 4, usage=_COPIES | more)
            else:
                more = int(wgpu.TextureUsage.TEXTURE_BINDING) if usage is None else usage
                copies = int(wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC)
                create = partial(self.device.create_texture, **texture, usage=copies | more)
            array = GpuArray(self, await run_sync(create), shape, dtype, self.worker)
        except BaseException:
            self.memory.release(nbytes)
            raise
        weakref.finalize(array, self.memory.release, nbytes).atexit = False
        return array

    def _compile(self, code: str, entry: str) -> Any:
        module = self.device.create_shader_module(code=code)
        return self.device.create_compute_pipeline(layout="auto", compute={"module": module, "entry_point": entry})


def current() -> GpuWorker:
    """What the worker has that this task runs on. :raises WrongWorker: it has no ring, or this is no task."""
    try:
        worker = get_worker()
    except ValueError:
        raise WrongWorker("this is no task on a dask worker") from None
    plugin = worker.plugins.get(PLUGIN)
    gpu: GpuWorker | None = plugin and plugin.gpu
    if gpu is None:
        raise WrongWorker(f"worker {worker.name} ({worker.address}) has no ring; register a RingPlugin")
    return gpu


def _padded(array: Array) -> Array:
    raw = np.frombuffer(array.tobytes(), np.uint8)
    return np.pad(raw, (0, -raw.size % 4))


async def _fetch_buffer(gpu: GpuWorker, array: GpuArray) -> Array:
    source = array.buffer
    encoder = gpu.device.create_command_encoder()
    target = await _readable(gpu, source.size)
    encoder.copy_buffer_to_buffer(source, 0, target, 0, source.size)
    raw = await _read(gpu, encoder, target)
    items: Array = raw[: array.nbytes].view(array.dtype)
    return items.reshape(array.shape)


async def _fetch_texture(gpu: GpuWorker, array: GpuArray) -> Array:
    source = array.texture
    width, height, depth = source.size
    row = array.nbytes // (height * depth)
    padded = padded_row(row)
    encoder = gpu.device.create_command_encoder()
    target = await _readable(gpu, padded * height * depth)
    layout = {"buffer": target, "bytes_per_row": padded, "rows_per_image": height}
    encoder.copy_texture_to_buffer({"texture": source}, layout, (width, height, depth))
    rows = (await _read(gpu, encoder, target)).reshape(height * depth, padded)
    items: Array = np.ascontiguousarray(rows[:, :row]).view(array.dtype)
    return items.reshape(array.shape)


async def _readable(gpu: GpuWorker, size: int) -> Any:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.MAP_READ
    return await run_sync(partial(gpu.device.create_buffer, size=size, usage=usage))


async def _read(gpu: GpuWorker, encoder: Any, target: Any) -> Array:
    """Submit what copies to `target`, and what is in there then."""
    await (await gpu.ring.submit([encoder.finish()]))
    return await run_sync(_mapped, target)


def _mapped(target: Any) -> Array:
    target.map_sync(wgpu.MapMode.READ)
    content = np.frombuffer(target.read_mapped(), np.uint8)  # a copy
    target.destroy()
    return content
