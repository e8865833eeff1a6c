"""What a notebook shows of the library's objects: HTML, drawn from plain values. All that is HTML in here is here.

Pages have a light theme or a dark one, and an output does not know which. So ink is `currentColor`, the page's own,
fainter where it matters less, and the colours of states are told from white and from black. Each number is a `<data>`
element, whose value is exact where its text is rounded.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from html import escape
from logging import DEBUG
from typing import Any

from .budget import size_text
from .events import report

Row = tuple[str, str]
"""The name of a row, and the HTML of what it says."""

_WIDTH, _HEIGHT, _GAP = 480, 26, 3  # of a bar, in CSS pixels
_WIDEST = 600  # of all there is to an object
_MOST_CELLS = 64
"""Buffers that have a cell each in a bar; more have one for each state."""
_LINE_HEIGHT = 36
_EDGE = 'stroke="currentColor" stroke-opacity=".45"'

_STATES = {
    "available": ("available", "none"),
    "in_use": ("in use", "#3d85d1"),
    "fenced": ("fenced", "#d98b1f"),
}
"""By the name of a `BufferState`: what it is called, and its colour."""


def bundle(text: str, draw: Callable[[], str]) -> dict[str, str]:
    """What IPython asks an object for: its text, and HTML beside it, or the text alone where drawing fails."""
    try:
        return {"text/plain": text, "text/html": draw()}
    except Exception as error:  # a look at something must not be what fails
        report(DEBUG, "not_drawn", f"{text} was not drawn", error)
        return {"text/plain": text}


# -- one function for each kind of object --


def ring(title: str, state: str, stats: Mapping[str, Any] | None, is_host_cached: bool | None) -> str:
    """A `StagingRing`: `stats` are the fields of its `StagingStats`, None where they cannot be read here."""
    words = [
        state if is_host_cached is None else f"{state}, {'host-cached' if is_host_cached else 'write-only'} memory"
    ]
    if stats is None:
        return _box(_headline(title, *words, "its event loop runs in another thread, so no counts are shown here"))
    return _box(_headline(title, *words), *_counts(stats))


def statistics(stats: Mapping[str, Any]) -> str:
    """A `StagingStats`, given by its fields."""
    return _box(_headline("StagingStats"), *_counts(stats))


def fence(value: int, state: str, elapsed: float, error: object = None) -> str:
    """A `Fence`: "pending", "done" or "lost", after so many seconds."""
    rows = [("value", _number(value)), ("state", escape(state)), ("after", _milliseconds(elapsed))]
    if error is not None:
        rows.append(("because", escape(str(error))))
    return _box(_headline("Fence"), _table(rows))


def advice(kind: str, ring_count: int, buffer_size: int, message: str) -> str:
    """An `Advice`."""
    rows = [("settings", _buffers(ring_count, buffer_size)), ("why", escape(message))]
    return _box(_headline("Advice", kind), _table(rows))


def live(state: str, stats: Mapping[str, Any], rates: Sequence[float], lag: float, stalls: int) -> str:
    """The live view of a ring.

    :param rates: throughput in bytes per second, the newest last.
    :param lag: seconds that the event loop was late at most, since the view was drawn before.
    :param stalls: suspensions since then.
    """
    rate = rates[-1] if rates else 0.0
    rows = [
        ("throughput", f"{_data(f'{rate:.0f}', rate_text(rate))} {_line(rates)}"),
        (
            "stalls",
            f"{_number(stats['buffer_stalls'])}, {_number(stalls)} of them since the last look; {_waiting(stats)}",
        ),
        ("loop lag", _milliseconds(lag)),
        ("uploaded", _size(stats["bytes_total"])),
    ]
    if stats["buffer_states"]:
        rows.append(("in flight", _size(stats["bytes_in_flight"])))
    return _box(_headline("StagingRing", state), _bar(stats), _legend(stats), _table(rows))


# -- what they have in common --


def _counts(stats: Mapping[str, Any]) -> Iterable[str]:
    yield _bar(stats)
    yield _legend(stats)
    is_open = bool(stats["buffer_states"])
    rows = [
        (
            "uploaded",
            f"{_size(stats['bytes_total'])} in {_number(stats['allocations_total'])} allocations, "
            f"{_number(stats['submits'])} submits",
        ),
        (
            "stalls",
            f"{_number(stats['buffer_stalls'])}, {_seconds(stats['stall_seconds'])} together; {_waiting(stats)}",
        ),
        ("peak", f"{_size(stats['peak_demand'])} wanted, {_number(stats['peak_buffers'])} buffers used at a time"),
    ]
    if is_open:
        rows += [
            ("in flight", _size(stats["bytes_in_flight"])),
            (
                "fences",
                f"{_number(stats['pending_fences'])} pending; {_milliseconds(stats['fence_latency_p50'])} median, "
                f"{_milliseconds(stats['fence_latency_p99'])} at p99",
            ),
            ("budget", f"{_size(stats['budget_used'])} of {_size(stats['budget_limit'])}"),
        ]
    if stats["scratch_bytes"]:
        rows.append(("scratch", f"{_size(stats['scratch_bytes'])} on the device, for atomic uploads"))
    yield _table(rows)


def _waiting(stats: Mapping[str, Any]) -> str:
    return f"{_number(stats['waiters'])} waiting"


def _box(*parts: str) -> str:
    return f'<div class="aiostage" style="line-height:1.5;max-width:{_WIDEST}px">{"".join(parts)}</div>'


def _headline(title: str, *words: str) -> str:
    faint = "".join(f' <span style="opacity:.75">{escape(word)}</span>' for word in words)
    return f'<div style="margin-bottom:4px"><b>{escape(title)}</b>{faint}</div>'


def _table(rows: Iterable[Row]) -> str:
    cell = "text-align:left;vertical-align:top;padding:1px 12px 1px 0;border:0;background:none;color:inherit"
    head = f'<th scope="row" style="{cell};font-weight:normal;opacity:.75;white-space:nowrap">'
    body = "".join(
        f'<tr style="background:none">{head}{name}</th><td style="{cell}">{what}</td></tr>' for name, what in rows
    )
    table = "color:inherit;font:inherit;border:0;border-collapse:collapse;margin:4px 0"
    return f'<table style="{table}"><tbody>{body}</tbody></table>'


# -- pictures --


def _bar(stats: Mapping[str, Any]) -> str:
    """The buffers side by side in ring order, the current one underlined; none of a ring that is closed."""
    states = [str(state) for state in stats["buffer_states"]]
    if not states:
        return ""
    cells = _many_cells(states) if len(states) > _MOST_CELLS else _cells(states, stats)
    words = ", ".join(f"{count} {_STATES[state][0]}" for state, count in _tally(states))
    return (
        f'<svg role="img" aria-label="staging buffers: {words}" width="{_WIDTH}" height="{_HEIGHT + 6}" '
        f'viewBox="0 0 {_WIDTH} {_HEIGHT + 6}" style="display:block;max-width:100%">{"".join(cells)}</svg>'
    )


def _cells(states: Sequence[str], stats: Mapping[str, Any]) -> Iterable[str]:
    """One for each buffer."""
    step = (_WIDTH + _GAP) / len(states)
    for index, state in enumerate(states):
        title = f"buffer {index}, {size_text(stats['buffer_size'])}: {_STATES[state][0]}"
        yield _cell(state, index * step, step - _GAP, title)
        if index == stats["current_ring_index"]:
            yield (
                f'<rect class="current" x="{index * step:.1f}" y="{_HEIGHT + 3}" width="{step - _GAP:.1f}" height="2" '
                'fill="currentColor" opacity=".6"><title>the current buffer</title></rect>'
            )


def _many_cells(states: Sequence[str]) -> Iterable[str]:
    """One for each state, as long as it has buffers."""
    at = 0.0
    for state, count in _tally(states):
        width = _WIDTH * count / len(states)
        if count:
            yield _cell(state, at, width, f"{count} buffers: {_STATES[state][0]}")
        at += width


def _cell(state: str, x: float, width: float, title: str) -> str:
    return (
        f'<rect data-state="{state}" x="{x + 0.5:.1f}" y="0.5" width="{max(width - 1, 1):.1f}" height="{_HEIGHT - 1}" '
        f'rx="3" fill="{_STATES[state][1]}" {_EDGE}>'
        f"<title>{escape(title)}</title></rect>"
    )


def _legend(stats: Mapping[str, Any]) -> str:
    """How many buffers of which size are in each state, and in all."""
    states = [str(state) for state in stats["buffer_states"]]
    if not states:
        return f"<div>no staging memory; {_buffers(stats['ring_count'], stats['buffer_size'])} while it is open</div>"
    size = stats["buffer_size"]
    words = [f"{_swatch(state)} {_STATES[state][0]} {_buffers(count, size, state)}" for state, count in _tally(states)]
    words.append(f'<span style="opacity:.75">in all {_size(len(states) * size)}</span>')
    return "".join(f'<span style="display:inline-block;margin-right:16px">{word}</span>' for word in words)


def _swatch(state: str) -> str:
    return (
        '<svg width="11" height="11" aria-hidden="true" style="display:inline">'
        f'<rect x="0.5" y="0.5" width="10" height="10" rx="2" fill="{_STATES[state][1]}" {_EDGE}/></svg>'
    )


def _line(values: Sequence[float]) -> str:
    """A line of what was, without axes: the number beside it is the newest, its title the most."""
    if len(values) < 2:
        return ""
    most = max(values) or 1.0
    width = _WIDTH // 2
    step = width / (len(values) - 1)
    points = " ".join(
        f"{index * step:.1f},{_LINE_HEIGHT - 2 - (_LINE_HEIGHT - 4) * value / most:.1f}"
        for index, value in enumerate(values)
    )
    return (
        f'<svg role="img" aria-label="throughput so far" width="{width}" height="{_LINE_HEIGHT}" '
        f'viewBox="0 0 {width} {_LINE_HEIGHT}" style="display:block;max-width:100%">'
        f"<title>at most {rate_text(max(values))}</title>"
        f'<polyline points="{points}" fill="none" stroke="{_STATES["in_use"][1]}" stroke-width="1.5"/></svg>'
    )


def _tally(states: Sequence[str]) -> list[tuple[str, int]]:
    count = Counter(states)
    return [(state, count[state]) for state in _STATES]


# -- numbers --


def _data(value: object, text: str) -> str:
    return f'<data value="{escape(str(value))}">{escape(text)}</data>'


def _number(value: int) -> str:
    return _data(value, f"{value:,}".replace(",", "\N{NARROW NO-BREAK SPACE}"))


def _size(nbytes: int) -> str:
    return _data(nbytes, size_text(nbytes))


def _seconds(seconds: float) -> str:
    return _data(seconds, f"{seconds:.3f} s")


def _milliseconds(seconds: float) -> str:
    return _data(seconds, f"{seconds * 1e3:.2f} ms")


def _buffers(count: int, size: int, state: str = "") -> str:
    known = f' data-count="{state}"' if state else ""
    return f"<span{known}>{_data(count, str(count))} × {_size(size)}</span>"


def rate_text(rate: float) -> str:
    """Bytes per second for people: 730 kB/s, 12.5 MB/s, 1.20 GB/s."""
    for unit, name, digits in ((1e9, "GB/s", 2), (1e6, "MB/s", 1), (1e3, "kB/s", 0)):
        if rate >= unit:
            return f"{rate / unit:.{digits}f} {name}"
    return f"{rate:.0f} B/s"
