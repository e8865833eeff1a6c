"""The limit on staging memory, and that it is what the rings hold."""

from __future__ import annotations

from collections.abc import Awaitable, Callable

import pytest
from simulated import SimulatedGpu

import aiostage
from aiostage import MemoryBudget, MiB, StagingRing

OpenRing = Callable[..., Awaitable[StagingRing]]


async def test_over_the_budget_nothing_is_created(gpu: SimulatedGpu) -> None:
    budget = MemoryBudget(limit=4096)
    with pytest.raises(
        aiostage.BudgetExceeded, match="5120 bytes more would exceed the memory budget: 0 of 4096 in use"
    ):
        async with StagingRing(gpu, 5, 1024, budget=budget):
            pass
    assert gpu.staging == []
    assert gpu.attached == 0
    assert budget.used == 0
    with pytest.raises(MemoryError):  # what somebody expects who does not know this library
        await StagingRing(gpu, 5, 1024, budget=budget).open()


async def test_rings_share_a_budget_and_give_back_what_they_held(gpu: SimulatedGpu) -> None:
    budget = MemoryBudget(limit=4096)
    async with StagingRing(gpu, 2, 1024, budget=budget):
        assert (budget.used, budget.available) == (2048, 2048)
        async with StagingRing(gpu, 2, 1024, budget=budget):
            assert budget.available == 0
            with pytest.raises(aiostage.BudgetExceeded):
                await StagingRing(gpu, 1, 4, budget=budget).open()
        assert budget.used == 2048
    assert budget.used == 0


async def test_the_statistics_say_what_is_used_of_the_budget_by_all_rings_together(gpu: SimulatedGpu) -> None:
    budget, other = MemoryBudget(limit=8192), MemoryBudget(limit=100)
    never_opened = StagingRing(gpu, 1, 1024)
    assert (never_opened.stats_nowait().budget_used, never_opened.stats_nowait().budget_limit) == (0, 0)
    async with StagingRing(gpu, 2, 1024, budget=budget) as one, StagingRing(gpu, 1, 4, budget=other) as apart:
        async with StagingRing(gpu, 3, 1024, budget=budget) as two:
            for ring in (one, two):
                stats = await ring.stats()
                assert (stats.budget_used, stats.budget_limit) == (5120, 8192)
        stats = one.stats_nowait()
        assert (stats.budget_used, stats.memory, stats.budget_limit) == (2048, 2048, 8192)
        assert (apart.stats_nowait().budget_used, apart.stats_nowait().budget_limit) == (4, 100)
        assert stats.as_dict()["budget_used"] == 2048
    assert one.stats_nowait().budget_used == 0
    async with StagingRing(gpu, 1, 1024) as ring:
        assert ring.stats_nowait().budget_limit == 512 * MiB


async def test_rings_of_one_device_share_512_mib_by_default_and_devices_do_not(gpu: SimulatedGpu) -> None:
    gpu.create_staging_buffer = lambda size, host_cached: pytest.fail("over the budget")  # type: ignore[method-assign]
    with pytest.raises(aiostage.BudgetExceeded, match=f"0 of {512 * MiB} in use"):
        await StagingRing(gpu, 513, MiB).open()
    async with StagingRing(SimulatedGpu(), 1, 1024):
        pass


async def test_a_ring_that_could_not_be_opened_gives_everything_back(gpu: SimulatedGpu) -> None:
    budget = MemoryBudget(limit=4096)
    create, created = gpu.create_staging_buffer, []

    def fail_third(size: int, host_cached: bool) -> object:
        if len(created) == 2:
            raise OSError("out of memory")
        created.append(create(size, host_cached))
        return created[-1]

    gpu.create_staging_buffer = fail_third  # type: ignore[method-assign]
    ring = StagingRing(gpu, 4, 1024, budget=budget)
    with pytest.raises(OSError, match="out of memory"):
        await ring.open()
    assert budget.used == 0
    assert gpu.attached == 0
    assert all(buffer.destroyed for buffer in created)
    with pytest.raises(aiostage.RingClosed, match="could not be opened"):
        await ring.allocate(4)


async def test_the_memory_is_the_same_from_open_to_close_whatever_is_streamed(
    gpu: SimulatedGpu, simulated_ring: OpenRing
) -> None:
    budget = MemoryBudget(limit=4096)
    ring, target = await simulated_ring(2, 1024, budget=budget), gpu.buffer(65536)
    gpu.free_running = True
    for _ in range(3):
        await (await ring.write_buffer(target, 0, bytes(65536)))
        assert budget.used == ring.stats_nowait().memory == 2048
    assert len(gpu.staging) == 2
    await ring.aclose()
    assert budget.used == 0


def test_a_limit_is_positive() -> None:
    with pytest.raises(ValueError, match="limit must be positive, not 0"):
        MemoryBudget(0)
