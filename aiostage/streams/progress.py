"""How far a feed is, and bars that show it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Progress:
    """How far a feed was at one moment."""

    items: int
    """Items whose write has returned."""
    bytes: int
    """Their bytes, of those where it is known: see `feed`."""
    seconds: float
    """Since the feed began."""
    total: int | None
    """How many items there are, where `len(source)` says so."""


def show(bar: Any, task: Any = None) -> Callable[[Progress], None]:
    """What moves a bar, for `on_progress`: one of tqdm, or a task of a rich.progress.Progress.

    :param task: what rich's `add_task` has returned.
    """

    def show_rich(progress: Progress) -> None:
        bar.update(task, completed=progress.items, total=progress.total)

    def show_tqdm(progress: Progress) -> None:
        if progress.total is not None:
            bar.total = progress.total
        bar.update(progress.items - bar.n)

    return show_tqdm if task is None else show_rich
