"""Masks at a picture's size without upscaling them whole: stability, area, box, and the pixels inside a box.

The official code upscales each mask's logits to the picture and thresholds three times. Interpolation only mixes
neighbours with weights that sum to 1, so where a tile's low-resolution neighbours all lie on one side of a threshold,
so do its pixels: only tiles that a threshold's contour may cross are upscaled, a few at a time. The numbers are those
of the whole mask, and memory does not depend on the picture's size. Host side, NumPy only; `samjax.ops.masks` is
the same for an accelerator.
"""

from collections.abc import Iterator
from functools import lru_cache
from typing import NamedTuple

import numpy as np

from samjax.config import SamConfig
from samjax.geometry import _upscaling, target_size

ROWS, COLUMNS = 32, 64  # pixels of a tile; a row's bits are one uint64
_TILES = 64  # upscaled at a time: half a megabyte
_SLACK = 1e-5  # relative; rounding in the interpolation stays well below


class Axis(NamedTuple):
    """One axis of the upscaling, cut into tiles: tile i is weight[i] @ logits[start[i] : start[i] + s]."""

    start: np.ndarray  # (n,) int64
    weight: np.ndarray  # (n, tile, s) float32; rows past the picture's end are 0
    length: np.ndarray  # (n,) int64: pixels of the tile that the picture has


class Measure(NamedTuple):
    """Of one mask: pixels above +offset, above 0, above -offset; box x0, y0, x1, y1, all inclusive."""

    high: int
    area: int
    low: int
    box: tuple[int, int, int, int]

    @property
    def stability(self) -> np.float32:
        """high / low, the IoU of the masks at both cuts (NaN where both are empty), in float32 as officially."""
        with np.errstate(invalid="ignore"):
            return np.float32(self.high) / np.float32(self.low)


class Cutting(NamedTuple):
    """The part of a mask's logits that its box depends on, and what `render` needs to place it."""

    logits: np.ndarray
    box: tuple[int, int, int, int]


def axes(config: SamConfig, image_hw: tuple[int, int], new_hw: tuple[int, int] | None = None) -> tuple[Axis, Axis]:
    """Both axes (rows, columns) of the official postprocess for a picture of this size; new_hw: its size in the frame,
    where it was not made to fill that."""
    new_hw = new_hw or target_size(*image_hw, config.image_size)
    return tuple(_axis(*sizes) for sizes in zip(config.mask_size, config.image_size, new_hw, image_hw, (ROWS, COLUMNS)))


def measure(logits: np.ndarray, grid: tuple[Axis, Axis], offset: float) -> Measure:
    """Counts and box of one mask, logits (H, W) float32, at the picture's size. offset is not negative.

    An empty mask has the box (0, 0, 0, 0).
    """
    rows, cols = grid
    low, high = _bounds(logits, grid)
    slack = _SLACK * np.maximum(high, -low)
    cuts = np.array([offset, 0, -offset], np.float32)[:, None, None]
    surely, perhaps = low - slack > cuts, high + slack > cuts
    undecided = (surely != perhaps).any(axis=0)
    pixels = rows.length[:, None] * cols.length
    solid = surely & ~undecided
    counts = [int(pixels[tiles].sum()) for tiles in solid]
    extents = [_solid_extent(solid[1], grid)] if counts[1] else []
    ty, tx = np.nonzero(undecided)
    for y, x, values in _upscaled(logits, grid, ty, tx):
        inside = values > 0
        counts[0] += np.count_nonzero(values > cuts[0])
        counts[1] += np.count_nonzero(inside)
        counts[2] += np.count_nonzero(values > cuts[2])
        extents += _extents(inside, y, x)
    if offset > 0:  # what a tile has beyond the picture is 0, above -offset
        counts[2] -= len(ty) * ROWS * COLUMNS - int(pixels[undecided].sum())
    box = (0, 0, 0, 0)
    if extents:
        extents = np.array(extents)
        box = (*extents[:, :2].min(axis=0).tolist(), *extents[:, 2:].max(axis=0).tolist())
    return Measure(*counts, box)


def cut(logits: np.ndarray, grid: tuple[Axis, Axis], box: tuple[int, int, int, int]) -> Cutting:
    """A copy of the few logits from which `render` makes the mask inside its box."""
    y, x = (slice(axis.start[first], axis.start[last] + axis.weight.shape[2])
            for axis, (first, last) in zip(grid, _tile_range(box)))
    return Cutting(logits[y, x].copy(), tuple(box))


def render(cutting: Cutting, grid: tuple[Axis, Axis]) -> np.ndarray:
    """The mask inside its box: bool (y1 - y0 + 1, x1 - x0 + 1). The same pixels that `measure` counted."""
    (y_first, y_last), (x_first, x_last) = _tile_range(cutting.box)
    rows, cols = (Axis(*(part[first : last + 1] for part in axis))
                  for axis, (first, last) in zip(grid, _tile_range(cutting.box)))
    grid = rows._replace(start=rows.start - rows.start[0]), cols._replace(start=cols.start - cols.start[0])
    low, high = _bounds(cutting.logits, grid)
    slack = _SLACK * np.maximum(high, -low)
    tiles = np.empty((len(rows.start), ROWS, len(cols.start), COLUMNS), bool)
    tiles[:] = (low - slack > 0)[:, None, :, None]
    ty, tx = np.nonzero((low - slack > 0) != (high + slack > 0))
    for y, x, values in _upscaled(cutting.logits, grid, ty, tx):
        tiles[y, :, x] = values > 0
    x0, y0, x1, y1 = cutting.box
    whole = tiles.reshape(len(rows.start) * ROWS, len(cols.start) * COLUMNS)
    top, left = y_first * ROWS, x_first * COLUMNS
    return np.ascontiguousarray(whole[y0 - top : y1 + 1 - top, x0 - left : x1 + 1 - left])


def _tile_range(box) -> tuple[tuple[int, int], tuple[int, int]]:
    x0, y0, x1, y1 = box
    return (y0 // ROWS, y1 // ROWS), (x0 // COLUMNS, x1 // COLUMNS)


@lru_cache(maxsize=64)
def _axis(n_mask: int, n_model: int, n_new: int, n_image: int, tile: int) -> Axis:
    parts = _upscaling(n_mask, n_model, n_new, n_image, tile)
    reach = max(source.stop - source.start for _, source, _ in parts)
    start = np.array([min(source.start, n_mask - reach) for _, source, _ in parts])
    weight = np.zeros((len(parts), tile, reach), np.float32)
    for i, (_, source, dense) in enumerate(parts):
        weight[i, : len(dense), source.start - start[i] : source.stop - start[i]] = dense
    return Axis(start, weight, np.array([len(dense) for _, _, dense in parts]))


def _bounds(logits: np.ndarray, grid: tuple[Axis, Axis]) -> tuple[np.ndarray, np.ndarray]:
    """The smallest and largest logit that each tile mixes: two (rows, columns) arrays."""
    both = []
    for ufunc in (np.minimum, np.maximum):
        part = _windows(ufunc, logits, grid[0])
        both.append(_windows(ufunc, np.ascontiguousarray(part.T), grid[1]).T)
    return tuple(both)


def _windows(ufunc, array: np.ndarray, axis: Axis) -> np.ndarray:
    """ufunc over array[start : start + s] for each tile, by doubling the reach."""
    width, reach = 1, axis.weight.shape[2]
    while 2 * width <= reach:
        array = ufunc(array[:-width], array[width:])
        width *= 2
    return ufunc(array[axis.start], array[axis.start + (reach - width)])


def _upscaled(logits: np.ndarray, grid: tuple[Axis, Axis], ty: np.ndarray, tx: np.ndarray) -> Iterator[tuple]:
    """Yields (ty, tx, float32 (n, ROWS, COLUMNS)) for a few tiles at a time."""
    rows, cols = grid
    down, right = np.arange(rows.weight.shape[2])[:, None], np.arange(cols.weight.shape[2])
    for start in range(0, len(ty), _TILES):
        y, x = ty[start : start + _TILES], tx[start : start + _TILES]
        patches = logits[rows.start[y][:, None, None] + down, cols.start[x][:, None, None] + right]
        yield y, x, rows.weight[y] @ patches @ cols.weight[x].swapaxes(1, 2)


def _solid_extent(tiles: np.ndarray, grid: tuple[Axis, Axis]) -> tuple[int, int, int, int]:
    """The box around tiles that are mask all over."""
    ends = []
    for axis, size, along in zip(grid, (ROWS, COLUMNS), (1, 0)):
        hit = np.flatnonzero(tiles.any(axis=along))
        ends.append((hit[0] * size, hit[-1] * size + axis.length[hit[-1]] - 1))
    (y0, y1), (x0, x1) = ends
    return x0, y0, x1, y1


def _extents(inside: np.ndarray, ty: np.ndarray, tx: np.ndarray) -> list[tuple[int, int, int, int]]:
    """The box around all mask pixels of some tiles, inside (n, ROWS, COLUMNS); a list of none or one."""
    bits = np.packbits(inside, axis=-1, bitorder="little").view("<u8")[..., 0]
    hit = bits.any(axis=1)
    if not hit.any():
        return []
    bits, ty, tx = bits[hit], ty[hit] * ROWS, tx[hit] * COLUMNS
    in_rows = bits != 0
    in_cols = np.unpackbits(np.bitwise_or.reduce(bits, axis=1)[:, None].view(np.uint8), axis=1, bitorder="little")
    first = lambda flags: flags.argmax(axis=1)
    last = lambda flags: flags.shape[1] - 1 - flags[:, ::-1].argmax(axis=1)
    return [((tx + first(in_cols)).min(), (ty + first(in_rows)).min(),
             (tx + last(in_cols)).max(), (ty + last(in_rows)).max())]
