"""Kernels of fused attention for NVIDIA GPUs (Pallas, Triton): see `attention_pallas`.

A tile of keys is one row of a wide grid, or several rows of a narrow one, padded to a power of two as Triton wants it:
then the columns' term is the same for every tile and stays in registers, and the rows' term is one number a query and
row. The backward pass is two kernels: one for each block of queries (gradients of q and of the terms), one for each
tile of keys (gradients of k and v); each computes the scores anew.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
from einops import rearrange
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

MASKED = -1e30  # the term of a key that is padding
KEYS = 64  # of a tile: one row if it has that many, else several
QUERIES, QUERIES_BACKWARD = 128, 64  # of a block at most
WIDEST = 128  # columns of a grid, and width of a head, at most: a tile stays in registers


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
    w = max(16, pl.next_power_of_2(w))
    rows = max(1, KEYS // w)
    return Tiles(pl.cdiv(h, rows) * rows, w, max(16, pl.next_power_of_2(d)), rows)


def refuses(shape: tuple[int, ...], itemsize: int) -> str | None:
    """What of queries (b, h, w, k, d) is too much, in words."""
    if shape[2] > WIDEST:
        return f"a grid of {shape[2]} columns (a GPU: at most {WIDEST})"
    return f"heads of width {shape[4]} (a GPU: at most {WIDEST})" if shape[4] > WIDEST else None


def forward(q: Array, k: Array, v: Array, bias_h: Array, bias_w: Array, interpret: bool) -> tuple[Array, Array]:
    """Scaled q, k, v (b, h, w, k, d) and terms (b, h, w, k, h or w) -> output as q, log-sums (b, h, w, k)."""
    tiles = tiles_of(*q.shape[1:3], q.shape[4])
    arrays = _inputs(tiles, q, k, v, bias_h, bias_w)
    queries = QUERIES if tiles.tokens % QUERIES == 0 else KEYS
    numbers = jax.ShapeDtypeStruct((q.shape[0], q.shape[3], tiles.tokens), jnp.float32)
    out, logsum = _call(_forward_kernel, tiles, queries, queries, arrays, "bqkd bakd bakd bkaq bqkd",
                        [arrays[0], numbers], "bqkd bkq", interpret)
    return _of_tokens(out, tiles, q.shape), _of_numbers(logsum, tiles, q.shape)


def backward(q: Array, k: Array, v: Array, bias_h: Array, bias_w: Array, gradient: Array, logsum: Array, inner: Array,
             interpret: bool) -> tuple[Array, ...]:
    """Gradients of the five inputs of `forward`, from its output's, its log-sums and output . gradient (b, h, w, k)."""
    tiles = tiles_of(*q.shape[1:3], q.shape[4])
    arrays = (*_inputs(tiles, q, k, v, bias_h, bias_w), _tokens(gradient, tiles, tiles.d), _numbers(logsum, tiles),
              _numbers(inner, tiles))
    dq, dbias_h, dbias_w = _call(
        _queries_kernel, tiles, QUERIES_BACKWARD, QUERIES_BACKWARD, arrays,
        "bqkd bakd bakd bkaq bqkd bqkd bkq bkq", [arrays[0], arrays[3], arrays[4]], "bqkd bkaq bqkd", interpret)
    dk, dv = _call(
        partial(_keys_kernel, QUERIES_BACKWARD), tiles, QUERIES_BACKWARD, tiles.rows * tiles.w, arrays,
        "bakd btkd btkd bkra bakd bakd bka bka", [arrays[1], arrays[2]], "btkd btkd", interpret)
    dbias_h = rearrange(dbias_h, "b k Y p -> b p k Y")
    return (*(_of_tokens(x, tiles, q.shape) for x in (dq, dk, dv)),
            _of_tokens(dbias_h, tiles, bias_h.shape), _of_tokens(dbias_w, tiles, bias_w.shape))


# Layouts: q, k, v and the columns' term (b, tokens, k, d or w); rows' term (b, k, h, tokens); others (b, k, tokens).

def _inputs(tiles, q, k, v, bias_h, bias_w):
    q, k, v = (_tokens(x, tiles, tiles.d) for x in (q, k, v))
    bias_h = rearrange(_tokens(bias_h, tiles, tiles.h, MASKED), "b p k Y -> b k Y p")
    return q, k, v, bias_h, _tokens(bias_w, tiles, tiles.w, MASKED)


def _tokens(x, tiles, size, value=0.0):
    x = jnp.pad(x, [(0, 0)] * 4 + [(0, size - x.shape[4])], constant_values=value)
    x = jnp.pad(x, [(0, 0), (0, tiles.h - x.shape[1]), (0, tiles.w - x.shape[2]), (0, 0), (0, 0)])
    return rearrange(x, "b y x k d -> b (y x) k d")


def _numbers(x, tiles):
    return rearrange(_tokens(x[..., None], tiles, 1), "b p k 1 -> b k p")


def _of_tokens(x, tiles, shape):
    return rearrange(x, "b (y x) k d -> b y x k d", x=tiles.w)[:, :shape[1], :shape[2], :, :shape[4]]


def _of_numbers(x, tiles, shape):
    return rearrange(x, "b k (y x) -> b y x k", x=tiles.w)[:, :shape[1], :shape[2]]


def _call(kernel, tiles, queries, step, arrays, letters, results, result_letters, interpret):
    """The kernel over blocks of `step` tokens, heads and images. Letters say what of each axis a program sees:
    b, k its own image or head; q, t, r its block of queries, tile of keys or rows of that tile; a, d all."""
    sizes = {"q": queries, "t": tiles.rows * tiles.w, "r": tiles.rows}

    def spec(x, letters):
        block = [None if c in "bk" else sizes.get(c, size) for c, size in zip(letters, x.shape)]
        return pl.BlockSpec(block, lambda i, k, b: tuple(
            {"b": b, "k": k, "a": 0, "d": 0}.get(c, i) for c in letters))

    b, _, k, _ = arrays[0].shape
    results = [jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results]
    warps = 8 if queries * tiles.d > 64 * 64 else 4
    return pl.pallas_call(
        kernel, results, grid=(tiles.tokens // step, k, b), interpret=interpret,
        in_specs=[spec(x, c) for x, c in zip(arrays, letters.split())],
        out_specs=[spec(x, c) for x, c in zip(results, result_letters.split())],
        compiler_params=triton.CompilerParams(num_warps=warps, num_stages=2))(*arrays)


# Kernels. Of one head: q, o (queries, d); k, v (keys, d); the rows' term (rows, queries), the columns' (queries, w).

def _forward_kernel(q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, o_ref, logsum_ref):
    q, bias_w = q_ref[...], bias_w_ref[...]
    rows, keys = _rows_and_keys(k_ref, bias_h_ref, bias_w_ref)

    def tile(i, carry):
        most, total, out = carry
        k, v = k_ref[pl.ds(i * keys, keys), :], v_ref[pl.ds(i * keys, keys), :]
        scores = _dot(q, k, 1, 1) + _spread(bias_h_ref[pl.ds(i * rows, rows), :], bias_w)
        new = jnp.maximum(most, scores.max(1))
        weights = jnp.exp(scores - new[:, None])
        shrink = jnp.exp(most - new)
        out = out * shrink[:, None] + _dot(weights.astype(v.dtype), v, 1, 0)
        return new, total * shrink + weights.sum(1), out

    zeros = jnp.zeros(q.shape[:1], jnp.float32)
    most, total, out = lax.fori_loop(0, k_ref.shape[0] // keys, tile,
                                     (zeros + MASKED, zeros, jnp.zeros(q.shape, jnp.float32)))
    o_ref[...] = (out / total[:, None]).astype(o_ref.dtype)
    logsum_ref[...] = most + jnp.log(total)


def _queries_kernel(q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref,
                    dq_ref, dbias_h_ref, dbias_w_ref):
    q, do, bias_w = q_ref[...], do_ref[...], bias_w_ref[...]
    logsum, inner = logsum_ref[...], inner_ref[...]
    rows, keys = _rows_and_keys(k_ref, bias_h_ref, bias_w_ref)

    def tile(i, carry):
        dq, dbias_w = carry
        k, v = k_ref[pl.ds(i * keys, keys), :], v_ref[pl.ds(i * keys, keys), :]
        scores = _dot(q, k, 1, 1) + _spread(bias_h_ref[pl.ds(i * rows, rows), :], bias_w)
        dscores = jnp.exp(scores - logsum[:, None]) * (_dot(do, v, 1, 1) - inner[:, None])
        each = dscores.reshape(q.shape[0], rows, bias_w.shape[1])
        dbias_h_ref[pl.ds(i * rows, rows), :] = each.sum(2).T
        return dq + _dot(dscores.astype(k.dtype), k, 1, 0), dbias_w + each.sum(1)

    dq, dbias_w = lax.fori_loop(0, k_ref.shape[0] // keys, tile,
                                (jnp.zeros(q.shape, jnp.float32), jnp.zeros(bias_w.shape, jnp.float32)))
    dq_ref[...] = dq.astype(dq_ref.dtype)
    dbias_w_ref[...] = dbias_w


def _keys_kernel(queries, q_ref, k_ref, v_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref, dk_ref, dv_ref):
    k, v = k_ref[...], v_ref[...]

    def block(j, carry):
        dk, dv = carry
        here = pl.ds(j * queries, queries)
        q, do = q_ref[here, :], do_ref[here, :]
        scores = _dot(k, q, 1, 1) + _spread_down(bias_h_ref[:, here], bias_w_ref[here, :])
        weights = jnp.exp(scores - logsum_ref[here][None, :])
        dscores = weights * (_dot(v, do, 1, 1) - inner_ref[here][None, :])
        return dk + _dot(dscores.astype(q.dtype), q, 1, 0), dv + _dot(weights.astype(do.dtype), do, 1, 0)

    zeros = jnp.zeros(k.shape, jnp.float32)
    dk, dv = lax.fori_loop(0, q_ref.shape[0] // queries, block, (zeros, zeros))
    dk_ref[...] = dk.astype(dk_ref.dtype)
    dv_ref[...] = dv.astype(dv_ref.dtype)


def _rows_and_keys(k_ref, bias_h_ref, bias_w_ref):
    """Rows and keys of a tile."""
    w = bias_w_ref.shape[1]
    rows = max(1, KEYS // w)
    return rows, rows * w


def _spread(bias_h, bias_w):
    """(rows, queries) and (queries, w) terms added for every key of a tile: (queries, rows w)."""
    (rows, queries), w = bias_h.shape, bias_w.shape[1]
    if rows == 1:
        return bias_w + bias_h.reshape(queries, 1)
    each = jnp.broadcast_to(bias_h.T[:, :, None], (queries, rows, w)) + bias_w[:, None, :]
    return each.reshape(queries, rows * w)


def _spread_down(bias_h, bias_w):
    """The same, keys first: (rows w, queries)."""
    (rows, queries), w = bias_h.shape, bias_w.shape[1]
    if rows == 1:
        return bias_w.T + bias_h
    each = jnp.broadcast_to(bias_h[:, None, :], (rows, w, queries)) + bias_w.T[None, :, :]
    return each.reshape(rows * w, queries)


def _dot(a, b, i, j):
    """Contracts axis i of a with axis j of b, in float32; float32 numbers are multiplied exactly."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)
