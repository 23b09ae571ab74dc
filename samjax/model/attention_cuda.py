"""Kernels of fused attention for NVIDIA GPUs (Pallas, Triton) that read and write the grid as the linear maps have it.

Queries, keys and values stay side by side, (b, h, w, 3 c), and windows are only a way of counting: nothing is cut into
windows, padded or transposed in memory, which would take longer than the attention itself. A program takes a tile of
queries, whole rows of a window whose width is rounded up to a power of two, and goes through the window's keys in such
tiles.

The kernels take the bare products of the projection and its bias beside them, which spares a pass over memory: the
bias of the keys adds the same number to all scores of a query, so that it does not matter; that of the values is added
to the output, since weights sum up to 1. What of a window lies beyond the grid is, without the bias, zero.

The relative positions' terms are numbers of a query for each row and column of keys, computed beforehand. All scores
and terms are in units of log 2: a GPU knows powers of two. The backward pass is two kernels, one for tiles of queries,
one for tiles of keys; each computes the scores anew.
"""

from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

from samjax.model.cuda_tiles import (
    LEAST,
    LOG2E,
    MASKED,
    Grid,
    Tile,
    add_each,
    dots,
    load,
    load_bias,
    load_number,
    load_queries,
    load_terms,
    no_vectors,
    place_of,
    spread,
    spread_down,
    store,
    store_terms,
    tile_of,
    with_bias,
    without_padding,
)

WIDEST = 128  # columns of a window, and width of a head, at most: a tile stays in registers


class Tuning(NamedTuple):
    """Queries and keys of a tile at most, and how Triton is to run them."""

    queries: int
    keys: int
    warps: int
    stages: int


# Of those that experiments/attention_tuning.py tries on an H200 the quickest for few keys and for many; in the backward
# pass, whose tiles are the same for all, the keys' kernel of a whole grid would gain 3 % by wider ones.
FORWARD = Tuning(64, 64, 4, 3), Tuning(64, 128, 4, 2)
BACKWARD = Tuning(64, 64, 4, 2)


def refuses(grid: Grid, dtype) -> str | None:
    """What of a grid and a dtype the kernels cannot take, in words; None if nothing."""
    if jnp.dtype(dtype).name not in ("float32", "bfloat16"):
        return f"{jnp.dtype(dtype).name} (only float32 and bfloat16)"
    if grid.ww > WIDEST:
        return f"a window of {grid.ww} columns (at most {WIDEST})"
    return f"heads of width {grid.d} (at most {WIDEST})" if grid.d > WIDEST else None


def terms(grid: Grid, qkv: Array, bias: Array, rel_h: Array, rel_w: Array,
          interpret: bool = False) -> tuple[Array, Array]:
    """Terms of each query for the rows and the columns of keys, (b, h, w, heads n) float32 for n of `Grid.terms`.

    qkv: (b, h, w, 3 c) products; bias: (b, 3 c). rel_h: (b, wh, wh, d) vectors by query row and key row; rel_w: (b, ww,
    ww, d).
    """
    found = []
    for kernel, rel, n, lines in ((_row_terms_kernel, rel_h, grid.terms[0], grid.h),
                                  (_column_terms_kernel, rel_w, grid.terms[1], grid.w)):
        rel = jnp.pad(rel, ((0, 0), (0, 0), (0, n - rel.shape[2]), (0, 0)))
        out = jax.ShapeDtypeStruct((*qkv.shape[:3], grid.heads * n), jnp.float32)
        found.append(_call(partial(kernel, grid), (lines,), grid, (qkv, bias, rel), [out], Tuning(0, 0, 4, 2),
                           interpret)[0])
    return tuple(found)


def forward(grid: Grid, qkv: Array, bias: Array, bias_h: Array, bias_w: Array, interpret: bool = False,
            tuning: Tuning | None = None) -> tuple[Array, Array]:
    """Output (b, h, w, c) like qkv (b, h, w, 3 c), and log-sums (b, h, w, heads)."""
    tuning = tuning or FORWARD[grid.many]
    rows = grid.rows(tuning.queries), grid.rows(tuning.keys)
    tiles = pl.cdiv(grid.wh, rows[0])
    outs = [jax.ShapeDtypeStruct((*qkv.shape[:3], qkv.shape[3] // 3), qkv.dtype),
            jax.ShapeDtypeStruct((*qkv.shape[:3], grid.heads), jnp.float32)]
    return tuple(_call(partial(_forward_kernel, grid, rows), (tiles, *grid.windows), grid, (qkv, bias, bias_h, bias_w),
                       outs, tuning, interpret))


def backward(grid: Grid, qkv: Array, bias: Array, bias_h: Array, bias_w: Array, gradient: Array, logsum: Array,
             inner: Array, interpret: bool = False,
             tunings: tuple[Tuning, Tuning] = (BACKWARD, BACKWARD)) -> tuple[Array, ...]:
    """Gradients of qkv and of both terms (in units of 1), from the output's (b, h, w, c), the log-sums, and the product
    of the output without its bias and its gradient (b, h, w, heads)."""
    arrays = (qkv, bias, bias_h, bias_w, gradient, logsum, inner)
    rows = grid.rows(tunings[0].queries), grid.rows(tunings[0].keys)
    like = lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype)
    dqkv, dbias_h, dbias_w = _call(
        partial(_queries_kernel, grid, rows), (pl.cdiv(grid.wh, rows[0]), *grid.windows), grid, arrays,
        [like(qkv), like(bias_h), like(bias_w)], tunings[0], interpret)
    rows = grid.rows(tunings[1].queries), grid.rows(tunings[1].keys)
    dqkv, = _call(partial(_keys_kernel, grid, rows), (pl.cdiv(grid.wh, rows[1]), *grid.windows), grid, (*arrays, dqkv),
                  [like(qkv)], tunings[1], interpret, {len(arrays): 0})
    return dqkv, dbias_h, dbias_w


def _call(kernel, programs, grid, arrays, results, tuning, interpret, aliases=None):
    """The kernel for each of `programs`, head and image; every array but its image's axis is seen whole."""
    def spec(x):
        return pl.BlockSpec((None, *x.shape[1:]), lambda i, k, b: (b, *[0] * (len(x.shape) - 1)))

    return pl.pallas_call(
        kernel, results, grid=(int(np.prod(programs)), grid.heads, arrays[0].shape[0]), interpret=interpret,
        in_specs=[spec(x) for x in arrays], out_specs=[spec(x) for x in results], input_output_aliases=aliases or {},
        compiler_params=triton.CompilerParams(num_warps=tuning.warps, num_stages=tuning.stages))(*arrays)


# Kernels.

def _row_terms_kernel(grid, qkv_ref, bias_ref, rel_ref, out_ref):
    """Of one row of queries."""
    y = pl.program_id(0)
    x = lax.broadcasted_iota(jnp.int32, (max(LEAST, pl.next_power_of_2(grid.w)),), 0)
    _line_terms(grid, qkv_ref, bias_ref, rel_ref, out_ref, y + 0 * x, x, x < grid.w, y % grid.wh)


def _column_terms_kernel(grid, qkv_ref, bias_ref, rel_ref, out_ref):
    x = pl.program_id(0)
    y = lax.broadcasted_iota(jnp.int32, (max(LEAST, pl.next_power_of_2(grid.h)),), 0)
    _line_terms(grid, qkv_ref, bias_ref, rel_ref, out_ref, y, x + 0 * y, y < grid.h, x % grid.ww)


def _line_terms(grid, qkv_ref, bias_ref, rel_ref, out_ref, y, x, inside, line):
    head, n = pl.program_id(1), rel_ref.shape[1]
    q = load_queries(grid, qkv_ref, bias_ref, Tile(y, x, inside, inside, head))
    rel, places = [], lax.broadcasted_iota(jnp.int32, (n,), 0)
    for first, size in grid.parts:
        columns = first + lax.broadcasted_iota(jnp.int32, (size,), 0)
        mask = None if first + size <= grid.d else jnp.broadcast_to((columns < grid.d)[None, :], (n, size))
        rel.append(triton.load(rel_ref.at[line, places[:, None], columns[None, :]], mask=mask,
                               other=None if mask is None else 0.0))
    columns = head * n + places
    triton.store(out_ref.at[y[:, None], x[:, None], columns[None, :]], LOG2E * dots(q, rel, 1, 1),
                 mask=jnp.broadcast_to(inside[:, None], (len(y), n)))


def _forward_kernel(grid, tile_rows, qkv_ref, bias_ref, bias_h_ref, bias_w_ref, o_ref, logsum_ref):
    query_rows, rows = tile_rows
    place = place_of(grid, pl.cdiv(grid.wh, query_rows))
    here = tile_of(grid, place, place.tile * query_rows, query_rows)
    q = load_queries(grid, qkv_ref, bias_ref, here)
    bias_w = load_terms(bias_w_ref, here, 0, grid.columns, grid.columns)
    scale = grid.d**-0.5 * LOG2E

    def tile(i, carry):
        most, total, out = carry
        keys = tile_of(grid, place, i * rows, rows)
        k, v = load(grid, qkv_ref, keys, 1), load(grid, qkv_ref, keys, 2)
        scores = scale * dots(q, k, 1, 1)
        scores += spread(load_terms(bias_h_ref, here, i * rows, rows, grid.terms[0]), bias_w)
        scores = without_padding(grid, rows, keys, scores, 0)
        new = jnp.maximum(most, scores.max(1))
        weights, shrink = jnp.exp2(scores - new[:, None]), jnp.exp2(most - new)
        out = add_each(tuple(x * shrink[:, None] for x in out), weights.astype(v[0].dtype), v, 1, 0)
        return new, total * shrink + weights.sum(1), out

    tokens = query_rows * grid.columns
    zeros = jnp.zeros((tokens,), jnp.float32)
    most, total, out = lax.fori_loop(0, pl.cdiv(grid.wh, rows), tile, (zeros + MASKED, zeros, no_vectors(grid, tokens)))
    bias = load_bias(grid, bias_ref, 2, place.head)
    store(grid, o_ref, here, 0, tuple(x / total[:, None] + y for x, y in zip(out, bias)))
    triton.store(logsum_ref.at[here.y, here.x, place.head], most + jnp.log2(total), mask=here.inside)


def _queries_kernel(grid, tile_rows, qkv_ref, bias_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref,
                    dqkv_ref, dbias_h_ref, dbias_w_ref):
    query_rows, rows = tile_rows
    place = place_of(grid, pl.cdiv(grid.wh, query_rows))
    here = tile_of(grid, place, place.tile * query_rows, query_rows)
    q, do = load_queries(grid, qkv_ref, bias_ref, here), load(grid, do_ref, here, 0)
    bias_w = load_terms(bias_w_ref, here, 0, grid.columns, grid.columns)
    logsum, inner = load_number(logsum_ref, here), load_number(inner_ref, here)
    scale = grid.d**-0.5

    def tile(i, carry):
        dq, dbias_w = carry
        keys = tile_of(grid, place, i * rows, rows)
        k, v = load(grid, qkv_ref, keys, 1), load(grid, qkv_ref, keys, 2)
        scores = scale * LOG2E * dots(q, k, 1, 1)
        scores += spread(load_terms(bias_h_ref, here, i * rows, rows, grid.terms[0]), bias_w)
        scores = without_padding(grid, rows, keys, scores, 0)
        dscores = jnp.exp2(scores - logsum[:, None]) * (dots(do, v, 1, 1) - inner[:, None])
        if rows == 1:
            dbias_h, dbias_w = dscores.sum(1)[:, None], dbias_w + dscores
        else:
            each = dscores.reshape(-1, rows, grid.columns)
            dbias_h, dbias_w = each.sum(2), dbias_w + each.sum(1)
        store_terms(dbias_h_ref, here, i * rows, dbias_h, grid.terms[0])
        return add_each(dq, dscores.astype(k[0].dtype), k, 1, 0), dbias_w

    tokens = query_rows * grid.columns
    dq, dbias_w = lax.fori_loop(0, pl.cdiv(grid.wh, rows), tile,
                                (no_vectors(grid, tokens), jnp.zeros((tokens, grid.columns), jnp.float32)))
    store(grid, dqkv_ref, here, 0, tuple(scale * x for x in dq))
    store_terms(dbias_w_ref, here, 0, dbias_w, grid.columns)


def _keys_kernel(grid, tile_rows, qkv_ref, bias_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref, _,
                 dqkv_ref):
    """The queries' bias is added by hand: they are loaded in the loop."""
    query_rows, rows = tile_rows
    place = place_of(grid, pl.cdiv(grid.wh, rows))
    here = tile_of(grid, place, place.tile * rows, rows)
    k, v = load(grid, qkv_ref, here, 1), load(grid, qkv_ref, here, 2)
    bias, scale = load_bias(grid, bias_ref, 0, place.head), grid.d**-0.5
    of_bias = scale * LOG2E * with_bias(k, bias)

    def block(j, carry):
        dk, dv, total = carry
        queries = tile_of(grid, place, j * query_rows, query_rows)
        q, do = load(grid, qkv_ref, queries, 0), load(grid, do_ref, queries, 0)
        logsum, inner = load_number(logsum_ref, queries, -MASKED), load_number(inner_ref, queries)
        scores = scale * LOG2E * dots(k, q, 1, 1) + of_bias[:, None]
        scores += spread_down(load_terms(bias_h_ref, queries, place.tile * rows, rows, grid.terms[0], True),
                               load_terms(bias_w_ref, queries, 0, grid.columns, grid.columns, True))
        scores = without_padding(grid, rows, here, scores, 1)
        weights = jnp.exp2(scores - logsum[None, :])
        dscores = weights * (dots(v, do, 1, 1) - inner[None, :])
        return (add_each(dk, dscores.astype(q[0].dtype), q, 1, 0),
                add_each(dv, weights.astype(do[0].dtype), do, 1, 0), total + dscores.sum(1))

    tokens = rows * grid.columns
    dk, dv, total = lax.fori_loop(0, pl.cdiv(grid.wh, query_rows), block, (
        no_vectors(grid, tokens), no_vectors(grid, tokens), jnp.zeros((tokens,), jnp.float32)))
    store(grid, dqkv_ref, here, 1, tuple(scale * (x + total[:, None] * y) for x, y in zip(dk, bias)))
    store(grid, dqkv_ref, here, 2, dv)
