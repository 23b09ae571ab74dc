"""Objects out of the masks of overlapping windows: what a window cuts is joined with its other parts, or left out.

A mask that reaches an inner side of its window is a fragment. In the overlap with a neighbouring window it is compared
with that window's masks:

- a whole mask that agrees there (IoU) and holds nearly all of the fragment is the object: the fragment goes;
- two fragments that agree best with each other there belong together.

Fragments that belong together are one object, their union, if every cut side of each is continued by another; else all
of them go, as masks cut by a crop do in the official generator. NumPy only; memory follows the masks' runs, time the
number of masks that share an overlap.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np

from samjax.runs import Runs, bounds, clip, shared, union

Box = tuple[int, int, int, int]


class Piece(NamedTuple):
    """A mask that was found in a window. Boxes are the picture's; cut: whether it reaches its window's left, top,
    right, bottom side, where the picture goes on beyond it."""

    window: int
    box: Box  # inclusive
    runs: Runs
    iou: float
    stability: float
    point: tuple[float, float]
    cut: tuple[bool, bool, bool, bool]


class Joined(NamedTuple):
    """An object: one piece, or several that were joined (iou and stability: their means by area)."""

    box: Box
    runs: Runs
    iou: float
    stability: float
    points: list[tuple[float, float]]
    windows: list[int]


class Seams:
    """Takes the pieces of window after window, gives the objects."""

    def __init__(self, windows: Sequence[Box], agreement: float, trim: int = 0):
        """windows: x0, y0, x1, y1 (exclusive). agreement: the least IoU of two masks in an overlap, and the least share
        of a fragment that a whole mask holds. trim: pixels along a cut side that are left to the neighbour, which sees
        more around them; overlaps are more than twice as wide."""
        self.windows, self.agreement, self.trim = list(windows), agreement, trim
        self._near = _overlapping(self.windows)
        self._pieces: dict[int, list[Piece]] = {}
        self._gone: set[tuple[int, int]] = set()  # (window, number) of fragments of what is whole elsewhere
        self._links: dict[tuple[int, int], list[tuple[int, int]]] = defaultdict(list)

    def add(self, window: int, pieces: Sequence[Piece]) -> None:
        """The pieces of a window, which is given once; in any order of windows."""
        self._pieces[window] = list(pieces)
        for other in self._near[window]:
            if self._pieces.get(other) and pieces:
                self._compare(window, other)

    def objects(self) -> list[Joined]:
        """All objects; duplicates are still among them."""
        found = [_alone(piece) for pieces in self._pieces.values() for piece in pieces if not any(piece.cut)]
        for group in self._groups():
            if all(self._continued(name, group) for name in group):
                found.append(self._join(group))
        return found

    def _join(self, group: Sequence[tuple[int, int]]) -> Joined:
        pieces = [self._piece(name) for name in sorted(group)]  # whatever the order of discovery
        runs = union([self._trimmed(piece) for piece in pieces])
        areas = np.array([piece.runs.area for piece in pieces], np.float64)
        mean = lambda values: float(np.dot(values, areas) / areas.sum())
        return Joined(bounds(runs), runs, mean([piece.iou for piece in pieces]), mean([p.stability for p in pieces]),
                      [piece.point for piece in pieces], [piece.window for piece in pieces])

    def _trimmed(self, piece: Piece) -> Runs:
        inwards = np.array([1, 1, -1, -1]) * self.trim * np.array(piece.cut)
        return clip(piece.runs, tuple((np.array(self.windows[piece.window]) + inwards).tolist()))

    def _piece(self, name: tuple[int, int]) -> Piece:
        return self._pieces[name[0]][name[1]]

    def _compare(self, a: int, b: int) -> None:
        """Finds what belongs together among the pieces of two windows."""
        overlap = _meet(self.windows[a], self.windows[b])
        parts = [self._parts(window, overlap) for window in (a, b)]
        towards = [_towards(self.windows[i], self.windows[j]) for i, j in ((a, b), (b, a))]
        best: dict[tuple[int, int], tuple] = {}
        for one, its_part, its_area in parts[0]:
            for two, other_part, other_area in parts[1]:
                pieces = [self._piece(name) for name in (one, two)]
                cut = [any(np.logical_and(piece.cut, sides)) for piece, sides in zip(pieces, towards)]
                most, least = max(its_area, other_area), min(its_area, other_area)
                if not any(cut) or least < self.agreement * most:
                    continue
                both = shared(its_part, other_part)
                iou = both / (its_area + other_area - both)
                if iou < self.agreement:
                    continue
                if all(any(piece.cut) for piece in pieces):
                    for name, other in ((one, two), (two, one)):
                        best[name] = max(best.get(name, ()), (iou, self._piece(other).iou, other))
                else:
                    fragment, whole = (one, two) if cut[0] else (two, one)
                    self._settle(fragment, whole)
        for name, (*_, other) in best.items():
            if name < other and best[other][-1] == name:
                self._links[name].append(other)
                self._links[other].append(name)

    def _settle(self, fragment: tuple[int, int], whole: tuple[int, int]) -> None:
        piece, other = self._piece(fragment), self._piece(whole)
        if not any(other.cut) and shared(piece.runs, other.runs) >= self.agreement * piece.runs.area:
            self._gone.add(fragment)

    def _parts(self, window: int, overlap: Box) -> list[tuple[tuple[int, int], Runs, int]]:
        """(name, runs inside, their area) of the pieces that reach into the overlap."""
        found = []
        for i, piece in enumerate(self._pieces[window]):
            x0, y0, x1, y1 = piece.box
            if _meet((x0, y0, x1 + 1, y1 + 1), overlap) is not None:
                part = clip(piece.runs, overlap)
                if len(part.start):
                    found.append(((window, i), part, part.area))
        return found

    def _groups(self) -> Iterator[list[tuple[int, int]]]:
        """Fragments that belong together, but for those that are gone."""
        seen = set(self._gone)
        for window, pieces in self._pieces.items():
            for i, piece in enumerate(pieces):
                if (window, i) in seen or not any(piece.cut):
                    continue
                group = [(window, i)]
                seen.add((window, i))
                for name in group:
                    for other in self._links.get(name, ()):
                        if other not in seen:
                            seen.add(other)
                            group.append(other)
                yield group

    def _continued(self, name: tuple[int, int], group) -> bool:
        """Whether the object goes on beyond each cut side of the piece, in a piece linked with it."""
        left = np.array(self._piece(name).cut)
        for other in self._links.get(name, ()):
            if other not in self._gone:
                left &= ~np.array(_towards(self.windows[name[0]], self.windows[other[0]]))
        return not left.any()


def _overlapping(windows: Sequence[Box]) -> list[list[int]]:
    """For each window those before it that overlap it; windows overlap few others."""
    size = max(max(x1 - x0, y1 - y0) for x0, y0, x1, y1 in windows)
    cells, near = defaultdict(list), []
    for i, window in enumerate(windows):
        x, y = window[0] // size, window[1] // size
        there = [j for dx in (-1, 0, 1) for dy in (-1, 0, 1) for j in cells[x + dx, y + dy]]
        near.append(sorted(j for j in there if _meet(windows[j], window) is not None))
        cells[x, y].append(i)
    for i, others in enumerate(near):  # both ways, because windows may come in any order
        for j in others:
            if j < i:
                near[j].append(i)
    return near


def _meet(a: Box, b: Box) -> Box | None:
    """The overlap of two boxes x0, y0, x1, y1 (exclusive)."""
    x0, y0, x1, y1 = max(a[0], b[0]), max(a[1], b[1]), min(a[2], b[2]), min(a[3], b[3])
    return (x0, y0, x1, y1) if x0 < x1 and y0 < y1 else None


def _towards(a: Box, b: Box) -> tuple[bool, bool, bool, bool]:
    """The sides of window a beyond which window b goes on: left, top, right, bottom."""
    return b[0] < a[0], b[1] < a[1], b[2] > a[2], b[3] > a[3]


def _alone(piece: Piece) -> Joined:
    return Joined(piece.box, piece.runs, piece.iou, piece.stability, [piece.point], [piece.window])
