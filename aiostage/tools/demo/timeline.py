"""The picture of a trace: one lane per staging buffer, coloured by state over time, stalls marked."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

Floats = npt.NDArray[np.float64]
Colour = tuple[int, int, int]

WIDTH, LEFT, RIGHT = 1600, 110, 40
PLOT = WIDTH - LEFT - RIGHT
LANES_HEIGHT, LANE_MIN, LANE_MAX, LANE_GAP = 150, 3, 50, 6
STALLS_HEIGHT, CHART_HEIGHT = 30, 70
ZOOM_SECONDS = 0.1
LANE = r"ring \d+, buffer (\d+)"
"""The title of a staging buffer's track."""

BACKGROUND, PANEL, INK, FAINT = (18, 21, 27), (28, 33, 41), (226, 230, 236), (128, 138, 152)
STALL, FRAME, RATE = (255, 84, 89), (150, 160, 175), (94, 204, 160)
STATES: dict[str, tuple[str, Colour]] = {
    "fenced": ("FENCED: the GPU may read it", (245, 166, 35)),
    "in_use": ("IN_USE: being filled", (74, 144, 226)),
    "available": ("AVAILABLE", (52, 60, 73)),
}


@dataclass(frozen=True)
class Recording:
    """What a trace has of a ring, as arrays. Times are in seconds since it began."""

    spans: dict[tuple[int, str], Floats]
    """(begin, end) of each time that a buffer was in a state, by its index and the state: one after another."""
    stalls: Floats
    """When each began."""
    submits: Floats
    nbytes: Floats
    """That each of them copied."""
    frames: Floats
    """Submits with command buffers."""
    end: float

    @classmethod
    def of(cls, events: Sequence[Mapping[str, Any]]) -> Recording:
        """Of `aiostage.tracing.load`."""
        lanes = {
            (event["pid"], event["tid"]): int(match[1])
            for event in events
            if event["name"] == "thread_name" and (match := re.fullmatch(LANE, event["args"]["name"]))
        }
        slices = sorted((event for event in events if event["ph"] == "X"), key=lambda event: event["ts"])
        spans: dict[tuple[int, str], list[tuple[float, float]]] = {}
        for event in slices:
            lane = lanes.get((event["pid"], event["tid"]))
            if lane is not None:
                spans.setdefault((lane, event["name"]), []).append((event["ts"], event["ts"] + event["dur"]))
        submits = [event for event in slices if event["name"] == "submit"]
        return cls(
            {key: 1e-6 * np.array(found) for key, found in spans.items()},
            1e-6 * np.array([event["ts"] for event in slices if event["name"] == "stall"], np.float64),
            1e-6 * np.array([event["ts"] for event in submits], np.float64),
            np.array([event["args"]["bytes"] for event in submits], np.float64),
            1e-6 * np.array([event["ts"] for event in submits if "command_buffers" in event["args"]], np.float64),
            max([1e-3, *(1e-6 * (event["ts"] + event["dur"]) for event in slices)]),
        )

    @property
    def buffers(self) -> int:
        return 1 + max((buffer for buffer, _ in self.spans), default=0)

    def share(self, buffer: int, state: str, edges: Floats) -> Floats:
        """For each interval between edges, the share of it that a buffer spent in a state."""
        spans = self.spans.get((buffer, state), np.zeros((1, 2)))
        spent = np.stack([np.zeros(len(spans)), spans[:, 1] - spans[:, 0]], axis=1)
        cumulated = np.interp(edges, spans.ravel(), np.cumsum(spent))
        share: Floats = np.diff(cumulated) / np.diff(edges)
        return share

    def stalls_in(self, edges: Floats) -> npt.NDArray[np.int64]:
        """How many stalls began between each two edges."""
        return np.histogram(self.stalls, edges)[0]

    def rate(self, edges: Floats) -> Floats:
        """Bytes per second submitted between each two edges."""
        return np.histogram(self.submits, edges, weights=self.nbytes)[0] / np.diff(edges)

    def busiest(self, seconds: float) -> tuple[float, float]:
        """The stretch of that length with the most stalls (with the most submits, where nothing stalled)."""
        if seconds >= self.end:
            return 0.0, self.end
        starts = np.arange(0.0, self.end - seconds, seconds / 20)
        times = self.stalls if len(self.stalls) else self.submits
        within = np.searchsorted(times, starts + seconds) - np.searchsorted(times, starts)
        start = float(starts[int(np.argmax(within))])
        return start, start + seconds


class Sheet:
    """An image that is drawn from top to bottom."""

    def __init__(self, height: int) -> None:
        self.image = Image.new("RGB", (WIDTH, height), BACKGROUND)
        self.draw = ImageDraw.Draw(self.image)
        self.y = 0
        self._fonts = {size: ImageFont.load_default(size) for size in (13, 15, 24)}

    def text(self, x: float, y: float, text: str, size: int = 13, fill: Colour = INK, anchor: str = "lm") -> float:
        """Write, and return where the text ends."""
        font = self._fonts[size]
        self.draw.text((x, y), text, fill=fill, font=font, anchor=anchor)
        return x + font.getlength(text)

    def band(self, label: str, height: int, fill: Colour = PANEL) -> int:
        """Start a labelled band over the plot's width; returns its upper edge and moves below it."""
        top = self.y
        self.draw.rectangle((LEFT, top, LEFT + PLOT - 1, top + height - 1), fill=fill)
        self.text(LEFT - 10, top + height / 2, label, fill=FAINT, anchor="rm")
        self.y += height + LANE_GAP
        return top

    def columns(self, top: int, bottom: int, heights: npt.ArrayLike, fill: Colour) -> None:
        """Vertical bars, one per pixel of the plot's width, standing on `bottom`; heights from 0 to 1."""
        for x, height in enumerate(np.rint(np.asarray(heights) * (bottom - top)).astype(int).tolist()):
            if height > 0:
                self.draw.line((LEFT + x, bottom - height, LEFT + x, bottom - 1), fill=fill)


def draw(events: Sequence[Mapping[str, Any]], title: str, subtitle: str) -> Image.Image:
    """The whole picture of a trace: the run from end to end, then its busiest tenth of a second."""
    recording = Recording.of(events)
    buffers = recording.buffers
    lane = min(LANE_MAX, max(LANE_MIN, LANES_HEIGHT // buffers))
    lanes = buffers * (lane + LANE_GAP)
    sheet = Sheet(300 + 2 * (lanes + STALLS_HEIGHT) + CHART_HEIGHT)
    draw_header(sheet, title, subtitle)

    heading(sheet, "The whole run")
    edges = np.linspace(0.0, recording.end, PLOT + 1)
    draw_lanes(sheet, recording, edges, lane)
    draw_stalls(sheet, recording, edges)
    draw_rate(sheet, recording)
    draw_axis(sheet, 0.0, recording.end)

    start, end = recording.busiest(ZOOM_SECONDS)
    heading(sheet, f"Its busiest {1000 * (end - start):.0f} ms")
    edges = np.linspace(start, end, PLOT + 1)
    top = sheet.y
    draw_lanes(sheet, recording, edges, lane)
    draw_stalls(sheet, recording, edges)
    draw_frames(sheet, recording, start, end, top)
    draw_axis(sheet, start, end)
    return sheet.image.crop((0, 0, WIDTH, sheet.y))


def draw_header(sheet: Sheet, title: str, subtitle: str) -> None:
    sheet.text(LEFT, 36, title, 24)
    sheet.text(LEFT, 64, subtitle, 15, FAINT)
    x = float(LEFT)
    marks = [*STATES.values(), ("stall: an allocate() suspended", STALL), ("frame submitted", FRAME)]
    for label, colour in marks:
        sheet.draw.rectangle((x, 90, x + 13, 103), fill=colour)
        x = sheet.text(x + 20, 97, label) + 28
    sheet.y = 116


def heading(sheet: Sheet, text: str) -> None:
    sheet.text(LEFT, sheet.y + 16, text, 15)
    sheet.y += 32


def draw_lanes(sheet: Sheet, recording: Recording, edges: Floats, height: int) -> None:
    """A lane per buffer. Where a pixel's time holds several states, they are stacked by their shares."""
    for buffer in range(recording.buffers):
        top = sheet.band(f"buffer {buffer}", height, STATES["available"][1])
        fenced = recording.share(buffer, "fenced", edges)
        in_use = recording.share(buffer, "in_use", edges)
        sheet.columns(top, top + height, np.minimum(1, fenced + in_use), STATES["in_use"][1])
        sheet.columns(top, top + height, fenced, STATES["fenced"][1])


def draw_stalls(sheet: Sheet, recording: Recording, edges: Floats) -> None:
    """A mark wherever a stall began; taller where several did within the same pixel."""
    counts = recording.stalls_in(edges)
    top = sheet.band("stalls", STALLS_HEIGHT)
    shown = np.where(counts > 0, 0.35 + 0.65 * counts / max(1, int(np.max(counts))), 0)
    sheet.columns(top, top + STALLS_HEIGHT, shown, STALL)


def draw_rate(sheet: Sheet, recording: Recording) -> None:
    """Bytes per second through the ring, averaged over ten pixels."""
    edges = np.linspace(0.0, recording.end, PLOT // 10 + 1)
    rate = recording.rate(edges)
    peak = max(1.0, float(np.max(rate)))
    top = sheet.band("MB/s", CHART_HEIGHT)
    sheet.columns(top, top + CHART_HEIGHT, np.repeat(0.85 * rate / peak, 10)[:PLOT], RATE)
    sheet.text(LEFT + 6, top + 10, f"peak {peak / 1e6:.0f} MB/s", fill=INK)


def draw_frames(sheet: Sheet, recording: Recording, start: float, end: float, top: int) -> None:
    for time in recording.frames[(recording.frames >= start) & (recording.frames < end)]:
        x = LEFT + PLOT * (float(time) - start) / (end - start)
        sheet.draw.line((x, top - 4, x, sheet.y - LANE_GAP), fill=FRAME, width=2)


def draw_axis(sheet: Sheet, start: float, end: float) -> None:
    """Ticks at round times below what was drawn last."""
    step = round_step((end - start) / 10)
    unit, label = (1.0, "s") if end - start >= 1 else (1000.0, "ms")
    for index in range(int(np.ceil(start / step)), int(end / step) + 1):
        x = LEFT + PLOT * (index * step - start) / (end - start)
        sheet.draw.line((x, sheet.y, x, sheet.y + 5), fill=FAINT)
        sheet.text(x, sheet.y + 15, f"{index * step * unit:g} {label}", fill=FAINT, anchor="mm")
    sheet.y += 36


def round_step(at_least: float) -> float:
    """1, 2 or 5 times a power of ten."""
    power = 10.0 ** np.floor(np.log10(at_least))
    return float(next(factor * power for factor in (1, 2, 5, 10) if factor * power >= at_least))
