"""samjax.runs against plain arrays."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from plain import flood

from samjax import rle, runs


def masks(seed, h, w, n):
    """n random masks bool (h, w): noise, blobs, full, empty."""
    random = np.random.default_rng(seed)
    y, x = np.mgrid[:h, :w]
    found = []
    for _ in range(n):
        kind = random.integers(5)
        if kind < 3:
            centre, radius = random.uniform(0, (h, w)), random.uniform(0, max(h, w))
            found.append(np.hypot(y - centre[0], x - centre[1]) < radius)
        else:
            found.append(random.random((h, w)) < (0.5 if kind == 3 else random.integers(2)))
    return found


def dense(part, w):
    out = np.zeros(part.height * w, bool)
    for start, stop in zip(part.start, part.stop):
        assert not out[start:stop].any() and start < stop and start // part.height == (stop - 1) // part.height
        out[start:stop] = True
    assert (np.diff(part.start) > 0).all()
    return out.reshape(w, part.height).T


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_runs_do_what_arrays_do(seed, h, w):
    random = np.random.default_rng(seed)
    plain = masks(seed, h, w, 3)
    parts = [runs.of_mask(mask, (0, 0), h) for mask in plain]
    for mask, part in zip(plain, parts):
        np.testing.assert_array_equal(dense(part, w), mask)
        assert part.area == mask.sum()
        np.testing.assert_array_equal(runs.counts(part, w), rle.encode(mask))
        ys, xs = np.nonzero(mask)
        assert runs.bounds(part) == ((xs.min(), ys.min(), xs.max(), ys.max()) if len(xs) else (0, 0, 0, 0))
        (x0, x1), (y0, y1) = (np.sort(random.integers(0, n + 1, 2)) for n in (w, h))
        expected = np.zeros_like(mask)
        expected[y0:y1, x0:x1] = mask[y0:y1, x0:x1]
        np.testing.assert_array_equal(dense(runs.clip(part, (x0, y0, x1, y1)), w), expected)
    assert runs.shared(parts[0], parts[1]) == (plain[0] & plain[1]).sum() == runs.shared(parts[1], parts[0])
    np.testing.assert_array_equal(dense(runs.union(parts), w), plain[0] | plain[1] | plain[2])
    np.testing.assert_array_equal(dense(runs.union(parts[:1]), w), plain[0])


@given(st.integers(0, 2**32), st.integers(1, 9), st.integers(1, 9))
@settings(max_examples=150, deadline=None)
def test_connected_parts_are_those_of_a_flood(seed, h, w):
    mask = np.random.default_rng(seed).random((h, w)) < 0.4
    found = [{tuple(p) for p in np.argwhere(dense(part, w))} for part in runs.parts(runs.of_mask(mask, (0, 0), h))]
    assert sorted(map(sorted, found)) == sorted(map(sorted, (map(tuple, region) for region in flood(mask))))
    assert [len(part) for part in found] == sorted(map(len, found), reverse=True)


def test_a_part_lies_where_its_corner_says():
    mask = masks(1, 5, 4, 1)[0] | True
    whole = np.zeros((40, 30), bool)
    whole[20:25, 10:14] = mask
    part = runs.of_mask(mask, (10, 20), 40)
    np.testing.assert_array_equal(dense(part, 30), whole)
    np.testing.assert_array_equal(runs.counts(part, 30), rle.encode(whole))
    assert len(part.start) == 4


@pytest.mark.parametrize("side", [20_000])
def test_a_huge_picture_costs_only_its_runs(side):
    disc = masks(3, 400, 400, 1)[0]
    disc[:] = np.hypot(*(np.mgrid[:400, :400] - 200)) < 190
    parts = [runs.of_mask(disc, (x, x), side) for x in (0, 100, 19_600)]
    joined = runs.union(parts)
    assert len(joined.start) < 1200 and runs.bounds(joined) == (11, 11, 19_989, 19_989)
    assert joined.area == parts[0].area + parts[1].area + parts[2].area - runs.shared(parts[0], parts[1])
    assert rle.area(runs.counts(joined, side)) == joined.area
