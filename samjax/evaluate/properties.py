"""What an object looks like: its share of the picture, the contrast of its boundary, solidity and thinness."""

from collections.abc import Sequence

import numpy as np

from samjax.evaluate.crops import Crop

NAMES = ("relative_area", "contrast", "solidity", "thinness")
REACH = 0.005  # of the picture's diagonal: how far from the boundary colours are compared
WHITE = (0.95047, 1.0, 1.08883)  # D65
TO_XYZ = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.0721750), (0.0193339, 0.1191920, 0.9503041))


def describe(image: np.ndarray, truths: Sequence[Crop]) -> list[dict[str, float]]:
    """Properties of a picture's objects by name.

    image: uint8 (h, w, 3). truths: not empty. relative_area: of the picture, 0 to 1; contrast: see `contrast`;
    solidity, thinness: see there.
    """
    h, w = image.shape[:2]
    reach = max(2, round(REACH * float(np.hypot(h, w))))
    return [{"relative_area": truth.area / (h * w), "contrast": contrast(image, truth, reach),
             "solidity": solidity(truth.pixels), "thinness": thinness(truth.pixels)} for truth in truths]


def contrast(image: np.ndarray, truth: Crop, reach: int) -> float:
    """The colour difference across an object's boundary: CIELAB distance (CIE 1976); NaN without a boundary.

    At each pixel of the object that has one of its four neighbours in the picture outside of it, the mean colours of
    what is object and of what is not, in the square of 2 reach + 1 pixels around it, are compared. The result is the
    mean of these distances. About 2 is just visible; black on white is 100.
    """
    from scipy import ndimage

    h, w = image.shape[:2]
    x0, y0, x1, y1 = truth.box
    box = max(x0 - reach, 0), max(y0 - reach, 0), min(x1 + reach, w), min(y1 + reach, h)
    inside = truth.part(box)
    border = inside & ~ndimage.binary_erosion(inside, border_value=True)
    if not border.any():
        return float("nan")
    colours = lab(image[box[1] : box[3], box[0] : box[2]])
    total = lambda values: ndimage.uniform_filter(values, 2 * reach + 1, mode="constant")[border]
    middles = []
    for part in (inside.astype(float), (~inside).astype(float)):
        count = total(part)
        middles.append([total(part * colours[..., c]) / count for c in range(3)])
    return float(np.sqrt(((np.array(middles[0]) - middles[1]) ** 2).sum(axis=0)).mean())


def solidity(pixels: np.ndarray) -> float:
    """Area over that of the convex hull, of the pixels as squares; 1 is convex. pixels: bool (h, w), not empty."""
    from scipy.spatial import ConvexHull

    rows = np.flatnonzero(pixels.any(axis=1))
    first = pixels[rows].argmax(axis=1)
    last = pixels.shape[1] - pixels[rows, ::-1].argmax(axis=1)
    corners = np.concatenate([np.stack([x, y], axis=1) for x in (first, last) for y in (rows, rows + 1)])
    return min(1.0, np.count_nonzero(pixels) / ConvexHull(corners).volume)


def thinness(pixels: np.ndarray) -> float:
    """Area over the square of the greatest width: about 1 for a square, 0.8 for a disc, n for a strip n times as long
    as wide. The width is 2 d - 1 pixels, where d is the greatest distance of a pixel to the next one outside; the
    array's border is outside. pixels: bool (h, w), not empty."""
    from scipy.ndimage import distance_transform_edt

    width = 2 * distance_transform_edt(np.pad(pixels, 1)).max() - 1
    return float(np.count_nonzero(pixels) / width**2)


def lab(rgb: np.ndarray) -> np.ndarray:
    """CIELAB (D65) of sRGB colours, uint8 (..., 3) -> float64 (..., 3): L 0 to 100, a, b."""
    levels = np.arange(256) / 255
    linear = np.where(levels <= 0.04045, levels / 12.92, ((levels + 0.055) / 1.055) ** 2.4)[rgb]
    t = linear @ (np.array(TO_XYZ).T / WHITE)
    x, y, z = np.moveaxis(np.where(t > (6 / 29) ** 3, np.cbrt(t), t / (3 * (6 / 29) ** 2) + 4 / 29), -1, 0)
    return np.stack([116 * y - 16, 500 * (x - y), 200 * (y - z)], axis=-1)
