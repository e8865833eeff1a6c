"""Copy threads that wait until the test lets them copy."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from typing import Any
from weakref import ref

import pytest
from simulated import SimulatedGpu

from aiostage import native
from aiostage.carrier.carrier import Carrier


class _Watched(Carrier):
    """Tells its device that it is there."""

    def __init__(self, device: Any, port: Any, reached: Any, lost: Any) -> None:
        super().__init__(device, port, reached, lost)
        self.port = port
        if isinstance(device, HeldCopies):
            device.carriers.append(ref(self))


class HeldCopies(SimulatedGpu):
    """A simulated GPU whose carrier copies only while `may_copy` is set; the rest goes on by itself."""

    is_stepped = True

    def __init__(self, **options: Any) -> None:
        super().__init__(**options)
        self.may_copy = threading.Event()
        self.carriers: list[Any] = []
        self.ended = threading.Event()
        self.thread = threading.Thread(target=self._run, daemon=True)
        self.thread.start()

    def _run(self) -> None:
        while not self.ended.is_set():
            for found in list(self.carriers):
                carrier = found()
                if carrier is None:
                    continue
                if self.may_copy.is_set():
                    carrier.step(native.COPY)
                    carrier.step(native.PIECE)
                carrier.step(native.DEPART)
                carrier.step(native.POLL)
                carrier.port.post(carrier.hear)
                del carrier
            time.sleep(0.0005)


@pytest.fixture
def held(monkeypatch: pytest.MonkeyPatch) -> Iterator[HeldCopies]:
    """A GPU whose copy threads are held."""
    monkeypatch.setattr("aiostage.carrier.timeline.Carrier", _Watched)
    gpu = HeldCopies()
    yield gpu
    gpu.may_copy.set()
    gpu.ended.set()
    gpu.thread.join()
