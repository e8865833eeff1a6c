"""Finding a program, and reading what it says."""

from __future__ import annotations

import json
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

from ...errors import CannotServe
from ...monitoring import sockets
from ...monitoring.samples import SCHEMA
from ..printing import printable
from ..status import UsageError

_PATIENCE = 3.0
"""Seconds for a program to say hello: something may hold its interpreter."""
_LONGEST = 1 << 20
HOW = "call aiostage.monitoring.serve() in it, or start it with AIOSTAGE_MONITOR=1"

Message = dict[str, Any]


class Line(NamedTuple):
    """One line, as it came and as what it says."""

    text: str
    said: Message


class Program:
    """A program that serves, connected; its first line has been read. :raises OSError: it does not answer."""

    def __init__(self, path: Path) -> None:
        self._rest = b""
        self._connection = sockets.connect(path, _PATIENCE)
        try:
            self.hello = self._say_hello()
        except BaseException:
            self.close()
            raise

    def _say_hello(self) -> Line:
        line = next((line for line in self.lines(_PATIENCE)), None)
        if line is None:
            raise TimeoutError("it does not answer")
        if line.said.get("kind") == "end":
            raise UsageError(str(line.said.get("reason")))
        if line.said.get("schema") != SCHEMA:
            raise UsageError(
                f"the program speaks schema {line.said.get('schema')}, and this is {SCHEMA}: use its own version, "
                f"aiostage {line.said.get('aiostage')}"
            )
        return line

    @property
    def name(self) -> str:
        """Nothing in it may steer the terminal."""
        return printable(str(self.hello.said.get("program")))

    @property
    def pid(self) -> int:
        return int(self.hello.said["pid"])

    def lines(self, pause: float) -> Iterator[Line | None]:
        """Each line as it comes; None whenever none has for so many seconds. Ends with the connection."""
        self._connection.settimeout(pause)
        while True:
            line, found, rest = self._rest.partition(b"\n")
            if found:
                self._rest = rest
                yield Line(line.decode(), json.loads(line))
                continue
            try:
                more = self._connection.recv(1 << 16)
            except TimeoutError:
                yield None
                continue
            except OSError:
                return
            if not more or len(self._rest) > _LONGEST:
                return
            self._rest += more

    def close(self) -> None:
        self._connection.close()


def open_program(pid: int | None) -> Program | dict[int, str]:
    """The program with this number; without one the only one that there is, or the names of all of them by number.

    :raises UsageError: there is none, or it does not answer.
    """
    try:
        found = sockets.find()
    except CannotServe as error:
        raise UsageError(str(error)) from error
    if pid is None and not found:
        raise UsageError(f"no program of yours can be watched now: {HOW}")
    if pid is None and len(found) > 1:
        return {number: _name_at(path) for number, path in found.items()}
    number = next(iter(found)) if pid is None else pid
    if number not in found:
        raise UsageError(f"no program of yours with the number {number} can be watched: {HOW}")
    try:
        return Program(found[number])
    except (OSError, ValueError) as error:
        raise UsageError(f"program {number} does not answer: {error}") from error


def _name_at(path: Path) -> str:
    try:
        program = Program(path)
    except (OSError, ValueError, UsageError) as error:
        return printable(f"({error})")
    program.close()
    return program.name


def is_running(pid: int) -> bool:
    """Whether there still is such a program that can be watched, after a second for it to end in."""
    end = time.monotonic() + 1.0
    while pid in sockets.find():
        if time.monotonic() > end:
            return True
        time.sleep(0.05)
    return False
