"""The demo: as a user runs it, then its parts."""

from __future__ import annotations

import itertools
import os
import re
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import perfetto
import pytest
from misuse_cases import LOOPS
from PIL import Image

from aiostage import MiB, StagingRing, tracing
from aiostage.tools.arguments import parse_size
from aiostage.tools.demo.app import Demo, create_texture
from aiostage.tools.demo.mosaic import WIDTH, arrange
from aiostage.tools.demo.options import Options
from aiostage.tools.demo.photos import decode, survey
from aiostage.tools.demo.tiles import TILE, count_tiles, cut, interleave, plan, reassemble
from aiostage.tools.demo.timeline import Recording
from aiostage.tools.demo.verify import differing

ROOT = Path(__file__).parent.parent
ENVIRONMENT = os.environ | {"PYTHONASYNCIODEBUG": ""}  # which writes to stderr


def demo(*arguments: object, environment: dict[str, str] | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "examples/staging_ring_demo.py", *map(str, arguments)]
    environment = ENVIRONMENT | (environment or {})
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False, env=environment)


def test_a_short_demo_verifies_every_byte_and_makes_both_pictures(tmp_path: Path) -> None:
    run = demo("--frames", 12, "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "every byte of the texture" in run.stdout
    for name in ("mosaic.png", "timeline.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10
    events = tracing.load(tmp_path / "trace.json")
    perfetto.check(events)
    frames = [event for event in perfetto.slices(events, "submit") if "command_buffers" in event["args"]]
    stalls = re.search(r"^stalls +(\d+)", run.stdout, re.MULTILINE)
    drawn = re.search(r"^frames +(\d+)", run.stdout, re.MULTILINE)
    assert drawn is not None
    assert len(frames) == int(drawn[1]) >= 12
    assert stalls is not None
    assert len(perfetto.slices(events, "stall")) == int(stalls[1])
    assert f"trace     {tmp_path / 'trace.json'}" in run.stdout


def test_the_demo_streams_the_users_own_images(tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 50).save(tmp_path / "noise.png")
    run = demo(tmp_path / "noise.png", "--frames", 6, "--ring-count", 1, "--buffer-size", "64K", "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 photograph")


@pytest.mark.blocks_loop("it makes shaders and reads back")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_demo_needs_no_loop_of_its_own(loop: str, tmp_path: Path) -> None:
    image = tmp_path / "noise.png"
    Image.effect_noise((300, 200), 50).save(image)
    assert anyio.run(Demo(Options((image,), frames=2, output=tmp_path)).run, **LOOPS[loop]) == 0


@pytest.mark.parametrize(
    "arguments",
    [
        ["--buffer-size", "nonsense"],
        ["--buffer-size", "16"],
        ["--ring-count", "0"],
        ["--frames", "-3"],
        ["--coroutines", "many"],
        ["no-such-image.png"],
        ["README.md"],
        ["{empty}"],
        ["x" * 300],
    ],
    ids=str,
)
def test_bad_input_gets_one_clear_line_and_status_2(arguments: list[str], tmp_path: Path) -> None:
    run = demo(*(argument.format(empty=tmp_path) for argument in arguments), "--output", tmp_path / "out")
    assert run.returncode == 2, (run.stdout, run.stderr)
    assert run.stdout == ""
    assert len(run.stderr.splitlines()) == 1, run.stderr
    assert run.stderr.startswith("aiostage demo: ")


def test_without_an_adapter_there_is_one_line_and_status_2(tmp_path: Path) -> None:
    nowhere = str(tmp_path / "none.json")
    hidden = {"VK_ICD_FILENAMES": nowhere, "VK_DRIVER_FILES": nowhere, "__EGL_VENDOR_LIBRARY_FILENAMES": nowhere}
    run = demo("--output", tmp_path, environment=hidden)
    assert run.returncode == 2
    assert run.stderr.startswith("aiostage demo: no usable GPU adapter")
    assert len(run.stderr.splitlines()) == 1


def test_a_window_without_a_display_gets_one_line_and_status_2(tmp_path: Path) -> None:
    run = demo("--window", "--output", tmp_path, environment={"DISPLAY": "", "WAYLAND_DISPLAY": ""})
    assert run.returncode == 2
    assert run.stderr.startswith("aiostage demo: --window needs")
    assert len(run.stderr.splitlines()) == 1


def test_an_image_that_turns_out_broken_while_streaming_ends_the_demo_in_one_line(tmp_path: Path) -> None:
    broken = tmp_path / "broken.jpg"
    Image.effect_noise((600, 600), 50).save(broken)
    broken.write_bytes(broken.read_bytes()[:20_000])  # the header is whole: only decoding notices
    run = demo(broken, "--frames", 6, "--output", tmp_path)
    assert run.returncode == 2
    assert run.stderr.startswith(f"aiostage demo: {broken}: cannot read this image")
    assert len(run.stderr.splitlines()) == 1


@pytest.mark.skipif(
    sys.platform == "win32", reason="Windows has no SIGINT for another process: runs on any other system"
)
def test_ctrl_c_ends_cleanly_with_the_statistics_so_far(tmp_path: Path) -> None:
    command = [sys.executable, "examples/staging_ring_demo.py", "--frames", "100000", "--output", str(tmp_path)]
    # A shell starts background jobs with SIGINT ignored, and its children inherit that.
    process = subprocess.Popen(
        command,
        cwd=ROOT,
        env=ENVIRONMENT,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )
    assert process.stdout is not None
    with process:
        while "round" not in process.stdout.readline().partition(" s ")[2]:  # the first of the lines a second
            assert process.poll() is None
        process.send_signal(signal.SIGINT)
        stdout, stderr = process.communicate(timeout=60)
    assert process.returncode == 130, stderr
    assert stderr == ""
    said = stdout[stdout.index("interrupted") :]
    for word in ("uploads", "stalls", "submits", "loop lag"):
        assert f"\n{word}" in said


@pytest.mark.skipif(sys.platform == "win32", reason="needs a pseudo-terminal: runs on any system but Windows")
def test_a_terminal_gets_the_live_display_instead_of_lines(tmp_path: Path) -> None:
    reader, writer = os.openpty()
    command = [sys.executable, "examples/staging_ring_demo.py", "--frames", "6", "--output", str(tmp_path)]
    with subprocess.Popen(command, cwd=ROOT, stdout=writer, env=ENVIRONMENT | {"TERM": "xterm-256color"}) as process:
        os.close(writer)
        said = b""
        while part := read_terminal(reader):
            said += part
    os.close(reader)
    assert process.returncode == 0
    text = said.decode()
    assert "buffer 2" in text
    assert "╭─ aiostage" in text
    assert "every byte of the texture" in text


def read_terminal(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # Linux's way of saying that the other end is closed
        return b""


def test_tiles_reassemble_to_the_image() -> None:
    random = np.random.default_rng(1)
    sizes = [(1, 1), (TILE, TILE), (TILE + 1, TILE - 1), (3 * TILE - 5, 2 * TILE + 7)]
    planned = plan(sizes)
    layers = [tile.layer for tiles in planned for tile in tiles]
    assert layers == list(range(len(layers)))
    for (width, height), tiles in zip(sizes, planned, strict=True):
        image = random.integers(0, 256, (height, width, 4), np.uint8)
        pixels = [cut(image, tile) for tile in tiles]
        assert all(part.shape == (TILE, TILE, 4) for part in pixels)
        assert len(tiles) == count_tiles(width, height)
        assert np.array_equal(reassemble(tiles, pixels), image)


def test_tiles_of_several_images_take_turns_and_none_is_left_out() -> None:
    planned = plan([(TILE, TILE), (3 * TILE, TILE), (2 * TILE, TILE)])
    order = [tile.layer for tile in interleave(planned, at_once=2)]
    assert order == [0, 1, 2, 3, 4, 5]
    assert sorted(tile.layer for tile in interleave(planned, at_once=3)) == order


def test_more_images_than_fit_are_scaled_down_together(tmp_path: Path) -> None:
    paths = [tmp_path / f"{side}.png" for side in (300, 1200)]
    for path in paths:
        Image.new("RGB", (int(path.stem), int(path.stem))).save(path)
    small, large = survey(paths, max_tiles=12)
    assert count_tiles(small.width, small.height) + count_tiles(large.width, large.height) <= 12
    assert large.width == pytest.approx(4 * small.width, abs=4)
    assert decode(large).shape == (large.height, large.width, 4)


def test_a_camera_held_upright_shows_upright(tmp_path: Path) -> None:
    sideways = Image.new("RGB", (40, 20))
    exif = sideways.getexif()
    exif[0x0112] = 6  # to be turned by 90 degrees
    sideways.save(tmp_path / "photo.jpg", exif=exif)
    (photo,) = survey([tmp_path / "photo.jpg"], max_tiles=1)
    assert (photo.width, photo.height) == (20, 40)
    assert decode(photo).shape == (40, 20, 4)


@pytest.mark.parametrize(
    "sizes",
    [[(400, 300)], [(10, 4000)], [(4000, 10)], [(300, 400)] * 30, [(640, 427), (1411, 1411), (300, 700)]],
    ids=str,
)
def test_the_gallery_shows_every_photograph_whole_and_none_on_another(sizes: list[tuple[int, int]]) -> None:
    places, height = arrange(sizes)
    for place, (photo_width, photo_height) in zip(places, sizes, strict=True):
        assert place.width / place.height == pytest.approx(photo_width / photo_height)
        assert min(place.x, place.y) >= 0
        assert place.x + place.width <= WIDTH + 0.01
        assert place.y + place.height <= height + 0.5
    for a, b in itertools.combinations(places, 2):
        apart = a.x + a.width <= b.x or b.x + b.width <= a.x or a.y + a.height <= b.y or b.y + b.height <= a.y
        assert apart


async def test_a_byte_that_differs_on_the_gpu_is_found(device: Any, tmp_path: Path) -> None:
    Image.effect_noise((300, 300), 50).save(tmp_path / "noise.png")
    photos = survey([tmp_path / "noise.png"], max_tiles=4)
    planned = plan([(300, 300)])
    texture = create_texture(device, 4)
    async with StagingRing(device, ring_count=2, buffer_size=MiB) as ring:
        image = decode(photos[0])
        for tile in planned[0]:
            await ring.write_texture({"texture": texture, "origin": (0, 0, tile.layer)}, cut(image, tile))
        assert await differing(device, texture, photos, planned) == []
        wrong = cut(image, planned[0][2])
        wrong[5, 7, 1] ^= 1
        await ring.write_texture({"texture": texture, "origin": (0, 0, 2)}, wrong)
        assert await differing(device, texture, photos, planned) == [planned[0][2]]


@pytest.mark.parametrize(
    ("text", "size"),
    [("262144", 262144), ("256K", 262144), ("256k", 262144), ("1M", 1 << 20), ("1MiB", 1 << 20), ("2 mb", 2 << 20)],
)
def test_sizes_are_read_as_people_write_them(text: str, size: int) -> None:
    assert parse_size(text) == size


def test_the_timeline_counts_shares_of_time_stalls_and_bytes_where_they_were() -> None:
    def slice_of(tid: int, begin: float, end: float, name: str, **args: int) -> dict[str, Any]:
        return {
            "ph": "X",
            "pid": 1,
            "tid": tid,
            "ts": begin * 1e6,
            "dur": (end - begin) * 1e6,
            "name": name,
            "args": args,
        }

    def title(tid: int, name: str) -> dict[str, Any]:
        return {"ph": "M", "pid": 1, "tid": tid, "ts": 0, "name": "thread_name", "args": {"name": name}}

    events = [
        *(title(1, "ring 3, buffer 0"), title(2, "ring 3, buffer 1"), title(3, "a task"), title(4, "GPU thread")),
        *(slice_of(1, 0, 1, "available"), slice_of(1, 1, 3, "fenced"), slice_of(1, 3, 4, "available")),
        *(slice_of(2, 0, 3, "in_use"), slice_of(2, 3, 4, "fenced")),
        *(slice_of(3, 1, 1.5, "stall"), slice_of(3, 1.5, 2.5, "stall"), slice_of(3, 3, 4, "stall")),
        slice_of(4, 0.5, 0.6, "submit", bytes=4096),
        slice_of(4, 3.5, 3.6, "submit", bytes=8192, command_buffers=1),
    ]
    recording = Recording.of(events)
    edges = np.array([0.0, 2.0, 4.0])
    assert recording.buffers == 2
    assert recording.end == pytest.approx(4.0)
    assert recording.share(0, "fenced", edges).tolist() == pytest.approx([0.5, 0.5])
    assert recording.share(1, "in_use", edges).tolist() == pytest.approx([1.0, 0.5])
    assert recording.share(1, "available", edges).tolist() == [0.0, 0.0]
    assert recording.stalls_in(edges).tolist() == [2, 1]
    assert recording.rate(edges).tolist() == [2048.0, 4096.0]
    assert recording.frames.tolist() == [3.5]
    assert recording.busiest(1.0)[0] == pytest.approx(0.55, abs=0.5)


def test_the_timeline_of_a_trace_without_a_ring_is_empty() -> None:
    recording = Recording.of([])
    assert recording.buffers == 1
    assert recording.share(0, "fenced", np.array([0.0, 1.0])).tolist() == [0.0]
