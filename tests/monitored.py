"""A program that uploads and verifies every upload, until its standard input ends; tests/test_monitor.py looks at it.

`python monitored.py LOOP [real]`: on asyncio, uvloop or trio; on a simulated GPU, or on the software adapter. It prints
"open" when its ring is, and at the end what came of it as JSON.
"""

from __future__ import annotations

import json
import signal
import sys
import threading
from typing import Any

import anyio
import anyio.to_thread
import numpy as np
from misuse_cases import LOOPS, Sandbox, holds
from simulated import SimulatedGpu

import aiostage

SIZE = 40_000


class Simulated:
    """As much of `Sandbox` as this takes, on a simulated GPU."""

    def __init__(self) -> None:
        self.device = SimulatedGpu(free_running=True)

    def buffer(self, size: int) -> Any:
        return self.device.buffer(size)

    def holds(self, buffer: Any, content: bytes) -> bool:
        return bytes(buffer.bytes) == content


class Real(Sandbox):
    def holds(self, buffer: Any, content: bytes) -> bool:
        return holds(buffer, content)


async def main(box: Any) -> None:
    done = anyio.Event()
    found = {"uploads": 0, "wrong": 0}

    async def upload(seed: int) -> None:
        random, buffer = np.random.default_rng(seed), box.buffer(SIZE)
        while not done.is_set():
            data = random.bytes(SIZE)
            await (await ring.write_buffer(buffer, 0, data))
            found["uploads"] += 1
            found["wrong"] += not box.holds(buffer, data)
            await anyio.sleep(0.002)

    async with aiostage.StagingRing(box.device, 3, 16 * 1024, inline_size=1024) as ring:
        print("open", flush=True)
        async with anyio.create_task_group() as tasks:
            for seed in range(3):
                tasks.start_soon(upload, seed, name=f"upload {seed}")
            await anyio.to_thread.run_sync(sys.stdin.read)
            done.set()
        found |= {"bytes_total": ring.stats_nowait().bytes_total}
    found["threads"] = sorted(thread.name for thread in threading.enumerate())
    found["modules"] = [name for name in sys.modules if name.startswith("aiostage.monitoring")]
    print(json.dumps(found), flush=True)


if __name__ == "__main__":
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # as filters do: a write to who has gone ends them
    anyio.run(main, Real() if "real" in sys.argv else Simulated(), **LOOPS[sys.argv[1]])
