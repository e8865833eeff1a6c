"""The command line, as a user runs it."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import anyio
import numpy as np
import pytest
import wgpu
from misuse_cases import LOOPS

import aiostage
from aiostage import cli, doctor
from aiostage.demo.options import UsageError

ROOT = Path(__file__).parent.parent


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "aiostage.cli", *arguments]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, cwd=ROOT, check=False)


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
def test_info_and_doctor_need_no_loop_of_their_own(loop: str, capsys: pytest.CaptureFixture[str]) -> None:
    anyio.run(cli.print_adapters, **LOOPS[loop])
    assert anyio.run(doctor.run, 3, 1 << 20, **LOOPS[loop])
    said = capsys.readouterr().out
    assert "chosen" in said
    assert "every byte arrived" in said


@pytest.mark.parametrize(
    "arguments",
    [[], ["nonsense"], ["demo", "--nonsense"], ["info", "--nonsense"], ["doctor", "--ring-count", "0"]],
    ids=str,
)
def test_what_it_does_not_know_gets_one_line_and_status_2(arguments: list[str]) -> None:
    refused = run(*arguments)
    assert refused.returncode == 2
    assert refused.stdout == ""
    assert len(refused.stderr.splitlines()) == 1, refused.stderr


def test_bench_passes_its_arguments_on_to_the_checkouts_benchmarks() -> None:
    helped = run("bench", "--help")
    assert helped.returncode == 0, helped.stderr
    assert "usage: benchmarks" in helped.stdout


def test_bench_outside_a_checkout_says_where_benchmarks_are(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "__file__", str(tmp_path / "aiostage" / "cli.py"))
    assert cli.main(["bench"]) == 2
    assert "source checkout" in capsys.readouterr().err


def test_a_missing_extra_is_named_with_the_command_that_installs_it() -> None:
    cli.require("demo", {"json": "json"})
    with pytest.raises(UsageError, match=r"needs moonshine: pip install 'aiostage\[demo\]'"):
        cli.require("demo", {"no_such_module": "moonshine", "json": "json"})


def test_the_command_line_starts_without_any_extra() -> None:
    """Otherwise nobody would live to read which one is missing."""
    hidden = "import sys; sys.modules.update(dict.fromkeys(('rich', 'rendercanvas', 'PIL', 'skimage')))"
    code = f"{hidden}; from aiostage import cli, doctor; cli.build_parser()"
    assert subprocess.run([sys.executable, "-c", code], cwd=ROOT, check=False).returncode == 0
