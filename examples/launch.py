"""How `http_tiles.py` and `video.py` start: their options, a device, and the file of the picture that they draw."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, NoReturn

import anyio
from PIL import Image

from aiostage.tools.arguments import Parser
from aiostage.tools.demo import photos
from aiostage.tools.demo.gpu import describe, find_adapter
from aiostage.tools.status import exit_status

Main = Callable[..., Awaitable[Image.Image]]
"""Takes a device, and the options by name."""


def run(main: Main, description: str, add_options: Callable[[argparse.ArgumentParser], None]) -> NoReturn:
    """Ends the program, with one line on stderr for what a user can put right."""
    parser = Parser(description=description.splitlines()[0])
    add_options(parser)
    parser.add_argument("--output", type=Path, default=Path(parser.prog).with_suffix(".png"))
    options = vars(parser.parse_args())
    sys.exit(exit_status(parser.prog, lambda: anyio.run(draw, main, options.pop("output"), options)))


async def draw(main: Main, output: Path, options: dict[str, Any]) -> None:
    adapter = find_adapter()
    print(describe(adapter))
    picture = await main(adapter.request_device_sync(), **options)
    photos.write(picture, output)
    print(f"wrote {output}")
