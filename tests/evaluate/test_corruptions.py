"""Corruptions: what each does to a picture, that it grows with strength, and that it can be made again."""

import colorsys

import numpy as np
import pytest

from samjax.errors import InputError
from samjax.evaluate.corruptions import STRENGTHS, corrupt


def picture(h=128, w=512):
    """Smooth shapes with an edge, so that no corruption leaves it as it is."""
    y, x = np.mgrid[:h, :w]
    image = np.stack([x * 2, y * 3, 128 + 60 * np.sin(x / 5) * np.cos(y / 7)], axis=-1).clip(0, 255).astype(np.uint8)
    image[20:40, 30:60] = 230, 40, 40
    return image


@pytest.mark.parametrize("kind", STRENGTHS)
def test_stronger_is_farther_from_the_picture(kind):
    image = picture()
    before = image.copy()
    made = [corrupt(image, kind, strength, name="x") for strength in range(1, 6)]
    away = [np.abs(each.astype(float) - image).mean() for each in made]
    assert away[0] > 0 and all(a < b for a, b in zip(away, away[1:])), away
    assert all(each.shape == image.shape and each.dtype == np.uint8 for each in made)
    assert (image == before).all()
    assert all((each == corrupt(image, kind, strength, name="x")).all() for strength, each in enumerate(made, 1))


def test_noise_is_seeded_and_of_its_deviation():
    grey = np.full((200, 200, 3), 128, np.uint8)
    one = corrupt(grey, "noise", 1, name="a")
    assert np.std(one) == pytest.approx(0.08 * 255, rel=0.02) and np.mean(one) == pytest.approx(128, abs=0.2)
    others = [corrupt(grey, "noise", 1, name="b"), corrupt(grey, "noise", 1, seed=1, name="a")]
    assert all((one != other).mean() > 0.9 for other in others)


def test_blur_scales_with_the_picture():
    """A line's profile is a Gaussian of the stated deviation."""
    for side in (512, 1024):
        line = np.zeros((8, side, 3), np.uint8)
        line[:, side // 2 - 8:side // 2 + 8] = 255
        profile = corrupt(line, "blur", 5)[4, :, 0].astype(float)
        places = np.arange(side) - (side - 1) / 2
        variance = (profile * places**2).sum() / profile.sum()
        assert variance == pytest.approx((10 * side / 1024) ** 2 + (16**2 - 1) / 12, rel=0.03)


def test_brightness_moves_only_the_value():
    colours = np.array([[[10, 20, 40], [100, 50, 0], [0, 0, 0], [250, 100, 30]]], np.uint8)
    for strength, more in enumerate(STRENGTHS["brightness"], 1):
        for before, after in zip(colours[0], corrupt(colours, "brightness", strength)[0]):
            h, s, v = colorsys.rgb_to_hsv(*(before / 255))
            assert after / 255 == pytest.approx(colorsys.hsv_to_rgb(h, s, min(v + more, 1)), abs=0.003)


def test_contrast_keeps_the_means():
    image = picture()
    weak = corrupt(image, "contrast", 5)
    assert weak.mean(axis=(0, 1)) == pytest.approx(image.mean(axis=(0, 1)), abs=0.3)
    assert np.ptp(weak, axis=(0, 1)) == pytest.approx(0.05 * np.ptp(image.astype(int), axis=(0, 1)), abs=1)


@pytest.mark.parametrize("args, word", [(("fog", 1), "fog"), (("blur", 0), "1 to 5"), (("blur", 6), "1 to 5")])
def test_mistakes(args, word):
    with pytest.raises(InputError, match=word):
        corrupt(picture(), *args)
    with pytest.raises(InputError, match="uint8"):
        corrupt(picture().astype(float), "blur", 1)
