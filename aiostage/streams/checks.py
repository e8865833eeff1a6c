"""What is said at once of arguments that are wrong, and the size of data."""

from __future__ import annotations

from typing import Any


def positive(value: Any, name: str) -> int:
    """:raises ValueError: it is no positive whole number."""
    if isinstance(value, bool) or not isinstance(value, int) or value <= 0:
        raise ValueError(f"{name} must be a positive whole number, not {value!r}")
    return value


def ordered(priority: float) -> float:
    """:raises ValueError: it is no number, or none that has an order."""
    try:
        if priority <= 0 or priority > 0:
            return priority
    except TypeError:
        pass
    raise ValueError(f"a priority is a number, not {priority!r}")


def size_of(data: Any, otherwise: int = 0) -> int:
    """The bytes of data, as far as can be told without making them. What is no data the ring will say."""
    if type(data) is bytes:
        return len(data)
    try:
        return int(data.nbytes)
    except (AttributeError, TypeError):
        pass
    try:
        return memoryview(data).nbytes
    except (TypeError, ValueError, BufferError):
        return otherwise
