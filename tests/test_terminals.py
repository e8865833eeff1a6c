"""The command line on terminals and without one, in shells that complete, and what it says to programs."""

from __future__ import annotations

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from test_cli import CLI, ROOT, python, run
from test_inspection import BC7

from aiostage.tools import cli

if sys.platform == "win32":
    pytest.skip("needs pseudo-terminals, signals and bash", allow_module_level=True)

import fcntl
import struct
import termios

HIDDEN = dict.fromkeys(("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "__EGL_VENDOR_LIBRARY_FILENAMES"), "/nonexistent")


def terminal(*arguments: str, columns: int = 80, **environment: str) -> tuple[int, str]:
    """The exit status, and what a terminal of this width was sent."""
    reader, writer = os.openpty()
    fcntl.ioctl(writer, termios.TIOCSWINSZ, struct.pack("4H", 40, columns, 0, 0))
    inherited = {name: value for name, value in os.environ.items() if name not in ("COLUMNS", "NO_COLOR")}
    process = subprocess.Popen(
        [sys.executable, *CLI, *arguments],
        cwd=ROOT,
        stdin=writer,
        stdout=writer,
        stderr=writer,
        env=inherited | {"TERM": "xterm-256color", "PYTHONASYNCIODEBUG": ""} | environment,
    )
    os.close(writer)
    said = b""
    while part := read(reader):
        said += part
    os.close(reader)
    return process.wait(60), said.decode().replace("\r\n", "\n")


def read(reader: int) -> bytes:
    try:
        return os.read(reader, 65536)
    except OSError:  # Linux's way of saying that the other end is closed
        return b""


# -- without arguments, without extras --


@pytest.mark.parametrize("arguments", [[], ["--help"], ["-h"]], ids=str)
def test_without_arguments_there_is_help_and_status_0(arguments: list[str]) -> None:
    helped = run(*arguments)
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith("Usage: aiostage ")
    for name in ("info", "doctor", "inspect", "demo", "bench"):
        assert re.search(rf"^  {name} +[A-Z]", helped.stdout, re.MULTILINE), name


@pytest.mark.parametrize("name", ["info", "doctor", "inspect", "demo"])
def test_each_command_has_help(name: str) -> None:
    helped = run(name, "--help")
    assert (helped.returncode, helped.stderr) == (0, "")
    assert helped.stdout.startswith(f"Usage: aiostage {name} ")
    assert "--json" in helped.stdout


@pytest.mark.parametrize("way", ["-m aiostage", "-m aiostage.tools.cli", "examples/staging_ring_demo.py"])
def test_without_the_extra_there_is_the_command_that_installs_it(way: str) -> None:
    """As with `pip install aiostage` alone: neither typer nor rich."""
    code = f"""if True:
        import runpy, sys
        class Nowhere:
            def find_spec(self, name, path=None, target=None):
                if name in ("typer", "rich"): raise ModuleNotFoundError(name)
        import importlib.util
        found = importlib.util.find_spec
        importlib.util.find_spec = lambda name: None if name in ("typer", "rich") else found(name)
        sys.meta_path.insert(0, Nowhere())
        way = {way.split()!r}
        sys.argv = [way[-1]]
        if way[0] == "-m":
            runpy.run_module(way[1], run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(way[0], run_name="__main__")
    """
    refused = python("-c", code)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"aiostage.*: needs typer, rich: pip install 'aiostage\[cli\]'\n", refused.stderr)


def test_help_and_version_load_neither_numpy_nor_wgpu() -> None:
    """They answer at once, and so do shells that complete."""
    for argument in ("--help", "--version"):
        code = f"""if True:
            import sys
            from aiostage.tools.cli import main
            assert main([{argument!r}]) == 0
            print(sorted({{"numpy", "wgpu", "anyio", "rich", "PIL"}} & sys.modules.keys()), file=sys.stderr)
        """
        assert python("-c", code).stderr == "[]\n"


def test_every_public_name_is_there_however_it_is_asked_for() -> None:
    code = """if True:
        import sys, aiostage
        assert "numpy" not in sys.modules
        assert set(aiostage.__all__) <= set(dir(aiostage))
        assert aiostage.errors.StagingError.__module__ == "aiostage.errors"
        assert {name: getattr(aiostage, name) for name in aiostage.__all__}
        from aiostage import *
        assert StagingRing is aiostage.StagingRing
        assert not hasattr(aiostage, "nonsense") and not hasattr(aiostage, "_nonsense")
    """
    done = python("-c", code)
    assert (done.returncode, done.stderr) == (0, "")


# -- numbers and names --

NUMBERS = ["0", "-1", "1e99", "nan", "inf", "", " ", "9" * 5000, "0x10", "1.5"]


@pytest.mark.parametrize("number", NUMBERS, ids=lambda number: number[:8])
@pytest.mark.parametrize(
    "option",
    ["doctor --ring-count", "doctor --buffer-size", "demo --frames", "demo --coroutines", "demo --ring-count"],
)
def test_nonsense_numbers_get_one_line_and_status_2(
    option: str, number: str, capsys: pytest.CaptureFixture[str]
) -> None:
    command, name = option.split()
    assert cli.main([command, name, number]) == 2
    said, refused = capsys.readouterr()
    assert said == ""
    assert len(refused.splitlines()) == 1
    assert len(refused) < 300
    assert name in refused


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["nonsense"], "aiostage nonsense: No such command 'nonsense' (see aiostage --help)"),
        (["--nonsense"], "aiostage: No such option: --nonsense (see aiostage --help)"),
        (
            ["doctor", "--ring-count"],
            "aiostage doctor: Option '--ring-count' requires an argument (see aiostage doctor --help)",
        ),
        (["info", "more"], "(see aiostage info --help)"),
        (["\x1b[31mred\nmore"], "\\x1b[31mred"),
    ],
    ids=str,
)
def test_mistakes_get_one_line_with_a_hint_and_status_2(arguments: list[str], said: str) -> None:
    refused = run(*arguments)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert said in refused.stderr
    assert len(refused.stderr.splitlines()) == 1
    assert "\x1b" not in refused.stderr


# -- terminals --


@pytest.mark.parametrize(
    ("command", "columns"), [*(("info", columns) for columns in (200, 80, 50, 20, 1)), ("doctor", 80), ("doctor", 40)]
)
def test_a_table_is_as_wide_as_the_terminal(command: str, columns: int) -> None:
    status, said = terminal(command, columns=columns, NO_COLOR="1")
    assert status == 0, said
    assert max(map(len, said.splitlines())) <= max(columns, 12)
    assert ("│" in said) == (columns >= 50)
    assert "staging" in said


@pytest.mark.parametrize("command", ["info", "demo {tmp}/noise.png --frames 2 --output {tmp}"])
def test_colours_and_bars_are_for_terminals_that_take_them(command: str, tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 50).save(tmp_path / "noise.png")
    arguments = command.format(tmp=tmp_path).split()
    assert "\x1b[" in terminal(*arguments)[1]
    for plain in ({"NO_COLOR": "1"}, {"TERM": "dumb"}, {"TERM": ""}):
        status, said = terminal(*arguments, **plain)
        assert status == 0, said
        assert "\x1b" not in said, plain
    piped = python(*CLI, *arguments, environment={"TERM": "xterm-256color", "FORCE_COLOR": "1"})
    assert piped.returncode == 0
    assert not {"\x1b", "│", "━"} & set(piped.stdout)


def test_lines_without_a_terminal_are_not_wrapped() -> None:
    narrow = python(*CLI, "doctor", environment={"COLUMNS": "20"})
    assert narrow.returncode == 0
    assert all(re.match(r"[a-z]+ {5,}\S", line) for line in narrow.stdout.splitlines())
    assert max(map(len, narrow.stdout.splitlines())) > 80


@pytest.mark.parametrize("columns", ["nonsense", "-5", "0", "9999"])
def test_a_width_that_is_none_does_no_harm(columns: str) -> None:
    status, said = terminal("info", COLUMNS=columns)
    assert status == 0, said[-2000:]
    assert terminal("--help", COLUMNS=columns)[0] == 0


def test_a_terminal_without_signs_of_its_own_gets_others() -> None:
    status, said = terminal("doctor", PYTHONIOENCODING="ascii", NO_COLOR="1")
    assert status == 0, said
    assert said.isascii()
    assert re.search(r"[#-]{16}  \d+ of \d+ allocations", said)


# -- streams that are closed, full, or read no further --


@pytest.mark.parametrize("streams", [">&-", "2>&-", ">&- 2>&-", "<&-"])
@pytest.mark.parametrize("command", ["", "info --json", "nonsense"])
def test_closed_streams_are_no_error(command: str, streams: str) -> None:
    shell = f"{shlex.quote(sys.executable)} {' '.join(CLI)} {command} {streams}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == (2 if command == "nonsense" else 0)
    assert "Traceback" not in done.stderr + done.stdout
    if streams == "2>&-":
        assert "No such command" not in done.stdout  # it is not what was asked for


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="the system has no /dev/full, which is a disk without room")
@pytest.mark.parametrize("command", ["--help", "info", "info --json"])
def test_a_full_disk_gets_one_line_and_status_1(command: str) -> None:
    with open("/dev/full", "w") as full:
        failed = python(*CLI, *command.split(), stdout=full)
    assert failed.returncode == 1
    assert re.fullmatch(r"aiostage.*: OSError: .*No space left on device\n", failed.stderr)


@pytest.mark.parametrize("command", ["info", "--help"])
def test_head_ends_it_without_a_word(command: str) -> None:
    shell = f"{shlex.quote(sys.executable)} {' '.join(CLI)} {command} | head -1; exit ${{PIPESTATUS[0]}}"
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode in (0, 141)  # `head` reads as much as there is, and may leave after all of it was written
    assert done.stderr == ""
    assert len(done.stdout.splitlines()) == 1


@pytest.mark.parametrize("options", [[], ["--json"]], ids=str)
def test_ctrl_c_in_the_middle_is_status_130_without_a_word(options: list[str]) -> None:
    """The doctor interrupts itself as its work begins."""
    code = f"""if True:
        import os, signal, sys
        from aiostage.tools import cli, doctor
        signal.signal(signal.SIGINT, signal.default_int_handler)
        work = doctor.work
        async def interrupted(ring):
            os.kill(os.getpid(), signal.SIGINT)
            return await work(ring)
        doctor.work = interrupted
        sys.exit(cli.main(["doctor", *{options!r}]))
    """
    ended = python("-c", code)
    assert (ended.returncode, ended.stdout, ended.stderr) == (130, "", "")


def test_ctrl_c_leaves_a_document_of_the_demo_so_far(tmp_path: Path) -> None:
    """It interrupts itself as its second round begins."""
    Image.effect_noise((300, 200), 50).save(tmp_path / "noise.png")
    arguments = ["demo", str(tmp_path / "noise.png"), "--frames", "8", "--output", str(tmp_path), "--json"]
    code = f"""if True:
        import os, signal, sys
        from aiostage.tools import cli
        from aiostage.tools.demo.stream import Streamer
        signal.signal(signal.SIGINT, signal.default_int_handler)
        round = Streamer.round
        async def interrupted(self, level):
            if level == 1:
                os.kill(os.getpid(), signal.SIGINT)
            return await round(self, level)
        Streamer.round = interrupted
        sys.exit(cli.main({arguments!r}))
    """
    ended = python("-c", code)
    assert (ended.returncode, ended.stderr) == (130, "")
    document = json.loads(ended.stdout)
    assert document["interrupted"] is True
    assert document["verified"] is None
    assert document["pictures"] == []
    assert document["uploads"] >= 2


# -- documents --


def fields(value: Any, path: str = "") -> Iterator[str]:
    """The path of each field that is no object or list itself: `adapters[].name`."""
    if isinstance(value, dict) and path not in OPAQUE:
        for name, inner in value.items():
            yield from fields(inner, f"{path}.{name}" if path else name)
    elif isinstance(value, list) and value:
        for inner in value:
            yield from fields(inner, f"{path}[]")
    else:
        yield f"{path}[]" if isinstance(value, list) else path


OPAQUE = {"figures"}
"""Documented elsewhere."""


def documented(page: str, schema: str) -> set[str]:
    """The first column of the table under the heading that names the schema."""
    _, _, rest = (ROOT / "docs" / page).read_text().partition(f"### `{schema}`")
    table = rest.partition("\n#")[0]
    return set(re.findall(r"^\| `([^`]+)` \|", table, re.MULTILINE))


@pytest.mark.parametrize(
    ("schema", "command"),
    [
        ("aiostage.info/1", "info"),
        ("aiostage.doctor/1", "doctor --ring-count 3 --buffer-size 256K"),
        ("aiostage.demo/1", "demo {tmp}/noise.png --frames 2 --output {tmp}"),
        ("aiostage.bench/1", "bench fences --quick"),
        ("aiostage.inspect/1", "inspect {tmp}/bc7.ktx2 {tmp}/missing.dds"),
    ],
)
def test_a_document_has_the_fields_that_the_page_has(schema: str, command: str, tmp_path: Path) -> None:
    Image.effect_noise((300, 200), 50).save(tmp_path / "noise.png")
    (tmp_path / "bc7.ktx2").write_bytes(BC7)
    done = run(*command.format(tmp=tmp_path).split(), "--json")
    assert done.returncode == ("missing" in command), done.stderr
    document = json.loads(done.stdout)
    assert document["schema"] == schema
    found = {re.sub(r"features\.[\w-]+", "features.FEATURE", path) for path in fields(document)}
    found -= {"files[].error", "files[].content", "files[].texture"}  # null, of the other file
    assert found == documented("cli.md", schema)


def test_info_without_an_adapter_says_what_is_known_and_what_helps() -> None:
    done = python(*CLI, "info", "--json", environment=HIDDEN)
    assert done.returncode == 2
    document = json.loads(done.stdout)
    assert document["adapters"] == []
    assert document["staging"] is None
    assert document["versions"]["wgpu"]
    assert re.fullmatch(r"aiostage info: no usable GPU adapter.*\n", done.stderr)


def test_an_adapter_that_is_named_and_is_not_there_gets_one_line_and_status_2() -> None:
    refused = python(*CLI, "doctor", environment={"WGPUPY_WGPU_ADAPTER_NAME": "nobody's"})
    assert (refused.returncode, refused.stdout) == (2, "")
    assert re.fullmatch(r"aiostage doctor: WGPUPY_WGPU_ADAPTER_NAME: .*nobody's.*\n", refused.stderr)


@pytest.mark.parametrize("command", ["doctor", "demo --output {tmp}", "bench fences"])
def test_a_document_that_cannot_be_is_not_begun(command: str, tmp_path: Path) -> None:
    refused = python(*CLI, *command.format(tmp=tmp_path).split(), "--json", environment=HIDDEN)
    assert (refused.returncode, refused.stdout) == (2, "")
    assert len(refused.stderr.splitlines()) == 1


# -- completion --

needs_bash = pytest.mark.skipif(shutil.which("bash") is None, reason="bash is not installed")


def complete(line: str, directory: Path) -> str:
    """What an interactive bash shows after this line and two presses of the tabulator."""
    (directory / "bin").mkdir(exist_ok=True)
    program = directory / "bin" / "aiostage"
    program.write_text(f'#!/bin/sh\nexec {shlex.quote(sys.executable)} {" ".join(CLI)} "$@"\n')
    program.chmod(0o755)
    script = python(*CLI, environment={"_AIOSTAGE_COMPLETE": "source_bash"})
    assert "complete -o default" in script.stdout, script.stderr
    (directory / "rc").write_text(
        f"{script.stdout}\nPS1=READY\nbind 'set enable-bracketed-paste off'\nset +o history\n"
    )
    reader, writer = os.openpty()
    path = f"{directory / 'bin'}:{os.environ['PATH']}"
    environment = os.environ | {"PATH": path, "TERM": "dumb", "PYTHONPATH": str(ROOT), "INPUTRC": "/dev/null"}
    shell = subprocess.Popen(
        ["bash", "--noprofile", "--rcfile", str(directory / "rc"), "-i"],
        cwd=directory / "here",
        stdin=writer,
        stdout=writer,
        stderr=writer,
        env=environment,
        start_new_session=True,
    )
    os.close(writer)
    said = until(reader, "READY")
    os.write(reader, f"{line}\t\t".encode())
    time.sleep(3)
    os.write(reader, b"\x15echo DO''NE\n")
    said = until(reader, "DONE")
    os.write(reader, b"exit\n")
    shell.wait(30)
    os.close(reader)
    return said


def until(reader: int, word: str) -> str:
    said = ""
    while word not in said:
        part = read(reader).decode(errors="replace")
        assert part, said
        said += part
    return said


@needs_bash
@pytest.mark.parametrize(
    ("line", "expected", "unexpected"),
    [
        ("aiostage ", ["info", "doctor", "inspect", "demo", "bench"], ["rock.ktx2"]),
        ("aiostage doctor --", ["--ring-count", "--buffer-size", "--json"], ["rock.ktx2"]),
        ("aiostage inspect ", ["rock.ktx2", "shadow.dds"], ["--json"]),
        ("aiostage inspect ro", ["aiostage inspect rock.ktx2"], ["shadow.dds"]),
        ("aiostage demo --output fol", ["aiostage demo --output folder/"], ["rock.ktx2"]),
        ("aiostage demo ro", ["aiostage demo rock.ktx2"], ["shadow.dds"]),
    ],
    ids=lambda value: value if isinstance(value, str) else "",
)
def test_bash_completes_commands_options_and_files(
    line: str, expected: list[str], unexpected: list[str], tmp_path: Path
) -> None:
    here = tmp_path / "here"
    (here / "folder").mkdir(parents=True)
    for name in ("rock.ktx2", "shadow.dds"):
        (here / name).touch()
    said = complete(line, tmp_path)
    for word in expected:
        assert word in said
    for word in unexpected:
        assert word not in said


def test_install_completion_writes_into_the_home_directory_alone(tmp_path: Path) -> None:
    shell = f"{shlex.quote(sys.executable)} {' '.join(CLI)} --install-completion; exit $?"
    environment = os.environ | {"HOME": str(tmp_path)}
    done = subprocess.run(["bash", "-c", shell], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    assert "_AIOSTAGE_COMPLETE" in (tmp_path / ".bash_completions" / "aiostage.sh").read_text()
