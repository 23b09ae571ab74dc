"""What the kernels of `attention_cuda` are made of: grids in windows, tiles of tokens, how they are loaded and stored.

Within a kernel a head's vectors are tuples of arrays (tokens, size), one for each of `Grid.parts`.
"""

from typing import NamedTuple

import jax.numpy as jnp
import numpy as np
from jax import Array, lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton

LOG2E = float(np.log2(np.e))
MASKED = -1e30
LEAST = 16  # of an axis of a tile that is multiplied
FEW = 1024  # keys of a window whose tiles are those of small ones


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


def place_of(grid, tiles):
    """Of this program. (Loops cannot ask for it.)"""
    i, across = pl.program_id(0), grid.windows[1]
    return Place(i % tiles, i // tiles // across, i // tiles % across, pl.program_id(1))


def tile_of(grid, place, first, rows) -> Tile:
    t = lax.broadcasted_iota(jnp.int32, (rows * grid.columns,), 0)
    row, column = first + t // grid.columns, t % grid.columns
    y, x = place.row * grid.wh + row, place.column * grid.ww + column
    real = (row < grid.wh) & (column < grid.ww)
    return Tile(y, x, real, real & (y < grid.h) & (x < grid.w), place.head)


def columns_of(grid, which, first, size, head):
    """Of qkv, and which of them are of this head; which: 0, 1, 2 for query, key, value."""
    place = lax.broadcasted_iota(jnp.int32, (size,), 0)
    ok = None if first + size <= grid.d else first + place < grid.d
    return (which * grid.heads + head) * grid.d + first + place, ok


def mask_of(inside, ok):
    return inside[:, None] if ok is None else inside[:, None] & ok[None, :]


def load(grid, ref, tile, which):
    found = []
    for first, size in grid.parts:
        columns, ok = columns_of(grid, which, first, size, tile.head)
        found.append(triton.load(ref.at[tile.y[:, None], tile.x[:, None], columns[None, :]],
                                 mask=mask_of(tile.inside, ok), other=0.0))
    return tuple(found)


def store(grid, ref, tile, which, values):
    for (first, size), value in zip(grid.parts, values):
        columns, ok = columns_of(grid, which, first, size, tile.head)
        triton.store(ref.at[tile.y[:, None], tile.x[:, None], columns[None, :]], value.astype(ref.dtype),
                     mask=mask_of(tile.inside, ok))


def load_bias(grid, ref, which, head):
    """Of this head's queries (0) or values (2): arrays (1, size), float32."""
    found = []
    for first, size in grid.parts:
        columns, ok = columns_of(grid, which, first, size, head)
        x = triton.load(ref.at[columns], mask=ok, other=None if ok is None else 0.0)
        found.append(x.astype(jnp.float32)[None, :])
    return tuple(found)


def load_queries(grid, ref, bias_ref, tile):
    """With their bias, rounded to what they are multiplied in."""
    return tuple((x.astype(jnp.float32) + bias).astype(x.dtype) for x, bias in zip(
        load(grid, ref, tile, 0), load_bias(grid, bias_ref, 0, tile.head)))


def load_terms(ref, tile, first, count, n, transposed=False):
    """(tokens, count) of the n terms of this head, or (count, tokens)."""
    places = tile.head * n + first + lax.broadcasted_iota(jnp.int32, (count,), 0)
    if transposed:
        return triton.load(ref.at[tile.y[None, :], tile.x[None, :], places[:, None]], mask=tile.inside[None, :],
                           other=0.0)
    return triton.load(ref.at[tile.y[:, None], tile.x[:, None], places[None, :]], mask=tile.inside[:, None], other=0.0)


def load_number(ref, tile, other=0.0):
    return triton.load(ref.at[tile.y, tile.x, tile.head], mask=tile.inside, other=other)


def dot(a, b, i, j):
    """Contracts axis i of a with axis j of b, in float32; float32 numbers are multiplied exactly."""
    precision = lax.Precision.HIGHEST if a.dtype == jnp.float32 else None
    return lax.dot_general(a, b, (((i,), (j,)), ((), ())), precision=precision, preferred_element_type=jnp.float32)


def dots(a, b, i, j):
    return sum((dot(x, y, i, j) for x, y in zip(a[1:], b[1:])), dot(a[0], b[0], i, j))


def add_each(total, a, b, i, j):
    return tuple(t + dot(a, x, i, j) for t, x in zip(total, b))


def no_vectors(grid, tokens):
    return tuple(jnp.zeros((tokens, size), jnp.float32) for _, size in grid.parts)


def with_bias(vectors, bias):
    """Each vector's product with the bias: (tokens,)."""
    return sum((x.astype(jnp.float32) * y).sum(1) for x, y in zip(vectors, bias))


def spread(rows, columns):
    """(queries, rows) and (queries, columns) terms added for every key of a tile: (queries, rows columns)."""
    (queries, r), c = rows.shape, columns.shape[1]
    if r == 1:
        return columns + rows
    return (jnp.broadcast_to(rows[:, :, None], (queries, r, c)) + columns[:, None, :]).reshape(queries, r * c)


def spread_down(rows, columns):
    """The same, keys first."""
    (r, queries), c = rows.shape, columns.shape[0]
    if r == 1:
        return columns + rows
    return (jnp.broadcast_to(rows[:, None, :], (r, c, queries)) + columns[None, :, :]).reshape(r * c, queries)


def store_terms(ref, tile, first, values, n):
    places = tile.head * n + first + lax.broadcasted_iota(jnp.int32, (values.shape[1],), 0)
    triton.store(ref.at[tile.y[:, None], tile.x[:, None], places[None, :]], values,
                 mask=jnp.broadcast_to(tile.inside[:, None], values.shape))


def without_padding(grid, rows, keys, scores, axis):
    """Scores with those of a tile's padding masked; keys along axis 1 - axis."""
    if grid.columns == grid.ww and grid.wh % rows == 0:
        return scores
    real = keys.real[None, :] if axis == 0 else keys.real[:, None]
    return jnp.where(real, scores, MASKED)
