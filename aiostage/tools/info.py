"""`aiostage info`: adapters, the chosen one, staging memory, versions."""

from __future__ import annotations

import platform
from importlib import metadata
from typing import Any

import anyio
import wgpu
from wgpu.backends import wgpu_native

import aiostage

from .demo.gpu import as_document, describe_document, find_adapter, memory_kind
from .printing import Sheet, print_document
from .status import UsageError

SCHEMA = "aiostage.info/1"


def run(*, as_json: bool) -> int:
    """Print what is known; without an adapter that is the versions.

    :raises UsageError: there is no adapter.
    """
    document = anyio.run(look)
    if as_json:
        print_document(SCHEMA, document)
    else:
        print_sheet(document)
    if document["staging"] is None:
        find_adapter()  # says what helps
    return 0


async def look() -> dict[str, Any]:
    """The document, but for what all documents have."""
    document: dict[str, Any] = {
        "versions": versions(),
        "python": {"version": platform.python_version(), "system": platform.system(), "machine": platform.machine()},
        "adapters": [],
        "staging": None,
    }
    try:
        chosen = find_adapter()
    except UsageError:
        return document
    adapters = wgpu.gpu.enumerate_adapters_sync()
    first = next((i for i, adapter in enumerate(adapters) if adapter.info == chosen.info), None)  # of several alike
    document["adapters"] = [as_document(adapter) | {"chosen": i == first} for i, adapter in enumerate(adapters)]
    async with aiostage.StagingRing(chosen.request_device_sync(), ring_count=1, buffer_size=65536) as ring:
        document["staging"] = {"host_cached": ring.host_cached}
    return document


def versions() -> dict[str, str]:
    """Of what aiostage stands on."""
    return {
        "wgpu": metadata.version("wgpu"),
        "wgpu_native": ".".join(map(str, wgpu_native.lib_version_info)),
        "numpy": metadata.version("numpy"),
        "anyio": metadata.version("anyio"),
    }


def print_sheet(document: dict[str, Any]) -> None:
    sheet, python = Sheet("aiostage info"), document["python"]
    sheet.row("aiostage", aiostage.__version__)
    for name, version in document["versions"].items():
        sheet.row(name.replace("_", "-"), version)
    sheet.row("Python", f"{python['version']} ({python['system']} {python['machine']})")
    sheet.section()
    for adapter in document["adapters"]:
        sheet.row("adapter", describe_document(adapter))
    if document["staging"] is not None:
        chosen = next(adapter for adapter in document["adapters"] if adapter["chosen"])
        sheet.row("chosen", describe_document(chosen), mood="good")
        sheet.row("staging", memory_kind(document["staging"]["host_cached"]))
    sheet.end()
