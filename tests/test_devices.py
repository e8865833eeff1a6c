"""`request_device` asks for what makes uploads fast, and for what its caller wants."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import wgpu

import aiostage
from aiostage import MiB, StagingRing

FEATURE = "mappable-primary-buffers"


def asked_of(features: set[str], **options: Any) -> dict[str, Any]:
    """What an adapter with these features is asked for."""
    asked: dict[str, Any] = {}
    limits = {"max-buffer-size": 1 << 40}
    adapter: Any = SimpleNamespace(
        features=features, limits=limits, request_device_sync=lambda **what: asked.update(what)
    )
    aiostage.request_device(adapter, **options)
    return asked


async def test_a_real_device_has_the_adapters_buffers(adapter: wgpu.GPUAdapter) -> None:
    device = aiostage.request_device(adapter, label="mine")
    assert device.label == "mine"
    assert (FEATURE in device.features) is (FEATURE in adapter.features)
    assert device.limits["max-buffer-size"] == adapter.limits["max-buffer-size"]
    async with StagingRing(device, 2, MiB) as ring:
        assert ring.host_cached is (FEATURE in adapter.features or adapter.info["adapter_type"] == "CPU")


def test_the_feature_is_asked_for_once_and_only_where_it_is() -> None:
    assert asked_of({FEATURE})["required_features"] == [FEATURE]
    assert asked_of({FEATURE}, required_features=(FEATURE, "other"))["required_features"] == [FEATURE, "other"]
    assert asked_of(set(), required_features=["other"])["required_features"] == ["other"]


def test_limits_that_are_given_win() -> None:
    assert asked_of(set())["required_limits"] == {"max-buffer-size": 1 << 40}
    asked = asked_of(set(), required_limits={"max-buffer-size": MiB, "max-bind-groups": 8})
    assert asked["required_limits"] == {"max-buffer-size": MiB, "max-bind-groups": 8}


def test_what_wgpu_refuses_is_its_own_error(adapter: wgpu.GPUAdapter) -> None:
    with pytest.raises((RuntimeError, ValueError, KeyError)):
        aiostage.request_device(adapter, required_features=["no-such-feature"])
