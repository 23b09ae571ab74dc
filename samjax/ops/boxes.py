"""Boxes x0, y0, x1, y1 on the host: suppression, crops, edges. NumPy only: a few thousand boxes at most."""

import itertools
import math

import numpy as np


def nms(boxes: np.ndarray, scores: np.ndarray, threshold: float) -> np.ndarray:
    """Non-maximum suppression: indices of the boxes (n, 4) that stay, best score (n,) first.

    Greedy: a box goes when its IoU with a better one that stays is above the threshold. Equal scores keep their
    order; IoU is float32, as torchvision computes it. Boxes without area have no IoU: they stay, but for those that are
    equal to one that stays (torchvision keeps these too, so that a picture of one pixel has a mask for each point).
    """
    order = np.argsort(-np.asarray(scores), kind="stable")
    corners = np.asarray(boxes, np.float32).reshape(-1, 4)[order]
    x0, y0, x1, y1 = corners.T
    areas = (x1 - x0) * (y1 - y0)
    left = np.arange(len(order))
    kept = []
    zero = np.float32(0)
    with np.errstate(invalid="ignore", divide="ignore"):
        while len(left):
            i, left = left[0], left[1:]
            kept.append(i)
            across = np.minimum(x1[i], x1[left]) - np.maximum(x0[i], x0[left])
            down = np.minimum(y1[i], y1[left]) - np.maximum(y0[i], y0[left])
            shared = np.maximum(across, zero) * np.maximum(down, zero)
            iou = shared / (areas[i] + areas[left] - shared)
            copies = (areas[left] == 0) & (corners[left] == corners[i]).all(axis=1) & (threshold < 1)
            left = left[~((iou.astype(np.float64) > threshold) | copies)]
    return order[np.array(kept, np.int64)]


def crop_boxes(image_hw: tuple[int, int], layers: int, overlap: float) -> list[tuple[tuple[int, int, int, int], int]]:
    """(box, layer) of the picture itself and of its overlapping crops, 4^i of them in layer i; x1, y1 exclusive.

    overlap is the share of the short side that neighbours in the first layer have in common; it halves with each
    layer. Crops that a tiny picture leaves empty are left out.
    """
    h, w = image_hw
    found = [((0, 0, w, h), 0)]
    for layer in range(1, layers + 1):
        n = 2**layer
        shared = int(overlap * min(h, w) * (2 / n))
        crop_h, crop_w = (math.ceil((shared * (n - 1) + side) / n) for side in (h, w))
        for i, j in itertools.product(range(n), range(n)):
            x, y = i * (crop_w - shared), j * (crop_h - shared)
            if x < w and y < h:
                found.append(((x, y, min(x + crop_w, w), min(y + crop_h, h)), layer))
    return found


def near_inner_edge(boxes: np.ndarray, crop: tuple[int, int, int, int], image_hw: tuple[int, int],
                    within: float = 20) -> np.ndarray:
    """(n,) bool: a side of the box (n, 4) lies within so many pixels of the crop's side, but not of the picture's."""
    boxes = np.asarray(boxes, np.float64).reshape(-1, 4)
    h, w = image_hw
    near = lambda frame: np.abs(boxes - np.array(frame, np.float64)) <= within
    return (near(crop) & ~near((0, 0, w, h))).any(axis=1)


def xywh(box) -> list[int]:
    """x, y, width, height of x0, y0, x1, y1."""
    x0, y0, x1, y1 = (int(v) for v in box)
    return [x0, y0, x1 - x0, y1 - y0]
