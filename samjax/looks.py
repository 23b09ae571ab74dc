"""Where a huge picture is looked at again: further windows around what its windows' seams cut or joined.

A part of an object is a poor witness: at a corner where four windows meet the parts of one may not agree, or those of
neighbours may. What fits into a window is therefore seen whole in one, prompted with the points that found the parts.
Windows are shared where they can be. No JAX.
"""

import math
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from samjax.seams import Group, Piece
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


def looks(groups: Sequence[Group], layout: Plan, image_hw: tuple[int, int]) -> list[Look]:
    """Windows that hold the groups of pieces, as large as those of the plan; at most as many.

    A group that does not fit into one is joined, if it is continued; else it may be of several objects, and the pieces
    that fit are looked at. Windows start at the encoder's patches, as all do.
    """
    size = tuple(max(box[i + 2] - box[i] for box in layout.windows) for i in (0, 1))
    found: list[tuple[Box, list]] = []
    for pieces in sorted(_that_fit(groups, layout, size), key=lambda some: min(piece.box[1::-1] for piece in some)):
        wanted = _wanted(pieces, layout)
        points = [piece.point for piece in pieces]
        shared = next((there for window, there in found if _holds(window, wanted, layout.halo, size, image_hw)), None)
        if shared is not None:
            shared += points
        elif len(found) < len(layout.windows):
            found.append((_window(wanted, layout, size, image_hw), points))
    return [Look(window, np.unique(np.array(points, np.float64), axis=0)) for window, points in found]


def _that_fit(groups: Sequence[Group], layout: Plan, size) -> Iterator[Sequence[Piece]]:
    """The groups that a window holds with a patch and a margin around, and pieces of others that are not continued."""
    least = 2 * (_margin(layout) + patch(layout.scale))
    fits = lambda pieces: all(side - (want.high - want.low) >= least
                              for side, want in zip(size, _wanted(pieces, layout)))
    for pieces, continued in groups:
        if fits(pieces):
            yield pieces
        elif not continued:
            yield from ([piece] for piece in pieces if fits([piece]))


def _margin(layout: Plan) -> int:
    """EDGE in picture pixels."""
    return math.ceil(EDGE / layout.scale)


def _wanted(pieces: Sequence[Piece], layout: Plan) -> list[_Wanted]:
    """Across and down."""
    found, margin = [], _margin(layout)
    for axis in (0, 1):
        low, high = min(piece.box[axis] for piece in pieces), max(piece.box[axis + 2] for piece in pieces)
        found.append(_Wanted(low, high + 1, (
            any(piece.cut[axis] and piece.box[axis] <= low + margin for piece in pieces),
            any(piece.cut[axis + 2] and piece.box[axis + 2] >= high - margin for piece in pieces))))
    return found


def _holds(window: Box, wanted: Sequence[_Wanted], halo: int, size, image_hw) -> bool:
    """Whether a window shows enough around: half a halo, or a quarter of a window where it is not known how far."""
    for axis, want in enumerate(wanted):
        room = [size[axis] // 4 if end else halo // 2 for end in want.open]
        start, stop, n = window[axis], window[axis + 2], image_hw[1 - axis]
        if (start > 0 and want.low - room[0] < start) or (stop < n and want.high + room[1] > stop):
            return False
    return True


def _window(wanted: Sequence[_Wanted], layout: Plan, size, image_hw) -> Box:
    """A window of this size for them."""
    starts = [_start(want, size[axis], image_hw[1 - axis], layout.halo, patch(layout.scale))
              for axis, want in enumerate(wanted)]
    return (*starts, *(min(start + side, n) for start, side, n in zip(starts, size, reversed(image_hw))))


def _start(want: _Wanted, size: int, n: int, halo: int, step: int) -> int:
    """Where a window along an axis of n pixels begins: most room where the object goes on, else it is in the middle."""
    room = size - (want.high - want.low)
    around = min(halo, room // 2)
    start = {(True, False): want.high + around - size, (False, True): want.low - around}.get(
        want.open, want.low - room // 2)
    last = max(0, -((size - n) // step) * step)
    return min(max(0, start // step * step), last)
