"""All masks of a picture: a grid of points, the masks they give, and what is left after filters and suppression.

The official SamAutomaticMaskGenerator's results with less work: what the predicted IoU rules out is never upscaled,
what is upscaled is so only along its contour (`samjax.upscale`), and only masks that survive suppression are drawn.
Many pictures are worked on at once, as many as the devices take (`samjax.lockstep`); the answer does not depend on it.
Memory, for each device: the logits of two calls of points_per_batch points (on an accelerator three); for each picture:
a quarter of a megabyte at most for each mask that passes the filters, and the run-length codes of the answer. (Binary
masks, the default output_mode, are h x w bytes each.)
"""

import itertools
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from functools import partial
from typing import NamedTuple

import numpy as np

from samjax import rle, upscale
from samjax.config import SamConfig
from samjax.geometry import prepare, scale_points, target_size
from samjax.image import read_image
from samjax.lockstep import Item, Lockstep, Round, on_host, one_device
from samjax.ops.boxes import crop_boxes, near_inner_edge, nms, xywh
from samjax.predict import Sam
from samjax.regions import bounding_box, clean
from samjax.settings import DENSE, FAST, PAPER, PRESETS, Settings, make_settings

__all__ = ["DENSE", "FAST", "PAPER", "PRESETS", "Picture", "Settings", "each", "everything", "make_settings", "read"]
Box = tuple[int, int, int, int]
THREADS = 8  # resize crops, and finish pictures while the devices work on the next ones


class Picture(NamedTuple):
    """A picture's pixels, uint8 (h, w, c), and the same in the encoder's frame if that has been made already."""

    pixels: np.ndarray
    frame: np.ndarray | None = None

    @property
    def hw(self) -> tuple[int, int]:
        return self.pixels.shape[:2]


class Crop(NamedTuple):
    """A part of one of the pictures that are worked on together."""

    picture: int
    box: Box
    layer: int


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
    pictures = [Picture(read_image(image, sam.config.in_channels))]
    found = next(each(sam, pictures, settings, one_device() if on_host() else None, alone=True))
    if isinstance(found, Exception):
        raise found
    return found


def read(config: SamConfig, path) -> Picture:
    """A picture, read and resized: what can be done ahead, in other threads. Raises InputError."""
    pixels = read_image(path, config.in_channels)
    return Picture(pixels, prepare(pixels, config)[0])


def each(sam: Sam, pictures: Iterable[Picture], settings: Settings | None = None,
         devices: Sequence | None = None, alone: bool = False) -> Iterator[list[dict] | Exception]:
    """The records of each picture, in order, worked on by all devices of this process (or those given).

    alone: a device encodes one picture at a time. Otherwise an accelerator encodes several, always as many, so that a
    picture's records do not depend on how many others there are; they may differ in last digits from those of one that
    is alone.

    Yields an exception in place of the records of a picture that failed; the others go on without it. Pictures are
    taken as they are needed: as many as are worked on at once, and those before them until they are finished.
    """
    settings, pictures = settings or Settings(), iter(pictures)
    lockstep = Lockstep(sam, devices)
    most = 1 if alone else lockstep.devices if settings.crop_n_layers else lockstep.capacity
    with ThreadPoolExecutor(THREADS) as threads:
        finishing = []
        while group := list(itertools.islice(pictures, most)):
            found = _tried(lockstep, group, settings, threads, most)
            finish = partial(threads.submit, _finish, sam.config, settings)
            begun = [one if isinstance(one, Exception) else finish(one, picture.hw)
                     for one, picture in zip(found, group)]
            yield from map(_result, finishing)
            finishing = begun
        yield from map(_result, finishing)


def _result(finishing: Future | Exception) -> list[dict] | Exception:
    if isinstance(finishing, Exception):
        return finishing
    return finishing.exception() or finishing.result()


def _tried(lockstep: Lockstep, group: list[Picture], settings: Settings, threads, most: int) -> list:
    """The candidates of each picture; where they fail together, each is tried alone and only its own failure counts.

    What fails alone in the batches of `most` pictures is tried once more in those of one, which take the least memory.
    """
    try:
        return _candidates(lockstep, group, settings, threads, most)
    except Exception as error:
        if len(group) > 1:
            return [_tried(lockstep, [picture], settings, threads, most)[0] for picture in group]
        return _tried(lockstep, group, settings, threads, 1) if most > lockstep.devices else [error]


def _candidates(lockstep: Lockstep, group: list[Picture], settings: Settings, threads,
                most: int) -> list[list[Candidate]]:
    """For each picture what is left of all its crops, each with suppression among its own masks.

    most: how many pictures a group has if there are enough; batches are cut for as many.
    """
    crops = [Crop(i, *crop) for i, picture in enumerate(group)
             for crop in crop_boxes(picture.hw, settings.crop_n_layers, settings.crop_overlap_ratio)]
    found = [[] for _ in group]
    for layer in range(settings.crop_n_layers + 1):
        here = [crop for crop in crops if crop.layer == layer]
        grid = settings.grid(layer)
        chunks = [{} for _ in here]
        items = [partial(_item, lockstep.config, group[crop.picture], crop.box, grid) for crop in here]
        together = -(-most * 4**layer // lockstep.devices)  # whatever the number of pictures in this group
        for each_round in lockstep.run(items, settings.points_per_batch, threads, together):
            for unit, kept in zip(each_round.units, _kept(lockstep, each_round, here, grid, group, settings)):
                if unit is not None:
                    chunks[unit.item][unit.start] = kept
        for crop, parts in zip(here, chunks):
            kept = [candidate for start in sorted(parts) for candidate in parts[start]]
            best = nms(_boxes(kept), np.array([c.iou for c in kept], np.float32), settings.box_nms_thresh)
            found[crop.picture] += [kept[i] for i in best]
    return found


def _item(config: SamConfig, picture: Picture, box: Box, grid: np.ndarray) -> Item:
    x0, y0, x1, y1 = box
    hw = y1 - y0, x1 - x0
    frame = picture.frame if hw == picture.hw and picture.frame is not None else None
    if frame is None:
        frame, _ = prepare(picture.pixels[y0:y1, x0:x1], config)
    points = scale_points(grid * (hw[1], hw[0]), hw, config).astype(np.float32)
    return Item(frame, target_size(*hw, config.image_size), points)


def _kept(lockstep: Lockstep, each_round: Round, crops: list[Crop], grid: np.ndarray, group: list[Picture],
          settings: Settings) -> Iterator[list[Candidate]]:
    """What passes the filters, for each device's unit."""
    iou = lockstep.iou(each_round.masks)
    boxes = [crops[unit.item if unit else 0].box for unit in each_round.units]
    sizes = [(y1 - y0, x1 - x0) for x0, y0, x1, y1 in boxes]
    chosen = [_confident(iou[i], len(grid) - unit.start if unit else 0, settings)
              for i, unit in enumerate(each_round.units)]
    measured = (_on_host if on_host() else _on_device)(lockstep, each_round.masks, chosen, sizes, settings)
    for i, (unit, masks) in enumerate(zip(each_round.units, measured)):
        found = []
        for (n, m), measure, cutting in masks:
            crop = crops[unit.item]
            image_hw, corner = group[crop.picture].hw, crop.box[:2]
            box = _shifted(measure.box, corner)
            if _stable(measure, settings) and not _too_large(measure.area, image_hw, settings) and not (
                    near_inner_edge(box, crop.box, image_hw)[0]):
                point = grid[unit.start + n] * (sizes[i][1], sizes[i][0]) + corner
                found.append(Candidate(box, iou[i, n, m], measure.stability, point, crop.box, cutting()))
        yield found


def _confident(iou: np.ndarray, points: int, settings: Settings) -> np.ndarray:
    """(k, 2): which of the masks (n, 3) of the first points are worth upscaling."""
    iou = iou[: max(points, 0)]
    return np.argwhere((iou > np.float32(settings.pred_iou_thresh)) | (settings.pred_iou_thresh <= 0))


def _stable(measure: upscale.Measure, settings: Settings) -> bool:
    least = settings.stability_score_thresh
    return least <= 0 or bool(measure.stability >= np.float32(least))


def _too_large(area: int, image_hw: tuple[int, int], settings: Settings) -> bool:
    share = settings.max_mask_area_fraction
    return share < 1 and area >= share * image_hw[0] * image_hw[1]


def _on_host(lockstep: Lockstep, masks, chosen, sizes, settings: Settings) -> Iterator[Iterator[tuple]]:
    """For each device: (n, m), Measure, a function that gives the Cutting, of each chosen mask."""
    def one(logits, chosen, size):
        grid = upscale.axes(lockstep.config, size)
        for n, m in chosen:
            measure = upscale.measure(logits[n, m], grid, settings.stability_score_offset)
            yield (n, m), measure, partial(upscale.cut, logits[n, m], grid, measure.box)

    yield from map(one, lockstep.logits(masks), chosen, sizes)


def _on_device(lockstep: Lockstep, masks, chosen, sizes, settings: Settings) -> Iterator[list[tuple]]:
    """The same where only the logits of stable masks leave the devices, all at once."""
    measures = [[upscale.Measure(*counts, tuple(box)) for counts, box in zip(*(x.tolist() for x in arrays))]
                for arrays in lockstep.measure(masks, chosen, sizes, settings.stability_score_offset)]
    stable = [[i for i, measure in enumerate(part) if _stable(measure, settings)] for part in measures]
    logits = lockstep.take(masks, [where[keep] for where, keep in zip(chosen, stable)])
    for where, part, keep, values, size in zip(chosen, measures, stable, logits, sizes):
        grid = upscale.axes(lockstep.config, size)
        yield [(where[i], part[i], partial(upscale.cut, mask, grid, part[i].box)) for i, mask in zip(keep, values)]


def _finish(config: SamConfig, settings: Settings, found: list[Candidate], image_hw: tuple[int, int]) -> list[dict]:
    """Suppression among the crops of a picture, then drawing what is left."""
    if settings.crop_n_layers:  # the finer crop wins
        areas = np.array([(c.crop[2] - c.crop[0]) * (c.crop[3] - c.crop[1]) for c in found], np.float32)
        found = [found[i] for i in nms(_boxes(found), 1 / areas, settings.crop_nms_thresh)]
    drawn = [_draw(config, candidate, image_hw, settings.min_mask_region_area) for candidate in found]
    if settings.min_mask_region_area > 0:  # masks that were left as they were win
        untouched = np.array([not mask.changed for mask in drawn], np.float32)
        keep = nms(_boxes(drawn), untouched, max(settings.box_nms_thresh, settings.crop_nms_thresh))
        found, drawn = [found[i] for i in keep], [drawn[i] for i in keep]
    return [_record(candidate, mask, image_hw, settings.output_mode) for candidate, mask in zip(found, drawn)]


def _draw(config: SamConfig, candidate: Candidate, image_hw: tuple[int, int], least: int) -> Drawn:
    """The candidate's pixels, without small regions if `least` is above 0."""
    left, top, right, bottom = candidate.crop
    mask = upscale.render(candidate.cutting, upscale.axes(config, (bottom - top, right - left)))
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
