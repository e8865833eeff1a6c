"""Where the sockets are: a folder of this user's that nobody else can enter, `PID.sock` for each program in it."""

from __future__ import annotations

import os
import socket
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

from ..errors import CannotServe

_BACKLOG = 64


def folders() -> Iterator[Path]:
    """Where it may be, the best first. Those in folders that others may rename things in are left out."""
    runtime = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(runtime) and _keeps_names(runtime):
        yield Path(runtime, "aiostage")
    if _keeps_names(tempfile.gettempdir()):
        yield Path(tempfile.gettempdir(), f"aiostage-{os.geteuid()}")


def _keeps_names(folder: str) -> bool:
    """Whether nobody but its owner, this user or root, can put another folder in the place of one of ours."""
    try:
        found = os.stat(folder)
    except OSError:
        return False
    is_shared = found.st_mode & (stat.S_IWGRP | stat.S_IWOTH)
    return (
        stat.S_ISDIR(found.st_mode)
        and found.st_uid in (0, os.geteuid())
        and not (is_shared and not found.st_mode & stat.S_ISVTX)
    )


def is_private(folder: Path) -> bool:
    """Whether it is a folder, no link to one, of this user's, that nobody else can enter."""
    try:
        found = folder.lstat()
    except OSError:
        return False
    return stat.S_ISDIR(found.st_mode) and found.st_uid == os.geteuid() and not found.st_mode & 0o077


def check_system() -> None:
    """:raises CannotServe: it has no such sockets, or none that Python knows of."""
    if not hasattr(socket, "AF_UNIX") or not hasattr(os, "geteuid"):
        raise CannotServe("watching a program takes Unix sockets, which Python does not have on this system")


def listen() -> tuple[socket.socket, Path]:
    """A socket that listens for who wants to look at this process, and where it is.

    :raises CannotServe: see `aiostage.monitoring.serve`.
    """
    check_system()
    path = _make_folder() / f"{os.getpid()}.sock"
    if answers(path):  # as where two containers share the folder, but not the numbers of their processes
        raise CannotServe(f"{path} is another program's")
    unfinished = path.with_suffix(".new")  # renamed when it listens: who finds a socket that refuses takes it for dead
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        unfinished.unlink(missing_ok=True)
        listener.bind(os.fspath(unfinished))
        unfinished.chmod(0o600)
        listener.listen(_BACKLOG)
        listener.setblocking(False)
        unfinished.rename(path)
    except OSError as error:
        listener.close()
        raise CannotServe(f"no socket can be made at {path}: {error}") from error
    return listener, path


def _make_folder() -> Path:
    reasons = []
    for folder in folders():
        try:
            folder.mkdir(mode=0o700)
        except FileExistsError:
            pass
        except OSError as error:
            reasons.append(f"{folder} cannot be made ({error.strerror})")
            continue
        if is_private(folder):
            return folder
        reasons.append(f"{folder} is not a folder that this user alone can enter")
    raise CannotServe("; ".join(reasons) or "no folder for sockets: set XDG_RUNTIME_DIR to one of your own")


def connect(path: Path, timeout: float) -> socket.socket:
    """To a program that serves there. :raises OSError: none does; ConnectionRefusedError: it has ended."""
    connection = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        connection.settimeout(timeout)
        connection.connect(os.fspath(path))
    except OSError:
        connection.close()
        raise
    return connection


def answers(path: Path) -> bool:
    """Whether somebody listens there."""
    try:
        connect(path, 1.0).close()
    except BlockingIOError:  # more wait there than it lets in at a time
        return True
    except OSError:
        return False
    return True


def find() -> dict[int, Path]:
    """Sockets of this user's programs by process id, the oldest process first. Those of the dead are removed."""
    check_system()
    found = {}
    for folder in filter(is_private, folders()):
        for path in folder.glob("*.sock"):
            if not path.stem.isdecimal():
                continue
            try:
                connect(path, 1.0).close()
            except ConnectionRefusedError:
                path.unlink(missing_ok=True)
            except FileNotFoundError:
                continue
            except OSError:
                pass
            if path.exists():
                found[int(path.stem)] = path
    return dict(sorted(found.items()))
