"""Objects out of the masks of overlapping windows: what a window cuts is joined with its other parts, or left out.

A mask that reaches an inner side of its window is a fragment. In the overlap with a neighbouring window it is compared
with that window's masks:

- a whole mask that agrees there (IoU) and holds nearly all of the fragment is the object: the fragment goes;
- a fragment that agrees there may be another part of the same object. Such pairs are joined, those that share most
  first and that other windows confirm, if all parts of an object agree with each other wherever their windows overlap.

The parts are one object, their union, if what each has along its cut sides is found in others; else all of them go, as
masks cut by a crop do in the official generator. What fits into one window can be looked at again, whole
(`samjax.looks`), and then needs no joining. NumPy only; memory follows the masks' runs, time the number of masks
that share an overlap.
"""

from collections import defaultdict
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np

from samjax.runs import Runs, bounds, clip, shared, union

Box = tuple[int, int, int, int]
Name = tuple[int, int]  # a piece: its window and its number there
SLIVER = 0.1  # two parts agree all the same if they differ by less than this share of the smaller


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


class Group(NamedTuple):
    """Fragments that seem to be parts of one object; whether what each has along its cut sides is found in others."""

    pieces: list[Piece]
    continued: bool


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

    def __init__(self, windows: Sequence[Box], agreement: float, trim: int):
        """windows: x0, y0, x1, y1 (exclusive). agreement: the least IoU of two masks in an overlap, and the least share
        of a fragment that a whole mask holds. trim: pixels along a cut side that are left to the neighbour, which sees
        more around them; overlaps are more than twice as wide."""
        self.windows, self.agreement, self.trim = list(windows), agreement, trim
        self._near = _overlapping(self.windows)
        self._pieces: dict[int, list[Piece]] = {}
        self._gone: set[Name] = set()  # fragments of what is whole elsewhere
        self._links: list[tuple[float, Name, Name]] = []  # how much speaks for it, two fragments
        self._compared, self._found_again = defaultdict(int), defaultdict(int)  # pixels of pieces, over all overlaps
        self._grouped: list[Group] | None = None  # once all pieces are there

    def add(self, window: int, pieces: Sequence[Piece]) -> None:
        """The pieces of a window, which is given once; in any order of windows."""
        self._pieces[window], self._grouped = list(pieces), None
        for other in self._near[window]:
            if self._pieces.get(other) and pieces:
                self._compare(window, other)

    def doubtful(self) -> list[Group]:
        """The fragments that no whole mask holds, each in one group."""
        if self._grouped is None:
            self._grouped = [Group([self._piece(name) for name in names],
                                   all(self._continued(name, names) for name in names)) for names in self._groups()]
        return self._grouped

    def objects(self, again: Sequence[Piece] = ()) -> list[Joined]:
        """All objects; duplicates are still among them.

        again: masks of further windows (`samjax.looks`). Whole ones are objects too, and a group is not joined if most
        of it are fragments that turn out to be parts of such.
        """
        again = [piece for piece in again if not any(piece.cut)]
        whole = [piece for pieces in self._pieces.values() for piece in pieces if not any(piece.cut)]
        found = [_alone(piece) for piece in (*whole, *again)]
        boxes = np.array([piece.box for piece in again], np.int64).reshape(-1, 4)
        for pieces, continued in self.doubtful():
            if continued:
                parts = sum(piece.runs.area for piece in pieces if self._is_part(piece, again, boxes))
                if parts <= 0.5 * sum(piece.runs.area for piece in pieces):
                    found.append(self._join(pieces))
        return found

    def _is_part(self, piece: Piece, again: Sequence[Piece], boxes: np.ndarray) -> bool:
        """Whether a fragment is what its window shows of a whole mask (with these boxes)."""
        near = (boxes[:, :2] <= piece.box[2:]).all(axis=1) & (boxes[:, 2:] >= piece.box[:2]).all(axis=1)
        for i in np.flatnonzero(near):
            there = clip(again[i].runs, self.windows[piece.window])
            both = shared(piece.runs, there)
            if both >= self.agreement * (piece.runs.area + there.area - both):
                return True
        return False

    def _join(self, pieces: Sequence[Piece]) -> Joined:
        runs = union([self._trimmed(piece) for piece in pieces])
        areas = np.array([piece.runs.area for piece in pieces], np.float64)
        mean = lambda values: float(np.dot(values, areas) / areas.sum())
        return Joined(bounds(runs), runs, mean([piece.iou for piece in pieces]), mean([p.stability for p in pieces]),
                      [piece.point for piece in pieces], [piece.window for piece in pieces])

    def _trimmed(self, piece: Piece) -> Runs:
        inwards = np.array([1, 1, -1, -1]) * self.trim * np.array(piece.cut)
        return clip(piece.runs, tuple((np.array(self.windows[piece.window]) + inwards).tolist()))

    def _piece(self, name: Name) -> Piece:
        return self._pieces[name[0]][name[1]]

    def _compare(self, a: int, b: int) -> None:
        """Finds what belongs together among the pieces of two windows."""
        overlap = _meet(self.windows[a], self.windows[b])
        parts = [self._parts(window, overlap) for window in (a, b)]
        towards = [_towards(self.windows[i], self.windows[j]) for i, j in ((a, b), (b, a))]
        again = defaultdict(int)
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
                again[one], again[two] = max(again[one], both), max(again[two], both)
                if all(any(piece.cut) for piece in pieces):
                    self._links.append((both * iou**8, one, two))
                else:
                    self._settle(*((one, two) if cut[0] else (two, one)))
        for name, _, area in (*parts[0], *parts[1]):
            self._compared[name] += area
            self._found_again[name] += again[name]

    def _settle(self, fragment: Name, whole: Name) -> None:
        piece, other = self._piece(fragment), self._piece(whole)
        if not any(other.cut) and shared(piece.runs, other.runs) >= self.agreement * piece.runs.area:
            self._gone.add(fragment)

    def _parts(self, window: int, overlap: Box) -> list[tuple[Name, Runs, int]]:
        """(name, runs inside, their area) of the pieces that reach into the overlap."""
        found = []
        for i, piece in enumerate(self._pieces[window]):
            x0, y0, x1, y1 = piece.box
            if _meet((x0, y0, x1 + 1, y1 + 1), overlap) is not None:
                part = clip(piece.runs, overlap)
                if len(part.start):
                    found.append(((window, i), part, part.area))
        return found

    def _groups(self) -> list[list[Name]]:
        """Fragments that belong together, but for those that are gone."""
        group_of: dict[Name, list[Name]] = {}
        sure = {name: self._found_again[name] / area for name, area in self._compared.items()}
        links = [(much * sure[one] * sure[two], *sorted((one, two))) for much, one, two in self._links]
        for _, one, two in sorted(links, reverse=True):
            if one in self._gone or two in self._gone:
                continue
            a, b = (group_of.setdefault(name, [name]) for name in (one, two))
            if a is not b and all(self._agree(c, d) for c in a for d in b if d[0] == c[0] or d[0] in self._near[c[0]]):
                a += b
                for name in b:
                    group_of[name] = a
        for window, pieces in self._pieces.items():
            for i, piece in enumerate(pieces):
                if any(piece.cut) and (window, i) not in self._gone:
                    group_of.setdefault((window, i), [(window, i)])
        return sorted({id(group): sorted(group) for group in group_of.values()}.values())

    def _agree(self, one: Name, two: Name) -> bool:
        """Whether two pieces may be parts of one object: of one window if they are apart, else if they agree."""
        a, b = self._piece(one), self._piece(two)
        least = min(a.runs.area, b.runs.area)
        if one[0] == two[0]:
            return shared(a.runs, b.runs) <= SLIVER * least
        overlap = _meet(self.windows[one[0]], self.windows[two[0]])
        parts = [clip(piece.runs, overlap) for piece in (a, b)]
        both = shared(*parts)
        either = parts[0].area + parts[1].area - both
        return both >= self.agreement * either or either - both <= SLIVER * least

    def _continued(self, name: Name, group: Sequence[Name]) -> bool:
        """Whether others of the group, whose windows go on there, have what the piece has along each cut side."""
        piece, window = self._piece(name), self.windows[name[0]]
        for side in np.flatnonzero(piece.cut):
            others = [self._piece(other).runs for other in group
                      if other[0] in self._near[name[0]] and _towards(window, self.windows[other[0]])[side]]
            strip = list(window)
            strip[(side + 2) % 4] = strip[side] + (self.trim if side < 2 else -self.trim)
            there = clip(piece.runs, tuple(strip))
            if not others or shared(there, union(others)) < self.agreement * there.area:
                return False
        return True


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
