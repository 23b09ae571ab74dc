"""samjax.draw: what is drawn where, and files that are written whole or not at all."""

import errno
import os
import resource
import signal
from collections.abc import Sequence

import numpy as np
import pytest
from PIL import Image

from samjax.draw import NEGATIVE, POSITIVE, Part, colour, line_width, overlay, save_png
from samjax.errors import InputError

GREY = np.full((200, 300, 3), 120, np.uint8)
NONE = np.zeros((0, 200, 300), bool)


def square(h=200, w=300, box=(60, 50, 160, 150)):
    mask = np.zeros((h, w), bool)
    mask[box[1]:box[3], box[0]:box[2]] = True
    return mask


def drawn(*args, **kwargs):
    return np.asarray(overlay(*args, **kwargs)).astype(int)


def test_nothing_to_draw_leaves_the_picture():
    image = np.random.default_rng(0).integers(0, 256, (20, 30, 3), np.uint8)
    assert np.array_equal(drawn(image, np.zeros((2, 20, 30), bool)), image)
    assert np.array_equal(drawn(image, np.zeros((0, 20, 30), bool)), image)


def test_a_mask_is_tinted_outlined_and_the_rest_left_alone():
    before = GREY.copy()
    out = drawn(GREY, square()[None])
    assert np.array_equal(GREY, before)
    tint = np.rint(120 * 0.55 + np.array(colour(0)) * 0.45)
    assert np.abs(out[70:130, 80:140] - tint).max() <= 1
    edge = out[100, 59:62]
    assert np.abs(edge - colour(0)).sum(axis=1).min() < np.abs(tint - colour(0)).sum()  # purer than the fill
    assert out[100, 58].max() < 120  # the dark rim outside
    assert (out[:40] == 120).all() and (out[:, 175:] == 120).all()


def test_small_masks_lie_on_large_ones():
    large, small = square(box=(10, 10, 290, 190)), square(box=(100, 80, 140, 120))
    for masks, n in (((large, small), 1), ((small, large), 0)):
        out = drawn(GREY, np.stack(masks))
        assert np.abs(out[100, 120] - (120 * 0.55 + np.array(colour(n)) * 0.45)).max() <= 1  # and are no mixture


def test_parts_are_drawn_as_whole_masks_are():
    image = np.random.default_rng(3).integers(0, 256, (200, 300, 3), np.uint8)
    boxes = [(10, 10, 290, 190), (0, 0, 40, 7), (295, 0, 300, 200), (120, 80, 121, 81)]
    whole = [square(box=box) for box in boxes]

    class Parts(Sequence):
        def __len__(self):
            return len(boxes)

        def __getitem__(self, n):
            x0, y0, x1, y1 = boxes[n]
            loose = max(0, x0 - 3), max(0, y0 - 2)  # the part may be larger than the mask
            return Part(whole[n][loose[1]:y1 + 9, loose[0]:x1 + 5], loose)

    assert np.array_equal(drawn(image, Parts()), drawn(image, np.stack(whole)))


def test_lines_of_small_masks_are_thin():
    image = np.full((300, 4000, 3), 120, np.uint8)  # lines of 10 px
    out = drawn(image, np.stack([square(300, 4000, (100, 100, 140, 140)), square(300, 4000, (600, 50, 900, 250))]))
    tints = [np.rint(120 * 0.55 + np.array(colour(n)) * 0.45) for n in (0, 1)]
    for n, (x, y, top, least, most) in enumerate(((120, 120, 100, 1, 3), (750, 150, 50, 4, 8))):
        upwards = np.abs(out[y::-1, x] - tints[n]).max(axis=-1) > 1
        assert least <= y + 1 - top - np.flatnonzero(upwards)[0] <= most


@pytest.mark.parametrize("box", [(0, 0, 300, 200), (299, 199, 300, 200), (0, 0, 1, 1), (5, 100, 295, 101)])
def test_masks_at_the_border_and_of_one_pixel_are_seen(box):
    out = drawn(GREY, square(box=box)[None])
    inside = out[box[1]:box[3], box[0]:box[2]]
    assert (np.abs(inside - 120).max(axis=-1) > 30).all()


def test_booleans_of_any_bytes_count_as_true():
    mask = square()
    odd = (mask.view(np.uint8) * np.uint8(255)).view(bool)
    assert np.array_equal(drawn(GREY, odd[None]), drawn(GREY, mask[None]))


def test_points_by_label():
    grey, none = np.full((1200, 1800, 3), 120, np.uint8), np.zeros((0, 1200, 1800), bool)  # radius 20
    points = [[[50, 50], [150, 50], [250, 50], [50, 150]]]
    out = drawn(grey, none, points, [[1, 0, -1, 2]])
    assert np.abs(out[50, 50] - POSITIVE).max() <= 2
    assert np.abs(out[50, 150] - NEGATIVE).max() <= 2
    assert (out[20:80, 220:280] == 120).all() and (out[120:180, 20:80] == 120).all()
    disc, cross = out[20:81, 20:81], out[20:81, 120:181]
    for marker in (disc, cross):
        assert (marker.min(axis=-1) > 240).any() and (marker.max(axis=-1) < 90).any()  # white edge, dark rim
    assert np.abs(disc[30, 40] - POSITIVE).max() <= 2  # half a radius sideways the disc is filled ...
    assert np.abs(cross[30, 40] - NEGATIVE).max() > 60  # ... and the cross is not: shape tells them apart
    assert np.abs(cross[37, 37] - NEGATIVE).max() <= 2
    assert np.array_equal(drawn(GREY, NONE, points[0][:1]), drawn(GREY, NONE, points[0][:1], [1]))


def test_points_and_boxes_may_leave_the_picture():
    out = overlay(GREY, NONE, [[[-5, -5], [300, 200], [900, 900]]], [[1, 0, 1]],
                  boxes=[[-20, -20, 400, 300], [250, 150, 500, 500], [400, 400, 500, 500], [5, 5, 5, 5]])
    assert out.size == (300, 200)


def test_boxes_are_frames_in_the_objects_colour():
    out = drawn(GREY, NONE, boxes=[[40, 50, 140, 150], [200, 20, 280, 180]])
    for n, (x, y) in enumerate(((40, 100), (200, 100))):
        line = out[y, x - 1:x + 1]
        assert np.abs(line - colour(n)).sum(axis=-1).min() < 160
    assert (out[70:130, 60:120] == 120).all()
    assert np.abs(out[50, 40] - 120).max() < 60  # the corner is rounded


def test_sizes_follow_the_picture():
    assert line_width((800, 534)) == 2 and line_width((8000, 5340)) == 20
    small = drawn(GREY, square()[None], [[[110, 100]]], boxes=[[60, 50, 160, 150]])
    big_image = np.full((2000, 3000, 3), 120, np.uint8)
    big = drawn(big_image, square(2000, 3000, (600, 500, 1600, 1500))[None], [[[1100, 1000]]],
                boxes=[[600, 500, 1600, 1500]])
    reduced = big.reshape(200, 10, 300, 10, 3).mean(axis=(1, 3))
    assert np.abs(reduced - small).mean() < 3


def test_grey_and_other_channel_counts():
    mask = square()[None]
    expected = drawn(GREY, mask)
    assert np.array_equal(drawn(GREY[..., 0], mask), expected)
    assert np.array_equal(drawn(GREY[..., :1], mask), expected)
    assert np.array_equal(drawn(np.dstack([GREY, GREY]), mask), expected)


def test_shapes_that_do_not_fit():
    with pytest.raises(ValueError, match="do not fit"):
        overlay(GREY, np.zeros((1, 10, 10), bool))
    with pytest.raises(ValueError, match="uint8"):
        overlay(GREY.astype(float), NONE)


def test_colours_are_distinct():
    colours = np.array([colour(n) for n in range(24)])
    gaps = np.abs(colours[:, None] - colours[None]).sum(axis=-1) + 1000 * np.eye(24, dtype=int)
    assert gaps.min() >= 20
    assert np.abs(colours[:-1] - colours[1:]).sum(axis=-1).min() > 150


def test_one_pixel_picture():
    assert overlay(np.zeros((1, 1, 3), np.uint8), np.ones((1, 1, 1), bool), [[[0, 0]]], [[1]]).size == (1, 1)


def test_save_png_round_trip(tmp_path):
    rng = np.random.default_rng(0)
    mask, rgb = rng.random((5, 7)) > 0.5, rng.integers(0, 256, (5, 7, 3), np.uint8)
    save_png(tmp_path / "m.png", mask)
    save_png(str(tmp_path / "c.png"), rgb)
    save_png(tmp_path / "i.png", Image.fromarray(rgb))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "m.png")), np.where(mask, 255, 0))
    assert np.array_equal(np.asarray(Image.open(tmp_path / "c.png")), rgb)
    assert np.array_equal(np.asarray(Image.open(tmp_path / "i.png")), rgb)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["c.png", "i.png", "m.png"]


def test_save_png_where_it_cannot(tmp_path):
    for path in (tmp_path / "none" / "m.png", tmp_path, tmp_path / ("x" * 300 + ".png")):
        with pytest.raises(InputError, match="cannot write") as caught:
            save_png(path, square())
        assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_leaves_the_old_file_and_nothing_else(tmp_path):
    path = tmp_path / "m.png"
    save_png(path, square())
    old = path.read_bytes()
    noise = np.random.default_rng(0).integers(0, 256, (300, 300, 3), np.uint8)
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    try:
        resource.setrlimit(resource.RLIMIT_FSIZE, (10_000, limits[1]))
        with pytest.raises(InputError, match="cannot write .*m.png"):
            save_png(path, noise)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == old and os.listdir(tmp_path) == ["m.png"]


def test_the_reason_is_named(tmp_path, monkeypatch):
    def full(*args, **kwargs):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
    monkeypatch.setattr(Image.Image, "save", full)
    with pytest.raises(InputError, match="no space left on device"):
        save_png(tmp_path / "m.png", square())
