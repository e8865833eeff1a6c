"""Somebody between the carrier and wgpu-native's C functions."""

from __future__ import annotations

import ctypes
from collections import Counter
from collections.abc import Callable
from typing import Any

from simulated_table import TYPES

from aiostage import native

_kept: list[Any] = []  # for as long as the process: a carrier may call them at any time


def _index_of(name: str) -> int:
    return [known for known, _ in native.functions()].index(name)


def interpose(device: Any, name: str, make: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
    """Have carriers that are made from now on call `make(original)`, with the interpreter's lock, in place of `name`.

    :param device: what `connect` returns.
    """
    index = _index_of(name)
    kind = TYPES[index]
    _kept.append(kind(make(kind(device.functions[index]))))
    replace(device, name, ctypes.cast(_kept[-1], ctypes.c_void_p).value)


def replace(device: Any, name: str, address: int) -> None:
    """The same with a C function."""
    functions = list(device.functions)
    functions[_index_of(name)] = address
    device.functions = tuple(functions)


def count_calls(device: Any, *names: str) -> Counter[str]:
    """How often carriers that are made from now on call these."""
    counter: Counter[str] = Counter()

    def counted(name: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
        def make(original: Callable[..., Any]) -> Callable[..., Any]:
            def call(*args: Any) -> Any:
                counter[name] += 1
                return original(*args)

            return call

        return make

    for name in names:
        interpose(device, name, counted(name))
    return counter
