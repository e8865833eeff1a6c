"""What waits, for how long, for whom, and how it ends. On the simulated GPU: time passes when a test says so."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable
from typing import Any

import anyio
import pytest
from held import HeldCopies
from readback import read_buffer
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import BufferState, KiB, StagingRing

OpenRing = Callable[..., Awaitable[StagingRing]]


def start(awaitable: Any) -> asyncio.Task[Any]:
    return asyncio.ensure_future(awaitable)


async def in_time(awaitable: Awaitable[Any]) -> Any:
    """The result, if it comes without the GPU's doing anything."""
    with anyio.fail_after(30):
        return await awaitable


async def fill(ring: StagingRing, target: Any) -> None:
    """Have the GPU own one more buffer of the ring, full."""
    slot = await ring.allocate(ring.buffer_size)
    with slot:
        slot.copy_to_buffer(target)
    await ring.submit()


async def beside_an_open_slot(ring: StagingRing, target: Any, data: bytes) -> aiostage.Allocation:
    """Commit a copy of `data` beside a slot that is still open; returns that."""
    slow = await ring.allocate(16)
    with await ring.allocate(len(data)) as quick:
        assert quick.buffer is slow.buffer
        quick.view[:] = data
        quick.copy_to_buffer(target)
    return slow


async def waiting(ring: StagingRing, n: int) -> None:
    await until(lambda: ring.stats_nowait().waiters == n)


# -- suspending and resuming --


async def test_allocate_suspends_exactly_when_every_buffer_is_fenced(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=3), gpu.buffer(1024)
    for _ in range(3):
        await in_time(fill(ring, target))
        assert ring.stats_nowait().buffer_stalls == 0
    waiter = start(ring.allocate(4))
    await waiting(ring, 1)
    await turns()
    assert not waiter.done()
    assert ring.stats_nowait().buffer_stalls == 1
    gpu.complete()
    slot = await waiter
    assert slot.buffer.index == 0
    assert ring.stats_nowait().waiters == 0
    slot.abandon()


async def test_waiters_resume_in_the_order_in_which_they_came_and_each_is_woken_once(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    await fill(ring, target)
    await fill(ring, target)
    order: list[int] = []
    slots: list[aiostage.Allocation] = []

    async def producer(number: int) -> None:
        slots.append(await ring.allocate(ring.buffer_size))
        order.append(number)

    tasks = []
    for number in range(4):
        tasks.append(start(producer(number)))
        await waiting(ring, number + 1)
    assert ring.stats_nowait().buffer_stalls == 4
    for served in range(1, 5):
        if served > 2:
            slots[served - 3].abandon()
        else:
            gpu.complete()
        await until(lambda served=served: len(order) == served)
        await turns()
        # Nobody else was woken to find that there is nothing: a stall is a suspension.
        assert order == list(range(served))
        assert ring.stats_nowait().waiters == 4 - served
        assert ring.stats_nowait().buffer_stalls == 4
    for slot in slots:
        slot.abandon()
    await asyncio.gather(*tasks)
    assert ring.stats_nowait().stall_seconds > 0


async def test_a_place_that_comes_free_goes_to_those_who_wait_and_not_to_a_newcomer(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    await fill(ring, target)
    waiter = start(ring.allocate(1024))
    await waiting(ring, 1)
    with pytest.raises(anyio.WouldBlock):
        ring.allocate_nowait(4)
    newcomer = start(ring.allocate(4))
    await waiting(ring, 2)
    gpu.complete()
    slot = await waiter
    assert not newcomer.done()
    slot.abandon()
    (await newcomer).abandon()


async def test_uploads_that_find_no_room_wait_in_the_same_line(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    await fill(ring, target)
    upload = start(ring.write_buffer(target, 0, b"\x01" * 1024))
    await waiting(ring, 1)
    slot_task = start(ring.allocate(4))
    await waiting(ring, 2)
    gpu.complete()
    await upload
    assert not slot_task.done()
    assert ring.stats_nowait().buffer_stalls == 2
    gpu.complete()
    (await slot_task).abandon()
    assert target.bytes.tolist() == [1] * 1024


async def test_an_upload_larger_than_the_ring_goes_through_it_piece_by_piece(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(5000)
    data = bytes(i % 251 for i in range(5000))
    gpu.free_running = True
    await (await ring.write_buffer(target, 0, data))
    assert target.bytes.tobytes() == data
    assert ring.stats_nowait().memory == 2 * 1024


# -- cancellation --


async def test_a_waiter_that_is_cancelled_leaves_its_turn_to_the_next(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    await fill(ring, target)
    first, second = start(ring.allocate(1024)), start(ring.allocate(1024))
    await waiting(ring, 2)
    first.cancel()
    await waiting(ring, 1)
    gpu.complete()
    slot = await second
    assert ring.stats_nowait().bytes_in_flight == 1024
    slot.abandon()
    assert ring.stats_nowait().bytes_in_flight == 0
    assert first.cancelled()


async def test_a_small_waiter_behind_a_large_one_that_is_cancelled_resumes_at_once(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring = await simulated_ring(ring_count=1)
    holder = await ring.allocate(512)
    large, small = start(ring.allocate(1024)), start(ring.allocate(256))
    await waiting(ring, 2)
    large.cancel()
    slot = await in_time(small)
    assert slot.offset == 512
    slot.abandon()
    holder.abandon()


async def test_a_waiter_cancelled_in_the_turn_in_which_it_was_granted_hands_its_place_on(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring = await simulated_ring(ring_count=1)
    holder = await ring.allocate(1024)
    first, second = start(ring.allocate(1024)), start(ring.allocate(1024))
    await waiting(ring, 2)
    holder.abandon()  # grants the place to the first
    assert ring.stats_nowait().waiters == 1
    first.cancel()
    slot = await in_time(second)
    assert first.cancelled()
    assert ring.stats_nowait().bytes_in_flight == 1024
    slot.abandon()
    assert ring.stats_nowait().buffer_states == (BufferState.AVAILABLE,)
    assert ring.stats_nowait().bytes_in_flight == 0


async def test_a_cancelled_upload_gives_its_place_back_and_spoils_nobody_elses(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target, other = await simulated_ring(ring_count=1), gpu.buffer(4096), gpu.buffer(8)
    await fill(ring, target)
    large = start(ring.write_buffer(target, 0, b"\x01" * 4096))
    await waiting(ring, 1)
    small = start(ring.write_buffer(other, 0, b"\x02" * 8))
    await waiting(ring, 2)
    large.cancel()
    await waiting(ring, 1)
    gpu.free_running = True
    await (await small)
    assert other.bytes.tolist() == [2] * 8
    assert large.cancelled()


async def test_an_upload_that_was_cancelled_does_not_overwrite_the_next_one_to_the_same_place(
    held: HeldCopies, held_ring: OpenRing
) -> None:
    """It is cancelled while threads have yet to copy it."""
    held.free_running, target = True, held.buffer(2048)
    ring = await held_ring(ring_count=2, inline_size=500)
    old = start(ring.write_buffer(target, 0, b"old." * 150))
    beside = start(ring.write_buffer(target, 1024, b"\x01" * 512))
    await turns()
    assert not old.done()
    old.cancel()
    asyncio.get_running_loop().call_later(0.02, held.may_copy.set)
    with pytest.raises(asyncio.CancelledError):
        await old
    new = ring.write_buffer(target, 0, b"new." + bytes(496))
    await in_time(await in_time(new))
    await in_time(await in_time(beside))
    assert target.bytes[:4].tobytes() == b"new."
    assert target.bytes[1024:1536].tobytes() == b"\x01" * 512


# -- producers that keep a slot open --


@pytest.fixture(params=["shared", "apart"])
def sharing(request: pytest.FixtureRequest) -> None:
    """Whether allocations join a buffer that has an open one in it."""
    request.getfixturevalue({"shared": "always_shared", "apart": "never_shared"}[request.param])


async def test_an_open_slot_delays_no_write_no_batch_no_frame_and_no_submit_while_a_buffer_is_free(
    gpu: SimulatedGpu, simulated_ring: OpenRing, sharing: None
) -> None:
    ring, target = await simulated_ring(ring_count=3), gpu.buffer(64)
    slow = await ring.allocate(16)
    for turn in range(1, 6):
        fences = [await in_time(ring.write_buffer(target, 0, bytes([turn] * 4)))]
        gpu.complete_all()
        await fences[0]
        async with ring.batch() as batch:
            await in_time(batch.write_buffer(target, 4, bytes([turn] * 4)))
        gpu.complete_all()
        await batch.fence
        async with ring.frame() as frame:
            await in_time(frame.write_buffer(target, 8, bytes([turn] * 4)))
        gpu.complete_all()
        await frame.fence
        quick = await in_time(ring.allocate(4))
        with quick:
            quick.view[:] = bytes([turn] * 4)
            quick.copy_to_buffer(target, 12)
        fence = await in_time(ring.submit())
        gpu.complete_all()
        await fence
        assert target.bytes[:16].tolist() == [turn] * 16
    with slow:
        slow.view[:] = b"\x63" * 16
        slow.copy_to_buffer(target)
    fence = await ring.submit()
    gpu.complete_all()
    await fence
    assert target.bytes[:16].tolist() == [0x63] * 16
    assert ring.stats_nowait().buffer_stalls == 0


async def test_submit_moves_copies_that_share_a_buffer_with_an_open_slot(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target, seen = await simulated_ring(ring_count=2), gpu.buffer(8), []
    slow = await beside_an_open_slot(ring, target, b"fast way")
    with pytest.raises(anyio.WouldBlock):
        ring.submit_nowait()
    fence = await in_time(ring.submit([gpu.command_buffer(lambda: seen.append(target.bytes.tobytes()))]))
    assert ring.stats_nowait().bytes_in_flight == 24
    gpu.complete()
    await fence
    assert seen == [b"fast way"]
    await until(lambda: ring.stats_nowait().bytes_in_flight == 16)
    slow.abandon()
    assert ring.stats_nowait().bytes_in_flight == 0


async def test_bytes_in_flight_are_right_after_a_move_of_a_slot_with_two_copies(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(64)
    slow = await ring.allocate(8)
    with await ring.allocate(32) as twice:
        twice.copy_to_buffer(target, 0)
        twice.copy_to_buffer(target, 32)
    await ring.submit()
    assert ring.stats_nowait().bytes_in_flight == 40
    slow.abandon()
    assert ring.stats_nowait().bytes_in_flight == 32


async def test_a_submit_during_a_move_waits_for_the_copies_that_are_being_moved(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target, seen = await simulated_ring(ring_count=3), gpu.buffer(4), []
    slow = await beside_an_open_slot(ring, target, b"mine")
    others = start(ring.submit())
    await asyncio.sleep(0)  # it has begun to move the copy
    with pytest.raises(anyio.WouldBlock):
        ring.submit_nowait()
    fence = await in_time(ring.submit([gpu.command_buffer(lambda: seen.append(target.bytes.tobytes()))]))
    await others
    gpu.complete_all()
    await fence
    assert seen == [b"mine"]
    slow.abandon()


async def test_a_submit_that_is_cancelled_during_a_move_leaves_the_move_to_its_thread(
    held: HeldCopies, held_ring: OpenRing, always_shared: None
) -> None:
    gpu, ring = held, await held_ring(ring_count=2)
    target = gpu.buffer(4)
    slow = await beside_an_open_slot(ring, target, b"data")
    submitting = start(ring.submit())
    await asyncio.sleep(0)
    submitting.cancel()
    with pytest.raises(asyncio.CancelledError):
        await in_time(submitting)
    with pytest.raises(anyio.WouldBlock):
        ring.submit_nowait()  # the bytes are not there yet
    held.may_copy.set()
    fence = await in_time(ring.submit())
    gpu.complete_all()
    await fence
    assert target.bytes.tobytes() == b"data"
    slow.abandon()


async def test_submit_with_no_buffer_free_waits_for_the_open_slot_or_for_a_buffer(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    await fill(ring, target)
    slow = await beside_an_open_slot(ring, target, b"fast way")
    submitting = start(ring.submit())
    await turns()
    assert not submitting.done()
    gpu.complete()  # a buffer comes back: the copy moves there
    fence = await in_time(submitting)
    gpu.complete()
    await fence
    assert target.bytes[:8].tobytes() == b"fast way"

    with await ring.allocate(8) as quick:
        quick.copy_to_buffer(target)
    slow.abandon()
    await in_time(ring.submit())


async def test_a_submit_that_needs_a_free_buffer_gets_one_though_others_always_wait_for_them(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    slow = await beside_an_open_slot(ring, target, b"fast way")
    scratch, filled = gpu.buffer(1024), 0

    async def stream() -> None:
        nonlocal filled
        while True:
            await ring.write_buffer(scratch, 0, bytes(1024))
            filled += 1

    await in_time(ring.write_buffer(scratch, 0, bytes(1024)))  # the other buffer
    streams = [start(stream()) for _ in range(3)]
    await waiting(ring, 3)
    submitting = start(ring.submit())
    await turns()
    assert not submitting.done()
    gpu.complete()
    fence = await in_time(submitting)
    assert filled == 0
    while filled < 3:  # and then those
        gpu.complete_all()
        await turns()
    assert fence.done()
    assert target.bytes[:8].tobytes() == b"fast way"
    for task in streams:
        task.cancel()
    await asyncio.wait(streams)
    gpu.complete_all()
    slow.abandon()


async def test_submit_does_not_wait_for_slots_that_were_opened_after_it(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    slow = await ring.allocate(16)
    with await ring.allocate(8) as quick:
        quick.copy_to_buffer(target)
    submitting = start(ring.submit())
    await turns()
    late = start(ring.allocate(8))  # there is room, but in the buffer that the submit waits for
    await waiting(ring, 1)
    slow.abandon()
    await in_time(submitting)
    gpu.complete_all()
    (await late).abandon()


async def test_submit_moves_copies_away_from_a_slot_whose_waiter_was_granted_but_has_not_run(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    blocker = await ring.allocate(1024)
    with await ring.allocate(512) as quick:
        quick.copy_to_buffer(target)
    holder = await ring.allocate(256)
    large, small = start(ring.allocate(1024)), start(ring.allocate(256))
    await waiting(ring, 2)
    large.cancel()
    while ring.stats_nowait().waiters:
        await asyncio.sleep(0)
    assert not small.done()  # it has its place, beside the copy, and will run in this turn of the loop
    holder.abandon()
    blocker.abandon()
    await in_time(ring.submit())
    (await in_time(small)).abandon()


async def test_no_copy_overtakes_an_earlier_one_to_the_same_place_when_others_need_room(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    held = await ring.allocate(4)
    for size, data in ((4, b"old."), (1024, b"new.")):
        with await ring.allocate(size) as slot:
            slot.view[:4] = data
            slot.copy_to_buffer(target)
    waiter = start(ring.allocate(1024))  # the second buffer could go, but for the first
    await waiting(ring, 1)
    await turns()
    held.abandon()
    await until(lambda: gpu.in_flight)
    gpu.free_running = True
    (await in_time(waiter)).abandon()
    await in_time(ring.submit())
    await ring._tracker.wait_all()
    assert target.bytes[:4].tobytes() == b"new."


async def test_copies_staged_while_a_submit_waits_keep_their_order_between_two_buffers(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    holders = [await ring.allocate(512), await ring.allocate(512)]  # buffer 0 is full
    late = await ring.allocate(512)  # in buffer 1
    with await ring.allocate(256) as waited_for:
        waited_for.copy_to_buffer(target, 512)
    submitting = start(ring.submit())  # for the copy in buffer 1, beside `late`
    await turns()
    for slot, data in ((holders[0], b"old."), (late, b"new.")):
        slot.view[:4] = data
        slot.copy_to_buffer(target, size=4)
        slot.commit()
    await turns()
    holders[1].abandon()
    await in_time(submitting)
    await ring.submit()
    gpu.complete_all()
    assert target.bytes[:4].tobytes() == b"new."


# -- what cannot be resolved is said --


async def test_a_ring_held_by_open_slots_says_who_holds_what(
    gpu: SimulatedGpu, simulated_ring: OpenRing, never_shared: None
) -> None:
    ring = await simulated_ring(ring_count=2, stall_timeout=0.02)

    async def hoard() -> list[aiostage.Allocation]:
        return [await ring.allocate(600), await ring.allocate(700)]

    slots = await asyncio.create_task(hoard(), name="hoarder")
    with pytest.raises(aiostage.StallTimeout, match="no staging buffer can come back") as caught:
        await ring.allocate(512)
    message = str(caught.value)
    assert re.search(r"buffer 0: hoarder holds 600 bytes for \d+\.\d s", message)
    assert re.search(r"buffer 1: hoarder holds 700 bytes", message)
    assert ring.stats_nowait().waiters == 0
    for slot in slots:
        slot.abandon()
    (await ring.allocate(512)).abandon()


async def test_slots_that_come_and_go_hold_up_no_whole_upload(open_ring: OpenRing, target: Any) -> None:
    """At nearly any moment each buffer has an open slot of somebody's; none of them stays."""
    ring = await open_ring(ring_count=4, buffer_size=1024 * KiB)
    large = [target(4096 * KiB) for _ in range(3)]
    small = target(300 * KiB)
    ended = anyio.Event()

    async def produce() -> None:
        while not ended.is_set():
            with await ring.allocate(300 * KiB) as slot:
                await anyio.sleep(0.05)
                slot.copy_to_buffer(small)
            await ring.submit()

    async def upload(buffer: Any, value: int) -> None:
        for _ in range(30):
            await ring.write_buffer(buffer, 0, bytes([value]) * (4096 * KiB))

    async with anyio.create_task_group() as producers:
        for _ in range(8):
            producers.start_soon(produce)
        async with anyio.create_task_group() as uploads:
            for value, buffer in enumerate(large):
                uploads.start_soon(upload, buffer, value)
        ended.set()
    await ring.fence()
    for value, buffer in enumerate(large):
        assert bytes(read_buffer(buffer)) == bytes([value]) * (4096 * KiB)


async def test_a_stall_that_only_the_gpu_causes_is_no_stall_timeout(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=2, stall_timeout=0.005), gpu.buffer(1024)
    await fill(ring, target)
    held = await ring.allocate(1024)
    waiter = start(ring.allocate(4))
    await anyio.sleep(0.05)  # several times the timeout
    assert not waiter.done()
    gpu.complete()
    (await waiter).abandon()
    held.abandon()


async def test_a_buffer_that_is_held_twice_over_counts_once(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(ring_count=2, stall_timeout=0.005), gpu.buffer(1024)
    await fill(ring, target)
    held, abandoned = await ring.allocate(512), await ring.allocate(512)
    assert held.buffer is abandoned.buffer
    view = memoryview(abandoned.view)
    abandoned.abandon()
    waiter = start(ring.allocate(1024))
    await anyio.sleep(0.05)
    assert not waiter.done()  # for the GPU will give the other one back
    gpu.complete()
    (await waiter).abandon()
    del view
    held.abandon()


async def test_a_view_of_an_abandoned_slot_holds_a_buffer_no_longer_than_it_lives(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=1, stall_timeout=0.005), gpu.buffer(1024)
    abandoned = await ring.allocate(512)
    with await ring.allocate(512) as slot:
        view = memoryview(abandoned.view)
        abandoned.abandon()
        slot.copy_to_buffer(target)
    await ring.submit()
    with pytest.raises(aiostage.StallTimeout, match="a view of an abandoned allocation"):
        await ring.allocate(4)
    del view
    waiter = start(ring.allocate(4))
    await anyio.sleep(0.05)
    assert not waiter.done()  # for the GPU will give the buffer back
    gpu.complete()
    (await waiter).abandon()


async def test_a_gpu_that_does_not_give_a_buffer_back_in_time_is_a_fence_timeout(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1, fence_timeout=0.02), gpu.buffer(1024)
    await fill(ring, target)
    with pytest.raises(aiostage.FenceTimeout, match=r"1 pending, the oldest is fence 1 for \d+\.\d+ s"):
        await ring.allocate(4)
    ring._engine.fence_timeout = None  # a busy machine may be slow to hear of it
    gpu.complete()
    await until(lambda: ring.stats_nowait().bytes_in_flight == 0)  # a busy machine may take longer than the timeout
    (await in_time(ring.allocate(4))).abandon()


async def test_a_submit_that_an_open_slot_holds_up_for_good_says_whose_it_is(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=1, stall_timeout=0.02), gpu.buffer(1024)

    async def hoard() -> aiostage.Allocation:
        return await ring.allocate(16)

    slow = await asyncio.create_task(hoard(), name="hoarder")
    with await ring.allocate(8) as quick:
        quick.view[:] = b"fast way"
        quick.copy_to_buffer(target)
    with pytest.raises(aiostage.StallTimeout, match="buffer 0: hoarder holds 16 bytes"):
        await in_time(ring.submit())
    slow.abandon()
    fence = await in_time(ring.submit())  # the copy was not lost
    gpu.complete_all()
    await fence
    assert target.bytes[:8].tobytes() == b"fast way"


async def test_a_buffer_that_may_not_go_before_another_counts_as_held(
    gpu: SimulatedGpu, simulated_ring: OpenRing, always_shared: None
) -> None:
    ring, target = await simulated_ring(ring_count=2, stall_timeout=0.02), gpu.buffer(1024)
    held = await ring.allocate(4)
    for size in (4, 1024):  # the later copy, in the second buffer, must not overtake the one beside the open slot
        with await ring.allocate(size) as slot:
            slot.copy_to_buffer(target)
    with pytest.raises(aiostage.StallTimeout, match="buffer 1: copies that must not overtake earlier ones"):
        await in_time(ring.allocate(1024))
    held.abandon()
    gpu.free_running = True
    (await in_time(ring.allocate(1024))).abandon()


async def test_a_buffer_that_somebody_is_about_to_fill_is_no_stall(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(ring_count=2, stall_timeout=0.005), gpu.buffer(1024)
    held = await ring.allocate(1024)
    gpu.may_submit.clear()
    upload = start(ring.write_buffer(target, 0, bytes(1024)))
    await turns()
    waiter = start(ring.allocate(4))
    await anyio.sleep(0.05)
    assert not waiter.done()
    gpu.may_submit.set()
    await upload
    gpu.complete()
    (await in_time(waiter)).abandon()
    held.abandon()


async def test_a_frame_that_waits_for_earlier_ones_too_long_is_a_fence_timeout(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=2, fence_timeout=0.02), gpu.buffer(1024)

    async def frame() -> None:
        async with ring.frame() as frame:
            await frame.write_buffer(target, 0, b"1234")

    for _ in range(2):
        await in_time(frame())
    with pytest.raises(aiostage.FenceTimeout, match="the oldest is fence 1"):
        await in_time(frame())
    gpu.free_running = True
    await in_time(frame())


async def test_every_call_that_waits_for_a_buffer_too_long_is_a_fence_timeout(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1, fence_timeout=0.01), gpu.buffer(4096)
    texture = gpu.texture("rgba8unorm", (4, 4, 1))
    await fill(ring, target)

    async def batch() -> None:
        async with ring.batch() as batch:
            await batch.write_buffer(target, 0, bytes(4096))

    for call in (
        lambda: ring.allocate(4),
        lambda: ring.allocate_texture((4, 4), "rgba8unorm"),
        lambda: ring.write_buffer(target, 0, bytes(4096)),
        lambda: ring.write_texture({"texture": texture}, bytes(64)),
        batch,
    ):
        with pytest.raises(aiostage.FenceTimeout, match="the GPU has not given a staging buffer back; 1 pending"):
            await in_time(call())
    gpu.free_running = True
    await in_time(ring.write_buffer(target, 0, bytes(4096)))


async def test_a_submit_that_the_gpu_holds_up_is_a_fence_timeout_too() -> None:
    gpu = SimulatedGpu(submit_blocks=True)
    target = gpu.buffer(1024)
    async with StagingRing(gpu, 1, 1024, fence_timeout=0.02) as ring:
        gpu.may_submit.clear()
        uploading = start(ring.write_buffer(target, 0, bytes(1024)))
        await turns()
        with pytest.raises(aiostage.FenceTimeout, match="a submit has been waiting for it for"):
            await in_time(ring.allocate(4))
        gpu.may_submit.set()
        gpu.free_running = True
        await in_time(uploading)


async def test_closing_waits_for_the_gpu_as_long_as_for_a_fence_and_gives_everything_back(gpu: SimulatedGpu) -> None:
    budget = aiostage.MemoryBudget(1024)
    ring = StagingRing(gpu, 1, 1024, fence_timeout=0.02, budget=budget)
    await ring.open()
    await ring.write_buffer(gpu.buffer(16), 0, bytes(16))
    with pytest.raises(aiostage.FenceTimeout, match="1 pending"):
        await in_time(ring.aclose())
    assert budget.used == 0
    await ring.aclose()
    gpu.complete()  # what is pending is heard of all the same
    await until(lambda: gpu.attached == 0)


# -- ends --


async def test_closing_wakes_every_waiter_with_ring_closed(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    await fill(ring, target)
    tasks = [start(ring.allocate(4)), start(ring.write_buffer(target, 0, b"1234"))]
    await waiting(ring, 2)
    closing = start(ring.aclose())
    for task in tasks:
        with pytest.raises(aiostage.RingClosed):
            await in_time(task)
    gpu.complete_all()
    await in_time(closing)


async def test_a_waiter_that_was_granted_its_place_as_the_ring_closed_holds_up_nothing(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    gpu.free_running, target = True, gpu.buffer(4096)
    for make in (lambda ring: ring.allocate(1024), lambda ring: ring.write_buffer(target, 0, bytes(4096))):
        ring = await simulated_ring(ring_count=1)
        holder = await ring.allocate(1024)
        granted = start(make(ring))
        await waiting(ring, 1)
        holder.abandon()
        await in_time(ring.aclose())  # before the waiter has run
        with pytest.raises(aiostage.RingClosed):
            await in_time(granted)


async def test_a_lost_device_wakes_every_waiter_and_fails_every_fence(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=1), gpu.buffer(1024)
    fence = await ring.write_buffer(target, 0, b"\x01" * 1024)
    other = ring._tracker.insert()
    tasks = [start(ring.allocate(4)), start(ring.write_buffer(target, 0, b"1234"))]
    await waiting(ring, 2)
    gpu.lose()
    for awaitable in (*tasks, fence, other):
        with pytest.raises(aiostage.DeviceLost):
            await in_time(awaitable)
    with pytest.raises(aiostage.DeviceLost):
        await ring.allocate(4)
    with pytest.raises(aiostage.DeviceLost):
        await ring.submit()
    assert not target.bytes.any()
    await in_time(ring.aclose())


async def test_a_waiter_behind_open_slots_alone_hears_that_the_device_was_lost(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring = await simulated_ring(ring_count=1, stall_timeout=0.02)
    held = await ring.allocate(1024)
    waiter = start(ring.allocate(4))
    await waiting(ring, 1)
    gpu.lose()  # with nothing in flight: nobody polls, and no callback tells
    with pytest.raises(aiostage.DeviceLost):
        await in_time(waiter)
    with pytest.raises(aiostage.DeviceLost):
        held.commit()


async def test_a_device_that_is_lost_before_the_submit_fails_those_who_wait_for_it(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    gpu.may_submit.clear()
    upload = start(ring.write_buffer(target, 0, b"1234"))
    with await ring.allocate(4) as slot:
        slot.copy_to_buffer(target)
    submitting = start(ring.submit())
    gpu.lose()
    for task in (upload, submitting):
        with pytest.raises(aiostage.DeviceLost):
            await in_time(task)
    await in_time(ring.aclose())


async def test_a_lost_device_fails_batches_and_frames(gpu: SimulatedGpu, simulated_ring: OpenRing) -> None:
    ring, target = await simulated_ring(ring_count=2), gpu.buffer(1024)
    with pytest.raises(aiostage.DeviceLost):
        async with ring.frame() as frame:
            await frame.write_buffer(target, 0, b"1234")
            gpu.lose()
    with pytest.raises(aiostage.DeviceLost):
        async with ring.batch():
            pass
