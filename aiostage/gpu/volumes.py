"""The first use of a 3D texture's level.

wgpu clears a level before its first use. A copy from a buffer to z > 0 of a 3D texture does not count as one, until
wgpu's pull request 9765 is in wgpu-native: what it writes is cleared with the rest by the next command that does count.
So the carrier has the queue write the first texel block of such a copy before it. In a caller's encoder, which is
submitted when its caller likes, the copy gets a command before it that uses the level and changes nothing: a copy of
one texel block out of it, or a dispatch of no workgroups with the level bound. A texture that allows neither has no
content that anybody could see.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import wgpu

from ..data.copies import Staged, TextureCopy

Level = tuple[int, int]  # id of the texture, mip level

_BOUND = wgpu.TextureUsage.TEXTURE_BINDING | wgpu.TextureUsage.STORAGE_BINDING
_NOTHING = "@compute @workgroup_size(1) fn nothing() {}"


class Volumes:
    """Which levels of a device's 3D textures were used, and the first use of the others."""

    def __init__(self, device: Any, ffi: Any, lib: Any) -> None:
        self._device = device
        self._ffi = ffi
        self._lib = lib
        self._module: Any = None
        self._pipelines: dict[tuple[bool, str], tuple[Any, Any]] = {}  # (layout, pipeline), by what is bound

    def warm_up(self) -> None:
        """Have the pipeline ready that most textures need. Not on a loop: a driver's first can take 0.5 s."""
        self._pipeline(sampled=True, format="")

    def is_first(self, copy: TextureCopy, used: set[Level]) -> bool:
        """Whether the copy's level has to be used before it; `used` has those that the encoder has used already."""
        texture, level = copy.destination, (id(copy.destination), copy.mip_level)
        if texture.dimension != "3d" or level in used or copy.mip_level in _known(texture):
            return False
        used.add(level)
        return bool(copy.origin[2] != 0)  # at 0 it is a use itself

    def prepare(self, encoder: Any, copy: TextureCopy, used: set[Level]) -> None:
        """Record a use of the copy's level, if it needs one."""
        if not self.is_first(copy, used):
            return
        if copy.destination.usage & wgpu.TextureUsage.COPY_SRC:
            self._copy_out(encoder, copy)
        elif copy.destination.usage & _BOUND:
            self._bind(encoder, copy.destination, copy.mip_level)

    def note(self, copies: Iterable[Staged]) -> None:
        """These were submitted."""
        for copy in copies:
            if type(copy) is not TextureCopy or copy.destination.dimension != "3d":
                continue
            # A render pass may discard a level, which makes wgpu take it for uninitialized again.
            if not copy.destination.usage & wgpu.TextureUsage.RENDER_ATTACHMENT:
                _known(copy.destination).add(copy.mip_level)

    def _copy_out(self, encoder: Any, copy: TextureCopy) -> None:
        new, block = self._ffi.new, copy.block
        scratch = self._device.create_buffer(size=block.nbytes, usage=wgpu.BufferUsage.COPY_DST)
        source = new("WGPUTexelCopyTextureInfo *")
        source.texture, source.mipLevel = copy.destination._internal, copy.mip_level
        source.aspect = self._lib.WGPUTextureAspect_All
        target = new("WGPUTexelCopyBufferInfo *")
        target.buffer = scratch._internal
        target.layout.bytesPerRow, target.layout.rowsPerImage = 256, 1
        extent = new("WGPUExtent3D *", (block.width, block.height, 1))
        self._lib.wgpuCommandEncoderCopyTextureToBuffer(encoder, source, target, extent)

    def _bind(self, encoder: Any, texture: Any, level: int) -> None:
        lib, nothing = self._lib, self._ffi.NULL
        layout, pipeline = self._pipeline(bool(texture.usage & wgpu.TextureUsage.TEXTURE_BINDING), texture.format)
        view = texture.create_view(base_mip_level=level, mip_level_count=1)
        group = self._device.create_bind_group(layout=layout, entries=[{"binding": 0, "resource": view}])
        compute = lib.wgpuCommandEncoderBeginComputePass(encoder, nothing)
        lib.wgpuComputePassEncoderSetPipeline(compute, pipeline._internal)
        lib.wgpuComputePassEncoderSetBindGroup(compute, 0, group._internal, 0, nothing)
        lib.wgpuComputePassEncoderDispatchWorkgroups(compute, 0, 1, 1)
        lib.wgpuComputePassEncoderEnd(compute)
        lib.wgpuComputePassEncoderRelease(compute)

    def _pipeline(self, sampled: bool, format: str) -> tuple[Any, Any]:
        if sampled:
            kind = next((kind for kind in ("uint", "sint") if format.endswith(kind)), "unfilterable-float")
            name, binding, key = "texture", {"sample_type": kind}, (True, kind)
        else:
            name, binding, key = "storage_texture", {"access": "write-only", "format": format}, (False, format)
        if key not in self._pipelines:
            device = self._device
            self._module = self._module or device.create_shader_module(code=_NOTHING)
            binding["view_dimension"] = "3d"
            entry = {"binding": 0, "visibility": wgpu.ShaderStage.COMPUTE, name: binding}
            layout = device.create_bind_group_layout(entries=[entry])
            pipeline = device.create_compute_pipeline(
                layout=device.create_pipeline_layout(bind_group_layouts=[layout]),
                compute={"module": self._module, "entry_point": "nothing"},
            )
            self._pipelines[key] = layout, pipeline
        return self._pipelines[key]


def _known(texture: Any) -> set[int]:
    """The levels that are known to have been used, kept with the texture."""
    known: set[int] = texture.__dict__.setdefault("_aiostage_used_levels", set())
    return known
