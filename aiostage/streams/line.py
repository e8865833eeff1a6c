"""The line of uploads that wait: the most urgent is next, and nobody is passed over for ever."""

from __future__ import annotations

from collections.abc import Sequence
from heapq import heapify, heappop, heappush
from typing import Any, Generic, TypeVar

_SLACK = 64  # entries that a heap may hold in vain


class Waiting:
    """Who may wait in a line."""

    __slots__ = ("line", "nbytes", "number", "urgency")

    number: int
    """In the order of queueing."""
    nbytes: int
    urgency: float
    """The negative of its priority."""
    line: Line[Any] | None
    """Where it waits."""


W = TypeVar("W", bound=Waiting)


class Line(Generic[W]):
    """Two heaps of the same uploads, by urgency and by age. Who leaves or changes leaves his entries behind: they are
    dropped when they come up, or when they are more than half. They are numbers alone, and keep no upload alive.

    :param aging: how often in a row the oldest may be passed over; None: for ever.
    """

    def __init__(self, aging: int | None) -> None:
        self._aging = aging
        self._passed = 0  # takes since one of the oldest
        self._uploads: dict[int, W] = {}  # by number
        self._urgent: list[tuple[float, int]] = []  # (urgency, number); of somebody else, if his urgency is another
        self._aged: list[int] = []  # numbers
        self.nbytes = 0

    @property
    def count(self) -> int:
        """How many wait."""
        return len(self._uploads)

    def add(self, upload: W) -> None:
        """Have it wait here. Its size must not change while it does."""
        number = upload.number
        self._uploads[number] = upload
        self.nbytes += upload.nbytes
        upload.line = self
        heappush(self._aged, number)
        heappush(self._urgent, (upload.urgency, number))

    def rank(self, upload: W) -> None:
        """Its urgency is another one."""
        heappush(self._urgent, (upload.urgency, upload.number))
        if len(self._urgent) > 2 * len(self._uploads) + _SLACK:
            self._tidy()

    def remove(self, upload: W) -> None:
        """It waits no more."""
        del self._uploads[upload.number]
        self.nbytes -= upload.nbytes
        upload.line = None
        if len(self._aged) > 2 * len(self._uploads) + _SLACK:
            self._tidy()

    def take(self, upload: W) -> None:
        """Its turn has come."""
        if upload is self.oldest():
            self._passed = 0
        else:
            self.pass_over()
        self.remove(upload)

    def pass_over(self) -> None:
        """Somebody else's turn has come."""
        self._passed += 1

    @property
    def is_overdue(self) -> bool:
        """Whether the oldest is next, however urgent others are."""
        return self._aging is not None and self._passed >= self._aging

    def next(self) -> W | None:
        """Who is next."""
        return self.oldest() if self.is_overdue else self.most_urgent()

    def most_urgent(self) -> W | None:
        """Of those that are as urgent, the oldest."""
        heap = self._urgent
        while heap:
            urgency, number = heap[0]
            if (upload := self._uploads.get(number)) is not None and upload.urgency == urgency:
                return upload
            heappop(heap)
        return None

    def oldest(self) -> W | None:
        """The one that was queued first."""
        heap = self._aged
        while heap:
            if (upload := self._uploads.get(heap[0])) is not None:
                return upload
            heappop(heap)
        return None

    def clear(self) -> list[W]:
        """Empty it; returns who waited."""
        uploads = list(self._uploads.values())
        for upload in uploads:
            self.remove(upload)
        return uploads

    def _tidy(self) -> None:
        self._aged = sorted(self._uploads)
        self._urgent = [(upload.urgency, number) for number, upload in self._uploads.items()]
        heapify(self._urgent)


def next_of(lines: Sequence[Line[W]]) -> W | None:
    """Who is next, if several lines are served as one."""
    overdue = [upload for line in lines if line.is_overdue and (upload := line.oldest()) is not None]
    if overdue:
        return min(overdue, key=lambda upload: upload.number)
    urgent = [upload for line in lines if (upload := line.most_urgent()) is not None]
    return min(urgent, key=lambda upload: (upload.urgency, upload.number), default=None)


def take_of(lines: Sequence[Line[W]], upload: W) -> None:
    """Its turn has come, before all others in these lines."""
    for line in lines:
        if line is upload.line:
            continue
        line.pass_over()
    assert upload.line is not None
    upload.line.take(upload)
