"""No view of an allocation's memory does silent harm once the allocation is committed, as far as that can be known.

Three kinds. *Known* views turn read-only at commit. *Foreign* ones, made from `slot.view`, keep it from being
committed. *Hidden* ones were made from an array or the view by something that only keeps that alive, as
`np.asarray` and torch do: nobody sees them but `strict_views=True`, which tolerates nothing at all.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import numpy as np
import pytest
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import Allocation, BufferState, StagingRing

OpenRing = Callable[..., Awaitable[StagingRing]]
Make = Callable[[Allocation], Any]

SIZE = 64


class PointerConsumer:
    """What torch.from_numpy and other takers of `__array_interface__` are: an address, and the array kept alive."""

    def __init__(self, array: np.ndarray) -> None:
        self._kept = array
        self._bytes = (ctypes.c_ubyte * array.nbytes).from_address(array.__array_interface__["data"][0])

    def __setitem__(self, index: Any, value: Any) -> None:
        self._bytes[0] = value


class BufferConsumer(PointerConsumer):
    """What torch.frombuffer is: an address, and the memoryview kept alive, but no export of it."""

    def __init__(self, view: memoryview) -> None:
        self._kept = view
        self._bytes = (ctypes.c_ubyte * len(view)).from_address(ctypes.addressof(ctypes.c_char.from_buffer(view)))


def torch_or(name: str, otherwise: Callable[[Any], Any]) -> Callable[[Any], Any]:
    """torch's function, or what does to the memory what it does, where torch is not installed."""
    if importlib.util.find_spec("torch") is None:
        return otherwise
    torch: Any = __import__("torch")
    return {
        "frombuffer": lambda view: torch.frombuffer(view, dtype=torch.uint8),
        "from_numpy": lambda array: torch.from_numpy(np.asarray(array)),
    }[name]


torch_frombuffer = torch_or("frombuffer", BufferConsumer)
torch_from_numpy = torch_or("from_numpy", PointerConsumer)

KNOWN: dict[str, Make] = {
    "array": lambda slot: slot.array(),
    "array of another type": lambda slot: slot.array(np.float32, (4, 4)),
    "row": lambda slot: slot.array(np.uint8, (8, 8))[3],
    "slice": lambda slot: slot.array()[8:16],
    "slice of a slice": lambda slot: slot.array()[8:32][::2],
    "reversed": lambda slot: slot.array()[::-1],
    "reshape": lambda slot: slot.array().reshape(8, 8),
    "transpose": lambda slot: slot.array(np.uint8, (4, 16)).T,
    "view as another type": lambda slot: slot.array().view(np.uint16),
    "flat": lambda slot: slot.array().flat,
    "field": lambda slot: slot.array([("x", np.uint8), ("y", np.uint8)])["y"],
    "the memoryview itself": lambda slot: slot.view,
}
FOREIGN: dict[str, Make] = {
    "memoryview of the view": lambda slot: memoryview(slot.view),
    "slice of the view": lambda slot: slot.view[8:16],
    "cast of the view": lambda slot: slot.view.cast("I"),
    "np.asarray(slot.view)": lambda slot: np.asarray(slot.view),
    "np.frombuffer(slot.view)": lambda slot: np.frombuffer(slot.view, np.uint8),
    "a row of np.asarray(slot.view)": lambda slot: np.asarray(slot.view).reshape(8, 8)[2],
    "ctypes from_buffer(slot.view)": lambda slot: (ctypes.c_ubyte * SIZE).from_buffer(slot.view),
    "a memoryview of np.asarray(slot.view)": lambda slot: memoryview(np.asarray(slot.view)),
}
HIDDEN: dict[str, Make] = {
    "torch.frombuffer(slot.view)": lambda slot: torch_frombuffer(slot.view),
    "np.asarray(slot.array())": lambda slot: np.asarray(slot.array()),
    "np.frombuffer(slot.array())": lambda slot: np.frombuffer(slot.array(), np.uint8),
    "memoryview(slot.array())": lambda slot: memoryview(slot.array()),
    "ctypes from_buffer(slot.array())": lambda slot: (ctypes.c_ubyte * SIZE).from_buffer(slot.array()),
    "torch.from_numpy(slot.array())": lambda slot: torch_from_numpy(slot.array()),
}


def kinds(*tables: dict[str, Make]) -> pytest.MarkDecorator:
    table = {name: make for table in tables for name, make in table.items()}
    return pytest.mark.parametrize("make", table.values(), ids=table)


def write(view: Any) -> None:
    """Write to a view; into a released memoryview and a read-only array it raises ValueError or TypeError."""
    view[0] = 99 if not isinstance(view, np.ndarray) or view.ndim < 2 else view[0] * 0 + 99


async def trip(ring: StagingRing, gpu: SimulatedGpu) -> None:
    """Have everything submitted go to the GPU and come back."""
    fence = await ring.submit()
    gpu.complete_all()
    await fence
    await until(lambda: BufferState.FENCED not in ring.stats_nowait().buffer_states)


@pytest.fixture
async def ring(simulated_ring: OpenRing) -> StagingRing:
    return await simulated_ring(ring_count=1, buffer_size=SIZE)


@pytest.fixture
async def strict_ring(simulated_ring: OpenRing) -> StagingRing:
    return await simulated_ring(ring_count=1, buffer_size=SIZE, strict_views=True)


# -- views that are known --


@kinds(KNOWN)
async def test_a_known_view_is_writable_until_commit_and_never_after(
    gpu: SimulatedGpu, ring: StagingRing, make: Make
) -> None:
    target = gpu.buffer(SIZE)
    with await ring.allocate(SIZE) as slot:
        view = make(slot)
        write(view)
        slot.copy_to_buffer(target)
    with pytest.raises(ValueError):
        write(view)
    fence = await ring.submit()
    with pytest.raises(ValueError):
        write(view)
    gpu.complete()
    await fence
    assert target.bytes.any()
    await until(lambda: ring.stats_nowait().buffer_states == (BufferState.AVAILABLE,))
    with await ring.allocate(SIZE):  # somebody else has the memory now
        with pytest.raises(ValueError):
            write(view)


async def test_views_made_late_from_a_view_of_a_committed_slot_are_read_only(
    gpu: SimulatedGpu, ring: StagingRing
) -> None:
    with await ring.allocate(SIZE) as slot:
        array = slot.array()
    for late in (array[4:], array.reshape(8, 8), np.asarray(array), array.view(np.uint32)):
        assert not late.flags.writeable
    with pytest.raises((ValueError, TypeError)):
        memoryview(array)[0] = 1


@pytest.mark.parametrize("strict", [False, True])
async def test_results_of_arithmetic_are_the_users_own(
    simulated_ring: OpenRing, gpu: SimulatedGpu, strict: bool
) -> None:
    ring = await simulated_ring(buffer_size=SIZE, strict_views=strict)
    with await ring.allocate(SIZE) as slot:
        array = slot.array()
        array[:] = 2
        sums, copied, total = array + 1, array.copy(), array.sum()
        del array
    sums[:] = 7
    copied[:] = 7
    assert total == 2 * SIZE


async def test_a_loop_over_rows_keeps_no_record_of_those_that_are_gone(ring: StagingRing) -> None:
    with await ring.allocate(SIZE) as slot:
        rows = slot.array(np.uint8, (SIZE, 1))
        for _ in range(100):
            for row in rows:
                row[:] = 1
        assert len(slot._views._arrays) < 200


async def test_an_abandoned_slots_arrays_are_read_only_too(ring: StagingRing) -> None:
    slot = await ring.allocate(SIZE)
    array, view = slot.array(), slot.view
    slot.abandon()
    with pytest.raises(ValueError):
        array[0] = 1
    with pytest.raises(ValueError):
        view[0] = 1


# -- views that are foreign --


@kinds(FOREIGN)
async def test_a_foreign_view_keeps_a_slot_from_being_committed_until_it_is_gone(
    gpu: SimulatedGpu, ring: StagingRing, make: Make
) -> None:
    target = gpu.buffer(SIZE)
    slot = await ring.allocate(SIZE)
    slot.copy_to_buffer(target)
    view = make(slot)
    with pytest.raises(aiostage.ViewStillAlive):
        slot.commit()
    write(view)  # for the allocation is still open
    del view
    gc.collect()
    slot.view[-1] = 5  # can be made again
    slot.array()[1] = 6
    slot.commit()
    await trip(ring, gpu)
    assert 99 in target.bytes
    assert (target.bytes[1], target.bytes[-1]) == (6, 5)


async def test_a_view_that_is_held_while_a_slice_of_it_forbids_the_commit_can_be_made_again(
    gpu: SimulatedGpu, ring: StagingRing
) -> None:
    slot = await ring.allocate(SIZE)
    view = slot.view
    piece = view[4:8]
    with pytest.raises(aiostage.ViewStillAlive):
        slot.commit()
    slot.view[:] = bytes(SIZE)
    del piece
    slot.commit()


@kinds(FOREIGN)
async def test_a_with_block_that_leaves_a_foreign_view_gives_its_memory_to_nobody(
    gpu: SimulatedGpu, ring: StagingRing, make: Make
) -> None:
    target = gpu.buffer(SIZE)
    with pytest.raises(aiostage.ViewStillAlive):
        with await ring.allocate(SIZE) as slot:
            slot.copy_to_buffer(target)
            view = make(slot)
    with pytest.raises(anyio.WouldBlock):
        ring.allocate_nowait(SIZE)
    write(view)  # harms nobody
    await turns()
    with pytest.raises(anyio.WouldBlock):
        ring.allocate_nowait(SIZE)
    waiter = ring.allocate(SIZE)
    del view
    gc.collect()
    with anyio.fail_after(30):
        (await waiter).abandon()
    assert not target.bytes.any()


async def test_views_that_keep_every_buffer_are_named_when_an_allocation_stalls(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring = await simulated_ring(ring_count=1, stall_timeout=0.01)
    slot = await ring.allocate(4)
    view = memoryview(slot.view)
    slot.abandon()
    with pytest.raises(aiostage.StallTimeout, match="buffer 0: a view of an abandoned allocation"):
        await ring.allocate(4)
    del view


async def test_the_exception_is_a_buffer_error_as_pythons_own_is(ring: StagingRing) -> None:
    slot = await ring.allocate(SIZE)
    view = memoryview(slot.view)
    with pytest.raises(BufferError):
        slot.commit()
    del view
    slot.commit()


# -- views that are hidden, and strictness --


@kinds(HIDDEN)
async def test_a_hidden_view_that_is_gone_by_then_forbids_nothing(
    gpu: SimulatedGpu, strict_ring: StagingRing, make: Make
) -> None:
    target = gpu.buffer(SIZE)
    with await strict_ring.allocate(SIZE) as slot:
        write(make(slot))
        slot.copy_to_buffer(target)
    await trip(strict_ring, gpu)
    assert target.bytes[0] == 99


@kinds(KNOWN, FOREIGN, HIDDEN)
async def test_strict_views_tolerates_nothing_alive(strict_ring: StagingRing, make: Make) -> None:
    slot = await strict_ring.allocate(SIZE)
    view = make(slot)
    is_the_view = view is slot.view
    with pytest.raises(aiostage.ViewStillAlive):
        slot.commit()
    if not is_the_view:  # which was released
        write(view)
    del view
    gc.collect()
    slot.commit()


@kinds(HIDDEN)
async def test_a_hidden_view_that_outlives_the_ring_points_at_memory_that_is_still_there(
    gpu: SimulatedGpu, ring: StagingRing, make: Make
) -> None:
    with await ring.allocate(SIZE) as slot:
        view = make(slot)
    await trip(ring, gpu)
    await ring.aclose()
    assert not gpu.staging[0].destroyed
    write(view)


@kinds(KNOWN)
async def test_a_view_that_outlives_the_ring_is_still_read_only(
    gpu: SimulatedGpu, ring: StagingRing, make: Make
) -> None:
    with await ring.allocate(SIZE) as slot:
        view = make(slot)
    await trip(ring, gpu)
    await ring.aclose()
    with pytest.raises(ValueError):
        write(view)


async def test_late_writes_to_real_staging_memory_raise_and_change_nothing(
    device: Any, open_ring: OpenRing, target: Callable[[int], Any]
) -> None:
    ring, buffer = await open_ring(ring_count=1, buffer_size=SIZE), target(SIZE)
    for make in KNOWN.values():
        with await ring.allocate(SIZE) as slot:
            slot.array()[:] = 7
            view = make(slot)
            slot.copy_to_buffer(buffer)
        fence = await ring.submit()
        with pytest.raises(ValueError):
            write(view)
        await fence
        assert bytes(device.queue.read_buffer(buffer)) == bytes([7] * SIZE)
    for make in FOREIGN.values():
        with pytest.raises(aiostage.ViewStillAlive):
            with await ring.allocate(SIZE) as slot:
                view = make(slot)
                slot.copy_to_buffer(buffer)
        write(view)
        del view
        gc.collect()
    assert bytes(device.queue.read_buffer(buffer)) == bytes([7] * SIZE)
