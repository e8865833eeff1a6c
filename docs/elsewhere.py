"""Where other projects document what our pages name. A build needs no network, so their inventories are made here.

Sphinx's own format (`objects.inv`, version 2), with the few names that our docstrings and signatures have.
"""

from __future__ import annotations

import zlib
from pathlib import Path

PAGES = {
    "python": (
        "https://docs.python.org/3/",
        {
            "py:class": {
                "library/functions.html": ["bytes", "bytearray", "int", "str", "float", "bool", "memoryview"],
                "library/stdtypes.html": ["dict", "list", "tuple", "set"],
                "library/concurrent.futures.html": ["concurrent.futures.Future"],
                "library/collections.abc.html": [
                    "collections.abc.Buffer",
                    "collections.abc.Callable",
                    "collections.abc.Iterable",
                    "collections.abc.Mapping",
                    "collections.abc.Sequence",
                ],
                "library/os.html": ["os.PathLike"],
                "library/pathlib.html": ["pathlib.Path"],
                "library/typing.html": ["typing.Any", "typing.Protocol", "typing.TypedDict"],
            },
            "py:exception": {
                "library/exceptions.html": [
                    "BufferError",
                    "EOFError",
                    "IndexError",
                    "LookupError",
                    "MemoryError",
                    "OSError",
                    "ResourceWarning",
                    "RuntimeError",
                    "TimeoutError",
                    "TypeError",
                    "ValueError",
                ],
                "library/concurrent.futures.html": ["concurrent.futures.CancelledError"],
            },
        },
    ),
    "numpy": (
        "https://numpy.org/doc/stable/",
        {
            "py:class": {
                "reference/generated/numpy.ndarray.html": ["numpy.ndarray"],
                "reference/generated/numpy.dtype.html": ["numpy.dtype"],
            },
            "py:data": {
                "reference/typing.html": ["numpy.typing.ArrayLike", "numpy.typing.DTypeLike", "numpy.typing.NDArray"]
            },
        },
    ),
    "wgpu": (
        "https://wgpu-py.readthedocs.io/en/stable/",
        {
            "py:class": {
                f"generated/wgpu.{name}.html": [f"wgpu.{name}", f"wgpu._classes.{name}"]
                for name in (
                    "GPUAdapter",
                    "GPUBuffer",
                    "GPUCommandBuffer",
                    "GPUCommandEncoder",
                    "GPUDevice",
                    "GPUQueue",
                    "GPUTexture",
                    "GPUTextureView",
                )
            }
        },
    ),
    "anyio": (
        "https://anyio.readthedocs.io/en/stable/",
        {
            "py:exception": {
                "api.html": ["anyio.BrokenResourceError", "anyio.ClosedResourceError", "anyio.WouldBlock"],
            },
            "py:class": {"api.html": ["anyio.Event", "anyio.CancelScope", "anyio.abc.TaskGroup"]},
        },
    ),
}


def mapping(folder: Path) -> dict[str, tuple[str, str]]:
    """For `intersphinx_mapping`; the inventories are written to `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for project, (_, kinds) in PAGES.items():
        lines = (
            f"{name} {kind} 1 {page}#{name.replace('._classes', '')} -\n"
            for kind, pages in kinds.items()
            for page, names in pages.items()
            for name in names
        )
        head = f"# Sphinx inventory version 2\n# Project: {project}\n# Version: \n# The rest is compressed by zlib.\n"
        (folder / f"{project}.inv").write_bytes(head.encode() + zlib.compress("".join(lines).encode()))
    return {project: (base, str(folder / f"{project}.inv")) for project, (base, _) in PAGES.items()}
