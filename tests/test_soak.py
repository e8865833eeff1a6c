"""A short soak on a real device, and the soak's own judge: it must see what it is there to see."""

from __future__ import annotations

import asyncio
import threading
from collections import Counter
from random import Random
from typing import Any

import numpy as np
import pytest
import wgpu
from simulated import turns, until

import aiostage
from aiostage import KiB, MiB
from benchmarks import report, soak
from benchmarks.arenas import Arena, BufferArena, Checker, Expect, TextureArena


@pytest.mark.blocks_loop("it makes shaders")
async def test_two_thousand_uploads_of_every_kind_leave_no_word_wrong_and_nothing_behind(
    device: wgpu.GPUDevice,
) -> None:
    figures = await soak.run(device, 2000, coroutines=100, seed=5, rounds=6, arena_bytes=4 * MiB, say=str)
    verdict = soak.verdict(figures)
    for what in ("contents", "objects", "idle"):
        holds, text = verdict[what]
        assert holds, (what, text, figures["checks"]["mismatches"])
    kinds = {"write_buffer", "write_texture", "slot", "texture slot", "batch", "frame", "cancelled"}
    assert kinds <= set(figures["events"])
    assert all(figures["checks"]["regions_by_expectation"].values())
    assert figures["checks"]["compared_MB"] >= figures["uploaded_MB"] > 10


@pytest.mark.blocks_loop("it makes shaders")
async def test_a_soak_ends_when_its_time_is_over(device: wgpu.GPUDevice) -> None:
    figures = await soak.run(device, 1_000_000, coroutines=20, minutes=0.3 / 60, arena_bytes=4 * MiB, say=str)
    assert 0 < figures["uploads"] < 1_000_000
    assert soak.verdict(figures)["contents"][0]


async def test_a_producer_that_is_cancelled_has_its_thread_done_with_the_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    may_copy, copying = threading.Event(), threading.Event()

    def held(memory: Any, data: Any) -> None:
        copying.set()
        may_copy.wait(30)

    monkeypatch.setattr(np, "copyto", held)
    producer = soak.Soak.__new__(soak.Soak)
    producer.events = Counter()
    rng = Random()
    monkeypatch.setattr(rng, "random", lambda: 0.03)  # produces in a thread
    task = asyncio.ensure_future(producer._produce(np.zeros(4), np.ones(4), rng))
    await until(copying.is_set)
    task.cancel()
    await turns()
    ended_early = task.done()
    may_copy.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not ended_early


# -- the judge --


def _buffer(checker: Checker) -> Arena:
    return BufferArena(checker, 64 * KiB)


def _texture(checker: Checker) -> Arena:
    return TextureArena(checker, "rg32uint", 1 * MiB // 4)


@pytest.fixture(params=[_buffer, _texture], ids=["buffer", "texture"])
def arena(request: pytest.FixtureRequest, device: wgpu.GPUDevice) -> Arena:
    made: Arena = request.param(Checker(device, 1))
    return made


async def upload(ring: aiostage.StagingRing, region: Any, words: Any = None) -> None:
    data = region.data if words is None else words
    if isinstance(region.arena, BufferArena):
        await ring.write_buffer(region.arena.target, region.buffer_offset, data)
    else:
        await ring.write_texture(region.destination, data.reshape(region.texels.shape))


async def judged(ring: aiostage.StagingRing, arena: Arena) -> tuple[int, int]:
    """(wrong words, words astray)"""
    checker = arena.checker
    before = checker.wrong, checker.astray
    await arena.check(ring, Random(2))
    return checker.wrong - before[0], checker.astray - before[1]


async def test_the_judge_passes_what_is_right_and_clears_the_arena(open_ring: Any, arena: Arena) -> None:
    ring = await open_ring(ring_count=3, buffer_size=MiB)
    for _ in range(2):
        for size in (1, 2, 7, 300, 4000):
            region = arena.take(size, Random(size), "upload")
            await upload(ring, region)
            region.expect = Expect.DATA
        arena.take(500, Random(0), "never uploaded").expect = Expect.ZEROS
        half = arena.take(512, Random(1), "cancelled half way")
        await upload(ring, half, np.where(np.arange(half.nbytes // 4) < 100, half.data, 0).astype(np.uint32))
        half.expect = Expect.EITHER
        assert await judged(ring, arena) == (0, 0)
    assert arena.checker.regions == 2 * 8
    assert arena.checker.mismatches == []


async def test_the_judge_sees_what_was_lost_changed_or_written_for_all_that(open_ring: Any, arena: Arena) -> None:
    ring = await open_ring(ring_count=3, buffer_size=MiB)
    regions = [arena.take(128, Random(i), f"upload {i}") for i in range(4)]
    lost, changed, abandoned, foreign = regions
    lost.expect = changed.expect = Expect.DATA
    foreign.expect = Expect.EITHER
    count = lost.nbytes // 4
    one_wrong = changed.data.copy()
    one_wrong[-1] += 1
    await upload(ring, changed, one_wrong)
    await upload(ring, abandoned)
    await upload(ring, foreign, np.full(foreign.nbytes // 4, 77, np.uint32))
    wrong = count + 1 + abandoned.nbytes // 4 + foreign.nbytes // 4
    assert await judged(ring, arena) == (wrong, 0)
    assert "first in region 0 of 5: upload 0" in arena.checker.mismatches[0]


async def test_the_judge_sees_a_word_that_went_astray(open_ring: Any, arena: Arena) -> None:
    ring = await open_ring(ring_count=3, buffer_size=MiB)
    region = arena.take(16, Random(1), "upload")
    await upload(ring, region)
    region.expect = Expect.DATA
    if isinstance(arena, BufferArena):
        await ring.write_buffer(arena.target, 32 * KiB, b"here")
    else:
        await ring.write_texture({"texture": arena.target, "origin": (9, 9, 2)}, np.ones((1, 1, 2), np.uint32))
    wrong, astray = await judged(ring, arena)
    assert wrong == 0
    assert astray == (1 if isinstance(arena, BufferArena) else 2)


async def test_an_arena_is_checked_only_when_its_last_writer_is_done(open_ring: Any, arena: Arena) -> None:
    regions = [arena.take(4, Random(i), "upload") for i in range(2)]
    waiting = asyncio.create_task(arena.done())
    regions[0].end()
    await asyncio.sleep(0)
    await asyncio.sleep(0)
    assert not waiting.done()
    regions[1].end()
    await waiting


@pytest.mark.parametrize(("uploads", "holds"), [(500, True), (100_000, False)])
def test_memory_that_grows_counts_once_it_is_no_warm_up(uploads: int, holds: bool) -> None:
    at_rest = {"objects": {"total": 1}, "native_objects": {"total": 1}, "bytes_in_flight": 0, "waiters": 0}
    samples = [
        at_rest | {"uploads": uploads * share // 10, "resident_MiB": 300.0 + 2 * share, "pending_fences": 0}
        for share in range(1, 11)
    ]
    checks = {"wrong_words": 0, "words_astray": 0, "compared_MB": 1, "regions": 1}
    verdict = soak.verdict({"uploads": uploads, "checks": checks, "samples": samples})
    assert verdict["resident memory"][0] is holds
    assert ("not judged" in verdict["resident memory"][1]) is holds


def test_the_reliability_page_has_the_figures_of_the_last_soak() -> None:
    text = report.RELIABILITY.read_text()
    assert report.page(text, report.soaks()) == text, "run 'python -m benchmarks.report'"
