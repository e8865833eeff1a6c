"""`python docs/trace.py [TRACE]`: draw images/trace.png from a trace, by default of a short program of its own.

Perfetto shows the same, and lets one look closer.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt
import numpy as np
import wgpu

import aiostage
from aiostage import MiB, tracing

OUT = Path(__file__).with_name("images") / "trace.png"
WINDOW = 0.02  # seconds that are drawn
COLOURS = {
    "available": "#d7dbe0",
    "in_use": "#4a90e2",
    "fenced": "#f5a623",
    "copy": "#3aa57a",
    "read": "#3aa57a",
    "submit": "#7b5fc7",
    "poll": "#c9c2de",
    "GPU": "#c9655b",
    "GPU time": "#8f2f27",
    "fence": "#7b5fc7",
    "upload": "#9fc5f0",
    "stall": "#ff5459",
}


async def stream() -> None:
    """Three tasks upload through a ring of three buffers, beside one that draws frames."""
    adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    wanted = {"mappable-primary-buffers", "timestamp-query", "timestamp-query-inside-encoders"}
    device = adapter.request_device_sync(required_features=sorted(wanted & set(adapter.features)))
    buffer = device.create_buffer(size=16 * MiB, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC)
    data = [np.full(nbytes, 1, np.uint8) for nbytes in (3 * MiB, 1 * MiB, MiB // 2)]
    over = False

    async def upload(number: int) -> None:
        while not over:
            await ring.write_buffer(buffer, 4 * MiB * number, data[number])
            await asyncio.sleep(0.001)

    asyncio.current_task().set_name("frames")
    async with aiostage.StagingRing(device, 3, MiB) as ring, asyncio.TaskGroup() as tasks:
        for number, name in enumerate(("volume", "tiles", "meshes")):
            tasks.create_task(upload(number), name=name)
        for _ in range(200):
            async with ring.frame() as frame:
                await frame.write_buffer(buffer, 12 * MiB, bytes(256))
                frame.encoder.clear_buffer(buffer, 13 * MiB, MiB)
            await asyncio.sleep(0.004)
        over = True


def draw(events: list[dict[str, Any]], out: Path) -> None:
    """What is around the middle one of its stalls: a row for each track, and arrows for flows."""
    slices = [event for event in events if event["ph"] == "X"]
    stalls = sorted(event["ts"] for event in slices if event["name"] == "stall")
    start = stalls[len(stalls) // 2] - WINDOW * 1e6 / 2
    shown = [event for event in slices if event["ts"] + event["dur"] > start and event["ts"] < start + WINDOW * 1e6]
    titles = {(event["pid"], event["tid"]): event["args"]["name"] for event in events if event["name"] == "thread_name"}
    busy = {(event["pid"], event["tid"]) for event in shown}
    tracks = sorted((track for track in titles if track in busy), key=lambda track: (-track[0], track[1]))
    rows = {track: -row for row, track in enumerate(tracks)}
    at = lambda ts: (ts - start) / 1000  # noqa: E731

    figure, (axes, lag) = plt.subplots(
        2, figsize=(12, 0.42 * len(tracks) + 1.6), height_ratios=[len(tracks), 1.3], sharex=True, layout="constrained"
    )
    for event in sorted(shown, key=lambda event: -event["dur"]):  # what is in another comes after it
        row, height = rows[event["pid"], event["tid"]], 0.4 if event["name"] == "stall" else 0.8
        axes.barh(row, event["dur"] / 1000, height, at(event["ts"]), color=COLOURS[event["name"]], linewidth=0)
    ends: dict[int, list[dict[str, Any]]] = {}
    for event in events:
        if event["ph"] in "sf" and (event["pid"], event["tid"]) in rows:
            ends.setdefault(event["id"], []).append(event)
    for a, b in (pair for pair in ends.values() if len(pair) == 2):
        if start <= a["ts"] and b["ts"] < start + WINDOW * 1e6:
            points = [(at(end["ts"]), rows[end["pid"], end["tid"]]) for end in (a, b)]
            axes.annotate("", points[1], points[0], arrowprops={"arrowstyle": "->", "color": "#333", "lw": 0.6})
    axes.set_yticks(list(rows.values()), [titles[track] for track in rows])
    axes.set_xlim(0, WINDOW * 1000)
    handles = [plt.Rectangle((0, 0), 1, 1, color=colour) for colour in COLOURS.values()]
    names = {name: handle for name, handle in zip(COLOURS, handles, strict=True) if name not in ("read", "fence")}
    figure.legend(names.values(), names.keys(), ncols=len(names), loc="outside upper center", frameon=False)
    counts = [event for event in events if event["ph"] == "C"]
    lag.plot([at(event["ts"]) for event in counts], [event["args"]["value"] for event in counts], ".-", color="#555")
    lag.set_ylabel("loop lag, ms")
    lag.set_ylim(
        0, 2 * max([0.1, *(event["args"]["value"] for event in counts if 0 <= at(event["ts"]) <= WINDOW * 1e3)])
    )
    lag.set_xlabel("ms")
    for part in (axes, lag):
        part.spines[["top", "right"]].set_visible(False)
    figure.savefig(out, dpi=100)
    plt.close(figure)


def main() -> None:
    if len(sys.argv) > 1:
        draw(tracing.load(sys.argv[1]), OUT)
        return
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "run.json"
        with tracing.trace(path):
            asyncio.run(stream())
        draw(tracing.load(path), OUT)


if __name__ == "__main__":
    main()
