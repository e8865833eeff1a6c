"""What a child process does with a Basis Universal payload: has pyktx transcode it, and writes a report.

`child` starts this file by its path, in a folder with the job. It imports nothing of aiostage: the child needs no GPU.
A crash of libktx leaves the report that was written last, "begun".
"""

from __future__ import annotations

import json
import os
import sys
import threading
from contextlib import suppress
from os import _exit

# The names in the folder. ASCII, and relative to it, for that is all that pyktx takes, wherever the folder lies.
JOB = "job.json"  # {"path": [...], "target": ..., "memory": ..., "seconds": ...}
SOURCE = "source.ktx2"
RESULT = "result.ktx2"
REPORT = "report.json"  # {"state": ..., "text": ...}, of one that failed also "step" and "code", libktx's name of it
_NEW_REPORT = "report.new"

# States: how far it got.
UNAVAILABLE, UNKNOWN_TARGET, BEGUN, FAILED, DONE = "unavailable", "unknown target", "begun", "failed", "done"

_LONGEST_TEXT = 1000


def main() -> None:
    """Do the job of the working directory."""
    with open(JOB, encoding="ascii") as file:
        job = json.load(file)
    threading.Thread(target=_end_with_the_parent, daemon=True).start()
    sys.path[:] = job["path"]
    try:
        from pyktx import KtxError, KtxTexture2, KtxTranscodeFmt
    except Exception as error:  # or libktx itself is missing, which is an OSError
        _report(UNAVAILABLE, _name(error))
        return
    if not hasattr(KtxTranscodeFmt, job["target"]):
        _report(UNKNOWN_TARGET)
        return
    _report(BEGUN)
    _limit(job["memory"], job["seconds"])
    step = "read"
    try:
        texture = KtxTexture2.create_from_named_file(SOURCE)
        step = "transcode"
        texture.transcode_basis(KtxTranscodeFmt[job["target"]])
        step = "write"
        texture.write_to_named_file(RESULT)  # without the two copies that write_to_memory makes
    except MemoryError:
        _report(FAILED, step=step, code="OUT_OF_MEMORY")
    except KtxError as error:
        code = getattr(error, "code", None)
        _report(FAILED, _name(error), step=step, code=getattr(code, "name", str(code)))
    except Exception as error:
        _report(FAILED, _name(error), step=step, code="")
    else:
        _report(DONE)


def _report(state: str, text: str = "", **more: str) -> None:
    # In one step: a reader finds a whole report, or the one before.
    with open(_NEW_REPORT, "w", encoding="ascii") as file:
        json.dump({"state": state, "text": text[:_LONGEST_TEXT], **more}, file)
    os.replace(_NEW_REPORT, REPORT)


def _name(error: Exception) -> str:
    return f"{type(error).__name__}: {error}"


def _end_with_the_parent() -> None:
    """The other end of standard input closes when the parent ends, however it does; then nobody else tidies up."""
    while os.read(0, 1):
        pass
    for name in (JOB, SOURCE, RESULT, REPORT, _NEW_REPORT):
        with suppress(OSError):
            os.remove(name)
    with suppress(OSError):  # Windows keeps a working directory
        os.rmdir(os.getcwd())
    _exit(1)


def _limit(memory: int, seconds: int) -> None:
    """What the system is to end this process at, even if the parent cannot; and no core dump, no dialog of a crash."""
    if sys.platform == "win32":
        import msvcrt

        msvcrt.SetErrorMode(msvcrt.SEM_FAILCRITICALERRORS | msvcrt.SEM_NOGPFAULTERRORBOX)
    else:
        import resource

        for what, limit in ((resource.RLIMIT_AS, memory), (resource.RLIMIT_CPU, seconds), (resource.RLIMIT_CORE, 0)):
            most = resource.getrlimit(what)[1]
            if most == resource.RLIM_INFINITY or limit < most:
                with suppress(ValueError, OSError):  # macOS refuses some
                    resource.setrlimit(what, (limit, limit))


if __name__ == "__main__":
    main()
    _exit(0)  # libktx's destructors have nothing to add, and may crash
