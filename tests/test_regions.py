"""samjax.regions against a flood fill written out."""

import numpy as np
import pytest
from plain import plain_clean

from samjax.regions import bounding_box, clean, drop_islands, fill_holes


def random_masks(n=60):
    random = np.random.default_rng(0)
    for _ in range(n):
        yield random.random(random.integers(1, 24, 2)) < random.choice([0.2, 0.5, 0.8])


@pytest.mark.parametrize("least", [1, 3, 8, 40])
def test_cleaning_a_part_is_cleaning_the_whole(least):
    """Wherever the mask lies, at the picture's sides too, its part alone gives what the whole picture gives."""
    random = np.random.default_rng(1)
    for part in random_masks():
        before, after = random.integers(0, 12, (2, 2)) * (random.random((2, 2)) < 0.7)
        whole = np.pad(part, list(zip(before, after)))
        if not whole.any():
            continue
        x0, y0, x1, y1 = bounding_box(whole)
        found, (x, y), changed = clean(whole[y0 : y1 + 1, x0 : x1 + 1], (x0, y0), whole.shape, least)
        expected, expected_changed = plain_clean(whole, least)
        back = np.zeros_like(whole)
        back[y : y + found.shape[0], x : x + found.shape[1]] = found
        assert (back == expected).all() and changed == expected_changed


def test_of_specks_the_largest_stays():
    mask = np.zeros((9, 9), bool)
    mask[0, 0] = mask[4, 4:7] = mask[8, 8] = True
    found, changed = drop_islands(mask, 100)
    assert changed and found.sum() == 3 and found[4, 4:7].all()


def test_corners_join():
    ring = np.ones((3, 3), bool)
    ring[1, 1] = False
    assert fill_holes(ring, 2)[0].all()
    gap = ring.copy()
    gap[0, 0] = False  # the hole reaches out through its corner
    assert not fill_holes(np.pad(gap, 3), 3)[1]
    assert not drop_islands(np.eye(5, dtype=bool), 5)[1]


def test_the_box_of_nothing_is_zeros():
    assert bounding_box(np.zeros((3, 4), bool), (7, 8)) == (0, 0, 0, 0)
    assert bounding_box(np.eye(3, dtype=bool), (7, 8)) == (7, 8, 9, 10)
