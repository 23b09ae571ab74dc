"""Properties of objects against loops over pixels; bins and calibration against loops over objects."""

import json
import math

import numpy as np
import pytest
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samjax.evaluate.crops import Crop
from samjax.evaluate.properties import contrast, describe, lab, solidity, thinness
from samjax.evaluate.strata import EDGES, reliability, stratify

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=8), elements=st.booleans())


def plain_lab(rgb):
    """By the definitions of sRGB and CIE 1976."""
    linear = [v / 12.92 if v <= 0.04045 else ((v + 0.055) / 1.055) ** 2.4 for v in (value / 255 for value in rgb)]
    rows = ((0.4124564, 0.3575761, 0.1804375), (0.2126729, 0.7151522, 0.072175), (0.0193339, 0.119192, 0.9503041))
    t = [sum(a * b for a, b in zip(row, linear)) / white for row, white in zip(rows, (0.95047, 1, 1.08883))]
    x, y, z = (v ** (1 / 3) if v > 216 / 24389 else (24389 / 27 * v + 16) / 116 for v in t)
    return 116 * y - 16, 500 * (x - y), 200 * (y - z)


def plain_contrast(image, mask, reach):
    h, w = mask.shape
    inside = lambda y, x: 0 <= y < h and 0 <= x < w
    distances = []
    for y, x in np.argwhere(mask).tolist():
        if not any(inside(*near) and not mask[near] for near in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1))):
            continue
        square = [(v, u) for v in range(y - reach, y + reach + 1) for u in range(x - reach, x + reach + 1)
                  if inside(v, u)]
        means = [np.mean([plain_lab(image[place].tolist()) for place in square if mask[place] == wanted], axis=0)
                 for wanted in (True, False)]
        distances.append(math.dist(*means))
    return sum(distances) / len(distances) if distances else math.nan


def plain_hull(mask):
    """Area of the hull of all pixels' corners: Andrew's chains and the shoelace formula, in whole numbers."""
    corners = sorted({(x + i, y + j) for y, x in np.argwhere(mask).tolist() for i in (0, 1) for j in (0, 1)})

    def chain(points):
        found = []
        for p in points:
            while len(found) > 1 and ((found[-1][0] - found[-2][0]) * (p[1] - found[-2][1])
                                      - (found[-1][1] - found[-2][1]) * (p[0] - found[-2][0])) <= 0:
                found.pop()
            found.append(p)
        return found[:-1]

    hull = chain(corners) + chain(corners[::-1])
    return abs(sum(a[0] * b[1] - b[0] * a[1] for a, b in zip(hull, hull[1:] + hull[:1]))) / 2


def plain_thinness(mask):
    framed = np.pad(mask, 1)
    outside = np.argwhere(~framed)
    most = max(((outside - place) ** 2).sum(axis=1).min() for place in np.argwhere(framed))
    return mask.sum() / (2 * math.sqrt(most) - 1) ** 2


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_properties(data):
    mask = data.draw(MASKS)
    assume(mask.any())
    image = np.random.default_rng(data.draw(st.integers(0, 99))).integers(0, 256, (*mask.shape, 3), np.uint8)
    found, = describe(image, [Crop(mask)])
    assert found["relative_area"] == mask.mean()
    assert found["solidity"] == pytest.approx(mask.sum() / plain_hull(mask), abs=1e-9)
    assert found["thinness"] == pytest.approx(plain_thinness(mask), abs=1e-9)
    assert found["contrast"] == pytest.approx(plain_contrast(image, mask, 2), abs=1e-6, nan_ok=True)
    assert contrast(image, Crop(mask), 1) == pytest.approx(plain_contrast(image, mask, 1), abs=1e-6, nan_ok=True)


def test_properties_by_hand():
    black_on_white = np.full((40, 60, 3), 255, np.uint8)
    mask = np.zeros((40, 60), bool)
    mask[5:15, 10:20] = True
    black_on_white[mask] = 0
    found, = describe(black_on_white, [Crop(mask)])
    assert (found["relative_area"], found["solidity"]) == (100 / 2400, 1)
    assert found["contrast"] == pytest.approx(100, abs=1e-3) and found["thinness"] == 100 / 81  # even sides: 9 wide
    assert thinness(np.ones((1, 7), bool)) == 7 and thinness(np.ones((3, 9), bool)) == 3
    assert solidity(np.ones((1, 1), bool)) == 1 and solidity(np.eye(2, dtype=bool)) == 2 / 3
    assert math.isnan(contrast(black_on_white, Crop(np.ones((40, 60), bool)), 2))  # a full mask has no boundary
    corner = np.zeros((40, 60), bool)
    corner[:30, :40] = True
    assert contrast(np.zeros((40, 60, 3), np.uint8), Crop(corner), 3) == 0


def test_colours():
    """Of sRGB's corners, as they are published (D65)."""
    known = {(255, 255, 255): (100, 0, 0), (0, 0, 0): (0, 0, 0), (255, 0, 0): (53.24, 80.09, 67.20),
             (0, 255, 0): (87.73, -86.18, 83.18), (0, 0, 255): (32.30, 79.19, -107.86)}
    assert lab(np.array(list(known), np.uint8)) == pytest.approx(np.array(list(known.values())), abs=0.02)
    colours = np.random.default_rng(0).integers(0, 256, (50, 3), np.uint8)
    assert lab(colours) == pytest.approx(np.array([plain_lab(rgb.tolist()) for rgb in colours]), abs=1e-9)


def test_strata():
    random = np.random.default_rng(1)
    edges = {"size": (0, 0.25, 0.5, 1), "kind": (0, 10, math.inf)}
    properties = [{"size": value, "kind": kind} for value, kind in
                  zip([*random.random(40).tolist(), 0.0, 0.25, 0.5, 1.0, None, math.nan, 1.5],
                      [*random.integers(0, 30, 43).tolist(), 10, 5, 5, 5])]
    scores = [{"a": value, "b": None if i % 3 == 0 else value / 2}
              for i, value in enumerate(random.random(47).tolist())]
    found = stratify(properties, scores, ("a", "b"), edges)
    json.dumps(found, allow_nan=False)
    for name, cuts in edges.items():
        for place, (low, high) in enumerate(zip(cuts, cuts[1:])):
            last = place == len(cuts) - 2
            rows = [score for one, score in zip(properties, scores) if one[name] is not None
                    and (low <= one[name] < high or (last and one[name] == high))]
            bin_ = found[name][place]
            assert (bin_["low"], bin_["high"], bin_["objects"]) == (low, high if high < math.inf else None, len(rows))
            assert bin_["a"] == pytest.approx(np.mean([row["a"] for row in rows]))
            known = [row["b"] for row in rows if row["b"] is not None]
            assert bin_["b"] == pytest.approx(np.mean(known))
            assert bin_["b_error"] == pytest.approx(np.std(known, ddof=1) / len(known) ** 0.5)
    assert sum(bin_["objects"] for bin_ in found["size"]) == 44  # None, NaN and 1.5 are in no bin


def test_strata_of_few():
    assert stratify([], [], ("a",)) == {name: [] for name in EDGES}
    one = {"low": 0.95, "high": 1, "objects": 1, "a": None, "a_error": None}
    assert stratify([{"solidity": 1.0}], [{"a": math.nan}], ("a",))["solidity"] == [one]


def test_calibration_in_bins():
    random = np.random.default_rng(3)
    sizes, actual, said = random.random((3, 60)).tolist()
    said[7] = None
    scores = [{"box": a, "box_predicted": b} for a, b in zip(actual, said)]
    edges = {"size": (0, 0.3, 1)}
    found = stratify([{"size": size} for size in sizes], scores, ("box",), edges, {"box": "box_predicted"})["size"]
    for one, small in zip(found, (True, False), strict=True):
        there = [i for i, size in enumerate(sizes) if (size < 0.3) == small]
        assert one["objects"] == len(there) and "box_predicted" not in one
        assert one["ece_box"] == reliability([said[i] for i in there], [actual[i] for i in there])["ece"]
    plain, = stratify([{"size": 0.5}], [{"box": 0.5, "box_predicted": None}], ("box",), {"size": (0, 1)},
                      {"box": "box_predicted"})["size"]
    assert plain["ece_box"] is None


def test_reliability():
    random = np.random.default_rng(2)
    predicted = [*(random.random(60) * 1.2 - 0.1).tolist(), 0.0, 1.0, 0.1, 0.3, None, math.nan, 0.5]
    actual = [*random.random(66).tolist(), None]
    found = reliability(predicted, actual)
    pairs = [(min(max(p, 0), 1), a) for p, a in zip(predicted, actual) if None not in (p, a) and not math.isnan(p)]
    bins = [[] for _ in range(10)]
    for pair in pairs:
        bins[min(sum(pair[0] >= edge for edge in np.linspace(0, 1, 11)) - 1, 9)].append(pair)
    assert found["objects"] == len(pairs) == 64
    assert [one["objects"] for one in found["bins"]] == [len(each) for each in bins if each]
    gaps = [len(each) * abs(np.mean(each, axis=0) @ (1, -1)) for each in bins if each]
    assert found["ece"] == pytest.approx(sum(gaps) / 64)
    assert found["bias"] == pytest.approx(np.mean([p - a for p, a in pairs]))
    assert found["mae"] == pytest.approx(np.mean([abs(p - a) for p, a in pairs]))


def test_reliability_of_extremes():
    assert reliability([], [])["ece"] is None
    assert reliability([0.85] * 4, [1, 1, 1, 0.4])["ece"] == pytest.approx(0)  # right on average, wrong of each
    assert reliability([2.0, -1.0], [0.0, 1.0])["ece"] == 1
