"""What the carrier and the fences need of a GPU: small enough to be simulated."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any, NamedTuple, Protocol, runtime_checkable

from ..data.copies import Copy, Staged, TextureCopy


class Times(NamedTuple):
    """As `native.Carrier.time` takes them."""

    keeps: object
    """What has the objects behind the handles."""
    write: int
    resolve: int
    queries: int
    resolved: int
    results: tuple[int, ...]
    period: float
    """Seconds of a tick."""


@runtime_checkable
class Native(Protocol):
    """A GPU device and its queue, as much of it as staging needs. All methods may be called from any thread."""

    name: str
    """What it is called in a trace: some words in ASCII."""
    submit_blocks: bool
    """Whether a submit may wait for earlier GPU work (software adapters' do)."""
    max_buffer_size: int
    functions: tuple[int, ...]
    """Addresses of the C functions that the carrier calls, in the order of `native.functions()`."""
    handles: tuple[int, int, int]
    """Of the device, its queue, and a buffer that nobody uses."""
    message_in_done: bool
    """Whether this wgpu-native has a message for those who wait for work to be done."""
    is_stepped: bool
    """Whether a test makes the steps of the carrier's threads."""

    def attach(self) -> None:
        """Keep blocking polls off this device until as many calls of `detach`."""

    def detach(self) -> None: ...

    def times(self) -> Times | None:
        """What it takes to ask how long submits take; None: the device has no timestamps between commands."""

    def handle(self, resource: Any) -> int:
        """The C object behind a buffer, texture or command buffer, as a number."""

    def create_staging_buffer(self, size: int, host_cached: bool) -> Any:
        """A new staging buffer of `size` bytes, which the carrier maps. :raises OutOfMemory:"""

    def map_mode(self, buffer: Any) -> int:
        """How a staging buffer is mapped."""

    def is_host_cached(self, wanted: bool | None) -> bool:
        """Whether staging memory can be read fast. :raises ValueError: if it is `wanted` and cannot be had."""

    def destroy(self, buffer: Any) -> None: ...

    def unusable(self, copy: Staged) -> str | None:
        """Why a copy would have its submit abort, as its destination is now; or None."""

    def is_first_use(self, copy: TextureCopy, used: set[tuple[int, int]]) -> bool:
        """Whether its level has to be used before it, see `volumes`; `used` has those that its encoder has used."""

    def note_use(self, copies: Iterable[Staged]) -> None:
        """These are submitted."""

    def claim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        """Have nobody else submit them. :raises InvalidSubmit: one is unfit for this queue; none is claimed."""

    def unclaim_command_buffers(self, command_buffers: Sequence[Any]) -> None:
        """They were not submitted after all."""

    def is_lost(self, probe: bool = True) -> bool:
        """Whether the device is gone; without `probe`, as far as is known at no cost: whether somebody destroyed it."""

    def create_encoder(self) -> Any: ...

    def finish_encoder(self, encoder: Any) -> Any: ...

    def record(self, encoder: Any, copies: Sequence[Copy]) -> None:
        """Record copies whose source is a relay into a caller's encoder. :raises InvalidCopy:"""

    def create_relay(self, size: int, data: Any = None) -> Any:
        """A buffer that copies go through on their way into a caller's encoder: in device memory, to be copied to; or
        with `data` in it, followed by zeros. The queue has no part in that, which might be held up by a submit."""

    def create_texture(self, **descriptor: Any) -> Any:
        """As wgpu does. :raises DeviceLost, OutOfMemory:"""

    def create_block(self, size: int, usage: int) -> Any:
        """A buffer that many share, as the blocks of a pool: its users cannot destroy it. :raises DeviceLost:"""

    def offset_alignment(self, usage: int) -> int:
        """What the offset of a binding of such a buffer must be a multiple of."""

    def is_resource(self, resource: Any, kind: str) -> bool:
        """Whether `resource` is a "buffer" or "texture" of this kind of device."""

    def owns(self, resource: Any) -> bool: ...

    def notes(self, resource: Any) -> dict[Any, Any] | None:
        """Notes about a resource of this device, which live as long as it does; None for anything else."""
