"""The protocol of boxes: one mask for the box of each object, exact or as a careless annotator would draw it."""

from collections.abc import Sequence

import numpy as np

from samjax.evaluate.crops import Box, Crop, Upscaled, iou
from samjax.evaluate.points import Ask

SIZES = {"small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, float("inf"))}  # COCO's, pixels of the mask
MOST = 20  # pixels that noise moves a side, as in training


def size_of(area: float) -> str:
    """COCO's name of an object's size: below 32 x 32 pixels, below 96 x 96, or larger."""
    return next(name for name, (low, high) in SIZES.items() if low <= area < high)


def noised(box: Box, share: float, image_hw: tuple[int, int], random: np.random.Generator) -> tuple[float, ...]:
    """The box with each side moved by normal noise, as in training (Segment Anything, appendix A): its deviation is
    `share` of the box's width or height, at most 20 px. It stays in the picture and at least 1 px wide and high."""
    x0, y0, x1, y1 = box
    sides, (h, w) = np.array([x1 - x0, y1 - y0, x1 - x0, y1 - y0]), image_hw
    moved = np.array(box) + np.clip(random.normal(size=4) * share * sides, -MOST, MOST)
    (x0, x1), (y0, y1) = (_ordered(moved[i::2], end) for i, end in ((0, w), (1, h)))
    return x0, y0, x1, y1


def score_boxes(ask: Ask, truths: Sequence[Crop], grid, boxes: Sequence | None = None,
                refine: bool = False) -> list[dict]:
    """Scores of one picture's objects from boxes, all asked for together.

    ask: given boxes (and mask_logits) as `Sam.segment` takes them, all masks of the decoder.
    truths: the objects, not empty. grid: `samjax.upscale.axes` of the picture. boxes: default the truths' own.
    refine: a second round is fed, with the box, the logits of the most confident of the first one's masks, of the three
    for ambiguous prompts (Segment Anything, appendix D.4).

    Returns for each object: box, the IoU of the single mask; box_predicted, the model's own estimate.
    """
    boxes = [truth.box for truth in truths] if boxes is None else boxes
    return [{"box": iou(Upscaled(mask, grid), truth), "box_predicted": float(estimate)}
            for mask, estimate, truth in zip(*answer_boxes(ask, boxes, refine), truths)]


def answer_boxes(ask: Ask, boxes: Sequence, refine: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The single mask of each of n > 0 boxes: logits (n, H, W), and the model's estimates of its IoU (n,).

    ask and refine: as of `score_boxes`.
    """
    masks, predicted = ask(boxes=boxes)
    if refine:
        best = 1 + predicted[:, 1:].argmax(axis=1)
        masks, predicted = ask(boxes=boxes, mask_logits=masks[np.arange(len(boxes)), best])
    return masks[:, 0], predicted[:, 0]


def _ordered(ends: np.ndarray, side: int) -> tuple[float, float]:
    """Both ends of a box on one axis, inside the picture and 1 px apart or more."""
    low, high = np.clip(np.sort(ends), 0, side).tolist()
    if high - low < 1:
        low = min(max((low + high - 1) / 2, 0.0), max(side - 1.0, 0.0))
        high = low + 1
    return low, high
