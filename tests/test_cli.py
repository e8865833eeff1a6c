"""The command line, as a user runs it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS

import aiostage
from aiostage import tracing
from aiostage.tools import checkout, cli, doctor, info, status
from aiostage.tools.status import UsageError
from benchmarks import machine

ROOT = Path(__file__).parent.parent


CLI = ["-m", "aiostage"]


def python(
    *arguments: str, environment: dict[str, str] | None = None, cwd: Path = ROOT, **options: Any
) -> subprocess.CompletedProcess[str]:
    streams = {"stdout": subprocess.PIPE, "stderr": subprocess.PIPE} | options
    environment = os.environ | {"PYTHONASYNCIODEBUG": ""} | (environment or {})  # debug mode writes to stderr
    command = [sys.executable, *arguments]
    return subprocess.run(command, text=True, timeout=120, cwd=cwd, check=False, env=environment, **streams)


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return python(*CLI, *arguments)


def test_version() -> None:
    assert run("--version").stdout == f"aiostage {aiostage.__version__}\n"


def test_info_prints_adapters_memory_and_versions() -> None:
    info = run("info")
    assert info.returncode == 0, info.stderr
    said = dict(line.split(maxsplit=1) for line in info.stdout.splitlines())
    assert set(said) >= {"aiostage", "wgpu", "wgpu-native", "numpy", "anyio", "Python", "adapter", "chosen", "staging"}
    assert said["aiostage"] == aiostage.__version__
    assert "memory" in said["staging"]


def test_doctor_uploads_verifies_and_advises() -> None:
    outcome = run("doctor", "--ring-count", "3", "--buffer-size", "256K")
    assert outcome.returncode == 0, outcome.stderr
    said: dict[str, list[str]] = {}
    for line in outcome.stdout.splitlines():
        name, text = line.split(maxsplit=1)
        said.setdefault(name, []).append(text)
    assert set(said) == {
        *("adapter", "staging", "limits", "ring", "workload", "stalls", "fences", "verified", "advice", "platform")
    }
    assert said["ring"] == ["3 × 256 KiB"]
    assert said["verified"] == ["every byte arrived"]
    assert "64 MiB by 8 coroutines" in said["workload"][0]
    assert "512 MiB of staging memory" in said["limits"][0]
    assert said["platform"][0].startswith("Vulkan (this one): tested")
    assert said["platform"][1:] == ["D3D12: never tried", "Metal: never tried"]
    [advice] = said["advice"]  # 4 MiB pieces through 768 KiB: whatever the GPU does, the ring is what is too small
    assert "allocations waited" in advice


def test_doctor_would_notice_bytes_that_did_not_arrive(device: wgpu.GPUDevice) -> None:
    usage = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.COPY_SRC
    buffer = device.create_buffer(size=1024, usage=usage)
    data = np.arange(256, dtype=np.uint32).view(np.uint8)
    assert not doctor.holds(device, buffer, data)
    device.queue.write_buffer(buffer, 0, data)
    assert doctor.holds(device, buffer, data)


@pytest.mark.blocks_loop("they ask for devices and read back, with nobody else on their loop")
@pytest.mark.parametrize("loop", LOOPS)
def test_info_and_doctor_need_no_loop_of_their_own(loop: str) -> None:
    assert anyio.run(info.look, **LOOPS[loop])["staging"] is not None
    assert anyio.run(doctor.examine, 3, 1 << 20, **LOOPS[loop])["verified"]


SOAK = ["-m", "benchmarks.soak"]
BENCH, DOCTOR = [*CLI, "bench"], [*CLI, "doctor"]


@pytest.mark.parametrize(
    "command",
    [
        [*CLI, "nonsense"],
        [*CLI, "demo", "--nonsense"],
        [*CLI, "info", "--nonsense"],
        [*DOCTOR, "--ring-count", "0"],
        [*DOCTOR, "--ring-count", "1000000"],
        [*DOCTOR, "--ring-count", "4", "--buffer-size", "200M"],
        [*DOCTOR, "--buffer-size", "7"],
        [*DOCTOR, "--buffer-size", "4098"],
        [*DOCTOR, "--buffer-size", "1000000G"],
        [*BENCH, "nonsense"],
        [*BENCH, "--quick"],
        [*BENCH, "fences", "--out", "/dev/null/results"],
        [*BENCH, "fences", "costs", "--out", "both.json"],
        [*SOAK, "--uploads", "0"],
        [*SOAK, "--coroutines", "-1"],
        [*SOAK, "--seed", "-1"],
        [*SOAK, "--minutes", "0"],
        [*SOAK, "--minutes", "nan"],
        [*SOAK, "--out", "/dev/null/results"],
    ],
    ids=lambda command: " ".join(command[1:]),
)
def test_what_it_cannot_do_gets_one_line_and_status_2(command: list[str]) -> None:
    refused = python(*command)
    assert refused.returncode == 2, refused.stderr
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


@pytest.mark.parametrize(
    "command",
    [
        [*CLI, "info"],
        DOCTOR,
        [*BENCH, "fences"],
        [*BENCH, "fences", "--software"],
        SOAK,
        ["examples/memory_pool_demo.py"],
        ["examples/compressed_texture_demo.py"],
    ],
    ids=" ".join,
)
def test_without_an_adapter_there_is_one_line_and_status_2(command: list[str]) -> None:
    hidden = dict.fromkeys(("VK_ICD_FILENAMES", "VK_DRIVER_FILES", "__EGL_VENDOR_LIBRARY_FILENAMES"), "/nonexistent")
    refused = python(*command, environment=hidden)
    assert refused.returncode == 2, refused.stderr
    assert "no usable GPU adapter" in refused.stderr
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


@pytest.mark.skipif(
    sys.platform == "win32", reason="a pipe without a reader is another error on Windows: runs on any other system"
)
@pytest.mark.parametrize("unbuffered", ["", "1"], ids=["at its end", "at once"])
@pytest.mark.parametrize(
    "command",
    [
        [*CLI, "--help"],
        [*CLI, "info"],
        DOCTOR,
        [*CLI, "demo", "--frames", "2", "--output", "{tmp}"],
        [*BENCH, "--help"],
        [*BENCH, "fences", "--quick"],
        [*SOAK, "--uploads", "200"],
        ["-m", "benchmarks.report", "--help"],
        ["examples/memory_pool_demo.py", "--output", "{tmp}/pool.png"],
    ],
    ids=" ".join,
)
def test_who_reads_no_further_ends_it_without_a_word(command: list[str], unbuffered: str, tmp_path: Path) -> None:
    """`| head -1` or a pager that is left: what is printed then finds nobody."""
    reader, writer = os.pipe()
    os.close(reader)
    arguments = [argument.format(tmp=tmp_path) for argument in command]
    ended = python(*arguments, environment={"PYTHONUNBUFFERED": unbuffered}, stdout=writer)
    os.close(writer)
    assert ended.stderr == ""
    if not (
        unbuffered and "--help" in command and not {"bench", "benchmarks.report"}.isdisjoint(command)
    ):  # argparse's
        assert ended.returncode == 141


@pytest.mark.skipif(
    sys.platform == "win32",
    reason="shells of Windows cannot start a program without an output: runs on any other system",
)
@pytest.mark.parametrize(
    "command", [[*CLI, "info"], [*CLI, "demo", "--frames", "2", "--output", "{tmp}"]], ids=" ".join
)
def test_a_closed_output_is_no_error(command: list[str], tmp_path: Path) -> None:
    arguments = [argument.format(tmp=tmp_path) for argument in command]
    ended = python(*arguments, preexec_fn=lambda: os.close(1))
    assert (ended.returncode, ended.stderr) == (0, "")


@pytest.mark.parametrize("arguments", [[], ["--help"]], ids=str)
def test_bench_without_a_name_prints_help_and_measures_nothing(arguments: list[str]) -> None:
    helped = run("bench", *arguments)
    assert helped.returncode == 0, helped.stderr
    assert "usage: benchmarks" in helped.stdout
    assert "--out" in helped.stdout


def test_a_benchmark_writes_where_it_was_told_to_and_nowhere_else(tmp_path: Path) -> None:
    def kept() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in (ROOT / "benchmarks" / "results").rglob("*.json")}

    before = kept()
    printed = python(*BENCH, "fences", "--quick", cwd=tmp_path)
    assert printed.returncode == 0, printed.stderr
    assert not list(tmp_path.iterdir())
    written = python(*BENCH, "fences", "--quick", "--out", "here/fences.json", cwd=tmp_path)
    assert written.returncode == 0, written.stderr
    assert json.loads((tmp_path / "here" / "fences.json").read_text()).keys() == {"machine", "figures"}
    assert kept() == before


def test_figures_of_several_benchmarks_go_into_a_directory(device: wgpu.GPUDevice, tmp_path: Path) -> None:
    for kind in ("fences", "pools"):
        machine.check_out(tmp_path / "new")
        machine.save(tmp_path / "new", kind, device, {"of": kind})
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {f"{machine.name(device)}-{kind}.json" for kind in ("fences", "pools")}


def test_bench_outside_a_checkout_says_where_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(checkout, "__file__", str(tmp_path / "aiostage" / "tools" / "checkout.py"))
    assert cli.main(["bench"]) == 2
    assert "source checkout" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    status.require("demo", {"json": "json"})
    with pytest.raises(UsageError, match=r"needs moonshine: pip install 'aiostage\[demo\]'"):
        status.require("demo", {"no_such_module": "moonshine", "json": "json"})


TRACED = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from simulated import SimulatedGpu
import aiostage

async def main():
    gpu = SimulatedGpu(free_running=True)
    async with aiostage.StagingRing(gpu, 1, 1 << 20) as ring:
        await (await ring.write_buffer(gpu.buffer(1 << 19), 0, bytes(1 << 19)))

if __name__ == "__main__":
    asyncio.run(main())
    print(sys.argv[1:], __file__)
"""


@pytest.fixture
def traced(tmp_path: Path) -> Path:
    script = tmp_path / "uploads.py"
    script.write_text(TRACED.format(tests=str(ROOT / "tests")))
    return script


def test_trace_runs_a_script_as_python_would_and_writes_what_happened(traced: Path, tmp_path: Path) -> None:
    out = tmp_path / "run.json"
    run = python(*CLI, "trace", "-o", str(out), str(traced), "-o", "1", "--help")
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"['-o', '1', '--help'] {traced}\n"
    assert run.stderr.startswith(f"aiostage trace: {out}, 0.0 MB; open it at https://ui.perfetto.dev")
    assert [event["name"] for event in tracing.load(out)].count("upload") == 3  # a slice, and a flow's two ends


def test_trace_runs_a_module(traced: Path, tmp_path: Path) -> None:
    run = python(*CLI, "trace", "-m", "uploads", "word", cwd=tmp_path, environment={"PYTHONPATH": str(ROOT)})
    assert run.returncode == 0, run.stderr
    assert run.stdout == f"['word'] {traced}\n"
    assert tracing.load(tmp_path / "trace.json")


@pytest.mark.parametrize(
    ("code", "status", "said"),
    [
        ("raise SystemExit", 0, []),
        ("raise SystemExit(7)", 7, []),
        ("raise SystemExit('no tiles')", 1, ["no tiles"]),
        ("raise KeyboardInterrupt", 130, []),
        ("1 / 0", 1, ["Traceback (most recent call last):", "ZeroDivisionError: division by zero"]),
        ("import aiostage\nraise aiostage.StagingError('mine')", 1, ["aiostage.errors.StagingError: mine"]),
        ("this is no Python", 1, ["SyntaxError: invalid syntax"]),
    ],
    ids=str,
)
def test_trace_ends_as_the_script_does(code: str, status: int, said: list[str], tmp_path: Path) -> None:
    script = tmp_path / "script.py"
    script.write_text(code)
    run = python(*CLI, "trace", "-o", str(tmp_path / "run.json"), str(script))
    assert run.returncode == status
    assert set(said) < set(run.stderr.splitlines())
    assert run.stderr.splitlines()[-1].endswith("run.json is empty: no ring was opened in this process")
    assert "runpy" not in run.stderr
    assert "tracer.py" not in run.stderr


@pytest.mark.parametrize(
    ("arguments", "why"),
    [
        (["missing.py"], "there is no script missing.py; for a module: -m missing.py"),
        (["-o", "missing/run.json", "examples/memory_pool_demo.py"], "cannot write to missing/run.json: No such file"),
    ],
    ids=str,
)
def test_trace_runs_nothing_where_it_cannot_trace(arguments: list[str], why: str) -> None:
    run = python(*CLI, "trace", *arguments)
    assert run.returncode == 2
    assert run.stdout == ""
    assert run.stderr.startswith(f"aiostage trace: {why}")
    assert len(run.stderr.splitlines()) == 1
