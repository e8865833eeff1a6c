"""The native carrier, as the loop sees it: jobs and departures go in, and their ends come back as calls."""

from __future__ import annotations

import os
import sys
import threading
import time
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any, NamedTuple
from weakref import WeakMethod, finalize

from .. import exits, native, probe
from ..data.arrays import WHOLE
from ..data.copies import BufferCopy, Copy, Staged
from ..data.files import Descriptor, FileRun, Stored
from ..data.pieces import Whole
from ..errors import CannotStartThread, DeviceLost, InvalidCopy, StagingError
from ..events import DEBUG, event, logger
from ..gpu.protocol import Native
from ..loop import LoopPort
from .departure import Departure, Source, copy_at, pack, pack_pieces, pack_run

Ended = Callable[[int, BaseException | None], object]
"""Called on the loop with a job and what went wrong with it, or None."""

UploadEnded = Callable[[Any, int, float, Any], object]
"""Called on the loop with what was given as the upload, the serial of its last submit (0: there was none), how many
seconds ago that was made, and why not all of it was submitted, or None."""

_ALL = 1 << 30
_AT_ONCE = 2
"""Ends that the loop is told of in a turn: each wakes somebody for some 30 µs, and others want their turn."""

_CANCELLED, _SHORT, _LEFT_OUT, _LOST = -1, -2, -3, -4
_UPLOAD = native.UPLOAD
_CERTAIN = tuple(WHOLE)


class Carrier:
    """All that happens off the loop for one device: threads that copy, and one that submits and polls.

    Its threads know nothing of Python, and the loop waits for none of them (native/carrier.h). Made on the loop, and
    called there. It holds whoever hears of fences weakly, so that what nobody closed can be collected.

    :param reached: called with a serial that the GPU has finished, with all before it, and how many seconds ago.
    :param lost: called when the device is, with why.
    :raises CannotStartThread: the system has none left; nothing is kept.
    """

    def __init__(
        self,
        device: Native,
        port: LoopPort,
        reached: WeakMethod[Callable[[int, float], None]],
        lost: WeakMethod[Callable[[StagingError], None]],
    ) -> None:
        self._device, self._port = device, port
        self._reached, self._lost = reached, lost
        self._native = native.Carrier(device.functions, *device.handles, device.message_in_done)
        self._native.entitle(device.name)
        self._timing, self._is_timed = threading.Lock(), False
        self._jobs: dict[int, Ended] = {}
        self._departures: dict[int, tuple[Departure, list[Staged]]] = {}
        self._buffers: dict[int, Callable[[int], object]] = {}
        self._uploads: dict[int, tuple[Whole | tuple[Any, int, Any], Any, UploadEnded]] = {}
        self._polled: list[Callable[[], object]] = []
        self._steps_here = False  # on the loop, at the interpreter's end
        # Without this carrier, or who has to call it some time would keep what a dead loop was told.
        self.stop: Callable[[], object] = _nothing
        """Begin nothing more, and hear of nothing more."""
        if device.is_stepped:
            return
        if not exits.over and not self._native.start():
            raise CannotStartThread("the thread that submits and polls could not be started")
        stop = _watch(self._native, port, WeakMethod(self.hear))
        self.stop = end = finalize(self, _end, self._native, port, stop, device)
        end.atexit = False
        exits.endings[self] = Carrier._outlive_threads

    def add_copiers(self, count: int) -> None:
        """Have so many threads that copy. :raises CannotStartThread: there is none."""
        if not (self._device.is_stepped or exits.over) and not self._native.add_copiers(count):
            raise CannotStartThread("no thread that copies could be started")

    # -- what goes in --

    def add_buffer(self, buffer: Source, back: Callable[[int], object]) -> None:
        """Have a new staging buffer mapped, and again after each departure: `back` is called with its address then, or
        with 0 if it never will be."""
        handle = self._device.handle(buffer.handle)
        buffer.number = self._native.add_buffer(handle, buffer.handle.size, self._device.map_mode(buffer.handle))
        self._buffers[buffer.number] = back
        self._go_on()

    def forget_buffer(self, buffer: Source) -> None:
        """It is about to be destroyed."""
        if self._buffers.pop(buffer.number, None) is not None:
            self._native.forget_buffer(buffer.number)

    def name_buffer(self, buffer: Source, ring: int) -> None:
        """What it is called in a trace."""
        self._native.name_buffer(buffer.number, ring, buffer.index)

    def show_buffer(self, number: int, state: int) -> None:
        """For a trace: it is in this state; or, if it is lent, in the one that it is in."""
        self._native.show_buffer(number, state)

    def show_upload(self, track: probe.Track, nbytes: int, since: float, fence: int) -> None:
        """For a trace: an upload that went by places is over; the fence is of its last submit, or 0."""
        self._native.show_upload(track, nbytes, since, fence)

    def time(self) -> bool:
        """Have the GPU asked how long its submits take, in traces; in any thread. False: it cannot be."""
        with self._timing:
            if not self._is_timed and (times := self._device.times()) is not None:
                self._is_timed = self._native.time(*times)
            return self._is_timed

    def copy(self, data: Any, address: int, steps: tuple[int, ...], swap: int, ended: Ended, rings: bool = True) -> int:
        """Copy an array to an address, where its items lie `steps` bytes apart along each of its axes.

        :param swap: bytes in what is turned round, for another byte order; or 0.
        :param rings: whether the loop is woken for the end of it; without, it hears of that with the next that does.
        :returns: the job, for `Departure.jobs`.
        """
        job = self._native.copy(data, address, steps, swap, rings)
        self._jobs[job] = ended
        self._go_on()
        return job

    def read(self, run: FileRun, address: int, ended: Ended, rings: bool = True) -> int:
        """Read bytes of a file to an address. The file stays open until the end of that, or of the carrier.

        :returns: the job, as `copy` does.
        """
        source = run.source
        job = self._native.read(source, source.fd, run.position, address, pack_run(run), rings)
        self._jobs[job] = lambda job, error: ended(job, _of_file(error, source))
        self._go_on()
        return job

    def copy_plan(self, plan: native.Plan, first: int, last: int, ended: Ended) -> int:
        """Copy the texels of writes that were recorded. :returns: the job, as `copy` does."""
        job = self._native.copy_plan(plan, first, last, True)
        self._jobs[job] = ended
        self._go_on()
        return job

    def cancel(self, job: int) -> bool:
        """Whether it had not begun, and never will; its end is told of all the same."""
        return self._native.cancel(job)

    def listen(self) -> None:
        """From now on wake the loop for every job that ends."""
        self._native.listen()

    def depart(self, departure: Departure) -> int:
        """Submit as soon as the jobs that fill it are done, and have its buffers mapped again.

        :returns: the value of its fence, one more than that of the departure before.
        :raises StagingError: nothing was done.
        """
        device = self._device
        buffers = tuple([buffer.number for buffer in departure.buffers])
        commands = tuple(map(device.handle, departure.command_buffers))
        jobs = tuple(departure.jobs)
        serial = 0
        while not serial:  # until nothing was destroyed between the check and the departure
            epoch = native.epoch()
            copies = departure.sift(device)
            records = pack(device, copies)
            what = (departure.lane, departure.is_urgent, False, buffers, records, commands, jobs)
            serial = self._native.depart(*what, epoch)
        self._departures[serial] = departure, copies
        self._go_on()
        return serial

    def mark(self) -> int:
        """Tell when the GPU has finished all that was submitted until now, and nothing that is submitted later.

        :returns: the serial that is reached then.
        """
        serial = 0
        while not serial:
            serial = self._native.depart(0, True, True, (), b"", (), (), native.epoch())
        self._go_on()
        return serial

    def poll(self, polled: Callable[[], object]) -> None:
        """Have the GPU polled now; called when what that found has been told."""
        self._polled.append(polled)
        self._native.poll_soon()
        self._go_on()

    # -- whole uploads --

    def add_ring(self) -> int:
        """A ring, whose uploads go through the buffers that it lends."""
        return self._native.add_ring()

    def drop_ring(self, ring: int) -> None:
        """It is closed, and its buffers were forgotten."""
        self._native.drop_ring(ring)

    def lend(self, ring: int, buffers: Sequence[Source]) -> None:
        """Have its uploads use these, which are mapped and empty, until they are taken back."""
        self._native.lend(ring, tuple([buffer.number for buffer in buffers]))
        self._go_on()

    def take_back(self, ring: int) -> tuple[int, int] | None:
        """The number and address of a buffer that no upload uses now."""
        return self._native.take_back(ring)

    def want(self, ring: int, count: int) -> None:
        """Have so many of those that are in use come back to the loop: `back` is called for them, as for any other."""
        self._native.want(ring, count)

    def ring_counts(self, ring: int) -> RingCounts:
        """What its uploads have done so far."""
        return RingCounts(*self._native.ring_counts(ring))

    def lent_state(self, buffer: Source) -> int:
        """`LENT_IDLE`, `LENT_FILLING` or `LENT_AWAY`."""
        return self._native.lent_state(buffer.number)

    def upload(self, ring: int, whole: Whole, most: int, upload: Any, ended: UploadEnded) -> int:
        """Cut it into pieces of at most `most` bytes, copy and submit them. Returns a number for it; `ended` is called
        with `upload`, a serial or 0, how many seconds ago that was, and an error or None.

        :raises InvalidCopy: the destination was destroyed.
        """
        device, copy = self._device, whole.parts[0].copy
        if probe.tracer is not None:
            self._native.post_from(*probe.tracer.task(self._port))
        number = 0
        while not number:
            epoch = native.epoch()
            if (reason := device.unusable(copy)) is not None:
                raise InvalidCopy(f"{copy!r}: {reason}")
            number = self._post(ring, whole, most, epoch)
        if type(copy) is BufferCopy:
            native.know_usable(copy.destination, epoch)
        self._uploads[number] = whole, upload, ended
        self._go_on()
        return number

    def upload_known(
        self, ring: int, buffer: Any, offset: int, data: Any, least: int, most: int, upload: Any, ended: UploadEnded
    ) -> int:
        """The same with more than `least` bytes for a buffer that was written to before. 0: it takes `upload`."""
        if probe.tracer is not None:
            self._native.post_from(*probe.tracer.task(self._port))
        number = self._native.upload_known(ring, buffer, offset, data, _CERTAIN, least, most)
        while number == native.STALE:
            epoch = native.epoch()
            if self._device.unusable(BufferCopy(None, 0, buffer, 0, 0)) is not None:
                return 0
            native.know_usable(buffer, epoch)
            number = self._native.upload_known(ring, buffer, offset, data, _CERTAIN, least, most)
        if number:
            self._uploads[number] = (buffer, offset, data), upload, ended
            self._go_on()
        return number

    def _post(self, ring: int, whole: Whole, most: int, epoch: int) -> int:
        array, part = whole.array, whole.parts[0]
        if isinstance(array, Stored):
            records = pack_pieces(self._device, whole.parts)
            return self._native.upload(ring, array.source, array.source.fd, array.offset, records, most, epoch)
        if type(copy := part.copy) is BufferCopy and not part.shape:
            where = part.start, part.run, self._device.handle(copy.destination), copy.destination_offset
            return self._native.upload_bytes(ring, array, *where, most, epoch)
        records = whole.records or pack_pieces(self._device, whole.parts)
        return self._native.upload(ring, array, -1, 0, records, most, epoch)

    def cancel_upload(self, upload: int) -> None:
        """Begin no more of it. What was begun is submitted; its end is told of all the same."""
        if upload in self._uploads:
            self._native.cancel_upload(upload)
            self._port.post(self.hear)

    # -- what comes back --

    def hear(self, most: int = _ALL) -> None:
        """Tell what has happened; if more than `most` things have, the others have to be asked for."""
        is_stepped = self._device.is_stepped  # then the clock is the test's
        for kind, status, number, value, ago, text in self._native.ends(most):
            try:
                if kind == _UPLOAD:  # most of all
                    self._end_upload(status, number, value, 0.0 if is_stepped else ago, text)
                else:
                    self._tell(kind, status, number, value, 0.0 if is_stepped else ago, text)
            except Exception as error:
                self._port.complain(f"Exception in what a carrier told of {kind}", error)

    def _tell(self, kind: int, status: int, number: int, value: int, ago: float, text: str | None) -> None:
        if kind == native.JOB:
            self._jobs.pop(number)(number, _error_of(status))
        elif kind == native.LEFT_OUT:
            departure, copies = self._departures[number]
            departure.fail(copy_at(copies, value), text or "")
        elif kind == native.MADE:
            self._made(*self._departures.pop(number), ago)
        elif kind == native.BACK:
            if (back := self._buffers.get(number)) is not None:
                back(value)
        elif kind == native.REACHED:
            if (reached := self._reached()) is not None:
                reached(number, ago)
        elif kind == native.POLLED:
            polled, self._polled = self._polled, []
            for call in polled:
                call()
        else:
            self._hear_of_loss(number, text or "")

    def _made(self, departure: Departure, copies: list[Staged], ago: float) -> None:
        left_out = {copy for copy, _ in departure.failures}
        self._device.note_use([copy for copy in copies if copy not in left_out] if left_out else copies)
        departure.fence.inserted_at = time.perf_counter() - ago
        if logger.isEnabledFor(DEBUG):
            indices = [buffer.index for buffer in departure.buffers]
            event("submitted", fence=departure.fence.value, buffers=indices, copies=len(departure.copies))
        departure.copies = departure.command_buffers = ()  # nothing keeps the destinations alive any more
        departure.made(departure.failures)

    def _end_upload(self, status: int, number: int, serial: int, ago: float, text: str | None) -> None:
        what, upload, ended = self._uploads.pop(number)
        error: BaseException | None = None
        if status == _CANCELLED:
            error = StagingError("the upload was cancelled before all of it was submitted")
        elif status == _LEFT_OUT:
            error = InvalidCopy(f"{_first_copy(what)!r}: {text}")
        elif status == _LOST:
            error = DeviceLost(text or "the device was lost before the submit")
        elif status:
            assert isinstance(what, Whole)
            assert isinstance(what.array, Stored)
            error = _of_file(_error_of(status), what.array.source)
        elif isinstance(what, Whole):
            self._device.note_use([part.copy for part in what.parts])
        if logger.isEnabledFor(DEBUG):
            event("submitted", fence=serial, upload=number)
        ended(upload, serial, ago, error)

    def _hear_of_loss(self, serial: int, text: str) -> None:
        error = DeviceLost(text if "lost" in text else f"the device was lost: {text}")
        found = self._departures.pop(serial, None)
        try:
            if (lost := self._lost()) is not None:
                lost(error)
            for back in list(self._buffers.values()):
                back(0)
        finally:
            self._native.listen()  # for threads that still read somebody's data
            if found is not None:
                departure = found[0]
                departure.copies = departure.command_buffers = ()
                departure.lost(error)

    # -- without threads --

    def _outlive_threads(self) -> Iterable[Threads]:
        """The interpreter ends, and the threads before it: from now on the loop does all, if it ever runs again."""
        if self._port.loop is None:  # in a forked child, where a thread that stayed behind may have the lock
            return ()
        self._native.stop()
        self._port.post(self._go_on)
        return (Threads(self._native),)

    def _go_on(self) -> None:
        if exits.over and not self._steps_here and not self._device.is_stepped and not sys.is_finalizing():
            self._steps_here = True
            self._port.post(self._step)

    def _step(self) -> None:
        self._steps_here = False
        if self._native.counts()["threads"]:  # one is inside wgpu, or ends a copy: not two at a time
            time.sleep(0.0001)
            self._go_on()
            return
        while any(self._native.step(which) for which in (native.COPY, native.PIECE, native.DEPART)):
            pass
        self._native.step(native.POLL)
        self.hear()
        left = self._native.counts()
        if left["outstanding"] or left["queued"] or left["unfinished"]:
            time.sleep(0.0001)
            self._go_on()

    @property
    def counts(self) -> dict[str, Any]:
        """What the threads have done, and have to do."""
        return self._native.counts()

    def step(self, which: int, index: int = 0) -> bool:
        """Make a step of the threads' work, where a test makes them. False: there was none to make."""
        return self._native.step(which, index)


class RingCounts(NamedTuple):
    """What a ring's uploads have done: `carrier_ring_counts` in native/carrier.h."""

    lent: int = 0
    idle: int = 0
    most_used: int = 0
    pieces: int = 0
    nbytes: int = 0
    in_flight: int = 0
    wanted: int = 0
    most_wanted: int = 0
    seals: int = 0
    sealed_bytes: int = 0
    sealed_most: int = 0
    cramped: int = 0
    stalls: int = 0
    waiting: int = 0
    stall_seconds: float = 0.0


class Threads:
    """Native threads, to be joined as Python's are."""

    def __init__(self, carrier: native.Carrier) -> None:
        self._carrier = carrier

    def is_alive(self) -> bool:
        return bool(self._carrier.counts()["threads"])

    def join(self, timeout: float | None = None) -> None:
        self._carrier.join(1e9 if timeout is None else timeout)


def _first_copy(what: Whole | tuple[Any, int, Any]) -> Copy:
    if isinstance(what, Whole):
        return what.parts[0].copy
    buffer, offset, data = what
    return BufferCopy(None, 0, buffer, offset, memoryview(data).nbytes)


def _nothing() -> None:
    return None


def _error_of(status: int) -> BaseException | None:
    if status == 0:
        return None
    if status == _CANCELLED:
        return StagingError("the write was cancelled before it began")
    if status == _SHORT:
        return EOFError("the file ends before the bytes that were to be read")
    return OSError(status, os.strerror(status))


def _of_file(error: BaseException | None, source: Descriptor) -> BaseException | None:
    """The same, with the name of the file that it is about."""
    if isinstance(error, EOFError):
        return EOFError(f"{source.name!r} ends before the bytes that were to be read")
    return OSError(error.errno, error.strerror, source.name) if isinstance(error, OSError) else error


def _watch(carrier: native.Carrier, port: LoopPort, hear: WeakMethod[Callable[[int], None]]) -> Callable[[], object]:
    """Have the loop hear of ends. Returns what ends that, to be called on the loop."""

    def rung() -> None:
        if (call := hear()) is not None:
            call(_AT_ONCE)
        else:
            carrier.ends(_ALL)  # nobody is left to hear of them
        _let_go_of(carrier)

    bell = carrier.bell()
    stop = port.watch(bell, rung) if bell >= 0 else None
    if stop is not None:
        return stop
    # A loop that can watch no descriptor: a thread does.
    stopping = threading.Event()

    heard = threading.Event()

    def rung_and_heard() -> None:
        rung()
        heard.set()

    def listen() -> None:
        while not stopping.is_set():
            if carrier.wait(1.0):
                heard.clear()
                if not port.post(rung_and_heard):
                    return
                while not heard.wait(1.0) and not stopping.is_set():
                    pass

    exits.start(listen, "aiostage bell")
    return stopping.set


_ending: dict[native.Carrier, tuple[Callable[[], object], Native]] = {}
"""Carriers that were stopped and may still have threads, what ends their loop's watch, and their device."""


class _Stopped:
    """Stands for them at the interpreter's end: a thread that is inside wgpu then may be about to log, in Python."""


_stopped = _Stopped()
exits.endings[_stopped] = lambda _: [Threads(carrier) for carrier in list(_ending)]


def _end(carrier: native.Carrier, port: LoopPort, stop: Callable[[], object], device: Native) -> None:
    """Of a carrier that is closed, or was dropped in whichever thread. Its last thread rings."""
    if port.loop is None:  # in a forked child: its threads stayed behind, and the loop's descriptors are the parent's
        return
    carrier.stop()
    _ending[carrier] = stop, device
    if not port.post(partial(_let_go_of, carrier)):
        for other in list(_ending):  # those whose loops are gone
            _let_go_of(other)


def _let_go_of(carrier: native.Carrier) -> None:
    if carrier in _ending and not carrier.counts()["threads"]:
        stop, _ = _ending.pop(carrier)
        stop()
