"""Whether the compiled part is there, and for this Python."""

from importlib import import_module

try:
    import_module("aiostage.native")
except ModuleNotFoundError as error:
    if error.name != "aiostage.native":
        raise
    # Free-threaded Pythons have no stable ABI before 3.15, and pass over what was compiled for one.
    raise ImportError(
        "aiostage has no compiled part for this Python: it may be another than it was installed for, or free-threaded. "
        "To compile it for this one: pip install --force-reinstall --no-deps --no-binary aiostage aiostage"
    ) from error
