"""Fused attention for NVIDIA GPUs: `attention_cuda`'s kernels with their derivatives.

Between forward and backward pass the products, the output and one number a query are kept.
"""

from functools import lru_cache, partial

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.ad_checkpoint import checkpoint_name

from samjax.errors import InputError
from samjax.model import attention_cuda as cuda
from samjax.model.attention import ATTENTION
from samjax.model.kernels import divisible, mappable, mapped
from samjax.model.platforms import only_on


def direct(qkv: Array, bias: Array, rel_h: Array, rel_w: Array, heads: int, window: tuple[int, int],
           interpret: bool = False) -> Array:
    """`attend_grid` by the kernels, for windows (h, w). Raises InputError on what they cannot take."""
    b, h, w, width = qkv.shape
    grid = cuda.Grid(h, w, *window, heads, width // 3 // heads)
    refused = cuda.refuses(grid, qkv.dtype)
    if refused:
        raise InputError(f"attention 'triton' cannot take {refused}: choose 'xla'")
    if not interpret:
        qkv = only_on(qkv, ("cuda",), "attention 'triton'")
    each = lambda x, dtype: jnp.broadcast_to(x.astype(dtype), (b, *x.shape))
    return _direct(grid, interpret, qkv, each(bias, jnp.float32), each(rel_h, qkv.dtype), each(rel_w, qkv.dtype))


@partial(jax.custom_vjp, nondiff_argnums=(0, 1))
def _direct(grid, interpret, qkv, bias, rel_h, rel_w):
    return _forward(grid, interpret, qkv, bias, rel_h, rel_w)[0]


def _forward(grid, interpret, qkv, bias, rel_h, rel_w):
    terms = _operation("terms", grid, interpret)(qkv, bias, rel_h, rel_w)
    out, logsum = (checkpoint_name(x, ATTENTION) for x in _operation("forward", grid, interpret)(qkv, bias, *terms))
    return out, (qkv, bias, rel_h, rel_w, out, logsum)


def _backward(grid, interpret, saved, gradient):
    """The terms are computed anew: kept, they would weigh as much as q, k, v and the output together."""
    qkv, bias, rel_h, rel_w, out, logsum = saved
    terms = _operation("terms", grid, interpret)(qkv, bias, rel_h, rel_w)
    c = out.shape[-1]
    wide = gradient.astype(jnp.float32)
    bare = out.astype(jnp.float32) - bias[:, None, None, 2 * c:]
    inner = rearrange(bare * wide, "b y x (k d) -> b y x k d", k=grid.heads).sum(-1)
    dqkv, *dterms = _operation("backward", grid, interpret)(qkv, bias, *terms, gradient, logsum, inner)
    _, pull = jax.vjp(partial(_plain_terms, grid), qkv[..., :c], bias[:, :c], rel_h, rel_w)
    dq, dbias_q, drel_h, drel_w = pull(tuple(dterms))
    dbias_q += dqkv[..., :c].astype(jnp.float32).sum((1, 2))
    dbias = jnp.concatenate([dbias_q, jnp.zeros_like(dbias_q), wide.sum((1, 2))], -1)  # that of the keys cancels out
    return dqkv.at[..., :c].add(dq), dbias, drel_h, drel_w


_direct.defvjp(_forward, _backward)


def _plain_terms(grid, q, bias, rel_h, rel_w):
    """`cuda.terms` in units of 1, for its derivative."""
    q = (q.astype(jnp.float32) + bias[:, None, None]).astype(q.dtype)
    q = rearrange(q, "b y x (k d) -> b y x k d", k=grid.heads)
    precision = lax.Precision.HIGHEST if q.dtype == jnp.float32 else None  # float32 means float32, on GPUs too
    dot = partial(jnp.einsum, precision=precision, preferred_element_type=jnp.float32)
    rows = dot("byxkd,byYd->byxkY", q, rel_h[:, jnp.arange(grid.h) % grid.wh])
    columns = dot("byxkd,bxXd->byxkX", q, rel_w[:, jnp.arange(grid.w) % grid.ww])
    pad = lambda x, n: rearrange(jnp.pad(x, [(0, 0)] * 4 + [(0, n - x.shape[4])]), "b y x k n -> b y x (k n)")
    return pad(rows, grid.terms[0]), pad(columns, grid.terms[1])


@lru_cache
def _operation(name, grid, interpret):
    run = partial(getattr(cuda, name), grid, interpret=interpret)
    return mappable(mapped(divisible(run)))
