"""What the demo's command line may say. Imports nothing heavy, so that `--help` and mistakes answer at once."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

MIB = 1 << 20


@dataclass(frozen=True)
class Options:
    """One demo run, as asked for."""

    images: tuple[Path, ...] = ()
    frames: int = 240
    ring_count: int = 3
    buffer_size: int = MIB
    coroutines: int = 16
    output: Path = Path("aiostage-demo")
    window: bool = False
    as_json: bool = False
    """Print the report as a document, and nothing else."""
