"""Memory pools: against a plain model on a real device, and on a GPU whose clock the test moves."""

from __future__ import annotations

import asyncio
import gc
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from itertools import pairwise
from typing import Any
from unittest import mock

import anyio
import numpy as np
import pytest
import wgpu
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from interpose import interpose
from simulated import SimulatedGpu, turns, until

import aiostage
from aiostage import KiB, MiB
from aiostage.pools import BUCKETS, BufferPool, BufferRange, Pin
from aiostage.pools.freespace import FreeSpace, class_of, fitting_class

VERTEX, UNIFORM = wgpu.BufferUsage.VERTEX, wgpu.BufferUsage.UNIFORM


# -- free space --


@given(st.integers(1, 1 << 30), st.integers(1, 1 << 30))
def test_a_piece_in_the_fitting_class_or_above_is_large_enough(wanted: int, piece: int) -> None:
    assert fitting_class(wanted) >= class_of(wanted)
    if class_of(piece) >= fitting_class(wanted):
        assert piece >= wanted
    if piece >= wanted * 33 / 32 + 1:  # and what is a little larger is found
        assert class_of(piece) >= fitting_class(wanted)


@given(st.lists(st.tuples(st.booleans(), st.integers(1, 600), st.randoms(use_true_random=False)), max_size=60))
def test_free_space_is_what_nobody_took_in_pieces_that_do_not_touch(steps: list[Any]) -> None:
    space, taken = FreeSpace(4096), dict[int, int]()
    for takes, units, random in steps:
        wanted = fitting_class(units)
        if takes and space.mask >> wanted:
            taken[space.take(units, wanted)] = units
        elif taken:
            start = random.choice(sorted(taken))
            space.give(start, taken.pop(start))
        pieces = space.pieces()
        spans = sorted([*pieces.items(), *taken.items()])
        assert [start for start, _ in spans] == [
            0,
            *(start + size for start, size in spans[:-1]),
        ]  # gapless, no overlap
        assert sum(spans[-1]) == space.size
        assert not any(start + size in pieces for start, size in pieces.items())
        assert space.free == sum(pieces.values())
        assert space.largest() == max(pieces.values(), default=0)
        assert space.mask == sum({1 << class_of(size) for size in pieces.values()})


# -- the pool against a model, on a real device --


class Holding:
    """What the model knows of a range: references and pins that are held, and the mark at both ends of its content."""

    def __init__(self, range: BufferRange, mark: bytes) -> None:
        self.range, self.mark = range, mark
        self.references = 1
        self.pins: list[Pin] = []


class PoolMachine(RuleBasedStateMachine):
    """Ranges are allocated, written, shared, pinned, released and moved; the model is a list of what is held."""

    device: Any = None
    ring: Any = None
    runner: asyncio.Runner
    moved = freed = 0

    def __init__(self) -> None:
        super().__init__()
        self.pool = BufferPool(self.device, VERTEX, block_size=8 * MiB)
        self.held: list[Holding] = []
        self.made = 0

    @initialize(sizes=st.lists(st.integers(MiB // 8, MiB // 2), min_size=20, max_size=20))
    def begin(self, sizes: list[int]) -> None:
        self.allocate(sizes)

    @rule(sizes=st.lists(st.integers(2, 1250) | st.integers(MiB // 8, MiB) | st.just(9 * MiB // 4), max_size=4))
    def allocate_more(self, sizes: list[int]) -> None:
        self.allocate(sizes)

    def allocate(self, sizes: list[int]) -> None:
        for size in sizes:
            self.made += 1
            holding = Holding(self.pool.allocate(4 * size), self.made.to_bytes(4, "little"))
            self.held.append(holding)

            async def write(holding: Holding = holding, end: int = 4 * size - 4) -> None:
                async with self.ring.batch() as batch:
                    await batch.write_buffer(holding.range, 0, holding.mark)
                    await batch.write_buffer(holding.range, end, holding.mark)

            self.runner.run(write())

    @precondition(lambda self: self.referenced())
    @rule(data=st.data())
    def retain(self, data: st.DataObject) -> None:
        holding = data.draw(st.sampled_from(self.referenced()))
        assert holding.range.retain() is holding.range
        holding.references += 1

    @rule(step=st.integers(1, 4))
    def release(self, step: int) -> None:
        for holding in self.referenced()[::step]:
            holding.range.release()
            holding.references -= 1
            assert holding.range.references == holding.references
            if not holding.references:
                for use in (holding.range.release, holding.range.retain, holding.range.pin):
                    with pytest.raises(aiostage.RangeReleased):
                        use()
        self.forget()

    @precondition(lambda self: self.referenced())
    @rule(data=st.data())
    def pin(self, data: st.DataObject) -> None:
        holding = data.draw(st.sampled_from(self.referenced()))
        holding.pins.append(holding.range.pin())

    @precondition(lambda self: any(holding.pins for holding in self.held))
    @rule(data=st.data())
    def unpin(self, data: st.DataObject) -> None:
        data.draw(st.sampled_from([holding for holding in self.held if holding.pins])).pins.pop().release()
        self.forget()

    @rule(seconds=st.sampled_from([0.0, 1.0]))
    def defragment(self, seconds: float) -> None:
        before = self.pool.statistics()
        done = self.runner.run(self.pool.defragment(seconds))
        after = self.pool.statistics()
        assert after.blocks == before.blocks - done.blocks_freed
        assert after.empty_blocks == 0
        assert after.ranges_moved == before.ranges_moved + done.ranges_moved
        assert after.reclaimable <= before.reclaimable
        PoolMachine.moved += done.ranges_moved
        PoolMachine.freed += done.blocks_freed

    @invariant()
    def statistics_say_what_the_model_says(self) -> None:
        stats = self.pool.statistics()
        sizes = [holding.range.size for holding in self.held]
        assert (stats.ranges, stats.requested) == (len(sizes), sum(sizes))
        assert stats.own_blocks == sum(size > 8 * MiB for size in sizes)
        assert stats.requested <= stats.used <= stats.requested + 63 * stats.ranges
        assert stats.reserved == stats.blocks * 8 * MiB + sum(-(-size // 64) * 64 for size in sizes if size > 8 * MiB)
        smallest = 1
        for bucket in stats.buckets:
            within = [size for size in sizes if smallest <= size <= bucket.size]
            assert (bucket.ranges, bucket.nbytes) == (len(within), sum(within))
            smallest = bucket.size + 1

    @invariant()
    def nothing_overlaps_and_pins_hold(self) -> None:
        ends: dict[Any, int] = {}
        for buffer, offset, holding in sorted(map(where, self.held), key=lambda place: place[1]):
            assert offset % 64 == 0
            assert offset >= ends.get(buffer, 0)
            ends[buffer] = offset + holding.range.size
            assert ends[buffer] <= buffer.size
            assert all((pin.buffer, pin.offset) == (buffer, offset) for pin in holding.pins)

    def teardown(self) -> None:
        for holding in self.held:
            while holding.pins:
                holding.pins.pop().release()
        self.forget()
        self.release(step=2)
        self.defragment(1.0)  # something is moved in nearly every example
        for buffer, offset, holding in map(where, self.held):
            for at in (offset, offset + holding.range.size - 4):
                assert bytes(self.device.queue.read_buffer(buffer, at, 4)) == holding.mark
        while self.held:
            with pytest.raises(aiostage.RangesStillAlive, match=f"{len(self.held)} ranges"):
                self.pool.close()
            self.release(step=1)
        self.pool.close()

    def referenced(self) -> list[Holding]:
        return [holding for holding in self.held if holding.references]

    def forget(self) -> None:
        """A range without references lives on only by its pins."""
        self.held = [holding for holding in self.held if holding.references or holding.pins]


def where(holding: Holding) -> tuple[Any, int, Holding]:
    """(buffer, offset, holding), as a pin has it if there is one."""
    place = holding.pins[0] if holding.pins else holding.range
    return place.buffer, place.offset, holding


def test_a_pool_does_what_its_model_does_and_moved_ranges_keep_their_content(device: wgpu.GPUDevice) -> None:
    with asyncio.Runner() as runner:
        ring = aiostage.StagingRing(device, 2, 64 * KiB)
        runner.run(ring.open())
        PoolMachine.device, PoolMachine.runner, PoolMachine.ring = device, runner, ring
        try:
            run_state_machine_as_test(
                PoolMachine,
                settings=settings(
                    max_examples=25,
                    stateful_step_count=30,
                    deadline=None,
                    suppress_health_check=[HealthCheck.too_slow],
                ),
            )
        finally:
            runner.run(ring.aclose())
    assert PoolMachine.moved > 0
    assert PoolMachine.freed > 0


# -- what is in flight --


@pytest.fixture
def pool(gpu: SimulatedGpu) -> Iterator[BufferPool]:
    """A pool on the simulated GPU, with blocks of 8 MiB; the test may leave ranges behind."""
    with pool_on(gpu) as pool:
        yield pool


@contextmanager
def pool_on(gpu: SimulatedGpu) -> Iterator[BufferPool]:
    pool = BufferPool(gpu, VERTEX, block_size=8 * MiB)
    kept = []
    with mock.patch.object(pool, "allocate", lambda size: kept.append(BufferPool.allocate(pool, size)) or kept[-1]):
        yield pool
    pool.__exit__(EOFError)  # as an exception ends it


def scatter(pool: BufferPool) -> tuple[BufferRange, Pin]:
    """A range alone in its block, and the pin of another in a block where it would fit as well."""
    other, between, lone = (pool.allocate(size) for size in (4 * MiB, 4 * MiB, 1 * MiB))
    between.release()
    assert pool.statistics().blocks == 2
    return lone, other.pin()


async def in_background(tasks: anyio.abc.TaskGroup, pool: BufferPool) -> list[Any]:
    """Start a defragmentation; what it returns will be in the list."""
    result: list[Any] = []

    async def run() -> None:
        result.append(await pool.defragment(1))

    tasks.start_soon(run)
    await turns()
    return result


async def test_a_block_comes_free_when_its_ranges_are_moved(gpu: SimulatedGpu, pool: BufferPool) -> None:
    gpu.free_running = True
    lone, other = scatter(pool)
    lone.buffer.bytes[lone.offset : lone.offset + lone.size] = 7
    source = lone.buffer
    done = await pool.defragment(1)
    assert (done.ranges_moved, done.bytes_moved, done.blocks_freed, done.finished) == (1, MiB, 1, True)
    assert lone.buffer is other.buffer is not source
    assert (lone.buffer.bytes[lone.offset : lone.offset + lone.size] == 7).all()


async def test_a_defragmentation_that_asyncio_cancels_waits_until_its_copies_were_submitted() -> None:
    gpu = SimulatedGpu(submit_blocks=True)
    with pool_on(gpu) as pool:
        lone, _ = scatter(pool)
        lone.buffer.bytes[lone.offset : lone.offset + lone.size] = 7
        gpu.may_submit.clear()
        task = asyncio.ensure_future(pool.defragment(1))
        await until(lambda: gpu.polls)
        await anyio.sleep(0.02)
        task.cancel()
        await turns()
        assert not task.done()  # or the places would be somebody else's, and its copies come after his
        gpu.may_submit.set()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert gpu.submitted == 1
        gpu.complete_all()
        assert (lone.buffer.bytes[lone.offset : lone.offset + lone.size] == 7).all()


async def test_nothing_moves_before_the_gpu_is_done_with_what_was_submitted(
    gpu: SimulatedGpu, pool: BufferPool, simulated_ring: Callable[..., Any]
) -> None:
    lone, _ = scatter(pool)
    ring = await simulated_ring()
    async with anyio.create_task_group() as tasks:
        await ring.write_buffer(lone, 0, b"data")
        result = await in_background(tasks, pool)
        source, submitted = lone._place, gpu.submitted
        assert not result
        gpu.complete_all()
        await until(lambda: gpu.submitted > submitted)  # the move
        gpu.free_running = True
    assert result[0].ranges_moved == 1
    assert lone._place is not source
    assert bytes(lone.buffer.bytes[lone.offset : lone.offset + 4]) == b"data"


@pytest.mark.parametrize("how", ["slot", "batch", "frame"])
async def test_a_staged_copy_keeps_its_range_where_it_is_until_it_is_submitted(
    gpu: SimulatedGpu, pool: BufferPool, simulated_ring: Callable[..., Any], how: str
) -> None:
    gpu.free_running = True
    lone, _ = scatter(pool)
    source = lone.offset
    ring = await simulated_ring()
    if how == "slot":
        with await ring.allocate(8) as slot:
            slot.array()[:] = 9
            slot.copy_to_buffer(lone, 4)
        assert lone.pinned
        assert (await pool.defragment(1)).ranges_moved == 0
        await ring.submit()
    else:
        async with ring.batch() if how == "batch" else ring.frame() as block:
            await block.write_buffer(lone, 4, bytes([9] * 8))
            assert lone.pinned
            assert (await pool.defragment(1)).ranges_moved == 0
    await turns()
    assert not lone.pinned
    assert (await pool.defragment(1)).ranges_moved == 1
    assert (lone.buffer.bytes[lone.offset + 4 : lone.offset + 12] == 9).all()
    assert source == 0


async def test_a_released_range_is_not_handed_out_again_while_a_copy_to_it_is_staged(
    gpu: SimulatedGpu, pool: BufferPool, simulated_ring: Callable[..., Any]
) -> None:
    gpu.free_running = True
    ring = await simulated_ring()
    first = pool.allocate(8 * MiB)
    block = first.buffer
    async with ring.batch() as batch:
        await batch.write_buffer(first, 0, b"old!")
        first.release()
        second = pool.allocate(8 * MiB)
        assert second.buffer is not block
    await turns()
    third = pool.allocate(8 * MiB)
    assert third.buffer is block


@pytest.mark.parametrize("end", ["abandoned slot", "failed batch"])
async def test_a_copy_that_never_runs_lets_go_of_its_range(
    gpu: SimulatedGpu, pool: BufferPool, simulated_ring: Callable[..., Any], end: str
) -> None:
    ring, lone = await simulated_ring(), pool.allocate(64)
    if end == "abandoned slot":
        slot = await ring.allocate(8)
        slot.copy_to_buffer(lone)
        assert lone.pinned
        slot.abandon()
    else:
        with pytest.raises(ZeroDivisionError):
            async with ring.batch() as batch:
                await batch.write_buffer(lone, 0, b"data")
                assert lone.pinned
                1 / 0  # noqa: B018
    assert not lone.pinned


async def test_a_pinned_range_stays_and_its_block_with_it(gpu: SimulatedGpu, pool: BufferPool) -> None:
    gpu.free_running = True
    lone, _ = scatter(pool)
    with lone.pin() as pin:
        assert pin.binding == {"buffer": lone.buffer, "offset": lone.offset, "size": lone.size}
        done = await pool.defragment(1)
        assert (done.ranges_moved, done.blocks_freed, done.finished) == (0, 0, True)
        assert (pin.buffer, pin.offset) == (lone.buffer, lone.offset)
    assert (await pool.defragment(1)).ranges_moved == 1


async def test_a_pin_that_is_forgotten_is_released(pool: BufferPool) -> None:
    lone = pool.allocate(64)
    pin = lone.pin()
    assert lone.pinned
    del pin
    assert not lone.pinned


async def test_who_asked_for_a_place_since_the_call_finds_it_unchanged(gpu: SimulatedGpu, pool: BufferPool) -> None:
    lone, _ = scatter(pool)
    async with anyio.create_task_group() as tasks:
        gpu.submit([], [gpu.command_buffer()])
        result = await in_background(tasks, pool)
        place = lone.buffer, lone.offset  # as a task does that is about to record a pass
        gpu.free_running = True
    assert result[0].ranges_moved == 0
    assert place == (lone.buffer, lone.offset)


async def test_a_range_that_is_asked_for_while_a_thread_submits_its_move_stays() -> None:
    gpu = SimulatedGpu(submit_blocks=True)
    with pool_on(gpu) as pool:
        lone, _ = scatter(pool)
        before = pool.statistics()
        async with anyio.create_task_group() as tasks:
            gpu.may_submit.clear()
            result = await in_background(tasks, pool)
            await until(lambda: pool.statistics().used > before.used)  # the new place is taken, the submit waits
            place = lone.buffer, lone.offset
            gpu.free_running = True
            gpu.may_submit.set()
        assert result[0].ranges_moved == 0
        assert place == (lone.buffer, lone.offset)
        assert pool.statistics().used == before.used  # and given back


async def test_a_range_that_is_released_while_a_thread_submits_its_move_is_gone() -> None:
    gpu = SimulatedGpu(submit_blocks=True)
    with pool_on(gpu) as pool:
        lone, other = scatter(pool)
        async with anyio.create_task_group() as tasks:
            gpu.may_submit.clear()
            await in_background(tasks, pool)
            await until(lambda: pool.statistics().used > 5 * MiB)
            lone.release()
            other.release()
            gpu.free_running = True
            gpu.may_submit.set()
        assert (pool.statistics().used, pool.statistics().ranges) == (4 * MiB, 1)


async def test_two_defragmentations_at_a_time_do_no_harm(gpu: SimulatedGpu, pool: BufferPool) -> None:
    gpu.free_running = True
    lone, _ = scatter(pool)
    lone.buffer.bytes[lone.offset : lone.offset + 4] = 5
    async with anyio.create_task_group() as tasks:
        tasks.start_soon(pool.defragment, 1)
        tasks.start_soon(pool.defragment, 1)
    assert (lone.buffer.bytes[lone.offset : lone.offset + 4] == 5).all()
    assert (pool.statistics().blocks, pool.statistics().used) == (1, 5 * MiB)


async def test_a_cancelled_defragmentation_changes_nothing(gpu: SimulatedGpu, pool: BufferPool) -> None:
    lone, _ = scatter(pool)
    before = pool.statistics()
    gpu.submit([], [gpu.command_buffer()])
    with anyio.move_on_after(0.05):
        await pool.defragment(1)
    assert pool.statistics() == before
    gpu.free_running = True
    assert (await pool.defragment(1)).ranges_moved == 1
    assert lone.references == 1


async def test_a_lost_device_ends_a_defragmentation(gpu: SimulatedGpu, pool: BufferPool) -> None:
    _ = scatter(pool)
    before = pool.statistics()
    gpu.submit([], [gpu.command_buffer()])
    async with anyio.create_task_group() as tasks:

        async def defragment() -> None:
            with pytest.raises(aiostage.DeviceLost):
                await pool.defragment(1)

        tasks.start_soon(defragment)
        await turns()
        gpu.lose()
    assert pool.statistics() == before
    with pytest.raises(aiostage.DeviceLost):
        pool.allocate(8 * MiB)


async def test_a_device_that_is_lost_before_moves_are_submitted_leaves_the_ranges_where_they_are() -> None:
    gpu = SimulatedGpu()
    interpose(gpu, "wgpuDeviceCreateCommandEncoder", lambda create: lambda *args: (gpu.lose(), create(*args))[1])
    with pool_on(gpu) as pool:
        lone, _ = scatter(pool)
        before, place = pool.statistics(), (lone.buffer, lone.offset)
        with pytest.raises(aiostage.DeviceLost):
            await pool.defragment(1)
        assert pool.statistics() == before
        assert (lone.buffer, lone.offset) == place


async def test_defragmentation_goes_on_where_its_time_was_up(gpu: SimulatedGpu, pool: BufferPool) -> None:
    gpu.free_running = True
    keep, drop = [], []
    for i in range(2048):
        (keep if i % 4 == 0 else drop).append(pool.allocate(8 * KiB))
    for range_ in drop:
        range_.release()
    calls, done = 0, None
    while done is None or not done.finished:
        done = await pool.defragment(0)
        assert done.ranges_moved <= 64
        calls += 1
    assert calls > 2
    assert pool.statistics().blocks == 1
    assert pool.statistics().ranges_moved >= 256


# -- as a destination --


async def test_ranges_of_one_buffer_take_the_uploads_of_every_call(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    rng = np.random.default_rng(1)
    with BufferPool(device, VERTEX) as pool, ExitStack() as stack:
        before, *ranges, after = (stack.enter_context(pool.allocate(300 * KiB)) for _ in range(6))
        for border in (before, after):
            await ring.write_buffer(border, 0, bytes(300 * KiB))
        data = [rng.integers(0, 256, 200 * KiB, np.uint8) for _ in ranges]
        await ring.write_buffer(ranges[0], 4 * KiB, data[0])  # in several pieces
        async with ring.batch() as batch:
            await batch.write_buffer(ranges[1], 4 * KiB, data[1])
        async with ring.frame() as frame:
            await frame.write_buffer(ranges[2], 4 * KiB, data[2])
        for start in range(0, 200 * KiB, 40 * KiB):
            with await ring.allocate(40 * KiB) as slot:
                slot.array()[:] = data[3][start : start + 40 * KiB]
                slot.copy_to_buffer(ranges[3], 4 * KiB + start)
        await (await ring.submit())
        for range_, sent in zip(ranges, data, strict=True):
            read = device.queue.read_buffer(range_.buffer, range_.offset + 4 * KiB, 200 * KiB)
            assert bytes(read) == sent.tobytes()
        for border in (before, after):
            assert not any(device.queue.read_buffer(border.buffer, border.offset, border.size))
        assert not any(range_.pinned for range_ in ranges)


async def test_a_copy_past_the_end_of_a_range_is_refused_though_the_block_goes_on(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    with BufferPool(device, VERTEX) as pool, pool.allocate(100) as range_:
        for offset, nbytes in ((0, 104), (100, 4), (-4, 4), (2, 4)):
            with pytest.raises(aiostage.InvalidCopy):
                await ring.write_buffer(range_, offset, bytes(nbytes))
            with await ring.allocate(nbytes) as slot, pytest.raises(aiostage.InvalidCopy):
                slot.copy_to_buffer(range_, offset)
        assert not range_.pinned


async def test_a_copy_in_the_callers_own_encoder_goes_to_a_pin_of_the_callers(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    encoder = device.create_command_encoder()
    with BufferPool(device, VERTEX) as pool, pool.allocate(64) as range_:
        with await ring.allocate(64) as slot, pytest.raises(aiostage.InvalidCopy, match="copy to a pin"):
            slot.copy_to_buffer(range_, encoder=encoder)
        with range_.pin() as pin:
            with await ring.allocate(64) as slot:
                slot.array()[:] = 3
                slot.copy_to_buffer(pin, encoder=encoder)
            await ring.submit([encoder.finish()])
            assert set(device.queue.read_buffer(pin.buffer, pin.offset, 64)) == {3}


async def test_a_pin_is_a_destination_also_when_its_range_was_released(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    with BufferPool(device, VERTEX) as pool:
        range_ = pool.allocate(64)
        with range_.pin() as pin:
            range_.release()
            await ring.write_buffer(pin, 60, b"last")
            assert bytes(device.queue.read_buffer(pin.buffer, pin.offset + 60, 4)) == b"last"
            with pytest.raises(aiostage.InvalidCopy):
                await ring.write_buffer(pin, 64, b"past")
        with pytest.raises(aiostage.RangeReleased):
            await ring.write_buffer(pin, 0, b"late")


# -- misuse --


async def test_another_devices_range_is_refused(
    device: wgpu.GPUDevice, own_device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    with BufferPool(own_device, VERTEX) as pool, pool.allocate(64) as foreign:
        with pytest.raises(aiostage.InvalidCopy, match="another device"):
            await ring.write_buffer(foreign, 0, b"data")


async def test_a_released_range_is_no_destination_and_has_no_place(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=64 * KiB)
    with BufferPool(device, VERTEX) as pool:
        range_ = pool.allocate(64)
        range_.release()
        with pytest.raises(aiostage.RangeReleased):
            await ring.write_buffer(range_, 0, b"data")
        for use in (lambda: range_.buffer, lambda: range_.offset, range_.pin, range_.retain, range_.release):
            with pytest.raises(aiostage.RangeReleased):
                use()


def test_a_pool_is_closed_with_its_last_range_or_by_an_exception(device: wgpu.GPUDevice) -> None:
    pool = BufferPool(device, VERTEX)
    range_ = pool.allocate(64)
    with pytest.raises(aiostage.RangesStillAlive, match="1 ranges with 64 bytes"):
        pool.close()
    range_.retain().release()  # the pool is as it was
    with pytest.raises(ZeroDivisionError), pool:
        1 / 0  # noqa: B018
    for use in (lambda: pool.allocate(64), pool.statistics, pool.__enter__, range_.release, lambda: range_.buffer):
        with pytest.raises(aiostage.PoolClosed):
            use()
    pool.close()


async def test_a_range_that_is_dropped_without_release_warns_and_is_given_back(device: wgpu.GPUDevice) -> None:
    with BufferPool(device, VERTEX) as pool:
        range_ = pool.allocate(64)
        with pytest.warns(ResourceWarning, match="was not released"):
            del range_
            gc.collect()
        assert pool.statistics().ranges == 0


@pytest.mark.parametrize("size", [0, -4, 2.0, True, "64", None])
def test_a_size_is_a_positive_whole_number(device: wgpu.GPUDevice, size: Any) -> None:
    with BufferPool(device, VERTEX) as pool:
        with pytest.raises(ValueError, match="positive whole number"):
            pool.allocate(size)
        with pool.allocate(np.int64(64)) as range_:
            assert range_.size == 64


@pytest.mark.parametrize(
    "options",
    [
        {"usage": wgpu.BufferUsage.MAP_READ},
        {"alignment": 32},
        {"alignment": 96},
        {"block_size": 4 * MiB},
        {"block_size": 1 << 40},
    ],
    ids=str,
)
def test_a_pool_that_cannot_be_is_refused(device: wgpu.GPUDevice, options: dict[str, int]) -> None:
    with pytest.raises(ValueError):
        BufferPool(device, options.pop("usage", VERTEX), **options)


def test_what_no_buffer_can_hold_is_refused(device: wgpu.GPUDevice) -> None:
    with BufferPool(device, VERTEX) as pool, pytest.raises(aiostage.AllocationTooLarge):
        pool.allocate(device.limits["max-buffer-size"] + 1)


async def test_a_block_cannot_be_destroyed_by_those_who_share_it(device: wgpu.GPUDevice) -> None:
    with BufferPool(device, VERTEX) as pool, pool.allocate(64) as range_:
        with pytest.raises(aiostage.StagingError, match="shared by the ranges"):
            range_.buffer.destroy()


async def test_a_command_buffer_that_uses_a_block_which_was_given_back_can_be_submitted(device: wgpu.GPUDevice) -> None:
    pool = BufferPool(device, VERTEX)
    ranges = [pool.allocate(64), pool.allocate(9 * MiB)]
    encoder = device.create_command_encoder()
    encoder.copy_buffer_to_buffer(ranges[0].buffer, ranges[0].offset, ranges[1].buffer, ranges[1].offset, 64)
    stale = encoder.finish()
    for range_ in ranges:
        range_.release()
    pool.close()
    device.queue.submit([stale])  # it would abort the interpreter, had the block been destroyed


# -- limits --


def test_a_range_above_8_mib_has_a_block_of_its_own_that_goes_with_it(device: wgpu.GPUDevice) -> None:
    with BufferPool(device, VERTEX) as pool:
        with pool.allocate(9 * MiB) as range_:
            stats = pool.statistics()
            assert (stats.blocks, stats.own_blocks, stats.reserved) == (0, 1, 9 * MiB)
            assert (range_.buffer.size, range_.offset) == (9 * MiB, 0)
            assert stats.fragmentation == 0
        assert pool.statistics().reserved == 0


def test_a_budget_limits_the_blocks(device: wgpu.GPUDevice) -> None:
    budget = aiostage.MemoryBudget(20 * MiB)
    with BufferPool(device, VERTEX, block_size=8 * MiB, budget=budget) as pool:
        ranges = [pool.allocate(8 * MiB) for _ in range(2)]
        assert budget.used == 16 * MiB
        for size in (64, 9 * MiB):
            with pytest.raises(aiostage.BudgetExceeded):
                pool.allocate(size)
        for range_ in ranges:
            range_.release()
        assert budget.used == 8 * MiB  # one empty block is kept
        pool.allocate(8 * MiB).release()
        assert pool.statistics().blocks_total == 2
    assert budget.used == 0


@pytest.mark.parametrize(("usage", "alignment"), [(VERTEX, 64), (UNIFORM, 256), (wgpu.BufferUsage.STORAGE, 256)])
def test_ranges_start_where_the_device_lets_a_binding_start(
    adapter: wgpu.GPUAdapter, usage: int, alignment: int
) -> None:
    names = ("min-uniform-buffer-offset-alignment", "min-storage-buffer-offset-alignment")
    device = adapter.request_device_sync(required_limits=dict.fromkeys(names, 256))
    with BufferPool(device, usage) as pool, ExitStack() as stack:
        assert pool.alignment == alignment
        places = [stack.enter_context(pool.allocate(size)).offset for size in (20, 64, 300, 16, 5000)]
        assert not any(offset % alignment for offset in places)
        assert len(set(places)) == 5
    with BufferPool(device, usage, alignment=4096) as pool, pool.allocate(1), pool.allocate(1) as second:
        assert second.offset % 4096 == 0


def test_the_buckets_are_powers_of_two_from_64_bytes_to_8_mib() -> None:
    assert BUCKETS[0] == 64
    assert BUCKETS[-1] == 8 * MiB
    assert all(later == 2 * earlier for earlier, later in pairwise(BUCKETS))


async def test_pools_and_rings_share_no_memory_and_the_statistics_show_it(
    own_device: wgpu.GPUDevice, open_ring: Callable[..., Any]
) -> None:
    with BufferPool(own_device, VERTEX, block_size=8 * MiB) as pool, pool.allocate(1 * MiB) as range_:
        before = pool.statistics()
        assert (before.reserved, before.staging_used, before.staging_limit) == (8 * MiB, 0, 512 * MiB)
        ring = await open_ring(on=own_device, ring_count=3, buffer_size=1 * MiB)
        during = pool.statistics()
        assert (during.reserved, during.staging_used) == (8 * MiB, 3 * MiB)
        assert range_.buffer not in [buffer.handle for buffer in ring._engine.shelf.all]
        with pool.allocate(8 * MiB):
            assert pool.statistics().reserved == 16 * MiB
            assert pool.statistics().staging_used == 3 * MiB
            assert ring.stats_nowait().memory == 3 * MiB


def test_fragmentation_counts_padding_and_blocks_that_packing_would_spare(device: wgpu.GPUDevice) -> None:
    with BufferPool(device, VERTEX, block_size=8 * MiB) as pool:
        ranges = [pool.allocate(1 * MiB) for _ in range(16)]
        assert pool.statistics().fragmentation == 0
        for range_ in ranges[::2]:
            range_.release()
        stats = pool.statistics()
        assert (stats.reserved, stats.used, stats.free, stats.reclaimable) == (16 * MiB, 8 * MiB, 8 * MiB, 8 * MiB)
        assert (stats.internal_fragmentation, stats.external_fragmentation, stats.fragmentation) == (0, 0.5, 0.5)
        assert stats.largest_free == 1 * MiB
        for range_ in ranges[1::2]:
            range_.release()
        with pool.allocate(16):
            assert pool.statistics().internal_fragmentation == 0.75


def test_threads_may_share_a_pool(device: wgpu.GPUDevice) -> None:
    with BufferPool(device, VERTEX) as pool:
        shared = pool.allocate(64)
        failures: list[BaseException] = []

        def work(seed: int) -> None:
            rng = np.random.default_rng(seed)
            try:
                mine = []
                for size in rng.integers(1, 50_000, 400):
                    mine.append(pool.allocate(int(size)))
                    with shared.pin():
                        shared.retain().release()
                    if len(mine) > 20:
                        mine.pop(int(rng.integers(20))).release()
                for range_ in mine:
                    range_.release()
            except BaseException as error:
                failures.append(error)

        threads = [threading.Thread(target=work, args=(seed,)) for seed in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert not failures
        shared.release()
        stats = pool.statistics()
        assert (stats.ranges, stats.used, stats.allocations_total) == (0, 0, 1601)
