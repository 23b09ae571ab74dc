"""Fused attention: flash attention whose kernels add the decomposed relative positions to a tile of scores.

A term of relative positions depends on the query and on one coordinate of the key. Both are computed outside as
(tokens x h) and (tokens x w) numbers, small beside the scores, and the kernels expand them inside a tile of whole rows
of keys: no dot product grows longer, and what pads a grid to the hardware's tiles is masked by them at no cost.

Kernels: `attention_tpu` (Mosaic) and `attention_gpu` (Triton), chosen when the program is compiled for a platform. Each
has a forward and a backward pass; between them only the output and one number a query (log of the sum of exponentials)
are kept. This file holds what they share: derivatives, `vmap`, and devices that divide the batch.
"""

from functools import lru_cache, partial
from math import prod

import jax
import jax.numpy as jnp
from jax import Array, lax
from jax.custom_batching import custom_vmap
from jax.experimental.custom_partitioning import custom_partitioning
from jax.sharding import AxisType, NamedSharding, PartitionSpec

from samjax.errors import InputError
from samjax.model import attention_gpu, attention_tpu
from samjax.model.attention import terms
from samjax.model.platforms import only_on

# What each implementation runs on each platform. The interpreted ones run anywhere, slowly: for tests.
KERNELS = {
    "pallas": {"tpu": attention_tpu, "cuda": attention_gpu},
    "interpret_tpu": {"default": attention_tpu},
    "interpret_gpu": {"default": attention_gpu},
}


def problem(q: Array, implementation: str) -> str | None:
    """What of queries (b, h, w, k, d) the kernels of an implementation cannot take, in words; None if nothing."""
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{q.dtype} (only float32 and bfloat16)"
    found = (module.refuses(q.shape, q.dtype.itemsize) for module in KERNELS[implementation].values())
    return next(filter(None, found), None)


def fused(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array, implementation: str) -> Array:
    """`attend` by the kernels of an implementation, a key of KERNELS. Raises InputError on what they cannot take."""
    refused = problem(q, implementation)
    if refused:
        raise InputError(f"attention {implementation!r} cannot take {refused}: choose 'xla'")
    if "default" not in KERNELS[implementation]:
        q = only_on(q, tuple(KERNELS[implementation]), f"attention {implementation!r}")
    return _fused(q, k, v, rel_h, rel_w, implementation)


@partial(jax.custom_vjp, nondiff_argnums=(5,))
def _fused(q, k, v, rel_h, rel_w, implementation):
    return _forward(q, k, v, rel_h, rel_w, implementation)[0]


def _forward(q, k, v, rel_h, rel_w, implementation):
    scaled, bias_h, bias_w = terms(q, rel_h, rel_w)
    out, logsum = _operation("forward", implementation)(scaled, k, v, bias_h, bias_w)
    return out, (q, k, v, rel_h, rel_w, out, logsum)


def _backward(implementation, saved, gradient):
    """The terms are computed anew: kept, they would weigh as much as q, k, v and the output together."""
    q, k, v, rel_h, rel_w, out, logsum = saved
    (scaled, bias_h, bias_w), pull = jax.vjp(terms, q, rel_h, rel_w)
    inner = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), -1)
    dq, dk, dv, dbias_h, dbias_w = _operation("backward", implementation)(
        scaled, k, v, bias_h, bias_w, gradient, logsum, inner)
    dq, drel_h, drel_w = pull((dq, dbias_h, dbias_w))
    return dq, dk, dv, drel_h, drel_w


_fused.defvjp(_forward, _backward)


@lru_cache
def _operation(name: str, implementation: str):
    """A pass of the kernels: arrays (b, ...) to arrays (b, ...), under vmap and over devices that divide b."""
    interpret = implementation.startswith("interpret")
    functions = {}
    for platform, module in KERNELS[implementation].items():
        function = partial(getattr(module, name), interpret=interpret)
        # TPU's compiler knows no custom partitioning (jax issue 38196): there `_mapped` has to do, or JAX refuses.
        functions[platform] = function if module is attention_tpu else _divisible(function)
    run = functions.get("default", lambda *arrays: lax.platform_dependent(*arrays, **functions))
    return _mappable(_mapped(run))


def _mappable(function):
    """vmap puts its axis beside the batch, within it: a batch that is divided among devices stays so."""
    mappable = custom_vmap(function)

    @mappable.def_vmap
    def rule(size, mapped, *arrays):
        moved = [x if m else jnp.broadcast_to(x, (size, *x.shape)) for x, m in zip(arrays, mapped)]
        merged = [x.swapaxes(0, 1).reshape(-1, *x.shape[2:]) for x in moved]
        out = mappable(*merged)
        split = jax.tree.map(lambda x: x.reshape(-1, size, *x.shape[1:]).swapaxes(0, 1), out)
        return split, jax.tree.map(lambda _: True, split)

    return mappable


def _mapped(function):
    """Where a mesh is known (`jax.set_mesh`, `parallel.mesh_step`), each of its devices takes its part of the batch."""
    def call(*arrays):
        mesh = jax.sharding.get_abstract_mesh()
        axes = tuple(name for name, kind in zip(mesh.axis_names, mesh.axis_types) if kind == AxisType.Auto)
        devices = prod(mesh.shape[name] for name in axes)
        if devices == 1 or arrays[0].shape[0] % devices:
            return function(*arrays)
        spec = PartitionSpec(axes)
        return jax.shard_map(function, in_specs=spec, out_specs=spec, axis_names=set(axes), check_vma=False)(*arrays)

    return call


def _divisible(function):
    """A function whose arrays may be divided among devices along b, and are gathered along all else.

    Compilers cannot see into a kernel: without this a GPU's would gather the batch on every device.
    """
    divisible = custom_partitioning(lambda *arrays: function(*arrays))  # it takes no keywords, set or not

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

    divisible.def_partition(partition, sharding_rule=rule)
    return divisible
