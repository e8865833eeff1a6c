"""Finding image files, decoding them to RGBA arrays, writing pictures. Blocking: call from worker threads."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from importlib import resources
from pathlib import Path

import numpy as np
import numpy.typing as npt
from PIL import Image, ImageOps, UnidentifiedImageError

from ..status import UsageError
from .tiles import count_tiles

Pixels = npt.NDArray[np.uint8]

# Photographs that are part of scikit-image's own package: nothing is downloaded.
BUNDLED = (
    "retina.jpg",
    "astronaut.png",
    "coffee.png",
    "hubble_deep_field.jpg",
    "rocket.jpg",
    "chelsea.png",
    "motorcycle_left.png",
    "camera.png",
    "ihc.png",
    "moon.png",
    "coins.png",
)

EXIF_ORIENTATION = 0x0112
UNREADABLE = (OSError, ValueError, SyntaxError, Image.DecompressionBombError)  # what Pillow raises on bad files


@dataclass(frozen=True)
class Photo:
    """An image file and the size, in pixels, at which the demo shows it."""

    path: Path
    width: int
    height: int


def find(paths: Sequence[Path]) -> list[Path]:
    """Image files named directly or lying in a named directory; without any, scikit-image's photographs."""
    if not paths:
        return bundled()
    found: list[Path] = []
    for path in paths:
        try:
            path.stat()
            found += images_in(path) if path.is_dir() else [path]
        except OSError as error:
            raise UsageError(f"{path}: {error.strerror}") from error
    return found


def bundled() -> list[Path]:
    """scikit-image's photographs, those that this version of it still ships."""
    folder = Path(str(resources.files("skimage"))) / "data"
    found = [path for name in BUNDLED if (path := folder / name).exists()]
    if not found:
        raise UsageError("this scikit-image ships none of its photographs: name image files of your own")
    return found


def images_in(directory: Path) -> list[Path]:
    """Files in a directory that Pillow has a reader for, by their suffix."""
    suffixes = Image.registered_extensions()
    found = sorted(path for path in directory.iterdir() if path.suffix.lower() in suffixes and path.is_file())
    if not found:
        raise UsageError(f"{directory}: no images in this directory")
    return found


def survey(paths: Sequence[Path], max_tiles: int) -> list[Photo]:
    """Read every file's header; sizes are scaled down together until all tiles fit in `max_tiles`."""
    if len(paths) > max_tiles:
        raise UsageError(f"{len(paths)} images need more than the {max_tiles} tiles that one texture array holds")
    sizes = [header_size(path) for path in paths]
    scale = 1.0
    while sum(count_tiles(*scaled(size, scale)) for size in sizes) > max_tiles:
        scale *= 0.9
    return [Photo(path, *scaled(size, scale)) for path, size in zip(paths, sizes, strict=True)]


def scaled(size: tuple[int, int], scale: float) -> tuple[int, int]:
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def header_size(path: Path) -> tuple[int, int]:
    """Width and height as shown, that is with the camera's orientation applied."""
    try:
        with Image.open(path) as image:
            on_its_side = image.getexif().get(EXIF_ORIENTATION) in (5, 6, 7, 8)
            return (image.height, image.width) if on_its_side else image.size
    except UNREADABLE as error:
        raise unreadable(path, error) from error


def decode(photo: Photo, block: int = 1) -> Pixels:
    """The photograph as a (height, width, 4) array; with `block` > 1 in flat squares of that many pixels."""
    try:
        with Image.open(photo.path) as file:
            image = ImageOps.exif_transpose(file).convert("RGBA")
    except UNREADABLE as error:
        raise unreadable(photo.path, error) from error
    if image.size != (photo.width, photo.height):
        image = image.resize((photo.width, photo.height), Image.Resampling.BOX)
    if block == 1:
        return np.asarray(image)
    small = np.asarray(image.reduce(block))
    return small.repeat(block, axis=0).repeat(block, axis=1)[: photo.height, : photo.width]


def unreadable(path: Path, error: BaseException) -> UsageError:
    reason = "not an image that Pillow can read" if isinstance(error, UnidentifiedImageError) else str(error)
    return UsageError(f"{path}: cannot read this image ({reason.splitlines()[0] if reason else type(error).__name__})")


def write(picture: Image.Image, path: Path) -> None:
    """In the format that the path's suffix names."""
    try:
        picture.save(path)
    except (OSError, ValueError) as error:  # ValueError: Pillow writes no such files
        raise UsageError(f"{path}: {getattr(error, 'strerror', None) or error}") from error
