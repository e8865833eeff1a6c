"""Finding the adapter, opening the device, reading textures back.

All of it blocks for a moment, before or after the work, when nobody else is on the loop: what wgpu-py has for
coroutines cannot be awaited on uvloop.
"""

from __future__ import annotations

import logging
import os
from collections.abc import AsyncIterator
from contextlib import AsyncExitStack, asynccontextmanager
from typing import Any

import numpy as np
import wgpu

from ...errors import StagingError
from ...ring import StagingRing
from ..status import UsageError
from .tiles import TEXEL, Pixels

NO_ADAPTER = "no usable GPU adapter found (on Debian, software Vulkan: apt-get install mesa-vulkan-drivers libvulkan1)"


def find_adapter() -> Any:
    """The adapter that the demo runs on: the one wgpu calls high-performance."""
    # Mesa's software driver complains on stderr where this is unset; it needs no more than some directory.
    os.environ.setdefault("XDG_RUNTIME_DIR", "/tmp")
    logging.getLogger("wgpu").setLevel(logging.ERROR)  # wgpu 0.31 warns of every extension that a driver lacks
    try:
        adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    except RuntimeError as error:
        raise UsageError(NO_ADAPTER) from error
    except ValueError as error:  # its name was given, and is nobody's
        raise UsageError(f"WGPUPY_WGPU_ADAPTER_NAME: {error}") from error
    if adapter is None:
        raise UsageError(NO_ADAPTER)
    return adapter


def describe(adapter: Any) -> str:
    return describe_document(as_document(adapter))


def as_document(adapter: Any) -> dict[str, str]:
    """What a JSON document says of an adapter."""
    info = adapter.info
    return {
        "name": info["device"],
        "type": info["adapter_type"],
        "backend": info["backend_type"],
        "driver": info["description"],
    }


def describe_document(adapter: dict[str, Any]) -> str:
    return f"{adapter['name']} ({adapter['type']}, {adapter['backend']})"


@asynccontextmanager
async def open_ring(device: Any, ring_count: int | None, buffer_size: int | None) -> AsyncIterator[StagingRing]:
    """A ring of the sizes that the user asked for; None is the ring's own choice. UsageError if there cannot be one."""
    async with AsyncExitStack() as stack:
        try:
            ring = await stack.enter_async_context(StagingRing(device, ring_count, buffer_size))
        except (ValueError, StagingError) as error:
            raise UsageError(f"there cannot be such a ring: {error}") from error
        yield ring


def memory_kind(host_cached: bool) -> str:
    """Where a ring's staging memory lies."""
    return "host-cached memory" if host_cached else "MAP_WRITE memory: fast to write, may be slow to read"


def open_device(adapter: Any, layers: int) -> Any:
    """A device whose texture arrays may have `layers` layers; never asks for less than the WebGPU default."""
    return adapter.request_device_sync(
        label="aiostage demo", required_limits={"max-texture-array-layers": max(256, layers)}
    )


def read_layers(device: Any, texture: Any, first: int, count: int) -> Pixels:
    """Layers of an rgba8unorm texture as (count, height, width, 4)."""
    width, height, _ = texture.size
    pixels = device.queue.read_texture(
        {"texture": texture, "origin": (0, 0, first)},
        {"bytes_per_row": width * TEXEL, "rows_per_image": height},
        (width, height, count),
    )
    return np.frombuffer(pixels, np.uint8).reshape(count, height, width, TEXEL)
