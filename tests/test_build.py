"""What the native part is compiled with: `native/python_abi.h` says of Python's ABI what Python's own headers say."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent.parent / "native"
PYTHON_H = Path(sysconfig.get_path("include"), "Python.h")
COMPILER = next(filter(None, map(shutil.which, ("cc", "gcc", "clang"))), None)

pytestmark = [
    pytest.mark.skipif(not PYTHON_H.exists(), reason=f"this Python has no headers: {PYTHON_H}"),
    pytest.mark.skipif(COMPILER is None, reason="no C compiler"),
    pytest.mark.skipif(bool(sysconfig.get_config_var("Py_GIL_DISABLED")), reason="this Python has no stable ABI"),
]

REAL = '#define AIOSTAGE_PYTHON_H\n#include "python_abi.h"\n#include <stddef.h>\n'
HEADER = (NATIVE / "python_abi.h").read_text().split("#else\n", 1)[1]


def compile_c(source: Path, *options: str) -> None:
    assert COMPILER
    words = [COMPILER, "-std=c11", f"-I{NATIVE}", f"-I{PYTHON_H.parent}", f"-I{source.parent}", *options, str(source)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr


def test_sizes_and_numbers_are_those_of_the_real_headers(tmp_path: Path) -> None:
    numbers = re.findall(r"^#define (\w+) [(\w]", HEADER, re.MULTILINE)
    numbers = [
        name
        for name in numbers
        if re.match("METH_|Py_(mod|bf|mp|nb|sq|tp|am|TPFLAGS)_|PyBUF_|Py_[LEGN][TEQ]$|T_|READ", name)
    ]
    (tmp_path / "abi_numbers.h").write_text("".join(f"NUMBER({name})\n" for name in numbers))
    compile_c(NATIVE / "tests" / "abi_check.c", f"-I{tmp_path}", "-o", str(tmp_path / "abi_check"))
    assertions = subprocess.run([tmp_path / "abi_check"], capture_output=True, text=True, check=True).stdout
    assert assertions.count("\n") > 150
    source = tmp_path / "real.c"
    source.write_text(REAL + assertions)
    compile_c(source, "-fsyntax-only")


def test_every_function_is_declared_in_the_stable_abi_and_as_we_do(tmp_path: Path) -> None:
    """Declared twice is an error of the compiler's if the types differ; so is the address of what is not declared."""
    declarations = re.findall(r"^PyAPI_(?:FUNC|DATA)\(.*?\) (\w+).*;", HEADER, re.MULTILINE)
    again = re.findall(r"^(?:PyAPI_.*|typedef .*\(\*\w+\)\(.*);", HEADER, re.MULTILINE)
    assert len(declarations) > 150
    # The real headers rename what takes PY_SSIZE_T_CLEAN, until 3.12.
    known = [re.sub(r"^_(\w+)_SizeT$", r"\1", name) for name in declarations]
    source = tmp_path / "real.c"
    addresses = "".join(f"    (const void *)&{name},\n" for name in known)
    source.write_text(REAL + f"const void *declared[] = {{\n{addresses}}};\n" + "".join(f"{line};\n" for line in again))
    compile_c(source, "-fsyntax-only")


def test_the_module_compiles_with_the_real_headers_too() -> None:
    """As it does for a Python without a stable ABI."""
    compile_c(NATIVE / "module.c", "-DAIOSTAGE_PYTHON_H", "-D_GNU_SOURCE", "-fsyntax-only", "-Wall", "-Werror")


@pytest.mark.skipif(sys.version_info < (3, 13), reason="this Python can have no other without its lock")
def test_the_module_compiles_for_a_free_threaded_python() -> None:
    """Whose headers are the same."""
    compile_c(
        NATIVE / "module.c",
        "-DAIOSTAGE_PYTHON_H",
        "-DPy_GIL_DISABLED=1",
        "-D_GNU_SOURCE",
        "-fsyntax-only",
        "-Wall",
        "-Werror",
    )


def test_an_import_without_the_compiled_part_says_what_helps(tmp_path: Path) -> None:
    package = shutil.copytree(
        NATIVE.parent / "aiostage", tmp_path / "aiostage", ignore=shutil.ignore_patterns("native*")
    )
    assert not list(package.glob("native*"))
    words = [sys.executable, "-P", "-c", "import aiostage"]
    result = subprocess.run(words, env=os.environ | {"PYTHONPATH": str(tmp_path)}, capture_output=True, text=True)
    assert result.returncode == 1
    assert "ImportError: aiostage has no compiled part for this Python" in result.stderr
    assert "pip install" in result.stderr


@pytest.mark.parametrize(
    ("setting", "says"),
    [
        ({"CC": "no-such-compiler"}, "CC=ziglang pip install aiostage"),
        ({"CC": "false"}, "CC=ziglang pip install aiostage"),
        ({"AIOSTAGE_PLATFORM": "plan9"}, "no platform plan9"),
    ],
)
def test_a_build_that_fails_says_what_helps(setting: dict[str, str], says: str) -> None:
    environment = {name: value for name, value in os.environ.items() if name != "AIOSTAGE_PLATFORM"} | setting
    words = [sys.executable, str(NATIVE.parent / "hatch_build.py")]
    result = subprocess.run(words, env=environment, capture_output=True, text=True)
    assert result.returncode == 1
    assert says in result.stderr
    assert result.stderr.count("\n") == 1
