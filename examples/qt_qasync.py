"""A window of Qt's that shows what a ring streams, on qasync: Qt's loop is an asyncio loop, and the ring lives on it.

    pip install aiostage rendercanvas PySide6 qasync
    python examples/qt_qasync.py

The slider bends the waves, and never hangs: pictures are painted in a thread, and who awaits the ring waits alone.
"""

import anyio
import qasync
from PySide6 import QtWidgets
from qt_window import Window, paint

import aiostage


async def stream(window: Window) -> None:
    picture = paint(0, 1)
    async with aiostage.StagingRing(window.device, ring_count=3, buffer_size=aiostage.MiB) as ring:
        for moment in window.moments():
            picture = await anyio.to_thread.run_sync(paint, *moment)
            await ring.write_texture({"texture": window.texture}, picture, atomic=True)
    await window.finish(picture)


if __name__ == "__main__":
    app = QtWidgets.QApplication([])
    app.setQuitOnLastWindowClosed(False)  # `stream` sees that the window is closed, and the loop ends with it
    shown = Window("aiostage on qasync")
    qasync.run(stream(shown))
