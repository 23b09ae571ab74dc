"""MAE, S-, E- and weighted F-measure against loops written from the papers' formulae, on random and awkward maps."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samjax.errors import InputError
from samjax.evaluate.concealed import e_curve, e_measure, mae, measures, s_measure, weighted_f

EPS = 2.0**-52
SHAPES = array_shapes(min_dims=2, max_dims=2, max_side=8)


def mean(values):
    values = list(values)
    return math.fsum(values) / len(values)


def pixels(shape):
    return [(y, x) for y in range(shape[0]) for x in range(shape[1])]


def plain_s(prediction, truth):
    """Fan 2017, equations 1 to 8, lambda 0.5."""
    places = pixels(truth.shape)
    inside = [place for place in places if truth[place]]
    share = len(inside) / len(places)
    if share == 0:
        return 1 - mean(prediction[place] for place in places)
    if share == 1:
        return mean(prediction[place] for place in places)

    def similar(values):
        middle = mean(values)
        deviation = math.sqrt(math.fsum((v - middle) ** 2 for v in values) / (len(values) - 1)) if values[1:] else 0
        return 2 * middle / (middle**2 + 1 + deviation)

    objects = share * similar([prediction[place] for place in inside]) + (1 - share) * similar(
        [1 - prediction[place] for place in places if not truth[place]])
    cut_y, cut_x = (math.floor(mean(place[axis] for place in inside) + 0.5) for axis in (0, 1))
    regions = 0
    for below in (False, True):
        for right in (False, True):
            part = [(y, x) for y, x in places if (y > cut_y) == below and (x > cut_x) == right]
            regions += plain_ssim([prediction[p] for p in part], [float(truth[p]) for p in part]) * len(part)
    return max(0.5 * objects + 0.5 * regions / len(places), 0)


def plain_ssim(a, b):
    if not a:
        return 0
    n = len(a)
    mean_a, mean_b = (values[0] if len(set(values)) == 1 else mean(values) for values in (a, b))
    var_a, var_b, both = (math.fsum((u - p) * (v - q) for u, v in zip(one, other)) / (n - 1 + EPS)
                          for one, p, other, q in ((a, mean_a, a, mean_a), (b, mean_b, b, mean_b),
                                                   (a, mean_a, b, mean_b)))
    above, below = 4 * mean_a * mean_b * both, (mean_a**2 + mean_b**2) * (var_a + var_b)
    return above / (below + EPS) if above else float(not below)


def plain_e(found, truth):
    """Fan 2018, equations 1 to 4: bias matrices, alignment, (1 + x)^2 / 4."""
    places = pixels(truth.shape)
    if not truth.any():
        return mean(float(not found[place]) for place in places)
    if truth.all():
        return mean(float(found[place]) for place in places)
    middle_f, middle_t = mean(float(found[p]) for p in places), mean(float(truth[p]) for p in places)
    aligned = []
    for place in places:
        f, t = float(found[place]) - middle_f, float(truth[place]) - middle_t
        aligned.append((1 + 2 * f * t / (f * f + t * t + EPS)) ** 2 / 4)
    return mean(aligned)


def plain_adaptive(prediction, truth):
    cut = min(2 * mean(prediction.ravel().tolist()), 1)
    return plain_e((prediction >= cut) & (prediction > 0), truth)


def plain_wf(prediction, truth):
    """Margolin 2014, equations 5 to 10 with the authors' constants, over all pairs of pixels."""
    places = pixels(truth.shape)
    inside = [place for place in places if truth[place]]
    if not inside:
        return float(not prediction.any())
    error = {place: abs(prediction[place] - truth[place]) for place in places}
    far = lambda a, b: (a[0] - b[0]) ** 2 + (a[1] - b[1]) ** 2
    nearest = {place: min(inside, key=lambda other: (far(place, other), other[1], other[0])) for place in places}
    kernel = {(i, j): math.exp(-(i * i + j * j) / 50) for i in range(-3, 4) for j in range(-3, 4)}
    total = math.fsum(kernel.values())
    lost, excess = [], 0
    for y, x in places:
        if truth[y, x]:
            spread = math.fsum(weight * error[nearest[y + i, x + j]] for (i, j), weight in kernel.items()
                               if (y + i, x + j) in error) / total
            lost.append(min(error[y, x], spread))
        else:
            distance = math.sqrt(far((y, x), nearest[y, x]))
            excess += error[y, x] * (2 - math.exp(math.log(1 - 0.5) / 5 * distance))
    hits = len(inside) - math.fsum(lost)
    recall, precision = 1 - mean(lost), hits / (EPS + hits + excess)
    return 2 * recall * precision / (EPS + recall + precision)


def awkward():
    """Name -> mask of 11 x 13."""
    masks = {name: np.zeros((11, 13), bool) for name in ("empty", "pixel", "corner", "last", "border", "ring", "two")}
    masks["full"] = np.ones((11, 13), bool)
    masks["pixel"][5, 7] = masks["corner"][0, 0] = masks["last"][10, 12] = True
    masks["border"][:, :4] = True
    masks["ring"][1:9, 2:12] = True
    masks["ring"][3:7, 4:10] = False
    masks["two"][1:4, 1:4] = masks["two"][6:9, 9:12] = True
    masks["all_but_one"] = ~masks["pixel"]
    return masks


def predictions():
    random = np.random.default_rng(3)
    maps = {"grey": np.full((11, 13), 0.3), "noise": random.random((11, 13))}
    maps["bytes"] = random.integers(0, 256, (11, 13)) / 255
    maps["blurred"] = np.clip(np.add.outer(np.linspace(-0.5, 1, 11), np.linspace(-0.5, 1, 13)), 0, 1)
    return awkward() | maps


@pytest.mark.parametrize("truth", awkward())
@pytest.mark.parametrize("name", predictions())
def test_awkward(name, truth):
    compare(predictions()[name].astype(float), awkward()[truth])


@settings(max_examples=60, deadline=None)
@given(st.data())
def test_random(data):
    truth = data.draw(arrays(bool, SHAPES, elements=st.booleans()))
    levels = data.draw(st.sampled_from([1, 3, 255]))
    prediction = data.draw(arrays(np.int64, truth.shape, elements=st.integers(0, levels))) / levels
    compare(prediction, truth)


def compare(prediction, truth):
    found = measures(prediction, truth)
    assert found["mae"] == pytest.approx(mean(abs(prediction[p] - truth[p]) for p in pixels(truth.shape)), abs=1e-9)
    assert found["s"] == pytest.approx(plain_s(prediction, truth), abs=1e-6)
    assert found["e"] == pytest.approx(plain_adaptive(prediction, truth), abs=1e-6)
    curve = {value: plain_e(prediction >= value, truth) for value in {*prediction.ravel().tolist(), 0.0}}
    steps = sorted(curve)  # the mask changes only where a pixel's value is passed
    expected = []
    for level in range(256):
        reached = [value for value in steps if value >= level / 255]
        expected.append(curve[reached[0]] if reached else plain_e(np.zeros(truth.shape, bool), truth))
    assert e_curve(prediction, truth) == pytest.approx(expected, abs=1e-6)
    assert (found["e_mean"], found["e_max"]) == pytest.approx((mean(expected), max(expected)), abs=1e-6)
    assert found["wf"] == pytest.approx(plain_wf(prediction, truth), abs=1e-6)
    assert all(0 <= value <= 1 + 1e-9 for value in found.values())


@pytest.mark.parametrize("name", [name for name in awkward() if name not in ("empty", "full")])
def test_the_truth_itself_is_perfect(name):
    truth = awkward()[name]
    found = measures(truth, truth)
    assert found == pytest.approx(dict(mae=0, s=1, e=1, e_max=1, wf=1, e_mean=found["e_mean"]))
    assert found["e_mean"] == pytest.approx((255 + 0.25) / 256)  # cut at 0 everything is foreground


def test_by_hand():
    """Two of four pixels found, none too much: E is (3 (1 + x)^2 + (1 + y)^2) / 16 and so on."""
    truth = np.array([[True, True, False, False]])
    assert e_measure(np.array([[1, 0, 0, 0]]), truth) == pytest.approx(
        ((1 + 2 * 0.75 * 0.5 / (0.5625 + 0.25)) ** 2 + (1 - 2 * 0.25 * 0.5 / (0.0625 + 0.25)) ** 2
         + 2 * (1 + 2 * 0.25 * 0.5 / (0.0625 + 0.25)) ** 2) / 16)
    assert mae(np.array([[1, 0.5, 0, 0]]), truth) == 0.125
    assert e_measure(np.array([[0.2, 0.2, 0.1, 0]]), truth, 0.15) == pytest.approx(1)
    assert s_measure(np.zeros((1, 4)), np.zeros((1, 4), bool)) == 1
    far = np.zeros((20, 40), bool)
    far[:, :20] = True
    assert weighted_f(~far, far) < 0.1  # not 0: at the picture's border errors are spread over what lies beyond


@pytest.mark.parametrize("prediction, truth, message", [
    (np.zeros((2, 3)), np.zeros((3, 2), bool), "alike"), (np.full((2, 2), 2.0), np.zeros((2, 2), bool), "0 to 1"),
    (np.full((2, 2), np.nan), np.zeros((2, 2), bool), "0 to 1"), (np.zeros((2, 2)), np.zeros((2, 2)), "bool"),
    (np.zeros((0, 2)), np.zeros((0, 2), bool), "pixels")])
def test_what_cannot_be_measured(prediction, truth, message):
    with pytest.raises(InputError, match=message):
        measures(prediction, truth)
