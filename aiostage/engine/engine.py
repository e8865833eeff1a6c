"""The engine of a ring: on its loop, synchronous, without an await. The policy decides; this acts, and counts.

How a byte travels:

1. A lane `take`s a place, or stands in line for one: FREE → FILLING.
2. It is written, and the place ends: `stage` its copies, or `give_up`.
3. The lane `depart`s: buffers are sealed and handed to the carrier: → DEPARTING → AWAY.
4. The carrier brings a buffer back: → FREE, and the first in the line is handed its place.

A whole upload of more than `inline_size` bytes has a shorter way: `upload`, see lending.py.
"""

from __future__ import annotations

import itertools
import weakref
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from logging import WARNING
from typing import Any, Self

from .. import probe
from ..carrier.carrier import Carrier, RingCounts
from ..carrier.departure import Departure
from ..carrier.timeline import Timeline
from ..data.arrays import Run
from ..data.copies import UNREAD, Copy, SmallCopies, Staged
from ..data.files import FileRun
from ..data.pieces import ALIGNMENT, Whole
from ..errors import (
    AllocationClosed,
    DeviceLost,
    FenceTimeout,
    InvalidCopy,
    OutOfMemory,
    RingClosed,
    StagingError,
    StallTimeout,
    afresh,
)
from ..events import DEBUG, event, logger, report
from ..gpu.protocol import Native
from ..loop import LoopPort
from ..native import Plan, Writes, now
from . import policy
from .buffer import NO_TASK, BufferState, Load, Place, Shelf, StagingBuffer, State
from .demand import Demand
from .lanes import Lane
from .lending import Lending, Upload
from .line import Line, Waiter
from .outcome import Outcome
from .scratch import Scratch
from .submission import Submission
from .turns import Turns
from .views import Views

Ended = Callable[[BaseException | None], object]
"""Called on the loop with what went wrong in filling a place, or None."""


_numbers = itertools.count(1)


class Counts:
    """What happened since the ring was opened."""

    __slots__ = ("allocations", "nbytes", "stall_seconds", "stalls", "submits")

    def __init__(self) -> None:
        self.stalls = self.submits = self.nbytes = self.allocations = 0
        self.stall_seconds = 0.0


_LOST_MEANWHILE = "the device was lost while its ring was opened"


class Engine:
    """Buffers, lanes and the line of a ring, and what is done with them.

    :param patience: seconds that a call waits before it asks whether waiting can help.
    """

    carrier: Carrier
    native: Native
    buffer_size: int
    lending: Lending
    port: LoopPort
    timeline: Timeline[Any]

    def __init__(self, ring_count: int, inline_size: int, patience: float, fence_timeout: float | None) -> None:
        self.number = next(_numbers)  # of the ring, in a trace
        self.inline_size = inline_size
        self.patience = patience
        self.fence_timeout = fence_timeout
        self.error: StagingError | None = RingClosed("the ring is not open; use 'async with'")
        self.lent_in_all = RingCounts()  # what whole uploads did, when it is closed
        self.shelf = Shelf()
        self.slots = Lane()  # what users are given
        self.uploads = Lane(keeps_order=False)  # of this turn of the loop
        self.lanes = dict.fromkeys((self.slots, self.uploads))  # and one of each batch and frame, oldest first
        self.line = Line()
        self.counts = Counts()
        self.demand = Demand(ring_count)
        self.scratch = Scratch()
        self.turns = Turns()
        self.last: Any = None  # the fence of the newest submission
        self.under_way: deque[Submission] = deque()  # that the carrier has, and has not submitted yet
        self._ways: dict[Way, None] = {}  # submits that wait for an open slot
        self._failures: deque[tuple[Any, InvalidCopy]] = deque(maxlen=64)  # of slots: (task, why)
        self._change: Outcome[Engine] | None = None
        self.mapped: Outcome[bool] = Outcome()  # all buffers are, for the first time
        self._by_places: dict[int, list[Staging]] = {}  # uploads that are no whole ones, by the id of where they go
        self.at_end: dict[Callable[[], object], None] = {}  # who is told when nothing can be done with it any more
        self._flush_scheduled = False
        self._logs = False  # whether somebody listens to events; asked at each submit, which is cheap enough
        # Weakly, or the engine would keep itself alive by the slots that it watches.
        self._slot_gone = _call_weakly(weakref.WeakMethod(self._reclaim_later))

    def use(self, timeline: Timeline[Any]) -> None:
        """Live on the loop of `timeline`, on its device."""
        self.timeline, self.native, self.port = timeline, timeline.native, timeline.port
        self.carrier = timeline.carrier
        self.lending = Lending(self.shelf, self.line, timeline.carrier, timeline)
        self._logs = logger.isEnabledFor(DEBUG)

    def map(self) -> None:
        """Have the carrier map the buffers on the shelf: see `mapped`."""
        back = weakref.WeakMethod(self._back)  # weakly, or the carrier would keep a ring that nobody closed
        for buffer in self.shelf.all:
            self.carrier.add_buffer(buffer, partial(_call_back, back, buffer))
            self.carrier.name_buffer(buffer, self.number)
        self.shelf.show = self.carrier.show_buffer
        if self.carrier.counts["is_lost"]:  # and told of it, maybe before it had these
            self.mapped.end(error=DeviceLost(_LOST_MEANWHILE))

    def start(self) -> None:
        """They are mapped: work with them."""
        self.demand = Demand(len(self.shelf.all))
        self.buffer_size = self.shelf.all[0].size
        self.error = None
        probe.opened(self)

    @property
    def name(self) -> str:
        """Of the ring and its device, in a trace."""
        return f"ring {self.number} on {self.native.name}"

    def time_submits(self) -> bool:
        """For a trace: have the GPU asked how long they take. False: it cannot be."""
        return self.carrier.time()

    def show_buffers(self) -> None:
        """For a trace: what states they are in."""
        for buffer in self.shelf.all:
            buffer.show()

    # -- checks --

    def check(self) -> None:
        """:raises RingClosed, DeviceLost: it has ended. :raises WrongLoop: called elsewhere than on its loop."""
        if self.error is not None:
            raise afresh(self.error)
        self.port.check()

    def check_task(self) -> None:
        """The same, for what may wait. :raises WrongLoop: called in no task of its loop."""
        if self.error is not None:
            raise afresh(self.error)
        self.port.check_task()

    def check_lane(self, lane: Lane) -> None:
        """:raises AllocationClosed: it has ended."""
        if self.error is not None:
            raise afresh(self.error)
        if lane.ended:
            raise AllocationClosed("the batch or frame has ended")

    def check_device(self) -> None:
        """:raises DeviceLost: it is lost: with nothing in flight, nobody has heard of that yet."""
        if self.native.is_lost():
            self.break_down(DeviceLost("the device was lost"))
        self.check()

    def check_fences(self) -> None:
        """:raises FenceTimeout: the GPU has not finished for too long."""
        if self.fence_timeout is None:
            return
        if self.under_way and (age := self.under_way[0].fence.elapsed) > self.fence_timeout:
            raise FenceTimeout(f"the GPU is busy; a submit has been waiting for it for {age:.3f} s")
        if self.timeline.oldest_age() > self.fence_timeout or (
            self.lending.uploads and self.carrier.counts["oldest"] > self.fence_timeout
        ):
            raise FenceTimeout(f"the GPU has not given a staging buffer back; {self.timeline.describe()}")

    def explain(self) -> None:
        """Raise if waiting on cannot help: say who holds the buffers, or that the GPU does."""
        self.check_device()
        self.reclaim()  # what stays behind cannot go
        held = policy.who_holds_what(self.shelf, self.patience)
        if held is not None:
            message = f"no staging buffer can come back; {'; '.join(held)}"
            report(WARNING, "stall_timeout", message)
            raise StallTimeout(message)
        self.check_fences()

    # -- places --

    def take(self, lane: Lane, size: int, alignment: int) -> Place | None:
        """A place, unless there is none, or others wait for one."""
        found = self.reserve(lane, size, alignment)
        return None if found is None else Place(found[0], found[1], size)

    def reserve(self, lane: Lane, size: int, alignment: int) -> tuple[StagingBuffer, int] | None:
        """Likewise the buffer and offset, for bytes that are written and staged in the same breath."""
        if self.line.waiters:
            return None
        if lane.writes is not None:
            self.collect(lane)
        found = policy.place_for(self.shelf, lane, size, alignment)
        if found is not None:
            self._occupy(found[0], found[1], lane, size)
        return found

    def _occupy(self, buffer: StagingBuffer, offset: int, lane: Lane, size: int) -> None:
        load: Load | None = buffer.load
        if load is None:
            self._begin(lane, buffer)
            load = buffer.load
            assert load is not None
        load.head = offset + size
        load.used += size
        counts = self.counts
        counts.nbytes += size
        counts.allocations += 1
        if self._logs:
            event("allocated", buffer=buffer.index, offset=offset, size=size)

    def _begin(self, lane: Lane, buffer: StagingBuffer) -> None:
        self.shelf.point_at(buffer)
        lane.begin(buffer)
        idle = self.lending.counts.idle if self.shelf.lent else 0
        self.demand.least_free = min(self.demand.least_free, len(self.shelf.free) + idle)

    # -- small writes without Python --

    def attach(self, lane: Lane, writes: Writes, size: int) -> bool:
        """Have the lane's `writes` go to a staging buffer with room for `size` bytes at least, until `collect`; unless
        others wait, or every step is told of."""
        self.collect(lane)
        if self.line.waiters or self._logs:
            return False
        found = policy.place_for(self.shelf, lane, size, ALIGNMENT)
        if found is None:
            return False
        buffer, offset = found
        if buffer.load is None:
            self._begin(lane, buffer)
        writes.lend(buffer.address, offset, buffer.size, self.native.handle(buffer.handle))
        lane.writes = writes, buffer
        return True

    def carry_out(self, lane: Lane, plan: Plan, first: int, last: int, ended: Ended) -> None:
        """Have threads copy what the lane's `writes` have just recorded; what departs waits for them."""
        assert lane.writes is not None
        _, buffer = lane.writes
        load = buffer.load
        job = self.carrier.copy_plan(plan, first, last, partial(self._filled, buffer, load, ended))
        load.jobs[job] = None

    def collect(self, lane: Lane) -> None:
        """Have what was written so far be like all else, and nothing lent. Whoever looks at the lane, or at what is in
        its buffers, asks for this first."""
        if lane.writes is None:
            return
        (writes, buffer), lane.writes = lane.writes, None
        head, nbytes, count, copies = writes.take()
        if not count:
            return
        buffer.reserve(head - nbytes, nbytes)
        self.counts.nbytes += nbytes
        self.counts.allocations += count
        for destination, records in copies:
            lane.stage(SmallCopies(buffer, destination, records))

    def collect_all(self) -> None:
        """Likewise of all lanes."""
        for lane in self.lanes:
            self.collect(lane)

    # -- the line --

    def join_line(self, lane: Lane, size: int, alignment: int) -> Waiter:
        """Wait for a place. `leave_line` undoes it."""
        waiter = Waiter(lane, size, alignment, self.port.name_of(self.port.current_task()))
        self.collect_all()
        self.line.join(waiter)
        self.counts.stalls += 1
        self.demand.waits(size, len(self.shelf.all) * self.buffer_size)
        if self._logs:
            event("stalled", size=size, waiters=len(self.line.waiters))
        self.reclaim()
        self._serve()
        return waiter

    def leave_line(self, waiter: Waiter) -> None:
        """Leave the line, or give up what was handed over while the cancellation or the end was on its way."""
        self.line.leave(waiter)
        if waiter.place.value is not None:
            self.give_up(waiter.place.value)
        else:
            self._serve()

    def resumed(self, waiter: Waiter, seconds: float) -> None:
        """It waits no more."""
        self.counts.stall_seconds += seconds
        self.demand.waiting -= waiter.size
        if probe.tracer is not None:
            probe.tracer.stalled(self.port, waiter.size, seconds)
        if self._logs:
            event("resumed", size=waiter.size, waited=seconds, granted=waiter.place.value is not None)

    def _serve(self) -> None:
        """Hand places to waiters, first come, first served."""
        lending = self.lending
        while (served := policy.next_served(self.shelf, self.line)) is not None:
            waiter, (buffer, offset) = served
            self.line.leave(waiter)
            if lending.is_for(waiter):
                lending.lend([buffer])
                continue
            self._occupy(buffer, offset, waiter.lane, waiter.size)
            waiter.place.end(Place(buffer, offset, waiter.size))
        lending.ask_back(len(self.line.waiters) + len(self._ways))
        self._see_to_uploads()

    def _see_to_uploads(self) -> None:
        if self.shelf.lent and not self.shelf.free:  # they have some, and there are no others
            return
        if self.lending.see_to_buffers():
            self.reclaim()

    # -- whole uploads --

    def upload(self, whole: Whole) -> Upload:
        """Have the carrier copy and submit it, in pieces if need be.

        :raises InvalidCopy: its destination was destroyed.
        """
        if self.uploads.copies:
            self._flush()  # nothing overtakes what was written before
        upload = self.lending.post(whole, self.buffer_size, self._uploaded)
        self._see_to_uploads()
        return upload

    def goes_by_places(self, destination: Any) -> bool:
        """Whether an upload is on its way there that is no whole one, which whole ones must not overtake."""
        return id(destination) in self._by_places

    @contextmanager
    def by_places(self, destination: Any) -> Iterator[Staging]:
        """One is, while this lasts: it may stand in line, or wait for threads, and the carrier knows nothing of it."""
        line = self._by_places.setdefault(id(destination), [])
        staging = Staging([*line, *self.lending.going_to(destination)])
        line.append(staging)
        try:
            yield staging
        finally:
            line.remove(staging)
            if not line:
                del self._by_places[id(destination)]
            self.staged(staging)

    def shown(self, nbytes: int) -> Unseen:
        """For a trace: an upload of so many bytes goes by places, while this lasts."""
        return _UNSEEN if probe.tracer is None else Shown(self, nbytes)

    def staged(self, staging: Staging) -> None:
        """All copies of it are in the lane, which keeps their order from then on."""
        if not staging.is_over:
            staging.end(True)
            self.changed()

    def upload_known(self, buffer: Any, offset: int, data: Any) -> Upload | None:
        """The same with the most common: contiguous bytes for a buffer that was written to before. None: it takes
        `upload`."""
        if self.uploads.copies or id(buffer) in self._by_places:  # which go before
            return None
        upload = self.lending.post_known(buffer, offset, data, self.inline_size, self.buffer_size, self._uploaded)
        if upload is not None:
            self._see_to_uploads()
        return upload

    def _uploaded(self, upload: Upload, fence: Any, error: Exception | None) -> None:
        if self.error is not None and isinstance(error, StagingError) and not isinstance(error, InvalidCopy):
            error = self.error
        upload.end(fence, error)
        if self.line.waiters or self._ways:
            self._serve()
        else:
            self._see_to_uploads()
        if self._change is not None:
            self.changed()

    def state_of(self, buffer: StagingBuffer) -> BufferState:
        """Where it is in its life, also while the carrier has it."""
        return self.lending.state_of(buffer) if buffer.phase is State.LENT else buffer.state

    def cancel(self, upload: Upload) -> None:
        """Begin no more of it; it ends when what was begun is submitted."""
        self.lending.cancel(upload)
        self._serve()

    @property
    def may_stall(self) -> bool:
        """Whether an upload may wait for what never comes: see `explain`."""
        return self.lending.is_starved or self.fence_timeout is not None

    # -- places that are filled --

    def stage(self, place: Place, copy: Copy) -> None:
        """A place is filled, and this is its copy."""
        self._end(place, copy)

    def fill(self, place: Place, copy: Copy, runs: Sequence[Run | FileRun], ended: Ended, rings: bool) -> None:
        """Have threads fill a place, and stage its copy now: what departs waits for them.

        :param ended: called for each run; with `rings` as soon as it is over, else before the submit is told of.
        """
        buffer, load = place.buffer, place.load
        filled = partial(self._filled, buffer, load, ended)
        for run in runs:
            address = buffer.address + place.offset + run.offset
            if isinstance(run, FileRun):
                job = self.carrier.read(run, address, partial(_note_unread, copy, filled), rings)
            else:
                job = self.carrier.copy(run.array, address, run.steps, run.swap, filled, rings)
            load.jobs[job] = None
            copy.job = job
        self._end(place, copy)

    def _filled(self, buffer: StagingBuffer, load: Load, ended: Ended, job: int, error: BaseException | None) -> None:
        load.jobs.pop(job, None)
        ended(error)
        if load.jobs or buffer.load is not load:
            self.changed()
        else:
            self.let_go(buffer)

    def give_up(self, place: Place) -> None:
        """A place of the library's own will not be filled."""
        self._end(place, None)

    def _end(self, place: Place, copy: Copy | None) -> None:
        if not place.end():
            return
        lane: Lane = place.load.lane
        if not lane.ended:
            if copy is not None:
                self.collect(lane)
                lane.stage(copy)
            else:
                place.load.used -= place.size
        if lane is self.uploads and not self._flush_scheduled:
            self._flush_scheduled = True
            self.port.soon(self._flush)
        self.let_go(place.buffer)

    def let_go(self, buffer: StagingBuffer) -> None:
        """Somebody stopped writing to `buffer`."""
        load: Load | None = buffer.load
        if load is not None and not load.is_busy:
            if load.lane.writes is not None:
                self.collect(load.lane)
            if not load.used and load.is_empty:
                load.lane.empty(buffer)
                self._emptied(buffer)
            if self.line.waiters:
                self._reclaim_for_waiters()
        if self._change is not None:
            self.changed()

    # -- slots that end --

    def commit(self, place: Place, slot: Any, copies: Sequence[Copy], exports: Sequence[Any], recorded: int) -> None:
        """A user's place is filled; `recorded` copies go into encoders. Without any copy it is kept for him.

        `let_go` of its buffer must follow.
        """
        load, buffer = place.load, place.buffer
        place.end()
        if self._logs:
            event("committed", buffer=buffer.index, offset=place.offset, size=place.size, copies=len(copies) + recorded)
        for copy in copies:
            copy.owner = place.task
            self.slots.stage(copy)
        if exports:
            buffer.exports += exports
        if not copies and not recorded:
            load.unstaged.append(weakref.ref(slot, self._slot_gone))

    def abandon(self, place: Place, views: Views | None) -> None:
        """A user's place is given up."""
        if views is not None:
            place.buffer.exports += views.alive()
            if views.is_foreign():
                place.buffer.quarantine.append(views)
        if place.buffer.load is place.load and place.end():
            place.load.used -= place.size
            if self._logs:
                event("abandoned", buffer=place.buffer.index, offset=place.offset, size=place.size)
            self.let_go(place.buffer)

    # -- departing --

    def depart(
        self,
        lane: Lane,
        buffers: Sequence[StagingBuffer],
        command_buffers: Sequence[Any] = (),
        guard: Any = None,
        is_urgent: bool = False,
    ) -> Submission:
        """Seal `buffers` and submit their copies, then `command_buffers`.

        :param guard: a fence that keeps the last of `buffers` away until it is done.
        :param is_urgent: nobody's own submit overtakes it.
        :raises InvalidSubmit: a command buffer is unfit; nothing has changed.
        """
        self.native.claim_command_buffers(command_buffers)
        self.collect(lane)
        submission = Submission(buffers, self.timeline.make())
        cramped = len(buffers) > 1 or bool(self.line.waiters)
        jobs: list[int] = []
        for buffer in buffers:
            self.demand.leaves(buffer.load.head, cramped)
            buffer.seal()
            buffer.load.fences.append(submission.fence)
            jobs += buffer.load.jobs
            self.shelf.point_past(buffer)
        if guard is not None:
            buffers[-1].load.fences.append(guard)
        self.counts.submits += 1
        self._logs = logger.isEnabledFor(DEBUG)
        if self._logs:
            self.collect_all()
        self.last = submission.fence
        self.under_way.append(submission)
        departure = Departure(
            buffers,
            lane.take(buffers),
            command_buffers,
            submission.fence,
            lane=lane.number,
            jobs=jobs,
            is_urgent=is_urgent,
            made=partial(self._made, submission),
            lost=partial(self._lost, submission),
        )
        try:
            self.timeline.depart(departure)
        except BaseException as error:  # nobody foresaw it
            self._lost(submission, DeviceLost(f"a submit failed, and with it the ring: {error!r}"))
            self.native.unclaim_command_buffers(command_buffers)
            raise
        return submission

    def depart_alone(self, copies: Sequence[Copy]) -> Submission:
        """Submit copies that read from no staging buffer, in one submit."""
        lane = Lane(keeps_order=False)
        lane.copies += copies
        return self.depart(lane, ())

    def _made(self, submission: Submission, failures: list[tuple[Copy, InvalidCopy]]) -> None:
        self._left(submission)
        if failures:
            self._failures += submission.end_refused(failures)
        else:
            submission.end_made()
        self.changed()

    def _lost(self, submission: Submission, error: StagingError) -> None:
        self._left(submission)
        try:
            self.break_down(error)
        finally:
            submission.end_lost(error)
            self.changed()

    def _left(self, submission: Submission) -> None:
        self.under_way.remove(submission)
        for buffer in submission.buffers:
            buffer.leave()

    def raise_failures(self) -> None:
        """Raise what became of copies that this task staged; others' stay for them. :raises InvalidCopy:"""
        task = self.port.current_task() or NO_TASK
        mine = [why for owner, why in self._failures if owner is task]
        if mine:
            self._failures = deque((f for f in self._failures if f[0] is not task), maxlen=64)
            raise afresh(mine[0])

    def _flush(self) -> None:
        """The turn of the loop is over: its uploads depart, but for buffers that are still being written."""
        self._flush_scheduled = False
        ready = [buffer for buffer in self.uploads.ready() if buffer.load.copies]
        if ready and self.error is None:
            self.depart(self.uploads, ready)

    def close_current(self, lane: Lane) -> StagingBuffer | None:
        """Have the lane's current buffer, or else a free one, take no more places; None: all are on their way."""
        buffer = lane.buffers[-1] if lane.buffers else self.shelf.next_free()
        if buffer is None:
            return None
        if buffer.phase is State.FREE:
            self._begin(lane, buffer)
        buffer.close()
        self.shelf.point_past(buffer)
        return buffer

    def reclaim(self) -> None:
        """Somebody needs room: what is staged and nobody writes to departs early."""
        for lane in list(self.lanes):
            self.collect(lane)
            ready = lane.ready()
            if ready:
                self.depart(lane, ready)

    def _reclaim_for_waiters(self) -> None:
        if self.line.waiters:
            self.reclaim()
            self._serve()

    def _reclaim_later(self) -> None:
        """A slot that was committed without a copy is gone, in whichever thread."""
        self.port.post(self._reclaim_for_waiters)

    # -- making way for a submit --

    def way(self, lane: Lane) -> Way:
        """A question for what may depart, once all that is staged in `lane` now may. `leave_way` must follow."""
        way = Way(self, lane)
        self._ways[way] = None
        return way

    def leave_way(self, way: Way) -> None:
        """Nobody asks any more."""
        self._ways.pop(way, None)

    def make_way(self, lane: Lane, wanted: set[Staged]) -> list[StagingBuffer] | None:
        """What may depart, if all of `wanted` may. If not, see to it that it soon will, and return None."""
        decision = policy.way_for(self.shelf, lane, wanted)
        if isinstance(decision, policy.Go):
            return decision.buffers
        for buffer in decision.close:
            buffer.close()  # or the wait might never end
        if decision.target is not None:
            self._begin(lane, decision.target)
            self._move(lane, decision.close[0], decision.target)
        self.lending.ask_back(len(self.line.waiters) + len(self._ways))
        return None

    def _move(self, lane: Lane, held: StagingBuffer, fresh: StagingBuffer) -> None:
        """Have copies moved out of a buffer that somebody else holds open. Nobody's cancellation ends that."""
        # They count as in the fresh buffer at once, which nobody submits before the bytes are there.
        moving = [copy for copy in lane.copies if copy.source is held and not isinstance(copy, SmallCopies)]
        for copy in moving:
            copy.source = fresh
        here, there = held.load, fresh.load
        there.copies, here.copies = here.copies, 0
        leaving = here.used - sum(place.size for place in here.open)
        there.used += leaving
        here.used -= leaving
        there.head = here.head
        fresh.close()
        ends = [buffer.keep_busy() for buffer in (held, fresh)]
        source = held.memory
        assert source is not None
        left = set[int]()

        def moved(job: int, error: BaseException | None) -> None:
            left.discard(job)
            if not left:
                for place in ends:
                    place.end()
                    self.let_go(place.buffer)

        for copy in moving:  # to the same offsets: they fit, and stay aligned
            data = source[copy.offset : copy.offset + copy.nbytes]
            left.add(self.carrier.copy(data, fresh.address + copy.offset, (1,), 0, moved))

    # -- lanes that end --

    def discard(self, lane: Lane) -> None:
        """A batch or frame is abandoned: its copies are forgotten, also those that a thread is still writing."""
        self.collect(lane)
        for buffer in lane.discard():
            lane.empty(buffer)
            self._emptied(buffer)
        for buffer in lane.buffers:
            for job in buffer.load.jobs:
                self.carrier.cancel(job)  # unless it has begun
        self.retire(lane)

    def retire(self, lane: Lane) -> None:
        """A batch or frame has ended; who still waits for a place in it hears of that."""
        lane.ended = True
        self.lanes.pop(lane, None)
        for waiter in list(self.line.waiters):
            if waiter.lane is lane:
                self.line.leave(waiter)
                waiter.place.end(error=AllocationClosed("the batch or frame has ended"))
        self._serve()

    # -- coming back --

    def _back(self, buffer: StagingBuffer, address: int) -> None:
        """The GPU is done with `buffer`, and it is mapped again, at this address; or with 0 it never will be."""
        if not self.mapped.is_over:
            self._map_first(buffer, address)
            return
        if self.error is not None:
            self.changed()
            return
        if address and buffer.load is not None:
            for fence in buffer.load.fences:
                if not fence.done():
                    fence.add_done_callback(lambda _: self._back(buffer, address))
                    return
        if buffer.phase is not State.LENT:
            self.demand.returns()
        if not address:
            self.break_down(DeviceLost("the device was lost with staging buffers in flight"))
            return
        buffer.come_back(address)
        self._emptied(buffer)

    def _map_first(self, buffer: StagingBuffer, address: int) -> None:
        if address:
            buffer.come_back(address)
            if len(self.shelf.free) == len(self.shelf.all):
                self.mapped.end(True)
        elif self.native.is_lost():
            self.mapped.end(error=DeviceLost(_LOST_MEANWHILE))
        else:
            self.mapped.end(error=OutOfMemory("the memory of a staging buffer could not be mapped"))

    def _emptied(self, buffer: StagingBuffer) -> None:
        """A buffer is free, or will be when a view of it is gone."""
        if buffer.phase is State.HELD:
            buffer.quarantine[0].when_gone(partial(self.port.post, partial(self._look_again, buffer)))
            return
        if self._logs:
            event("available", buffer=buffer.index)
        for way in list(self._ways):  # before waiters, or a stream of those could hold a submit up for ever
            way()
        self._serve()
        self.changed()

    def _look_again(self, buffer: StagingBuffer) -> None:
        buffer.empty()
        self._emptied(buffer)

    # -- what others wait for --

    def next_change(self) -> Outcome[Engine]:
        """Over when something has changed."""
        if self._change is None:
            self._change = Outcome()
        return self._change

    def changed(self) -> None:
        """Tell those who wait for a change."""
        change, self._change = self._change, None
        if change is not None:
            change.end(self)

    @property
    def threads_are_done(self) -> bool:
        """Whether no thread writes to staging memory, or is about to submit."""
        loads: list[Load] = [buffer.load for buffer in self.shelf.all if buffer.load is not None]
        return not (self.under_way or self.lending.uploads) and not any(load.filling or load.jobs for load in loads)

    # -- ending --

    def break_down(self, error: StagingError) -> None:
        """The device is gone: everybody who waits hears of it."""
        if self.error is None:
            self.end(error)

    def end(self, error: StagingError) -> None:
        """From now on all calls raise `error`, and those that wait do."""
        self.error = error
        self.collect_all()
        for waiter in list(self.line.waiters):
            self.line.leave(waiter)
            waiter.place.end(error=error)
        self._ways.clear()
        for upload in list(self.lending.uploads):
            self.lending.cancel(upload)
        if not isinstance(error, RingClosed):  # closing submits what is staged
            self._fail_loads(error)
        self.changed()
        for tell in self.at_end:
            self.port.soon(tell)

    def close(self) -> None:
        """Give the buffers up. Memory that something still points at is freed with the last of its views."""
        probe.closed(self)
        self._fail_loads(RingClosed("the ring was closed"))
        for buffer in self.shelf.all:
            self.carrier.forget_buffer(buffer)
            buffer.forget_memory()
            open_slots = buffer.load is not None and buffer.load.open
            if not open_slots and all(export() is None for export in buffer.exports):
                self.native.destroy(buffer.handle)
        self.lent_in_all = self.lending.close()
        self.scratch.close(self.native)
        self.shelf.clear()

    def _fail_loads(self, error: StagingError) -> None:
        for buffer in self.shelf.all:
            if buffer.load is not None:
                buffer.load.gone.end(error=error)


class Staging(Outcome[bool]):
    """Of an upload that goes by places: over when all of its copies are staged."""

    __slots__ = ("_earlier",)

    def __init__(self, earlier: list[Outcome[Any]]) -> None:
        super().__init__()
        self._earlier = earlier

    def may_begin(self) -> bool | None:
        """Whether it would overtake nothing to the same place, or None."""
        return all(other.is_over for other in self._earlier) or None


class Unseen:
    """An upload that goes by places, and that nobody traces."""

    __slots__ = ()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *exc_info: object) -> None: ...

    def submitted(self, fence: Any) -> None:
        """By its last submit."""


_UNSEEN = Unseen()


class Shown(Unseen):
    """One that is in a trace, when it is over."""

    __slots__ = ("_engine", "_fence", "_nbytes", "_since")

    def __init__(self, engine: Engine, nbytes: int) -> None:
        self._engine, self._nbytes, self._since, self._fence = engine, nbytes, now(), 0

    def submitted(self, fence: Any) -> None:
        self._fence = 0 if fence is None else fence.value

    def __exit__(self, *exc_info: object) -> None:
        if probe.tracer is not None:
            track = probe.tracer.task(self._engine.port)
            self._engine.carrier.show_upload(track, self._nbytes, self._since, self._fence)


class Way:
    """Asked whether what was staged in a lane when it was made may depart: see `Engine.way`."""

    def __init__(self, engine: Engine, lane: Lane) -> None:
        self._engine, self._lane, self._wanted = engine, lane, set(lane.copies)

    def __call__(self) -> list[StagingBuffer] | None:
        return self._engine.make_way(self._lane, self._wanted)


def _note_unread(
    copy: Copy, filled: Callable[[int, BaseException | None], object], job: int, error: BaseException | None
) -> None:
    if error is not None:
        copy.job = UNREAD
    filled(job, error)


def _call_back(back: weakref.WeakMethod[Any], buffer: StagingBuffer, at: int) -> None:
    bound = back()
    if bound is not None:
        bound(buffer, at)


def _call_weakly(method: weakref.WeakMethod[Callable[[], object]]) -> Callable[[object], None]:
    """A callback for weak references that calls a method of something that may be gone by then."""

    def call(_: object) -> None:
        bound = method()
        if bound is not None:
            bound()

    return call
