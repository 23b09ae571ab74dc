"""Masks as runs, where a whole picture's bits would not fit: intersections, unions and cuts cost what the runs cost.

Pixels are counted down the columns, column by column, as in COCO's run lengths: pixel (x, y) is x * height + y. NumPy
only.
"""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

Box = tuple[int, int, int, int]


class Runs(NamedTuple):
    """A mask in a picture of some height: pixels start[i] <= p < stop[i], ascending, no run longer than its column."""

    start: np.ndarray  # (n,) int64
    stop: np.ndarray  # (n,) int64
    height: int

    @property
    def area(self) -> int:
        """Pixels."""
        return int((self.stop - self.start).sum())


def of_mask(mask: np.ndarray, corner: tuple[int, int], height: int) -> Runs:
    """The runs of a mask, bool (h, w), whose top left pixel is at corner (x, y) of a picture `height` high."""
    framed = np.zeros((mask.shape[1], mask.shape[0] + 2), bool)
    framed[:, 1:-1] = mask.T
    x, y = np.nonzero(framed[:, 1:] != framed[:, :-1])
    edges = (x + corner[0]) * height + y + corner[1]
    return Runs(edges[::2], edges[1::2], height)


def bounds(runs: Runs) -> Box:
    """x0, y0, x1, y1, all inclusive; zeros for an empty mask."""
    if not len(runs.start):
        return 0, 0, 0, 0
    y0, y1 = (runs.start % runs.height).min(), ((runs.stop - 1) % runs.height).max()
    return int(runs.start[0] // runs.height), int(y0), int((runs.stop[-1] - 1) // runs.height), int(y1)


def clip(runs: Runs, box: Box) -> Runs:
    """The part inside x0, y0, x1, y1 (exclusive)."""
    x0, y0, x1, y1 = box
    first, last = np.searchsorted(runs.start, (x0 * runs.height, x1 * runs.height))
    start, stop = runs.start[first:last], runs.stop[first:last]
    foot = start - start % runs.height
    start, stop = np.maximum(start, foot + y0), np.minimum(stop, foot + y1)
    there = start < stop
    return Runs(start[there], stop[there], runs.height)


def shared(a: Runs, b: Runs) -> int:
    """Pixels that both have."""
    if len(a.start) > len(b.start):
        a, b = b, a
    if not len(a.start):
        return 0
    before = np.concatenate([[0], np.cumsum(b.stop - b.start)])

    def covered(pixel):  # of b, below this pixel
        i = np.searchsorted(b.start, pixel)
        return before[i] - np.where(i > 0, np.maximum(b.stop[i - 1] - pixel, 0), 0)

    return int((covered(a.stop) - covered(a.start)).sum())


def union(parts: Sequence[Runs]) -> Runs:
    """Pixels that any has; parts are of one picture, at least one."""
    start, stop = (np.concatenate([part[i] for part in parts]) for i in (0, 1))
    order = np.argsort(start, kind="stable")
    start, stop = start[order], np.maximum.accumulate(stop[order]) if len(order) else stop
    height = parts[0].height
    begins = np.ones(len(start), bool)  # a run that touches the one before in the same column goes on with it
    begins[1:] = (start[1:] > stop[:-1]) | ((start[1:] == stop[:-1]) & (start[1:] % height == 0))
    first = np.flatnonzero(begins)
    return Runs(start[first], stop[np.append(first[1:], len(start)) - 1] if len(first) else stop, height)


def counts(runs: Runs, width: int) -> np.ndarray:
    """COCO's run lengths (int64) in a picture `width` wide, zeros first: as `samjax.rle.encode` gives them."""
    edges = np.stack([runs.start, runs.stop], axis=1).ravel()
    goes_on = np.flatnonzero(edges[1:] == edges[:-1])  # from one column's foot to the next one's head
    edges = np.delete(edges, np.concatenate([goes_on, goes_on + 1]))
    lengths = np.diff(edges, prepend=0, append=runs.height * width)
    return lengths[:-1] if len(lengths) > 1 and lengths[-1] == 0 else lengths


def parts(runs: Runs) -> list[Runs]:
    """The connected parts (8-connected), largest first."""
    n = len(runs.start)
    if n == 0:
        return []
    from scipy.sparse import coo_array
    from scipy.sparse.csgraph import connected_components

    start, stop, height = runs
    column = start // height
    # Runs of the next column that touch this one, be it by a corner, lie in a row: from `low` to before `high`.
    low = np.maximum(np.searchsorted(stop, start + height), np.searchsorted(start, (column + 1) * height))
    high = np.minimum(np.searchsorted(start, stop + height, "right"), np.searchsorted(start, (column + 2) * height))
    number = np.maximum(high - low, 0)
    one = np.repeat(np.arange(n), number)
    two = np.arange(len(one)) - np.repeat(np.cumsum(number) - number, number) + np.repeat(low, number)
    # Within a column, runs that a union left side by side.
    beside = np.flatnonzero((start[1:] == stop[:-1]) & (column[1:] == column[:-1]))
    one, two = np.concatenate([one, beside]), np.concatenate([two, beside + 1])
    graph = coo_array((np.ones(len(one), np.int8), (one, two)), shape=(n, n))
    total, label = connected_components(graph, directed=False)
    if total == 1:
        return [runs]
    order = np.argsort(label, kind="stable")
    ends = np.cumsum(np.bincount(label, minlength=total))[:-1]
    found = [Runs(start[i], stop[i], height) for i in np.split(order, ends)]
    return sorted(found, key=lambda part: -part.area)
