"""A window of Qt's that shows what a ring streams, on PySide6.QtAsyncio: the ring has a loop and a thread of its own.

    pip install aiostage rendercanvas PySide6
    python examples/qt_asyncio.py

The slider bends the waves, and never hangs: Qt's loop starts uploads at the ring's manager, and awaits their futures.
"""

import asyncio

import anyio
import numpy as np
import wgpu
from PySide6 import QtAsyncio, QtWidgets
from qt_window import Window, paint

from aiostage import MiB, StagingRing
from aiostage.memory import StagingRingManager


async def upload(ring: StagingRing, texture: wgpu.GPUTexture, time: float, bend: float) -> np.ndarray:
    """On the ring's loop."""
    picture = await anyio.to_thread.run_sync(paint, time, bend)
    await ring.write_texture({"texture": texture}, picture, atomic=True)
    return picture


async def stream(window: Window) -> None:
    picture = paint(0, 1)
    with StagingRingManager(3, 1 * MiB, device=window.device) as manager:
        for moment in window.moments():
            picture = await asyncio.wrap_future(manager.start(upload, window.texture, *moment))
    await window.finish(picture)


if __name__ == "__main__":
    app = QtWidgets.QApplication([])
    app.setQuitOnLastWindowClosed(False)  # `stream` sees that the window is closed, and the loop ends with it
    shown = Window("aiostage on QtAsyncio")
    QtAsyncio.run(stream(shown), keep_running=False)
