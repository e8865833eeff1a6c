"""Compiles `native/*.c` to the extension module `aiostage.native`: hatchling calls this for wheels and for editable
installs, and `python hatch_build.py` compiles in place.

A compiler is all that it needs: `$CC`, or cc, gcc or clang if they work, or else zig's, from PyPI. Python's headers are
not needed, see `native/python_abi.h`. From the environment: CC, `ziglang` included; AIOSTAGE_CFLAGS, further flags;
AIOSTAGE_PLATFORM, one of `TARGETS` to compile for instead of this machine.
"""

from __future__ import annotations

import functools
import importlib.util
import os
import re
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.config import BuilderConfig
from hatchling.builders.hooks.plugin.interface import BuildHookInterface
from packaging import tags

ROOT = Path(__file__).resolve().parent
NATIVE = ROOT / "native"
ZIG = [sys.executable, "-m", "ziglang"]
FLAGS = ["-O3", "-std=c11", "-D_GNU_SOURCE", "-fvisibility=hidden", "-shared"]
WARNINGS = ["-Wall", "-Wextra", "-Wno-cast-function-type"]

# As zig calls them. glibc 2.17 is the oldest that it has; macOS 11 is what wgpu's own wheels need.
TARGETS = {
    "manylinux_2_17_x86_64": "x86_64-linux-gnu.2.17",
    "manylinux_2_17_aarch64": "aarch64-linux-gnu.2.17",
    "musllinux_1_2_x86_64": "x86_64-linux-musl",
    "macosx_11_0_x86_64": "x86_64-macos.11.0",
    "macosx_11_0_arm64": "aarch64-macos.11.0",
    "win_amd64": "x86_64-windows-gnu",
}

IS_FREE_THREADED = bool(sysconfig.get_config_var("Py_GIL_DISABLED"))  # such a Python has no stable ABI


def platform() -> str:
    """The wheel's platform. One that was compiled for this machine is not said to run on many."""
    here = next(name for name in tags.platform_tags() if not name.startswith(("manylinux", "musllinux")))
    given = os.environ.get("AIOSTAGE_PLATFORM", here)
    if given not in (here, *TARGETS):
        raise SystemExit(f"aiostage: no platform {given}; there are {', '.join(TARGETS)}")
    return given


def tag() -> str:
    version = "cp{}{}".format(*sys.version_info[:2])
    return f"{version}-{version}t-{platform()}" if IS_FREE_THREADED else f"cp311-abi3-{platform()}"


def file_name() -> str:
    if IS_FREE_THREADED:
        return "native" + str(sysconfig.get_config_var("EXT_SUFFIX"))
    return "native.pyd" if platform().startswith("win") else "native.abi3.so"


@functools.cache
def works(compiler: str) -> bool:
    """Debian's gcc, for one, may be there without the C library's headers."""
    if not shutil.which(compiler):
        return False
    program = "#include <pthread.h>\n#include <stdlib.h>\nint main(void) { return 0; }\n"
    command = [compiler, "-x", "c", "-fsyntax-only", "-"]
    return subprocess.run(command, input=program, text=True, capture_output=True).returncode == 0


def compiler() -> list[str] | None:
    """The command; None: zig's, which can compile for all `TARGETS`."""
    given = os.environ.get("CC", "ziglang" if sys.platform == "win32" else "")
    if given == "ziglang" or "AIOSTAGE_PLATFORM" in os.environ:
        return None
    return shlex.split(given) or next(([name] for name in ("cc", "gcc", "clang") if works(name)), None)


def declared() -> dict[str, bool]:
    """What of Python's we use, by name; True: it is data."""
    found = re.findall(r"^PyAPI_(FUNC|DATA)\(.*?\) (\w+)[(;]", (NATIVE / "python_abi.h").read_text(), re.MULTILINE)
    return {name: kind == "DATA" for kind, name in found}


def import_library(folder: Path) -> Path:
    """What a DLL is linked with: Windows wants to know in which other one each symbol is."""
    names = [name + " DATA" * is_data for name, is_data in declared().items()]
    (folder / "python3.def").write_text("\n".join(["LIBRARY python3.dll", "EXPORTS", *names, ""]))
    words = ["dlltool", "-m", "i386:x86-64", "-d", "python3.def", "-l", "python3.lib"]
    subprocess.run([*ZIG, *words], check=True, cwd=folder)
    return folder / "python3.lib"


def command(folder: Path) -> list[str]:
    """To compile, with what else that takes made in a folder."""
    words = compiler()
    if words is None:
        target = ["-target", TARGETS[platform()]] if "AIOSTAGE_PLATFORM" in os.environ else []
        words = [*ZIG, "cc", "-s", "-mcpu=baseline", *target]
    words = [*words, *FLAGS, *WARNINGS, *shlex.split(os.environ.get("AIOSTAGE_CFLAGS", ""))]
    if IS_FREE_THREADED:
        words += ["-DAIOSTAGE_PYTHON_H", "-DPy_GIL_DISABLED=1", f"-I{sysconfig.get_path('include')}"]
    words += map(str, sorted(NATIVE.glob("*.c")))
    if platform().startswith("win"):
        return [*words, str(import_library(folder))]
    if platform().startswith("macosx"):
        words.append("-Wl,-undefined,dynamic_lookup")
    return [*words, "-fPIC", "-pthread"]


def what_failed() -> str:  # and the one command that helps
    given = compiler()
    if not given and not importlib.util.find_spec("ziglang"):
        return "no C compiler; for one: pip install ziglang"
    name, other = (given[0], "ziglang") if given else ("zig", "gcc")
    return f"{name} did not compile native/; to use {other}: CC={other} pip install aiostage"


def build(into: Path) -> Path:
    """Compile into a folder. A module that is loaded from there stays what it is to who has loaded it."""
    with tempfile.TemporaryDirectory(dir=into, prefix=".native-") as name:
        words = [*command(Path(name)), "-o", f"{name}/{file_name()}"]
        if not shutil.which(words[0]) or subprocess.run(words).returncode:
            raise SystemExit(f"aiostage: {what_failed()}")
        return Path(f"{name}/{file_name()}").replace(into / file_name())


class NativeHook(BuildHookInterface[BuilderConfig]):
    def dependencies(self) -> list[str]:
        needs_zig = compiler() is None or platform().startswith("win")  # for `import_library`
        return ["ziglang>=0.14"] if needs_zig else []

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        build_data.update(pure_python=False, tag=tag())
        if version == "editable":
            build(ROOT / "aiostage")
            return
        self.folder = tempfile.TemporaryDirectory()  # removes itself in the end
        build_data["force_include"][str(build(Path(self.folder.name)))] = f"aiostage/{file_name()}"


if __name__ == "__main__":
    build(ROOT / "aiostage")
