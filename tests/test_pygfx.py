"""What is streamed into pygfx's textures and buffers looks as if pygfx had uploaded it, pixel by pixel."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any, NamedTuple

import numpy as np
import pytest
import wgpu

import aiostage

gfx = pytest.importorskip("pygfx", reason="pygfx is not installed: pip install 'aiostage[pygfx]'")

from rendercanvas.offscreen import OffscreenRenderCanvas  # noqa: E402

from aiostage import pygfx as adapter_of_pygfx  # noqa: E402
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

    def __init__(self, world_object: Any, camera: Any = None) -> None:
        self._canvas = OffscreenRenderCanvas(size=(SIDE, SIDE), pixel_ratio=1)
        self._renderer = gfx.WgpuRenderer(self._canvas)
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
    **{f"gray {t}": Kind(texture(2), image, *same(t, 40, 50)) for t in ("u1", "i1", "u2", "i2", "u4", "i4", "f2", "f4")},
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


def frame(value: int, *, channels: int = 4) -> np.ndarray:
    return np.full((SIDE, SIDE, channels), value, np.uint8)


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
    stage = minified(texture) if texture.generate_mipmaps else image(texture)
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
    stage = image(texture)
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
    stage, stream = image(texture), await attach(ring, texture)
    stage.draw()
    texture.data[:] = 100
    texture.update_full()
    await stream.write(frame(200)[: SIDE // 2])
    picture = stage.draw()
    assert sorted({int(value) for value in picture[:, 36, 0]}) == [100, 200]
    assert sorted({int(value) for value in texture.data[:, 36, 0]}) == [100, 200]


async def test_what_was_sent_before_a_write_comes_before_it(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(dim=2, size=(SIDE, SIDE, 1), format="4xu1", usage=wgpu.TextureUsage.COPY_DST)
    stage = image(texture)
    stream = await attach(ring, texture)
    texture.send_data((0, 0, 0), frame(100))
    await stream.write(frame(200)[: SIDE // 2])
    assert sorted({int(value) for value in stage.draw()[:, 36, 0]}) == [100, 200]
    texture.send_data((0, 0, 0), frame(50))
    assert (stage.draw()[:, 36, 0] == 50).all()


async def test_what_is_marked_during_a_write_comes_after_it_and_is_whole(ring: aiostage.StagingRing) -> None:
    texture = gfx.Texture(frame(10), dim=2)
    stage, stream = image(texture), await attach(ring, texture)
    stage.draw()
    writing = asyncio.create_task(stream.write(frame(200)[: SIDE // 2]))
    await asyncio.sleep(0)
    texture.data[-8:] = 100
    texture.update_full()
    while not writing.done():
        levels = {int(value) for value in stage.draw()[:, 36, 0]}
        assert levels in ({10}, {10, 200}), "the data on the CPU were uploaded while they changed"
        await asyncio.sleep(0)
    assert {int(value) for value in stage.draw()[:, 36, 0]} == {10, 100, 200}


@pytest.mark.parametrize("way", WAYS)
async def test_writes_at_once_are_made_in_the_order_of_their_calls(way: str, ring: aiostage.StagingRing) -> None:
    texture = WAYS[way]()
    stage, stream = image(texture), await attach(ring, texture)
    channels = 3 if "rgb" in way else 4
    values = [40, 80, 120, 160]
    await asyncio.gather(*(stream.write(frame(value, channels=channels)[: SIDE - value // 4]) for value in values))
    picture = stage.draw()
    assert sorted({int(value) for value in picture[:, 36, 0]} - {0, 10}) == values
    if texture.data is not None:
        assert np.array_equal(picture[::-1, 36, 0], texture.data[:, 36, 0]) or np.array_equal(
            picture[:, 36, 0], texture.data[:, 36, 0]
        )


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


async def test_items_that_are_no_whole_words_take_their_neighbours_along(ring: aiostage.StagingRing) -> None:
    buffer = gfx.Buffer(np.arange(1, 61, dtype=np.uint16).reshape(20, 3), usage=wgpu.BufferUsage.COPY_SRC)
    await (await attach(ring, buffer)).write(np.full((2, 3), 500, np.uint16), offset=3)
    found = np.frombuffer(ring.device.queue.read_buffer(private.wgpu_object(buffer)), np.uint16)
    wanted = np.arange(1, 61, dtype=np.uint16)
    wanted[9:15] = 500
    assert found.tolist() == wanted.tolist()
    assert buffer.data.ravel().tolist() == wanted.tolist()


async def test_what_a_resource_had_is_kept_where_its_usage_lets_it_be(ring: aiostage.StagingRing) -> None:
    """It was made to be read and copied from alone, so it is made anew."""
    buffer = gfx.Buffer(nitems=300, nbytes=1200, format="f4", usage=wgpu.BufferUsage.COPY_SRC)
    device, old = ring.device, private.wgpu_object(buffer)
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer._wgpu_object = device.create_buffer_with_data(data=np.arange(300, dtype=np.float32), usage=usage)
    await attach(ring, buffer)
    assert private.wgpu_object(buffer) is not old
    buffer._wgpu_object = device.create_buffer_with_data(
        data=np.arange(300, dtype=np.float32), usage=wgpu.BufferUsage.COPY_SRC
    )
    other = gfx.Buffer(nitems=300, nbytes=1200, format="f4")
    other._wgpu_object = buffer._wgpu_object
    await (await attach(ring, other)).write(np.full(3, -1, np.float32), offset=5)
    other_buffer = private.wgpu_object(other)
    assert other_buffer is not buffer._wgpu_object
