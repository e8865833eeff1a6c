"""A video through PyAV: decoded in a thread, its planes uploaded as they lie in memory, turned into RGB by the GPU.

Every frame is drawn. The picture has twelve of them and, below, a column of each. Makes a video of its own, unless one
is given. Needs: pip install 'aiostage[demo,video]'

    python examples/video.py [--output video.png] [video.mp4]
"""

from __future__ import annotations

import argparse
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import anyio
import av
import numpy as np
import wgpu
from offscreen import Offscreen, read
from PIL import Image, ImageDraw, ImageFont

import aiostage
from aiostage.streams import feed, sources
from aiostage.tools.cli import exit_status
from aiostage.tools.demo import photos
from aiostage.tools.demo.gpu import describe, find_adapter
from aiostage.tools.demo.options import UsageError

COLUMNS, CELLS = 4, 12  # of the picture
WIDEST = 320  # pixels of a cell
DRAWN = ("yuv420p", "yuvj420p", "yuv422p", "yuvj422p", "yuv444p", "yuvj444p")  # other formats become yuv444p first
MATRICES = {1: ("BT.709", 0.2126, 0.0722), 9: ("BT.2020", 0.2627, 0.0593)}  # by AVColorSpace, with Kr and Kb
BT601 = ("BT.601", 0.299, 0.114)  # which FFmpeg also takes where a file does not say

SHADER = """
@group(0) @binding(0) var<uniform> to_rgb: mat3x4f;
@group(0) @binding(1) var luma: texture_2d<f32>;
@group(0) @binding(2) var blue: texture_2d<f32>;
@group(0) @binding(3) var red: texture_2d<f32>;
@fragment fn colour(@builtin(position) at: vec4f) -> @location(0) vec4f {
    let pixel = vec2u(at.xy);
    let chroma = textureDimensions(blue);
    let sample = pixel / ((textureDimensions(luma) + chroma - 1) / chroma);  // the nearest, as swscale has it
    let y = textureLoad(luma, pixel, 0).r;
    return vec4f(vec4f(y, textureLoad(blue, sample, 0).r, textureLoad(red, sample, 0).r, 1) * to_rgb, 1);
}
"""


def conversion(frame: av.VideoFrame) -> tuple[str, np.ndarray]:
    """Its matrix and range in words; and as (3, 4): from Y, Cb, Cr of 0 to 1, and 1, to R, G and B.

    Of ITU-R BT.601, BT.709 and BT.2020, for 8 bits: limited range has black at 16, white at 235, chroma from 16 to 240.
    """
    name, kr, kb = MATRICES.get(int(frame.colorspace), BT601)
    is_full = int(frame.color_range) == 2 or frame.format.name.startswith("yuvj")
    black, y, c = (0.0, 1.0, 1.0) if is_full else (16 / 255, 255 / 219, 255 / 224)
    r, b = 2 * (1 - kr) * c, 2 * (1 - kb) * c
    kg = 1 - kr - kb
    rows = np.array([(y, 0, r), (y, -b * kb / kg, -r * kr / kg), (y, b, 0)])
    matrix = np.column_stack([rows, rows @ (-black, -128 / 255, -128 / 255)]).astype(np.float32)
    return f"{name}, {'full' if is_full else 'limited'} range", matrix


def survey(path: Path) -> tuple[int, int, int]:
    """Width, height, and the number of packets, which is about that of the frames. Decodes nothing."""
    with av.open(path) as container:
        if not container.streams.video:
            raise UsageError(f"{path}: there is no video in it")
        stream = container.streams.video[0]
        return stream.width, stream.height, sum(packet.size > 0 for packet in container.demux(stream))


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames, of the format and size of the first. `feed` asks for them in threads, ahead of what is drawn."""
    with av.open(path) as container:
        kind: tuple[int, int, str] | None = None
        for frame in container.decode(video=0):
            if frame.format.name not in DRAWN:
                frame = frame.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")
            kind = kind or (frame.width, frame.height, frame.format.name)
            yield frame.reformat(*kind)  # the same frame, unless the video has changed


class Painter:
    """Draws each frame over the layer of its twelfth, and keeps a column of it."""

    def __init__(self, ring: aiostage.StagingRing, size: tuple[int, int], total: int) -> None:
        self.ring, self.total, self.count = ring, max(total, 1), 0
        self.said: dict[str, None] = {}  # of the frames' colours
        self.numbers = [-1] * CELLS  # of the frames in the layers
        self.planes: list[wgpu.GPUTexture] = []
        self.picture = Offscreen(ring.device, size, SHADER, CELLS)
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
        strip = (min(self.total, ring.device.limits["max-texture-dimension-2d"]), size[1], 1)
        self.strip = ring.device.create_texture(size=strip, format="rgba8unorm", usage=usage)
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.UNIFORM
        self.matrix = ring.device.create_buffer(size=48, usage=usage)

    async def draw(self, decoded: av.VideoFrame) -> aiostage.Fence:
        said, matrix = conversion(decoded)
        planes = [sources.plane(decoded, number) for number in range(3)]  # no copies
        if not self.planes:
            usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
            sizes = [(*plane.shape[::-1], 1) for plane in planes]
            make = self.ring.device.create_texture
            self.planes = [make(size=size, format="r8unorm", usage=usage) for size in sizes]
            self.picture.bind(self.matrix, *(plane.create_view() for plane in self.planes))
        part = min(self.count, self.total - 1)
        cell, column = part * CELLS // self.total, part * self.strip.size[0] // self.total
        async with self.ring.frame() as frame:  # waits while three are in flight
            await frame.write_buffer(self.matrix, 0, matrix)
            for texture, plane in zip(self.planes, planes, strict=True):
                await frame.write_texture({"texture": texture}, plane)
            self.picture.draw(frame.encoder, cell)
            middle = {"texture": self.picture.texture, "origin": (self.picture.size[0] // 2, 0, cell)}
            place = {"texture": self.strip, "origin": (column, 0, 0)}
            frame.encoder.copy_texture_to_texture(middle, place, (1, self.picture.size[1], 1))
        self.numbers[cell], self.said[said] = self.count, None
        self.count += 1
        return frame.fence


def compose(painter: Painter) -> Image.Image:
    """The last frame of each twelfth; below, the middle column of every frame."""
    width, height = painter.picture.size
    if width > WIDEST:
        width, height = WIDEST, max(1, WIDEST * height // width)
    gap, line = 8, 20
    page = Image.new("RGB", (gap + COLUMNS * (width + gap), gap + CELLS // COLUMNS * (height + line) + height + gap))
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for cell, number in enumerate(painter.numbers):
        if number >= 0:
            left, top = gap + cell % COLUMNS * (width + gap), gap + cell // COLUMNS * (height + line)
            page.paste(painter.picture.read(cell).resize((width, height), Image.Resampling.BOX), (left, top))
            draw.text((left, top + height + 2), f"frame {number}", "#aab4c4", font)
    strip = read(painter.ring.device, painter.strip).resize((page.width - 2 * gap, height), Image.Resampling.NEAREST)
    page.paste(strip, (gap, page.height - gap - height))
    return page


def make_video(path: Path, count: int = 96) -> None:
    """Four seconds of waves from two points that go round."""
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


async def main(output: Path, path: Path | None = None) -> None:
    adapter = find_adapter()
    device = adapter.request_device_sync()
    print(describe(adapter))
    with tempfile.TemporaryDirectory() as folder:
        if path is None:
            path = Path(folder) / "waves.mp4"
            await anyio.to_thread.run_sync(make_video, path)
        try:
            width, height, total = await anyio.to_thread.run_sync(survey, path)
            if not 0 < max(width, height) <= device.limits["max-texture-dimension-2d"]:
                raise UsageError(f"{path}: this device has no textures of {width} × {height} pixels")
            async with aiostage.StagingRing(device, ring_count=3, buffer_size=4 * aiostage.MiB) as ring:
                painter = Painter(ring, (width, height), total)
                await feed(ring, decode(path), painter.draw, limit=4, ordered=True)
        except av.FFmpegError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
    if not painter.count:
        raise UsageError(f"{path}: no frame of it could be decoded")
    print(f"{path.name}: {painter.count} frames of {width} × {height}, {'; '.join(painter.said)}")
    photos.write(compose(painter), output)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("video", nargs="?", type=Path, help="what FFmpeg can read; default: one that is made")
    parser.add_argument("--output", type=Path, default=Path("video.png"))
    arguments = parser.parse_args()
    sys.exit(exit_status(parser.prog, lambda: anyio.run(main, arguments.output, arguments.video)))
