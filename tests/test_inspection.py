"""`aiostage inspect`, as a user runs it, on files that the tests write."""

from __future__ import annotations

import json
import os
import struct
import sys
from pathlib import Path
from typing import Any

import pytest
from containers import dds, ktx2
from test_cli import CLI, python, run

from aiostage import textures
from aiostage.tools import cli, inspection

NO_ADAPTER = dict.fromkeys(("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "__EGL_VENDOR_LIBRARY_FILENAMES"), "/nonexistent")
R8G8B8, D32_SFLOAT = 23, 126  # of VkFormat
BC7 = ktx2("bc7-rgba-unorm-srgb", (8, 8), [bytes(64), bytes(16)], scheme=3)
ODD = dds("bc7-rgba-unorm", (6, 5), [bytes(64)])
RGB = ktx2(R8G8B8, (4, 4), [bytes(48)])
DEPTH = ktx2(D32_SFLOAT, (4, 4), [bytes(64)])


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    for name, file in {"bc7.ktx2": BC7, "odd.dds": ODD, "rgb.ktx2": RGB, "depth.ktx2": DEPTH}.items():
        (tmp_path / name).write_bytes(file)
    return tmp_path


def said(text: str) -> dict[str, list[str]]:
    """The lines about one file, by their names."""
    found: dict[str, list[str]] = {}
    for line in text.splitlines():
        if line.startswith("  "):
            name, _, rest = line.strip().partition("  ")
            found.setdefault(name, []).append(rest.strip())
    return found


def document(*arguments: str, status: int = 0, **options: Any) -> dict[str, Any]:
    done = python(*CLI, "inspect", "--json", *arguments, **options)
    assert done.returncode == status, done.stderr
    assert done.stderr == ""
    found: dict[str, Any] = json.loads(done.stdout)
    assert found["schema"] == "aiostage.inspect/1"
    return found


def test_lines_say_what_is_in_a_file_and_what_becomes_of_it(folder: Path) -> None:
    done = run("inspect", str(folder / "bc7.ktx2"))
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("adapter    ")
    assert f"\n{folder / 'bc7.ktx2'}\n" in done.stdout
    lines = said(done.stdout)
    assert lines["file"] == ["KTX2, 2d, VK_FORMAT_BC7_SRGB_BLOCK, 8 × 8, packed with zlib"]
    assert lines["says"] == ["alpha straight, transfer linear"]
    assert lines["level 0"] == ["8 × 8, 64 bytes, 12 packed"]
    assert lines["level 1"] == ["4 × 4, 16 bytes, 11 packed"]
    assert lines["GPU"] == ["bc7-rgba-unorm-srgb, 8 × 8, 80 B"]
    assert lines["needs"] == ["texture-compression-bc, which the adapter has"]
    assert lines["loads"] == ["yes"]


def test_what_is_expanded_padded_or_read_by_a_swizzle_is_told(folder: Path) -> None:
    lines = said(run("inspect", str(folder / "rgb.ktx2"), str(folder / "odd.dds")).stdout)
    assert lines["GPU"] == [
        "rgba8unorm, 4 × 4, 64 B, from VK_FORMAT_R8G8B8_UNORM",
        "bc7-rgba-unorm, 8 × 8, 64 B, from DXGI_FORMAT_BC7_UNORM, 6 × 5 texels",
    ]
    assert lines["loads"] == ["yes", "yes"]
    (folder / "a8.ktx2").write_bytes(ktx2(1000470001, (4, 4), [bytes(16)]))
    lines = said(run("inspect", str(folder / "a8.ktx2")).stdout)
    assert lines["shader"] == ["reads 000r for red, green, blue and alpha"]


@pytest.mark.parametrize(
    ("file", "option", "reason"),
    [
        ("rgb.ktx2", "--no-expand", "has no counterpart in WebGPU; with expand=True it becomes rgba8unorm"),
        ("odd.dds", "--no-expand", "level 0 of bc7-rgba-unorm to be whole blocks"),
        ("depth.ktx2", "--linear", "depth and stencil"),
    ],
)
def test_what_does_not_load_is_told_why_with_status_1(folder: Path, file: str, option: str, reason: str) -> None:
    done = run("inspect", option, str(folder / "bc7.ktx2"), str(folder / file))
    assert (done.returncode, done.stderr) == (1, "")
    first, second = said(done.stdout)["loads"]
    assert first == "yes"
    assert second.startswith("no: UnsupportedTexture: ")
    assert reason in second


@pytest.mark.parametrize(
    ("options", "format"),
    [([], "bc7-rgba-unorm"), (["--srgb"], "bc7-rgba-unorm-srgb"), (["--linear"], "bc7-rgba-unorm")],
    ids=str,
)
def test_the_options_of_open_are_options_here(folder: Path, options: list[str], format: str) -> None:
    found = document(*options, str(folder / "odd.dds"))
    assert found["files"][0]["texture"]["format"] == format
    assert found["options"] == {"srgb": {"--srgb": True, "--linear": False}.get("".join(options)), "expand": True}


def test_the_document_has_all_that_the_lines_have(folder: Path) -> None:
    found = document(str(folder / "bc7.ktx2"), str(folder / "odd.dds"))
    assert found.keys() == {"schema", "aiostage", "adapter", "options", "files"}
    bc7, odd = found["files"]
    level = {"width": 8, "height": 8, "images": 1, "nbytes": 64, "stored": 12}
    assert bc7 == {
        "path": str(folder / "bc7.ktx2"),
        "loads": True,
        "error": None,
        "content": {
            "container": "KTX2",
            "format": "VK_FORMAT_BC7_SRGB_BLOCK",
            "dimension": "2d",
            "supercompression": "zlib",
            "levels": [level, {"width": 4, "height": 4, "images": 1, "nbytes": 16, "stored": 11}],
            "alpha": "straight",
            "transfer": "linear",
            "orientation": None,
            "swizzle": None,
            "generate_mips": False,
            "warnings": [],
        },
        "texture": {
            "format": "bc7-rgba-unorm-srgb",
            "size": [8, 8, 1],
            "mip_level_count": 2,
            "nbytes": 80,
            "expanded_from": None,
            "swizzle": None,
            "features": {"texture-compression-bc": True},
        },
    }
    assert odd["texture"]["size"] == [8, 8, 1]
    assert odd["texture"]["expanded_from"] == "DXGI_FORMAT_BC7_UNORM, 6 × 5 texels"


def test_the_page_describes_every_field_of_the_document(folder: Path) -> None:
    page = (Path(__file__).parent.parent / "docs" / "textures.md").read_text()

    def names(value: Any) -> set[str]:
        if isinstance(value, dict):
            return set(value) | {name for inner in value.values() for name in names(inner)}
        return {name for inner in value for name in names(inner)} if isinstance(value, list) else set()

    found = document(str(folder / "bc7.ktx2"), str(folder / "depth.ktx2"), status=1)
    for name in names(found) - {"texture-compression-bc"}:
        assert f'"{name}"' in page, name
    assert f'"{inspection.SCHEMA}"' in page


def test_without_an_adapter_it_says_so_and_inspects(folder: Path) -> None:
    done = python(*CLI, "inspect", str(folder / "bc7.ktx2"), environment=NO_ADAPTER)
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("adapter    none")
    lines = said(done.stdout)
    assert lines["needs"] == ["texture-compression-bc"]
    assert lines["loads"] == ["yes, on a device that has what it needs"]
    found = document(str(folder / "bc7.ktx2"), str(folder / "depth.ktx2"), environment=NO_ADAPTER, status=1)
    assert found["adapter"] is None
    assert found["files"][0]["texture"]["features"] == {"texture-compression-bc": None}
    assert [file["loads"] for file in found["files"]] == [True, False]


def test_a_feature_that_the_adapter_lacks_is_named(tmp_path: Path) -> None:
    class Bare:
        features = frozenset[str]()

    (tmp_path / "bc7.ktx2").write_bytes(BC7)
    report = inspection.look(str(tmp_path / "bc7.ktx2"), Bare(), None, True)
    lines = dict(inspection.lines(report, Bare()))
    assert lines["needs"] == "texture-compression-bc, which the adapter lacks"
    assert lines["loads"].startswith("no: UnsupportedTexture: bc7-rgba-unorm-srgb needs a device with the feature")
    features = inspection.file_document(report, Bare())["texture"]["features"]
    assert features == {"texture-compression-bc": False}
    volume = textures.inspect(dds("bc7-rgba-unorm", (4, 4), [bytes(32)], depth=2))
    assert inspection.needed_features(volume) == ["texture-compression-bc", "texture-compression-bc-sliced-3d"]


# -- what users do --


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_what_is_no_texture_file_gets_its_line_and_status_1(folder: Path, options: list[str]) -> None:
    (folder / "empty").write_bytes(b"")
    (folder / "text").write_text("no texture")
    (folder / "cut.ktx2").write_bytes(BC7[:-1])
    names = ["empty", "text", "cut.ktx2", "missing", ".", "bc7.ktx2/below", "x" * 300]
    done = run("inspect", *options, *(str(folder / name) for name in names), str(folder / "bc7.ktx2"))
    assert (done.returncode, done.stderr) == (1, "")
    if options:
        loads = [file["loads"] for file in json.loads(done.stdout)["files"]]
        assert loads == [False] * len(names) + [True]
        return
    errors = [text.split(": ")[1] if text != "yes" else text for text in said(done.stdout)["loads"]]
    system = ["FileNotFoundError", "IsADirectoryError", "NotADirectoryError", "OSError"]
    assert errors[:3] == ["InvalidTexture"] * 3
    assert errors[-1] == "yes"
    if sys.platform != "win32":
        assert errors[3:-1] == system


@pytest.mark.skipif(
    not hasattr(os, "geteuid") or os.geteuid() == 0, reason="root may read everything: runs as any other user"
)
def test_a_file_that_may_not_be_read(folder: Path) -> None:
    (folder / "bc7.ktx2").chmod(0)
    done = run("inspect", str(folder / "bc7.ktx2"))
    assert done.returncode == 1
    assert "no: PermissionError: " in done.stdout


@pytest.mark.parametrize("arguments", [[], ["--srgb", "--linear", "x"], ["--nonsense", "x"]], ids=str)
def test_mistakes_get_one_line_and_status_2(arguments: list[str]) -> None:
    done = run("inspect", *arguments)
    assert (done.returncode, done.stdout) == (2, "")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere names are text")
@pytest.mark.parametrize("encoding", ["utf-8", "ascii"])
def test_a_name_that_is_no_text_and_an_output_without_signs(folder: Path, encoding: str) -> None:
    name = os.fsdecode(os.fsencode(folder) + b"/\xff\x1b[31m.ktx2")
    Path(name).write_bytes(BC7)
    done = python(*CLI, "inspect", name, environment={"PYTHONIOENCODING": encoding})
    assert (done.returncode, done.stderr) == (0, "")
    assert "/\\xff\\x1b[31m.ktx2\n" in done.stdout
    assert "\x1b" not in done.stdout
    assert document(name)["files"][0]["path"].endswith("/\\xff\x1b[31m.ktx2")


def test_what_a_file_says_moves_no_cursor(folder: Path) -> None:
    entry = b"KTXorientation\0\x1b[2Jrd\0"
    keys = struct.pack("<I", len(entry)) + entry
    file, at = bytearray(BC7), 80 + 24 * 2 + 28  # behind the header, the level index and the descriptor
    moved = len(keys) + -len(keys) % 16
    file[at:at] = keys + bytes(moved - len(keys))
    struct.pack_into("<2I", file, 56, at, len(keys))
    for entry_at in (80, 104):
        (offset,) = struct.unpack_from("<Q", file, entry_at)
        struct.pack_into("<Q", file, entry_at, offset + moved)
    (folder / "keys.ktx2").write_bytes(file)
    done = run("inspect", str(folder / "keys.ktx2"))
    assert done.returncode == 0, done.stdout
    assert "orientation \\x1b[2Jrd" in done.stdout


@pytest.mark.skipif(
    sys.platform == "win32", reason="a pipe without a reader is another error on Windows: runs on any other system"
)
@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_who_reads_no_further_ends_it_without_a_word(folder: Path, options: list[str]) -> None:
    reader, writer = os.pipe()
    os.close(reader)
    ended = python(*CLI, "inspect", *options, str(folder / "bc7.ktx2"), stdout=writer)
    os.close(writer)
    assert (ended.returncode, ended.stderr) == (141, "")


@pytest.mark.skipif(
    sys.platform == "win32",
    reason="shells of Windows cannot start a program without an output: runs on any other system",
)
def test_a_closed_output_is_no_error(folder: Path) -> None:
    ended = python(*CLI, "inspect", str(folder / "bc7.ktx2"), preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr) == (0, "")


def test_lines_are_as_narrow_as_the_terminal(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("COLUMNS", "50")
    monkeypatch.chdir(folder)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    assert cli.main(["inspect", "odd.dds", "rgb.ktx2"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert max(map(len, lines)) <= 50
    assert any(line.startswith(" " * 11) for line in lines)
