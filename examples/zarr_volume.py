"""A flight through an OME-Zarr volume while it loads: coarsest level first, then what is nearest to the camera.

Draws the maximum intensity along each ray with a compute shader, from the finest chunk that is there at each point, and
writes a picture of what could be seen when. Makes a volume of its own, and compares the last projection with it, unless
one of uint8 is given. Needs: pip install 'aiostage[demo,zarr]'

    python examples/zarr_volume.py [--output zarr_volume.png] [volume.zarr]
"""

from __future__ import annotations

import argparse
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import wgpu
import zarr
from PIL import Image, ImageDraw, ImageFont

import aiostage
from aiostage.streams import sources
from aiostage.tools.demo import photos
from aiostage.tools.demo.gpu import describe, find_adapter
from aiostage.tools.status import exit_status

SIDE = 128  # voxels of the volume that is made
CHUNK = 32
LEVELS = 3
VIEW = 300  # pixels of a picture
SEEN = (0.01, 0.12, 0.25, 0.45, 0.7, 1.0)  # how much has arrived when a picture is drawn
LOADERS = 3  # tasks that share the pyramid

SHADER = """
struct Camera { eye: vec4f, right: vec4f, up: vec4f, forward: vec4f, volume: vec4f }  // in voxels of the finest level
@group(0) @binding(0) var<uniform> camera: Camera;
@group(0) @binding(1) var<storage, read> arrived: array<u32>;  // by chunk, of all levels
@group(0) @binding(2) var<storage, read_write> pixels: array<u32>;
TEXTURES
fn intensity(at: vec3f) -> f32 {
    LOOKUPS
    return 0;
}
@compute @workgroup_size(8, 8) fn project(@builtin(global_invocation_id) pixel: vec3u) {
    let side = u32(camera.volume.w);
    if (pixel.x >= side || pixel.y >= side) { return; }
    let at = (vec2f(pixel.xy) + 0.5) / f32(side) * 2 - 1;
    let aside = at.x * camera.right.xyz + at.y * camera.up.xyz;
    let start = camera.eye.xyz + aside * camera.right.w;   // rays are parallel,
    let ray = normalize(camera.forward.xyz + aside * camera.up.w) + 1e-6;  // or come from the eye
    let near = min(-start / ray, (camera.volume.xyz - start) / ray);
    let far = max(-start / ray, (camera.volume.xyz - start) / ray);
    let end = min(far.x, min(far.y, far.z));
    var most = 0.0;
    for (var t = max(0.0, max(near.x, max(near.y, near.z))) + 0.5; t < end; t += 1) {
        most = max(most, intensity(start + t * ray));
    }
    pixels[pixel.y * side + pixel.x] = u32(round(most * 255));
}
"""

LOOKUP = """{{
        let voxel = vec3u(at * vec3f({factors}));
        let chunk = voxel / vec3u({chunks});
        let grid = vec3u({grid});
        if (all(voxel < vec3u({shape})) && arrived[{first} + (chunk.z * grid.y + chunk.y) * grid.x + chunk.x] != 0) {{
            return textureLoad(level{number}, voxel, 0).r;
        }}
    }}
"""


# -- a volume --


def make_volume() -> np.ndarray:
    """A knot in a cloud of dust, uint8 (z, y, x)."""
    rng = np.random.default_rng(3)
    turn = np.linspace(0, 2 * np.pi, 40_000)
    knot = [np.sin(3 * turn), np.sin(turn) + 2 * np.sin(2 * turn), np.cos(turn) - 2 * np.cos(2 * turn)]
    points = np.stack(knot, 1) * (1, 0.32, 0.32) * (0.2, 1, 1) + rng.normal(0, 0.035, (len(turn), 3))
    dust = rng.normal(0, 0.38, (6000, 3))
    density = sum(
        np.histogramdd(each, SIDE, [(-1.1, 1.1)] * 3)[0] * weight for each, weight in ((points, 1.0), (dust, 2.5))
    )
    wave = np.fft.fftfreq(SIDE) ** 2
    blur = np.exp(-18 * (wave[:, None, None] + wave[None, :, None] + wave[None, None, : SIDE // 2 + 1]))
    soft = np.fft.irfftn(np.fft.rfftn(density) * blur, density.shape, axes=(0, 1, 2))
    return (255 * np.clip(soft / np.quantile(soft, 0.9997), 0, 1) ** 0.6).astype(np.uint8)


def write_pyramid(volume: np.ndarray, path: Path) -> None:
    """As OME-Zarr 0.5, each level the mean of two voxels along each axis of the one before."""
    group, datasets = zarr.open_group(path, mode="w", zarr_format=3), []
    for number in range(LEVELS):
        group.create_array(str(number), data=volume, chunks=(CHUNK,) * 3)
        step = 2.0**number
        steps = [
            {"type": "scale", "scale": [step] * 3},
            {"type": "translation", "translation": [step / 2 - 0.5] * 3},
        ]
        datasets.append({"path": str(number), "coordinateTransformations": steps})
        half = volume.shape[0] // 2
        volume = volume.reshape(half, 2, half, 2, half, 2).mean((1, 3, 5)).astype(np.uint8)
    axes = [{"name": name, "type": "space"} for name in "zyx"]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}


# -- drawing --


class Painter:
    """Draws what has arrived of a pyramid."""

    def __init__(self, ring: aiostage.StagingRing, levels: tuple[sources.Level, ...]) -> None:
        self.ring, self.levels, device = ring, levels, ring.device
        self.sizes = [level.shape[::-1] for level in levels]
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
        self.textures = [
            device.create_texture(size=size, dimension="3d", format="r8unorm", usage=usage) for size in self.sizes
        ]
        counts = [math.prod(level.grid) for level in levels]
        self.first = [sum(counts[:number]) for number in range(len(counts))]
        self.arrived = np.zeros(sum(counts), np.uint32)
        usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
        self.flags = device.create_buffer(size=self.arrived.nbytes, usage=usage | wgpu.BufferUsage.STORAGE)
        self.camera = device.create_buffer(size=80, usage=usage | wgpu.BufferUsage.UNIFORM)
        module = device.create_shader_module(code=self._code())
        compute = {"module": module, "entry_point": "project"}
        self.pipeline = device.create_compute_pipeline(layout="auto", compute=compute)

    def _code(self) -> str:
        textures, lookups = [], []
        for number, level in enumerate(self.levels):
            textures.append(f"@group(0) @binding({3 + number}) var level{number}: texture_3d<f32>;")
            values = {
                "factors": [a / b for a, b in zip(self.levels[0].scale, level.scale, strict=True)],
                "chunks": level.chunks,
                "grid": level.grid,
                "shape": level.shape,
            }
            words = {name: ", ".join(map(str, reversed(each))) for name, each in values.items()}
            lookups.append(LOOKUP.format(number=number, first=self.first[number], **words))
        return SHADER.replace("TEXTURES", "\n".join(textures)).replace("LOOKUPS", "".join(lookups))

    async def upload(self, chunk: sources.Chunk) -> None:
        """The next picture has it."""
        await chunk.upload(self.ring, {"texture": self.textures[chunk.level]})
        place = np.ravel_multi_index(chunk.index, self.levels[chunk.level].grid)
        self.arrived[self.first[chunk.level] + place] = 1

    def describe(self) -> str:
        """How many chunks of each level have arrived, the coarsest first."""
        parts = np.split(self.arrived, self.first[1:])
        return "   ".join(f"level {n}: {part.sum()} of {len(part)}" for n, part in reversed(list(enumerate(parts))))

    async def draw(self, side: int, eye: Any, right: Any, up: Any, forward: Any, parallel: float = 0) -> np.ndarray:
        """Maximum intensities, uint8 (side, side); vectors are x, y, z in voxels of the finest level.

        :param parallel: half the width that is seen, of parallel rays; 0: they come from the eye.
        """
        device, spread = self.ring.device, 0.0 if parallel else 0.8
        rows = [(*eye, 0), (*right, parallel), (*up, spread), (*forward, 0), (*self.sizes[0], side)]
        await self.ring.write_buffer(self.camera, 0, np.array(rows, np.float32))
        await self.ring.write_buffer(self.flags, 0, self.arrived)
        usage = wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_SRC
        pixels = device.create_buffer(size=4 * side * side, usage=usage)
        entries = [
            {"binding": n, "resource": {"buffer": each, "offset": 0, "size": each.size}}
            for n, each in enumerate((self.camera, self.flags, pixels))
        ]
        entries += [{"binding": 3 + n, "resource": each.create_view()} for n, each in enumerate(self.textures)]
        encoder = device.create_command_encoder()
        compute = encoder.begin_compute_pass()
        compute.set_pipeline(self.pipeline)
        compute.set_bind_group(
            0, device.create_bind_group(layout=self.pipeline.get_bind_group_layout(0), entries=entries)
        )
        compute.dispatch_workgroups(-(-side // 8), -(-side // 8))
        compute.end()
        await (await self.ring.submit([encoder.finish()]))
        found = np.frombuffer(device.queue.read_buffer(pixels), np.uint32)
        return found.reshape(side, side).astype(np.uint8)

    async def project(self) -> np.ndarray:
        """Along the last axis in the order x, y, z, one pixel a voxel: of a cube, `volume.max(axis=0)`."""
        side = self.sizes[0][0]
        eye = (side / 2, side / 2, -1.0)
        return await self.draw(side, eye, (1, 0, 0), (0, 1, 0), (0, 0, 1), parallel=side / 2)


class Flight:
    """From outside through the volume, on a curve."""

    def __init__(self, size: tuple[int, ...]) -> None:
        self.size = np.array(size, float)
        self.at = 0.0
        """From 0 to 1."""

    def eye(self) -> np.ndarray:
        """x, y, z in voxels of the finest level."""
        angle = 2.2 * self.at - 0.9
        away = 1.25 - 0.85 * self.at
        return self.size * (0.5 + away * np.array([np.sin(angle), 0.25 - 0.3 * self.at, -np.cos(angle)]))

    def camera(self) -> tuple[np.ndarray, ...]:
        """Eye, right, up and forward."""
        eye = self.eye()
        forward = self.size / 2 - eye
        forward /= np.linalg.norm(forward)
        right = np.cross((0, 1, 0), forward)
        right /= np.linalg.norm(right)
        return eye, right, np.cross(forward, right), forward


async def fly(ring: aiostage.StagingRing, path: Path) -> tuple[Painter, list[tuple[str, np.ndarray]]]:
    """The pictures that were drawn on the way, with what had arrived; and the painter, which has all of it then."""
    scale: list[np.ndarray] = []
    flight: list[Flight] = []

    def view() -> tuple[float, ...]:  # in the world, z, y, x
        return tuple((flight[0].eye() * scale[0])[::-1]) if flight else (0.0, 0.0, 0.0)

    pyramid = await sources.zarr_pyramid(path, view).open()
    finest = pyramid.levels[0]
    if finest.array.dtype != np.uint8 or len(pyramid.axes) != 3 or max(finest.shape) > 2048:
        raise SystemExit(f"{path}: {finest.array.dtype} {finest.shape}; volumes of uint8 up to 2048 voxels are drawn")
    painter, pictures = Painter(ring, pyramid.levels), []
    scale.append(np.array(finest.scale[::-1]))
    flight.append(Flight(painter.sizes[0]))
    goals = [max(1, round(part * len(painter.arrived))) for part in SEEN]
    turn = anyio.Lock()

    async def load() -> None:
        async for chunk in pyramid:
            await painter.upload(chunk)
            async with turn:
                while len(pictures) < len(goals) and painter.arrived.sum() >= goals[len(pictures)]:
                    caption = painter.describe()
                    flight[0].at = len(pictures) / (len(goals) - 1)
                    image = await painter.draw(VIEW, *flight[0].camera())
                    pictures.append((caption, image))

    async with anyio.create_task_group() as group:
        for _ in range(LOADERS):
            group.start_soon(load)
    return painter, pictures


# -- the page --

COLOURS = np.array([(4, 5, 18), (58, 18, 95), (158, 40, 100), (236, 105, 60), (252, 190, 70), (255, 252, 225)], float)


def coloured(image: np.ndarray) -> np.ndarray:
    stops = np.linspace(0, 255, len(COLOURS))
    return np.stack([np.interp(image, stops, COLOURS[:, channel]) for channel in range(3)], -1).astype(np.uint8)


def compose(pictures: list[tuple[str, np.ndarray]]) -> Image.Image:
    gap, line, columns = 14, 26, 3
    rows = -(-len(pictures) // columns)
    page = Image.new("RGB", (gap + columns * (VIEW + gap), gap + rows * (VIEW + line + gap)), "#0b0d12")
    draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
    for number, (caption, image) in enumerate(pictures):
        left, top = gap + number % columns * (VIEW + gap), gap + number // columns * (VIEW + line + gap)
        page.paste(Image.fromarray(coloured(image)), (left, top))
        draw.text((left, top + VIEW + 5), caption, "#aab4c4", font)
    return page


async def main(output: Path, path: Path | None = None) -> None:
    adapter = find_adapter()
    device = adapter.request_device_sync()
    print(describe(adapter))
    with tempfile.TemporaryDirectory() as folder:
        volume = None
        if path is None:
            volume, path = make_volume(), Path(folder) / "knot.zarr"
            write_pyramid(volume, path)
        async with aiostage.StagingRing(device, ring_count=4, buffer_size=512 * aiostage.KiB) as ring:
            painter, pictures = await fly(ring, path)
            if volume is not None:
                if not np.array_equal(await painter.project(), volume.max(axis=0)):
                    raise SystemExit("the projection is not that of the volume")
                print(f"the projection of {' × '.join(map(str, volume.shape))} voxels is numpy's, pixel by pixel")
    photos.write(compose(pictures), output)
    print(f"wrote {output}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("volume", nargs="?", type=Path, help="an OME-Zarr group; default: one that is made")
    parser.add_argument("--output", type=Path, default=Path("zarr_volume.png"))
    arguments = parser.parse_args()
    sys.exit(exit_status(parser.prog, lambda: anyio.run(main, arguments.output, arguments.volume)))
