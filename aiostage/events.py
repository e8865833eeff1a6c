"""The library's logger, and the records of what allocations and fences go through."""

from __future__ import annotations

import logging
import sys
import traceback
from logging import DEBUG as DEBUG

logger = logging.getLogger("aiostage")
# Handlers have locks, and a destructor may not wait for the thread that had one when the interpreter stopped it.
logger.addFilter(lambda record: not sys.is_finalizing())


def event(name: str, **fields: object) -> None:
    """Log one event at level DEBUG. The record has `event` and the fields as attributes; docs/guide.md lists them.

    Callers ask `logger.isEnabledFor(DEBUG)` first, which is all that it costs when nobody listens.
    """
    words = " ".join(f"{key}={value}" for key, value in fields.items())
    _log(DEBUG, name, f"{name} {words}", None, fields)


def report(level: int, name: str, message: str, error: BaseException | None = None, **fields: object) -> None:
    """Log what somebody should see, likewise with `event` and the fields, and with the traceback of `error`."""
    _log(level, name, message, error, fields)


def _log(level: int, name: str, message: str, error: BaseException | None, fields: dict[str, object]) -> None:
    # A handler of the program's that raises must not end what the library is in the middle of.
    try:
        logger.log(level, "%s", message, exc_info=error, extra={"event": name, **fields}, stacklevel=3)
    except Exception:
        if logging.raiseExceptions and sys.stderr:  # as logging does with what its own handlers catch
            traceback.print_exc()
