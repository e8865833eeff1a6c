"""The order of writes to one destination, where one of them arrives long after it was begun."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from .outcome import Outcome

_COME: Outcome[bool] = Outcome()
_COME.end(True)


class Turn(Outcome[bool]):
    """A write's place in the order; over when it can be overtaken no more. Left as a `with` block."""

    __slots__ = ("_left", "_turns", "come", "destination", "is_atomic")

    def __init__(self, turns: Turns, destination: Any, is_atomic: bool) -> None:
        super().__init__()
        self._turns, self.destination, self.is_atomic = turns, destination, is_atomic
        self._left = 0
        self.come = _COME
        """Over when all that it must not overtake is; it never fails."""

    def wait_for(self, others: Iterable[Outcome[Any]]) -> None:
        """Not to come before these are over."""
        earlier = list(others)
        if earlier:
            self._left, self.come = len(earlier), Outcome()
        for other in earlier:
            other.then(self._one_less)

    def _one_less(self, _: object) -> None:
        self._left -= 1
        if not self._left:
            self.come.end(True)

    def __enter__(self) -> Turn:
        return self

    def __exit__(self, *exc_info: object) -> None:
        self._turns.leave(self)
        self.end(True)


class Turns:
    """The writes of a ring that are under way and in no queue that keeps their order."""

    def __init__(self) -> None:
        self._of: dict[int, list[Turn]] = {}  # by the destination's id, oldest first
        self.atomic = 0
        """How many of them are atomic: without any, nobody waits."""

    def take(self, destination: Any) -> Turn:
        """The next, for a write that arrives as it goes: it waits for atomic ones alone, since others keep theirs."""
        turn = Turn(self, destination, is_atomic=False)
        earlier = self._of.setdefault(id(destination), [])
        if self.atomic:
            turn.wait_for([other for other in earlier if other.is_atomic])
        earlier.append(turn)
        return turn

    def take_atomic(self, destination: Any, others: Iterable[Outcome[Any]]) -> Turn:
        """The next, for a write that arrives at its end: after all that was begun before, and after `others`."""
        turn = Turn(self, destination, is_atomic=True)
        earlier = self._of.setdefault(id(destination), [])
        turn.wait_for([*earlier, *others])
        earlier.append(turn)
        self.atomic += 1
        return turn

    def leave(self, turn: Turn) -> None:
        """It is over."""
        others = self._of[id(turn.destination)]
        others.remove(turn)
        if not others:
            del self._of[id(turn.destination)]
        self.atomic -= turn.is_atomic
