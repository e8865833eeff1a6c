"""The thread that serves those who look at the program. It waits for none of them."""

from __future__ import annotations

import json
import os
import selectors
import signal
import socket
import sys
import threading
import time
from collections.abc import Callable, Iterable
from logging import WARNING
from pathlib import Path
from typing import Any

import aiostage

from .. import exits
from ..events import report
from .samples import SCHEMA, Sampler

PERIOD = 0.1
"""Seconds between two samples, while somebody looks."""
MOST = 64
"""How many may look at a time."""
BEHIND = 256 * 1024
"""Bytes that may wait for one who does not read, beside what the system keeps."""

# A write to somebody who has gone is an error to us, also in a program that lets SIGPIPE end it, as filters do.
_QUIETLY = getattr(socket, "MSG_NOSIGNAL", 0)


class Server:
    """Everything about one socket. Made and stopped in any thread; the rest runs in its own."""

    def __init__(self, listener: socket.socket, path: Path) -> None:
        self.path = path
        self._listener = listener
        self._wake, self._woken = socket.socketpair()
        self._selector = selectors.PollSelector()  # epoll's descriptor would be shared with forked children
        self._clients: dict[socket.socket, Client] = {}
        self._sampler = Sampler()
        self._due = 0.0
        self._reason: str | None = None  # why it stops
        self._thread: threading.Thread | None = None

    def start(self) -> None:
        """:raises CannotStartThread:"""
        self._thread = exits.start(self._run, "aiostage monitor")
        exits.endings[self] = Server._end_at_exit

    def is_alive(self) -> bool:
        return self._thread is not None and self._thread.is_alive()

    def stop(self) -> None:
        """Say good-bye, and wait until the socket is gone."""
        for thread in self._end("the program has stopped serving"):
            exits.join(thread)

    def _end_at_exit(self) -> Iterable[threading.Thread]:
        return self._end("the program has ended")

    def _end(self, reason: str) -> list[threading.Thread]:
        exits.endings.pop(self, None)
        if self._thread is None:
            return []
        self._reason = reason
        try:
            self._wake.send(b".", _QUIETLY)
        except OSError:  # it has ended by itself
            pass
        return [self._thread]

    def forget(self) -> None:
        """In a forked child, which has copies of the descriptors: who looks would wait for it to close them too."""
        exits.endings.pop(self, None)
        for each in (self._listener, self._wake, self._woken, *self._clients):
            each.close()

    def close(self) -> None:
        """Nothing of it is left."""
        self.path.unlink(missing_ok=True)
        for client in list(self._clients):
            self._drop(client)
        for each in (self._listener, self._wake, self._woken):
            each.close()
        self._selector.close()

    # -- in the thread --

    def _run(self) -> None:
        _leave_signals_to_others()
        self._watch(self._listener, self._accept)
        self._watch(self._woken, lambda _: None)
        try:
            while self._reason is None:
                pause = max(0.0, self._due - time.perf_counter()) if self._clients else None
                for key, _ in self._selector.select(pause):
                    key.data(key.fileobj)
                if self._clients and time.perf_counter() >= self._due:
                    self._tell()
            self._say(kind="end", reason=self._reason)
        except Exception as error:  # the program has nothing to do with it
            report(WARNING, "not_monitored", "the monitor's thread has ended", error)
        finally:
            if not sys.is_finalizing():
                self.close()

    def _watch(self, what: socket.socket, then: Callable[[Any], object]) -> None:
        self._selector.register(what, selectors.EVENT_READ, then)

    def _accept(self, listener: socket.socket) -> None:
        try:
            connection, _ = listener.accept()
        except BlockingIOError:
            return
        except OSError:  # no descriptor is left: it would be asked for again at once
            time.sleep(PERIOD)
            return
        connection.setblocking(False)
        client = Client(connection)
        if len(self._clients) >= MOST:
            client.send(_line(kind="end", reason=f"{MOST} are looking already"))
            connection.close()
            return
        if not self._clients:
            self._sampler.begin()
            self._due = time.perf_counter() + PERIOD
        self._clients[connection] = client
        self._watch(connection, self._drop)  # nobody has anything to say; it has gone, or should
        if not client.send(_line(kind="hello", schema=SCHEMA, period=PERIOD, **_program())):
            self._drop(connection)

    def _tell(self) -> None:
        """A sample to everybody, and the questions for the next."""
        self._due = max(self._due + PERIOD, time.perf_counter() + PERIOD / 2)
        self._say(**self._sampler.sample())
        self._sampler.ask()

    def _say(self, **content: Any) -> None:
        line = _line(**content)
        for connection, client in list(self._clients.items()):
            if not client.send(line):
                self._drop(connection)

    def _drop(self, connection: socket.socket) -> None:
        del self._clients[connection]
        self._selector.unregister(connection)
        connection.close()


class Client:
    """Somebody who looks, and what he has not read yet."""

    def __init__(self, connection: socket.socket) -> None:
        self._connection = connection
        self._pending = bytearray()

    def send(self, line: bytes) -> bool:
        """Whether he still reads."""
        self._pending += line
        try:
            while self._pending:
                del self._pending[: self._connection.send(self._pending, _QUIETLY)]
        except BlockingIOError:
            pass
        except OSError:
            return False
        return len(self._pending) <= BEHIND


def _line(**content: Any) -> bytes:
    return json.dumps(content, separators=(",", ":")).encode() + b"\n"


def _program() -> dict[str, Any]:
    """Its name, and no arguments: they may be nobody's business."""
    path = Path(sys.argv[0] if sys.argv else "")
    name = path.parent.name if path.name == "__main__.py" else path.name
    return {"pid": os.getpid(), "program": name or "python", "aiostage": aiostage.__version__}


def _leave_signals_to_others() -> None:
    """The program may wait for one in a thread of its own; a fault is the thread's that makes it."""
    if hasattr(signal, "pthread_sigmask"):
        faults = {signal.SIGSEGV, signal.SIGBUS, signal.SIGFPE, signal.SIGILL, signal.SIGABRT}
        signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals() - faults)
