"""BSDS500's benchmark of edges: ODS, OIS, AP and R50 of edge maps against the outlines that several people drew.

Martin, Fowlkes, Malik 2004 and Arbelaez, Maire, Fowlkes, Malik 2011: an edge map is cut at 99 thresholds and thinned;
each of its pixels may be matched with one pixel of an annotator's outlines within 0.0075 of the picture's diagonal.
Precision: the share of the map's pixels that are matched with any annotator's. Recall: the share of all annotators'
pixels that are matched, each annotator by itself.

The benchmark's assignment has the least sum of distances, an unmatched pixel costing a hundred times the largest one:
so as many pixels as possible are matched, which is what is done here, with near pixels first. The numbers of matched
pixels are the same; which ones of the map are matched with an annotator may differ where there is a choice, and with
it slightly what several annotators match together (precision). NumPy and SciPy only.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cache

import numpy as np

from samjax.data.sources import Source
from samjax.errors import InputError
from samjax.evaluate.assignment import pair
from samjax.evaluate.pictures import each, first_of
from samjax.evaluate.report import number
from samjax.image import read_image

THRESHOLDS = 99
TOLERANCE = 0.0075  # of the picture's diagonal
SAMPLES = 100  # between two thresholds, and of the curve's recall for AP


@dataclass(frozen=True)
class Counts:
    """Of one picture (or a sum over pictures), at each of k thresholds: pixels of the map, of those the matched ones,
    and matched pixels of all annotators' outlines, int64 (k,); drawn: all pixels of these outlines."""

    found: np.ndarray
    right: np.ndarray
    recalled: np.ndarray
    drawn: int

    def __add__(self, other: "Counts") -> "Counts":
        return Counts(self.found + other.found, self.right + other.right, self.recalled + other.recalled,
                      self.drawn + other.drawn)

    def to_json(self) -> dict:
        return {"found": self.found.tolist(), "right": self.right.tolist(), "recalled": self.recalled.tolist(),
                "drawn": self.drawn}

    @classmethod
    def from_json(cls, values: dict) -> "Counts":
        return cls(*(np.array(values[name], np.int64) for name in ("found", "right", "recalled")), values["drawn"])

    @property
    def recall(self) -> np.ndarray:
        """(k,) in 0..1; 0 where nothing was drawn."""
        return self.recalled / max(self.drawn, 1)

    @property
    def precision(self) -> np.ndarray:
        """(k,) in 0..1; 0 where the map has no pixel."""
        return self.right / np.maximum(self.found, 1)


@dataclass
class EdgeReport:
    """Edges of a source. cuts: the thresholds; counts: by the pictures' names; failures: (name, reason)."""

    name: str
    cuts: np.ndarray
    counts: dict[str, Counts] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        return len(self.counts)

    def summary(self) -> dict[str, float]:
        """See the function `summary`."""
        return summary(list(self.counts.values()), self.cuts)

    def to_json(self) -> dict:
        """Plain lists and numbers, each picture's counts and own best F-measure, and the curve of all together."""
        total = sum(list(self.counts.values())[1:], next(iter(self.counts.values())))
        own = {name: float(f_measure(one.recall, one.precision).max()) for name, one in self.counts.items()}
        return {
            "name": self.name, "pictures": self.pictures,
            "summary": {name: number(value) for name, value in self.summary().items()},
            "failures": [list(failure) for failure in self.failures],
            "curve": {"threshold": self.cuts.round(6).tolist(), "recall": total.recall.round(6).tolist(),
                      "precision": total.precision.round(6).tolist()},
            "counts": {name: {"f": round(own[name], 6), **one.to_json()} for name, one in self.counts.items()},
        }


def score_edges(predict: Callable[[np.ndarray], np.ndarray], source: Source, limit: int | None = None, *,
                cuts: np.ndarray | None = None, channels: int = 3,
                progress: Callable[[int, int], None] | None = None) -> EdgeReport:
    """The benchmark on a source whose mask pictures are whole segmentations, one for each annotator (as BSDS500's).

    Args:
        predict: from a picture, uint8 (h, w, channels), to its edges, float (h, w) in 0..1: for a model
            `functools.partial(samjax.evaluate.sam_edges, sam)`, with channels=sam.config.in_channels.
        limit: at most so many pictures, evenly spread. cuts: default the 99 thresholds. progress: called with
            (pictures done, pictures) after each.

    Raises InputError: a layout without segmentations, nothing to score. Pictures that cannot be read are failures.
    """
    report = EdgeReport(source.name or "data", thresholds() if cuts is None else np.asarray(cuts, float))
    score = lambda place: score_picture(predict, source, place, report.cuts, channels)
    report.counts.update(each(source, limit, score, report.failures, progress))
    if not report.counts:
        raise InputError(f"{report.name}: no picture whose edges can be scored{first_of(report.failures)}")
    return report


def score_picture(predict: Callable[[np.ndarray], np.ndarray], source: Source, place: int,
                  cuts: np.ndarray | None = None, channels: int = 3) -> Counts:
    """The counts of one picture of a source; see `score_edges`. Raises InputError."""
    drawn = [outlines(segments) for segments in source.segmentations(place)]
    return count(predict(read_image(source.record(place).open(), channels)), drawn, cuts)


def thresholds(count: int = THRESHOLDS) -> np.ndarray:
    """0.01, 0.02, ... 0.99: evenly spread in 0..1 without its ends."""
    return np.arange(1, count + 1) / (count + 1)


def outlines(segments: np.ndarray) -> np.ndarray:
    """The boundary map, bool (h, w), of a segmentation (h, w) with an id for each pixel: where the pixel, the next one
    in its row and those below both are not of one segment, thinned."""
    padded = np.pad(segments, ((0, 1), (0, 1)), mode="edge")
    down, right = padded[:-1] != padded[1:], padded[:, :-1] != padded[:, 1:]
    return thin(down[:, :-1] | down[:, 1:] | right[:-1] | right[1:])


def thin(mask: np.ndarray) -> np.ndarray:
    """A bool (h, w) thinned to lines one pixel wide, ends and connections kept: until nothing changes, pixels that
    satisfy the conditions of Guo and Hall 1989 as Lam, Lee and Suen 1992 give them, in two turns (bwmorph's "thin")."""
    padded = np.pad(mask, 1)
    flat, width = padded.ravel(), padded.shape[1]
    around = np.array([1, 1 - width, -width, -1 - width, -1, width - 1, width, width + 1])  # from the east on
    pixels, before = np.flatnonzero(flat), -1
    while len(pixels) != before:
        before = len(pixels)
        for needless in _needless():
            gone = needless[np.packbits(flat[pixels[:, None] + around], axis=1, bitorder="little")[:, 0]]
            flat[pixels[gone]] = False
            pixels = pixels[~gone]
    return np.ascontiguousarray(padded[1:-1, 1:-1])


def count(edges: np.ndarray, drawn: Sequence[np.ndarray], cuts: np.ndarray | None = None,
          tolerance: float = TOLERANCE) -> Counts:
    """One picture's counts.

    Args:
        edges: float (h, w), 0..1, not thinned or thinned; a pixel is an edge where it reaches the threshold.
        drawn: each annotator's outlines, bool (h, w) (see `outlines`).
        cuts: the thresholds, default the 99 of `thresholds`. tolerance: as a share of the picture's diagonal.

    Raises InputError: no annotator, or maps of other sizes.
    """
    if not drawn:
        raise InputError("there is nobody's segmentation to score edges by")
    for outline in drawn:
        if outline.shape != edges.shape:
            raise InputError(f"a segmentation of {outline.shape[1]} x {outline.shape[0]} pixels (width x height), but "
                             f"the edge map is {edges.shape[1]} x {edges.shape[0]}")
    cuts = thresholds() if cuts is None else cuts
    matchers = [_Matcher(outline, tolerance * np.hypot(*edges.shape)) for outline in drawn]
    rows, last, row = [], None, (0, 0, 0)
    for cut in cuts:
        above = edges >= cut
        if (size := np.count_nonzero(above)) != last:  # of maps in each other, of one size, both are the same
            row, last = _matched(above, matchers), size
        rows.append(row)
    columns = np.array(rows, np.int64).reshape(-1, 3).T
    return Counts(*columns, sum(matcher.size for matcher in matchers))


def summary(counts: Sequence[Counts], cuts: np.ndarray | None = None) -> dict[str, float]:
    """The scores of a set, from its pictures' counts.

    ods: the best F-measure of all counts together at one threshold (ods_threshold, and ods_precision, ods_recall),
    thresholds between those counted being interpolated; ois: F-measure of the counts at each picture's own best
    threshold; ap: area below the curve of precision over recall, nothing where it has no points; r50: recall at
    precision 0.5 (NaN where it stays below).
    """
    cuts = thresholds() if cuts is None else cuts
    total = sum(counts[1:], counts[0])
    recall, precision, threshold, f = _best(total, cuts)
    own = [(one, int(f_measure(one.recall, one.precision).argmax())) for one in counts]
    picked = sum((np.array([one.found[k], one.right[k], one.recalled[k], one.drawn]) for one, k in own), np.zeros(4))
    ois = float(f_measure(picked[2] / max(picked[3], 1), picked[1] / max(picked[0], 1)))
    curve = total.recall, total.precision
    return {"ods": f, "ods_threshold": threshold, "ods_precision": precision, "ods_recall": recall, "ois": ois,
            "ap": average_precision(*curve), "r50": recall_at_half(*curve)}


def f_measure(recall, precision):
    """The harmonic mean; 0 where both are 0."""
    return 2 * recall * precision / np.maximum(recall + precision, np.finfo(float).tiny)


def average_precision(recall: np.ndarray, precision: np.ndarray) -> float:
    """Interpolated precision at recalls 0, 0.01, ... 1, summed, over 100 (not 101: the benchmark does so). Where the
    curve has no points it counts as 0; of points of equal recall the first stands."""
    at, first = np.unique(recall, return_index=True)
    if len(at) < 2:
        return 0.0
    return float(np.interp(np.linspace(0, 1, SAMPLES + 1), at, precision[first], 0, 0).sum() / SAMPLES)


def recall_at_half(recall: np.ndarray, precision: np.ndarray) -> float:
    """Interpolated recall at precision 0.5, or at the least precision if that is higher; NaN if all are lower."""
    at, first = np.unique(precision, return_index=True)
    return float(np.interp(max(at[0], 0.5), at, recall[first], right=np.nan))


def _best(counts: Counts, cuts: np.ndarray) -> tuple[float, float, float, float]:
    """Recall, precision, threshold and F-measure where that is largest, also between neighbouring thresholds."""
    share = np.linspace(0, 1, SAMPLES)
    between = lambda values: (np.outer(values[1:], share) + np.outer(values[:-1], 1 - share)).ravel()
    curves = counts.recall, counts.precision, cuts
    if len(cuts) > 1:
        curves = tuple(map(between, curves))
    f = f_measure(*curves[:2])
    best = int(f.argmax())
    return *(float(curve[best]) for curve in curves), float(f[best])


def _matched(above: np.ndarray, matchers: Sequence["_Matcher"]) -> tuple[int, int, int]:
    """Of a map before thinning: its pixels after it, those that anyone's outlines match, what they match."""
    places = np.argwhere(thin(above))
    right, recalled = np.zeros(len(places), bool), 0
    for matcher in matchers:
        mine = matcher(places)
        right |= mine
        recalled += np.count_nonzero(mine)
    return len(places), np.count_nonzero(right), recalled


class _Matcher:
    """One-to-one assignment of pixels to those of a map, bool (h, w), no farther than `reach` pixels."""

    def __init__(self, outline: np.ndarray, reach: float):
        from scipy.ndimage import distance_transform_edt

        side = int(reach)
        near = np.arange(-side, side + 1)
        offsets = np.argwhere(near[:, None] ** 2 + near**2 <= reach**2) - side
        offsets = offsets[np.argsort((offsets**2).sum(axis=1), kind="stable")]  # near ones first
        numbers = np.full(outline.shape, -1, np.int32)
        self.size = int(np.count_nonzero(outline))
        numbers[outline] = np.arange(self.size)
        padded = np.pad(numbers, side, constant_values=-1)
        self.numbers, self.width, self.side = padded.ravel(), padded.shape[1], side
        self.offsets = offsets @ (self.width, 1)
        self.reach = reach
        self.distance = distance_transform_edt(~outline) if self.size else np.full(outline.shape, np.inf)

    def __call__(self, places: np.ndarray) -> np.ndarray:
        """(n,) bool: which of the places (n, 2), y before x, are matched when as many as possible are."""
        rows = np.flatnonzero(self.distance[places[:, 0], places[:, 1]] <= self.reach)
        near = self.numbers[((places[rows] + self.side) @ (self.width, 1))[:, None] + self.offsets]
        found = np.zeros(len(places), bool)
        found[rows] = pair(near, self.size) >= 0
        return found


@cache
def _needless() -> tuple[np.ndarray, np.ndarray]:
    """For both turns of `thin`, by the eight neighbours as bits: bool (256,), whether the pixel goes."""
    x = [None, *((np.arange(256)[:, None] >> np.arange(8)) & 1).astype(bool).T]  # 1 is east, 3 north, 5 west, 7 south
    x.append(x[1])
    total = lambda terms: np.sum(list(terms), axis=0)
    crossings = total(~x[i] & (x[i + 1] | x[i + 2]) for i in (1, 3, 5, 7))
    fewest = np.minimum(total(x[i] | x[i + 1] for i in (1, 3, 5, 7)), total(x[i + 1] | x[i + 2] for i in (1, 3, 5, 7)))
    thick = (crossings == 1) & (fewest >= 2) & (fewest <= 3)
    return thick & ~((x[2] | x[3] | ~x[8]) & x[1]), thick & ~((x[6] | x[7] | ~x[4]) & x[5])
