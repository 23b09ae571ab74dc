"""The protocol of points: an annotator who clicks into the middle of the object, then into that of the largest error.

Segment Anything, appendix D.1. The first point is the object's pixel farthest from its boundary; each further one is
that of the largest error region, missed (a foreground point) or too much (a background point). After one point the
answer is the most confident of three masks; later, as in training, each round is fed the logits of the answer before,
and the answer is the single mask. Host side; what the model says comes from a function.
"""

from collections.abc import Callable, Sequence

import numpy as np

from samjax.evaluate.crops import Crop, Upscaled, errors, iou
from samjax.prompts import BACKGROUND, EMPTY, FOREGROUND

Ask = Callable[..., tuple[np.ndarray, np.ndarray]]  # prompts of n objects -> logits (n, 1 + 3, H, W), iou (n, 1 + 3)
Click = tuple[int, int, int]  # x, y, label


def score_name(count: int) -> str:
    """What the score after so many points is called: point, point_2, point_3, ..."""
    return "point" if count == 1 else f"point_{count}"


def farthest(region: np.ndarray) -> tuple[int, int]:
    """(x, y) of the pixel of a region, bool (h, w), that is farthest from its boundary, by exact Euclidean distance to
    the next pixel outside. The array's border counts as boundary; the first in raster order on ties."""
    from scipy.ndimage import distance_transform_edt

    distance = distance_transform_edt(np.pad(region, 1))
    y, x = np.unravel_index(distance.argmax(), distance.shape)
    return int(x) - 1, int(y) - 1


def centre(truth: Crop) -> tuple[int, int]:
    """The first point (x, y). A crop's box decides nothing: what is outside is no farther than the box's border."""
    x, y = farthest(truth.pixels)
    return truth.box[0] + x, truth.box[1] + y


def anywhere(truth: Crop, random: np.random.Generator) -> tuple[int, int]:
    """A first point that is any pixel of the object with the same chance."""
    inside = np.flatnonzero(truth.pixels)
    y, x = divmod(int(inside[random.integers(len(inside))]), truth.pixels.shape[1])
    return truth.box[0] + x, truth.box[1] + y


def next_point(found: Crop | Upscaled, truth: Crop) -> Click | None:
    """The point for the largest error region, or None where nothing is wrong.

    Regions are the 8-connected parts of what is missed and of what is too much; of equals the missed one, and the
    first in raster order.
    """
    missed, excess, (left, top) = errors(found, truth)
    (most, region, corner), (more, other, there) = _largest(missed), _largest(excess)
    if not most and not more:
        return None
    label = FOREGROUND if most >= more else BACKGROUND
    if label == BACKGROUND:
        region, corner = other, there
    x, y = farthest(region)
    return left + corner[0] + x, top + corner[1] + y, label


def score_points(ask: Ask, truths: Sequence[Crop], grid, counts: Sequence[int] = (1,),
                 first: Callable[[Crop, int], tuple[int, int]] | None = None) -> tuple[list[dict], list[list[Click]]]:
    """Scores of one picture's objects after so many points, all objects asked for together.

    Args:
        ask: given points, labels and mask_logits as `Sam.segment` takes them, all masks of the decoder.
        truths: the objects, not empty. grid: `samjax.upscale.axes` of the picture.
        counts: after how many points. first(truth, number) -> (x, y): the first point; default `centre`.

    Returns:
        For each object a dict: NAME (see `score_name`) the IoU of the answer, NAME_oracle that of the best of the masks
        (of three after one point, then of these and the single one), NAME_predicted the model's own estimate; and
        its points. An object without an error left gets no more points and keeps its scores.
    """
    clicks = [[(*(first(truth, i) if first else centre(truth)), FOREGROUND)] for i, truth in enumerate(truths)]
    n = len(truths)
    scores, answers, estimates, feedback = [{} for _ in truths], [None] * n, [0.0] * n, None
    active = list(range(n))  # those with an error left
    for count in range(1, max(counts) + 1):
        if count > 1:
            active = [i for i in active if _add(clicks[i], next_point(answers[i], truths[i]))]
        if active:
            masks, predicted = ask(**_prompts(clicks), mask_logits=feedback)
            chosen = 1 + predicted[:, 1:].argmax(axis=1) if count == 1 else np.zeros(n, int)
            feedback = masks[np.arange(n), chosen]
            for i in active:
                answers[i], estimates[i] = Upscaled(feedback[i], grid), float(predicted[i, chosen[i]])
        if count in counts:
            name = score_name(count)
            for i, truth in enumerate(truths):
                own = iou(answers[i], truth)
                others = () if own == 1 else np.delete(masks[i], (0, chosen[i]), axis=0)
                best = max([own, *(iou(Upscaled(other, grid), truth) for other in others)])
                scores[i] |= {name: own, f"{name}_oracle": best, f"{name}_predicted": estimates[i]}
    return scores, clicks


def _add(clicks: list[Click], click: Click | None) -> bool:
    if click is not None:
        clicks.append(click)
    return click is not None


def _prompts(clicks: Sequence[Sequence[Click]]) -> dict:
    """As arrays; objects with fewer points are filled up with empty slots."""
    most = max(map(len, clicks))
    rows = np.array([[*each, *[(0, 0, EMPTY)] * (most - len(each))] for each in clicks])
    return {"points": rows[..., :2], "labels": rows[..., 2]}


def _largest(region: np.ndarray) -> tuple[int, np.ndarray, tuple[int, int]]:
    """Pixels of the largest 8-connected part, itself as bool within its box, and the box's top left (x, y)."""
    from scipy import ndimage

    labels, parts = ndimage.label(region, np.ones((3, 3), int))
    if not parts:
        return 0, region, (0, 0)
    areas = np.bincount(labels.ravel(), minlength=parts + 1)[1:]
    number = int(areas.argmax()) + 1
    rows, columns = ndimage.find_objects(labels)[number - 1]
    return int(areas[number - 1]), labels[rows, columns] == number, (columns.start, rows.start)
