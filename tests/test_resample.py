"""samjax.resample: bands are averages, blocks and bands agree, shrinking by area is OpenCV's to the bit."""

from fractions import Fraction
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from samjax.resample import Band, area, bilinear, blocks, compose, reduce_rows, shrink_by_area

sizes = st.integers(1, 300)


def dense(band: Band, n_in: int) -> np.ndarray:
    out = np.zeros((len(band.index), n_in))
    np.add.at(out, (np.arange(len(out))[:, None], band.index), band.weight)
    return out


@settings(max_examples=40, deadline=None)
@given(sizes, sizes)
def test_rows_sum_to_one_and_weigh_nothing_negatively(n_in, n_out):
    for band in (bilinear(n_in, n_out), area(n_in, n_out)):
        assert band.index.shape[0] == n_out
        assert band.index.min() >= 0 and band.index.max() < n_in
        assert band.weight.min() >= 0
        assert np.allclose(band.weight.sum(axis=1), 1, rtol=0, atol=1e-12)


@settings(max_examples=40, deadline=None)
@given(sizes)
def test_equal_sizes_are_the_identity(n):
    assert np.array_equal(dense(bilinear(n, n), n), np.eye(n))
    assert np.array_equal(dense(area(n, n), n), np.eye(n))


@settings(max_examples=30, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40))
def test_area_is_the_exact_coverage(n_in, n_out):
    cell = Fraction(n_in, n_out)
    exact = [[float(max(0, min((i + 1) * cell, j + 1) - max(i * cell, j)) / cell) for j in range(n_in)]
             for i in range(n_out)]
    assert np.allclose(dense(area(n_in, n_out), n_in), exact, rtol=0, atol=1e-9)


@settings(max_examples=40, deadline=None)
@given(sizes, sizes, sizes, st.integers(1, 70))
def test_composition_and_blocks_are_matrix_products(a, b, c, step):
    first, second = bilinear(a, b), area(b, c)
    both = compose(second, first)
    product = dense(second, b) @ dense(first, a)
    assert np.allclose(dense(both, a), product, rtol=0, atol=1e-12)
    whole, covered = np.zeros((c, a)), []
    for rows, cols, block in blocks(both, step, np.float64):
        whole[rows, cols] = block
        covered.extend(range(rows.start, rows.stop))
    assert covered == list(range(c))
    assert np.allclose(whole, product, rtol=0, atol=1e-12)


def test_reduce_rows_works_in_strips():
    array = np.random.default_rng(0).random((5000, 3000)) > 0.5  # several strips
    band = area(5000, 7)
    assert np.allclose(reduce_rows(band, array), dense(band, 5000) @ array, atol=1e-5)


def test_shrinking_by_area_equals_opencv():
    """Made with opencv-python-headless 5.0.0.93, cv2.resize(image, (new_w, new_h), interpolation=INTER_AREA).

    A key is seed_height_width_channels of the input.
    """
    golden = np.load(Path(__file__).parent / "data" / "opencv_area.npz")
    assert len(golden.files) >= 6
    for name in golden.files:
        seed, h, w, c = map(int, name.split("_"))
        image = np.random.Generator(np.random.PCG64(seed)).integers(0, 256, (h, w, c), np.uint8)
        out = shrink_by_area(image, golden[name].shape[:2])
        assert np.array_equal(out, golden[name]), name


@pytest.mark.parametrize("hw, new_hw", [((7, 9), (3, 4)), ((8, 8), (4, 4)), ((9, 9), (3, 3))])
def test_shrinking_a_constant_changes_nothing(hw, new_hw):
    for value in (0, 1, 127, 255):
        assert (shrink_by_area(np.full((*hw, 3), value, np.uint8), new_hw) == value).all()
