"""The picture: one lane for each staging buffer, a column for each sample, and the figures below."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from rich.console import Console, Group
from rich.text import Text

from ...budget import size_text
from .history import History, Look, RingHistory, quantile

LABEL = 8
"""Columns of what a row is called."""
_MOST_LANES = 24
_MOST_NAMES = 4
_HELD = 0.5
"""Seconds without an answer from which on a loop counts as held."""


@dataclass(frozen=True)
class Glyphs:
    """What is drawn with. Each state has a height of its own, for those who see no colours."""

    states: dict[str, str]
    steps: str
    """From little to much."""
    gap: str
    """A loop that did not answer."""


UNICODE = Glyphs({"available": "▁", "in_use": "▄", "fenced": "▆"}, "▁▂▃▄▅▆▇█", "╳")
ASCII = Glyphs({"available": "_", "in_use": "o", "fenced": "#"}, "_.:-=+*#", "x")

_COLOURS = {"available": "green", "in_use": "yellow", "fenced": "blue"}


class View:
    """Draws a history on a console, as wide as that is."""

    def __init__(self, console: Console, program: str, pid: int) -> None:
        self._console = console
        self._program = _clean(f"{program} · pid {pid}")
        self._is_plain = console.options.ascii_only
        self._glyphs = ASCII if self._is_plain else UNICODE

    def draw(self, history: History, note: str = "", height: int | None = None) -> Group:
        """The picture.

        :param note: what else there is to say of the program, in the first line.
        :param height: lines that there are. Rings for which too few are left get one each.
        """
        self._width = self._console.width
        title = self._program + f": {note}" * bool(note)
        if len(long := f"aiostage monitor · {title}") <= self._width:
            title = long
        lines = [self._text(title, "bold red" if note else "bold")]
        left = len(history.rings)
        for ring in history.rings.values():
            drawn, left = [Text(), *self._ring(ring)], left - 1
            if height is not None and ring.number != min(history.rings) and len(lines) + len(drawn) + left + 2 > height:
                drawn = [self._text(plain_line(ring), "cyan")]
            lines += drawn
        lines += [Text(), self._legend()] if history.rings else [self._text("no ring is open", "dim")]
        return Group(*lines)

    def _ring(self, ring: RingHistory) -> Iterator[Text]:
        said, stats = ring.last, ring.stats
        yield self._text(self._name(ring), "bold cyan")
        if said["error"] is not None:
            yield from self._row("error", said["error"], "bold red")
        if not stats:
            yield from self._row("loop", f"has not answered for {said['late']:.1f} s", "bold red")
            return
        looks = list(ring.looks)[-(self._width - LABEL) :]
        yield from self._lanes(looks, stats["ring_count"])
        yield self._label("waits") + self._waits(looks)
        yield self._label("rate") + self._spark([look.rate or 0.0 for look in looks], "cyan")
        yield from self._row(
            "",
            f"{_rate(ring.rate())} now, {_rate(ring.top_rate())} at most, {_total(stats['bytes_total'])} in all",
        )
        yield from self._stalls(ring)
        yield from self._row(
            "fences",
            f"p50 {_ms(stats['fence_latency_p50'])}, p99 {_ms(stats['fence_latency_p99'])}, "
            f"{stats['pending_fences']} pending",
        )
        yield from self._lag(ring)
        yield from self._budget(ring)
        for advice in said["advice"]:
            settings = f"{advice['ring_count']} × {size_text(advice['buffer_size'])}"
            yield from self._row("advice", f"{advice['kind']}, {settings}: {advice['message']}", "magenta")

    def _name(self, ring: RingHistory) -> str:
        said, stats = ring.last, ring.stats
        parts = [f"ring {ring.number}"]
        if stats:
            parts.append(f"{stats['ring_count']} × {size_text(stats['buffer_size'])}")
        parts += [part for part in (said["device"], said["thread"] and f"loop in {said['thread']}") if part]
        return _clean(" · ".join(parts))

    # -- what goes along the time --

    def _lanes(self, looks: Sequence[Look], count: int) -> Iterator[Text]:
        glyphs = self._glyphs
        for index in range(min(count, _MOST_LANES)):
            lane = self._label(f"buf {index}")
            for look in looks:
                if look.states is None or index >= len(look.states):
                    lane.append(glyphs.gap, "red")
                else:
                    state = look.states[index]
                    lane.append(glyphs.states[state], _COLOURS[state])
            yield lane
        if count > _MOST_LANES:
            yield self._text(f"{' ' * LABEL}and {count - _MOST_LANES} buffers more", "dim")

    def _waits(self, looks: Sequence[Look]) -> Text:
        """How many are waiting: a digit, + for ten or more."""
        line = Text()
        for look in looks:
            line.append(" " if not look.waiters else str(look.waiters) if look.waiters < 10 else "+", "red")
        return line

    def _spark(self, values: Sequence[float], style: str) -> Text:
        steps, most = self._glyphs.steps, max(values, default=0.0)
        levels = (round(value / most * (len(steps) - 1)) if most > 0 else 0 for value in values)
        return Text("".join(steps[max(0, level)] for level in levels), style)

    # -- figures --

    def _stalls(self, ring: RingHistory) -> Iterator[Text]:
        stats, said = ring.stats, ring.last
        seconds = ring.seconds()
        new = sum(look.stalls for look in ring.looks)
        text = f"{stats['buffer_stalls']} of {stats['allocations_total']} allocations, {stats['stall_seconds']:.2f} s"
        if new and seconds > 0:
            text += f"; {new / seconds:.1f} a second"
        yield from self._row("stalls", text, "red" if stats["waiters"] else "")
        waits = [
            f"{wait['task']} ({size_text(wait['size']) if wait['size'] else 'an upload'}, {_age(wait['seconds'])})"
            for wait in said["waits"]
        ]
        if waits:
            yield from self._row("waiting", _some(waits, max(stats["waiters"], len(waits))), "red")
        holds = [
            f"{hold['task']} (buf {hold['buffer']}, {size_text(hold['size'])}, {_age(hold['seconds'])})"
            for hold in said["holds"]
        ]
        if holds:
            yield from self._row("holding", _some(holds, len(holds)), "yellow")

    def _lag(self, ring: RingHistory) -> Iterator[Text]:
        late, lags = ring.last["late"], ring.lags()
        text = f"p50 {_ms(quantile(lags, 0.5))}, p99 {_ms(quantile(lags, 0.99))}, {_ms(quantile(lags, 1.0))} at most"
        if late > _HELD:
            text = f"held for {late:.1f} s; before that {text}"
        yield from self._row("lag", text, "bold red" if late > _HELD else "")

    def _budget(self, ring: RingHistory) -> Iterator[Text]:
        used, limit = ring.stats["budget_used"], ring.stats["budget_limit"]
        part = used / limit if limit else 0.0
        text = f"{size_text(used)} of {size_text(limit)}, {part:.0%}"
        bar = round(part * 10) * self._glyphs.states["fenced"]
        yield from self._row("budget", f"{bar.ljust(10, self._glyphs.states['available'])} {text}")

    def _legend(self) -> Text:
        legend = self._label("")
        for state, glyph in self._glyphs.states.items():
            legend.append(glyph, _COLOURS[state])
            legend.append(f" {state.replace('_', ' ')}  ", "dim")
        legend.truncate(self._width)
        return legend

    # -- text --

    def _label(self, name: str) -> Text:
        return Text().append(name.ljust(LABEL), "dim")

    def _row(self, name: str, text: str, style: str = "") -> Iterator[Text]:
        """A label, and text that goes on below itself where it has no room."""
        room = max(10, self._width - LABEL - 1)
        for line in textwrap.wrap(self._plain(_clean(text)), room) or [""]:
            yield self._label(name) + Text(line, style)
            name = ""

    def _text(self, text: str, style: str) -> Text:
        line = Text(self._plain(text), style, no_wrap=True)
        line.truncate(self._width, overflow="crop" if self._is_plain else "ellipsis")
        return line

    def _plain(self, text: str) -> str:
        return text.replace("×", "x").replace("·", "-") if self._is_plain else text


def plain_line(ring: RingHistory) -> str:
    """All of a ring in one line, for what is no terminal."""
    stats, said = ring.stats, ring.last
    name = f"ring {ring.number}"
    if said["error"] is not None:
        return _clean(f"{name}: {said['error']}")
    if not stats or said["late"] > _HELD:
        return f"{name}: its loop has not answered for {said['late']:.1f} s"
    states = "".join(ASCII.states[state] for state in stats["buffer_states"])
    waiting = ", ".join(wait["task"] for wait in said["waits"][:_MOST_NAMES])
    return _clean(
        f"{name} {states} {_rate(ring.rate())}, {stats['buffer_stalls']} stalls, "
        f"{stats['waiters']} waiting{f' ({waiting})' * bool(waiting)}, "
        f"fences p99 {_ms(stats['fence_latency_p99'])}, lag p99 {_ms(quantile(ring.lags(), 0.99))}"
    )


def _some(names: Sequence[str], count: int) -> str:
    shown = names[:_MOST_NAMES]
    more = count - len(shown)
    return ", ".join(shown) + f" and {more} more" * (more > 0)


def _clean(text: str) -> str:
    """Names come from the program: nothing in them may steer the terminal."""
    return "".join(character if character.isprintable() else "?" for character in text)


def _age(seconds: float) -> str:
    return f"{seconds:.1f} s" if seconds >= 1 else f"{seconds * 1e3:.0f} ms"


def _ms(seconds: float) -> str:
    return f"{seconds * 1e3:.2f} ms" if seconds < 0.01 else f"{seconds * 1e3:.0f} ms"


def _total(nbytes: int) -> str:
    return size_text(nbytes) if nbytes < 1 << 30 else f"{nbytes / (1 << 30):.1f} GiB"


def _rate(nbytes: float) -> str:
    return f"{nbytes / 1e9:.2f} GB/s" if nbytes >= 1e8 else f"{nbytes / 1e6:.2f} MB/s"
