"""The library's logger, and the records of what allocations and fences go through."""

from __future__ import annotations

import logging
import sys
from logging import DEBUG as DEBUG

logger = logging.getLogger("aiostage")
# Handlers have locks, and a destructor may not wait for the thread that had one when the interpreter stopped it.
logger.addFilter(lambda record: not sys.is_finalizing())


def event(name: str, **fields: object) -> None:
    """Log one event at level DEBUG. The record has `event` and the fields as attributes; docs/guide.md lists them.

    Callers ask `logger.isEnabledFor(DEBUG)` first, which is all that it costs when nobody listens.
    """
    words = " ".join(f"{key}={value}" for key, value in fields.items())
    logger.debug("%s %s", name, words, extra={"event": name, **fields}, stacklevel=2)
