"""Fused attention for TPUs: flash attention whose kernels add the decomposed relative positions to a tile of scores.

A term of relative positions depends on the query and on one coordinate of the key. Both are computed outside as
(tokens x h) and (tokens x w) numbers, small beside the scores, and the kernels expand them inside a tile of whole rows
of keys: no dot product grows longer, and what pads a grid to the hardware's tiles is masked by them at no cost.

The kernels, `attention_tpu`, have a forward and a backward pass; between them only the output and one number a query
(log of the sum of exponentials) are kept. This file holds their derivatives. NVIDIA GPUs: see `attention_direct`.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from jax import Array

from samjax.errors import InputError
from samjax.model import attention_tpu
from samjax.model.attention import terms
from samjax.model.kernels import mappable, mapped
from samjax.model.platforms import only_on

INTERPRETED = "interpret_tpu"  # runs anywhere, slowly: for tests


def fused(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array, implementation: str) -> Array:
    """`attend` by "pallas" or INTERPRETED. Raises InputError on what the kernels cannot take."""
    refused = problem(q)
    if refused:
        raise InputError(f"attention {implementation!r} cannot take {refused}: choose 'xla'")
    if implementation != INTERPRETED:
        q = only_on(q, ("tpu",), f"attention {implementation!r}")
    return _fused(q, k, v, rel_h, rel_w, implementation)


def problem(q: Array) -> str | None:
    """What of queries (b, h, w, k, d) the kernels cannot take, in words; None if nothing."""
    if q.dtype not in (jnp.float32, jnp.bfloat16):
        return f"{q.dtype} (only float32 and bfloat16)"
    return attention_tpu.refuses(q.shape, q.dtype.itemsize)


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
    with jax.default_matmul_precision("highest" if q.dtype == jnp.float32 else "default"):
        (scaled, bias_h, bias_w), pull = jax.vjp(terms, q, rel_h, rel_w)
    inner = jnp.sum(out.astype(jnp.float32) * gradient.astype(jnp.float32), -1)
    dq, dk, dv, dbias_h, dbias_w = _operation("backward", implementation)(
        scaled, k, v, bias_h, bias_w, gradient, logsum, inner)
    dq, drel_h, drel_w = pull((dq, dbias_h, dbias_w))
    return dq, dk, dv, drel_h, drel_w


_fused.defvjp(_forward, _backward)


@lru_cache
def _operation(name: str, implementation: str):
    """A pass of the kernels. (TPU's compiler knows no custom partitioning, jax issue 38196: `mapped` has to do.)"""
    return mappable(mapped(partial(getattr(attention_tpu, name), interpret=implementation == INTERPRETED)))
