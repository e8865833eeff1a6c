"""A live view of a ring in a notebook. Start at `live`; docs/jupyter.md has the rest. Needs the extra `jupyter`."""

from __future__ import annotations

import asyncio
import contextlib
import time
import weakref
from collections import deque
from dataclasses import replace
from typing import Any

try:
    import anywidget
    import traitlets
except ImportError as error:
    raise ImportError("the live view of a ring needs anywidget: pip install 'aiostage[jupyter]'") from error

from . import reprs
from .errors import StagingError, WrongLoop
from .ring import StagingRing

__all__ = ["LiveView", "live"]

_TICK = 0.02
"""Seconds between looks at how late the event loop is: what holds it for longer is seen."""

_HISTORY = 120
"""Samples of throughput that are drawn."""

_SHOWN = "by display"
"""In the place of a page's view that has not been heard of yet."""

# The page draws what it is given, and says whether it can be seen: scrolled away, in a hidden tab or gone it is not.
_PAGE = """
function render({ model, el }) {
  const view = crypto.getRandomValues(new Uint32Array(2)).join("-");
  let inSight = false, told = null;
  const draw = () => { el.innerHTML = model.get("html"); };
  const tell = (shown) => { if (shown !== told) { told = shown; model.send({ view, shown }); } };
  const look = () => tell(inSight && !document.hidden);
  const leave = () => tell(false);
  const sight = new IntersectionObserver((entries) => { inSight = entries.at(-1).isIntersecting; look(); });
  draw();
  model.on("change:html", draw);
  sight.observe(el);
  document.addEventListener("visibilitychange", look);
  window.addEventListener("pagehide", leave);
  return () => {
    leave();
    sight.disconnect();
    model.off("change:html", draw);
    document.removeEventListener("visibilitychange", look);
    window.removeEventListener("pagehide", leave);
  };
}
export default { render };
"""


class LiveView(anywidget.AnyWidget):  # type: ignore[misc] # mypy is not shown anywidget's types
    """The widget that `live` makes: an anywidget, for every notebook that shows these. Its traits may be observed."""

    _esm = _PAGE

    html = traitlets.Unicode("").tag(sync=True)
    """What the page shows."""
    stats = traitlets.Any(None)
    """The `StagingStats` of the last look."""
    throughput = traitlets.Float(0.0)
    """Bytes per second that were allocated between the last two looks."""
    lag = traitlets.Float(0.0)
    """Seconds that the event loop was late at most between them."""

    def __init__(self, ring: StagingRing, interval: float, loop: asyncio.AbstractEventLoop) -> None:
        self._ring = weakref.ref(ring)  # a widget is kept for as long as the kernel lives
        self._interval = interval
        self._loop = loop
        self._task: asyncio.Task[None] | None = None  # while somebody sees it
        self._seen: set[str] = set()  # views of it, in pages, that can be seen
        self._rates: deque[float] = deque(maxlen=_HISTORY)
        self._looked = 0.0
        self._forget_ring = ring.when_ended(self._end)
        super().__init__()
        self._look(ring, 0.0)
        self.on_msg(self._hear)

    @property
    def is_running(self) -> bool:
        """Whether it is being updated: it is shown, and its ring is open."""
        return self._task is not None

    def close(self) -> None:
        """Take it off the page, and end its task."""
        if self.comm is not None:  # not closed yet, nor only half made
            self._forget_ring()
            self._on_loop(self._stop)
        super().close()

    # -- who sees it --

    def _repr_mimebundle_(self, **asked: Any) -> Any:
        # The page will say so itself, but where it has to wait for a cell, or for all that wait in line, not before.
        self._on_loop(self._show, _SHOWN, True)
        return super()._repr_mimebundle_(**asked)

    def _hear(self, widget: object, content: Any, buffers: object) -> None:
        """A page has said whether its view can be seen; in whichever thread the kernel hears that."""
        self._on_loop(self._show, str(content.get("view")), content.get("shown") is True)

    def _on_loop(self, function: Any, *arguments: Any) -> None:
        with contextlib.suppress(RuntimeError):  # the loop is closed, and the ring with it
            self._loop.call_soon_threadsafe(function, *arguments)

    def _show(self, view: str, shown: bool) -> None:
        if shown:
            self._seen.add(view)
        else:
            self._seen.discard(view)
        if view != _SHOWN:
            self._seen.discard(_SHOWN)
        ring = self._ring()
        if not self._seen or self.comm is None or ring is None or ring.is_closed:
            self._stop()
        elif self._task is None:
            self._look(ring, 0.0)
            self._task = self._loop.create_task(self._follow(), name="aiostage live view")

    def _stop(self) -> None:
        if self._task is not None:
            self._task.cancel()
            self._task = None

    # -- what it shows --

    async def _follow(self) -> None:
        """Look every so often, until it is cancelled or the ring is gone."""
        while True:
            lag = await _worst_lag(self._interval)
            ring = self._ring()
            if ring is None:
                self._end()
                return
            self._look(ring, lag)
            del ring  # not kept while this sleeps

    def _look(self, ring: StagingRing, lag: float) -> None:
        before, self.stats = self.stats, ring.stats_nowait()
        now = time.perf_counter()
        new_bytes = 0 if before is None else self.stats.bytes_total - before.bytes_total
        new_stalls = 0 if before is None else self.stats.buffer_stalls - before.buffer_stalls
        self.throughput, self.lag = new_bytes / max(now - self._looked, 1e-6), lag
        self._looked = now
        self._rates.append(self.throughput)
        self._draw("open", new_stalls)

    def _end(self) -> None:
        """The ring was closed, lost or dropped: what it did in all stays on the page."""
        self._stop()
        ring = self._ring()
        if ring is None:
            state = "was dropped"
        else:
            self.stats = ring.stats_nowait()
            state = _why_ended(ring)
        self.stats = replace(self.stats, buffer_states=())  # soon, if not yet
        self._draw(state, 0)

    def _draw(self, state: str, new_stalls: int) -> None:
        self.html = reprs.live(state, self.stats.as_dict(), tuple(self._rates), self.lag, new_stalls)


def live(ring: StagingRing, *, interval: float = 0.25) -> LiveView:
    """A widget that shows what a ring does, as it does it: its buffers, throughput, stalls, and how late the loop is.

    Make it the last line of a cell, or `display` it. A task of its own looks at the ring every `interval` seconds, and
    asks the GPU nothing, while some page shows it: one that is not displayed, scrolled out of sight or in a hidden tab
    costs nothing. It ends with the ring, and what that did in all stays on the page; `close()` takes it away.

    :raises RingClosed, DeviceLost: the ring is not open.
    :raises WrongLoop: the ring lives on another loop than this cell, or that is not asyncio's.
    :raises ValueError: the interval is not positive.
    """
    ring.check()
    if not interval > 0:
        raise ValueError(f"interval must be positive, not {interval!r}")
    try:
        loop = asyncio.get_running_loop()
    except RuntimeError:
        raise WrongLoop("a live view is for kernels, and wants their event loop: asyncio's") from None
    return LiveView(ring, interval, loop)


def _why_ended(ring: StagingRing) -> str:
    try:
        ring.check()
    except StagingError as error:
        return str(error)
    return "open"


async def _worst_lag(duration: float) -> float:
    """How many seconds late the loop was at most, of what was to be woken in the next `duration` seconds."""
    worst, now = 0.0, time.perf_counter()
    end = now + duration
    while now < end:
        pause = min(_TICK, end - now)
        await asyncio.sleep(pause)
        woken = time.perf_counter()
        worst, now = max(worst, woken - now - pause), woken
    return worst
