"""All masks of a picture: a grid of points, the masks they give, and what is left after filters and suppression.

The official SamAutomaticMaskGenerator's results with less work: what the predicted IoU rules out is never upscaled,
what is upscaled is so only along its contour (`samjax.upscale`), and only masks that survive suppression are drawn.
Memory: the logits of two calls of points_per_batch points, a quarter of a megabyte at most for each mask that passes
the filters, and the run-length codes of the answer. (Binary masks, the default output_mode, are h x w bytes each.)
"""

from collections.abc import Iterator
from functools import partial
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array

from samjax import rle, upscale
from samjax.geometry import scale_points
from samjax.image import read_image
from samjax.model.sam import Masks, Prompts, decode_masks
from samjax.ops import masks as device_masks
from samjax.ops.boxes import crop_boxes, near_inner_edge, nms, xywh
from samjax.predict import Sam, _batch_size
from samjax.prompts import FOREGROUND, NOT_A_POINT
from samjax.regions import bounding_box, clean
from samjax.settings import DENSE, FAST, PAPER, PRESETS, Settings, make_settings

__all__ = ["DENSE", "FAST", "PAPER", "PRESETS", "Settings", "everything", "make_settings"]
Box = tuple[int, int, int, int]


class Candidate(NamedTuple):
    """A mask that passed the filters. Boxes are x0, y0, x1, y1 of the picture; the crop's x1, y1 are exclusive."""

    box: Box
    iou: np.float32
    stability: np.float32
    point: np.ndarray  # (2,) float64
    crop: Box
    cutting: upscale.Cutting  # the mask itself, in the crop's frame


class Drawn(NamedTuple):
    """A mask's run lengths in the picture, its box, and whether small regions were removed from it."""

    counts: np.ndarray
    box: Box
    changed: bool


def everything(sam: Sam, image, settings: Settings | None = None) -> list[dict]:
    """Masks of everything in a picture: see `Sam.everything`."""
    settings = settings or Settings()
    pixels = read_image(image, sam.config.in_channels)
    image_hw = pixels.shape[:2]
    crops = crop_boxes(image_hw, settings.crop_n_layers, settings.crop_overlap_ratio)
    found = []
    for (crop, layer), features in zip(crops, _features(sam, pixels, [box for box, _ in crops])):
        found += in_crop(sam, features, crop, settings.grid(layer), image_hw, settings)
    if len(crops) > 1:  # the finer crop wins
        areas = np.array([(c.crop[2] - c.crop[0]) * (c.crop[3] - c.crop[1]) for c in found], np.float32)
        found = [found[i] for i in nms(_boxes(found), 1 / areas, settings.crop_nms_thresh)]
    drawn = [_draw(sam, candidate, image_hw, settings.min_mask_region_area) for candidate in found]
    if settings.min_mask_region_area > 0:  # masks that were left as they were win
        untouched = np.array([not mask.changed for mask in drawn], np.float32)
        keep = nms(_boxes(drawn), untouched, max(settings.box_nms_thresh, settings.crop_nms_thresh))
        found, drawn = [found[i] for i in keep], [drawn[i] for i in keep]
    return [_record(candidate, mask, image_hw, settings.output_mode) for candidate, mask in zip(found, drawn)]


def in_crop(sam: Sam, features: Array, crop: Box, grid: np.ndarray, image_hw: tuple[int, int],
            settings: Settings) -> list[Candidate]:
    """The masks of one crop, after the filters and suppression among themselves, most confident first.

    features: (1, h, w, 256) of the crop; grid: (n, 2) points, shares of its width and height.
    """
    left, top, right, bottom = crop
    crop_hw = bottom - top, right - left
    points = grid * (crop_hw[1], crop_hw[0])
    most = settings.max_mask_area_fraction * image_hw[0] * image_hw[1]
    found = []
    for start, masks in _decoded(sam, features, points, crop_hw, settings.points_per_batch):
        iou = np.asarray(masks.iou)[0, : len(points) - start]
        chosen = np.argwhere((iou > np.float32(settings.pred_iou_thresh)) | (settings.pred_iou_thresh <= 0))
        for (n, m), measure, cutting in _measured(sam, masks.logits, chosen, crop_hw, settings):
            box = _shifted(measure.box, (left, top))
            unstable = settings.stability_score_thresh > 0 and not (
                measure.stability >= np.float32(settings.stability_score_thresh))
            too_large = settings.max_mask_area_fraction < 1 and measure.area >= most
            if unstable or too_large or near_inner_edge(box, crop, image_hw)[0]:
                continue
            found.append(Candidate(box, iou[n, m], measure.stability, points[start + n] + (left, top), crop, cutting()))
    return [found[i] for i in nms(_boxes(found), np.array([c.iou for c in found], np.float32), settings.box_nms_thresh)]


def _features(sam: Sam, pixels: np.ndarray, crops: list[Box]) -> Iterator[Array]:
    """(1, h, w, 256) of each crop; on an accelerator several go through the encoder at once."""
    size = _batch_size()
    for start in range(0, len(crops), size):
        part = [pixels[y0:y1, x0:x1] for x0, y0, x1, y1 in crops[start : start + size]]
        embedding = sam.encode(part)
        for i in range(len(part)):
            yield embedding[i].features


def _decoded(sam: Sam, features: Array, points: np.ndarray, crop_hw: tuple[int, int],
             batch: int) -> Iterator[tuple[int, Masks]]:
    """Yields (index of the first point, masks (1, n, 3, H, W)), a batch of points each; the next is under way then.

    All batches are of one size, so one program serves them; the last one is filled up with its last point.
    """
    scaled = scale_points(points, crop_hw, sam.config).astype(np.float32)
    batches = -(-len(points) // batch)
    size = -(-len(points) // batches)
    waiting = None
    for start in range(0, len(points), size):
        part = scaled[start : start + size]
        masks = _decode(sam.config, sam.params, features, np.pad(part, ((0, size - len(part)), (0, 0)), "edge"))
        if waiting is not None:
            yield waiting
        waiting = start, masks
    yield waiting


@partial(jax.jit, static_argnums=0)
def _decode(config, params: dict, features: Array, points: Array) -> Masks:
    """Three masks for each point (n, 2): a foreground point and the "not a point" token, as official SAM has it."""
    n = len(points)
    slots = jnp.stack([points, jnp.zeros_like(points)], axis=1)[None]
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT], jnp.int32), (1, n, 2))
    return decode_masks(config, params, features, Prompts(slots, labels), multimask=True)


def _measured(sam: Sam, logits: Array, chosen: np.ndarray, crop_hw: tuple[int, int],
              settings: Settings) -> Iterator[tuple]:
    """Yields (indices (n, m), Measure, a function that gives the Cutting) of the chosen masks (k, 2)."""
    grid, offset = upscale.axes(sam.config, crop_hw), settings.stability_score_offset
    if _on_host():
        logits = np.asarray(logits)[0]  # no copy
        for n, m in chosen:
            measure = upscale.measure(logits[n, m], grid, offset)
            yield (n, m), measure, lambda: upscale.cut(logits[n, m], grid, measure.box)  # noqa: B023 (called at once)
        return
    for i, measure in enumerate(_measured_on_device(sam, logits[0], chosen, crop_hw, offset)):
        n, m = chosen[i]
        yield (n, m), measure, lambda: upscale.cut(np.asarray(logits[0, n, m]), grid, measure.box)  # noqa: B023


def _on_host() -> bool:
    """Where logits are measured: NumPy is quicker than XLA on a CPU."""
    return jax.default_backend() == "cpu"


def _measured_on_device(sam: Sam, logits: Array, chosen: np.ndarray, crop_hw: tuple[int, int],
                        offset: float) -> list[upscale.Measure]:
    """The same on the device, 32 masks a call, so that one program serves any number of them."""
    rows, columns = _matrices(sam.config, crop_hw)
    found = []
    for start in range(0, len(chosen), 32):
        part = chosen[start : start + 32]
        n, m = np.pad(part, ((0, 32 - len(part)), (0, 0)), "edge").T
        counts, boxes = (np.asarray(x)[: len(part)] for x in _measure(logits, n, m, rows, columns, np.float32(offset)))
        found += [upscale.Measure(*count, tuple(box)) for count, box in zip(counts.tolist(), boxes.tolist())]
    return found


@jax.jit
def _measure(logits, n, m, rows, columns, offset):
    return device_masks.measure(logits[n, m], rows, columns, offset)


def _matrices(config, crop_hw):
    return tuple(jnp.asarray(matrix) for matrix in device_masks.matrices(config, crop_hw))


def _draw(sam: Sam, candidate: Candidate, image_hw: tuple[int, int], least: int) -> Drawn:
    """The candidate's pixels, without small regions if `least` is above 0."""
    left, top, right, bottom = candidate.crop
    mask = upscale.render(candidate.cutting, upscale.axes(sam.config, (bottom - top, right - left)))
    corner, box, changed = candidate.box[:2], candidate.box, False
    if least > 0:
        mask, corner, changed = clean(mask, corner, image_hw, least)
        box = bounding_box(mask, corner) if changed else box
    return Drawn(rle.encode(mask, corner, image_hw), box, changed)


def _record(candidate: Candidate, drawn: Drawn, image_hw: tuple[int, int], mode: str) -> dict:
    size = [int(side) for side in image_hw]
    if mode == "binary_mask":
        segmentation = rle.decode(drawn.counts, image_hw)
    elif mode == "coco_rle":
        segmentation = {"size": size, "counts": rle.compress(drawn.counts)}
    else:
        segmentation = {"size": size, "counts": drawn.counts.tolist()}
    return {
        "segmentation": segmentation,
        "area": rle.area(drawn.counts),
        "bbox": xywh(drawn.box),
        "predicted_iou": float(candidate.iou),
        "point_coords": [candidate.point.tolist()],
        "stability_score": float(candidate.stability),
        "crop_box": xywh(candidate.crop),
    }


def _boxes(items) -> np.ndarray:
    return np.array([item.box for item in items], np.int64).reshape(-1, 4)


def _shifted(box: Box, by: tuple[int, int]) -> Box:
    x, y = by
    return box[0] + x, box[1] + y, box[2] + x, box[3] + y
