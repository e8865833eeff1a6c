"""A ring on every worker of a dask cluster: of two processes, and of workers inside this one."""

from __future__ import annotations

import asyncio
import inspect
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import wgpu.backends.wgpu_native

import aiostage

distributed = pytest.importorskip("distributed", reason="distributed is not installed: pip install 'aiostage[dask]'")
import dask.array as da  # noqa: E402 - comes with it
import psutil  # noqa: E402
from distributed.protocol import pickle as distributed_pickle  # noqa: E402
from distributed.protocol import serialize  # noqa: E402

from aiostage.dask import (  # noqa: E402
    GpuArray,
    GpuWorker,
    NoRing,
    RingPlugin,
    WrongWorker,
    choose_adapter,
    compute,
    current,
    fetch,
    upload,
)
from aiostage.dask.plugin import all_adapters  # noqa: E402

pytestmark = pytest.mark.blocks_loop("dask's own loop is in this process too")

SOFTWARE = os.environ.get("AIOSTAGE_TEST_ADAPTER") != "gpu"
PATIENCE = 60  # seconds

SQUARE = """
@group(0) @binding(0) var<storage, read> numbers: array<f32>;
@group(0) @binding(1) var<storage, read_write> squares: array<f32>;
@compute @workgroup_size(64)
fn main(@builtin(global_invocation_id) at: vec3u) {
    if at.x < arrayLength(&squares) { squares[at.x] = numbers[at.x] * numbers[at.x]; }
}
"""


def plugin(**options: Any) -> RingPlugin:
    return RingPlugin(2, 65536, software=SOFTWARE, **options)


def eventually(question: Callable[[], Any]) -> None:
    end = time.monotonic() + PATIENCE
    while not question():
        assert time.monotonic() < end
        time.sleep(0.05)


@pytest.fixture(scope="module")
def cluster() -> Iterator[Any]:
    """Two processes, which are started again when they die."""
    options = {"n_workers": 2, "threads_per_worker": 2, "dashboard_address": ":0"}
    with distributed.LocalCluster(processes=True, **options) as cluster:
        yield cluster


@pytest.fixture(scope="module")
def started(cluster: Any) -> Iterator[Any]:
    with distributed.Client(cluster) as client:
        client.register_plugin(plugin())
        yield client


@pytest.fixture
def client(started: Any) -> Any:
    """With both workers there, whatever happened to them before, and nothing on them."""
    started.wait_for_workers(2, timeout=PATIENCE)
    eventually(lambda: all(used == 0 for used in started.run(memory_used).values()))
    return started


@pytest.fixture
def inside() -> Iterator[Callable[..., Any]]:
    """Starts clusters whose workers are in this process: `inside(n_workers)`, a client."""
    running: list[Any] = []

    def start(n_workers: int = 1) -> Any:
        options = {"threads_per_worker": 2, "dashboard_address": ":0"}
        running.append(distributed.LocalCluster(n_workers=n_workers, processes=False, **options))
        running.append(distributed.Client(running[-1]))
        return running[-1]

    yield start
    for one in reversed(running):
        one.close()


def memory_used(dask_worker: Any) -> int | None:
    """Also waits for the ring of a worker that was just started."""
    import gc

    gc.collect()  # what a task that failed left in the frames of its error
    gpu = dask_worker.plugins["aiostage"].gpu if "aiostage" in dask_worker.plugins else None
    return gpu and gpu.memory.used


async def square(gpu: GpuWorker, numbers: GpuArray) -> GpuArray:
    squares = await gpu.empty(numbers.shape, numbers.dtype)
    await gpu.run(SQUARE, numbers, squares, groups=(-(-numbers.nbytes // 256), 1, 1))
    return squares


async def place(gpu: GpuWorker, *arrays: Any) -> str:
    await asyncio.sleep(0.05)
    return gpu.worker


def holders(client: Any, futures: list[Any]) -> list[str]:
    distributed.wait(futures, timeout=PATIENCE)
    where = client.who_has(futures)
    return [where[future.key][0] for future in futures]


def random_volume(client: Any, blocks: int = 12) -> Any:
    """A dask array on both workers."""
    return client.persist(da.random.default_rng(0).random((blocks, 1000), np.float32, chunks=(1, 1000)))


def on_each(client: Any) -> list[Any]:
    """A future of an array on each worker."""
    workers = sorted(client.scheduler_info()["workers"])
    return [client.submit(np.full, 1000, i, np.float32, workers=[w], pure=False) for i, w in enumerate(workers)]


# -- results --


def test_shaders_on_both_workers_give_what_numpy_gives(client: Any) -> None:
    numbers = random_volume(client)
    arrays = upload(client, numbers)
    squares = [compute(client, square, array) for array in arrays]
    got = np.concatenate(client.gather(fetch(client, squares)))
    assert np.array_equal(got, client.compute(numbers).result() ** 2)
    assert len(set(holders(client, arrays))) == 2
    assert holders(client, squares) == holders(client, arrays)


@pytest.mark.parametrize("dtype", ["uint8", "float16", ">i4", "complex128"])
def test_any_items_come_back_as_they_were(client: Any, dtype: str) -> None:
    data = np.arange(3 * 7 * 5).reshape(3, 7, 5).astype(dtype)
    chunks = [data, data[:, ::2].transpose(2, 0, 1), data[:1, :1, :1]]
    for chunk, back in zip(chunks, client.gather(fetch(client, upload(client, chunks))), strict=True):
        assert back.dtype == chunk.dtype
        assert np.array_equal(back, chunk)


def test_textures_come_back_as_they_were(client: Any) -> None:
    picture = np.random.default_rng(1).integers(0, 256, (20, 30, 4), np.uint8)
    volume = np.random.default_rng(1).random((5, 6, 7), np.float32)
    layouts = [
        (picture, {"size": (30, 20, 1), "format": "rgba8unorm"}),
        (volume, {"size": (7, 6, 5), "format": "r32float", "dimension": "3d"}),
    ]
    for data, texture in layouts:
        (future,) = upload(client, [data], texture=texture)
        assert np.array_equal(fetch(client, [future])[0].result(timeout=PATIENCE), data)


def test_what_is_forgotten_gives_its_memory_back(client: Any) -> None:
    arrays = upload(client, on_each(client))
    distributed.wait(arrays, timeout=PATIENCE)
    assert set(client.run(memory_used).values()) == {4000}
    del arrays
    eventually(lambda: set(client.run(memory_used).values()) == {0})


def test_the_example_runs(tmp_path: Path) -> None:
    example = Path(__file__).parent.parent / "examples" / "distributed_volume.py"
    picture = tmp_path / "volume.png"
    options = ["--software"] if SOFTWARE else []
    command = [sys.executable, example, *options, "--output", picture]
    run = subprocess.run(command, capture_output=True, text=True, timeout=80)
    assert run.returncode == 0, run.stderr
    assert "the same as NumPy's" in run.stdout
    assert run.stdout.count(" chunks\n") == 2  # of each worker
    assert picture.stat().st_size > 5000


# -- places --


def test_a_task_stays_where_its_array_is_however_idle_the_others(client: Any) -> None:
    first, _ = on_each(client)
    (array,) = upload(client, [first])
    (home,) = holders(client, [array])
    places = client.gather([compute(client, place, array) for _ in range(40)])
    assert set(places) == {home}


def test_a_task_with_other_data_goes_where_its_array_is(client: Any) -> None:
    first, second = on_each(client)
    (array,) = upload(client, [first])
    large = client.submit(np.zeros, 1 << 22, workers=holders(client, [second]), pure=False)
    assert compute(client, place, large, array).result(timeout=PATIENCE) == holders(client, [array])[0]


def test_arrays_of_two_workers_are_no_task_for_anyone(client: Any) -> None:
    with pytest.raises(
        WrongWorker, match=r"<GpuArray \(1000,\) of float32 on worker tcp://.* cannot be used on tcp://"
    ):
        compute(client, place, *upload(client, on_each(client))).result(timeout=PATIENCE)


def test_elsewhere_an_array_is_a_handle(client: Any) -> None:
    array = upload(client, on_each(client))[0].result(timeout=PATIENCE)
    assert (array.shape, array.dtype, array.nbytes) == ((1000,), np.float32, 4000)
    assert array.worker in client.scheduler_info()["workers"]
    with pytest.raises(WrongWorker, match=f"on worker {array.worker}> cannot be used elsewhere"):
        array.buffer  # noqa: B018
    with pytest.raises(WrongWorker, match="fetch"):
        asyncio.run(array.fetch())
    with pytest.raises(TypeError, match="cannot be pickled; fetch"):
        pickle.dumps(array)
    with pytest.raises(TypeError, match="serialize"):  # as dask does before it writes a key to disk and drops it
        serialize(array, on_error="raise")


def test_there_is_no_ring_outside_of_tasks() -> None:
    with pytest.raises(WrongWorker, match="no task on a dask worker"):
        current()


def test_only_coroutine_functions_run_beside_arrays(client: Any) -> None:
    with pytest.raises(TypeError, match="no coroutine function"):
        compute(client, np.sum, 1)


# -- workers that die, or close --


async def slow_square(gpu: GpuWorker, numbers: GpuArray) -> np.ndarray:
    await asyncio.sleep(0.3)
    return await (await square(gpu, numbers)).fetch()


def test_a_worker_that_dies_costs_time_alone(client: Any) -> None:
    data = np.random.default_rng(2).random((12, 1000), np.float32)
    arrays = upload(client, da.from_array(data, chunks=(1, 1000)))
    results = [compute(client, slow_square, array) for array in arrays]
    next(iter(distributed.as_completed(results, timeout=PATIENCE)))
    assert len(set(holders(client, arrays))) == 2
    victim = next(iter(client.run(os.getpid).values()))
    os.kill(victim, signal.SIGKILL)
    assert np.array_equal(np.concatenate(client.gather(results)), data**2)
    client.wait_for_workers(2, timeout=PATIENCE)
    eventually(lambda: None not in client.run(memory_used).values())
    assert victim not in client.run(os.getpid).values()
    assert len(set(client.gather([compute(client, place) for _ in range(20)]))) == 2  # the new one has a ring too


def test_tasks_wait_for_a_worker_when_the_only_one_dies() -> None:
    options = {"n_workers": 1, "threads_per_worker": 2, "dashboard_address": ":0"}
    with distributed.LocalCluster(processes=True, **options) as cluster, distributed.Client(cluster) as client:
        client.register_plugin(plugin())
        data = client.submit(np.arange, 1000, dtype=np.float32)
        (array,) = upload(client, [data])
        distributed.wait([array], timeout=PATIENCE)
        os.kill(next(iter(client.run(os.getpid).values())), signal.SIGKILL)
        assert fetch(client, [array])[0].result(timeout=PATIENCE)[-1] == 999
        processes = [psutil.Process(pid) for pid in client.run(os.getpid).values()]
    _, alive = psutil.wait_procs(processes, timeout=PATIENCE)
    assert not alive


def test_a_worker_that_is_retired_costs_time_alone(inside: Callable[..., Any]) -> None:
    client = inside(2)
    client.register_plugin(plugin())
    numbers = random_volume(client)
    expected = client.compute(numbers).result() ** 2
    arrays = upload(client, numbers)
    retired, left = sorted(set(holders(client, arrays)))
    client.retire_workers([retired])
    results = [compute(client, slow_square, array) for array in arrays]
    assert np.array_equal(np.concatenate(client.gather(results)), expected)
    assert set(holders(client, arrays)) == {left}


@pytest.mark.parametrize("end", ["the worker closes", "the plugin is removed"])
def test_the_ring_is_closed_with(end: str, inside: Callable[..., Any]) -> None:
    client = inside()
    client.register_plugin(plugin())
    worker = client.cluster.workers[0]
    gpu = worker.plugins["aiostage"].gpu
    assert not gpu.ring.is_closed
    if end == "the worker closes":
        client.cluster.scale(0)
        eventually(lambda: gpu.ring.is_closed)
        return
    client.unregister_worker_plugin("aiostage")
    assert gpu.ring.is_closed
    assert worker.state.total_resources == {"aiostage": 0}
    waiting = compute(client, place)
    client.register_plugin(plugin())
    assert waiting.result(timeout=PATIENCE) == worker.address


def test_an_array_of_a_plugin_that_was_replaced_says_so(inside: Callable[..., Any]) -> None:
    client = inside()
    client.register_plugin(plugin())
    (array,) = upload(client, [np.zeros(4)])
    distributed.wait([array], timeout=PATIENCE)
    client.register_plugin(plugin())
    with pytest.raises(WrongWorker, match="the plugin that it was made with was replaced"):
        fetch(client, [array])[0].result(timeout=PATIENCE)


# -- devices --


def only_worker_0(worker: Any, adapters: list[Any]) -> Any:
    return choose_adapter(worker, adapters, SOFTWARE) if worker.name == 0 else None


def test_a_worker_without_an_adapter_is_named(inside: Callable[..., Any]) -> None:
    client = inside(2)
    with pytest.raises(NoRing, match=r"worker 1 \(inproc://.*\) has no GPU to use: device\(\) returned None"):
        client.register_plugin(plugin(device=only_worker_0))


def test_the_others_go_on_without_it(inside: Callable[..., Any], caplog: pytest.LogCaptureFixture) -> None:
    client = inside(2)
    client.register_plugin(plugin(device=only_worker_0, missing="skip"))
    assert "worker 1 (inproc://" in caplog.text
    places = client.gather([compute(client, place) for _ in range(10)])
    assert set(places) == {worker.address for worker in client.cluster.workers.values() if worker.name == 0}
    with pytest.raises(WrongWorker, match=r"worker 1 .* has no ring"):
        client.submit(current, workers=[1]).result(timeout=PATIENCE)


def test_memory_has_a_limit(inside: Callable[..., Any]) -> None:
    client = inside()
    client.register_plugin(plugin(memory=10_000, budget=2 * 65536))
    kept = upload(client, [np.zeros(1000)])
    distributed.wait(kept, timeout=PATIENCE)
    with pytest.raises(aiostage.BudgetExceeded, match="8000 of 10000 in use"):
        upload(client, [np.zeros(1000)])[0].result(timeout=PATIENCE)
    with pytest.raises(NoRing, match=r"worker 0 .* memory budget"):
        client.register_plugin(plugin(budget=65536))


def test_what_blocks_stays_off_the_loop(inside: Callable[..., Any], monkeypatch: pytest.MonkeyPatch) -> None:
    callers: dict[str, threading.Thread] = {}

    def watch(owner: Any, name: str) -> None:
        original = getattr(owner, name)

        def watched(*args: Any, **options: Any) -> Any:
            callers[name] = threading.current_thread()
            return original(*args, **options)

        monkeypatch.setattr(owner, name, watched)

    watch(type(wgpu.gpu), "enumerate_adapters_sync")
    watch(wgpu.backends.wgpu_native.GPUAdapter, "request_device_sync")
    for name in ("create_buffer", "create_shader_module", "create_compute_pipeline"):
        watch(wgpu.backends.wgpu_native.GPUDevice, name)
    watch(wgpu.backends.wgpu_native.GPUBuffer, "map_sync")
    all_adapters.cache_clear()
    client = inside()
    client.register_plugin(plugin())
    arrays = upload(client, [np.ones(64, np.float32)])
    assert fetch(client, [compute(client, square, array) for array in arrays])[0].result(timeout=PATIENCE).sum() == 64
    assert len(callers) == 6
    assert {thread.name for thread in callers.values()} == {"aiostage thread"}


def test_two_gpus_are_used_by_turns(monkeypatch: pytest.MonkeyPatch) -> None:
    def adapter(kind: str, backend: str = "Vulkan") -> Any:
        return SimpleNamespace(info={"device": kind, "adapter_type": kind, "backend_type": backend})

    gl, cpu, integrated = adapter("DiscreteGPU", "OpenGL"), adapter("CPU"), adapter("IntegratedGPU")
    first, second = adapter("DiscreteGPU"), adapter("DiscreteGPU")
    adapters = [gl, cpu, integrated, first, second]

    def chosen(name: Any, adapters: list[Any], software: bool = False) -> Any:
        return choose_adapter(SimpleNamespace(name=name), adapters, software)

    names = [0, 1, 2, "1", "gpu-0", "gpu-1", "tcp://127.0.0.1:3333"]
    assert [chosen(name, adapters) for name in names] == [first, second, first, second, first, second, first]
    assert chosen(1, adapters, software=True) is cpu
    assert chosen(1, adapters[:3]) is integrated
    monkeypatch.setenv("AIOSTAGE_ADAPTER", "1")
    assert chosen(0, adapters) is second
    with pytest.raises(LookupError, match=r"found no GPU there, but CPU \(CPU, Vulkan\)"):
        chosen(0, [cpu])
    with pytest.raises(LookupError, match="no software adapter there, but no adapter at all"):
        chosen(0, [], software=True)
    monkeypatch.setenv("AIOSTAGE_ADAPTER", "second")
    with pytest.raises(LookupError, match="AIOSTAGE_ADAPTER must be a number, not 'second'"):
        chosen(0, adapters)


@pytest.mark.parametrize("options", [{"missing": "stop"}, {"ring_count": 0}, {"nonsense": 1}])
def test_wrong_options_are_said_at_once(options: dict[str, Any]) -> None:
    with pytest.raises((ValueError, TypeError)):
        RingPlugin(**options)


ERRORS = [kind for kind in vars(aiostage.errors).values() if getattr(kind, "__module__", "") == "aiostage.errors"]


@pytest.mark.parametrize("kind", [*filter(inspect.isclass, ERRORS), NoRing, WrongWorker])
def test_errors_arrive_as_they_were(kind: type[Exception]) -> None:
    try:
        raise kind("what went wrong")
    except kind as error:
        arrived = distributed_pickle.loads(distributed_pickle.dumps(error))
    assert type(arrived) is kind
    assert str(arrived) == "what went wrong"


def test_the_core_does_not_import_dask() -> None:
    program = (
        "import sys, aiostage, aiostage.memory, aiostage.pools; assert not {'dask', 'distributed'} & {*sys.modules}"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
