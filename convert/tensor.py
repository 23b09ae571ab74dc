"""A tensor whose shape and type are known and whose data are read when asked for.

Readers return these and writers take them, so that a conversion holds one tensor's data at a time.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import ml_dtypes
import numpy as np

BFLOAT16 = np.dtype(ml_dtypes.bfloat16)


@dataclass(frozen=True)
class Tensor:
    """`load()` returns a new C-contiguous array of this shape and dtype, or raises InputError."""

    shape: tuple[int, ...]
    dtype: np.dtype
    load: Callable[[], np.ndarray]

    @classmethod
    def of(cls, array) -> "Tensor":
        """The tensor of an array that is already in memory (`load` then returns that array)."""
        array = np.asarray(array)
        return cls(array.shape, array.dtype, lambda: array)

    @property
    def size(self) -> int:
        """Number of elements."""
        return math.prod(self.shape)

    @property
    def nbytes(self) -> int:
        return self.size * self.dtype.itemsize

    def data(self) -> np.ndarray:
        """The bytes in C order, as a uint8 vector. Raises ValueError if `load` breaks its promise."""
        array = np.asarray(self.load(), order="C")
        if array.shape != self.shape or array.dtype != self.dtype:
            raise ValueError(f"promised {self.dtype} {self.shape}, loaded {array.dtype} {array.shape}")
        return array.reshape(-1).view(np.uint8)
