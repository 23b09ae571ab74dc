"""int8 weights in files: beside each int8 tensor, its float32 scale under the name with `_scale` added.

What is read is the float32 that they stand for; it becomes the same int8 again, since the largest weight under a scale
is always 127 of it.
"""

from collections.abc import Iterator, Mapping

import numpy as np

from convert.table import KINDS, Row
from convert.tensor import Tensor
from samjax import int8

SUFFIX = "_scale"
DTYPE = np.dtype(np.int8)
decode = int8.decode


def scales(rows: Mapping[str, Row], tensors: Mapping[str, Tensor], torch: bool) -> dict[str, tuple[int, ...]]:
    """The names of a file's int8 weights -> the shapes that their scales must have, laid out for PyTorch or for JAX.

    rows: by the file's names. int8 tensors that must be float32 are not among them.
    """
    shapes = {}
    for name, row in rows.items():
        group = int8.group_of(row.path)
        if group is not None and name in tensors and tensors[name].dtype == DTYPE:
            shape = int8.scale_shape(row.shape, group)
            shapes[name] = KINDS[row.kind].to_torch(np.broadcast_to(np.float32(0), shape)).shape if torch else shape
    return shapes


def split(name: str, tensor: Tensor, row: Row, torch: bool) -> Iterator[tuple[str, Tensor]]:
    """A float32 tensor of the model (JAX's layout) as what a file of int8 weights holds of it, by name."""
    group = int8.group_of(row.path)
    lay = KINDS[row.kind].to_torch if torch else lambda x: x
    if group is None:
        parts = {name: (row.shape, np.dtype(np.float32), tensor.load)}
    else:
        parts = {name: (row.shape, DTYPE, lambda: int8.encode(tensor.load(), group)[0]),
                 name + SUFFIX: (int8.scale_shape(row.shape, group), np.dtype(np.float32),
                                 lambda: int8.encode(tensor.load(), group)[1])}
    for part, (shape, dtype, load) in parts.items():
        laid = lay(np.broadcast_to(dtype.type(0), shape)).shape
        yield part, Tensor(laid, dtype, lambda load=load: np.ascontiguousarray(lay(load())))
