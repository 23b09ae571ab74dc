"""Masks on the low-resolution grid, straight from their run lengths and all of a picture's at once.

No mask is made at the picture's own size. A run is a stretch of rows in one column of pixels. It adds to the cells of
the grid what it covers of them: the rows as four impulses, whose cumulative sum along a column of cells is the covered
length. All masks lie in one flat array, each with a block of just the cells that it touches, column after column; the
impulses of a column add up to zero, so one cumulative sum over everything does for all.
"""

from collections.abc import Sequence

import numpy as np

from samjax.data.frame import Frame

HALF = 0.5 - 1e-9  # shares are right to 1e-12; a cell that is covered by half exactly counts as covered
NOTHING = 1e-9  # a share under this is rounding


def to_cells(masks: Sequence[np.ndarray], frame: Frame,
             cells: tuple[int, int]) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """Objects on the grid `cells` (h, w) over the whole frame.

    masks: run lengths in the picture. Returns for each the bool (a, b) of the cells that it touches, and the first of
    them (row, column); (0, 0) cells where nothing of it lies in the frame. Set is what is covered by at least half (of
    the cell's part inside the picture). An object too small or too thin to cover any cell so far keeps those that it
    covers at least half as far as its best one, so none vanishes that has a pixel in the frame.
    """
    return [(share >= (HALF if (best := share.max(initial=0)) >= HALF else max(best * HALF, NOTHING)), first)
            for share, first in shares(masks, frame, cells)]


def shares(masks: Sequence[np.ndarray], frame: Frame,
           cells: tuple[int, int]) -> list[tuple[np.ndarray, tuple[int, int]]]:
    """As `to_cells`: how much of each cell is covered, float64 (a, b) in 0..1."""
    nothing = np.zeros((0, 0)), (0, 0)
    if not len(masks):
        return []
    mask, x, top, bottom = _columns(masks, frame.image_hw[0])
    if frame.flip:
        x = frame.image_hw[1] - 1 - x
    if frame.upside:
        top, bottom = frame.image_hw[0] - bottom, frame.image_hw[0] - top
    rows, columns = _Axis(frame, cells, 0), _Axis(frame, cells, 1)
    top, bottom, left, right = rows.place(top), rows.place(bottom), columns.place(x), columns.place(x + 1)
    seen = (bottom > top) & (right > left)
    if not seen.all():
        mask, top, bottom, left, right = (values[seen] for values in (mask, top, bottom, left, right))
    if not len(mask):
        return [nothing] * len(masks)
    found, begin, low, high = _extents(mask, top, bottom, left, right)
    height, width = (high - low).T
    block = np.concatenate([[0], np.cumsum((height + 2) * width)])  # two rows more: impulses may lie beyond the last
    number = np.repeat(np.arange(len(found)), np.diff(np.append(begin, len(mask))))
    run, column, weight = _cells_across(left, right)
    number = number[run]
    place = block[number] + (column - low[number, 1]) * (height[number] + 2) - low[number, 0]
    row, amount = _impulses(top, bottom)
    covered = np.bincount((place + row[:, run]).ravel(), (weight * amount[:, run]).ravel(), block[-1])
    covered = np.cumsum(covered)
    answer = [nothing] * len(masks)
    for k, which in enumerate(found):
        (i, j), (a, b) = low[k], (height[k], width[k])
        part = covered[block[k]:block[k + 1]].reshape(b, a + 2)[:, :a].T
        answer[which] = part / (rows.room(i, a)[:, None] * columns.room(j, b)), (int(i), int(j))
    return answer


class _Axis:
    """Picture coordinates of one axis in units of cells."""

    def __init__(self, frame: Frame, cells: tuple[int, int], axis: int):
        stride = frame.size[axis] / cells[axis]  # model pixels a cell
        self.scale = frame.scaled_hw[axis] / frame.image_hw[axis] / stride
        self.start = frame.offset[axis] / stride
        self.end = frame.valid[axis] / stride

    def place(self, position: np.ndarray) -> np.ndarray:
        return np.clip(position * self.scale - self.start, 0, self.end)

    def room(self, first: int, n: int) -> np.ndarray:
        """How much of each of n cells from the first lies in the picture."""
        return np.minimum(self.end - np.arange(first, first + n), 1)


def _columns(masks: Sequence[np.ndarray], h: int) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """The runs of all masks as stretches within single columns: mask, x, first y, end y; ordered by mask."""
    edges = [np.cumsum(counts) for counts in masks]
    start = np.concatenate([edge[:-1:2] for edge in edges])
    end = np.concatenate([edge[1::2] for edge in edges])
    mask = np.repeat(np.arange(len(masks)), [len(edge) // 2 for edge in edges])
    x, last = start // h, (end - 1) // h
    n = np.where(end > start, last - x + 1, 0)
    if (n == 1).all():
        return mask, x, start - x * h, end - x * h
    run, step = _repeat(n)
    x = x[run] + step
    return mask[run], x, np.maximum(start[run] - x * h, 0), np.minimum(end[run] - x * h, h)


def _repeat(n: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Which element, and the how-manieth of it, when each is repeated n times."""
    which = np.repeat(np.arange(len(n)), n)
    return which, np.arange(len(which)) - np.repeat(np.cumsum(n) - n, n)


def _extents(mask, top, bottom, left, right):
    """Of each mask that has a run: its number, its first run, and its cells from low to high, (k, 2): row, column."""
    begin = np.flatnonzero(np.diff(mask, prepend=-1))
    low = np.stack([np.minimum.reduceat(side, begin) for side in (top, left)], axis=-1)
    high = np.stack([np.maximum.reduceat(side, begin) for side in (bottom, right)], axis=-1)
    return mask[begin], begin, low.astype(np.int64), np.ceil(high).astype(np.int64)


def _cells_across(left: np.ndarray, right: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The columns of cells that a column of pixels lies in: its number, the cell, the overlap's width in cells."""
    first = left.astype(np.int64)
    n = np.ceil(right).astype(np.int64) - first
    run, step = _repeat(n)
    cell = first[run] + step
    return run, cell, np.minimum(right[run], cell + 1) - np.maximum(left[run], cell)


def _impulses(start: np.ndarray, end: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """(4, n) cells and weights whose cumulative sum is how much [start, end) covers of each cell."""
    low, high = start.astype(np.int64), end.astype(np.int64)
    low_part, high_part = start - low, end - high
    cell = np.stack([low, low + 1, high, high + 1])
    return cell, np.stack([1 - low_part, low_part, high_part - 1, -high_part])
