"""DLPack: arrays of other libraries, as they lie in main memory."""

from __future__ import annotations

import ctypes
from typing import Any

import numpy as np
import numpy.typing as npt

from .files import packed

BITS = np.dtype(np.uint16, metadata={"of": "bfloat16"})
"""Of values that are no float16 either, whatever their size."""

_MAIN_MEMORY = {1, 3, 11}  # the processor's own, and what CUDA and ROCm have pinned of it
_GPUS = {2: "CUDA", 7: "Vulkan", 8: "Metal", 10: "ROCm", 13: "CUDA", 14: "oneAPI", 15: "WebGPU"}
_KNOWN = {0, 1, 2, 5, 6}  # to numpy: whole numbers, floats, complex numbers and bools
_BFLOAT = 4
_SMALL_FLOATS = range(7, 18)  # of eight bits, and fewer
_READS_VERSIONED = np.lib.NumpyVersion(np.__version__) >= "2.1.0"


class _Tensor(ctypes.Structure):
    """DLTensor, of dlpack.h."""

    _fields_ = (
        ("data", ctypes.c_void_p),
        ("device_type", ctypes.c_int32),
        ("device_id", ctypes.c_int32),
        ("ndim", ctypes.c_int32),
        ("code", ctypes.c_uint8),
        ("bits", ctypes.c_uint8),
        ("lanes", ctypes.c_uint16),
        ("shape", ctypes.POINTER(ctypes.c_int64)),
        ("strides", ctypes.POINTER(ctypes.c_int64)),
        ("byte_offset", ctypes.c_uint64),
    )


class _Versioned(ctypes.Structure):
    """DLManagedTensorVersioned, likewise; DLManagedTensor begins with its tensor."""

    _fields_ = (
        ("major", ctypes.c_uint32),
        ("minor", ctypes.c_uint32),
        ("context", ctypes.c_void_p),
        ("deleter", ctypes.c_void_p),
        ("flags", ctypes.c_uint64),
        ("tensor", _Tensor),
    )


class _Memory:
    """What numpy makes an array of that keeps a capsule, and with it the memory."""

    def __init__(self, capsule: Any, interface: dict[str, Any]) -> None:
        self._capsule = capsule
        self.__array_interface__ = interface


class _Exported:
    """A capsule, for numpy to consume."""

    def __init__(self, capsule: Any, device: tuple[int, int]) -> None:
        self._capsule, self._device = capsule, device

    def __dlpack__(self, **options: Any) -> Any:
        return self._capsule

    def __dlpack_device__(self) -> tuple[int, int]:
        return self._device


def from_dlpack(data: Any) -> npt.NDArray[Any] | None:
    """What `data` exports, without a copy; None: nothing that numpy could take, and it may have another way.

    Values of a tensor that keeps a gradient are taken without it. What numpy has no type for, bfloat16 and floats of
    eight bits, is taken as its bits.

    :raises TypeError: it is not in main memory.
    """
    if getattr(data, "requires_grad", False) is True:
        data = data.detach()
    if (ask := getattr(data, "__dlpack_device__", None)) is not None:
        _check_device(data, *ask())  # first: some copy to main memory when they are asked for an export
    try:
        capsule = _export(data)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None
    tensor = _tensor_of(capsule)
    _check_device(data, tensor.device_type, tensor.device_id)
    is_half, is_quarter = (tensor.code, tensor.bits) == (_BFLOAT, 16), tensor.code in _SMALL_FLOATS and tensor.bits == 8
    if is_half or is_quarter:
        return _bits(capsule, tensor, BITS if is_half else np.dtype(np.uint8))
    if tensor.code not in _KNOWN or tensor.lanes != 1:
        return None
    try:
        return np.asarray(np.from_dlpack(_Exported(capsule, (tensor.device_type, tensor.device_id))))
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None


def _export(data: Any) -> Any:
    if _READS_VERSIONED:
        try:
            return data.__dlpack__(max_version=(1, 0))  # without which some export nothing that is read-only
        except TypeError:
            pass
    return data.__dlpack__()


def _check_device(data: Any, kind: int, number: int) -> None:
    if int(kind) in _MAIN_MEMORY:
        return
    where = f"{_GPUS[int(kind)]} device {number}" if int(kind) in _GPUS else f"DLPack's device {int(kind)}:{number}"
    way = "data.get()" if type(data).__module__.startswith("cupy") else "data.cpu()"
    raise TypeError(f"data is in the memory of {where}: uploads start in main memory, so give {way}")


def _bits(capsule: Any, tensor: Any, dtype: np.dtype[Any]) -> npt.NDArray[Any]:
    """Floats that numpy does not know, as whole numbers of their size."""
    shape = tuple(tensor.shape[: tensor.ndim])
    if 0 in shape:
        return np.empty(shape, dtype)
    steps = tensor.strides[: tensor.ndim] if tensor.strides else packed(shape, 1)
    interface = {
        "version": 3,
        "typestr": dtype.str,
        "shape": shape,
        "strides": tuple(step * dtype.itemsize for step in steps),
        "data": (tensor.data + tensor.byte_offset, True),
    }
    array: npt.NDArray[Any] = np.asarray(_Memory(capsule, interface))
    return array.view(dtype)


def _tensor_of(capsule: Any) -> Any:
    """The tensor in a capsule that nobody has consumed, whose destructor thus gives it back."""
    pointer = ctypes.pythonapi.PyCapsule_GetPointer
    is_valid = ctypes.pythonapi.PyCapsule_IsValid
    pointer.restype, pointer.argtypes = ctypes.c_void_p, (ctypes.py_object, ctypes.c_char_p)
    is_valid.restype, is_valid.argtypes = ctypes.c_int, (ctypes.py_object, ctypes.c_char_p)
    if is_valid(capsule, b"dltensor_versioned"):
        return _Versioned.from_address(pointer(capsule, b"dltensor_versioned")).tensor
    return _Tensor.from_address(pointer(capsule, b"dltensor"))
