"""samjax.zoom: an oracle that knows the shapes answers in any crop: which crops, and the masks that come of them."""

import dataclasses

import numpy as np
import pytest
from conftest import SMALL_VIT, random_params

import samjax
from samjax import rle, zoom
from samjax.geometry import target_size
from samjax.predict import Sam
from samjax.prompts import CORNERS, FOREGROUND
from samjax.windows import Picture, open_picture

CONFIG = dataclasses.replace(SMALL_VIT, image_size=(256, 256))
SAM = Sam(CONFIG, {})
H, W = 3000, 4000
SHAPES = {"speck": (900.0, 700.0, 14.0), "mote": (300.0, 2600.0, 3.6), "tree": (2000.0, 1000.0, 60.0),
          "roof": (3000.0, 2000.0, 420.0), "corner": (3970.0, 40.0, 120.0),
          "field": (1500.0, 2000.0, 900.0)}  # x, y, half a side


class Nowhere:
    """Stands in for a picture's pixels, which the oracle does not need."""

    hw, deep = (H, W), False

    def read(self, box):
        raise AssertionError("no pixels are needed")

    def close(self):
        pass


@pytest.fixture
def crops(monkeypatch):
    """The crops that were looked at."""
    seen = []

    def decode(self, features, slots):
        x0, y0, x1, y1 = (int(v) for v in features[0])
        new_h, new_w = target_size(y1 - y0, x1 - x0, CONFIG.image_size)
        scale = np.array([new_w / (x1 - x0), new_h / (y1 - y0)])
        points, labels = slots[0][0] / scale + (x0, y0), slots[1][0]
        at = points[labels == FOREGROUND][0] if (labels == FOREGROUND).any() else points[
            np.isin(labels, CORNERS)].mean(axis=0)
        a, b, half = next(s for s in SHAPES.values() if np.abs(at - s[:2]).max() < s[2])
        x, y = (np.arange(64) + 0.5) * 4 / scale[0] + x0, (np.arange(64) + 0.5) * 4 / scale[1] + y0
        field = half - np.maximum(np.abs(x[None] - a), np.abs(y[:, None] - b))
        logits = np.stack([field, -np.ones_like(field), field, field - 3 * half])[None].astype(np.float32)
        return logits, np.array([[0.8, 0.2, 0.9, 0.5]], np.float32)

    monkeypatch.setattr(zoom, "_frame", lambda picture, crop, config: (seen.append(crop) or np.array(crop), crop[2:]))
    monkeypatch.setattr(zoom, "_encode", lambda config, params, pixels, valid: pixels)
    monkeypatch.setattr(Sam, "_decode", decode)
    return seen


def truth(name):
    a, b, half = SHAPES[name]
    x0, y0, x1, y1 = (int(np.clip(v, 0, n)) for v, n in zip((a - half, b - half, a + half, b + half), (W, H, W, H)))
    out = np.zeros((H, W), bool)
    out[y0:y1, x0:x1] = True
    return out, (x0, y0, x1, y1)


def check(found, name):
    mask = rle.to_mask(found.segmentation())
    x0, y0, x1, y1 = found.crop
    np.testing.assert_array_equal(mask[y0:y1, x0:x1], found.mask())
    assert found.mask().sum() == mask.sum() == found.runs().area
    ys, xs = np.nonzero(mask)
    assert found.box() == (xs.min(), ys.min(), xs.max(), ys.max())
    expected, _ = truth(name)
    assert (mask & expected).sum() / (mask | expected).sum() > (0.6 if name == "mote" else 0.95)


@pytest.mark.parametrize("name", SHAPES)
def test_a_box_gets_the_crop_that_its_share_gives(crops, name):
    _, box = truth(name)
    found, = zoom.segment(SAM, Picture(Nowhere(), 3), boxes=box, share=0.4)
    side = min(max(np.ceil(max(box[2] - box[0], box[3] - box[1]) / 0.4), 256 / zoom.CLOSEST), W)
    x0, y0, x1, y1 = crops[0]
    assert len(crops) == 1 and found.crop == crops[0] and x1 - x0 == side and y1 - y0 == min(side, H)
    assert 0 <= x0 <= box[0] and 0 <= y0 <= box[1] and box[2] <= x1 <= W and box[3] <= y1 <= H
    assert found.iou.tolist() == pytest.approx([0.8]) and found.logits.shape == (1, 64, 64)
    check(found, name)


@pytest.mark.parametrize("name, sides", [("mote", [256, 64]), ("speck", [256]), ("tree", [256]),
                                         ("roof", [256, 512, 1024]), ("corner", [256]),
                                         ("field", [256, 512, 1024, 2048])])
def test_a_point_is_zoomed_out_until_its_object_fits_and_in_if_it_is_small(crops, name, sides):
    x, y = np.minimum(np.add(SHAPES[name][:2], 1), (W - 10, H - 10))
    found, = zoom.segment(SAM, Picture(Nowhere(), 3), points=[[x, y]], labels=[1], share=0.4)
    assert [x1 - x0 for x0, _, x1, _ in crops] == sides
    assert len(found.iou) == 3 and found.best == 1
    check(found, name)
    assert found.box(0) == (0, 0, 0, 0) and not found.mask(0).any()
    assert not rle.to_mask(found.segmentation(0)).any()


def test_an_empty_answer_is_not_looked_for_elsewhere(crops, monkeypatch):
    empty = np.full((1, 4, 64, 64), -1.0, np.float32), np.array([[0.8, 0.2, 0.9, 0.5]], np.float32)
    monkeypatch.setattr(Sam, "_decode", lambda self, features, slots: empty)
    found, = zoom.segment(SAM, Picture(Nowhere(), 3), points=[[2000, 1000]], labels=[1])
    assert found.empty and len(crops) == 1 and not rle.to_mask(found.segmentation()).any()


def test_several_objects_and_points(crops):
    at = lambda name, dx=0, dy=0: np.add(SHAPES[name][:2], (dx, dy))
    picture = Picture(Nowhere(), 3)
    points = [[at("tree"), at("tree", 30)], [at("roof", -300, -300), at("roof", 300, 300)]]
    one, two = zoom.segment(SAM, picture, points=points, labels=[[1, 1], [1, -2]], share=0.4)
    check(one, "tree")
    check(two, "roof")
    assert len(one.iou) == 1 and len(two.iou) == 3  # one mask for two points, three for one
    crops.clear()
    found, = zoom.segment(SAM, picture, points=[at("roof", -300), at("roof", 300)], labels=[1, 1], share=0.4)
    assert crops[0][2] - crops[0][0] == 1500  # both points lie in it
    check(found, "roof")
    both = zoom.segment(SAM, picture, boxes=[truth("tree")[1], truth("speck")[1]], multimask=True)
    assert [len(found.iou) for found in both] == [3, 3]
    check(both[1], "speck")
    crops.clear()
    zoom.segment(SAM, picture, points=[[[2300, 1000]]], labels=[[0]], boxes=truth("tree")[1], share=0.5)
    x0, y0, x1, y1 = crops[0]
    assert (x1 - x0) == 2 * 360 and x0 <= 1940 and x1 >= 2300  # box and point together


def test_a_crop_that_shows_another_object_does_not_count(crops, monkeypatch):
    decode = Sam._decode

    def fickle(self, features, slots):
        logits, iou = decode(self, features, slots)
        return (np.full_like(logits, 9), iou) if len(crops) > 1 else (logits, iou)

    monkeypatch.setattr(Sam, "_decode", fickle)
    found, = zoom.segment(SAM, Picture(Nowhere(), 3), points=[[301, 2601]], labels=[1])
    assert len(crops) == 2 and found.crop == crops[0]
    assert 20 < found.mask().sum() < 100


def test_a_small_picture_is_segmented_as_a_whole_one():
    sam = Sam(CONFIG, random_params(CONFIG))
    image = np.random.default_rng(0).integers(0, 256, (90, 131, 3), np.uint8)
    box, points = [10, 5, 120, 80], [[[30, 40], [100, 70]]]
    found, = zoom.segment(sam, image, boxes=box, points=points, labels=[[1, 0]], multimask=True)
    expected = sam.segment(sam.encode(image), boxes=box, points=points, labels=[[1, 0]])
    assert found.crop == (0, 0, 131, 90)
    np.testing.assert_array_equal(found.logits, expected.logits[0])
    np.testing.assert_array_equal(found.iou, expected.iou[0])
    for i in range(3):
        np.testing.assert_array_equal(found.mask(i), expected.masks[0, i])


def test_large_crops_are_shrunk_in_stripes(monkeypatch):
    random = np.random.default_rng(0)
    image = random.integers(0, 256, (1100, 1707, 3), np.uint8)
    monkeypatch.setattr(zoom, "_STRIPES", 1707 * 40)
    pixels, valid = zoom._frame(open_picture(image), (0, 0, 1707, 1100), CONFIG)
    assert valid == target_size(1100, 1707, CONFIG.image_size) and not pixels[valid[0] :].any()
    means = np.pad(image, ((0, 1), (0, 0), (0, 0)), "edge").reshape(367, 3, 569, 3, 3).mean(axis=(1, 3))
    np.testing.assert_allclose(zoom._means(image, 3), means, atol=0.51)
    from PIL import Image

    plain = np.asarray(Image.fromarray(zoom._means(image, 3)).resize(valid[::-1], Image.Resampling.BILINEAR))
    np.testing.assert_array_equal(pixels[: valid[0], : valid[1]], plain)
    whole, _ = zoom._frame(open_picture(image[:1000, :1000]), (0, 0, 1000, 1000), CONFIG)
    np.testing.assert_array_equal(whole, samjax.prepare(image[:1000, :1000], CONFIG)[0])


def test_mistakes_are_named():
    image = np.zeros((50, 60, 3), np.uint8)

    def fails(match, **prompt):
        with pytest.raises(samjax.InputError, match=match):
            zoom.segment(SAM, image, **prompt)

    fails("no prompt")
    fails("lies outside the image of 60 x 50", points=[[61, 3]], labels=[1])
    fails("is empty", boxes=[3, 3, 3, 9])
    fails("share must be", boxes=[3, 3, 9, 9], share=0)
    with pytest.raises(samjax.InputError, match="no such file"):
        zoom.segment(SAM, "nowhere.tif", boxes=[1, 1, 2, 2])
