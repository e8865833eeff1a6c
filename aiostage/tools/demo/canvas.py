"""Where frames are drawn: rendercanvas's offscreen canvas, or a window.

`ring.frame()` is awaited and submits by itself, which no canvas's own (synchronous) draw callback can do. So a frame is
drawn into the canvas's current texture first, and what the canvas calls "drawing" only presents it.
"""

from __future__ import annotations

import os
import sys
import warnings
from typing import Any

from ..status import UsageError


class DrawCancelled(Exception):
    """rendercanvas knows this exception by its name: nothing to present."""


class Canvas:
    """A rendercanvas canvas with its texture."""

    def __init__(self, canvas: Any, adapter: Any, device: Any) -> None:
        self._canvas = canvas
        self._context = canvas.get_wgpu_context()
        # The tiles hold sRGB-encoded bytes in a format that does not say so: they must pass through unchanged.
        self.format: str = self._context.get_preferred_format(adapter).removesuffix("-srgb")
        self._context.configure(device=device, format=self.format)
        self._drawn = False
        canvas.request_draw(self._draw)

    @property
    def closed(self) -> bool:
        """Whether the user has closed the window."""
        return bool(self._canvas.get_closed())

    @property
    def visible(self) -> bool:
        """Whether there is anything to draw on: a window may be minimized."""
        return bool(min(self._canvas.get_physical_size()) > 0)

    def texture(self) -> Any:
        """The texture that the next frame is drawn into."""
        self._drawn = True
        return self._context.get_current_texture()

    def present(self) -> None:
        """Show what was drawn."""
        self._canvas.force_draw()

    def image(self) -> Any:
        """What was drawn, as a (height, width, 4) array; offscreen only. Blocks until the GPU is done."""
        return self._canvas.draw()

    def close(self) -> None:
        self._canvas.close()

    def _draw(self) -> None:
        if not self._drawn:
            raise DrawCancelled
        self._drawn = False


def open_offscreen(size: tuple[int, int], adapter: Any, device: Any) -> Canvas:
    from rendercanvas.offscreen import OffscreenRenderCanvas

    return Canvas(OffscreenRenderCanvas(size=size, pixel_ratio=1), adapter, device)


def open_window(size: tuple[int, int], adapter: Any, device: Any) -> Canvas:
    """A window; needs asyncio, whose loop GLFW's canvas shares. Call :func:`check_window` first."""
    from rendercanvas.glfw import GlfwRenderCanvas

    canvas = GlfwRenderCanvas(size=size, title="aiostage demo", update_mode="manual", vsync=False)
    return Canvas(canvas, adapter, device)


def check_window() -> None:
    """Raise UsageError where no window can be opened."""
    if sys.platform == "linux" and not (os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY")):
        raise UsageError("--window needs a display, and neither DISPLAY nor WAYLAND_DISPLAY is set")
    try:
        import glfw
    except ImportError as error:
        raise UsageError("--window needs GLFW: pip install glfw") from error
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        if not glfw.init():
            raise UsageError("--window needs a display, and this one cannot be opened")
