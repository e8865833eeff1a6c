"""`python docs/errors.py`: write errors.md, every exception with the texts that it is raised with, from the code."""

from __future__ import annotations

import ast
import inspect
import re
from collections.abc import Iterator
from pathlib import Path

import aiostage.dask
from aiostage.errors import StagingError

PAGE = Path(__file__).with_name("errors.md")
PACKAGE = Path(aiostage.__file__).parent

HEAD = """# Errors

Everything that the library raises on its own account is a `StagingError`, and also the builtin or anyio class that
somebody who has never heard of it would expect:

```python
import numpy as np
import wgpu

import aiostage

device = wgpu.gpu.request_adapter_sync(power_preference="high-performance").request_device_sync()
buffer = device.create_buffer(size=1024, usage=wgpu.BufferUsage.COPY_DST)

async with aiostage.StagingRing(device) as ring:
    try:
        await ring.write_buffer(buffer, 1000, np.zeros(100, np.float32))
    except aiostage.InvalidCopy as error:          # also: except ValueError
        print("left out:", error)                  # 400 bytes at offset 1000 do not fit in a buffer of 1024 bytes
    except aiostage.DeviceLost:                    # also: except anyio.BrokenResourceError
        raise                                      # a new device, and a new ring on it
```

Wrong types are `TypeError`, and wrong numbers in place of sizes and counts `ValueError`, as everywhere in Python. What
a loader, a source or a callback of yours raises comes out as it was.

An exception concerns the call that raised it: other uploads go on, unless the ring or the device has ended.

Each exception below has the texts that it comes with. What stands in braces is filled in.
"""


def main() -> None:
    PAGE.write_text(page())


def page() -> str:
    return "\n".join([HEAD, *sections()])


def sections() -> Iterator[str]:
    texts = dict(messages())
    for error in sorted(exceptions(), key=lambda error: error.__name__):
        about, _, advice = (inspect.getdoc(error) or "").partition("\n\nWhat to do: ")
        package = error.__module__.split(".")[1] if error.__module__.startswith("aiostage.dask") else ""
        name = f"aiostage.{package}{'.' if package else ''}{error.__name__}"
        also = " and ".join(f"`{named(base)}`" for base in error.__bases__ if base is not StagingError)
        yield f"## {error.__name__}\n"
        yield f"`{name}`, also {also}. {one_line(about)}\n"
        yield f"**What to do:** {one_line(advice)}\n"
        yield from (f"- {text}" for text in dict.fromkeys(texts.get(error.__name__, ())))
        yield ""


def exceptions() -> Iterator[type[StagingError]]:
    """Those that are public."""
    for module in (aiostage, aiostage.dask):
        for name in module.__all__:
            found = getattr(module, name)
            if isinstance(found, type) and issubclass(found, StagingError) and found is not StagingError:
                yield found


def named(base: type) -> str:
    return base.__name__ if base.__module__ == "builtins" else f"{base.__module__.split('.')[0]}.{base.__name__}"


def one_line(text: str) -> str:
    return re.sub(r"\s+", " ", text).strip()


def messages() -> Iterator[tuple[str, list[str]]]:
    """Of each class, what it is called with anywhere in the package."""
    found: dict[str, list[str]] = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        tree = ast.parse(path.read_text())
        assigned = [node for node in ast.walk(tree) if isinstance(node, ast.Assign)]
        kept = {name.id: node.value for node in assigned for name in node.targets if isinstance(name, ast.Name)}
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and isinstance(node.func, ast.Name) and node.args:
                given = node.args[0]
                text = template(kept.get(given.id, given) if isinstance(given, ast.Name) else given)
                if text:
                    found.setdefault(node.func.id, []).append(text)
    yield from found.items()


def template(text: ast.expr) -> str:
    """Of a string: as it is shown, with the last word of each expression in braces. Of another expression: nothing."""
    if isinstance(text, ast.Constant) and isinstance(text.value, str):
        return escaped(text.value)
    if not isinstance(text, ast.JoinedStr):
        return ""
    parts = (
        escaped(part.value) if isinstance(part, ast.Constant) else f"*{{{words(part.value)}}}*"  # type: ignore[attr-defined]
        for part in text.values
    )
    return "".join(parts)


def words(expression: ast.expr) -> str:
    """The name that says most of what it is."""
    nodes = ast.walk(expression)
    names = (getattr(node, "attr", "") or getattr(node, "id", "") for node in nodes)
    return next((name.strip("_").replace("_", " ") for name in names if name not in ("", "map", "str", "join")), "…")


def escaped(text: str) -> str:
    return re.sub(r"([*_<>\[\]`|])", r"\\\1", text)


if __name__ == "__main__":
    main()
