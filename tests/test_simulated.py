"""The simulated GPU notices what the real one would not survive."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
from simulated import SimulatedBuffer, SimulatedGpu

from aiostage.data.copies import BufferCopy, TextureCopy, resolve_region
from aiostage.gpu.device import connect
from aiostage.gpu.protocol import Native


def map_first(gpu: SimulatedGpu, buffers: list[SimulatedBuffer]) -> None:
    for buffer in buffers:
        gpu.map(buffer, lambda ok: None)
    gpu.poll()


def copy_of(staging: SimulatedBuffer, target: SimulatedBuffer) -> BufferCopy:
    return BufferCopy(SimpleNamespace(handle=staging), 0, target, 0, 4)


def test_it_is_taken_for_a_native_as_it_is() -> None:
    gpu = SimulatedGpu()
    assert isinstance(gpu, Native)
    assert connect(gpu) is gpu


def test_a_copy_happens_when_the_submission_completes_and_maps_and_fences_after_it() -> None:
    gpu, heard = SimulatedGpu(), []
    staging, target = gpu.create_staging_buffer(4, False), gpu.buffer(4)
    map_first(gpu, [staging])
    staging.bytes[:] = 7
    gpu.unmap(staging)
    gpu.submit([copy_of(staging, target)], [])
    gpu.on_work_done(lambda ok: heard.append(("done", ok)))
    gpu.map(staging, lambda ok: heard.append(("mapped", ok)))
    gpu.poll()
    assert not heard
    assert not target.bytes.any()
    gpu.complete()
    assert target.bytes.tolist() == [7] * 4
    gpu.poll()
    assert heard == [("done", True), ("mapped", True)]
    assert gpu.address(staging)


def test_a_write_between_seal_and_completion_is_a_violation() -> None:
    gpu = SimulatedGpu()
    staging = gpu.create_staging_buffer(4, False)
    map_first(gpu, [staging])
    gpu.unmap(staging)
    gpu.submit([copy_of(staging, gpu.buffer(4))], [])
    staging.bytes[1] = 1
    gpu.complete()
    assert gpu.violations == ["somebody wrote to staging buffer 0 after its seal"]


def test_what_would_abort_is_an_assertion_error() -> None:
    gpu = SimulatedGpu()
    staging = gpu.create_staging_buffer(4, False)
    map_first(gpu, [staging])
    with pytest.raises(AssertionError, match="map of a buffer that is mapped"):
        gpu.map(staging, print)
    with pytest.raises(AssertionError, match="submit of a buffer that is mapped"):
        gpu.submit([copy_of(staging, gpu.buffer(4))], [])
    gpu.unmap(staging)
    with pytest.raises(AssertionError, match="unmap of a buffer that is unmapped"):
        gpu.unmap(staging)
    with pytest.raises(AssertionError, match="address of a buffer that is unmapped"):
        gpu.address(staging)
    assert len(gpu.violations) == 4


def test_a_texture_copy_skips_the_padding_of_rows_and_images() -> None:
    gpu = SimulatedGpu()
    texture = gpu.texture("rgba8unorm", (4, 4, 2), mip_level_count=2)
    staging = gpu.create_staging_buffer(2048, False)
    map_first(gpu, [staging])
    staging.bytes[:] = np.arange(2048) // 256
    gpu.unmap(staging)
    region = resolve_region({"texture": texture, "mip_level": 1}, (2, 2, 2), gpu)
    gpu.submit([TextureCopy(SimpleNamespace(handle=staging), 0, region, 256, 3)], [])
    gpu.complete()
    assert texture.level(1)[..., 0].tolist() == [[[0, 0], [1, 1]], [[3, 3], [4, 4]]]
    assert not texture.level(0).any()


def test_a_lost_device_fails_what_is_outstanding() -> None:
    gpu, heard = SimulatedGpu(), []
    gpu.submit([], [])
    gpu.on_work_done(heard.append)
    gpu.lose()
    gpu.poll()
    assert heard == [False]
    assert gpu.outstanding() == 0
