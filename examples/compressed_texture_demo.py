"""Photographs as BC7 textures: encoded, written as KTX2, streamed coarsest level first, drawn after each, verified.

Prints the memory against the PNG path (RGBA8 with the same mip levels) and the PSNR of what the GPU samples, and writes
a picture of what could be drawn when. Needs: pip install etcpak texture2ddecoder 'aiostage[demo,textures]'

    python examples/compressed_texture_demo.py [--output compressed_textures.png] [--all | photographs …]
"""

from __future__ import annotations

import argparse
import struct
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import etcpak
import numpy as np
import texture2ddecoder
import wgpu
import zstandard
from PIL import Image, ImageDraw, ImageFont

import aiostage
import aiostage.textures
from aiostage.tools.demo import photos
from aiostage.tools.demo.gpu import describe, find_adapter
from aiostage.tools.status import exit_status

SIDE = 512  # texels of a texture
SHOWN = (6, 5, 4, 3, 2, 0)  # mip levels in the picture
TILE = 200  # pixels of a picture there
BC7_UNORM = 145  # VkFormat
SHOWN_BY_DEFAULT = ("astronaut.png", "coffee.png", "chelsea.png", "hubble_deep_field.jpg")

SHADER = """
@group(0) @binding(0) var photo: texture_2d<f32>;
@group(0) @binding(1) var filtering: sampler;
@vertex fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
    return vec4f(f32(i % 2) * 4 - 1, f32(i / 2) * 4 - 1, 0, 1);
}
@fragment fn texel(@builtin(position) at: vec4f) -> @location(0) vec4f {
    return textureSampleLevel(photo, filtering, at.xy / SIDE, 0);
}
""".replace("SIDE", f"{SIDE}.0")


def mip_chain(path: Path) -> list[np.ndarray]:
    """The middle square of a photograph at SIDE × SIDE texels, and its halves down to 1 × 1."""
    with Image.open(path) as file:
        image = file.convert("RGBA")
    side = min(image.size)
    left, top = (image.width - side) // 2, (image.height - side) // 2
    image = image.crop((left, top, left + side, top + side)).resize((SIDE, SIDE), Image.Resampling.LANCZOS)
    return [np.asarray(image.resize((SIDE >> level,) * 2, Image.Resampling.BOX)) for level in range(SIDE.bit_length())]


def encode(pixels: np.ndarray) -> bytes:
    """BC7 blocks; a level smaller than a block is repeated to fill one."""
    height, width = (max(4, extent) for extent in pixels.shape[:2])
    padded = np.pad(pixels, ((0, height - len(pixels)), (0, width - pixels.shape[1]), (0, 0)), "edge")
    return etcpak.compress_bc7(padded.tobytes(), width, height)


def write_ktx2(path: Path, levels: list[bytes]) -> None:
    """A 2D BC7 texture with zstd supercompression; the smallest level first, as KTX 2.0 wants."""
    packed = [zstandard.ZstdCompressor(9).compress(level) for level in levels]
    sample = struct.pack("<HBBIII", 0, 127, 0, 0, 0, 0xFFFFFFFF)  # 128 bits of colour at bit 0
    block = struct.pack("<IHHBBBBIQ", 0, 2, 40, 134, 1, 1, 0, 0x0303, 0) + sample  # 134: BC7; 4 × 4 texels
    descriptor = struct.pack("<I", 4 + len(block)) + block
    start = 80 + 24 * len(levels)
    body, index = b"", []
    for level, content in reversed(list(zip(levels, packed, strict=True))):
        index.insert(0, struct.pack("<3Q", start + len(descriptor) + len(body), len(content), len(level)))
        body += content
    header = struct.pack("<9I", BC7_UNORM, 1, SIDE, SIDE, 0, 0, 1, len(levels), 2)
    header += struct.pack("<4I2Q", start, len(descriptor), 0, 0, 0, 0)
    path.write_bytes(b"\xabKTX 20\xbb\r\n\x1a\n" + header + b"".join(index) + descriptor + body)


class Painter:
    """Draws a texture view over a SIDE × SIDE target and reads that back."""

    def __init__(self, ring: aiostage.StagingRing) -> None:
        self.ring, device = ring, ring.device
        module = device.create_shader_module(code=SHADER)
        usage = wgpu.TextureUsage.RENDER_ATTACHMENT | wgpu.TextureUsage.COPY_SRC
        self.target = device.create_texture(size=(SIDE, SIDE, 1), format="rgba8unorm", usage=usage)
        self.sampler = device.create_sampler(mag_filter="linear", min_filter="linear")
        self.pipeline = device.create_render_pipeline(
            layout="auto",
            vertex={"module": module, "entry_point": "corner"},
            fragment={"module": module, "entry_point": "texel", "targets": [{"format": "rgba8unorm"}]},
            primitive={"topology": "triangle-list"},
        )

    async def draw(self, view: Any) -> np.ndarray:
        device = self.ring.device
        entries = [{"binding": 0, "resource": view}, {"binding": 1, "resource": self.sampler}]
        group = device.create_bind_group(layout=self.pipeline.get_bind_group_layout(0), entries=entries)
        encoder = device.create_command_encoder()
        attachment = {"view": self.target.create_view(), "load_op": "clear", "store_op": "store"}
        render = encoder.begin_render_pass(color_attachments=[attachment])
        render.set_pipeline(self.pipeline)
        render.set_bind_group(0, group)
        render.draw(3)
        render.end()
        await (await self.ring.submit([encoder.finish()]))
        source, layout = {"texture": self.target}, {"bytes_per_row": 4 * SIDE}
        pixels = device.queue.read_texture(source, layout, (SIDE, SIDE, 1))
        return np.frombuffer(pixels, np.uint8).reshape(SIDE, SIDE, 4)


def psnr(one: np.ndarray, other: np.ndarray) -> float:
    """Peak signal-to-noise ratio of two 8-bit RGB images, in dB."""
    error = np.mean((one[..., :3].astype(float) - other[..., :3]) ** 2)
    return float("inf") if error == 0 else 10 * np.log10(255**2 / error)


async def stream_photo(painter: Painter, path: Path, folder: Path) -> tuple[str, list[np.ndarray], list[int]]:
    """Returns a row of the picture: caption, what was drawn at each of SHOWN, and bytes that had arrived by then."""
    chain = mip_chain(path)
    blocks = [encode(pixels) for pixels in chain]
    file = folder / f"{path.stem}.ktx2"
    write_ktx2(file, blocks)
    drawn, arrived, total = {}, {}, 0
    async with aiostage.textures.open(painter.ring, file) as stream:
        async for level in stream:
            total += stream.info.levels[level].nbytes
            drawn[level], arrived[level] = await painter.draw(stream.view()), total
    rgba8, quality = sum(pixels.nbytes for pixels in chain), psnr(drawn[0], chain[0])
    decoded = np.frombuffer(texture2ddecoder.decode_bc7(blocks[0], SIDE, SIDE), np.uint8).reshape(SIDE, SIDE, 4)
    same = np.abs(drawn[0].astype(int) - decoded[..., [2, 1, 0, 3]]).max() <= 1  # it decodes to BGRA
    saved = 1 - stream.info.nbytes / rgba8
    print(
        f"{path.name:<24} RGBA8 {rgba8 / 1024:6.0f} KiB   BC7 {stream.info.nbytes / 1024:5.0f} KiB "
        f"({saved:.1%} less)   file {file.stat().st_size / 1024:5.0f} KiB   PSNR {quality:.1f} dB   "
        f"{'as decoded on the CPU' if same else 'WRONG: differs from the CPU decoder'}"
    )
    if not same or quality <= 35:
        raise SystemExit(1)
    caption = f"{path.stem}   PSNR {quality:.1f} dB   {stream.info.nbytes / 1024:.0f} KiB instead of {rgba8 / 1024:.0f}"
    return caption, [drawn[level] for level in SHOWN], [arrived[level] for level in SHOWN]


def compose(rows: list[tuple[str, list[np.ndarray], list[int]]]) -> Image.Image:
    """The picture: a row for each photograph, coarse to fine."""
    gap, head, line = 14, 96, 34
    width, height = gap + len(SHOWN) * (TILE + gap), head + len(rows) * (line + TILE + gap)
    page = Image.new("RGB", (width, height), "#14171c")
    draw = ImageDraw.Draw(page)
    title, plain = ImageFont.load_default(24), ImageFont.load_default(15)
    draw.text((gap, 14), "BC7 textures, drawn while they arrive: coarsest mip level first", "#ffffff", title)
    for column, (level, nbytes) in enumerate(zip(SHOWN, rows[0][2], strict=True)):
        size = f"{nbytes / 1024:.1f} KiB" if nbytes < 10240 else f"{nbytes / 1024:.0f} KiB"
        left = gap + column * (TILE + gap)
        draw.text((left, 52), f"level {level}: {SIDE >> level} x {SIDE >> level}", "#9fd0ff", plain)
        draw.text((left, 72), f"after {size}", "#8a94a3", plain)
    for number, (caption, tiles, _) in enumerate(rows):
        top = head + number * (line + TILE + gap)
        draw.text((gap, top + 9), caption, "#dfe5ee", plain)
        for column, tile in enumerate(tiles):
            image = Image.fromarray(tile[..., :3]).resize((TILE, TILE), Image.Resampling.LANCZOS)
            page.paste(image, (gap + column * (TILE + gap), top + line))
    return page


async def main(paths: list[Path], output: Path) -> None:
    adapter = find_adapter()
    if "texture-compression-bc" not in adapter.features:
        raise SystemExit(f"{describe(adapter)} has no BC formats")
    device = adapter.request_device_sync(required_features=["texture-compression-bc"])
    print(describe(adapter))
    async with aiostage.StagingRing(device, ring_count=3, buffer_size=64 * aiostage.KiB) as ring:
        painter = Painter(ring)
        with tempfile.TemporaryDirectory() as folder:
            rows = [await stream_photo(painter, path, Path(folder)) for path in paths]
    photos.write(compose(rows), output)
    print(f"wrote {output}")


def run(arguments: argparse.Namespace) -> None:
    chosen = photos.find(arguments.photographs)
    if not (arguments.photographs or arguments.all):
        chosen = [path for path in chosen if path.name in SHOWN_BY_DEFAULT]
    anyio.run(main, chosen, arguments.output)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("photographs", nargs="*", type=Path)
    parser.add_argument("--all", action="store_true", help="all photographs that scikit-image ships; default: four")
    parser.add_argument("--output", type=Path, default=Path("compressed_textures.png"))
    arguments = parser.parse_args()
    sys.exit(exit_status(parser.prog, lambda: run(arguments)))
