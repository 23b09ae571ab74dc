"""Specks and pinholes: connected regions of a mask below an area."""

import numpy as np


def clean(mask: np.ndarray, corner: tuple[int, int], image_hw: tuple[int, int],
          least: int) -> tuple[np.ndarray, tuple[int, int], bool]:
    """Fills holes, then drops islands, of fewer than `least` pixels (8-connected): official postprocess_small_regions.

    Args:
        mask: bool (h, w), the part of a picture image_hw with all of the mask; corner: its top left (x, y) there.

    Returns:
        The new part, its corner, and whether anything changed. Of a mask of nothing but specks the largest stays.
    """
    # Beyond the frame all is background. A margin as deep as `least` makes what is cut off there large enough.
    (x, y), (h, w), (height, width) = corner, mask.shape, image_hw
    left, top = min(x, least), min(y, least)
    right, bottom = min(width - x - w, least), min(height - y - h, least)
    framed = np.pad(mask, ((top, bottom), (left, right)))
    filled, with_holes = fill_holes(framed, least)
    cleaned, with_islands = drop_islands(filled, least)
    return cleaned, (x - left, y - top), with_holes or with_islands


def fill_holes(mask: np.ndarray, least: int) -> tuple[np.ndarray, bool]:
    """Background regions under `least` pixels become mask; (mask, changed)."""
    labels, sizes = _regions(~mask)
    small = sizes < least
    if not small.any():
        return mask, False
    return np.concatenate([[True], small])[labels], True


def drop_islands(mask: np.ndarray, least: int) -> tuple[np.ndarray, bool]:
    """Mask regions under `least` pixels become background, but for the largest if all are; (mask, changed)."""
    labels, sizes = _regions(mask)
    small = sizes < least
    if not small.any():
        return mask, False
    if small.all():
        small[sizes.argmax()] = False
    return np.concatenate([[False], ~small])[labels], True


def bounding_box(mask: np.ndarray, corner: tuple[int, int] = (0, 0)) -> tuple[int, int, int, int]:
    """x0, y0, x1, y1, inclusive, of a mask whose top left is at `corner`; zeros if it is empty."""
    rows, cols = np.flatnonzero(mask.any(axis=1)), np.flatnonzero(mask.any(axis=0))
    if not len(rows):
        return 0, 0, 0, 0
    x, y = corner
    return int(cols[0]) + x, int(rows[0]) + y, int(cols[-1]) + x, int(rows[-1]) + y


def _regions(mask: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Labels (0: none) and the sizes of regions 1, 2, ..."""
    from scipy import ndimage

    labels, n = ndimage.label(mask, structure=np.ones((3, 3), int))
    return labels, np.bincount(labels.ravel(), minlength=n + 1)[1:]
