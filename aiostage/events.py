"""The library's logger, and the records of what allocations and fences go through."""

from __future__ import annotations

import logging
from logging import DEBUG as DEBUG

logger = logging.getLogger("aiostage")


def event(name: str, **fields: object) -> None:
    """Log one event at level DEBUG. The record has `event` and the fields as attributes; docs/guide.md lists them.

    Callers ask `logger.isEnabledFor(DEBUG)` first, which is all that it costs when nobody listens.
    """
    words = " ".join(f"{key}={value}" for key, value in fields.items())
    logger.debug("%s %s", name, words, extra={"event": name, **fields}, stacklevel=2)
