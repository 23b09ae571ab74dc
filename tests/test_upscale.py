"""samjax.upscale: what is measured tile by tile is what whole masks give, to the pixel."""

import dataclasses
import tracemalloc

import numpy as np
import pytest
from scipy import ndimage

from samjax import upscale
from samjax.config import LITE_MEDSAM, VIT_B
from samjax.geometry import logits_to_image, target_size

WIDE = dataclasses.replace(VIT_B, image_size=(128, 320))
CASES = [(VIT_B, (534, 800)), (VIT_B, (150, 97)), (VIT_B, (1201, 640)), (LITE_MEDSAM, (333, 500)), (WIDE, (200, 500)),
         (VIT_B, (1, 1)), (VIT_B, (3, 700)), (VIT_B, (64, 64))]


def some_logits(config):
    """Noise, soft blobs, hard blobs, nothing, everything, one cell."""
    random = np.random.default_rng(0)
    noise = random.normal(size=config.mask_size)
    soft = ndimage.gaussian_filter(noise, 6) * 60
    one = np.full(config.mask_size, -20.0)
    one[0, 0] = one[5, 7] = 20
    plain = np.ones(config.mask_size)
    return np.array([noise * 2, soft, soft * 20, soft - 4, -8 * plain, 8 * plain, 0 * plain, one], np.float32)


@pytest.mark.parametrize("config, image_hw", CASES)
@pytest.mark.parametrize("offset", [1.0, 0.0, 3.5])
def test_measures_and_drawings_are_those_of_whole_masks(config, image_hw, offset):
    grid = upscale.axes(config, image_hw)
    for logits in some_logits(config):
        values = logits_to_image(logits, config, target_size(*image_hw, config.image_size), image_hw)
        # Interpolated logits differ in their last bits: such as lie on a cut may fall on either side.
        unsure = [np.count_nonzero(np.abs(values - cut) < 2e-6 * np.abs(logits).max()) for cut in (offset, 0, -offset)]
        found = upscale.measure(logits, grid, offset)
        assert max(unsure) < 20 or logits.std() == 0
        for count, cut, few in zip(found, (offset, 0, -offset), unsure):
            assert abs(count - np.count_nonzero(values > cut)) <= few * (logits.std() > 0)
        if logits.std() == 0 or not unsure[1]:
            check_drawing(logits, grid, found, values > 0)


def check_drawing(logits, grid, found, mask):
    ys, xs = np.nonzero(mask)
    box = (xs.min(), ys.min(), xs.max(), ys.max()) if len(ys) else (0, 0, 0, 0)
    assert found.box == box
    if found.area:
        part = upscale.render(upscale.cut(logits, grid, found.box), grid)
        assert part.sum() == found.area == mask.sum()
        assert (part == mask[box[1] : box[3] + 1, box[0] : box[2] + 1]).all()


def test_stability_is_the_ratio_of_the_cuts():
    assert upscale.Measure(3, 5, 7, (0, 0, 1, 1)).stability == np.float32(3) / np.float32(7)
    assert np.isnan(upscale.Measure(0, 0, 0, (0, 0, 0, 0)).stability)


def test_memory_does_not_follow_the_picture():
    logits = some_logits(VIT_B)[1]
    peaks = []
    for side in (500, 8000):
        grid = upscale.axes(VIT_B, (side, side))
        tracemalloc.start()
        upscale.measure(logits, grid, 1.0)
        peaks.append(tracemalloc.get_traced_memory()[1])
        tracemalloc.stop()
    assert max(peaks) < 8e6  # the mask alone would be 256 MB


def test_a_cutting_is_a_small_copy():
    logits = np.full(VIT_B.mask_size, -9, np.float32)
    logits[100:110, 50:60] = 9
    grid = upscale.axes(VIT_B, (1200, 1800))
    cutting = upscale.cut(logits, grid, upscale.measure(logits, grid, 1.0).box)
    assert cutting.logits.nbytes < 10_000 and cutting.logits.base is None
