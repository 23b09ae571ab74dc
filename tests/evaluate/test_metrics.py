"""IoU, points and boxes against brute force, on random masks and on the awkward ones."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays
from plain import flood

from samjax import upscale
from samjax.config import VIT_T
from samjax.errors import InputError
from samjax.evaluate.boxes import noised, score_boxes, size_of
from samjax.evaluate.crops import NOWHERE, Crop, Upscaled, errors, iou
from samjax.evaluate.points import anywhere, centre, farthest, next_point, score_points
from samjax.evaluate.scoring import Protocol
from samjax.geometry import masks_to_image, target_size

MASKS = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=9), elements=st.booleans())


def plain_farthest(region):
    """(squared distance, x, y) by all pairs; outside of the array is outside of the region."""
    framed = np.pad(region, 1)
    outside = np.argwhere(~framed)
    best = -1, 0, 0
    for y, x in np.argwhere(framed):
        distance = ((outside - (y, x)) ** 2).sum(axis=1).min()
        if distance > best[0]:
            best = distance, int(x) - 1, int(y) - 1
    return best


def plain_next(found, truth):
    """As `next_point`, of whole pictures."""
    wrong = (truth & ~found, 1), (found & ~truth, 0)
    regions = [(region, label) for mask, label in wrong for region in flood(mask)]
    if not regions:
        return None
    most = max(len(region) for region, _ in regions)
    region, label = next((region, label) for region, label in regions if len(region) == most)
    only = np.zeros(truth.shape, bool)
    only[tuple(zip(*region))] = True
    return *plain_farthest(only)[1:], label


def awkward():
    """Name -> mask of 12 x 17."""
    masks = {name: np.zeros((12, 17), bool) for name in ("empty", "pixel", "corner", "border", "ring", "two", "far")}
    masks["full"] = np.ones((12, 17), bool)
    masks["pixel"][5, 7] = masks["corner"][11, 16] = True
    masks["border"][:, :4] = True
    masks["ring"][1:9, 2:12] = True
    masks["ring"][3:7, 4:10] = False
    masks["two"][1:4, 1:4] = masks["two"][6:9, 10:13] = True
    masks["far"][0, 0] = masks["far"][11, 16] = True
    return masks


PAIRS = [(a, b) for a in awkward() for b in awkward()]


@pytest.mark.parametrize("first, second", PAIRS, ids="-".join)
def test_iou_of_awkward_masks(first, second):
    a, b = (awkward()[name] for name in (first, second))
    union = (a | b).sum()
    assert iou(Crop(a), Crop(b)) == ((a & b).sum() / union if union else 1.0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_iou_of_random_masks(data):
    a = data.draw(MASKS)
    b = data.draw(arrays(bool, a.shape, elements=st.booleans()))
    union = (a | b).sum()
    assert iou(Crop(a), Crop(b)) == iou(Crop(b), Crop(a)) == ((a & b).sum() / union if union else 1.0)


@settings(max_examples=100, deadline=None)
@given(MASKS, st.integers(0, 5), st.integers(0, 5))
def test_a_crop_is_its_mask(mask, x, y):
    crop = Crop(mask, (x, y))
    assert crop.area == mask.sum()
    whole = np.zeros((y + mask.shape[0] + 3, x + mask.shape[1] + 3), bool)
    whole[y : y + mask.shape[0], x : x + mask.shape[1]] = mask
    assert np.array_equal(crop.part((0, 0, *whole.shape[::-1])), whole)
    assert np.array_equal(crop.part((1, 2, 4, 4)), np.pad(whole, ((0, 9), (0, 9)))[2:4, 1:4])
    if mask.any():
        x0, y0, x1, y1 = crop.box
        assert whole[y0:y1, x0:x1].sum() == mask.sum() and crop.pixels.shape == (y1 - y0, x1 - x0)
        assert all(edge.any() for edge in (crop.pixels[0], crop.pixels[-1], crop.pixels[:, 0], crop.pixels[:, -1]))
    else:
        assert crop.box == NOWHERE


@settings(max_examples=200, deadline=None)
@given(MASKS.filter(np.any))
def test_the_centre_is_the_farthest_pixel(mask):
    assert centre(Crop(mask)) == farthest(mask) == plain_farthest(mask)[1:]


@pytest.mark.parametrize("name", [name for name, mask in awkward().items() if mask.any()])
def test_the_centre_of_awkward_masks(name):
    mask = awkward()[name]
    assert centre(Crop(mask)) == plain_farthest(mask)[1:]


def test_the_border_of_the_picture_counts_as_boundary():
    assert farthest(np.ones((7, 7), bool)) == (3, 3)
    assert farthest(np.ones((4, 4), bool)) == (1, 1)  # the first of four
    assert farthest(np.ones((1, 5), bool)) == (0, 0)


@settings(max_examples=200, deadline=None)
@given(st.data())
def test_the_next_point_is_in_the_largest_error(data):
    truth = data.draw(MASKS)
    found = data.draw(arrays(bool, truth.shape, elements=st.booleans()))
    assert next_point(Crop(found), Crop(truth)) == plain_next(found, truth)


@pytest.mark.parametrize("first, second", PAIRS, ids="-".join)
def test_the_next_point_of_awkward_masks(first, second):
    found, truth = (awkward()[name] for name in (first, second))
    assert next_point(Crop(found), Crop(truth)) == plain_next(found, truth)


def test_errors_are_what_differs():
    found, truth = awkward()["ring"], awkward()["two"]
    missed, excess, (x, y) = errors(Crop(found), Crop(truth))
    area = np.s_[y : y + missed.shape[0], x : x + missed.shape[1]]
    assert np.array_equal(missed, (truth & ~found)[area]) and missed.sum() == (truth & ~found).sum()
    assert np.array_equal(excess, (found & ~truth)[area]) and excess.sum() == (found & ~truth).sum()


@pytest.mark.parametrize("hw", [(60, 90), (300, 200), (9, 700)])
def test_answers_are_the_official_masks(hw):
    """Upscaled only where needed, and whole."""
    random = np.random.default_rng(3)
    coarse = random.normal(size=(6, 8, 8)).astype(np.float32)
    logits = np.stack([np.kron(each, np.ones((32, 32), np.float32)) for each in coarse])
    logits[4], logits[5] = -1, 1  # nothing, everything
    whole = masks_to_image(logits, VIT_T, target_size(*hw, VIT_T.image_size), hw)
    grid, truth = upscale.axes(VIT_T, hw), Crop(whole[0])
    for mask, values in zip(whole, logits):
        answer = Upscaled(values, grid)
        assert answer.area == mask.sum() and answer.box == Crop(mask).box
        assert np.array_equal(answer.part((0, 0, *hw[::-1])), mask)
        assert iou(answer, truth) == (mask & whole[0]).sum() / (mask | whole[0]).sum()
        assert next_point(answer, truth) == next_point(Crop(mask), truth)


# -- the protocols, with answers that are known ---------------------------------------------------------------

HW = 256, 256


class Speaker:
    """Answers as told: a list of (masks (n, 4, 256, 256) bool, iou (n, 4)), in turn; remembers what it was asked."""

    def __init__(self, *answers):
        self.answers, self.asked = list(answers), []

    def __call__(self, **prompts):
        self.asked.append(prompts)
        masks, predicted = self.answers[len(self.asked) - 1]
        return np.where(masks, 8, -8).astype(np.float32), np.array(predicted, np.float32)


def square(x0, y0, x1, y1):
    mask = np.zeros(HW, bool)
    mask[y0:y1, x0:x1] = True
    return mask


def test_points_take_the_confident_mask_then_the_single_one():
    truth, half, wide = square(40, 40, 80, 80), square(40, 40, 80, 60), square(40, 40, 80, 90)
    other = square(0, 0, 9, 9)
    speaker = Speaker(([[truth, other, half, truth]], [[9, 0.1, 0.8, 0.5]]), ([[wide, other, half, truth]], [[.7] * 4]),
                      ([[truth, other, other, other]], [[0.6, 0, 0, 0]]))
    grid = upscale.axes(VIT_T, HW)
    (score,), (clicks,) = score_points(speaker, [Crop(truth)], grid, (1, 2, 3, 5))
    exact = {name: iou(Upscaled(np.where(mask, 8, -8).astype(np.float32), grid), Crop(truth))
             for name, mask in (("half", half), ("wide", wide), ("truth", truth))}
    assert exact["half"] == pytest.approx(0.5, abs=0.02) and exact["wide"] == pytest.approx(0.8, abs=0.02)
    assert score["point"] == exact["half"] and score["point_predicted"] == pytest.approx(0.8)
    assert score["point_2"] == exact["wide"] and score["point_2_predicted"] == pytest.approx(0.7)
    assert score["point_oracle"] == score["point_2_oracle"] == exact["truth"] == 1
    # three points: nothing is wrong any more, and so it stays
    assert score["point_3"] == score["point_3_oracle"] == score["point_5"] == 1 and len(speaker.asked) == 3
    assert score["point_5_predicted"] == pytest.approx(0.6)
    assert clicks == [(59, 59, 1), (*clicks[1][:2], 1), (*clicks[2][:2], 0)]
    assert truth[clicks[1][1], clicks[1][0]] and not half[clicks[1][1], clicks[1][0]]
    assert wide[clicks[2][1], clicks[2][0]] and not truth[clicks[2][1], clicks[2][0]]
    first, second, third = speaker.asked
    assert first["mask_logits"] is None and first["points"].shape == (1, 1, 2)
    assert np.array_equal(second["mask_logits"][0] > 0, half) and np.array_equal(third["mask_logits"][0] > 0, wide)
    assert third["points"].tolist() == [[list(click[:2]) for click in clicks]]
    assert third["labels"].tolist() == [[1, 1, 0]]


def test_objects_without_an_error_wait_for_the_others():
    truth, half = square(40, 40, 80, 80), square(40, 40, 80, 60)
    answers = [[truth, truth, truth, truth], [half, half, half, half]]
    worse = [[half] * 4, [half] * 4]
    speaker = Speaker((answers, [[1] * 4] * 2), (worse, [[0.5] * 4] * 2), (worse, [[0.5] * 4] * 2))
    scores, clicks = score_points(speaker, [Crop(truth)] * 2, upscale.axes(VIT_T, HW), (1, 3))
    assert scores[0]["point_3"] == 1 and scores[0]["point_3_predicted"] == 1 and len(clicks[0]) == 1
    assert scores[1]["point_3"] < 0.6 and len(clicks[1]) == 3
    assert speaker.asked[2]["labels"].tolist() == [[1, -2, -2], [1, 1, 1]]


def test_boxes_take_the_single_mask():
    truth, half = square(40, 40, 80, 80), square(40, 40, 80, 60)
    speaker = Speaker(([[half, half, truth, half]], [[0.3, 0.5, 1, 0.4]]), ([[truth] * 4], [[0.9] * 4]))
    grid = upscale.axes(VIT_T, HW)
    assert score_boxes(speaker, [Crop(truth)], grid)[0]["box"] == pytest.approx(0.5, abs=0.02)
    assert speaker.asked[0] == {"boxes": [(40, 40, 80, 80)]}
    speaker.asked.clear()
    refined = score_boxes(speaker, [Crop(truth)], grid, refine=True)
    assert refined == [{"box": 1.0, "box_predicted": pytest.approx(0.9)}]
    assert np.array_equal(speaker.asked[1]["mask_logits"][0] > 0, truth)  # of the most confident one


def test_noise_moves_the_sides():
    random = np.random.default_rng(0)
    moved = np.array([noised((100, 200, 200, 260), 0.1, (400, 400), random) for _ in range(4000)])
    assert np.allclose(moved.mean(axis=0), (100, 200, 200, 260), atol=0.6)
    assert np.allclose(moved.std(axis=0), (10, 6, 10, 6), rtol=0.06)
    assert np.abs(moved - (100, 200, 200, 260)).max() <= 20
    large = np.array([noised((0, 0, 400, 400), 0.5, (400, 400), random) for _ in range(200)])
    assert large.min() >= 0 and large.max() <= 400 and np.abs(large - (0, 0, 400, 400)).max() <= 20


@pytest.mark.parametrize("box", [(0, 0, 1, 1), (3, 3, 4, 4), (9, 0, 10, 10), (0, 9, 10, 10)])
def test_noised_boxes_stay_boxes(box):
    random = np.random.default_rng(1)
    for share in (0, 0.1, 1):
        for _ in range(100):
            x0, y0, x1, y1 = noised(box, share, (10, 10), random)
            assert 0 <= x0 <= x1 - 1 + 1e-9 and x1 <= 10 and 0 <= y0 <= y1 - 1 + 1e-9 and y1 <= 10
    assert noised(box, 0, (10, 10), random) == box


def test_any_pixel_may_be_the_first():
    random, mask = np.random.default_rng(0), awkward()["two"]
    seen = {anywhere(Crop(mask), random) for _ in range(400)}
    assert seen == {(int(x), int(y)) for y, x in np.argwhere(mask)}


def test_sizes_are_coco_s():
    assert [size_of(area) for area in (32, 1023, 1024, 9215, 9216, 10**7)] == ["small", "small", "medium", "medium",
                                                                            "large", "large"]


@pytest.mark.parametrize("wrong, word", [
    ({"prompts": ("text",)}, "text"), ({"prompts": ()}, "nothing"), ({"points": (0, 1)}, "0"),
    ({"points": ()}, "nothing"), ({"first": "last"}, "last"), ({"box_noise": 2}, "noise"), ({"seed": -1}, "seed")])
def test_wrong_settings_are_named(wrong, word):
    with pytest.raises(InputError, match=word):
        Protocol(**wrong).check()
