"""`aiostage inspect`: what is in texture files, and what this machine's adapter would make of them."""

from __future__ import annotations

import shutil
import textwrap
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any

from ..budget import size_text
from ..data.formats import required_feature, texel_block
from ..errors import StagingError
from ..textures import TextureInfo
from ..textures.stream import check_fits, open_source
from ..textures.unpack import check_unpackable
from .demo.gpu import describe, find_adapter
from .printing import on_terminal, print_document, printable, valid
from .status import UsageError

SCHEMA = "aiostage.inspect/1"
"""Of what `--json` prints; docs/textures.md describes it. What could make a reader stumble gets another number."""

_NAME_WIDTH = 10
_NARROWEST = 40  # columns that lines are wrapped to at least


@dataclass(frozen=True)
class Report:
    """What came of one file. `content` is missing if it could not be read, `texture` if none can be made of it."""

    path: str
    content: TextureInfo | None = None
    texture: TextureInfo | None = None
    error: Exception | None = None


def run(paths: Sequence[str], *, as_json: bool, srgb: bool | None, expand: bool) -> bool:
    """Print what is in these files; False if one of them does not load."""
    adapter = any_adapter()
    reports = (look(path, adapter, srgb, expand) for path in paths)
    if as_json:
        done = list(reports)
        print_document(SCHEMA, document_fields(done, adapter, srgb, expand))
        return not any(report.error for report in done)
    width = shutil.get_terminal_size().columns if on_terminal() else None
    print_line("adapter", describe(adapter) if adapter else "none: what a device could do is not known", width)
    all_load = True
    for report in reports:
        print()
        print(printable(report.path))
        for name, text in lines(report, adapter):
            print_line(f"  {name}", text, width)
        all_load = all_load and report.error is None
    return all_load


def any_adapter() -> Any:
    """The one that the other commands choose; None where there is none."""
    try:
        return find_adapter()
    except UsageError:
        return None


def look(path: str, adapter: Any, srgb: bool | None, expand: bool) -> Report:
    """What is in this file, and what a device with all that the adapter has would make of it."""
    content = texture = None
    try:
        file, content = open_source(path, frozenset(adapter.features if adapter else ()))
        try:
            check_unpackable(file, content)
        finally:
            file.close()
        texture = content.with_format(srgb, expand)
        if adapter:
            check_fits(texture, adapter)
    except (StagingError, OSError) as error:
        return Report(path, content, texture, error)
    return Report(path, content, texture)


def kind(error: Exception) -> str:
    """The class of it that is documented."""
    return next(each.__name__ for each in type(error).__mro__ if each.__module__ in ("aiostage.errors", "builtins"))


def why(error: Exception) -> str:
    return (isinstance(error, OSError) and error.strerror) or str(error)


def needed_features(texture: TextureInfo) -> list[str]:
    """What a device has to be requested with for this texture."""
    feature = required_feature(texture.format)
    if feature is None:
        return []
    is_sliced = texture.dimension == "3d" and texel_block(texture.format).width > 1
    return [feature, *([f"{feature}-sliced-3d"] if is_sliced else [])]


# -- for people --


def lines(report: Report, adapter: Any) -> Iterator[tuple[str, str]]:
    """(name, text) of each thing to say about a file."""
    if report.content is not None:
        yield from content_lines(report.content)
    if report.texture is not None:
        yield from texture_lines(report.texture, adapter)
    if report.content is not None:
        yield from (("warning", warning) for warning in report.content.warnings)
    if report.error is not None:
        yield "loads", f"no: {kind(report.error)}: {why(report.error)}"
    else:
        yield "loads", "yes" if adapter else "yes, on a device that has what it needs"


def content_lines(content: TextureInfo) -> Iterator[tuple[str, str]]:
    first = content.levels[0]
    packed = "" if content.supercompression == "none" else f", packed with {content.supercompression}"
    size = extents(first.width, first.height, first.images)
    yield "file", f"{content.container}, {content.dimension}, {content.file_format}, {size}{packed}"
    said = {
        "alpha": content.alpha,
        "transfer": content.transfer,
        "orientation": content.orientation,
        "mip levels": "to be made by the loader" if content.generate_mips else None,
    }
    if any(said.values()):
        yield "says", ", ".join(f"{what} {value}" for what, value in said.items() if value)
    for number, level in enumerate(content.levels):
        packed = "" if content.supercompression == "none" else f", {level.stored * level.count} packed"
        text = f"{extents(level.width, level.height, level.images)}, {level.nbytes} bytes{packed}"
        yield f"level {number}", text


def texture_lines(texture: TextureInfo, adapter: Any) -> Iterator[tuple[str, str]]:
    made = f", from {texture.expanded_from}" if texture.expanded_from else ""
    yield "GPU", f"{texture.format}, {extents(*texture.size)}, {size_text(texture.nbytes)}{made}"
    if texture.swizzle:
        yield "shader", f"reads {texture.swizzle} for red, green, blue and alpha"
    for feature in needed_features(texture):
        has = adapter and ("which the adapter has" if feature in adapter.features else "which the adapter lacks")
        yield "needs", f"{feature}, {has}" if has else feature


def extents(width: int, height: int, images: int) -> str:
    return f"{width} × {height}" + (f" × {images}" if images > 1 else "")


def print_line(name: str, text: str, width: int | None) -> None:
    """One line, or as many as a terminal of this width needs."""
    name, text = f"{name:<{_NAME_WIDTH}} ", printable(text)
    if width is None:
        print(name + text)
        return
    wrapped = textwrap.wrap(text, max(width, _NARROWEST) - len(name), break_on_hyphens=False)
    print(name + f"\n{' ' * len(name)}".join(wrapped))


# -- for programs --


def document_fields(reports: Iterable[Report], adapter: Any, srgb: bool | None, expand: bool) -> dict[str, Any]:
    return {
        "adapter": adapter and describe(adapter),
        "options": {"srgb": srgb, "expand": expand},
        "files": [file_document(report, adapter) for report in reports],
    }


def file_document(report: Report, adapter: Any) -> dict[str, Any]:
    error = report.error
    return {
        "path": valid(report.path),
        "loads": error is None,
        "error": error and {"type": kind(error), "message": valid(why(error))},
        "content": report.content and content_document(report.content),
        "texture": report.texture and texture_document(report.texture, adapter),
    }


def content_document(content: TextureInfo) -> dict[str, Any]:
    levels = [
        {
            "width": level.width,
            "height": level.height,
            "images": level.images,
            "nbytes": level.nbytes,
            "stored": level.stored * level.count,
        }
        for level in content.levels
    ]
    return {
        "container": content.container,
        "format": content.file_format,
        "dimension": content.dimension,
        "supercompression": content.supercompression,
        "levels": levels,
        "alpha": content.alpha,
        "transfer": content.transfer,
        "orientation": content.orientation,
        "swizzle": content.swizzle,
        "generate_mips": content.generate_mips,
        "warnings": list(content.warnings),
    }


def texture_document(texture: TextureInfo, adapter: Any) -> dict[str, Any]:
    features = needed_features(texture)
    return {
        "format": texture.format,
        "size": list(texture.size),
        "mip_level_count": len(texture.levels),
        "nbytes": texture.nbytes,
        "expanded_from": texture.expanded_from,
        "swizzle": texture.swizzle,
        "features": {feature: adapter and feature in adapter.features for feature in features},
    }
