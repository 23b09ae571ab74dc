"""Masks of everything in huge pictures: overlapping windows at one scale, one lattice of points, joined across seams.

A picture is read in windows of `tile` pixels a side (`samjax.windows`), neighbours sharing 2 * halo pixels, and each is
encoded at the same scale, whatever its size. Points lie on one lattice of the whole picture; each is decoded in one
of these, at least `halo` away from the sides where the picture goes on. What a window cuts is joined with its other
parts (`samjax.seams`), or seen whole in a further window around them where it fits into one (`samjax.looks`). So what
is found depends little on `tile`, which may follow from memory and speed.

An object is found if a point of the lattice falls on it: those of 1.5 * spacing across always are.

Prompts on a huge picture: `segment`, of `samjax.zoom`.

Memory: one window and its features, 50 MB of logits for 64 points, and run lengths: 16 bytes for each run of each mask.
"""

import contextlib
import json
import math
import os
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
from jax import Array, lax

from samjax import rle, runs, upscale
from samjax.errors import InputError
from samjax.geometry import resize
from samjax.kept import Kept
from samjax.looks import EDGE, Look, looks
from samjax.model.sam import Prompts, decode_masks
from samjax.ops.boxes import nms, xywh
from samjax.predict import Sam, _batch_size, _encode
from samjax.prompts import FOREGROUND, NOT_A_POINT
from samjax.regions import bounding_box, clean
from samjax.seams import Joined, Piece, Seams
from samjax.settings import Settings, make_settings
from samjax.suppress import box_nms, mask_nms, without_groups
from samjax.tiles import Box, Plan, Tiling
from samjax.windows import Picture, open_picture
from samjax.zoom import Zoomed, segment

__all__ = ["Kept", "Plan", "Zoomed", "everything", "plan", "records", "save_sa1b", "segment"]


def plan(sam: Sam, image_hw: tuple[int, int], settings: Settings, tile: int, halo: int | None, scale: float,
         spacing: float | None) -> Plan:
    """The windows of a picture; see `everything`. Raises InputError for numbers that do not fit together."""
    return Tiling(tile, halo, scale, spacing).plan(min(sam.config.image_size), image_hw, settings)


def everything(sam: Sam, image, settings: Settings | None = None, *, tile: int | None = 1024, halo: int | None = None,
               scale: float = 1.0, spacing: float | None = None, agreement: float = 0.6,
               progress: Callable[[int, int], None] | None = None, kept: Kept | None = None, **values) -> list[dict]:
    """Masks of everything in a picture of any size.

    Args:
        image: a path or whatever else `samjax.windows.open_picture` takes; only windows of it are in memory, where its
            format permits.
        settings: a `samjax.settings.Settings` without crops; or give single ones as `values`, by their official names
            as for `Sam.everything`: then output_mode is "coco_rle" unless it is among them (a binary mask of 20,000 x
            20,000 px is 400 MB; there are as many as objects). points_per_side counts the points on a full frame.
            max_mask_area_fraction is of the whole picture; regions below min_mask_region_area are cleaned in windows.
        tile: a window's side in picture pixels, halos included; tile * scale fits the model's frame (1024). None: as
            large as it allows.
        halo: picture pixels on each side of a tile that it shares with the next (default tile / 8). Objects larger than
            twice the halo may be cut by every tile: those that fit into a tile are looked at again, in further windows
            (at most as many as there are tiles), larger ones are put together of parts.
        scale: encoder pixels a picture pixel. Above 1 finds smaller objects, below 1 costs less.
        spacing: of the lattice of points in picture pixels, default 1024 / points_per_side / scale; it starts half a
            spacing from the picture's top left corner.
        agreement: the least IoU, within the overlap of two tiles, of masks that are taken for the same object.
        progress: called with (windows done, all windows); further windows are counted when the tiles are done.
        kept: where the windows that are done are kept, so that work that was cut short is taken up again.

    Returns:
        Records with the official keys, most confident first. crop_box is the window, or what is around all windows of
        an object that was joined; such a one has the points of all its parts, and its scores are their means.

    Windows of one single colour are skipped: nothing in them can be told from anything. An object of which a part
    cannot be found beyond a seam is left out, as what a crop cuts is left out officially. Of masks that are alike (IoU
    of boxes or of masks above box_nms_thresh) the most confident stays; a mask of several parts apart from each other,
    each of which is a mask of its own as well, is left out.

    Raises InputError.
    """
    return list(records(sam, image, settings, tile=tile, halo=halo, scale=scale, spacing=spacing, agreement=agreement,
                        progress=progress, kept=kept, **values))


def records(sam: Sam, image, settings: Settings | None = None, *, tile: int | None = 1024, halo: int | None = None,
            scale: float = 1.0, spacing: float | None = None, agreement: float = 0.6,
            progress: Callable[[int, int], None] | None = None, kept: Kept | None = None, **values) -> Iterator[dict]:
    """`everything`, one record at a time: the work is done before the first, but only runs are in memory then."""
    if settings is not None and values:
        raise InputError(f"give settings, or {', '.join(values)} by name, not both")
    settings = settings or make_settings(**{"output_mode": "coco_rle"} | values)
    tiling = Tiling(tile, halo, scale, spacing, agreement)
    tiling.check(settings)
    picture = open_picture(image, sam.config.in_channels)
    try:
        image_hw = picture.shape[:2]
        layout = tiling.plan(min(sam.config.image_size), image_hw, settings)
        seams, again = Seams(layout.windows, agreement, trim=layout.halo // 2), []
        before = {} if kept is None else kept.load(image_hw[0])
        first = [Look(window, layout.points(i)) for i, window in enumerate(layout.windows)]
        for index, pieces in _windows(sam, picture, first, 0, layout.scale, settings, before, kept):
            seams.add(index, pieces)
            if progress is not None:
                progress(index + 1, len(first))
        second = looks(seams.doubtful(), layout, image_hw)
        for index, pieces in _windows(sam, picture, second, len(first), layout.scale, settings, before, kept):
            again += pieces
            if progress is not None:
                progress(index + 1, len(first) + len(second))
    finally:
        if picture is not image:
            picture.close()
    yield from _finished(seams.objects(again), [*first, *second], image_hw, settings)


def save_sa1b(path, found: Iterable[dict], image_hw: tuple[int, int], file_name: str, image_id: int = 0) -> int:
    """Writes records as SA-1B JSON, one after the other; returns their number. Whole or not at all.

    The file is what `samjax.annotations.sa1b` gives. Raises InputError where it cannot be written.
    """
    path = os.fspath(path)
    temporary = os.path.join(os.path.dirname(path), f".{os.path.basename(path)}.{os.getpid()}.tmp")
    (h, w), number = image_hw, -1
    head = {"image_id": image_id, "width": int(w), "height": int(h), "file_name": file_name}
    try:
        with open(temporary, "w", encoding="utf-8") as file:
            file.write(f'{{"image": {json.dumps(head)}, "annotations": [')
            for number, record in enumerate(found):
                counts, size = rle.to_counts(record["segmentation"])
                line = {"id": number, **record, "segmentation": {"size": list(size), "counts": rle.compress(counts)}}
                file.write((",\n" if number else "\n") + json.dumps(line))
            file.write("]}\n")
        os.replace(temporary, path)
    except OSError as error:
        raise InputError(f"cannot write {path}: {(error.strerror or str(error)).lower()}") from None
    finally:
        with contextlib.suppress(OSError):
            os.unlink(temporary)
    return number + 1


def _windows(sam: Sam, picture: Picture, todo: list[Look], number: int, scale: float, settings: Settings,
             before: dict, kept: Kept | None) -> Iterator[tuple[int, list[Piece]]]:
    """(index, its pieces) of each window, in order; indices begin at `number`. before: of `Kept.load`."""
    done = {i for i, look in enumerate(todo, number) if i in before and before[i][0] == look.mark}
    features = _features(sam, picture, scale, [look.window for i, look in enumerate(todo, number) if i not in done])
    for index, look in enumerate(todo, number):
        if index in done:
            _, pieces = before.pop(index)
        else:
            one = next(features)
            pieces = [] if one is None else _in_window(sam, one, look, index, scale, picture.shape[:2], settings)
            if kept is not None:
                kept.put(index, look.mark, pieces)
        yield index, pieces


def _features(sam: Sam, picture: Picture, scale: float, windows: list[Box]) -> Iterator[Array | None]:
    """(1, h, w, 256) of each of these windows; None if it is all of one colour. The next ones are read meanwhile."""
    size = _batch_size()
    waiting: list[np.ndarray | None] = []

    def encoded():
        there = [i for i, pixels in enumerate(waiting) if pixels is not None]
        out = [None] * len(waiting)
        if there:
            frames, valid = zip(*(_frame(sam, waiting[i], scale) for i in there))
            missing = size - len(frames)  # the last batch is filled up, so that it needs no program of its own
            features = _encode(sam.config, sam.params, np.stack(frames + frames[-1:] * missing),
                               np.array(valid + valid[-1:] * missing, np.int32))
            for row, i in enumerate(there):
                out[i] = features[row : row + 1]
        return out

    with ThreadPoolExecutor(1) as pool:
        coming = [pool.submit(picture.read, *window) for window in windows[:1]]
        for following in [*windows[1:], None][: len(windows)]:
            pixels = coming.pop().result()
            if following is not None:
                coming.append(pool.submit(picture.read, *following))
            waiting.append(None if (pixels == pixels[0, 0]).all() else pixels)
            if sum(one is not None for one in waiting) in (0, size):
                yield from encoded()
                waiting = []
        yield from encoded()


def _frame(sam: Sam, pixels: np.ndarray, scale: float) -> tuple[np.ndarray, tuple[int, int]]:
    """A window at scale in the model's frame, uint8 (H, W, c), padded right and below; its (h, w) there."""
    new_hw = _scaled(pixels.shape[:2], scale)
    small = resize(pixels, new_hw, sam.config.resize)
    frame = np.zeros((*sam.config.image_size, small.shape[2]), np.uint8)
    frame[: new_hw[0], : new_hw[1]] = small
    return frame, new_hw


def _scaled(hw: tuple[int, int], scale: float) -> tuple[int, int]:
    return tuple(max(1, round(side * scale)) for side in hw)


def _in_window(sam: Sam, features: Array, look: Look, index: int, scale: float, image_hw: tuple[int, int],
               settings: Settings) -> list[Piece]:
    """The masks of a window after filters and suppression among themselves."""
    left, top, right, bottom = look.window
    hw = bottom - top, right - left
    new_hw = _scaled(hw, scale)
    grid = upscale.axes(sam.config, hw, new_hw)
    points = look.points
    scaled = (points - (left, top)) * (new_hw[1] / hw[1], new_hw[0] / hw[0])
    found = []
    for start, logits, iou in _decoded(sam, features, scaled.astype(np.float32), settings.points_per_batch):
        for n, m in np.argwhere((iou > np.float32(settings.pred_iou_thresh)) | (settings.pred_iou_thresh <= 0)):
            measure = upscale.measure(logits[n, m], grid, settings.stability_score_offset)
            stable = measure.stability >= np.float32(settings.stability_score_thresh)
            if measure.area and (stable or settings.stability_score_thresh <= 0):
                found.append((measure.box, iou[n, m], measure.stability, points[start + n],
                              upscale.cut(logits[n, m], grid, measure.box)))
    boxes = np.array([box for box, *_ in found], np.int64).reshape(-1, 4)
    keep = nms(boxes, np.array([iou for _, iou, *_ in found], np.float32), settings.box_nms_thresh)
    margin = math.ceil(EDGE / scale)
    pieces = []
    for box, iou, stability, point, cutting in (found[i] for i in keep):
        mask, corner = upscale.render(cutting, grid), box[:2]
        if settings.min_mask_region_area > 0:
            mask, corner, changed = clean(mask, corner, hw, settings.min_mask_region_area)
            box = bounding_box(mask, corner) if changed else box
        place = box[0] + left, box[1] + top, box[2] + left, box[3] + top
        pieces.append(Piece(index, place, runs.of_mask(mask, (corner[0] + left, corner[1] + top), image_hw[0]),
                            float(iou), float(stability), tuple(point.tolist()),
                            _cut(place, look.window, image_hw, margin)))
    return pieces


def _cut(box: Box, window: Box, image_hw: tuple[int, int], margin: int) -> tuple[bool, bool, bool, bool]:
    """Which sides of the window the (inclusive) box reaches, where the picture goes on."""
    (x0, y0, x1, y1), (left, top, right, bottom), (h, w) = box, window, image_hw
    return (left > 0 and x0 < left + margin, top > 0 and y0 < top + margin,
            right < w and x1 >= right - margin, bottom < h and y1 >= bottom - margin)


def _decoded(sam: Sam, features: Array, points: np.ndarray, batch: int) -> Iterator[tuple[int, np.ndarray, np.ndarray]]:
    """Yields (index of the first point, logits (n, 3, H, W), iou (n, 3)), at most `batch` points at a time."""
    waiting = None
    for start in range(0, len(points), batch):
        part = points[start : start + batch]
        padded = np.pad(part, ((0, batch - len(part)), (0, 0)), "edge")
        coming = start, len(part), *_decode(sam.config, sam.params, features, padded, np.int32(len(part)))
        if waiting is not None:
            yield _fetched(*waiting)
        waiting = coming
    if waiting is not None:
        yield _fetched(*waiting)


def _fetched(start, n, logits, iou):
    return start, np.asarray(logits)[:n], np.asarray(iou)[:n]


@partial(jax.jit, static_argnums=0)
def _decode(config, params: dict, features: Array, points: Array, count: Array) -> tuple[Array, Array]:
    """Three masks for each of the first `count` points (n, 2): the cost follows `count`, the program does not."""
    n = len(points)
    size = math.gcd(_batch_size(), n)
    slots = jnp.stack([points, jnp.zeros_like(points)], axis=1)
    labels = jnp.broadcast_to(jnp.array([FOREGROUND, NOT_A_POINT], jnp.int32), (1, size, 2))

    def step(i, done):
        part = lax.dynamic_slice_in_dim(slots, i * size, size)[None]
        answer = decode_masks(config, params, features, Prompts(part, labels), multimask=True)
        return tuple(lax.dynamic_update_slice_in_dim(all_, x[0], i * size, axis=0) for all_, x in zip(done, answer))

    empty = jnp.zeros((n, 3, *config.mask_size)), jnp.zeros((n, 3))
    return lax.fori_loop(0, (count + size - 1) // size, step, empty)


def _finished(found: list[Joined], seen: list[Look], image_hw: tuple[int, int], settings: Settings) -> Iterator[dict]:
    most = settings.max_mask_area_fraction * image_hw[0] * image_hw[1]
    if settings.max_mask_area_fraction < 1:
        found = [one for one in found if one.runs.area < most]
    scores = lambda: np.array([one.iou for one in found], np.float32)
    found = [found[i] for i in box_nms(np.array([one.box for one in found]), scores(), settings.box_nms_thresh)]
    found = [found[i] for i in mask_nms([one.runs for one in found], scores(), settings.box_nms_thresh)]
    for i in without_groups([one.runs for one in found], settings.box_nms_thresh):
        yield _record(found[i], seen, image_hw, settings.output_mode)


def _record(one: Joined, seen: list[Look], image_hw: tuple[int, int], mode: str) -> dict:
    counts = runs.counts(one.runs, image_hw[1])
    size = [int(side) for side in image_hw]
    windows = np.array([seen[i].window for i in one.windows])
    if mode == "binary_mask":
        segmentation = rle.decode(counts, image_hw)
    else:
        segmentation = {"size": size, "counts": rle.compress(counts) if mode == "coco_rle" else counts.tolist()}
    return {
        "segmentation": segmentation,
        "area": one.runs.area,
        "bbox": xywh(one.box),
        "predicted_iou": one.iou,
        "point_coords": [list(point) for point in one.points],
        "stability_score": one.stability,
        "crop_box": xywh((*windows[:, :2].min(axis=0), *windows[:, 2:].max(axis=0))),
    }
