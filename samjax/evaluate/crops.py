"""Masks at a picture's own resolution without holding them whole: crops of the truth, answers upscaled where needed.

A box is x0, y0, x1, y1 in pixel edges: x1 and y1 are exclusive. NumPy only.
"""

from functools import cached_property

import numpy as np

from samjax import upscale

Box = tuple[int, int, int, int]
NOWHERE = (0, 0, 0, 0)  # the box of an empty mask


class Crop:
    """A mask by its pixels inside its box; everything else is background."""

    def __init__(self, mask: np.ndarray, corner: tuple[int, int] = (0, 0)):
        """mask: bool (h, w), a picture or a part of one that has its top left pixel at `corner` (x, y)."""
        rows, columns = (np.flatnonzero(mask.any(axis=axis)) for axis in (1, 0))
        self.box, self.pixels = NOWHERE, np.zeros((0, 0), bool)
        if len(rows):
            (y0, y1), (x0, x1), (left, top) = rows[[0, -1]].tolist(), columns[[0, -1]].tolist(), corner
            self.box = left + x0, top + y0, left + x1 + 1, top + y1 + 1
            self.pixels = np.array(mask[y0 : y1 + 1, x0 : x1 + 1], bool)

    @cached_property
    def area(self) -> int:
        """Pixels."""
        return int(np.count_nonzero(self.pixels))

    def part(self, box: Box) -> np.ndarray:
        """The mask inside any box of the picture: bool (y1 - y0, x1 - x0)."""
        x0, y0, x1, y1 = box
        out = np.zeros((y1 - y0, x1 - x0), bool)
        left, top, right, bottom = shared = _shared(self.box, box)
        if _filled(shared):
            own_x, own_y = self.box[:2]
            out[top - y0 : bottom - y0, left - x0 : right - x0] = self.pixels[top - own_y : bottom - own_y,
                                                                             left - own_x : right - own_x]
        return out


class Upscaled:
    """A mask that the model gave, logits (H, W) float32; its pixels are those of the official postprocess.

    grid: `samjax.upscale.axes` of the picture.
    """

    def __init__(self, logits: np.ndarray, grid):
        self.logits, self.grid = logits, grid
        measure = upscale.measure(logits, grid, 0.0)
        x0, y0, x1, y1 = measure.box
        self.area, self.box = measure.area, (x0, y0, x1 + 1, y1 + 1) if measure.area else NOWHERE

    def part(self, box: Box) -> np.ndarray:
        """As `Crop.part`."""
        x0, y0, x1, y1 = box
        if not _filled(box):
            return np.zeros((y1 - y0, x1 - x0), bool)
        return upscale.render(upscale.cut(self.logits, self.grid, (x0, y0, x1 - 1, y1 - 1)), self.grid)


def iou(a: Crop | Upscaled, b: Crop | Upscaled) -> float:
    """Intersection over union in pixels; of two empty masks 1."""
    shared, common = _shared(a.box, b.box), 0
    if _filled(shared):
        common = int(np.count_nonzero(a.part(shared) & b.part(shared)))
    union = a.area + b.area - common
    return common / union if union else 1.0


def errors(found: Crop | Upscaled, truth: Crop | Upscaled) -> tuple[np.ndarray, np.ndarray, tuple[int, int]]:
    """What is missed and what is too much: bool (h, w) each, with the (x, y) of their top left pixel."""
    boxes = [mask.box for mask in (found, truth) if mask.area]
    if not boxes:
        return np.zeros((0, 0), bool), np.zeros((0, 0), bool), (0, 0)
    x0, y0, x1, y1 = zip(*boxes)
    frame = min(x0), min(y0), max(x1), max(y1)
    inside, wanted = (mask.part(frame) if mask.area else np.zeros((frame[3] - frame[1], frame[2] - frame[0]), bool)
                      for mask in (found, truth))
    return wanted & ~inside, inside & ~wanted, frame[:2]


def _shared(a: Box, b: Box) -> Box:
    return max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])


def _filled(box: Box) -> bool:
    return box[2] > box[0] and box[3] > box[1]
