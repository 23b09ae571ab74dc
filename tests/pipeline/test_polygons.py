"""Polygons against pycocotools."""

import numpy as np
import pytest
from pycocotools import mask as coco_mask

from samjax import rle
from samjax.data.polygons import rasterise
from samjax.errors import InputError


def official(polygons, image_hw):
    found = coco_mask.merge(coco_mask.frPyObjects([list(map(float, p)) for p in polygons], *image_hw))
    return coco_mask.decode(found).astype(bool)


@pytest.mark.parametrize("kind", ["whole", "halves", "any"])
@pytest.mark.parametrize("n", [1, 2, 4])
def test_equal_to_pycocotools(kind, n):
    rng = np.random.default_rng(n)
    filled = 0
    for _ in range(120):
        hw = tuple(int(side) for side in rng.integers(1, 50, 2))
        corners = [rng.uniform(-12, 60, 2 * int(rng.integers(3, 10))) for _ in range(n)]
        polygons = [{"whole": np.round(c), "halves": np.round(2 * c) / 2, "any": c}[kind].tolist() for c in corners]
        mask = rle.decode(rasterise(polygons, hw), hw)
        assert np.array_equal(mask, official(polygons, hw))
        filled += mask.any()
    assert filled > 60


def test_square_is_filled_by_pixel_centres():
    mask = rle.decode(rasterise([[2, 1, 6, 1, 6, 4, 2, 4]], (8, 9)), (8, 9))
    want = np.zeros((8, 9), bool)
    want[1:4, 2:6] = True
    assert np.array_equal(mask, want)


def test_repeated_corners_and_lines_without_area():
    for polygon in ([3, 3, 3, 3, 3, 3], [1, 1, 9, 1, 1, 1], [1, 1, 1, 9, 1, 1], [0, 0, 5, 5, 5, 5, 0, 9, 0, 0]):
        mask = rle.decode(rasterise([polygon], (12, 12)), (12, 12))
        assert np.array_equal(mask, official([polygon], (12, 12)))


@pytest.mark.parametrize("polygons", [[], [[1, 2, 3, 4]], [[1, 2, 3, 4, 5, 6, 7]], [["a"] * 6], [[1, 2, 3, 4, 5, None]],
                                      [[1, 2, 3, 4, 5, float("nan")]], [[[1, 2], [3, 4], [5, 6]]], [5]])
def test_what_is_no_polygon(polygons):
    with pytest.raises(InputError, match="polygon"):
        rasterise(polygons, (10, 10))
