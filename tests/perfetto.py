"""What Chrome's trace format and Perfetto's importer want of the events in aiostage's traces."""

from __future__ import annotations

from collections import defaultdict
from typing import Any

Event = dict[str, Any]
REQUIRED = {
    "X": {"pid", "tid", "ts", "dur", "name"},
    "M": {"pid", "tid", "ts", "name", "args"},
    "s": {"pid", "tid", "ts", "id", "cat", "name"},
    "f": {"pid", "tid", "ts", "id", "cat", "name", "bp"},
    "C": {"pid", "ts", "name", "args"},
}
METADATA = {"process_name", "process_sort_index", "thread_name", "thread_sort_index", "aiostage"}


def nanoseconds(microseconds: float) -> int:
    """Events have three decimals of a microsecond; floats do not add exactly."""
    return round(microseconds * 1000)


def check(events: list[Event], *, is_whole: bool = True) -> None:
    """Raise AssertionError at what is not as it should be. A trace that is not whole may lack slices around flows."""
    for event in events:
        check_keys(event)
    spans = check_nesting(events)
    check_tracks(events, is_whole)
    check_flows(events, spans, is_whole)
    check_counters(events)


def check_keys(event: Event) -> None:
    assert event["ph"] in REQUIRED, event
    assert set(event) - {"ph", "args"} == REQUIRED[event["ph"]] - {"args"}, event
    assert all(isinstance(event[key], int) and event[key] >= 0 for key in ("pid", "tid") if key in event), event
    assert event["ts"] >= 0, event
    assert event.get("dur", 0) >= 0, event
    assert event["ph"] != "M" or event["name"] in METADATA, event
    assert event["ph"] != "f" or event["bp"] == "e", event


def check_nesting(events: list[Event]) -> dict[tuple[int, int], list[tuple[int, int]]]:
    """Slices of a track lie beside or in each other. Returns where they begin and end."""
    spans = defaultdict(list)
    for event in events:
        if event["ph"] == "X":
            begin = nanoseconds(event["ts"])
            spans[event["pid"], event["tid"]].append((begin, begin + nanoseconds(event["dur"])))
    for track, found in spans.items():
        open_until: list[int] = []
        for begin, end in sorted(found, key=lambda span: (span[0], -span[1])):
            while open_until and open_until[-1] <= begin:
                open_until.pop()
            assert not open_until or end <= open_until[-1], f"a slice of {track} at {begin} ns juts out"
            open_until.append(end)
    return spans


def check_tracks(events: list[Event], is_whole: bool) -> None:
    """Each has a title, and only one."""
    titled = [(event["pid"], event["tid"]) for event in events if event["name"] == "thread_name"]
    assert len(titled) == len(set(titled))
    processes = [event["pid"] for event in events if event["name"] == "process_name"]
    assert len(processes) == len(set(processes))
    assert not {tid for _, tid in titled} & set(processes)  # or it would be taken for that process's main thread
    if is_whole:
        assert {(event["pid"], event["tid"]) for event in events if event["ph"] in "Xsf"} <= set(titled)
        assert {event["pid"] for event in events if event["ph"] != "M"} <= set(processes)


def check_flows(events: list[Event], spans: dict[tuple[int, int], list[tuple[int, int]]], is_whole: bool) -> None:
    """Each has two ends, in that order, and each of them a slice that it is in."""
    ends: dict[Any, list[Event]] = defaultdict(list)
    for event in events:
        if event["ph"] in "sf":
            ends[event["cat"], event["name"], event["id"]].append(event)
    for key, found in ends.items():
        assert [event["ph"] for event in found] == ["s", "f"], key
        assert found[0]["ts"] <= found[1]["ts"], key
        for event in found if is_whole else ():
            at = nanoseconds(event["ts"])
            assert any(begin <= at < end for begin, end in spans[event["pid"], event["tid"]]), event


def check_counters(events: list[Event]) -> None:
    """Their time goes on; their values are numbers."""
    last: dict[Any, float] = {}
    for event in events:
        if event["ph"] == "C":
            key = event["pid"], event["name"]
            assert event["ts"] >= last.get(key, 0), event
            assert all(value >= 0 for value in event["args"].values()), event
            last[key] = event["ts"]


# -- what tests ask --


def slices(events: list[Event], name: str | None = None, track: str | None = None) -> list[Event]:
    """Those of a name, or of tracks with a title, as they begin."""
    titles = titles_of(events)
    found = [
        event
        for event in events
        if event["ph"] == "X"
        and name in (None, event["name"])
        and track in (None, titles.get((event["pid"], event["tid"])))
    ]
    return sorted(found, key=lambda event: event["ts"])


def flows(events: list[Event], name: str) -> list[tuple[Event, Event]]:
    starts = {event["id"]: event for event in events if event["ph"] == "s" and event["name"] == name}
    return [(starts[event["id"]], event) for event in events if event["ph"] == "f" and event["name"] == name]


def titles_of(events: list[Event]) -> dict[tuple[int, int], str]:
    return {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}


def around(events: list[Event], end: Event) -> Event:
    """The innermost slice that an end of a flow is in."""
    at = nanoseconds(end["ts"])
    found = [
        event
        for event in slices(events)
        if (event["pid"], event["tid"]) == (end["pid"], end["tid"])
        and nanoseconds(event["ts"]) <= at < nanoseconds(event["ts"]) + nanoseconds(event["dur"])
    ]
    return found[-1]
