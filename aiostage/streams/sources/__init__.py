"""Where streams come from: the planes of video frames, and the chunks of OME-Zarr pyramids.

await ring.write_texture({"texture": luma}, sources.plane(frame, 0))

async for chunk in sources.zarr_pyramid("volume.zarr", lambda: camera.position):
    await chunk.upload(ring, {"texture": textures[chunk.level]})
"""

from .ome import Level
from .pyramid import Chunk, Pyramid, zarr_pyramid
from .video import plane

__all__ = ["Chunk", "Level", "Pyramid", "plane", "zarr_pyramid"]
