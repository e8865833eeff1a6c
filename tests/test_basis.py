"""Basis Universal payloads: what pyktx does with them in its process, and that nothing it does there reaches this one.

pyktx has no wheels, so there is a stand-in with the names of its calls, each of which can be told to go wrong.
"""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import anyio
import psutil
import pytest
import wgpu
from containers import ktx2
from readback import read_texture

from aiostage import InvalidTexture, UnsupportedTexture, textures
from aiostage.textures import basis, child
from aiostage.textures.source import Source

ETC1S, UASTC, HDR_4X4, HDR_6X6 = 163, 166, 167, 168
BC, ETC2, ASTC = (f"texture-compression-{name}" for name in ("bc", "etc2", "astc"))
TARGETS = ("ETC2_RGBA", "BC7_RGBA", "ASTC_4x4_RGBA", "RGBA32", "RGBA_HALF", "BC6HU_RGB")

STAND_IN = """
import ctypes, enum, mmap, os, pathlib, signal, sys, time

HERE = pathlib.Path(__file__).parent
{load}

KtxTranscodeFmt = enum.IntEnum("KtxTranscodeFmt", {targets})
KtxErrorCode = enum.IntEnum("KtxErrorCode", {codes}, start=10)

class KtxError(Exception):
    def __init__(self, invocation, code):
        self.invocation, self.code = invocation, code

    def __str__(self):
        return f"{{self.invocation}} returned with {{self.code}}"

def begin():
    (HERE / "new").write_text(str(os.getpid()))
    (HERE / "new").rename(HERE / "pid")

class KtxTexture2:
    @staticmethod
    def create_from_named_file(name):
        name.encode("ascii")
        begin()
        {read}
        texture = KtxTexture2()
        texture.content = pathlib.Path(name).read_bytes()
        return texture

    def transcode_basis(self, target):
        {transcode}
        self.target = target

    def write_to_named_file(self, name):
        name.encode("ascii")
        content = self.target.name.encode() + b" of " + self.content
        if (HERE / "result").exists():
            content = (HERE / "result").read_bytes()
        {write}
        pathlib.Path(name).write_bytes(content)
"""
CODES = (
    "INVALID_OPERATION", "TRANSCODE_FAILED", "UNSUPPORTED_TEXTURE_TYPE", "UNSUPPORTED_FEATURE", "FILE_WRITE_ERROR",
    "FILE_DATA_ERROR",
)  # fmt: skip


@pytest.fixture
def package(tmp_path: Path) -> Path:
    path = tmp_path / "paquets ⚙" / "pyktx"
    path.mkdir(parents=True)
    return path


@pytest.fixture
def install(package: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., None]:
    """Installs a stand-in, with statements that it runs when it is loaded, reads, transcodes or writes."""

    def write(result: bytes | None = None, targets: tuple[str, ...] = TARGETS, load: str = "", **steps: str) -> None:
        steps = {"read": "pass", "transcode": "pass", "write": "pass"} | steps
        (package / "__init__.py").write_text(STAND_IN.format(load=load, targets=targets, codes=CODES, **steps))
        if result is not None:
            (package / "result").write_bytes(result)
        monkeypatch.syspath_prepend(package.parent)

    return write


@pytest.fixture(autouse=True)
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """The folder of temporary folders. After each test it is empty, and no process is left, not even a dead one."""
    path = tmp_path / "vorläufig 一時"
    path.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(path))
    before = psutil.Process().children()
    yield path
    assert list(path.iterdir()) == []
    assert psutil.Process().children() == before


def payload(model: int = UASTC, size: tuple[int, int] = (16, 16), **options: Any) -> bytes:
    return ktx2(0, size, [bytes(range(256))], color_model=model, **options)


def transcode(file: bytes | Path | None = None, *features: str) -> bytes:
    source = Source(payload() if file is None else file)
    try:
        transcoded = basis.transcode(source, frozenset(features))
        return bytes(transcoded.read(0, transcoded.size, "all"))
    finally:
        source.close()


def test_the_file_is_transcoded_byte_for_byte(install: Callable[..., None]) -> None:
    install()
    file = ktx2(0, (1 << 10, 1 << 10), [os.urandom(3 << 20)], color_model=UASTC)  # in several pieces
    assert transcode(file, BC) == b"BC7_RGBA of " + file


def test_a_path_may_have_any_letters(install: Callable[..., None], tmp_path: Path) -> None:
    install()
    path = tmp_path / "Fels 岩.ktx2"
    path.write_bytes(payload())
    assert transcode(path, BC) == b"BC7_RGBA of " + payload()


def test_what_pyktx_made_is_loaded(install: Callable[..., None]) -> None:
    expected = ktx2("rgba8unorm", (16, 16), [bytes(1024)])
    install(expected)
    assert transcode() == expected


async def test_a_texture_goes_through_pyktx_to_the_gpu(install: Callable[..., None], open_ring: Any) -> None:
    level = bytes(range(256)) * 4
    install(ktx2("rgba8unorm", (16, 16), [level]))
    stream = await textures.load(await open_ring(), payload(), usage=wgpu.TextureUsage.COPY_SRC)
    await stream.fence
    assert [level.tobytes() for level in read_texture(stream.texture)] == [level]


@pytest.mark.parametrize("result", [b"", b"garbage", ktx2("bc7-rgba-unorm", (16, 16), [bytes(256)])[:-1]])
async def test_what_pyktx_made_is_trusted_with_nothing(
    result: bytes, install: Callable[..., None], open_ring: Any
) -> None:
    install(result)
    ring = await open_ring()
    with pytest.raises(InvalidTexture):
        await textures.load(ring, payload())


@pytest.mark.parametrize(
    ("model", "features", "options", "target"),
    [
        (UASTC, {ASTC, BC, ETC2}, {}, "ASTC_4x4_RGBA"),
        (UASTC, {BC, ETC2}, {}, "BC7_RGBA"),
        (UASTC, {ETC2}, {}, "ETC2_RGBA"),
        (UASTC, set(), {}, "RGBA32"),
        (UASTC, {ASTC, BC, ETC2}, {"size": (18, 16)}, "RGBA32"),
        (UASTC, {ASTC, BC, ETC2}, {"size": (16, 2)}, "RGBA32"),
        (UASTC, {ASTC, BC, f"{BC}-sliced-3d", ETC2}, {"depth": 4}, "BC7_RGBA"),
        (UASTC, {ASTC, BC, ETC2}, {"depth": 4}, "RGBA32"),
        (ETC1S, {BC}, {}, "BC7_RGBA"),
        (HDR_4X4, {ASTC, BC}, {}, "BC6HU_RGB"),
        (HDR_6X6, {BC}, {"size": (12, 12)}, "BC6HU_RGB"),
        (HDR_6X6, {BC}, {"size": (6, 6)}, "RGBA_HALF"),
        (HDR_4X4, {ASTC, ETC2}, {}, "RGBA_HALF"),
    ],
)
def test_the_target_is_the_best_that_the_device_takes(
    model: int, features: set[str], options: dict[str, Any], target: str, install: Callable[..., None]
) -> None:
    install()
    assert transcode(payload(model, **options), *features).split()[0].decode() == target


SIGNAL = "os.kill(os.getpid(), signal.{})"
UNABLE = {
    "crash": ({"read": "ctypes.string_at(0)"}, InvalidTexture, "not survive.*SIGSEGV"),
    "crash when transcoding": ({"transcode": "ctypes.string_at(0)"}, InvalidTexture, "SIGSEGV"),
    "abort": ({"transcode": "os.abort()"}, InvalidTexture, "SIGABRT"),
    "kill": ({"transcode": SIGNAL.format("SIGKILL")}, InvalidTexture, "SIGKILL"),
    "exit": ({"transcode": "sys.exit(3)"}, InvalidTexture, "exit status 3"),
    "exit as if all were well": ({"transcode": "os._exit(0)"}, InvalidTexture, "without a result"),
    "memory": ({"transcode": "raise MemoryError"}, InvalidTexture, "more than 10.. MiB"),
    "address space": ({"transcode": "bytes(6 << 30)"}, InvalidTexture, "more than 10.. MiB"),
    "damage": ({"read": "raise KtxError('f', KtxErrorCode.FILE_DATA_ERROR)"}, InvalidTexture, "read.*FILE_DATA_ERROR"),
    "no such place": (
        {"read": "raise KtxError('f', KtxErrorCode.INVALID_OPERATION)"},
        InvalidTexture,
        "read.*INVALID_OPERATION",
    ),
    "not transcodable": (
        {"transcode": "raise KtxError('f', KtxErrorCode.INVALID_OPERATION)"},
        UnsupportedTexture,
        "not support.*INVALID_OPERATION",
    ),
    "failed": (
        {"transcode": "raise KtxError('f', KtxErrorCode.TRANSCODE_FAILED)"},
        InvalidTexture,
        "transcode.*TRANSCODE_FAILED",
    ),
    "type": (
        {"read": "raise KtxError('f', KtxErrorCode.UNSUPPORTED_TEXTURE_TYPE)"},
        UnsupportedTexture,
        "UNSUPPORTED_TEXTURE_TYPE",
    ),
    "feature": (
        {"transcode": "raise KtxError('f', KtxErrorCode.UNSUPPORTED_FEATURE)"},
        UnsupportedTexture,
        "UNSUPPORTED_FEATURE",
    ),
    "code of later": ({"read": "raise ValueError('99 is no KtxErrorCode')"}, InvalidTexture, "read.*ValueError: 99"),
    "full disk": ({"write": "raise KtxError('f', KtxErrorCode.FILE_WRITE_ERROR)"}, OSError, "temporary folder"),
    "no file": ({"write": "return"}, InvalidTexture, "wrote no file"),
    "too large": ({"write": "content = bytes(3 << 20)"}, InvalidTexture, "more than"),
    "no library": ({"load": "raise OSError('libktx.so: not found')"}, UnsupportedTexture, "OSError: libktx.so"),
    "other names": ({"load": "raise ImportError('KtxTexture2 ⚙')"}, UnsupportedTexture, "KtxTexture2 ⚙"),
    "crash when imported": ({"load": "ctypes.string_at(0)"}, UnsupportedTexture, "import.*SIGSEGV"),
    "no target": ({"targets": ("ETC1_RGB",)}, UnsupportedTexture, "cannot transcode to BC7_RGBA$"),
}


@pytest.mark.skipif(sys.platform == "win32", reason="signals, and limits of memory")
@pytest.mark.parametrize("case", UNABLE)
def test_what_goes_wrong_there_is_an_exception_here(case: str, install: Callable[..., None]) -> None:
    steps, error, message = UNABLE[case]
    install(**steps)
    with pytest.raises(error, match=message):
        transcode(None, BC)


def test_hdr_needs_a_pyktx_that_knows_it(install: Callable[..., None]) -> None:
    install(targets=TARGETS[:4])
    with pytest.raises(UnsupportedTexture, match=r"RGBA_HALF.*pyktx 5\.0"):
        transcode(payload(HDR_6X6))


@pytest.mark.parametrize("scheme", [1, 4])
def test_global_data_that_are_missing_are_damage(scheme: int, install: Callable[..., None]) -> None:
    install()
    with pytest.raises(InvalidTexture, match="global data"):
        transcode(payload(scheme=scheme))


def test_an_endless_loop_is_ended(install: Callable[..., None], monkeypatch: pytest.MonkeyPatch) -> None:
    install(transcode="\n        while True: pass")
    monkeypatch.setattr(basis, "TIME_LIMIT", 0.7)
    with pytest.raises(InvalidTexture, match=r"after 0\.7 s"):
        transcode()


def test_the_programs_folder_is_searched_too(
    install: Callable[..., None], package: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in an interactive interpreter, whose sys.path starts with an empty name."""
    install()
    monkeypatch.chdir(package.parent)
    monkeypatch.setattr(sys, "path", ["", *(entry for entry in sys.path if entry != str(package.parent))])
    assert transcode() == b"RGBA32 of " + payload()


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("executable", None, "sys.executable"),
        ("executable", "", "sys.executable"),
        ("executable", "/nowhere/python", "could not be started"),
        ("frozen", True, "frozen"),
    ],
)
def test_a_program_without_an_interpreter_says_so(
    name: str, value: object, message: str, install: Callable[..., None], monkeypatch: pytest.MonkeyPatch
) -> None:
    install()
    monkeypatch.setattr(sys, name, value, raising=False)
    with pytest.raises(UnsupportedTexture, match=message):
        transcode()


def appeared(path: Path) -> str:
    """What is written there, once it is."""
    end = time.monotonic() + 30
    while not path.exists():
        assert time.monotonic() < end
        time.sleep(0.01)
    return path.read_text()


def test_a_child_that_nobody_waits_for_is_stopped(install: Callable[..., None], package: Path) -> None:
    install(transcode="time.sleep(1000)")
    running, errors = child.Child(), []

    def run() -> None:
        try:
            basis.transcode(Source(payload()), frozenset(), running)
        except Exception as error:
            errors.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    appeared(package / "pid")
    running.stop()
    thread.join(5)
    assert [type(error) for error in errors] == [UnsupportedTexture]
    assert "stopped" in str(errors[0])


@pytest.mark.parametrize("means", ["task", "scope"])
async def test_a_cancelled_task_does_not_wait_for_the_child(
    means: str, install: Callable[..., None], package: Path, open_ring: Any
) -> None:
    install(transcode="time.sleep(1000)")
    ring = await open_ring()

    async def load() -> None:
        with scope:
            await textures.load(ring, payload())

    scope = anyio.CancelScope()
    task = asyncio.create_task(load())
    while not (package / "pid").exists():
        await asyncio.sleep(0.01)
    started = time.monotonic()
    (task if means == "task" else scope).cancel()
    await asyncio.wait([task])
    assert time.monotonic() - started < 5


def test_a_child_that_was_stopped_before_does_not_begin(install: Callable[..., None], package: Path) -> None:
    install()
    stopped = child.Child()
    stopped.stop()
    with pytest.raises(UnsupportedTexture, match="stopped"):
        basis.transcode(Source(payload()), frozenset(), stopped)
    assert not (package / "pid").exists()


PROGRAM = """
import asyncio, sys, tempfile, threading, time
from pathlib import Path
from aiostage.textures import basis
from aiostage.textures.source import Source
from aiostage.threads import run_sync

package, tempfile.tempdir, file = Path(sys.argv[1]), sys.argv[2], sys.argv[3]
sys.path.insert(0, str(package.parent))

async def main():
    await run_sync(basis.transcode, Source(file), frozenset())

threading.Thread(target=lambda: asyncio.run(main()), daemon=True).start()
while not (package / "pid").exists():
    time.sleep(0.01)
if "stay" in sys.argv:
    time.sleep(1000)
"""


@pytest.fixture
def program(install: Callable[..., None], package: Path, temporary: Path, tmp_path: Path) -> Callable[..., Any]:
    """Starts a program that has pyktx transcode without end; it ends then, or is told to stay."""
    install(transcode="time.sleep(1000)")
    path = tmp_path / "basis.ktx2"
    path.write_bytes(payload())
    return lambda *argv: subprocess.Popen([sys.executable, "-c", PROGRAM, package, temporary, path, *argv])


def is_over(pid: int) -> bool:
    """Whether it has ended, though its new parent may not know yet."""
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def test_the_child_ends_with_the_interpreter(program: Callable[..., Any], package: Path) -> None:
    with program() as running:
        pid = int(appeared(package / "pid"))
        assert running.wait(10) == 0
        assert not psutil.pid_exists(pid)


def test_the_child_ends_with_a_program_that_is_killed(program: Callable[..., Any], package: Path) -> None:
    with program("stay") as running:
        pid = int(appeared(package / "pid"))
        running.kill()
        end = time.monotonic() + 10
        while not is_over(pid):
            assert time.monotonic() < end
            time.sleep(0.01)
