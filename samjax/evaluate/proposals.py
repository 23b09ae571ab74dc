"""Average recall of object proposals: how many objects the first 10, 100 and 1000 automatic masks find.

Segment Anything, appendix D.3, with COCO's measure: recall is averaged over ten IoU thresholds, 0.5 to 0.95, and taken
for all objects and for small, medium and large ones. It equals pycocotools' COCOeval with useCats=0 on the objects that
a `Source` has: crowds and those of less than 32 px are left out, and sizes are of masks and not of an annotation's
"area". COCO's sizes include both ends, so that an object of 32 x 32 pixels is small and medium.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import numpy as np

from samjax import rle
from samjax.data.records import Mask, Record
from samjax.data.sources import Source
from samjax.evaluate.pictures import each, no_objects, spread
from samjax.evaluate.report import number
from samjax.image import read_image

LIMITS = (10, 100, 1000)
IOUS = np.linspace(0.5, 0.95, 10)
SIZES = {"all": (0, 1e10), "small": (0, 32**2), "medium": (32**2, 96**2), "large": (96**2, 1e10)}  # pixels, inclusive
PAPER = {"points_per_side": 64, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 0.9}
# Settings of `Sam.everything`. `paper` is the appendix's: about 900 masks a picture, 16 times the default's decoding.
PRESETS = {"paper": PAPER, "quick": PAPER | {"points_per_side": 32}, "default": {}}


@dataclass(frozen=True)
class Found:
    """Of one picture's objects: ranks (4, 10, g), by size and IoU threshold the place of the proposal that is matched
    with each object, -1 where none is or it has another size; sizes (4, g) bool; best (g,) the highest IoU of any of
    the first 1000 proposals; areas (g,) pixels; proposals: their number."""

    ranks: np.ndarray
    sizes: np.ndarray
    best: np.ndarray
    areas: np.ndarray
    proposals: int


@dataclass
class ProposalReport:
    """Average recall of a source. found: by the pictures' names; failures: (name, reason)."""

    name: str
    found: dict[str, Found] = field(default_factory=dict)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        return len(self.found)

    @property
    def objects(self) -> int:
        return sum(len(one.areas) for one in self.found.values())

    def summary(self) -> dict[str, float]:
        """{"ar_10", "ar_100", "ar_1000", "ar_small", "ar_medium", "ar_large", "proposals"}: average recall in 0..1,
        those by size with 1000 proposals (NaN where there are no such objects); the mean number of proposals."""
        found = list(self.found.values())
        by_size = average_recall(found)
        return {**{f"ar_{limit}": by_size["all"][i] for i, limit in enumerate(LIMITS)},
                **{f"ar_{size}": by_size[size][-1] for size in SIZES if size != "all"},
                "proposals": float(np.mean([one.proposals for one in found])) if found else float("nan")}

    def to_json(self) -> dict:
        """Plain lists and numbers. `rows` are lists in the order of `columns`, one for each object."""
        found = list(self.found.values())
        by_size = average_recall(found)
        counts = {size: int(sum(one.sizes[i].sum() for one in found)) for i, size in enumerate(SIZES)}
        return {
            "name": self.name, "pictures": self.pictures, "objects": self.objects,
            "summary": {name: number(value) for name, value in self.summary().items()},
            "by_size": {size: {"objects": counts[size], **{f"ar_{limit}": number(value) for limit, value
                                                          in zip(LIMITS, by_size[size])}} for size in SIZES},
            "failures": [list(failure) for failure in self.failures],
            "proposals": {name: one.proposals for name, one in self.found.items()},
            "columns": ["image", "object", "area", "best_iou"],
            "rows": [[name, i, int(area), round(float(best), 6)] for name, one in self.found.items()
                     for i, (area, best) in enumerate(zip(one.areas, one.best))],
        }


def score_proposals(sam, source: Source, settings: dict | None = None, limit: int | None = None, *,
                    progress: Callable[[int, int], None] | None = None) -> ProposalReport:
    """Average recall of a model's automatic masks, picture by picture.

    Args:
        source: `samjax.data.open_source(...)` or a list of records; objects of less than 32 px do not count.
        settings: of `Sam.everything`, default `PAPER`. Without filters its memory is up to a quarter of a megabyte
            for each of three masks a point, before duplicates are suppressed.
        limit: at most so many pictures, evenly spread. progress: called with (pictures done, pictures) after each.

    Raises InputError: a wrong setting, no objects. Pictures that cannot be read are among the report's failures.
    """
    report = ProposalReport(getattr(source, "name", "") or "data")
    found = each(source, limit, lambda place: propose(sam, source[place], settings), report.failures, progress)
    report.found.update((name, one) for name, one in found if one is not None)
    if not report.objects:
        raise no_objects(report.name, len(spread(len(source), limit)), report.failures)
    return report


def propose(sam, record: Record, settings: dict | None = None) -> Found | None:
    """What a model's automatic masks find in one picture; None where it has no objects."""
    if not record.objects:
        return None
    pixels = read_image(record.open(), sam.config.in_channels)
    record.check_size(pixels.shape[:2])
    masks = sam.everything(pixels, **{**(PAPER if settings is None else settings), "output_mode": "uncompressed_rle"})
    counts, scores = ranked(masks)
    return match(counts, scores, record.objects)


def ranked(records: Sequence[dict]) -> tuple[list[np.ndarray], np.ndarray]:
    """Run lengths and scores of automatic masks: the mean of predicted IoU and stability. Empty ones are left out."""
    records = [record for record in records if record["area"]]
    scores = [(record["predicted_iou"] + record["stability_score"]) / 2 for record in records]
    return [rle.to_counts(record["segmentation"])[0] for record in records], np.nan_to_num(scores, nan=-np.inf)


def match(proposals: Sequence[np.ndarray], scores: np.ndarray, objects: Sequence[Mask]) -> Found:
    """COCO's assignment in one picture.

    proposals: run lengths; the first 1000 by score count (of equals the first ones). At each IoU threshold they choose
    in turn: each takes, of the objects that are left, the one with the highest IoU (of equals the last).
    """
    order = np.argsort(-np.asarray(scores, float), kind="stable")[: LIMITS[-1]]
    ious = overlaps([proposals[i] for i in order], objects)
    areas = np.array([mask.area() for mask in objects], np.int64)
    sizes = np.array([(low <= areas) & (areas <= high) for low, high in SIZES.values()]).reshape(len(SIZES), -1)
    ranks = np.full((len(SIZES), len(IOUS), len(areas)), -1, np.int64)
    for i, there in enumerate(sizes):
        chosen = np.flatnonzero(there)
        for j, threshold in enumerate(IOUS):
            ranks[i, j, chosen] = _assign(ious[:, chosen], threshold)
    return Found(ranks, sizes, ious.max(axis=0, initial=0), areas, len(proposals))


def overlaps(proposals: Sequence[np.ndarray], objects: Sequence[Mask],
             crowds: Sequence[bool] | None = None) -> np.ndarray:
    """IoU (d, g), float64, of proposals (run lengths) with objects; 0 where both are empty.

    crowds: bool (g,), default none: with these it is the share of the proposal that lies in them, as COCO has it.
    Memory: some numbers for each run of the proposals.
    """
    ious = np.zeros((len(proposals), len(objects)))
    if not ious.size:
        return ious
    edges = [np.cumsum(counts)[: len(counts) // 2 * 2].reshape(-1, 2) for counts in proposals]  # start, stop of runs
    runs, areas = np.concatenate(edges), np.array([rle.area(counts) for counts in proposals])
    ends = np.cumsum([0, *map(len, edges)])
    for i, mask in enumerate(objects):
        counts = np.asarray(mask.counts())
        bounds = np.concatenate([[0], np.cumsum(counts)])
        covered = np.concatenate([[0], np.cumsum(np.where(np.arange(len(counts)) % 2, counts, 0))])
        below = np.interp(runs, bounds, covered)  # pixels of the object before each end: linear between its own
        inside = np.concatenate([[0], np.cumsum((below[:, 1] - below[:, 0]).round().astype(np.int64))])
        shared = inside[ends[1:]] - inside[ends[:-1]]
        union = areas if crowds is not None and crowds[i] else areas + mask.area() - shared
        ious[:, i] = shared / np.maximum(union, 1)
    return ious


def average_recall(found: Sequence[Found]) -> dict[str, list[float]]:
    """By size, for 10, 100 and 1000 proposals: recall, averaged over the IoU thresholds; NaN without objects."""
    result = {}
    for i, size in enumerate(SIZES):
        objects = sum(int(one.sizes[i].sum()) for one in found)
        hits = [sum(int(((one.ranks[i] >= 0) & (one.ranks[i] < limit)).sum()) for one in found) for limit in LIMITS]
        result[size] = [hit / (len(IOUS) * objects) if objects else float("nan") for hit in hits]
    return result


def _assign(ious: np.ndarray, threshold: float) -> np.ndarray:
    """(g,) the row of ious (d, g) that is matched with each column, -1 for none; rows choose in their order."""
    matched = np.full(ious.shape[1], -1, np.int64)
    least = min(threshold, 1 - 1e-10)
    for row in np.flatnonzero((ious >= least).any(axis=1)):
        left = np.where(matched < 0, ious[row], -1)
        if left.max() >= least:
            matched[len(left) - 1 - left[::-1].argmax()] = row
    return matched
