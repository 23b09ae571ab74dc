"""A detector's answers as COCO has them: a list of {"image_id", "category_id", "bbox": [x, y, w, h], "score"}."""

import hashlib
import json
import os
from collections import Counter
from collections.abc import Sequence

import numpy as np

from samjax.data.instances import Id, Instances, Scene
from samjax.errors import InputError

KEYS = ("image_id", "category_id", "bbox", "score")
MOST = 100  # of a category in a picture: COCO's
MOST_FEDERATED = 300  # of all categories in a picture: LVIS's


class Results:
    """The detections in the file at `path`, for the pictures of `truths`, in the file's order.

    images, categories: their ids, lists of n; boxes: float64 (n, 4), x0, y0, x1, y1 in pixels of the picture; scores:
    float64 (n,); sha256: of the file. Boxes may reach beyond their picture; further keys of the file are passed over.
    Raises InputError: no such list, an entry that is no detection, pictures or categories that `truths` has not.
    """

    def __init__(self, path, truths: Instances):
        self.name, self.federated = os.fspath(path), truths.federated
        entries, self.sha256 = _read(path)
        rows = [_detection(each, f"{path}: entry {place} (from 0)") for place, each in enumerate(entries)]
        self.images, self.categories = [row[0] for row in rows], [row[1] for row in rows]
        self.scores = np.array([row[3] for row in rows], np.float64)
        corner, size = np.split(np.array([row[2] for row in rows], np.float64), 2, axis=1)
        self.boxes = np.concatenate([corner, corner + size], axis=1)
        self._places = {}
        for place, image in enumerate(self.images):
            self._places.setdefault(image, []).append(place)
        self._check(truths)

    def __len__(self) -> int:
        return len(self.scores)

    def of(self, scene: Scene) -> list[int]:
        """Places of the picture's detections that count, by falling score, of equals the first one first.

        Of each category the first 100 count, as in COCO's evaluation. Where the annotations are federated, it is the
        first 300 of all, as in LVIS's, and then those of categories that the picture has been searched for.
        """
        places = self._places.get(scene.id, [])
        places = sorted(places, key=lambda place: -self.scores[place])
        if self.federated:
            return [place for place in places[:MOST_FEDERATED]
                    if scene.judged is None or self.categories[place] in scene.judged]
        seen, kept = Counter(), []
        for place in places:
            seen[self.categories[place]] += 1
            if seen[self.categories[place]] <= MOST:
                kept.append(place)
        return kept

    def _check(self, truths: Instances) -> None:
        sizes = {scene.id: scene.size for scene in truths.scenes}
        _check_known(self, self.images, sizes.keys(), "image_id", truths.name)
        _check_known(self, self.categories, truths.categories.keys(), "category_id", truths.name)
        sides = np.array([sizes[image][::-1] for image in self.images])
        beyond = ((self.boxes[:, 2:] <= 0) | (self.boxes[:, :2] >= sides)).any(axis=1)
        if beyond.any():
            place = int(beyond.argmax())
            w, h = sides[place]
            raise InputError(f"{self.name}: the box of entry {place} (from 0) lies outside its picture of {w} x {h} "
                             f"pixels: 'bbox' is [x, y, width, height] in pixels")


def _read(path) -> tuple[list, str]:
    try:
        with open(path, "rb") as file:
            content = file.read()
    except OSError as error:
        raise InputError(f"{path}: {error.strerror}") from None
    try:
        entries = json.loads(content)
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path} is broken JSON: {error}") from None
    if not isinstance(entries, list):
        raise InputError(f"{path} is no file of COCO results: it must be a list of detections, each with "
                         f"{', '.join(KEYS)}")
    if not entries:
        raise InputError(f"{path} has no detections: the list is empty")
    return entries, hashlib.sha256(content).hexdigest()


def _detection(entry, where: str) -> tuple[Id, Id, list[float], float]:
    if not isinstance(entry, dict):
        raise InputError(f"{where} is no detection: it must have {', '.join(KEYS)}")
    missing = [key for key in KEYS if key not in entry]
    if missing:
        raise InputError(f"{where} has no {missing[0]!r}: a detection must have {', '.join(KEYS)}")
    image, category, box, score = (entry[key] for key in KEYS)
    if not isinstance(image, (int, str)) or not isinstance(category, (int, str)):
        raise InputError(f"{where} has an image_id or category_id that is neither a number nor a text")
    if not isinstance(box, list) or len(box) != 4 or not all(map(_is_number, box)):
        raise InputError(f"{where} has the bbox {_short(box)}: it must be four finite numbers [x, y, width, height]")
    if not (box[0] + box[2] > box[0] and box[1] + box[3] > box[1]):
        raise InputError(f"{where} has the bbox {_short(box)}, which is empty: width and height must be above 0")
    if not _is_number(score):
        raise InputError(f"{where} has the score {_short(score)}: it must be a finite number")
    return image, category, box, score


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and -1e300 < value < 1e300


def _short(value) -> str:
    text = json.dumps(value)
    return text if len(text) <= 80 else text[:80] + "..."


def _check_known(results: Results, ids: Sequence[Id], known, key: str, where: str) -> None:
    strange = [each for each in ids if each not in known]
    if strange:
        raise InputError(f"{results.name}: of {len(strange)} of its {len(ids)} detections the {key} is not in {where} "
                         f"(such as {_short(strange[0])}): take the results for these annotations, or leave such out")
