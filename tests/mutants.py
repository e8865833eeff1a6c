"""Defects made on purpose: does the model-based test see them, or in the native part the schedules in C?

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

NATIVE_MUTANTS = [
    Mutant("native: a departure does not wait for its jobs", "gpu.c", "if (d->waiting) return false;", ""),
    Mutant("native: an end of a job is lost", "jobs.c", "    tell(c, END_JOB,", "    if (j->id % 3) tell(c, END_JOB,"),
    Mutant("native: destroyed during a visit", "fate.c", "bool may = !visits;", "bool may = true;"),
    Mutant("native: what is put off is forgotten", "fate.c", "now_due->destroy(now_due->resource);", ""),
    Mutant(
        "native: what was destroyed goes", "fate.c", "if (d->state == QUEUED) goes_to(d, resource, why);", "(void)d;"
    ),
    Mutant(
        "native: a check that was overtaken counts", "fate.c", "checked_at == atomic_load(&epoch)", "checked_at || 1"
    ),
    Mutant("native: lanes have no order", "gpu.c", " && !(d->lane && lanes & 1ull << d->lane % 64)", ""),
    Mutant("native: destinations have no order", "gpu.c", "!(d->touches & touched)", "(touched || 1)"),
    Mutant(
        "native: a copy goes whose job failed", "fate.c", "if (j->status == JOB_DONE) return;", "if (j->id) return;"
    ),
    Mutant(
        "native: a reference is not given back",
        "gpu.c",
        "        c->gpu.release_buffer(handle_of(copy->source));\n",
        "",
    ),
    Mutant(
        "native: fate is unlocked between what is chosen and its visit",
        "gpu.c",
        "    fate_visit(c->queue);\n    fate_unlock();\n",
        "    fate_unlock();\n    nanosleep(&(struct timespec){0, 100000}, NULL);\n"
        "    fate_lock();\n    fate_visit(c->queue);\n    fate_unlock();\n",
    ),
    Mutant(
        "native: nobody waits for a use",
        "fate.c",
        "while (is_being_used(buffer)) condition_wait(&no_visit, &fate);",
        "(void)is_being_used;",
    ),
    Mutant(
        "native: nobody waits for what is urgent",
        "fate.c",
        "while (!is_settled(queue)) condition_wait(&no_visit, &fate);",
        "(void)is_settled, (void)queue;",
    ),
    Mutant("native: numbers of buffers return", "carrier.c", "c->buffers_made++ * MOST_BUFFERS + index", "index"),
    Mutant(
        "native: what a lost device says counts",
        "gpu.c",
        "if (lost || is_lost(c)) c->outstanding",
        "if (lost) c->outstanding",
    ),
    Mutant(
        "native: the second share of a file is its first",
        "files.c",
        "status = read_rows(file, rows, count, position + (uint64_t)first);",
        "status = read_rows(file, rows, count, position);",
    ),
    Mutant("native: what has begun is cancelled", "jobs.c", "!j->ended && j->helpers == 0", "!j->ended"),
    Mutant(
        "native: a first use is not made",
        "gpu.c",
        "if (list[k]->copies[i].first_use",
        "if (0 && list[k]->copies[i].first_use",
    ),
    Mutant("native: a guilty copy is not looked for", "gpu.c", "if (*error) leave_out(d, i, error);", ""),
    Mutant(
        "native: a filled buffer waits for pieces that there are not",
        "uploads.c",
        "!next_of(b->ring) || c->lost)",
        "c->lost)",
    ),
    Mutant(
        "native: who waits for a buffer is not woken",
        "uploads.c",
        "    rest(r, b);\n    if (r->first) wake_copiers(c, 1);\n",
        "    rest(r, b);\n",
    ),
    Mutant(
        "native: who waits for an upload is not woken",
        "uploads.c",
        "    wake_copiers(c, 1);  // for one",
        "    // for one",
    ),
    Mutant(
        "native: uploads to one place have no order",
        "uploads.c",
        "if (!u->may_clash) return false;",
        "if (u) return false;",
    ),
    Mutant(
        "native: a buffer is lent again that is wanted", "uploads.c", "    if (r->wanted) {", "    if (r->wanted > 9) {"
    ),
    Mutant(
        "native: a piece goes that could not be read",
        "uploads.c",
        'leave_out(d, d->copy_count - 1, "its data could not be read");',
        "",
    ),
    Mutant(
        "native: what could not be read ends as if it were",
        "uploads.c",
        "if (u->status == JOB_DONE) u->status = j->status;",
        "",
    ),
    Mutant(
        "native: an upload goes on that could not be read",
        "uploads.c",
        "        drop_rest(c, u, j->status, NULL);\n",
        "",
    ),
    Mutant(
        "native: what was read of a row is read again",
        "files.c",
        "        position += (uint64_t)got;\n        for",
        "        for",
    ),
    Mutant(
        "native: a piece ends twice",
        "gpu.c",
        "end_piece(c, d, i, made);",
        "end_piece(c, d, i, made), end_piece(c, d, i, made);",
    ),
    Mutant(
        "native: the rest of a cancelled upload goes on",
        "uploads.c",
        "    pull(u->ring, u);\n    u->count = u->begun;\n",
        "",
    ),
    Mutant("native: a piece goes to what went while it was copied", "uploads.c", "if (u->gone)", "if (0)"),
    Mutant(
        "native: bytes are in flight for ever",
        "uploads.c",
        "    r->counts.in_flight -= b->taken;\n    b->taken = 0;\n    if (r->wanted)",
        "    b->taken = 0;\n    if (r->wanted)",
    ),
    Mutant(
        "native: nobody is told that an upload is reached",
        "uploads.c",
        "if (d->serial == u->serial) d->is_told = true;",
        "(void)d;",
    ),
    Mutant(
        "native: nobody is told that an old submit is reached",
        "uploads.c",
        "if (u->serial > c->reached && ",
        "if (0 && ",
    ),
    Mutant(
        "native: an upload is reached when it is submitted", "uploads.c", " && u->serial <= c->done && !c->lost)", ")"
    ),
    Mutant("native: a lost device reaches an upload", "uploads.c", "<= c->done && !c->lost)", "<= c->done)"),
    Mutant("native: an upload has the serial of its first piece", "uploads.c", "d->serial > u->serial)", "!u->serial)"),
    Mutant(
        "native: an upload that was dropped still waits", "uploads.c", "    resume(u->ring, u);\n    pull(", "    pull("
    ),
    Mutant("native: pieces overlap", "uploads.c", "b->head + p->nbytes + ALIGNMENT - 1)", "b->head + p->nbytes - 1)"),
    Mutant(
        "native: a buffer departs while somebody writes to it",
        "uploads.c",
        "if (b && !b->writers) depart_filled",
        "if (b) depart_filled",
    ),
    Mutant("native: a lost device leaves uploads waiting", "gpu.c", "leave_out_uploads(c, NULL, why);", ""),
    Mutant(
        "native: an upload keeps its destination for ever",
        "uploads.c",
        "    (u->to_texture ? c->gpu.release_texture : c->gpu.release_buffer)(u->to);\n",
        "    (void)c;\n",
    ),
    Mutant(
        "native: what was posted for a lost device waits",
        "uploads.c",
        "if (c->lost) drop_rest(c, u, UPLOAD_LOST, NULL);",
        "if (0) {}",
    ),
    Mutant(
        "native: the last piece that waited leaves a buffer open",
        "uploads.c",
        "next_of(u->ring) && u->ring->filling && ",
        "next_of(u->ring) && 0 && ",
    ),
    Mutant(
        "native: a buffer is taken back that is being filled",
        "uploads.c",
        "    if (b) {\n        *address",
        "    if (!b && r->filling && r->filling->load) b = r->filling;\n    if (b) {\n        *address",
    ),
    Mutant(
        "native: a forgotten buffer is lent",
        "uploads.c",
        "        *at = b->next;\n        r->counts.idle--;\n",
        "        r->counts.idle--;\n",
    ),
]


def play_native(mutant: Mutant) -> str:
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "native", Path(folder, "native"))
        Path(folder, "tests").mkdir()
        test = shutil.copy(ROOT / "tests" / "test_schedules.py", Path(folder, "tests"))
        replace(mutant, Path(folder, "native", mutant.module))
        command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", str(test)]
        done = subprocess.run(command, cwd=folder, capture_output=True, text=True, check=False)
        said = [line for line in done.stdout.splitlines() if line.startswith("E  ") and "random_schedules " in line]
        if done.returncode:
            return said[0].split("random_schedules ")[1].strip() if said else "it does not compile, or ends by a signal"
    return "nowhere"


def replace(mutant: Mutant, path: Path) -> None:
    text = path.read_text()
    assert text.count(mutant.before) == 1, f"{mutant.what}: {text.count(mutant.before)} places in {mutant.module}"
    path.write_text(text.replace(mutant.before, mutant.after))


def play(mutant: Mutant) -> str:
    """Where it was seen, or "nowhere"."""
    if mutant in NATIVE_MUTANTS:
        return play_native(mutant)
    with tempfile.TemporaryDirectory() as folder:
        shutil.copytree(ROOT / "aiostage", Path(folder, "aiostage"))
        replace(mutant, Path(folder, "aiostage", mutant.module))
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
    for mutant in MUTANTS + NATIVE_MUTANTS:
        if all(word in mutant.what for word in words):
            seen = play(mutant)
            missed += seen == "nowhere"
            print(f"{mutant.what}: {seen}", flush=True)
    return min(missed, 1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
