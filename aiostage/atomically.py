"""Uploads that are seen whole or not at all.

What fits in one staging buffer is one copy. More goes through scratch memory on the device: there in pieces, as any
upload, and from there to where it belongs by the GPU's own copies, in one submit. Until that one a write has its turn
at the destination, so that none which was begun later overtakes it.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from . import uploads, waiting
from .data import detours
from .data.copies import BufferSlice, Copy, TextureCopy
from .data.detours import Detour
from .data.formats import padded_row
from .data.pieces import Cut, Texels, cut_content, cut_texels
from .engine import scratch
from .engine.engine import Engine
from .engine.relays import Relay
from .engine.turns import Turn
from .errors import InvalidCopy, afresh
from .threads import run_sync


async def write_buffer(
    engine: Engine, buffer: Any, buffer_offset: int, data: Any, data_offset: int, size: int | None
) -> Any:
    """As the ring's. Returns the fence of its one submit."""
    content = await uploads.content_of(engine, buffer, buffer_offset, data, data_offset, size)
    if content.copy.size <= engine.buffer_size:
        return await _write_at_once(engine, cut_content(content, engine.buffer_size))
    return await _write(engine, detours.of_content(content, engine.buffer_size, scratch.largest(engine.native)))


async def write_texture(
    engine: Engine, destination: Mapping[str, Any], data: Any, data_layout: Mapping[str, Any] | None, size: Any
) -> Any:
    """The same with texels."""
    texels = await uploads.texels_of(engine, destination, data, data_layout, size)
    if texels.nbytes <= engine.buffer_size and not _is_shown_early(engine, texels):
        return await _write_at_once(engine, cut_texels(texels, engine.buffer_size))
    return await _write(engine, detours.of_texels(texels, engine.buffer_size, scratch.largest(engine.native)))


def _is_shown_early(engine: Engine, texels: Texels) -> bool:
    """Whether its first block would go before the rest, see `gpu.volumes`; what comes from scratch memory has zeros go
    there, which is what a level holds that nobody has used."""
    region = texels.region
    copy = TextureCopy(None, 0, region, padded_row(region.row_bytes), region.block_rows)
    return not region.is_empty and engine.native.is_first_use(copy, set())


async def turn_of(engine: Engine, destination: Any) -> Turn:
    """A turn at what a write was given as its destination, when no atomic write is before it.

    :raises RingClosed, DeviceLost:
    """
    if isinstance(destination, BufferSlice):
        destination = destination.buffer
    elif isinstance(destination, Mapping):
        destination = destination.get("texture")
    else:
        destination = getattr(destination, "texture", destination)
    turn = engine.turns.take(destination)
    try:
        await waiting.outcome(turn.come)
        engine.check()
    except BaseException:
        turn.__exit__()
        raise
    return turn


async def _write_at_once(engine: Engine, cut: Cut) -> Any:
    """What fits in a staging buffer."""
    with engine.turns.take_atomic(cut.destination, engine.lending.going_to(cut.destination)) as turn:
        await waiting.outcome(turn.come)
        engine.check()
        return await uploads.write_now(engine, cut)


async def _write(engine: Engine, ways: Iterable[Detour]) -> Any:
    """What is more."""
    ways = list(ways)
    copies: list[Copy] = [way.copy for way in ways]
    destination, memory = copies[0].destination, list[Any]()
    if (reason := engine.native.unusable(copies[0])) is not None:
        raise InvalidCopy(f"{copies[0]!r}: {reason}")
    with engine.turns.take_atomic(destination, engine.lending.going_to(destination)) as turn:
        try:
            for way in ways:
                memory.append(await _scratch_for(engine, way.copy.nbytes))
                way.copy.source = Relay(memory[-1])
                await uploads.write_now(engine, way.cut(memory[-1]))
            await waiting.outcome(turn.come)
            engine.check()
            submission = engine.depart_alone(copies)
        except BaseException:
            engine.scratch.give_back(memory, engine.native)
            raise
    made = submission.made
    made.then(lambda _: engine.scratch.give_back(memory, engine.native))
    await waiting.wait_out(lambda: made.is_over, lambda: waiting.outcome(made))
    fence = await waiting.outcome(made)
    if submission.failures:
        raise afresh(submission.failures[0][1])
    return fence


async def _scratch_for(engine: Engine, nbytes: int) -> Any:
    """Scratch memory of so many bytes, to be given back. :raises OutOfMemory, DeviceLost, RingClosed:"""
    found = engine.scratch.take(nbytes)
    if found is None:
        found = await run_sync(scratch.create, engine.native, nbytes)
        engine.scratch.add(found)
    try:
        engine.check()
    except BaseException:
        engine.scratch.give_back([found], engine.native)
        raise
    return found
