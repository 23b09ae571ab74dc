"""Matchings of the largest size: against SciPy's largest flow, and on long paths that must be turned over."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.sparse import csr_array
from scipy.sparse.csgraph import maximum_flow

from samjax.evaluate.assignment import pair


def size_of(near, size):
    """Of the largest matching: a flow from a source, 0, through both sets to a sink."""
    n = len(near)
    rows, columns = np.nonzero(near >= 0)
    start = np.concatenate([np.zeros(n, int), 1 + rows, 1 + n + np.arange(size)])
    stop = np.concatenate([1 + np.arange(n), 1 + n + near[rows, columns], np.full(size, 1 + n + size)])
    graph = csr_array((np.ones(len(start), np.int32), (start, stop)), shape=(n + size + 2,) * 2)
    return maximum_flow(graph, 0, n + size + 1).flow_value


def checked(near, size):
    """The number of pairs, after making sure that they are allowed and that none is used twice."""
    found = pair(near, size)
    for row, mate in zip(near, found):
        assert mate == -1 or mate in row
    used = found[found >= 0]
    assert len(np.unique(used)) == len(used)
    return len(used)


@settings(max_examples=100, deadline=None)
@given(st.integers(0, 2**32 - 1), st.integers(1, 12), st.integers(1, 12), st.floats(0, 1))
def test_as_many_as_possible(seed, n, size, share):
    random = np.random.default_rng(seed)
    near = np.array([random.permutation(size) for _ in range(n)])
    near[random.random(near.shape) < share] = -1
    assert checked(near, size) == size_of(near, size)


@pytest.mark.parametrize("n, size, wide", [(300, 300, 8), (400, 200, 12), (150, 400, 6), (500, 480, 3)])
def test_as_many_as_possible_among_neighbours(n, size, wide):
    """Places on a line that want those nearby, many of them the same ones."""
    random = np.random.default_rng(n)
    near = (random.integers(0, size, n)[:, None] + random.permuted(np.tile(np.arange(-wide, wide), (n, 1)), axis=1))
    near[(near < 0) | (near >= size) | (random.random(near.shape) < 0.6)] = -1
    assert checked(near, size) == size_of(near, size)


@pytest.mark.parametrize("transposed", [False, True])
def test_a_long_path_is_turned_over(transposed):
    """i would rather have i + 1; the last one finds it taken, and all must move by one."""
    n = 2000
    near = np.stack([np.arange(1, n + 1), np.arange(n)], axis=1)
    near[-1] = n - 1, -1
    near = near[::-1] if transposed else near
    assert checked(near, n) == n


def test_the_nearest_are_served_first():
    near = np.array([[-1, -1, 0], [0, -1, -1], [-1, 0, 1]])
    np.testing.assert_array_equal(pair(near, 2), [-1, 0, 1])


def test_nobody_to_pair():
    assert len(pair(np.zeros((0, 3), int), 4)) == 0
    np.testing.assert_array_equal(pair(np.full((2, 3), -1), 0), [-1, -1])
    np.testing.assert_array_equal(pair(np.full((2, 3), -1), 5), [-1, -1])
