"""samjax.geometry: sizes, points and masks go to the model and back as in the official code."""

import dataclasses
import tracemalloc
from pathlib import Path

import numpy as np
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from PIL import Image

from samjax.config import IMAGENET_MEAN, IMAGENET_STD, LITE_MEDSAM, VIT_B
from samjax.errors import InputError
from samjax.geometry import (
    MASK_EPS,
    logits_to_image,
    mask_to_logits,
    masks_to_image,
    normalise,
    prepare,
    resize,
    scale_points,
    target_size,
)
from samjax.image import read_image

SMALL = dataclasses.replace(VIT_B, image_size=(256, 256))
WIDE = dataclasses.replace(VIT_B, image_size=(128, 320))
sides = st.integers(1, 20_000)


def official_size(h, w, long_side):
    """As ResizeLongestSide.get_preprocess_shape has it, float order included."""
    scale = long_side * 1.0 / max(h, w)
    return int(h * scale + 0.5), int(w * scale + 0.5)


@given(sides, sides)
@example(534, 800)
@example(1, 20_000)
@example(20_000, 8)
def test_target_size_is_the_official_one_and_never_empty(h, w):
    for long_side in (256, 1024):
        ours, theirs = target_size(h, w, (long_side, long_side)), official_size(h, w, long_side)
        assert ours == tuple(max(1, side) for side in theirs)
        assert max(ours) == long_side


@given(sides, sides, st.integers(1, 2000), st.integers(1, 2000))
def test_target_size_fits_any_rectangle(h, w, size_h, size_w):
    new_h, new_w = target_size(h, w, (size_h, size_w))
    assert 1 <= new_h <= size_h and 1 <= new_w <= size_w
    assert new_h == size_h or new_w == size_w
    assert abs(new_h * w - new_w * h) <= max(h, w) or 1 in (new_h, new_w)


@pytest.mark.parametrize("hw", [(40, 60), (300, 200), (1, 1), (8, 2000)])
def test_bilinear_is_pillows(hw):
    image = np.random.default_rng(0).integers(0, 256, (*hw, 3), np.uint8)
    new_hw = target_size(*hw, (128, 128))
    expected = np.asarray(Image.fromarray(image).resize(new_hw[::-1], Image.Resampling.BILINEAR))
    assert np.array_equal(resize(image, new_hw, "bilinear"), expected)
    for c in (1, 2, 4, 5):
        parts = np.concatenate([image, image], axis=-1)[..., :c]
        out = resize(parts, new_hw, "bilinear")
        assert out.shape == (*new_hw, c)
        assert np.array_equal(out[..., 0], expected[..., 0])
        assert np.array_equal(out[..., -1], expected[..., (c - 1) % 3])


def test_area_only_shrinks():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(resize(image, (40, 60), "area"), resize(image, (40, 60), "bilinear"))
    blocks = image.reshape(4, 5, 6, 5, 3).mean(axis=(1, 3))
    assert np.abs(resize(image, (4, 6), "area") - blocks).max() <= 0.5001
    assert resize(image, (20, 30), "area") is image


@pytest.mark.parametrize("config", [SMALL, WIDE, LITE_MEDSAM])
@pytest.mark.parametrize("hw", [(30, 50), (500, 300), (1, 1), (20_000, 8)])
def test_prepare_pads_right_and_bottom_with_zeros(config, hw):
    image = np.random.default_rng(0).integers(1, 256, (*hw, 3), np.uint8)
    pixels, new_hw = prepare(image, config)
    assert pixels.shape == (*config.image_size, 3) and pixels.dtype == np.uint8
    assert new_hw == target_size(*hw, config.image_size)
    assert np.array_equal(pixels[:new_hw[0], :new_hw[1]], resize(image, new_hw, config.resize))
    assert not pixels[new_hw[0]:].any() and not pixels[:, new_hw[1]:].any()


def test_normalise_mean_std():
    image = np.random.default_rng(0).integers(0, 256, (100, 256, 3), np.uint8)
    out = normalise(*prepare(image, SMALL), SMALL)
    assert out.dtype == np.float32
    assert np.allclose(out[:100], (image - np.array(IMAGENET_MEAN)) / IMAGENET_STD, atol=1e-6)
    assert not out[100:].any()  # the mean colour, not black


def test_normalise_min_max():
    image = np.random.default_rng(0).integers(50, 200, (100, 256, 3), np.uint8)
    out = normalise(*prepare(image, LITE_MEDSAM), LITE_MEDSAM)
    low, high = float(image.min()), float(image.max())
    assert np.allclose(out[:100], (image - low) / (high - low), atol=1e-6)
    assert not out[100:].any()
    flat = np.full((4, 4, 3), 9, np.uint8)
    assert not normalise(*prepare(flat, LITE_MEDSAM), LITE_MEDSAM).any()


@given(sides, sides)
def test_points_scale_by_the_rounded_sizes_and_back(h, w):
    new_h, new_w = target_size(h, w, VIT_B.image_size)
    points = np.array([[0, 0], [w, h], [w / 3, h / 7]])
    out = scale_points(points, (h, w), VIT_B)
    assert np.allclose(out[1], (new_w, new_h), rtol=1e-12)
    assert np.allclose(out / (new_w, new_h) * (w, h), points, rtol=1e-12)
    assert scale_points(np.zeros((2, 5, 2), np.int64), (h, w), VIT_B).shape == (2, 5, 2)


def test_litemedsam_scales_both_axes_alike():
    out = scale_points([[800, 534]], (534, 800), LITE_MEDSAM)
    assert out.tolist() == [[256, 534 * 256 / 800]]  # 170.88, not the rounded 171
    assert scale_points([[800, 534]], (534, 800), VIT_B).tolist() == [[1024, 684]]


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 600), st.integers(1, 600), st.sampled_from([SMALL, WIDE, LITE_MEDSAM]))
def test_constants_stay_constant(h, w, config):
    new_hw = target_size(h, w, config.image_size)
    out = logits_to_image(np.full((2, *config.mask_size), 3.5, np.float32), config, new_hw, (h, w))
    assert out.shape == (2, h, w)
    assert np.abs(out - 3.5).max() < 1e-5
    for value, truth in ((0.5, True), (-0.5, False)):
        low = np.full(config.mask_size, value, np.float32)
        assert (masks_to_image(low, config, new_hw, (h, w)) == truth).all()
        assert not masks_to_image(low, config, new_hw, (h, w), threshold=0.6).any()


@pytest.mark.torch
@pytest.mark.parametrize("config", [VIT_B, WIDE, LITE_MEDSAM])
@pytest.mark.parametrize("hw", [(1200, 1800), (534, 800), (1, 1), (8, 20_000), (333, 77), (20_000, 8)])
def test_masks_back_equal_the_official_postprocess(config, hw):
    torch = pytest.importorskip("torch")
    from torch.nn.functional import interpolate
    low = np.random.default_rng(0).normal(0, 10, (2, *config.mask_size)).astype(np.float32)
    new_hw = target_size(*hw, config.image_size)
    theirs = interpolate(torch.from_numpy(low)[None], config.image_size, mode="bilinear", align_corners=False)
    theirs = theirs[..., :new_hw[0], :new_hw[1]]
    theirs = interpolate(theirs, hw, mode="bilinear", align_corners=False)[0].numpy()
    ours = logits_to_image(low, config, new_hw, hw)
    assert np.abs(ours - theirs).max() <= 1e-6 * np.abs(low).max()
    near = np.abs(theirs) < 1e-4
    assert ((masks_to_image(low, config, new_hw, hw) == (theirs > 0)) | near).all()


def test_masks_of_a_huge_picture_need_little_memory():
    low = np.random.default_rng(0).normal(size=SMALL.mask_size).astype(np.float32)
    hw = 5_000, 12_000
    tracemalloc.start()
    try:
        masks_to_image(low, SMALL, target_size(*hw, SMALL.image_size), hw)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert peak - hw[0] * hw[1] < 64e6


def test_logits_of_another_size_are_refused():
    with pytest.raises(ValueError, match="mask size"):
        masks_to_image(np.zeros((3, 64, 63)), SMALL, (256, 256), (10, 10))


def logit(share):
    share = np.clip(share, MASK_EPS, 1 - MASK_EPS)
    return np.log(share / (1 - share))


def test_mask_prompt_is_the_logit_of_the_covered_share():
    mask = np.random.default_rng(0).random((512, 1024)) > 0.5
    out = mask_to_logits(mask, VIT_B, (512, 1024))
    assert out.shape == (256, 256) and out.dtype == np.float32
    share = mask.reshape(128, 4, 256, 4).mean(axis=(1, 3))
    assert np.allclose(out[:128], logit(share), atol=1e-4)
    assert np.allclose(out[128:], logit(0), atol=1e-4)
    for same in (mask.astype(np.uint8) * 255, mask * 0.1, mask.astype(int)):
        assert np.array_equal(mask_to_logits(same, VIT_B), out)


@pytest.mark.parametrize("hw", [(100, 60), (534, 800), (333, 1000), (1, 1), (3000, 2000), (20_000, 8)])
@pytest.mark.parametrize("config", [SMALL, WIDE, LITE_MEDSAM])
def test_a_full_mask_fills_the_picture_and_nothing_else(config, hw):
    out = mask_to_logits(np.ones(hw, bool), config)
    new_h, new_w = target_size(*hw, config.image_size)
    stride = config.image_size[0] / config.mask_size[0]
    rows, cols = int(np.ceil(new_h / stride)), int(np.ceil(new_w / stride))
    assert np.allclose(out[:rows, :cols], logit(1), atol=1e-3)
    assert np.allclose(out[rows:], logit(0), atol=1e-3) and np.allclose(out[:, cols:], logit(0), atol=1e-3)


def test_small_objects_survive():
    mask = np.zeros((4000, 6000), bool)
    mask[3000, 4000] = True
    out = mask_to_logits(mask, VIT_B)
    y, x = np.unravel_index(out.argmax(), out.shape)
    assert out.max() == pytest.approx(logit(1), abs=1e-3)
    assert (y, x) == (3000 * 256 // 6000, 4000 * 256 // 6000)
    assert (out > 0).sum() == 1


def test_mask_prompt_comes_back_as_the_mask():
    y, x = np.mgrid[:534, :800]
    mask = (y - 250) ** 2 / 150**2 + (x - 500) ** 2 / 200**2 < 1
    new_hw = target_size(*mask.shape, VIT_B.image_size)
    back = masks_to_image(mask_to_logits(mask, VIT_B), VIT_B, new_hw, mask.shape)
    assert (back & mask).sum() / (back | mask).sum() > 0.99


@pytest.mark.parametrize("mask, image_hw, message", [
    (np.zeros((4, 4)), None, "empty"), (np.ones((4, 4, 3)), None, "h, w"), (np.ones((0, 4)), None, "h, w"),
    (np.ones((4, 5)), (5, 4), "5 x 4 pixels, but the image is 4 x 5"), (np.full((4, 4), np.nan), None, "NaN"),
])
def test_mask_prompts_that_are_refused(mask, image_hw, message):
    with pytest.raises(InputError, match=message):
        mask_to_logits(mask, SMALL, image_hw)


@pytest.mark.torch
def test_the_example_photograph_is_prepared_as_officially():
    torch = pytest.importorskip("torch")
    import official  # noqa: F401 (it finds the stand-in)
    import torchvision_standin
    torchvision_standin.install()
    from segment_anything.utils.transforms import ResizeLongestSide
    from torch.nn.functional import pad
    image = read_image(Path(__file__).parents[1] / "examples" / "coffee.jpg")
    pixels, (new_h, new_w) = prepare(image, VIT_B)
    theirs_resize = ResizeLongestSide(1024)
    resized = theirs_resize.apply_image(image)
    assert np.array_equal(pixels[:new_h, :new_w], resized)
    mean, std = (torch.tensor(v).view(3, 1, 1) for v in (IMAGENET_MEAN, IMAGENET_STD))
    theirs = (torch.from_numpy(resized.copy()).permute(2, 0, 1) - mean) / std
    theirs = pad(theirs, (0, 1024 - new_w, 0, 1024 - new_h)).permute(1, 2, 0).numpy()
    assert np.array_equal(normalise(pixels, (new_h, new_w), VIT_B), theirs)
    points = np.array([[10.0, 20.0], [599, 399]])
    expected = theirs_resize.apply_coords(points, (400, 600))
    assert np.array_equal(scale_points(points, (400, 600), VIT_B), expected)
