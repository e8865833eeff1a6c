"""Notebooks: what objects show of themselves, the live view, what IPython keeps alive, and the example."""

from __future__ import annotations

import asyncio
import base64
import gc
import io
import re
import subprocess
import sys
import threading
import time
import warnings
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import anyio
import numpy as np
import pytest
import wgpu
from simulated import SimulatedGpu

import aiostage
from aiostage import reprs
from aiostage.advice import Advice, AdviceKind
from aiostage.errors import DeviceLost

NOTEBOOK = Path(__file__).parent.parent / "examples" / "notebook.ipynb"
HOSTILE = "<script>alert(1)</script> & \"'</td>"

pytestmark = pytest.mark.blocks_loop("some run a notebook, whose cells wait")

Bundle = dict[str, str]


class Drawn:
    """HTML that was parsed, strictly: all that is open is closed, all that is text is escaped."""

    def __init__(self, html: str) -> None:
        self.root = ElementTree.fromstring(html)
        self.text = "".join(self.root.itertext())

    @property
    def headline(self) -> str:
        return "".join(self.root[0].itertext())

    @property
    def cells(self) -> list[str]:
        """The states that the bar shows, in its order."""
        return [rect.attrib["data-state"] for rect in self.root.iter("rect") if "data-state" in rect.attrib]

    @property
    def legend(self) -> dict[str, tuple[int, int]]:
        """By state: how many buffers, of which size."""
        found = [span for span in self.root.iter("span") if "data-count" in span.attrib]
        return {span.attrib["data-count"]: tuple(int(data.attrib["value"]) for data in span) for span in found}

    def row(self, name: str) -> list[float]:
        """The numbers of a row of the table, exactly."""
        return [float(data.attrib["value"]) for data in self._row(name).iter("data")]

    def words(self, name: str) -> str:
        return "".join(self._row(name).itertext())

    def _row(self, name: str) -> ElementTree.Element:
        for row in self.root.iter("tr"):
            if row[0].text == name:
                return row[1]
        raise KeyError(name)


def shown(thing: Any) -> Drawn:
    bundle: Bundle = thing._repr_mimebundle_(include=None, exclude=None)
    assert bundle["text/plain"] == repr(thing)
    return Drawn(bundle["text/html"])


# -- what objects show --


@pytest.mark.parametrize("gpu", [False], indirect=True, ids=["submits inline"])
async def test_a_ring_shows_its_buffers_by_state_and_its_counts(
    gpu: SimulatedGpu, simulated_ring: Callable[..., Any]
) -> None:
    ring = await simulated_ring(ring_count=4)
    target = gpu.buffer(1024)
    with await ring.allocate(600) as slot:
        slot.copy_to_buffer(target)
    ring.advance()  # the GPU has the first, and does nothing
    held = await ring.allocate(800)
    while ring.stats_nowait().buffer_states[0] != "fenced":
        await asyncio.sleep(0.001)
    stats, drawn = ring.stats_nowait(), shown(ring)
    assert (
        drawn.cells == ["fenced", "in_use", "available", "available"] == [str(state) for state in stats.buffer_states]
    )
    assert drawn.legend == {"available": (2, 1024), "in_use": (1, 1024), "fenced": (1, 1024)}
    assert drawn.row("in flight") == [1400]
    assert drawn.row("uploaded") == [stats.bytes_total, stats.allocations_total, stats.submits] == [1400, 2, 1]
    assert drawn.row("stalls") == [0, 0.0, 0]
    assert drawn.row("fences")[0] == stats.pending_fences == 1
    assert drawn.row("peak") == [stats.peak_demand, stats.peak_buffers]
    assert drawn.row("budget") == [stats.budget_used, stats.budget_limit] == [4096, 512 * aiostage.MiB]
    assert "open" in drawn.headline
    (current,) = [rect for rect in drawn.root.iter("rect") if rect.get("class") == "current"]
    assert float(current.attrib["x"]) == pytest.approx(stats.current_ring_index * (480 + 3) / 4, abs=0.1)
    held.abandon()
    gpu.free_running = True


async def test_statistics_show_the_same_as_the_ring_that_they_are_of(open_ring: Callable[..., Any]) -> None:
    ring = await open_ring(ring_count=3, buffer_size=4096)
    assert shown(ring.stats_nowait()).cells == shown(ring).cells == ["available"] * 3
    stats = replace(ring.stats_nowait(), scratch_bytes=12345, waiters=7, buffer_stalls=1234567, stall_seconds=0.5)
    drawn = shown(stats)
    assert drawn.row("scratch") == [12345]
    assert drawn.row("stalls") == [1234567, 0.5, 7]
    assert "1\N{NARROW NO-BREAK SPACE}234\N{NARROW NO-BREAK SPACE}567" in drawn.words("stalls")


def test_a_ring_of_many_buffers_has_one_cell_for_each_state() -> None:
    states = [aiostage.BufferState.FENCED] * 100 + [aiostage.BufferState.AVAILABLE] * 300
    stats = _some_stats(ring_count=400, buffer_size=aiostage.MiB, buffer_states=tuple(states))
    drawn = shown(stats)
    assert drawn.cells == ["available", "fenced"]
    widths = [float(rect.attrib["width"]) for rect in drawn.root.iter("rect") if "data-state" in rect.attrib]
    assert widths == pytest.approx([360, 120], abs=2)
    assert drawn.legend == {
        "available": (300, aiostage.MiB),
        "in_use": (0, aiostage.MiB),
        "fenced": (100, aiostage.MiB),
    }


async def test_a_ring_shows_itself_before_it_is_open_and_what_it_did_after_it_was_closed(
    device: wgpu.GPUDevice, target: Callable[[int], wgpu.GPUBuffer]
) -> None:
    ring = aiostage.StagingRing(device, 2, 64 * 1024)
    assert "not open" in shown(ring).headline
    assert shown(ring).cells == []
    await ring.open()
    await ring.write_buffer(target(1 << 20), 0, bytes(1 << 20))  # the carrier's own
    with await ring.allocate(256) as slot:
        slot.copy_to_buffer(target(256))
    await ring.aclose()
    stats, drawn = ring.stats_nowait(), shown(ring)
    assert "closed" in drawn.headline
    assert drawn.cells == []
    assert drawn.row("uploaded") == [stats.bytes_total, stats.allocations_total, stats.submits]
    assert stats.bytes_total == (1 << 20) + 256
    assert stats.allocations_total > 16
    assert stats.bytes_in_flight == stats.waiters == 0


async def test_a_ring_shows_itself_after_its_device_was_lost(own_device: wgpu.GPUDevice) -> None:
    buffer = own_device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST)
    ring = aiostage.StagingRing(own_device, 2, 4096)
    await ring.open()
    fence = ring.fence()
    own_device.destroy()
    with pytest.raises(DeviceLost):
        await ring.write_buffer(buffer, 0, b"1234")
    assert "lost" in shown(ring).headline
    await until(fence.done)
    drawn = shown(fence)
    assert drawn.words("state") == ("done" if fence.error is None else "lost")
    if fence.error is not None:
        assert drawn.words("because") == str(fence.error)
    await ring.aclose()
    shown(ring)


@pytest.mark.parametrize("gpu", [False], indirect=True, ids=["submits inline"])
async def test_a_look_asks_the_gpu_nothing(gpu: SimulatedGpu, simulated_ring: Callable[..., Any]) -> None:
    ring = await simulated_ring()
    await asyncio.sleep(0.05)  # what opening it began
    before = gpu.polls, gpu.submitted
    for _ in range(100):
        shown(ring)
        shown(ring.stats_nowait())
    assert (gpu.polls, gpu.submitted) == before


async def test_another_thread_sees_the_ring_without_its_counts(open_ring: Callable[..., Any]) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4096)
    drawn = await asyncio.to_thread(shown, ring)
    assert "another thread" in drawn.text
    assert drawn.cells == []
    assert "open" in drawn.headline


async def test_what_cannot_be_drawn_has_its_text(
    open_ring: Callable[..., Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4096)
    monkeypatch.setattr(reprs, "ring", lambda *_: 1 / 0)
    assert ring._repr_mimebundle_() == {"text/plain": repr(ring)}


async def test_a_fence_shows_how_far_it_is(open_ring: Callable[..., Any]) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4096)
    fence = await ring.submit()
    await fence
    drawn = shown(fence)
    assert drawn.row("value") == [fence.value]
    assert drawn.words("state") == "done"
    assert drawn.row("after") == [fence.elapsed]


def test_advice_shows_its_settings_and_why() -> None:
    drawn = shown(Advice(AdviceKind.LARGER_BUFFERS, "some waited", 6, 4 * aiostage.MiB))
    assert drawn.headline == "Advice larger buffers"
    assert drawn.row("settings") == [6, 4 * aiostage.MiB]
    assert drawn.words("settings") == "6 × 4 MiB"
    assert drawn.words("why") == "some waited"


def test_hostile_texts_are_text() -> None:
    advice = shown(Advice(HOSTILE, HOSTILE, 1, 4))  # type: ignore[arg-type]
    assert advice.words("why") == HOSTILE
    assert advice.headline == f"Advice {HOSTILE}"
    assert Drawn(reprs.fence(1, HOSTILE, 0.0, DeviceLost(HOSTILE))).words("because") == HOSTILE
    assert Drawn(reprs.ring(HOSTILE, HOSTILE, None, None)).headline.startswith(f"{HOSTILE} {HOSTILE}")
    stats = _some_stats().as_dict()
    assert HOSTILE in Drawn(reprs.live(HOSTILE, stats, [1.0, 2.0], 0.0, 0)).headline
    for html in (reprs.advice(HOSTILE, 1, 4, HOSTILE), reprs.live(HOSTILE, stats, [], 0.0, 0)):
        assert "<script" not in html


@pytest.mark.parametrize(
    ("rate", "text"), [(0, "0 B/s"), (730_400, "730 kB/s"), (12_540_000, "12.5 MB/s"), (1.2e9, "1.20 GB/s")]
)
def test_rates_are_for_people(rate: float, text: str) -> None:
    assert reprs.rate_text(rate) == text


def _some_stats(**fields: Any) -> aiostage.StagingStats:
    names = aiostage.StagingStats.__dataclass_fields__
    states = {"buffer_states": (aiostage.BufferState.AVAILABLE,)}
    return aiostage.StagingStats(**{**dict.fromkeys(names, 1), **states, **fields})


# -- the live view --


@pytest.fixture
def live() -> Iterator[Callable[..., Any]]:
    """Makes live views that are closed after the test."""
    pytest.importorskip("anywidget", reason="anywidget is not installed: pip install 'aiostage[jupyter]'")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)  # of what it stands on, as that is imported
        from aiostage import jupyter
    views = []

    def make(ring: aiostage.StagingRing, **options: Any) -> Any:
        views.append(jupyter.live(ring, **options))
        return views[-1]

    yield make
    for view in views:
        view.close()


async def until(condition: Callable[[], object]) -> None:
    for _ in range(1000):
        if condition():
            return
        await asyncio.sleep(0.005)
    raise AssertionError("that never came about")


def tasks() -> int:
    return sum(task.get_name() == "aiostage live view" for task in asyncio.all_tasks())


async def test_a_live_view_costs_nothing_before_it_is_displayed(
    open_ring: Callable[..., Any], live: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4096)
    view = live(ring, interval=0.01)
    first = view.html
    await asyncio.sleep(0.1)
    assert not view.is_running
    assert tasks() == 0
    assert view.html == first
    assert Drawn(first).cells == ["available"] * 2


async def test_a_live_view_shows_what_the_ring_does_once_it_is_displayed(
    open_ring: Callable[..., Any], live: Callable[..., Any], target: Callable[[int], wgpu.GPUBuffer]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4096)
    view = live(ring, interval=0.01)
    pages = []
    view.observe(lambda change: pages.append(change.new), "html")
    bundle, *_ = view._repr_mimebundle_()
    assert "application/vnd.jupyter.widget-view+json" in bundle
    await until(lambda: view.is_running)
    buffer = target(64 * 1024)
    rates = []
    view.observe(lambda change: rates.append(change.new), "throughput")
    for _ in range(20):
        await ring.write_buffer(buffer, 0, bytes(64 * 1024))
        await asyncio.sleep(0.005)
    await until(lambda: view.stats.bytes_total == 20 * 64 * 1024)
    drawn = Drawn(view.html)
    assert drawn.row("uploaded") == [view.stats.bytes_total]
    assert drawn.row("stalls")[0] == view.stats.buffer_stalls
    assert drawn.row("throughput")[0] == pytest.approx(view.throughput, abs=1)
    assert drawn.row("loop lag") == [view.lag]
    assert drawn.cells == [str(state) for state in view.stats.buffer_states]
    assert max(rates) > 0
    assert len(set(pages)) > 3
    assert drawn.root.find(".//polyline") is not None


@pytest.mark.blocks_loop("that is what it is to show")
async def test_a_live_view_shows_how_late_the_loop_was(open_ring: Callable[..., Any], live: Callable[..., Any]) -> None:
    view = live(await open_ring(ring_count=2, buffer_size=4096), interval=0.1)
    lags = []
    view.observe(lambda change: lags.append(change.new), "lag")
    view._repr_mimebundle_()
    await until(lambda: view.is_running)
    await asyncio.sleep(0.03)
    time.sleep(0.3)
    await until(lambda: lags)
    assert max(lags) > 0.25


async def test_a_live_view_rests_while_no_page_shows_it(
    open_ring: Callable[..., Any], live: Callable[..., Any]
) -> None:
    view = live(await open_ring(ring_count=2, buffer_size=4096), interval=0.01)

    def hear(name: str, shown: bool) -> None:  # as the kernel does with what a page sends
        view._handle_custom_msg({"view": name, "shown": shown}, [])

    view._repr_mimebundle_()
    await until(lambda: view.is_running)
    hear("a", True)
    hear("b", True)
    hear("a", False)  # scrolled away; the other is still there
    await asyncio.sleep(0.05)
    assert view.is_running
    hear("b", False)
    await until(lambda: not view.is_running)
    await until(lambda: tasks() == 0)
    page = view.html
    await asyncio.sleep(0.05)
    assert view.html == page
    thread = threading.Thread(target=hear, args=("a", True))  # as a kernel's subshell does
    thread.start()
    thread.join()
    await until(lambda: view.is_running)


async def test_a_live_view_ends_with_its_ring_and_says_so(
    device: wgpu.GPUDevice, live: Callable[..., Any], target: Callable[[int], wgpu.GPUBuffer]
) -> None:
    ring = aiostage.StagingRing(device, 2, 4096)
    await ring.open()
    view = live(ring, interval=0.01)
    view._repr_mimebundle_()
    await until(lambda: view.is_running)
    await ring.write_buffer(target(64 * 1024), 0, bytes(64 * 1024))
    await ring.aclose()
    await until(lambda: not view.is_running and tasks() == 0)
    drawn = Drawn(view.html)
    assert "the ring was closed" in drawn.headline
    assert drawn.row("uploaded") == [64 * 1024]  # all of it, since its last look too
    assert drawn.cells == []
    view._repr_mimebundle_()  # shown again, it has nothing to do
    await asyncio.sleep(0.05)
    assert not view.is_running


async def test_a_live_view_says_that_its_device_was_lost(own_device: wgpu.GPUDevice, live: Callable[..., Any]) -> None:
    buffer = own_device.create_buffer(size=4, usage=wgpu.BufferUsage.COPY_DST)
    ring = aiostage.StagingRing(own_device, 2, 4096)
    await ring.open()
    view = live(ring, interval=0.01)
    view._repr_mimebundle_()
    await until(lambda: view.is_running)
    own_device.destroy()
    with pytest.raises(DeviceLost):
        await ring.write_buffer(buffer, 0, b"1234")
    await until(lambda: not view.is_running)
    assert "open" not in Drawn(view.html).headline
    await ring.aclose()


async def test_a_live_view_that_is_closed_leaves_no_task(
    open_ring: Callable[..., Any], live: Callable[..., Any]
) -> None:
    ring = await open_ring(ring_count=2, buffer_size=4096)
    view = live(ring, interval=0.01)
    view._repr_mimebundle_()
    await until(lambda: view.is_running)
    view.close()
    await until(lambda: not view.is_running and tasks() == 0)
    view.close()
    await ring.aclose()  # which tells it nothing any more
    await asyncio.sleep(0.02)
    assert "open" in Drawn(view.html).headline


async def test_a_live_view_keeps_no_ring_alive(device: wgpu.GPUDevice, live: Callable[..., Any]) -> None:
    ring = aiostage.StagingRing(device, 2, 4096)
    await ring.open()
    view = live(ring, interval=0.01)
    view._repr_mimebundle_()
    await until(lambda: view.is_running)
    await asyncio.sleep(0.03)
    with pytest.warns(ResourceWarning, match="was not closed"):
        del ring
        gc.collect()
        await until(lambda: not view.is_running)
    assert "dropped" in Drawn(view.html).headline


async def test_a_live_view_wants_an_open_ring_and_some_time(
    device: wgpu.GPUDevice, open_ring: Callable[..., Any], live: Callable[..., Any]
) -> None:
    with pytest.raises(aiostage.RingClosed):
        live(aiostage.StagingRing(device, 2, 4096))
    ring = await open_ring(ring_count=2, buffer_size=4096)
    for interval in (0, -1, float("nan")):
        with pytest.raises(ValueError, match="interval"):
            live(ring, interval=interval)
    with pytest.raises(aiostage.WrongLoop):
        await asyncio.to_thread(live, ring)


def test_a_live_view_says_that_it_wants_asyncio(device: wgpu.GPUDevice, live: Callable[..., Any]) -> None:
    async def on_trio() -> None:
        async with aiostage.StagingRing(device, 2, 4096) as ring:
            assert shown(ring).cells == ["available"] * 2
            with pytest.raises(aiostage.WrongLoop, match="asyncio"):
                live(ring)

    anyio.run(on_trio, backend="trio")


# -- what IPython keeps alive --


class Session:
    """Cells of an IPython session, each run on one event loop, as kernels do it."""

    def __init__(self, shell: Any) -> None:
        self.shell = shell
        self.loop = asyncio.new_event_loop()

    def result(self, cell: str) -> Any:
        source = self.shell.transform_cell(cell)
        return self.loop.run_until_complete(
            self.shell.run_cell_async(cell, transformed_cell=source, store_history=True)
        )

    def run(self, cell: str) -> int:
        """Its number."""
        number = self.shell.execution_count
        self.result(cell).raise_error()
        return int(number)

    def refuses(self, cell: str, error: type[Exception] = aiostage.ViewStillAlive) -> str:
        """The text of the error that it raises."""
        result = self.result(cell)
        assert isinstance(result.error_in_exec, error), result
        return str(result.error_in_exec)


@pytest.fixture
def session(device: wgpu.GPUDevice, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Session]:
    """One with an open ring, and an allocation of 64 bytes, `slot`."""
    pytest.importorskip("IPython", reason="IPython is not installed: pip install ipython")
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setitem(sys.modules, "__main__", sys.modules["__main__"])  # which a shell takes the place of
    from IPython.core.interactiveshell import InteractiveShell
    from traitlets.config import Config

    config = Config()
    config.HistoryManager.enabled = False
    config.InteractiveShell.xmode = "Minimal"
    shell = InteractiveShell.instance(config=config)
    shell.user_ns.update(aiostage=aiostage, device=device, np=np)
    session = Session(shell)
    session.run("ring = aiostage.StagingRing(device, 2, 4096, stall_timeout=0.05)\nawait ring.open()")
    session.run("slot = await ring.allocate(64)\nslot.array(np.uint8)[:] = 7")
    yield session
    session.run("slot.abandon()\nawait ring.aclose()")
    session.loop.close()
    shell.reset(new_session=False)
    InteractiveShell.clear_instance()
    sys.last_value = sys.last_traceback = sys.last_type = None


def test_the_error_says_which_output_keeps_a_view_alive_and_what_frees_it(session: Session) -> None:
    number = session.run("slot.view[:8]")
    session.run("1 + 1")
    text = session.refuses("slot.commit()")
    assert f"IPython keeps Out[{number}]" in text
    assert f"`%xdel _{number}`" in text
    assert "`;`" in text
    session.run(f"del Out[{number}]")  # not enough, as it says
    assert f"`%xdel _{number}`" in session.refuses("slot.commit()")
    session.run(f"%xdel _{number}")
    session.run("slot.commit()")


@pytest.mark.parametrize(
    "view",
    ["np.asarray(slot.view)", "np.frombuffer(slot.view, np.uint8)[8:]", "[1, slot.view[8:]]", "{2: slot.view[:1]}"],
)
def test_any_view_that_was_shown_is_found(session: Session, view: str) -> None:
    number = session.run(view)
    assert f"Out[{number}]" in session.refuses("slot.commit()")
    session.run(f"%xdel _{number}")
    session.run("slot.commit()")


def test_a_line_that_ends_with_a_semicolon_keeps_nothing(session: Session) -> None:
    session.run("slot.view[:8];")
    session.run("slot.commit()")


def test_strict_views_hear_of_outputs_too(session: Session) -> None:
    session.run(
        "await ring.aclose()\nring = aiostage.StagingRing(device, 2, 4096, strict_views=True)\nawait ring.open()"
    )
    session.run("slot = await ring.allocate(64)")
    number = session.run("slot.array()")
    assert f"Out[{number}]" in session.refuses("slot.commit()")
    session.run(f"%xdel _{number}")
    session.run("slot.commit()")


def test_variables_of_the_notebook_are_named(session: Session) -> None:
    session.run("part, other = slot.view[:8], np.zeros(4)")
    text = session.refuses("slot.commit()")
    assert "`del part`" in text
    assert "other" not in text
    assert "Out[" not in text
    session.run("del part")
    session.run("slot.commit()")


def test_nobody_is_blamed_for_another_allocations_view(session: Session) -> None:
    session.run("another = await ring.allocate(64)")
    number = session.run("another.view[:8]")
    session.run("mine = np.asarray(slot.view)")
    text = session.refuses("slot.commit()")
    assert f"Out[{number}]" not in text
    assert "`del mine`" in text
    session.run("del mine")
    session.run("slot.commit()")
    session.run(f"%xdel _{number}\nanother.abandon()")


def test_an_output_that_only_the_underscore_has_left_is_found(session: Session) -> None:
    number = session.run("slot.view[:8]")
    session.run(f"del _{number}")
    assert f"`del Out[{number}]` lets go" in session.refuses("slot.commit()")
    session.run(f"del Out[{number}]")
    assert "`%xdel _`" in session.refuses("slot.commit()")
    session.run("%xdel _")
    session.run("slot.commit()")


def test_what_ipython_leaves_behind_when_outputs_are_flushed_is_found(session: Session) -> None:
    session.run("slot.view[:8]")
    session.run("%reset -f out")
    text = session.refuses("slot.commit()")
    (cure,) = re.findall(r"get_ipython\(\)\.push\(.*\)", text)
    session.run(cure)
    session.run("slot.commit()")
    session.run("2 + 3")
    assert session.shell.user_ns["_"] == 5


def test_a_ring_that_cannot_move_names_the_output_that_holds_its_buffer(session: Session) -> None:
    number = session.run("slot.view[:8]")
    session.refuses("with slot:\n    1 / 0", ZeroDivisionError)
    session.run("held = await ring.allocate(4096)")
    text = session.refuses("await ring.allocate(4096)", aiostage.StallTimeout)
    assert f"a view of an abandoned allocation. IPython keeps Out[{number}]" in text
    session.run("held.abandon()")
    session.run(f"%xdel _{number}")


def test_without_ipython_nothing_is_said_of_it_and_it_is_not_imported() -> None:
    program = """
import asyncio, sys, wgpu, aiostage
async def main():
    device = wgpu.gpu.request_adapter_sync().request_device_sync()
    async with aiostage.StagingRing(device, 2, 4096) as ring:
        slot = await ring.allocate(64)
        part = slot.view[:8]
        try:
            slot.commit()
        except aiostage.ViewStillAlive as error:
            assert "IPython" not in str(error), error
        part.release()
        slot.commit()
        ring._repr_mimebundle_()
    assert not {"IPython", "anywidget", "traitlets"} & sys.modules.keys()
asyncio.run(main())
"""
    run = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=60)
    assert run.returncode == 0, run.stderr


# -- a real kernel --


def executed(notebook: Any, monkeypatch: pytest.MonkeyPatch, folder: Path) -> Any:
    """The notebook with its outputs, from a kernel of this interpreter."""
    nbclient = pytest.importorskip("nbclient", reason="nbclient is not installed: pip install nbclient ipykernel")
    _isolate(monkeypatch, folder)
    client = nbclient.NotebookClient(notebook, timeout=120, kernel_name="python3")
    return client.execute()


def _isolate(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """A kernel that starts from now on reads and keeps nothing of the user's, and imports this library."""
    monkeypatch.setenv("IPYTHONDIR", str(folder))
    monkeypatch.setenv("JUPYTER_RUNTIME_DIR", str(folder))
    monkeypatch.setenv("PYTHONPATH", str(NOTEBOOK.parent.parent))


def outputs(notebook: Any, kind: str) -> list[str]:
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    return [out.data[kind] for cell in cells for out in cell.outputs if "data" in out and kind in out.data]


def test_the_notebook_shows_the_ring_its_statistics_and_the_picture(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    nbformat = pytest.importorskip("nbformat", reason="nbformat is not installed: pip install nbclient")
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    assert not any(cell.get("outputs") or cell.get("execution_count") for cell in notebook.cells)
    done = executed(notebook, monkeypatch, tmp_path)
    pages = [Drawn(page) for page in outputs(done, "text/html")]
    opened, fence, stats, closed = pages[0], pages[1], pages[2], pages[-1]
    assert opened.cells == ["available"] * 4
    assert fence.words("state") == "done"
    assert stats.row("uploaded")[0] == 100 * 16 * 512 * 512 * 4
    assert "closed" in closed.headline
    (view,) = outputs(done, "application/vnd.jupyter.widget-view+json")
    state = done.metadata.widgets["application/vnd.jupyter.widget-state+json"]["state"][view["model_id"]]["state"]
    followed = Drawn(state["html"])  # what was sent to the page last
    assert "closed" in followed.headline
    assert followed.row("uploaded") == stats.row("uploaded")[:1]
    assert followed.root.find(".//polyline") is not None
    (picture,) = outputs(done, "image/png")
    image = pytest.importorskip("PIL.Image", reason="Pillow is not installed: pip install pillow")
    texels = np.asarray(image.open(io.BytesIO(base64.b64decode(picture))))
    y, x = np.mgrid[-1 : 1 : 512 * 1j, -1 : 1 : 512 * 1j]
    red = (127.5 + 127.5 * np.cos(20 * np.hypot(x, y) - 2 * np.pi * 5 / 16)).astype(np.uint8)
    np.testing.assert_array_equal(texels[..., 0], red[::4, ::4])


def test_a_kernel_says_what_its_outputs_keep_alive(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """As in a session above, with the display hook and namespace of a real kernel."""
    v4 = pytest.importorskip("nbformat.v4", reason="nbformat is not installed: pip install nbclient")
    cells = [
        "import wgpu, aiostage\n"
        "ring = aiostage.StagingRing(wgpu.gpu.request_adapter_sync().request_device_sync(), 2, 4096)\n"
        "await ring.open()\nslot = await ring.allocate(64)",
        "slot.view[:8]",
        "try:\n    slot.commit()\nexcept aiostage.ViewStillAlive as error:\n    print(error)",
        "%xdel _2",
        "slot.commit()\nawait ring.aclose()",
    ]
    done = executed(v4.new_notebook(cells=[v4.new_code_cell(cell) for cell in cells]), monkeypatch, tmp_path)
    (printed,) = [out.text for cell in done.cells for out in cell.outputs if out.output_type == "stream"]
    assert "IPython keeps Out[2]" in printed
    assert "`%xdel _2`" in printed


def test_a_cell_that_is_interrupted_leaves_the_ring_to_the_next(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    manager = pytest.importorskip(
        "jupyter_client.manager", reason="jupyter_client is not installed: pip install nbclient"
    )
    _isolate(monkeypatch, tmp_path)
    kernel, client = manager.start_new_kernel(startup_timeout=60)

    def run(cell: str, printed: Callable[[str], object] = lambda text: None) -> tuple[str, str]:
        """What a cell prints, and the name of the error that ended it."""
        texts, errors = [], [""]

        def hear(message: dict[str, Any]) -> None:
            content = message["content"]
            if message["msg_type"] == "stream":
                texts.append(content["text"])
                printed(content["text"])
            elif message["msg_type"] == "error":
                errors.append(content["ename"])

        client.execute_interactive(cell, timeout=60, output_hook=hear)
        return "".join(texts), errors[-1]

    try:
        assert run(
            "import wgpu, aiostage\n"
            "device = wgpu.gpu.request_adapter_sync().request_device_sync()\n"
            "buffer = device.create_buffer(size=1 << 24, usage=wgpu.BufferUsage.COPY_DST)\n"
            "ring = aiostage.StagingRing(device, 2, 1 << 20)\nawait ring.open()"
        ) == ("", "")
        endless = (
            "with await ring.allocate(1 << 20) as slot:\n    print('uploading', flush=True)\n"
            "    while True:\n        await ring.write_buffer(buffer, 0, bytes(1 << 24))"
        )
        assert run(endless, lambda text: kernel.interrupt_kernel()) == ("uploading\n", "CancelledError")
        printed, error = run(
            "await (await ring.write_buffer(buffer, 0, bytes(1 << 24)))\n"
            "both = [await ring.allocate(1 << 20) for _ in range(2)]  # nothing is held any more\n"
            "print(len(both), *[slot.abandon() for slot in both])\nawait ring.aclose()"
        )
        assert (printed, error) == ("2 None None\n", "")
    finally:
        client.stop_channels()
        kernel.shutdown_kernel(now=True)
