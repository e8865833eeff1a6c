"""`examples/http_tiles.py` and `examples/video.py` as a user runs them: what they say, and all pixels they draw.

What they do by default runs in a process of its own; the rest in this one, which takes a fraction of the time.
"""

from __future__ import annotations

import io
import itertools
import math
import os
import re
import runpy
import socket
import subprocess
import sys
import threading
import types
import wave
from collections.abc import Callable, Iterator
from importlib import import_module
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS
from PIL import Image

import aiostage
from aiostage.streams import UploadQueue, sources
from aiostage.tools.status import UsageError

EXAMPLES = Path(__file__).parent.parent / "examples"
TILE = 256
RNG = np.random.default_rng(5)

pytestmark = pytest.mark.blocks_loop("the examples draw and read back")

Ran = subprocess.CompletedProcess[str]
Run = Callable[..., Ran]


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one to run in, with Python's path for a script, and no proxy before a server of the test's."""
    for name in [name for name in os.environ if name.lower().endswith("_proxy")]:
        monkeypatch.delenv(name)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(EXAMPLES)


@pytest.fixture
def run(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Run:
    """Runs an example in this process."""

    def start(name: str, *arguments: Any) -> Ran:
        monkeypatch.setattr(sys, "argv", [name, *map(str, arguments)])
        with pytest.raises(SystemExit) as ended:
            runpy.run_path(str(EXAMPLES / name), run_name="__main__")
        assert isinstance(ended.value.code, int)
        return Ran(sys.argv, ended.value.code, *capsys.readouterr())

    return start


def run_alone(name: str, tmp_path: Path) -> Ran:
    """Runs an example as it is started by hand, with an empty home."""
    (tmp_path / "home").mkdir()
    environment = {**os.environ, "HOME": str(tmp_path / "home")}
    command = [sys.executable, EXAMPLES / name]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, env=environment)


def pixels(path: Path) -> np.ndarray:
    with Image.open(path) as image:
        return np.asarray(image.convert("RGB")).astype(int)


def is_refused(ran: Ran, item: object) -> None:
    """One line, that names what is wrong; and no traceback."""
    assert ran.returncode == 2, ran.stderr
    (line,) = ran.stderr.splitlines()
    assert str(item) in line


# -- tiles over HTTP --


@pytest.fixture
def tiles() -> types.ModuleType:
    pytest.importorskip("httpx", reason="httpx is not installed: pip install 'aiostage[http]'")
    return import_module("http_tiles")


def corner_of(latitude: float, longitude: float, zoom: int) -> tuple[int, int]:
    """Of a picture of 1280 × 768 around a place, in pixels of the world, in Web Mercator as the textbook has it."""
    angle, side = math.radians(latitude), TILE * 2**zoom
    x = (longitude + 180) / 360 * side
    y = (1 - math.log(math.tan(angle) + 1 / math.cos(angle)) / math.pi) / 2 * side
    return round(x - 640), round(y - 384)


def mosaic(corner: tuple[int, int], zoom: int, tile: Callable[[int, int, int], Image.Image | None]) -> np.ndarray:
    """What a picture shows: tiles, and stripes where there are none."""
    left, top = (n // TILE for n in corner)
    rows, columns = np.mgrid[: 4 * TILE, : 6 * TILE]
    page = np.repeat(np.where((rows + columns) % 16 < 8, 51, 41)[..., None], 3, axis=2)
    for row in range(4):
        for column in range(6):
            x, y = left + column, top + row
            found = tile(zoom, x, y) if 0 <= min(x, y) <= max(x, y) < 2**zoom else None
            if found is not None:
                page[row * TILE :, column * TILE :][:TILE, :TILE] = np.asarray(found.convert("RGB"))
    return page[corner[1] % TILE :, corner[0] % TILE :][:768, :1280]


def counts(said: str) -> tuple[int, ...]:
    """Uploaded, left before their turn, failed."""
    found = re.search(r"^(\d+) tiles uploaded, (\d+) left before their turn, (\d+) failed$", said, re.MULTILINE)
    assert found, said
    return tuple(map(int, found.groups()))


def test_the_map_shows_the_tiles_that_it_makes_pixel_by_pixel(tiles: Any, tmp_path: Path) -> None:
    ran = run_alone("http_tiles.py", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert ran.stdout.endswith("wrote http_tiles.png\n")
    uploaded, _, failed = counts(ran.stdout)
    assert (uploaded >= 24, failed) == (True, 0)
    shown = pixels(tmp_path / "http_tiles.png")
    assert np.array_equal(shown, mosaic(corner_of(76, 78, 4), 4, tiles.tile_server.draw))
    assert len(np.unique(shown.reshape(-1, 3), axis=0)) > 10_000  # it is no flat colour


def contents(x: int, y: int) -> bytes:
    """A PNG file of a tile whose texels say where they are."""
    rows, columns = np.mgrid[:TILE, :TILE]
    with io.BytesIO() as file:
        Image.fromarray(np.stack([rows, columns, (rows * x + columns * y) % 256], -1).astype(np.uint8)).save(
            file, "png"
        )
        return file.getvalue()


BAD = {
    (10, 2): "Client error '404 Not Found' for url 'http://127.0.0.1:",
    (11, 3): "not an image that Pillow can read",
    (12, 2): "image file is truncated",
    (11, 2): "512 × 512 pixels, not 256 × 256",
    (10, 3): "ReadTimeout",
    (12, 3): "Server disconnected",
}


@pytest.fixture
def bad_server(tiles: Any) -> Iterator[tuple[str, list[str]]]:
    """Its address, and what was asked of it. Some of its tiles are not as they should be."""
    asked, is_over = [], threading.Event()

    class Handler(tiles.tile_server.Handler):
        def do_GET(self) -> None:
            asked.append(self.path)
            super().do_GET()

        def tile(self, zoom: int, x: int, y: int) -> bytes:
            good = contents(x, y)
            match BAD.get((x, y), "").split(" ")[0]:
                case "Client":
                    self.answer(404, "text/plain", b"")
                case "not":
                    return b"<html>come back later</html>"
                case "image":
                    return good[: len(good) // 2]
                case "512":
                    with io.BytesIO() as file:
                        Image.new("RGB", (512, 512)).save(file, "png")
                        return file.getvalue()
                case "ReadTimeout":
                    is_over.wait(60)
                    self.close_connection = True
                case "Server":
                    self.close_connection = True
                case _:
                    return good
            return b""

        def answer(self, status: int, kind: str, content: bytes) -> None:
            if status == 404 or content:
                super().answer(status, kind, content)

    with tiles.tile_server.serving(Handler) as url:
        yield url, asked
        is_over.set()


def test_tiles_that_fail_are_named_and_the_rest_is_shown(
    tiles: Any, run: Run, bad_server: tuple[str, list[str]], tmp_path: Path
) -> None:
    url, asked = bad_server
    ran = run("http_tiles.py", "--url", url, "--timeout", 3)
    assert ran.returncode == 0, ran.stderr
    lines = ran.stderr.splitlines()
    assert len(lines) == len(BAD)
    for line, ((x, y), why) in zip(lines, sorted(BAD.items()), strict=True):
        assert line.startswith(f"tile 4/{x}/{y}: {why}")
    uploaded, _, failed = counts(ran.stdout)
    assert failed == len(BAD)
    assert uploaded + failed <= len(asked) == len(set(asked))  # nothing twice; what has left was asked for at most

    def good(_: int, x: int, y: int) -> Any:
        return None if (x, y) in BAD else Image.open(io.BytesIO(contents(x, y)))

    assert np.array_equal(pixels(tmp_path / "http_tiles.png"), mosaic(corner_of(76, 78, 4), 4, good))


def test_a_server_that_is_not_there_gets_one_line(tiles: Any, run: Run, tmp_path: Path) -> None:
    with socket.socket() as nobody:
        nobody.bind(("127.0.0.1", 0))  # and listens to nothing
        url = f"http://127.0.0.1:{nobody.getsockname()[1]}/{{z}}/{{x}}/{{y}}.png"
        is_refused(run("http_tiles.py", "--url", url), url)
    assert not (tmp_path / "http_tiles.png").exists()


@pytest.mark.parametrize("url", ["file:///{z}/{x}/{y}.png", "http://[::1/{z}/{x}/{y}.png"])
def test_an_address_that_is_none_gets_one_line(tiles: Any, run: Run, url: str) -> None:
    is_refused(run("http_tiles.py", "--url", url), f"{url}: no tile can be shown")


@pytest.mark.parametrize(
    ("option", "says"),
    [
        ("--url=http://127.0.0.1/{z}/{x}.png", "{x}.png has not all of {z}, {x} and {y}"),
        ("--url=http://{s}.localhost/{z}/{x}/{y}.png", "{y}.png has more in braces than {z}, {x} and {y}"),
        ("--url=http://127.0.0.1/{z}/{x}/{y}}.png", "{y}}.png has more in braces than {z}, {x} and {y}"),
        ("--at=86,0", "86,0 is no latitude"),
        ("--at=0,1e3", "0,1e3 is no latitude"),
        ("--zoom=23", "--zoom: invalid choice: 23"),
    ],
)
def test_options_of_the_map_that_mean_nothing_are_named(tiles: Any, run: Run, option: str, says: str) -> None:
    is_refused(run("http_tiles.py", option), says)


async def test_the_nearest_are_fetched_first_and_what_scrolled_away_never(tiles: Any, device: wgpu.GPUDevice) -> None:
    asked: list[tuple[int, int]] = []
    may_answer, missing = anyio.Event(), (93, 42)

    async def fetch(tile: tuple[int, int]) -> np.ndarray:
        asked.append(tile)
        await may_answer.wait()
        if tile == missing:
            raise tiles.httpx.ReadTimeout("")
        return tiles.decode(contents(*tile))

    async def look(corner: tuple[int, int]) -> None:
        """And draw a frame."""
        shown.look(picture.move(corner), tasks)
        async with ring.frame(uploads=queue) as frame:
            await picture.draw(frame, shown.arrived)
        await anyio.sleep(0.01)

    def far(tile: tuple[int, int], corner: tuple[int, int]) -> float:
        return math.dist(((tile[0] + 0.5) * TILE, (tile[1] + 0.5) * TILE), (corner[0] + 640, corner[1] + 384))

    start, end = (100 * TILE - 30, 50 * TILE - 10), (90 * TILE + 20, 40 * TILE + 5)
    async with (
        aiostage.StagingRing(device, 3, aiostage.MiB) as ring,
        anyio.create_task_group() as tasks,
        UploadQueue(ring, bytes_per_frame=2 * aiostage.MiB, concurrency=tiles.AT_ONCE) as queue,
    ):
        shown = tiles.Tiles(queue, fetch)
        picture = tiles.TileMap(device, shown.layers, 8)
        await look(start)
        first = list(asked)
        assert len(first) == tiles.AT_ONCE
        nearest = sorted((far((x, y), start), x, y) for x in range(99, 105) for y in range(49, 53))
        assert {(x, y) for _, x, y in nearest[: tiles.AT_ONCE]} == set(first)
        shown.look(picture.move(end), tasks)
        assert queue.statistics().cancelled == 24 - tiles.AT_ONCE
        may_answer.set()
        while shown.waiting:
            await look(end)
        await look(end)  # the first ones have left
        assert sorted(asked) == sorted(first + [(x, y) for x in range(90, 96) for y in range(40, 44)])
        assert set(shown.arrived) == {(x, y) for x in range(90, 96) for y in range(40, 44)} - {missing}
        assert shown.failed == {missing: "ReadTimeout"}
        assert sorted([*shown.arrived.values(), *shown.free]) == list(range(tiles.LAYERS))
        later = [far(tile, end) for tile in asked[tiles.AT_ONCE :]]
        assert max(later[: tiles.AT_ONCE]) <= min(later[-tiles.AT_ONCE :])
        assert queue.statistics().done == tiles.AT_ONCE + 23

    def good(_: int, x: int, y: int) -> Any:
        return None if (x, y) == missing else Image.open(io.BytesIO(contents(x, y)))

    expected = mosaic(end, 8, good)
    assert np.array_equal(np.asarray(picture.read()), expected)


@pytest.mark.parametrize("loop", LOOPS)
def test_the_map_is_drawn_on_every_loop(
    tiles: Any, loop: str, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(import_module("tile_map"), "STEPS", 4)
    options = {"url": None, "zoom": 1, "at": (80.0, 179.5), "timeout": 10.0}
    anyio.run(tiles.launch.draw, tiles.main, tmp_path / "map.png", options, **LOOPS[loop])
    expected = mosaic(corner_of(80, 179.5, 1), 1, tiles.tile_server.draw)  # a small world has an end on all sides
    assert np.array_equal(pixels(tmp_path / "map.png"), expected)
    assert counts(capsys.readouterr().out) == (4, 0, 0)  # nothing is asked for that is none of its tiles


# -- video --


@pytest.fixture
def video() -> types.ModuleType:
    pytest.importorskip("av", reason="PyAV (av) is not installed: pip install 'aiostage[video]'")
    return import_module("video")


def draw(video: Any, path: Path, loop: str = "asyncio") -> Path:
    """The picture of a video."""
    picture = path.with_suffix(".png")
    anyio.run(video.launch.draw, video.main, picture, {"video": path}, **LOOPS[loop])
    return picture


def write(path: Path, av: Any, format: str, space: int, color_range: int, size: tuple[int, int], count: int) -> Path:
    """Frames of noise, without losses, so that every texel has a value of its own."""
    with av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt = *size, format
        stream.codec_context.colorspace, stream.codec_context.color_range = space, color_range
        for _ in range(count):
            frame = av.VideoFrame(*size, format)
            for plane in frame.planes:
                lowest, highest = (0, 255) if color_range == 2 else (16, 235)
                plane.update(RNG.integers(lowest, highest + 1, plane.buffer_size, np.uint8).tobytes())
            frame.colorspace, frame.color_range = space, color_range
            container.mux(stream.encode(frame))
        container.mux(stream.encode())
    return path


def decoded(path: Path, av: Any) -> list[np.ndarray]:
    """As FFmpeg converts it. Where a side is odd it smooths the chroma first: so each sample is repeated here."""
    with av.open(path) as container:
        frames = list(container.decode(video=0))
    if frames[0].width % 2 and frames[0].format.name in ("yuv420p", "yuv422p"):
        frames = [repeated(frame, av) for frame in frames]
    return [frame.to_ndarray(format="rgb24").astype(int) for frame in frames]


def repeated(frame: Any, av: Any) -> Any:
    """In yuv444p, each sample of chroma standing for all pixels that shared it."""
    whole = av.VideoFrame(frame.width, frame.height, "yuv444p")
    whole.colorspace, whole.color_range = frame.colorspace, frame.color_range
    for number, plane in enumerate(whole.planes):
        found = sources.plane(frame, number)
        across, down = -(-frame.width // found.shape[1]), -(-frame.height // found.shape[0])
        texels = found.repeat(down, axis=0).repeat(across, axis=1)[: frame.height, : frame.width]
        plane.update(np.pad(texels, ((0, 0), (0, plane.line_size - frame.width))).tobytes())
    return whole


def check(picture: Path, frames: list[np.ndarray], most: int = 3) -> None:
    """The cells have the last frame of each twelfth, the strip each one's middle column: within so many levels."""
    page, (height, width, _) = pixels(picture), frames[0].shape
    assert page.shape == (8 + 3 * (height + 20) + height + 8, 8 + 4 * (width + 8), 3)
    for cell in range(12):
        left, top = 8 + cell % 4 * (width + 8), 8 + cell // 4 * (height + 20)
        last = frames[-(-(cell + 1) * len(frames) // 12) - 1]
        assert np.abs(page[top : top + height, left : left + width] - last).max() <= most, cell
    strip = page[-8 - height : -8, 8:-8]
    for number, frame in enumerate(frames):
        column = strip[:, int((number + 0.5) * strip.shape[1] / len(frames))]
        assert np.abs(column - frame[:, width // 2]).max() <= most, number


@pytest.mark.parametrize(
    ("format", "space", "color_range", "says"),
    [
        ("yuv420p", 1, 1, "BT.709, limited range"),
        ("yuv420p", 1, 2, "BT.709, full range"),
        ("yuv420p", 5, 1, "BT.601, limited range"),
        ("yuv420p", 2, 0, "BT.601, limited range"),  # nothing is said
        ("yuv422p", 9, 1, "BT.2020, limited range"),
        ("yuv444p", 6, 2, "BT.601, full range"),
        ("bgr0", 0, 2, "BT.709, limited range"),  # becomes that
    ],
)
@pytest.mark.parametrize("size", [(64, 48), (71, 49)], ids=["even", "odd"])
def test_the_gpu_makes_of_every_frame_what_ffmpeg_does(
    video: Any,
    format: str,
    space: int,
    color_range: int,
    says: str,
    size: Any,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    path = write(tmp_path / "noise.mkv", video.av, format, space, color_range, size, 12)
    check(draw(video, path), decoded(path, video.av))
    assert f"noise.mkv: 12 frames of {size[0]} × {size[1]}, {says}\n" in capsys.readouterr().out


@pytest.mark.parametrize("value", [0, 8, 128, 240, 255])
def test_the_older_formats_of_full_range_need_not_say_so(video: Any, value: int) -> None:
    frame = video.av.VideoFrame(16, 16, "yuvj444p")
    for plane, texel in zip(frame.planes, (value, 100, 150), strict=True):
        plane.update(bytes([texel]) * plane.buffer_size)
    said, matrix = video.conversion(frame)
    assert (int(frame.color_range), said) == (0, "BT.601, full range")
    ours = np.clip(255 * matrix @ (value / 255, 100 / 255, 150 / 255, 1), 0, 255)
    assert np.abs(ours - frame.to_ndarray(format="rgb24")[0, 0]).max() <= 2


def test_frames_of_more_than_eight_bits_are_converted_first(video: Any, tmp_path: Path) -> None:
    """To yuv444p, for which FFmpeg smooths the chroma: so a sample and the next are some levels apart here."""
    path, (y, x) = tmp_path / "deep.mkv", np.mgrid[:48, :64] / 64.0
    with video.av.open(path, "w") as container:
        stream = container.add_stream("ffv1", rate=24)
        stream.width, stream.height, stream.pix_fmt, stream.codec_context.colorspace = 64, 48, "yuv420p10le", 1
        for number in range(12):
            colours = np.stack([x, y, (x + y + number / 12) / 3], -1)
            frame = video.av.VideoFrame.from_ndarray((255 * colours).astype(np.uint8), "rgb24")
            container.mux(stream.encode(frame.reformat(format="yuv420p10le", dst_colorspace="ITU709")))
        container.mux(stream.encode())
    check(draw(video, path), decoded(path, video.av), most=8)


def test_every_frame_of_a_longer_video_is_drawn(video: Any, run: Run, tmp_path: Path) -> None:
    video.clips.make(tmp_path / "waves.mp4", 40)
    ran = run("video.py", "waves.mp4", "--output", "waves.png")
    assert (ran.returncode, ran.stderr) == (0, "")
    frames = decoded(tmp_path / "waves.mp4", video.av)
    assert len(frames) == 40
    check(tmp_path / "waves.png", frames)


def test_the_video_that_it_makes_is_the_default(video: Any, tmp_path: Path) -> None:
    ran = run_alone("video.py", tmp_path)
    assert (ran.returncode, ran.stderr) == (0, "")
    assert re.search(
        r"^waves\.mp4: 96 frames of 320 × 180, BT\.\d+, limited range\nwrote video\.png$", ran.stdout, re.M
    )
    page = pixels(tmp_path / "video.png")
    assert page.shape == (796, 1320, 3)
    cells = [page[8 + y * 200 :, 8 + x * 328 :][:180, :320] for y in range(3) for x in range(4)]
    assert all(np.abs(one - other).mean() > 10 for one, other in itertools.pairwise(cells))  # it moves


@pytest.mark.parametrize("loop", LOOPS)
def test_a_video_is_drawn_on_every_loop(video: Any, loop: str, tmp_path: Path) -> None:
    path = write(tmp_path / "noise.mkv", video.av, "yuv420p", 1, 1, (64, 48), 30)
    check(draw(video, path, loop), decoded(path, video.av))


@pytest.mark.parametrize("kind", ["text", "empty", "missing", "folder", "sound"])
def test_a_file_that_is_no_video_gets_one_line(video: Any, run: Run, kind: str, tmp_path: Path) -> None:
    path = tmp_path / "clip.wav"
    match kind:
        case "text":
            path.write_text("not a video\n" * 1000)
        case "empty":
            path.touch()
        case "folder":
            path.mkdir()
        case "sound":
            with wave.open(str(path), "wb") as sound:
                sound.setparams((1, 2, 8000, 0, "NONE", ""))
                sound.writeframes(bytes(1000))
    is_refused(run("video.py", path.name), "clip.wav: ")
    assert not (tmp_path / "video.png").exists()


def test_a_video_that_is_wider_than_any_texture_is_refused(video: Any, tmp_path: Path) -> None:
    path = write(tmp_path / "noise.mkv", video.av, "yuv420p", 1, 1, (64, 48), 1)
    with video.clips.given(path, 64) as clip:
        assert (clip.width, clip.height, clip.packets) == (64, 48, 1)
    with pytest.raises(UsageError, match=r"noise\.mkv: this device has no textures of 64 × 48 pixels"):
        with video.clips.given(path, 63):
            pass


def test_of_a_video_that_ends_too_early_what_is_there_is_drawn(video: Any, run: Run, tmp_path: Path) -> None:
    whole = write(tmp_path / "whole.mkv", video.av, "yuv420p", 1, 1, (64, 48), 24)
    part = tmp_path / "part.mkv"
    part.write_bytes(whole.read_bytes()[: whole.stat().st_size // 2])
    ran = run("video.py", "part.mkv")
    assert ran.returncode == 0, ran.stderr
    frames = decoded(part, video.av)
    assert 8 < len(frames) < 16
    assert f"part.mkv: {len(frames)} frames" in ran.stdout
