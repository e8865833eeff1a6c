"""A trace of what the library does, for Perfetto (ui.perfetto.dev) or Chrome: see `trace`.

The carriers write events by themselves (native/trace.c), into memory of a fixed size. A thread takes them to the file,
and asks every loop that has an open ring how long it takes to answer. What only Python knows comes by `probe`: which
task stalls, and the states of buffers that the loop has.
"""

from __future__ import annotations

import json
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from functools import partial
from logging import ERROR
from pathlib import Path
from typing import Any, Self
from weakref import ref

from . import __version__, exits, native, probe
from .events import report
from .probe import Port, Traced, Track

ROOM = 4 << 20
"""Bytes of events, twice, that can wait to be written. 10 GB/s in uploads of 1 MiB make some 15 MB of them a second."""

PERIOD = 0.02  # seconds between two looks of the thread: at what is to be written, and how late the loops are
PATIENCE = 5.0  # seconds for it to end
MOST_NAMES = 500  # of tasks, each with a track of its own; what comes then shares those of the nameless
TITLE = 60  # characters of a name that are shown

NO_TIMESTAMPS = "none: the device has not both features timestamp-query and timestamp-query-inside-encoders"

_one = threading.Lock()  # held while a trace is being begun or ended


def trace(path: str | os.PathLike[str], *, room: int = ROOM) -> Trace:
    """A trace of all rings in this process, of whichever loop and thread, while a `with` block lasts.

        with aiostage.tracing.trace("run.json"):
            asyncio.run(main())

    The file is in Chrome's JSON array format and is written meanwhile. It opens in Perfetto also if the program was
    killed. docs/tracing.md has what is in it. When it cannot be written to any more, because the disk is full, the
    library's logger says so once, at level ERROR, `Trace.error` has it, and the program goes on.

    :param room: bytes of events that may wait to be written, twice; what does not fit is counted in `Trace.lost`, and
        in the trace.
    :raises OSError: the file cannot be made. Raised on entering, as the others.
    :raises RuntimeError: another trace is being written in this process.
    :raises CannotStartThread: the system has none left.
    """
    return Trace(path, room)


def load(path: str | os.PathLike[str]) -> list[dict[str, Any]]:
    """The events of a trace, in the order of the file; of one that was cut off, those that are whole."""
    text = Path(path).read_bytes()
    if not text.endswith(b"\n]\n"):
        text = text[: text.rfind(b"},\n") + 1] + b"]" if b"},\n" in text else b"[]"
    events: list[dict[str, Any]] = json.loads(text)
    return events


class Trace:
    """One that is being written, or was; see `trace`."""

    def __init__(self, path: str | os.PathLike[str], room: int) -> None:
        self.path = Path(path)
        self.error: OSError | None = None
        """Why it ends before the block does."""
        self.lost = 0
        """Events that found no room, because the file was not written to fast enough."""
        self.gpu_time: dict[str, str] = {}
        """By ring: whether its device is asked how long each submit takes, and if not, why."""
        self.rings = 0
        """Rings that were open meanwhile."""
        self.nbytes = 0
        """Written to the file so far."""
        self._room = room
        self._process = os.getpid()
        self._file = -1
        self._number = 0  # of the trace that the carriers write
        self._loops: dict[int, _Loop] = {}  # by id; each is kept
        self._untimed: deque[ref[Traced]] = deque()  # rings whose device was not asked for timestamps yet
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._taking = threading.Lock()  # held to take events and write them

    # -- life --

    def __enter__(self) -> Self:
        with _one:
            self._begin()
        for known in probe.rings.keyrefs():  # others may be opened meanwhile
            if (ring := known()) is not None:
                self.opened(ring)
        return self

    def __exit__(self, *exc_info: object) -> None:
        if self._process != os.getpid():  # a forked child, and the file is its parent's
            return
        with _one:
            if probe.tracer is self:
                probe.tracer = None
                native.trace_end()
            self._over.set()
            if self._thread is not None:
                exits.join(self._thread, PATIENCE)
            if self._file >= 0 and self._taking.acquire(blocking=False):  # else the thread waits for the disk still
                try:
                    self._write_rest()
                finally:
                    self._taking.release()

    def _begin(self) -> None:
        if isinstance(probe.tracer, Trace):
            raise RuntimeError(f"a trace is being written to {probe.tracer.path}; one at a time")
        if self._thread is not None:
            raise RuntimeError("a trace is written once; make another one")
        self._file = os.open(self.path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | getattr(os, "O_BINARY", 0), 0o666)
        try:
            self._number = native.trace_begin(self._room)
            if not self._number:
                raise MemoryError(f"no memory for {2 * self._room} bytes of events")
            probe.tracer = self  # before the thread begins, which may find that it cannot write
            self._thread = exits.start(self._run, "aiostage trace")
        except BaseException:
            probe.tracer = None
            native.trace_end()
            self._close()
            raise

    # -- what the library tells --

    def opened(self, ring: Traced) -> None:
        """See `probe.Tracer`, as for the others."""
        ring.port.post(partial(self._meet, ref(ring)))

    def _meet(self, known: ref[Traced]) -> None:
        ring = known()
        if ring is None or ring not in probe.rings or probe.tracer is not self:  # it was closed meanwhile
            return
        loop = self._loop_of(ring.port)
        if id(ring) not in loop.rings:
            loop.rings.add(id(ring))
            self.rings += 1
            self._untimed.append(known)
            ring.show_buffers()

    def closed(self, ring: Traced) -> None:
        if (loop := self._loops.get(id(ring.port.loop))) is not None:
            loop.rings.discard(id(ring))

    def task(self, port: Port) -> Track:
        return self._loop_of(port).track_of(port.current_task())

    def stalled(self, port: Port, nbytes: int, seconds: float) -> None:
        native.trace_stall(self.task(port), nbytes, seconds)

    def _loop_of(self, port: Port) -> _Loop:
        loop = self._loops.get(id(port.loop))
        if loop is None:
            loop = self._loops[id(port.loop)] = _Loop(port, self._number, len(self._loops) + 1)
        return loop

    # -- the thread --

    def _run(self) -> None:
        self._write(b"[\n")
        while not self._over.wait(PERIOD):
            for loop in list(self._loops.values()):
                loop.ask()
            while self._untimed and probe.tracer is self:
                self._time(self._untimed.popleft()())
            with self._taking:
                self._write_some()

    def _time(self, ring: Traced | None) -> None:
        """Off its loop: it makes buffers."""
        if ring is None:
            return
        try:
            how = "timestamp queries" if ring.time_submits() else NO_TIMESTAMPS
        except Exception as error:  # the device is lost, say, or has no memory
            how = f"none: {error}"
        self.gpu_time[ring.name] = how

    def _write_some(self) -> None:
        events, lost = native.trace_take()
        self.lost += lost
        if events:
            self._write(events)

    def _write_rest(self) -> None:
        self._write_some()
        last = {"ph": "M", "pid": 0, "tid": 0, "ts": 0, "name": "aiostage", "args": self._about()}
        self._write(json.dumps(last).encode() + b"\n]\n")
        self._close()
        native.trace_forget()

    def _about(self) -> dict[str, Any]:
        return {"version": __version__, "lost_events": self.lost, "gpu_time": self.gpu_time}

    def _write(self, some: bytes) -> None:
        rest = memoryview(some)
        try:
            while rest and self._file >= 0:
                written = os.write(self._file, rest)
                self.nbytes += written
                rest = rest[written:]
        except OSError as error:
            self._fail(error)

    def _fail(self, error: OSError) -> None:
        """Nothing more can be written. What is there can be read."""
        self.error = error
        self._over.set()
        if probe.tracer is self:
            probe.tracer = None
            native.trace_end()
            native.trace_forget()
        self._close()
        report(ERROR, "trace_failed", f"the trace {self.path} ends here, after {self.nbytes} bytes: {error.strerror}")

    def _close(self) -> None:
        file, self._file = self._file, -1
        if file >= 0:
            try:
                os.close(file)
            except OSError as error:  # where it is found out only then
                self.error = self.error or error


class _Loop:
    """A loop that has rings: a process of the trace, whose tracks are tasks."""

    def __init__(self, port: Port, trace: int, number: int) -> None:
        self.port = port
        self.rings = set[int]()  # open ones, by id
        self.answers = 0  # so far
        self._trace = trace
        self._process = native.trace_process(trace, f"event loop {number}")
        self._tracks: dict[int, Track] = {}  # of tasks, by id
        self._watching: dict[int, ref[Any]] = {}  # that say when these are gone
        self._free: dict[str, list[Track]] = {}  # of tasks that are gone, by their names
        self._nobody: Track | None = None
        self._waits = False  # for it to answer
        self._is_gone = False

    # -- how late it is --

    def ask(self) -> None:
        """Have it answer, unless it has not yet; in the trace's thread."""
        if self.rings and not self._waits and not self._is_gone:
            self._waits = True
            self._is_gone = not self.port.post(partial(self._answer, time.perf_counter()))

    def _answer(self, asked: float) -> None:
        native.trace_lag(self._trace, self._process, time.perf_counter() - asked)
        self.answers += 1
        self._waits = False

    # -- its tasks --

    def track_of(self, task: Any) -> Track:
        """Where a task is drawn; on the loop."""
        if task is None:
            if self._nobody is None:
                self._nobody = self._new("no task")
            return self._nobody
        track = self._tracks.get(id(task))
        return self._add(task) if track is None else track

    def _add(self, task: Any) -> Track:
        name = self.port.name_of(task)
        if name.startswith("Task-") or (name not in self._free and len(self._free) >= MOST_NAMES):
            name = "a task"  # nobody named it
        free = self._free.setdefault(name, [])
        track = free.pop() if free else self._new(name)
        key = id(task)
        self._watching[key] = ref(task, partial(self._let_go, free, key))
        self._tracks[key] = track
        return track

    def _let_go(self, free: list[Track], key: int, task: ref[Any]) -> None:
        del self._watching[key]
        free.append(self._tracks.pop(key))

    def _new(self, name: str) -> Track:
        return native.trace_track(self._trace, self._process, json.dumps(name[:TITLE])[1:-1])


def _stop_in_child() -> None:
    """A forked child has the parent's file, and nobody that writes to it."""
    probe.tracer = None
    native.trace_end()
    native.trace_forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_stop_in_child)

_: Callable[[Trace], probe.Tracer] = lambda trace: trace  # for type checkers  # noqa: E731
