"""Copies that read from a relay, a buffer of their own, in place of a staging buffer that cannot depart for them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from ..data.copies import BufferCopy, Copy, SmallCopies
from ..errors import InvalidCopy, afresh
from .buffer import Place, StagingBuffer
from .engine import Engine


class Relay(NamedTuple):
    """Takes the place of a copy's source."""

    handle: Any


def record(engine: Engine, place: Place, recorded: Sequence[tuple[Any, Copy]], stays: bool) -> None:
    """Record a slot's copies into its caller's encoders; it `stays` in flight for copies of the ring's own.

    The caller may submit those at any time, or never, so they must not read from a staging buffer, which has to be
    unmapped then and comes back afterwards. They read from a relay, which the ring fills: in device memory, by a copy
    that goes before what anybody submits; or at once, if the buffer cannot be sealed now, or a submit would take long.

    :raises InvalidCopy: an encoder takes none; the others have theirs all the same.
    """
    load, padding, data = place.load, -place.size % 4, None
    if load.is_busy or engine.slots.blocked() or padding or engine.native.submit_blocks:
        data = place.memory
    relay = engine.native.create_relay(place.size + padding, data)
    refused: list[InvalidCopy] = []
    for encoder, copy in recorded:
        copy.offset -= place.offset
        copy.source = Relay(relay)
        try:
            engine.native.record(encoder, [copy])
        except InvalidCopy as error:
            refused.append(afresh(error))
    if data is None and len(refused) < len(recorded):
        engine.slots.stage(BufferCopy(place.buffer, place.offset, relay, 0, place.size))
        engine.depart(engine.slots, engine.slots.sealable(), is_urgent=True)
    elif not stays:
        load.used -= place.size
    if refused:
        raise refused[0]


def lift(engine: Engine, held: StagingBuffer) -> Callable[[], None]:
    """A job that moves the copies out of a buffer that is held open, with no other one needed."""
    copies = [copy for copy in engine.slots.copies if copy.source is held and not isinstance(copy, SmallCopies)]

    def job() -> None:
        for copy in copies:
            assert held.memory is not None
            data = held.memory[copy.offset : copy.offset + copy.nbytes]
            relay = engine.native.create_relay(copy.nbytes + -copy.nbytes % 4, data)
            copy.source, copy.offset = Relay(relay), 0

    return job
