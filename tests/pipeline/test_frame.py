"""Pictures in the frame: as `geometry.prepare` where nothing augments, and in step with their masks where it does."""

import io

import numpy as np
import pytest
from PIL import Image

from samjax import geometry, rle
from samjax.config import LITE_MEDSAM, VIT_B
from samjax.data.frame import Frame, pixels, plain
from samjax.data.grid import to_cells
from samjax.image import full_hw, open_bytes, read_image


def noise(h, w, mode):
    rng = np.random.default_rng(h)
    array = rng.integers(0, 256, (h, w, 4), np.uint8)
    if mode == "I;16":
        return Image.fromarray(rng.integers(0, 60000, (h, w), np.uint16))
    channels = {"RGBA": 4}.get(mode, 3)
    return Image.fromarray(array[..., :channels].copy()).convert(mode)


@pytest.mark.parametrize("base", [VIT_B, LITE_MEDSAM], ids=["bilinear", "area"])
@pytest.mark.parametrize("mode", ["RGB", "L", "RGBA", "P", "I;16"])
@pytest.mark.parametrize("hw", [(37, 61), (1300, 700), (1024, 1024), (1, 3000)])
def test_plain_is_prepare_bit_for_bit(base, mode, hw):
    picture = noise(*hw, mode)
    want, new_hw = geometry.prepare(read_image(picture), base)
    frame = plain(hw, base.image_size)
    assert frame.valid == new_hw and frame.plain
    assert np.array_equal(pixels(picture, frame, base), want)


def smooth(h, w):
    small = np.random.default_rng(0).integers(0, 256, (6, 6, 3), np.uint8)
    return Image.fromarray(small).resize((w, h), Image.Resampling.BICUBIC)


@pytest.mark.parametrize("flip", [False, True])
@pytest.mark.parametrize("scaled, offset", [((90, 120), (0, 0)), ((1500, 2000), (300, 700)),
                                            ((1536, 2048), (512, 1024)), ((700, 3000), (0, 1976))])
def test_a_window_is_a_part_of_the_whole(flip, scaled, offset):
    """Resizing a window alone gives what cutting it from the resized picture gives, to a rounding."""
    picture, size = smooth(300, 400), (1024, 1024)
    frame = Frame((300, 400), scaled, size, offset, flip)
    got = pixels(picture, frame, VIT_B)
    whole = np.asarray(picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT) if flip else picture)
    whole = geometry.resize(whole, scaled)
    want = np.zeros_like(got)
    h, w = frame.valid
    want[:h, :w] = whole[offset[0]:offset[0] + h, offset[1]:offset[1] + w]
    assert np.abs(got.astype(int) - want).max() <= 1
    assert not got[h:].any() and not got[:, w:].any()


@pytest.mark.parametrize("seed", range(4))
def test_picture_and_mask_move_together(seed):
    """A picture that is its own mask: bright where the mask is, however it is scaled, cut and flipped."""
    rng = np.random.default_rng(seed)
    mask = np.zeros((120, 160), bool)
    mask[30:90, 20:70], mask[60:110, 100:140] = True, True
    scaled = tuple(int(v) for v in np.array([120, 160]) * rng.uniform(2, 8))
    size = (512, 512)
    offset = tuple(int(rng.integers(max(n - s, 0) + 1)) for n, s in zip(scaled, size))
    frame = Frame((120, 160), scaled, size, offset, flip=bool(seed % 2), upside=seed > 1)
    config = VIT_B.__class__("custom", image_size=size)
    picture = Image.fromarray(np.repeat(mask[..., None], 3, axis=-1).astype(np.uint8) * 255)
    image = pixels(picture, frame, config)[..., 0] / 255
    bright = image.reshape(128, 4, 128, 4).mean(axis=(1, 3)) >= 0.5
    (part, (i, j)), = to_cells([rle.encode(mask)], frame, (128, 128))
    got = np.zeros((128, 128), bool)
    got[i:i + part.shape[0], j:j + part.shape[1]] = part
    assert got.any() and np.count_nonzero(got != bright) <= 0.02 * got.sum() + 4


@pytest.mark.parametrize("turn", [None, 6])
def test_fast_jpeg_is_nearly_the_same(turn):
    file, exif = io.BytesIO(), Image.Exif()
    if turn:
        exif[0x0112] = turn
    smooth(1500, 2250).save(file, "JPEG", quality=95, exif=exif)
    slow, fast = (open_bytes(file.getvalue(), "a.jpg", longest) for longest in (None, 1024))
    hw = (2250, 1500) if turn else (1500, 2250)
    assert full_hw(slow) == full_hw(fast) == (slow.height, slow.width) == hw
    assert max(fast.size) == 1125
    frame = plain(hw, (1024, 1024))
    images = [pixels(picture, frame, VIT_B).astype(int) for picture in (slow, fast)]
    assert np.abs(images[0] - images[1]).max() <= 6
    assert open_bytes(file.getvalue(), "a.jpg", 1200).size == slow.size  # half would be too small
