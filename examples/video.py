"""A video through PyAV: decoded in a thread, its planes uploaded as they lie in memory, turned into RGB by the GPU.

Every frame is drawn. The picture has twelve of them and, below, a column of each. Makes a video of its own, unless one
is given. Needs: pip install 'aiostage[demo,video]'

    python examples/video.py [--output video.png] [video.mp4]
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import av
import clips
import launch
import numpy as np
import wgpu
from pictures import Page
from PIL import Image

import aiostage
from aiostage.streams import feed, sources
from aiostage.tools.status import UsageError

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


def decode(path: Path) -> Iterator[av.VideoFrame]:
    """All frames, of the format and size of the first. `feed` asks for them in threads, ahead of what is drawn."""
    with av.open(path) as container:
        kind: tuple[int, int, str] | None = None
        for frame in container.decode(video=0):
            if frame.format.name not in DRAWN:
                frame = frame.reformat(format="yuv444p", dst_colorspace="ITU709", dst_color_range="MPEG")
            kind = kind or (frame.width, frame.height, frame.format.name)
            yield frame.reformat(*kind)  # the same frame, unless the video has changed


async def main(device: wgpu.GPUDevice, video: Path | None) -> Image.Image:
    with clips.given(video, device.limits["max-texture-dimension-2d"]) as clip:
        page = Page(device, (clip.width, clip.height), SHADER, clip.packets)
        matrix = device.create_buffer(size=48, usage=wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.UNIFORM)
        textures: list[wgpu.GPUTexture] = []
        colours: dict[str, None] = {}

        async def draw(decoded: av.VideoFrame) -> aiostage.Fence:
            planes = [sources.plane(decoded, number) for number in range(3)]  # no copies
            if not textures:
                usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
                for height, width in (plane.shape for plane in planes):
                    textures.append(device.create_texture(size=(width, height, 1), format="r8unorm", usage=usage))
                page.bind(matrix, *(texture.create_view() for texture in textures))
            said, to_rgb = conversion(decoded)
            colours[said] = None
            async with ring.frame() as frame:  # waits while three are in flight
                await frame.write_buffer(matrix, 0, to_rgb)
                for texture, plane in zip(textures, planes, strict=True):
                    await frame.write_texture({"texture": texture}, plane)
                page.draw(frame.encoder)
            return frame.fence

        async with aiostage.StagingRing(device, ring_count=3, buffer_size=4 * aiostage.MiB) as ring:
            await feed(ring, decode(clip.path), draw, limit=4, ordered=True)
    if not page.drawn:
        raise UsageError(f"{clip.path}: no frame of it could be decoded")
    print(f"{clip.path.name}: {page.drawn} frames of {clip.width} × {clip.height}, {'; '.join(colours)}")
    return page.read()


if __name__ == "__main__":
    launch.run(main, __doc__, clips.add_options)
