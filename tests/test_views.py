"""No view of an allocation's memory does silent harm once the allocation is committed, as far as that can be known.

Five kinds. *Known* views turn read-only at commit. *Foreign* ones, made from `slot.view`, keep it from being committed.
*Hidden* ones were made from an array or the view by something that only keeps that alive, as `np.asarray` and torch do:
nobody sees them but `strict_views=True`, which tolerates nothing at all. An *address* nobody can see, and *own* memory
was copied. `python test_views.py` prints the table that docs/views.md holds, a line for each view that is tested here.
"""

from __future__ import annotations

import ctypes
import gc
import importlib.util
import re
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import PIL.Image
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


class CapsuleConsumer(PointerConsumer):
    """What takers of `__dlpack__` are: an address, and the capsule kept alive."""

    def __init__(self, array: np.ndarray) -> None:
        super().__init__(array)
        self._kept = array.__dlpack__()


torch_frombuffer = torch_or("frombuffer", BufferConsumer)
torch_from_numpy = torch_or("from_numpy", PointerConsumer)

KNOWN: dict[str, Make] = {
    "slot.array()": lambda slot: slot.array(),
    "slot.array(np.float32, (4, 4))": lambda slot: slot.array(np.float32, (4, 4)),
    "slot.array(np.uint8, (8, 8))[3]": lambda slot: slot.array(np.uint8, (8, 8))[3],
    "slot.array()[8:16]": lambda slot: slot.array()[8:16],
    "slot.array()[8:32][::2]": lambda slot: slot.array()[8:32][::2],
    "slot.array()[::-1]": lambda slot: slot.array()[::-1],
    "slot.array().reshape(8, 8)": lambda slot: slot.array().reshape(8, 8),
    "slot.array(np.uint8, (8, 8)).ravel()": lambda slot: slot.array(np.uint8, (8, 8)).ravel(),
    "slot.array(np.uint8, (4, 16)).T": lambda slot: slot.array(np.uint8, (4, 16)).T,
    "slot.array(np.uint8, (1, 64)).squeeze()": lambda slot: slot.array(np.uint8, (1, SIZE)).squeeze(),
    "np.split(slot.array(), 2)[1]": lambda slot: np.split(slot.array(), 2)[1],
    "slot.array().view(np.uint16)": lambda slot: slot.array().view(np.uint16),
    "slot.array().flat": lambda slot: slot.array().flat,
    'slot.array("u1,u1")["f1"]': lambda slot: slot.array("u1,u1")["f1"],
    "np.ma.array(slot.array(), copy=False)": lambda slot: np.ma.array(slot.array(), copy=False),
}
THE_VIEW: dict[str, Make] = {"slot.view": lambda slot: slot.view}
FOREIGN: dict[str, Make] = {
    "memoryview(slot.view)": lambda slot: memoryview(slot.view),
    "slot.view[8:16]": lambda slot: slot.view[8:16],
    'slot.view.cast("I")': lambda slot: slot.view.cast("I"),
    "np.asarray(slot.view)": lambda slot: np.asarray(slot.view),
    "np.frombuffer(slot.view, np.uint8)": lambda slot: np.frombuffer(slot.view, np.uint8),
    "np.asarray(slot.view).reshape(8, 8)[2]": lambda slot: np.asarray(slot.view).reshape(8, 8)[2],
    "(c_ubyte * 64).from_buffer(slot.view)": lambda slot: (ctypes.c_ubyte * SIZE).from_buffer(slot.view),
    "memoryview(np.asarray(slot.view))": lambda slot: memoryview(np.asarray(slot.view)),
}
IMAGE: dict[str, Make] = {
    'PIL.Image.frombuffer("L", (8, 8), slot.view)': lambda slot: PIL.Image.frombuffer(
        "L", (8, 8), slot.view, "raw", "L", 0, 1
    ),
}
HIDDEN: dict[str, Make] = {
    "np.asarray(slot.array())": lambda slot: np.asarray(slot.array()),
    "np.frombuffer(slot.array(), np.uint8)": lambda slot: np.frombuffer(slot.array(), np.uint8),
    "slot.array().view(np.ndarray)": lambda slot: slot.array().view(np.ndarray),
    "np.lib.stride_tricks.as_strided(slot.array())": lambda slot: np.lib.stride_tricks.as_strided(slot.array()),
    "memoryview(slot.array())": lambda slot: memoryview(slot.array()),
    "(c_ubyte * 64).from_buffer(slot.array())": lambda slot: (ctypes.c_ubyte * SIZE).from_buffer(slot.array()),
    "a taker of slot.array().__array_interface__": lambda slot: PointerConsumer(slot.array()),
    "a taker of slot.array().__dlpack__()": lambda slot: CapsuleConsumer(slot.array()),
    "torch.from_numpy(slot.array())": lambda slot: torch_from_numpy(slot.array()),
    "torch.frombuffer(slot.view)": lambda slot: torch_frombuffer(slot.view),
}
HIDDEN_IMAGE: dict[str, Make] = {
    "PIL.Image.fromarray(slot.array(np.uint8, (8, 8)))": lambda slot: PIL.Image.fromarray(slot.array(np.uint8, (8, 8))),
}
ADDRESS: dict[str, Make] = {
    "slot.array().ctypes.data": lambda slot: slot.array().ctypes.data,
    "ctypes.addressof(c_char.from_buffer(slot.view))": lambda slot: ctypes.addressof(
        ctypes.c_char.from_buffer(slot.view)
    ),
}
OWN: dict[str, Make] = {
    "slot.array() + 1": lambda slot: slot.array() + 1,
    "slot.array().copy()": lambda slot: slot.array().copy(),
    "slot.array()[[1, 2]]": lambda slot: slot.array()[[1, 2]],
    "bytearray(slot.view)": lambda slot: bytearray(slot.view),
    "PIL.Image.fromarray(slot.array(np.uint8, (8, 8))).copy()": lambda slot: PIL.Image.fromarray(
        slot.array(np.uint8, (8, 8))
    ).copy(),
}

ERROR = "`ViewStillAlive`"
ROWS = [  # what is alive, what becomes of it by default and with strict_views=True
    (KNOWN, "read-only from then on: a late write raises ValueError", ERROR),
    (THE_VIEW, "released: a late access raises ValueError", ERROR),
    (FOREIGN | IMAGE, ERROR, ERROR),
    (HIDDEN, "**not noticed**: a late write goes to memory that the GPU may be reading", ERROR),
    (HIDDEN_IMAGE, "not noticed; a late read sees what the memory holds then, a late write goes to a copy", ERROR),
    (ADDRESS, "**not noticed**", "**not noticed**"),
    (OWN, "its own memory: not affected", "not affected"),
]


def table() -> str:
    """What is alive at commit, as Markdown."""
    lines = ["| alive at commit | by default | with `strict_views=True` |", "| --- | --- | --- |"]
    for views, default, strict in ROWS:
        lines.append(f"| {', '.join(map(as_code, views))} | {default} | {strict} |")
    return "\n".join(lines)


def as_code(name: str) -> str:
    return re.sub(r"^(a taker of )?(.*)", r"\1`\2`", name)


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


@kinds(KNOWN, THE_VIEW)
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
@kinds(OWN)
async def test_what_was_copied_is_the_users_own(
    simulated_ring: OpenRing, gpu: SimulatedGpu, make: Make, strict: bool
) -> None:
    ring, target = await simulated_ring(ring_count=1, buffer_size=SIZE, strict_views=strict), gpu.buffer(SIZE)
    with await ring.allocate(SIZE) as slot:
        slot.array()[:] = 2
        own = make(slot)
        slot.copy_to_buffer(target)
    if isinstance(own, PIL.Image.Image):
        own.putpixel((0, 0), 99)
    else:
        write(own)
    await trip(ring, gpu)
    assert target.bytes.tolist() == [2] * SIZE


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


@kinds(KNOWN, THE_VIEW, FOREIGN, HIDDEN)
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
async def test_a_hidden_view_is_not_noticed_by_default(gpu: SimulatedGpu, ring: StagingRing, make: Make) -> None:
    target = gpu.buffer(SIZE)
    with await ring.allocate(SIZE) as slot:
        view = make(slot)
        slot.copy_to_buffer(target)
    gc.collect()
    await trip(ring, gpu)
    write(view)  # now it can: nothing has made it read-only


@pytest.mark.parametrize("strict", [False, True])
@kinds(ADDRESS)
async def test_an_address_is_not_noticed_at_all(
    gpu: SimulatedGpu, simulated_ring: OpenRing, make: Make, strict: bool
) -> None:
    ring = await simulated_ring(buffer_size=SIZE, strict_views=strict)
    with await ring.allocate(SIZE) as slot:
        address = make(slot)
    assert gpu.staging[0].address <= address < gpu.staging[0].address + SIZE
    await trip(ring, gpu)


# -- images --


@pytest.mark.parametrize("strict", [False, True])
@kinds(IMAGE)
async def test_an_image_over_the_view_keeps_its_slot_from_being_committed(
    simulated_ring: OpenRing, make: Make, strict: bool
) -> None:
    ring = await simulated_ring(strict_views=strict)
    slot = await ring.allocate(SIZE)
    image = make(slot)
    with pytest.raises(aiostage.ViewStillAlive):
        slot.commit()
    image.putpixel((0, 0), 1)  # which copies it
    slot.commit()


@kinds(HIDDEN_IMAGE)
async def test_an_image_over_an_array_writes_to_a_copy_of_its_own(
    gpu: SimulatedGpu, ring: StagingRing, strict_ring: StagingRing, make: Make
) -> None:
    target = gpu.buffer(SIZE)
    with await ring.allocate(SIZE) as slot:
        slot.array()[:] = 2
        image = make(slot)
        slot.copy_to_buffer(target)
    assert image.getpixel((0, 0)) == 2
    image.putpixel((0, 0), 99)
    await trip(ring, gpu)
    assert target.bytes.tolist() == [2] * SIZE
    slot = await strict_ring.allocate(SIZE)
    image = make(slot)
    with pytest.raises(aiostage.ViewStillAlive):
        slot.commit()
    del image
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


@kinds(KNOWN, THE_VIEW)
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
    for make in (KNOWN | THE_VIEW).values():
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


def test_the_documentation_has_this_table() -> None:
    text = Path(__file__).parents[1].joinpath("docs", "views.md").read_text()
    assert table() in text, "run 'python tests/test_views.py' and put its output there"


if __name__ == "__main__":
    print(table())
