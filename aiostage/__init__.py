"""aiostage: stream buffers and textures to the GPU from asyncio, through a ring of mapped staging buffers.

Start at `StagingRing`.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

from . import _compiled  # noqa: F401 - says what helps, where the compiled part is for another Python

if TYPE_CHECKING:
    from ._names import *  # noqa: F403
    from ._names import __all__ as __all__

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """All public names, and wgpu and NumPy with them, when the first is asked for: `aiostage --help` needs none."""
    if name.startswith("_") and name != "__all__":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    names = import_module("._names", __name__)
    found = globals()
    found.update({public: getattr(names, public) for public in names.__all__}, __all__=names.__all__)
    try:
        return found[name]  # the modules of the library too
    except KeyError:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}") from None


def __dir__() -> list[str]:
    return sorted({*globals(), *__getattr__("__all__")})
