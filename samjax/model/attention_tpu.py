"""Kernels of fused attention for TPU (Pallas, Mosaic): see `attention_pallas`.

Scores lie transposed, keys x queries: queries fill the lanes, so that the maximum and the sum over keys, the running
numbers of a query and both terms of relative positions are whole vectors, added without a shuffle. A tile is a whole
number of rows of keys. Keys and values of a head stay in fast memory, and the backward pass, which visits the
blocks of queries in turn, adds up their gradients there: one kernel, five products a tile, nothing computed twice.
"""

from math import gcd
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import tpu as pltpu

MASKED = -1e30  # the term of a key that is padding
LANES, SUBLANES = 128, 8
KEYS, QUERIES, QUERIES_BACKWARD = 512, 512, 256  # a tile's at most, where whole rows allow
HEADS = 4  # at most, of a small grid (a window), in one step: it makes up for the step's overhead
MEMORY = 48 * 2**20  # bytes that the arrays of one head may take; a core has 64 to 128 MiB (v4: 16)


class Tiles(NamedTuple):
    """The padded grid (h, w) and head width d, and how many rows of keys a tile holds."""

    h: int
    w: int
    d: int
    rows: int

    @property
    def tokens(self) -> int:
        return self.h * self.w


def tiles_of(h: int, w: int, d: int) -> Tiles:
    w = pl.cdiv(w, SUBLANES) * SUBLANES
    unit = LANES // gcd(w, LANES)  # rows that fill whole lanes
    h = pl.cdiv(h, unit) * unit
    return Tiles(h, w, pl.cdiv(d, 16) * 16, _part(h, unit, KEYS // w))


def _part(total: int, unit: int, most: int) -> int:
    """The largest multiple of the unit that divides the total and is at most `most`; else the unit."""
    return max((r for r in range(unit, most + 1, unit) if total % r == 0), default=unit)


def refuses(shape: tuple[int, ...], itemsize: int) -> str | None:
    """What of queries (b, h, w, k, d) is too much, in words."""
    tiles = tiles_of(*shape[1:3], shape[4])
    held = _held(tiles, itemsize)
    return None if held <= MEMORY else f"a grid of {shape[1]} x {shape[2]} (a TPU's fast memory holds no such head)"


def _held(tiles: Tiles, itemsize: int) -> int:
    """Bytes of one head in the backward pass: keys, values and their gradients, each twice, and some tiles."""
    return tiles.tokens * tiles.d * 4 * (itemsize + 4) + 16 * max(KEYS, tiles.rows * tiles.w) * QUERIES_BACKWARD * 2


def forward(q: Array, k: Array, v: Array, bias_h: Array, bias_w: Array, interpret: bool) -> tuple[Array, Array]:
    """Scaled q, k, v (b, h, w, k, d) and terms (b, h, w, k, h or w) -> output as q, log-sums (b, h, w, k)."""
    tiles = tiles_of(*q.shape[1:3], q.shape[4])
    arrays = _inputs(tiles, q, k, v, bias_h, bias_w)
    queries = lambda dtype, *size: jax.ShapeDtypeStruct((*arrays[0].shape[:2], *size, tiles.tokens), dtype)
    out, logsum = _call(_forward_kernel, tiles, QUERIES, arrays, "qttrq",
                        [queries(q.dtype, tiles.d), queries(jnp.float32, 1)], "qq", interpret)
    return _of_queries(out, tiles, q.shape), _of_queries(logsum, tiles, (*q.shape[:4], 1))[..., 0]


def backward(q: Array, k: Array, v: Array, bias_h: Array, bias_w: Array, gradient: Array, logsum: Array, inner: Array,
             interpret: bool) -> tuple[Array, ...]:
    """Gradients of the five inputs of `forward`, from its output's, its log-sums and output . gradient (b, h, w, k)."""
    tiles = tiles_of(*q.shape[1:3], q.shape[4])
    arrays = (*_inputs(tiles, q, k, v, bias_h, bias_w), _queries(_widened(gradient, tiles.d), tiles),
              _queries(logsum[..., None], tiles), _queries(inner[..., None], tiles))
    shapes = [jax.ShapeDtypeStruct(x.shape, dtype)
              for x, dtype in zip(arrays, (q.dtype, *[jnp.float32] * 4))]
    dq, dk, dv, dbias_h, dbias_w = _call(_backward_kernel, tiles, QUERIES_BACKWARD, arrays, "qttrqqqq", shapes,
                                         "qttrq", interpret)
    dbias_h = rearrange(dbias_h, "b k i r p -> b k (i r) p")
    return (_of_queries(dq, tiles, q.shape), _of_keys(dk, tiles, k.shape).astype(k.dtype),
            _of_keys(dv, tiles, v.shape).astype(v.dtype), _of_queries(dbias_h, tiles, bias_h.shape),
            _of_queries(dbias_w, tiles, bias_w.shape))


# Layouts: queries (b, k, d, tokens), keys (b, k, tiles, d, tokens of a tile).

def _inputs(tiles, q, k, v, bias_h, bias_w):
    q, k, v = (_widened(x, tiles.d) for x in (q, k, v))
    bias_h, bias_w = _widened(bias_h, tiles.h, MASKED), _widened(bias_w, tiles.w, MASKED)
    bias_h = rearrange(_queries(bias_h, tiles), "b k (i r) p -> b k i r p", r=tiles.rows)
    return _queries(q, tiles), _keys(k, tiles), _keys(v, tiles), bias_h, _queries(bias_w, tiles)


def _widened(x, size, value=0.0):
    return jnp.pad(x, [(0, 0)] * (x.ndim - 1) + [(0, size - x.shape[-1])], constant_values=value)


def _grid(x, tiles):
    return jnp.pad(x, [(0, 0), (0, tiles.h - x.shape[1]), (0, tiles.w - x.shape[2]), (0, 0), (0, 0)])


def _queries(x, tiles):
    return rearrange(_grid(x, tiles), "b y x k d -> b k d (y x)")


def _keys(x, tiles):
    return rearrange(_grid(x, tiles), "b (i y) x k d -> b k i d (y x)", y=tiles.rows)


def _of_queries(x, tiles, shape):
    return rearrange(x, "b k d (y x) -> b y x k d", x=tiles.w)[:, :shape[1], :shape[2], :, :shape[4]]


def _of_keys(x, tiles, shape):
    return rearrange(x, "b k i d (y x) -> b (i y) x k d", x=tiles.w)[:, :shape[1], :shape[2], :, :shape[4]]


def _call(kernel, tiles, most, arrays, kinds, out_shape, out_kinds, interpret):
    """The kernel over images, heads and blocks of queries; a kind says which part of an array a step sees."""
    b, k = arrays[0].shape[:2]
    queries = tiles.w * _part(tiles.h, LANES // gcd(tiles.w, LANES), most // tiles.w)
    heads = 1 if tiles.tokens > queries else _part(k, 1, HEADS)

    def spec(x, kind):
        block = (None, heads, *x.shape[2:-1], x.shape[-1] if kind == "t" else queries)
        middle = (0,) * (len(x.shape) - 3)
        return pl.BlockSpec(block, lambda i, j, p: (i, j, *middle, 0 if kind == "t" else p))

    limit = max(16 * 2**20, 2 * _held(tiles, arrays[0].dtype.itemsize) * heads)
    return pl.pallas_call(
        kernel, out_shape, grid=(b, k // heads, tiles.tokens // queries), interpret=interpret,
        in_specs=[spec(x, kind) for x, kind in zip(arrays, kinds)],
        out_specs=[spec(x, kind) for x, kind in zip(out_shape, out_kinds)],
        compiler_params=pltpu.CompilerParams(dimension_semantics=("parallel", "parallel", "arbitrary"),
                                             vmem_limit_bytes=limit))(*arrays)


# Kernels. Of one head: q, o (d, queries); k, v (tiles, d, keys); terms (tiles, rows, queries) and (w, queries).

def _forward_kernel(q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, o_ref, logsum_ref):
    for head in range(q_ref.shape[0]):
        q, bias_w = q_ref[head], bias_w_ref[head]

        def tile(i, carry, head=head, q=q, bias_w=bias_w):
            most, total, out = carry
            scores = _scores(k_ref[head, i], q, bias_h_ref[head, i], bias_w)
            new = jnp.maximum(most, scores.max(0).max(0, keepdims=True))
            weights = jnp.exp(scores - new)
            shrink = jnp.exp(most - new)
            out = out * shrink + _dot(v_ref[head, i], _flat(weights, q.dtype), 1, 0)
            return new, total * shrink + weights.sum(0).sum(0, keepdims=True), out

        row = jnp.zeros((1, q.shape[1]), jnp.float32)
        most, total, out = lax.fori_loop(0, k_ref.shape[1], tile,
                                         (row + MASKED, row, jnp.zeros(q.shape, jnp.float32)))
        o_ref[head] = (out / total).astype(o_ref.dtype)
        logsum_ref[head] = most + jnp.log(total)


def _backward_kernel(q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref,
                     dq_ref, dk_ref, dv_ref, dbias_h_ref, dbias_w_ref):
    @pl.when(pl.program_id(2) == 0)
    def _():
        dk_ref[...] = jnp.zeros(dk_ref.shape, dk_ref.dtype)
        dv_ref[...] = jnp.zeros(dv_ref.shape, dv_ref.dtype)

    for head in range(q_ref.shape[0]):
        q, do, bias_w = q_ref[head], do_ref[head], bias_w_ref[head]
        logsum, inner = logsum_ref[head], inner_ref[head]

        def tile(i, carry, head=head, q=q, do=do, bias_w=bias_w, logsum=logsum, inner=inner):
            dq, dbias_w = carry
            k, v = k_ref[head, i], v_ref[head, i]
            weights = jnp.exp(_scores(k, q, bias_h_ref[head, i], bias_w) - logsum)
            dscores = weights * (_dot(v, do, 0, 0).reshape(weights.shape) - inner)
            flat = _flat(dscores, q.dtype)
            dv_ref[head, i] += _dot(do, _flat(weights, q.dtype), 1, 1)
            dk_ref[head, i] += _dot(q, flat, 1, 1)
            dbias_h_ref[head, i] = dscores.sum(1)
            return dq + _dot(k, flat, 1, 0), dbias_w + dscores.sum(0)

        zeros = jnp.zeros(q.shape, jnp.float32), jnp.zeros(bias_w.shape, jnp.float32)
        dq, dbias_w = lax.fori_loop(0, k_ref.shape[1], tile, zeros)
        dq_ref[head] = dq.astype(dq_ref.dtype)
        dbias_w_ref[head] = dbias_w


def _scores(k, q, bias_h, bias_w):
    """(rows, w, queries) scores of a tile of keys, terms added."""
    scores = _dot(k, q, 0, 0).reshape(bias_h.shape[0], *bias_w.shape)
    return scores + bias_w + bias_h[:, None, :]


def _flat(x, dtype):
    return x.reshape(-1, x.shape[-1]).astype(dtype)


def _dot(a, b, i, j):
    """Contracts axis i of a with axis j of b, in float32; float32 numbers are multiplied exactly."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
