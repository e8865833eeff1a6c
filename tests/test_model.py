"""A ring under random interleavings, against a model that only knows the contract.

Hypothesis draws the steps. Six users (tasks) allocate, upload, submit, make frames and are cancelled; slots are filled,
committed and abandoned; the loop makes a turn or many; copying threads, submitting threads, the GPU and its poll go on
when a step says so (tests/stepping.py), in any order. After each step the model says what the statistics must be and
what must not have happened; at the end all is completed, and every byte must be where the model has it.

What is written is its own proof: each 32-bit word holds the number of the `Write` that it belongs to and its place in
it. So a submission tells which writes it carries, and a destination tells who wrote each word.

    ./dev test tests/test_model.py                            # 2,000 runs: seeds 0 to 7, the same every time
    AIOSTAGE_MODEL_RUNS=20000 ./dev test tests/test_model.py  # seeds 0 to 79

A failure names its seed in the test's id; `./dev test tests/test_model.py -k seed-5` repeats it, and hypothesis prints
the shortest list of steps that fails.
"""

from __future__ import annotations

import asyncio
import inspect
import itertools
import logging
import os
import sys
import time
from collections import Counter
from collections.abc import Callable, Coroutine
from types import SimpleNamespace
from typing import Any, ClassVar

import anyio
import anyio.lowlevel
import hypothesis
import numpy as np
import pytest
from hypothesis import HealthCheck, Phase
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule
from hypothesis.stateful import run_state_machine_as_test as run_machine
from stepping import SteppedCarrier, SteppedGpu, SteppedLoop

import aiostage
from aiostage import BufferState, StagingRing, waiting
from aiostage.carrier import carrier, timeline
from aiostage.data.formats import padded_row
from aiostage.engine import buffer
from aiostage.engine.engine import Engine
from aiostage.waiting import place_for
from aiostage.writes import writes_of

RUNS_PER_SEED = 250
STEPS = 60
"""At most; a run has 50 on average, since hypothesis makes some short ones on purpose."""
SEEDS = max(1, int(os.environ.get("AIOSTAGE_MODEL_RUNS", "2000")) // RUNS_PER_SEED)

AVAILABLE, IN_USE, FENCED = BufferState.AVAILABLE, BufferState.IN_USE, BufferState.FENCED
STALL_TIMEOUT = 8.0
ALL_TURNS = 300  # more than any step needs: then something goes round in circles
WORDS = np.arange(1024, dtype=np.uint32)
MUST_HAPPEN = {
    *("advanced", "moved", "allocate", "stream", "submit", "write", "enter", "leave", "fence", "close", "cancelled"),
    *("refused", "InvalidCopy", "StallTimeout", "DeviceLost", "RingClosed"),
}
"""What users did and how it ended: a test whose steps no longer reach these would prove nothing."""
CLOCK = SimpleNamespace(perf_counter=time.perf_counter)
"""What the library takes for the `time` module. Threads of earlier tests may ask it before a machine sets it."""
LEFT_OUT = -3
"""Why an upload ended, in the carrier's words: its destination is gone."""
SCRIBBLE = 0xFFFFFFFF
"""What callers overwrite their data with as soon as they have it back."""


class Target:
    """A destination: a buffer is one row of words, the texture has a word a texel."""

    def __init__(self, handle: Any, words: Any) -> None:
        self.handle = handle
        self.words = words  # what the GPU has written
        self.expected = np.zeros_like(words)  # once it has done all that was submitted


class Write:
    """Words on their way to a box (x, y, width, height) of a target."""

    def __init__(self, number: int, target: Target, box: tuple[int, int, int, int]) -> None:
        self.base = number << 10
        self.target = target
        self.box = box
        self.count = box[2] * box[3]
        self.user: User | None = None
        self.pieces: set[int] = set()  # first word of each that was submitted
        self.submitted = self.refused = 0  # words
        self.at = 0  # number of the last submission that took some

    @property
    def is_settled(self) -> bool:
        return self.submitted + self.refused == self.count

    def payload(self) -> np.ndarray:
        return self.base + WORDS[: self.count]

    def overlaps(self, other: Write) -> bool:
        (x, y, w, h), (a, b, c, d) = self.box, other.box
        return self.target is other.target and x < a + c and a < x + w and y < b + d and b < y + h

    def apply(self, first: int, count: int) -> None:
        """Words from `first` on have been written: some of a row, or whole rows."""
        x, y, width, _ = self.box
        row, column = divmod(first, width)
        rows = self.target.expected[y + row : y + row + -(-count // width)]
        columns = min(count, width)
        rows[:, x + column : x + column + columns] = (self.base + WORDS[first : first + count]).reshape(-1, columns)


class Place:
    """Bytes of a staging buffer that somebody has been given."""

    def __init__(self, size: int, buffer: int, offset: int, state: str, batch: Batch | None = None) -> None:
        self.size = size
        self.buffer = buffer
        self.offset = offset
        self.state = state  # "open" by a user, "filling" by a thread, "kept" until it comes back
        self.batch = batch
        self.writes: list[Write] = []


class Slot:
    """An allocation that a user holds."""

    def __init__(self, allocation: aiostage.Allocation, place: Place, user: User | None, texels: Any) -> None:
        self.allocation = allocation
        self.place = place
        self.user = user
        self.texels = texels  # (width, height), or None


class Ask:
    """Somebody who asked for a place and has no answer."""

    def __init__(self, user: User, size: int, alignment: int, lane: Any, turn: int, now: float) -> None:
        self.user = user
        self.size = size
        self.alignment = alignment
        self.lane = lane  # of an upload
        self.turn = turn
        self.since = now
        self.granted = False

    @property
    def may_be_passed(self) -> bool:
        return self.user.cancelling or (self.lane is not None and getattr(self.lane, "ended", False))


class Batch:
    """A batch or a frame."""

    def __init__(self, handle: Any, is_frame: bool) -> None:
        self.handle = handle
        self.is_frame = is_frame
        self.leaving = self.exiting = False  # somebody has been told to, or does
        self.abandoned = False
        self.done = False  # as far as pacing goes
        self.writes: list[Write] = []  # those that returned


class Look:
    """A step of a command buffer, which must see what was submitted before it and nothing else."""

    def __init__(self, model: Model, after: list[Write]) -> None:
        self.model = model
        self.after = after
        self.seen: list[np.ndarray] = []

    def arrived(self) -> None:
        for write in self.after:  # that a copy is left out is heard of later
            settled = write.is_settled or write.target.handle.destroyed
            assert settled, "a command buffer overtook copies staged before it"
        self.seen = [target.expected.copy() for target in self.model.targets]

    def __call__(self) -> None:
        for target, seen in zip(self.model.targets, self.seen, strict=True):
            assert (target.words == seen).all(), "a command buffer saw other contents than it should"


class Recorded:
    """Marks, in a caller's encoder, that a slot's copy was recorded there."""

    def __init__(self, write: Write) -> None:
        self.write = write

    def arrived(self) -> None:
        self.write.apply(0, self.write.count)

    def __call__(self) -> None: ...


class User:
    """A task that does one thing after another, as it is told."""

    def __init__(self, model: Model, number: int) -> None:
        self.model = model
        self.doing: str | None = None
        self.batch: Batch | None = None  # whose write it makes
        self.failures = 0  # slots of its that were refused since it last heard of one
        self.cancelling = False
        self.writing: Write | None = None
        self.inbox = model.loop.create_future()
        self.task = model.loop.create_task(self._live(), name=f"user {number}")

    def start(self, doing: str, work: Coroutine[Any, Any, None], batch: Batch | None = None) -> None:
        self.doing, self.batch = doing, batch
        self.inbox.set_result(work)

    def cancel(self) -> None:
        self.cancelling = True
        self.task.cancel()

    async def _live(self) -> None:
        while True:
            try:
                await asyncio.wait([self.inbox])  # which a cancellation leaves whole
                await self.inbox.result()
                self.model.seen[self.doing] += 1
            except asyncio.CancelledError:
                self.inbox.result().close()  # it may not have begun
                if self.doing == "leave" and not self.batch.exiting:
                    self.batch.leaving = False
                assert self.cancelling, f"{self.doing} was cancelled by nobody"
                self.model.seen["cancelled " + self.doing] += 1
            except AssertionError as error:
                self.model.faults.append(error)
            except Exception as error:
                try:
                    self.model.excuse(error, self)
                except BaseException as fault:
                    self.model.faults.append(fault)
            if self.cancelling:
                self.cancelling = False
                self.task.uncancel()
            self.doing, self.batch = None, None
            self.inbox = self.model.loop.create_future()


class Move:
    """Copies that threads move from one buffer to another."""

    def __init__(self, held: int, fresh: int) -> None:
        self.held = held
        self.fresh = fresh
        self.jobs = 0  # that are not heard of yet


class WatchedEngine(Engine):
    """Tells the model who gets a place, which copies are moved, and which buffer comes back."""

    model: Model

    def reserve(self, lane: Any, size: int, alignment: int) -> Any:
        found = super().reserve(lane, size, alignment)
        if found is not None and lane is not self.slots:
            self.model.placed(*found, size)
        return found

    def attach(self, lane: Any, writes: Any, size: int) -> bool:
        lent = super().attach(lane, writes, size)
        if lent:
            writes.staging = lane.writes[1]
        return lent

    def fill(self, place: Any, copy: Any, runs: Any, ended: Any, rings: bool) -> None:
        model = self.model
        here = (place.buffer.index, place.offset)
        model.given = next(p for p in model.places if (p.buffer, p.offset) == here)
        super().fill(place, copy, runs, ended, rings)
        model.given = None

    def upload_known(self, buffer: Any, offset: int, data: Any) -> Any:
        upload = super().upload_known(buffer, offset, data)
        if upload is not None:
            self.model.carried[upload.number] = self.model.user_here().writing
        return upload

    def upload(self, whole: Any) -> Any:
        write = self.model.user_here().writing
        try:
            upload = super().upload(whole)
        except aiostage.InvalidCopy:
            write.refused = write.count
            raise
        self.model.carried[upload.number] = write
        return upload

    def explain(self) -> None:
        try:
            super().explain()
        except aiostage.StallTimeout:
            assert self.model.hopeless(), "StallTimeout, though a buffer could come back"
            raise

    def depart(self, *args: Any, is_urgent: bool = False, **rest: Any) -> Any:
        self.model.relayed |= is_urgent
        return super().depart(*args, is_urgent=is_urgent, **rest)

    def _move(self, lane: Any, held: Any, fresh: Any) -> None:
        self.model.moves(held.index, fresh.index)
        super()._move(lane, held, fresh)
        self.model.given = None

    def _emptied(self, buffer: Any) -> None:
        self.model.comes_back(buffer)
        super()._emptied(buffer)


class WatchedWrites:
    """Tells it which places native writes take."""

    def __init__(self, engine: Any) -> None:
        self.writes, self.model = writes_of(engine), engine.model
        self.staging: Any = None
        self.head = 0

    def lend(self, address: int, head: int, size: int, handle: int) -> None:
        self.head = head
        self.writes.lend(address, head, size, handle)

    def take(self) -> Any:
        taken = self.writes.take()
        assert taken[0] == self.head
        return taken

    def buffer(self, buffer: Any, offset: int, data: Any, data_offset: int, size: Any) -> int:
        return self.placed(self.writes.buffer(buffer, offset, data, data_offset, size), data.nbytes, 4)

    def texture(self, destination: Any, data: Any, layout: Any, size: Any) -> int:
        rows, columns, channels = data.shape
        nbytes = padded_row(columns * channels) * (rows - 1) + columns * channels
        return self.placed(self.writes.texture(destination, data, layout, size), nbytes, 16)

    def placed(self, lacking: int, nbytes: int, alignment: int) -> int:
        if lacking == 0:
            offset = -(-self.head // alignment) * alignment
            self.head = offset + nbytes
            self.model.seen["native write"] += 1
            self.model.placed(self.staging, offset, nbytes)
        return lacking


async def watched_wait(engine: Any, lane: Any, size: int, alignment: int) -> Any:
    """And who waits for one."""
    awaited = place_for(engine, lane, size, alignment)
    return await (awaited if lane is engine.slots else engine.model.wait(awaited, lane, size, alignment))


class Model:
    """What the contract says that there is now. Raises AssertionError where the ring says otherwise."""

    def __init__(self, options: dict[str, Any], submit_blocks: bool, seen: Counter[str]) -> None:
        self.seen = seen
        self.loop = SteppedLoop()
        asyncio._set_running_loop(self.loop)
        CLOCK.perf_counter = self.loop.time
        self.faults: list[BaseException] = []
        self.gpu = SteppedGpu(submit_blocks=submit_blocks)
        self.gpu.watcher = self
        self.targets = [
            Target(handle, handle.bytes.view(np.uint32)[np.newaxis])
            for handle in map(self.gpu.buffer, (256, 256, 1024))
        ]
        texture = self.gpu.texture("rgba8unorm", (8, 4, 1))
        self.targets.append(Target(texture, texture.level()[0].view(np.uint32)[..., 0]))
        self.by_handle = {id(target.handle): target for target in self.targets}
        self.numbers = itertools.count(1)
        self.writes: dict[int, Write] = {}
        self.places: list[Place] = []
        self.slots: list[Slot] = []
        self.staged: dict[Write, None] = {}  # of committed slots, in order, until they are submitted
        self.line: list[Ask] = []
        self.batches: list[Batch] = []
        self.frames: list[Batch] = []
        self.fences: list[tuple[Any, int]] = []  # (fence, submissions until then)
        self.guards: dict[int, Any] = {}
        self.moving: Counter[int] = Counter()
        self.bare: Counter[int] = Counter()  # slots committed without a copy, by buffer
        self.tops: dict[int, int] = {}  # first byte behind the last slot, by buffer
        self.closed_to_new: set[int] = set()  # buffers in which there may be no room behind it
        self.submitting = 0  # users who wait in a submit, which closes what it finds blocked
        self.foreign: dict[Any, Any] = {}  # views of abandoned slots that are alive
        self.stale: list[np.ndarray] = []
        self.encoders: list[Any] = []  # callers' own, not submitted yet
        self.relayed = False
        self.failures = 0  # slots of nobody's that were refused
        self.carried: dict[int, Write] = {}  # whole uploads that the carrier has
        self.total = self.bytes_total = self.stalled = 0
        self.stall_seconds = 0.0
        self.uncertain: list[int] = []  # sizes of asks that may have been granted in the turn in which they ended
        self.opened = self.closing = self.closed = False
        self.fragile = False  # destinations may be destroyed
        self.budget = aiostage.MemoryBudget()
        self.ring = StagingRing(self.gpu, budget=self.budget, stall_timeout=STALL_TIMEOUT, threads=2, **options)
        self.ring._engine.model = self
        self.users = [User(self, number) for number in range(6)]
        self.given: Any = None  # what the jobs are for that the carrier is given now
        opening = self.loop.create_task(self.ring.open())
        for _ in range(4):
            self.run()
            self.gpu.deliver()
        self.run()
        opening.result()
        self.opened = True

    @property
    def lost(self) -> bool:
        return self.gpu.is_lost()

    def idle_users(self) -> list[User]:
        return [user for user in self.users if user.doing is None]

    # -- time --

    def run(self, turns: int = ALL_TURNS) -> None:
        for _ in range(turns):
            if self.loop.is_idle:
                return
            self.loop.turn()
            self.look()
        assert turns < ALL_TURNS, "the loop does not come to rest"

    def look(self) -> None:
        """What can be seen after each turn."""
        if self.faults:
            raise self.faults[0]
        if self.opened and not self.lost and not self.closing:
            self.see_line(self.ring.stats_nowait())

    def settle(self) -> None:
        """Let the GPU, the threads and the loop do what they can without anybody's help."""
        for _ in range(200):
            self.run()
            if self.gpu.depart():
                pass
            elif self.gpu.jobs:
                self.gpu.copy()
            elif self.gpu.copy_piece():
                pass
            elif self.gpu.in_flight:
                self.gpu.complete()
            elif self.gpu.outstanding():
                self.gpu.deliver()
            elif not self.gpu.depart():  # of what is full, as one finds out who looks for a place in it
                self.run()
                return
        raise AssertionError("what goes on never ends")

    # -- asking and answering --

    def ask(self, user: User, size: int, alignment: int, lane: Any = None) -> Ask:
        ask = Ask(user, size, alignment, lane, self.loop.turns, self.loop.now)
        self.line.append(ask)
        return ask

    def answered(self, ask: Ask) -> None:
        if self.loop.turns == ask.turn:
            assert self.in_line(self.ring.stats_nowait()) == 0, "served before others who wait"
        else:
            for earlier in self.line[: self.line.index(ask)]:
                assert earlier.may_be_passed, "a later one was served first"
        self._leave_line(ask)
        self.total += 1
        self.bytes_total += ask.size

    def unanswered(self, ask: Ask) -> None:
        """Cancelled, timed out, lost, closed."""
        self._leave_line(ask)
        if ask.granted:
            self.total += 1
            self.bytes_total += ask.size
        else:
            self.uncertain.append(ask.size)
        self.may_close()

    def may_close(self) -> None:
        """What is done now may close any buffer that is in use, or leave a gap in it."""
        states = self.ring.stats_nowait().buffer_states
        self.closed_to_new.update(index for index, state in enumerate(states) if state is IN_USE)

    def _leave_line(self, ask: Ask) -> None:
        self.line.remove(ask)
        if self.loop.turns != ask.turn:
            self.stalled += 1
            self.stall_seconds += self.loop.now - ask.since

    async def wait(self, waiting: Coroutine[Any, Any, Any], lane: Any, size: int, alignment: int) -> Any:
        """A piece of an upload waits for its place."""
        ask = self.ask(self.user_here(), size, alignment, lane)
        try:
            place = await waiting
        except BaseException:
            self.unanswered(ask)
            raise
        self.answered(ask)
        self.placed(place.buffer, place.offset, size, counts=False)
        return place

    def placed(self, buffer: Any, offset: int, size: int, counts: bool = True) -> None:
        """A piece of an upload has its place."""
        if counts:
            self.total += 1
            self.bytes_total += size
        user, threaded = self.user_here(), size > self.ring._engine.inline_size
        place = Place(size, buffer.index, offset, "filling" if threaded else "kept", user.batch)
        place.writes = [user.writing]
        self.add_place(place)

    def user_here(self) -> User:
        task = asyncio.current_task()
        return next(user for user in self.users if user.task is task)

    def add_place(self, place: Place) -> None:
        for other in self.places:
            if other.buffer == place.buffer:
                apart = place.offset >= other.offset + other.size or other.offset >= place.offset + place.size
                assert apart, "two places overlap"
        self.places.append(place)

    def took(self, ask: Ask | None, allocation: aiostage.Allocation, user: User | None, texels: Any = None) -> None:
        if ask is not None:
            self.answered(ask)
        else:
            self.total += 1
            self.bytes_total += allocation.size
        place = Place(allocation.size, allocation.buffer.index, allocation.offset, "open")
        self.add_place(place)
        # Whoever was handed the first place may be the last to run.
        self.tops[place.buffer] = max(self.tops.get(place.buffer, 0), place.offset + place.size)
        self.slots.append(Slot(allocation, place, user, texels))

    # -- what threads and the GPU do --

    def starting(self) -> Any:
        """A job is handed to the copying threads; what it is for."""
        if isinstance(self.given, Move):
            self.given.jobs += 1
        return self.given

    def job_done(self, what: Any) -> None:
        """A thread has done it."""
        if isinstance(what, Place) and what.state == "filling":
            what.state = "kept"

    def job_heard(self, what: Any) -> None:
        """The loop hears of it now."""
        if isinstance(what, Move):
            what.jobs -= 1
            if what.jobs == 0:
                self.moving.subtract((what.held, what.fresh))

    def upload_ends(self, number: int, status: int) -> None:
        """The loop hears that the carrier is through with a whole upload."""
        write = self.carried.pop(number)
        if status == LEFT_OUT:
            write.refused = write.count - write.submitted
        assert status or write.is_settled, "an upload ended before all of it was submitted"

    def moves(self, held: int, fresh: int) -> None:
        """Copies beside an open slot are about to be moved."""
        for place in self.places:
            if place.buffer == held and place.state == "kept":
                place.buffer = fresh
        self.moving.update((held, fresh))
        self.given = Move(held, fresh)
        self.seen["moved"] += 1

    def sealed(self, index: int) -> None:
        assert self.moving[index] == 0, "sealed while copies are being moved"
        for place in self.places:
            assert place.buffer != index or place.state == "kept", f"sealed while a place in it is {place.state}"

    def left_out(self, copy: Any) -> None:
        """A copy goes with no submit."""
        self._arrived(copy, True)

    def arrived(self, copies: Any, command_buffers: Any) -> None:
        for copy in copies:
            self._arrived(copy, False)
        for command_buffer in command_buffers:
            for step in command_buffer.steps:
                if isinstance(step, Look | Recorded):
                    step.arrived()

    def _arrived(self, copy: Any, is_bad: bool) -> None:
        """Small uploads that lie side by side at both ends share a copy."""
        target, done = self.by_handle.get(id(copy.destination)), 0
        if target is None:  # a relay, on the way to a caller's encoder
            self.relayed = True
            return
        while done < copy.nbytes:
            done += self._arrived_piece(copy, done, target, is_bad)

    def _arrived_piece(self, copy: Any, done: int, target: Target, is_bad: bool) -> int:
        source, offset = copy.source.handle, copy.offset + done
        relay, place, nbytes = getattr(source, "relayed", None), None, copy.nbytes - done
        if relay is None:
            index = self.gpu.staging.index(source)
            place = next((p for p in self.places if p.buffer == index and 0 <= offset - p.offset < p.size), None)
            is_lent = self.ring._engine.shelf.all[index].phase is buffer.State.LENT
            assert (place is None) is is_lent, "submitted a copy out of a place that was given up"
            if place is not None:
                nbytes = min(nbytes, place.offset + place.size - offset)
        write, first = self._read(copy, done, source, relay, place, is_bad)
        has_it = write in place.writes if place is not None else write in self.carried.values()
        assert relay is not None or has_it, "a copy reads another's place"
        x, y, width, _ = write.box
        assert target is write.target
        if hasattr(copy, "destination_offset"):
            count = min(nbytes // 4, write.count - first)
            nbytes = 4 * count
            assert copy.destination_offset + done == 4 * (x + first), "a copy goes elsewhere"
        else:
            count = copy.size[0] * copy.size[1]
            assert nbytes == copy.nbytes, "a copy reads past its place"
            assert (copy.origin, copy.size[0]) == ((x, y + first // width, 0), width), "a copy goes elsewhere"
        assert first not in write.pieces, "submitted twice"
        assert 0 < count <= write.count - first
        write.pieces.add(first)
        write.at = self.gpu.submitted
        if is_bad:
            self.staged.pop(write, None)
        else:
            self._in_order(write)
        if is_bad:
            write.refused += count
            if place is not None and write in place.writes and write.user is not None:
                write.user.failures += 1
            else:
                self.failures += 1
        else:
            write.submitted += count
            write.apply(first, count)
        return nbytes

    def _read(self, copy: Any, done: int, source: Any, relay: Any, place: Any, is_bad: bool) -> tuple[Write, int]:
        """Whose words a copy has, and the first of them: as they say themselves, if somebody has written them."""
        if is_bad and place is not None and len(place.writes) == 1:
            write = place.writes[0]
            x, y, width, _ = write.box
            if hasattr(copy, "destination_offset"):
                return write, (copy.destination_offset + done) // 4 - x
            return write, (copy.origin[1] - y) * width
        memory, offset = source.bytes if relay is None else np.frombuffer(relay, np.uint8), copy.offset + done
        word = int(memory[offset : offset + 4].view(np.uint32)[0])
        assert word >> 10 in self.writes, "submitted bytes that nobody wrote there"
        return self.writes[word >> 10], word & 1023

    def _in_order(self, write: Write) -> None:
        if write in self.staged:
            for earlier in self.staged:
                if earlier is write:
                    break
                assert not earlier.overlaps(write), "a copy overtook an earlier one to the same place"
            del self.staged[write]

    def comes_back(self, buffer: Any) -> None:
        index = buffer.index
        if not self.opened:
            return
        handle = buffer.handle
        assert handle.map_state == "mapped", "came back while the GPU has it"
        assert self.gpu.completed >= handle.last_use, "came back before the GPU was done"
        guard = self.guards.pop(index, None)
        assert guard is None or guard.done(), "came back before the fence that guards it"
        for place in [place for place in self.places if place.buffer == index]:
            given_up = place.batch is not None and place.batch.exiting
            assert place.state == "kept" or given_up, f"came back with a place that is {place.state}"
            for write in place.writes:
                assert given_up or write.is_settled or len(write.pieces) > 0, "came back, and copies in it are lost"
            self.places.remove(place)
        self.bare[index] = 0
        self.tops.pop(index, None)
        self.closed_to_new.discard(index)

    # -- what users do --

    async def allocate(self, user: User, size: int, alignment: int, texels: Any) -> None:
        ask = self.ask(user, size, alignment)
        try:
            if texels is None:
                allocation = await self.ring.allocate(size, alignment=alignment)
            else:
                allocation = await self.ring.allocate_texture(texels, "rgba8unorm")
        except BaseException:
            self.unanswered(ask)
            raise
        assert allocation.offset % alignment == 0
        self.took(ask, allocation, user, texels)

    async def stream(self, user: User, size: int, copies: int, n: int) -> None:
        """What most users do: allocate, fill, commit, submit."""
        await self.allocate(user, size, 4, None)
        slot = self.slots[-1]
        await anyio.lowlevel.checkpoint()
        if slot in self.slots:
            self.commit(slot, copies, None, bool(n & 1), False, n)
        await self.submit(user, [], None)

    async def write(self, user: User, write: Write, batch: Batch | None) -> None:
        user.writing = write
        data, to = write.payload(), self.ring if batch is None else batch.handle
        x, y, width, height = write.box
        try:
            if len(write.target.expected) == 1:
                fence = await to.write_buffer(write.target.handle, 4 * x, data)
            else:
                destination = {"texture": write.target.handle, "origin": (x, y, 0)}
                fence = await to.write_texture(destination, data.view(np.uint8).reshape(height, width, 4))
        except aiostage.InvalidCopy:
            assert write.refused, "a good upload was refused"
            raise
        finally:
            data[:] = SCRIBBLE
        if batch is not None:
            batch.writes.append(write)
            return
        assert write.submitted == write.count, "an upload returned before it was submitted"
        self.fences.append((fence, write.at))

    async def submit(self, user: User, command_buffers: list[Any], look: Look | None) -> None:
        before = list(self.staged)
        if look is not None:
            look.after = before
        self.submitting += 1
        try:
            fence = await self.ring.submit(command_buffers)
        except aiostage.InvalidCopy:
            assert user.failures, "a submit failed for a copy of somebody else's"
            user.failures = 0
            self.seen["submit refused"] += 1
        else:
            self.fences.append((fence, 0))
        finally:
            self.submitting -= 1
            self.may_close()
        assert all(write.is_settled for write in before), "a submit left copies behind"

    async def enter(self, batch: Batch) -> None:
        await batch.handle.__aenter__()
        self.batches.append(batch)
        if batch.is_frame:
            self.frames = [frame for frame in self.frames if not self.is_over(frame)]
            self.frames.append(batch)
            assert len(self.frames) <= self.ring.frames_in_flight, "more frames than may be in flight"

    def is_over(self, frame: Batch) -> bool:
        try:
            return frame.done or frame.handle.fence.done()
        except aiostage.AllocationClosed:
            return False

    async def leave(self, batch: Batch, abandon: bool) -> None:
        batch.leaving = batch.exiting = True
        batch.abandoned = abandon
        if not abandon and batch.is_frame:
            batch.handle.encoder.run(Look(self, list(batch.writes)))
        try:
            await batch.handle.__aexit__(ZeroDivisionError if abandon else None, None, None)
        except aiostage.InvalidCopy:
            assert any(write.refused for write in self.writes.values()), "a good batch was refused"
            raise
        except BaseException:
            batch.done = True
            raise
        finally:
            # What was not submitted is forgotten.
            states = self.ring.stats_nowait().buffer_states
            if states:
                self.places = [p for p in self.places if p.batch is not batch or states[p.buffer] is FENCED]
        if abandon:
            batch.done = True
            return
        assert all(write.is_settled for write in batch.writes), "a batch left copies behind"
        assert not any(write.refused for write in batch.writes), "a refused copy was not reported"
        self.fences.append((batch.handle.fence, 0))

    async def close(self) -> None:
        self.closing, lost = True, self.lost
        try:
            await self.ring.aclose()
            assert lost or self.lost or self.gpu.in_flight == 0, "closed before the GPU was done"
        finally:
            self.closed = True
            assert lost or self.lost or not self.staged, "closed, and committed copies are lost"
            assert self.budget.used == 0

    # -- slots --

    def commit(self, slot: Slot, copies: int, encoder: Any, use_view: bool, keep: bool, n: int) -> None:
        allocation = slot.allocation
        if slot.texels is not None:
            (width, height), copies = slot.texels, min(copies, 1)
            boxes = [(n % (9 - width), n % (5 - height), width, height)] * copies
            targets = [self.targets[3]] * copies
        else:
            copies = min(copies, allocation.size // 4)
            count = allocation.size // 4 // copies if copies else 0
            targets = [self.targets[(n + i) % 3] for i in range(copies)]
            boxes = [(n * 5 % (t.words.shape[1] + 1 - count), 0, count, 1) for t in targets]
        writes = [self.new_write(target, box) for target, box in zip(targets, boxes, strict=True)]
        array = self._put(allocation, slot.texels, writes, use_view)
        for i, write in enumerate(writes):
            into = encoder if i == 0 else None
            if slot.texels is not None:
                destination = {"texture": write.target.handle, "origin": (*write.box[:2], 0)}
                allocation.copy_to_texture(destination, encoder=into)
            else:
                options = {"data_offset": 4 * write.count * i, "size": 4 * write.count, "encoder": into}
                allocation.copy_to_buffer(write.target.handle, 4 * write.box[0], **options)
        if keep and array is not None:
            self.stale.append(array)
        del array
        slot.place.writes = writes
        slot.place.state = "kept"
        recorded = writes[:1] if encoder is not None else []
        for write in recorded:
            write.submitted = write.count  # whoever has the encoder submits it
        for write in writes[len(recorded) :]:
            write.user = slot.user
            self.staged[write] = None
        self.relayed = False
        allocation.commit()
        self.slots.remove(slot)
        if not writes:
            self.bare[slot.place.buffer] += 1
        for write in recorded:
            encoder.run(Recorded(write))
            if len(writes) == 1 and not self.relayed and slot.place in self.places:
                self.places.remove(slot.place)  # it went by the queue

    def _put(self, allocation: Any, texels: Any, writes: list[Write], use_view: bool) -> Any:
        """Write the words; returns the array that they were written through, or None."""
        if texels is not None:
            array = allocation.array()
            for write in writes:
                array[:] = write.payload().view(np.uint8).reshape(*array.shape)
            return array
        data = np.concatenate([write.payload() for write in writes]) if writes else WORDS[:0]
        if use_view:
            allocation.view[: data.nbytes] = data.tobytes()
            return None
        array = allocation.array(np.uint32)
        array[: len(data)] = data
        return array[1:]

    def new_write(self, target: Target, box: tuple[int, int, int, int]) -> Write:
        number = next(self.numbers)
        write = self.writes[number] = Write(number, target, box)
        return write

    def abandon(self, slot: Slot, leave_view: bool) -> None:
        self.slots.remove(slot)
        self.places.remove(slot.place)
        if leave_view:
            self.foreign[slot] = np.asarray(memoryview(slot.allocation.view))
        slot.allocation.abandon()

    # -- what must hold --

    def excuse(self, error: BaseException, user: User | None = None) -> None:
        """Raise unless there is a reason for this error."""
        doing = "" if user is None else user.doing
        if isinstance(error, aiostage.DeviceLost):
            assert self.lost, f"{doing}: nobody lost the device"
        elif isinstance(error, aiostage.RingClosed):
            assert self.closing, f"{doing}: nobody closed the ring"
        elif isinstance(error, aiostage.StallTimeout):
            assert doing in ("allocate", "stream", "write", "submit"), doing
            assert not self.lost, "StallTimeout, though the device is lost"
        elif isinstance(error, aiostage.FenceTimeout):
            assert doing == "fence" or self.ring._engine.fence_timeout is not None
        elif isinstance(error, aiostage.InvalidCopy) and user is None:
            assert self.failures, "somebody else's refused copy was reported"
            self.failures = 0
        elif isinstance(error, aiostage.InvalidCopy):
            assert doing in ("write", "leave"), doing
        elif isinstance(error, aiostage.AllocationClosed):
            assert doing in ("write", "leave")
            assert user.batch is None or user.batch.leaving
        else:
            raise error
        self.seen[f"{doing} {type(error).__name__}"] += 1

    def hopeless(self) -> bool:
        """Whether every buffer is kept by something that only users can end."""
        held = {place.buffer for place in self.places if place.state == "open"} | {b for b, n in self.bare.items() if n}
        quarantined = {slot.place.buffer for slot in self.foreign}
        kept = {place.buffer for place in self.places if any(write in self.staged for write in place.writes)}
        return len(held | quarantined | (kept if held else set())) == self.ring.ring_count

    def check(self) -> None:
        """The statistics, and what can be told from them."""
        gpu, ring = self.gpu, self.ring
        assert gpu.violations == []
        assert self.loop.errors == [], self.loop.errors
        if self.faults:
            raise self.faults[0]
        if not self.lost:
            for fence, submissions in self.fences:
                assert not fence.done() or gpu.completed >= submissions, "a fence was done too early"
            done = max((fence.value for fence, _ in self.fences if fence.done()), default=0)
            pending = [fence.value for fence, _ in self.fences if not fence.done() and fence.value]
            assert all(value > done for value in pending), "fences were done out of their order"
        if not gpu.in_flight and not self.lost:
            for target in self.targets:
                assert (target.words == target.expected).all(), "a destination has other contents than it should"
        if self.lost or self.closing:
            return
        stats = ring.stats_nowait()
        self.see_line(stats)
        granted = sum(ask.size for ask in self.line if ask.granted)
        lent = ring._engine.lending.counts
        assert stats.bytes_in_flight == sum(place.size for place in self.places) + granted + lent.in_flight
        assert stats.buffer_stalls == self.stalled + len(self.line) + lent.stalls
        assert stats.stall_seconds == self.stall_seconds + lent.stall_seconds
        assert len(gpu.staging) == stats.ring_count
        assert stats.memory == self.budget.used
        assert 0 <= stats.current_ring_index < stats.ring_count
        assert stats.submits >= gpu.submitted  # some go together
        self.check_states(stats)
        if self.loop.is_idle:
            assert self.in_line(stats) == len(self.line)

    def in_line(self, stats: Any) -> int:
        """How many wait for a place; whole uploads wait for buffers, while the carrier has none to give them."""
        return stats.waiters - self.ring._engine.lending.counts.waiting

    def see_line(self, stats: Any) -> None:
        """Learn who has been handed a place and does not run yet: first come, first served."""
        line = [ask for ask in self.line if ask.granted or not (ask.lane is not None and ask.lane.ended)]
        lent = self.ring._engine.lending.counts
        granted = len(line) - self.in_line(stats)
        for ask in line[: max(0, granted)]:
            ask.granted = True
        expected = self.total + sum(ask.granted for ask in self.line)
        sizes = sum(ask.size for ask in self.line if ask.granted)
        extra = stats.allocations_total - lent.pieces - expected
        more = stats.bytes_total - lent.nbytes - self.bytes_total - sizes
        if extra or more:  # handed over and cancelled in one turn
            assert any(sum(some) == more for some in itertools.combinations(self.uncertain, extra)), (extra, more)
            self.total += extra
            self.bytes_total += more
        self.uncertain.clear()

    def check_states(self, stats: Any) -> None:
        states = stats.buffer_states
        for index, handle in enumerate(self.gpu.staging):
            assert states[index] is FENCED or handle.map_state == "mapped"
        for place in self.places:
            if place.state == "open":
                assert states[place.buffer] is IN_USE
            assert states[place.buffer] is not AVAILABLE
        for slot in self.foreign:
            assert states[slot.place.buffer] is not AVAILABLE
        if not self.in_line(stats):
            return
        assert AVAILABLE not in states, "somebody waits while a buffer is free"
        if self.submitting:
            self.may_close()
        if any(ask.granted for ask in self.line):
            return  # their places count already, and the model learns where when they run
        first = next(ask for ask in self.line if not ask.granted)
        if first.user.doing in ("allocate", "stream") and not self.ring._engine.lending.is_starved:
            for index, top in self.tops.items():
                offset = -(-top // first.alignment) * first.alignment
                has_room = states[index] is IN_USE and offset + first.size <= self.ring.buffer_size
                assert index in self.closed_to_new or not has_room, "a slot waits while there is room for it"

    def justify_waiting(self) -> None:
        """After `settle`: who still waits must have a reason that only a user can end."""
        assert self.closing or self.ring.stats_nowait().pending_fences == 0
        if self.lost:  # which who waits for another user hears of when his patience ends
            self.loop.now += 2 * STALL_TIMEOUT
            self.settle()
        if self.closing or self.lost:
            assert [user.doing for user in self.users if user.doing] == [], "somebody hangs"
        for user in self.users:
            if user.doing is None:
                continue
            asks = [ask for ask in self.line if ask.user is user]
            if asks:
                assert self.hopeless(), f"{user.doing} waits for a place, and nobody holds the buffers"
            elif user.writing in self.carried.values():
                assert self.hopeless(), "an upload waits for a buffer, and nobody holds them"
            elif user.doing in ("submit", "stream"):
                assert self.slots, "submit waits for nobody"
                assert AVAILABLE not in self.ring.stats_nowait().buffer_states, "submit waits while a buffer is free"
            elif user.doing == "write":
                assert self.hopeless(), "a write waits for one before it to the same place, which does not wait"
            elif user.doing == "enter":
                assert any(not frame.leaving for frame in self.frames), "a frame waits for frames that are over"
            else:
                raise AssertionError(f"{user.doing} hangs")

    def finish(self) -> None:
        """End everything; whatever is left then hangs."""
        for _ in range(50):
            self.settle()
            self.justify_waiting()
            self.check()
            self.foreign.clear()
            for slot in list(self.slots):
                self.abandon(slot, leave_view=False) if not self.closing else self.slots.remove(slot)
            entering = [user for user in self.users if user.doing == "enter"]
            if entering:
                entering[0].cancel()  # or nobody may be left to leave the frames that it waits for
                self.settle()
            idle = self.idle_users()
            for batch, user in zip([b for b in self.batches if not b.exiting], idle, strict=False):
                user.start("leave", self.leave(batch, abandon=False), batch)
            if not self.closing and not self.lost and (any(self.bare.values()) or self.staged):
                try:
                    self.ring.submit_nowait()
                except anyio.WouldBlock:
                    pass
                except aiostage.InvalidCopy as error:
                    self.excuse(error)
            self.settle()
            self.check()
            if len(self.idle_users()) == len(self.users) and not self.slots and all(b.exiting for b in self.batches):
                break
        assert [user.doing for user in self.users if user.doing] == [], "somebody hangs"
        if not self.closing:
            if not self.lost:
                self.idle_users()[0].start("submit", self.submit(self.users[0], [], None))
                self.settle()
                self.check()
                stats = self.ring.stats_nowait()
                assert stats.bytes_in_flight == 0, "bytes leaked"
                assert stats.buffer_states == (AVAILABLE,) * stats.ring_count, "a buffer leaked"
            self.users[1].start("close", self.close())
            self.settle()
        assert self.closed, "close hangs"
        self.check()
        assert self.gpu.attached == 0
        for fence, _ in self.fences:
            assert fence.done(), "a fence hangs"

    def forget(self) -> None:
        """Drop it all, in whatever state it is."""
        self.ring._engine.error = self.ring._engine.error or aiostage.RingClosed("forgotten")
        self.ring._engine.shelf.clear()
        for user in self.users:
            user.task._log_destroy_pending = False
            if user.inbox.done() and inspect.getcoroutinestate(user.inbox.result()) == inspect.CORO_CREATED:
                user.inbox.result().close()


PICK = st.integers(0, 15)
TURNS = st.sampled_from([ALL_TURNS, 0, ALL_TURNS, 1, ALL_TURNS, 2])
SIZES = st.sampled_from([4, 64, 256, 20, 128, 5, 32, 60])
UPLOADS = st.sampled_from([4, 64, 256, 600, 100, 32, 160])


def when(condition: Callable[[Model], object]) -> Any:
    return precondition(lambda machine: condition(machine.model))


def ready(model: Model) -> bool:
    """Somebody has nothing to do, and the ring is of use."""
    return any(user.doing is None for user in model.users)


class Machine(RuleBasedStateMachine):
    """The steps."""

    seen: ClassVar[Counter[str]] = Counter()
    model: Model

    @initialize(
        submit_blocks=st.booleans(),
        ring_count=st.sampled_from([1, 2, 3, 2, 3]),
        buffer_size=st.sampled_from([256, 512, 1024]),
        inline_size=st.sampled_from([0, 64, 1 << 20]),
        fence_timeout=st.sampled_from([None, 4.0]),
        end=st.sampled_from(["", "", "", "", "lose", "close"]),
        after=st.integers(5, 55),
        fragile=st.sampled_from([False, False, True]),
    )
    def open(self, submit_blocks: bool, end: str, after: int, fragile: bool, **options: Any) -> None:
        self.end, self.after, self.steps = end, after, 0
        self.seen["runs"] += 1
        self.model = Model(options, submit_blocks, self.seen)
        self.model.fragile = fragile

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "model"):
            self.steps += 1
            self.seen["steps"] += 1
            if self.end and self.steps == self.after:
                self.end_early()
            self.model.check()

    def teardown(self) -> None:
        try:
            if hasattr(self, "model") and sys.exc_info()[0] is None:
                self.model.finish()
        finally:
            if hasattr(self, "model"):
                self.model.forget()
            asyncio._set_running_loop(None)

    def end_early(self) -> None:
        model = self.model
        if self.end == "lose":
            model.gpu.lose()
        elif model.idle_users():
            model.idle_users()[0].start("close", model.close())
        else:
            self.after += 1

    # -- places --

    @when(ready)
    @rule(pick=PICK, size=SIZES, alignment=st.sampled_from([4, 4, 16, 64]), turns=TURNS)
    def allocate(self, pick: int, size: int, alignment: int, turns: int) -> None:
        self.begin(pick, "allocate", lambda user: self.model.allocate(user, size, alignment, None), turns)

    @when(ready)
    @rule(pick=PICK, width=st.integers(1, 8), height=st.integers(1, 2), turns=TURNS)
    def allocate_texture(self, pick: int, width: int, height: int, turns: int) -> None:
        height = min(height, self.model.ring.buffer_size // 256)
        size = 256 * height
        self.begin(pick, "allocate", lambda user: self.model.allocate(user, size, 16, (width, height)), turns)

    @rule(size=SIZES)
    def allocate_nowait(self, size: int) -> None:
        model, states = self.model, self.model.ring.stats_nowait().buffer_states
        waiters, cursor = model.in_line(model.ring.stats_nowait()), model.ring.stats_nowait().current_ring_index
        try:
            allocation = model.ring.allocate_nowait(size)
        except anyio.WouldBlock:
            assert waiters or AVAILABLE not in states, "there was room"
        except aiostage.StagingError as error:
            model.excuse(error)
        else:
            assert not waiters, "overtook those who wait"
            model.took(None, allocation, None)
            index = allocation.buffer.index
            if states[index] is AVAILABLE and not model.ring._engine.shelf.lent:  # the next in ring order
                order = [(cursor + i) % len(states) for i in range(len(states))]
                assert index == next(i for i in order if states[i] is AVAILABLE)

    # -- slots --

    @when(lambda model: model.slots)
    @rule(
        pick=PICK,
        copies=st.sampled_from([1, 2, 1, 0]),
        into=st.sampled_from([0, 0, 0, 1]),
        way=st.integers(0, 3),
        turns=TURNS,
    )
    def commit(self, pick: int, copies: int, into: int, way: int, turns: int) -> None:
        model = self.model
        slot = model.slots[pick % len(model.slots)]
        encoder = self.encoder() if into and copies else None
        try:
            model.commit(slot, copies, encoder, bool(way & 1), bool(way & 2), pick)
        except aiostage.StagingError as error:
            model.excuse(error)
            if slot in model.slots:
                model.slots.remove(slot)
        model.run(turns)

    @when(lambda model: model.slots)
    @rule(pick=PICK)
    def commit_with_a_view_alive(self, pick: int) -> None:
        allocation = self.model.slots[pick % len(self.model.slots)].allocation
        try:
            view = np.asarray(memoryview(allocation.view))
        except aiostage.StagingError as error:
            self.model.excuse(error)
            return
        with pytest.raises(aiostage.ViewStillAlive):
            allocation.commit()
        del view

    @when(lambda model: model.slots)
    @rule(pick=PICK, leave_view=st.sampled_from([False, False, True]), strike=st.booleans(), turns=TURNS)
    def abandon(self, pick: int, leave_view: bool, strike: bool, turns: int) -> None:
        slots = self.model.slots
        if not self.model.closing and not self.model.lost:
            self.model.abandon(slots[pick % len(slots)], leave_view)
        if strike:
            self.cancel_one_who_was_handed_a_place()
        self.model.run(turns)

    def cancel_one_who_was_handed_a_place(self) -> None:
        """And who has not run since."""
        self.model.look()
        for ask in self.model.line:
            if ask.granted and not ask.user.cancelling:
                ask.user.cancel()
                return

    @when(lambda model: model.foreign)
    @rule(turns=TURNS)
    def drop_view(self, turns: int) -> None:
        self.model.foreign.popitem()
        self.model.run(turns)

    @when(lambda model: model.stale)
    @rule()
    def write_to_a_committed_slot(self) -> None:
        array = self.model.stale.pop()
        with pytest.raises(ValueError, match="read-only"):
            array[:] = 0

    # -- submits --

    @when(ready)
    @rule(pick=PICK, size=st.sampled_from([64, 20, 4, 256]), copies=st.integers(1, 2), turns=TURNS)
    def stream(self, pick: int, size: int, copies: int, turns: int) -> None:
        self.begin(pick, "stream", lambda user: self.model.stream(user, size, copies, pick), turns)

    @when(ready)
    @rule(pick=PICK, buffers=st.sampled_from([0, 1, 2]), turns=TURNS)
    def submit(self, pick: int, buffers: int, turns: int) -> None:
        model = self.model
        look = Look(model, []) if buffers else None
        command_buffers = [model.gpu.command_buffer(look)] if buffers else []
        if buffers == 2 and model.encoders:
            encoder = model.encoders.pop()
            command_buffers.insert(0, encoder.finish())
        self.begin(pick, "submit", lambda user: model.submit(user, command_buffers, look), turns)

    @rule(turns=TURNS)
    def submit_nowait(self, turns: int) -> None:
        model, before = self.model, list(self.model.staged)
        look = Look(model, before)
        try:
            fence = model.ring.submit_nowait([model.gpu.command_buffer(look)])
        except anyio.WouldBlock:
            assert model.slots or any(model.moving.values()) or model.line, "submit_nowait was held up by nobody"
        except aiostage.StagingError as error:
            model.excuse(error)
        else:
            model.fences.append((fence, 0))
        model.run(turns)

    @rule(guard=st.sampled_from([False, False, True]), turns=TURNS)
    def advance(self, guard: bool, turns: int) -> None:
        model = self.model
        given = model.fences[-1][0] if guard and model.fences else None
        model.may_close()
        states = model.ring.stats_nowait().buffer_states
        try:
            fence = model.ring.advance(given)
        except anyio.WouldBlock:
            assert model.slots or any(model.moving.values()) or model.line, "advance was held up by nobody"
        except aiostage.StagingError as error:
            model.excuse(error)
        else:
            assert given is None or fence is given
            model.seen["advanced"] += 1
            after = model.ring.stats_nowait().buffer_states
            left = [index for index, state in enumerate(after) if state is FENCED and states[index] is not FENCED]
            if given is not None and len(left) == 1:
                model.guards[left[0]] = given
                model.seen["guarded"] += not given.done()
            model.fences.append((fence, 0))
        model.run(turns)

    def encoder(self) -> Any:
        encoders = self.model.encoders
        if not encoders:
            encoders.append(self.model.gpu.create_encoder())
        return encoders[-1]

    # -- uploads --

    @when(ready)
    @rule(pick=PICK, size=UPLOADS, to=st.integers(0, 2), inside=st.booleans(), times=st.integers(1, 3), turns=TURNS)
    def write_buffer(self, pick: int, size: int, to: int, inside: bool, times: int, turns: int) -> None:
        target, count = self.model.targets[2 if size > 256 else to], size // 4
        step = count if pick % 2 else 3 * count  # side by side, or apart
        starts = [(pick * 5 + i * step) % (target.words.shape[1] + 1 - count) for i in range(times)]
        self.begin_write(pick, target, [(start, 0, count, 1) for start in starts], inside, turns)

    @when(ready)
    @rule(pick=PICK, width=st.integers(1, 8), height=st.integers(1, 4), inside=st.booleans(), turns=TURNS)
    def write_texture(self, pick: int, width: int, height: int, inside: bool, turns: int) -> None:
        box = (pick % (9 - width), pick % (5 - height), width, height)
        self.begin_write(pick, self.model.targets[3], [box], inside, turns)

    def begin_write(self, pick: int, target: Target, boxes: list[Any], inside: bool, turns: int) -> None:
        model = self.model
        batches = [batch for batch in model.batches if not batch.leaving]
        batch = batches[pick % len(batches)] if inside and batches else None

        async def write_all(user: User) -> None:
            for box in boxes:
                await model.write(user, model.new_write(target, box), batch)

        self.begin(pick, "write", write_all, turns, batch)

    @when(ready)
    @rule(pick=PICK, is_frame=st.booleans(), turns=TURNS)
    def enter(self, pick: int, is_frame: bool, turns: int) -> None:
        ring = self.model.ring
        batch = Batch(ring.frame() if is_frame else ring.batch(), is_frame)
        self.begin(pick, "enter", lambda user: self.model.enter(batch), turns)

    @when(lambda model: ready(model) and any(not batch.leaving for batch in model.batches))
    @rule(pick=PICK, abandon=st.sampled_from([False, False, True]), turns=TURNS)
    def leave(self, pick: int, abandon: bool, turns: int) -> None:
        batches = [batch for batch in self.model.batches if not batch.leaving]
        batch = batches[pick % len(batches)]
        batch.leaving = True
        self.begin(pick, "leave", lambda user: self.model.leave(batch, abandon), turns, batch)

    # -- waiting, cancelling, what passes --

    @when(lambda model: ready(model) and model.fences)
    @rule(pick=PICK, timeout=st.sampled_from([None, 0.0, 0.5]), turns=TURNS)
    def wait_for_a_fence(self, pick: int, timeout: float | None, turns: int) -> None:
        fence = self.model.fences[-1 - pick % len(self.model.fences)][0]

        async def wait() -> None:
            try:
                await fence.wait(timeout)
            except aiostage.FenceTimeout:
                assert not fence.done(), "FenceTimeout of a fence that is done"
                raise

        self.begin(pick, "fence", lambda user: wait(), turns)

    @when(lambda model: len(model.idle_users()) < 6)
    @rule(pick=PICK, handed=st.booleans(), turns=TURNS)
    def cancel(self, pick: int, handed: bool, turns: int) -> None:
        if handed:
            self.cancel_one_who_was_handed_a_place()
        busy = [user for user in self.model.users if user.doing not in (None, "close")]
        if busy and not handed:
            busy[pick % len(busy)].cancel()
        self.model.run(turns)

    @rule(turns=st.integers(1, 3))
    def turn(self, turns: int) -> None:
        self.model.run(turns)

    @rule(seconds=st.sampled_from([1 / 1024, 1 / 128, 0.5, 5.0, 9.0]), turns=TURNS)
    def sleep(self, seconds: float, turns: int) -> None:
        self.model.loop.now += seconds
        self.model.run(turns)

    # -- the GPU and the threads --

    @when(lambda model: model.gpu.in_flight)
    @rule(n=st.integers(1, 3), turns=TURNS, order=st.sampled_from(["", "all", "fences", "maps"]))
    def complete(self, n: int, turns: int, order: str) -> None:
        self.model.gpu.complete(min(n, self.model.gpu.in_flight))
        if order:
            self.model.gpu.deliver(order)
        self.model.run(turns)

    @when(lambda model: model.gpu.outstanding())
    @rule(order=st.sampled_from(["all", "maps", "fences", "first", "last", "reversed"]), turns=TURNS)
    def deliver(self, order: str, turns: int) -> None:
        self.model.gpu.deliver(order)
        self.model.run(turns)

    @when(lambda model: model.gpu.jobs)
    @rule(pick=PICK, turns=TURNS)
    def copy(self, pick: int, turns: int) -> None:
        self.model.gpu.copy(pick % len(self.model.gpu.jobs))
        self.model.run(turns)

    @when(lambda model: model.carried)
    @rule(turns=TURNS)
    def copy_piece(self, turns: int) -> None:
        self.model.gpu.copy_piece()
        self.model.run(turns)

    @when(lambda model: model.gpu.carrier.counts["queued"])
    @rule(turns=TURNS)
    def depart(self, turns: int) -> None:
        self.model.gpu.depart()
        self.model.run(turns)

    @when(lambda model: model.fragile)
    @rule(pick=st.integers(0, 3))
    def destroy(self, pick: int) -> None:
        self.model.targets[pick].handle.destroy()
        self.model.gpu.heard()
        self.model.run()

    @rule()
    def settle(self) -> None:
        self.model.settle()
        self.model.justify_waiting()

    # -- how a user begins --

    def begin(self, pick: int, doing: str, work: Any, turns: int, batch: Batch | None = None) -> None:
        idle = self.model.idle_users()
        user = idle[pick % len(idle)]
        user.start(doing, work(user), batch)
        self.model.run(turns)


@pytest.fixture
def stepped(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rings use the model's clock and threads."""
    for module in (waiting, buffer, carrier, timeline):
        monkeypatch.setattr(module, "time", CLOCK)
    monkeypatch.setattr("aiostage.ring.Engine", WatchedEngine)
    monkeypatch.setattr("aiostage.batch.writes_of", WatchedWrites)
    monkeypatch.setattr(waiting, "place_for", watched_wait)
    monkeypatch.setattr("aiostage.carrier.timeline.Carrier", SteppedCarrier)
    monkeypatch.setattr("aiostage.ring.run_now", _at_once)
    # Hypothesis would draw some values from the constants in the sources of all modules that are loaded. A seed is to
    # give the same steps alone and in the whole suite, today and after the next change.
    provider = "hypothesis.internal.conjecture.providers.HypothesisProvider"
    monkeypatch.setattr(f"{provider}._maybe_draw_constant", lambda *_, **__: None, raising=False)
    logging.getLogger("aiostage").setLevel(logging.CRITICAL)
    yield
    logging.getLogger("aiostage").setLevel(logging.NOTSET)


async def _at_once(function: Callable[..., Any], *args: Any) -> Any:
    """In place of a thread, for what rings do in one when they open and close."""
    return function(*args)


@pytest.mark.parametrize("seed", range(SEEDS), ids="seed-{}".format)
def test_a_ring_does_what_the_model_says_whatever_happens_in_whatever_order(seed: int, stepped: None) -> None:
    settings = hypothesis.settings(
        max_examples=RUNS_PER_SEED,
        stateful_step_count=STEPS,
        deadline=None,
        database=None,
        phases=[Phase.generate, Phase.shrink],
        suppress_health_check=list(HealthCheck),
    )
    hypothesis.seed(seed)(Machine)
    run_machine(Machine, settings=settings)
    if Machine.seen["runs"] > 5 * RUNS_PER_SEED:  # of all seeds until now; one alone need not reach all of it
        assert not MUST_HAPPEN.difference(word for what in Machine.seen for word in what.split())
