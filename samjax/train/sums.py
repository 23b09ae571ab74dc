"""Sums over a batch that is divided among devices: each device's own first, then one over the devices."""

from collections.abc import Callable
from functools import partial

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.sharding import PartitionSpec

from samjax.model.kernels import shared_axes


def summed(function: Callable) -> Callable:
    """function(given, batch) -> sums over the batch; where a mesh is known, each device sums up its share of the batch.

    So every sum is sent once, when it is done. Left to the compiler, what is summed in a loop is sent in each round of
    it, and where it finds a better order of two sums, activations are. A batch that the devices cannot share equally is
    left to it.
    """
    def run(given, batch):
        axes = shared_axes(len(jax.tree.leaves(batch)[0]))
        if not axes:
            return function(given, batch)
        places = tuple(range(len(axes)))
        alone = lambda given, batch: jax.tree.map(lambda x: jnp.expand_dims(x, places), function(given, batch))
        parts = jax.shard_map(alone, in_specs=(PartitionSpec(), PartitionSpec(axes)), out_specs=PartitionSpec(*axes),
                              axis_names=set(axes), check_vma=False)(given, batch)
        return jax.tree.map(partial(_over_axes, axes), parts)

    return run


def _over_axes(axes: tuple[str, ...], parts: Array) -> Array:
    """The sum over the leading axes, which lie along the mesh's, the mesh's last axis first.

    One sum over all of them would be sent whole, and cut afterwards where its result is divided along the last axis.
    """
    for i in reversed(range(len(axes))):
        parts = parts.sum(i)
        if i:
            free = [PartitionSpec.UNCONSTRAINED] * (parts.ndim - i)
            parts = lax.with_sharding_constraint(parts, PartitionSpec(*axes[:i], *free))
    return parts
