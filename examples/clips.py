"""The video that a user names, or one that is made. For `video.py`."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import av
import numpy as np

from aiostage.tools.status import UsageError


@dataclass(frozen=True)
class Clip:
    """A video file."""

    path: Path
    width: int
    height: int
    packets: int
    """About as many as there are frames. Of a file that ends too early there are fewer frames."""


@contextmanager
def given(path: Path | None, widest: int) -> Iterator[Clip]:
    """That file, or one that is there for as long as the block runs. What FFmpeg says in it becomes one line.

    Blocks, before the work.

    :param widest: pixels a side that it may have.
    """
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder) / "waves.mp4"
            make(path)
        try:
            clip = survey(path)
            if not 0 < max(clip.width, clip.height) <= widest:
                raise UsageError(f"{path}: this device has no textures of {clip.width} × {clip.height} pixels")
            yield clip
        except av.FFmpegError as error:
            raise UsageError(f"{path}: {error.strerror}") from error


def survey(path: Path) -> Clip:
    """Decodes nothing."""
    with av.open(path) as container:
        if not container.streams.video:
            raise UsageError(f"{path}: there is no video in it")
        stream = container.streams.video[0]
        return Clip(path, stream.width, stream.height, sum(packet.size > 0 for packet in container.demux(stream)))


def make(path: Path, count: int = 96) -> None:
    """Waves from two points that go round, 24 frames a second."""
    y, x = np.mgrid[:180, :320] / 90.0 - [[[1.0]], [[16 / 9]]]
    with av.open(path, "w") as container:
        stream = container.add_stream("libx264" if "libx264" in av.codecs_available else "mpeg4", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.bit_rate = 320, 180, "yuv420p", 2_000_000
        stream.codec_context.colorspace, stream.codec_context.color_range = 1, 1
        for turn in np.linspace(0, 2 * np.pi, count, endpoint=False):
            far = np.hypot(x - np.cos(turn), y - 0.6 * np.sin(turn))
            near = np.hypot(x + 0.9 * np.sin(turn), y + 0.5 * np.cos(2 * turn))
            phase = 3 * far + 2 * np.sin(4 * near - turn) + 2 * turn
            light = 110 + 70 * np.cos(6 * near - 2 * turn)
            waves = np.stack([light * (1 + 0.9 * np.sin(phase + shift)) for shift in (0.0, 0.9, 1.8)], -1)
            frame = av.VideoFrame.from_ndarray(np.clip(waves, 0, 255).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p", dst_colorspace="ITU709")))
        container.mux(stream.encode())


def add_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("video", nargs="?", type=Path, help="what FFmpeg can read; default: one that is made")
