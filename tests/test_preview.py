"""samjax.preview: a picture and its masks made small, against the whole picture's."""

import numpy as np
import pytest
from PIL import Image

from samjax import preview, rle
from samjax.draw import overlay
from samjax.preview import SmallMasks, overlay_small, shrink
from samjax.windows import open_picture


def record(mask):
    ys, xs = np.nonzero(mask)
    box = [xs.min(), ys.min(), xs.max() - xs.min(), ys.max() - ys.min()] if len(xs) else [0, 0, 0, 0]
    return {"segmentation": {"size": list(mask.shape), "counts": rle.compress(rle.encode(mask))},
            "bbox": [int(n) for n in box], "area": int(mask.sum())}


def masks_of(hw):
    """Empty, full, single pixels in corners, a frame, a diagonal, noise, a disc cut by the border."""
    h, w = hw
    y, x = np.mgrid[:h, :w]
    masks = [np.zeros(hw, bool), np.ones(hw, bool), (y == 0) & (x == 0), (y == h - 1) & (x == w - 1),
             (y == h // 2) & (x == w // 3), (y < 9) | (x < 9) | (y >= h - 9) | (x >= w - 9), y == x,
             np.random.default_rng(0).random(hw) > 0.5, (y - h) ** 2 + (x - w) ** 2 < 900]
    return np.stack(masks)


@pytest.mark.parametrize("hw", [(100, 140), (90, 64), (97, 131), (1, 500)])
@pytest.mark.parametrize("longest", [500, 50, 33, 7])
def test_small_masks_are_the_middles_of_squares(hw, longest):
    picture = open_picture(np.zeros((*hw, 3), np.uint8))
    small = shrink(picture, longest)
    t, masks = small.times, masks_of(hw)
    h, w = (-(-n // t) for n in hw)
    assert small.pixels.shape == (h, w, 3) and max(h, w) <= longest and (t == 1 or max(hw) > (t - 1) * longest)
    middle = np.ix_(*(np.minimum(np.arange(n) * t + t // 2, side - 1) for n, side in ((h, hw[0]), (w, hw[1]))))
    for mask, (part, (x, y)) in zip(masks, SmallMasks([record(mask) for mask in masks], small)):
        whole = np.zeros((h, w), bool)
        whole[y : y + part.shape[0], x : x + part.shape[1]] = part
        expected = mask[middle]
        if expected.any() or not mask.any():
            np.testing.assert_array_equal(whole, expected)
        else:  # still seen: one pixel, in whose square the mask is
            (i, j), = np.argwhere(whole)
            assert mask[i * t : i * t + t, j * t : j * t + t].any()


@pytest.mark.parametrize("channels", [1, 3])
@pytest.mark.parametrize("stripe", [1, 4000, 2**24])
def test_small_pictures_are_means(monkeypatch, channels, stripe):
    monkeypatch.setattr(preview, "_STRIPE", stripe)
    array = np.random.default_rng(1).integers(0, 256, (203, 310, channels), np.uint8)
    small = shrink(open_picture(array, channels), 100)
    assert small.times == 4 and small.pixels.shape == (51, 78, channels) and small.hw == (203, 310)
    for (y, x) in ((0, 0), (7, 9), (50, 77), (50, 3), (11, 77)):
        square = array[4 * y : 4 * y + 4, 4 * x : 4 * x + 4].reshape(-1, channels)
        assert np.abs(small.pixels[y, x] - square.mean(axis=0)).max() <= 0.51
    whole = shrink(open_picture(array, channels), 310)
    assert whole.times == 1 and (whole.pixels == array).all()


def test_at_full_size_the_overlay_is_the_same():
    array, masks = np.random.default_rng(2).integers(0, 256, (100, 140, 3), np.uint8), masks_of((100, 140))
    small = shrink(open_picture(array))
    drawn = np.asarray(overlay_small(small, [record(mask) for mask in masks]))
    np.testing.assert_array_equal(drawn, np.asarray(overlay(array, masks)))
    assert (np.asarray(overlay_small(small, [])) == array).all()


def test_a_grey_picture_is_drawn():
    small = shrink(open_picture(np.full((60, 80), 90, np.uint8), 1), 40)
    out = overlay_small(small, [record(np.pad(np.ones((20, 20), bool), ((10, 30), (10, 50))))])
    assert isinstance(out, Image.Image) and out.size == (40, 30) and np.asarray(out)[9, 9].tolist() != [90, 90, 90]
