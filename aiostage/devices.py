"""A device that uploads are fast on."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import wgpu

_FEATURE = "mappable-primary-buffers"


def request_device(
    adapter: wgpu.GPUAdapter,
    *,
    required_features: Iterable[str] = (),
    required_limits: Mapping[str, int | None] | None = None,
    **options: Any,
) -> wgpu.GPUDevice:
    """`adapter.request_device_sync`, with what makes uploads fast where the adapter has it.

    That is the feature `mappable-primary-buffers`: staging memory in the host's cache, which an H100 reads at 47 GB/s,
    where it takes 33 through write-combined memory. wgpu prints a warning about the feature on a discrete GPU, since
    buffers that shaders read are slow in such memory; aiostage only copies out of it. And the adapter's own limit on
    the size of a buffer, in place of WebGPU's default of 256 MiB.

    :param required_features: further ones, as WebGPU names them.
    :param required_limits: further ones; what is given here wins.
    :param options: as `label`, for wgpu.
    :raises RuntimeError: wgpu refuses a feature or limit that was asked for.
    """
    features = [*required_features]
    if _FEATURE in adapter.features and _FEATURE not in features:
        features.append(_FEATURE)
    limits = {"max-buffer-size": adapter.limits["max-buffer-size"], **(required_limits or {})}
    return adapter.request_device_sync(required_features=features, required_limits=limits, **options)
