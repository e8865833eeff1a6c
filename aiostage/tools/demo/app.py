"""One run of the demo, from the command line's options to the exit status."""

from __future__ import annotations

import time
from pathlib import Path
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
import numpy.typing as npt
import wgpu
from PIL import Image

from aiostage import tracing

from ...budget import size_text
from ..printing import print_document, valid
from ..status import UsageError, first_cause
from ..tracer import VIEWER
from . import gpu, photos, report, timeline
from .canvas import Canvas, check_window, open_offscreen, open_window
from .mosaic import Mosaic
from .observe import Observer
from .options import Options
from .stream import LEVELS, Progress, Streamer
from .tiles import ROW_BYTES, TILE, TILE_BYTES, plan
from .verify import differing

FRAME_SECONDS = 1 / 60
TRACE = "trace.json"
MAX_TILES = 1024  # 256 MiB of texture
SCHEMA = "aiostage.demo/1"
LAST_FRAME_SAMPLES = 4  # a side: the picture that is kept is drawn with more care


def run(options: Options) -> int:
    """Run the demo; returns the exit status. Raises UsageError for what the user can put right."""
    demo = Demo(options)
    try:
        return anyio.run(demo.run)
    except BaseException as error:
        if isinstance(first_cause(error), KeyboardInterrupt):
            demo.tell_interrupted()
        raise


class Demo:
    """The run's parts and how far it got, kept here so that an interrupt can still report them."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self.observer: Observer | None = None
        self.progress = Progress(0)
        self.coroutines = 0
        self.adapter: Any = None
        self._frame_drawn = anyio.Event()
        self._drawing = True

    async def run(self) -> int:
        """Stream, draw, verify, write the pictures."""
        options = self.options
        self._check()
        self.adapter = gpu.find_adapter()
        limit = min(MAX_TILES, self.adapter.limits["max-texture-array-layers"])
        self.photos = await anyio.to_thread.run_sync(lambda: photos.survey(photos.find(options.images), limit))
        self.sizes = [(photo.width, photo.height) for photo in self.photos]
        self.planned = plan(self.sizes)
        self.progress = Progress(sum(map(len, self.planned)))
        self.coroutines = min(options.coroutines, self.progress.tiles)  # more would find nothing to do
        self.device = gpu.open_device(self.adapter, self.progress.tiles)
        self.texture = create_texture(self.device, self.progress.tiles)
        async with gpu.open_ring(self.device, options.ring_count, options.buffer_size) as self.ring:
            self.tell_beginning()
            await self._stream_and_draw()
            self._write_mosaic(await self._draw_last_frame())
        self._write_timeline()
        if not options.as_json:
            report.print_statistics(self.observed, self.progress, self.coroutines)
        return await self._verify()

    @property
    def observed(self) -> Observer:
        assert self.observer is not None
        return self.observer

    def _check(self) -> None:
        """Refuse what cannot work before anything is opened."""
        options = self.options
        if options.buffer_size < ROW_BYTES:
            raise UsageError(f"--buffer-size {options.buffer_size} is less than one row of a tile, {ROW_BYTES} bytes")
        if options.window:
            check_window()
        try:
            options.output.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise UsageError(f"--output {options.output}: {error.strerror}") from error

    async def _stream_and_draw(self) -> None:
        self.mosaic = Mosaic(self.device, self.texture, self.sizes, self.planned)
        await self.mosaic.upload(self.ring)
        canvas = self._open_canvas()
        await self._draw_frame(canvas, 0.0)  # compiles the shader, before the clock starts
        observer = self.observer = Observer(self.ring.stats_nowait)
        reporter = report.Reporter(observer, self.progress, self.options.frames, self.options.as_json)
        with tracing.trace(self.options.output / TRACE), reporter.display():
            async with anyio.create_task_group() as watchers:
                watchers.start_soon(observer.sample_for_ever)
                watchers.start_soon(observer.measure_lag_for_ever)
                watchers.start_soon(reporter.print_for_ever)
                async with anyio.create_task_group() as work:
                    work.start_soon(self._stream)
                    work.start_soon(self._draw, canvas)
                watchers.cancel_scope.cancel()
            observer.stop()
        canvas.close()

    def _open_canvas(self) -> Canvas:
        width, height = self.mosaic.size
        if self.options.window:
            return open_window((width, height), self.adapter, self.device)
        if self.adapter.info["adapter_type"] == "CPU":
            # In full size, software drivers need several times a frame's 16 ms.
            width, height = width // 2, height // 2
        return open_offscreen((width, height), self.adapter, self.device)

    async def _stream(self) -> None:
        """All rounds, spread over the frames that will be drawn."""
        observer, progress = self.observed, self.progress
        streamer = Streamer(
            self.ring,
            self.texture,
            self.photos,
            self.planned,
            self.coroutines,
            progress,
            observer.clock,
            observer.look,
        )
        for level in range(len(LEVELS)):
            while self._drawing and progress.frames < level * self.options.frames // len(LEVELS):
                await self._frame_drawn.wait()
            await streamer.round(level)

    async def _draw(self, canvas: Canvas) -> None:
        """Sixty frames a second: as many as were asked for, and on until the last tile is up."""
        observer, progress = self.observed, self.progress
        due = time.perf_counter()
        while not canvas.closed and (
            progress.frames < self.options.frames or progress.uploads < progress.uploads_planned
        ):
            if canvas.visible:
                await self._draw_frame(canvas, observer.clock())
            progress.frames += 1
            self._frame_drawn.set()
            self._frame_drawn = anyio.Event()
            due = max(due + FRAME_SECONDS, time.perf_counter() - FRAME_SECONDS)
            await anyio.sleep(max(0.0, due - time.perf_counter()))
        self._drawing = False
        self._frame_drawn.set()

    async def _draw_frame(self, canvas: Canvas, at: float) -> None:
        async with self.ring.frame() as frame:
            await self.mosaic.draw(frame, canvas.texture(), at, self.progress.arrived)
        if self.options.window:
            canvas.present()

    async def _draw_last_frame(self) -> npt.NDArray[np.uint8]:
        """The finished mosaic, always offscreen: a window's picture cannot be read back."""
        canvas = open_offscreen(self.mosaic.size, self.adapter, self.device)
        long_ago = np.zeros_like(self.progress.arrived)
        async with self.ring.frame() as frame:
            await self.mosaic.draw(frame, canvas.texture(), 1e6, long_ago, LAST_FRAME_SAMPLES)
        await frame.fence
        image: npt.NDArray[np.uint8] = canvas.image()
        canvas.close()
        return image

    def _write_mosaic(self, image: npt.NDArray[np.uint8]) -> None:
        photos.write(Image.fromarray(image).convert("RGB"), self.pictures[0])

    def _write_timeline(self) -> None:
        stats = self.observed.latest
        title = (
            f"{self.progress.uploads} tiles, {size_text(self.progress.bytes)}, through "
            f"{stats.ring_count} staging buffer{'s' * (stats.ring_count > 1)} of {size_text(stats.buffer_size)}"
        )
        subtitle = (
            f"{self.coroutines} coroutines, {stats.buffer_stalls} stalls, {self.progress.frames} frames drawn "
            f"meanwhile; {gpu.describe(self.adapter)}"
        )
        picture = timeline.draw(tracing.load(self.options.output / TRACE), title, subtitle)
        photos.write(picture, self.pictures[1])

    async def _verify(self) -> int:
        wrong = await differing(self.device, self.texture, self.photos, self.planned)
        if self.options.as_json:
            self._print_document(len(wrong))
            return 1 if wrong else 0
        total = f"{self.progress.tiles} tiles, {size_text(self.progress.tiles * TILE_BYTES)}"
        if wrong:
            where = ", ".join(f"{self.photos[tile.photo].path.name} at {tile.x},{tile.y}" for tile in wrong[:3])
            print(f"DIFFERENT {len(wrong)} of {total} do not read back as sent: {where}{' …' * (len(wrong) > 3)}")
        else:
            print(f"verified  every byte of the texture ({total}) equals the photographs")
        print(f"pictures  {', '.join(map(str, self.pictures))}")
        print(f"trace     {self.options.output / TRACE}, to be opened at {VIEWER}")
        return 1 if wrong else 0

    @property
    def pictures(self) -> list[Path]:
        return [self.options.output / name for name in ("mosaic.png", "timeline.png")]

    def _print_document(self, differing: int | None) -> None:
        """`differing`: tiles that do not read back as sent; None if nobody looked."""
        progress = self.progress
        fields = report.figures(self.observed, progress, self.coroutines)
        about = {
            "adapter": gpu.as_document(self.adapter),
            "photographs": len(self.photos),
            "tiles": progress.tiles,
            "interrupted": differing is None,
            "verified": None if differing is None else differing == 0,
            "differing": differing,
            "pictures": [] if differing is None else [valid(str(picture)) for picture in self.pictures],
        }
        print_document(SCHEMA, about | fields)

    def tell_beginning(self) -> None:
        if self.options.as_json:
            return
        count, tiles, rounds = len(self.photos), self.progress.tiles, len(LEVELS)
        print(
            f"{count} photograph{'s' * (count > 1)}, {tiles} tiles of {TILE}×{TILE}, {rounds} rounds from coarse to "
            f"sharp, on {gpu.describe(self.adapter)}",
            flush=True,
        )

    def tell_interrupted(self) -> None:
        if self.options.as_json:
            if self.observer is not None:
                self._print_document(None)
            return
        print("interrupted")
        if self.observer is not None:
            report.print_statistics(self.observer, self.progress, self.coroutines)


def create_texture(device: Any, layers: int) -> Any:
    usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC | wgpu.TextureUsage.TEXTURE_BINDING
    return device.create_texture(size=(TILE, TILE, layers), format="rgba8unorm", usage=usage)
