"""Attention with SAM's decomposed relative positions, blockwise so that no (tokens x tokens) array is ever held.

The bias of a query at (y, x) for a key at (Y, X) is q . rel_h[y, Y] + q . rel_w[x, X], with the *unscaled* q; the
product q . k is scaled by 1 / sqrt(d). (Official behaviour: `add_decomposed_rel_pos`; Li et al., MViTv2.)
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from einops import rearrange
from jax import Array, lax

ATTENTION = "attention"  # the name, for rematerialisation, of what the backward pass of fused attention needs
BLOCK = 512  # queries a step: the (block x keys) scores of one head stay in a core's cache


def attend(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array, implementation: str = "xla") -> Array:
    """Attention over a grid of tokens with decomposed relative positions.

    Args:
        q, k, v: (b, h, w, k, d) queries, keys and values on a grid, k heads of width d.
        rel_h: (h, h, d) position vectors by query row and key row; rel_w: (w, w, d) the same for columns.
        implementation: a key of IMPLEMENTATIONS.

    Returns:
        (b, h, w, k, d) in q's dtype. Scores and softmax are float32 whatever the dtype.

    Raises ValueError for an unknown implementation, InputError for one that cannot serve these arrays or, when the
    program is compiled, the platform: none stands in for another in silence.
    """
    if implementation not in IMPLEMENTATIONS:
        raise ValueError(f"attention {implementation!r} is none of {', '.join(IMPLEMENTATIONS)}")
    return IMPLEMENTATIONS[implementation](q, k, v, rel_h.astype(q.dtype), rel_w.astype(q.dtype))


def relative_positions(table: Array, size: int) -> Array:
    """(2 * size - 1, d) table of signed offsets -> (size, size, d), entry [query, key]."""
    offsets = np.arange(size)[:, None] - np.arange(size)[None, :] + size - 1  # known when compiling
    return table[offsets]


def terms(q: Array, rel_h: Array, rel_w: Array) -> tuple[Array, Array, Array]:
    """Scaled queries, and their terms for each row (b, h, w, k, h) and column (b, h, w, k, w) of keys, in float32."""
    return q * q.shape[-1] ** -0.5, _dot("byxkd,yYd->byxkY", q, rel_h), _dot("byxkd,xXd->byxkX", q, rel_w)


def _dot(pattern: str, a: Array, b: Array) -> Array:
    """einsum that accumulates and returns float32."""
    return jnp.einsum(pattern, a, b, preferred_element_type=jnp.float32)


def _softmax_times(scores: Array, v: Array, pattern: str) -> Array:
    """softmax(scores) applied to v. Dividing the product, not the weights, saves a pass over the scores."""
    weights = jnp.exp(scores - lax.stop_gradient(scores.max(-1, keepdims=True)))
    return _dot(pattern, weights.astype(v.dtype), v) / weights.sum(-1, keepdims=True)


def _block_scores(q: Array, k: Array, rel_h: Array, rel_w: Array) -> Array:
    """Scores of some rows of queries (b, y, w, d) against all keys (b, h, w, d) of one head: (b, y w, h w)."""
    b, y, w, d = q.shape
    scores = _dot("byxd,bYXd->byxYX", q, k * d**-0.5)
    scores += _dot("byxd,yYd->byxY", q, rel_h)[..., :, None]
    scores += _dot("byxd,xXd->byxX", q, rel_w)[..., None, :]
    return rearrange(scores, "b y x Y X -> b (y x) (Y X)")


def _blockwise(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array) -> Array:
    """A loop over heads, and within it over blocks of query rows.

    The images stay a batch dimension of every step: a loop over flattened (image x head x block) would make a
    data-parallel program gather its activations. Each step is rematerialised in the backward pass.
    """
    h, w = q.shape[1:3]
    rows = max(r for r in range(1, h + 1) if h % r == 0 and (r == 1 or r * w <= BLOCK))

    @jax.checkpoint
    def block(q, k, v, rel_h):  # q (b, y, w, d), rel_h (y, h, d)
        scores = _block_scores(q, k, rel_h, rel_w)
        out = _softmax_times(scores, rearrange(v, "b h w d -> b (h w) d"), "bqp,bpd->bqd")
        return rearrange(out, "b (y x) d -> b y x d", x=w).astype(q.dtype)

    def head(qkv):
        q, k, v = qkv
        if rows == h:
            return block(q, k, v, rel_h)
        q = rearrange(q, "b (i y) w d -> i b y w d", y=rows)
        out = lax.map(lambda x: block(x[0], k, v, x[1]), (q, rearrange(rel_h, "(i y) Y d -> i y Y d", y=rows)))
        return rearrange(out, "i b y w d -> b (i y) w d")

    out = lax.map(head, tuple(rearrange(x, "b h w k d -> k b h w d") for x in (q, k, v)))
    return rearrange(out, "k b h w d -> b h w k d")


def _reference(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array) -> Array:
    """The same in the plainest form."""
    _, h, w, _, d = q.shape
    scores = _dot("byxkd,bYXkd->bkyxYX", q, k) * d**-0.5
    scores += _dot("byxkd,yYd->bkyxY", q, rel_h)[..., :, None]
    scores += _dot("byxkd,xXd->bkyxX", q, rel_w)[..., None, :]
    weights = jax.nn.softmax(rearrange(scores, "b k y x Y X -> b k (y x) (Y X)"), axis=-1)
    out = _dot("bkqp,bpkd->bqkd", weights.astype(v.dtype), rearrange(v, "b h w k d -> b (h w) k d"))
    return rearrange(out, "b (h w) k d -> b h w k d", h=h).astype(q.dtype)


def _fused(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array, implementation: str) -> Array:
    from samjax.model import attention_pallas  # slow to import

    return attention_pallas.fused(q, k, v, rel_h, rel_w, implementation)


def _folded(q: Array, k: Array, v: Array, rel_h: Array, rel_w: Array, implementation: str) -> Array:
    from samjax.model import attention_folded

    return attention_folded.folded(q, k, v, rel_h, rel_w, implementation)


IMPLEMENTATIONS = {
    "xla": _blockwise,  # blockwise, on every platform
    "pallas": partial(_fused, implementation="pallas"),  # kernels of our own: TPU
    "cudnn": partial(_folded, implementation="cudnn"),  # CUDA, bfloat16, relative positions folded in
    "splash": partial(_folded, implementation="splash"),  # TPU, relative positions folded in
    # For tests: plain and quadratic in memory, or the kernels interpreted, slowly, on every platform.
    "reference": _reference,
    "folded": partial(_folded, implementation="folded"),
    "interpret_tpu": partial(_fused, implementation="interpret_tpu"),
    "interpret_splash": partial(_folded, implementation="interpret_splash"),
}
