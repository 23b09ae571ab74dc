"""Overlays of huge pictures: picture and masks at a whole fraction of their size, neither whole in memory. No JAX."""

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from PIL import Image

from samjax import rle
from samjax.draw import Part, overlay
from samjax.windows import Picture

LONGEST = 4096  # px of a small picture's longer side at most; half of it at least
_STRIPE = 2**24  # px read at a time


class Small(NamedTuple):
    """A picture of size hw at 1 / times of it: pixels uint8 (ceil(h / times), ceil(w / times), c), means of squares."""

    pixels: np.ndarray
    times: int
    hw: tuple[int, int]


def shrink(picture: Picture, longest: int = LONGEST) -> Small:
    """A picture with no side above `longest`, read in stripes. Its channels: 3 or 1."""
    h, w, channels = picture.shape
    times = -(-max(h, w) // longest)
    rows = max(1, _STRIPE // (w * times)) * times
    stripes = [_reduced(picture.read(0, y, w, min(h, y + rows)), times) for y in range(0, h, rows)]
    return Small(np.concatenate(stripes), times, (h, w))


def overlay_small(small: Small, records: Sequence[dict]) -> Image.Image:
    """The small picture with every mask of the picture in a colour of its own; none is too small to be seen."""
    return overlay(small.pixels, SmallMasks(records, small))


class SmallMasks(Sequence):
    """The masks of some records, each a `Part` of the small picture made when it is asked for.

    A pixel is that of the mask in the middle of its square. A mask without any such pixel has one, where it begins.
    """

    def __init__(self, records: Sequence[dict], small: Small):
        self.records, self.small = records, small

    def __len__(self) -> int:
        return len(self.records)

    def __getitem__(self, index: int) -> Part:
        record, (_, times, (h, w)) = self.records[index], self.small
        ends = np.cumsum(rle.to_counts(record["segmentation"])[0])  # of runs in turn outside and inside
        if len(ends) < 2:
            return Part(np.zeros((1, 1), bool), (0, 0))
        x, y, width, height = record["bbox"]
        i, j = (np.arange(int(low) // times, int(low + side) // times + 1) for low, side in ((x, width), (y, height)))
        middle = [np.minimum(at * times + times // 2, n - 1) for at, n in ((i, w), (j, h))]
        inside = np.searchsorted(ends, middle[0][:, None] * h + middle[1], side="right") % 2 == 1
        if not inside.any():
            first = divmod(int(ends[0]), h)
            return Part(np.ones((1, 1), bool), (first[0] // times, first[1] // times))
        return Part(np.ascontiguousarray(inside.T), (int(i[0]), int(j[0])))


def _reduced(pixels: np.ndarray, times: int) -> np.ndarray:
    if times == 1:
        return pixels
    grey = pixels.shape[2] == 1
    small = np.asarray(Image.fromarray(pixels[..., 0] if grey else pixels).reduce(times))
    return small[..., None] if grey else small
