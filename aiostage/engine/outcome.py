"""What somebody waits for."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Generic, TypeVar

T = TypeVar("T")


class Outcome(Generic[T]):
    """A value or an error, told once to everybody who waits: callbacks, then tasks (`waiting.outcome`).

    An error may follow a value, for those who ask later: what was submitted well may be on a device that is lost since.
    """

    __slots__ = ("_callbacks", "error", "event", "value")

    def __init__(self) -> None:
        self.value: T | None = None
        self.error: Exception | None = None
        self.event: Any = None  # made by the first task that waits
        self._callbacks: list[Callable[[Outcome[T]], object]] = []

    @property
    def is_over(self) -> bool:
        return self.value is not None or self.error is not None

    def then(self, callback: Callable[[Outcome[T]], object]) -> None:
        """Call `callback` with this when it is over; at once if it is."""
        if self.is_over:
            callback(self)
        else:
            self._callbacks.append(callback)

    def end(self, value: T | None = None, error: Exception | None = None) -> None:
        """It is over, and everybody who waits hears of it."""
        if self.value is None:
            self.value = value
        if self.error is None:
            self.error = error
        if self.event is not None:
            self.event.set()
        callbacks, self._callbacks = self._callbacks, []
        for callback in callbacks:
            callback(self)
