"""Ready-made flash attention kernels, the relative positions folded into longer dot products.

Beside a query (scaled) stand its terms for all rows and columns of keys; beside a key stand ones at its own row and
column: their dot product is the score. It costs dot products of width d + h + w (192 in SAM's global blocks, 92 in its
windows), and the terms are rounded to the operands' type.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array

from samjax.errors import InputError
from samjax.model.attention import terms
from samjax.model.platforms import only_on

BLOCK, LANES = 512, 128  # of splash attention: a tile at most; tokens are a multiple of the lanes


def folded(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array, implementation: str) -> Array:
    """`attend` by "cudnn", "splash", "interpret_splash" (anywhere, slowly) or "folded" (plain dot products).

    Raises InputError if it cannot run here, or not on such arrays.
    """
    h, w = q.shape[1:3]
    scaled, bias_h, bias_w = terms(q, rel_h, rel_w)
    # The query first: in bfloat16 it is more accurate than the terms first.
    q = jnp.concatenate([scaled, bias_h.astype(q.dtype), bias_w.astype(q.dtype)], -1)
    ones = jnp.broadcast_to(_positions(h, w).astype(k.dtype)[:, :, None], (*k.shape[:4], h + w))
    k = jnp.concatenate([k, ones], -1)
    out = KERNELS[implementation](*(rearrange(x, "b y x k d -> b (y x) k d") for x in (q, k, v)))
    return rearrange(out, "b (y x) k d -> b y x k d", y=h)


def _positions(h: int, w: int) -> np.ndarray:
    """(h, w, h + w): ones at a key's row and at its column."""
    rows = np.broadcast_to(np.eye(h)[:, None], (h, w, h))
    return np.concatenate([rows, np.broadcast_to(np.eye(w), (h, w, w))], -1)


# Kernels: q, k (b, tokens, k, d + h + w) and v (b, tokens, k, d), already scaled.

def _plain(q: Array, k: Array, v: Array) -> Array:
    dot = partial(jnp.einsum, preferred_element_type=jnp.float32)
    weights = jax.nn.softmax(dot("bqkd,bpkd->bkqp", q, k), axis=-1)
    return dot("bkqp,bpkd->bqkd", weights.astype(v.dtype), v).astype(q.dtype)


def _cudnn(q: Array, k: Array, v: Array) -> Array:
    """It wants one width, a multiple of 8, at most 128 (256 from Hopper on), and 16-bit numbers."""
    width = -(-q.shape[-1] // 8) * 8
    wide = (jnp.pad(x, [(0, 0)] * 3 + [(0, width - x.shape[-1])]) for x in (q, k, v))
    try:
        return jax.nn.dot_product_attention(*wide, scale=1.0, implementation="cudnn")[..., :v.shape[-1]]
    except (RuntimeError, NotImplementedError, ValueError) as error:
        raise InputError(f"attention 'cudnn' cannot be used here ({error}): choose 'xla'") from error


def _splash(q: Array, k: Array, v: Array, interpret: bool = False) -> Array:
    """TPU: on one device, or where the devices are mapped over (shard_map, pmap): it cannot be divided by compilers."""
    from jax.experimental.pallas.ops.tpu import splash_attention

    if not interpret:
        q = only_on(q, ("tpu",), "attention 'splash'")
    tokens = q.shape[1]
    padded = -(-tokens // LANES) * LANES
    q, k, v = (jnp.pad(rearrange(x, "b p k d -> b k p d"), [(0, 0), (0, 0), (0, padded - tokens), (0, 0)])
               for x in (q, k, v))
    real = (np.arange(padded) < tokens).astype(np.int32)
    ids = splash_attention.SegmentIds(real, real) if padded > tokens else None
    block = max(size for size in range(LANES, min(BLOCK, padded) + 1, LANES) if padded % size == 0)
    sizes = splash_attention.BlockSizes(block, block, None, block, block, None, block, block)
    mask = splash_attention.MultiHeadMask([splash_attention.FullMask((padded, padded))] * q.shape[1])
    kernel = splash_attention.make_splash_mha(mask, block_sizes=sizes, head_shards=1, q_seq_shards=1,
                                              interpret=interpret)
    out = jax.vmap(partial(kernel, segment_ids=ids))(q, k, v)
    return rearrange(out, "b k p d -> b p k d")[:, :tokens]


KERNELS = {"folded": _plain, "cudnn": _cudnn, "splash": _splash, "interpret_splash": partial(_splash, interpret=True)}
