"""Pictures without a window: what `http_tiles.py` and `video.py` draw on."""

from __future__ import annotations

from typing import Any

import numpy as np
import wgpu
from PIL import Image

CORNERS = """
@vertex fn corner(@builtin(vertex_index) i: u32) -> @builtin(position) vec4f {  // a triangle over all of it
    return vec4f(f32(i % 2) * 4 - 1, f32(i / 2) * 4 - 1, 0, 1);
}
"""


class Offscreen:
    """Layers of one size, each drawn by a fragment shader `colour` for all of its pixels.

    :param size: (width, height) in pixels.
    """

    def __init__(self, device: wgpu.GPUDevice, size: tuple[int, int], shader: str, layers: int = 1) -> None:
        self.device, self.size = device, size
        usage = wgpu.TextureUsage.RENDER_ATTACHMENT | wgpu.TextureUsage.COPY_SRC
        self.texture = device.create_texture(size=(*size, layers), format="rgba8unorm", usage=usage)
        module = device.create_shader_module(code=CORNERS + shader)
        self.pipeline = device.create_render_pipeline(
            layout="auto",
            vertex={"module": module, "entry_point": "corner"},
            fragment={"module": module, "entry_point": "colour", "targets": [{"format": "rgba8unorm"}]},
            primitive={"topology": "triangle-list"},
        )

    def bind(self, *resources: Any) -> None:
        """Buffers and texture views for `@group(0)`, by number."""
        entries = [
            {"binding": number, "resource": {"buffer": each} if isinstance(each, wgpu.GPUBuffer) else each}
            for number, each in enumerate(resources)
        ]
        self.group = self.device.create_bind_group(layout=self.pipeline.get_bind_group_layout(0), entries=entries)

    def draw(self, encoder: wgpu.GPUCommandEncoder, layer: int = 0) -> None:
        view = self.texture.create_view(dimension="2d", base_array_layer=layer, array_layer_count=1)
        attachment = {"view": view, "load_op": "clear", "store_op": "store"}
        render = encoder.begin_render_pass(color_attachments=[attachment])
        render.set_pipeline(self.pipeline)
        render.set_bind_group(0, self.group)
        render.draw(3)
        render.end()

    def read(self, layer: int = 0) -> Image.Image:
        """What was drawn. Blocks until the GPU has."""
        return read(self.device, self.texture, layer)


def read(device: wgpu.GPUDevice, texture: wgpu.GPUTexture, layer: int = 0) -> Image.Image:
    """A layer of an rgba8unorm texture, without its alpha."""
    width, height, _ = texture.size
    source, layout = {"texture": texture, "origin": (0, 0, layer)}, {"bytes_per_row": 4 * width}
    pixels = device.queue.read_texture(source, layout, (width, height, 1))
    return Image.fromarray(np.frombuffer(pixels, np.uint8).reshape(height, width, 4)[..., :3])
