"""The child process that transcodes: whatever becomes of it, this process lives, and nothing of the child stays."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from .. import exits
from ..errors import UnsupportedTexture
from . import transcode

_LARGEST_REPORT = 1 << 16


class Child:
    """One run of `transcode`; `stop` ends it early, from any thread, before or during it."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: subprocess.Popen[bytes] | None = None
        self._stopped = False

    def run(self, folder: Path, seconds: float) -> int | None:
        """Do the job in this folder. Blocking. Returns the exit status, or None if that took too long.

        :raises UnsupportedTexture: no child can be started, or it was stopped.
        """
        exits.endings[self] = Child._end
        process = self._start(folder)
        assert process.stdin is not None
        try:
            status: int | None = process.wait(seconds)
        except subprocess.TimeoutExpired:
            status = None
        finally:
            process.kill()
            process.wait()
            process.stdin.close()
        if self._stopped:
            raise _stopped()
        return status

    def stop(self) -> None:
        """End the child, or have none begin; `run` then raises."""
        with self._lock:
            self._stopped = True
            if self._process is not None:
                self._process.kill()

    def _start(self, folder: Path) -> subprocess.Popen[bytes]:
        command = [interpreter(), "-I", os.path.abspath(transcode.__file__)]
        with self._lock:
            if self._stopped:
                raise _stopped()
            try:
                self._process = subprocess.Popen(
                    command,
                    cwd=folder,
                    stdin=subprocess.PIPE,  # nothing is written to it: it closes when this process ends
                    stdout=subprocess.DEVNULL,
                    stderr=subprocess.DEVNULL,
                    start_new_session=True,  # Ctrl-C is for this process, which then stops the child
                    creationflags=getattr(subprocess, "CREATE_NO_WINDOW", 0),
                )
            except OSError as error:
                raise UnsupportedTexture(f"{_purpose()}, and {command[0]} could not be started: {error}") from error
            return self._process

    def _end(self) -> Iterable[threading.Thread]:
        self.stop()
        return []  # the thread that is in `run` is whoever's called it


def interpreter() -> str:
    """What runs Python files. :raises UnsupportedTexture: nothing, in a frozen or embedding program."""
    if getattr(sys, "frozen", False):
        raise UnsupportedTexture(f"{_purpose()}, and a frozen program has no Python interpreter to start")
    if not sys.executable:
        raise UnsupportedTexture(f"{_purpose()}, and sys.executable does not say where Python is")
    return sys.executable


def search_path() -> list[str]:
    """`sys.path`, for a process that works in another directory."""
    return [os.path.abspath(os.fsdecode(entry)) for entry in sys.path]


def last_report(folder: Path) -> dict[str, Any]:
    """What `transcode` wrote last; empty if it wrote nothing."""
    try:
        with (folder / transcode.REPORT).open("rb") as file:
            found = json.loads(file.read(_LARGEST_REPORT))
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def how_it_ended(status: int) -> str:
    """An exit status, in words."""
    if status < 0:
        try:
            return f"was ended by {signal.Signals(-status).name}"
        except ValueError:
            return f"was ended by signal {-status}"
    if status >= 0xC0000000:  # Windows' codes of exceptions
        return f"crashed with status {status:#x}"
    return f"ended without a result, with exit status {status}"


def _purpose() -> str:
    return "pyktx transcodes Basis Universal payloads in a process of its own, since damaged files crash it"


def _stopped() -> UnsupportedTexture:
    return UnsupportedTexture("transcoding was stopped, since nobody waits for the texture any more")
