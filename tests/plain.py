"""Suppression and cleaning of masks as loops, what the quick versions are compared with; and masks at random."""

import numpy as np


def plain_nms(boxes, scores, threshold):
    """Indices kept, best first."""
    boxes = np.array(boxes, float)
    kept = []
    for i in sorted(range(len(boxes)), key=lambda i: -scores[i]):
        for j in kept:
            a, b = boxes[i], boxes[j]
            w, h = min(a[2], b[2]) - max(a[0], b[0]), min(a[3], b[3]) - max(a[1], b[1])
            shared = max(w, 0) * max(h, 0)
            union = (a[2] - a[0]) * (a[3] - a[1]) + (b[2] - b[0]) * (b[3] - b[1]) - shared
            if union and shared / union > threshold:
                break
        else:
            kept.append(i)
    return kept


def flood(mask):
    """8-connected regions as lists of pixels, in raster order."""
    left, regions = {tuple(p) for p in np.argwhere(mask)}, []
    for start in map(tuple, np.argwhere(mask)):
        if start not in left:
            continue
        left.remove(start)
        region, todo = [], [start]
        while todo:
            y, x = todo.pop()
            region.append((y, x))
            near = {(y + i, x + j) for i in (-1, 0, 1) for j in (-1, 0, 1)} & left
            left -= near
            todo += near
        regions.append(region)
    return regions


def plain_clean(mask, least):
    """Holes, then islands, as remove_small_regions of the official code; (mask, changed)."""
    mask, changed = mask.copy(), False
    for hole in flood(~mask):
        if len(hole) < least:
            mask[tuple(zip(*hole))] = changed = True
    islands = flood(mask)
    small = [island for island in islands if len(island) < least]
    if small and len(small) == len(islands):
        small.remove(max(small, key=len))
        changed = True
    for island in small:
        mask[tuple(zip(*island))] = False
        changed = True
    return mask, changed


def masks_of_boxes(random, n, side, sizes):
    """bool (n, side, side): random boxes, some with holes. sizes: the range of their sides, its end exclusive."""
    masks = np.zeros((n, side, side), bool)
    for mask in masks:
        y, x = random.integers(0, side, 2)
        h, w = random.integers(*sizes, 2)
        mask[y:y + h, x:x + w] = random.random() < 0.7 or random.random((min(h, side - y), min(w, side - x))) < 0.8
    return masks
