"""Mixtures of tuned parameters and those they began from."""

import numpy as np
import pytest

from samjax.train.blend import SHARES, SLACK, blend, choose


def test_on_the_line_and_what_is_equal_stays_to_the_bit():
    random = np.random.default_rng(0)
    before = {"a": random.normal(size=(3, 4)).astype(np.float32), "b": np.float32([0.1, 0.2])}
    after = {"a": before["a"] + np.float32(1), "b": before["b"].copy()}
    for share in (*SHARES, 1.0):
        mixed = blend(before, after, share)
        np.testing.assert_allclose(mixed["a"], before["a"] + share, atol=1e-6)
        np.testing.assert_array_equal(mixed["b"], before["b"])
        assert all(value.dtype == np.float32 for value in mixed.values())
    np.testing.assert_array_equal(blend(before, after, 1.0)["a"], after["a"])


@pytest.mark.parametrize("scores, kept", [
    ({1: 60.0, 0.75: 59.9, 0.5: 59.1, 0.25: 50.0}, 0.5),  # 0.5 costs less than a point
    ({1: 60.0, 0.75: 58.9, 0.5: 57.0, 0.25: 50.0}, 1.0),
    ({1: 60.0, 0.75: 62.0, 0.5: 61.5, 0.25: 60.5}, 0.5),  # the best is not the whole way
    ({1: 60.0, 0.75: 55.0, 0.5: 50.0, 0.25: 59.5}, 0.25),
])
def test_the_least_share_that_costs_little(scores, kept):
    asked = []
    assert choose(scores[1], lambda share: asked.append(share) or scores[share]) == kept
    assert tuple(asked) == SHARES and SLACK == 1.0
