"""A window of Qt's that shows what a ring streams, on PySide6.QtAsyncio: the ring has a loop and a thread of its own.

    pip install aiostage rendercanvas PySide6
    python examples/qt_asyncio.py

The slider bends the waves, and never hangs: Qt's loop starts uploads at the ring's manager, and awaits their futures.
"""

import argparse
import asyncio

import anyio
import numpy as np
import wgpu
from PySide6 import QtAsyncio, QtCore, QtWidgets
from rendercanvas.qt import QRenderWidget

from aiostage import MiB, StagingRing
from aiostage.memory import StagingRingManager

SIZE = 512
Y, X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]


def paint(time: float, bend: float) -> np.ndarray:
    waves = [np.sin(20 * np.hypot(X, Y * bend) - time), np.sin(9 * X * bend + time), np.cos(7 * Y - time)]
    return np.stack([*(wave * 100 + 128 for wave in waves), np.full_like(X, 255)], axis=-1).astype(np.uint8)


class Window(QtWidgets.QWidget):
    def __init__(self, device: wgpu.GPUDevice) -> None:
        super().__init__(windowTitle="aiostage on QtAsyncio")
        self.device = device
        self.canvas = QRenderWidget(self, max_fps=60)
        self.canvas.setFixedSize(SIZE, SIZE)
        self.slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, minimum=1, maximum=100, value=30)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.canvas)
        layout.addWidget(self.slider)
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
        self.texture = device.create_texture(size=(SIZE, SIZE, 1), format="rgba8unorm", usage=usage)
        self.context = self.canvas.get_wgpu_context()
        self.context.configure(device=device, format="rgba8unorm", usage="RENDER_ATTACHMENT|COPY_DST")
        self.canvas.request_draw(self.draw)

    def draw(self) -> None:
        encoder = self.device.create_command_encoder()
        onto = {"texture": self.context.get_current_texture()}
        encoder.copy_texture_to_texture({"texture": self.texture}, onto, (SIZE, SIZE, 1))
        self.device.queue.submit([encoder.finish()])


async def upload(ring: StagingRing, texture: wgpu.GPUTexture, time: float, bend: float) -> np.ndarray:
    """On the ring's loop."""
    picture = await anyio.to_thread.run_sync(paint, time, bend)
    await ring.write_texture({"texture": texture}, picture, atomic=True)
    return picture


async def stream(window: Window, frames: int | None, file: str | None) -> None:
    moves: list[None] = []
    timer = QtCore.QTimer(interval=10)  # moves the slider, if no hand does; it stands still when Qt's loop does
    timer.timeout.connect(lambda: moves.append(window.slider.setValue(20 + len(moves) % 60)))
    number, picture = 0, paint(0, 1)
    if frames:
        timer.start()
    with StagingRingManager(3, 1 * MiB, device=window.device) as manager:
        while window.isVisible() and number != frames:
            future = manager.start(upload, window.texture, number / 10, window.slider.value() / 30)
            picture = await asyncio.wrap_future(future)
            window.canvas.request_draw()
            number += 1
    print(f"pictures streamed: {number}\nturns of the slider meanwhile: {len(moves)}")
    await asyncio.sleep(0.1)  # the last is drawn,
    seen = window.device.queue.read_texture({"texture": window.texture}, {"bytes_per_row": SIZE * 4}, (SIZE, SIZE, 1))
    await asyncio.sleep(0.1)  # and then shown: rendercanvas reads it back as well
    if file:
        window.grab().save(file)
    print(f"the texture is the last picture: {bytes(seen) == picture.tobytes()}")


if __name__ == "__main__":
    parser = argparse.ArgumentParser()
    parser.add_argument("--frames", type=int, help="end after so many pictures, and move the slider meanwhile")
    parser.add_argument("--picture", help="save what the window looks like in the end")
    arguments = parser.parse_args()
    app = QtWidgets.QApplication([])
    app.setQuitOnLastWindowClosed(False)  # `stream` sees that the window is closed, and the loop ends with it
    adapter = wgpu.gpu.request_adapter_sync(power_preference="high-performance")
    shown = Window(adapter.request_device_sync())
    shown.show()
    QtAsyncio.run(stream(shown, arguments.frames, arguments.picture), keep_running=False)
