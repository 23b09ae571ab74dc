"""Edge maps of pictures: SAM's without any training for it, and Canny's and Sobel's to compare with.

A map is float32 (h, w), 0..1, with everything but its ridges set to 0.
"""

import numpy as np

from samjax.config import SamConfig
from samjax.errors import InputError

POINTS, NMS = 16, 0.7  # a side of SAM's grid; IoU of boxes
SMOOTH = 2.0  # pixels: what a ridge's direction is taken from
CANNY_SIGMA, SOBEL_SIGMA, CANNY_LOW = 2.5, 2.0, 0.4  # pixels, pixels, share of the upper threshold
STEEP = 0.125  # change of grey (0..1) in a pixel that counts as 1, as steep as smoothed pictures have it
BATCH = 64  # points decoded in one call


def sam_edges(sam, image, points_per_side: int = POINTS, nms_threshold: float = NMS) -> np.ndarray:
    """Edges as Segment Anything, appendix D.2, predicts them.

    A grid of points gives three masks each, none dropped for its predicted IoU or stability. After suppression of
    duplicates (the paper does not give its threshold: it is the automatic masks' own) each mask's probabilities, at
    the picture's size, go through a Sobel filter; it counts on the mask's outer boundary pixels, those outside that
    touch the mask. The largest value over all masks, scaled linearly to 0..1, is thinned to its ridges.

    Memory: the logits of all masks (200 MB for 16 x 16 points) and a few maps of the picture's size.

    Args:
        sam: a `Sam`. image: as `Sam.encode` takes it, one picture.

    Raises InputError.
    """
    from samjax.prompts import FOREGROUND, make_slots

    if points_per_side < 1:
        raise InputError(f"a grid of {points_per_side} points a side has no points: give 1 or more")
    embedding = sam.encode(image)
    image_hw = tuple(embedding.image_sizes[0].tolist())
    at = (np.arange(points_per_side) + 0.5) / points_per_side
    points = np.stack(np.meshgrid(at, at), axis=-1).reshape(-1, 1, 2) * (image_hw[1], image_hw[0])
    logits, iou = [], []
    for start in range(0, len(points), BATCH):
        part = points[start : start + BATCH]
        slots = make_slots(sam.config, image_hw, points=part, labels=np.full(part.shape[:2], FOREGROUND))
        masks, estimates = sam._decode(embedding.features, slots)
        logits.append(masks[:, 1:].reshape(-1, *masks.shape[2:]))
        iou.append(estimates[:, 1:].ravel())
    return of_masks(np.concatenate(logits), np.concatenate(iou), sam.config, image_hw, nms_threshold)


def of_masks(logits: np.ndarray, iou: np.ndarray, config: SamConfig, image_hw: tuple[int, int],
             nms_threshold: float = NMS) -> np.ndarray:
    """The edges of n masks, logits (n, H, W) and their predicted IoU (n,): see `sam_edges`."""
    from samjax import upscale
    from samjax.geometry import logits_to_image, target_size
    from samjax.ops.boxes import nms

    grid, new_hw = upscale.axes(config, image_hw), target_size(*image_hw, config.image_size)
    measures = [upscale.measure(mask, grid, 0.0) for mask in logits]
    there = np.array([i for i, measure in enumerate(measures) if measure.area], np.int64)
    boxes = np.array([measures[i].box for i in there], np.int64).reshape(-1, 4)
    edges = np.zeros(image_hw, np.float32)
    for i in nms(boxes, iou[there], nms_threshold):
        x0, y0, x1, y1 = boxes[i]
        values = logits_to_image(logits[there[i]], config, new_hw, image_hw)
        part = slice(max(y0 - 2, 0), y1 + 3), slice(max(x0 - 2, 0), x1 + 3)  # what the filter sees of its pixels
        np.maximum(edges[part], outer_steepness(values[part]), out=edges[part])
    span = edges.max() - edges.min()
    edges = (edges - edges.min()) / span if span > 0 else np.zeros_like(edges)
    return ridges(edges)


def outer_steepness(logits: np.ndarray) -> np.ndarray:
    """The Sobel filter's magnitude of a mask's probabilities, on the pixels around the mask; 0 elsewhere.

    logits: float32 (h, w), a mask or the part of a picture that has all of it and two pixels around it.
    """
    from scipy.ndimage import binary_dilation, sobel
    from scipy.special import expit

    mask = logits > 0
    outer = binary_dilation(mask, np.ones((3, 3), bool)) & ~mask
    probability = expit(logits)
    steep = np.hypot(sobel(probability, 0, mode="nearest"), sobel(probability, 1, mode="nearest"))
    return np.where(outer, steep, np.float32(0))


def ridges(values: np.ndarray, smooth: float = SMOOTH) -> np.ndarray:
    """A map without what is no ridge: pixels below a neighbour across the ridge (non-maximum suppression, Canny 1986).

    Across is where the map, smoothed by a Gaussian of so many pixels, bends most, up or down (its Hessian's first
    direction).
    """
    from scipy.ndimage import gaussian_filter

    down, right, both = (gaussian_filter(values, smooth, order=order) for order in ((2, 0), (0, 2), (1, 1)))
    bend = np.where(down + right > 0, -1, 1)  # a crest bends down, a foot up
    angle = 0.5 * np.arctan2(-2 * both * bend, (down - right) * bend)
    return _crests(values, np.sin(angle), np.cos(angle))


def canny(pixels: np.ndarray, sigma: float = CANNY_SIGMA, low: float = CANNY_LOW) -> np.ndarray:
    """Canny's edges of a picture, uint8 (h, w, 3), at all thresholds at once: each pixel has the highest upper one at
    which hysteresis keeps it, the lower one being a share of that. Otherwise as `sobel`."""
    crests = np.pad(sobel(pixels, sigma), 1)
    flat, width = crests.ravel(), crests.shape[1]
    places = np.flatnonzero(flat)
    around = np.array([-1 - width, -width, 1 - width, -1, 1, width - 1, width, width + 1])
    numbers = np.full(flat.shape, len(places), np.int64)
    numbers[places] = np.arange(len(places))
    near = numbers[places[:, None] + around]
    highest, kept = flat[places] / np.float32(low), np.append(flat[places], np.float32(0))  # the last is no pixel
    while True:  # thresholds spread along the lines, as far as the lower one lets them
        raised = np.minimum(highest, kept[near].max(axis=1, initial=0))
        if (raised <= kept[:-1]).all():
            break
        np.maximum(kept[:-1], raised, out=kept[:-1])
    flat[places] = kept[:-1]
    return np.ascontiguousarray(crests[1:-1, 1:-1])


def sobel(pixels: np.ndarray, sigma: float = SOBEL_SIGMA) -> np.ndarray:
    """The steepness of a picture's grey, uint8 (h, w, 3), smoothed by a Gaussian, on its ridges; no hysteresis.

    Grey is ITU-R BT.601's luma; a change of 1/8 of white to black in a pixel counts as 1.
    """
    from scipy.ndimage import gaussian_filter
    from scipy.ndimage import sobel as derivative

    grey = gaussian_filter(pixels.astype(np.float32) @ np.array([0.299, 0.587, 0.114], np.float32) / 255, sigma)
    down, right = (derivative(grey, axis, mode="nearest") / 8 for axis in (0, 1))
    steep = np.hypot(down, right)
    flat = steep == 0
    across = [np.where(flat, 0, part / np.where(flat, 1, steep)) for part in (down, right)]
    return np.minimum(_crests(steep, *across) / np.float32(STEEP), 1)


def _crests(values: np.ndarray, down: np.ndarray, right: np.ndarray) -> np.ndarray:
    """Values that are not below those a pixel away, in a direction (down, right) of length 1 and in the opposite one,
    which are interpolated; 0 elsewhere."""
    from scipy.ndimage import map_coordinates

    y, x = np.mgrid[: values.shape[0], : values.shape[1]].astype(np.float32)
    kept = np.ones(values.shape, bool)
    for side in (1, -1):
        kept &= values >= map_coordinates(values, [y + side * down, x + side * right], order=1, mode="nearest")
    return np.where(kept, values, 0).astype(np.float32)
