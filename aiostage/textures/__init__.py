"""Compressed textures from KTX2 and DDS files, streamed through a ring, coarsest mip level first.

texture = await aiostage.textures.load(ring, "rock.ktx2")

async with aiostage.textures.open(ring, "rock.ktx2") as stream:
    async for level in stream:
        draw(stream.view())  # what is there by now
"""

from .layout import Level, TextureInfo
from .stream import TextureStream, inspect, load, open, support

__all__ = ["Level", "TextureInfo", "TextureStream", "inspect", "load", "open", "support"]
