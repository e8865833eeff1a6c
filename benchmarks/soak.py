"""`./dev soak`: a million uploads of every kind by 500 coroutines through three small staging buffers.

Every coroutine uploads again and again: buffers and textures, whole or through slots, alone, in batches and in frames,
of random sizes; now and then it is cancelled, its producer is slow or raises, its destination is unfit or destroyed.
Every word that was uploaded, or should not have been, is compared on the GPU (benchmarks/arenas.py). The run is cut
into rounds; between two of them nothing is in flight, and resident memory and wgpu's objects are counted: they must not
grow after a tenth of the uploads.

A seed fixes what is uploaded, not how the coroutines take turns.
"""

from __future__ import annotations

import asyncio
import gc
import sys
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from random import Random
from typing import Any

import numpy as np
import psutil
import wgpu

import aiostage
from aiostage import KiB, MiB
from aiostage.threads import run_sync
from aiostage.tools.arguments import Parser, parse_count, parse_minutes
from aiostage.tools.status import exit_status

from . import machine
from .arenas import LONGEST, Arenas, BufferArena, Checker, Expect, Region, TexelRegion, TextureArena

RING_COUNT, BUFFER_SIZE = 3, 1 * MiB
_TOLERANCE = 8.0
"""MiB that resident memory may grow by between a tenth and all of the uploads."""

_LEAST = 50_000
"""Uploads from which on memory is judged: for some thousands of them it is warming up."""

NEVER_SUBMITTED = "command buffers that may never have been submitted"
"""wgpu-native keeps those for ever, whoever made them: 90 KB for each."""


class ProducerError(Exception):
    """What producers raise on purpose."""


class Soak:
    """One run on one device."""

    def __init__(self, ring: aiostage.StagingRing, buffers: Arenas, textures: Arenas, device: wgpu.GPUDevice) -> None:
        self.ring, self.buffers, self.textures, self.device = ring, buffers, textures, device
        self.uploads = self.nbytes = 0
        self.events: Counter[str] = Counter()
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
        self._relays = [device.create_buffer(size=64 * KiB, usage=usage) for _ in range(16)]
        self._small = device.create_buffer(size=64, usage=usage)
        self._actions: dict[Callable[[Random], Awaitable[None]], float] = {
            self.whole_buffer: 0.40,
            self.whole_texture: 0.20,
            self.slots: 0.20,
            self.texture_slot: 0.08,
            self.batch: 0.05,
            self.frame: 0.04,
            self.own_encoder: 0.01,
            self.mistake: 0.02,
        }

    async def round(self, coroutines: int, until: int, end: float, rng: Random) -> None:
        """That many coroutines upload until `until` uploads were begun, or until the time `end`."""

        async def work(rng: Random) -> None:
            actions, weights = list(self._actions), list(self._actions.values())
            while self.uploads < until and time.monotonic() < end:
                await self._interrupted(rng.choices(actions, weights)[0], rng)

        async with asyncio.timeout(max(60, end - time.monotonic() + 60)):  # nothing may hang
            async with asyncio.TaskGroup() as group:
                for _ in range(min(coroutines, until - self.uploads)):
                    group.create_task(work(Random(rng.random())))
            await self.buffers.check_all()
            await self.textures.check_all()

    async def _interrupted(self, action: Callable[[Random], Awaitable[None]], rng: Random) -> None:
        """Run an action, one in thirty under a deadline that may cancel it anywhere."""
        try:
            if rng.random() < 1 / 30:
                async with asyncio.timeout(rng.expovariate(1 / 0.1)):
                    await action(rng)
            else:
                await action(rng)
        except TimeoutError:
            self.events["cancelled"] += 1
        except ProducerError:
            self.events["producers that raised"] += 1

    async def _take(self, arenas: Arenas, sizes: Sequence[int], rng: Random, what: str) -> list[Any]:
        regions = await arenas.take(sizes, rng, what)
        self.uploads += len(regions)
        self.nbytes += sum(region.nbytes for region in regions)
        self.events[what] += len(regions)
        return regions

    # -- what a coroutine does --

    async def whole_buffer(self, rng: Random) -> None:
        with ending(await self._take(self.buffers, [any_size(rng)], rng, "write_buffer")) as (region,):
            region.expect = Expect.EITHER
            fence = await self.ring.write_buffer(region.arena.target, region.buffer_offset, region.data)
            region.expect = Expect.DATA
        if rng.random() < 0.1:
            await fence

    async def whole_texture(self, rng: Random) -> None:
        with ending(await self._take(self.textures, [any_size(rng)], rng, "write_texture")) as (region,):
            region.expect = Expect.EITHER
            fence = await self.ring.write_texture(region.destination, region.texels)
            region.expect = Expect.DATA
        if rng.random() < 0.1:
            await fence

    async def slots(self, rng: Random) -> None:
        """A few slots, committed one by one, and submitted together."""
        sizes = [min(any_size(rng), BUFFER_SIZE // 4) for _ in range(rng.randint(1, 4))]
        with ending(await self._take(self.buffers, sizes, rng, "slot")) as regions:
            for region in regions:
                with await self.ring.allocate(region.nbytes) as slot:
                    await self._produce(slot.array(np.uint32), region.data, rng)
                    slot.copy_to_buffer(region.arena.target, region.buffer_offset)
                region.expect = Expect.EITHER  # it goes with anybody's submit from now on
            await self.ring.submit()
            expect(regions, Expect.DATA)

    async def texture_slot(self, rng: Random) -> None:
        size = min(any_size(rng), BUFFER_SIZE // 16)
        with ending(await self._take(self.textures, [size], rng, "texture slot")) as (region,):
            with await self.ring.allocate_texture(region.size, region.arena.target.format) as slot:
                array = slot.array()
                await self._produce(array, region.texels.reshape(array.shape), rng)
                slot.copy_to_texture(region.destination)
            region.expect = Expect.EITHER
            await self.ring.submit()
            region.expect = Expect.DATA

    async def batch(self, rng: Random) -> None:
        """Many small writes; one batch in fifty is larger than the ring."""
        count, least, most = (rng.randint(2, 24), 0, 12) if rng.random() > 0.02 else (8, 16, 18)
        sizes = [int(2 ** rng.uniform(least, most)) for _ in range(count)]
        texels = count // 3
        with ending(await self._take(self.buffers, sizes[texels:], rng, "batch")) as regions:
            regions += await self._take(self.textures, sizes[:texels], rng, "batch")
            async with self.ring.batch() as batch:
                expect(regions, Expect.EITHER)  # a batch departs early when others need its space
                for region in rng.sample(regions, len(regions)):
                    if isinstance(region, TexelRegion):
                        await batch.write_texture(region.destination, region.texels)
                    else:
                        await batch.write_buffer(region.arena.target, region.buffer_offset, region.data)
                self._maybe_raise(rng)
            expect(regions, Expect.DATA)
        if rng.random() < 0.1:
            await batch.fence

    async def frame(self, rng: Random) -> None:
        """Uploads to a relay, from where the frame's own encoder copies on: those must run in this order."""
        if not self._relays:
            return
        relay = self._relays.pop()
        try:
            sizes = [int(2 ** rng.uniform(0, 12)) for _ in range(rng.randint(1, 4))]
            with ending(await self._take(self.buffers, sizes, rng, "frame")) as regions:
                async with self.ring.frame() as frame:
                    for number, region in enumerate(regions):
                        start = number * 16 * KiB
                        await frame.write_buffer(relay, start, region.data)
                        target = region.arena.target
                        frame.encoder.copy_buffer_to_buffer(relay, start, target, region.buffer_offset, region.nbytes)
                    self._maybe_raise(rng)
                    expect(regions, Expect.EITHER)
                expect(regions, Expect.DATA)
        finally:
            self._relays.append(relay)

    async def own_encoder(self, rng: Random) -> None:
        """A slot whose copy is recorded into the coroutine's encoder; one in ten is dropped."""
        size = int(2 ** rng.uniform(0, 14))
        with ending(await self._take(self.buffers, [size], rng, "slot, own encoder")) as (region,):
            encoder = self.device.create_command_encoder()
            with await self.ring.allocate(region.nbytes) as slot:
                await self._produce(slot.array(np.uint32), region.data, rng)
                slot.copy_to_buffer(region.arena.target, region.buffer_offset, encoder=encoder)
            if rng.random() < 0.1:
                return
            region.expect = Expect.EITHER
            try:
                await self.ring.submit([encoder.finish()])
            except asyncio.CancelledError:
                self.events[NEVER_SUBMITTED] += 1
                raise
            region.expect = Expect.DATA

    async def mistake(self, rng: Random) -> None:
        """An upload that must be refused, and leave everything as it was."""
        self.uploads += 1
        kind = rng.randrange(3)
        if kind == 0:
            self.events["copies out of bounds"] += 1
            with refused(aiostage.InvalidCopy):
                await self.ring.write_buffer(self._small, 4, np.zeros(16, np.uint32))
        elif kind == 1:
            self.events["views that outlived their slot"] += 1
            with refused(aiostage.ViewStillAlive), await self.ring.allocate(64) as slot:
                view = memoryview(slot.view)
                slot.copy_to_buffer(self._small)
            view.release()
        else:
            self.events["destinations destroyed on the way"] += 1
            doomed = self.device.create_buffer(size=64, usage=wgpu.BufferUsage.COPY_DST)
            asyncio.get_running_loop().call_later(rng.uniform(0, 0.1), doomed.destroy)
            try:
                await self.ring.write_buffer(doomed, 0, np.zeros(16, np.uint32))
            except aiostage.InvalidCopy:
                self.events["of them refused"] += 1

    # -- producers --

    async def _produce(self, memory: np.ndarray, data: np.ndarray, rng: Random) -> None:
        """Fill a slot at once, slowly, or in a thread; or fail half way."""
        luck = rng.random()
        if luck < 0.02:
            self.events["slow producers"] += 1
            memory[: len(memory) // 2] = data[: len(memory) // 2]
            await asyncio.sleep(rng.uniform(0, 0.02))
            memory[len(memory) // 2 :] = data[len(memory) // 2 :]
        elif luck < 0.04:
            self.events["producers in threads"] += 1
            await run_sync(np.copyto, memory, data)  # anyio's own would go on in a slot that was given up
        else:
            memory[:] = data
        self._maybe_raise(rng)

    def _maybe_raise(self, rng: Random) -> None:
        if rng.random() < 0.02:
            raise ProducerError


class refused:
    """The block must raise this; nothing else will do."""

    def __init__(self, error: type[Exception]) -> None:
        self._error = error

    def __enter__(self) -> None:
        pass

    def __exit__(self, exc_type: type[BaseException] | None, *rest: object) -> bool:
        assert exc_type is not None, f"no {self._error.__name__}"
        return issubclass(exc_type, self._error)


@contextmanager
def ending(regions: list[Any]) -> Iterator[list[Any]]:
    """Regions that nobody writes to any more when the block is over."""
    try:
        yield regions
    finally:
        for region in regions:
            region.end()


def expect(regions: Iterable[Region], expect: Expect) -> None:
    for region in regions:
        region.expect = expect


def any_size(rng: Random) -> int:
    """Words: up to 256 KiB, each order of magnitude as often as any other; one in 500 up to 3 MiB."""
    return int(2 ** rng.uniform(0, 16)) if rng.random() > 0.002 else int(2 ** rng.uniform(16, np.log2(LONGEST)))


# -- a run --


async def run(
    device: wgpu.GPUDevice,
    uploads: int,
    coroutines: int = 500,
    seed: int = 1,
    minutes: float = 60.0,
    rounds: int = 20,
    arena_bytes: int = 16 * MiB,
    say: Callable[[str], object] = print,
) -> dict[str, Any]:
    """All figures; `verdict(figures)` judges them."""
    rng, checker = Random(seed), Checker(device, seed)
    started = time.monotonic()
    end = started + minutes * 60
    samples: list[dict[str, Any]] = []
    async with aiostage.StagingRing(device, RING_COUNT, BUFFER_SIZE) as ring, asyncio.TaskGroup() as checks:
        buffer_arenas = [BufferArena(checker, arena_bytes // 4) for _ in range(4)]
        formats = ["r32uint", "rg32uint", "rgba32uint"]
        texture_arenas = [TextureArena(checker, format, arena_bytes // 4) for format in formats]
        buffers = Arenas(buffer_arenas, ring, Random(rng.random()), checks)
        textures = Arenas(texture_arenas, ring, Random(rng.random()), checks)
        soak = Soak(ring, buffers, textures, device)
        for number in range(rounds):
            await soak.round(coroutines, uploads * (number + 1) // rounds, end, Random(rng.random()))
            samples.append(await sample(soak, checker, time.monotonic() - started))
            say(progress(samples[-1], uploads))
            if time.monotonic() >= end:
                break
        stats = ring.stats_nowait()
    return {
        "uploads": soak.uploads,
        "asked_for": uploads,
        "coroutines": coroutines,
        "seed": seed,
        "ring": f"{RING_COUNT} x {BUFFER_SIZE // MiB} MiB",
        "seconds": round(time.monotonic() - started, 1),
        "uploaded_MB": round(soak.nbytes / 1e6),
        "events": dict(soak.events.most_common()),
        "stalls": stats.buffer_stalls,
        "submits": stats.submits,
        "checks": {
            "arenas": checker.arenas,
            "regions": checker.regions,
            "regions_by_expectation": {expect.name: count for expect, count in checker.expected.items()},
            "compared_MB": round(checker.words * 4 / 1e6),
            "wrong_words": checker.wrong,
            "words_astray": checker.astray,
            "mismatches": checker.mismatches[:50],
        },
        "samples": samples,
    }


async def sample(soak: Soak, checker: Checker, seconds: float) -> dict[str, Any]:
    """Counts at rest: nothing is in flight."""
    await asyncio.sleep(0.1)  # destinations destroyed on the way
    resting, patience = (aiostage.BufferState.AVAILABLE,) * RING_COUNT, time.monotonic() + 30
    while (stats := await soak.ring.stats()).buffer_states != resting and time.monotonic() < patience:
        await asyncio.sleep(0.001)
    gc.collect()
    return {
        "uploads": soak.uploads,
        "seconds": round(seconds, 1),
        "resident_MiB": round(psutil.Process().memory_info().rss / MiB, 2),
        "objects": counts(wgpu.diagnostics.object_counts),
        "native_objects": counts(wgpu.diagnostics.wgpu_native_counts, soak.events[NEVER_SUBMITTED]),
        "buffer_states": stats.buffer_states,
        "bytes_in_flight": stats.bytes_in_flight,
        "waiters": stats.waiters,
        "pending_fences": stats.pending_fences,
        "wrong_words": checker.wrong + checker.astray,
    }


def counts(diagnostics: Any, never_submitted: int = 0) -> dict[str, int]:
    """How many wgpu objects of each kind there are, without command buffers that are known to be left over."""
    objects = {kind: of["count"] for kind, of in diagnostics.get_dict().items()}
    left = min(objects["CommandBuffer"], never_submitted)
    objects["CommandBuffer"] -= left
    objects["total"] -= left
    return {kind: count for kind, count in objects.items() if count}


def progress(at: dict[str, Any], uploads: int) -> str:
    share, rate = at["uploads"] / uploads, at["uploads"] / at["seconds"]
    return (
        f"{share:6.1%}  {at['uploads']:>9,} uploads  {at['seconds']:7.1f} s  {rate:6,.0f} per second  "
        f"{at['resident_MiB']:8.2f} MiB resident  {at['objects']['total']} objects  {at['wrong_words']} wrong words"
    )


def verdict(figures: dict[str, Any]) -> dict[str, tuple[bool, str]]:
    """Of each thing that must hold: whether it does, and the figures."""
    checks, samples = figures["checks"], figures["samples"]
    first = next(s for s in samples if s["uploads"] >= figures["uploads"] / 10)
    later = samples[samples.index(first) :]
    wrong = checks["wrong_words"] + checks["words_astray"]
    resident = [s["resident_MiB"] for s in later]
    kinds = ("objects", "native_objects")
    leaks = {name for of in kinds for s in later for name in s[of] if s[of][name] > first[of].get(name, 0)}
    idle = all(not (s["bytes_in_flight"] or s["waiters"] or s["pending_fences"]) for s in samples)
    return {
        "contents": (
            wrong == 0,
            f"{wrong} wrong words of {checks['compared_MB']:,} MB compared on the GPU, {checks['regions']:,} regions",
        ),
        "resident memory": (
            figures["uploads"] < _LEAST or max(resident) - resident[0] <= _TOLERANCE,
            f"{resident[0]} MiB after a tenth, {resident[-1]} at the end, {max(resident)} at most"
            + (f"; not judged below {_LEAST:,} uploads" if figures["uploads"] < _LEAST else ""),
        ),
        "objects": (
            not leaks,
            f"{first['objects']['total']} of wgpu-py, {first['native_objects']['total']} of wgpu-native after a tenth; "
            f"more later: {', '.join(sorted(leaks)) or 'none'}",
        ),
        "idle": (idle, f"nothing {'' if idle else 'but something '}in flight between rounds"),
    }


def facts(result: dict[str, Any]) -> dict[str, str]:
    """What the saved result of a run says, for a table."""
    about, figures = result["machine"], result["figures"]
    checks = figures["checks"]
    what = {
        "on": f"{about['adapter']}, {about['cores']} cores, Python {about['python']}, wgpu {about['wgpu']}",
        "date": about["date"],
        "uploads": f"{figures['uploads']:,}, seed {figures['seed']}",
        "by": f"{figures['coroutines']} coroutines through {figures['ring']}",
        "in": f"{figures['seconds']:,} s, {figures['uploads'] / figures['seconds']:,.0f} per second",
        "uploaded": f"{figures['uploaded_MB']:,} MB in {figures['submits']:,} submits, {figures['stalls']:,} stalls",
        "compared on the GPU": f"{checks['compared_MB']:,} MB, {checks['regions']:,} regions",
        "wrong words": str(checks["wrong_words"]),
        "words outside of any region": str(checks["words_astray"]),
    }
    events = ("cancelled", "producers that raised", "slow producers", "destinations destroyed on the way")
    what |= {event: f"{figures['events'].get(event, 0):,}" for event in events}
    return what | {what: text for what, (_, text) in verdict(figures).items() if what != "contents"}


def report(figures: dict[str, Any]) -> bool:
    """Print it; whether all is well."""
    rows = [(what, "yes" if ok else "NO", text) for what, (ok, text) in verdict(figures).items()]
    per_second = figures["uploads"] / figures["seconds"]
    machine.print_table(
        f"{figures['uploads']:,} uploads, {figures['uploaded_MB']:,} MB, {figures['seconds']} s, {per_second:,.0f} per "
        f"second, by {figures['coroutines']} coroutines through {figures['ring']}; {figures['stalls']:,} stalls, "
        f"{figures['submits']:,} submits",
        rows,
        ("what", "holds", "figures"),
    )
    machine.print_table("what happened", list(figures["events"].items()), ("event", "times"))
    for mismatch in figures["checks"]["mismatches"]:
        print(f"MISMATCH {mismatch}")
    return all(ok for ok, _ in verdict(figures).values())


def main() -> int:
    parser = Parser(prog="soak", description=__doc__.partition("\n")[0])
    parser.add_argument("--uploads", type=parse_count, default=1_000_000, help="how many (default: a million)")
    parser.add_argument("--coroutines", type=parse_count, default=500, help="that upload at a time (default: 500)")
    parser.add_argument("--seed", type=parse_count, default=1, help="of what is uploaded (default: 1)")
    parser.add_argument(
        "--minutes", type=parse_minutes, default=60, help="stop after so long, whatever was done (default: 60)"
    )
    machine.add_arguments(parser)
    arguments = parser.parse_args()
    machine.check_out(arguments.out)
    device = machine.open_device(arguments.software)
    print(f"soak on {device.adapter.summary}", flush=True)
    uploads, coroutines, seed, minutes = arguments.uploads, arguments.coroutines, arguments.seed, arguments.minutes
    figures = asyncio.run(run(device, uploads, coroutines, seed, minutes, say=partial(print, flush=True)))
    all_is_well = report(figures)
    machine.save(arguments.out, "soak", device, figures)
    return 0 if all_is_well else 1


if __name__ == "__main__":
    sys.exit(exit_status("soak", main))
