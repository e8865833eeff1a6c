"""Every example in the README and the documentation runs as it stands."""

from __future__ import annotations

import ast
import builtins
import importlib.util
import inspect
import re
import struct
import subprocess
import sys
import types
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS

import aiostage
from aiostage import textures
from aiostage.tools import commands
from aiostage.tools.demo import photos

ROOT = Path(__file__).parent.parent
PAGES = sorted(path for path in (ROOT / "docs").glob("*.md") if path.name != "index.md")
EXAMPLES: dict[str, tuple[Any, ...]] = {
    "memory_pool_demo": (),
    "compressed_texture_demo": (photos.bundled()[:1],),
    "viewer": (32, False),
}
"""With the arguments of their `main`, but for the picture; `test_demo.py` has the third."""


NEEDS = {
    "distributed.md": ("distributed", "pip install 'aiostage[dask]'"),
    "fastplotlib.md": ("fastplotlib", "pip install 'aiostage[fastplotlib]'"),
    "pygfx.md": ("pygfx", "pip install 'aiostage[pygfx]'"),
    "jupyter.md": ("anywidget", "pip install 'aiostage[jupyter]'"),
}
"""What a page's blocks import beside the library."""

ASYNCIO_ONLY = {
    "distributed.md": "its rings are in processes of their own, and it has no coroutine",
    "jupyter.md": "it is for kernels, whose loop is asyncio's",
}


def blocks(page: Path) -> list[str]:
    return re.findall(r"```python\n(.*?)```", page.read_text(), re.DOTALL)


def module(path: Path) -> Any:
    """What a script outside of any package defines."""
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    found = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(found)
    return found


async def run_blocks(page: Path, namespace: dict[str, Any]) -> None:
    namespace["__builtins__"] = builtins  # where compiled modules look when they import, as in any module
    for block in blocks(page):
        code = compile(block, str(page), "exec", flags=ast.PyCF_ALLOW_TOP_LEVEL_AWAIT)
        pending = types.FunctionType(code, namespace)()
        if inspect.isawaitable(pending):
            await pending


@pytest.mark.blocks_loop("the pages ask for devices and read back, and wait")
@pytest.mark.filterwarnings("ignore:Port 8787 is already in use")  # by another dask cluster on this machine
@pytest.mark.filterwarnings("ignore:.* encountered in divide:RuntimeWarning:pygfx")  # fastplotlib's axes without a size
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("page", [page for page in PAGES if blocks(page)], ids=lambda page: page.name)
def test_a_page_runs_from_top_to_bottom_in_one_session(
    page: Path, loop: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)  # some write pictures
    if page.name in NEEDS:
        needed, how = NEEDS[page.name]
        pytest.importorskip(needed, reason=f"{needed} is not installed: {how}")
    if loop != "asyncio" and page.name in ASYNCIO_ONLY:
        pytest.skip(ASYNCIO_ONLY[page.name])
    anyio.run(run_blocks, page, {}, **LOOPS[loop])


@pytest.mark.blocks_loop("it opens a ring")
@pytest.mark.parametrize("loop", LOOPS)
def test_the_block_of_the_first_page_runs(loop: str, device: wgpu.GPUDevice) -> None:
    """It shows the library alone: the rest is the reader's."""
    data = np.zeros((1000, 3), np.float32)
    buffer = device.create_buffer(size=data.nbytes, usage=wgpu.BufferUsage.COPY_DST)
    readers = {"aiostage": aiostage, "np": np, "device": device, "buffer": buffer, "data": data, "points": data}
    anyio.run(run_blocks, ROOT / "docs" / "index.md", readers, **LOOPS[loop])


@pytest.mark.blocks_loop("the examples encode, draw and read back")
@pytest.mark.parametrize("loop", LOOPS)
@pytest.mark.parametrize("name", EXAMPLES)
def test_an_example_runs(name: str, loop: str, tmp_path: Path) -> None:
    example = module(ROOT / "examples" / f"{name}.py")
    picture = tmp_path / "picture.png"
    anyio.run(example.main, *EXAMPLES[name], picture, **LOOPS[loop])
    assert picture.stat().st_size > 10_000


def test_the_commands_of_the_migration_page_exist() -> None:
    """They run elsewhere: the tests that they name in this suite, the demo and the command line in others."""
    lines = re.findall(r"^\$ (.*)$", (ROOT / "docs" / "migrating.md").read_text(), re.MULTILINE)
    assert len(lines) >= 3
    for line in lines:
        program, *arguments = line.split()
        if program == "aiostage":
            commands.parse(arguments)
            continue
        assert program == "./dev"
        assert f"cmd_{arguments[0]}()" in (ROOT / "dev").read_text()
        for path in [argument for argument in arguments[1:] if not argument.startswith("-")]:
            assert (ROOT / path).is_file(), path


@pytest.mark.parametrize(
    "program", ["asyncio.run(main())", "import uvloop; uvloop.run(main())", "import trio; trio.run(main)"]
)
def test_the_first_program_of_the_readme_runs_as_pasted_and_on_the_loops_that_it_names(
    program: str, tmp_path: Path
) -> None:
    pasted = blocks(ROOT / "README.md")[0]
    assert len(pasted.strip().splitlines()) <= 15
    last = pasted.strip().splitlines()[-1]
    assert last == "asyncio.run(main())  # or uvloop.run(main()), or trio.run(main)"
    script = tmp_path / "first.py"
    script.write_text(pasted.replace(last, program))
    run = subprocess.run([sys.executable, script], capture_output=True, text=True, timeout=120, cwd=ROOT)
    assert run.returncode == 0, run.stderr
    assert "done" in run.stdout


def test_every_test_that_the_documentation_names_exists() -> None:
    named = re.findall(r"`(\w+\.py)::(\w+)`", (ROOT / "docs" / "reliability.md").read_text())
    assert named
    for file, name in named:
        assert f"def {name}(" in (ROOT / "tests" / file).read_text(), f"{file} has no {name}"


def test_the_page_of_errors_is_that_of_today_and_says_of_each_what_to_do() -> None:
    """`python docs/errors.py` writes it."""
    pytest.importorskip("distributed", reason="distributed is not installed: pip install 'aiostage[dask]'")
    errors = module(ROOT / "docs" / "errors.py")
    page = (ROOT / "docs" / "errors.md").read_text()
    assert errors.page() == page
    for section in page.split("\n## ")[1:]:
        assert re.search(r"\*\*What to do:\*\* \w", section), section
        assert "\n- " in section, section


TEXTURES = (ROOT / "docs" / "textures.md").read_text()


def test_the_tables_of_texture_formats_are_those_of_today() -> None:
    """`python docs/formats.py` writes them."""
    assert module(ROOT / "docs" / "formats.py").page(TEXTURES) == TEXTURES


@pytest.mark.parametrize(
    "row",
    [
        "| `R8_*` with UNORM, SNORM, UINT, SINT | `r8unorm`, `r8snorm`, `r8uint`, `r8sint` | as it is |",
        "| `ASTC_W×H_*_BLOCK` with UNORM, SRGB | `astc-W×H-unorm`, `astc-W×H-unorm-srgb` | as it is |",
        "| `B8G8R8X8_*` with UNORM, UNORM_SRGB | `bgra8unorm`, `bgra8unorm-srgb` | X becomes alpha 1 |",
        "| `DXT4` | `bc3-rgba-unorm` | as it is; alpha is premultiplied |",
        "| `PVRTC` | encode the image as ETC2, ASTC or BC7 |",
    ],
)
def test_the_tables_of_texture_formats_have_these_rows(row: str) -> None:
    assert row in TEXTURES.splitlines()


FLAGS = {"RGB": 0x40, "LUMINANCE": 0x20000, "ALPHA": 0x2, "BUMPDUDV": 0x80000}
MASKS = re.findall(rf"^\| ({'|'.join(FLAGS)}) \| (.*) \| `(\w+)` \|(.*?)\|.*\|$", TEXTURES, re.MULTILINE)


@pytest.mark.parametrize(("flags", "numbers", "format", "swizzle"), MASKS, ids=str)
def test_masks_of_older_dds_files_mean_what_the_page_says(flags: str, numbers: str, format: str, swizzle: str) -> None:
    bits, *masks = (int(number, 16 if "x" in number else 10) for number in numbers.split(" | "))
    header = struct.pack("<7I44x", 124, 0x1007, 4, 4, 0, 0, 1)
    header += struct.pack("<8I20x", 32, FLAGS[flags] | bool(masks[3]), 0, bits, *masks)
    info = textures.inspect(b"DDS " + header + bytes(16 * bits // 8))
    assert (info.format, info.swizzle or "", info.expanded_from) == (format, swizzle.strip(" `"), None)


def test_the_page_has_all_masks_with_a_format_of_webgpus() -> None:
    assert len(MASKS) == 14
    known = sorted(format for _, _, format, _ in MASKS)
    assert known == sorted(format for format, _ in textures.dds._MASK_FORMATS.values())


def test_the_commands_of_the_page_of_textures_exist() -> None:
    for line in re.findall(r"^\$ aiostage (.*)$", TEXTURES, re.MULTILINE):
        commands.parse(line.split())
