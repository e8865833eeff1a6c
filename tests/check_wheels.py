"""Whether wheels are what their names say, as far as that is to be seen without the system that each is for: `./dev
wheels` asks this of what it has built, `python tests/check_wheels.py WHEEL ...` of others.

One extension module, for the right processor, which shows the world nothing but its `PyInit_native`, needs nothing of
Python's but what `native/python_abi.h` declares, and no newer system than its tag says.
"""

from __future__ import annotations

import itertools
import re
import struct
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

sys.path.insert(0, str(Path(__file__).parent.parent))

from hatch_build import declared


class Module(NamedTuple):
    """A shared library, as a linker sees it."""

    machine: int
    exported: set[str]
    needed: set[str]
    system: tuple[int, ...]  # the oldest glibc or macOS that it is for; (): it does not say
    is_signed: bool = True


def text_at(data: bytes, offset: int) -> str:
    return data[offset : data.index(b"\0", offset)].decode()


def read_elf(data: bytes) -> Module:
    """ELF of 64 bits."""
    start, size, count = *struct.unpack_from("<Q", data, 0x28), *struct.unpack_from("<HH", data, 0x3A)
    sections = [struct.unpack_from("<IIQQQQII", data, start + i * size) for i in range(count)]
    _, _, _, _, offset, length, strings, _ = next(section for section in sections if section[1] == 11)  # SHT_DYNSYM
    exported: set[str] = set()
    needed: set[str] = set()
    for at in range(offset + 24, offset + length, 24):  # the first is none
        name, info, _, section = struct.unpack_from("<IBBH", data, at)
        if info >> 4:  # not local
            (exported if section else needed).add(text_at(data, sections[strings][4] + name))
    versions = re.findall(rb"GLIBC_(\d+)\.(\d+)", data)
    system = max((tuple(map(int, version)) for version in versions), default=())
    (machine,) = struct.unpack_from("<H", data, 0x12)
    return Module(machine, exported, needed, system)


def read_macho(data: bytes) -> Module:
    """Mach-O of 64 bits, for one processor."""
    machine, _, _, commands = struct.unpack_from("<IIII", data, 4)
    exported: set[str] = set()
    needed: set[str] = set()
    system: tuple[int, ...] = ()
    is_signed, at = False, 32
    for _ in range(commands):
        kind, size = struct.unpack_from("<II", data, at)
        if kind == 0x02:  # LC_SYMTAB
            symbols, count, strings, _ = struct.unpack_from("<IIII", data, at + 8)
            for i in range(count):
                name, flags = struct.unpack_from("<IB", data, symbols + 16 * i)
                if flags & 0x01 and not flags & 0xF0:  # external; not hidden, nor a debugger's
                    into = exported if flags & 0x0E else needed
                    into.add(text_at(data, strings + name).removeprefix("_"))
        elif kind == 0x1D:  # LC_CODE_SIGNATURE
            is_signed = True
        elif kind == 0x32:  # LC_BUILD_VERSION
            (version,) = struct.unpack_from("<I", data, at + 12)
            system = (version >> 16, version >> 8 & 0xFF)
        at += size
    linkers = {"__dso_handle", "_mh_dylib_header"}
    return Module(machine, exported - linkers, needed, system, is_signed)


def read_pe(data: bytes) -> Module:
    """PE of 64 bits. Only what it needs of a Python is told, by which DLL it asks for it."""
    (at,) = struct.unpack_from("<I", data, 0x3C)
    machine, count = struct.unpack_from("<HH", data, at + 4)
    (size,) = struct.unpack_from("<H", data, at + 20)
    sections = [struct.unpack_from("<IIII", data, at + 24 + size + 40 * i + 8) for i in range(count)]

    def offset_of(address: int) -> int:
        return next(
            int(address - start + raw) for length, start, _, raw in sections if start <= address < start + length
        )

    def numbers(address: int, kind: str) -> Iterator[int]:
        for at in itertools.count(offset_of(address), struct.calcsize(kind)):
            yield from struct.unpack_from(kind, data, at)

    exports, _, imports = struct.unpack_from("<III", data, at + 24 + 112)
    named, _, where = struct.unpack_from("<III", data, offset_of(exports) + 24)
    exported = {text_at(data, offset_of(name)) for name in itertools.islice(numbers(where, "<I"), named)}
    needed, at = set(), offset_of(imports)
    while (entry := struct.unpack_from("<5I", data, at))[3]:
        if (library := text_at(data, offset_of(entry[3])).lower()).startswith("python"):
            for number in itertools.takewhile(bool, numbers(entry[0], "<Q")):
                prefix = "" if library == "python3.dll" else f"{library}:"
                needed.add(prefix + text_at(data, offset_of(number) + 2))
        at += 20
    return Module(machine, exported, needed, ())


# What the name of a platform begins and ends with: how its modules are read, and their processor.
PLATFORMS: list[tuple[str, str, Callable[[bytes], Module], int]] = [
    ("manylinux", "x86_64", read_elf, 62),
    ("manylinux", "aarch64", read_elf, 183),
    ("linux", "x86_64", read_elf, 62),
    ("linux", "aarch64", read_elf, 183),
    ("musllinux", "x86_64", read_elf, 62),
    ("macosx", "x86_64", read_macho, 0x01000007),
    ("macosx", "arm64", read_macho, 0x0100000C),
    ("win", "amd64", read_pe, 0x8664),
]


def faults(wheel: Path) -> Iterator[str]:
    """What is wrong with it."""
    _, version, tag = wheel.stem.split("-", 2)
    platform = tag.removeprefix("cp311-abi3-")
    with zipfile.ZipFile(wheel) as archive:
        about = archive.read(f"aiostage-{version}.dist-info/WHEEL").decode()
        names = archive.namelist()
        extensions = [name for name in names if name.endswith((".so", ".pyd", ".dll", ".dylib"))]
        contents = [archive.read(name) for name in extensions]
    if f"Tag: {tag}\n" not in about or platform == tag:
        yield f"its tag is not cp311-abi3 of its name's platform: {about}"
    if "Root-Is-Purelib: false" not in about:
        yield "it is said to be pure Python"
    if missing := {"aiostage/native.pyi", "aiostage/py.typed"} - set(names):
        yield f"without {missing}"
    if sources := [name for name in names if name.endswith((".c", ".h"))]:
        yield f"with sources: {sources}"
    if extensions != [f"aiostage/native.{'pyd' if platform.startswith('win') else 'abi3.so'}"]:
        yield f"its extension modules are {extensions}"
        return
    read, machine = next(
        (r, m) for first, last, r, m in PLATFORMS if platform.startswith(first) and platform.endswith(last)
    )
    module = read(contents[0])
    if module.machine != machine:
        yield f"for processor {module.machine}, not {machine}"
    if module.exported != {"PyInit_native"}:
        yield f"it exports {sorted(module.exported)}"
    of_python = {name for name in module.needed if re.match("_?Py|python", name)}
    if not of_python:
        yield "it needs nothing of Python's, which cannot be"
    if others := of_python - declared().keys():
        yield f"outside the stable ABI: {sorted(others)}"
    allowed = tuple(map(int, re.findall(r"\d+", platform)[:2]))
    if platform.startswith(("manylinux", "macosx")) and not () < module.system <= allowed:
        yield f"for a system from {module.system} on, which its tag does not say"
    if platform.startswith("musllinux") and module.system:
        yield "it needs glibc"
    if platform.endswith("arm64") and not module.is_signed:
        yield "not signed, as every program for Apple's processors must be"


def main() -> int:
    failed = 0
    for wheel in map(Path, sys.argv[1:]):
        found = list(faults(wheel))
        failed |= bool(found)
        print(f"{wheel.name}: {'; '.join(found) or 'as its name says'}")
    return int(failed or len(sys.argv) == 1)


if __name__ == "__main__":
    sys.exit(main())
