"""The demo and the command line, as a user runs them."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

ROOT = Path(__file__).parent.parent


def aiostage(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiostage.cli", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def demo(*arguments: object) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "examples/staging_ring_demo.py", *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


def test_a_short_demo_verifies_every_byte_and_makes_both_pictures(tmp_path: Path) -> None:
    run = demo("--frames", 12, "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert "every byte of the texture" in run.stdout
    for name in ("mosaic.png", "timeline.png"):
        with Image.open(tmp_path / name) as picture:
            assert min(picture.size) > 400
            assert len(picture.convert("RGB").getcolors(1 << 24)) > 10


def test_the_demo_streams_the_users_own_images(tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 50).save(tmp_path / "noise.png")
    run = demo(tmp_path / "noise.png", "--frames", 6, "--ring-count", 1, "--buffer-size", "64K", "--output", tmp_path)
    assert run.returncode == 0, run.stderr
    assert run.stdout.startswith("1 photograph")


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
    ],
    ids=str,
)
def test_bad_input_gets_one_clear_line_and_status_2(arguments: list[str], tmp_path: Path) -> None:
    run = demo(*(argument.format(empty=tmp_path) for argument in arguments), "--output", tmp_path / "out")
    assert run.returncode == 2, (run.stdout, run.stderr)
    assert "Traceback" not in run.stderr
    assert len(run.stderr.strip().splitlines()[-1]) > 20


def test_info_prints_adapters_memory_and_versions() -> None:
    run = aiostage("info")
    assert run.returncode == 0, run.stderr
    for word in ("aiostage", "wgpu", "numpy", "anyio", "Python"):
        assert word.lower() in run.stdout.lower()
