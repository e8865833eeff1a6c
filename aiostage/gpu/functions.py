"""The C functions of wgpu-native that every upload calls, through ctypes, which can keep the interpreter's lock.

A call through cffi gives that lock away and takes it back. With threads that copy beside it, somebody has it by then,
and waiting for it costs more than the call: a submit's 20 calls of 1 µs each took 0.8 ms (docs/performance.md).

Keeping it is safe as long as no other thread waits for the interpreter's lock while it has one of wgpu's own. wgpu
calls back with its own locks given up, as tests/test_native.py shows, with two exceptions: errors, and what it logs.
See `Functions`.
"""

from __future__ import annotations

import ctypes
from typing import Any

_P, _U32, _U64, _SIZE = ctypes.c_void_p, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_size_t


class CallbackInfo(ctypes.Structure):
    """WGPUBufferMapCallbackInfo and WGPUQueueWorkDoneCallbackInfo: five words, of which the fourth is `userdata1`."""

    _fields_ = (
        ("next", _P),
        ("mode", _U64),
        ("callback", _P),
        ("userdata1", _P),
        ("userdata2", _P),
    )


# name: (result, arguments), after webgpu.h
_SIGNATURES: dict[str, tuple[Any, tuple[Any, ...]]] = {
    "wgpuDeviceCreateCommandEncoder": (_P, (_P, _P)),
    "wgpuCommandEncoderCopyBufferToBuffer": (None, (_P, _P, _U64, _P, _U64, _U64)),
    "wgpuCommandEncoderCopyBufferToTexture": (None, (_P, _P, _P, _P)),
    "wgpuCommandEncoderCopyTextureToBuffer": (None, (_P, _P, _P, _P)),
    "wgpuCommandEncoderBeginComputePass": (_P, (_P, _P)),
    "wgpuComputePassEncoderSetPipeline": (None, (_P, _P)),
    "wgpuComputePassEncoderSetBindGroup": (None, (_P, _U32, _P, _SIZE, _P)),
    "wgpuComputePassEncoderDispatchWorkgroups": (None, (_P, _U32, _U32, _U32)),
    "wgpuComputePassEncoderEnd": (None, (_P,)),
    "wgpuComputePassEncoderRelease": (None, (_P,)),
    "wgpuCommandEncoderFinish": (_P, (_P, _P)),
    "wgpuCommandEncoderRelease": (None, (_P,)),
    "wgpuCommandBufferRelease": (None, (_P,)),
    "wgpuBufferMapAsync": (_U64, (_P, _U64, _SIZE, _SIZE, CallbackInfo)),
    "wgpuBufferGetMappedRange": (_P, (_P, _SIZE, _SIZE)),
    "wgpuBufferGetConstMappedRange": (_P, (_P, _SIZE, _SIZE)),
    "wgpuBufferUnmap": (None, (_P,)),
    "wgpuQueueOnSubmittedWorkDone": (_U64, (_P, CallbackInfo)),
    "wgpuDevicePoll": (_U32, (_P, _U32, _P)),
    "wgpuQueueSubmit": (None, (_P, _SIZE, _P)),
    "wgpuQueueWriteBuffer": (None, (_P, _P, _U64, _P, _SIZE)),
}


class Functions:
    """The functions by name, as attributes. Pointers are plain integers.

    :param path: of the library, which is loaded already.
    :param holding: whether calls keep the interpreter's lock. Not on a software adapter, where they may wait for a
        submit that works; nor where validation layers, or wgpu's logger at a level below WARNING, make it log inside
        its locks. Nor for a call that is expected to fail, such as asking whether the device is lost. What is left is
        an error in another thread's own use of wgpu in the very moment of one in ours, which has them only when a
        device is lost by itself: these two would wait for each other.
    """

    def __init__(self, path: str, holding: bool) -> None:
        library = (ctypes.PyDLL if holding else ctypes.CDLL)(path)
        for name, (result, arguments) in _SIGNATURES.items():
            function = library[name]  # an object of our own: nobody else's declarations are touched
            function.restype, function.argtypes = result, arguments
            setattr(self, name, function)

    def __getattr__(self, name: str) -> Any:  # for type checkers; what is declared is found before
        raise AttributeError(name)
