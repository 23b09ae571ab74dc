"""Inert stand-ins for what `torch.save` pickles: a tensor becomes a description of where its data lie.

`ALLOWED` lists every global that a checkpoint may name. None of them is imported: each maps to a function or
a value of this file.
"""

from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from convert.pickles import RESAVE, Call, PickleError, check_key
from convert.tensor import BFLOAT16

MAX_DIMENSIONS = 32

STORAGES = {
    "DoubleStorage": np.dtype("f8"), "FloatStorage": np.dtype("f4"), "HalfStorage": np.dtype("f2"),
    "BFloat16Storage": BFLOAT16, "LongStorage": np.dtype("i8"), "IntStorage": np.dtype("i4"),
    "ShortStorage": np.dtype("i2"), "CharStorage": np.dtype("i1"), "ByteStorage": np.dtype("u1"),
    "BoolStorage": np.dtype("?"),
}
_DTYPES = {
    "float64": "f8", "float32": "f4", "float16": "f2", "bfloat16": BFLOAT16, "int64": "i8", "int32": "i4",
    "int16": "i2", "int8": "i1", "uint8": "u1", "bool": "?", "uint16": "u2", "uint32": "u4", "uint64": "u8",
}


class Storage(NamedTuple):
    """A run of `count` elements, kept under `key`."""

    key: str
    dtype: np.dtype | None  # None: bytes, whose type the tensor tells
    count: int


@dataclass(frozen=True, slots=True)
class View:
    """A tensor: elements of a storage. Numbers are non-negative integers; nothing else is checked yet."""

    storage: Storage
    offset: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]  # in elements


@dataclass(frozen=True, slots=True)
class _StorageType:
    dtype: np.dtype | None


_INERT = object()  # stands for anything harmless that is not a tensor
UNKNOWN = f"describes a tensor in an unknown way; {RESAVE}"


def _ordered_dict(arguments):
    """OrderedDict(), or OrderedDict([[key, value], ...]) as Python 2 wrote it."""
    pairs = arguments[0] if arguments else []
    if len(arguments) > 1 or type(pairs) is not list:
        raise PickleError(UNKNOWN)
    if any(type(pair) not in (list, tuple) or len(pair) != 2 for pair in pairs):
        raise PickleError(UNKNOWN)
    return {check_key(key): value for key, value in pairs}


def _rebuild(arguments):
    """_rebuild_tensor_v2(storage, offset, size, stride, requires_grad, hooks[, metadata])."""
    if len(arguments) not in (6, 7) or type(arguments[0]) is not Storage or arguments[0].dtype is None:
        raise PickleError(UNKNOWN)
    return _view(*arguments[:4])


def _rebuild_typed(arguments):
    """_rebuild_tensor_v3(bytes, offset, size, stride, requires_grad, hooks, dtype[, metadata])."""
    if len(arguments) not in (7, 8) or type(arguments[0]) is not Storage:
        raise PickleError(UNKNOWN)
    if not isinstance(arguments[6], np.dtype):
        raise PickleError(UNKNOWN)
    whole, dtype = arguments[0], arguments[6]
    size = whole.count * (whole.dtype.itemsize if whole.dtype else 1)
    return _view(whole._replace(dtype=dtype, count=size // dtype.itemsize), *arguments[1:4])


def _view(whole, offset, shape, strides):
    if type(shape) is not tuple or type(strides) is not tuple:
        raise PickleError(UNKNOWN)
    if len(shape) != len(strides) or len(shape) > MAX_DIMENSIONS:
        raise PickleError(UNKNOWN)
    if any(type(n) is not int or not 0 <= n < 1 << 62 for n in (offset, *shape, *strides)):
        raise PickleError(UNKNOWN)
    return View(whole, offset, shape, strides)


def _parameter(arguments):
    """_rebuild_parameter(tensor, requires_grad, hooks[, state])."""
    if len(arguments) not in (3, 4) or type(arguments[0]) is not View:
        raise PickleError(UNKNOWN)
    return arguments[0]


def _size(arguments):
    if len(arguments) != 1 or type(arguments[0]) not in (tuple, list):
        raise PickleError(UNKNOWN)
    return tuple(arguments[0])


def storage(found: object) -> Storage:
    """The persistent id ("storage", type, key, device, count[, view])."""
    if type(found) is not tuple or len(found) not in (5, 6) or found[0] != "storage":
        raise PickleError(UNKNOWN)
    _, kind, key, _, count, *view = found
    if type(kind) is not _StorageType or type(key) is not str or type(count) is not int or count < 0:
        raise PickleError(UNKNOWN)
    if view not in ([], [None]):
        raise PickleError(f"shares memory in a way that PyTorch dropped long ago; {RESAVE}")
    return Storage(key, kind.dtype, count)


ALLOWED = {
    "collections.OrderedDict": Call(_ordered_dict),
    "torch._utils._rebuild_tensor_v2": Call(_rebuild),
    "torch._utils._rebuild_tensor_v3": Call(_rebuild_typed),
    "torch._utils._rebuild_parameter": Call(_parameter),
    "torch._utils._rebuild_parameter_with_state": Call(_parameter),
    "torch.Size": Call(_size),
    **{f"torch.{name}": _StorageType(dtype) for name, dtype in STORAGES.items()},
    "torch.storage.UntypedStorage": _StorageType(None),
    **{f"torch.{name}": np.dtype(kind) for name, kind in _DTYPES.items()},
    # Numbers and devices beside the model in training checkpoints: accepted, never built.
    **dict.fromkeys(["torch.device", "numpy.core.multiarray.scalar", "numpy._core.multiarray.scalar",
                     "numpy.dtype", "_codecs.encode"], Call(lambda arguments: _INERT)),
}
