"""`aiostage trace`: run a script or a module with a trace of what the library does in it."""

from __future__ import annotations

import os
import runpy
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from types import TracebackType

from aiostage import tracing
from aiostage.tools.status import UsageError

VIEWER = "https://ui.perfetto.dev"


def run(script: str, args: Sequence[str], out: str | os.PathLike[str], *, is_module: bool = False) -> int:
    """Run `script`, or with `is_module` the module of that name, as `python` would, and write its trace to `out`.

    What is said of the trace goes to stderr: stdout is the script's.

    :returns: the exit status that `python` would have.
    :raises UsageError: there is no such script, or no such file can be made; nothing was run.
    :raises KeyboardInterrupt: the script ended by it. The trace is whole all the same.
    """
    if not is_module and not Path(script).is_file():
        raise UsageError(f"there is no script {script}" + f"; for a module: -m {script}" * (os.sep not in script))
    trace = tracing.trace(out)
    try:
        trace.__enter__()
    except OSError as error:
        raise UsageError(f"cannot write to {out}: {error.strerror}") from error
    try:
        status = _run(script, args, is_module)
    finally:
        trace.__exit__()
        print(_summary(trace), file=sys.stderr)
    return status


def _run(script: str, args: Sequence[str], is_module: bool) -> int:
    before = sys.argv, sys.path[:]
    sys.argv = [script, *args]
    sys.path.insert(0, os.getcwd() if is_module else str(Path(script).resolve().parent))
    try:
        if is_module:
            runpy.run_module(script, run_name="__main__", alter_sys=True)
        else:
            runpy.run_path(script, run_name="__main__")
    except SystemExit as error:
        return _status_of(error)
    except Exception as error:
        traceback.print_exception(error.with_traceback(_without_ours(error.__traceback__)))
        return 1
    finally:
        sys.argv, sys.path[:] = before
    return 0


def _status_of(error: SystemExit) -> int:
    if error.code is None or isinstance(error.code, int):
        return error.code or 0
    print(error.code, file=sys.stderr)
    return 1


def _without_ours(frames: TracebackType | None) -> TracebackType | None:
    """From where the script's own frames begin; None, if it has none, as one that is no Python."""
    ours = (__file__, runpy.__file__, "<frozen runpy>")
    at = frames
    while at is not None and at.tb_frame.f_code.co_filename in ours:
        at = at.tb_next
    return at


def _summary(trace: tracing.Trace) -> str:
    if trace.error is not None:
        return f"aiostage trace: {trace.path} was cut off: {trace.error.strerror}"
    if not trace.rings:
        return f"aiostage trace: {trace.path} is empty: no ring was opened in this process"
    lost = f", {trace.lost} events were lost" if trace.lost else ""
    return f"aiostage trace: {trace.path}, {trace.nbytes / 1e6:.1f} MB{lost}; open it at {VIEWER}"
