"""What was destroyed and submitted in all of wgpu-py."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable, Iterable, Sequence
from functools import partial
from typing import Any
from weakref import WeakSet

import wgpu

from ..data.copies import Copy
from ..errors import InvalidSubmit
from ..exits import holding

_logger = logging.getLogger("wgpu")


class Ledger:
    """What was destroyed and submitted in all of wgpu-py, and what destroying must wait for.

    wgpu-py calls C by the attributes of one object, `_api.libf`. Some of its functions are followed here, from the
    first connection to a device on and for good: under whatever others put around wgpu-py's methods, or take off again.

    Nobody waits for a submit here, which on a software adapter takes as long as the GPU's work. It is a *visit*, as is
    a look at mapped memory: a time in which what it has checked must stay as it is. What somebody destroys during a
    visit is noted at once, which later checks see, and destroyed when no visit is left. So there is one lock, held for
    a few lines of Python and no call of wgpu that could wait. It closes these races:

    - A check, then a destroy in another thread, then the submit (or the look): both abort on what is destroyed. A visit
      begins before its check. A destroy that is noted before that is seen by the check; any other sees the visit.
    - The same with a map of a destination. It cannot be put off, since its errors are its caller's; so it waits, and
      only for visits that copy to this very buffer. wgpu-py says "pending" before, which later checks see.
    - Two threads submit the same command buffer: one of them claims it first.

    And no destroy stands behind a submit inside wgpu, where it would hold up whoever else needs the device's memory.
    """

    def __init__(self) -> None:
        self.lock = threading.RLock()  # reentrant and by `holding`: a garbage collection may destroy things anywhere
        self._is_following = False
        self._destroyed: WeakSet[Any] = WeakSet()  # pointers, as wgpu-py's objects have them in _internal
        self._submitted: set[Any] = set()  # pointers of command buffers that live
        self._visits: set[Visit] = set()
        self._postponed: deque[Callable[[], None]] = deque()

    def follow(self, api: Any) -> None:
        """Follow what wgpu-py does from now on; `api` is its module."""
        with holding(self.lock):
            if self._is_following:
                return
            self._is_following = True
            functions, lib = api.libf, api.lib
            for kind in ("Buffer", "Texture", "Device"):
                name = f"wgpu{kind}Destroy"
                keep, let_go = getattr(lib, f"wgpu{kind}AddRef"), getattr(lib, f"wgpu{kind}Release")
                setattr(functions, name, partial(self._destroy, getattr(functions, name), keep, let_go))
            functions.wgpuBufferMapAsync = partial(self._map, functions.wgpuBufferMapAsync)
            functions.wgpuQueueSubmit = partial(self._submit, functions.wgpuQueueSubmit, api.ffi.unpack)
            released = api.GPUCommandBuffer  # keeps its function for itself
            released._release_function = partial(self._release, released._release_function)

    # -- what others do --

    def _destroy(self, destroy: Any, keep: Any, let_go: Any, pointer: Any) -> None:
        with holding(self.lock):
            self._destroyed.add(pointer)
            if self._visits:
                keep(pointer)  # its object may be gone by then
                self._postponed.append(partial(_destroy_later, destroy, let_go, pointer))
                return
        destroy(pointer)

    def _map(self, map_async: Any, pointer: Any, *arguments: Any) -> Any:
        with holding(self.lock):
            using = [visit for visit in self._visits if visit.copies_to(pointer)]
        for visit in using:
            with holding(visit.going_on):
                pass
        return map_async(pointer, *arguments)

    def _submit(self, submit: Any, unpack: Any, queue: Any, count: int, command_buffers: Any) -> None:
        self.claim(unpack(command_buffers, count) if count else ())
        with self.visit(()):
            submit(queue, count, command_buffers)

    def _release(self, release: Any, pointer: Any) -> None:
        self._submitted.discard(pointer)  # another one may be at that address soon
        release(pointer)

    # -- what we ask, and do --

    def visit(self, copies: Sequence[Copy] | None = None, claimed: Iterable[Any] = ()) -> Visit:
        """Have nothing destroyed meanwhile. With `copies`, of a submit, their destinations are not mapped either.

        :param claimed: command buffers that are nobody's again at its end, unless they are taken off it by then.
        """
        return Visit(self, copies, claimed)

    def begin(self, visit: Visit) -> None:
        with holding(self.lock):
            self._visits.add(visit)

    def end(self, visit: Visit) -> None:
        """And do what was postponed, until another visit begins."""
        if visit.claimed:
            self._submitted.difference_update([command_buffer._internal for command_buffer in visit.claimed])
        while True:
            with holding(self.lock):
                self._visits.discard(visit)
                if self._visits or not self._postponed:
                    return
                act = self._postponed.popleft()
            act()

    def submits(self) -> bool:
        """Whether somebody submits now."""
        with holding(self.lock):
            return any(visit.copies is not None for visit in self._visits)

    def is_destroyed(self, resource: Any) -> bool:
        return resource._internal in self._destroyed

    def is_known(self, resource: Any) -> bool:
        """Whether it was noted whether `resource` had been destroyed before anybody was followed."""
        return hasattr(resource, "_aiostage_is_known")

    def note(self, resource: Any, destroyed: bool) -> None:
        with holding(self.lock):
            resource._aiostage_is_known = True
            if destroyed:
                self._destroyed.add(resource._internal)

    def claim(self, command_buffers: Sequence[Any]) -> None:
        """Have nobody else submit these pointers. :raises InvalidSubmit: of one that was submitted; none is claimed."""
        with holding(self.lock):
            if len(set(command_buffers)) < len(command_buffers) or not self._submitted.isdisjoint(command_buffers):
                raise InvalidSubmit("the command buffer was submitted before; a command buffer runs once")
            self._submitted.update(command_buffers)


class Visit:
    """See `Ledger.visit`."""

    __slots__ = ("_ledger", "claimed", "copies", "going_on")

    def __init__(self, ledger: Ledger, copies: Sequence[Copy] | None, claimed: Iterable[Any]) -> None:
        self._ledger = ledger
        self.copies = copies  # None: it is no submit
        self.claimed = claimed
        self.going_on = threading.RLock()

    def copies_to(self, pointer: Any) -> bool:
        return any(copy.destination._internal == pointer for copy in self.copies or ())

    def __enter__(self) -> Visit:
        self.going_on.acquire()
        try:
            self._ledger.begin(self)
        except BaseException:  # Ctrl-C
            self.__exit__()
            raise
        return self

    def __exit__(self, *exc_info: object) -> None:
        try:
            self._ledger.end(self)
        finally:
            self.going_on.release()


def _destroy_later(destroy: Any, let_go: Any, pointer: Any) -> None:
    try:
        destroy(pointer)
    except wgpu.GPUError as error:  # whoever asked for it is far away
        _logger.error("destroying what a submit was using failed after it: %s", error)
    finally:
        let_go(pointer)


ledger = Ledger()
