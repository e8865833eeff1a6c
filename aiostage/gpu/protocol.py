"""What the carrier and the fences need of a GPU: small enough to be simulated."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol, runtime_checkable

from ..data.copies import Copy
from ..errors import DeviceLost, InvalidCopy

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
        """A new staging buffer of `size` bytes, to be mapped. :raises OutOfMemory:"""

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

    def is_lost(self, probe: bool = True) -> bool:
        """Whether the device is gone; without `probe`, as far as is known at no cost: whether somebody destroyed it."""

    def create_encoder(self) -> Any: ...

    def finish_encoder(self, encoder: Any) -> Any: ...

    def record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        """Record copies whose source is a relay into a caller's encoder. :raises InvalidCopy:"""

    def create_relay(self, size: int, data: Any = None) -> Any:
        """A buffer that copies go through on their way into a caller's encoder: in device memory, to be copied to; or
        with `data` in it, followed by zeros. The queue has no part in that, which might be held up by a submit."""

    def create_block(self, size: int, usage: int) -> Any:
        """A buffer that many share, as the blocks of a pool: its users cannot destroy it. :raises DeviceLost:"""

    def offset_alignment(self, usage: int) -> int:
        """What the offset of a binding of such a buffer must be a multiple of."""

    def is_resource(self, resource: Any, kind: str) -> bool:
        """Whether `resource` is a "buffer" or "texture" of this kind of device."""

    def owns(self, resource: Any) -> bool: ...


def map_first(native: Native, buffers: Sequence[Any]) -> None:
    """Map new staging buffers, and wait for it; not on a loop. :raises DeviceLost:"""
    mapped: list[bool] = []
    for buffer in buffers:
        native.map(buffer, mapped.append)
    while len(mapped) < len(buffers):
        native.poll()
        if len(mapped) < len(buffers) and native.is_lost():
            break
        time.sleep(0)  # another thread's poll may be what delivers them
    if len(mapped) < len(buffers) or not all(mapped):
        raise DeviceLost("the device was lost while its ring was opened")
