"""Writable views of staging memory, and what becomes of them when the memory goes to the GPU.

NumPy arrays that `Views.array` makes know their slices, rows and reshapes and become read-only together. What else may
still point at the memory is found by a weak reference to the object that exports it: every view keeps that alive.
"""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable
from typing import Any

import numpy as np
import numpy.typing as npt

from ..errors import ViewStillAlive
from ..exits import holding
from ..gpu.memory import export
from . import keepers

_adopting = threading.RLock()
"""Held to change whose arrays are known, by any thread: several may slice the array of one slot."""


class StagedArray(np.ndarray[Any, np.dtype[Any]]):
    """An array over staging memory. It and whatever is sliced from it turn read-only when the allocation is closed."""

    _views: Views | None = None

    def __array_finalize__(self, parent: object) -> None:
        # Called for every slice, row, reshape and transpose, but for results of arithmetic too, which are nobody's.
        views = getattr(parent, "_views", None)
        if views is not None and views.covers(self):
            views.adopt(self)


class Views:
    """The views of one allocation: `size` bytes at `address`.

    Holds nothing but weak references, so that what is alive is alive for somebody else. Memoryviews and arrays have
    exporters of their own: a memoryview and what was made from it cannot be made read-only, an array can.
    """

    __slots__ = (
        "__weakref__",
        "_address",
        "_array_source",
        "_arrays",
        "_frozen",
        "_owner",
        "_prune_at",
        "_size",
        "_view",
        "_view_source",
    )

    def __init__(self, address: int, size: int, owner: Callable[[Any], None]) -> None:
        self._address = address
        self._size = size
        self._owner = owner
        self._view: Callable[[], memoryview | None] = _nothing
        self._view_source: Callable[[], Any] = _nothing
        self._array_source: Callable[[], Any] = _nothing
        self._arrays: list[weakref.ref[StagedArray]] = []
        self._prune_at = 64
        self._frozen = False

    @property
    def view(self) -> memoryview:
        """A writable memoryview; the same one while somebody has it."""
        view = self._view()
        if view is None or _is_released(view):
            source = self._view_source() or export(self._address, self._size, self._owner)
            view = memoryview(source).cast("B")
            self._view, self._view_source = weakref.ref(view), weakref.ref(source)
        return view

    def array(
        self, dtype: npt.DTypeLike, shape: tuple[int, ...], strides: tuple[int, ...] | None = None
    ) -> StagedArray:
        """A writable array from the first byte on."""
        source = self._array_source()
        if source is None:
            source = export(self._address, self._size, self._owner)
            self._array_source = weakref.ref(source)
        array = StagedArray(shape, dtype, buffer=source, strides=strides)
        self.adopt(array)
        return array

    def covers(self, array: StagedArray) -> bool:
        """Whether `array` lies in this memory."""
        return self._has(array.__array_interface__["data"][0])

    def _has(self, address: int) -> bool:
        return self._address <= address < self._address + self._size

    def adopt(self, array: StagedArray) -> None:
        """Have `array` become read-only with the others, or now if they have."""
        array._views = self
        with holding(_adopting):
            if len(self._arrays) >= self._prune_at:  # a loop over rows makes one a row
                self._arrays = [ref for ref in self._arrays if ref() is not None]
                self._prune_at = 2 * len(self._arrays) + 64
            self._arrays.append(weakref.ref(array))
            if self._frozen:
                array.flags.writeable = False

    def close(self, strict: bool) -> None:
        """Make the arrays read-only and release the view.

        :raises ViewStillAlive: something else points at the memory; with `strict`, anything at all. Then nothing has
            become read-only, and it can be tried again.
        """
        self._release_view()
        if self.is_foreign():
            raise ViewStillAlive(
                "something made from the allocation's view (a memoryview, numpy array or tensor) is still alive; "
                f"delete it before the allocation is committed{self.keepers()}"
            )
        if strict and (self._view() is not None or self._array_source() is not None):
            raise ViewStillAlive(
                "a view or array of the allocation is still alive, and strict_views=True tolerates none; "
                f"delete it before the allocation is committed{self.keepers()}"
            )
        self._freeze()

    def give_up(self) -> None:
        """Like `close`, but for the memory of an abandoned allocation: what cannot be made read-only stays as it is."""
        self._release_view()
        self._freeze()

    def is_foreign(self) -> bool:
        """Whether something points at the memory that cannot be made read-only."""
        return self._view_source() is not None

    def keepers(self) -> str:
        """Sentences on who keeps them alive without being asked to, as a notebook does; empty if nobody is known to."""
        return keepers.in_notebook(self._has)

    def alive(self) -> list[weakref.ref[Any]]:
        """Weak references to what lives for as long as something points at the memory."""
        found = (get() for get in (self._view, self._view_source, self._array_source))
        return [weakref.ref(thing) for thing in found if thing is not None]

    def when_gone(self, callback: Callable[[], object]) -> None:
        """Call `callback`, from whichever thread, when nothing is foreign any more."""
        source = self._view_source()
        if source is None:
            callback()
        else:
            weakref.finalize(source, callback).atexit = False

    def _release_view(self) -> None:
        view = self._view()
        if view is not None:
            try:
                view.release()
            except BufferError:
                return  # exported; is_foreign says so
            # torch.frombuffer keeps no export, only the memoryview: the memory must stay for as long as that lives.
            weakref.finalize(view, self._owner, None).atexit = False

    def _freeze(self) -> None:
        with holding(_adopting):
            self._frozen = True
            for ref in self._arrays:
                array = ref()
                if array is not None:
                    array.flags.writeable = False
            self._arrays.clear()


def _is_released(view: memoryview) -> bool:
    try:
        return view.nbytes < 0
    except ValueError:
        return True


def _nothing() -> None:
    return None
