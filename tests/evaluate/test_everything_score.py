"""The prompt "everything": the best of the automatic masks for each object, against all pairs of whole masks."""

import numpy as np
import pytest
from PIL import Image

from samjax import rle
from samjax.data import Part, Record
from samjax.errors import InputError
from samjax.evaluate import Crop, match, score_everything
from samjax.evaluate.report import Report, Row
from samjax.predict import Sam

LOOSE = {"points_per_side": 4, "pred_iou_thresh": 0.0, "stability_score_thresh": 0.0, "box_nms_thresh": 1.0}


def shapes():
    """Masks of 9 x 12."""
    masks = {name: np.zeros((9, 12), bool) for name in ("empty", "pixel", "corner", "left", "middle", "two")}
    masks["pixel"][4, 6] = masks["corner"][8, 11] = masks["two"][0, 0] = masks["two"][8, 11] = True
    masks["left"][:, :5] = True
    masks["middle"][2:7, 3:9] = True
    return masks | {"full": np.ones((9, 12), bool), "rest": ~masks["left"]}


def plain_match(truths, masks):
    found = []
    for truth in truths:
        values = [(truth & mask).sum() / (truth | mask).sum() for mask in masks]
        best = max(values, default=0)
        found.append((best, values.index(best) if best else -1))
    return found


@pytest.mark.parametrize("mode", ["binary", "rle", "text"])
def test_match(mode):
    random = np.random.default_rng(0)
    masks = [*shapes().values(), *(random.random((6, 9, 12)) < 0.4), shapes()["left"]]
    truths = [mask for mask in shapes().values() if mask.any()]
    counts = {"binary": lambda mask: mask, "rle": lambda mask: {"size": [9, 12], "counts": rle.encode(mask).tolist()},
              "text": lambda mask: {"size": [9, 12], "counts": rle.compress(rle.encode(mask))}}[mode]
    for chosen in (masks, masks[9:], masks[:1], []):
        records = [{"segmentation": counts(mask)} for mask in chosen]
        assert match([Crop(truth) for truth in truths], iter(records)) == plain_match(truths, chosen)


@pytest.fixture(scope="module")
def records():
    """Two pictures with two objects each, one without, and one that is broken."""
    random = np.random.default_rng(1)

    def record(name, corners, open_=None):
        pixels = random.integers(0, 256, (50, 70, 3), np.uint8)
        objects = [Part((50, 70), np.ones((20, 25), bool), corner) for corner in corners]
        return Record(name, open_ or (lambda *_, **__: Image.fromarray(pixels)), objects)

    def broken(*_, **__):
        raise InputError("it is broken")

    return [record("a", [(3, 4), (40, 28)]), record("none", []), record("bad", [(0, 0)], broken),
            record("b", [(0, 0), (45, 30)])]


def test_scores_are_those_of_the_best_masks(small_vit, records):
    sam, seen = Sam(*small_vit), []
    report = score_everything(sam, records, progress=lambda done, total: seen.append((done, total)), **LOOSE)
    assert report.names == ["everything"] and report.pictures == 3 and report.failures == [("bad", "it is broken")]
    assert seen[-1] == (4, 4) and len(report.rows) == 4
    rows = iter(report.rows)
    for record in (records[0], records[3]):
        masks = sam.everything(record.image, **LOOSE)
        expected = plain_match([mask.mask() for mask in record.objects], [mask["segmentation"] for mask in masks])
        for number, (value, place) in enumerate(expected):
            row = next(rows)
            assert (row.image, row.object, row.area) == (record.name, number, 500)
            assert row.scores["everything"] == pytest.approx(value, abs=1e-12)
            if place >= 0:
                assert row.scores["everything_predicted"] == pytest.approx(masks[place]["predicted_iou"], abs=1e-5)
    assert any(row.scores["everything"] > 0 for row in report.rows)


def test_joined_with_other_prompts():
    def row(image, number, **scores):
        return Row(image, number, 40, (0, 0, 9, 9), scores, [(1, 2, 1)] if "a" in scores else ())

    one = Report("x", ["a"], 3, [row("p", 0, a=1.0), row("p", 1, a=0.5), row("r", 0, a=0.25)], [("q", "why")])
    other = Report("x", ["b"], 2, [row("r", 0, b=0.5), row("p", 1, b=0.75)], [("q", "why"), ("s", "too")])
    both = one.joined(other)
    assert (both.name, both.names, both.pictures) == ("x", ["a", "b"], 2)
    assert both.failures == [("q", "why"), ("s", "too")]
    assert both.rows == [row("p", 1, a=0.5, b=0.75), row("r", 0, a=0.25, b=0.5)]
    assert one.names == ["a"] and one.rows[0].scores == {"a": 1.0}  # they are left alone


def test_mistakes(small_vit, records):
    sam = Sam(*small_vit)
    with pytest.raises(InputError, match="points_per_side"):
        score_everything(sam, records, points_per_sid=3)
    with pytest.raises(InputError, match="no objects"):
        score_everything(sam, records[1:2])
    with pytest.raises(InputError, match="it is broken"):
        score_everything(sam, records[1:3])
