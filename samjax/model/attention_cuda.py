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

LOG2E = float(np.log2(np.e))
MASKED = -1e30
WIDEST = 128  # columns of a window, and width of a head, at most: a tile stays in registers
LEAST = 16  # of an axis of a tile that is multiplied


class Tuning(NamedTuple):
    """Queries and keys of a tile at most, and how Triton is to run them."""

    queries: int
    keys: int
    warps: int
    stages: int


FEW = 1024  # keys of a window whose tiles are those of small ones
# The quickest on an H200 of those that experiments/attention_tuning.py tries, for few keys and for many.
FORWARD = Tuning(64, 64, 4, 3), Tuning(64, 128, 4, 2)
BACKWARD = Tuning(64, 64, 4, 2)


class Grid(NamedTuple):
    """A grid of h x w tokens in windows of wh x ww; heads of width d."""

    h: int
    w: int
    wh: int
    ww: int
    heads: int
    d: int

    @property
    def columns(self) -> int:
        """Of a tile."""
        return max(LEAST, pl.next_power_of_2(self.ww))

    @property
    def windows(self) -> tuple[int, int]:
        return pl.cdiv(self.h, self.wh), pl.cdiv(self.w, self.ww)

    @property
    def terms(self) -> tuple[int, int]:
        """How many terms a query has for rows and for columns, rounded up."""
        return max(LEAST, pl.next_power_of_2(self.wh)), self.columns

    @property
    def many(self) -> bool:
        return self.wh * self.columns > FEW

    def rows(self, tokens: int) -> int:
        """Of a tile of at most so many tokens."""
        return min(max(1, tokens // self.columns), pl.next_power_of_2(self.wh))

    @property
    def parts(self) -> tuple[tuple[int, int], ...]:
        """A head's width as (first, size), each size a power of two as Triton wants."""
        found, first, left = [], 0, pl.cdiv(self.d, LEAST) * LEAST
        while left:
            size = 1 << (left.bit_length() - 1)
            found.append((first, size))
            first, left = first + size, left - size
        return tuple(found)


class Place(NamedTuple):
    """What a program is for: a tile of a window, the window's row and column, a head."""

    tile: Array
    row: Array
    column: Array
    head: Array


class Tile(NamedTuple):
    """Tokens of some rows of a window: their places (t,), whether they are of the window, and in the grid; a head."""

    y: Array
    x: Array
    real: Array
    inside: Array
    head: Array


def refuses(grid: Grid, shape: tuple[int, ...], dtype) -> str | None:
    """What of products (b, h, w, 3 c) the kernels cannot take, in words; None if nothing."""
    if jnp.dtype(dtype).name not in ("float32", "bfloat16"):
        return f"{jnp.dtype(dtype).name} (only float32 and bfloat16)"
    if grid.ww > WIDEST:
        return f"a window of {grid.ww} columns (at most {WIDEST})"
    if grid.d > WIDEST:
        return f"heads of width {grid.d} (at most {WIDEST})"
    return "so many images at a time" if max(shape[0] * grid.h * grid.w * width for width in (
        shape[3], grid.heads * max(grid.terms))) >= 2**31 else None


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


# Within kernels. A head's vectors are tuples of arrays (tokens, size), one for each part.

def _place(grid, tiles):
    """Of this program. (Loops cannot ask for it.)"""
    i, across = pl.program_id(0), grid.windows[1]
    return Place(i % tiles, i // tiles // across, i // tiles % across, pl.program_id(1))


def _tile(grid, place, first, rows) -> Tile:
    t = lax.broadcasted_iota(jnp.int32, (rows * grid.columns,), 0)
    row, column = first + t // grid.columns, t % grid.columns
    y, x = place.row * grid.wh + row, place.column * grid.ww + column
    real = (row < grid.wh) & (column < grid.ww)
    return Tile(y, x, real, real & (y < grid.h) & (x < grid.w), place.head)


def _columns(grid, which, first, size, head):
    """Of qkv, and which of them are of this head; which: 0, 1, 2 for query, key, value."""
    place = lax.broadcasted_iota(jnp.int32, (size,), 0)
    ok = None if first + size <= grid.d else first + place < grid.d
    return (which * grid.heads + head) * grid.d + first + place, ok


def _mask(inside, ok):
    return inside[:, None] if ok is None else inside[:, None] & ok[None, :]


def _load(grid, ref, tile, which):
    found = []
    for first, size in grid.parts:
        columns, ok = _columns(grid, which, first, size, tile.head)
        found.append(triton.load(ref.at[tile.y[:, None], tile.x[:, None], columns[None, :]],
                                 mask=_mask(tile.inside, ok), other=0.0))
    return tuple(found)


def _store(grid, ref, tile, which, values):
    for (first, size), value in zip(grid.parts, values):
        columns, ok = _columns(grid, which, first, size, tile.head)
        triton.store(ref.at[tile.y[:, None], tile.x[:, None], columns[None, :]], value.astype(ref.dtype),
                     mask=_mask(tile.inside, ok))


def _load_bias(grid, ref, which, head):
    """Of this head's queries (0) or values (2): arrays (1, size), float32."""
    found = []
    for first, size in grid.parts:
        columns, ok = _columns(grid, which, first, size, head)
        x = triton.load(ref.at[columns], mask=ok, other=None if ok is None else 0.0)
        found.append(x.astype(jnp.float32)[None, :])
    return tuple(found)


def _load_queries(grid, ref, bias_ref, tile):
    """With their bias, rounded to what they are multiplied in."""
    return tuple((x.astype(jnp.float32) + bias).astype(x.dtype) for x, bias in zip(
        _load(grid, ref, tile, 0), _load_bias(grid, bias_ref, 0, tile.head)))


def _load_terms(ref, tile, first, count, n, transposed=False):
    """(tokens, count) of the n terms of this head, or (count, tokens)."""
    places = tile.head * n + first + lax.broadcasted_iota(jnp.int32, (count,), 0)
    if transposed:
        return triton.load(ref.at[tile.y[None, :], tile.x[None, :], places[:, None]], mask=tile.inside[None, :],
                           other=0.0)
    return triton.load(ref.at[tile.y[:, None], tile.x[:, None], places[None, :]], mask=tile.inside[:, None], other=0.0)


def _load_number(ref, tile, other=0.0):
    return triton.load(ref.at[tile.y, tile.x, tile.head], mask=tile.inside, other=other)


def _dot(a, b, i, j):
    """Contracts axis i of a with axis j of b, in float32; float32 numbers are multiplied exactly."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def _dots(a, b, i, j):
    return sum((_dot(x, y, i, j) for x, y in zip(a[1:], b[1:])), _dot(a[0], b[0], i, j))


def _add_each(total, a, b, i, j):
    return tuple(t + _dot(a, x, i, j) for t, x in zip(total, b))


def _zeros(grid, tokens):
    return tuple(jnp.zeros((tokens, size), jnp.float32) for _, size in grid.parts)


def _with_bias(vectors, bias):
    """Each vector's product with the bias: (tokens,)."""
    return sum((x.astype(jnp.float32) * y).sum(1) for x, y in zip(vectors, bias))


def _spread(rows, columns):
    """(queries, rows) and (queries, columns) terms added for every key of a tile: (queries, rows columns)."""
    (queries, r), c = rows.shape, columns.shape[1]
    if r == 1:
        return columns + rows
    return (jnp.broadcast_to(rows[:, :, None], (queries, r, c)) + columns[:, None, :]).reshape(queries, r * c)


def _spread_down(rows, columns):
    """The same, keys first."""
    (r, queries), c = rows.shape, columns.shape[0]
    if r == 1:
        return columns + rows
    return (jnp.broadcast_to(rows[:, None, :], (r, c, queries)) + columns[None, :, :]).reshape(r * c, queries)


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
    q = _load_queries(grid, qkv_ref, bias_ref, Tile(y, x, inside, inside, head))
    rel, places = [], lax.broadcasted_iota(jnp.int32, (n,), 0)
    for first, size in grid.parts:
        columns = first + lax.broadcasted_iota(jnp.int32, (size,), 0)
        mask = None if first + size <= grid.d else jnp.broadcast_to((columns < grid.d)[None, :], (n, size))
        rel.append(triton.load(rel_ref.at[line, places[:, None], columns[None, :]], mask=mask,
                               other=None if mask is None else 0.0))
    columns = head * n + places
    triton.store(out_ref.at[y[:, None], x[:, None], columns[None, :]], LOG2E * _dots(q, rel, 1, 1),
                 mask=jnp.broadcast_to(inside[:, None], (len(y), n)))


def _forward_kernel(grid, tile_rows, qkv_ref, bias_ref, bias_h_ref, bias_w_ref, o_ref, logsum_ref):
    query_rows, rows = tile_rows
    place = _place(grid, pl.cdiv(grid.wh, query_rows))
    here = _tile(grid, place, place.tile * query_rows, query_rows)
    q = _load_queries(grid, qkv_ref, bias_ref, here)
    bias_w = _load_terms(bias_w_ref, here, 0, grid.columns, grid.columns)
    scale = grid.d**-0.5 * LOG2E

    def tile(i, carry):
        most, total, out = carry
        keys = _tile(grid, place, i * rows, rows)
        k, v = _load(grid, qkv_ref, keys, 1), _load(grid, qkv_ref, keys, 2)
        scores = scale * _dots(q, k, 1, 1)
        scores += _spread(_load_terms(bias_h_ref, here, i * rows, rows, grid.terms[0]), bias_w)
        scores = _without_padding(grid, rows, keys, scores, 0)
        new = jnp.maximum(most, scores.max(1))
        weights, shrink = jnp.exp2(scores - new[:, None]), jnp.exp2(most - new)
        out = _add_each(tuple(x * shrink[:, None] for x in out), weights.astype(v[0].dtype), v, 1, 0)
        return new, total * shrink + weights.sum(1), out

    tokens = query_rows * grid.columns
    zeros = jnp.zeros((tokens,), jnp.float32)
    most, total, out = lax.fori_loop(0, pl.cdiv(grid.wh, rows), tile, (zeros + MASKED, zeros, _zeros(grid, tokens)))
    bias = _load_bias(grid, bias_ref, 2, place.head)
    _store(grid, o_ref, here, 0, tuple(x / total[:, None] + y for x, y in zip(out, bias)))
    triton.store(logsum_ref.at[here.y, here.x, place.head], most + jnp.log2(total), mask=here.inside)


def _without_padding(grid, rows, keys, scores, axis):
    """Scores with those of a tile's padding masked; keys along axis 1 - axis."""
    if grid.columns == grid.ww and grid.wh % rows == 0:
        return scores
    real = keys.real[None, :] if axis == 0 else keys.real[:, None]
    return jnp.where(real, scores, MASKED)


def _queries_kernel(grid, tile_rows, qkv_ref, bias_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref,
                    dqkv_ref, dbias_h_ref, dbias_w_ref):
    query_rows, rows = tile_rows
    place = _place(grid, pl.cdiv(grid.wh, query_rows))
    here = _tile(grid, place, place.tile * query_rows, query_rows)
    q, do = _load_queries(grid, qkv_ref, bias_ref, here), _load(grid, do_ref, here, 0)
    bias_w = _load_terms(bias_w_ref, here, 0, grid.columns, grid.columns)
    logsum, inner = _load_number(logsum_ref, here), _load_number(inner_ref, here)
    scale = grid.d**-0.5

    def tile(i, carry):
        dq, dbias_w = carry
        keys = _tile(grid, place, i * rows, rows)
        k, v = _load(grid, qkv_ref, keys, 1), _load(grid, qkv_ref, keys, 2)
        scores = scale * LOG2E * _dots(q, k, 1, 1)
        scores += _spread(_load_terms(bias_h_ref, here, i * rows, rows, grid.terms[0]), bias_w)
        scores = _without_padding(grid, rows, keys, scores, 0)
        dscores = jnp.exp2(scores - logsum[:, None]) * (_dots(do, v, 1, 1) - inner[:, None])
        if rows == 1:
            dbias_h, dbias_w = dscores.sum(1)[:, None], dbias_w + dscores
        else:
            each = dscores.reshape(-1, rows, grid.columns)
            dbias_h, dbias_w = each.sum(2), dbias_w + each.sum(1)
        _store_terms(dbias_h_ref, here, i * rows, dbias_h, grid.terms[0])
        return _add_each(dq, dscores.astype(k[0].dtype), k, 1, 0), dbias_w

    tokens = query_rows * grid.columns
    dq, dbias_w = lax.fori_loop(0, pl.cdiv(grid.wh, rows), tile,
                                (_zeros(grid, tokens), jnp.zeros((tokens, grid.columns), jnp.float32)))
    _store(grid, dqkv_ref, here, 0, tuple(scale * x for x in dq))
    _store_terms(dbias_w_ref, here, 0, dbias_w, grid.columns)


def _store_terms(ref, tile, first, values, n):
    places = tile.head * n + first + lax.broadcasted_iota(jnp.int32, (values.shape[1],), 0)
    triton.store(ref.at[tile.y[:, None], tile.x[:, None], places[None, :]], values,
                 mask=jnp.broadcast_to(tile.inside[:, None], values.shape))


def _keys_kernel(grid, tile_rows, qkv_ref, bias_ref, bias_h_ref, bias_w_ref, do_ref, logsum_ref, inner_ref, _,
                 dqkv_ref):
    """The queries' bias is added by hand: they are loaded in the loop."""
    query_rows, rows = tile_rows
    place = _place(grid, pl.cdiv(grid.wh, rows))
    here = _tile(grid, place, place.tile * rows, rows)
    k, v = _load(grid, qkv_ref, here, 1), _load(grid, qkv_ref, here, 2)
    bias, scale = _load_bias(grid, bias_ref, 0, place.head), grid.d**-0.5
    of_bias = scale * LOG2E * _with_bias(k, bias)

    def block(j, carry):
        dk, dv, total = carry
        queries = _tile(grid, place, j * query_rows, query_rows)
        q, do = _load(grid, qkv_ref, queries, 0), _load(grid, do_ref, queries, 0)
        logsum, inner = _load_number(logsum_ref, queries, -MASKED), _load_number(inner_ref, queries)
        scores = scale * LOG2E * _dots(k, q, 1, 1) + of_bias[:, None]
        scores += _spread_down(_load_terms(bias_h_ref, queries, place.tile * rows, rows, grid.terms[0], True),
                               _load_terms(bias_w_ref, queries, 0, grid.columns, grid.columns, True))
        scores = _without_padding(grid, rows, here, scores, 1)
        weights = jnp.exp2(scores - logsum[None, :])
        dscores = weights * (_dots(v, do, 1, 1) - inner[None, :])
        return (_add_each(dk, dscores.astype(q[0].dtype), q, 1, 0),
                _add_each(dv, weights.astype(do[0].dtype), do, 1, 0), total + dscores.sum(1))

    tokens = rows * grid.columns
    dk, dv, total = lax.fori_loop(0, pl.cdiv(grid.wh, query_rows), block, (
        _zeros(grid, tokens), _zeros(grid, tokens), jnp.zeros((tokens,), jnp.float32)))
    _store(grid, dqkv_ref, here, 1, tuple(scale * (x + total[:, None] * y) for x, y in zip(dk, bias)))
    _store(grid, dqkv_ref, here, 2, dv)
