"""fastplotlib's textures are pygfx's: what is streamed into them looks as if fastplotlib had been given it."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import wgpu
from PIL import Image

import aiostage

os.environ.setdefault("RENDERCANVAS_FORCE_OFFSCREEN", "1")  # it looks for a window's library when it is imported
gfx = pytest.importorskip("pygfx", reason="pygfx is not installed: pip install 'aiostage[fastplotlib]'")
fpl = pytest.importorskip("fastplotlib", reason="fastplotlib is not installed: pip install 'aiostage[fastplotlib]'")

from aiostage.pygfx import attach  # noqa: E402

pytestmark = [
    pytest.mark.blocks_loop("fastplotlib draws and reads back on it"),
    pytest.mark.filterwarnings(
        "ignore:.* encountered in divide:RuntimeWarning"
    ),  # in its axes, before they have a size
]

ROOT = Path(__file__).parent.parent


@pytest.fixture
async def ring(adapter: wgpu.GPUAdapter) -> AsyncIterator[aiostage.StagingRing]:
    if gfx.renderers.wgpu.Shared.get_instance() is None:
        gfx.renderers.wgpu.select_adapter(adapter)
    async with aiostage.StagingRing(gfx.renderers.wgpu.get_shared().device, 3, 4096) as ring:
        yield ring


def noise(*shape: int, seed: int) -> np.ndarray:
    return np.random.default_rng(seed).random(shape).astype(np.float32)


def add_image(figure: Any, data: np.ndarray, **options: Any) -> Any:
    return figure[0, 0].add_image(data, vmin=0, vmax=1, **options)


def add_volume(figure: Any, data: np.ndarray) -> Any:
    return figure[0, 0].add_image_volume(data, vmin=0, vmax=1)


def figure_of(cameras: str) -> Any:
    return fpl.Figure(cameras=cameras, canvas="offscreen", size=(100, 100))


def picture(figure: Any) -> np.ndarray:
    return np.asarray(figure.canvas.draw()).copy()


GPU_ALONE = {"cpu_buffer": False, "texture_usage": wgpu.TextureUsage.COPY_DST}


@pytest.mark.parametrize("drawn", [False, True], ids=["before the first draw", "after it"])
@pytest.mark.parametrize("options", [GPU_ALONE, {}], ids=["on the GPU alone", "with data on the CPU"])
@pytest.mark.parametrize("shape", [(40, 60), (40, 60, 4)], ids=["gray", "rgba"])
async def test_an_image_looks_as_if_fastplotlib_had_been_given_it(
    shape: tuple[int, ...], options: dict[str, Any], drawn: bool, ring: aiostage.StagingRing
) -> None:
    old, new = noise(*shape, seed=1), noise(*shape, seed=2)

    def shown() -> tuple[Any, Any]:
        figure = figure_of("2d")
        graphic = add_image(figure, old, **options)
        figure.show()
        if drawn:  # after which fastplotlib lays it out anew
            picture(figure)
        return figure, graphic

    figure, graphic = shown()
    before = picture(figure)
    figure, graphic = shown()
    graphic.data.set_value(graphic, new)
    wanted = picture(figure)
    assert not np.array_equal(before, wanted)

    figure, graphic = shown()
    await (await attach(ring, graphic.data.buffer[0, 0])).write(new)
    assert np.array_equal(picture(figure), wanted)
    if graphic.cpu_buffer:
        assert np.array_equal(graphic.data.value, new)


async def test_so_does_a_slab_of_a_volume(ring: aiostage.StagingRing) -> None:
    old, slab = noise(16, 20, 24, seed=1) / 4, noise(5, 20, 24, seed=2)
    own = figure_of("3d")
    graphic = add_volume(own, old)
    own.show()
    before = picture(own)
    graphic.data[6:11] = slab
    wanted = picture(own)
    assert not np.array_equal(before, wanted)

    figure = figure_of("3d")
    graphic = add_volume(figure, old)
    figure.show()
    await (await attach(ring, graphic.data.buffer[0, 0, 0])).write(slab, offset=(0, 0, 6))
    assert np.array_equal(picture(figure), wanted)
    assert np.array_equal(graphic.data.value[6:11], slab)


def test_the_example_shows_a_volume_that_grows(ring: Callable[[], Any], tmp_path: Path) -> None:
    """In a home without anything."""
    pictures = []
    adapter = gfx.renderers.wgpu.get_shared().adapter.summary
    environment = os.environ | {"HOME": str(tmp_path), "PYGFX_WGPU_ADAPTER_NAME": adapter}
    for frames, slices in ((3, 32), (17, 128)):
        output = tmp_path / f"{frames}.png"
        command = [sys.executable, str(ROOT / "examples" / "fastplotlib_stream.py"), "--offscreen"]
        command += ["--frames", str(frames), "--output", str(output)]
        done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path, env=environment)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith(f"{frames} frames, {slices} of 128 slices")
        pictures.append(np.asarray(Image.open(output)))
    few, all_of_it = (int((shown[30:380, 405:795].max(axis=2) > 100).sum()) for shown in pictures)
    assert all_of_it > 2 * few > 100
    assert not np.array_equal(pictures[0][30:380, :395], pictures[1][30:380, :395]), "the image stands still"
