"""What a client asks for: uploads, coroutines beside the arrays that they need, and arrays back."""

from __future__ import annotations

import inspect
import uuid
from collections.abc import Awaitable, Callable, Iterable, Mapping
from typing import Any

from dask.utils import funcname

from .arrays import PLUGIN, Array, GpuArray, GpuWorker, current


def upload(
    client: Any, chunks: Any, *, texture: Mapping[str, Any] | None = None, usage: int | None = None
) -> list[Any]:
    """A future of a `GpuArray` for each chunk, uploaded by the worker that has the chunk.

    :param client: a `distributed.Client`.
    :param chunks: futures or `dask.delayed` values of arrays; a dask array, of which each block is one, in C order; or
        arrays, which the client sends to the workers.
    :param texture: as for `GpuWorker.upload`, as `usage` is.

    A GPU array is lost with its worker, and made again from its chunk: dask computes that again, unless it was sent by
    the client.
    """
    if hasattr(chunks, "to_delayed"):
        chunks = chunks.to_delayed().ravel()
    return [_submit(client, "upload", _upload, _as_future(client, chunk), texture, usage) for chunk in chunks]


def compute(client: Any, function: Callable[..., Awaitable[Any]], *args: Any, **options: Any) -> Any:
    """A future of `await function(gpu, *args)` on the worker that has the GPU arrays among `args`.

    :param function: a coroutine function. It runs on the worker's event loop, so what of it blocks belongs in
        `gpu.call`. `gpu` is the `GpuWorker`; it returns a `GpuArray` too, or what dask can send.
    :param args: futures, as for `client.submit`; also of what is no GPU array.
    :param options: what else `client.submit` takes, as `priority` and `key`.
    :raises TypeError: it is no coroutine function.

    The task raises WrongWorker if its arrays live on several workers.
    """
    if not inspect.iscoroutinefunction(function):
        raise TypeError(f"{function!r} is no coroutine function (async def): it would hold the worker's event loop")
    return _submit(client, funcname(function), _compute, function, *args, **options)


def fetch(client: Any, arrays: Iterable[Any]) -> list[Any]:
    """A future of a NumPy array for each future of a `GpuArray`: moved through the worker's host memory."""
    return [compute(client, _host_copy, array) for array in arrays]


def _submit(client: Any, name: str, function: Callable[..., Any], *args: Any, **options: Any) -> Any:
    # A key of its own for each: what is done to an array in place is not seen in the arguments.
    defaults = {"key": f"{name}-{uuid.uuid4().hex}", "resources": {PLUGIN: 1}}
    return client.submit(function, *args, **defaults | options)


def _as_future(client: Any, chunk: Any) -> Any:
    if hasattr(chunk, "__dask_graph__"):
        return client.compute(chunk)
    if hasattr(chunk, "key"):
        return chunk
    return client.scatter(chunk, hash=False)  # with a key of its own: that of equal data may be on its way out


async def _upload(chunk: Any, texture: Mapping[str, Any] | None, usage: int | None) -> GpuArray:
    return await current().upload(chunk, texture=texture, usage=usage)


async def _compute(function: Callable[..., Awaitable[Any]], *args: Any) -> Any:
    gpu = current()
    for array in args:
        if isinstance(array, GpuArray):
            gpu.own(array)
    return await function(gpu, *args)


async def _host_copy(gpu: GpuWorker, array: GpuArray) -> Array:
    return await array.fetch()
