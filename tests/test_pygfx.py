"""What is streamed into pygfx's textures and buffers looks as if pygfx had uploaded it, pixel by pixel."""

from __future__ import annotations

import asyncio
import gc
import json
import os
import runpy
import subprocess
import sys
import weakref
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any, NamedTuple

import anyio
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS
from PIL import Image

import aiostage

gfx = pytest.importorskip("pygfx", reason="pygfx is not installed: pip install 'aiostage[pygfx]'")

from rendercanvas.offscreen import OffscreenRenderCanvas  # noqa: E402

from aiostage.pygfx import attach, private, regions  # noqa: E402

pytestmark = pytest.mark.blocks_loop("pygfx draws and reads back on it")

SIDE = 72  # pixels of a picture


@pytest.fixture(scope="module")
def pygfx_device(adapter: wgpu.GPUAdapter) -> wgpu.GPUDevice:
    gfx.renderers.wgpu.select_adapter(adapter)
    return gfx.renderers.wgpu.get_shared().device


@pytest.fixture
async def ring(pygfx_device: wgpu.GPUDevice) -> AsyncIterator[aiostage.StagingRing]:
    """Smaller than most of what is written, which thus comes in several pieces."""
    async with aiostage.StagingRing(pygfx_device, ring_count=3, buffer_size=4096) as ring:
        yield ring


class Stage:
    """A scene with one object, and its pictures."""

    def __init__(self, world_object: Any, camera: Any = None, **options: Any) -> None:
        self._canvas = OffscreenRenderCanvas(size=(SIDE, SIDE), pixel_ratio=1)
        self._renderer = gfx.WgpuRenderer(self._canvas, **options)
        self._scene = gfx.Scene()
        self._scene.add(world_object)
        self._scene.add(gfx.AmbientLight())
        self._camera = camera
        if camera is None:
            self._camera = gfx.OrthographicCamera(SIDE, SIDE)
            self._camera.show_object(self._scene, view_dir=(0.3, 0.2, -1))
        self._canvas.request_draw(lambda: self._renderer.render(self._scene, self._camera))

    def draw(self) -> np.ndarray:
        return np.asarray(self._canvas.draw()).copy()


class Kind(NamedTuple):
    """A kind of resource: how it is made of an array, and drawn."""

    make: Callable[[np.ndarray], Any]
    show: Callable[[Any], Stage]
    old: np.ndarray
    new: np.ndarray
    """The same shape, or of a part of it."""
    offset: Any = None
    size: Any = None


def noise(dtype: Any, *shape: int, seed: int = 0, top: float | None = None) -> np.ndarray:
    rng = np.random.default_rng([seed, *shape])
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return (rng.random(shape) * (top or 1)).astype(dtype)
    info = np.iinfo(dtype)
    return rng.integers(info.min, info.max, shape, endpoint=True).astype(dtype)


def image(texture: Any) -> Stage:
    material = gfx.ImageBasicMaterial(clim=CLIMS.get(texture.format[-2:], (0, 1)))
    return Stage(gfx.Image(gfx.Geometry(grid=texture), material))


CLIMS = {"u1": (0, 255), "i1": (-128, 127), "u2": (0, 65535), "i2": (-32768, 32767)}
CLIMS |= {"u4": (0, 2**32 - 1), "i4": (-(2**31), 2**31 - 1)}


def minified(texture: Any) -> Stage:
    """A picture of it four times as small, which its mipmaps are for."""
    geometry = gfx.plane_geometry(SIDE / 4, SIDE / 4)
    texture_map = gfx.TextureMap(texture, filter="linear")
    camera = gfx.OrthographicCamera(SIDE, SIDE)
    return Stage(gfx.Mesh(geometry, gfx.MeshBasicMaterial(map=texture_map)), camera)


def coloured(texture: Any) -> Stage:
    """An image of a ramp, by a colour map of one dimension."""
    ramp = gfx.Texture(np.linspace(0, 1, 16 * 16, dtype=np.float32).reshape(16, 16), dim=2)
    return Stage(gfx.Image(gfx.Geometry(grid=ramp), gfx.ImageBasicMaterial(clim=(0, 1), map=gfx.TextureMap(texture))))


def volume(texture: Any) -> Stage:
    material = gfx.VolumeMipMaterial(clim=CLIMS.get(texture.format[-2:], (0, 1)))
    return Stage(gfx.Volume(gfx.Geometry(grid=texture), material))


def sky(texture: Any) -> Stage:
    material = gfx.BackgroundSkyboxMaterial(map=gfx.TextureMap(texture))
    camera = gfx.PerspectiveCamera(80)
    camera.look_at((1, 2, 3))
    return Stage(gfx.Background(None, material), camera)


def texture(dim: int, **options: Any) -> Callable[[np.ndarray], Any]:
    return lambda data: gfx.Texture(data, dim=dim, **options)


def points(buffer: Any) -> Stage:
    geometry = gfx.Geometry(positions=buffer)
    return Stage(gfx.Points(geometry, gfx.PointsMaterial(size=9)), gfx.OrthographicCamera(2, 2))


def colours(buffer: Any) -> Stage:
    geometry = gfx.Geometry(positions=noise("f4", buffer.nitems, 3), colors=buffer)
    camera = gfx.OrthographicCamera(2, 2)
    return Stage(gfx.Points(geometry, gfx.PointsMaterial(size=9, color_mode="vertex")), camera)


def faces(buffer: Any) -> Stage:
    geometry = gfx.Geometry(positions=noise("f4", 60, 3) - 0.5, indices=buffer)
    return Stage(gfx.Mesh(geometry, gfx.MeshBasicMaterial(color="#f80")), gfx.OrthographicCamera(1, 1))


def line(buffer: Any) -> Stage:
    """With dashes, which pygfx computes from the positions on the CPU."""
    material = gfx.LineMaterial(thickness=4, dash_pattern=(2, 2), loop=True)
    return Stage(gfx.Line(gfx.Geometry(positions=buffer), material), gfx.OrthographicCamera(2, 2))


def instanced(data: np.ndarray) -> Any:
    """The buffer of a mesh that is drawn several times, of a structured type."""
    mesh = gfx.InstancedMesh(gfx.box_geometry(0.2, 0.2, 0.2), gfx.MeshBasicMaterial(color="#0cf"), len(data))
    mesh.instance_buffer.data[:] = data
    mesh.instance_buffer.mesh = mesh
    return mesh.instance_buffer


def instances(buffer: Any) -> Stage:
    return Stage(buffer.mesh, gfx.OrthographicCamera(2, 2))


def placements(seed: int) -> np.ndarray:
    mesh = gfx.InstancedMesh(None, None, 5)
    for number, at in enumerate(noise("f4", 5, 3, seed=seed) * 2 - 1):
        mesh.set_matrix_at(number, np.array([[1, 0, 0, at[0]], [0, 1, 0, at[1]], [0, 0, 1, 0], [0, 0, 0, 1]], "f4"))
    return mesh.instance_buffer.data.copy()


def same(dtype: str, *shape: int) -> tuple[np.ndarray, np.ndarray]:
    return noise(dtype, *shape, seed=1), noise(dtype, *shape, seed=2)


def part(dtype: str, whole: tuple[int, ...], new: tuple[int, ...]) -> tuple[np.ndarray, np.ndarray]:
    return noise(dtype, *whole, seed=1), noise(dtype, *new, seed=2)


KINDS = {
    **{
        f"gray {t}": Kind(texture(2), image, *same(t, 40, 50)) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4")
    },
    **{f"rg {t}": Kind(texture(2), image, *same(t, 40, 50, 2)) for t in ("u1", "f4")},
    **{f"rgb {t}": Kind(texture(2), image, *same(t, 40, 50, 3)) for t in ("u1", "u2", "i2", "u4", "f2", "f4")},
    **{f"rgba {t}": Kind(texture(2), image, *same(t, 40, 50, 4)) for t in ("u1", "u2", "f4")},
    "one channel as an axis": Kind(texture(2), image, *same("u1", 40, 50, 1)),
    "a part": Kind(texture(2), image, *part("u1", (40, 50), (13, 21)), (17, 5, 0)),
    "a part of rgb": Kind(texture(2), image, *part("u1", (40, 50, 3), (13, 21, 3)), (17, 5, 0)),
    "a size": Kind(texture(2), image, *part("u1", (40, 50), (13 * 21,)), (17, 5, 0), (21, 13, 1)),
    "one pixel": Kind(texture(2), image, *part("f4", (9, 9), (1, 1)), (4, 7, 0)),
    "big-endian": Kind(texture(2), image, *same(">u2", 40, 50)),
    "big-endian rgb": Kind(texture(2), image, *same(">f4", 40, 50, 3)),
    "little into big": Kind(texture(2), image, noise(">f4", 40, 50, seed=1), noise("<f4", 40, 50, seed=2)),
    "strided": Kind(texture(2), image, noise("f4", 40, 50, seed=1), noise("f4", 50, 80, seed=2).T[::2]),
    "strided data": Kind(texture(2), image, noise("f4", 100, 40, seed=1)[::2].T, noise("f4", 40, 50, seed=2)),
    "srgb": Kind(texture(2, colorspace="tex-srgb"), image, *same("u1", 40, 50, 4)),
    "srgb of rgb": Kind(texture(2, colorspace="tex-srgb"), image, *same("u1", 40, 50, 3)),
    "physical": Kind(texture(2, colorspace="physical"), image, *same("f4", 40, 50, 3)),
    "strict": Kind(texture(2, force_contiguous=True), image, *same("u1", 40, 64, 4)),
    "a format of wgpu's": Kind(texture(2, format="rgba8unorm"), image, *same("u1", 40, 50, 4)),
    "mipmaps": Kind(texture(2, generate_mipmaps=True), minified, *same("u1", 64, 64, 4)),
    "mipmaps of rgb": Kind(texture(2, generate_mipmaps=True), minified, *same("u1", 64, 64, 3)),
    "mipmaps of srgb": Kind(texture(2, generate_mipmaps=True, colorspace="tex-srgb"), minified, *same("u1", 48, 80, 3)),
    "mipmaps of gray": Kind(texture(2, generate_mipmaps=True), minified, *same("f4", 50, 70)),
    "mipmaps of a part": Kind(
        texture(2, generate_mipmaps=True), minified, *part("u1", (64, 64, 4), (30, 20, 4)), (5, 9, 0)
    ),
    "colour map": Kind(texture(1), coloured, *same("u1", 32, 4)),
    "colour map of rgb": Kind(texture(1), coloured, *same("f4", 32, 3)),
    "colour map, big-endian": Kind(texture(1), coloured, *same(">f4", 32, 3)),
    "a part of a colour map": Kind(texture(1), coloured, *part("u1", (32, 4), (10, 4)), (7,)),
    "volume": Kind(texture(3), volume, *same("u1", 12, 20, 28)),
    "volume of floats": Kind(texture(3), volume, *same("f4", 12, 20, 28)),
    "volume of rgb": Kind(texture(3), volume, *same("u1", 8, 10, 12, 3)),
    "big-endian volume": Kind(texture(3), volume, *same(">i2", 12, 20, 28)),
    "a slab": Kind(texture(3), volume, *part("u1", (12, 20, 28), (3, 20, 28)), (0, 0, 5)),
    "a brick": Kind(texture(3), volume, *part("f4", (12, 20, 28), (3, 7, 5)), (11, 6, 5)),
    "planes": Kind(texture(2, size=(50, 40, 3), colorspace="yuv444p"), image, *same("u1", 3, 40, 50)),
    "one plane": Kind(
        texture(2, size=(50, 40, 3), colorspace="yuv444p"), image, *part("u1", (3, 40, 50), (1, 40, 50)), (0, 0, 1)
    ),
    "cube": Kind(texture(2, size=(16, 16, 6)), sky, *same("u1", 6, 16, 16, 4)),
    "cube of rgb with mipmaps": Kind(
        texture(2, size=(32, 32, 6), generate_mipmaps=True), sky, *same("u1", 6, 32, 32, 3)
    ),
    "a face of a cube with mipmaps": Kind(
        texture(2, size=(32, 32, 6), generate_mipmaps=True), sky, *part("u1", (6, 32, 32, 4), (2, 32, 32, 4)), (0, 0, 3)
    ),
    "positions": Kind(gfx.Buffer, points, *same("f4", 700, 3)),
    "some positions": Kind(gfx.Buffer, points, *part("f4", (700, 3), (90, 3)), 33),
    "positions by size": Kind(gfx.Buffer, points, *part("f4", (700, 3), (270,)), 33, 90),
    "big-endian positions": Kind(gfx.Buffer, points, *same(">f4", 700, 3)),
    "strided positions": Kind(gfx.Buffer, points, noise("f4", 700, 3, seed=1), noise("f4", 700, 6, seed=2)[:, ::2]),
    "colours": Kind(gfx.Buffer, colours, *same("f4", 300, 4)),
    "indices": Kind(gfx.Buffer, faces, *(noise("u4", 40, 3, seed=seed) % 60 for seed in (1, 2))),
    "a line": Kind(gfx.Buffer, line, *same("f4", 20, 3)),
    "instances": Kind(instanced, instances, placements(1), placements(2)),
}

WITHOUT_DATA = [
    "gray u1", "gray f4", "rgb u1", "rgb f4", "rgba u1", "srgb", "srgb of rgb", "mipmaps", "mipmaps of rgb",
    "mipmaps of gray", "big-endian", "big-endian rgb", "strided", "colour map", "colour map of rgb", "volume",
    "big-endian volume", "planes", "cube", "cube of rgb with mipmaps", "colours", "big-endian positions",
]  # fmt: skip
"""Kinds that are made again of their size and format, as what only the GPU has."""


def by_pygfx(kind: Kind) -> np.ndarray:
    """The picture of its own path."""
    resource = kind.make(kind.old.copy())
    stage = kind.show(resource)
    stage.draw()
    change(kind, resource)
    return stage.draw()


def change(kind: Kind, resource: Any) -> None:
    if isinstance(resource, gfx.Texture):
        offset = regions.triple(kind.offset or 0, "offset", 0)
        region, new = regions.texels(kind.new, resource.view, offset, kind.size)
        resource.view[region.window] = new
        resource.update_range(*region)
    else:
        part, new = regions.items(kind.new, resource.view, kind.offset or 0, kind.size)
        resource.view[part] = new
        resource.update_range(part.start, part.stop - part.start)


async def write(stream: Any, kind: Kind) -> aiostage.Fence:
    options = {key: value for key, value in (("offset", kind.offset), ("size", kind.size)) if value is not None}
    return await stream.write(kind.new, **options)


@pytest.mark.parametrize("attached", ["before the first draw", "after it"])
@pytest.mark.parametrize("name", KINDS)
async def test_it_looks_as_if_pygfx_had_uploaded_it(name: str, attached: str, ring: aiostage.StagingRing) -> None:
    kind = KINDS[name]
    wanted = by_pygfx(kind)
    resource = kind.make(kind.old.copy())
    stage = kind.show(resource)
    if attached == "after it":
        before = stage.draw()
        assert not np.array_equal(before, wanted), "the picture shows nothing of what is written"
    await (await write(await attach(ring, resource), kind))
    assert np.array_equal(stage.draw(), wanted)
    resource.update_full()
    assert np.array_equal(stage.draw(), wanted), "what was streamed is not what is uploaded again"


@pytest.mark.parametrize("attached", ["before the first draw", "after it"])
@pytest.mark.parametrize("name", WITHOUT_DATA)
async def test_so_does_what_has_no_data_on_the_cpu(name: str, attached: str, ring: aiostage.StagingRing) -> None:
    kind = KINDS[name]
    wanted = by_pygfx(kind)
    resource = without_data(kind.make(kind.old))
    stage = kind.show(resource)
    if attached == "after it":
        stage.draw()
    await write(await attach(ring, resource), kind)
    assert np.array_equal(stage.draw(), wanted)
    assert resource.data is None


def without_data(model: Any) -> Any:
    if isinstance(model, gfx.Buffer):
        return gfx.Buffer(nitems=model.nitems, nbytes=model.nbytes, format=model.format)
    options = {"colorspace": model.colorspace, "generate_mipmaps": model.generate_mipmaps}
    return gfx.Texture(dim=model.dim, size=model.size, format=model.format, **options)


# -- what is seen when --


def exactly(texture: Any) -> Stage:
    """An image of as many pixels as the picture has, one for one."""
    camera = gfx.OrthographicCamera(SIDE, SIDE)
    camera.local.position = (SIDE - 1) / 2, (SIDE - 1) / 2, 0
    camera.local.scale_y = -1
    material = gfx.ImageBasicMaterial(clim=(0, 255))
    return Stage(
        gfx.Image(gfx.Geometry(grid=texture), material), camera, pixel_scale=1, pixel_filter="nearest", ppaa="none"
    )


def frame(value: int, *, channels: int = 4) -> np.ndarray:
    texels = np.full((SIDE, SIDE, channels), value, np.uint8)
    texels[..., 3:] = 255
    return texels


WAYS: dict[str, Callable[[], Any]] = {
    "with data": lambda: gfx.Texture(frame(10), dim=2),
    "with data, rgb": lambda: gfx.Texture(frame(10, channels=3), dim=2),
    "without": lambda: gfx.Texture(dim=2, size=(SIDE, SIDE, 1), format="4xu1"),
    "with data and mipmaps": lambda: gfx.Texture(frame(10), dim=2, generate_mipmaps=True),
    "mipmaps without data": lambda: gfx.Texture(dim=2, size=(SIDE, SIDE, 1), format="4xu1", generate_mipmaps=True),
}


@pytest.mark.parametrize("way", WAYS)
async def test_every_draw_meanwhile_shows_all_of_a_write_or_nothing(way: str, ring: aiostage.StagingRing) -> None:
    """Whole, though it takes two rounds of the ring; with its mipmaps, of which two levels are drawn at a time."""
    texture = WAYS[way]()
    stage = minified(texture) if texture.generate_mipmaps else exactly(texture)
    stream, seen = await attach(ring, texture), []
    channels = 3 if "rgb" in way else 4
    for value in range(20, 250, 20):
        writing = asyncio.create_task(stream.write(frame(value, channels=channels)))
        while not writing.done():
            await asyncio.sleep(0)
            seen.append(stage.draw())
        seen.append(stage.draw())
    for picture in seen:
        inner = picture[30:42, 30:42]
        assert (inner == inner[0, 0]).all()
    levels = [int(picture[36, 36, 0]) for picture in seen]
    assert levels == sorted(levels)
    assert len(set(levels)) >= 11


async def test_nothing_of_what_was_streamed_is_uploaded_again_by_draws(
    ring: aiostage.StagingRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    texture = gfx.Texture(frame(10), dim=2)
    stage = exactly(texture)
    stage.draw()
    stream = await attach(ring, texture)
    uploads = []
    write_texture = ring.device.queue.write_texture

    def counted(destination: Any, *arguments: Any) -> Any:
        uploads.append(destination["texture"])
        return write_texture(destination, *arguments)

    monkeypatch.setattr(ring.device.queue, "write_texture", counted)
    for value in (50, 90):
        await stream.write(frame(value))
        assert (stage.draw()[36, 36, :3] == value).all()
    assert private.wgpu_object(texture) not in uploads
    texture.update_full()
    stage.draw()
    assert private.wgpu_object(texture) in uploads, "the test would not have noticed"


async def test_what_was_marked_before_a_write_comes_before_it(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(frame(10), dim=2)
    stage, stream = exactly(texture), await attach(ring, texture)
    stage.draw()
    texture.data[..., :3] = 100
    texture.update_full()
    await stream.write(frame(200)[: SIDE // 2])
    picture = stage.draw()
    assert sorted({int(value) for value in picture[:, 36, 0]}) == [100, 200]
    assert sorted({int(value) for value in texture.data[:, 36, 0]}) == [100, 200]


async def test_what_was_sent_before_a_write_comes_before_it(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(dim=2, size=(SIDE, SIDE, 1), format="4xu1", usage=wgpu.TextureUsage.COPY_DST)
    stage = exactly(texture)
    stream = await attach(ring, texture)
    texture.send_data((0, 0, 0), frame(100))
    await stream.write(frame(200)[: SIDE // 2])
    assert sorted({int(value) for value in stage.draw()[:, 36, 0]}) == [100, 200]
    texture.send_data((0, 0, 0), frame(50))
    assert (stage.draw()[:, 36, 0] == 50).all()


def is_held(resource: Any) -> bool:
    return "_gfx_get_chunk_descriptions" in vars(resource)


async def test_what_is_marked_during_a_write_comes_after_it_and_is_whole(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(frame(10), dim=2)
    stage, stream = exactly(texture), await attach(ring, texture)
    stage.draw()
    writing = asyncio.create_task(stream.write(frame(200)[: SIDE // 2]))
    while not is_held(texture):
        assert not writing.done()
        await asyncio.sleep(0)
    texture.data[-8:, :, :3] = 100
    texture.update_full()
    while not writing.done():
        levels = {int(value) for value in stage.draw()[:, 36, 0]}
        assert levels in ({10}, {10, 200}), "the data on the CPU were uploaded while they changed"
        await asyncio.sleep(0)
    assert {int(value) for value in stage.draw()[:, 36, 0]} == {10, 100, 200}


@pytest.mark.parametrize("way", WAYS)
async def test_writes_at_once_are_made_in_the_order_of_their_calls(way: str, ring: aiostage.StagingRing) -> None:
    texture = WAYS[way]()
    stage, stream = exactly(texture), await attach(ring, texture)
    channels = 3 if "rgb" in way else 4
    values = [40, 80, 120, 160]
    await asyncio.gather(*(stream.write(frame(value, channels=channels)[: SIDE - value // 4]) for value in values))
    rows = stage.draw()[:, 36, 0].tolist()
    ends = [SIDE - value // 4 for value in values]
    wanted = [values[-1]] * ends[3] + [120] * 10 + [80] * 10 + [40] * 10 + [rows[-1]] * 10
    assert rows == wanted
    if texture.data is not None:
        assert texture.data[:, 36, 0].tolist() == rows


# -- what the CPU has --


async def test_the_data_follow_and_what_is_computed_from_them(ring: aiostage.StagingRing) -> None:
    positions = gfx.Buffer(np.zeros((500, 3), np.float32))
    points = gfx.Points(gfx.Geometry(positions=positions), gfx.PointsMaterial())
    stream = await attach(ring, positions)
    before, data = points.get_bounding_box(), positions.data
    await stream.write(np.full((100, 3), 7, np.float32), offset=400)
    assert positions.data is data
    assert (data[:400] == 0).all()
    assert (data[400:] == 7).all()
    assert before is None or (before[1] == 0).all()
    assert (points.get_bounding_box()[1] == 7).all()


@pytest.mark.parametrize("shape", [(1500, 2000, 4), (12, 600, 800)], ids=str)
async def test_large_data_follow_by_several_threads(
    shape: tuple[int, ...], ring: aiostage.StagingRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("aiostage.pygfx.stream.os.cpu_count", lambda: 4)
    texels = np.random.default_rng(5).integers(0, 255, shape, np.uint8)
    texture = gfx.Texture(np.zeros_like(texels), dim=2 if shape[-1] == 4 else 3)
    stream = await attach(ring, texture)
    await stream.write(texels)
    np.testing.assert_array_equal(texture.data, texels)
    part = texels[7:500, 3:700] if shape[-1] == 4 else texels[:, 7:500, 3:700]
    await stream.write(part, offset=(9, 11, 0))
    expected = texels.copy()
    window = (slice(11, 504), slice(9, 706)) if shape[-1] == 4 else (slice(None), slice(11, 504), slice(9, 706))
    expected[window] = part
    np.testing.assert_array_equal(texture.data, expected)


async def test_items_that_are_no_whole_words_take_their_neighbours_along(ring: aiostage.StagingRing) -> None:
    buffer = gfx.Buffer(np.arange(1, 61, dtype=np.uint16).reshape(20, 3), usage=wgpu.BufferUsage.COPY_SRC)
    await (await attach(ring, buffer)).write(np.full((2, 3), 500, np.uint16), offset=3)
    found = np.frombuffer(ring.device.queue.read_buffer(private.wgpu_object(buffer)), np.uint16)
    wanted = np.arange(1, 61, dtype=np.uint16)
    wanted[9:15] = 500
    assert found.tolist() == wanted.tolist()
    assert buffer.data.ravel().tolist() == wanted.tolist()


async def test_what_a_resource_had_is_kept_where_its_usage_lets_it_be(ring: aiostage.StagingRing) -> None:
    """It cannot be written to, so it is made anew."""
    buffer = gfx.Buffer(nitems=8, nbytes=32, format="f4", usage=wgpu.BufferUsage.COPY_SRC)
    numbers = np.arange(8, dtype=np.float32)
    buffer._wgpu_object = ring.device.create_buffer_with_data(data=numbers, usage=buffer.usage)
    await (await attach(ring, buffer)).write(np.full(2, -1, np.float32), offset=5)
    found = np.frombuffer(ring.device.queue.read_buffer(private.wgpu_object(buffer)), np.float32)
    assert found.tolist() == [0, 1, 2, 3, 4, -1, -1, 7]


async def test_so_is_what_a_texture_had_with_its_layers(ring: aiostage.StagingRing) -> None:
    size, usage = (16, 16, 6), wgpu.TextureUsage.COPY_SRC
    texture = gfx.Texture(dim=2, size=size, format="u1", usage=usage)
    made = ring.device.create_texture(size=size, format="r8unorm", usage=usage | wgpu.TextureUsage.COPY_DST)
    texels = noise("u1", 6, 16, 16)
    ring.device.queue.write_texture({"texture": made}, texels, {"bytes_per_row": 16, "rows_per_image": 16}, size)
    texture._wgpu_object = only_readable(made)
    await (await attach(ring, texture)).write(texels[:1], offset=(0, 0, 4))
    texels[4] = texels[0]
    source = {"texture": private.wgpu_object(texture)}
    found = ring.device.queue.read_texture(source, {"bytes_per_row": 16, "rows_per_image": 16}, size)
    assert np.array_equal(np.frombuffer(found, np.uint8), texels.ravel())


def only_readable(texture: wgpu.GPUTexture) -> wgpu.GPUTexture:
    """The same, as if it had been rendered to."""
    texture._tex_info["usage"] = wgpu.TextureUsage.COPY_SRC
    return texture


# -- what is refused, and what goes wrong --


@pytest.mark.parametrize(
    ("array", "offset", "size"),
    [
        (noise("u1", 10, 10, 4), (70, 0, 0), None),
        (noise("u1", 10, 10, 4), (0, 0, 1), None),
        (noise("u1", 10, 10, 3), (0, 0, 0), None),
        (noise("u1", 10, 10), (0, 0, 0), None),
        (noise("i1", 10, 10, 4), (0, 0, 0), None),
        (noise("f4", 10, 10, 4), (0, 0, 0), None),
        (noise("u1", 10, 10, 4), (0, 0, 0), (10, 11, 1)),
        (noise("u1", 1, 1, 1, 10, 4), (0, 0, 0), None),
    ],
)
@pytest.mark.parametrize("way", ["with data", "mipmaps without data"])
async def test_texels_that_do_not_fit_are_refused_and_change_nothing(
    array: np.ndarray, offset: Any, size: Any, way: str, ring: aiostage.StagingRing
) -> None:
    texture = WAYS[way]()
    stream = await attach(ring, texture)
    await stream.write(frame(30))
    with pytest.raises(aiostage.InvalidCopy):
        await stream.write(array, offset=offset, size=size)
    assert (exactly(texture).draw()[..., :3] == 30).all()
    assert texture.data is None or (texture.data == frame(30)).all()


@pytest.mark.parametrize(
    ("array", "offset", "size"),
    [
        (noise("f4", 10, 3), 15, None),
        (noise("f4", 10, 4), 0, None),
        (noise("f8", 10, 3), 0, None),
        (noise("i4", 10, 3), 0, None),
        (noise("f4", 10, 3), 0, 11),
    ],
)
async def test_so_are_items(array: np.ndarray, offset: int, size: Any, ring: aiostage.StagingRing) -> None:
    buffer = gfx.Buffer(np.zeros((20, 3), np.float32))
    stream = await attach(ring, buffer)
    with pytest.raises(aiostage.InvalidCopy):
        await stream.write(array, offset=offset, size=size)
    assert not buffer.data.any()


@pytest.mark.parametrize("offset", [-1, 1.0, True, (0, 0, 0, 0), "x"])
async def test_offsets_that_are_none_are_refused(offset: Any, ring: aiostage.StagingRing) -> None:
    for resource in (gfx.Texture(frame(1), dim=2), gfx.Buffer(np.zeros(4, np.float32))):
        with pytest.raises(ValueError, match="offset"):
            await (await attach(ring, resource)).write(resource.data[:1], offset=offset)


async def test_masked_arrays_are_refused(ring: aiostage.StagingRing) -> None:
    for way in WAYS.values():
        with pytest.raises(TypeError, match="mask"):
            await (await attach(ring, way())).write(np.ma.masked_equal(frame(1), 1))


@pytest.mark.parametrize("way", WAYS)
async def test_a_write_that_is_cancelled_is_not_seen(way: str, ring: aiostage.StagingRing) -> None:
    """Or all of it, on the CPU too, if it was made before the cancellation came."""
    texture = WAYS[way]()
    stage, stream = exactly(texture), await attach(ring, texture)
    channels = 3 if "rgb" in way else 4
    await stream.write(frame(30, channels=channels))
    stage.draw()
    outcomes = set()
    for turns in range(12):
        writing = asyncio.create_task(stream.write(frame(60, channels=channels)))
        for _ in range(turns):
            await asyncio.sleep(0)
        cancelled = not writing.done() and writing.cancel()
        await asyncio.gather(writing, return_exceptions=True)
        picture = stage.draw()[..., 0]
        assert (picture == picture[0, 0]).all()
        outcomes.add(int(picture[0, 0]))
        if texture.data is not None:
            assert (texture.data[..., 0] == picture[0, 0]).all()
        assert cancelled or picture[0, 0] == 60
        await stream.write(frame(30, channels=channels))
        assert (stage.draw()[..., 0] == 30).all()
    assert 30 in outcomes


async def test_a_write_that_fails_when_the_gpu_has_it_is_taken_back(
    ring: aiostage.StagingRing, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As one that is cancelled in the turn in which it was submitted."""
    write_texture = aiostage.StagingRing.write_texture

    async def cancelled_late(*arguments: Any, **options: Any) -> None:
        await write_texture(*arguments, **options)
        raise asyncio.CancelledError

    texture = gfx.Texture(frame(30), dim=2)
    stage, stream = exactly(texture), await attach(ring, texture)
    stage.draw()
    with monkeypatch.context() as patched, pytest.raises(asyncio.CancelledError):
        patched.setattr(aiostage.StagingRing, "write_texture", cancelled_late)
        await stream.write(frame(60))
    assert (stage.draw()[..., :3] == 30).all()
    assert (texture.data == frame(30)).all()
    await stream.write(frame(90))
    assert (stage.draw()[..., :3] == 90).all()


async def test_a_ring_that_is_closed_meanwhile_leaves_the_data_as_they_were(pygfx_device: wgpu.GPUDevice) -> None:
    texture = gfx.Texture(frame(30), dim=2)
    stage = exactly(texture)
    stage.draw()
    async with aiostage.StagingRing(pygfx_device, 3, 4096) as ring:
        stream = await attach(ring, texture)
    with pytest.raises(aiostage.RingClosed):
        await stream.write(frame(60))
    with pytest.raises(aiostage.RingClosed):
        await attach(ring, texture)
    assert (stage.draw()[..., :3] == 30).all()
    assert (texture.data == frame(30)).all()


async def test_a_ring_of_another_device_is_refused(pygfx_device: wgpu.GPUDevice, device: wgpu.GPUDevice) -> None:
    texture = gfx.Texture(frame(1), dim=2)
    async with aiostage.StagingRing(device, 1, 4096) as ring:
        with pytest.raises(aiostage.WrongDevice, match="get_shared"):
            await attach(ring, texture)
    assert not texture.usage


async def test_another_pygfx_is_refused(ring: aiostage.StagingRing, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gfx, "__version__", "0.99.0")
    with pytest.raises(aiostage.UnsupportedVersion, match=r"0\.17.*0\.99\.0"):
        await attach(ring, gfx.Texture(frame(1), dim=2))


async def test_only_textures_and_buffers_are_attached(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(frame(1), dim=2)
    for other in (frame(1), gfx.TextureMap(texture), gfx.Image(), private.wgpu_object(texture)):
        with pytest.raises(TypeError, match=r"gfx\.Texture"):
            await attach(ring, other)


async def test_data_that_could_not_follow_are_refused(ring: aiostage.StagingRing) -> None:
    for resource in (gfx.Texture(bytes(64), dim=1), gfx.Buffer(bytes(64))):
        with pytest.raises(ValueError, match="read-only"):
            await attach(ring, resource)


async def test_attached_again_it_has_the_same_stream_and_that_keeps_nothing_alive(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(frame(1), dim=2)
    stream = await attach(ring, texture)
    assert await attach(ring, texture) is stream
    assert repr(stream).startswith("<TextureStream into ")
    gone = weakref.ref(texture)
    del texture, stream
    gc.collect()
    assert gone() is None


@pytest.mark.parametrize("loop", LOOPS)
def test_it_runs_on_every_loop(loop: str, pygfx_device: wgpu.GPUDevice) -> None:
    async def main() -> None:
        texture = gfx.Texture(frame(1, channels=3), dim=2, generate_mipmaps=True)
        stage = exactly(texture)
        async with aiostage.StagingRing(pygfx_device, 2, 4096) as ring:
            stream = await attach(ring, texture)
            for value in (50, 90):
                await (await stream.write(frame(value, channels=3)))
                assert (stage.draw()[..., :3] == value).all()

    anyio.run(main, **LOOPS[loop])


# -- the examples --

EXAMPLES = Path(__file__).parent.parent / "examples"


def run_example(name: str, *arguments: str, home: Path) -> str:
    """As a user runs it, in a home without anything."""
    command = [sys.executable, str(EXAMPLES / f"{name}.py"), "--offscreen", *arguments]
    environment = os.environ | {"HOME": str(home), "PYGFX_WGPU_ADAPTER_NAME": adapter_name()}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=home, env=environment)
    assert done.returncode == 0, done.stderr
    assert not done.stderr
    return done.stdout


def adapter_name() -> str:
    return gfx.renderers.wgpu.get_shared().adapter.summary


def test_the_video_shows_its_last_frame_pixel_by_pixel(pygfx_device: wgpu.GPUDevice, tmp_path: Path) -> None:
    said = run_example("pygfx_video", "--frames", "5", "--output", "video.png", home=tmp_path)
    assert said.startswith("5 frames of 640 × 360")
    picture = np.asarray(Image.open(tmp_path / "video.png"))
    assert np.array_equal(picture, runpy.run_path(str(EXAMPLES / "pygfx_video.py"))["video_frame"](4)[..., :3])


def test_the_volume_is_seen_to_grow(pygfx_device: wgpu.GPUDevice, tmp_path: Path) -> None:
    run_example("pygfx_volume", "--output", "volume.png", home=tmp_path)
    pictures = np.split(np.asarray(Image.open(tmp_path / "volume.png")), 4, axis=1)
    lit = [int((picture.max(axis=2) > 40).sum()) for picture in pictures]
    assert lit == sorted(lit)
    assert lit[3] > 1.5 * lit[1] > 1.5 * lit[0] > 1000


def test_the_benchmark_runs_in_short_and_keeps_its_figures(tmp_path: Path) -> None:
    command = [sys.executable, "-P", "-m", "benchmarks", "gfx", "--quick", "--software", "--out", str(tmp_path)]
    environment = os.environ | {"HOME": str(tmp_path), "PYTHONPATH": str(EXAMPLES.parent)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=180, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr
    (kept,) = tmp_path.glob("*-gfx.json")
    figures = json.loads(kept.read_text())["figures"]
    ways = {"aiostage", "aiostage, with data on the CPU", "update_full", "update_range", "send_data"}
    of_all = [figures[work] for work in figures if isinstance(figures[work], dict)]
    assert len(of_all) == 2
    for found in of_all:
        assert ways <= set(found)
        assert all(found[way]["GB/s"]["p50"] > 0 and found[way]["draw_ms"]["n"] > 0 for way in ways)
