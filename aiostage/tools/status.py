"""How a program of this library ends: its exit statuses, and the one line that says what went wrong.

| status | |
| --- | --- |
| 0 | done |
| 1 | something failed: a byte that did not arrive, a file that does not load, an error of the library or the system |
| 2 | the user can put it right: an option, a path, an extra that is not installed, no adapter |
| 130 | Ctrl-C |
| 141 | whoever read the output has gone, as `head` does |
"""

from __future__ import annotations

import importlib.util
import os
import sys
from collections.abc import Callable, Iterator

from .printing import printable


class UsageError(Exception):
    """Something the user can put right: printed as one line, exit status 2."""


def first_cause(error: BaseException) -> BaseException:
    """Of the exceptions that ended several tasks, the one to report: an interrupt, else the user's, else the first."""

    def leaves(error: BaseException) -> Iterator[BaseException]:
        if isinstance(error, BaseExceptionGroup):
            for inner in error.exceptions:
                yield from leaves(inner)
        else:
            yield error

    ranks = (KeyboardInterrupt, UsageError)
    return min(leaves(error), key=lambda error: [not isinstance(error, rank) for rank in ranks])


def exit_status(program: str, command: Callable[[], int | None]) -> int:
    """Run a command to its exit status; what was expected to go wrong gets one line on stderr, or none."""
    try:
        try:
            return command() or 0
        finally:
            if sys.stdout is not None:  # closed by the shell
                sys.stdout.flush()
    except BaseException as error:
        cause = first_cause(error)
        if isinstance(cause, KeyboardInterrupt):
            return 130
        if isinstance(cause, BrokenPipeError):
            let_go_of_stdout()
            return 141
        if isinstance(cause, UsageError):
            complain(f"{program}: {cause}")
            return 2
        if isinstance(cause, expected()):
            complain(f"{program}: {type(cause).__name__}: {cause}")
            let_go_of_stdout()
            return 1
        raise


def expected() -> tuple[type[Exception], ...]:
    """What goes wrong in the best of programs. The library's errors are not loaded before one is to be told."""
    from ..errors import StagingError

    return StagingError, OSError, MemoryError


def complain(text: str) -> None:
    """One line on stderr, if somebody reads it. Where stderr is closed, `print` would take stdout."""
    if sys.stderr is not None:
        try:
            print(printable(" ".join(text.split())), file=sys.stderr)
        except OSError:
            pass


def let_go_of_stdout() -> None:
    """What could not be written is left: the interpreter flushes once more at its end, and would complain again."""
    if sys.stdout is None:
        return
    try:
        sys.stdout.flush()
    except OSError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())


def require(extra: str, modules: dict[str, str]) -> None:
    """Raise UsageError, with the command that helps, unless all these modules can be imported.

    `modules`: what is imported, and the name to say.
    """
    missing = [name for module, name in modules.items() if importlib.util.find_spec(module) is None]
    if missing:
        raise UsageError(f"needs {', '.join(missing)}: pip install 'aiostage[{extra}]'")
