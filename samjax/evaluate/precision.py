"""Average precision of scored masks: what pycocotools' COCOeval calls AP and AR with iouType "segm", number by number.

In each picture and category the detections, by falling score, each take an object, at ten IoU thresholds and for
objects of all sizes, small, medium and large ones by themselves. Over all pictures that gives a curve of precision
over recall for each category; AP is the mean of its precision at 101 recalls, over thresholds and categories. Crowds
and objects of another size are ignored: who takes one is neither right nor wrong. NumPy only.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np

from samjax.evaluate.proposals import IOUS, SIZES

RECALLS = np.linspace(0, 1, 101)


@dataclass(frozen=True)
class Matches:
    """Of d detections of one category in one picture: scores (d,); right and ignored, bool (4, 10, d) by size and IoU
    threshold, what is neither being wrong. objects (4,): how many there are to find, by size."""

    scores: np.ndarray
    right: np.ndarray
    ignored: np.ndarray
    objects: np.ndarray


@dataclass(frozen=True)
class Curve:
    """Of one category: precision (4, 10, 101) by size, IoU threshold and recall; recall (4, 10) of all detections.
    Both are NaN where there are no objects; objects (4,): their number."""

    precision: np.ndarray
    recall: np.ndarray
    objects: np.ndarray


def match(ious: np.ndarray, scores: np.ndarray, areas: np.ndarray, object_areas: np.ndarray, crowds: np.ndarray,
          open_ended: bool = False) -> Matches:
    """COCO's assignment in one picture and category.

    Args:
        ious: float (d, g) of detections, by falling score, with objects; with crowds the share of the detection that
            lies in it.
        scores, areas: (d,), the areas in pixels. object_areas: (g,). crowds: bool (g,), which may be taken repeatedly.
        open_ended: whether there may be objects that nobody annotated, so that a detection without one is not wrong
            (LVIS's "not exhaustive").

    Of the objects that count each detection takes the one with the highest IoU, or else of the ignored ones; of equal
    ones the last.
    """
    passed = _beyond(object_areas) | np.asarray(crowds, bool)  # (4, g)
    least = np.minimum(IOUS, 1 - 1e-10)
    shape = len(SIZES), len(IOUS)
    size, cut = np.ogrid[: shape[0], : shape[1]]
    free = np.ones((*shape, len(object_areas)), bool)
    right, ignored = np.zeros((*shape, len(scores)), bool), np.zeros((*shape, len(scores)), bool)
    ignored |= True if open_ended else _beyond(areas)[:, None]
    for row in np.flatnonzero((ious >= least[0]).any(axis=1)):
        fits = free & (ious[row] >= least[:, None])
        counted = fits & ~passed[:, None]
        fits = np.where(counted.any(axis=-1, keepdims=True), counted, fits)
        chosen = fits.shape[-1] - 1 - np.where(fits, ious[row], -1)[..., ::-1].argmax(axis=-1)
        taken = fits.any(axis=-1)
        free[size, cut, chosen] &= ~taken | crowds[chosen]
        right[..., row] = taken & ~passed[size, chosen]
        ignored[..., row] = np.where(taken, passed[size, chosen], ignored[..., row])
    return Matches(np.asarray(scores, float), right, ignored, (~passed).sum(axis=1))


def curve(found: Sequence[Matches]) -> Curve:
    """Of one category. found: of its pictures, at least one; among equal scores they come in this order."""
    objects = sum(one.objects for one in found)
    order = np.argsort(-np.concatenate([one.scores for one in found]), kind="stable")
    right = np.concatenate([one.right for one in found], axis=-1)[..., order]
    ignored = np.concatenate([one.ignored for one in found], axis=-1)[..., order]
    hits = np.cumsum(right, axis=-1, dtype=float)
    precision = hits / (hits + np.cumsum(~right & ~ignored, axis=-1) + np.spacing(1))
    precision = np.maximum.accumulate(precision[..., ::-1], axis=-1)[..., ::-1]
    precision = np.concatenate([precision, np.zeros((*precision.shape[:2], 1))], axis=-1)  # recalls that are not met
    sampled, recall = np.full((*precision.shape[:2], len(RECALLS)), np.nan), np.full(precision.shape[:2], np.nan)
    for size, cut in np.ndindex(*recall.shape):
        if objects[size]:
            recalls = hits[size, cut] / objects[size]
            sampled[size, cut] = precision[size, cut][np.searchsorted(recalls, RECALLS)]
            recall[size, cut] = recalls[-1] if len(recalls) else 0
    return Curve(sampled, recall, objects)


def summary(curves: Iterable[Curve]) -> dict[str, float]:
    """{"ap", "ap_50", "ap_75", "ap_small", "ap_medium", "ap_large", "ar", "ar_small", ...}: in 0..1, means over the
    categories that have such objects; NaN where none has. ap_50 and ap_75 are those at an IoU of 0.5 and 0.75."""
    curves = list(curves)
    precision = np.stack([one.precision for one in curves], axis=1)  # (4, categories, 10, 101)
    recall = np.stack([one.recall for one in curves], axis=1)
    by_size = {"": 0} | {f"_{size}": i for i, size in enumerate(SIZES) if i}
    return {"ap": _mean(precision[0]), "ap_50": _mean(precision[0][:, 0]), "ap_75": _mean(precision[0][:, 5]),
            **{f"ap{name}": _mean(precision[i]) for name, i in by_size.items() if name},
            **{f"ar{name}": _mean(recall[i]) for name, i in by_size.items()}}


def _beyond(areas: np.ndarray) -> np.ndarray:
    """(4, n) bool: which areas are not of each size."""
    low, high = np.array(list(SIZES.values())).T[:, :, None]
    return (areas < low) | (areas > high)


def _mean(values: np.ndarray) -> float:
    """Of those that are known."""
    known = values[np.isfinite(values)]
    return float(known.mean()) if known.size else float("nan")
