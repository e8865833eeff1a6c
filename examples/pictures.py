"""A page of pictures: some frames of a video, and a part of every one. For `video.py`."""

from __future__ import annotations

from typing import Any

import wgpu
from offscreen import Offscreen, read
from PIL import Image, ImageDraw, ImageFont

COLUMNS, CELLS = 4, 12
WIDEST = 320  # pixels of a cell


class Page:
    """The last frame of each twelfth; below, the middle column of every frame. Each is drawn by a fragment shader.

    :param size: of the frames, (width, height) in pixels.
    :param total: how many there are; one more than that is drawn over the last.
    """

    def __init__(self, device: wgpu.GPUDevice, size: tuple[int, int], shader: str, total: int) -> None:
        self.device, self.total, self.drawn = device, max(total, 1), 0
        self.numbers = [-1] * CELLS  # of the frames in the cells
        self.frames = Offscreen(device, size, shader, CELLS)
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
        strip = (min(self.total, device.limits["max-texture-dimension-2d"]), size[1], 1)
        self.strip = device.create_texture(size=strip, format="rgba8unorm", usage=usage)

    def bind(self, *resources: Any) -> None:
        """What the shader reads."""
        self.frames.bind(*resources)

    def draw(self, encoder: wgpu.GPUCommandEncoder) -> None:
        """The next frame: over the last one of its twelfth, and its column into the strip."""
        part = min(self.drawn, self.total - 1)
        cell, column = part * CELLS // self.total, part * self.strip.size[0] // self.total
        self.frames.draw(encoder, cell)
        width, height = self.frames.size
        middle = {"texture": self.frames.texture, "origin": (width // 2, 0, cell)}
        encoder.copy_texture_to_texture(middle, {"texture": self.strip, "origin": (column, 0, 0)}, (1, height, 1))
        self.numbers[cell] = self.drawn
        self.drawn += 1

    def read(self) -> Image.Image:
        """The page. Blocks until the GPU is done."""
        width, height = self.frames.size
        if width > WIDEST:
            width, height = WIDEST, max(1, WIDEST * height // width)
        gap, line = 8, 20
        rows = CELLS // COLUMNS
        page = Image.new("RGB", (gap + COLUMNS * (width + gap), gap + rows * (height + line) + height + gap))
        draw, font = ImageDraw.Draw(page), ImageFont.load_default(12)
        for cell, number in enumerate(self.numbers):
            if number >= 0:
                left, top = gap + cell % COLUMNS * (width + gap), gap + cell // COLUMNS * (height + line)
                page.paste(self.frames.read(cell).resize((width, height), Image.Resampling.BOX), (left, top))
                draw.text((left, top + height + 2), f"frame {number}", "#aab4c4", font)
        strip = read(self.device, self.strip).resize((page.width - 2 * gap, height), Image.Resampling.NEAREST)
        page.paste(strip, (gap, page.height - gap - height))
        return page
