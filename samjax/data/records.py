"""A picture and its objects, as the sources hand them out: both are decoded only when they are asked for."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np
from PIL import Image

from samjax import rle
from samjax.data.polygons import rasterise
from samjax.errors import InputError
from samjax.image import read_image


class Mask:
    """One object. size: (h, w) of its picture."""

    size: tuple[int, int]

    def counts(self) -> np.ndarray:
        """COCO's run lengths, int64: down the columns, zeros first. Raises InputError if the mask is damaged."""
        raise NotImplementedError

    def area(self) -> int:
        """Pixels."""
        return rle.area(self.counts())

    def mask(self) -> np.ndarray:
        """Bool (h, w)."""
        return rle.decode(self.counts(), self.size)


@dataclass
class Rle(Mask):
    """Run lengths: a list of counts, or COCO's compressed text. Decoded once."""

    size: tuple[int, int]
    data: Sequence[int] | str | bytes

    def counts(self) -> np.ndarray:
        if not isinstance(self.data, np.ndarray):
            self.data = self._checked()
        return self.data

    def _checked(self) -> np.ndarray:
        h, w = self.size
        try:
            text = isinstance(self.data, (str, bytes))
            counts = rle.decompress(self.data) if text else np.asarray(self.data, np.int64)
        except (TypeError, ValueError, OverflowError):  # InputError is a ValueError
            raise InputError("a mask's run lengths are damaged") from None
        if counts.ndim != 1 or counts.sum() != h * w or counts.min(initial=0) < 0:
            raise InputError(f"a mask's run lengths sum to {counts.sum()} and not to {h} x {w}")
        return counts


def decode_all(masks: Sequence[Mask]) -> list[np.ndarray]:
    """The counts of many masks; compressed ones are decoded together, which is much quicker."""
    texts = [mask for mask in masks if isinstance(mask, Rle) and isinstance(mask.data, (str, bytes))]
    try:
        decoded = rle.decompress_all([mask.data for mask in texts])
    except (InputError, ValueError):  # one of them is damaged, and will say so itself
        decoded = []
    for mask, counts in zip(texts, decoded):
        mask.data = counts.tolist() if counts.sum() != mask.size[0] * mask.size[1] or counts.min() < 0 else counts
    return [mask.counts() for mask in masks]


def to_rle(segmentation: dict) -> Rle:
    """From COCO's {"size": [h, w], "counts": ...}. Raises KeyError, TypeError or ValueError for anything else."""
    h, w = segmentation["size"]
    return Rle((int(h), int(w)), segmentation["counts"])


@dataclass
class Polygons(Mask):
    """The union of polygons, each [x, y, x, y, ...] in pixels, filled as pycocotools fills them, once."""

    size: tuple[int, int]
    polygons: Sequence[Sequence[float]]
    _counts: np.ndarray | None = field(default=None, repr=False)

    def counts(self) -> np.ndarray:
        if self._counts is None:
            self._counts = rasterise(self.polygons, self.size)
        return self._counts


@dataclass
class Part(Mask):
    """A bool array that holds the whole object; corner: its top left (x, y) in the picture."""

    size: tuple[int, int]
    pixels: np.ndarray
    corner: tuple[int, int] = (0, 0)

    def counts(self) -> np.ndarray:
        return rle.encode(self.pixels, self.corner, self.size)

    def area(self) -> int:
        return int(np.count_nonzero(self.pixels))

    def mask(self) -> np.ndarray:
        out = np.zeros(self.size, bool)
        (x, y), (h, w) = self.corner, self.pixels.shape
        out[y:y + h, x:x + w] = self.pixels
        return out


@dataclass
class Record:
    """One picture. name: unique within its source; features: its cached embedding, where the source has such."""

    name: str
    open: Callable[..., Image.Image] = field(repr=False)  # decoded and upright, as `image.open_image(longest=...)`
    objects: Sequence[Mask] = field(repr=False)
    features: Callable[[], tuple[np.ndarray, tuple[int, int]]] | None = field(default=None, repr=False)

    @property
    def image(self) -> np.ndarray:
        """uint8 (h, w, 3)."""
        return read_image(self.open())

    def check_size(self, image_hw: tuple[int, int]) -> None:
        """Raises InputError for a mask of another size than the picture."""
        for mask in self.objects:
            if tuple(mask.size) != tuple(image_hw):
                raise InputError(f"a mask of {mask.size[1]} x {mask.size[0]} pixels (width x height), but the picture "
                                 f"is {image_hw[1]} x {image_hw[0]}")
