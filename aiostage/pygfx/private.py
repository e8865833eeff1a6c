"""All that aiostage knows of pygfx's inside. Nobody else touches a private name of pygfx's.

What is used, with the release that it was tested with, 0.17:

- of a resource (`gfx.Texture`, `gfx.Buffer`): `_wgpu_object`, `_wgpu_usage`, `_rev`, `_store`,
  `_gfx_mark_for_sync`, `_gfx_get_chunk_descriptions`, and the bind groups for mipmaps that are kept as its attributes;
- of `pygfx.renderers.wgpu.engine`: `update.ensure_wgpu_object`, `update.update_resource`, `update.ALTTEXFORMAT`, and of
  `mipmapsutil` what makes a pipeline and its bind groups;
- of `pygfx.utils.trackable`: `PropTracker._trackable_changed`.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pygfx
import wgpu
from pygfx.renderers.wgpu import get_shared, to_texture_format
from pygfx.resources import Resource

from ..errors import UnsupportedVersion

TESTED = ("0.17",)
"""Releases, without their last number."""

_TEXTURE = wgpu.TextureUsage.COPY_DST | wgpu.TextureUsage.TEXTURE_BINDING
_BUFFER = wgpu.BufferUsage.COPY_DST | wgpu.BufferUsage.VERTEX | wgpu.BufferUsage.INDEX
_BUFFER |= wgpu.BufferUsage.STORAGE | wgpu.BufferUsage.UNIFORM
_COPY_DST = wgpu.TextureUsage.COPY_DST, wgpu.BufferUsage.COPY_DST
_COPY_SRC = wgpu.TextureUsage.COPY_SRC, wgpu.BufferUsage.COPY_SRC

_MIPMAP_GROUP = "_gfx_bind_group_"


def check_version() -> None:
    """:raises UnsupportedVersion: this pygfx may be another one inside."""
    version = ".".join(pygfx.__version__.split(".")[:2])
    if version not in TESTED:
        raise UnsupportedVersion(
            f"aiostage.pygfx knows the inside of pygfx {', '.join(TESTED)}, and this is {pygfx.__version__}: "
            f"install 'pygfx=={TESTED[-1]}.*', or another aiostage"
        )


def device() -> Any:
    """Whose objects all of pygfx's are."""
    return get_shared().device


# -- the GPU's side of a resource --


def prepare(resource: Any) -> None:
    """Have its wgpu object, now or whenever pygfx makes it, with the usages that writing and drawing need.

    One that pygfx made to be drawn alone, because it has no data, is made anew; what draws it hears so.
    """
    is_texture = isinstance(resource, pygfx.Texture)
    wanted = _TEXTURE if is_texture else _BUFFER
    if resource._wgpu_object is None:
        resource._wgpu_usage |= wanted
    elif not resource._wgpu_object.usage & _COPY_DST[not is_texture]:
        old, resource._wgpu_object = resource._wgpu_object, None
        resource._wgpu_usage |= wanted
        new = wgpu_object(resource)
        if old.usage & _COPY_SRC[not is_texture]:
            _copy(old, new)
        _forget_bindings(resource)


def wgpu_object(resource: Any) -> Any:
    """Its GPUTexture or GPUBuffer, made if it is not there yet."""
    from pygfx.renderers.wgpu.engine.update import ensure_wgpu_object

    return ensure_wgpu_object(resource)


def _copy(old: Any, new: Any) -> None:
    encoder = device().create_command_encoder()
    if isinstance(old, wgpu.GPUBuffer):
        encoder.copy_buffer_to_buffer(old, 0, new, 0, old.size)
    else:
        width, height, layers = old.size
        for level in range(old.mip_level_count):
            depth = max(1, layers >> level) if old.dimension == "3d" else layers
            size = max(1, width >> level), max(1, height >> level), depth
            source, destination = ({"texture": texture, "mip_level": level} for texture in (old, new))
            encoder.copy_texture_to_texture(source, destination, size)
    device().queue.submit([encoder.finish()])


def _forget_bindings(resource: Any) -> None:
    """Bind groups that have its old wgpu object, wherever pygfx keeps them."""
    for name in [name for name in vars(resource) if name.startswith(_MIPMAP_GROUP)]:
        delattr(resource, name)
    for tracker in resource._store["_trackable_trackers"]:  # of the pipelines that draw it
        tracker._trackable_changed[resource._store["_trackable_id"], "wgpu_object"] = {"!bindings"}


# -- its bookkeeping --


def flush(resource: Any) -> None:
    """Upload what is marked for it or was sent to it, as the next draw would: what comes later stays on top."""
    from pygfx.renderers.wgpu.engine.update import update_resource

    wgpu_object(resource)
    update_resource(resource)


@contextmanager
def held(resource: Any) -> Iterator[None]:
    """Draws upload nothing of it meanwhile; what is marked is uploaded by the first draw after."""
    resource._gfx_get_chunk_descriptions = list  # in the place of the method: nothing is marked
    try:
        yield
    finally:
        vars(resource).pop("_gfx_get_chunk_descriptions", None)
        resource._gfx_mark_for_sync()


def touch(resource: Any) -> None:
    """Its contents are others: bounding boxes and the like are computed again."""
    Resource._rev += 1
    resource._rev = Resource._rev


# -- texels and mipmaps --


def emulated_alpha(texture: Any) -> float | None:
    """The alpha that pygfx gives the texels of an RGB texture, which is RGBA on the GPU; None for any other."""
    from pygfx.renderers.wgpu.engine.update import ALTTEXFORMAT

    found = ALTTEXFORMAT.get(to_texture_format(texture.format))
    return None if found is None else found[1]


def record_mipmaps(encoder: Any, texture: Any, layers: range) -> None:
    """The passes of pygfx's `generate_mipmaps`, into an encoder of the caller's."""
    from pygfx.renderers.wgpu.engine.mipmapsutil import get_bind_group, get_mipmap_pipeline

    pipeline = get_mipmap_pipeline(device(), texture)
    layout = pipeline.get_bind_group_layout(0)
    for layer in layers:
        view = None
        for level in range(1, wgpu_object(texture).mip_level_count):
            bind_group, view = get_bind_group(device(), texture, layout, layer, level, view)
            attachment = {"view": view, "load_op": "clear", "store_op": "store", "clear_value": (0, 0, 0, 0)}
            render_pass = encoder.begin_render_pass(color_attachments=[attachment])
            render_pass.set_pipeline(pipeline)
            render_pass.set_bind_group(0, bind_group)
            render_pass.draw(4, 1, 0, 0)
            render_pass.end()
