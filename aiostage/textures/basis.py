"""Basis Universal payloads, transcoded by the Khronos package `pyktx` where that is installed. Blocking.

Sources: pyktx, "KtxTexture2", <https://github.khronos.org/KTX-Software/pyktx/>; libktx's ktx.h, `ktx_transcode_fmt_e`
and `ktx_error_code_e`. A damaged file can crash libktx, so it runs in a child process, on files in a temporary folder.
"""

from __future__ import annotations

import importlib.util
import json
import math
import shutil
import struct
import tempfile
from pathlib import Path
from typing import Any, NamedTuple

from ..errors import InvalidTexture, UnsupportedTexture
from .child import Child, how_it_ended, interpreter, last_report, search_path
from .source import Source
from .transcode import BEGUN, DONE, FAILED, JOB, RESULT, SOURCE, UNAVAILABLE, UNKNOWN_TARGET

TIME_LIMIT = 60.0
"""Seconds. The largest textures take a few."""

_ROOM = 1 << 30  # bytes of address space that Python, pyktx and libktx may take beside a texture
_MOST_MEMORY = 16 << 30
_PIECE = 1 << 20


class _Target(NamedTuple):
    name: str  # pyktx's
    texel_bytes: int
    feature: str = ""  # of a device that can sample it; none for formats without blocks


# The best first.
_LDR_TARGETS = (
    _Target("ASTC_4x4_RGBA", 1, "texture-compression-astc"),
    _Target("BC7_RGBA", 1, "texture-compression-bc"),
    _Target("ETC2_RGBA", 1, "texture-compression-etc2"),
    _Target("RGBA32", 4),
)
_HDR_TARGETS = (_Target("BC6HU_RGB", 1, "texture-compression-bc"), _Target("RGBA_HALF", 8))
_HDR_MODELS = {167, 168}  # UASTC HDR 4x4, and 6x6 with its intermediate form
_HDR_SINCE = "5.0"  # of pyktx: earlier ones have no names for these targets

# pixelWidth, pixelHeight, pixelDepth, layerCount, faceCount, levelCount, supercompressionScheme, then the offset of the
# data format descriptor and the length of the supercompression global data. `ktx2` says where the format is described.
_HEADER = struct.Struct("<20x7II20xQ")
_COLOR_MODEL_AT = 12
_SCHEMES_WITH_GLOBAL_DATA = {1, 4}  # BasisLZ and UASTC HDR 6x6 intermediate

_UNSUPPORTED = {"UNSUPPORTED_FEATURE", "UNSUPPORTED_TEXTURE_TYPE", "LIBRARY_NOT_LINKED"}
_FOLDER_TROUBLE = {"FILE_OPEN_FAILED", "FILE_WRITE_ERROR"}  # with the temporary folder: a full disk, for one


def is_available() -> bool:
    """Whether `pyktx` is installed."""
    return importlib.util.find_spec("pyktx") is not None


def transcode(source: Source, features: frozenset[str], child: Child | None = None) -> Source:
    """The same texture as a KTX2 file in memory, in a format that a device with these features takes.

    :param child: a new one, for a caller that may want to stop it.
    :raises InvalidTexture: the file is damaged: pyktx refused it, crashed, took too long or too much memory.
    :raises UnsupportedTexture: pyktx cannot do this, or does not work here, or was stopped.
    :raises OSError: the temporary folder cannot be written.
    """
    interpreter()  # or there is no use in writing files
    payload = _Payload.of(source)
    target = payload.target(features)
    most = payload.most_bytes(target) + source.size
    memory = min(_ROOM + 4 * most, _MOST_MEMORY)
    folder = Path(tempfile.mkdtemp(prefix="aiostage-"))
    try:
        job = {"path": search_path(), "target": target.name, "memory": memory, "seconds": math.ceil(TIME_LIMIT) + 10}
        (folder / JOB).write_text(json.dumps(job), encoding="ascii")
        _copy(source, folder / SOURCE)
        status = (child or Child()).run(folder, TIME_LIMIT)
        _check(status, last_report(folder), target, memory)
        return Source(_result(folder / RESULT, most))
    finally:
        shutil.rmtree(folder, ignore_errors=True)  # not a TemporaryDirectory: that may go at exit, before the child


class _Payload(NamedTuple):
    """As much of a KTX2 header as tells what to ask for."""

    width: int
    height: int
    depth: int
    layers: int
    faces: int
    hdr: bool

    @staticmethod
    def of(source: Source) -> _Payload:
        """:raises InvalidTexture: the file ends before, or lacks what each texture of its kind has."""
        fields = _HEADER.unpack(source.read(0, _HEADER.size, "the KTX2 header"))
        width, height, depth, layers, faces, _, scheme, descriptor, global_data = fields
        if scheme in _SCHEMES_WITH_GLOBAL_DATA and not global_data:  # libktx has no error code of its own for this
            raise InvalidTexture(f"supercompression scheme {scheme} needs global data, and the file has none")
        (model,) = source.read(descriptor + _COLOR_MODEL_AT, 1, "the data format descriptor")
        return _Payload(width, height, depth, layers, faces, model in _HDR_MODELS)

    def target(self, features: frozenset[str]) -> _Target:
        """The best that a device with these features takes; WebGPU wants level 0 to be whole blocks."""
        whole = self.width % 4 == 0 and self.height % 4 == 0
        for target in _HDR_TARGETS if self.hdr else _LDR_TARGETS:
            if not target.feature:
                break
            sliced = not self.depth or f"{target.feature}-sliced-3d" in features
            if whole and sliced and target.feature in features:
                break
        return target

    def most_bytes(self, target: _Target) -> int:
        """Bytes that all levels can have: no more than twice those of level 0, in blocks of 4 × 4 texels."""
        images = max(1, self.depth) * max(1, self.layers) * max(1, self.faces)
        return 2 * images * -(-self.width // 4) * max(1, -(-self.height // 4)) * 16 * target.texel_bytes


def _copy(source: Source, path: Path) -> None:
    with path.open("wb") as file:
        for offset in range(0, source.size, _PIECE):
            file.write(source.read(offset, min(_PIECE, source.size - offset), "the file"))


def _check(status: int | None, report: dict[str, Any], target: _Target, memory: int) -> None:
    """Raise what the child's end and its report mean, unless all is well."""
    state, text = report.get("state"), report.get("text")
    if state == DONE:
        return
    if status is None:
        raise InvalidTexture(
            f"pyktx had not transcoded the Basis Universal payload after {TIME_LIMIT:g} s, and was ended"
        )
    if state == BEGUN:
        raise InvalidTexture(f"pyktx did not survive the Basis Universal payload: its process {how_it_ended(status)}")
    if state == UNAVAILABLE:
        raise UnsupportedTexture(f"pyktx is needed for a Basis Universal payload, but cannot be imported: {text}")
    if state == UNKNOWN_TARGET:
        since = f"; UASTC HDR needs pyktx {_HDR_SINCE} or newer" if target in _HDR_TARGETS else ""
        raise UnsupportedTexture(f"the pyktx that is installed cannot transcode to {target.name}{since}")
    if state == FAILED:
        raise _failure(report.get("step"), report.get("code"), text, memory)
    raise UnsupportedTexture(
        f"the process that was to import pyktx for a Basis Universal payload {how_it_ended(status)}"
    )


def _failure(step: Any, code: Any, text: Any, memory: int) -> Exception:
    """What to raise for an error of pyktx."""
    if code == "OUT_OF_MEMORY":
        return InvalidTexture(f"the Basis Universal payload needs more than {memory >> 20} MiB to be transcoded")
    why = f"({code}; {text})" if code else f"({text})"
    if code in _UNSUPPORTED or (step == "transcode" and code == "INVALID_OPERATION"):  # "not in a transcodable format"
        return UnsupportedTexture(f"pyktx does not support this Basis Universal payload {why}")
    if code in _FOLDER_TROUBLE:
        return OSError(f"pyktx cannot use the temporary folder {why}")
    return InvalidTexture(f"pyktx cannot {step} the Basis Universal payload {why}")


def _result(path: Path, most: int) -> bytes:
    if not path.exists():
        raise InvalidTexture("pyktx transcoded the Basis Universal payload, but wrote no file")
    if path.stat().st_size > most + _PIECE:  # the header, and keys and values of libktx's own
        raise InvalidTexture(f"pyktx transcoded the Basis Universal payload to more than {most} bytes")
    return path.read_bytes()
