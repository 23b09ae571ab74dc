"""Where a huge picture is looked at again: further windows around what its windows' seams cut or joined.

A part of an object is a poor witness: at a corner where four windows meet the parts of one may not agree, or those of
neighbours may. What fits into a window is therefore seen whole in one, prompted with the points that found the parts.
Windows are shared where they can be. No JAX.
"""

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from samjax.seams import Piece
from samjax.tiles import Box, Plan, patch

EDGE = 8  # encoder pixels: a mask that ends this near to its window's side is taken to be cut by it


class Look(NamedTuple):
    """A window, x0, y0, x1, y1 exclusive, and the points (n, 2) to ask there."""

    window: Box
    points: np.ndarray


class _Wanted(NamedTuple):
    """What is to be seen whole: from low to high along an axis, perhaps going on beyond; how much room is there."""

    low: int
    high: int  # exclusive
    open: tuple[bool, bool]


def looks(groups: Sequence[Sequence[Piece]], layout: Plan, image_hw: tuple[int, int]) -> list[Look]:
    """Windows that hold the groups of pieces, as large as those of the plan; at most as many.

    A group that does not fit into one is not looked at. Windows start at the encoder's patches, as all do.
    """
    size = tuple(max(box[i + 2] - box[i] for box in layout.windows) for i in (0, 1))
    found: list[tuple[Box, list]] = []
    for group in sorted(groups, key=lambda group: min(piece.box[1::-1] for piece in group)):
        wanted = [_wanted(group, axis, math.ceil(EDGE / layout.scale)) for axis in (0, 1)]
        points = [piece.point for piece in group]
        shared = next((there for window, there in found if _holds(window, wanted, layout.halo, size, image_hw)), None)
        if shared is not None:
            shared += points
        elif len(found) < len(layout.windows) and (window := _window(wanted, layout, size, image_hw)):
            found.append((window, points))
    return [Look(window, np.unique(np.array(points, np.float64), axis=0)) for window, points in found]


def _wanted(group: Sequence[Piece], axis: int, margin: int) -> _Wanted:
    low, high = min(piece.box[axis] for piece in group), max(piece.box[axis + 2] for piece in group)
    ends = (any(piece.cut[axis] and piece.box[axis] <= low + margin for piece in group),
            any(piece.cut[axis + 2] and piece.box[axis + 2] >= high - margin for piece in group))
    return _Wanted(low, high + 1, ends)


def _holds(window: Box, wanted: Sequence[_Wanted], halo: int, size, image_hw) -> bool:
    """Whether a window shows enough around: half a halo, or a quarter of a window where it is not known how far."""
    for axis, want in enumerate(wanted):
        room = [size[axis] // 4 if end else halo // 2 for end in want.open]
        start, stop, n = window[axis], window[axis + 2], image_hw[1 - axis]
        if (start > 0 and want.low - room[0] < start) or (stop < n and want.high + room[1] > stop):
            return False
    return True


def _window(wanted: Sequence[_Wanted], layout: Plan, size, image_hw) -> Box | None:
    """A window of this size for them, or None if they are too large for any."""
    margin, step = math.ceil(EDGE / layout.scale), patch(layout.scale)
    starts = [_start(want, size[axis], image_hw[1 - axis], layout.halo, margin, step)
              for axis, want in enumerate(wanted)]
    if None in starts:
        return None
    return (*starts, *(min(start + side, n) for start, side, n in zip(starts, size, reversed(image_hw))))


def _start(want: _Wanted, size: int, n: int, halo: int, margin: int, step: int) -> int | None:
    """Where a window along an axis of n pixels begins: most room where the object goes on, else it is in the middle."""
    room = size - (want.high - want.low)
    if room < 2 * (margin + step):
        return None
    around = min(halo, room // 2)
    start = {(True, False): want.high + around - size, (False, True): want.low - around}.get(
        want.open, want.low - room // 2)
    last = max(0, -((size - n) // step) * step)
    return min(max(0, start // step * step), last)
