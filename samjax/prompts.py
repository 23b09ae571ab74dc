"""What a user gives (points, boxes, masks in a picture's pixels) as the fixed slots that the model takes.

Host side, NumPy only. Slots and objects are rounded up to a few sizes, so that one compiled program serves every mix.
"""

import numpy as np

from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.geometry import scale_points

SLOTS = 8  # the fewest slots an object is given; then 16, 32, ...
BACKGROUND, FOREGROUND, CORNERS, NOT_A_POINT, EMPTY = 0, 1, (2, 3), -1, -2
Slots = tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]


def make_slots(config: SamConfig, image_hw: tuple[int, int], points=None, labels=None, boxes=None,
               mask_logits=None) -> Slots:
    """One image's prompts as (points (n, t, 2) f32, labels (n, t) i32, mask_logits (n, H, W) f32, has_mask (n,)).

    Args:
        image_hw: the picture's size; coordinates are its pixels, x before y.
        points: (t, 2) for one object, (n, t, 2) for n; labels alike: 1 foreground, 0 background, -2 no point (for
            objects with fewer points than others).
        boxes: (4,) or (n, 4): x0, y0, x1, y1.
        mask_logits: (H, W) or (n, H, W), H x W = config.mask_size: an earlier answer's logits, or `mask_to_logits`.

    As official SAM does, a "not a point" token follows the points of an object that has no box. Raises InputError.
    """
    points, labels = _points(points, labels, image_hw)
    boxes = _boxes(boxes, image_hw)
    mask_logits = _mask_logits(mask_logits, config)
    given = {"points": points, "boxes": boxes, "mask_logits": mask_logits}
    counts = {name: len(array) for name, array in given.items() if array is not None}
    if not counts:
        raise InputError("no prompt: give points with labels, boxes or mask_logits")
    if len(set(counts.values())) > 1:
        raise InputError("prompts disagree on the number of objects: "
                         + ", ".join(f"{name} {count}" for name, count in counts.items())
                         + "; points of shape (t, 2) are one object, (n, t, 2) are n")
    n = next(iter(counts.values()))
    xy, kinds = [np.zeros((n, 0, 2))], [np.zeros((n, 0), np.int32)]
    if points is not None:
        xy.append(scale_points(points, image_hw, config))
        kinds.append(labels)
        if boxes is None:
            xy.append(np.zeros((n, 1, 2)))
            kinds.append(np.full((n, 1), NOT_A_POINT))
    if boxes is not None:
        xy.append(scale_points(boxes.reshape(n, 2, 2), image_hw, config))
        kinds.append(np.tile(CORNERS, (n, 1)))
    has_mask = np.full(n, mask_logits is not None)
    if mask_logits is None:
        mask_logits = np.zeros((n, *config.mask_size), np.float32)
    return (np.concatenate(xy, 1).astype(np.float32), np.concatenate(kinds, 1).astype(np.int32),
            mask_logits, has_mask)


def pad_slots(slots: Slots, objects: int, tokens: int) -> Slots:
    """The same with `objects` objects of `tokens` slots; what is added is empty."""
    points, labels, mask_logits, has_mask = slots
    more, wider = objects - labels.shape[0], tokens - labels.shape[1]
    return (np.pad(points, ((0, more), (0, wider), (0, 0))),
            np.pad(labels, ((0, more), (0, wider)), constant_values=EMPTY),
            np.pad(mask_logits, ((0, more), (0, 0), (0, 0))),
            np.pad(has_mask, (0, more)))


def bucket(count: int, least: int) -> int:
    """The smallest of least, 2 least, 4 least, ... that is not below `count`."""
    while least < count:
        least *= 2
    return least


def _numbers(values, name: str) -> np.ndarray:
    try:
        array = np.asarray(values, dtype=np.float64)
    except (TypeError, ValueError):
        raise InputError(f"{name} must be a rectangular array of numbers; pad objects with fewer points by label "
                         f"{EMPTY}") from None
    if not np.isfinite(array).all():
        raise InputError(f"{name} hold NaN or infinity")
    return array


def _points(points, labels, image_hw) -> tuple[np.ndarray | None, np.ndarray | None]:
    if points is None:
        if labels is not None:
            raise InputError("labels are given without points")
        return None, None
    points = _numbers(points, "points")
    points = points[None] if points.ndim == 2 else points
    if points.ndim != 3 or points.shape[-1] != 2 or 0 in points.shape:
        raise InputError(f"points must have shape (t, 2) or (n, t, 2), not {np.shape(points)}")
    if labels is None:
        raise InputError("points need labels: 1 foreground, 0 background, one for each point")
    labels = _numbers(labels, "labels")
    labels = labels[None] if labels.ndim == 1 else labels
    if labels.shape != points.shape[:2]:
        raise InputError(f"labels {labels.shape} do not match points {points.shape}: one label for each point")
    wrong = labels[~np.isin(labels, (FOREGROUND, BACKGROUND, EMPTY))]
    if wrong.size:
        raise InputError(f"label {wrong[0]:g} is none of 1 (foreground), 0 (background), {EMPTY} (no point)")
    h, w = image_hw
    outside = ((points < 0) | (points > (w, h))).any(-1) & (labels != EMPTY)
    if outside.any():
        x, y = points[outside][0]
        raise InputError(f"point ({x:g}, {y:g}) lies outside the image of {w} x {h} pixels")
    return points, labels.astype(np.int32)


def _boxes(boxes, image_hw) -> np.ndarray | None:
    if boxes is None:
        return None
    boxes = _numbers(boxes, "boxes")
    boxes = boxes[None] if boxes.ndim == 1 else boxes
    if boxes.ndim != 2 or boxes.shape[-1] != 4 or not len(boxes):
        raise InputError(f"boxes must have shape (4,) or (n, 4), not {np.shape(boxes)}")
    h, w = image_hw
    for box in boxes:
        x0, y0, x1, y1 = box
        text = f"box ({x0:g}, {y0:g}, {x1:g}, {y1:g})"
        if x1 <= x0 or y1 <= y0:
            raise InputError(f"{text} is empty: it must be x0, y0, x1, y1 with x0 < x1 and y0 < y1")
        if x1 <= 0 or y1 <= 0 or x0 >= w or y0 >= h:
            raise InputError(f"{text} lies outside the image of {w} x {h} pixels")
    return boxes


def _mask_logits(mask_logits, config: SamConfig) -> np.ndarray | None:
    if mask_logits is None:
        return None
    logits = np.asarray(mask_logits)
    if logits.dtype == bool:
        raise InputError("mask_logits are logits, not a mask: turn a mask into them with samjax.mask_to_logits")
    logits = _numbers(logits, "mask_logits").astype(np.float32)
    logits = logits[None] if logits.ndim == 2 else logits
    if logits.ndim != 3 or logits.shape[1:] != config.mask_size or not len(logits):
        h, w = config.mask_size
        raise InputError(f"mask_logits must have shape ({h}, {w}) or (n, {h}, {w}), not {np.shape(mask_logits)}; "
                         "samjax.mask_to_logits makes them from a mask")
    return logits
