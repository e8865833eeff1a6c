"""What those who look are told: the state of every open ring, asked of each on its own loop.

A question is posted to a ring's loop, and its answer is there the next time. A loop that does not turn gets no second
one; how long it has not answered is part of the sample.
"""

from __future__ import annotations

import threading
import time
from dataclasses import asdict
from functools import partial
from typing import Any
from weakref import ref

from .. import opened
from ..errors import StagingError
from ..opened import Opened

SCHEMA = 1
_NAMES = 8
"""Of those who wait and hold, and advice: how many are told of."""
_ADVISE = 1.0
"""Seconds between two looks for advice."""


class Sampler:
    """Asks all rings, and keeps what it needs of each."""

    def __init__(self) -> None:
        self._began = time.perf_counter()
        self._watched: dict[int, _Watched] = {}

    def begin(self) -> None:
        """Ask for the first time since nobody looked any more: what was answered then is of no use."""
        for watched in self._watched.values():
            watched.forget()
        self.ask()

    def ask(self) -> None:
        """Have every ring answer soon."""
        rings = opened.rings()
        self._watched = {one.number: self._watched.get(one.number) or _Watched(one) for one in rings}
        for watched in self._watched.values():
            watched.ask()

    def sample(self) -> dict[str, Any]:
        """What they have answered: the line's content."""
        at = time.perf_counter()
        rings = [said for watched in self._watched.values() if (said := watched.said(at)) is not None]
        return {"kind": "sample", "time": round(at - self._began, 6), "rings": rings}


class _Watched:
    """One ring. `_look` runs on its loop, everything else in the thread that serves."""

    def __init__(self, one: Opened) -> None:
        self._ring, self._port = ref(one.ring), ref(one.port)  # for nobody may look for long
        self._asked_at: float | None = None  # while there is no answer
        self._answer: dict[str, Any] | None = None  # until it is told
        self._advised_at = 0.0
        self._advice: list[dict[str, Any]] = []
        self._facts = {"ring": one.number, "device": _device(one.ring), "host_cached": one.ring.host_cached}

    def forget(self) -> None:
        self._answer = None

    def ask(self) -> None:
        if self._asked_at is None and self._answer is None:  # one that came too late for its sample is in the next
            self._asked_at = time.perf_counter()
            port = self._port()
            if port is None or not port.post(partial(self._look, self._asked_at)):
                self._asked_at = None
                self._answer = {"error": "its event loop has ended"}

    def said(self, now: float) -> dict[str, Any] | None:
        """Its part of the sample; None: it was closed meanwhile."""
        asked_at, answer = self._asked_at, self._answer
        said: dict[str, Any] = self._facts | {"thread": None, "lag": None, "late": 0.0, "error": None, "stats": None}
        said |= {"waits": [], "holds": [], "advice": self._advice}
        if asked_at is not None:
            return said | {"late": round(now - asked_at, 6)}
        if answer is None:
            return None
        self._answer = None
        if "stats" in answer:
            stats, waits, holds = answer["stats"], answer["waits"], answer["holds"]
            answer = answer | {"stats": stats.as_dict(), "waits": _plain(waits), "holds": _plain(holds)}
        return said | answer

    def _look(self, asked_at: float) -> None:
        """On the loop: as little as can be, and nothing that it would hear of."""
        try:
            ring = self._ring()
            if ring is not None:
                self._answer = self._answer_of(ring, time.perf_counter() - asked_at)
        except Exception as error:
            self._answer = {"error": f"{type(error).__name__}: {error}"}
        finally:
            self._asked_at = None

    def _answer_of(self, ring: Any, lag: float) -> dict[str, Any]:
        answer = {"thread": threading.current_thread().name, "lag": round(lag, 6)}
        answer |= {"stats": ring.stats_nowait(), "waits": ring.waits(_NAMES), "holds": ring.holds(_NAMES)}
        try:
            ring.check()
            if time.perf_counter() - self._advised_at > _ADVISE:
                self._advice = _plain(ring.advise()[:_NAMES])
                self._advised_at = time.perf_counter()
        except StagingError as error:  # it is lost, or is being closed
            self._advice = []
            answer["error"] = f"{type(error).__name__}: {error}"
        return answer


def _plain(found: Any) -> list[dict[str, Any]]:
    return [asdict(one) for one in found]


def _device(ring: Any) -> str:
    """What it is called; another thing than wgpu's may have no name."""
    try:
        return str(ring.device.adapter.info["device"])
    except (AttributeError, LookupError, TypeError):
        return ""
