"""Who keeps a view alive without being asked to: a notebook, which remembers what its cells have shown.

Looked for only where an error is about to be raised. IPython is asked only where it runs: nothing here imports it.
"""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import islice
from typing import Any

import numpy as np

_MOST = 1000
"""Items of a list or dictionary that are looked at."""

_LAST = ("_", "__", "___")
"""IPython's names for the last outputs."""

_FORGET_LAST = 'get_ipython().push({"_": "", "__": "", "___": ""}, interactive=False)'

_OUTPUT = re.compile(r"_(\d+)")


def in_notebook(covers: Callable[[int], bool]) -> str:
    """What of an IPython session, or notebook, points at the memory whose addresses `covers` knows, and what to do.

    A sentence or two, each behind a full stop; empty if there is no session, or nothing of it is known to point there.
    """
    shell = _shell()
    if shell is None:
        return ""
    names = {name for name, value in _variables(shell) if _points(value, covers)}
    outputs = sorted(int(match[1]) for name in names if (match := _OUTPUT.fullmatch(name)))
    last = [name for name in _LAST if name in names]
    others = sorted(name for name in names if name not in _LAST and not _OUTPUT.fullmatch(name))
    text = ""
    if outputs:
        shown = ", ".join(f"Out[{number}]" for number in outputs)
        space = shell.user_ns
        free = ", ".join(f"`%xdel _{n}`" if f"_{n}" in space else f"`del Out[{n}]`" for n in outputs)
        text += (
            f". IPython keeps {shown}, what a cell has shown: {free} lets go of it (`del Out[{outputs[0]}]` alone does "
            f"not, `_{outputs[0]}` and `_` are left), and an expression that ends with `;` is not kept"
        )
    elif last:
        text += f". IPython keeps it as `{last[0]}`, what a cell has shown: `%xdel {last[0]}` lets go of it"
    elif any(_points(value, covers) for value in _leftovers(shell)):
        text += f". IPython keeps it, what a cell has shown, for a `_` that is not there any more: {_FORGET_LAST}"
    if others:
        text += f". Variables of the notebook point at it: `del {', '.join(others)}`"
    return text


def _shell() -> Any:
    try:
        return sys.modules["IPython"].get_ipython()
    except Exception:  # it is not there, or being imported
        return None


def _variables(shell: Any) -> Iterator[tuple[str, object]]:
    """The names of the session, each output as `_3`, also if it is in `Out` alone."""
    space: dict[str, object] = getattr(shell, "user_ns", {})
    outputs = space.get("_oh")
    if isinstance(outputs, dict):
        yield from ((f"_{number}", value) for number, value in list(outputs.items()))
    yield from ((name, value) for name, value in list(space.items()) if name not in ("_oh", "Out"))


def _leftovers(shell: Any) -> Iterator[object]:
    """What `%reset out` leaves behind."""
    hidden: dict[str, object] = getattr(shell, "user_ns_hidden", {})
    for name in _LAST:
        yield hidden.get(name)
        yield getattr(getattr(shell, "displayhook", None), name, None)


def _points(value: object, covers: Callable[[int], bool]) -> bool:
    """Whether it, or an item of it, is a view of that memory."""
    if isinstance(value, (list, tuple, set, frozenset)):
        items: Iterable[object] = value
    elif isinstance(value, Mapping):
        items = value.values()
    else:
        items = (value,)
    try:
        return any(covers(address) for item in islice(items, _MOST) if (address := _address(item)) is not None)
    except Exception:  # somebody's own mapping
        return False


def _address(value: object) -> int | None:
    """Where the memory of an array, tensor or buffer begins."""
    if isinstance(value, (str, bytes, int, float, type(None))):
        return None
    try:
        if isinstance(value, np.ndarray):
            return int(value.__array_interface__["data"][0])
        if type(value).__module__.partition(".")[0] == "torch":
            return int(value.data_ptr())  # type: ignore[attr-defined]
        return int(np.asarray(memoryview(value)).__array_interface__["data"][0])  # type: ignore[arg-type]
    except Exception:  # it has none, or not any more
        return None
