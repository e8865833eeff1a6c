"""Map tiles of a land that is nowhere: the same ones each time, for as long as somebody asks.

`http_tiles.py` starts it where it is given no server. Needs: pip install numpy pillow

    python examples/tile_server.py [--port 8000]    # http://127.0.0.1:8000/{z}/{x}/{y}.png
"""

from __future__ import annotations

import argparse
import io
import re
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from threading import Event, Thread

import numpy as np
from PIL import Image, ImageDraw, ImageFont

TILE = 256  # pixels a side
MOST = 22  # zoom
HEIGHTS = [-1.0, -0.25, -0.02, 0.0, 0.02, 0.12, 0.3, 0.5, 0.75, 1.2]
COLOURS = ["#0d2a4d", "#1d5484", "#4d94b8", "#8cc3cf", "#dccf9c", "#7fa35a", "#4f7f45", "#8b7a58", "#a8a29a", "#ffffff"]


def noise(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Smooth values of -1 to 1 for coordinates (columns,) and (rows,): as many rows and columns."""
    fractions, corners = [], []
    for at in (x, y):
        fraction = at - np.floor(at)
        fractions.append(fraction**3 * (fraction * (6 * fraction - 15) + 10))
        corners.append(np.floor(at).astype(np.int64).astype(np.uint32))

    def value(right: int, down: int) -> np.ndarray:
        mixed = (corners[0] + np.uint32(right)) * np.uint32(0x9E3779B1)
        mixed = mixed[None, :] ^ ((corners[1] + np.uint32(down)) * np.uint32(0x85EBCA77))[:, None]
        for shift, factor in ((15, 0x2C1B3C6D), (12, 0x297A2D39)):
            mixed = (mixed ^ (mixed >> np.uint32(shift))) * np.uint32(factor)
        return (mixed ^ (mixed >> np.uint32(15))) / 2.0**31 - 1

    right, down = fractions[0][None, :], fractions[1][:, None]
    above = value(0, 0) * (1 - right) + value(1, 0) * right
    return above * (1 - down) + (value(0, 1) * (1 - right) + value(1, 1) * right) * down


def relief(zoom: int, x: int, y: int) -> np.ndarray:
    """Heights, with a pixel more on each side: (258, 258). Each zoom shows details that are half as large."""
    across, down = ((n * TILE + np.arange(-0.5, TILE + 1)) / TILE / 2**zoom for n in (x, y))
    height = np.full((TILE + 2, TILE + 2), 0.08)
    for octave in range(2, zoom + 7):
        wave = noise(across * 2**octave + 17.3, down * 2**octave - 5.9)
        height += (1 - 2 * np.abs(wave) if octave > 4 else wave) * 0.55 ** (octave - 2) * 0.7
    return height


def draw(zoom: int, x: int, y: int) -> Image.Image:
    """One tile, 256 × 256: colours by height, light from the north-west, and its coordinates."""
    height = relief(zoom, x, y)
    slope = [np.gradient(np.maximum(height, 0), axis=axis)[1:-1, 1:-1] * 25 * 2 ** (zoom / 2) for axis in (0, 1)]
    light = (1 + slope[0] * 0.7 + slope[1] * 0.7) / np.sqrt(1 + slope[0] ** 2 + slope[1] ** 2)
    stops = np.array([[int(colour[i : i + 2], 16) for i in (1, 3, 5)] for colour in COLOURS])
    land = np.stack([np.interp(height[1:-1, 1:-1], HEIGHTS, stops[:, i]) for i in range(3)], -1)
    pixels = np.clip(land * (0.35 + 0.65 * np.clip(light, 0.2, 1.5))[..., None], 0, 255)
    tile = Image.fromarray(pixels.astype(np.uint8))
    pen, font = ImageDraw.Draw(tile), ImageFont.load_default(11)
    pen.line([(0, TILE - 1), (0, 0), (TILE - 1, 0)], "#1a2330")
    pen.text((6, 4), f"{zoom}/{x}/{y}", "#ffffff", font, stroke_width=2, stroke_fill="#1a2330")
    return tile


class Handler(BaseHTTPRequestHandler):
    """Answers GET /{z}/{x}/{y}.png."""

    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        found = re.fullmatch(r"/(\d{1,2})/(\d+)/(\d+)\.png", self.path)
        zoom, x, y = map(int, found.groups()) if found else (0, 1, 0)
        if zoom > MOST or max(x, y) >= 2**zoom:
            return self.answer(404, "text/plain", b"there is no such tile\n")
        return self.answer(200, "image/png", self.tile(zoom, x, y))

    def tile(self, zoom: int, x: int, y: int) -> bytes:
        with io.BytesIO() as file:
            draw(zoom, x, y).save(file, "png")
            return file.getvalue()

    def answer(self, status: int, kind: str, content: bytes) -> None:
        self.send_response(status)
        self.send_header("Content-Type", kind)
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *_: object) -> None: ...


@contextmanager
def serving(handler: type[BaseHTTPRequestHandler] = Handler, port: int = 0) -> Iterator[str]:
    """A server in threads of this process, on this machine alone; the address of its tiles."""
    with ThreadingHTTPServer(("127.0.0.1", port), handler) as server:
        thread = Thread(target=server.serve_forever, args=(0.05,), daemon=True)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}/{{z}}/{{x}}/{{y}}.png"
        finally:
            server.shutdown()
            thread.join()


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--port", type=int, default=8000)
    with serving(port=parser.parse_args().port) as address, suppress(KeyboardInterrupt):
        print(address, flush=True)
        Event().wait()
