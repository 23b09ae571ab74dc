"""A record becomes an example: the picture in the model's frame, and a fixed number of masks on the mask grid."""

from dataclasses import dataclass, replace

import numpy as np

from samjax.config import SamConfig
from samjax.data.frame import Frame, pixels, plain
from samjax.data.grid import to_cells
from samjax.data.records import Record, decode_all
from samjax.errors import InputError
from samjax.geometry import target_size
from samjax.image import full_hw

TOO_LARGE = 0.9  # of the picture: such masks are dropped (Segment Anything, appendix A)
LEAST = 32  # pixels of an object, in its own picture


@dataclass(frozen=True)
class Augment:
    """Random changes. The paper trains without any, and with large-scale jitter where data are few.

    flip: how often left and right change places; upside: how often top and bottom do, for pictures that have no up (of
    microscopes, from above). scale: (low, high) of a factor on the plain size, drawn uniformly; a picture larger than
    the frame is cut at a random place, a smaller one padded. (0.1, 2.0) is large-scale jitter. light: the most by which
    contrast (about the middle grey) and brightness change, each by a share drawn uniformly.
    """

    flip: float = 0.5
    scale: tuple[float, float] | None = None
    upside: float = 0.0
    light: float = 0.0

    def __post_init__(self):
        for name in ("flip", "upside"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"{name} {getattr(self, name)} is no probability")
        if not 0 <= self.light < 1:
            raise ValueError(f"light {self.light} must be at least 0 and below 1")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale {self.scale} must be (low, high) with 0 < low <= high")


def draw_frame(image_hw: tuple[int, int], size: tuple[int, int], augment: Augment | None,
               rng: np.random.Generator) -> Frame:
    """The frame of one example: plain without `augment`."""
    frame = plain(image_hw, size)
    if augment is None:
        return frame
    flip, offset = bool(rng.random() < augment.flip), (0, 0)
    if augment.scale is not None:
        scale = rng.uniform(*augment.scale)
        scaled = target_size(*image_hw, (size[0] * scale, size[1] * scale))
        scaled = tuple(max(1, int(side)) for side in scaled)
        offset = tuple(int(rng.integers(max(n - s, 0) + 1)) for n, s in zip(scaled, size))
        frame = Frame(frame.image_hw, scaled, frame.size)
    upside = bool(augment.upside and rng.random() < augment.upside)
    return Frame(frame.image_hw, frame.scaled_hw, frame.size, offset, flip, upside)


def mask_cells(config: SamConfig, mask_size: int | None) -> tuple[int, int]:
    """(h, w) of the mask grid. mask_size: its height, a multiple of the low-resolution logits' (None: equal)."""
    h, w = config.mask_size
    if mask_size is None:
        return h, w
    if mask_size < h or mask_size % h:
        raise InputError(f"mask_size {mask_size} must be a multiple of {h}, the side of the model's mask logits")
    return mask_size, mask_size // h * w


def draw_masks(record: Record, frame: Frame, cells: tuple[int, int], objects: int,
               rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray]:
    """At most `objects` random masks: bool (objects, *cells), and which of them are real, bool (objects,).

    Dropped are masks over 90 % of the picture (or of what is left of it in the frame), under 32 px, and those that lie
    outside the frame. Only masks that are drawn get decoded. Where all fit, they keep their order.
    """
    masks, valid = np.zeros((objects, *cells), bool), np.zeros(objects, bool)
    waiting = list(record.objects)
    if len(waiting) > objects:
        waiting = [waiting[i] for i in rng.permutation(len(waiting))]
    most = TOO_LARGE * frame.image_hw[0] * frame.image_hw[1]
    room = TOO_LARGE * np.prod([v / s * c for v, s, c in zip(frame.valid, frame.size, cells)])
    n = 0
    while waiting and n < objects:
        drawn, waiting = waiting[:objects - n], waiting[objects - n:]
        counts = [counts for counts in decode_all(drawn) if LEAST <= counts[1::2].sum() <= most]
        for part, (i, j) in to_cells(counts, frame, cells):
            if part.any() and (frame.plain or np.count_nonzero(part) <= room):
                masks[n, i:i + part.shape[0], j:j + part.shape[1]], valid[n] = part, True
                n += 1
    return masks, valid


def example(record: Record, config: SamConfig, cells: tuple[int, int], objects: int, rng: np.random.Generator,
            augment: Augment | None = None, fast_jpeg: bool = False, images: bool = False) -> dict[str, np.ndarray]:
    """One picture of a batch: "image" uint8 (H, W, c) or "features" float32 (h, w, c), with `images` both, "size"
    int32 (2,): (h, w) of the picture in the frame, "masks" bool (objects, *cells), "valid" bool (objects,).

    Raises InputError for a damaged picture or mask, and where none of its masks can be used; with objects 0 masks are
    not looked at.
    """
    if not objects:
        return _without_masks(record, config, cells, rng, augment, images)
    if not record.objects:
        raise InputError("no masks")
    image_hw = tuple(record.objects[0].size)
    record.check_size(image_hw)
    frame = draw_frame(image_hw, config.image_size, augment, rng)
    masks, valid = draw_masks(record, frame, cells, objects, rng)
    if not valid.any() and not frame.plain:  # cut away: take the picture as it is
        frame = plain(image_hw, config.image_size)
        masks, valid = draw_masks(record, frame, cells, objects, rng)
    if not valid.any():
        raise InputError(f"none of its {len(record.objects)} masks has between {LEAST} px and {TOO_LARGE:.0%} of the "
                         "picture")
    return {**_seen(record, frame, config, rng, augment, fast_jpeg, images), "masks": masks, "valid": valid}


def light(image: np.ndarray, valid: tuple[int, int], most: float, rng: np.random.Generator) -> None:
    """Changes contrast and brightness of uint8 (H, W, c) in place, each by a share of at most `most`; the padding, what
    is not in the first `valid` rows and columns, stays black."""
    contrast, brightness = 1 + rng.uniform(-most, most, 2)
    levels = ((np.arange(256) - 127.5) * contrast + 127.5) * brightness
    table = np.clip(np.rint(levels), 0, 255).astype(np.uint8)
    h, w = valid
    image[:h, :w] = table[image[:h, :w]]


def _without_masks(record: Record, config: SamConfig, cells: tuple[int, int], rng: np.random.Generator,
                   augment: Augment | None, images: bool) -> dict[str, np.ndarray]:
    picture = record.open()
    record = replace(record, open=lambda longest=None: picture, objects=())
    frame = draw_frame(full_hw(picture), config.image_size, augment, rng)
    return {**_seen(record, frame, config, rng, augment, False, images),
            "masks": np.zeros((0, *cells), bool), "valid": np.zeros(0, bool)}


def _seen(record: Record, frame: Frame, config: SamConfig, rng: np.random.Generator, augment: Augment | None,
          fast_jpeg: bool, images: bool) -> dict[str, np.ndarray]:
    """What the model sees, pixels, a cached embedding, or both, and the picture's size in the frame."""
    found = {} if record.features is None else _features(record, frame)
    if images or not found:
        found |= _pixels(record, frame, config, fast_jpeg)
        if augment is not None and augment.light:
            light(found["image"], frame.valid, augment.light, rng)
    return found | {"size": np.array(frame.valid, np.int32)}


def _pixels(record: Record, frame: Frame, config: SamConfig, fast_jpeg: bool) -> dict[str, np.ndarray]:
    fast = fast_jpeg and config.resize == "bilinear"
    picture = record.open(longest=max(frame.scaled_hw) if fast else None)
    record.check_size(full_hw(picture))
    return {"image": pixels(picture, frame, config)}


def _features(record: Record, frame: Frame) -> dict[str, np.ndarray]:
    features, size = record.features()
    if tuple(size) != frame.valid:
        raise InputError(f"the cached embedding is of a picture of {tuple(size)} in the frame, here it is of "
                         f"{frame.valid}: make the embeddings again")
    return {"features": np.asarray(features, np.float32)}


def blank(config: SamConfig, cells: tuple[int, int], objects: int, features: bool,
          images: bool = False) -> dict[str, np.ndarray]:
    """An example without any object, which adds nothing to a loss of masks."""
    first = {"features": np.zeros((*config.grid, config.channels), np.float32)} if features else {}
    if images or not features:
        first["image"] = np.zeros((*config.image_size, config.in_channels), np.uint8)
    return {**first, "size": np.array(config.image_size, np.int32), "masks": np.zeros((objects, *cells), bool),
            "valid": np.zeros(objects, bool)}
