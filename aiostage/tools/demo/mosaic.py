"""Laying the photographs out like a gallery wall, and drawing them from the texture array."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt
import wgpu

import aiostage

from .tiles import TILE, Tile

WIDTH, PREFERRED_HEIGHT, GAP = 1280, 720, 6  # pixels

SHADER = """
struct Frame {
    scale: vec2f,    // layout pixels to clip space
    time: f32,
    samples: u32,    // a side, for each pixel
}
@group(0) @binding(0) var<uniform> frame: Frame;
@group(0) @binding(1) var<storage, read> arrived: array<f32>;   // one time per layer, negative: not yet
@group(0) @binding(2) var layers: texture_2d_array<f32>;
@group(0) @binding(3) var smooth_sampler: sampler;

struct Corner {
    @builtin(position) position: vec4f,
    @location(0) uv: vec2f,
    @location(1) @interpolate(flat) layer: u32,
    @location(2) @interpolate(flat) glow: f32,
    @location(3) @interpolate(flat) shown: f32,
}

@vertex
fn corner(
    @builtin(vertex_index) vertex: u32,
    @builtin(instance_index) layer: u32,
    @location(0) place: vec4f,      // x, y, width, height in layout pixels, from the centre
    @location(1) extent: vec2f,     // the part of the tile that shows the image
) -> Corner {
    let unit = vec2f(f32(vertex & 1u), f32(vertex >> 1u));
    var out: Corner;
    out.position = vec4f((place.xy + unit * place.zw) * frame.scale, 0.0, 1.0);
    out.uv = unit * extent;
    out.layer = layer;
    out.shown = select(0.0, 1.0, arrived[layer] >= 0.0);
    out.glow = out.shown * exp(-8.0 * max(0.0, frame.time - arrived[layer]));
    return out;
}

@fragment
fn colour(in: Corner) -> @location(0) vec4f {
    // Textures have no mip levels here: average a grid of samples over the pixel's footprint instead.
    let across = dpdx(in.uv);
    let down = dpdy(in.uv);
    let n = frame.samples;
    var sum = vec4f(0.0);
    for (var i = 0u; i < n * n; i++) {
        let at = (vec2f(f32(i % n), f32(i / n)) + 0.5) / f32(n) - 0.5;
        sum += textureSampleLevel(layers, smooth_sampler, in.uv + at.x * across + at.y * down, in.layer, 0.0);
    }
    let texel = sum / f32(n * n);
    let empty = vec3f(0.13, 0.15, 0.18);
    let image = mix(empty, texel.rgb, texel.a * in.shown);
    return vec4f(mix(image, vec3f(1.0, 0.72, 0.2), 0.45 * in.glow), 1.0);   // fresh tiles flash amber
}
"""

FRAME = np.dtype([("scale", np.float32, 2), ("time", np.float32), ("samples", np.uint32)])


class Rect(NamedTuple):
    """In pixels, from the layout's upper left corner."""

    x: float
    y: float
    width: float
    height: float


def arrange(sizes: Sequence[tuple[int, int]]) -> tuple[list[Rect], int]:
    """Rows of equal width, every image whole: a place for each (width, height), and the height they all take.

    Of all numbers of rows, the one whose height comes nearest to PREFERRED_HEIGHT.
    """
    aspects = [width / height for width, height in sizes]
    candidates = [rows_of(aspects, count) for count in range(1, len(aspects) + 1)]
    rows = min(candidates, key=lambda rows: abs(sum(map(row_height, rows)) - PREFERRED_HEIGHT))
    # One very tall image would make a layout that no screen shows and no texture holds: shrink it to fit.
    shrink = min(1.0, 2 * PREFERRED_HEIGHT / sum(map(row_height, rows)))
    places, y = [], float(GAP)
    for row in rows:
        height = row_height(row) * shrink
        x = GAP + (1 - shrink) * (WIDTH - 2 * GAP) / 2
        for aspect in row:
            places.append(Rect(x, y, height * aspect, height))
            x += height * aspect + GAP
        y += height + GAP
    return places, round(y)


def rows_of(aspects: Sequence[float], count: int) -> list[list[float]]:
    """Cut the sequence into `count` rows (or fewer) of about the same total aspect ratio."""
    total, before = sum(aspects), 0.0
    rows: dict[int, list[float]] = {}
    for aspect in aspects:
        rows.setdefault(min(count - 1, int(count * (before + aspect / 2) / total)), []).append(aspect)
        before += aspect
    return list(rows.values())


def row_height(row: Sequence[float]) -> float:
    return (WIDTH - GAP * (len(row) + 1)) / sum(row)


class Mosaic:
    """Draws every layer of the texture array at its place; one draw call, one instance per tile."""

    def __init__(
        self,
        device: Any,
        texture: Any,
        sizes: Sequence[tuple[int, int]],
        planned: Sequence[Sequence[Tile]],
    ) -> None:
        places, height = arrange(sizes)
        self.size = (WIDTH, height)
        self._instances = instances(places, sizes, planned, self.size)
        self._tiles = len(self._instances)
        self._device = device
        self._frame = device.create_buffer(
            size=FRAME.itemsize, usage=wgpu.BufferUsage.UNIFORM | wgpu.BufferUsage.COPY_DST
        )
        self._arrived = device.create_buffer(
            size=4 * self._tiles, usage=wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.COPY_DST
        )
        self._vertices = device.create_buffer(
            size=self._instances.nbytes, usage=wgpu.BufferUsage.VERTEX | wgpu.BufferUsage.COPY_DST
        )
        self._layers = texture.create_view(dimension="2d-array")
        self._sampler = device.create_sampler(mag_filter="linear", min_filter="linear")
        self._pipelines: dict[str, tuple[Any, Any]] = {}  # per target format: pipeline, bind group

    async def upload(self, ring: aiostage.StagingRing) -> None:
        """Upload what stays the same in every frame."""
        await ring.write_buffer(self._vertices, 0, self._instances)

    async def draw(
        self,
        frame: aiostage.Frame,
        target: Any,
        time: float,
        arrived: npt.NDArray[np.float32],
        samples: int = 1,
    ) -> None:
        """Record one frame. `arrived` says when each layer was last uploaded; fresh ones glow."""
        await frame.write_buffer(self._frame, 0, self._header(target, time, samples))
        await frame.write_buffer(self._arrived, 0, arrived)
        attachment = {
            "view": target.create_view(),
            "clear_value": (0.06, 0.07, 0.09, 1),
            "load_op": "clear",
            "store_op": "store",
        }
        pipeline, bindings = self._pipeline_for(target.format)
        render_pass = frame.encoder.begin_render_pass(color_attachments=[attachment])
        render_pass.set_pipeline(pipeline)
        render_pass.set_bind_group(0, bindings)
        render_pass.set_vertex_buffer(0, self._vertices)
        render_pass.draw(4, self._tiles)
        render_pass.end()

    def _pipeline_for(self, target_format: str) -> tuple[Any, Any]:
        """A window and the offscreen canvas may differ in format."""
        if target_format not in self._pipelines:
            pipeline = create_pipeline(self._device, target_format)
            resources = ({"buffer": self._frame}, {"buffer": self._arrived}, self._layers, self._sampler)
            bindings = self._device.create_bind_group(
                layout=pipeline.get_bind_group_layout(0),
                entries=[{"binding": number, "resource": resource} for number, resource in enumerate(resources)],
            )
            self._pipelines[target_format] = pipeline, bindings
        return self._pipelines[target_format]

    def _header(self, target: Any, time: float, samples: int) -> npt.NDArray[np.void]:
        width, height, _ = target.size
        zoom = min(width / self.size[0], height / self.size[1])  # whole layout visible, in a window of any shape
        return np.array([((2 * zoom / width, -2 * zoom / height), time, samples)], FRAME)


def instances(
    places: Sequence[Rect],
    sizes: Sequence[tuple[int, int]],
    planned: Sequence[Sequence[Tile]],
    layout: tuple[int, int],
) -> npt.NDArray[np.float32]:
    """One row per layer: x, y, width, height from the layout's centre, then the used part of the tile."""
    rows = []
    for place, (width, _), tiles in zip(places, sizes, planned, strict=True):
        zoom = place.width / width
        for tile in tiles:
            x = place.x + tile.x * zoom - layout[0] / 2
            y = place.y + tile.y * zoom - layout[1] / 2
            rows.append((x, y, tile.width * zoom, tile.height * zoom, tile.width / TILE, tile.height / TILE))
    return np.array(rows, np.float32)


def create_pipeline(device: Any, target_format: str) -> Any:
    module = device.create_shader_module(code=SHADER)
    return device.create_render_pipeline(
        layout="auto",
        vertex={
            "module": module,
            "entry_point": "corner",
            "buffers": [
                {
                    "array_stride": 24,
                    "step_mode": "instance",
                    "attributes": [
                        {"format": "float32x4", "offset": 0, "shader_location": 0},
                        {"format": "float32x2", "offset": 16, "shader_location": 1},
                    ],
                }
            ],
        },
        primitive={"topology": "triangle-strip"},
        fragment={"module": module, "entry_point": "colour", "targets": [{"format": target_format}]},
    )
