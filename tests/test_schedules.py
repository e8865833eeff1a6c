"""The carrier in C, in schedules drawn from seeds: `native/tests/random_schedules.c`, compiled and run.

A failure names its seed, `random_schedules threads 66: …`, which AIOSTAGE_SCHEDULES=66 begins with.
`./dev test --sanitize` compiles it with a sanitizer.
"""

from __future__ import annotations

import os
import shlex
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

NATIVE = Path(__file__).parent.parent / "native"
COMPILER = (
    shlex.split(os.environ.get("CC", ""))
    or [name for name in map(shutil.which, ("cc", "gcc", "clang")) if name is not None][:1]
)
SEED = os.environ.get("AIOSTAGE_SCHEDULES", "1")
FLAGS = ["-std=c11", "-D_GNU_SOURCE", "-O2", "-g", "-Wall", "-Wextra", "-Wno-cast-function-type", "-pthread"]

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="it is linked as on Linux"),
    pytest.mark.skipif(not COMPILER or COMPILER == ["ziglang"], reason="no C compiler"),
]


@pytest.fixture(scope="module")
def program(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("schedules") / "random_schedules"
    sources = [source for source in NATIVE.glob("*.c") if source.name not in ("module.c", "writes.c")]
    sources += [NATIVE / "tests" / "simulated_gpu.c", NATIVE / "tests" / "random_schedules.c"]
    more = shlex.split(os.environ.get("AIOSTAGE_CFLAGS", ""))
    wrapped = "-Wl,--wrap=calloc,--wrap=free,--wrap=pread,--wrap=preadv"
    words = [*COMPILER, *FLAGS, *more, *map(str, sources), wrapped, "-o", str(path)]
    result = subprocess.run(words, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    return path


@pytest.mark.parametrize(("mode", "count"), [("stepped", 10_000), ("threads", 300)])
def test_the_carrier_does_in_every_schedule_what_it_promises(program: Path, mode: str, count: int) -> None:
    if "thread" in os.environ.get("AIOSTAGE_CFLAGS", ""):  # whose sanitizer takes its time
        count //= 4
    result = subprocess.run([program, mode, SEED, str(count)], capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert not result.stderr
    assert result.stdout == f"{count} schedules\n"
