"""What the policy decides, without a loop, a GPU or a thread.

Memory is drawn: each letter is four bytes of a place that is over, or "*" of one that somebody still writes to; "." is
free, and "|" stands between buffers. What departed, and has not come back, is drawn as "-".
"""

from __future__ import annotations

from itertools import count
from typing import Any

import numpy as np
import pytest

from aiostage.data.copies import BufferCopy
from aiostage.engine import buffer as buffer_module
from aiostage.engine.buffer import Place, Shelf, StagingBuffer, State
from aiostage.engine.lanes import Lane
from aiostage.engine.line import Line, Waiter
from aiostage.engine.policy import Go, Stay, next_served, place_for, way_for, who_holds_what


class Memory:
    """Buffers of eight letters each, and what is in them."""

    def __init__(self, buffers: int = 3) -> None:
        self.shelf = Shelf()
        self.memories = [np.zeros(32, np.uint8) for _ in range(buffers)]
        for index in range(buffers):
            self.shelf.add(object(), 32)
            self.come_back(index)
        self.lane = Lane()
        self.letters = map(chr, count(ord("a")))
        self.places: list[tuple[str, Place]] = []

    def __getitem__(self, index: int) -> StagingBuffer:
        return self.shelf.all[index]

    def come_back(self, index: int) -> None:
        self[index].come_back(self.memories[index].ctypes.data)

    def act(self, take: Any, letters: int, lane: Lane | None = None) -> Place | None:
        """Take the place, as the engine does."""
        if take is None:
            return None
        buffer, offset = take
        if buffer.phase is State.FREE:
            self.shelf.point_at(buffer)
            (lane or self.lane).begin(buffer)
        buffer.reserve(offset, 4 * letters)
        place = Place(buffer, offset, 4 * letters)
        self.places.append((next(self.letters), place))
        return place

    def take(self, letters: int, lane: Lane | None = None, alignment: int = 4) -> Place | None:
        return self.act(place_for(self.shelf, lane or self.lane, 4 * letters, alignment), letters, lane)

    def fill(self, letters: int, target: Any = None, lane: Lane | None = None) -> Place:
        """A place that is over, with a copy to `target` (by default one of its own)."""
        place = self.take(letters, lane)
        assert place is not None
        place.end()
        (lane or self.lane).stage(BufferCopy(place.buffer, place.offset, target or object(), 0, place.size))
        return place

    def open(self, letters: int, name: str = "somebody", lane: Lane | None = None) -> Place:
        """A place that a user has."""
        place = self.take(letters, lane)
        assert place is not None
        place.give_to(None, name)
        return place

    def depart(self, *indices: int) -> None:
        buffers = [self[index] for index in indices]
        self.lane.take(buffers)
        for buffer in buffers:
            buffer.seal()
            self.shelf.point_past(buffer)
            buffer.leave()

    def __str__(self) -> str:
        drawn = []
        for buffer in self.shelf.all:
            letters = ["-" if buffer.phase in (State.DEPARTING, State.AWAY) else "."] * 8
            for letter, place in self.places:
                if buffer.load is place.load and buffer.phase in (State.FILLING, State.CLOSED):
                    letters[place.offset // 4 : (place.offset + place.size) // 4] = (place.size // 4) * (
                        letter if place.is_over else "*"
                    )
            drawn.append("".join(letters))
        return "|".join(drawn)


@pytest.fixture
def memory() -> Memory:
    return Memory()


# -- where a place comes from --


def test_places_lie_one_behind_the_other(memory: Memory) -> None:
    memory.fill(3)
    memory.fill(2)
    assert str(memory) == "aaabb...|........|........"


def test_places_begin_where_their_alignment_says(memory: Memory) -> None:
    memory.fill(1)
    memory.take(1, alignment=16)
    assert str(memory) == "a...*...|........|........"


def test_what_does_not_fit_begins_the_next_buffer(memory: Memory) -> None:
    memory.fill(6)
    memory.fill(4)
    assert str(memory) == "aaaaaa..|bbbb....|........"


def test_the_gap_that_it_leaves_is_used_when_no_buffer_is_free(memory: Memory) -> None:
    for _ in range(3):
        memory.fill(6)
    memory.fill(2)  # in the last
    memory.fill(2)  # in the one before it
    assert str(memory) == "aaaaaa..|bbbbbbee|ccccccdd"
    assert memory.take(3) is None


def test_buffers_are_taken_in_ring_order(memory: Memory) -> None:
    order = []
    for _ in range(7):
        order.append(memory.fill(8).buffer.index)
        memory.depart(order[-1])
        memory.come_back(order[-1])
    assert order == [0, 1, 2, 0, 1, 2, 0]


def test_one_that_is_not_back_yet_is_passed_by(memory: Memory) -> None:
    memory.fill(8)
    memory.fill(8)
    memory.depart(0, 1)
    memory.come_back(1)
    memory.fill(8)
    assert str(memory) == "--------|........|cccccccc"
    memory.depart(2)
    memory.fill(8)
    assert str(memory) == "--------|dddddddd|--------"
    assert memory.take(1) is None


def test_a_closed_buffer_takes_no_more(memory: Memory) -> None:
    memory.fill(2)
    memory[0].close()
    memory.fill(2)
    assert str(memory) == "aa......|bb......|........"


def test_lanes_do_not_share_a_buffer(memory: Memory) -> None:
    batch = Lane(ends=True)
    memory.fill(2)
    memory.fill(2, lane=batch)
    memory.fill(2)
    assert str(memory) == "aacc....|bb......|........"


def test_young_allocations_share_a_buffer(memory: Memory) -> None:
    memory.open(2)
    memory.open(2)
    assert str(memory) == "****....|........|........"


def test_nobody_shares_with_one_that_has_been_open_for_long_while_a_buffer_is_free(
    memory: Memory, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(buffer_module, "PATIENCE", -1.0)
    memory.open(2)
    memory.fill(2)
    assert str(memory) == "**......|bb......|........"
    memory.open(8)
    memory.fill(2)  # in the youngest with room
    assert str(memory) == "**......|bbdd....|********"


# -- the line --


def test_the_first_in_the_line_is_served_first() -> None:
    memory, line = Memory(1), Line()
    first, second = Waiter(memory.lane, 16, 4), Waiter(memory.lane, 4, 4)
    for waiter in (first, second):
        line.join(waiter)
    served = next_served(memory.shelf, line)
    assert served == (first, (memory[0], 0))


def test_one_who_wants_less_does_not_go_ahead() -> None:
    memory, line = Memory(1), Line()
    memory.open(6)
    first, second = Waiter(memory.lane, 16, 4), Waiter(memory.lane, 4, 4)
    for waiter in (first, second):
        line.join(waiter)
    assert next_served(memory.shelf, line) is None
    assert line.leave(first)
    assert next_served(memory.shelf, line) == (second, (memory[0], 24))
    assert not line.leave(first)


def test_nobody_is_served_in_an_empty_line(memory: Memory) -> None:
    assert next_served(memory.shelf, Line()) is None


# -- what departs --


def test_what_nobody_writes_to_departs_early(memory: Memory) -> None:
    memory.fill(8)
    memory.fill(6)
    memory.open(2)
    assert memory.lane.ready() == [memory[0]]


def test_no_copy_overtakes_an_earlier_one_to_the_same_destination(memory: Memory) -> None:
    target = object()
    memory.fill(6, target)
    memory.open(2)
    memory.fill(4, target)
    memory.fill(4)
    memory.fill(8)
    assert str(memory) == "aaaaaa**|ccccdddd|eeeeeeee"
    assert memory.lane.ready() == [memory[2]]


def test_what_stays_behind_holds_back_what_comes_after_it_in_turn(memory: Memory) -> None:
    """The first copy of a buffer that stays is found on a second look."""
    one, other = object(), object()
    memory.fill(4, one)
    late = memory.open(4)  # beside it, and committed after what lies in the next buffer
    memory.fill(4, other)
    memory.open(4)
    late.end()
    memory.lane.stage(BufferCopy(late.buffer, late.offset, other, 0, late.size))
    memory.fill(8, one)
    assert str(memory) == "aaaabbbb|cccc****|eeeeeeee"
    assert memory.lane.ready() == []


def test_nothing_departs_that_holds_nothing(memory: Memory) -> None:
    place = memory.open(2)
    place.end()
    place.load.used = 0  # given up
    assert memory.lane.ready() == []


# -- making way for a submit --


def test_what_nobody_writes_beside_may_go_at_once(memory: Memory) -> None:
    memory.fill(8)
    assert way_for(memory.shelf, memory.lane, set(memory.lane.copies)) == Go([memory[0]])


def test_copies_beside_an_open_allocation_move_to_a_free_buffer(memory: Memory) -> None:
    memory.fill(2)
    memory.open(2, "the slow producer")
    way = way_for(memory.shelf, memory.lane, set(memory.lane.copies))
    assert way == Stay(close=[memory[0]], target=memory[1])


def test_without_a_free_buffer_they_wait_and_the_buffer_takes_no_more() -> None:
    memory = Memory(1)
    memory.fill(2)
    memory.open(2)
    assert way_for(memory.shelf, memory.lane, set(memory.lane.copies)) == Stay(close=[memory[0]], target=None)


def test_they_wait_for_a_place_that_a_thread_fills(memory: Memory) -> None:
    memory.fill(2)
    memory.take(2)
    assert way_for(memory.shelf, memory.lane, set(memory.lane.copies)) == Stay(close=[memory[0]], target=None)


def test_who_submits_nothing_waits_for_nobody(memory: Memory) -> None:
    memory.open(2)
    assert way_for(memory.shelf, memory.lane, set()) == Go([])


def test_deciding_changes_nothing(memory: Memory) -> None:
    memory.fill(2)
    memory.open(2)
    before = str(memory), memory.shelf.cursor, [buffer.phase for buffer in memory.shelf.all]
    for _ in range(2):
        place_for(memory.shelf, memory.lane, 8, 4)
        way_for(memory.shelf, memory.lane, set(memory.lane.copies))
        who_holds_what(memory.shelf, 0.0)
    assert before == (str(memory), memory.shelf.cursor, [buffer.phase for buffer in memory.shelf.all])


# -- who holds what --


def test_a_ring_that_only_users_can_move_says_who_holds_what() -> None:
    memory = Memory(2)
    memory.open(8, "load tiles")
    memory.open(8, "Task-7")
    said = who_holds_what(memory.shelf, 0.0)
    assert said is not None
    assert said[0].startswith("buffer 0: load tiles holds 32 bytes for 0.")
    assert said[1].startswith("buffer 1: Task-7 holds 32 bytes")


def test_allocations_that_only_take_turns_hold_nobody_up() -> None:
    memory = Memory(2)
    memory.open(8)
    memory.open(8)
    assert who_holds_what(memory.shelf, 60.0) is None


def test_one_that_the_gpu_has_may_come_back(memory: Memory) -> None:
    memory.open(8)
    memory.open(8)
    memory.fill(8)
    memory.depart(2)
    assert who_holds_what(memory.shelf, 0.0) is None


def test_so_may_one_that_a_thread_fills() -> None:
    memory = Memory(2)
    memory.open(8)
    memory.take(8)
    assert who_holds_what(memory.shelf, 0.0) is None


# -- places and states --


def test_a_place_ends_once(memory: Memory) -> None:
    for place in (memory.open(2), memory.take(2)):
        assert place is not None
        assert memory[0].load.is_busy
        assert place.end()
        assert not place.end()
    assert not memory[0].load.is_busy


def test_a_buffer_goes_through_its_states(memory: Memory) -> None:
    buffer, seen = memory[0], [memory[0].phase]
    steps = (
        lambda: memory.lane.begin(buffer),
        buffer.close,
        lambda: (memory.lane.take([buffer]), buffer.seal()),
        buffer.leave,
        lambda: memory.come_back(0),
    )
    for step in steps:
        step()
        seen.append(buffer.phase)
        assert [b for b in memory.shelf.all if b in memory.shelf.of[buffer.phase]].count(buffer) == 1
        assert sum(len(of) for of in memory.shelf.of.values()) == 3
    assert seen == [State.FREE, State.FILLING, State.CLOSED, State.DEPARTING, State.AWAY, State.FREE]


def test_it_may_be_back_before_the_loop_hears_that_it_left(memory: Memory) -> None:
    memory.fill(8)
    memory.lane.take([memory[0]])
    memory[0].seal()
    memory.come_back(0)
    memory[0].leave()
    assert memory[0].phase is State.FREE
