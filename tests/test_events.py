"""Allocations and fences leave structured records at level DEBUG, and cost a question each when nobody listens."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import Any

import anyio
import pytest
import wgpu
from simulated import SimulatedGpu, until

import aiostage
from aiostage import events

STANDARD = set(vars(logging.makeLogRecord({})))


def fields(record: logging.LogRecord) -> dict[str, Any]:
    """What the record has beside what every record has."""
    return {name: value for name, value in vars(record).items() if name not in STANDARD | {"message", "asctime"}}


async def test_a_slot_an_upload_and_a_stall_are_told_step_by_step(caplog: pytest.LogCaptureFixture) -> None:
    gpu = SimulatedGpu()
    caplog.set_level(logging.DEBUG, logger="aiostage")
    async with aiostage.StagingRing(gpu, 1, 1024) as ring:
        caplog.clear()
        with ring.allocate_nowait(64) as slot:
            slot.copy_to_buffer(gpu.buffer(64))
        ring.allocate_nowait(32).abandon()
        await ring.submit()
        async with anyio.create_task_group() as tasks:
            tasks.start_soon(ring.write_buffer, gpu.buffer(16), 0, bytes(16))
            await until(lambda: ring.stats_nowait().waiters)
            gpu.complete()
        gpu.complete()
        await until(lambda: ring.stats_nowait().bytes_in_flight == 0)
    said = [fields(record) for record in caplog.records]
    assert caplog.records[0].getMessage() == "allocated buffer=0 offset=0 size=64"
    assert caplog.records[0].funcName == "_occupy"  # where it happened, not where it was logged
    waited, *took = [record.pop(name) for name in ("waited", "elapsed") for record in said if name in record]
    assert waited > 0
    assert all(seconds > 0 for seconds in took)
    assert said == [
        {"event": "allocated", "buffer": 0, "offset": 0, "size": 64},
        {"event": "committed", "buffer": 0, "offset": 0, "size": 64, "copies": 1},
        {"event": "allocated", "buffer": 0, "offset": 64, "size": 32},
        {"event": "abandoned", "buffer": 0, "offset": 64, "size": 32},
        {"event": "fence_inserted", "fence": 1},
        {"event": "submitted", "fence": 1, "buffers": [0], "copies": 1},
        {"event": "stalled", "size": 16, "waiters": 1},
        {"event": "fence_done", "fence": 1},
        {"event": "available", "buffer": 0},
        {"event": "allocated", "buffer": 0, "offset": 0, "size": 16},
        {"event": "resumed", "size": 16, "granted": True},
        {"event": "fence_inserted", "fence": 2},
        {"event": "submitted", "fence": 2, "buffers": [0], "copies": 1},
        {"event": "fence_done", "fence": 2},
        {"event": "available", "buffer": 0},
    ]


async def test_when_it_is_off_no_record_is_made_and_nothing_formatted(
    device: wgpu.GPUDevice,
    target: Callable[[int], Any],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    asked = made = 0
    is_enabled_for = events.logger.isEnabledFor

    def count_question(level: int) -> bool:
        nonlocal asked
        asked += 1
        return is_enabled_for(level)

    def count_record(*args: Any, **options: Any) -> Any:
        nonlocal made
        made += 1

    caplog.set_level(logging.INFO, logger="aiostage")
    monkeypatch.setattr(events.logger, "isEnabledFor", count_question)
    monkeypatch.setattr(events.logger, "_log", count_record)
    for module in ("engine.engine", "carrier.carrier", "carrier.timeline"):
        monkeypatch.setattr(f"aiostage.{module}.event", count_record)
    uploads = 50
    async with aiostage.StagingRing(device, 3, 65536) as ring:
        asked = 0
        for _ in range(uploads):
            await (await ring.write_buffer(target(1024), 0, bytes(1024)))
        await until(lambda: ring.stats_nowait().bytes_in_flight == 0)
        assert made == 0
        assert 0 < asked <= 4 * uploads
