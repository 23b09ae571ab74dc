"""BSDS500's benchmark of edges: against loops from the published formulae, and cases whose answer is known."""

import json

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from PIL import Image
from scipy import ndimage
from scipy.optimize import linear_sum_assignment

from samjax.data import open_source
from samjax.errors import InputError
from samjax.evaluate.edges import (
    Counts,
    average_precision,
    count,
    f_measure,
    outlines,
    recall_at_half,
    score_edges,
    summary,
    thin,
    thresholds,
)

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans())
ROUND = ((0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1), (1, 0), (1, 1))  # x1 to x8: the east, anticlockwise
HALF = np.array([0.5])


def plain_thin(mask):
    """The conditions of Lam, Lee and Suen, pixel by pixel."""
    mask = np.pad(mask, 1)
    while True:
        before = mask.copy()
        for turn in (0, 1):
            gone = []
            for y, x in np.argwhere(mask):
                n = [None, *(bool(mask[y + dy, x + dx]) for dy, dx in ROUND)]
                n.append(n[1])
                crossings = sum(not n[2 * i - 1] and (n[2 * i] or n[2 * i + 1]) for i in (1, 2, 3, 4))
                pairs = (sum(n[2 * k - 1] or n[2 * k] for k in (1, 2, 3, 4)),
                         sum(n[2 * k] or n[2 * k + 1] for k in (1, 2, 3, 4)))
                side = ((n[2] or n[3] or not n[8]) and n[1]) if turn == 0 else ((n[6] or n[7] or not n[4]) and n[5])
                if crossings == 1 and 2 <= min(pairs) <= 3 and not side:
                    gone.append((y, x))
            for place in gone:
                mask[place] = False
        if (mask == before).all():
            return mask[1:-1, 1:-1]


def by_cost(found, drawn, reach):
    """The benchmark's own assignment: the least sum of distances, an unmatched pixel costing 100 times the reach.
    Returns which pixels of found are matched, in raster order."""
    a, b = np.argwhere(found), np.argwhere(drawn)
    distance = np.sqrt(((a[:, None] - b) ** 2).sum(axis=-1))
    outlier = 100 * reach
    cost = np.full((len(a) + len(b),) * 2, 0.0)
    cost[: len(a), : len(b)] = np.where(distance <= reach, distance, 1e9)
    cost[: len(a), len(b) :] = cost[len(a) :, : len(b)] = outlier
    rows, columns = linear_sum_assignment(cost)
    return np.array([column < len(b) for row, column in zip(rows, columns) if row < len(a)], bool)


@settings(max_examples=60, deadline=None)
@given(MASKS)
def test_thinning_is_the_published_one(mask):
    lines = thin(mask)
    np.testing.assert_array_equal(lines, plain_thin(mask))
    assert not (lines & ~mask).any()
    pieces = lambda mask, corners: ndimage.label(mask, ndimage.generate_binary_structure(2, 1 + corners))[1]
    assert pieces(lines, True) == pieces(mask, True)  # neither cut nor lost, nor holes filled or opened
    around = lambda mask: np.pad(~mask, 1, constant_values=True)
    assert pieces(around(lines), False) == pieces(around(mask), False)


def test_a_thick_line_becomes_one_pixel_wide():
    mask = np.zeros((20, 30), bool)
    mask[5:10, 3:27] = True
    assert (thin(mask).sum(axis=0) <= 1).all() and thin(mask).sum() >= 18
    assert thin(np.ones((1, 1), bool)).all() and not thin(np.zeros((3, 3), bool)).any()


@settings(max_examples=40, deadline=None)
@given(arrays(np.uint16, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.integers(0, 2)))
def test_outlines_are_where_labels_change(segments):
    changes = np.array([[len(np.unique(segments[y : y + 2, x : x + 2])) > 1 for x in range(segments.shape[1])]
                        for y in range(segments.shape[0])])
    np.testing.assert_array_equal(outlines(segments), plain_thin(changes))


def test_outline_of_two_halves():
    segments = np.zeros((10, 12), np.uint16)
    segments[:, 7:] = 900
    drawn = outlines(segments)
    assert drawn[:, 6].all() and drawn.sum() == 10
    assert not outlines(np.ones((5, 5), np.uint16)).any()  # the picture's own border is no edge


@pytest.mark.parametrize("seed", range(8))
def test_as_many_are_matched_as_by_least_cost(seed):
    random = np.random.default_rng(seed)
    found, drawn = (thin(random.random((40, 50)) < random.choice([0.05, 0.2, 0.5])) for _ in range(2))
    tolerance = float(random.choice([0.016, 0.03, 0.05]))  # 1, 1.9, 3.2 pixels
    counts = count(found.astype(float), [drawn], HALF, tolerance)
    matched = by_cost(found, drawn, tolerance * np.hypot(40, 50))
    assert counts.found[0] == found.sum() == len(matched)
    assert counts.right[0] == counts.recalled[0] == matched.sum()
    assert counts.drawn == drawn.sum()


def test_one_pixel_is_matched_once_and_the_nearest_takes_it():
    found, drawn, other = np.zeros((3, 100, 100))
    drawn[50, 50] = found[50, 51] = found[50, 48] = found[50, 50] = 1
    other[50, 46] = 1
    one = count(found, [drawn > 0], HALF, 0.03)
    assert (one.found[0], one.right[0], one.recalled[0], one.drawn) == (3, 1, 1, 1)
    both = count(found, [drawn > 0, drawn > 0, other > 0], HALF, 0.03)
    assert both.recalled[0] == 3 and both.drawn == 3
    assert both.right[0] == 2  # the first two annotators' pixel is the same one's; the third's is another's


@pytest.mark.parametrize("shift, right", [(0, 20), (3, 20), (4, 0)])
def test_tolerance_is_a_share_of_the_diagonal(shift, right):
    drawn, found = np.zeros((2, 30, 40))  # the diagonal is 50
    drawn[5:25, 10] = 1
    found[5:25, 10 + shift] = 1
    counts = count(found, [drawn > 0], HALF, 0.06)
    assert counts.right[0] == counts.recalled[0] == right


def test_annotators_who_disagree():
    """Precision counts what anyone drew, recall what each did."""
    left, right = np.zeros((2, 60, 60), bool)
    left[10:50, 10], right[10:50, 40] = True, True
    counts = count(left.astype(float), [left, right])
    assert (counts.precision == 1).all() and (counts.recall == 0.5).all()
    scores = summary([counts])
    assert scores["ods"] == pytest.approx(2 / 3) and scores["ois"] == pytest.approx(2 / 3)


def test_a_perfect_map_and_empty_ones():
    drawn, nothing = np.zeros((2, 50, 50), bool)
    drawn[10:40, 20] = True
    perfect = summary([count(drawn.astype(float), [drawn])])
    assert perfect["ods"] == perfect["ois"] == perfect["r50"] == 1
    empty = count(np.zeros((50, 50)), [drawn])
    assert not empty.found.any() and summary([empty])["ods"] == summary([empty])["ap"] == 0
    assert np.isnan(summary([empty])["r50"])
    alarm = count(drawn.astype(float), [nothing])
    assert alarm.drawn == 0 and (alarm.recall == 0).all() and (alarm.precision == 0).all()
    pixel = np.zeros((50, 50))
    pixel[0, 0] = 1  # in the corner, where the tolerance reaches beyond the picture
    assert count(pixel, [pixel > 0], HALF).right[0] == 1


def test_thresholds_cut_and_a_map_is_counted_at_each():
    edges, drawn = np.zeros((60, 60)), np.zeros((60, 60), bool)
    drawn[10:50, 10] = True
    edges[10:50, 10], edges[10:50, 40] = 0.5, 0.25
    counts = count(edges, [drawn])
    cuts = thresholds()
    assert len(cuts) == 99 and cuts[0] == pytest.approx(0.01) and cuts[-1] == pytest.approx(0.99)
    np.testing.assert_array_equal(counts.found, np.where(cuts <= 0.25, 80, np.where(cuts <= 0.5, 40, 0)))
    np.testing.assert_array_equal(counts.right, np.where(cuts <= 0.5, 40, 0))


def plain_summary(counts, cuts):
    """The benchmark's numbers, with loops."""
    share = lambda a, b: a / b if b else 0.0
    f = lambda r, p: share(2 * r * p, r + p)
    n = range(len(cuts))
    recall = [share(sum(c.recalled[k] for c in counts), sum(c.drawn for c in counts)) for k in n]
    precision = [share(sum(c.right[k] for c in counts), sum(c.found[k] for c in counts)) for k in n]
    best = max((f(a * recall[k + 1] + (1 - a) * recall[k], a * precision[k + 1] + (1 - a) * precision[k]),
                a * cuts[k + 1] + (1 - a) * cuts[k]) for k in n[:-1] for a in np.linspace(0, 1, 100))
    own = [max(n, key=lambda k: (f(share(c.recalled[k], c.drawn), share(c.right[k], c.found[k])), -k)) for c in counts]
    total = [sum(values) for values in zip(*((c.recalled[k], c.drawn, c.right[k], c.found[k])
                                             for c, k in zip(counts, own)))]
    return best[0], f(share(total[0], total[1]), share(total[2], total[3])), recall, precision


@pytest.mark.parametrize("seed", range(5))
def test_scores_of_several_pictures(seed):
    random = np.random.default_rng(seed)
    cuts, counts = thresholds(9), []
    for _ in range(4):
        found = np.sort(random.integers(0, 500, 9))[::-1]
        right = np.sort((found * random.random(9)).astype(int))[::-1]
        counts.append(Counts(found, np.minimum(right, found), right + 5, 600))
    scores = summary(counts, cuts)
    ods, ois, recall, precision = plain_summary(counts, cuts)
    assert scores["ods"] == pytest.approx(ods, abs=1e-9) and scores["ois"] == pytest.approx(ois, abs=1e-9)
    assert scores["ods"] == pytest.approx(f_measure(scores["ods_recall"], scores["ods_precision"]))
    assert scores["ap"] == pytest.approx(average_precision(np.array(recall), np.array(precision)))
    assert cuts[0] <= scores["ods_threshold"] <= cuts[-1]
    again = [Counts.from_json(one.to_json()) for one in counts]
    assert summary(again, cuts) == scores


def test_area_below_the_curve():
    """Precision falls from 1 at recall 0.2 to 0.5 at recall 0.6; elsewhere there are no points."""
    recall, precision = np.array([0.6, 0.6, 0.2]), np.array([0.5, 0.9, 1.0])
    inside = [1 - (r - 20) / 40 * 0.5 for r in range(20, 61)]
    assert average_precision(recall, precision) == pytest.approx(sum(inside) / 100, abs=0.011)  # ends may round away
    assert average_precision(np.array([0.3, 0.3]), np.ones(2)) == 0
    assert average_precision(np.array([1.0, 0.0]), np.ones(2)) == pytest.approx(1.01)  # 101 samples over 100


def test_recall_at_half_of_precision():
    assert recall_at_half(np.array([0.8, 0.4]), np.array([0.3, 0.7])) == pytest.approx(0.6)
    assert recall_at_half(np.array([0.8, 0.4]), np.array([0.6, 0.7])) == pytest.approx(0.8)
    assert np.isnan(recall_at_half(np.array([0.8]), np.array([0.4])))


@pytest.fixture
def folder(tmp_path):
    """Two pictures by two annotators each, and one whose annotator drew another size."""
    for part in ("images", "masks"):
        (tmp_path / part).mkdir()
    for name in ("a", "b", "c"):
        Image.new("RGB", (60, 50)).save(tmp_path / "images" / f"{name}.png")
        for k in range(2):
            ids = np.ones((50, 60 + (name == "c")), np.uint16)
            ids[:, 20 + 20 * k :] = 7
            Image.fromarray(ids).save(tmp_path / "masks" / f"{name}_{k}.png")
    return tmp_path


def test_score_of_a_source(folder):
    def predict(pixels):
        assert pixels.shape == (50, 60, 3) and pixels.dtype == np.uint8
        return np.pad(np.ones((50, 1)), ((0, 0), (19, 40)))

    seen = []
    report = score_edges(predict, open_source(folder), cuts=thresholds(3), progress=lambda *at: seen.append(at))
    assert list(report.counts) == ["images/a.png", "images/b.png"] and seen[-1] == (3, 3)
    assert [name for name, _ in report.failures] == ["images/c.png"] and "61 x 50" in report.failures[0][1]
    assert report.summary()["ods"] == pytest.approx(2 / 3)
    written = report.to_json()
    assert written["pictures"] == 2 and written["curve"]["precision"] == [1, 1, 1]
    assert written["counts"]["images/a.png"] == {"f": 0.666667, "found": [50] * 3, "right": [50] * 3,
                                                 "recalled": [50] * 3, "drawn": 100}
    assert list(score_edges(predict, open_source(folder), limit=1).counts) == ["images/a.png"]
    shapes = []
    score_edges(lambda grey: shapes.append(grey.shape) or np.zeros((50, 60)), open_source(folder), 1, channels=1)
    assert shapes == [(50, 60, 1)]


def test_mistakes_are_said(folder):
    with pytest.raises(InputError, match="nobody"):
        count(np.zeros((3, 3)), [])
    with pytest.raises(InputError, match="4 x 3"):
        count(np.zeros((3, 3)), [np.zeros((3, 4), bool)])
    image = {"file_name": "sa_1.jpg", "width": 8, "height": 8}
    (folder / "sa_1.json").write_text(json.dumps({"image": image, "annotations": []}))
    Image.new("RGB", (8, 8)).save(folder / "sa_1.jpg")
    for part in ("images", "masks"):
        (folder / part).rename(folder / f"old_{part}")
    with pytest.raises(InputError, match="only folders with mask pictures"):
        score_edges(lambda pixels: pixels, open_source(folder))
