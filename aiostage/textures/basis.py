"""Basis Universal payloads, transcoded by the Khronos package `pyktx` where that is installed. Blocking.

Source: pyktx, "KtxTexture2", <https://github.khronos.org/KTX-Software/pyktx/>. It reads named files only, hence the
temporary one.
"""

from __future__ import annotations

import importlib.util
import tempfile
from pathlib import Path

from ..errors import InvalidTexture
from .source import Source

# The best that a device with this feature can sample, by pyktx's name; tried in this order.
_TARGETS = (
    ("texture-compression-astc", "ASTC_4x4_RGBA"),
    ("texture-compression-bc", "BC7_RGBA"),
    ("texture-compression-etc2", "ETC2_RGBA"),
)


def is_available() -> bool:
    """Whether `pyktx` is installed."""
    return importlib.util.find_spec("pyktx") is not None


def transcode(source: Source, features: frozenset[str]) -> Source:
    """The same texture as a KTX2 file in memory, in a format that a device with these features takes.

    :raises InvalidTexture: pyktx refused the file.
    """
    from pyktx import KtxError, KtxTexture2, KtxTranscodeFmt

    target = next((name for feature, name in _TARGETS if feature in features), "RGBA32")
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "basis.ktx2"
        path.write_bytes(source.read(0, source.size, "the file"))
        try:
            texture = KtxTexture2.create_from_named_file(str(path))
            texture.transcode_basis(KtxTranscodeFmt[target])
            return Source(bytes(texture.write_to_memory()))
        except KtxError as error:
            raise InvalidTexture(f"pyktx cannot transcode the Basis Universal payload: {error}") from error
