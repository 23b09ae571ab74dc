"""Duplicates among any number of objects in a picture: each is compared with those nearby of a like size only.

NumPy only.
"""

import math
from collections import defaultdict
from collections.abc import Sequence

import numpy as np

from samjax.runs import Runs, shared


def box_nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """`samjax.ops.boxes.nms`, the same indices, without comparing each of the boxes (n, 4) with every other.

    Two boxes whose IoU is above the threshold have sides whose ratios are above it, and share a place.
    """
    boxes = np.asarray(boxes, np.float32).reshape(-1, 4)
    areas = (boxes[:, 2] - boxes[:, 0]) * (boxes[:, 3] - boxes[:, 1])
    sides = np.maximum(np.maximum(boxes[:, 2] - boxes[:, 0], boxes[:, 3] - boxes[:, 1]), 1)
    reach = 1 - math.log2(max(threshold, 1e-9))

    def cells(i, level):
        x0, y0, x1, y1 = (int(side // 2.0**level) for side in boxes[i])
        return [(x, y) for x in range(x0, x1 + 1) for y in range(y0, y1 + 1)]

    def duplicates(i, near):
        across = np.minimum(boxes[i, 2], boxes[near, 2]) - np.maximum(boxes[i, 0], boxes[near, 0])
        down = np.minimum(boxes[i, 3], boxes[near, 3]) - np.maximum(boxes[i, 1], boxes[near, 1])
        both = np.maximum(across, 0) * np.maximum(down, 0)
        with np.errstate(invalid="ignore", divide="ignore"):
            iou = both / (areas[i] + areas[near] - both)
        return bool((iou.astype(np.float64) > threshold).any())

    return _greedy(scores, np.log2(sides), reach, cells, duplicates)


def mask_nms(masks: Sequence[Runs], scores: np.ndarray, threshold: float) -> np.ndarray:
    """The same by the masks themselves: one goes when its IoU with a better one that stays is above the threshold.

    It finds what boxes miss: copies of a mask with a speck far away. Empty masks stay.
    """
    areas = np.array([mask.area for mask in masks], np.int64)

    def cells(i, level):
        """The squares that hold some of the mask, about as wide as the root of its area."""
        start, stop, height = masks[i]
        side = max(1, int(2.0**level))
        x, first, last = start // height // side, start % height // side, (stop - 1) % height // side
        found = {*zip(x.tolist(), first.tolist()), *zip(x.tolist(), last.tolist())}
        long = np.flatnonzero(last > first + 1)
        return found | {(int(x[j]), y) for j in long for y in range(int(first[j]) + 1, int(last[j]))}

    def duplicates(i, near):
        for j in near:
            if min(areas[i], areas[j]) > threshold * max(areas[i], areas[j]):
                both = shared(masks[i], masks[j])
                if both > threshold * (areas[i] + areas[j] - both):
                    return True
        return False

    reach = 1 - math.log2(max(threshold, 1e-9)) / 2
    return _greedy(scores, np.log2(np.maximum(areas, 1)) / 2, reach, cells, duplicates)


def _greedy(scores, sizes: np.ndarray, reach: float, cells, duplicates) -> np.ndarray:
    """Indices of what stays, best score first (equal ones in their order).

    sizes: logarithms to base 2; what differs by more than `reach` is no duplicate. cells(i, level): places, of about
    the size 2^level, of which two duplicates share one. duplicates(i, near): whether any of `near` rules i out.
    """
    kept, grid, at_level = [], defaultdict(list), defaultdict(list)
    for i in np.argsort(-np.asarray(scores), kind="stable").tolist():
        near = set()
        for level, there in at_level.items():
            if abs(level - sizes[i]) <= reach:
                few = 4.0 ** (sizes[i] - level + 1) < len(there)  # cells to look into
                near.update(*(grid.get((level, *cell), ()) for cell in cells(i, level)) if few else (there,))
        if near and duplicates(i, sorted(near)):
            continue
        own = math.ceil(sizes[i])
        for cell in cells(i, own):
            grid[own, *cell].append(i)
        at_level[own].append(i)
        kept.append(i)
    return np.array(kept, np.int64)
