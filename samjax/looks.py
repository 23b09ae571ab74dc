"""Where a huge picture is looked at again: further windows around what its windows' seams cut or joined.

A part of an object is a poor witness: at a corner where four windows meet the parts of one may not agree, or those of
neighbours may. What fits into a window is therefore seen whole in one, prompted with the points that found the parts.
Windows are shared where they can be. No JAX.
"""

import math
import zlib
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from samjax.seams import Group, Piece
from samjax.tiles import Box, Plan, last_start, patch

EDGE = 8  # encoder pixels: a mask that ends this near to its window's side is taken to be cut by it


class Look(NamedTuple):
    """A window, x0, y0, x1, y1 exclusive, and the points (n, 2) to ask there."""

    window: Box
    points: np.ndarray

    @property
    def mark(self) -> tuple[int, ...]:
        """Tells looks apart, in five whole numbers."""
        return (*self.window, zlib.crc32(np.ascontiguousarray(self.points, np.float64).tobytes()))


class _Wanted(NamedTuple):
    """What is to be seen whole along an axis of n pixels: from low to high (exclusive), perhaps going on beyond; the
    side of a window there; its least distance from an end of the object, and the usual one."""

    low: int
    high: int
    open: tuple[bool, bool]
    n: int
    size: int
    margin: int
    halo: int

    def shows(self, start: int, least: Sequence[int]) -> bool:
        """Whether a window that begins there has so much room below and above, or ends where the picture does."""
        return ((start == 0 or self.low - start >= least[0])
                and (start + self.size >= self.n or start + self.size - self.high >= least[1]))

    def start(self, step: int) -> int | None:
        """Where a window begins, at a multiple of step: most room where the object goes on, else it is in the middle.
        None if no window shows it whole."""
        room = self.size - (self.high - self.low)
        around = min(max(self.halo, self.margin + step), room // 2)
        best = {(True, False): self.high + around - self.size, (False, True): self.low - around}.get(
            self.open, self.low - room // 2) // step * step
        last = last_start(self.size, self.n, step)
        starts = (min(max(0, start), last) for start in (best, best + step, 0, last))
        return next((start for start in starts if self.shows(start, (self.margin, self.margin))), None)


def looks(groups: Sequence[Group], layout: Plan, image_hw: tuple[int, int]) -> list[Look]:
    """Windows that hold the groups of pieces, as large as those of the plan.

    A group that does not fit into one is joined, if it is continued; else it may be of several objects, and the pieces
    that fit are looked at. Windows start at the encoder's patches, as all do. There are at most as many as the plan
    has: if that is too few, those that serve most.
    """
    found, near = [], defaultdict(list)  # [window, points of pieces]; their places there by cells as large as a window
    across, down = size = tuple(max(box[i + 2] - box[i] for box in layout.windows) for i in (0, 1))
    fitting = _that_fit(groups, layout, size, image_hw)
    for pieces, wanted, window in sorted(fitting, key=lambda some: min(piece.box[1::-1] for piece in some[0])):
        x, y = wanted[0].low // across, wanted[1].low // down
        places = sorted(i for dx in (-1, 0) for dy in (-1, 0) for i in near[x + dx, y + dy])
        shared = next((i for i in places if all(map(_holds, wanted, found[i][0]))), None)
        if shared is None:
            shared = len(found)
            found.append((window, []))
            near[window[0] // across, window[1] // down].append(shared)
        found[shared][1].append([piece.point for piece in pieces])
    most = sorted(range(len(found)), key=lambda i: -len(found[i][1]))[: len(layout.windows)]
    return [look for look in (_look(*found[i]) for i in sorted(most)) if len(look.points)]


def _look(window: Box, points: list[list[tuple[float, float]]]) -> Look:
    """A point may lie apart from its mask, and outside of the window."""
    x0, y0, x1, y1 = window
    inside = {point for some in points for point in some if x0 <= point[0] < x1 and y0 <= point[1] < y1}
    return Look(window, np.array(sorted(inside), np.float64).reshape(-1, 2))


def _that_fit(groups: Sequence[Group], layout: Plan, size, image_hw) -> Iterator[tuple]:
    """(pieces, what is wanted of a window, the window) for the groups that one shows whole, and for such pieces of
    others that are not continued."""
    def fitted(pieces: Sequence[Piece]) -> list[tuple]:
        wanted = _wanted(pieces, layout, size, image_hw)
        window = _window(wanted, layout)
        return [] if window is None else [(pieces, wanted, window)]

    for pieces, continued in groups:
        found = fitted(pieces)
        if not found and not continued:
            found = [one for piece in pieces for one in fitted([piece])]
        yield from found


def _wanted(pieces: Sequence[Piece], layout: Plan, size, image_hw) -> list[_Wanted]:
    """Across and down."""
    found, margin = [], math.ceil(EDGE / layout.scale)
    for axis in (0, 1):
        low, high = min(piece.box[axis] for piece in pieces), max(piece.box[axis + 2] for piece in pieces)
        ends = (any(piece.cut[axis] and piece.box[axis] <= low + margin for piece in pieces),
                any(piece.cut[axis + 2] and piece.box[axis + 2] >= high - margin for piece in pieces))
        found.append(_Wanted(low, high + 1, ends, image_hw[1 - axis], size[axis], margin, layout.halo))
    return found


def _holds(want: _Wanted, start: int) -> bool:
    """Whether a window shows enough around: half a halo, or a quarter of a window where it is not known how far."""
    least = max(want.halo // 2, want.margin)
    return want.shows(start, [max(want.size // 4, least) if end else least for end in want.open])


def _window(wanted: Sequence[_Wanted], layout: Plan) -> Box | None:
    """A window for them, or None if they fit into none."""
    starts = [want.start(patch(layout.scale)) for want in wanted]
    if None in starts:
        return None
    return (*starts, *(min(start + want.size, want.n) for start, want in zip(starts, wanted)))
