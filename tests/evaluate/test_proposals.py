"""Average recall of proposals: against pycocotools, on random masks and awkward ones."""

import contextlib
import io
from types import SimpleNamespace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import masks_of_boxes
from pycocotools import mask as coco_mask
from pycocotools.coco import COCO
from pycocotools.cocoeval import COCOeval

from samjax import rle
from samjax.data import Part, Record
from samjax.errors import InputError
from samjax.evaluate.proposals import (
    LIMITS,
    PRESETS,
    SIZES,
    average_recall,
    match,
    overlaps,
    propose,
    ranked,
    score_proposals,
    spread,
)


def by_coco(pictures):
    """AR by pycocotools, [size][limit]. pictures: (proposals, scores, objects), masks bool (h, w)."""
    encoded = lambda mask: coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    truth, found = COCO(), []
    annotations = [{"id": 1 + 1000 * i + j, "image_id": i, "category_id": 1, "iscrowd": 0, "area": int(mask.sum()),
                    "segmentation": encoded(mask), "bbox": [0, 0, 1, 1]}
                   for i, (_, _, objects) in enumerate(pictures) for j, mask in enumerate(objects)]
    truth.dataset = {"info": {}, "images": [{"id": i, "height": 1, "width": 1} for i in range(len(pictures))],
                     "annotations": annotations, "categories": [{"id": 1, "name": "object"}]}
    for i, (proposals, scores, _) in enumerate(pictures):
        found += [{"image_id": i, "category_id": 1, "score": float(score), "segmentation": encoded(mask)}
                  for mask, score in zip(proposals, scores)]
    with contextlib.redirect_stdout(io.StringIO()):
        truth.createIndex()
        judge = COCOeval(truth, truth.loadRes(found), "segm")
        judge.params.useCats, judge.params.maxDets = 0, list(LIMITS)
        judge.evaluate()
        judge.accumulate()
    recall = judge.eval["recall"]  # thresholds, categories, sizes, limits
    result = np.array([[recall[:, 0, i, j].mean() for j in range(len(LIMITS))] for i in range(len(SIZES))])
    return np.where(result < 0, np.nan, result)


def ours(pictures):
    found = average_recall([match([rle.encode(mask) for mask in proposals], np.array(scores),
                                  [Part(mask.shape, mask) for mask in objects])
                            for proposals, scores, objects in pictures])
    return np.array([found[size] for size in SIZES])


def boxes(random, n, side, most):
    """Some of them are empty or of one pixel."""
    return masks_of_boxes(random, n, side, (0, most))


def disturbed(random, masks, n):
    """Copies of the masks, moved a little: many IoUs above one half, and ties."""
    return [np.roll(masks[random.integers(len(masks))], random.integers(-3, 4, 2), axis=(0, 1)) for _ in range(n)]


@pytest.mark.parametrize("seed", range(6))
def test_recall_is_coco_s(seed):
    """Objects of all sizes, touching the border, more proposals than 10 and 100, equal scores."""
    random = np.random.default_rng(seed)
    pictures = []
    for _ in range(3):
        objects = boxes(random, random.integers(1, 8), 130, 128)
        proposals = [*boxes(random, 20, 130, 128), *disturbed(random, objects, random.integers(1, 120))]
        pictures.append((proposals, random.integers(0, 9, len(proposals)) / 8, objects))
    np.testing.assert_allclose(ours(pictures), by_coco(pictures), rtol=0, atol=1e-6)


def test_recall_with_more_than_a_thousand_proposals():
    random = np.random.default_rng(0)
    objects = boxes(random, 5, 40, 40)
    proposals = disturbed(random, objects, 1200)
    scores = random.random(1200)
    best = match([rle.encode(objects[0])] * 1001, np.arange(1001.0), [Part(objects[0].shape, objects[0])])
    assert best.ranks.max() == 0 and best.proposals == 1001
    pictures = [(proposals, scores, objects)]
    np.testing.assert_allclose(ours(pictures), by_coco(pictures), rtol=0, atol=1e-6)


@settings(max_examples=40, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 5), st.integers(1, 30))
def test_small_pictures_are_coco_s(seed, n, m):
    """Few pixels: ties between objects and IoUs exactly at thresholds are common."""
    random = np.random.default_rng(seed)
    objects, proposals = random.random((n, 3, 4)) < 0.5, random.random((m, 3, 4)) < 0.5
    pictures = [(proposals, random.integers(0, 3, m), objects), (proposals[:1], [1], objects[::-1])]
    np.testing.assert_allclose(ours(pictures), by_coco(pictures), rtol=0, atol=1e-6)


@pytest.mark.parametrize("area", [32**2 - 1, 32**2, 32**2 + 1, 96**2 - 1, 96**2, 96**2 + 1])
def test_sizes_include_both_ends(area):
    mask = (np.arange(100 * 100) < area).reshape(100, 100)
    pictures = [([mask], [1.0], [mask])]
    np.testing.assert_allclose(ours(pictures), by_coco(pictures), rtol=0, atol=1e-6)


def test_overlaps_are_coco_s():
    random = np.random.default_rng(1)
    full, empty, pixel = np.ones((9, 7), bool), np.zeros((9, 7), bool), np.zeros((9, 7), bool)
    pixel[-1, -1] = True
    first = full.copy()
    first[0, 0] = False
    masks = [full, empty, pixel, ~pixel, first, *(random.random((8, 9, 7)) < 0.4)]
    encoded = [coco_mask.encode(np.asfortranarray(mask.astype(np.uint8))) for mask in masks]
    expected = np.nan_to_num(coco_mask.iou(encoded, encoded, [0] * len(masks)))
    found = overlaps([rle.encode(mask) for mask in masks], [Part(mask.shape, mask) for mask in masks])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)
    assert overlaps([], [Part(full.shape, full)]).shape == (0, 1)


def test_no_proposals_find_nothing():
    mask = np.ones((40, 40), bool)
    found = average_recall([match([], np.zeros(0), [Part(mask.shape, mask)])])
    assert found["all"] == [0, 0, 0] and found["medium"] == [0, 0, 0] and np.isnan(found["small"]).all()


def test_ranking_is_the_mean_of_both_estimates():
    mask = {"size": [2, 2], "counts": [1, 3]}
    record = lambda iou, stability, area=3: {"segmentation": mask, "area": area, "predicted_iou": iou,
                                             "stability_score": stability}
    counts, scores = ranked([record(0.9, 0.5), record(0.5, np.nan), record(0.9, 0.7, area=0), record(0.2, 1.0)])
    assert [count.tolist() for count in counts] == [[1, 3]] * 3
    np.testing.assert_allclose(scores, [0.7, -np.inf, 0.6])


class Fake:
    """Finds one quarter of every picture, and counts how it was asked."""

    def __init__(self, channels=3):
        self.asked, self.config = [], SimpleNamespace(in_channels=channels)

    def everything(self, pixels, **settings):
        self.asked.append(settings)
        h, w, channels = pixels.shape
        assert channels == self.config.in_channels
        mask = np.zeros((h, w), bool)
        mask[: h // 2, : w // 2] = True
        return [{"segmentation": {"size": [h, w], "counts": rle.encode(mask).tolist()}, "area": int(mask.sum()),
                 "predicted_iou": 0.9, "stability_score": 0.9}]


def record(name, objects, size=(40, 60), broken=False):
    from PIL import Image

    def opened():
        if broken:
            raise InputError("is damaged")
        return Image.new("RGB", size[::-1])
    return Record(name, opened, [Part(mask.shape, mask) for mask in objects])


def test_score_of_a_source():
    quarter, other = np.zeros((40, 60), bool), np.zeros((40, 60), bool)
    quarter[:20, :30] = other[30:, 40:] = True
    sam, seen = Fake(), []
    source = [record("a", [quarter, other]), record("b", [quarter], broken=True), record("c", []),
              record("d", [quarter])]
    report = score_proposals(sam, source, progress=lambda *at: seen.append(at))
    assert sam.asked == [PRESETS["paper"] | {"output_mode": "uncompressed_rle"}] * 2  # c has no objects
    assert list(report.found) == ["a", "d"] and report.failures == [("b", "is damaged")]
    assert seen == [(1, 4), (2, 4), (3, 4), (4, 4)]
    summary, written = report.summary(), report.to_json()
    assert summary["ar_10"] == summary["ar_1000"] == pytest.approx(2 / 3) and summary["proposals"] == 1
    assert written["by_size"]["small"] == {"objects": 3, "ar_10": 0.666667, "ar_100": 0.666667, "ar_1000": 0.666667}
    assert written["by_size"]["large"]["ar_10"] is None
    assert written["rows"] == [["a", 0, 600, 1.0], ["a", 1, 200, 0.0], ["d", 0, 600, 1.0]]
    assert len(score_proposals(Fake(channels=1), source, limit=1).found) == 1


def test_mistakes_are_said():
    mask = np.ones((10, 10), bool)
    with pytest.raises(InputError, match="no objects of 32 px"):
        score_proposals(Fake(), [record("a", [])])
    with pytest.raises(InputError, match="10 x 10 pixels"):
        propose(Fake(), record("a", [mask]))
    with pytest.raises(InputError, match="0 pictures"):
        spread(5, 0)
    assert spread(5, 2) == [0, 2] and spread(2, 9) == [0, 1]
