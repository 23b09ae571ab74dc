"""Kernels, which compilers cannot look into, under `vmap` and over devices: functions of arrays (b, ...) to such."""

from math import prod

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec


def mappable(function):
    """vmap puts its axis beside the batch, within it: a batch that is divided among devices stays so."""
    run = custom_vmap(function)

    @run.def_vmap
    def rule(size, batched, *arrays):
        moved = [x if m else jnp.broadcast_to(x, (size, *x.shape)) for x, m in zip(arrays, batched)]
        merged = [x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in moved]
        out = run(*merged)
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]).swapaxes(0, 1), out)
        return split, jax.tree.map(lambda _: True, split)

    return run


def shared_axes(rows: int) -> tuple[str, ...]:
    """The axes of the mesh that is known (`jax.set_mesh`, `parallel.mesh_step`), if its devices can share so many rows
    equally; () where they cannot, where there is one device or no mesh, or where every device has its own program
    (pmap, shard_map)."""
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto)
    devices = prod(mesh.shape[name] for name in axes)
    return axes if devices > 1 and rows % devices == 0 else ()


def mapped(function):
    """Where a mesh is known, each of its devices takes its part of the batch."""
    def call(*arrays):
        axes = shared_axes(arrays[0].shape[0])
        if not axes:
            return function(*arrays)
        spec = PartitionSpec(axes)
        return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=set(axes), check_vma=False)(*arrays)

    return call


def divisible(function):
    """A function whose arrays may be divided among devices along b, and are gathered along all else.

    Compilers cannot see into a kernel: without this a GPU's would gather the batch on every device.
    """
    run = custom_partitioning(lambda *arrays: function(*arrays))  # it takes no keywords, set or not

    def partition(mesh, arguments, results):
        spec = arguments[0].sharding.spec
        sharding = NamedSharding(mesh, PartitionSpec(*spec[:1]))
        alike = lambda tree: jax.tree.map(lambda _: sharding, tree)
        return mesh, function, alike(results), alike(tuple(arguments))

    def rule(mesh, arguments, results):
        names = [[f"a{i}x{j}" for j in range(1, len(x.shape))] for i, x in enumerate([*arguments, *results])]
        sides = [" ".join(["b", *name]) for name in names]
        n = len(arguments)
        return (f"{', '.join(sides[:n])} -> {', '.join(sides[n:])}",
                {"need_replication_factors": tuple(sum(names, []))})

    run.def_partition(partition, sharding_rule=rule)
    return run
