"""Weights held as int8: pure functions of parameter trees, which every function of the model then takes as they are.

A quantised weight is a leaf of its own kind, `Quantised`. Linen's modules open it where they ask for the parameter, so
that it becomes float32 inside the compiled program, next to its use: what is held, placed on devices and passed
around is a quarter of it. Inference only: int8 has no gradient.
"""

from dataclasses import dataclass
from functools import partial

import jax
import numpy as np
from flax.core.meta import AxisMetadata
from jax import Array

from samjax import int8
from samjax.errors import InputError


@partial(jax.tree_util.register_dataclass, data_fields=["values", "scale"], meta_fields=[])
@dataclass(frozen=True)
class Quantised(AxisMetadata):
    """A weight as values (int8, the weight's shape) times a scale (float32): see `samjax.int8`.

    To JAX it is a pytree of the two, to NumPy (`np.asarray`) the float32 array it stands for. To Linen it is a box
    around a parameter, which `Module.param` opens.
    """

    values: Array
    scale: Array

    def unbox(self) -> Array:
        """The float32 weight."""
        return int8.decode(self.values, self.scale)

    def replace_boxed(self, weights: Array) -> Array:
        """What Linen would store in the box: a float32 weight, which needs none."""
        return weights

    def add_axis(self, index: int, params: dict) -> "Quantised":
        """Scans add axes to both arrays alike; there is nothing to note down."""
        return self

    def remove_axis(self, index: int, params: dict) -> "Quantised":
        return self

    def __array__(self, dtype=None, copy=None) -> np.ndarray:
        return int8.decode(np.asarray(self.values), np.asarray(self.scale)).astype(dtype or np.float32, copy=False)

    @property
    def shape(self) -> tuple[int, ...]:
        return self.values.shape


def quantise(params: dict) -> dict:
    """The same tree with `Quantised` matrices: int8, and float32 scales for each output.

    params: of any model, whole or some of its branches, blocks stacked or not; NumPy arrays (then nothing goes to a
    device) or JAX's, also within `jit`. What `samjax.int8.RULES` does not name is left as it is, and so is what is
    quantised already. The tree serves wherever the other one did, but for training.
    """
    def leaf(path, weights):
        group = int8.group_of("/".join(key.key for key in path))
        return weights if group is None or is_quantised(weights) else Quantised(*int8.encode(weights, group))

    return jax.tree_util.tree_map_with_path(leaf, params, is_leaf=is_quantised)


def dequantise(params: dict) -> dict:
    """The same tree in float32 throughout. It quantises to the same int8 again."""
    return jax.tree.map(lambda x: x.unbox() if is_quantised(x) else x, params, is_leaf=is_quantised)


def is_quantised(leaf) -> bool:
    return isinstance(leaf, Quantised)


def check_trainable(params: dict) -> None:
    """Raises InputError for a tree that holds quantised weights."""
    if any(map(is_quantised, jax.tree.leaves(params, is_leaf=is_quantised))):
        raise InputError("int8 weights cannot be trained: start from the float32 model (load it without int8)")
