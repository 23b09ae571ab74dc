"""Duplicates among any number of objects in a picture: each is compared with those nearby of a like size only.

NumPy only.
"""

import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Sequence
from functools import partial

import numpy as np

from samjax.runs import Runs, parts, shared

SPECK = 0.02  # of a mask: parts below it do not count


def box_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """`samjax.ops.boxes.nms`, the same indices, without comparing each of the boxes (n, 4) with every other.

    Two boxes whose IoU is above the threshold have sides whose ratios are above it, and share a place.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    sides = np.maximum(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]), 1)

    def cells(i, level):
        x0, y0, x1, y1 = (int(side // 2.0**level) for side in boxes[i])
        return [(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)]

    def duplicates(i, near):
        across = np.minimum(boxes[i, 2], boxes[near, 2]) - np.maximum(boxes[i, 0], boxes[near, 0])
        down = np.minimum(boxes[i, 3], boxes[near, 3]) - np.maximum(boxes[i, 1], boxes[near, 1])
        both = np.maximum(across, 0) * np.maximum(down, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = both / (areas[i] + areas[near] - both)
        copies = (areas[near] == 0) & (boxes[near] == boxes[i]).all(axis=1) & (threshold < 1)
        return bool(((iou.astype(np.float64) > threshold) | copies).any())

    index = _Nearby(1 - math.log2(max(threshold, 1e-9)))
    return _greedy(scores, index, lambda i: math.log2(sides[i]), cells, duplicates)


def mask_nms(masks: Sequence[Runs], scores: np.ndarray, threshold: float) -> np.ndarray:
    """The same by the masks themselves: one goes when its IoU with a better one that stays is above the threshold.

    It finds what boxes miss: copies of a mask with a speck far away. Empty masks stay.
    """
    index = _Nearby(1 - math.log2(max(threshold, 1e-9)) / 2)
    return _greedy(scores, index, lambda i: _size(masks[i]), lambda i, level: _cells(masks[i], level),
                   lambda i, near: any(_iou_above(masks[i], masks[j], threshold) for j in near))


def without_groups(masks: Sequence[Runs], threshold: float) -> list[int]:
    """Indices of the masks that are no mere groups of others, in their order.

    A group has several parts apart from each other, each of which is one of the other masks (IoU above the threshold).
    """
    index = _Nearby(1 - math.log2(max(threshold, 1e-9)) / 2)
    split = []
    for i, mask in enumerate(masks):
        pieces = [part for part in parts(mask) if part.area >= SPECK * mask.area]
        split.append(pieces)
        if len(pieces) == 1:  # a group is not itself a part of a group
            index.add(i, _size(mask), partial(_cells, mask))

    def known(piece):
        near = index.near(_size(piece), partial(_cells, piece))
        return any(_iou_above(piece, masks[j], threshold) for j in near)

    return [i for i, pieces in enumerate(split) if len(pieces) < 2 or not all(known(piece) for piece in pieces)]


class _Nearby:
    """Finds what is near and of a like size.

    reach: how far the logarithms (to base 2) of two sizes may differ. cells(level): the places, about 2^level wide,
    that something takes; things that are to find each other share one.
    """

    def __init__(self, reach: float):
        self.reach, self.grid, self.levels = reach, defaultdict(list), defaultdict(list)

    def add(self, i: int, size: float, cells: Callable[[int], Iterable[tuple[int, int]]]) -> None:
        level = math.ceil(size)
        self.levels[level].append(i)
        for cell in cells(level):
            self.grid[level, *cell].append(i)

    def near(self, size: float, cells: Callable[[int], Iterable[tuple[int, int]]]) -> list[int]:
        found = set()
        for level, there in self.levels.items():
            if abs(level - size) <= self.reach:
                few = 4.0 ** (size - level + 1) < len(there)  # cells to look into
                found.update(*(self.grid.get((level, *cell), ()) for cell in cells(level)) if few else (there,))
        return sorted(found)


def _greedy(scores, index: _Nearby, size, cells, duplicates) -> np.ndarray:
    """Indices of what stays, best score first (equal ones in their order)."""
    kept = []
    for i in np.argsort(-np.asarray(scores), kind="stable").tolist():
        near = index.near(size(i), lambda level: cells(i, level))  # noqa: B023 (called at once)
        if near and duplicates(i, near):
            continue
        index.add(i, size(i), lambda level: cells(i, level))  # noqa: B023
        kept.append(i)
    return np.array(kept, np.int64)


def _size(mask: Runs) -> float:
    return math.log2(max(mask.area, 1)) / 2


def _cells(mask: Runs, level: int) -> set[tuple[int, int]]:
    """The squares that hold some of a mask."""
    start, stop, height = mask
    side = max(1, int(2.0**level))
    x, first, last = start // height // side, start % height // side, (stop - 1) % height // side
    found = {*zip(x.tolist(), first.tolist()), *zip(x.tolist(), last.tolist())}
    long = np.flatnonzero(last > first + 1)
    return found | {(int(x[j]), y) for j in long for y in range(int(first[j]) + 1, int(last[j]))}


def _iou_above(a: Runs, b: Runs, threshold: float) -> bool:
    areas = a.area, b.area
    if min(areas) <= threshold * max(areas):
        return False
    both = shared(a, b)
    return both > threshold * (sum(areas) - both)
