"""Staging buffers that one upload has to itself: a worker thread fills them and sends them off, without the loop."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from functools import partial
from typing import NamedTuple, Protocol

from .copies import Copy
from .errors import DeviceLost
from .fences import Fence, FenceTracker
from .lanes import StagingBuffer, Submission, Trip
from .loop import LoopPort
from .workers import Workers


class Sender(Protocol):
    """The ring, as couriers see it."""

    def _execute_carried(self, submission: Submission) -> None:
        """Make the submission; from any thread. What it raises has become of it."""

    def _delivered(self, submission: Submission) -> None:
        """On the loop: it was made, or failed."""

    def _returned(self, parcel: Parcel, error: BaseException) -> None:
        """On the loop: a buffer could not be filled."""


class Parcel(NamedTuple):
    """A staging buffer in the hands of a courier."""

    sender: Sender
    buffer: StagingBuffer
    trip: Trip
    copy: Copy


class Couriers:
    """Fill, seal, submit: what the loop would do in three turns for each buffer, in one go of the thread that copies.

    Buffers that are filled while another thread is making a submit go with the next one. So under load many share a
    submit, and no thread waits for the queue while there is something to copy.
    """

    def __init__(self, workers: Workers, port: LoopPort, tracker: FenceTracker) -> None:
        self._workers = workers
        self._port = port
        self._tracker = tracker
        self._filled: deque[Parcel] = deque()
        self._turn = threading.Lock()  # held by the thread that submits

    def send(self, parcel: Parcel, fill: Callable[[], object]) -> None:
        """Have a thread `fill` the buffer and submit its copy."""
        self._workers.start(partial(self._carry, parcel, fill), None, parcel.copy.nbytes)

    def _carry(self, parcel: Parcel, fill: Callable[[], object]) -> None:
        try:
            fill()
        except BaseException as error:  # whoever waits for the upload gets it
            self._port.post(partial(parcel.sender._returned, parcel, error))
            return
        self._filled.append(parcel)
        # Looked at once more after each turn: what came while the lock was held was left to its holder.
        while self._filled and self._turn.acquire(blocking=False):
            try:
                self._submit([self._filled.popleft() for _ in range(len(self._filled))])
            finally:
                self._turn.release()

    def _submit(self, parcels: list[Parcel]) -> None:
        if not parcels:  # another thread had them in the meantime
            return
        sender = parcels[0].sender
        copies = [parcel.copy for parcel in parcels]
        submission = Submission([parcel.buffer for parcel in parcels], copies, (), Fence(self._tracker))
        try:
            sender._execute_carried(submission)
        except BaseException as error:
            submission.error = DeviceLost(f"the submit failed: {error!r}")
        self._port.post(partial(sender._delivered, submission))
