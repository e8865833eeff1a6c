"""Let `aiostage monitor` look at this program: `serve()`, or the environment variable `AIOSTAGE_MONITOR=1`.

Who looks reads JSON lines from a Unix socket that only this user can reach; docs/monitor.md has their schema. As long
as nobody looks, a thread sleeps, and that is all.
"""

from __future__ import annotations

import os
import threading
from logging import WARNING
from pathlib import Path

from .. import exits
from ..errors import CannotServe, CannotStartThread
from ..events import report
from .server import Server
from .sockets import listen

_lock = threading.RLock()
_server: Server | None = None
_gave_up = False


def serve() -> Path:
    """Open the socket, for all rings of the process, those opened later too. Called again, it does nothing more.

    The socket is gone at exit, or after `stop`. A forked child serves nothing before it calls this itself.

    :returns: where it is.
    :raises CannotServe: there is no folder for it that this user alone can enter; or no such sockets, as on Windows.
    :raises CannotStartThread: the system has none left.
    """
    global _server
    with exits.holding(_lock):
        if _server is None or not _server.is_alive():
            server = Server(*listen())
            try:
                server.start()
            except CannotStartThread:
                server.close()
                raise
            _server = server
        return _server.path


def stop() -> None:
    """Close the socket, and the connections of those who look. Without `serve` it does nothing."""
    global _server
    with exits.holding(_lock):
        server, _server = _server, None
    if server is not None:
        server.stop()


def serve_if_possible() -> None:
    """As a ring does that is opened with the environment variable set: what cannot be is logged, once."""
    global _gave_up
    if _gave_up:
        return
    try:
        serve()
    except (CannotServe, CannotStartThread) as error:
        _gave_up = True
        report(WARNING, "not_monitored", f"AIOSTAGE_MONITOR is set, but nobody can look: {error}")


def _forget() -> None:
    """In a forked child: the socket is the parent's, and a thread that stayed behind may have the lock."""
    global _lock, _server
    _lock = threading.RLock()
    server, _server = _server, None
    if server is not None:
        server.forget()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget)
