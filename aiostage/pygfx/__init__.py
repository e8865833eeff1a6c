"""pygfx: textures and buffers of a scene, streamed while it is drawn. Start at `attach`."""

from .stream import BufferStream, TextureStream, attach

__all__ = ["BufferStream", "TextureStream", "attach"]
