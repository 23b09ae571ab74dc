"""The protocol of a detector's boxes: each detection's box is turned into a mask, which keeps the detection's score.

Segment Anything, appendix D.4 (zero-shot instance segmentation). The masks are judged as COCO judges detectors
(`samjax.evaluate.precision`), and by their IoU with the objects that the boxes mean. As in the appendix a box is asked
for twice: the second time with the logits of the first answer's most confident mask. The second answer is the single
mask, as for every box in this package; the most confident one is of the three for ambiguous prompts.

For the IoU an object (no crowd) is given, of the detections of its category in its picture, the one whose box has the
highest IoU with its own, if that is 0.5 or more: of equals the one with the higher score. One detection may serve
several objects. An object's box is that of its pixels. Here all of the file's objects count, however small.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np

from samjax import rle, upscale
from samjax.data.instances import Id, Instances, Scene
from samjax.data.results import Results
from samjax.errors import InputError
from samjax.evaluate import precision
from samjax.evaluate.boxes import SIZES, answer_boxes, size_of
from samjax.evaluate.crops import Crop, Upscaled
from samjax.evaluate.pictures import first_of, reason_of, spread
from samjax.evaluate.precision import Matches
from samjax.evaluate.proposals import overlaps
from samjax.evaluate.report import number
from samjax.evaluate.scoring import _ask, _encoded, _Loaded
from samjax.image import read_image
from samjax.predict import OBJECTS, Embedding, Sam

NEAR = 0.5  # IoU of the boxes from which on a detection means an object
COLUMNS = {"detections": ["image_id", "detection", "category_id", "bbox", "score", "predicted_iou", "area"],
           "objects": ["image_id", "annotation_id", "category_id", "area", "detection", "box_iou", "iou"]}


@dataclass(frozen=True)
class Answer:
    """One mask. detection: its place in the results; counts: run lengths; predicted: the model's own estimate."""

    detection: int
    counts: np.ndarray
    predicted: float


@dataclass(frozen=True)
class Target:
    """One object that is no crowd. detection: the place in the results of the one that means it, None if none does;
    box_iou and iou are those of both boxes and both masks."""

    id: Id | None
    category: Id
    area: float
    detection: int | None = None
    box_iou: float | None = None
    iou: float | None = None


@dataclass(frozen=True)
class Found:
    """One picture's part: matches by category, a row for each mask (as COLUMNS has them), its objects."""

    image: Id
    matches: dict[Id, Matches]
    rows: list[list]
    targets: list[Target]


@dataclass
class DetectionReport:
    """What a detector's boxes give on a set. settings: what it was made with; categories: names; found: pictures in
    the file's order; failures: (name, reason) of pictures that were left out."""

    name: str
    settings: dict
    categories: dict[Id, str]
    found: list[Found] = field(default_factory=list)
    failures: list[tuple[str, str]] = field(default_factory=list)

    @property
    def pictures(self) -> int:
        return len(self.found)

    @property
    def targets(self) -> list[Target]:
        return [target for one in self.found for target in one.targets]

    def summary(self) -> dict[str, float]:
        """In 0..1, NaN where there is nothing to take the mean of. ap, ap_50, ap_75, ap_small, ..., ar, ar_small, ...:
        see `samjax.evaluate.precision.summary`; found: the share of objects that a detection means; iou, iou_small,
        iou_medium, iou_large: the mean IoU of these."""
        by_size = {"": self.targets} | {f"_{size}": found for size, found in self._by_size().items()}
        return {**precision.summary(self._curves().values()), "found": _share(self.targets),
                **{f"iou{name}": _mean_iou(targets) for name, targets in by_size.items()}}

    def to_json(self) -> dict:
        """Plain lists and numbers. Both kinds of `rows` are lists in the order of `columns`; a detection is its place
        in the results file."""
        targets, summary = self.targets, self.summary()
        return {
            "name": self.name, "settings": self.settings, "pictures": self.pictures, "objects": len(targets),
            "summary": {name: number(value) for name, value in summary.items()},
            "by_size": {size: {"objects": len(found), "found": number(_share(found)),
                               **{name: number(summary[f"{name}_{size}"]) for name in ("iou", "ap", "ar")}}
                        for size, found in self._by_size().items()},
            "by_category": [{"id": category, "name": self.categories[category], "objects": int(curve.objects[0]),
                             "ap": number(precision.summary([curve])["ap"])}
                            for category, curve in self._curves().items()],
            "failures": [list(failure) for failure in self.failures],
            "columns": COLUMNS,
            "rows": {"detections": [[one.image, *row] for one in self.found for row in one.rows],
                     "objects": [[one.image, *_target_row(target)] for one in self.found for target in one.targets]},
        }

    def _by_size(self) -> dict[str, list[Target]]:
        return {size: [target for target in self.targets if size_of(target.area) == size] for size in SIZES}

    def _curves(self) -> dict[Id, precision.Curve]:
        """By category, of those that occur. Pictures come by their ids, which decides among equal scores."""
        found = {category: [] for category in self.categories}
        for one in sorted(self.found, key=lambda one: (isinstance(one.image, str), one.image)):
            for category, matches in one.matches.items():
                found[category].append(matches)
        return {category: precision.curve(matches) for category, matches in found.items() if matches}


def score_detections(sam: Sam, truths: Instances, results: Results, refine: bool = True, limit: int | None = None, *,
                     progress: Callable[[int, int], None] | None = None) -> DetectionReport:
    """A model's masks from a detector's boxes, judged as COCO's evaluation judges instance segmentation.

    Args:
        truths: `samjax.data.Instances("instances_val2017.json", images="val2017")`. results: `samjax.data.Results(
            "detections.json", truths)`; see there which detections count.
        refine: boxes get a second round with the first answer fed back, as in the paper.
        limit: at most so many pictures, evenly spread, with their detections and objects. progress: called with
            (pictures done, pictures) after each.

    All pictures of the file count, those without objects too; pictures without detections are not read. Memory: a
    picture's masks as run lengths; of all pictures less than a kilobyte a detection.

    Returns a `DetectionReport`. Pictures that cannot be read are among its failures, and their objects do not count.
    Raises InputError: a limit below 1, no objects.
    """
    places = spread(len(truths), limit)
    settings = {"refine": refine, "detections": results.name, "sha256": results.sha256, "limit": limit}
    report = DetectionReport(truths.name, settings, truths.categories)
    pictures = _encoded(sam, places, partial(_load, sam, truths, results))
    for done, (place, (name, item)) in enumerate(zip(places, pictures), 1):
        scene = truths.scenes[place]
        try:
            if isinstance(item, InputError):
                raise item
            report.found.append(score_picture(sam, scene, results, item.embedding, refine))
        except InputError as error:
            report.failures.append((name, str(error)))
        if progress is not None:
            progress(done, len(places))
    if not report.targets:
        raise InputError(f"{report.name}: no objects to score in {len(places)} pictures{first_of(report.failures)}")
    return report


def score_picture(sam: Sam, scene: Scene, results: Results, embedding: Embedding | None, refine: bool = True) -> Found:
    """One picture's part. embedding: None where it has no detections. Raises InputError: a damaged mask."""
    places, masks = results.of(scene), scene.masks()
    answers = _answers(sam, embedding, places, results.boxes[places], refine) if places else []
    areas = np.array([rle.area(answer.counts) for answer in answers], np.int64)
    object_areas = np.array([mask.area() if instance.area is None else instance.area
                             for mask, instance in zip(masks, scene.instances)], float)
    crowds = np.array([instance.crowd for instance in scene.instances], bool)
    boxes = np.array([Crop(mask.mask()).box for mask in masks], float).reshape(-1, 4)
    of_answers = [results.categories[place] for place in places]
    of_objects = [instance.category for instance in scene.instances]
    matches, targets = {}, {}
    for category in dict.fromkeys([*of_objects, *of_answers]):
        rows, columns = _where(of_answers, category), _where(of_objects, category)
        ious = overlaps([answers[i].counts for i in rows], [masks[i] for i in columns], crowds[columns])
        matches[category] = precision.match(ious, results.scores[places][rows], areas[rows], object_areas[columns],
                                            crowds[columns], category in scene.open_ended)
        near = box_overlaps(results.boxes[places][rows], boxes[columns])
        for k, i in enumerate(columns):
            best = _meant(near[:, k])
            its = () if best is None else (places[rows[best]], near[best, k], ious[best, k])
            targets[i] = Target(scene.instances[i].id, category, object_areas[i], *its)
    rows = [_row(results, answer, area) for answer, area in zip(answers, areas.tolist())]
    return Found(scene.id, matches, rows, [targets[i] for i in np.flatnonzero(~crowds)])


def box_overlaps(a: np.ndarray, b: np.ndarray) -> np.ndarray:
    """IoU (n, m) of boxes (n, 4) and (m, 4), x0, y0, x1, y1 in pixel edges; 0 where both are empty."""
    a, b = a[:, None], b[None]
    sides = np.minimum(a[..., 2:], b[..., 2:]) - np.maximum(a[..., :2], b[..., :2])
    common = np.clip(sides, 0, None).prod(axis=-1)
    union = (a[..., 2:] - a[..., :2]).prod(axis=-1) + (b[..., 2:] - b[..., :2]).prod(axis=-1) - common
    return np.divide(common, union, out=np.zeros_like(common), where=union > 0)


def _load(sam: Sam, truths: Instances, results: Results, place: int) -> tuple[str, _Loaded | InputError]:
    scene = truths.scenes[place]
    try:
        if not results.of(scene):
            return scene.name, _Loaded([])
        pixels = read_image(truths.open(place), sam.config.in_channels)
        if pixels.shape[:2] != scene.size:
            (h, w), (height, width) = scene.size, pixels.shape[:2]
            raise InputError(f"the annotations are of {w} x {h} pixels (width x height), but the picture is {width} x "
                             f"{height}")
        return scene.name, _Loaded([], pixels)
    except InputError as error:
        return scene.name, error
    except OSError as error:
        return scene.name, InputError(reason_of(error))


def _answers(sam: Sam, embedding: Embedding, places: Sequence[int], boxes: np.ndarray, refine: bool) -> list[Answer]:
    """Masks from boxes, as many decoded at once as a program takes; only their run lengths are kept."""
    image_hw = tuple(embedding.image_sizes[0].tolist())
    grid, ask, found = upscale.axes(sam.config, image_hw), partial(_ask, sam, embedding, image_hw), []
    for start in range(0, len(places), OBJECTS[-1]):
        some = slice(start, start + OBJECTS[-1])
        for place, logits, predicted in zip(places[some], *answer_boxes(ask, boxes[some], refine)):
            mask = Upscaled(logits, grid)
            counts = rle.encode(mask.part(mask.box), mask.box[:2], image_hw)
            found.append(Answer(place, counts, float(predicted)))
    return found


def _row(results: Results, answer: Answer, area: int) -> list:
    x0, y0, x1, y1 = results.boxes[answer.detection]
    return [answer.detection, results.categories[answer.detection],
            [number(value) for value in (x0, y0, x1 - x0, y1 - y0)], number(results.scores[answer.detection]),
            number(answer.predicted), area]


def _target_row(target: Target) -> list:
    ious = [None if value is None else number(value) for value in (target.box_iou, target.iou)]
    return [target.id, target.category, number(target.area), target.detection, *ious]


def _meant(near: np.ndarray) -> int | None:
    """Which of some boxes means an object, near (n,) being their IoU with its own; of equals the first."""
    return int(near.argmax()) if near.max(initial=0) >= NEAR else None


def _where(categories: Sequence[Id], category: Id) -> list[int]:
    return [i for i, each in enumerate(categories) if each == category]


def _share(targets: Sequence[Target]) -> float:
    return float(np.mean([target.detection is not None for target in targets])) if targets else float("nan")


def _mean_iou(targets: Sequence[Target]) -> float:
    ious = [target.iou for target in targets if target.iou is not None]
    return float(np.mean(ious)) if ious else float("nan")
