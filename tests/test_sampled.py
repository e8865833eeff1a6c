"""What came through the ring, as a shader sees it: mip levels and cube faces sampled, rendered and compared."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import wgpu
from readback import read_texture

pytestmark = pytest.mark.blocks_loop("these make shaders and draw")

SHADER = """
struct Params { level: f32, face: u32, size: vec2f }

@group(0) @binding(0) var<uniform> params: Params;
@group(0) @binding(1) var nearest: sampler;
@group(0) @binding(2) var image: texture_DIMENSION<f32>;

@vertex fn cover(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {
    return vec4f(f32(i & 1) * 4 - 1, f32(i >> 1) * 4 - 1, 0, 1);
}

@fragment fn flat(@builtin(position) at: vec4f) -> @location(0) vec4f {
    return textureSampleLevel(image, nearest, at.xy / params.size, params.level);
}
"""
FLAT = SHADER.replace("DIMENSION", "2d")
# The direction of each point of a face: WebGPU, "texture view dimension cube", faces +X -X +Y -Y +Z -Z.
CUBE = (
    SHADER.replace("DIMENSION", "cube").split("@fragment")[0]
    + """
@fragment fn flat(@builtin(position) at: vec4f) -> @location(0) vec4f {
    let p = at.xy / params.size * 2 - 1;
    var directions = array(
        vec3f(1, -p.y, -p.x), vec3f(-1, -p.y, p.x),
        vec3f(p.x, 1, p.y), vec3f(p.x, -1, -p.y),
        vec3f(p.x, -p.y, 1), vec3f(-p.x, -p.y, -1),
    );
    return textureSampleLevel(image, nearest, directions[params.face], params.level);
}
"""
)
PARAMS = np.dtype([("level", "f4"), ("face", "u4"), ("size", "f4", 2)])
FORMAT = "rgba8unorm"


class Painter:
    """Renders what a shader samples, each picture in a frame of the ring that also uploads the shader's parameters."""

    def __init__(self, device: wgpu.GPUDevice, shader: str, view: wgpu.GPUTextureView) -> None:
        self.device = device
        module = device.create_shader_module(code=shader)
        self.pipeline = device.create_render_pipeline(
            layout="auto",
            vertex={"module": module, "entry_point": "cover"},
            fragment={"module": module, "entry_point": "flat", "targets": [{"format": FORMAT}]},
        )
        usage = wgpu.BufferUsage.UNIFORM | wgpu.BufferUsage.COPY_DST
        self.params = device.create_buffer(size=PARAMS.itemsize, usage=usage)
        bindings = [{"buffer": self.params}, device.create_sampler(), view]
        self.bind_group = device.create_bind_group(
            layout=self.pipeline.get_bind_group_layout(0),
            entries=[{"binding": i, "resource": resource} for i, resource in enumerate(bindings)],
        )

    async def paint(self, ring: Any, size: tuple[int, int], level: int = 0, face: int = 0) -> wgpu.GPUTexture:
        usage = wgpu.TextureUsage.RENDER_ATTACHMENT | wgpu.TextureUsage.COPY_SRC
        target = self.device.create_texture(size=(*size, 1), format=FORMAT, usage=usage)
        async with ring.frame() as frame:
            await frame.write_buffer(self.params, 0, np.array([(level, face, size)], PARAMS))
            attachment = {"view": target.create_view(), "load_op": "clear", "store_op": "store"}
            render = frame.encoder.begin_render_pass(color_attachments=[attachment])
            render.set_pipeline(self.pipeline)
            render.set_bind_group(0, self.bind_group)
            render.draw(3)
            render.end()
        return target


def painted(target: wgpu.GPUTexture) -> np.ndarray:
    return read_texture(target)[0][0].reshape(target.size[1], target.size[0], 4)


@pytest.mark.parametrize("buffer_size", [256, 4096])  # less than one row of the first level, and all of the last ones
async def test_every_level_of_a_mip_chain(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any], buffer_size: int
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=buffer_size)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
    texture = device.create_texture(size=(100, 60, 1), mip_level_count=7, format=FORMAT, usage=usage)
    rng = np.random.default_rng(1)
    levels = [rng.integers(0, 256, (max(1, 60 >> n), max(1, 100 >> n), 4), np.uint8) for n in range(7)]
    for n, image in enumerate(levels):
        await ring.write_texture({"texture": texture, "mip_level": n}, image)

    painter = Painter(device, FLAT, texture.create_view())
    targets = [await painter.paint(ring, (image.shape[1], image.shape[0]), level=n) for n, image in enumerate(levels)]
    for target, image in zip(targets, levels, strict=True):
        np.testing.assert_array_equal(painted(target), image)


async def test_every_face_of_a_cube_map(device: wgpu.GPUDevice, open_ring: Callable[..., Any]) -> None:
    ring = await open_ring(ring_count=2, buffer_size=1024)
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
    texture = device.create_texture(size=(16, 16, 6), mip_level_count=2, format=FORMAT, usage=usage)
    rng = np.random.default_rng(2)
    levels = [rng.integers(0, 256, (6, 16 >> n, 16 >> n, 4), np.uint8) for n in range(2)]
    await ring.write_texture({"texture": texture}, levels[0])  # all faces at once
    async with ring.batch() as batch:
        for face in range(6):  # and one by one
            destination = {"texture": texture, "mip_level": 1, "origin": (0, 0, face)}
            await batch.write_texture(destination, levels[1][face])

    painter = Painter(device, CUBE, texture.create_view(dimension="cube"))
    for level, faces in enumerate(levels):
        targets = [await painter.paint(ring, faces.shape[1:3], level, face) for face in range(6)]
        for target, face in zip(targets, faces, strict=True):
            np.testing.assert_array_equal(painted(target), face)
