"""The window of `qt_qasync.py` and `qt_asyncio.py`: waves, a slider that bends them, and what tests want to know."""

import argparse
import asyncio
from collections.abc import Iterator

import numpy as np
import wgpu
from PySide6 import QtCore, QtWidgets
from rendercanvas.qt import QRenderWidget

SIZE = 512
Y, X = np.mgrid[-1 : 1 : SIZE * 1j, -1 : 1 : SIZE * 1j]


def paint(time: float, bend: float) -> np.ndarray:
    """(512, 512, 4) uint8; for a thread."""
    waves = [np.sin(20 * np.hypot(X, Y * bend) - time), np.sin(9 * X * bend + time), np.cos(7 * Y - time)]
    return np.stack([*(wave * 100 + 128 for wave in waves), np.full_like(X, 255)], axis=-1).astype(np.uint8)


class Window(QtWidgets.QWidget):
    """Shows its `texture`, of its `device`. Takes the program's options."""

    def __init__(self, title: str) -> None:
        super().__init__(windowTitle=title)
        parser = argparse.ArgumentParser()
        parser.add_argument("--frames", type=int, help="end after so many pictures, and move the slider meanwhile")
        parser.add_argument("--picture", help="save what the window looks like in the end")
        self.options = parser.parse_args()
        self.device = wgpu.gpu.request_adapter_sync(power_preference="high-performance").request_device_sync()
        self.canvas = QRenderWidget(self, max_fps=60)
        self.canvas.setFixedSize(SIZE, SIZE)
        self.slider = QtWidgets.QSlider(QtCore.Qt.Orientation.Horizontal, minimum=1, maximum=100, value=30)
        layout = QtWidgets.QVBoxLayout(self)
        layout.addWidget(self.canvas)
        layout.addWidget(self.slider)
        usage = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.COPY_SRC
        self.texture = self.device.create_texture(size=(SIZE, SIZE, 1), format="rgba8unorm", usage=usage)
        self.context = self.canvas.get_wgpu_context()
        self.context.configure(device=self.device, format="rgba8unorm", usage="RENDER_ATTACHMENT|COPY_DST")
        self.canvas.request_draw(self.draw)
        self.show()

    def draw(self) -> None:
        encoder = self.device.create_command_encoder()
        onto = {"texture": self.context.get_current_texture()}
        encoder.copy_texture_to_texture({"texture": self.texture}, onto, (SIZE, SIZE, 1))
        self.device.queue.submit([encoder.finish()])

    def moments(self) -> Iterator[tuple[float, float]]:
        """What to paint, and when, until the window is closed; each is drawn when the next is asked for."""
        moves: list[None] = []
        timer = QtCore.QTimer(interval=10)  # moves the slider, if no hand does; it stands still when Qt's loop does
        timer.timeout.connect(lambda: moves.append(self.slider.setValue(20 + len(moves) % 60)))
        if self.options.frames:
            timer.start()
        number = 0
        while self.isVisible() and number != self.options.frames:
            yield number / 10, self.slider.value() / 30
            self.canvas.request_draw()
            number += 1
        print(f"pictures streamed: {number}\nturns of the slider meanwhile: {len(moves)}")

    async def finish(self, picture: np.ndarray) -> None:
        """:param picture: that was streamed last."""
        await asyncio.sleep(0.1)  # the last is drawn,
        layout, size = {"bytes_per_row": SIZE * 4}, (SIZE, SIZE, 1)
        seen = self.device.queue.read_texture({"texture": self.texture}, layout, size)
        await asyncio.sleep(0.1)  # and then shown: rendercanvas reads it back as well
        if self.options.picture:
            self.grab().save(self.options.picture)
        print(f"the texture is the last picture: {bytes(seen) == picture.tobytes()}")
