"""Advice is right: the same work, on a ring with the advised settings, waits less."""

from __future__ import annotations

from collections.abc import Awaitable, Callable
from dataclasses import replace
from typing import Any

import anyio
import pytest
import wgpu
from hypothesis import given, settings
from hypothesis import strategies as st
from simulated import SimulatedGpu, until

import aiostage
from aiostage import KiB, MemoryBudget, MiB, StagingRing, StagingStats
from aiostage.advice import Advice, AdviceKind, advise, round_up

Work = Callable[[StagingRing, SimulatedGpu], Awaitable[None]]
MORE, LARGER, GPU_BOUND, SMALLER, NEAR_BUDGET = AdviceKind


async def do(
    work: Work, ring_count: int, buffer_size: int, *, pause: float = 0.0005, **options: Any
) -> tuple[StagingStats, dict[AdviceKind, Advice]]:
    """What a ring says after some work, on a GPU that does one submission in `pause` seconds."""
    gpu = SimulatedGpu()

    async def run() -> None:
        while True:
            await anyio.sleep(pause)
            if gpu.in_flight and not gpu.free_running:
                gpu.complete()
                await until(gpu.has_told)

    async with StagingRing(gpu, ring_count, buffer_size, **options) as ring:
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(run)
            await work(ring, gpu)
            stats, advice = ring.stats_nowait(), ring.advise()
            tasks.cancel_scope.cancel()
        gpu.free_running = True
    assert gpu.violations == []
    return stats, {one.kind: one for one in advice}


async def follow(advice: Advice, work: Work, **options: Any) -> StagingStats:
    stats, _ = await do(work, advice.ring_count, advice.buffer_size, **options)
    return stats


async def follow_to_the_end(
    kinds: set[AdviceKind], work: Work, ring_count: int, buffer_size: int, **options: Any
) -> int:
    """Follow advice of these kinds until there is none, each time with fewer stalls; returns the last ring's stalls."""
    stats, advice = await do(work, ring_count, buffer_size, **options)
    assert kinds & set(advice)
    for _ in range(5):
        stalls = [one for one in advice.values() if one.kind in (MORE, LARGER, GPU_BOUND)]
        if not stalls:
            return stats.buffer_stalls
        [one] = stalls
        assert one.kind in kinds
        assert f"{stats.buffer_stalls} of {stats.allocations_total} allocations waited" in one.message
        assert one.ring_count * one.buffer_size <= 6 * stats.memory
        before = stats
        stats, advice = await do(work, one.ring_count, one.buffer_size, **options)
        assert stats.buffer_stalls < before.buffer_stalls
        assert stats.bytes_total == before.bytes_total
    raise AssertionError("advice never ends")


def rounds(n: int, each: Work) -> Work:
    """The work `n` times, with the ring idle in between."""

    async def work(ring: StagingRing, gpu: SimulatedGpu) -> None:
        for _ in range(n):
            await each(ring, gpu)
            await until(lambda: ring.stats_nowait().bytes_in_flight == 0)

    return work


def one_by_one(n: int, size: int) -> Work:
    async def work(ring: StagingRing, gpu: SimulatedGpu) -> None:
        target = gpu.buffer(size)
        for _ in range(n):
            await ring.write_buffer(target, 0, bytes(size))

    return work


def at_once(n: int, size: int) -> Work:
    async def work(ring: StagingRing, gpu: SimulatedGpu) -> None:
        async with anyio.create_task_group() as tasks:
            for _ in range(n):
                tasks.start_soon(ring.write_buffer, gpu.buffer(size), 0, bytes(size))

    return work


def slots(n: int, size: int) -> Work:
    """A slot after the other stays open until all of them are there."""

    async def work(ring: StagingRing, gpu: SimulatedGpu) -> None:
        async def hold(done: anyio.Event, ready: list[int]) -> None:
            with await ring.allocate(size) as slot:
                slot.copy_to_buffer(gpu.buffer(size))
                ready.append(1)
                with anyio.move_on_after(0.02):  # the ring cannot hold all of them
                    await done.wait()
            await ring.submit()

        done, ready = anyio.Event(), []
        async with anyio.create_task_group() as tasks:
            for _ in range(n):
                tasks.start_soon(hold, done, ready)
            await until(lambda: len(ready) == n)
            done.set()

    return work


MORE_WORK = {
    "a burst of uploads, one after the other": (rounds(4, one_by_one(8, 1024)), 3, 1024),
    "one buffer, never any overlap": (rounds(4, one_by_one(3, 1024)), 1, 1024),
    "two buffers, and many at once": (rounds(4, at_once(6, 1024)), 2, 1024),
    "many small uploads, one after the other": (rounds(4, one_by_one(10, 64)), 3, 4096),
}


@pytest.mark.parametrize("name", MORE_WORK)
async def test_more_buffers_stall_less(name: str) -> None:
    await follow_to_the_end({MORE}, *MORE_WORK[name])


LARGER_WORK = {
    "an upload larger than the ring": (one_by_one(1, 8 * 1024), {}),
    "one that threads copy": (one_by_one(1, 8 * 1024), {"inline_size": 16}),
    "many at once": (at_once(8, 1024), {}),
}


@pytest.mark.parametrize("name", LARGER_WORK)
async def test_larger_buffers_stall_less(name: str) -> None:
    work, options = LARGER_WORK[name]
    assert await follow_to_the_end({LARGER}, rounds(4, work), 3, 1024, **options) == 0


async def test_advice_holds_on_a_real_device_too(device: wgpu.GPUDevice, target: Callable[[int], Any]) -> None:
    size, uploads = 256 * KiB, 16
    buffer, data = target(size), bytes(size)

    async def stream(ring_count: int, buffer_size: int) -> tuple[StagingStats, tuple[Advice, ...]]:
        async with StagingRing(device, ring_count, buffer_size) as ring, anyio.create_task_group() as tasks:
            for _ in range(uploads):
                tasks.start_soon(ring.write_buffer, buffer, 0, data)
            await until(lambda: ring.stats_nowait().bytes_total == uploads * size)
            return await ring.stats(), ring.advise()

    before, [advice] = await stream(3, 32 * KiB)
    assert advice.kind is LARGER
    after, _ = await stream(advice.ring_count, advice.buffer_size)
    assert after.buffer_stalls < before.buffer_stalls


async def test_slots_that_stay_open_want_a_ring_that_holds_them_all() -> None:
    assert await follow_to_the_end({MORE, LARGER}, rounds(2, slots(6, 1024)), 3, 1024) == 0


async def test_the_demand_is_what_would_have_been_enough() -> None:
    """Eight buffers' worth in each round: with eight buffers nobody waits, and nobody would with fewer."""
    work = rounds(3, one_by_one(8, 1024))
    before, advice = await do(work, 3, 1024, pause=0.005)
    assert before.peak_demand == 8 * 1024
    assert (advice[MORE].ring_count, advice[MORE].buffer_size) == (8, 1024)
    after, silent = await do(work, 8, 1024, pause=0.005)
    assert after.buffer_stalls == 0
    assert silent == {}
    fewer, _ = await do(work, 6, 1024, pause=0.005)
    assert fewer.buffer_stalls > 0


async def test_a_gpu_that_is_always_busy_is_what_to_look_at() -> None:
    work = one_by_one(40, 1024)
    before, advice = await do(work, 3, 1024, pause=0.004)
    assert list(advice) == [GPU_BOUND]
    bound = advice[GPU_BOUND]
    assert (bound.ring_count, bound.buffer_size) == (3, 1024)
    assert f"{before.fence_latency_p50 * 1e3:.1f} ms" in bound.message
    assert f"{before.fence_latency_p99 * 1e3:.1f} ms" in bound.message
    longer_queue, _ = await do(work, 6, 1024, pause=0.004)
    assert longer_queue.buffer_stalls >= before.buffer_stalls - 6  # it was filled once more, and that is all
    assert longer_queue.fence_latency_p50 > before.fence_latency_p50

    async def less_to_do(ring: StagingRing, gpu: SimulatedGpu) -> None:
        gpu.free_running = True
        for _ in range(40):
            await one_by_one(1, 1024)(ring, gpu)
            await until(lambda: gpu.in_flight < 2)

    relieved, advice = await do(less_to_do, 3, 1024)
    assert relieved.buffer_stalls < before.buffer_stalls / 2
    assert GPU_BOUND not in advice


async def test_buffers_that_are_mostly_empty_may_be_smaller() -> None:
    async def work(ring: StagingRing, gpu: SimulatedGpu) -> None:
        for index in range(12):
            await (await ring.write_buffer(gpu.buffer(256), 0, bytes(64 + 16 * index)))
            await until(lambda: ring.stats_nowait().bytes_in_flight == 0)

    before, advice = await do(work, 3, 4096)
    assert before.buffer_stalls == 0
    smaller = advice[SMALLER]
    assert (smaller.ring_count, smaller.buffer_size) == (3, 256)
    after = await follow(smaller, work)
    assert after.buffer_stalls == 0
    assert after.submits == before.submits  # nothing had to be split
    assert after.memory < before.memory


async def test_many_mostly_empty_buffers_stall_less_in_less_memory() -> None:
    work = rounds(4, one_by_one(10, 64))
    before, advice = await do(work, 3, 4096)
    assert set(advice) == {MORE, SMALLER}
    after = await follow(advice[MORE], work)
    assert after.buffer_stalls < before.buffer_stalls / 2
    assert after.memory < before.memory


async def test_near_the_budget_what_was_never_needed_can_go() -> None:
    work = rounds(4, one_by_one(3, 1024))
    budget = MemoryBudget(16 * KiB)
    before, advice = await do(work, 8, 2048, budget=budget, pause=0.02)  # slower than three uploads
    assert before.buffer_stalls == 0
    near = advice[NEAR_BUDGET]
    assert "16 KiB of 16 KiB are in use, 16 KiB by this ring" in near.message
    assert (near.ring_count, near.buffer_size) == (3, 1024)
    after = await follow(near, work, budget=budget)
    assert after.buffer_stalls == 0
    assert after.memory < before.memory


async def test_near_the_budget_a_ring_that_needs_its_memory_says_so_and_asks_for_no_more() -> None:
    work = rounds(4, one_by_one(8, 1024))
    before, advice = await do(work, 3, 1024, budget=MemoryBudget(3 * KiB))
    assert before.buffer_stalls > 0
    assert list(advice) == [NEAR_BUDGET]
    assert "shrink another ring" in advice[NEAR_BUDGET].message
    _, advice = await do(work, 3, 1024, budget=MemoryBudget(4 * KiB))
    assert advice[MORE].ring_count == 4  # as many as there is room for


async def test_a_ring_that_does_well_gets_no_advice() -> None:
    _, advice = await do(rounds(10, one_by_one(2, 1024)), 3, 1024)
    assert advice == {}
    _, advice = await do(rounds(1, one_by_one(1, 64)), 3, 4096)  # too little to say anything
    assert advice == {}


async def test_a_closed_ring_gives_no_advice() -> None:
    ring = StagingRing(SimulatedGpu(free_running=True), 3, 1024)
    with pytest.raises(aiostage.RingClosed):
        ring.advise()


def stats(**fields: Any) -> StagingStats:
    states = (aiostage.BufferState.AVAILABLE,) * 3
    plain = StagingStats(0, 0, 0, 3, MiB, states, 0, 0, 0, 0, 0.0, 0.0, 0.0, 0, 0, 0, 0, 0, 0, 0, 0, 0)
    return replace(plain, **fields)


def test_a_round_trip_is_not_taken_for_a_busy_gpu() -> None:
    """A stream without a pause, whose fences take no longer than a round trip: larger buffers make fewer of them."""
    stream = stats(
        buffer_stalls=97,
        allocations_total=100,
        bytes_total=100 * MiB,
        seals=100,
        sealed_bytes=100 * MiB,
        sealed_most=MiB,
        seals_cramped=100,
        peak_demand=100 * MiB,
        peak_buffers=3,
        fence_latency_p50=0.0004,
    )
    [advice] = advise(stream, MemoryBudget())
    assert (advice.kind, advice.ring_count, advice.buffer_size) == (LARGER, 3, 4 * MiB)
    [advice] = advise(replace(stream, fence_latency_p50=0.05), MemoryBudget())
    assert advice.kind is LARGER  # a busy GPU, but fewer submits would cost it less
    large = replace(stream, buffer_size=16 * MiB, sealed_most=16 * MiB, sealed_bytes=1600 * MiB, peak_demand=1600 * MiB)
    [advice] = advise(replace(large, fence_latency_p50=0.05), MemoryBudget())
    assert str(advice).startswith("gpu bound, 3 × 16 MiB: 97 of 100 allocations waited")
    assert "50.0 ms" in advice.message
    small = replace(stream, seals_cramped=0, buffer_size=64 * MiB, sealed_most=40 * MiB, fence_latency_p50=0.05)
    [advice] = advise(small, MemoryBudget())
    assert advice.kind is GPU_BOUND
    assert "more in each submit (a batch)" in advice.message


def test_a_stall_in_a_thousand_allocations_is_not_worth_a_word() -> None:
    busy = stats(buffer_stalls=1, allocations_total=1000, seals=1000, sealed_bytes=1000 * MiB, sealed_most=MiB)
    assert advise(busy, MemoryBudget()) == ()


@settings(max_examples=100, deadline=None)
@given(st.data())
def test_advised_settings_can_be_opened(data: st.DataObject) -> None:
    ring_count = data.draw(st.integers(1, 20))
    buffer_size = 4 * data.draw(st.integers(1, 4 * MiB))
    seals = data.draw(st.integers(0, 1000))
    most = data.draw(st.integers(1, buffer_size))
    observed = stats(
        ring_count=ring_count,
        buffer_size=buffer_size,
        buffer_stalls=data.draw(st.integers(0, 1000)),
        allocations_total=data.draw(st.integers(1, 2000)),
        seals=seals,
        sealed_most=most if seals else 0,
        sealed_bytes=seals * data.draw(st.integers(1, most)),
        seals_cramped=data.draw(st.integers(0, seals)),
        peak_demand=data.draw(st.integers(0, 1 << 40)),
        peak_buffers=data.draw(st.integers(1 if seals else 0, ring_count)),
        fence_latency_p50=data.draw(st.floats(0, 1)),
    )
    budget = MemoryBudget(data.draw(st.integers(observed.memory, 1 << 33)))
    budget.reserve(observed.memory)
    for advice in advise(observed, budget):
        StagingRing(None, advice.ring_count, advice.buffer_size)  # arguments that a ring takes
        assert advice.ring_count * advice.buffer_size <= budget.limit
        assert advice.message
        setting, present = (advice.ring_count, advice.buffer_size), (ring_count, buffer_size)
        if advice.kind in (MORE, LARGER, SMALLER):
            assert setting != present
        if advice.kind in (SMALLER, NEAR_BUDGET):
            assert advice.ring_count * advice.buffer_size <= observed.memory


@given(st.integers(1, 1 << 40))
def test_sizes_are_rounded_up_a_little(nbytes: int) -> None:
    rounded = round_up(nbytes)
    assert nbytes <= rounded < max(nbytes + 256, 1.5 * nbytes)
    assert rounded % 256 == 0
    assert round_up(rounded) == rounded
