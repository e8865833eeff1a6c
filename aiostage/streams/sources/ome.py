"""What the metadata of an OME-Zarr image say, checked against its arrays.

Source: OME-NGFF 0.4 and 0.5, "multiscales" metadata, <https://ngff.openmicroscopy.org/0.5/>.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

from ...errors import InvalidSource

VERSIONS = ("0.4", "0.5")


class Level(NamedTuple):
    """One resolution of an image. All tuples are of the space axes, in the order of the metadata: usually z, y, x."""

    number: int
    """0 is the finest."""
    path: str
    """In the group."""
    array: Any
    """The zarr array, with all its axes."""
    fixed: tuple[int | None, ...]
    """For each axis of the array the index that is read of it; None: it is a space axis."""
    shape: tuple[int, ...]
    """In voxels."""
    chunks: tuple[int, ...]
    """Voxels in a chunk; those at the end may have fewer."""
    scale: tuple[float, ...]
    """World units a voxel."""
    translation: tuple[float, ...]
    """Where voxel 0 is in the world."""

    @property
    def grid(self) -> tuple[int, ...]:
        """How many chunks there are along each axis."""
        return tuple(-(-n // chunk) for n, chunk in zip(self.shape, self.chunks, strict=True))


class Image(NamedTuple):
    """An image with several levels, the finest first."""

    where: str
    """What errors call it."""
    axes: tuple[str, ...]
    """Names of the space axes."""
    levels: tuple[Level, ...]


def read(group: Any, select: Mapping[str, int]) -> Image:
    """Reads the metadata, in a thread.

    :param select: the index of each axis that is not of space, by its name; 0 where there is none.
    :raises InvalidSource: they are none, or lie about the arrays.
    """
    where = str(getattr(group, "store_path", group))
    attributes = dict(group.attrs)
    found = attributes.get("ome", attributes)
    scales = found.get("multiscales") if isinstance(found, Mapping) else None
    if not isinstance(scales, list | tuple) or not scales or not isinstance(scales[0], Mapping):
        raise InvalidSource(f"{where}: its attributes have no multiscales, so it is no OME-Zarr image")
    first = scales[0]
    version = first.get("version", found.get("version", "0.4"))
    if version not in VERSIONS:
        raise InvalidSource(f"{where}: OME-Zarr {version}; {' and '.join(VERSIONS)} are read")
    axes, datasets = _axes(first, where), first.get("datasets")
    if not isinstance(datasets, list | tuple) or not datasets:
        raise InvalidSource(f"{where}: multiscales[0] has no datasets")
    if unknown := set(select) - {name for name, is_space in axes if not is_space}:
        raise ValueError(f"{where}: select has {', '.join(sorted(unknown))}, which is no axis but those of space")
    outer = _transform(first, len(axes), f"{where}: multiscales[0]", needs_scale=False)
    levels = tuple(_level(group, where, n, dataset, axes, outer, select) for n, dataset in enumerate(datasets))
    for level in levels[1:]:
        _check_like_finest(levels[0], level, where)
    return Image(where, tuple(name for name, is_space in axes if is_space), levels)


def _axes(multiscale: Mapping[str, Any], where: str) -> list[tuple[str, bool]]:
    """(name, whether it is of space) of each."""
    axes = multiscale.get("axes")
    if not isinstance(axes, list | tuple) or not all(isinstance(axis, Mapping) and "name" in axis for axis in axes):
        raise InvalidSource(f"{where}: multiscales[0] has no axes with names")
    named = [(str(axis["name"]), axis.get("type") == "space") for axis in axes]
    count = sum(is_space for _, is_space in named)
    if count not in (2, 3):
        raise InvalidSource(f"{where}: {count} axes of multiscales[0] are of type space, not two or three")
    return named


Transform = tuple[tuple[float, ...], tuple[float, ...]]
"""(scale, translation) of every axis."""


def _transform(item: Any, count: int, where: str, needs_scale: bool = True) -> Transform:
    scale, translation, has_scale = (1.0,) * count, (0.0,) * count, False
    for step in item.get("coordinateTransformations") or ():
        kind = step.get("type") if isinstance(step, Mapping) else None
        if kind == "identity":
            continue
        values = step.get(kind) if kind in ("scale", "translation") else None
        if not isinstance(values, list | tuple) or len(values) != count:
            raise InvalidSource(f"{where}: a transformation {step!r}, not a scale or translation of {count} axes")
        if not all(isinstance(value, int | float) and math.isfinite(value) for value in values):
            raise InvalidSource(f"{where}: a {kind} of {values!r}, which are not all numbers")
        if kind == "scale":
            if min(values) <= 0:
                raise InvalidSource(f"{where}: a scale of {values!r}, which are not all positive")
            has_scale = True
            scale = tuple(a * b for a, b in zip(scale, values, strict=True))
            translation = tuple(a * b for a, b in zip(translation, values, strict=True))
        else:
            translation = tuple(a + b for a, b in zip(translation, values, strict=True))
    if needs_scale and not has_scale:
        raise InvalidSource(f"{where}: it has no transformation of type scale")
    return scale, translation


def _level(
    group: Any,
    where: str,
    number: int,
    dataset: Any,
    axes: list[tuple[str, bool]],
    outer: Transform,
    select: Mapping[str, int],
) -> Level:
    path = dataset.get("path") if isinstance(dataset, Mapping) else None
    if not isinstance(path, str):
        raise InvalidSource(f"{where}: multiscales[0].datasets[{number}] has no path")
    where = f"{where}: level {number} ({path!r})"
    try:
        array = group[path]
        shape, chunks = tuple(array.shape), tuple(array.chunks)
    except Exception as error:  # of whatever zarr and its stores raise
        raise InvalidSource(f"{where}: there is no such array: {error}") from error
    if len(shape) != len(axes):
        raise InvalidSource(f"{where}: an array of {len(shape)} axes, where the metadata have {len(axes)}")
    if 0 in shape:
        raise InvalidSource(f"{where}: an array of shape {shape}, which has no voxels")
    fixed = tuple(None if is_space else int(select.get(name, 0)) for name, is_space in axes)
    for (name, _), index, length in zip(axes, fixed, shape, strict=True):
        if index is not None and not 0 <= index < length:
            raise InvalidSource(f"{where}: {name} = {index} was selected of {length}")
    scale, translation = _transform(dataset, len(axes), where)
    scale, translation = (
        tuple(a * b for a, b in zip(outer[0], scale, strict=True)),
        tuple(a * b + c for a, b, c in zip(outer[0], translation, outer[1], strict=True)),
    )
    space = [axis for axis, index in enumerate(fixed) if index is None]

    def of_space(values: tuple[Any, ...]) -> tuple[Any, ...]:
        return tuple(values[axis] for axis in space)

    return Level(number, path, array, fixed, of_space(shape), of_space(chunks), of_space(scale), of_space(translation))


def _check_like_finest(finest: Level, level: Level, where: str) -> None:
    """Of the same type, coarser, and as large in the world, but for the voxels that are lost when it is made."""
    where = f"{where}: level {level.number} ({level.path!r})"
    if level.array.dtype != finest.array.dtype:
        raise InvalidSource(f"{where}: {level.array.dtype}, where level 0 has {finest.array.dtype}")
    if any(n > most for n, most in zip(level.shape, finest.shape, strict=True)):
        raise InvalidSource(f"{where}: {level.shape} voxels, more than the {finest.shape} of level 0")
    extents = [np.array(each.shape) * np.array(each.scale) for each in (finest, level)]
    if np.any(np.abs(extents[0] - extents[1]) > 2 * np.array(level.scale)):
        raise InvalidSource(
            f"{where}: {level.shape} voxels of {level.scale} are {tuple(extents[1].tolist())} in the world, where "
            f"level 0 is {tuple(extents[0].tolist())}"
        )
