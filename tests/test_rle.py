"""samjax.rle: run lengths against a plain loop and pycocotools."""

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from hypothesis.extra.numpy import array_shapes, arrays

from samjax import rle
from samjax.errors import InputError

masks = arrays(bool, array_shapes(min_dims=2, max_dims=2, max_side=40))
counts_lists = st.lists(st.integers(0, 2**34), max_size=40)


def plain_counts(mask):
    """Runs of the column-major pixels, one at a time."""
    counts, value = [0], False
    for pixel in mask.T.ravel():
        if pixel != value:
            counts.append(0)
            value = not value
        counts[-1] += 1
    return counts


@given(masks)
@example(np.ones((3, 4), bool))
@example(np.zeros((3, 4), bool))
@example(np.eye(1, dtype=bool))
def test_counts_are_the_runs_and_give_the_mask_back(mask):
    counts = rle.encode(mask)
    assert counts.tolist() == plain_counts(mask)
    assert (rle.decode(counts, mask.shape) == mask).all()
    assert rle.area(counts) == mask.sum()
    assert rle.decode(counts, mask.shape).flags.c_contiguous


@given(masks, st.integers(0, 5), st.integers(0, 5), st.integers(0, 5), st.integers(0, 5))
def test_a_part_gives_the_counts_of_the_whole(mask, left, top, right, bottom):
    whole = np.pad(mask, ((top, bottom), (left, right)))
    assert rle.encode(mask, (left, top), whole.shape).tolist() == plain_counts(whole)


def test_a_part_outside_is_refused():
    with pytest.raises(ValueError, match="does not lie in"):
        rle.encode(np.ones((2, 2), bool), (3, 0), (4, 4))


@given(counts_lists)
@example([0, 31, 32, 16, 15, 17, 2**34, 0, 0])
def test_text_gives_the_counts_back(counts):
    assert rle.decompress(rle.compress(counts)).tolist() == counts


@given(masks)
def test_text_is_pycocotools(mask):
    cocomask = pytest.importorskip("pycocotools.mask")
    theirs = cocomask.encode(np.asfortranarray(mask, np.uint8))
    text = rle.compress(rle.encode(mask))
    assert text == theirs["counts"].decode()
    assert rle.decompress(theirs["counts"]).tolist() == plain_counts(mask)
    assert (cocomask.decode({"size": list(mask.shape), "counts": text}) == mask).all()


def test_large_counts_are_pycocotools():
    cocomask = pytest.importorskip("pycocotools.mask")
    counts = [100_000, 3, 20_000_000, 7, 5, 900_000, 1]
    counts.append(30_000 * 40_000 - sum(counts))
    theirs = cocomask.frPyObjects({"size": [30_000, 40_000], "counts": counts}, 30_000, 40_000)
    assert rle.compress(counts) == theirs["counts"].decode()


@pytest.mark.parametrize("text", ["P", " 1", "0\x7f", "o" * 14 + "0", "é"])
def test_damaged_text_is_refused(text):
    with pytest.raises(InputError, match="damaged"):
        rle.decompress(text)


@pytest.mark.parametrize("counts", [[3], [2, 5], [5, -1, 0], []])
def test_counts_of_another_size_are_refused(counts):
    with pytest.raises(InputError, match="no mask of 2 x 2"):
        rle.decode(np.array(counts), (2, 2))


def test_every_form_of_a_mask_is_read():
    mask = np.random.default_rng(0).random((7, 5)) > 0.5
    counts = rle.encode(mask)
    text = rle.compress(counts)
    for form in (mask, {"size": [7, 5], "counts": counts.tolist()}, {"size": [7, 5], "counts": text},
                 {"size": [7, 5], "counts": text.encode()}):
        assert (rle.to_mask(form) == mask).all()
        assert rle.to_counts(form)[0].tolist() == counts.tolist() and rle.to_counts(form)[1] == (7, 5)
