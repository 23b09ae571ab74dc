"""Filling polygons exactly as pycocotools does. NumPy only."""

from collections.abc import Sequence

import numpy as np

from samjax.errors import InputError

SCALE = 5  # pycocotools traces outlines on a grid five times as fine


def rasterise(polygons: Sequence[Sequence[float]], image_hw: tuple[int, int]) -> np.ndarray:
    """Run lengths (int64, COCO's) of the union of polygons [x, y, x, y, ...].

    Bit-equal to pycocotools' `merge(frPyObjects(polygons, h, w))`. Raises InputError for what is no polygon.
    """
    if not len(polygons):
        raise InputError("a mask without polygons")
    toggles = [_toggles(_points(polygon), image_hw) for polygon in polygons]
    return _to_counts(toggles[0] if len(toggles) == 1 else _union(toggles), image_hw)


def _points(polygon) -> np.ndarray:
    try:
        flat = np.asarray(polygon, np.float64)
    except (TypeError, ValueError):
        raise InputError("a polygon must be a list of numbers x, y, x, y, ...") from None
    if flat.ndim != 1 or len(flat) < 6 or len(flat) % 2 or not np.isfinite(flat).all():
        raise InputError("a polygon must be a list of at least three pairs x, y of finite numbers")
    return flat.reshape(-1, 2)


def _toggles(points: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Sorted positions, column by column, where inside and outside change places."""
    h, w = image_hw
    u, v = _outline(np.trunc(SCALE * points + 0.5).astype(np.int64))
    across = np.flatnonzero(u[1:] != u[:-1]) + 1
    column = (np.minimum(u[across], u[across - 1]) + 0.5) / SCALE - 0.5
    row = np.ceil(np.clip((np.minimum(v[across], v[across - 1]) + 0.5) / SCALE - 0.5, 0, h)).astype(np.int64)
    kept = (column == np.floor(column)) & (column >= 0) & (column <= w - 1)  # only where a column's centre is crossed
    return np.sort(column[kept].astype(np.int64) * h + row[kept])


def _outline(corners: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Every grid point of the closed outline, in order: x and y, int64."""
    start, end = corners, np.roll(corners, -1, axis=0)
    span = np.abs(end - start)
    wide = span[:, 0] >= span[:, 1]
    major, minor = np.where(wide, 0, 1), np.where(wide, 1, 0)
    edge = np.arange(len(corners))
    # Each edge is walked along its longer side from its lower end, whichever way it runs.
    backward = start[edge, major] > end[edge, major]
    low = np.where(backward[:, None], end, start)
    high = np.where(backward[:, None], start, end)
    length = span[edge, major]
    slope = (high[edge, minor] - low[edge, minor]) / np.maximum(length, 1)

    which = np.repeat(edge, length + 1)
    step = np.arange(len(which)) - np.repeat(np.cumsum(length + 1) - length - 1, length + 1)
    step = np.where(backward[which], length[which] - step, step)
    along = step + low[which, major[which]]
    aside = np.trunc(low[which, minor[which]] + slope[which] * step + 0.5).astype(np.int64)
    return np.where(wide[which], along, aside), np.where(wide[which], aside, along)


def _union(toggles: list[np.ndarray]) -> np.ndarray:
    """Toggles of the union of masks that are given by theirs."""
    position = np.concatenate(toggles)
    change = np.concatenate([np.where(np.arange(len(t)) % 2 == 0, 1, -1) for t in toggles])
    order = np.argsort(position, kind="stable")
    position, depth = position[order], np.cumsum(change[order])
    last = np.ones(len(position), bool)  # of the toggles at one place
    last[:-1] = position[1:] != position[:-1]
    position, inside = position[last], depth[last] > 0
    return position[np.diff(inside, prepend=False)]


def _to_counts(toggles: np.ndarray, image_hw: tuple[int, int]) -> np.ndarray:
    """Run lengths between toggles; two toggles at one place cancel."""
    total = image_hw[0] * image_hw[1]
    places, times = np.unique(toggles, return_counts=True)
    places = places[(times % 2 == 1) & (places < total)]
    return np.diff(places, prepend=0, append=total)
