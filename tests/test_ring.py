"""The ring: places, commits, submits, batches, frames, statistics and its end."""

from __future__ import annotations

import asyncio
import gc
import random
import threading
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import anyio
import anyio.lowlevel
import numpy as np
import pytest
import wgpu
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import BufferState, StagingRing

OpenRing = Callable[..., Awaitable[StagingRing]]

AVAILABLE, IN_USE, FENCED = BufferState.AVAILABLE, BufferState.IN_USE, BufferState.FENCED


def put(slot: aiostage.Allocation, target: Any, offset: int, data: bytes) -> None:
    """Commit a slot with `data` on its way to `target`."""
    with slot:
        slot.view[: len(data)] = data
        slot.copy_to_buffer(target, offset, size=len(data))


# -- places --


async def test_allocations_lie_side_by_side_and_move_to_the_next_buffer_when_one_is_full(
    simulated_ring: OpenRing, always_shared: None
) -> None:
    ring = await simulated_ring(ring_count=2, buffer_size=1024)
    slots = [await ring.allocate(size) for size in (400, 400, 224, 4)]
    assert [(slot.buffer.index, slot.offset, slot.size) for slot in slots] == [
        (0, 0, 400),
        (0, 400, 400),
        (0, 800, 224),
        (1, 0, 4),
    ]
    for slot in slots:
        slot.abandon()


@pytest.mark.parametrize(
    ("alignment", "offsets"), [(1, [0, 8, 12]), (4, [0, 8, 12]), (6, [0, 12, 24]), (256, [0, 256, 512])]
)
async def test_offsets_are_multiples_of_four_and_of_the_alignment(
    simulated_ring: OpenRing, always_shared: None, alignment: int, offsets: list[int]
) -> None:
    ring = await simulated_ring()
    slots = [await ring.allocate(size, alignment=alignment) for size in (5, 4, 4)]
    assert [slot.offset for slot in slots] == offsets
    assert all((slot.buffer.address + slot.offset) % 4 == 0 for slot in slots)
    for slot in slots:
        slot.abandon()


async def test_more_than_a_buffer_is_too_large_and_nonsense_is_a_value_error(simulated_ring: OpenRing) -> None:
    ring = await simulated_ring(buffer_size=1024)
    with pytest.raises(aiostage.AllocationTooLarge, match="1025 bytes do not fit in a staging buffer of 1024"):
        await ring.allocate(1025)
    with pytest.raises(aiostage.AllocationTooLarge):
        ring.allocate_nowait(4096)
    for size in (0, -4):
        with pytest.raises(ValueError, match="size must be a positive whole number"):
            await ring.allocate(size)
    for alignment in (0, -4, 2.5):
        with pytest.raises(ValueError, match="alignment must be a positive whole number"):
            await ring.allocate(4, alignment=alignment)
    (await ring.allocate(1024, alignment=256)).abandon()


async def test_the_size_of_a_texture_goes_by_its_names(simulated_ring: OpenRing) -> None:
    ring = await simulated_ring(buffer_size=4096)
    size: Any
    for size in ((5, 3), [5, 3, 1], {"height": 3, "width": 5}, {"depth_or_array_layers": 1, "height": 3, "width": 5}):
        with await ring.allocate_texture(size, "rgba8unorm") as slot:
            assert slot.array().shape == (3, 5, 4)
    for size in ({"w": 5}, {"width": 5, "depth": 2}):
        with pytest.raises(ValueError, match="size has width, height, depth_or_array_layers"):
            await ring.allocate_texture(size, "rgba8unorm")


@pytest.mark.parametrize(
    "options", [{"ring_count": 0}, {"ring_count": True}, {"buffer_size": -4}, {"buffer_size": 1022}, {"threads": 0}]
)
def test_a_ring_of_nonsense_numbers_is_a_value_error(options: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=next(iter(options))):
        StagingRing(SimulatedGpu(), **options)


async def test_a_buffer_larger_than_the_devices_limit_is_a_value_error() -> None:
    gpu = SimulatedGpu()
    gpu.max_buffer_size = 1024
    ring = StagingRing(gpu, buffer_size=2048)
    with pytest.raises(ValueError, match="exceeds the device's limit of 1024 bytes"):
        await ring.open()
    assert not gpu.staging
    assert gpu.attached == 0


async def test_a_full_buffer_is_sealed_only_when_every_allocation_in_it_has_ended(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    first, second = await ring.allocate(512), await ring.allocate(512)
    put(first, target, 0, b"1" * 512)
    waiter = asyncio.ensure_future(ring.allocate(1024))
    await until(lambda: ring.stats_nowait().waiters)
    await turns()
    assert ring.stats_nowait().buffer_states == (IN_USE,)
    put(second, target, 512, b"2" * 512)
    await until(lambda: gpu.in_flight)  # the waiter had what is staged submitted
    gpu.complete()
    (await waiter).abandon()
    assert target.bytes.tobytes() == b"1" * 512 + b"2" * 512


# -- commit and abandon --


async def test_a_slots_bytes_arrive_where_its_copies_say(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(), gpu.buffer(32)
    with await ring.allocate(16) as slot:
        slot.array(np.uint32, 4)[:] = [1, 2, 3, 4]
        slot.copy_to_buffer(target, 4)
        slot.copy_to_buffer(target, 24, data_offset=8, size=4)
    fence = await ring.submit()
    assert not target.bytes.any()
    gpu.complete()
    await fence
    assert target.bytes.view(np.uint32).tolist() == [0, 1, 2, 3, 4, 0, 3, 0]


async def test_texels_arrive_without_their_padding(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, texture = await simulated_ring(buffer_size=4096), gpu.texture("rgba8unorm", (8, 4, 2))
    with await ring.allocate_texture((3, 2, 2), "rgba8unorm") as slot:
        pixels = slot.array()
        assert pixels.shape == (2, 2, 3, 4)
        assert pixels.strides == (512, 256, 4, 1)
        pixels[:] = np.arange(48).reshape(2, 2, 3, 4)
        slot.copy_to_texture({"texture": texture, "origin": (4, 1, 0)})
    fence = await ring.submit()
    gpu.complete()
    await fence
    assert (texture.level()[:, 1:3, 4:7] == np.arange(48).reshape(2, 2, 3, 4)).all()
    assert texture.level().sum() == np.arange(48).sum()


async def test_an_allocation_ends_once(simulated_ring: OpenRing) -> None:
    ring = await simulated_ring()
    slot = await ring.allocate(16)
    slot.commit()
    for use in (slot.commit, lambda: slot.view, slot.array, lambda: slot.copy_to_buffer(None)):
        with pytest.raises(aiostage.AllocationClosed):
            use()
    with pytest.raises(aiostage.AllocationClosed):
        with slot:
            pass
    slot.abandon()  # is for clean-up: does nothing
    assert ring.stats_nowait().bytes_in_flight == 16


async def test_a_slot_copied_by_the_ring_and_by_a_callers_encoder_counts_until_its_buffer_comes_back(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target, encoder = await simulated_ring(ring_count=1), gpu.buffer(1024), gpu.create_encoder()
    held = await ring.allocate(4)  # so that the encoder's copy goes by the queue
    with await ring.allocate(8) as slot:
        slot.view[:] = b"12345678"
        slot.copy_to_buffer(target, 0)
        slot.copy_to_buffer(target, 8, encoder=encoder)
    held.abandon()
    assert ring.stats_nowait().bytes_in_flight == 8
    waiter = asyncio.ensure_future(ring.allocate(1024))  # has the ring submit what is staged
    await until(lambda: gpu.in_flight)
    gpu.complete()
    (await waiter).abandon()
    await ring.submit([encoder.finish()])
    gpu.complete()
    assert target.bytes[:16].tobytes() == b"12345678" * 2


async def test_commit_inside_the_with_block_is_enough(simulated_ring: OpenRing) -> None:
    ring = await simulated_ring()
    with await ring.allocate(16) as slot:
        slot.commit()
    with await ring.allocate(16) as slot:
        slot.abandon()
    assert ring.stats_nowait().bytes_in_flight == 16


async def test_an_exception_abandons_the_slot_and_copies_nothing(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(), gpu.buffer(16)
    with pytest.raises(ZeroDivisionError):
        with await ring.allocate(16) as slot:
            slot.view[:] = b"1" * 16
            slot.copy_to_buffer(target)
            raise ZeroDivisionError
    assert ring.stats_nowait().bytes_in_flight == 0
    assert ring.stats_nowait().buffer_states == (AVAILABLE,) * 3
    await ring.submit()
    gpu.complete_all()
    assert not target.bytes.any()


async def test_a_dropped_allocation_warns_and_gives_its_place_back(simulated_ring: OpenRing) -> None:
    ring = await simulated_ring(ring_count=1)
    slot = await ring.allocate(1024)
    with pytest.warns(ResourceWarning, match="neither committed nor abandoned"):
        del slot
        gc.collect()
    (await ring.allocate(1024)).abandon()


async def test_a_bad_copy_is_refused_when_it_is_asked_for_and_the_slot_lives_on(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(16)
    with await ring.allocate(16) as slot:
        slot.view[:] = b"2" * 16
        for bad in (
            lambda: slot.copy_to_buffer(target, 4),
            lambda: slot.copy_to_buffer(target, 2, size=4),
            lambda: slot.copy_to_buffer(target, data_offset=4, size=16),
            lambda: slot.copy_to_buffer(SimulatedGpu().buffer(16)),
            lambda: slot.copy_to_texture({"texture": target}),
            lambda: slot.copy_to_texture({"texture": gpu.texture("rgba8unorm", (8, 8, 1))}, size=(8, 8)),
        ):
            with pytest.raises(aiostage.InvalidCopy):
                bad()
        slot.copy_to_buffer(target)
    fence = await ring.submit()
    gpu.complete()
    await fence
    assert target.bytes.tobytes() == b"2" * 16


# -- submit and advance --


async def test_staged_copies_run_before_the_command_buffers_in_one_submit(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target, seen = await simulated_ring(), gpu.buffer(4), []
    put(await ring.allocate(4), target, 0, b"data")
    fence = await ring.submit([gpu.command_buffer(lambda: seen.append(target.bytes.tobytes()))])
    assert gpu.submitted == 1
    gpu.complete()
    await fence
    assert seen == [b"data"]


async def test_copies_to_one_place_run_in_the_order_of_their_commits(
    gpu: SimulatedGpu, simulated_ring: OpenRing, never_shared: None
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(4)
    slots = [await ring.allocate(4) for _ in range(3)]
    for index in (1, 2, 0):
        put(slots[index], target, 0, bytes([index] * 4))
    await ring.submit()
    gpu.complete_all()
    assert target.bytes.tolist() == [0] * 4


async def test_a_command_buffer_that_cannot_be_submitted_stops_the_submit_and_loses_no_copy(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(4)
    once = gpu.command_buffer()
    await ring.submit([once])
    put(await ring.allocate(4), target, 0, b"data")
    for bad in (once, SimulatedGpu().command_buffer(), object()):
        with pytest.raises(aiostage.InvalidSubmit):
            await ring.submit([bad])
        with pytest.raises(aiostage.InvalidSubmit):
            ring.submit_nowait([bad])
    await ring.submit()
    gpu.complete_all()
    assert target.bytes.tobytes() == b"data"


async def test_submit_nowait_submits_or_would_block(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(8)
    put(await ring.allocate(4), target, 0, b"data")
    fence = ring.submit_nowait()
    await until(lambda: gpu.in_flight)
    gpu.complete()
    await fence
    assert target.bytes[:4].tobytes() == b"data"
    open_slot = await ring.allocate(4)
    ring.submit_nowait()  # an open slot alone is in nobody's way
    put(await ring.allocate(4), target, 4, b"more")
    with pytest.raises(anyio.WouldBlock):
        ring.submit_nowait()
    open_slot.abandon()
    await until(lambda: gpu.submitted == 2)
    ring.submit_nowait()
    await until(lambda: gpu.submitted == 3)
    gpu.complete_all()
    assert target.bytes.tobytes() == b"datamore"


async def test_a_destination_destroyed_after_the_commit_fails_its_own_coroutine_and_no_other(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, doomed, target = await simulated_ring(), gpu.buffer(4), gpu.buffer(4)

    async def careless() -> None:
        put(await ring.allocate(4), doomed, 0, b"1111")
        doomed.destroy()
        await committed.wait()
        await ring.submit()

    async def careful() -> None:
        put(await ring.allocate(4), target, 0, b"2222")
        committed.set()
        await ring.submit()

    committed = anyio.Event()
    outcomes = await asyncio.gather(careless(), careful(), return_exceptions=True)
    assert isinstance(outcomes[0], aiostage.InvalidCopy)
    assert "destroyed" in str(outcomes[0])
    assert outcomes[1] is None
    gpu.complete_all()
    assert target.bytes.tobytes() == b"2222"


async def test_advance_moves_on_and_its_fence_covers_the_buffer(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(), gpu.buffer(8)
    put(await ring.allocate(4), target, 0, b"data")
    assert ring.current.index == 0
    fence = ring.advance()
    assert ring.current.index == 1
    await until(lambda: gpu.in_flight)
    assert ring.stats_nowait().buffer_states == (FENCED, AVAILABLE, AVAILABLE)
    gpu.complete()
    await fence
    assert target.bytes[:4].tobytes() == b"data"


async def test_advance_with_a_fence_keeps_the_buffer_until_that_is_done(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(8)
    await ring.submit([gpu.command_buffer()])
    put(await ring.allocate(4), target, 0, b"data")
    own = ring.advance()
    await until(lambda: gpu.in_flight == 2)
    guard = await ring.submit([gpu.command_buffer()])
    put(await ring.allocate(4), target, 4, b"more")
    assert ring.advance(guard) is guard
    await until(lambda: gpu.in_flight == 4)
    gpu.complete(2)
    await own
    gpu.complete(2)
    await guard
    await until(lambda: ring.stats_nowait().buffer_states == (AVAILABLE, AVAILABLE))
    assert target.bytes.tobytes() == b"datamore"


async def test_a_buffer_guarded_by_another_devices_fence_waits_for_that_device(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    other = SimulatedGpu()
    ring = await simulated_ring(ring_count=1)
    async with aiostage.FenceTracker(other) as tracker:
        other.submit([], [])
        guard = tracker.insert()
        (await ring.allocate(4)).commit()
        ring.advance(guard)
        await until(lambda: gpu.in_flight)
        gpu.complete()
        await until(lambda: gpu.outstanding() == 0)
        await turns()
        assert ring.stats_nowait().buffer_states == (FENCED,)
        other.complete()
        await guard
        await until(lambda: ring.stats_nowait().buffer_states == (AVAILABLE,))


async def test_a_buffer_that_is_mapped_again_before_its_fence_is_done_waits_for_that(
    gpu: SimulatedGpu, simulated_ring: OpenRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    ring, told = await simulated_ring(ring_count=1), []
    with monkeypatch.context() as patch:
        patch.setattr(gpu, "on_work_done", told.append)
        fence = await ring.write_buffer(gpu.buffer(4), 0, bytes(4))
        await until(lambda: told)
    gpu.complete_all()
    await until(lambda: gpu.outstanding() == 0)  # the mapping was delivered
    assert (await ring.stats()).buffer_states == (FENCED,)
    assert not fence.done()
    told.pop()(True)
    await fence
    await until(lambda: ring.stats_nowait().buffer_states == (AVAILABLE,))


async def test_the_manual_protocol_never_suspends(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    """current, allocate, advance with a fence by value, stats: as a loop without tasks drives a ring."""
    ring, target = await simulated_ring(), gpu.buffer(3 * 1024)
    values = []
    for index in range(3):
        assert ring.current.index == index
        with ring.allocate_nowait(1024) as slot:
            slot.view[:] = bytes([index + 1]) * 1024
            slot.copy_to_buffer(target, index * 1024)
        fence = ring.advance()
        values.append(fence.value)  # known at once, before it is submitted
        await until(lambda: gpu.in_flight == len(values))  # or some would go together
    assert values == sorted(set(values))
    assert values[0] > 0
    assert ring.stats_nowait().bytes_in_flight == 3 * 1024
    with pytest.raises(anyio.WouldBlock):
        ring.allocate_nowait(4)
    gpu.complete()
    await ring.fence(values[0])
    assert not ring.fence(values[1]).done()
    await until(lambda: ring.stats_nowait().bytes_in_flight == 2 * 1024)
    slot = ring.allocate_nowait(1024)
    assert slot.buffer.index == 0
    slot.abandon()
    gpu.complete_all()
    await ring.fence(values[2])
    assert target.bytes.tobytes() == b"".join(bytes([value]) * 1024 for value in (1, 2, 3))


async def test_advance_past_an_open_slot_would_block_but_closes_the_buffer(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring = await simulated_ring()
    slot = await ring.allocate(4)
    with pytest.raises(anyio.WouldBlock):
        ring.advance()
    assert ring.current.index == 1
    later = await ring.allocate(4)
    assert later.buffer.index == 1
    later.abandon()
    slot.abandon()


async def test_advance_does_not_let_a_later_copy_overtake_an_earlier_one_to_the_same_place(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(1024)
    held = await ring.allocate(4)
    put(await ring.allocate(4), target, 0, b"old.")
    put(await ring.allocate(1024), target, 0, b"new.")
    with pytest.raises(anyio.WouldBlock):
        ring.advance()
    held.abandon()
    await ring.submit()
    gpu.complete_all()
    assert target.bytes[:4].tobytes() == b"new."


async def test_advance_submits_in_the_order_in_which_slots_were_committed(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(1024)
    first, second = await ring.allocate(4), await ring.allocate(1024)
    assert (first.buffer.index, second.buffer.index) == (0, 1)
    put(second, target, 0, b"old.")
    put(first, target, 0, b"new.")
    ring.advance()
    await until(lambda: gpu.in_flight)
    gpu.complete_all()
    assert target.bytes[:4].tobytes() == b"new."


async def test_advance_with_a_fence_keeps_no_other_buffer_than_the_current_one(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    other = SimulatedGpu()
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    async with aiostage.FenceTracker(other) as tracker:
        other.submit([], [])
        guard = tracker.insert()
        for size in (4, 1024):
            put(await ring.allocate(size), target, 0, b"data")
        ring.advance(guard)
        await until(lambda: gpu.in_flight)
        gpu.complete_all()
        await until(lambda: ring.stats_nowait().buffer_states == (AVAILABLE, FENCED))
        other.complete()
        await until(lambda: ring.stats_nowait().buffer_states == (AVAILABLE, AVAILABLE))


# -- a caller's own encoder --


@pytest.mark.parametrize("size", [8, 6])
async def test_a_copy_recorded_into_the_callers_encoder_runs_where_it_was_recorded(
    gpu: SimulatedGpu, simulated_ring: OpenRing, size: int
) -> None:
    ring, target, seen = await simulated_ring(), gpu.buffer(8), []
    encoder = gpu.create_encoder()
    encoder.run(lambda: seen.append(target.bytes[:4].tobytes()))
    with await ring.allocate(size) as slot:
        slot.view[:4] = b"data"
        slot.copy_to_buffer(target, size=4, encoder=encoder)
    encoder.run(lambda: seen.append(target.bytes[:4].tobytes()))
    fence = await ring.submit([encoder.finish()])
    gpu.complete_all()
    await fence
    assert seen == [bytes(4), b"data"]


async def test_a_callers_encoder_that_is_never_submitted_holds_no_buffer(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    gpu.free_running = True
    for _ in range(3):
        with await ring.allocate(1024) as slot:
            slot.copy_to_buffer(target, encoder=gpu.create_encoder())
    assert not target.bytes.any()


# -- uploads, batches and frames --


async def test_uploads_of_one_turn_share_a_submit(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(), gpu.buffer(64)
    fences = await asyncio.gather(*(ring.write_buffer(target, 4 * i, bytes([i] * 4)) for i in range(16)))
    assert gpu.submitted == 1
    assert len(set(fences)) == 1
    gpu.complete()
    await fences[0]
    assert target.bytes.tolist() == [i for i in range(16) for _ in range(4)]


async def test_a_batch_is_one_submit_at_its_end(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target, texture = await simulated_ring(), gpu.buffer(8), gpu.texture("r8unorm", (4, 1, 1))
    async with ring.batch() as batch:
        await batch.write_buffer(target, 0, b"data")
        await batch.write_buffer(target, 4, b"more")
        await batch.write_texture({"texture": texture}, np.array([[1, 2, 3, 4]], np.uint8))
        with pytest.raises(aiostage.AllocationClosed):
            _ = batch.fence
        assert gpu.submitted == 0
    assert gpu.submitted == 1
    gpu.complete()
    await batch.fence
    assert target.bytes.tobytes() == b"datamore"
    assert texture.level().ravel().tolist() == [1, 2, 3, 4]


async def test_a_batch_larger_than_the_ring_is_submitted_in_parts(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(8192)
    gpu.free_running = True
    async with ring.batch() as batch:
        for i in range(32):
            await batch.write_buffer(target, 256 * i, bytes([i] * 256))
        assert gpu.submitted > 0
    await batch.fence
    assert target.bytes.tolist() == [i for i in range(32) for _ in range(256)]


async def test_an_allocation_that_needs_the_space_has_a_waiting_batch_submitted_early(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(8)
    gpu.free_running = True
    async with ring.batch() as batch:
        await batch.write_buffer(target, 0, b"data")
        (await ring.allocate(1024)).abandon()
        await batch.write_buffer(target, 4, b"more")
    await batch.fence
    assert target.bytes.tobytes() == b"datamore"


@pytest.mark.parametrize("kind", ["batch", "frame"])
async def test_an_exception_in_a_batch_or_frame_abandons_it(
    gpu: SimulatedGpu, simulated_ring: OpenRing, kind: str
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(8)
    with pytest.raises(ZeroDivisionError):
        async with getattr(ring, kind)() as uploads:
            await uploads.write_buffer(target, 0, b"data")
            raise ZeroDivisionError
    assert gpu.submitted == 0
    assert ring.stats_nowait().buffer_states == (AVAILABLE,) * 3
    with pytest.raises(aiostage.AllocationClosed):
        _ = uploads.fence
    async with getattr(ring, kind)() as uploads:
        await uploads.write_buffer(target, 4, b"more")
    gpu.complete_all()
    assert target.bytes.tobytes() == bytes(4) + b"more"


@pytest.mark.parametrize("kind", ["batch", "frame"])
async def test_a_batch_or_frame_is_used_inside_its_block_and_once(simulated_ring: OpenRing, kind: str) -> None:
    ring = await simulated_ring()
    uploads = getattr(ring, kind)()
    with pytest.raises(aiostage.AllocationClosed):
        await uploads.write_buffer(None, 0, b"data")
    async with uploads:
        pass
    with pytest.raises(aiostage.AllocationClosed):
        await uploads.write_buffer(None, 0, b"data")
    with pytest.raises(aiostage.AllocationClosed):
        async with uploads:
            pass


@pytest.mark.parametrize("fails", [False, True])
async def test_a_write_that_outlives_its_batch_fails_and_leaves_nothing_behind(
    gpu: SimulatedGpu, simulated_ring: OpenRing, fails: bool
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    holder = await ring.allocate(1024)
    late = None
    try:
        async with ring.batch() as batch:
            late = asyncio.ensure_future(batch.write_buffer(target, 0, b"late"))
            await until(lambda: ring.stats_nowait().waiters)
            if fails:
                raise ZeroDivisionError
    except ZeroDivisionError:
        pass
    holder.abandon()
    with pytest.raises(aiostage.AllocationClosed):
        await late
    gpu.free_running = True
    (await ring.allocate(1024)).abandon()
    assert not target.bytes.any()


async def test_a_frames_uploads_run_before_what_its_encoder_records(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target, seen = await simulated_ring(), gpu.buffer(4), []
    async with ring.frame() as frame:
        frame.encoder.run(lambda: seen.append(target.bytes.tobytes()))
        await frame.write_buffer(target, 0, b"data")
    assert gpu.submitted == 1
    gpu.complete()
    await frame.fence
    assert seen == [b"data"]


async def test_at_most_ring_count_frames_are_in_flight(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, drawn = await simulated_ring(ring_count=2), []

    async def draw() -> None:
        for number in range(6):
            async with ring.frame() as frame:
                drawn.append(number)
                assert frame.encoder

    drawing = asyncio.ensure_future(draw())
    for done in range(4):
        await until(lambda done=done: gpu.submitted == done + 2)
        await turns()
        assert len(drawn) == done + 2
        assert gpu.in_flight == 2
        gpu.complete()
    await drawing
    gpu.complete_all()


async def test_frames_that_are_open_count_as_in_flight(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring = await simulated_ring(ring_count=2)
    entered, leave = [], anyio.Event()

    async def draw(number: int) -> None:
        async with ring.frame():
            entered.append(number)
            await leave.wait()

    tasks = [asyncio.ensure_future(draw(number)) for number in range(3)]
    await turns()
    assert entered == [0, 1]
    tasks[0].cancel()  # an abandoned one makes room at once
    await until(lambda: entered == [0, 1, 2])
    leave.set()
    await asyncio.gather(*tasks[1:])
    third = asyncio.ensure_future(draw(3))
    await turns()
    assert entered == [0, 1, 2]
    gpu.complete_all()
    await third


async def test_a_frame_with_a_bad_copy_counts_until_the_gpu_is_done_with_the_rest(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(16)
    frame = ring.frame()
    with pytest.raises(aiostage.InvalidCopy):
        async with frame:
            await frame.write_buffer(target, 0, b"1234")
            target.destroy()
    assert not frame.fence.done()
    entering = asyncio.ensure_future(ring.frame().__aenter__())
    await turns()
    assert not entering.done()
    gpu.complete()
    await (await entering).__aexit__(None, None, None)


async def test_the_loop_goes_on_while_a_submit_blocks(simulated_ring: OpenRing, gpu: SimulatedGpu) -> None:
    gpu.submit_blocks = True
    ring, target = await simulated_ring(), gpu.buffer(4)
    gpu.may_submit.clear()
    upload = asyncio.ensure_future(ring.write_buffer(target, 0, b"data"))
    await until(lambda: ring.stats_nowait().submits == 1)
    await turns()
    assert not upload.done()
    (await ring.allocate(4)).abandon()
    gpu.may_submit.set()
    await upload
    gpu.complete()
    assert target.bytes.tobytes() == b"data"


# -- statistics --


async def test_the_statistics_at_each_step_of_a_script(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=3, buffer_size=1024), gpu.buffer(1024)

    async def check(in_flight: int, index: int, stalls: int, states: tuple[BufferState, ...], waiters: int) -> None:
        stats = await ring.stats()
        assert stats == ring.stats_nowait()
        assert (
            stats.bytes_in_flight,
            stats.current_ring_index,
            stats.buffer_stalls,
            stats.ring_count,
            stats.buffer_size,
            stats.buffer_states,
            stats.waiters,
        ) == (in_flight, index, stalls, 3, 1024, states, waiters)

    await check(0, 0, 0, (AVAILABLE, AVAILABLE, AVAILABLE), 0)
    slot = await ring.allocate(256)
    await check(256, 0, 0, (IN_USE, AVAILABLE, AVAILABLE), 0)
    put(slot, target, 0, b"1" * 256)
    await check(256, 0, 0, (IN_USE, AVAILABLE, AVAILABLE), 0)
    await ring.submit()
    await check(256, 1, 0, (FENCED, AVAILABLE, AVAILABLE), 0)
    put(await ring.allocate(1000), target, 0, b"2" * 1000)
    await check(1256, 1, 0, (FENCED, IN_USE, AVAILABLE), 0)
    ring.advance()
    await until(lambda: gpu.in_flight == 2)
    await check(1256, 2, 0, (FENCED, FENCED, AVAILABLE), 0)
    held = await ring.allocate(1024)
    await check(2280, 2, 0, (FENCED, FENCED, IN_USE), 0)
    waiter = asyncio.ensure_future(ring.allocate(512))
    await until(lambda: ring.stats_nowait().waiters)
    await check(2280, 2, 1, (FENCED, FENCED, IN_USE), 1)
    gpu.complete()
    granted = await waiter
    await check(2536, 0, 1, (IN_USE, FENCED, IN_USE), 0)
    granted.abandon()
    await check(2024, 0, 1, (AVAILABLE, FENCED, IN_USE), 0)
    gpu.complete()
    await check(1024, 0, 1, (AVAILABLE, AVAILABLE, IN_USE), 0)
    held.abandon()
    await check(0, 0, 1, (AVAILABLE, AVAILABLE, AVAILABLE), 0)

    stats = ring.stats_nowait()
    assert stats.bytes_total == 256 + 1000 + 1024 + 512
    assert stats.allocations_total == 4
    assert stats.submits == 2
    assert stats.pending_fences == 0
    assert 0 < stats.fence_latency_p50 <= stats.fence_latency_p99
    assert stats.memory == 3 * 1024
    assert stats.as_dict()["buffer_states"] == ["available"] * 3


async def test_watch_ends_when_the_ring_is_closed(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, seen = await simulated_ring(), []
    async for stats in ring.watch(interval=0):
        seen.append(stats)
        if len(seen) == 3:
            await ring.aclose()
    assert [stats.waiters for stats in seen] == [0, 0, 0]


# -- everything at once --


async def stream(ring: StagingRing, target: Any, total: int, coroutines: int) -> bytes:
    """Random pieces by many coroutines, in every way that there is; returns what must be in `target`."""
    rng = random.Random(2)
    data = rng.randbytes(total)
    offsets = [0]
    while offsets[-1] < total:
        offsets.append(min(total, offsets[-1] + 4 * rng.randint(1, 5000)))
    pieces = list(pairwise(offsets))
    rng.shuffle(pieces)

    async def producer() -> None:
        while pieces:
            start, end = pieces.pop()
            way = rng.random()
            if way < 0.3:
                fence = await ring.write_buffer(target, start, data[start:end])
            elif way < 0.5:
                async with ring.batch() as batch:
                    middle = start + (end - start) // 8 * 4
                    await batch.write_buffer(target, start, data[start:middle])
                    await batch.write_buffer(target, middle, data, middle, end - middle)
                fence = batch.fence
            else:
                for first in range(start, end, ring.buffer_size):
                    part = data[first : min(end, first + ring.buffer_size)]
                    with await ring.allocate(len(part)) as slot:
                        slot.view[: len(part) // 2] = part[: len(part) // 2]
                        await anyio.lowlevel.checkpoint()
                        slot.view[len(part) // 2 :] = part[len(part) // 2 :]
                        slot.copy_to_buffer(target, first)
                fence = await ring.submit()
            if way < 0.7:
                await fence

    async with asyncio.TaskGroup() as group:
        for _ in range(coroutines):
            group.create_task(producer())
    await (await ring.submit())
    return data


@pytest.mark.parametrize("inline_size", [0, 1 << 20], ids=["copied in threads", "copied on the loop"])
async def test_a_million_bytes_from_fifty_coroutines_arrive_intact(
    gpu: SimulatedGpu, simulated_ring: OpenRing, inline_size: int
) -> None:
    ring, target = await simulated_ring(3, 16 * 1024, inline_size=inline_size), gpu.buffer(1_000_000)
    gpu.free_running = True
    data = await stream(ring, target, 1_000_000, 50)
    assert target.bytes.tobytes() == data
    await until(lambda: ring.stats_nowait().buffer_states == (AVAILABLE,) * 3)
    stats = ring.stats_nowait()
    assert stats.bytes_in_flight == stats.waiters == 0
    assert stats.bytes_total == 1_000_000
    assert stats.buffer_stalls > 0
    assert len(gpu.staging) == 3


async def test_a_million_bytes_from_fifty_coroutines_arrive_intact_on_a_real_device(
    device: wgpu.GPUDevice, open_ring: OpenRing, target: Callable[[int], wgpu.GPUBuffer]
) -> None:
    ring, buffer = await open_ring(ring_count=3, buffer_size=16 * 1024), target(1_000_000)
    data = await stream(ring, buffer, 1_000_000, 50)
    assert bytes(device.queue.read_buffer(buffer)) == data


# -- its end, and misuse --


async def test_closing_submits_what_is_committed_and_waits_for_the_gpu(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(8)
    put(await ring.allocate(4), target, 0, b"data")
    (await ring.allocate(4)).commit()  # without a copy
    closing = asyncio.ensure_future(ring.aclose())
    await until(lambda: gpu.in_flight == 1)
    await turns()
    assert not closing.done()
    gpu.complete()
    await closing
    assert target.bytes[:4].tobytes() == b"data"
    assert all(buffer.destroyed for buffer in gpu.staging)
    assert gpu.attached == 0
    await ring.aclose()  # once more is no harm


async def test_closing_submits_what_is_committed_beside_an_open_slot(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(8)
    gpu.free_running = True
    slot = await ring.allocate(4)
    put(await ring.allocate(4), target, 0, b"data")
    await ring.aclose()
    assert target.bytes[:4].tobytes() == b"data"
    slot.abandon()


async def test_closing_loses_no_copy_beside_an_open_slot_when_no_other_buffer_is_free(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(16)
    gpu.free_running = True
    slot = await ring.allocate(4)
    put(await ring.allocate(7), target, 0, b"old!")
    put(await ring.allocate(8), target, 0, b"new data")
    await ring.aclose()
    assert target.bytes[:8].tobytes() == b"new data"
    slot.abandon()


async def test_a_slot_that_is_open_when_the_ring_closes_ends_with_ring_closed_and_no_warning(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(16)
    with pytest.raises(aiostage.RingClosed):
        with await ring.allocate(16) as slot:
            pixels = slot.array()
            slot.copy_to_buffer(target)
            await ring.aclose()
            pixels[:] = 1  # harms nobody
    del slot, pixels
    gc.collect()


async def test_a_closed_ring_refuses_everything_with_ring_closed(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    unopened, closed = StagingRing(gpu), await simulated_ring()
    batch = closed.batch()
    await closed.aclose()
    for ring in (unopened, closed):
        with pytest.raises(aiostage.RingClosed):
            ring.allocate_nowait(4)
        with pytest.raises(aiostage.RingClosed):
            await ring.allocate(4)
        with pytest.raises(aiostage.RingClosed):
            await ring.submit()
        with pytest.raises(aiostage.RingClosed):
            ring.submit_nowait()
        with pytest.raises(aiostage.RingClosed):
            ring.advance()
        with pytest.raises(aiostage.RingClosed):
            await ring.write_buffer(gpu.buffer(4), 0, b"data")
        with pytest.raises(aiostage.RingClosed):
            await ring.stats()
        with pytest.raises(aiostage.RingClosed):
            async with ring.frame():
                pass
        assert ring.stats_nowait().bytes_in_flight == 0
    with pytest.raises(aiostage.RingClosed):
        async with batch:
            pass


async def test_a_batch_that_outlives_the_ring_ends_with_ring_closed(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(16)
    with pytest.raises(aiostage.RingClosed):
        async with ring.batch() as batch:
            await batch.write_buffer(target, 0, b"data")
            await ring.aclose()


async def test_a_ring_opens_once(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring = await simulated_ring()
    with pytest.raises(RuntimeError, match="opened"):
        await ring.open()
    await ring.aclose()
    with pytest.raises(RuntimeError, match="opened"):
        await ring.open()


async def test_a_ring_that_is_dropped_without_closing_warns(gpu: SimulatedGpu) -> None:
    ring = StagingRing(gpu, buffer_size=1024)
    await ring.open()
    with pytest.warns(ResourceWarning, match="a StagingRing was not closed"):
        del ring
        gc.collect()


async def test_two_rings_on_one_device_share_a_tracker(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    one, two, target = await simulated_ring(), await simulated_ring(), gpu.buffer(8)
    assert one._tracker is two._tracker
    assert gpu.attached == 1
    first = await one.write_buffer(target, 0, b"data")
    second = await two.write_buffer(target, 4, b"more")
    assert (first.value, second.value) == (1, 2)
    gpu.complete(2)
    await one.aclose()
    assert gpu.attached == 1
    await second
    assert target.bytes.tobytes() == b"datamore"
    await two.aclose()
    assert gpu.attached == 0


def elsewhere(function: Callable[[], Any], on_a_loop: bool) -> Any:
    """What `function` raises, or returns, in another thread, on another event loop there or on none."""

    async def on_loop() -> Any:
        result = function()
        return await result if asyncio.iscoroutine(result) else result

    outcome: list[Any] = []

    def run() -> None:
        try:
            outcome.append(asyncio.run(on_loop()) if on_a_loop else function())
        except Exception as error:
            outcome.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    return outcome[0]


async def test_another_loop_or_thread_gets_wrong_loop_and_changes_nothing(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(), gpu.buffer(16)
    slot = await ring.allocate(16)
    before = ring.stats_nowait()
    uses: list[Callable[[], Any]] = [
        lambda: ring.allocate_nowait(4),
        ring.submit_nowait,
        ring.advance,
        lambda: slot.view,
        slot.array,
        lambda: slot.copy_to_buffer(target),
        slot.commit,
        slot.abandon,
    ]
    for use in uses:
        for on_a_loop in (False, True):
            assert isinstance(elsewhere(use, on_a_loop), aiostage.WrongLoop), use
    fence = await ring.submit()
    for use in (
        lambda: ring.allocate(4),
        ring.submit,
        lambda: ring.write_buffer(target, 0, b"data"),
        ring.stats,
        ring.aclose,
        ring.batch().__aenter__,
        fence.wait,
    ):
        assert isinstance(elsewhere(use, True), aiostage.WrongLoop), use
    assert ring.stats_nowait().buffer_states == before.buffer_states
    slot.abandon()


async def test_without_a_running_loop_there_is_no_tracker() -> None:
    assert isinstance(elsewhere(lambda: aiostage.FenceTracker(SimulatedGpu()), False), aiostage.WrongLoop)
