"""Defects made on purpose: does the model-based test see them?

`python tests/mutants.py [WORD ...]` plays each (or those whose description has the words) on a copy of the library, and
says in which test it was seen. It takes a quarter of an hour; docs/reliability.md has the last result.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[1]
TESTS = ("test_policy.py", "test_model.py", "test_ring.py", "test_waiting.py")
"""Tried in this order, until one fails."""


class Mutant(NamedTuple):
    what: str
    module: str
    before: str
    after: str


MUTANTS = [
    Mutant("the last come is served first", "engine/line.py", "next(iter(self.waiters)", "next(reversed(self.waiters)"),
    Mutant(
        "who comes later is served while others wait",
        "engine/engine.py",
        "if self.line.waiters:\n            return None",
        "",
    ),
    Mutant(
        "a buffer is sealed under an open slot",
        "engine/lanes.py",
        "[buffer for buffer in self.buffers if not buffer.load.is_busy]",
        "list(self.buffers)",
    ),
    Mutant(
        "a buffer departs early under an open slot",
        "engine/lanes.py",
        "if b.load.is_busy or b.is_wanted or",
        "if b.is_wanted or",
    ),
    Mutant(
        "what a cancelled waiter was handed is lost",
        "engine/engine.py",
        "if waiter.place.value is not None:",
        "if False:",
    ),
    Mutant(
        "bytes that an upload gave up are forgotten",
        "engine/engine.py",
        "                place.load.used -= place.size",
        "                pass",
    ),
    Mutant(
        "bytes of an abandoned slot are forgotten",
        "engine/engine.py",
        "            place.load.used -= place.size\n            if self._logs",
        "            if self._logs",
    ),
    Mutant(
        "copies are submitted in the wrong order",
        "engine/lanes.py",
        "if copy.source not in staying]",
        "if copy.source not in staying][::-1]",
    ),
    Mutant(
        "a batch that was abandoned is submitted", "batch.py", "            if abandon:\n                return\n", ""
    ),
    Mutant(
        "an alignment is ignored", "engine/buffer.py", "-(-self.load.head // alignment) * alignment", "self.load.head"
    ),
    Mutant("places overlap", "engine/buffer.py", "load.head = offset + size", "load.head = offset + max(4, size - 4)"),
    Mutant(
        "a buffer comes back before its fence",
        "engine/engine.py",
        "buffer.load.fences.append(submission.fence)",
        "pass",
    ),
    Mutant(
        "a buffer departs while copies are moved into it",
        "engine/engine.py",
        "ends = [buffer.keep_busy() for buffer in (held, fresh)]",
        "ends = [held.keep_busy()]",
    ),
    Mutant(
        "a blocked buffer takes more places", "engine/engine.py", "            buffer.close()  # or", "            # or"
    ),
    Mutant("a task hears of another's bad copy", "engine/engine.py", "if owner is task]", "]"),
    Mutant("nobody hears of a bad slot's copy", "engine/engine.py", "self._failures += submission", "submission"),
    Mutant(
        "a later copy overtakes an earlier one",
        "engine/lanes.py",
        "            if len(staying) == kept:\n",
        "            if True:\n",
    ),
    Mutant("a submit leaves its own copies behind", "engine/policy.py", "    if not left:\n", "    if True:\n"),
    Mutant(
        "fences are done too early",
        "carrier/timeline.py",
        "self._pending[0].value <= value",
        "self._pending[0].value <= value + 1",
    ),
    Mutant(
        "uploads hear nothing of their submit",
        "engine/submission.py",
        "            load.gone.end(self, error)\n",
        "            pass\n",
    ),
    Mutant(
        "a lost device leaves writers waiting",
        "engine/engine.py",
        "            self._fail_loads(error)\n",
        "            pass\n",
    ),
    Mutant("a relayed slot counts for ever", "engine/relays.py", "    elif not stays:\n", "    elif False:\n"),
    Mutant("a writer hears nothing of a bad copy", "uploads.py", "if copy in self._copies), None)", "if False), None)"),
    Mutant("a closed ring keeps a waiter", "engine/engine.py", "            waiter.place.end(error=error)\n", ""),
    Mutant("a guard is ignored by `advance`", "engine/engine.py", "buffers[-1].load.fences.append(guard)", "None"),
]


def play(mutant: Mutant) -> str:
    """Where it was seen, or "nowhere"."""
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "aiostage", Path(folder, "aiostage"))
        path = Path(folder, "aiostage", mutant.module)
        text = path.read_text()
        assert text.count(mutant.before) == 1, f"{mutant.what}: {text.count(mutant.before)} places in {mutant.module}"
        path.write_text(text.replace(mutant.before, mutant.after))
        for test in TESTS:
            command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(ROOT / "tests" / test)]
            environment = os.environ | {"PYTHONPATH": folder}
            done = subprocess.run(command, env=environment, cwd=folder, capture_output=True, text=True, check=False)
            if done.returncode:
                failed = [line for line in done.stdout.splitlines() if line.startswith("FAILED")]
                return failed[0].split(" - ")[0].split("/")[-1] if failed else f"{test}, which hangs"
    return "nowhere"


def main(words: list[str]) -> int:
    missed = 0
    for mutant in MUTANTS:
        if all(word in mutant.what for word in words):
            seen = play(mutant)
            missed += seen == "nowhere"
            print(f"{mutant.what}: {seen}", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
