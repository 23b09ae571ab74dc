"""Prompts on a huge picture: each object is segmented in a crop around it, at a scale that suits its size.

Encoded whole, a picture of 20,000 px leaves an object of 100 px five of the encoder's pixels. A crop in which the
object takes a fair share of the frame gives it hundreds, and costs an encoding for each object (two or more from
points, which do not say how large it is).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

import jax.numpy as jnp
import numpy as np

from samjax import rle, runs, upscale
from samjax.config import SamConfig
from samjax.errors import InputError
from samjax.geometry import prepare, resize, target_size
from samjax.predict import Sam, _encode
from samjax.prompts import EMPTY, FOREGROUND, _boxes, _points, make_slots
from samjax.windows import Picture, open_picture

Box = tuple[int, int, int, int]
CLOSEST = 4  # encoder pixels a picture pixel at most: beyond, there is nothing more to see
NEAR = 8  # encoder pixels: a mask that ends this near to its crop's side may go on beyond it
SMALL = 1 / 32  # of the frame: a mask under it is looked at more closely; larger ones gain nothing by that
SAME = 0.5  # IoU of the masks of two crops that are taken for the same object
_STRIPES = 2**24  # pixels read at a time, of crops that are far larger than the frame


@dataclass(frozen=True)
class Zoomed:
    """The masks of one object in the crop that they were made in.

    crop: x0, y0, x1, y1 (exclusive) in the picture. iou: float32 (m,) predicted. logits: float32 (m, H, W) of the crop,
    at low resolution. image_hw: the picture's size. Masks are drawn when asked for, because a crop may be huge.
    """

    crop: Box
    iou: np.ndarray
    logits: np.ndarray
    image_hw: tuple[int, int]
    config: SamConfig

    @property
    def best(self) -> int:
        """The index of the most confident mask."""
        return int(self.iou.argmax())

    def box(self, index: int | None = None) -> Box:
        """x0, y0, x1, y1 (inclusive) in the picture of a mask (default: the best); zeros if it is empty."""
        return self._drawn(index)[0]

    def mask(self, index: int | None = None) -> np.ndarray:
        """A mask in the crop: bool (y1 - y0, x1 - x0)."""
        x0, y0, x1, y1 = self.crop
        out = np.zeros((y1 - y0, x1 - x0), bool)
        (left, top, right, bottom), part = self._drawn(index)
        if part is not None:
            out[top - y0 : bottom + 1 - y0, left - x0 : right + 1 - x0] = part
        return out

    def segmentation(self, index: int | None = None) -> dict:
        """A mask in the whole picture, as COCO's compressed run lengths: {"size", "counts"}."""
        return {"size": [int(n) for n in self.image_hw],
                "counts": rle.compress(runs.counts(self.runs(index), self.image_hw[1]))}

    def runs(self, index: int | None = None) -> runs.Runs:
        """A mask in the whole picture, as runs."""
        box, part = self._drawn(index)
        return runs.of_mask(np.zeros((1, 1), bool) if part is None else part, box[:2], self.image_hw[0])

    @property
    def empty(self) -> bool:
        """Whether the best mask has no pixel."""
        return self._drawn(None)[1] is None

    def _drawn(self, index: int | None) -> tuple[Box, np.ndarray | None]:
        logits = self.logits[self.best if index is None else index]
        x0, y0, x1, y1 = self.crop
        grid = upscale.axes(self.config, (y1 - y0, x1 - x0))
        measure = upscale.measure(logits, grid, 0)
        if not measure.area:
            return (0, 0, 0, 0), None
        left, top, right, bottom = measure.box
        return (left + x0, top + y0, right + x0, bottom + y0), upscale.render(
            upscale.cut(logits, grid, measure.box), grid)


def segment(sam: Sam, image, points=None, labels=None, boxes=None, *, multimask: bool | None = None,
            share: float = 0.25) -> list[Zoomed]:
    """Masks of objects in a picture of any size, each by its own crop.

    Args:
        image: a path or whatever else `samjax.windows.open_picture` takes.
        points, labels, boxes: as for `Sam.segment`, in pixels of the picture: of one object or of n.
        multimask: three masks for each object or one. Default: three for an object of a single point, else one.
        share: of the crop's side that an object's longer side takes, if neither the picture nor 4 encoder pixels a
            picture pixel set a limit.

    An object with a box is seen in the crop that the share gives it. One without is first looked for at native scale,
    in a crop as large as the model's frame (or as its points ask for); while its best mask reaches a side of the crop
    beyond which the picture goes on, the crop is doubled. If the mask then takes less than 1/32 of the crop's side, it
    is looked at again in the crop that the share gives it, prompted by its box as well, which counts if it shows the
    same object (IoU of 0.5 or more).

    Returns:
        For each object a `Zoomed`.

    Raises InputError.
    """
    if not 0 < share <= 1:
        raise InputError(f"share must be a number of 0 to 1, not {share!r}")
    picture = open_picture(image, sam.config.in_channels)
    try:
        image_hw = picture.shape[:2]
        make_slots(sam.config, image_hw, points, labels, boxes)  # says what is wrong
        points, labels = _points(points, labels, image_hw)
        boxes = _boxes(boxes, image_hw)
        out = []
        for i in range(len(points if boxes is None else boxes)):
            prompt = {} if points is None else {"points": points[i], "labels": labels[i]}
            prompt |= {} if boxes is None else {"boxes": boxes[i]}
            several = points is None or boxes is not None or (labels[i] != EMPTY).sum() != 1
            look = _Look(sam, picture, prompt, slice(0, 1) if (several if multimask is None else not multimask) else
                         slice(1, None))
            out.append(_by_box(look, boxes[i], share) if boxes is not None else _by_points(look, share))
        return out
    finally:
        if picture is not image:
            picture.close()


@dataclass(frozen=True)
class _Look:
    """One object's prompt, which may be looked at in several crops."""

    sam: Sam
    picture: Picture
    prompt: dict
    chosen: slice

    @property
    def image_hw(self) -> tuple[int, int]:
        return self.picture.shape[:2]

    @property
    def frame(self) -> int:
        return min(self.sam.config.image_size)

    def at(self, crop: Box) -> Zoomed:
        x0, y0, x1, y1 = crop
        config, hw = self.sam.config, (y1 - y0, x1 - x0)
        pixels, valid = _frame(self.picture, crop, config)
        features = _encode(config, self.sam.params, pixels[None], np.array([valid], np.int32))
        prompt = dict(self.prompt)
        if "points" in prompt:  # those outside of a crop say nothing in it
            xy = prompt["points"] - (x0, y0)
            outside = ((xy < 0) | (xy > (hw[1], hw[0]))).any(axis=-1)
            prompt |= {"points": xy, "labels": np.where(outside, EMPTY, prompt["labels"])}
        if "boxes" in prompt:
            prompt["boxes"] = prompt["boxes"] - (x0, y0, x0, y0)
        logits, iou = self.sam._decode(jnp.asarray(features), make_slots(config, hw, **prompt))
        return Zoomed(crop, iou[0, self.chosen], logits[0, self.chosen], self.image_hw, config)

    def crop(self, box: Sequence[float], side: float) -> Box:
        """A square around the middle of a box, moved into the picture."""
        side = math.ceil(max(side, self.frame / CLOSEST))
        ends = []
        for low, high, n in zip(box[:2], box[2:], reversed(self.image_hw)):
            start = int(min(max(0, (low + high - side) // 2), max(0, n - side)))
            ends.append((start, min(n, start + side)))
        (x0, x1), (y0, y1) = ends
        return x0, y0, x1, y1


def _by_box(look: _Look, box: np.ndarray, share: float) -> Zoomed:
    low, high = box[:2], box[2:]
    if "points" in look.prompt:
        given = look.prompt["points"][look.prompt["labels"] != EMPTY]
        low, high = np.minimum(low, given.min(axis=0, initial=np.inf)), np.maximum(high, given.max(axis=0, initial=0))
    around = [*low, *high]
    return look.at(look.crop(around, _side(around) / share))


def _by_points(look: _Look, share: float) -> Zoomed:
    points, labels = look.prompt["points"], look.prompt["labels"]
    given = points[labels == FOREGROUND] if (labels == FOREGROUND).any() else points
    around = [*given.min(axis=0), *given.max(axis=0)]
    crop = look.crop(around, max(look.frame, _side(around) / share))
    while True:
        found = look.at(crop)
        wider = look.crop(around, 2 * _side(crop))
        if not _cut(found) or wider == crop:
            break
        crop = wider
    x0, y0, x1, y1 = found.box()
    closer = look.crop((x0, y0, x1 + 1, y1 + 1), (max(x1 - x0, y1 - y0) + 1) / share)
    if found.empty or max(x1 - x0, y1 - y0) >= SMALL * _side(crop):
        return found
    again = replace(look, prompt=look.prompt | {"boxes": np.array([x0, y0, x1 + 1, y1 + 1], np.float64)}).at(closer)
    return again if not _cut(again) and _agree(found, again) else found


def _cut(found: Zoomed) -> bool:
    """Whether the best mask reaches a side of its crop beyond which the picture goes on. An empty one does not."""
    if found.empty:
        return False
    (x0, y0, x1, y1), (left, top, right, bottom), (h, w) = found.box(), found.crop, found.image_hw
    near = math.ceil(NEAR * _side(found.crop) / min(found.config.image_size))
    return bool((left > 0 and x0 < left + near) or (top > 0 and y0 < top + near)
                or (right < w and x1 >= right - near) or (bottom < h and y1 >= bottom - near))


def _agree(wide: Zoomed, close: Zoomed) -> bool:
    """Whether the best masks of two crops, the second inside the first, are of the same object."""
    one, two = runs.clip(wide.runs(), close.crop), close.runs()
    both = runs.shared(one, two)
    return both > 0 and both >= SAME * (wide.runs().area + two.area - both)


def _side(box) -> float:
    return max(box[2] - box[0], box[3] - box[1])


def _frame(picture: Picture, crop: Box, config: SamConfig) -> tuple[np.ndarray, tuple[int, int]]:
    """The crop in the model's frame, uint8 (H, W, c), and its (h, w) there; as `prepare` has it up to four frames wide.

    A larger one is read in stripes and first shrunk by a whole number, each pixel the mean of a square.
    """
    x0, y0, x1, y1 = crop
    times = int(_side(crop) // (2 * max(config.image_size)))
    if times < 2:
        return prepare(picture.read(*crop), config)
    new_hw = target_size(y1 - y0, x1 - x0, config.image_size)
    rows = max(1, _STRIPES // (x1 - x0) // times) * times
    small = np.concatenate([_means(picture.read(x0, y, x1, min(y1, y + rows)), times) for y in range(y0, y1, rows)])
    out = np.zeros((*config.image_size, small.shape[2]), np.uint8)
    out[: new_hw[0], : new_hw[1]] = resize(small, new_hw, config.resize)
    return out, new_hw


def _means(pixels: np.ndarray, times: int) -> np.ndarray:
    """Means over times x times pixels; the last ones of a row or column may be of fewer."""
    h, w, c = pixels.shape
    padded = np.pad(pixels, ((0, -h % times), (0, -w % times), (0, 0)), "edge")
    total = padded.reshape(len(padded) // times, times, -1).sum(axis=1, dtype=np.uint32)
    total = total.reshape(len(total), -1, times, c).sum(axis=2)
    return ((total + times**2 // 2) // times**2).astype(np.uint8)
