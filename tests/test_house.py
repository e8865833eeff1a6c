"""The house: who may import whom, and whose private names anybody may touch."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import aiostage

ROOT = Path(aiostage.__file__).parent
MODULES = sorted(ROOT.rglob("*.py"))

ROOMS = ["tools", "neighbours", "facade", "engine", "carrier", "gpu", "data"]
"""Data flows down: each may import from itself and from those to its right."""

HALLS = {"errors", "events", "exits", "loop", "native", "probe"}
"""Open to all; they import each other alone. `native` is what is compiled from native/."""

NEIGHBOURS = {"dask", "jupyter", "memory", "pools", "pygfx", "streams", "textures", "tracing"}


def name_of(path: Path) -> str:
    """As it is imported: "engine.policy"; "" for the package itself."""
    parts = list(path.relative_to(ROOT).with_suffix("").parts)
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def room_of(module: str) -> str:
    first = module.split(".")[0]
    if first == "__main__":
        return "tools"
    if first in HALLS:
        return "hall"
    if first in NEIGHBOURS:
        return "neighbours"
    return first if first in ROOMS else "facade"


def imports_of(path: Path) -> Iterator[str]:
    """The modules of aiostage that one imports, anywhere in it, for type checking too."""
    names = {name_of(module) for module in MODULES} | {"native"}
    package = name_of(path).split(".") if path.name == "__init__.py" else name_of(path).split(".")[:-1]
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                start = [part for part in package if part][: len(package) - node.level + 1]
                base = ".".join([*start, *filter(None, [base])])
            elif base == "aiostage" or base.startswith("aiostage."):
                base = base.removeprefix("aiostage").removeprefix(".")
            else:
                continue
            for alias in node.names:
                whole = f"{base}.{alias.name}" if base else alias.name
                yield whole if whole in names else base
        elif isinstance(node, ast.Import):
            for alias in node.names:
                if alias.name == "aiostage" or alias.name.startswith("aiostage."):
                    yield alias.name.removeprefix("aiostage").removeprefix(".")


@pytest.mark.parametrize("path", MODULES, ids=lambda path: name_of(path) or "aiostage")
def test_nobody_imports_leftward(path: Path) -> None:
    module = name_of(path)
    room = room_of(module)
    for imported in imports_of(path):
        there = room_of(imported)
        if there == "hall":
            continue
        assert room != "hall", f"{module} is open to all, and imports {imported}"
        assert ROOMS.index(there) >= ROOMS.index(room), f"{module} ({room}) imports {imported} ({there})"


def test_there_is_no_circle() -> None:
    imports = {name_of(path): set(imports_of(path)) - {name_of(path), ""} for path in MODULES if name_of(path)}
    while imports:
        leaves = [module for module, needed in imports.items() if not needed & imports.keys()]
        assert leaves, f"a circle among {sorted(imports)}"
        for module in leaves:
            del imports[module]


PUBLIC = {"_replace", "_type_"}
"""Of named tuples and ctypes: public, whatever they look like."""


# wgpu-py's are gpu's to touch, pygfx's that one module's
@pytest.mark.parametrize(
    "path",
    [path for path in MODULES if room_of(name_of(path)) != "gpu" and name_of(path) != "pygfx.private"],
    ids=lambda path: name_of(path) or "aiostage",
)
def test_private_names_stay_in_their_module(path: Path) -> None:
    tree = ast.parse(path.read_text())
    own = {*defined_in(tree), *PUBLIC}
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute) and node.attr.startswith("_") and not node.attr.startswith("__"):
            assert node.attr in own, f"{name_of(path)}:{node.lineno} touches {node.attr}"


def defined_in(tree: ast.AST) -> Iterator[str]:
    """What a module defines: functions, classes, and attributes that it sets on `self` or declares in a class."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef | ast.ClassDef):
            yield node.name
        elif isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store):
            yield node.id
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and is_own(node.value):
            yield node.attr


def is_own(value: ast.expr) -> bool:
    return isinstance(value, ast.Name) and value.id in ("self", "cls")


def test_only_one_module_sets_a_buffers_state() -> None:
    for path in MODULES:
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.Attribute) and node.attr == "phase" and isinstance(node.ctx, ast.Store):
                assert name_of(path) == "engine.buffer"
