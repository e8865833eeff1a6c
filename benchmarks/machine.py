"""The machine and the device that a figure was measured on."""

from __future__ import annotations

import argparse
import json
import os
import platform
import statistics
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import wgpu
from wgpu.backends.wgpu_native import lib_version_info

import aiostage
from aiostage.tools.demo.gpu import find_adapter
from aiostage.tools.status import UsageError

RESULTS = Path(__file__).parent / "results"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """What every program that measures takes."""
    parser.add_argument("--software", action="store_true", help="the software adapter, also where there is a GPU")
    parser.add_argument(
        "--out",
        type=Path,
        metavar="PATH",
        help="keep the raw figures, in this .json file or in this directory; by default they are only printed",
    )


def open_device(software: bool = False) -> wgpu.GPUDevice:
    """The fastest adapter's device, or the software one's; with large buffers and host-cached staging if it can.

    :raises UsageError: there is none.
    """
    adapter = find_adapter()
    if software:
        adapters = wgpu.gpu.enumerate_adapters_sync()
        adapter = next((a for a in adapters if a.info["adapter_type"] == "CPU"), None)
        if adapter is None:
            raise UsageError("no software adapter found (on Debian: apt-get install mesa-vulkan-drivers)")
    features = {"mappable-primary-buffers"} & set(adapter.features)
    limits = {"max-buffer-size": min(1 << 30, adapter.limits["max-buffer-size"])}
    return adapter.request_device_sync(required_features=sorted(features), required_limits=limits)


def describe(device: wgpu.GPUDevice) -> dict[str, Any]:
    """What has to be known to compare a figure."""
    return {
        "adapter": device.adapter.summary,
        "driver": device.adapter.info["description"],
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": platform.platform(),
        "python": platform.python_version(),
        "wgpu": wgpu.__version__,
        "wgpu_native": ".".join(map(str, lib_version_info)),
        "numpy": np.__version__,
        "aiostage": aiostage.__version__,
        "date": time.strftime("%Y-%m-%d"),
    }


def _processor() -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return platform.processor()
    return next((line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")), "")


def name(device: wgpu.GPUDevice) -> str:
    """A short name for files: "h100", "llvmpipe"."""
    words = device.adapter.info["device"].lower().replace("(", " ").split()
    return next((word for word in words if word not in {"nvidia", "amd", "intel", "geforce"}), "gpu")


def is_file(out: Path | None) -> bool:
    """Whether `--out` names a file, not a directory."""
    return out is not None and out.suffix == ".json"


def check_out(out: Path | None) -> None:
    """Refuse an `--out` that cannot be written to, before anything is measured; its directory is made.

    :raises UsageError: it cannot.
    """
    if out is None:
        return
    folder = out.parent if is_file(out) else out
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"--out {out}: {error.strerror}") from error
    if not os.access(folder, os.W_OK) or (is_file(out) and out.is_dir()):
        raise UsageError(f"--out {out}: cannot be written to")


def save(out: Path | None, kind: str, device: wgpu.GPUDevice, figures: dict[str, Any]) -> None:
    """Keep the raw figures as JSON in this file, or in this directory under the machine's name; or not at all."""
    if out is None:
        return
    path = out if is_file(out) else out / f"{name(device)}-{kind}.json"
    path.write_text(json.dumps({"machine": describe(device), "figures": figures}, indent=1) + "\n")
    print(f"\nraw figures: {path}")


def spread(values: Sequence[float], scale: float = 1.0) -> dict[str, float]:
    """Median, quartiles, 99th percentile and extremes."""
    ordered = sorted(value * scale for value in values)
    at = lambda fraction: round(ordered[min(len(ordered) - 1, int(fraction * len(ordered)))], 6)  # noqa: E731
    return {
        "n": len(ordered),
        "min": at(0),
        "p25": at(0.25),
        "p50": round(statistics.median(ordered), 6),
        "p75": at(0.75),
        "p99": at(0.99),
        "max": at(1),
    }


class GpuWork:
    """Command buffers that keep the GPU busy for about as long as asked."""

    def __init__(self, device: wgpu.GPUDevice) -> None:
        self.device = device
        usage = wgpu.BufferUsage.COPY_SRC | wgpu.BufferUsage.COPY_DST
        self._size = 8 << 20 if device.adapter.info["adapter_type"] == "CPU" else 256 << 20
        self._input, self.output = (device.create_buffer(size=self._size, usage=usage) for _ in range(2))
        self._unit = 0.0
        self._run(4)
        self._unit = self._run(16) / 16  # seconds a copy

    def command_buffer(self, seconds: float) -> wgpu.GPUCommandBuffer:
        return self._record(max(1, round(seconds / self._unit)))

    def wait(self) -> None:
        """Block until the device is idle, as fast as can be."""
        self.device._poll_wait()

    def _record(self, copies: int) -> wgpu.GPUCommandBuffer:
        encoder = self.device.create_command_encoder()
        for _ in range(copies):
            encoder.copy_buffer_to_buffer(self._input, 0, self.output, 0, self._size)
        return encoder.finish()

    def _run(self, copies: int) -> float:
        work = self._record(copies)
        started = time.perf_counter()
        self.device.queue.submit([work])
        self.wait()
        return time.perf_counter() - started


def thread_cpu(name: str) -> float:
    """Seconds of CPU of this process's threads that have this name. On Linux."""
    seconds = 0.0
    for task in Path("/proc/self/task").iterdir():
        if (task / "comm").read_text() == f"{name}\n":
            seconds += int((task / "schedstat").read_text().split()[0]) / 1e9
    return seconds


def print_table(title: str, rows: Sequence[Sequence[object]], header: Sequence[str]) -> None:
    """A plain table on stdout."""
    cells = [list(map(str, header)), *([str(cell) for cell in row] for row in rows)]
    widths = [max(len(row[i]) for row in cells) for i in range(len(header))]
    print(f"\n{title}")
    for row in cells:
        line = "  " + "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        print(line.rstrip(), flush=True)
